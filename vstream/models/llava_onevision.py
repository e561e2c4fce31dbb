"""LlavaOnevisionAdapter: stock LLaVA-OneVision checkpoints, one picture a frame behind the text `[m:ss]`.

Pictures go through the model's own video path: vision tower, projector, bilinear pooling. It knows nothing of memory
or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.pictures import prepare
from vstream.models.spans import plain_span
from vstream.types import Frame, TokenSpan

FRAMES_AT_ONCE = 8


class LlavaOnevisionAdapter(CheckpointAdapter):
    """A `LlavaOnevisionForConditionalGeneration` whose text model has full attention: Qwen2, Qwen3, Llama.

    There are no tiles: as in the model's own videos, a frame is one picture, and its grid of tokens is halved.
    """

    prompt_version = 1

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Pooled visual tokens [T, P, E]."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self._features(batch) for batch in batches])

    def _features(self, frames: Sequence[Frame]) -> Tensor:
        """[T, P, E] of a batch, without the one token behind a whole video (transformers 5.17 adds it elsewhere)."""
        pixels = prepare(frames, self.pictures).to(self.device, self.dtype)  # [T, 3, H, W]
        pooled: Tensor = self.model.get_video_features(pixels[None]).pooler_output[0]  # [T * P (+ 1), E]
        count = len(frames) * self.tokens_per_frame
        assert 0 <= len(pooled) - count <= 1, f"{len(frames)} frames gave {len(pooled)} tokens, expected {count}"
        return pooled[:count].reshape(len(frames), self.tokens_per_frame, -1)

    def _end_of_video(self) -> TokenSpan:
        return plain_span(self.model.model.image_newline[None], TokenKind.MARKER)

    def _count_tokens(self, config: Any) -> int:
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        if (self.pictures.height, self.pictures.width) != (side, side):
            raise ValueError(
                f"the processor of {self.name!r} makes pictures of {self.pictures.height} x {self.pictures.width}, but "
                f"its vision tower takes {side} x {side}; fetch the checkpoint again"
            )
        return int(math.ceil(side // patch / 2) ** 2)
