"""LLaVA-NeXT-Video, as llava-hf's repositories have it: a CLIP tower, tokens pooled by two, a Llama decoder."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from recipes import Recipe, TokenId, decoder_shape, square_pictures

SIDE, PATCH = 56, 14  # 4 x 4 patches, pooled to 2 x 2 tokens
TEMPLATE = (  # Vicuna's: no special tokens, pictures first, then videos, then text
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}"
    "{% else %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def recipe() -> Recipe:
    """The family's recipe."""
    processor = {"processor_class": "LlavaNextVideoProcessor"}
    pictures = square_pictures(
        SIDE, size={"shortest_edge": SIDE}, do_center_crop=True, crop_size={"height": SIDE, "width": SIDE}, **processor
    )
    images = {**pictures, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": [[SIDE, SIDE]]}
    return Recipe(
        special=("<image>", "<video>"), end="<|im_end|>", template=TEMPLATE, template_file="chat_template.json",
        files={
            "preprocessor_config.json": images,
            "video_preprocessor_config.json": {**pictures, "video_processor_type": "LlavaNextVideoVideoProcessor"},
            "processor_config.json": {**processor, "patch_size": PATCH, "vision_feature_select_strategy": "default"},
        },
        model=_model,
    )  # fmt: skip


def _model(token_id: TokenId, vocab_size: int) -> Any:
    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            text_config=LlamaConfig(**decoder_shape(vocab_size)),
            vision_config=CLIPVisionConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
                patch_size=PATCH,
            ),
            image_token_index=token_id("<image>"), video_token_index=token_id("<video>"),
            image_grid_pinpoints=[[SIDE, SIDE]],
        )
    )  # fmt: skip
