"""Qwen2-VL, as Qwen's repositories have it: patches of 14 pixels, two frames and 2 x 2 patches to a token."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from recipes import Recipe, TokenId, decoder_shape

SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SECTIONS = [2, 3, 3]  # of half a head of 16: time, rows, columns


def recipe() -> Recipe:
    """The family's recipe."""
    return qwen2_recipe(_model)


def qwen2_recipe(model: Any) -> Recipe:
    """What Qwen2-VL and Qwen2.5-VL have in common; pictures of 4 to 24 tokens."""
    images = {
        "min_pixels": 4 * 28**2, "max_pixels": 24 * 28**2, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": MEAN, "image_std": STD, "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }  # fmt: skip
    return Recipe(
        special=SPECIAL, end="<|im_end|>", template=TEMPLATE, template_file="chat_template.json",
        files={"preprocessor_config.json": images}, model=model,
    )  # fmt: skip


def marker_ids(token_id: TokenId) -> dict[str, int]:
    """Keywords of a configuration."""
    names = ("vision_start", "vision_end", "image", "video")
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    return {f"{name}_token_id": token_id(token) for name, token in zip(names, tokens, strict=True)}


def _model(token_id: TokenId, vocab_size: int) -> Any:
    rope = {"type": "mrope", "mrope_section": SECTIONS}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=decoder_shape(vocab_size, rope_scaling=rope, rope_theta=10000.0), vision_config=vision,
            **marker_ids(token_id),
        )
    )  # fmt: skip
