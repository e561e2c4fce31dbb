"""The block store against a plain dictionary, in every arrangement of tiers; its audit after every operation."""

import random
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from blocks import MAX_TOKENS, SHAPE, as_stored, make_block, raw, same_meta

from vstream.memory.block import Block, BlockShape, Form, Tier
from vstream.memory.codec import CODECS
from vstream.memory.records import Part, page_key
from vstream.memory.representatives import RepresentativeTable
from vstream.memory.store import BlockStore

KIB = 1024
BUDGETS = {
    "device": (160 * KIB, 0, 0),
    "device+host": (64 * KIB, 160 * KIB, 0),
    "host": (0, 160 * KIB, 0),
    "disk": (0, 0, 800 * KIB),
    "device+host+disk": (96 * KIB, 128 * KIB, 800 * KIB),
    "persistent": (96 * KIB, 64 * KIB, 800 * KIB),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: a thread pool would only wait for other processes' threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_store(device_bytes=0, host_bytes=0, disk_bytes=0, *, shape=SHAPE, folder=None, **changes):
    options = {"identity": {"model": "test"}, "max_block_tokens": MAX_TOKENS, "max_state_bytes": 5000} | changes
    return BlockStore(
        shape,
        device=torch.device("cpu"),
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
        folder=folder,
        **options,
    )


def arranged(name, tmp_path, **changes):
    return open_store(*BUDGETS[name], folder=tmp_path / "memory" if name == "persistent" else None, **changes)


def charge_of(store, block):
    return store.bytes_of(block.meta.num_tokens, len(block.picture), block.meta.codec)


class Walk:
    """A store beside a dictionary of what it must hold; each step does one random thing to both."""

    def __init__(self, open_again, seed, codecs=("none",)):
        self.codecs = codecs
        self.open_again = open_again
        self.store = open_again()
        self.random = random.Random(seed)
        self.model = {}
        self.state = None
        self.pins = ExitStack()
        self.pinned = set()
        self.next_id = 1000 * seed

    def step(self):
        moves = [self.commit] * 4 + [self.gather] * 4 + [self.gather_layer, self.pin, self.unpin]
        if self.store.durable and not self.pinned:
            moves.append(self.reopen)
        self.random.choice(moves)()

    def sample(self, most):
        return self.random.sample(sorted(self.model), min(len(self.model), self.random.randint(0, most)))

    def commit(self):
        count = self.random.randint(0, 2)
        add = [self.new_block(self.next_id + i, 2 * i) for i in range(count)]
        self.next_id += count
        free = [block_id for block_id in self.model if block_id not in self.pinned]
        self.random.shuffle(free)
        remove = free[: self.random.randint(0, 1)]
        while not self.store.fits(sum(charge_of(self.store, block) for block in add), remove):
            if len(remove) == len(free):
                return
            remove = free[: len(remove) + 1]
        state = self.random.randbytes(self.random.randint(0, 5000))
        self.store.commit(add, remove, state)
        self.model = {i: block for i, block in self.model.items() if i not in remove}
        self.model |= {block.meta.id: replace(block, kv=as_stored(block)) for block in add}
        self.state = state

    def new_block(self, block_id, level):
        return make_block(block_id, shape=self.store.shape, level=level, codec=self.random.choice(self.codecs))

    def gather(self):
        ids = self.sample(30)
        lengths = [self.random.randint(1, self.model[i].meta.num_tokens) for i in ids]
        lengths = self.random.choice([None, lengths])
        cuts = [None] * len(ids) if lengths is None else lengths
        wanted = [self.model[i].kv[:, :, :, :n] for i, n in zip(ids, cuts, strict=True)]
        assert raw(self.store.gather(ids, lengths)) == (raw(torch.cat(wanted, 3)) if ids else b"")

    def gather_layer(self):
        ids, layer = self.sample(30), self.random.randrange(self.store.shape.num_layers)
        found = self.store.gather_layer(layer, ids)
        assert raw(found) == (raw(torch.cat([self.model[i].kv[layer] for i in ids], 2)) if ids else b"")

    def pin(self):
        ids = [i for i in self.sample(2) if i not in self.pinned]
        self.pins.enter_context(self.store.pinned(ids))
        self.pinned.update(ids)

    def unpin(self):
        self.pins.close()
        self.pinned.clear()

    def reopen(self):
        self.store.close()
        self.store = self.open_again()

    def compare(self):
        store, model = self.store, self.model
        in_order = sorted(model.values(), key=lambda block: (block.meta.start_seconds, block.meta.id))
        assert [meta.id for meta in store.metas()] == [block.meta.id for block in in_order]
        assert all(same_meta(store.meta(i), block.meta) for i, block in model.items())
        assert {i: store.picture(i) for i in model} == {i: block.picture for i, block in model.items()}
        assert store.used_bytes == sum(charge_of(store, block) for block in model.values()) <= store.capacity_bytes
        assert store.state == self.state
        for level in (0, 2):
            on_level = [block for block in in_order if block.meta.level == level]
            assert [meta.id for meta in store.metas_on(level)] == [block.meta.id for block in on_level]
            assert store.num_blocks(level) == len(on_level)
            assert store.level_bytes(level) == sum(charge_of(store, block) for block in on_level)
        rows = store.representatives.rows([block.meta.id for block in in_order])
        assert rows.shape[2] == len(store) == len(model)
        if in_order:
            assert raw(rows) == raw(torch.stack([block.representative for block in in_order], 2))


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "codecs"), [(1, ["none"]), (2, [*CODECS]), (3, ["int4"])])
@pytest.mark.parametrize("name", BUDGETS)
def test_random_walk_agrees_with_a_dictionary(name, seed, codecs, tmp_path):
    """Blocks of one codec or of several, read in one call."""
    walk = Walk(lambda: arranged(name, tmp_path), seed, codecs)
    for step in range(120):
        walk.step()
        walk.store.check_integrity(deep=step % 10 == 0)
        walk.compare()
    assert len(walk.model) > 3, "the walk hardly stored anything"
    walk.unpin()
    peaks, budgets = walk.store.peaks, walk.store.budgets
    assert all(peaks[tier] <= budgets[tier] for tier in Tier if budgets[tier])
    walk.store.close()
    walk.store.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["device", "persistent"])
def test_every_dtype_comes_back_bit_for_bit(name, dtype, tmp_path):
    shape = BlockShape(num_layers=3, num_kv_heads=1, head_dim=8, dtype=dtype)
    blocks = [make_block(i, shape=shape, tokens=9 + i, axes=3) for i in range(4)]
    with arranged(name, tmp_path, shape=shape) as store:
        store.commit(blocks, [], b"state")
        assert raw(store.gather([2, 0])) == raw(torch.cat([blocks[2].kv, blocks[0].kv], 3))
        store.check_integrity(deep=True)
        assert store.gather([]).shape == (3, 2, 1, 0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["device", "device+host+disk", "persistent"])
def test_every_codec_comes_back_in_one_call(name, dtype, tmp_path):
    """In the order asked for, cut or not, a layer or all, and after opening again."""
    shape = BlockShape(num_layers=2, num_kv_heads=1, head_dim=32, dtype=dtype)
    blocks = [make_block(i, shape=shape, tokens=5 + i, codec=(*CODECS,)[i % 3]) for i in range(7)]
    order, cuts = [4, 0, 5, 2, 6, 1, 3], [9, 1, 4, 7, 2, 3, 8]
    wanted = torch.cat([as_stored(blocks[i], shape)[:, :, :, :n] for i, n in zip(order, cuts, strict=True)], 3)
    with arranged(name, tmp_path, shape=shape) as store:
        store.commit(blocks, [], b"state")
        assert raw(store.gather(order, cuts)) == raw(wanted)
        assert raw(store.gather_layer(1, order, cuts)) == raw(wanted[1])
        assert store.gather(order).dtype == dtype
        store.check_integrity(deep=True)
    if name == "persistent":
        with arranged(name, tmp_path, shape=shape) as store:
            assert [store.meta(i).codec for i in range(7)] == [block.meta.codec for block in blocks]
            assert raw(store.gather(order, cuts)) == raw(wanted)
            store.check_integrity(deep=True)


@pytest.mark.parametrize("name", ["host", "disk"])
def test_fewer_bits_leave_room_for_more_blocks(name):
    """What a block is charged is what it takes: as many more fit."""
    held, shape = {}, BlockShape(num_layers=4, num_kv_heads=2, head_dim=64, dtype=torch.float32)
    for codec in CODECS:
        with open_store(shape=shape, **{f"{name}_bytes": 3000 * KIB}) as store:
            charge = store.bytes_of(MAX_TOKENS, 0, codec)
            while store.fits(charge):
                i = len(store)
                store.commit([make_block(i, shape=shape, tokens=MAX_TOKENS, picture_bytes=0, codec=codec)], [], b"")
            store.check_integrity(deep=True)
            assert store.used_bytes == charge * len(store)
            held[codec] = len(store)
    assert held["int8"] > 2.5 * held["none"]
    assert held["int4"] > 1.4 * held["int8"]


def test_a_memory_says_how_much_its_own_codecs_need(tmp_path):
    """A folder of small blocks opens with less than they would need uncompressed, and not with too little."""
    shape = BlockShape(num_layers=4, num_kv_heads=2, head_dim=64, dtype=torch.float32)
    used = {}
    for codec in ("none", "int4"):
        with open_store(0, 0, 8000 * KIB, shape=shape, folder=tmp_path / codec) as store:
            store.commit([make_block(i, shape=shape, tokens=MAX_TOKENS, codec=codec) for i in range(9)], [], b"")
            used[codec] = store.used_bytes
    assert used["int4"] < used["none"] / 3
    with open_store(0, 0, 1700 * KIB, shape=shape, folder=tmp_path / "int4") as store:
        assert len(store) == 9
    with pytest.raises(ValueError, match=r"disk_bytes=\d+ is less than the memory in .* uses; give at least"):
        open_store(0, 0, 1700 * KIB, shape=shape, folder=tmp_path / "none")


def test_a_block_that_is_a_view_of_a_larger_tensor_is_stored_whole_and_alone():
    large = make_block(1, tokens=40)
    meta = replace(large.meta, **{name: getattr(large.meta, name)[3:12] for name in ("kinds", "seconds")})
    meta = replace(meta, positions=large.meta.positions[:, 3:12])
    with open_store(160 * KIB) as store:
        store.commit([Block(meta, large.kv[:, :, :, 3:12], large.representative)], [], b"")
        assert raw(store.gather([1])) == raw(large.kv[:, :, :, 3:12])
        assert store.meta(1).positions.untyped_storage().nbytes() == 9 * 8


def test_it_does_not_matter_whether_a_call_runs_in_inference_mode():
    with torch.inference_mode():
        store = open_store(64 * KIB, 0, 4000 * KIB)
        store.commit([make_block(i, tokens=3) for i in range(70)], [], b"")
    store.commit([make_block(i, tokens=3) for i in range(70, 75)], [0], b"")
    with torch.inference_mode():
        found = store.gather([3, 72])
    assert raw(found) == raw(torch.cat([make_block(i, tokens=3).kv for i in (3, 72)], 3))
    store.check_integrity(deep=True)
    store.close()


def test_caches_forget_the_least_recently_used_and_keep_the_pinned():
    blocks = [make_block(i, tokens=8, picture_bytes=0) for i in range(30)]
    with open_store(64 * KIB, 0, 800 * KIB, max_block_tokens=8, slot_tokens=8) as store:
        slab = store.slabs[Tier.DEVICE]
        room = slab.num_slots
        assert 4 < room < 20
        store.commit(blocks[:room], [], b"")
        store.gather([0])
        with store.pinned([1]), store.pinned([1]):
            store.commit(blocks[room : room + 2], [], b"")
            assert [store.tier_of(i) for i in (0, 1, 2, 3)] == [Tier.DEVICE, Tier.DEVICE, Tier.DISK, Tier.DISK]
            store.commit(blocks[room + 2 :], [], b"")
            store.gather(range(2, 30))
            assert store.tier_of(1) is Tier.DEVICE
            store.check_integrity(deep=True)
            with pytest.raises(AssertionError, match="pinned"):
                store.commit([], [1], b"")
        store.commit([], [1], b"")
        assert 1 not in store


def test_a_set_larger_than_the_cache_does_not_push_itself_out():
    blocks = [make_block(i, tokens=8, picture_bytes=0) for i in range(30)]
    with open_store(48 * KIB, 0, 800 * KIB, max_block_tokens=8, slot_tokens=8) as store:
        for block in blocks:
            store.commit([block], [], b"")
        order = list(range(30))[::-1]
        for _ in range(2):
            assert raw(store.gather(order)) == raw(torch.cat([blocks[i].kv for i in order], 3))
            cached = {i for i in order if store.tier_of(i) is Tier.DEVICE}
            assert len(cached) == store.slabs[Tier.DEVICE].num_slots
        store.check_integrity(deep=True)


def test_the_host_cache_makes_way_for_the_growing_index():
    shape = BlockShape(num_layers=1, num_kv_heads=1, head_dim=2, dtype=torch.float16)
    with open_store(0, 20 * KIB, 2000 * KIB, shape=shape, max_block_tokens=16) as store:
        for i in range(15):
            store.commit([make_block(i, shape=shape, tokens=16, picture_bytes=0)], [], b"")
            store.check_integrity(deep=True)
            assert store.tier_bytes()[Tier.HOST] <= max(store.index_bytes, 20 * KIB)
        assert store.slabs[Tier.HOST].used_slots == 0, "the index alone is above 20 KiB by now"


def test_many_blocks_on_disk_never_need_more_representatives_than_the_device_may_hold():
    budget = 16 * KIB
    with open_store(budget, 0, 4000 * KIB, max_block_tokens=1) as store:
        i = 0
        while store.fits(store.bytes_of(1)):
            store.commit([make_block(i, tokens=1, picture_bytes=0)], [], b"")
            i += 1
        assert i > 20
        assert store.tier_bytes()[Tier.DEVICE] <= budget
        store.check_integrity()


def test_capacity_is_the_callers_to_keep():
    with open_store(64 * KIB) as store:
        blocks = [make_block(i, tokens=40) for i in range(9)]
        assert not store.fits(sum(charge_of(store, block) for block in blocks))
        with pytest.raises(AssertionError, match="do not fit"):
            store.commit(blocks, [], b"")
        for wrong, complaint in [([blocks[0]] * 2, "twice"), ([make_block(1, tokens=41)], "too large")]:
            with pytest.raises(AssertionError, match=complaint):
                store.commit(wrong, [], b"")
        with pytest.raises(AssertionError, match="state of 5001 bytes"):
            store.commit([], [], bytes(5001))
        assert len(store) == 0
        assert store.state is None
        with pytest.raises(AssertionError, match="no block 7"):
            store.gather([7])


@pytest.mark.parametrize(
    ("budgets", "complaint"),
    [
        ((1000, 0, 0), r"device_bytes=1000 cannot hold one block of 40 tokens; give at least (\d+)"),
        ((0, 1000, 0), r"host_bytes=1000 cannot hold one block of 40 tokens; give at least (\d+)"),
        ((0, 0, 1000), r"disk_bytes=1000 cannot hold one block of 40 tokens; give at least (\d+)"),
        ((10, 0, 900 * KIB), r"device_bytes=10 cannot hold one block's representative; give at least (\d+)"),
        ((0, 0, 0), "all 0"),
        ((-1, 0, 9), "device_bytes must be >= 0, got -1"),
    ],
)
def test_budgets_that_hold_nothing_are_refused(budgets, complaint):
    with pytest.raises(ValueError, match=complaint) as refused:
        open_store(*budgets)
    words = str(refused.value).split("give at least ")
    if len(words) == 2:
        enough = [int(words[1]) if given in (1000, 10) else given for given in budgets]
        with open_store(*enough) as store:
            store.commit([make_block(1, tokens=40 if 10 not in budgets else 1, picture_bytes=0)], [], b"")
            store.check_integrity(deep=True)
        enough[budgets.index(1000 if 1000 in budgets else 10)] -= 1
        with pytest.raises(ValueError, match="give at least"):
            open_store(*enough)


def test_a_folder_without_a_disk_budget_is_refused(tmp_path):
    with pytest.raises(ValueError, match="disk_bytes is 0"):
        open_store(64 * KIB, folder=tmp_path)


def test_a_temporary_disk_leaves_nothing_behind():
    with open_store(0, 0, 800 * KIB) as store:
        folder = store.disk.folder
        assert folder.is_dir()
        assert not store.durable
    assert not folder.exists()


def corrupt_cached_copy(store):
    slab = store.slabs[Tier.DEVICE]
    slab.data.view(torch.uint8)[0, slab._slots[slab.ids[0]][0], 0] ^= 1


def share_slot(store):
    first, second = store.slabs[Tier.DEVICE].ids[:2]
    store.slabs[Tier.DEVICE]._slots[second][0] = store.slabs[Tier.DEVICE]._slots[first][0]


def lose_slot(store):
    store.slabs[Tier.DEVICE]._free.pop()


def keep_stray(store):
    block = make_block(99, tokens=1)
    store.slabs[Tier.DEVICE].write(99, block.meta.form, store.codecs["none"].encode(block.kv, 1))


def drop_entry(store):
    del store.entries[min(store.entries)]


def miscount(store):
    store.index.used_bytes += 1


def miscount_level(store):
    store.index._level_bytes[store.meta(1).level] += 1


def lose_pin(store):
    store.pins[77] += 1


def lose_row(store):
    store.representatives.remove(min(store.entries))


def alter_row(store):
    store.representatives.table[:, :, store.representatives._row_of[min(store.entries)]] += 1


def edit_disk(store, change):
    with store.disk._env.begin(write=True) as txn:
        change(txn)


def lose_page(store):
    edit_disk(store, lambda txn: txn.delete(page_key(Part.KV, 1, 0)))


def orphan_page(store):
    edit_disk(store, lambda txn: txn.put(page_key(Part.KV, 77, 0), b"12345678rest"))


def lose_picture(store):
    edit_disk(store, lambda txn: txn.delete(page_key(Part.PICTURE, 1, 0)))


def lose_record(store):
    edit_disk(store, lambda txn: txn.delete(page_key(Part.META, 1, 0)))


def swap_pages(store):
    def swap(txn):
        a, b = page_key(Part.KV, 1, 0), page_key(Part.KV, 2, 0)
        first, second = txn.get(a), txn.get(b)
        txn.put(a, second)
        txn.put(b, first)

    edit_disk(store, swap)


def alter_state(store):
    edit_disk(store, lambda txn: txn.put(page_key(Part.STATE, 0, 0), b"12345678" * 4))


DAMAGES = {
    corrupt_cached_copy: ("differs from its home", True),
    share_slot: ("slot is used twice", False),
    lose_slot: ("neither free nor used", False),
    keep_stray: (r"holds blocks \[99\]", False),
    drop_entry: (r"disagree about blocks \[1\]", False),
    miscount: ("are counted as used", False),
    miscount_level: ("level 0 is counted as", False),
    lose_pin: ("pinned that does not exist", False),
    lose_row: (r"representatives and index disagree about blocks \[1\]", False),
    alter_row: ("not the one on disk", True),
    lose_page: ("kv of blocks .1. are missing or orphaned", False),
    orphan_page: ("kv of blocks .77. are missing or orphaned", False),
    lose_picture: ("picture of blocks .1. are missing or orphaned", False),
    lose_record: (r"disagree about blocks \[1\]", False),
    swap_pages: ("page 0 of the kv of block 1 does not match its checksum", True),
    alter_state: ("page 0 of the state of block 0 does not match", True),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_audit_notices(damage):
    complaint, deep = DAMAGES[damage]
    with open_store(64 * KIB, 64 * KIB, 800 * KIB) as store:
        store.commit([make_block(i, tokens=12, picture_bytes=3000) for i in (1, 2)], [], b"state")
        store.check_integrity(deep=True)
        damage(store)
        with pytest.raises(RuntimeError, match=complaint):
            store.check_integrity(deep)


def test_a_flipped_byte_on_disk_is_noticed_by_reads_and_by_the_audit(tmp_path):
    blocks = [make_block(i, tokens=12, picture_bytes=3000) for i in (1, 2)]
    with open_store(0, 0, 800 * KIB, folder=tmp_path / "memory") as store:
        store.commit(blocks, [], b"state")
        path = tmp_path / "memory" / "data.mdb"
        place = path.read_bytes().index(raw(blocks[0].kv)[64:128])
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([raw(blocks[0].kv)[64] ^ 1]))
        with pytest.raises(RuntimeError, match=r"memory in .*memory is damaged: page 0 of the kv of block 1"):
            store.gather([2, 1])
        with pytest.raises(RuntimeError, match="kv of block 1 does not match its checksum"):
            store.check_integrity(deep=True)
        assert raw(store.gather([2])) == raw(blocks[1].kv)
        assert store.picture(1) == blocks[0].picture


def test_representative_rows_are_used_again_and_growth_keeps_them():
    table = RepresentativeTable(SHAPE.representative_size, device=torch.device("cpu"), max_rows=150)
    alive = {}
    for i in range(400):
        alive[i] = make_block(i, tokens=1, picture_bytes=0).representative
        table.add(i, alive[i])
        if len(alive) > 140:
            gone = min(alive)
            table.remove(gone)
            del alive[gone]
        table.check_integrity(set(alive))
    assert table.table.shape[2] == 150
    assert table.nbytes == 150 * SHAPE.representative_bytes
    ids = list(alive)[::-3]
    assert raw(table.rows(ids)) == raw(torch.stack([alive[i] for i in ids], 2))
    with pytest.raises(AssertionError, match="at most 150"):
        table.reserve(11)


@pytest.mark.parametrize("home", ["host", "disk"])
def test_filling_takes_no_more_room(home):
    budgets = (0, 64 * KIB, 0) if home == "host" else (0, 0, 800 * KIB)
    with open_store(*budgets, max_block_tokens=8, slot_tokens=4) as store:
        for codec in store.codecs:
            for tokens in range(1, 12):
                full = store.fill(Form(tokens, codec))
                assert full >= tokens
                taken = [store._budgets._payload_units(Form(count, codec)) for count in (tokens, full, full + 1)]
                assert taken[0] == taken[1] < taken[2]
