"""A commit's choices, compared with a plain pyramid that looks at every block each time; and what a commit costs."""

import math
import statistics
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pyramid import SHAPE, clip_block, clips, everything, make_pyramid, make_sink

from vstream.memory.block import Block
from vstream.memory.neighbours import PAIRS_AT_ONCE, SLACK, Neighbours, similarities
from vstream.memory.pyramid import Pyramid
from vstream.memory.store import BlockStore


def open_store(host_bytes):
    return BlockStore(
        SHAPE,
        device=torch.device("cpu"),
        device_bytes=0,
        host_bytes=host_bytes,
        disk_bytes=0,
        identity={"model": "none"},
        max_block_tokens=24,
        slot_tokens=4,
        max_state_bytes=1024,
    )


def similarity(a, b):
    """Of two representatives [L, K, D]."""
    return similarities(a[:, :, None], b[:, :, None])[0]


class PlainPyramid(Pyramid):
    """The rules in their simplest form: every commit lists, sorts, sums and compares all blocks."""

    def commit(self, block, state, pinned=()):
        old = {meta.id: self.stored(meta) for meta in self.store.metas()}
        blocks = old | {block.meta.id: block}
        while (full := self.overfull_among(blocks)) is not None:
            found = self.on_level(blocks, self.levels[full])
            self.make_room(blocks, [one for one in found if one.meta.id not in pinned], full)
        self.store.commit(
            [found for block_id, found in blocks.items() if block_id not in old], sorted(old.keys() - blocks), state()
        )

    def overfull_among(self, blocks):
        """The last level whose blocks, with those of all after it, take more than their budgets together."""
        for index in reversed(range(len(self.levels))):
            later = self.levels[index:]
            used = sum(self.charge(found) for level in later for found in self.on_level(blocks, level))
            if used > sum(level.budget_bytes for level in later):
                return index
        return None

    def make_room(self, blocks, free, index):
        last = index + 1 == len(self.levels)
        chosen = max(pairwise(free), key=lambda pair: similarity(*(b.representative for b in pair)), default=free)
        if last:
            gone, merged = self.levels[index].squeeze(chosen, self.take_id)
        else:
            gone, merged = [chosen[0]], self.levels[index + 1].take(chosen[0], self.take_id())
        for block in gone:
            del blocks[block.meta.id]
        blocks[merged.meta.id] = merged
        self.counts["merged" if last else "demoted"] += 1

    def on_level(self, blocks, level):
        found = [block for block in blocks.values() if block.meta.level == level.number]
        return sorted(found, key=lambda block: (block.meta.start_seconds, block.meta.id))

    def charge(self, block):
        return self.store.bytes_of(block.meta.num_tokens, len(block.picture))

    def stored(self, meta):
        representative = self.store.representatives.rows([meta.id])[:, :, 0]
        return Block(meta, self.store.gather([meta.id]), representative, self.store.picture(meta.id))


def resumed(pyramid, kind=Pyramid):
    """A pyramid that knows only what the store and the session's state hold."""
    again = make_pyramid(pyramid.store, kind=kind)
    again.next_id, again.counts = pyramid.next_id, pyramid.counts.copy()
    return again


def fail():
    raise OSError("no state")


EVENTS = st.sampled_from(["", "", "", "resume", "refuse"])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    stream=clips(12), events=st.lists(EVENTS, min_size=1, max_size=7), random=st.randoms(), host_kib=st.integers(40, 90)
)
def test_the_choices_are_those_of_a_pyramid_that_looks_at_every_block(stream, events, random, host_kib):
    """Any blocks, budgets and pins, with resumed streams and refused commits in between."""
    with open_store(host_kib << 10) as store, open_store(host_kib << 10) as plain_store:
        pyramid, plain = make_pyramid(store), make_pyramid(plain_store, kind=PlainPyramid)
        for each in (pyramid, plain):
            each.commit(make_sink(each.take_id()), lambda: b"")
        for i in range(45):
            clip, event = stream[i % len(stream)], events[i % len(events)]
            ids = [meta.id for meta in store.metas()]
            pinned = {0, *random.sample(ids, min(len(ids), 3)), *ids[-2:]}
            if event == "resume":
                pyramid = resumed(pyramid)
            if event == "refuse":
                before = everything(pyramid)
                with pytest.raises(OSError, match="no state"):
                    pyramid.commit(clip_block(pyramid.take_id(), 4.0 * i, clip), fail, pinned)
                assert everything(pyramid) == before
                plain.next_id = pyramid.next_id
            for each in (pyramid, plain):
                each.commit(clip_block(each.take_id(), 4.0 * i, clip), lambda: b"", pinned)
            assert everything(pyramid) == everything(plain)
            assert pyramid.next_id == plain.next_id
            store.check_integrity()


def test_the_plain_pyramid_demotes_and_merges():
    """What the test above relies on."""
    with open_store(50 << 10) as store:
        plain = make_pyramid(store, kind=PlainPyramid)
        for i in range(60):
            plain.commit(clip_block(plain.take_id(), 4.0 * i, (2, 3, i // 7 % 4, 0.1, 0)), lambda: b"")
        assert min(plain.counts[name] for name in ("demoted", "merged")) > 5


class Opcodes:
    """While entered, counts the Python instructions run in modules of memory/."""

    def __enter__(self):
        self.count, self._before = 0, sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _trace(self, frame, event, arg):
        if not frame.f_globals.get("__name__", "").startswith(("vstream.memory", __name__)):
            return None
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self._trace


def commit_next(pyramid):
    block_id = pyramid.take_id()
    pyramid.commit(clip_block(block_id, float(block_id), (1, 1, 0, 0.5, 0)), lambda: b"")


def work_per_commit(kind, num_blocks):
    """Instructions of a typical commit that demotes and merges among so many blocks, and how many blocks there were."""
    with open_store(num_blocks * 1800) as store:
        pyramid, counts = make_pyramid(store), []
        while pyramid.counts["merged"] < 20:
            commit_next(pyramid)
        if kind is not Pyramid:
            pyramid = resumed(pyramid, kind)
        merged = pyramid.counts["merged"]
        for _ in range(5):
            with Opcodes() as opcodes:
                commit_next(pyramid)
            counts.append(opcodes.count)
        assert pyramid.counts["merged"] > merged
        return statistics.median(counts), len(store)


@pytest.mark.slow
def test_a_commit_does_not_cost_more_among_more_blocks():
    (few, blocks), (many, more_blocks) = (work_per_commit(Pyramid, count) for count in (200, 2000))
    assert more_blocks > 8 * blocks
    assert few > 500, "the commits were not counted"
    assert many < 1.1 * few


@pytest.mark.slow
def test_the_count_notices_a_walk_over_all_blocks():
    few, many = (work_per_commit(PlainPyramid, count)[0] for count in (30, 120))
    assert many > 2 * few


def rows_of(blocks):
    return lambda ids: torch.stack([blocks[block_id].representative for block_id in ids], dim=2)


def test_equal_pairs_go_in_time_order_and_a_lone_block_alone():
    blocks = {i: clip_block(i, float(start), (1, 1, 0, 0.0, 0)) for i, start in enumerate([7, 3, 3, 9, 1])}
    neighbours, order = Neighbours(), [4, 1, 2, 0, 3]
    neighbours.add([block.meta for block in blocks.values()], rows_of(blocks))
    for place in range(4):
        assert neighbours.ids() == order[place:]
        assert neighbours.most_similar() == order[place : place + 2]
        neighbours.remove(blocks[order[place]].meta, rows_of(blocks))
    assert neighbours.most_similar() == [3]
    neighbours.remove(blocks[3].meta, rows_of(blocks))
    assert neighbours.most_similar() == []
    with pytest.raises(AssertionError, match="not among the neighbours"):
        neighbours.remove(blocks[3].meta, rows_of(blocks))


def test_pairs_that_are_gone_do_not_pile_up():
    blocks = {i: clip_block(i, float(i), (1, 1, i, 0.5, 0)) for i in range(20)}
    neighbours, rows = Neighbours(), rows_of(blocks)
    neighbours.add([block.meta for block in blocks.values()], rows)
    first = neighbours.most_similar()
    for _ in range(100):
        for i in (3, 11):
            neighbours.remove(blocks[i].meta, rows)
            neighbours.add([blocks[i].meta], rows)
        assert len(neighbours._heap) <= 2 * len(neighbours) + SLACK
    assert neighbours.most_similar() == first


@pytest.mark.parametrize("size", [(1, 1, 7), (2, 3, 64), (30, 3, 64), (36, 8, 128)], ids=str)
def test_a_similarity_has_the_same_bits_however_many_are_compared_at_once(size):
    """Else a resumed stream, which compares all at once, could choose otherwise than one that ran on."""
    layers, heads, dim = size
    rows = torch.randn((layers, heads, PAIRS_AT_ONCE // 4, dim), generator=torch.Generator().manual_seed(1)).half()
    firsts, seconds = rows[:, :, :-1], rows[:, :, 1:]
    alone = [similarity(a, b) for a, b in pairwise(rows.unbind(2))]
    assert similarities(firsts, seconds) == alone
    assert similarities(firsts[:, :, 3:10], seconds[:, :, 3:10]) == alone[3:10]
    assert set(similarities(rows, rows)) == {1.0}
    a, b = (part.double().movedim(2, 0).flatten(1) for part in (firsts, seconds))
    assert alone == pytest.approx(torch.cosine_similarity(a, b).tolist(), abs=1e-12)


def test_what_has_no_direction_is_like_nothing_and_infinite_keys_are_compared():
    zero, one, infinite = (torch.full((2, 2, 4), value).half() for value in (0.0, 1.0, math.inf))
    assert [similarity(zero, one), similarity(zero, zero)] == [0.0, 0.0]
    assert similarity(infinite, one) == pytest.approx(1.0)
    assert similarity(infinite, -one) == pytest.approx(-1.0)
