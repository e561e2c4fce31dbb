"""Tensor routines on the hot path: undoing rotations, scoring blocks, gathering rows, quantising.

This folder knows nothing of frames, questions or transformers. `reference.py` is the specification in plain torch; this
file is the one place that chooses an implementation.
"""

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

__all__ = ["LARGEST", "dequantise", "gather_rows", "group_query", "invert_rotary", "quantise", "score_blocks", "turn"]
