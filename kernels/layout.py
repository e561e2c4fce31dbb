"""How one row of bytes holds a token's keys and values: all that a kernel must know of a codec.

This module knows nothing of blocks, slabs or why a codec was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowLayout:
    """Rows of one codec and one shape of keys and values.

    Attributes:
        bits: 0 where a row holds the model's own numbers [2, K, D], else those of `quantise`: 8 or 4.
        dtype: of keys and values once they are read.
        num_kv_heads, head_dim: K and D.
        row_bytes: R, of a row, what fills it up to whole words included.
        head_rows: rows that all tokens of a block share: their base [K, D] float16, cut into rows of R bytes.
    """

    bits: int
    dtype: torch.dtype
    num_kv_heads: int
    head_dim: int
    row_bytes: int
    head_rows: int

    @property
    def numbers(self) -> int:
        """Numbers of one token: 2 * K * D."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def used_bytes(self) -> int:
        """Bytes of a row that mean something."""
        if not self.bits:
            return self.numbers * self.dtype.itemsize
        return self.numbers * self.bits // 8 + 8 * self.num_kv_heads
