"""Qwen25VlAdapter: stock Qwen2.5-VL checkpoints. All it has in common with Qwen2-VL is told in `qwen2_vl.py`."""

from __future__ import annotations

from vstream.models.qwen2_vl import QwenVlAdapter


class Qwen25VlAdapter(QwenVlAdapter):
    """A `Qwen2_5_VLForConditionalGeneration`."""
