"""Pyramid memory bank: resolution fades with age, nothing is lost in silence.

Blocks enter at the finest level, detail. A level over its budget hands its most redundant block to the next one,
condensed: the digest level keeps a quarter of its vision tokens, the gist level one short frame. The last level merges
its most similar neighbours, weights and time ranges kept. So a stream of any length fits.
This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.memory.block import Block, BlockMeta
from vstream.memory.condense import condense, digest
from vstream.memory.neighbours import Neighbours

if TYPE_CHECKING:
    from vstream.memory.store import BlockStore

SINK, DETAIL, DIGEST, GIST = -1, 0, 1, 2
LEVEL_NAMES = {SINK: "sink", DETAIL: "detail", DIGEST: "digest", GIST: "gist"}
DIGEST_KEEPS = 0.25  # of a block's vision tokens


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes:
        number: as in `BlockMeta.level`.
        budget_bytes: what its blocks may take at home.
        max_vision_tokens: of a block of the gist level; no other has a limit.
        codec: how its blocks are stored.
    """

    number: int
    budget_bytes: int
    max_vision_tokens: int | None = None
    codec: str = "none"

    def take(self, blocks: Sequence[Block], block_id: int) -> Block:
        """What stands for blocks, given in time order, on this level: one from the level before, or two of its own."""
        made = self._condensed(blocks, block_id)
        return replace(made, meta=replace(made.meta, codec=self.codec))

    def _condensed(self, blocks: Sequence[Block], block_id: int) -> Block:
        if self.number == DIGEST:
            (block,) = blocks
            return digest(block, block_id=block_id, level=DIGEST, keep_share=DIGEST_KEEPS)
        assert self.max_vision_tokens is not None, f"nothing is demoted to the {LEVEL_NAMES[self.number]} level"
        return condense(blocks, block_id=block_id, level=self.number, max_vision_tokens=self.max_vision_tokens)


class Pyramid:
    """Owns which level every block is on, and keeps each level within its budget.

    `commit` is the only call that changes memory: a clip's block, every demotion and merge it sets off, and the
    session's state become one atomic step of the store. What happened is counted in `counts`. Its cost does not grow
    with the blocks held, but for the first one after opening, which compares all neighbours.
    """

    def __init__(
        self,
        store: BlockStore,
        *,
        sink_tokens: int,
        digest_share: float,
        gist_share: float,
        gist_vision_tokens: int,
        codecs: Sequence[str] = ("none", "none", "none"),
    ) -> None:
        """Splits what the store can hold: the sink, then the shares of digest and gist, the rest for detail.

        A `digest_share` of 0 leaves that level out. `codecs` are those of detail, digest and gist; blocks that were
        stored with another one keep it until they are condensed.
        """
        self.store = store
        self.next_id = 0
        self.counts: Counter[str] = Counter(demoted=0, merged=0)
        room = store.capacity_bytes - store.bytes_of(sink_tokens)
        digest_bytes, gist_bytes = int(room * digest_share), int(room * gist_share)
        detail = Level(DETAIL, room - digest_bytes - gist_bytes, codec=codecs[DETAIL])
        middle = Level(DIGEST, digest_bytes, codec=codecs[DIGEST])
        gist = Level(GIST, gist_bytes, gist_vision_tokens, codecs[GIST])
        self.levels = (detail, middle, gist) if digest_share else (detail, gist)
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
            for index, level in enumerate(self.levels):
                while step.bytes_on(level.number) > level.budget_bytes:
                    self._make_room(step, index)
            self.store.commit(list(step.added.values()), sorted(step.removed), state())
        except BaseException:
            self.counts = counts
            self._neighbours = {}
            raise

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
            self._neighbours[level.number] = neighbours = Neighbours()
            neighbours.add(self.store.metas_on(level.number), self.store.representatives.rows)

    def _offer(self, step: _Step, meta: BlockMeta) -> None:
        if meta.level in self._neighbours:  # the sink is on none
            self._neighbours[meta.level].add([meta], step.representatives)

    def _withdraw(self, step: _Step, meta: BlockMeta) -> None:
        if meta.level in self._neighbours:
            self._neighbours[meta.level].remove(meta, step.representatives)

    def _make_room(self, step: _Step, index: int) -> None:
        """Demotes one block of a level, the earlier of the most similar neighbours, or merges the two on the last."""
        pair = [step.meta(block_id) for block_id in self._neighbours[self.levels[index].number].most_similar()]
        assert pair, "the level's budget must hold the hot window and one clip more"
        if index + 1 < len(self.levels):
            self._replace(step, pair[:1], self.levels[index + 1])
            self.counts["demoted"] += 1
        else:
            assert len(pair) == 2, "the last level must hold at least two blocks within its budget"
            self._replace(step, pair, self.levels[index])
            self.counts["merged"] += 1

    def _replace(self, step: _Step, metas: list[BlockMeta], level: Level) -> None:
        """Puts one condensed block in the place of some."""
        merged = level.take([step.block(meta.id) for meta in metas], self.take_id())
        for meta in metas:
            self._withdraw(step, meta)
            step.remove(meta.id)
        step.add(merged)
        self._offer(step, merged.meta)


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
        return Block(store.meta(block_id), kv, self._representative(block_id), picture)

    def representatives(self, ids: Sequence[int]) -> Tensor:
        """Those of some blocks, [L, K, B, D] float16."""
        return torch.stack([self._representative(block_id) for block_id in ids], dim=2)

    def _representative(self, block_id: int) -> Tensor:
        if block_id in self.added:
            return self.added[block_id].representative
        return self._store.representatives.rows([block_id])[:, :, 0]
