"""The pyramid over a real store: budgets, what is kept of every frame, and what a refused commit leaves behind."""

import errno
import os
from collections import Counter
from copy import copy
from dataclasses import replace
from itertools import cycle, islice, pairwise

import pytest
import torch
from blocks import raw, same_meta
from hypothesis import given, settings
from hypothesis import strategies as st

from vstream.memory import disk as disk_module
from vstream.memory import levels as levels_module
from vstream.memory.block import Block, BlockMeta, BlockShape, Tier, TokenKind, lead_tokens
from vstream.memory.levels import CONSOLIDATIONS, DETAIL, DIGEST, GIST, SINK, Room, make_levels
from vstream.memory.neighbours import SLACK
from vstream.memory.pyramid import Pyramid
from vstream.memory.records import Part, to_pages
from vstream.memory.store import BlockStore

SHAPE = BlockShape(num_layers=2, num_kv_heads=2, head_dim=4, dtype=torch.float32)
MAX_TOKENS = 24
PICTURE_BYTES = 300
HOMES = {
    Tier.HOST: {"host_bytes": 64 << 10, "disk_bytes": 0},
    Tier.DISK: {"host_bytes": 8 << 10, "disk_bytes": 800 << 10},
}
homes = pytest.mark.parametrize("home", HOMES, ids=["host", "disk"])


def open_store(home=Tier.HOST, **budgets):
    store = BlockStore(
        SHAPE,
        device=torch.device("cpu"),
        **{"device_bytes": 0, **HOMES[home], **budgets},
        identity={"model": "none"},
        max_block_tokens=MAX_TOKENS,
        slot_tokens=4,
        max_state_bytes=1024,
    )
    assert store.home is home
    return store


def make_pyramid(store, digest_share=0.2, kind=Pyramid, consolidation="pyramid", codecs=("none",) * 3):
    total = store.capacity_bytes - store.bytes_of(2)
    room = Room(
        total, total // 3, 0, digest_share, gist_share=0.3, gist_vision_tokens=2, fill=store.fill, codecs=codecs
    )
    return kind(store, make_levels(consolidation, room))


def open_pyramid(store, digest_share=0.2, consolidation="pyramid"):
    pyramid = make_pyramid(store, digest_share, consolidation=consolidation)
    pyramid.commit(make_sink(pyramid.take_id()), lambda: b"", pinned=[0])
    return pyramid


def make_sink(block_id):
    return make_block(block_id, kinds=[TokenKind.MARKER] * 2, seconds=[0.0] * 2, weight=0, level=SINK)


def make_block(block_id, *, kinds, seconds, weight, look=0, noise=0.0, picture=b"", level=DETAIL):
    """A block whose representative is one of a few looks, with some noise, and whose tokens are around it."""
    look_of = torch.Generator().manual_seed(1000 + look)
    own = torch.Generator().manual_seed(block_id)
    size = (SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.head_dim)
    key = torch.randn(size, generator=look_of) + noise * torch.randn(size, generator=own)
    count = len(kinds)
    kv = (
        torch.randn((SHAPE.num_layers, 2, SHAPE.num_kv_heads, count, SHAPE.head_dim), generator=own)
        + key[:, None, :, None]
    )
    meta = BlockMeta(
        id=block_id,
        level=level,
        start_seconds=seconds[0],
        end_seconds=seconds[-1],
        epoch_seconds=None,
        weight=float(weight),
        kinds=torch.tensor(kinds, dtype=torch.uint8),
        seconds=torch.tensor(seconds, dtype=torch.float64),
        positions=torch.arange(count)[None],
        advance=torch.tensor([count]),
        start=torch.tensor([0]),
    )
    return Block(meta, kv, key.half(), picture)


def clips(max_size):
    """Clips as plain values: frames, vision tokens a frame, look, noise, picture."""
    clip = st.tuples(
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.1, 2.0]),
        st.sampled_from([0, 0, PICTURE_BYTES]),
    )
    return st.lists(clip, min_size=1, max_size=max_size)


def clip_block(block_id, start_seconds, clip):
    """A detail block of a clip: for each frame a timestamp, its vision tokens, a marker."""
    frames, vision, look, noise, picture_bytes = clip
    frame = [TokenKind.TIMESTAMP, *[TokenKind.VISION] * vision, TokenKind.MARKER]
    return make_block(
        block_id,
        kinds=frame * frames,
        seconds=[start_seconds + i for i in range(frames) for _ in frame],
        weight=frames,
        look=look,
        noise=noise,
        picture=bytes(picture_bytes),
    )


class Watcher:
    """A plain model of the memory: what exists, told of every new clip and checking every change the pyramid makes."""

    def __init__(self, monkeypatch, pyramid):
        self.pyramid = pyramid
        self.live = {0: make_sink(0)}
        self.seen_ids = {0}
        self.pinned = set()
        self.frames = []
        self.commits = 0
        self.counts = Counter(demoted=0, merged=0, dropped=0)
        for name in ("condense", "digest"):
            monkeypatch.setattr(levels_module, name, self._watched(getattr(levels_module, name)))

    def commit(self, clip, window, state=None):
        """Commits a clip, the newest `window` blocks pinned with the sink, and checks all that must hold."""
        start = self.frames[-1] + 1 if self.frames else 0.0
        block = clip_block(self.pyramid.take_id(), start, clip)
        self._enter(block)
        details = [i for i, held in self.live.items() if held.meta.level == DETAIL]
        self.pinned = {0, *(details[-window:] if window else ())}
        before = [self.live[i] for i in self.pinned]
        text = f"state {block.meta.id}".encode()
        self.pyramid.commit(block, state or (lambda: text), pinned=self.pinned)
        self.frames += torch.unique(block.meta.seconds).tolist()
        self.commits += 1
        assert self.pyramid.store.state == text
        for held in before:
            assert_stored(self.pyramid.store, held)
        for level, neighbours in self.pyramid._neighbours.items():
            on_level = [meta.id for meta in sorted_in_time(self.live.values()) if meta.level == level]
            assert neighbours.ids() == [block_id for block_id in on_level if block_id not in self.pinned]
        self.check()

    def copy(self):
        """What the model believes, to be put back."""
        return {name: copy(vars(self)[name]) for name in ("live", "frames", "commits", "counts")}

    def check(self):
        """The store holds what the model holds, within budget, and nothing that was ever watched is lost."""
        store, held = self.pyramid.store, list(self.live.values())
        store.check_integrity()
        assert [meta.id for meta in store.metas()] == [meta.id for meta in sorted_in_time(self.live.values())]
        for block in held:
            assert same_meta(store.meta(block.meta.id), block.meta)
        assert all(room >= 0 for room in self._rooms())
        clips = [block.meta for block in held if block.meta.level != SINK]
        assert sum(meta.weight for meta in clips) == len(self.frames)
        for seconds in self.frames:
            assert any(meta.start_seconds <= seconds <= meta.end_seconds for meta in clips), f"{seconds} s is lost"
        assert self.pyramid.counts == self.counts
        levels = Counter(meta.level for meta in clips)
        assert sum(levels.values()) == self.commits - self.counts["merged"]

    def _enter(self, block):
        assert block.meta.id not in self.seen_ids, f"id {block.meta.id} is used twice"
        self.seen_ids.add(block.meta.id)
        self.live[block.meta.id] = block

    def _watched(self, condense):
        """`condense` or `digest`, with its inputs compared with what may be condensed now."""

        def watched(given, *, block_id, level, **limits):
            blocks = [given] if isinstance(given, Block) else given
            ids, levels = [block.meta.id for block in blocks], [block.meta.level for block in blocks]
            assert self.pinned.isdisjoint(ids), f"pinned blocks {ids} were condensed"
            for block in blocks:
                assert_same(block, self.live[block.meta.id])
            self._check_choice(ids, levels[0])
            numbers = [known.number for known in self.pyramid.levels]
            if level != levels[0]:
                assert len(levels) == 1
                assert numbers.index(level) == numbers.index(levels[0]) + 1, "a level was skipped"
                self.counts["demoted"] += 1
            else:
                assert levels == [GIST, GIST], f"blocks of levels {levels} were merged"
                self.counts["merged"] += 1
            merged = condense(given, block_id=block_id, level=level, **limits)
            for gone in ids:
                del self.live[gone]
            self._enter(merged)
            return merged

        return watched

    def _check_choice(self, ids, level):
        """Only an overflowing level is touched, and then its most similar neighbours in time."""
        on_level = [meta for meta in sorted_in_time(self.live.values()) if meta.level == level]
        rooms = self._rooms()
        place = [known.number for known in self.pyramid.levels].index(level)
        assert rooms[place] < 0, "the level had room left"
        assert all(room >= 0 for room in rooms[place + 1 :]), "a level after it had none"
        free = [meta.id for meta in on_level if meta.id not in self.pinned]
        if len(free) == 1:
            assert ids == free
            return
        pairs = [list(pair) for pair in pairwise(free)]
        chosen = [pair for pair in pairs if (pair == ids if len(ids) == 2 else pair[0] == ids[0])]
        assert len(chosen) == 1, f"{ids} are no neighbours in time among {free}"
        best = max(self._similarity(pair) for pair in pairs)
        assert self._similarity(chosen[0]) == pytest.approx(best, abs=1e-6), f"{ids} are not the most similar"

    def _rooms(self):
        """By level, what it and all after it leave of their budgets together."""
        used = Counter()
        for block in self.live.values():
            used[block.meta.level] += self._charge(block.meta)
        own = [level.budget_bytes - used[level.number] for level in self.pyramid.levels]
        return [sum(own[place:]) for place in range(len(own))]

    def _similarity(self, pair):
        a, b = (self.live[block_id].representative.double().flatten() for block_id in pair)
        return float(a @ b / (a.norm() * b.norm()))

    def _charge(self, meta):
        return self.pyramid.store.bytes_of(meta.num_tokens, len(self.live[meta.id].picture))


def sorted_in_time(blocks):
    return sorted((block.meta for block in blocks), key=lambda meta: (meta.start_seconds, meta.id))


def assert_same(left, right):
    assert same_meta(left.meta, right.meta)
    assert raw(left.kv) == raw(right.kv)
    assert raw(left.representative) == raw(right.representative)
    assert left.picture == right.picture


def assert_stored(store, block):
    """A block lies in the store bit for bit."""
    assert_same(stored(store, block.meta.id), block)


def stored(store, block_id):
    """A block as the store gives it back."""
    representative = store.representatives.rows([block_id])[:, :, 0]
    return Block(store.meta(block_id), store.gather([block_id]), representative, store.picture(block_id))


@homes
@settings(max_examples=15, deadline=None)
@given(stream=clips(20), window=st.integers(0, 3))
@pytest.mark.slow
def test_a_random_stream_stays_whole_and_within_budget(home, stream, window):
    with pytest.MonkeyPatch.context() as patch, open_store(home) as store:
        watcher = Watcher(patch, open_pyramid(store))
        for clip in islice(cycle(stream), 50):
            watcher.commit(clip, window)
        store.check_integrity(deep=True)


@homes
def test_without_a_share_there_is_no_digest(home, monkeypatch):
    with open_store(home) as store:
        watcher = Watcher(monkeypatch, open_pyramid(store, digest_share=0.0))
        for i in range(90):
            watcher.commit((2, 3, i // 7 % 4, 0.1, PICTURE_BYTES), window=2)
        assert {meta.level for meta in store.metas()} == {SINK, DETAIL, GIST}


@pytest.mark.slow
@homes
def test_every_level_has_its_codec(home, monkeypatch):
    """What is condensed is what was stored, and is stored anew by the codec of where it goes."""
    codecs = {SINK: "none", DETAIL: "int8", DIGEST: "int4", GIST: "int8"}
    described, made, given = Pyramid._described, {}, []

    def watched(pyramid, merged, parents):
        given.extend(parents)
        made[merged.meta.id] = described(pyramid, merged, parents)
        return made[merged.meta.id]

    monkeypatch.setattr(Pyramid, "_described", watched)
    with open_store(home) as store:
        pyramid = make_pyramid(store, codecs=("int8", "int4", "int8"))
        pyramid.commit(make_sink(pyramid.take_id()), lambda: b"", pinned=[0])
        entered = {}
        for i in range(120):
            block = clip_block(pyramid.take_id(), 4.0 * i, (4, 3, i // 7 % 4, 0.1, 0))
            block = Block(replace(block.meta, codec="int8"), block.kv, block.representative)
            entered[block.meta.id] = block
            pyramid.commit(block, lambda: b"")
        store.check_integrity(deep=True)
        assert {(meta.level, meta.codec) for meta in store.metas()} == set(codecs.items())
        assert within_budgets(pyramid)
        for block in given:
            if block.meta.id in entered:
                assert raw(block.kv) == raw(read_back(store, entered[block.meta.id]))
        for block_id in made.keys() & store.entries.keys():
            assert raw(store.gather([block_id])) == raw(read_back(store, made[block_id]))
        assert pyramid.counts["merged"] > 5


def read_back(store, block):
    """A block's kv as its codec gives it back."""
    return store.codecs[block.meta.codec].round_trip(block.kv, lead_tokens(block.meta.seconds))


@pytest.mark.slow
@homes
def test_all_levels_overflow(home, monkeypatch):
    """What the test above relies on: its budgets are small enough for demotion and merging to happen."""
    with open_store(home) as store:
        watcher = Watcher(monkeypatch, open_pyramid(store))
        for i in range(120):
            watcher.commit((2, 3, i // 7 % 4, 0.1, PICTURE_BYTES), window=2)
        assert watcher.counts["demoted"] > 50
        assert watcher.counts["merged"] > 20
        levels = Counter(meta.level for meta in store.metas())
        assert min(levels[level] for level in (DETAIL, DIGEST, GIST)) > 3
        for block in watcher.live.values():
            assert_stored(store, block)


def test_one_block_may_push_out_many(monkeypatch):
    """A large clip after many small ones: several demotions and merges in one step."""
    with open_store() as store:
        watcher = Watcher(monkeypatch, open_pyramid(store))
        for i in range(80):
            watcher.commit((1, 1, i % 4, 0.1, 0), window=1)
        before = dict(watcher.counts)
        watcher.commit((4, 4, 0, 0.1, 9000), window=1)
        assert watcher.counts["demoted"] - before["demoted"] > 3
        assert watcher.counts["merged"] - before["merged"] > 3


def test_the_least_informative_block_goes_first():
    """Of a still scene and a changing one, the still one fades."""
    with open_store() as store:
        pyramid = open_pyramid(store)
        still, entered = set(), set()
        for i in range(48):
            look = 50 if i % 8 < 4 else i
            block = clip_block(pyramid.take_id(), 4.0 * i, (4, 3, look, 0.02, 0))
            still |= {block.meta.id} if look == 50 else set()
            entered.add(block.meta.id)
            pyramid.commit(block, lambda: b"")
            faded = {i for i in entered if i not in store}
            if len(faded) >= 6:
                break
        assert len(faded) >= 6
        assert faded <= still, "blocks that differ were demoted before blocks that do not"


def twice(home):
    """Everything a memory holds at the end of one stream, as bytes."""
    with open_store(home) as store:
        pyramid = open_pyramid(store)
        for i in range(90):
            clip = (1 + i % 4, 1 + i % 3, i // 5 % 4, 0.1, PICTURE_BYTES * (i % 2))
            pyramid.commit(clip_block(pyramid.take_id(), 4.0 * i, clip), lambda: b"")
        ids = [meta.id for meta in store.metas()]
        rows = store.representatives.rows(ids)
        metas = [repr(vars(meta)) for meta in store.metas()]
        return ids, metas, raw(store.gather(ids)), raw(rows), [store.picture(i) for i in ids], pyramid.counts


@pytest.mark.slow
@homes
def test_the_same_input_gives_the_same_blocks(home):
    first, second = twice(home), twice(home)
    assert first == second
    assert first[-1]["merged"] > 5


def test_the_home_does_not_matter_for_what_is_merged():
    """Blocks that were read back from disk condense to the same bits as blocks that never left the RAM."""
    held = []
    for home in HOMES:
        with open_store(home) as store:
            pyramid = make_pyramid(store)
            for i in range(3):
                pyramid.commit(clip_block(pyramid.take_id(), 4.0 * i, (2, 2, i, 0.1, 0)), lambda: b"")
            blocks = [stored(store, i) for i in range(3)]
        held.append(levels_module.condense(blocks, block_id=9, level=GIST, max_vision_tokens=2))
    assert_same(*held)


def refuse(patch, store):
    """Lets the store's next commit fail as on a full machine: half-way through the disk's transaction, or for RAM."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pages(part, block_id, body):
        return full() if part is Part.KV else to_pages(part, block_id, body)

    if store.disk:
        patch.setattr(disk_module, "to_pages", pages)
    else:
        patch.setattr(store.representatives, "reserve", full)


def failing_state():
    raise OSError("no state")


@pytest.mark.slow
@homes
@pytest.mark.parametrize("refused", ["store", "state"])
def test_a_refused_commit_changes_nothing(home, refused, monkeypatch):
    """A commit that sets off demotions and merges is refused; all is as before, and the next ones work."""
    with open_store(home) as store:
        watcher = Watcher(monkeypatch, open_pyramid(store))
        pyramid = watcher.pyramid
        for i in range(100):
            watcher.commit((2, 3, i // 7 % 4, 0.1, PICTURE_BYTES), window=2)
        before, model, taken = everything(pyramid), watcher.copy(), pyramid.next_id
        with monkeypatch.context() as failing:
            if refused == "store":
                refuse(failing, store)
            clip = (4, 4, 0, 0.1, PICTURE_BYTES)
            with pytest.raises(OSError, match=r"No space left|no state"):
                watcher.commit(clip, window=2, state=failing_state if refused == "state" else None)
        demoted = model["counts"]["demoted"]
        assert watcher.counts["demoted"] > demoted, "the refused step must have moved something"
        assert everything(pyramid) == before
        store.check_integrity(deep=True)
        assert pyramid.next_id > taken + 1, "ids of the refused step are not given again"
        vars(watcher).update(model)
        watcher.check()
        for i in range(10):
            watcher.commit((2, 3, i % 4, 0.1, 0), window=2)
        assert watcher.counts["demoted"] > demoted


def everything(pyramid):
    """All that a commit may change."""
    store = pyramid.store
    ids = [meta.id for meta in store.metas()]
    pictures = [store.picture(block_id) for block_id in ids]
    payload = raw(store.gather(ids)), raw(store.representatives.rows(ids)), pictures
    return ids, payload, store.state, store.used_bytes, pyramid.counts.copy()


@pytest.mark.slow
def test_no_state_grows_with_the_stream():
    """Over 5,000 commits the memory, and what the pyramid remembers about it, stays as large as it was."""
    with open_store() as store:
        pyramid = open_pyramid(store)
        sizes, most_used = [], 0
        for i in range(5000):
            block = clip_block(pyramid.take_id(), float(i), (1, 1, i // 7 % 4, 0.1, 0))
            pyramid.commit(block, lambda: b"", pinned=[0, block.meta.id])
            pairs = sum(len(neighbours._heap) for neighbours in pyramid._neighbours.values())
            sizes.append((len(store), pairs))
            most_used = max(most_used, store.used_bytes)
        store.check_integrity(deep=True)
        assert most_used <= store.capacity_bytes
        assert sum(meta.weight for meta in store.metas()) == 5000
        assert store.metas()[-1].end_seconds == 4999.0
        early, late = (max(part) for part in (sizes[1000:2000], sizes[4000:]))
        assert late[0] <= early[0] + 2
        assert late[1] <= 2 * late[0] + len(pyramid.levels) * SLACK, "similarities of blocks that are gone pile up"


def test_a_level_that_cannot_hold_its_pinned_blocks_says_so():
    with open_store() as store:
        pyramid, held = open_pyramid(store), [0]
        with pytest.raises(AssertionError, match="hot window and one clip more"):
            fill_pinned(pyramid, held)
        assert [meta.id for meta in store.metas()] == held
        store.check_integrity(deep=True)


def fill_pinned(pyramid, held):
    """Commits blocks that must all stay, noting those that were."""
    for i in range(100):
        block = clip_block(pyramid.take_id(), float(i), (1, 4, 0, 0.1, 0))
        pyramid.commit(block, lambda: b"", pinned=[*held, block.meta.id])
        held.append(block.meta.id)


def within_budgets(pyramid):
    """Whether every level and those after it keep within their budgets together."""
    own = [level.budget_bytes - pyramid.store.level_bytes(level.number) for level in pyramid.levels]
    return all(sum(own[place:]) >= 0 for place in range(len(own)))


def test_a_level_uses_what_later_levels_leave(monkeypatch):
    """Nothing is condensed before memory is full, whatever the shares; when it is, detail gives the room back."""
    with open_store() as store:
        watcher = Watcher(monkeypatch, open_pyramid(store))
        detail = watcher.pyramid.levels[0].budget_bytes
        most = 0
        for i in range(150):
            watcher.commit((2, 3, i // 7 % 4, 0.1, 0), window=2)
            used = store.level_bytes(DETAIL)
            most = max(most, used)
            if not watcher.counts["demoted"]:
                assert store.used_bytes <= store.capacity_bytes
        assert most > 1.5 * detail
        assert store.level_bytes(DETAIL) <= 1.1 * detail


def watched_by(consolidation, store, commits=120, window=2):
    """A pyramid after a stream of clips of two frames with three vision tokens, and all times that were committed."""
    pyramid, newest = open_pyramid(store, consolidation=consolidation), []
    for i in range(commits):
        block = clip_block(pyramid.take_id(), 2.0 * i, (2, 3, i // 7 % 4, 0.1, PICTURE_BYTES))
        newest = [*newest, block.meta.id][-window:]
        pyramid.commit(block, lambda: b"", pinned=[0, *newest])
        assert within_budgets(pyramid)
    store.check_integrity(deep=True)
    return pyramid, [meta for meta in store.metas() if meta.level != SINK]


@pytest.mark.slow
@homes
@pytest.mark.parametrize("consolidation", CONSOLIDATIONS)
def test_every_consolidation_stays_within_budget_and_counts_what_it_drops(home, consolidation):
    with open_store(home) as store:
        pyramid, metas = watched_by(consolidation, store)
        lost = 240 - sum(meta.weight for meta in metas)
        assert lost == 2 * pyramid.counts["dropped"], "frames left that were not counted"
        assert (lost > 0) == (consolidation not in ("pyramid", "star"))
        starts = [meta.start_seconds for meta in metas]
        assert starts == sorted(starts)
        assert metas[-1].end_seconds == 239.0


def test_recent_keeps_the_newest_alone():
    with open_store() as store:
        _, metas = watched_by("recent", store)
        starts = [meta.start_seconds for meta in metas]
        assert starts == [2.0 * i for i in range(120 - len(metas), 120)]
        assert {meta.level for meta in metas} == {DETAIL}


def test_uniform_thins_evenly():
    with open_store() as store:
        _, metas = watched_by("uniform", store)
        gaps = [later.start_seconds - earlier.start_seconds for earlier, later in pairwise(metas)]
        assert metas[0].start_seconds <= 4.0, "the beginning is lost"
        assert max(gaps) <= 2 * sorted(gaps)[len(gaps) // 2]


def test_a_carrier_is_one_token_a_frame():
    with open_store() as store:
        _, metas = watched_by("carrier", store)
        carriers = [meta for meta in metas if meta.level == GIST]
        assert carriers
        assert {int((meta.kinds == TokenKind.VISION).sum()) for meta in carriers} == {2}
        assert all(len(torch.unique(meta.seconds)) == 2 for meta in carriers)


def test_pmb_has_three_tiers():
    with open_store() as store:
        pyramid, metas = watched_by("pmb", store)
        assert {meta.level for meta in metas} == {DETAIL, DIGEST, GIST}
        assert pyramid.counts["demoted"] > pyramid.counts["dropped"] > 0


def test_infinipot_halves_again_before_it_drops():
    with open_store() as store:
        pyramid, metas = watched_by("infinipot", store)
        assert {int((meta.kinds == TokenKind.VISION).sum()) for meta in metas if meta.level == GIST} <= {3, 1}
        assert pyramid.counts["merged"] >= pyramid.counts["dropped"] > 0


def test_an_unknown_consolidation_is_named():
    room = Room(1000, 100, 0, 0.0, gist_share=0.1, gist_vision_tokens=2, fill=lambda form: form.num_tokens)
    with pytest.raises(ValueError, match="unknown consolidation 'melt'; choose one of carrier, infinipot, pmb"):
        make_levels("melt", room)
