"""Pyramid memory bank: resolution fades with age, nothing is lost in silence.

Blocks enter at the finest level, detail. A level over its budget hands its most redundant block to the next one; the
last one squeezes its own. So a stream of any length fits. What that means is up to the levels (`levels.py`).
This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.memory.block import Block, BlockMeta
from vstream.memory.levels import Level
from vstream.memory.neighbours import Neighbours

if TYPE_CHECKING:
    from vstream.memory.store import BlockStore


class Pyramid:
    """Owns which level every block is on, and keeps each level within its budget and what later levels leave unused.

    `commit` is the only call that changes memory: a clip's block, every demotion and merge it sets off, and the
    session's state become one atomic step of the store. What happened is counted in `counts`. Its cost does not grow
    with the blocks held, but for the first one after opening, which compares all neighbours.
    """

    def __init__(self, store: BlockStore, levels: Sequence[Level]) -> None:
        """Levels from the finest on, whose budgets the store can hold beside the sink."""
        self.store, self.levels = store, tuple(levels)
        self.next_id = 0
        self.counts: Counter[str] = Counter(demoted=0, merged=0, dropped=0)
        self._neighbours: dict[int, Neighbours] = {}  # by level, less `_pinned`; empty: to be taken from the store
        self._pinned: set[int] = set()

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
            pinned: ids of blocks that must stay as they are (the hot window).
        """
        counts = self.counts.copy()
        step = _Step(self.store)
        try:
            self._enter(step, block, set(pinned))
            while (index := self._overfull(step)) is not None:
                self._make_room(step, index)
            self.store.commit(list(step.added.values()), sorted(step.removed), state())
        except BaseException:
            self.counts = counts
            self._neighbours = {}
            raise

    def _overfull(self, step: _Step) -> int | None:
        """The last level that has more than its own budget and what the levels after it leave unused; None for none."""
        room = 0
        for index in reversed(range(len(self.levels))):
            room += self.levels[index].budget_bytes - step.bytes_on(self.levels[index].number)
            if room < 0:
                return index
        return None

    def _enter(self, step: _Step, block: Block, pinned: set[int]) -> None:
        """Adds the new block, and makes candidates of all blocks but the pinned."""
        if not self._neighbours:
            self._compare_all()
        step.add(block)
        left_out = self._pinned | {block.meta.id}
        for block_id in left_out - pinned:
            self._offer(step, step.meta(block_id))
        for block_id in pinned - left_out:
            self._withdraw(step, step.meta(block_id))
        self._pinned = pinned

    def _compare_all(self) -> None:
        """Takes every level's neighbours from the store, where nothing is pinned."""
        self._pinned = set()
        for level in self.levels:
            self._neighbours[level.number] = neighbours = level.neighbours()
            neighbours.add(self.store.metas_on(level.number), self.store.representatives.rows)

    def _offer(self, step: _Step, meta: BlockMeta) -> None:
        if meta.level in self._neighbours:  # the sink is on none
            self._neighbours[meta.level].add([meta], step.representatives)

    def _withdraw(self, step: _Step, meta: BlockMeta) -> None:
        if meta.level in self._neighbours:
            self._neighbours[meta.level].remove(meta, step.representatives)

    def _make_room(self, step: _Step, index: int) -> None:
        """Hands one block on to the next level, the one that loses least; the last level squeezes its own."""
        level = self.levels[index]
        pair = self._neighbours[level.number].most_similar()
        assert pair, "the level's budget must hold the hot window and one clip more"
        if index + 1 < len(self.levels):
            first = step.block(pair[0])
            self._replace(step, [first], self.levels[index + 1].take(first, self.take_id()))
            self.counts["demoted"] += 1
        else:
            leaving, instead = level.squeeze([step.block(block_id) for block_id in pair], self.take_id)
            self._replace(step, leaving, instead)
            self.counts["merged" if instead else "dropped"] += 1

    def _replace(self, step: _Step, leaving: Sequence[Block], instead: Block | None) -> None:
        """Puts one block, or nothing, in the place of some."""
        for block in leaving:
            self._withdraw(step, block.meta)
            step.remove(block.meta.id)
        if instead is not None:
            step.add(self._described(instead, leaving))
            self._offer(step, instead.meta)

    def _described(self, merged: Block, parents: Sequence[Block]) -> Block:
        """A condensed block in its level's codec, with what the retrieval policy keeps of it."""
        codec = next(level.codec for level in self.levels if level.number == merged.meta.level)
        merged = replace(merged, meta=replace(merged.meta, codec=codec))
        wanted = self.store.shape.extra
        if wanted is None:
            return merged
        kv = merged.kv[: wanted.size[0]]
        return replace(merged, extra=wanted.describe(kv, merged.meta.kinds, parents=parents))


class _Step:
    """What the store will hold if the step is committed: its blocks, less `removed`, plus `added`."""

    def __init__(self, store: BlockStore) -> None:
        self.added: dict[int, Block] = {}
        self.removed: set[int] = set()
        self._store = store
        self._more_bytes: Counter[int] = Counter()  # by level

    def add(self, block: Block) -> None:
        """Puts a block in."""
        self.added[block.meta.id] = block
        self._more_bytes[block.meta.level] += self._store.charge_of(block)

    def remove(self, block_id: int) -> None:
        """Takes a block away."""
        level, block = self.meta(block_id).level, self.added.pop(block_id, None)
        self._more_bytes[level] -= self._store.charge_of(block) if block else self._store.charged_bytes(block_id)
        if block is None:
            self.removed.add(block_id)

    def bytes_on(self, level: int) -> int:
        """What a level's blocks take at home."""
        return self._store.level_bytes(level) + self._more_bytes[level]

    def meta(self, block_id: int) -> BlockMeta:
        """A block's metadata."""
        return self.added[block_id].meta if block_id in self.added else self._store.meta(block_id)

    def block(self, block_id: int) -> Block:
        """A block with its tensors."""
        if block_id in self.added:
            return self.added[block_id]
        store = self._store
        kv, picture = store.gather([block_id]), store.picture(block_id)
        extra = store.extras.rows([block_id])[:, :, 0] if store.extras is not None else None
        return Block(store.meta(block_id), kv, self._representative(block_id), picture, extra)

    def representatives(self, ids: Sequence[int]) -> Tensor:
        """Those of some blocks, [L, K, B, D] float16."""
        return torch.stack([self._representative(block_id) for block_id in ids], dim=2)

    def _representative(self, block_id: int) -> Tensor:
        if block_id in self.added:
            return self.added[block_id].representative
        return self._store.representatives.rows([block_id])[:, :, 0]
