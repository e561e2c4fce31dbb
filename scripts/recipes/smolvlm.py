"""SmolVLM2, as its repositories have it: a SigLIP tower whose patches are shuffled into fewer tokens, a Llama decoder.

The template is written from what transformers says of the family's processor.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from recipes import Recipe, TokenId, decoder_shape, square_pictures

SIDE, PATCH = 64, 16  # 4 x 4 patches, shuffled into 2 x 2 tokens
SPECIAL = ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<image>", "<end_of_utterance>")
TEMPLATE = (  # no space between the colon and a picture; a video stands as text that the processor replaces
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
PICTURES = square_pictures(
    SIDE, size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=True, do_pad=True,
    resample=1,
)  # fmt: skip


def recipe() -> Recipe:
    """The family's recipe."""
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 96}}
    pictures = {**PICTURES, "image_processor_type": "SmolVLMImageProcessor", "video_sampling": sampling}
    return Recipe(
        special=SPECIAL, end="<end_of_utterance>", template=TEMPLATE, template_file="chat_template.json",
        files={
            "preprocessor_config.json": {**pictures, "processor_class": "SmolVLMProcessor"},
            "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
        },
        model=_model,
    )  # fmt: skip


def vision_shape() -> dict[str, Any]:
    """Keywords of the tower's configuration."""
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": PATCH}  # fmt: skip


def _model(token_id: TokenId, vocab_size: int) -> Any:
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=LlamaConfig(**decoder_shape(vocab_size)), vision_config=vision_shape(), scale_factor=2,
            image_token_id=token_id("<image>"),
        )
    )  # fmt: skip
