"""LlavaOnevisionAdapter: stock LLaVA-OneVision checkpoints, one picture a frame behind the text `[m:ss]`.

Pictures go through the model's own video path: vision tower, projector, bilinear pooling. It knows nothing of memory
or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.picture_adapter import PictureAdapter
from vstream.models.spans import plain_span
from vstream.types import TokenSpan


class LlavaOnevisionAdapter(PictureAdapter):
    """A `LlavaOnevisionForConditionalGeneration` whose text model has full attention: Qwen2, Qwen3, Llama.

    There are no tiles: as in the model's own videos, a frame is one picture, and its grid of tokens is halved.
    """

    prompt_version = 1

    def _look(self, pixels: Tensor) -> Tensor:
        """Pooled tokens, without the one behind a whole video (transformers 5.17 adds it elsewhere)."""
        pooled: Tensor = self.model.get_video_features(pixels[None]).pooler_output[0]  # [T * P (+ 1), E]
        return pooled[: len(pixels) * self.tokens_per_frame]

    def _end_of_video(self) -> TokenSpan:
        return plain_span(self.model.model.image_newline[None], TokenKind.MARKER)

    def _count_tokens(self, config: Any) -> int:
        self._check_side(config.vision_config.image_size)
        return int(math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2) ** 2)
