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
        representatives: [L, K, B, D] float16, of `blocks`.
        sink_key: [L, K, 1, D] float32, the mean key of the system prompt.
    """

    snapshot: Snapshot
    candidates: list[BlockMeta]
    representatives: Tensor
    sink_key: Tensor

    @property
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

    def representatives_of(self, metas: Sequence[BlockMeta], layers: slice) -> Tensor:
        """[L, K, B, D] of some of the blocks, for some layers."""
        return self.representatives[layers][:, :, [self._row[meta.id] for meta in metas]]

    @cached_property
    def _row(self) -> dict[int, int]:
        return {meta.id: row for row, meta in enumerate(self.blocks)}
