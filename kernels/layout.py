"""How rows of bytes hold tokens' keys and values, and where they lie: all that kernels know of codecs and slabs.

This module knows nothing of tiers, or of why a codec was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


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


class Places:
    """Where M rows lie in a slab: the heads of blocks first, then their tokens.

    They are looked up for every layer, so that what is worked out once is kept.
    """

    def __init__(self, slots: Tensor, offsets: Tensor) -> None:
        """Which slot, and which row in it, each [M] int64."""
        self._slots, self._offsets = slots, offsets
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {slots.device: (slots, offsets)}
        self._runs: dict[int, list[tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and offsets on a device."""
        if device not in self._on:
            self._on[device] = (self._slots.to(device), self._offsets.to(device))
        return self._on[device]

    def runs(self, per_slot: int) -> list[tuple[int, int]]:
        """Rows that lie one after the other, in slots of so many rows each: (first row, how many), in their order."""
        if per_slot not in self._runs:
            rows = (self._slots * per_slot + self._offsets).cpu()
            cuts = [0, *((rows.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(rows)]
            self._runs[per_slot] = [(int(rows[a]), b - a) for a, b in pairwise(cuts) if b > a]
        return self._runs[per_slot]
