"""Tensor routines on the hot path: undoing rotations, scoring blocks, gathering tokens.

This folder knows nothing of frames, questions or transformers. `reference.py` is the specification in plain torch; this
file is the one place that chooses an implementation.
"""

from vstream.kernels.reference import gather_tokens, group_query, invert_rotary, score_blocks

__all__ = ["gather_tokens", "group_query", "invert_rotary", "score_blocks"]
