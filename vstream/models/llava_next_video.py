"""LlavaNextVideoAdapter: stock LLaVA-NeXT-Video checkpoints, one picture a frame behind the text `[m:ss]`.

Why this family: it was made for videos and is much used, its text models (Vicuna, Mistral) have full attention with one
rotary axis, and every frame takes the same number of tokens, pooled from one picture without tiles. It was trained on
4,096 positions, which 28 frames fill: it gains more than others from a memory. This module knows nothing of memory or
sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vstream.models.picture_adapter import PictureAdapter


class LlavaNextVideoAdapter(PictureAdapter):
    """A `LlavaNextVideoForConditionalGeneration` whose text model has full attention: Llama, Mistral, Qwen2.

    Nothing stands between frames in the family's own videos; ours have a time before each and a newline behind.
    """

    prompt_version = 1

    def _look(self, pixels: Tensor) -> Tensor:
        """Tokens of the model's own video path: tower, pooling, projector."""
        pooled: Tensor = self.model.get_video_features(pixels[None]).pooler_output[0]
        return pooled

    def _count_tokens(self, config: Any) -> int:
        vision = config.vision_config
        self._check_side(vision.image_size)
        return int((vision.image_size // vision.patch_size // config.spatial_pool_stride) ** 2)
