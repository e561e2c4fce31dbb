"""The representatives of all blocks in one tensor, ready for one matrix product per question.

This module knows nothing of scores, tiers or files.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL_ROWS = 64


class RepresentativeTable:
    """One growing tensor [L, K, rows, D] float16 with a row [L, K, D] per block; rows are freed and used again.

    So are mean keys kept, and what a retrieval policy keeps beside them ([A, H, D] of its own).

    Growing doubles the rows and holds the old table until it is copied: at most 1.5 times the largest table at once.

    Attributes:
        table: the tensor; rows that no block owns hold anything.
        max_rows: most blocks it will ever hold.
    """

    def __init__(self, size: tuple[int, int, int], *, device: torch.device, max_rows: int) -> None:
        assert max_rows > 0, "a table of no rows holds no block"
        self.max_rows = max_rows
        layers, heads, dim = size
        rows = min(INITIAL_ROWS, max_rows)
        with torch.inference_mode(False):  # else nobody outside inference mode could write to it later
            self.table = torch.empty((layers, heads, rows, dim), dtype=torch.float16, device=device)
        self._row_of: dict[int, int] = {}
        self._free = list(range(rows))

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._row_of

    @property
    def nbytes(self) -> int:
        """Bytes of the whole table, free rows included."""
        return self.table.nbytes

    def reserve(self, num_blocks: int) -> None:
        """Grow until `num_blocks` more fit, so that adding them cannot fail for want of memory."""
        rows = self.table.shape[2]
        needed = len(self) + num_blocks
        assert needed <= self.max_rows, f"{needed} blocks in a table of at most {self.max_rows}"
        if needed <= rows:
            return
        grown = min(max(needed, 2 * rows), self.max_rows)
        layers, heads, _, dim = self.table.shape
        with torch.inference_mode(False):
            table = self.table.new_empty(layers, heads, grown, dim)
        table[:, :, :rows] = self.table
        self.table = table
        self._free.extend(range(rows, grown))  # above all others, so it is still a heap

    def add(self, block_id: int, representative: Tensor) -> None:
        """Keep a block's representative [L, K, D]."""
        assert block_id not in self._row_of, f"block {block_id} has a row already"
        self.reserve(1)
        row = heapq.heappop(self._free)
        self.table[:, :, row] = representative
        self._row_of[block_id] = row

    def remove(self, block_id: int) -> None:
        """Free a block's row."""
        heapq.heappush(self._free, self._row_of.pop(block_id))

    def rows(self, ids: Sequence[int], layers: slice = slice(None)) -> Tensor:
        """The representatives [L, K, B, D] of blocks, in the order given, for some layers (all, unless said)."""
        index = torch.tensor(list(map(self._row_of.__getitem__, ids)), dtype=torch.int64, device=self.table.device)
        return self.table[layers].index_select(2, index)

    def check_integrity(self, ids: set[int]) -> None:
        """Raise RuntimeError unless exactly the blocks `ids` have a row each, and all other rows are free."""
        if self._row_of.keys() != ids:
            wrong = sorted(self._row_of.keys() ^ ids)
            raise RuntimeError(f"representatives and index disagree about blocks {wrong}")
        if sorted([*self._row_of.values(), *self._free]) != list(range(self.table.shape[2])):
            raise RuntimeError("a row of representatives is used twice, or neither free nor used")
