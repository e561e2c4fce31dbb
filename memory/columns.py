"""Columns: what choosing among blocks needs to know of each, as one array, so that no question walks all blocks.

This module knows nothing of scores, tiers or files.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vstream.memory.block import BlockMeta

COLUMNS = np.dtype(
    [
        ("id", np.int64),
        ("level", np.int64),
        ("num_tokens", np.int64),
        ("weight", np.float64),
        ("start_seconds", np.float64),
        ("end_seconds", np.float64),
    ]
)
INITIAL_ROWS = 64

Rows = npt.NDArray[np.void]
"""[B] of `COLUMNS`, a row per block."""


def rows_of(metas: Iterable[BlockMeta]) -> Rows:
    """Rows of some blocks, in the order given."""
    assert COLUMNS.names is not None
    return np.array([tuple(getattr(meta, name) for name in COLUMNS.names) for meta in metas], dtype=COLUMNS)


class Columns:
    """A row per block: adding and removing one touches no other but the last."""

    def __init__(self) -> None:
        """No blocks."""
        self._rows = np.zeros(INITIAL_ROWS, COLUMNS)
        self._row_of: dict[int, int] = {}
        self._sorted: Rows | None = None

    def add(self, meta: BlockMeta) -> None:
        """Takes in a new block."""
        count = len(self._row_of)
        if count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[count : count + 1] = rows_of([meta])
        self._row_of[meta.id] = count
        self._sorted = None

    def remove(self, block_id: int) -> None:
        """Leaves a block out; the last one takes its row."""
        row, last = self._row_of.pop(block_id), len(self._row_of)
        if row != last:
            self._rows[row] = self._rows[last]
            self._row_of[int(self._rows[row]["id"])] = row
        self._sorted = None

    def in_time_order(self) -> Rows:
        """All rows by their start, the id deciding between equal times; not to be changed."""
        if self._sorted is None:
            rows = self._rows[: len(self._row_of)]
            self._sorted = rows[np.lexsort((rows["id"], rows["start_seconds"]))]
        return self._sorted
