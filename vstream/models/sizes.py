"""Settings that suit models whose frames take many tokens, worked out from the model's own sizes.

It knows nothing of families: two numbers of an adapter decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vstream.config import MIB, Config

if TYPE_CHECKING:
    from vstream.models.base import Adapter

_CLIP_FRAMES, _WINDOW_FRAMES, _GIST_FRAMES = 4, 16, 2
_KEPT_FRAMES = 256  # in RAM, before the past is condensed


def roomy_settings(adapter: Adapter) -> dict[str, Any]:
    """16 recent frames, 16 brought back and an overview, within the trained length; bytes to hold some minutes.

    Args:
        adapter: with its decoder, `max_positions` and frame tokens set.
    """
    usual, frame = Config(), adapter.max_frame_tokens
    room = max(0, adapter.max_positions - usual.max_question_tokens - usual.max_answer_tokens)
    clip_frames = max(1, min(_CLIP_FRAMES, room // (8 * frame)))
    window = max(clip_frames * frame, min(_WINDOW_FRAMES * frame, room // 4))
    tokens = {"window_tokens": window, "retrieve_tokens": window, "gist_tokens": min(_GIST_FRAMES * frame, room // 16)}
    answer = sum(tokens.values()) + 2 * clip_frames * frame + usual.max_question_tokens + usual.max_answer_tokens
    return {
        "clip_frames": clip_frames,
        **tokens,
        "gist_vision_tokens": max(usual.gist_vision_tokens, min(16, frame // 16)),
        "host_bytes": max(usual.host_bytes, _KEPT_FRAMES * frame * _token_bytes(adapter)),
        "answer_bytes": max(1024 * MIB, 2 * answer * _token_bytes(adapter)),
    }


def _token_bytes(adapter: Adapter) -> int:
    """Keys and values of one token."""
    return 2 * adapter.num_layers * adapter.num_kv_heads * adapter.head_dim * adapter.dtype.itemsize
