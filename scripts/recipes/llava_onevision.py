"""LLaVA-OneVision, as llava-hf's repositories have it: a SigLIP tower, a Qwen2 decoder, pictures of 64 pixels."""

from __future__ import annotations

from typing import Any

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from recipes import Recipe, TokenId, decoder_shape, square_pictures

SIDE, PATCH = 64, 16  # 4 x 4 patches, pooled to 2 x 2 tokens
TEMPLATE = (  # pictures first, then videos, then text
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def recipe() -> Recipe:
    """The family's recipe."""
    processor = {"processor_class": "LlavaOnevisionProcessor"}
    images = square_pictures(SIDE, image_processor_type="LlavaOnevisionImageProcessor",
                             image_grid_pinpoints=[[SIDE, SIDE]], do_pad=True, **processor)  # fmt: skip
    videos = square_pictures(SIDE, video_processor_type="LlavaOnevisionVideoProcessor", **processor)
    rest = {**processor, "num_image_tokens": 16, "vision_feature_select_strategy": "full",
            "image_token": "<image>", "video_token": "<video>"}  # fmt: skip
    return Recipe(
        special=("<image>", "<video>"), end="<|im_end|>", template=TEMPLATE, template_file="chat_template.json",
        files={"preprocessor_config.json": images, "video_preprocessor_config.json": videos,
               "processor_config.json": rest},
        model=_model,
    )  # fmt: skip


def _model(token_id: TokenId, vocab_size: int) -> Any:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            text_config=Qwen2Config(**decoder_shape(vocab_size)),
            vision_config=SiglipVisionConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
                patch_size=PATCH, vision_use_head=False,
            ),
            image_token_index=token_id("<image>"), video_token_index=token_id("<video>"),
            image_grid_pinpoints=[[SIDE, SIDE]], vision_feature_select_strategy="full", vision_feature_layer=-1,
        )
    )  # fmt: skip
