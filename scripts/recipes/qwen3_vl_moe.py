"""Qwen3-VL with experts, as Qwen's repositories have it: Qwen3-VL's files, 2 of 4 experts for each token."""

from __future__ import annotations

from recipes.qwen3_vl import moe_recipe as recipe

__all__ = ["recipe"]
