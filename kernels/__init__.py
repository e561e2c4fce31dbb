"""Tensor routines on the hot path: scoring blocks, placing keys, gathering tokens.

This folder knows nothing of frames, questions or transformers. `reference.py` is the specification in plain torch; this
file is the one place that chooses an implementation.
"""

from vstream.kernels.reference import gather_tokens, mean_keys, place_keys, score_blocks, unplace_keys

__all__ = ["gather_tokens", "mean_keys", "place_keys", "score_blocks", "unplace_keys"]
