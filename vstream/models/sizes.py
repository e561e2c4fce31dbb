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
    usual, frame, group = Config(), adapter.max_frame_tokens, adapter.group_frames
    room = max(0, adapter.max_positions - usual.max_question_tokens - usual.max_answer_tokens)
    clip_frames = group * max(1, min(_CLIP_FRAMES // group, room // (8 * frame)))
    clip = adapter.most_tokens(clip_frames)
    window = max(clip, min(adapter.most_tokens(_WINDOW_FRAMES), room // 4))
    tokens = {"window_tokens": window, "retrieve_tokens": window, "gist_tokens": min(_GIST_FRAMES * frame, room // 16)}
    answer = sum(tokens.values()) + 2 * clip + usual.max_question_tokens + usual.max_answer_tokens
    return {
        "clip_frames": clip_frames,
        **tokens,
        "gist_vision_tokens": max(usual.gist_vision_tokens, min(16, frame // 16)),
        "host_bytes": max(usual.host_bytes, adapter.most_tokens(_KEPT_FRAMES) * _token_bytes(adapter)),
        "answer_bytes": max(1024 * MIB, 2 * answer * _token_bytes(adapter)),
    }


def _token_bytes(adapter: Adapter) -> int:
    """Keys and values of one token."""
    return 2 * adapter.num_layers * adapter.num_kv_heads * adapter.head_dim * adapter.dtype.itemsize
