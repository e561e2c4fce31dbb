"""What a decoder must be like for memory to be exact, and the check of it: keys move with their positions.

It knows nothing of files or tokens, and of families only one to choose instead.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vstream.cache import place, unplace
from vstream.models.families import FAMILIES

if TYPE_CHECKING:
    from vstream.models.base import Adapter

_CHANGING_ROPES = ("longrope",)  # their tables depend on how much there is, within the trained length
_FULL = "full_attention"
_PROBE_TOKENS, _PROBE_SHIFT = 8, 1021
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # tables are float32 at best
_TOLERANCE_16_BITS = 0.3  # measured: 0.09 after 24 layers in bfloat16, 0.6 and more in a layer without positions


def check_config(config: Any, name: str) -> None:
    """Refuses, by a decoder's configuration, what cannot be served exactly.

    Raises:
        ValueError: naming the first layer without full attention or without positions, or rotary positions that depend
            on the length.
    """
    for layer, kind in enumerate(_layer_kinds(config)):
        if kind != _FULL:
            raise _refused(name, f"layer {layer} is {kind}, but only full attention is served")
    for layer, turned in enumerate(getattr(config, "no_rope_layers", None) or ()):
        if not turned:
            raise _refused(name, _no_positions(layer))
    for rope in _rope_types(config):
        if rope in _CHANGING_ROPES:
            raise _refused(name, f"it has {rope} rope: its positions change with the length, so keys cannot be kept")


def check_rotary(decoder: Any, name: str) -> None:
    """Refuses a decoder without rotary positions that can be applied from outside.

    Raises:
        ValueError: for such a decoder.
    """
    if not (hasattr(decoder, "rotary_emb") and hasattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb")):
        raise _refused(name, f"its decoder ({type(decoder).__name__}) has no rotary positions")


@torch.inference_mode()
def check_moving(adapter: Adapter, *, quantized: bool = False) -> None:
    """Refuses a decoder whose keys, moved to another position, are not those computed there.

    Args:
        adapter: with its decoder.
        quantized: whether its weights are rounded; their products then round as those of 16 bits do.

    Raises:
        ValueError: naming the first such layer.
    """
    shift = min(_PROBE_SHIFT, adapter.max_positions - _PROBE_TOKENS)
    here = torch.arange(_PROBE_TOKENS).repeat(adapter.num_axes, 1)  # [A, N]
    there = here + torch.arange(shift, shift - adapter.num_axes, -1)[:, None]  # further on each axis than on the next
    before, wanted = _keys_values(adapter, here), _keys_values(adapter, there)
    off = _relative(place(adapter, unplace(adapter, before, here), there), wanted)  # [L]
    allowed = _TOLERANCE_16_BITS if quantized else _TOLERANCE.get(adapter.dtype, _TOLERANCE_16_BITS)
    wrong = [layer for layer, difference in enumerate(off.tolist()) if not difference <= allowed]
    if wrong:
        first = wrong[0]
        if _relative(before, wanted)[first] <= allowed:
            raise _refused(adapter.name, _no_positions(first))
        raise _refused(
            adapter.name,
            f"keys of layer {first} do not move with their positions (off by {off[first]:.2g}), as rotary ones do",
        )


def _refused(name: str, why: str) -> ValueError:
    return ValueError(f"{name!r} cannot be served exactly: {why}; choose another, such as {FAMILIES[0].example}")


def _no_positions(layer: int) -> str:
    return f"layer {layer} has no positions (NoPE), but only rotary positions in every layer are served"


def _layer_kinds(config: Any) -> Sequence[str]:
    """Of every layer, or of the first where a configuration does not tell them apart."""
    told: Sequence[str] | None = getattr(config, "layer_types", None)
    return told or ["sliding_attention" if getattr(config, "sliding_window", None) else _FULL]


def _rope_types(config: Any) -> list[str]:
    """Of all layers; some configurations have rotary positions by kind of layer."""
    told = getattr(config, "rope_parameters", None) or {}
    return [one.get("rope_type", "default") for one in (told, *told.values()) if isinstance(one, Mapping)]


def _keys_values(adapter: Adapter, positions: Tensor) -> Tensor:
    """What a few tokens leave in an ordinary cache: [L, 2, K, N, D]."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    adapter.forward(adapter.embed(torch.arange(_PROBE_TOKENS)), positions, cache)
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over channels of the largest difference, relative to the channel's own size: [L], worst of all heads.

    By channel, since a few large ones, which turn slowly, would hide the others.
    """
    difference = (found - wanted).abs().amax(dim=3).double()  # [L, 2, K, D]
    size = wanted.abs().amax(dim=3).double().clamp(min=1e-12)
    return (difference / size).clamp(max=1).mean(dim=-1).flatten(1).amax(dim=1)
