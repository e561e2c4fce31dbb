"""Slabs and disk together: blocks written through every tier, read from the fastest, evicted from the caches alone.

This module knows nothing of metadata, sessions or what is charged: it is told how many tokens a block has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from vstream.memory.block import BlockShape, Tier
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
        self._device = device
        self._host_bytes = budgets.tiers[Tier.HOST]

    def of(self, block_id: int) -> Tier:
        """The fastest tier that holds a block."""
        return next((tier for tier, slab in self.slabs.items() if block_id in slab), self.home)

    def put(self, block_id: int, kv: Tensor) -> None:
        """Write a new block's kv [L, 2, K, N, D] to the home slab, if that is its home, and to caches where it fits."""
        for tier, slab in self.slabs.items():
            if tier is self.home or self._make_room(tier, kv.shape[3], self.pins):
                slab.write(block_id, kv)

    def forget(self, block_id: int) -> None:
        """Free a block's slots in every slab."""
        for slab in self.slabs.values():
            if block_id in slab:
                slab.forget(block_id)

    def shrink(self) -> None:
        """Evict what no longer fits the host cache beside the reserved bytes."""
        if Tier.HOST in self.slabs and self.home is not Tier.HOST:
            self.slabs[Tier.HOST].shrink(self.pins, self._limit_slots(Tier.HOST))

    def gather(self, layers: range, ids: Sequence[int], counts: Sequence[int], tokens: Mapping[int, int]) -> Tensor:
        """The first `counts` tokens of blocks, [len(layers), 2, K, N, D] on the device, in the order given.

        What is read comes into the caches where it fits beside the rest of `ids`; what does not is read past them.

        Args:
            layers: a stretch of layers.
            ids: blocks.
            counts: for each of them.
            tokens: by block id, how many each has in all.
        """
        size = (len(layers), 2, self._shape.num_kv_heads, sum(counts), self._shape.head_dim)
        out = torch.empty(size, dtype=self._shape.dtype, device=self._device)
        resident: dict[Tier, list[Span]] = {}
        keep, start = self.pins.keys() | set(ids), 0
        for block_id, count in zip(ids, counts, strict=True):
            tier = self._warm(block_id, tokens[block_id], keep)
            resident.setdefault(tier, []).append((block_id, count, start))
            start += count
        for tier, spans in resident.items():
            if tier is Tier.DISK:
                self._read_spans(layers, spans, tokens, out)
            else:
                self._gather_spans(self.slabs[tier], layers, spans, out)
        return out

    def _make_room(self, tier: Tier, num_tokens: int, keep: Collection[int]) -> bool:
        """Evict from a cache, none of `keep`, until `num_tokens` fit; whether they do."""
        return self.slabs[tier].make_room(num_tokens, keep, self._limit_slots(tier))

    def _limit_slots(self, tier: Tier) -> int:
        """Slots of a cache that may be used: all, on the host as many as the reserved bytes leave."""
        slab = self.slabs[tier]
        left = max(0, self._host_bytes - self.reserved) // slab.slot_bytes
        return min(slab.num_slots, left) if tier is Tier.HOST else slab.num_slots

    def _warm(self, block_id: int, num_tokens: int, keep: Collection[int]) -> Tier:
        """Bring a block into the caches above it where it fits; the fastest tier that holds it then."""
        source = self.of(block_id)
        goals = [tier for tier in self.slabs if tier < source and self._make_room(tier, num_tokens, keep)]
        if goals and source is Tier.DISK:
            kv = self._disk.read_kv(block_id, self._shape, num_tokens)
            for tier in goals:
                self.slabs[tier].write(block_id, kv)
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

    def _read_spans(self, layers: range, spans: Sequence[Span], tokens: Mapping[int, int], out: Tensor) -> None:
        """Read blocks that no cache has room for from the disk into their places in `out`."""
        for block_id, count, start in spans:
            kv = self._disk.read_kv(block_id, self._shape, tokens[block_id], layers)
            out[:, :, :, start : start + count] = kv[:, :, :, :count]

    def _gather_spans(self, slab: Slab, layers: range, spans: Sequence[Span], out: Tensor) -> None:
        """Copy resident blocks to their places in `out`: one indexing operation a layer."""
        ids, counts, starts = zip(*spans, strict=True)
        found = slab.gather(layers, ids, counts).to(self._device)
        if found.shape == out.shape:
            out.copy_(found)
            return
        columns = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
        out.index_copy_(3, columns.to(self._device), found)


def _make_slab(budgets: Budgets, tier: Tier, device: torch.device) -> Slab:
    on_host = tier is Tier.HOST
    return Slab(
        budgets.shape,
        num_slots=budgets.slots(tier),
        slot_tokens=budgets.slot_tokens,
        device=torch.device("cpu") if on_host else device,
        pin=on_host and device.type == "cuda",
    )
