"""InternVL, as OpenGVLab's repositories for transformers (`...-hf`) have it: InternViT, four patches a token, a Qwen2.

The rotary positions are `dynamic`, as InternVL3's are: they only change beyond the trained length.
"""

from __future__ import annotations

from typing import Any

from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from recipes import Recipe, TokenId, decoder_shape, square_pictures

SIDE, PATCH = 56, 14  # 4 x 4 patches, shuffled into 2 x 2 tokens
TEMPLATE = (  # a video stands as text that the processor replaces
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def recipe() -> Recipe:
    """The family's recipe."""
    processor = {"processor_class": "InternVLProcessor"}
    images = square_pictures(SIDE, image_processor_type="GotOcr2ImageProcessorFast", crop_to_patches=False,
                             min_patches=1, max_patches=12, **processor)  # fmt: skip
    videos = square_pictures(SIDE, video_processor_type="InternVLVideoProcessor", **processor)
    return Recipe(
        special=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"), end="<|im_end|>", template=TEMPLATE,
        template_file="chat_template.jinja",
        files={"preprocessor_config.json": images, "video_preprocessor_config.json": videos,
               "processor_config.json": {**processor, "image_seq_length": 4}},
        model=_model,
    )  # fmt: skip


def _model(token_id: TokenId, vocab_size: int) -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 1000000.0, "factor": 2.0}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            text_config=Qwen2Config(**decoder_shape(vocab_size, rope_parameters=rope)),
            vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "attention_bias": True,
                           "num_attention_heads": 2, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            image_token_id=token_id("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=False,
        )
    )  # fmt: skip
