"""What a decoder must be like for memory to be exact, and the check of it: keys move with their positions.

It knows nothing of families, files or tokens.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vstream.cache import place, unplace

if TYPE_CHECKING:
    from vstream.models.base import Adapter

_CHANGING_ROPES = ("longrope",)  # their tables depend on how much there is, within the trained length
_PROBE_TOKENS, _PROBE_SHIFT = 8, 1021
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # tables are float32 at best
_TOLERANCE_16_BITS = 0.3  # measured: 0.09 after 24 layers in bfloat16, 0.6 and more in a layer without positions


def check_config(config: Any, name: str) -> None:
    """Refuses, by a decoder's configuration, what cannot be served exactly.

    Raises:
        ValueError: for layers without full attention, or rotary positions that depend on the length.
    """
    kinds = set(getattr(config, "layer_types", None) or _layer_kind(config)) - {"full_attention"}
    if kinds:
        raise ValueError(f"{name!r} has layers of {', '.join(sorted(kinds))}, but only full attention is served")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _CHANGING_ROPES:
        raise ValueError(f"{name!r} has {rope} rotary positions, which change with the length: keys cannot be kept")


def check_rotary(decoder: Any, name: str) -> None:
    """Refuses a decoder without rotary positions that can be applied from outside.

    Raises:
        ValueError: for such a decoder.
    """
    if not (hasattr(decoder, "rotary_emb") and hasattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb")):
        raise ValueError(
            f"the decoder of {name!r} ({type(decoder).__name__}) has no rotary positions, which are needed"
        )


@torch.inference_mode()
def check_moving(adapter: Adapter) -> None:
    """Refuses a decoder whose keys, moved to another position, are not those computed there.

    Raises:
        ValueError: naming the first such layer.
    """
    shift = min(_PROBE_SHIFT, adapter.max_positions - _PROBE_TOKENS)
    here = torch.arange(_PROBE_TOKENS).repeat(adapter.num_axes, 1)  # [A, N]
    there = here + torch.arange(shift, shift - adapter.num_axes, -1)[:, None]  # further on each axis than on the next
    moved = place(adapter, unplace(adapter, _keys_values(adapter, here), here), there)
    off = _relative(moved, _keys_values(adapter, there))  # [L]
    allowed = _TOLERANCE.get(adapter.dtype, _TOLERANCE_16_BITS)
    wrong = [layer for layer, difference in enumerate(off.tolist()) if not difference <= allowed]
    if wrong:
        raise ValueError(
            f"keys of layer {wrong[0]} of {adapter.name!r} do not move with their positions (off by "
            f"{off[wrong[0]]:.2g}): only rotary positions in every layer are served"
        )


def _layer_kind(config: Any) -> list[str]:
    """Of all layers, where a configuration does not tell them apart."""
    return ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]


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
