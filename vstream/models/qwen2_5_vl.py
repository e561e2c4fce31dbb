"""Qwen25VlAdapter: stock Qwen2.5-VL checkpoints. All it has in common with Qwen2-VL is told in `qwen2_vl.py`."""

from __future__ import annotations

from typing import Any

import torch

from vstream.models.checkpoint import Checkpoint
from vstream.models.qwen2_vl import QwenVlAdapter


class Qwen25VlAdapter(QwenVlAdapter):
    """A `Qwen2_5_VLForConditionalGeneration`."""

    def _model_class(self) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    max_pixels: int | None = None,
) -> Qwen25VlAdapter:
    """The checkpoint as the registry loads it; it has nothing random, so `seed` changes nothing."""
    return Qwen25VlAdapter(checkpoint, device=device, dtype=dtype, max_pixels=max_pixels)
