"""Recipes of tiny checkpoints, one module a family; `make_checkpoint.py` cooks them.

A recipe says what a family's repository on the hub has in its files. It knows nothing of where they go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TokenId = Callable[[str], int]
"""The id of a token, by its name."""


@dataclass(frozen=True)
class Recipe:
    """What a family's repository has, small.

    Attributes:
        special: tokens that the family adds to its tokenizer.
        end: the token that ends an answer.
        template: the chat template, written from the family's documentation.
        template_file: where the family's repositories have it: `chat_template.jinja` or `chat_template.json`.
        files: JSON files about preprocessing, by name.
        model: given the ids of tokens and the size of the vocabulary, the stock model; its weights are drawn later.
        pad: the token that fills rows.
    """

    special: tuple[str, ...]
    end: str
    template: str
    template_file: str
    files: Mapping[str, Mapping[str, Any]] = field(repr=False)
    model: Callable[[TokenId, int], Any] = field(repr=False)
    pad: str = "<|endoftext|>"


def decoder_shape(vocab_size: int, **more: Any) -> dict[str, Any]:
    """Keywords of a transformers text configuration: 3 layers, 4 heads of 16 over 2 of keys and values."""
    shape = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "bos_token_id": None, "pad_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return {**shape, **more}


def square_pictures(side: int, **more: Any) -> dict[str, Any]:
    """A processor's configuration that brings pictures to a square; its means and deviations differ by channel."""
    steps = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.3], "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }  # fmt: skip
    return {**steps, **more}
