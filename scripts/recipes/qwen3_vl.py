"""Qwen3-VL, as Qwen's repositories have it: patches of 16 pixels, features of two layers for the decoder's first two.

Its template is Qwen2-VL's without a system prompt of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from recipes import Recipe, TokenId, decoder_shape
from recipes.qwen2_vl import SPECIAL, TEMPLATE, marker_ids

_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
)
DEEPSTACK_LAYERS = [0, 2]  # of the vision tower


def recipe() -> Recipe:
    """The family's recipe; a video of 2 frames has 4 to 24 tokens."""
    steps = {
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    sizes = {"shortest_edge": 4 * 32**2, "longest_edge": 24 * 32**2}
    images = {**steps, "size": sizes, "image_processor_type": "Qwen2VLImageProcessorFast"}
    of_videos = {name: 2 * pixels for name, pixels in sizes.items()}
    videos = {**steps, "size": of_videos, "video_processor_type": "Qwen3VLVideoProcessor"}
    return Recipe(
        special=SPECIAL, end="<|im_end|>", template=TEMPLATE.replace(_SYSTEM, ""), template_file="chat_template.json",
        files={"preprocessor_config.json": images, "video_preprocessor_config.json": videos}, model=_model,
    )  # fmt: skip


def moe_recipe() -> Recipe:
    """The same with experts in the decoder."""
    return replace(recipe(), model=_moe_model)


def _model(token_id: TokenId, vocab_size: int) -> Any:
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**_configuration(token_id, vocab_size)))


def _moe_model(token_id: TokenId, vocab_size: int) -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**_configuration(token_id, vocab_size, **experts)))


def _configuration(token_id: TokenId, vocab_size: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    vision = {
        "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48, "patch_size": 16,
        "num_position_embeddings": 64, "deepstack_visual_indexes": DEEPSTACK_LAYERS,
    }  # fmt: skip
    text = decoder_shape(vocab_size, head_dim=16, rope_parameters=rope, **more)
    return {"text_config": text, "vision_config": vision, **marker_ids(token_id)}
