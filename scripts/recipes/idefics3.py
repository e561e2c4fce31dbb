"""Idefics3, as its repositories and the first SmolVLM's have it: SmolVLM2's parts, and a template without videos."""

from __future__ import annotations

from typing import Any

from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

from recipes import Recipe, TokenId, decoder_shape
from recipes.smolvlm import PICTURES, SPECIAL, TEMPLATE, vision_shape


def recipe() -> Recipe:
    """The family's recipe."""
    processor = {"processor_class": "Idefics3Processor"}
    return Recipe(
        special=SPECIAL, end="<end_of_utterance>", template_file="chat_template.json",
        template=TEMPLATE.replace("{% elif part['type'] == 'video' %}<video>", ""),
        files={
            "preprocessor_config.json": {**PICTURES, "image_processor_type": "Idefics3ImageProcessor", **processor},
            "processor_config.json": {"image_seq_len": 4, **processor},
        },
        model=_model,
    )  # fmt: skip


def _model(token_id: TokenId, vocab_size: int) -> Any:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512}  # fmt: skip
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            text_config=LlamaConfig(**decoder_shape(vocab_size, rope_parameters=rope)), vision_config=vision_shape(),
            scale_factor=2, image_token_id=token_id("<image>"),
        )
    )  # fmt: skip
