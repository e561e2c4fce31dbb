"""View: what one question can see of a stream. Knows nothing of how it was put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.memory.retriever import mean_key

if TYPE_CHECKING:
    from vstream.cache import Snapshot
    from vstream.memory.block import BlockMeta


@dataclass(frozen=True, eq=False)
class View:
    """What a question can see of a stream up to some time: the snapshot, and what may be brought back.

    Attributes:
        snapshot: sink and window.
        candidates: blocks behind the window, in time order.
        representatives: [L, K, B, D] float16, of `blocks`, for the first L layers: those that choose.
        sink_key: [L, K, 1, D] float32, the mean key of the system prompt.
    """

    snapshot: Snapshot
    candidates: list[BlockMeta]
    representatives: Tensor
    sink_key: Tensor

    @cached_property
    def blocks(self) -> list[BlockMeta]:
        """Candidates, then the window."""
        return [*self.candidates, *(placed.meta for placed in self.snapshot.window)]

    @cached_property
    def mean_key(self) -> Tensor:
        """[L, K, 1, D], of all that can be seen: nothing later has a part in it."""
        return mean_key(self.representatives, torch.tensor([meta.weight for meta in self.blocks]))

    @property
    def end_seconds(self) -> float | None:
        """Time of the newest frame, None where there is none."""
        return max((meta.end_seconds for meta in self.blocks), default=None)

    def on_level(self, level: int) -> tuple[list[BlockMeta], Tensor]:
        """A level's candidates, and their representatives [L, K, B, D]."""
        rows = [row for row, meta in enumerate(self.candidates) if meta.level == level]
        return [self.candidates[row] for row in rows], self._rows(rows)

    @property
    def in_window(self) -> tuple[list[BlockMeta], Tensor]:
        """The window's blocks, and their representatives [L, K, B, D]."""
        start = len(self.candidates)
        return self.blocks[start:], self.representatives[:, :, start:]

    def _rows(self, rows: Sequence[int]) -> Tensor:
        if len(rows) == len(self.candidates):
            return self.representatives[:, :, : len(rows)]
        return self.representatives.index_select(
            2, torch.tensor(rows, dtype=torch.int64, device=self.representatives.device)
        )
