"""The representatives of all blocks in one tensor, and some of them, read a piece at a time.

This module knows nothing of scores, tiers or files.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

INITIAL_ROWS = 64
PIECE_ELEMENTS = 1 << 19
"""Numbers looked at together: few enough that a float32 copy stays in a CPU's cache (5 times faster)."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Representatives [L, K, B, D] of B blocks where they lie, in a table [L, K, R, D]: nothing is copied until read.

    Attributes:
        table: theirs and others'.
        index: [B] int64, the row of each.
        instead: by row, what is read in its place, [L, K, D].
    """

    table: Tensor
    index: Tensor
    instead: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, representatives: Tensor) -> Kept:
        """All of a tensor [L, K, B, D]."""
        return cls(representatives, torch.arange(representatives.shape[2], device=representatives.device))

    def __len__(self) -> int:
        return len(self.index)

    def of_layers(self, layers: slice) -> Kept:
        """The same blocks, some layers of them."""
        return Kept(self.table[layers], self.index, {row: one[layers] for row, one in self.instead.items()})

    def at(self, places: slice | Tensor) -> Kept:
        """Some of the blocks, in that order."""
        return replace(self, index=self.index[places])

    def read(self) -> Tensor:
        """[L, K, B, D], a copy."""
        found = self.table.index_select(2, self.index)
        for row, one in self.instead.items():
            found[:, :, self.index == row] = one[:, :, None].to(found)
        return found

    def parts(self) -> Iterator[slice]:
        """Places of all, few enough at a time to be read together."""
        layers, heads, _, dim = self.table.shape
        step = max(16, PIECE_ELEMENTS // (layers * heads * dim))
        return (slice(start, start + step) for start in range(0, len(self), step))

    def mean(self, weights: Tensor) -> Tensor:
        """Mean over blocks [L, K, 1, D] float32, by the frames they stand for [B]: merging blocks does not move it.

        Zero for no blocks.
        """
        share = (weights.float() / weights.float().sum().clamp_min(1e-9)).to(self.table.device)
        total = torch.zeros(self.table.shape[0], self.table.shape[1], self.table.shape[3], device=self.table.device)
        for part in self.parts():
            total += torch.einsum("lkbd,b->lkd", self.at(part).read().float(), share[part])
        return total[:, :, None]


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
        return self.kept(ids, layers).read()

    def kept(
        self, ids: Sequence[int], layers: slice = slice(None), instead: Mapping[int, Tensor] | None = None
    ) -> Kept:
        """The same where they lie, which holds until the table changes.

        Args:
            ids: of the blocks.
            layers: some layers (all, unless said).
            instead: by id, what is read in the place of what is kept, [L, K, D] of those layers.
        """
        index = torch.tensor(list(map(self._row_of.__getitem__, ids)), dtype=torch.int64, device=self.table.device)
        changed = {self._row_of[block_id]: one for block_id, one in (instead or {}).items()}
        return Kept(self.table[layers], index, changed)

    def check_integrity(self, ids: set[int]) -> None:
        """Raise RuntimeError unless exactly the blocks `ids` have a row each, and all other rows are free."""
        if self._row_of.keys() != ids:
            wrong = sorted(self._row_of.keys() ^ ids)
            raise RuntimeError(f"representatives and index disagree about blocks {wrong}")
        if sorted([*self._row_of.values(), *self._free]) != list(range(self.table.shape[2])):
            raise RuntimeError("a row of representatives is used twice, or neither free nor used")
