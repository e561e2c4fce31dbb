"""Pyramid memory bank: resolution fades with age, nothing is lost in silence.

Blocks enter at the finest level. A level over its budget hands its most redundant block to the next one, condensed;
the last level merges its most similar neighbours, weights and time ranges kept. So a stream of any length fits.
This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.memory.block import Block, BlockMeta
from vstream.memory.condense import condense

if TYPE_CHECKING:
    from vstream.memory.store import BlockStore

SINK, DETAIL, GIST = -1, 0, 2  # 1 is kept for a level between detail and gist
LEVEL_NAMES = {SINK: "sink", DETAIL: "detail", GIST: "gist"}


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes:
        number: as in `BlockMeta.level`.
        budget_bytes: what its blocks may take at home.
        max_vision_tokens: what a block is condensed to when it arrives, None for all it has.
    """

    number: int
    budget_bytes: int
    max_vision_tokens: int | None


class Pyramid:
    """Owns which level every block is on, and keeps each level within its budget.

    `commit` is the only call that changes memory: a clip's block, every demotion and merge it sets off, and the
    session's state become one atomic step of the store. What happened is counted in `counts`.
    """

    def __init__(self, store: BlockStore, *, sink_tokens: int, gist_share: float, gist_vision_tokens: int) -> None:
        """Splits what the store can hold: the sink, then `gist_share` for the last level, the rest for detail."""
        self.store = store
        self.next_id = 0
        self.counts: Counter[str] = Counter(demoted=0, merged=0)
        room = store.capacity_bytes - store.bytes_of(sink_tokens)
        gist_bytes = int(room * gist_share)
        self.levels = (Level(DETAIL, room - gist_bytes, None), Level(GIST, gist_bytes, gist_vision_tokens))
        self._similarity: dict[tuple[int, int], float] = {}

    def take_id(self) -> int:
        """A block id never used before in this memory."""
        self.next_id += 1
        return self.next_id - 1

    def commit(self, block: Block, state: Callable[[], bytes], pinned: Collection[int] = ()) -> None:
        """Stores a block, makes room where levels overflow, and keeps the session's state, all in one step.

        If the store refuses, nothing has changed, the counts included.

        Args:
            block: new, on the first level (or the sink).
            state: the session's state, asked for once the outcome is known.
            pinned: ids that must stay as they are (the hot window).
        """
        counts = self.counts.copy()
        step = _Step(self.store, block)
        try:
            for index, level in enumerate(self.levels):
                while step.bytes_on(level.number) > level.budget_bytes:
                    self._make_room(step, index, pinned)
            self.store.commit(list(step.added.values()), sorted(step.removed), state())
        except BaseException:
            self.counts = counts
            raise
        self._similarity = {(a, b): s for (a, b), s in self._similarity.items() if a in self.store and b in self.store}

    def _make_room(self, step: _Step, index: int, pinned: Collection[int]) -> None:
        """Demotes one block of a level, or merges two on the last."""
        metas = [meta for meta in step.metas_on(self.levels[index].number) if meta.id not in pinned]
        pair = self._most_similar(step, metas)
        if index + 1 < len(self.levels):
            self._replace(step, pair[:1], self.levels[index + 1])
            self.counts["demoted"] += 1
        else:
            assert len(pair) == 2, "the last level must hold at least two blocks within its budget"
            self._replace(step, pair, self.levels[index])
            self.counts["merged"] += 1

    def _replace(self, step: _Step, metas: list[BlockMeta], level: Level) -> None:
        """Puts one condensed block in the place of some."""
        blocks = [step.block(meta) for meta in metas]
        limit = level.max_vision_tokens
        assert limit is not None, "nothing is demoted to the first level"
        merged = condense(blocks, block_id=self.take_id(), level=level.number, max_vision_tokens=limit)
        step.replace(metas, merged)

    def _most_similar(self, step: _Step, metas: list[BlockMeta]) -> list[BlockMeta]:
        """The most similar neighbours in time (the earliest such pair), or the only block there is."""
        assert metas, "the level's budget must hold the hot window and one clip more"
        pairs = list(pairwise(metas))
        if not pairs:
            return metas
        first, second = max(pairs, key=lambda pair: self._pair_similarity(step, pair[0].id, pair[1].id))
        return [first, second]

    def _pair_similarity(self, step: _Step, first: int, second: int) -> float:
        """Cosine of two blocks' representatives, remembered while both exist."""
        if (first, second) not in self._similarity:
            a, b = step.representative(first).float(), step.representative(second).float()
            self._similarity[first, second] = float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        return self._similarity[first, second]


class _Step:
    """What the store will hold if the step is committed: its blocks, less `removed`, plus `added`."""

    def __init__(self, store: BlockStore, block: Block) -> None:
        self._store = store
        self.added: dict[int, Block] = {block.meta.id: block}
        self.removed: set[int] = set()
        self._metas = {meta.id: meta for meta in [*store.metas(), block.meta]}

    def metas_on(self, level: int) -> list[BlockMeta]:
        """A level's blocks in time order."""
        found = [meta for meta in self._metas.values() if meta.level == level]
        return sorted(found, key=lambda meta: (meta.start_seconds, meta.id))

    def bytes_on(self, level: int) -> int:
        """What a level's blocks take at home."""
        return sum(self._bytes(meta) for meta in self._metas.values() if meta.level == level)

    def _bytes(self, meta: BlockMeta) -> int:
        if meta.id in self.added:
            return self._store.bytes_of(meta.num_tokens, len(self.added[meta.id].picture))
        return self._store.charged_bytes(meta.id)

    def representative(self, block_id: int) -> Tensor:
        """[L, K, D] float16."""
        if block_id in self.added:
            return self.added[block_id].representative
        return self._store.representatives.rows([block_id])[:, :, 0]

    def block(self, meta: BlockMeta) -> Block:
        """A block with its tensors."""
        if meta.id in self.added:
            return self.added[meta.id]
        kv, picture = self._store.gather([meta.id]), self._store.picture(meta.id)
        return Block(meta, kv, self.representative(meta.id), picture)

    def replace(self, metas: list[BlockMeta], merged: Block) -> None:
        """Takes blocks away and puts one in."""
        for meta in metas:
            del self._metas[meta.id]
            if self.added.pop(meta.id, None) is None:
                self.removed.add(meta.id)
        self._metas[merged.meta.id] = merged.meta
        self.added[merged.meta.id] = merged
