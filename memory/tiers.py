"""Slabs and disk together: blocks written through every tier, read from the fastest, evicted from the caches alone.

This module knows nothing of metadata, sessions or what is charged: it is told how a block is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from vstream.memory.block import BlockShape, Form, Tier
from vstream.memory.budget import Budgets
from vstream.memory.disk import DiskTier
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

    def gather(self, layers: range, ids: Sequence[int], counts: Sequence[int], forms: Mapping[int, Form]) -> Tensor:
        """The first `counts` tokens of blocks, [len(layers), 2, K, N, D] on the device, in the order given.

        What is read comes into the caches where it fits beside the rest of `ids`; what does not is read past them.

        Args:
            layers: a stretch of layers.
            ids: blocks.
            counts: for each of them.
            forms: by block id, how each is stored.
        """
        size = (len(layers), 2, self._shape.num_kv_heads, sum(counts), self._shape.head_dim)
        out = torch.empty(size, dtype=self._shape.dtype, device=self._device)
        resident: dict[tuple[Tier, str], list[Span]] = {}
        keep, start = self.pins.keys() | set(ids), 0
        for block_id, count in zip(ids, counts, strict=True):
            tier = self._warm(block_id, forms[block_id], keep)
            resident.setdefault((tier, forms[block_id].codec), []).append((block_id, count, start))
            start += count
        for (tier, codec), spans in resident.items():
            if tier is Tier.DISK:
                self._read_spans(layers, spans, forms, out)
            else:
                self._gather_spans(self.slabs[tier], codec, layers, spans, out)
        return out

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

    def _read_spans(self, layers: range, spans: Sequence[Span], forms: Mapping[int, Form], out: Tensor) -> None:
        """Read blocks that no cache has room for from the disk into their places in `out`."""
        for block_id, count, start in spans:
            codec = self._codecs[forms[block_id].codec]
            rows = self._disk.read_rows(block_id, codec, forms[block_id].num_tokens, layers)
            kept, owner = rows[:, : codec.num_rows(count)], torch.zeros(count, dtype=torch.int64)
            out[:, :, :, start : start + count] = codec.decode(kept.to(self._device), owner.to(self._device))

    def _gather_spans(self, slab: Slab, codec: str, layers: range, spans: Sequence[Span], out: Tensor) -> None:
        """Decode resident blocks of one codec into their places in `out`: one indexing operation a layer."""
        ids, counts, starts = zip(*spans, strict=True)
        places, sizes = slab.places(ids, counts), torch.tensor(counts)
        owner = torch.arange(len(ids)).repeat_interleave(sizes)
        columns = torch.arange(len(owner)) + (torch.tensor(starts) - (sizes.cumsum(0) - sizes))[owner]
        alone, owner, columns = len(owner) == out.shape[3], owner.to(self._device), columns.to(self._device)
        for into, layer in zip(out, layers, strict=True):
            rows = slab.rows(layer, codec, places).to(self._device)
            found = self._codecs[codec].decode(rows[None], owner)[0]  # [2, K, N, D]
            if alone:
                into.copy_(found)
            else:
                into.index_copy_(2, columns, found)


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
