"""Qwen2.5-VL, as Qwen's repositories have it: Qwen2-VL's files, and a vision tower with windows."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from recipes import Recipe, TokenId, decoder_shape
from recipes.qwen2_vl import SECTIONS, marker_ids, qwen2_recipe


def recipe() -> Recipe:
    """The family's recipe."""
    return qwen2_recipe(_model)


def _model(token_id: TokenId, vocab_size: int) -> Any:
    rope = {"type": "mrope", "mrope_section": SECTIONS}
    vision = {
        "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48, "patch_size": 14,
        "fullatt_block_indexes": [2], "window_size": 56, "tokens_per_second": 2,
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=decoder_shape(vocab_size, rope_scaling=rope, rope_theta=10000.0), vision_config=vision,
            **marker_ids(token_id),
        )
    )  # fmt: skip
