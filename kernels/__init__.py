"""Tensor routines on the hot path: attention over parts, undoing rotations, scoring and gathering blocks, quantising.

This folder knows nothing of frames, questions or transformers. `reference.py` and the functions named `*_reference`
are the specification in plain torch; this file is the one place that chooses an implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor

from vstream.kernels.attention import attend_cpu, attend_one_cpu, attend_reference
from vstream.kernels.parts import Dense, Paged, Part, Quantised, pack
from vstream.kernels.prefill import prefill
from vstream.kernels.reference import (
    LARGEST,
    dequantise,
    gather_rows,
    group_query,
    invert_rotary,
    quantise,
    score_blocks,
    turn,
)

__all__ = [
    "LARGEST",
    "Dense",
    "Paged",
    "Part",
    "Quantised",
    "attend",
    "attend_one",
    "dequantise",
    "gather_rows",
    "group_query",
    "invert_rotary",
    "pack",
    "prefill",
    "quantise",
    "score_blocks",
    "turn",
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
    """Triton's on a CUDA device, where it is installed; elsewhere than on a CPU, the specification."""
    if device_type == "cuda" and find_spec("triton") is not None:
        found: Callable[..., Tensor] = import_module("vstream.kernels.triton_attention").attend
        return found
    return attend_cpu if device_type == "cpu" else attend_reference
