"""View: what one question can see of a stream. Knows nothing of how it was put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vstream.memory.columns import Rows, rows_of
from vstream.memory.retriever import Candidates

if TYPE_CHECKING:
    from vstream.cache import Snapshot
    from vstream.memory.block import BlockMeta
    from vstream.memory.representatives import Kept
    from vstream.memory.retriever import Retriever


@dataclass(frozen=True, eq=False)
class View:
    """What a question can see of a stream up to some time: the snapshot, and what may be brought back.

    Attributes:
        snapshot: sink and window.
        candidates: [B] blocks behind the window, in time order.
        representatives: [L, K, B + W, D] float16, of the candidates and then the window's blocks, for the first L
            layers: those that choose.
        sink_key: [L, K, 1, D] float32, the mean key of the system prompt.
        shortened: by id, blocks of which only the beginning may be seen.
        extras: [A, H, B + W, D] float16, what the policy keeps beside the representatives; None for nothing.
        retriever: who says which means it reads.
    """

    snapshot: Snapshot
    candidates: Rows
    representatives: Kept
    sink_key: Tensor
    shortened: Mapping[int, BlockMeta]
    retriever: Retriever
    extras: Kept | None = None

    @cached_property
    def window(self) -> Rows:
        """[W] blocks of the window, in time order."""
        return rows_of(placed.meta for placed in self.snapshot.window)

    @cached_property
    def mean_key(self) -> Tensor | None:
        """[L, K, 1, D], of all that can be seen: nothing later has a part in it; None where the policy reads none."""
        return self._mean(self.representatives) if self.retriever.reads_mean else None

    @property
    def end_seconds(self) -> float | None:
        """Time of the newest frame, None where there is none."""
        return float(ends.max()) if len(ends := self._both("end_seconds")) else None

    @cached_property
    def mean_extra(self) -> Tensor | None:
        """[A, H, 1, D], of all that can be seen, as the mean key; None where the policy does not read it."""
        return self._mean(self.extras) if self.extras is not None and self.retriever.reads_extra_mean else None

    def on_levels(self, levels: Sequence[int], budget_tokens: int) -> Candidates:
        """The candidates of some levels, to choose so many tokens of."""
        blocks = self.blocks(self.candidates, slice(0, len(self.candidates)), budget_tokens)
        on_it = np.isin(self.candidates["level"], levels)
        return blocks if on_it.all() else blocks.at(np.flatnonzero(on_it))

    @property
    def in_window(self) -> Candidates:
        """The window's blocks, of which none need be chosen."""
        return self.blocks(self.window, slice(len(self.candidates), None))

    def blocks(self, rows: Rows, place: slice, budget_tokens: int = 0) -> Candidates:
        """Blocks whose representatives lie at `place`."""
        extra, keys = None if self.extras is None else self.extras.at(place), self.representatives.at(place)
        return Candidates(rows, keys, self.mean_key, extra, self.mean_extra, budget_tokens)

    def _mean(self, kept: Kept) -> Tensor:
        return kept.mean(torch.from_numpy(self._both("weight")))

    def _both(self, column: str) -> np.ndarray:
        return np.concatenate([self.candidates[column], self.window[column]])
