"""Slabs and disk together: blocks written through every tier, read from the fastest, evicted from the caches alone.

This module knows nothing of metadata, sessions or what is charged: it is told how a block is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from vstream.kernels import Places
from vstream.memory.block import BlockShape, Form, Tier
from vstream.memory.budget import Budgets
from vstream.memory.disk import DiskTier
from vstream.memory.fetch import Fetch, Part
from vstream.memory.slab import Slab

Span = tuple[int, int, int]
"""A block id, how many of its first tokens are wanted, and where in the output they start."""


class Tiers:
    """Where the keys and values of all blocks are.

    The home tier holds every block; the slabs above it are least-recently-used caches. Pinned blocks stay in the caches
    that hold them.

    Attributes:
        home: the tier where every block lives.
        slabs: home or cache slab by tier, fastest first, where it has slots.
        disk: the disk tier, if it is the home.
        pins: how often each pinned block is pinned.
        reserved: host bytes that are not the cache's: the store's index.
    """

    def __init__(self, budgets: Budgets, *, device: torch.device, disk: DiskTier | None) -> None:
        self.home = budgets.home
        self.disk = disk
        self.pins: Counter[int] = Counter()
        self.reserved = 0
        self.slabs = {
            tier: _make_slab(budgets, tier, device) for tier in (Tier.DEVICE, Tier.HOST) if budgets.slots(tier)
        }
        self._shape: BlockShape = budgets.shape
        self._codecs = budgets.codecs
        self._device = device
        self._host_bytes = budgets.tiers[Tier.HOST]

    def of(self, block_id: int) -> Tier:
        """The fastest tier that holds a block."""
        return next((tier for tier, slab in self.slabs.items() if block_id in slab), self.home)

    def put(self, block_id: int, form: Form, rows: Tensor) -> None:
        """Write a new block's payload to the home slab, if that is its home, and to caches where it fits."""
        for tier, slab in self.slabs.items():
            if tier is self.home or self._make_room(tier, form, self.pins):
                slab.write(block_id, form, rows)

    def forget(self, block_id: int) -> None:
        """Free a block's slots in every slab."""
        for slab in self.slabs.values():
            if block_id in slab:
                slab.forget(block_id)

    def shrink(self) -> None:
        """Evict what no longer fits the host cache beside the reserved bytes."""
        if Tier.HOST in self.slabs and self.home is not Tier.HOST:
            self.slabs[Tier.HOST].shrink(self.pins, self._limit_slots(Tier.HOST))

    def fetch(self, layers: range, ids: Sequence[int], counts: Sequence[int], forms: Mapping[int, Form]) -> Fetch:
        """The first `counts` tokens of blocks, in the order given, ready to be read.

        What is read comes into the caches where it fits beside the rest of `ids`; what does not is read past them.

        Args:
            layers: a stretch of layers.
            ids: blocks.
            counts: for each of them.
            forms: by block id, how each is stored.
        """
        resident: dict[tuple[Tier, str], list[Span]] = {}
        keep, start = self.pins.keys() | set(ids), 0
        for block_id, count in zip(ids, counts, strict=True):
            tier = self._warm(block_id, forms[block_id], keep)
            resident.setdefault((tier, forms[block_id].codec), []).append((block_id, count, start))
            start += count
        parts = [
            self._from_disk(layers, codec, spans, forms) if tier is Tier.DISK
            else self._from_slab(self.slabs[tier], codec, spans)
            for (tier, codec), spans in resident.items()
        ]  # fmt: skip
        slabs = [self.slabs[tier] for tier in {tier for tier, _ in resident} if tier is not Tier.DISK]
        return Fetch(parts, slabs, start, layers, self._shape, self._device)

    def _make_room(self, tier: Tier, form: Form, keep: Collection[int]) -> bool:
        """Evict from a cache, none of `keep`, until one more block fits; whether it does."""
        return self.slabs[tier].make_room(form, keep, self._limit_slots(tier))

    def _limit_slots(self, tier: Tier) -> int:
        """Slots of a cache that may be used: all, on the host as many as the reserved bytes leave."""
        slab = self.slabs[tier]
        left = max(0, self._host_bytes - self.reserved) // slab.slot_bytes
        return min(slab.num_slots, left) if tier is Tier.HOST else slab.num_slots

    def _warm(self, block_id: int, form: Form, keep: Collection[int]) -> Tier:
        """Bring a block into the caches above it where it fits; the fastest tier that holds it then."""
        source = self.of(block_id)
        goals = [tier for tier in self.slabs if tier < source and self._make_room(tier, form, keep)]
        if goals and source is Tier.DISK:
            rows = self._disk.read_rows(block_id, self._codecs[form.codec], form.num_tokens)
            for tier in goals:
                self.slabs[tier].write(block_id, form, rows)
        elif goals:
            self.slabs[Tier.DEVICE].copy_from(self.slabs[source], block_id)
        for slab in self.slabs.values():
            if block_id in slab:
                slab.touch(block_id)
        return min([source, *goals])

    @property
    def _disk(self) -> DiskTier:
        assert self.disk is not None, "a block on disk without a disk"
        return self.disk

    def _from_slab(self, slab: Slab, codec: str, spans: Sequence[Span]) -> Part:
        """Resident blocks of one codec."""
        slab.filled.settle()
        places = slab.places([span[0] for span in spans], [span[1] for span in spans])
        return self._part(codec, lambda layer: slab.words(layer, codec), places, spans)

    def _from_disk(self, layers: range, name: str, spans: Sequence[Span], forms: Mapping[int, Form]) -> Part:
        """Blocks of one codec that no cache has room for: their rows are in RAM from here on."""
        codec = self._codecs[name]
        found = [self._disk.read_rows(block_id, codec, forms[block_id].num_tokens, layers)[:, : codec.num_rows(count)]
                 for block_id, count, _ in spans]  # fmt: skip
        heads, tokens = (
            [rows[:, part] for rows in found] for part in (slice(codec.head_rows), slice(codec.head_rows, None))
        )
        words = torch.cat(heads + tokens, dim=1).view(torch.int64)[:, :, None]  # [l, S, 1, W]
        slots = torch.arange(words.shape[1])
        return self._part(
            name, lambda layer: words[layer - layers.start], Places(slots, torch.zeros_like(slots)), spans
        )

    def _part(self, codec: str, words: Callable[[int], Tensor], places: Places, spans: Sequence[Span]) -> Part:
        sizes, starts = (torch.tensor([span[i] for span in spans]) for i in (1, 2))
        ends, owner = sizes.cumsum(0), torch.arange(len(spans)).repeat_interleave(sizes)
        first, shifts = int(starts[0]), starts - (ends - sizes)
        columns: slice | Tensor = slice(first, first + len(owner))
        if not (shifts == first).all():
            columns = (torch.arange(len(owner)) + shifts[owner]).to(self._device)
        return Part(self._codecs[codec], words, places, owner.to(self._device), columns)


def _make_slab(budgets: Budgets, tier: Tier, device: torch.device) -> Slab:
    on_host = tier is Tier.HOST
    return Slab(
        budgets.shape,
        budgets.codecs,
        num_slots=budgets.slots(tier),
        slot_tokens=budgets.slot_tokens,
        device=torch.device("cpu") if on_host else device,
        pin=on_host and device.type == "cuda",
    )
