"""Tensor routines on the hot path: attention over parts, undoing rotations, scoring and gathering blocks, quantising.

This folder knows nothing of frames, questions or transformers. `reference.py` and the functions named `*_reference`
are the specification in plain torch; this file is the one place that chooses an implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vstream.kernels.attention import attend_cpu, attend_reference
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
    return (attend_cpu if query.device.type == "cpu" else attend_reference)(query, rows, scale)
