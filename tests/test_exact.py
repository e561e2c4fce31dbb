"""The load-time probe: decoders that cannot be served exactly are refused, and the sentence names the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GPT2Model,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
)

from vstream.models.exact import check_config, check_moving, check_rotary
from vstream.models.families import FAMILIES
from vstream.models.random import RandomLlama

ALTERNATIVE = f"; choose another, such as {FAMILIES[0].example}"
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "factor": 2.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
REFUSED = [
    (SmolLM3Config(num_hidden_layers=4), "layer 3 has no positions (NoPE), but only rotary positions in every layer"),
    (Gemma3TextConfig(num_hidden_layers=6), "layer 0 is sliding_attention, but only full attention is served"),
    (Qwen2Config(use_sliding_window=True, max_window_layers=2, num_hidden_layers=4), "layer 2 is sliding_attention"),
    (MistralConfig(num_hidden_layers=2), "layer 0 is sliding_attention"),
    (Qwen3NextConfig(num_hidden_layers=4), "layer 0 is linear_attention, but only full attention is served"),
    (Llama4TextConfig(num_hidden_layers=4), "layer 0 is chunked_attention"),
    (Phi3Config(rope_parameters=LONGROPE), "it has longrope rope: its positions change with the length, so keys"),
    (
        Gemma3TextConfig(num_hidden_layers=1, layer_types=["full_attention"], rope_parameters={
            "full_attention": LONGROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
        "it has longrope rope",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "why"), REFUSED, ids=[f"{type(one).__name__}-{why[:12]}" for one, why in REFUSED])
def test_configurations_that_cannot_be_exact_are_refused(config: Any, why: str) -> None:
    with pytest.raises(ValueError, match="'large' cannot be served exactly: ") as caught:
        check_config(config, "large")
    sentence = str(caught.value)
    assert why in sentence
    assert sentence.endswith(ALTERNATIVE)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(), Qwen2Config(), Qwen3Config(), Phi3Config(), MistralConfig(sliding_window=None),
        Qwen2Config(use_sliding_window=False, sliding_window=64), SmolLM3Config(no_rope_layers=[1] * 36),
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    ],
    ids=lambda config: type(config).__name__,
)  # fmt: skip
def test_full_attention_with_fixed_rotary_positions_is_served(config: Any) -> None:
    check_config(config, "large")


def test_a_decoder_with_learned_positions_is_refused() -> None:
    decoder = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match=r"its decoder \(GPT2Model\) has no rotary positions; choose another"):
        check_rotary(decoder, "large")


@pytest.fixture
def model() -> RandomLlama:
    return RandomLlama()


def altered(model: RandomLlama, layer: int, change: Callable[[Tensor], Tensor]) -> RandomLlama:
    """The model, but one layer's attention gets other rotary tables."""
    attention: Any = model.decoder.layers[layer].self_attn
    forward = attention.forward

    def other(*given: Any, position_embeddings: tuple[Tensor, Tensor], **more: Any) -> Any:
        cos, sin = position_embeddings
        angles = change(torch.atan2(sin, cos))
        return forward(*given, position_embeddings=(angles.cos(), angles.sin()), **more)

    attention.forward = other
    return model


def test_the_probe_lets_ordinary_rotary_positions_pass(model: RandomLlama) -> None:
    check_moving(model)
    check_moving(altered(model, 1, lambda angles: angles))


def test_the_probe_names_a_layer_without_positions(model: RandomLlama) -> None:
    with pytest.raises(ValueError, match=r"'random' cannot be served exactly: layer 2 has no positions \(NoPE\)"):
        check_moving(altered(model, 2, torch.zeros_like))


def test_the_probe_names_a_layer_whose_keys_turn_otherwise(model: RandomLlama) -> None:
    with pytest.raises(ValueError, match=r"keys of layer 1 do not move with their positions \(off by [0-9.]+\)"):
        check_moving(altered(model, 1, lambda angles: angles / 2))


def test_quantised_weights_are_allowed_their_rounding(model: RandomLlama) -> None:
    altered(model, 1, lambda angles: angles + 0.01 * torch.sin(37 * angles))
    check_moving(model, quantized=True)
    with pytest.raises(ValueError, match="keys of layer 1 do not move"):
        check_moving(model)
