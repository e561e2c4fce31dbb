"""The store's own audit: everything it believes compared with what is there.

Reads only. This module knows nothing of what blocks mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstream.memory.block import Tier
from vstream.memory.index import time_key
from vstream.memory.records import Part, num_pages, tensor_bytes

if TYPE_CHECKING:
    from vstream.memory.disk import StoredBlock
    from vstream.memory.store import BlockStore


def check(store: BlockStore, deep: bool) -> None:
    """Raise RuntimeError naming the first thing that is wrong; see `BlockStore.check_integrity`."""
    ids = set(store.entries)
    for table in store.tables:
        table.check_integrity(ids)
    _check_index(store)
    _check_slabs(store, ids)
    _check_budgets(store)
    if store.disk:
        _check_disk(store)
    if deep:
        _check_payloads(store)


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise RuntimeError(f"memory integrity: {complaint}")


def _check_index(store: BlockStore) -> None:
    metas = store.metas()
    order = [time_key(meta) for meta in metas]
    _require(order == sorted(order), "the index is not in time order")
    _require(sorted(meta.id for meta in metas) == sorted(store.entries), "the time order misses blocks or repeats them")
    for block_id, entry in store.entries.items():
        _require(entry.meta.id == block_id, f"block {entry.meta.id} is listed as block {block_id}")
    _require(store.pins.keys() <= store.entries.keys(), "a block is pinned that does not exist")
    _require(all(count > 0 for count in store.pins.values()), "a block is pinned less than once")
    if not store.disk:
        pictures = {block_id: len(picture) for block_id, picture in store.pictures.items()}
        expected = {block_id: e.picture_bytes for block_id, e in store.entries.items() if e.picture_bytes}
        _require(pictures == expected, "pictures and index disagree")


def _check_slabs(store: BlockStore, ids: set[int]) -> None:
    for tier, slab in store.slabs.items():
        slab.check_integrity()
        strays = sorted(set(slab.ids) - ids)
        _require(not strays, f"the {tier.name.lower()} slab holds blocks {strays}, which do not exist")
        if tier is store.home:
            missing = sorted(ids - set(slab.ids))
            _require(not missing, f"blocks {missing} are not at home in the {tier.name.lower()} slab")
        for block_id in slab.ids:
            same = slab.forms[block_id] == store.meta(block_id).form
            _require(same, f"block {block_id} has another form in the {tier.name.lower()} slab")


def _check_budgets(store: BlockStore) -> None:
    charges = sum(entry.charge for entry in store.entries.values())
    _require(charges == store.used_bytes, f"{store.used_bytes} bytes are counted as used, but blocks take {charges}")
    for level in {entry.meta.level for entry in store.entries.values()}:
        on_level = [entry for entry in store.entries.values() if entry.meta.level == level]
        counted = store.num_blocks(level), store.level_bytes(level)
        found = len(on_level), sum(entry.charge for entry in on_level)
        _require(counted == found, f"level {level} is counted as {counted} blocks and bytes, but has {found}")
    _require(charges <= store.capacity_bytes, f"{charges} bytes are used of {store.capacity_bytes}")
    for tier, used in store.tier_bytes().items():
        given = store.budgets[tier]
        allowed = max(given, store.index_bytes) if tier is Tier.HOST else given
        _require(not given or used <= allowed, f"{used} bytes are used of {tier.name.lower()}'s {given}")


def _check_disk(store: BlockStore) -> None:
    """Every block's pages are there, and no others."""
    assert store.disk is not None, "no disk to check"
    metas = store.disk.page_counts(Part.META)
    _require(
        metas.keys() == store.entries.keys(),
        f"disk and index disagree about blocks {sorted(metas.keys() ^ store.entries)}",
    )
    found = {part: store.disk.page_counts(part) for part in (Part.KV, Part.PICTURE)}
    entries = store.entries.items()
    expected = {
        Part.KV: {i: num_pages(store.payload_bytes(entry.meta.form)) for i, entry in entries},
        Part.PICTURE: {i: num_pages(entry.picture_bytes) for i, entry in entries if entry.picture_bytes},
    }
    for part, pages in expected.items():
        wrong = sorted(i for i in pages.keys() | found[part] if pages.get(i) != found[part].get(i))
        _require(not wrong, f"pages of the {part.name.lower()} of blocks {wrong} are missing or orphaned on disk")


def _check_extra(store: BlockStore, stored: StoredBlock) -> None:
    """What today's policy keeps of a block is what the disk has; what another kept is not compared."""
    wanted, found = store.shape.extra, stored.extra
    if store.extras is None or wanted is None or found is None or found.policy != wanted.policy:
        return
    same = tensor_bytes(store.extras.rows([stored.meta.id])[:, :, 0]) == tensor_bytes(found.tensor)
    _require(same, f"what policy {wanted.policy!r} keeps of block {stored.meta.id} is not what is on disk")


def _check_payloads(store: BlockStore) -> None:
    """Every byte matches its checksum, and every cached copy its home."""
    if store.disk:
        store.disk.check_integrity()
        _require(store.disk.state == store.state, "the state on disk is another one")
        for stored in store.disk.blocks():
            row = store.representatives.rows([stored.meta.id])[:, :, 0]
            same = tensor_bytes(row) == tensor_bytes(stored.representative)
            _require(same, f"the representative of block {stored.meta.id} is not the one on disk")
            _check_extra(store, stored)
    for block_id, entry in store.entries.items():
        copies = {tier: slab.payload(block_id) for tier, slab in store.slabs.items() if block_id in slab}
        if store.disk:
            copies[Tier.DISK] = store.disk.read_rows(block_id, store.codecs[entry.meta.codec], entry.meta.num_tokens)
        home = tensor_bytes(copies.pop(store.home))
        for tier, rows in copies.items():
            same = tensor_bytes(rows) == home
            _require(same, f"the {tier.name.lower()} copy of block {block_id} differs from its home")
