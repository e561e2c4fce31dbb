"""Watching and asking in different processes on one memory folder.

A writer commits clip after clip and condenses what overflows; readers see what is committed, whole commits only, and
neither waits for nor disturbs the other. The processes are real (`memory_processes.py`), and some are killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import memory_processes
import pytest
import torch
from memory_processes import CLIP_SECONDS, QUESTIONS, SMALL_BYTES, asked, open_reader, open_writer, watch_until
from processes import forking
from streams import feature_frames, watched

from vstream.memory import disk as disk_module
from vstream.memory.disk import DiskTier
from vstream.memory.reader import BlockGoneError, ReadStore
from vstream.models.random import RandomLlama
from vstream.session import Session

PATIENCE_SECONDS = 30.0


class Peer:
    """Another process, told what to do and heard over a pipe."""

    def __init__(self, context: ForkServerContext, work: Callable[..., None], *arguments: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def tell(self, **what: Any) -> None:
        self.pipe.send_bytes(json.dumps(what).encode())

    def hear(self, timeout_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        assert self.pipe.poll(timeout_seconds), f"nothing was heard from {self.process} for {timeout_seconds} s"
        heard: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        return heard

    def do(self, **what: Any) -> dict[str, Any]:
        self.tell(**what)
        return self.hear()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.join()


Start = Callable[..., Peer]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return forking()


@pytest.fixture
def start(context: ForkServerContext) -> Iterator[Start]:
    """Starts processes, and ends them with the test."""
    peers: list[Peer] = []

    def started(work: Callable[..., None], *arguments: Any) -> Peer:
        peers.append(Peer(context, work, *arguments))
        return peers[-1]

    yield started
    for peer in peers:
        if peer.process.is_alive():
            peer.kill()


def start_writer(start: Start, folder: Path, disk_bytes: int = SMALL_BYTES, until: float = 19.0) -> Peer:
    """A writer that has come so far."""
    writer = start(memory_processes.write, str(folder), disk_bytes)
    writer.hear()
    writer.do(until=until)
    return writer


def start_reader(start: Start, folder: Path) -> Peer:
    reader = start(memory_processes.read, str(folder))
    reader.hear()
    return reader


def expected(seconds: float, question: str, disk_bytes: int = SMALL_BYTES) -> dict[str, Any]:
    """The answer of a session that has itself watched exactly the frames up to a time."""
    frames = feature_frames(int(seconds) + 1)
    session = watched(RandomLlama(), frames, disk_bytes=disk_bytes, host_bytes=0)
    try:
        return asked(session, question)
    finally:
        session.close()


def is_commit(seconds: float) -> bool:
    """Whether a clip ends at this time."""
    return (seconds + 1) % CLIP_SECONDS == 0


# What a reader sees ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_sees_what_is_committed_bit_for_bit_while_it_grows(start: Start, tmp_path: Path) -> None:
    """Evidence has scores: it can only be equal if representatives, keys and queries are, bit for bit."""
    writer = start_writer(start, tmp_path / "memory", until=3)
    reader = start_reader(start, tmp_path / "memory")
    for until in (3, 9, 61, 63, 201):
        assert writer.do(until=until)["last"] == until
        for question in QUESTIONS:
            found = reader.do(ask=question)
            assert found == expected(until, question)
            assert found["snapshot"] == until
    assert found != expected(199, QUESTIONS[1]), "the comparison cannot tell one clip more or less"


@pytest.mark.slow
def test_times_only_grow_and_are_ends_of_clips_while_the_writer_runs(start: Start, tmp_path: Path) -> None:
    writer, reader = start_writer(start, tmp_path / "memory", until=99), start_reader(start, tmp_path / "memory")
    writer.tell(**{"for": 1.5})
    reader.tell(**{"for": 1.2})
    found = list(heard_answers(reader))
    end = writer.hear()
    seen = [one["snapshot"] for one in found]
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert all(map(is_commit, seen))
    assert seen[-1] <= end["last"]
    assert end["moved"]["demoted"] > 0
    for one in (found[1], found[-1]):  # asked in the midst of commits that condense and merge: no mix of two
        assert one == expected(one["snapshot"], QUESTIONS[found.index(one) % 2])


def heard_answers(reader: Peer) -> Iterator[dict[str, Any]]:
    """What a reader that asks again and again says, until it is done."""
    while "asked" not in (heard := reader.hear()):
        yield heard


def test_a_time_in_the_past_and_a_dialogue_of_its_own(tmp_path: Path) -> None:
    with_writer = open_writer(tmp_path / "memory")
    watch_until(with_writer, 21)
    reader = open_reader(tmp_path / "memory")
    assert asked(reader, QUESTIONS[0], at=9.0)["snapshot"] == 9.0
    asked(reader, QUESTIONS[1])
    watch_until(with_writer, 41)
    asked(reader, QUESTIONS[1])
    assert [turn["asked_at_seconds"] for turn in reader.memory.dialogue] == [9.0, 21.0, 41.0]
    assert not with_writer.memory.dialogue
    reader.close()
    with_writer.close()


# Blocks that go while they are asked for ------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Session, Session]]:
    """A writer about to overflow and a reader, in this process, to be stepped by turns."""
    writer = open_writer(tmp_path / "memory")
    watch_until(writer, 149)
    reader = open_reader(tmp_path / "memory")
    yield writer, reader
    reader.close()
    writer.close()


def take_away(writer: Session, ids: set[int]) -> None:
    """Watches until none of some blocks is in the window, and takes away those that have not been condensed yet."""
    store = writer.memory.store
    while ids & {placed.meta.id for placed in writer.memory.cache.window}:
        watch_until(writer, (writer.memory.last_seconds or 0) + CLIP_SECONDS)
    assert store.state is not None
    store.commit([], sorted(ids & store.entries.keys()), store.state)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(1, 6))
def test_an_answer_begins_again_where_blocks_go_between_two_pieces(
    both: tuple[Session, Session], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is to be seen of its having begun: it is the answer of a reader that asks only then."""
    writer, reader = both
    begins: list[float | None] = []
    really = Session._begin_answer

    def begin(self: Session, pending: Any) -> None:
        really(self, pending)
        begins.append(self.memory.last_seconds)

    monkeypatch.setattr(Session, "_begin_answer", begin)
    old = set(reader.memory.store.entries) - {0}
    answer = reader.ask("what? " * 8)
    for _ in range(steps):
        reader.step()
    take_away(writer, old)
    while reader.step():
        pass
    now = writer.memory.last_seconds
    assert reader.failure is None
    assert begins in ([149.0, now], [149.0])
    assert len(begins) == 2 or steps > 2, "blocks are chosen by the third step"
    assert answer.snapshot_seconds == answer.asked_at_seconds == begins[-1]
    evidence = [[one.start_seconds, one.end_seconds, one.score, one.level, one.block_id] for one in answer.evidence]
    begun_again = len(begins) == 2
    found = {"text": answer.text(0), "snapshot": answer.snapshot_seconds, "evidence": evidence}
    assert (found == asked(reader, "what? " * 8)) == begun_again


def test_gone_blocks_are_gone_and_nothing_else(both: tuple[Session, Session]) -> None:
    writer, reader = both
    store = reader.memory.store
    detail = {meta.id for meta in store.metas_on(0)}
    kept = store.gather([max(detail)])
    take_away(writer, {min(detail), max(detail)})
    with pytest.raises(BlockGoneError, match=rf"blocks \[{min(detail)}\] are gone"):
        store.gather([min(detail)])
    reader.memory.refresh()
    with pytest.raises(BlockGoneError, match="are gone"):
        store.gather([max(detail)])
    with pytest.raises(BlockGoneError, match="are gone"):
        store.picture(max(detail))
    store.check_integrity(deep=True)
    assert store.entries.keys() == writer.memory.store.entries.keys()
    newest = max(store.entries)
    assert torch.equal(store.gather([newest]), writer.memory.store.gather([newest]))
    assert not torch.equal(kept, store.gather([newest]))


@pytest.mark.parametrize("at", [None, 131.0])
def test_window_and_past_are_taken_anew_where_their_blocks_have_gone(
    both: tuple[Session, Session], at: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer comes in between the metadata and the keys of a refresh, once, and takes the whole window away."""
    writer, reader = both
    watch_until(writer, 151)
    really, waits = ReadStore.fetch, [True]

    def fetch(self: ReadStore, ids: list[int], *rest: Any) -> Any:
        if waits.pop() if waits and len(ids) > 1 else False:
            take_away(writer, set(ids) - {0})
        return really(self, ids, *rest)

    monkeypatch.setattr(ReadStore, "fetch", fetch)
    answer = reader.ask(QUESTIONS[0], at=at)
    while reader.step():
        pass
    assert not waits
    assert reader.failure is None
    if at is None:
        assert answer.snapshot_seconds == writer.memory.last_seconds
    else:
        assert answer.error is not None or answer.snapshot_seconds is not None
    assert asked(reader, QUESTIONS[0])["snapshot"] == writer.memory.last_seconds


def test_a_reader_never_sees_half_a_commit(both: tuple[Session, Session]) -> None:
    """In a snapshot all reads are of one commit, whatever is committed meanwhile; outside they are not."""
    writer, reader = both
    disk = reader.memory.store.disk
    assert disk is not None
    before, state = disk.block_ids(), disk.state
    with disk.snapshot():
        watch_until(writer, 161)
        assert (disk.block_ids(), disk.state) == (before, state)
        assert [disk.block(block_id).meta.id for block_id in before] == before
    assert disk.block_ids() != before
    assert disk.state != state


# Processes that end, stop, and come back ------------------------------------------------------------------------------


@pytest.mark.slow
def test_readers_go_on_when_the_writer_is_killed_and_follow_the_next(start: Start, tmp_path: Path) -> None:
    """The next one may also have a larger disk budget: the file outgrows the map that readers have of it."""
    folder = tmp_path / "memory"
    writer = start_writer(start, folder, until=99)
    reader = start_reader(start, folder)
    writer.tell(**{"for": 60})
    while reader.do(ask=QUESTIONS[0])["snapshot"] == 99:
        pass
    writer.kill()
    kept = reader.do(ask=QUESTIONS[0])
    assert kept["snapshot"] > 99
    assert reader.do(ask=QUESTIONS[0]) == kept == expected(kept["snapshot"], QUESTIONS[0])
    again = start(memory_processes.write, str(folder), 32 << 20)
    assert again.hear()["last"] == kept["snapshot"]
    grown = again.do(until=kept["snapshot"] + 900)
    assert grown["file_bytes"] > 10 << 20, "the map that LMDB gives readers of a smaller file"
    assert reader.do(ask=QUESTIONS[0])["snapshot"] == grown["last"]
    blocks = reader.do(ask=QUESTIONS[1])
    with_own = open_reader(folder)
    assert asked(with_own, QUESTIONS[1]) == blocks
    assert len(with_own.memory.store) > 300
    with_own.close()


@pytest.mark.slow
def test_a_reader_stopped_between_snapshots_holds_nothing_up(start: Start, tmp_path: Path) -> None:
    writer = start_writer(start, tmp_path / "memory", until=149)
    reader = start_reader(start, tmp_path / "memory")
    reader.do(ask=QUESTIONS[0])
    reader.send(signal.SIGSTOP)
    assert writer.do(until=749)["file_bytes"] <= SMALL_BYTES
    reader.send(signal.SIGCONT)
    assert reader.do(ask=QUESTIONS[0])["snapshot"] == 749


@pytest.mark.slow
def test_a_write_waits_for_a_reader_that_is_stopped_in_a_snapshot(start: Start, tmp_path: Path) -> None:
    """Its pages must stay as they are: the writer goes on when it does, or when it is killed, and loses nothing."""
    folder = tmp_path / "memory"
    writer = start_writer(start, folder, until=149)
    for end in (549, 949):
        reader = start_reader(start, folder)
        reader.do(hold=True)
        reader.send(signal.SIGSTOP)
        writer.tell(until=end)
        assert not writer.pipe.poll(2.0), "the writer cannot have had room for all that"
        reader.kill()
        assert writer.hear()["file_bytes"] <= SMALL_BYTES
    with_own = open_reader(folder)
    assert asked(with_own, QUESTIONS[0])["snapshot"] == 949
    with_own.close()


@pytest.mark.slow
def test_a_write_that_waits_in_vain_names_the_reader(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "PATIENCE_SECONDS", 0.2)
    session = open_writer(tmp_path / "memory")
    watch_until(session, 149)
    reader = start_reader(start, tmp_path / "memory")
    reader.do(hold=True)
    with pytest.raises(
        RuntimeError, match=rf"process {reader.process.pid} has been reading .* let it go on, or end it"
    ):
        watch_until(session, 549)
    kept = session.memory.last_seconds
    reader.kill()
    session.memory.store.check_integrity(deep=True)
    session.close()
    with_own = open_reader(tmp_path / "memory")
    assert asked(with_own, QUESTIONS[0]) == expected(kept or 0, QUESTIONS[0])
    with_own.close()


@pytest.mark.slow
def test_more_readers_are_killed_than_there_are_places_for(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    start_writer(start, folder).kill()
    for _ in range(130):
        reader = start(memory_processes.read_in_vain, str(folder))
        reader.hear()
        reader.kill()
    reader = open_reader(folder)
    assert asked(reader, QUESTIONS[0]) == expected(19.0, QUESTIONS[0])
    reader.close()


@pytest.mark.slow
def test_three_readers_some_killed_and_a_writer_for_ten_seconds(start: Start, tmp_path: Path) -> None:
    folder, rng = tmp_path / "memory", random.Random(7)
    writer = start_writer(start, folder, until=149)
    writer.tell(**{"for": 10})
    deadline = time.monotonic() + 9
    readers = [start_reader(start, folder) for _ in range(3)]
    for reader in readers:
        reader.tell(**{"for": 60})
    newest, num_answers, num_killed = 149.0, 0, 0
    while time.monotonic() < deadline:
        for index, reader in enumerate(readers):
            found = reader.hear()
            assert is_commit(found["snapshot"])
            num_answers += 1
            newest = max(newest, found["snapshot"])
            if rng.random() < 0.05:
                reader.kill()
                held = start_reader(start, folder)
                held.do(hold=True)
                held.kill()
                readers[index] = start_reader(start, folder)
                readers[index].tell(**{"for": 60})
                num_killed += 2
        assert not writer.pipe.poll(), "the writer has ended"
    end = writer.hear()
    assert end["file_bytes"] <= SMALL_BYTES
    assert end["moved"]["merged"] > 20
    assert num_killed >= 4
    assert num_answers > 30
    assert newest > 249
    for reader in readers:
        reader.kill()
    with DiskTier.open_readonly(folder) as tier:
        tier.check_integrity()


# One process, several sessions; what is refused -----------------------------------------------------------------------


def test_a_reader_writes_nothing_and_a_second_writer_is_refused(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    writer = start_writer(start, folder)
    before = file_facts(folder)
    reader = start_reader(start, folder)
    for question in QUESTIONS:
        reader.do(ask=question)
    assert file_facts(folder) == before
    with pytest.raises(OSError, match=f"another process is writing to the memory folder {folder}$"):
        open_writer(folder)
    writer.do(until=25)
    assert file_facts(folder) != before
    assert reader.do(ask=QUESTIONS[0])["snapshot"] == 25


def file_facts(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What nobody may change but the writer; LMDB's lock file holds the readers' places."""
    names = sorted(set(os.listdir(folder)) - {"lock.mdb"})
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in names}


def test_one_process_may_write_and_read_with_many_sessions(tmp_path: Path) -> None:
    """In any order: LMDB's one environment a process is shared."""
    folder = tmp_path / "memory"
    writer = open_writer(folder)
    watch_until(writer, 19)
    first, second = open_reader(folder), open_reader(folder)
    assert asked(first, QUESTIONS[0]) == asked(second, QUESTIONS[0]) == expected(19.0, QUESTIONS[0])
    with pytest.raises(OSError, match="another process is writing"):
        open_writer(folder)
    first.close()
    writer.close()
    assert asked(second, QUESTIONS[1]) == expected(19.0, QUESTIONS[1])
    writer = open_writer(folder, 24 << 20)
    watch_until(writer, 199)
    assert asked(second, QUESTIONS[1])["snapshot"] == 199
    second.close()
    watch_until(writer, 201)
    writer.close()
    last = open_reader(folder)
    assert asked(last, QUESTIONS[1])["snapshot"] == 201
    last.close()


def test_a_folder_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    writer = open_writer(folder)
    watch_until(writer, 19)
    writer.close()
    reader = open_reader(folder)
    folder.rename(tmp_path / "old")
    with pytest.raises(RuntimeError, match="was removed or replaced while it was open; open it again"):
        reader.memory.refresh()
    writer = open_writer(folder)
    with pytest.raises(RuntimeError, match="was removed or replaced"):
        reader.memory.refresh()
    reader.close()
    writer.close()
