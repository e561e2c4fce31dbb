"""Which two neighbours in time are most alike: a sorted list of blocks and a heap of their neighbours' similarities.

The heap is lazy: a pair that is no longer adjacent stays in it until it comes to the top or half of the heap is such.
So a change costs O(log blocks). This module knows nothing of levels, budgets, pins or where blocks lie.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from vstream.memory.block import BlockMeta
from vstream.memory.index import time_key

Key = tuple[float, int]
"""Start in seconds and id: where a block stands in time."""
Rows = Callable[[Sequence[int]], Tensor]
"""Gives the representatives [L, K, B, D] of blocks by id."""
PAIRS_AT_ONCE = 256
SLACK = 64


class Neighbours:
    """Some blocks in time order. What it answers follows from them alone, not from how they came and went."""

    def __init__(self) -> None:
        self._order: list[Key] = []
        self._heap: list[tuple[float, Key, Key]] = []  # the most similar pair on top, of equal ones the earliest

    def __len__(self) -> int:
        return len(self._order)

    def ids(self) -> list[int]:
        """All blocks in time order."""
        return [block_id for _, block_id in self._order]

    def add(self, metas: Iterable[BlockMeta], rows: Rows) -> None:
        """Take blocks in, and compare them with their neighbours."""
        keys = [time_key(meta) for meta in metas]
        for key in keys:
            insort(self._order, key)
        self._compare({pair for key in keys for pair in self._pairs_around(key, 2)}, rows)

    def remove(self, meta: BlockMeta, rows: Rows) -> None:
        """Leave a block out, and compare those that become neighbours."""
        key = time_key(meta)
        place = bisect_left(self._order, key)
        assert self._order[place : place + 1] == [key], f"{meta} is not among the neighbours"
        del self._order[place]
        self._compare(self._pairs_around(key, 1), rows)

    def most_similar(self) -> list[int]:
        """The two most similar neighbours, of equal ones the earliest; without any pair, the only block or none."""
        while self._heap:
            _, first, second = self._heap[0]
            if self._adjacent(first, second):
                return [first[1], second[1]]
            heapq.heappop(self._heap)
        return self.ids()

    def _pairs_around(self, key: Key, after: int) -> list[tuple[Key, Key]]:
        """The neighbours among the block before a key and so many from there on."""
        place = bisect_left(self._order, key)
        return list(pairwise(self._order[max(place - 1, 0) : place + after]))

    def _adjacent(self, first: Key, second: Key) -> bool:
        place = bisect_left(self._order, first)
        return self._order[place : place + 2] == [first, second]

    def _compare(self, pairs: Collection[tuple[Key, Key]], rows: Rows) -> None:
        waiting = list(pairs)
        for start in range(0, len(waiting), PAIRS_AT_ONCE):
            some = waiting[start : start + PAIRS_AT_ONCE]
            for (first, second), value in zip(some, self._values(some, rows), strict=True):
                heapq.heappush(self._heap, (-value, first, second))
        if len(self._heap) > 2 * len(self) + SLACK:
            self._heap = sorted({entry for entry in self._heap if self._adjacent(*entry[1:])})  # sorted is a heap

    def _values(self, pairs: Sequence[tuple[Key, Key]], rows: Rows) -> list[float]:
        """How alike two blocks are, for each pair."""
        firsts, seconds = (rows([block_id for _, block_id in keys]) for keys in zip(*pairs, strict=True))
        return similarities(firsts, seconds)


class NeighboursInTime(Neighbours):
    """Those closest in time count as most similar, or (`oldest_first`) the oldest two, whatever they show."""

    def __init__(self, *, oldest_first: bool = False) -> None:
        super().__init__()
        self._oldest_first = oldest_first

    def _values(self, pairs: Sequence[tuple[Key, Key]], rows: Rows) -> list[float]:
        return [-first[0] if self._oldest_first else first[0] - second[0] for first, second in pairs]


def similarities(firsts: Tensor, seconds: Tensor) -> list[float]:
    """Cosines of representatives [L, K, B, D] with others, block by block; 0 where one has no direction.

    Each is added up alone, in double precision on the CPU: its bits do not depend on the device, on threads or on how
    many are compared at once. So a resumed stream chooses as one that ran on, and equal representatives give 1.
    """
    a, b = _flat(firsts), _flat(seconds)
    dots, a_squares, b_squares = (products.numpy().sum(axis=1) for products in (a * b, a * a, b * b))
    return [float(cosine) for cosine in dots / (a_squares * b_squares).clip(min=1e-300) ** 0.5]


def _flat(rows: Tensor) -> Tensor:
    """[B, L*K*D] float64 on the CPU; what overflowed float16 is its largest number."""
    return rows.cpu().double().nan_to_num(0.0, 65504.0, -65504.0).movedim(2, 0).flatten(1).contiguous()
