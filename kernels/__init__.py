"""Tensor routines on the hot path: attention over parts, undoing rotations, scoring and gathering blocks, quantising.

This folder knows nothing of frames, questions or transformers. `reference.py` and the functions named `*_reference`
are the specification in plain torch; this file is the one place that chooses an implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from vstream.kernels import torch_memory
from vstream.kernels.attention import attend_cpu, attend_one_cpu, attend_sdpa
from vstream.kernels.layout import Places, RowLayout
from vstream.kernels.parts import Dense, Paged, Part, Quantised, pack
from vstream.kernels.prefill import prefill
from vstream.kernels.reference import (
    LARGEST,
    SHORTEST,
    group_query,
    invert_rotary,
    rotate_halves,
    score_blocks,
    turn,
)

__all__ = [
    "LARGEST",
    "SHORTEST",
    "Dense",
    "Paged",
    "Part",
    "Places",
    "Quantised",
    "RowLayout",
    "attend",
    "attend_one",
    "best_match",
    "dequantise",
    "gather_rows",
    "group_query",
    "invert_rotary",
    "pack",
    "place_rows",
    "prefill",
    "quantise",
    "rotate_halves",
    "rotate_into",
    "score_blocks",
    "top_within",
    "turn",
    "unpack_rows",
    "uses_triton",
]


def attend(query: Tensor, rows: Sequence[Sequence[Part]], scale: float | None = None) -> Tensor:
    """Attention of single tokens over parts that lie apart; see `attend_reference` for arguments and result."""
    return _attend(query.device.type)(query, rows, scale)


def attend_one(query: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """The same [1, H, 1, D] of one token [1, H, 1, D] over keys and values [1, K, N, D] that lie in one piece."""
    if query.device.type == "cpu":
        return attend_one_cpu(query, keys, values, scale)
    return attend(query[:, :, 0], [[Dense(keys[0], values[0])]], scale).unsqueeze(2)


@cache
def _attend(device_type: str) -> Callable[[Tensor, Sequence[Sequence[Part]], float | None], Tensor]:
    if uses_triton(device_type):
        found: Callable[..., Tensor] = import_module("vstream.kernels.triton_attention").attend
        return found
    return attend_cpu if device_type == "cpu" else attend_sdpa


@cache
def uses_triton(device_type: str) -> bool:
    """Whether kernels written for a GPU run on such a device: on CUDA, where VSTREAM_KERNELS=triton asks for them.

    They are right in Triton's interpreter and compile, but have not run on a GPU yet; `scripts/gpu_check.py` tells.

    Raises:
        ValueError: if VSTREAM_KERNELS is neither torch nor triton.
    """
    wanted = os.environ.get("VSTREAM_KERNELS", "torch")
    if wanted not in ("torch", "triton"):
        raise ValueError(f"VSTREAM_KERNELS must be torch (the default) or triton, got {wanted!r}")
    return device_type == "cuda" and wanted == "triton"


# Memory: which file's version runs, by the device that computes; what each does is said in `reference.py` -------------


@cache
def _memory(device_type: str) -> ModuleType:
    return import_module("vstream.kernels.triton_memory") if uses_triton(device_type) else torch_memory


def gather_rows(slab_layer: Tensor, slots: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.gather_rows`."""
    found: Tensor = _memory(slab_layer.device.type).gather_rows(slab_layer, slots, offsets)
    return found


def unpack_rows(rows: Tensor, owner: Tensor, layout: RowLayout) -> Tensor:
    """See `reference.unpack_rows`."""
    found: Tensor = _memory(rows.device.type).unpack_rows(rows, owner, layout)
    return found


def dequantise(rows: Tensor, bases: Tensor, owner: Tensor, bits: int) -> Tensor:
    """See `reference.dequantise`."""
    found: Tensor = _memory(rows.device.type).dequantise(rows, bases, owner, bits)
    return found


def place_rows(
    slab_layer: Tensor,
    places: Places,
    owner: Tensor,
    layout: RowLayout,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
) -> None:
    """See `reference.place_rows`."""
    _memory(keys.device.type).place_rows(slab_layer, places, owner, layout, tables, keys, values)


def quantise(kv: Tensor, base: Tensor, bits: int) -> Tensor:
    """See `reference.quantise`."""
    found: Tensor = _memory(kv.device.type).quantise(kv, base, bits)
    return found


def rotate_into(keys: Tensor, tables: tuple[Tensor, Tensor], out: Tensor) -> None:
    """See `reference.rotate_halves`; the result goes to `out`, which is no part of `keys`, in its type."""
    _memory(keys.device.type).rotate_into(keys, tables, out)


def best_match(words: Tensor, representatives: Tensor, centre: Tensor | None, *, cosine: bool) -> Tensor:
    """See `reference.best_match`."""
    found: Tensor = _memory(words.device.type).best_match(words, representatives, centre, cosine=cosine)
    return found


def top_within(scores: Tensor, sizes: Tensor, budget: int, first: Tensor | None = None) -> Tensor:
    """See `reference.top_within`: on the CPU, wherever the scores are, since what is chosen is looked up there."""
    return torch_memory.top_within(scores, sizes, budget, first)
