"""The store's index: every block's metadata in time order, and running totals, so that no commit walks all blocks.

This module knows nothing of tiers, disks or tensors of keys and values.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass

from vstream.memory.block import BlockMeta
from vstream.memory.columns import Columns


@dataclass(frozen=True)
class Entry:
    """What the index knows of a block.

    Attributes:
        meta: its metadata, on the CPU.
        picture_bytes: length of its picture.
        charge: bytes it counts at home.
        ram_bytes: bytes of RAM that it takes outside the slabs.
    """

    meta: BlockMeta
    picture_bytes: int
    charge: int
    ram_bytes: int


def time_key(meta: BlockMeta) -> tuple[float, int]:
    """Sorts blocks by their start; the id decides between equal times."""
    return meta.start_seconds, meta.id


class BlockIndex:
    """Entries by block id; `add` and `remove` keep the totals.

    Attributes:
        entries: by block id.
        used_bytes: what all blocks are charged at home.
        ram_bytes: RAM of all entries.
        columns: the same blocks as arrays.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.used_bytes = self.ram_bytes = 0
        self.columns = Columns()
        self._order: list[tuple[float, int]] = []
        self._level_bytes: Counter[int] = Counter()
        self._level_blocks: Counter[int] = Counter()

    def entry(self, block_id: int) -> Entry:
        """One block's entry."""
        assert block_id in self.entries, f"there is no block {block_id}"
        return self.entries[block_id]

    def metas(self) -> list[BlockMeta]:
        """All blocks' metadata in time order."""
        return [self.entries[block_id].meta for _, block_id in self._order]

    def level_bytes(self, level: int) -> int:
        """What a level's blocks are charged at home."""
        return self._level_bytes[level]

    def num_blocks(self, level: int) -> int:
        """How many blocks a level has."""
        return self._level_blocks[level]

    def add(self, entry: Entry) -> None:
        """Take in a new block."""
        self.entries[entry.meta.id] = entry
        insort(self._order, time_key(entry.meta))
        self.columns.add(entry.meta)
        self._count(entry, 1)

    def remove(self, block_id: int) -> None:
        """Leave a block out."""
        entry = self.entries.pop(block_id)
        del self._order[bisect_left(self._order, time_key(entry.meta))]
        self.columns.remove(block_id)
        self._count(entry, -1)

    def _count(self, entry: Entry, sign: int) -> None:
        self.used_bytes += sign * entry.charge
        self.ram_bytes += sign * entry.ram_bytes
        self._level_bytes[entry.meta.level] += sign * entry.charge
        self._level_blocks[entry.meta.level] += sign
