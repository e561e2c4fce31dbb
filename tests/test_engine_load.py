"""The engine under load: any order of calls, many threads, and the real model on real-time streams."""

from __future__ import annotations

import faulthandler
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from streams import MIB, ListSource, feature_frames, small_config
from videos import write_video

from vstream.answer import Answer
from vstream.config import Config, DecodeOptions
from vstream.engine import Engine
from vstream.memory.block import Tier
from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.sources import PushSource, Source, open_source
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
QUESTION = "what happened?"


def no_threads_left(before: set[threading.Thread]) -> bool:
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


# Any order of calls -------------------------------------------------------------------------------------------------

FRAMES = feature_frames(400)
MANY_ROUNDS = 2000
NUM_EXAMPLES = 15  # 400 take four minutes


class Open:
    """A session as the machine knows it."""

    def __init__(self, session: Session, source: Source | None, folder: Path | None) -> None:
        self.session, self.source, self.folder = session, source, folder
        self.pushed = self.read = 0
        self.answers: list[Answer] = []

    def pump(self, count: int) -> None:
        """Reads frames that are there: it would wait for those that are not."""
        if self.session.ingest is None or self.session.ingest.ended:
            return
        live = isinstance(self.source, PushSource)
        self.read += self.session.ingest.pump(min(count, self.pushed - self.read) if live else count)

    def queue(self) -> list[Answer]:
        return [pending.answer for pending in self.session._questions._pending]


def as_told(answer: Answer) -> tuple[Any, ...]:
    return (
        answer.text_so_far, answer.finish_reason, answer.error, answer.num_tokens, answer.evidence,
        answer.snapshot_seconds, answer.asked_at_seconds, answer.place, answer.frames, answer.memory,
    )  # fmt: skip


class EngineMachine(RuleBasedStateMachine):
    """Opens, feeds, asks, cancels, steps and closes in any order; nothing runs but what it steps."""

    def __init__(self) -> None:
        super().__init__()
        self.before = set(threading.enumerate())
        self.folder = Path(tempfile.mkdtemp())
        self.engine = Engine(RandomLlama(layers=2))
        self.opened: list[Open] = []
        self.left: list[Path] = []  # folders that no session has open
        self.over: dict[Answer, tuple[Any, ...]] = {}
        probe = self.engine.open(ListSource([]), config=self.config(1 << 30), start=False)
        question = self.engine.adapter.question(QUESTION)
        self.answer_bytes = 5 * probe._answerer.num_bytes(question, small_config().decode) // 2  # for two answers
        probe.close()

    def config(self, answer_bytes: int, *, kept: bool = False) -> Config:
        disk = {"disk_bytes": 2 * MIB} if kept else {}
        return small_config(host_bytes=MIB, gist_share=0.3, answer_bytes=answer_bytes, decode_steps=1, **disk)

    def open(self, source: Source | None, folder: Path | None) -> None:
        config = self.config(self.answer_bytes, kept=folder is not None)
        session = self.engine.open(source, config=config, memory=folder, start=False)
        self.opened.append(Open(session, source, folder))

    def some(self, data: st.DataObject, among: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(range(len(among))).map(lambda index: among[index]))

    @property
    def push_sources(self) -> list[Open]:
        return [one for one in self.opened if isinstance(one.source, PushSource) and not one.source._over]

    @property
    def answers(self) -> list[Answer]:
        return [answer for one in self.opened for answer in one.answers if not answer.done]

    @initialize()
    def open_two(self) -> None:
        self.open_source(300, live=False, kept=False)
        self.open_source(0, live=True, kept=True)

    @precondition(lambda self: len(self.opened) < 3)
    @rule(count=st.integers(0, 300), live=st.booleans(), kept=st.booleans())
    def open_source(self, count: int, live: bool, kept: bool) -> None:
        source = PushSource("list", capacity=1000) if live else ListSource(FRAMES[:count])
        number = len(list(self.folder.iterdir()))
        self.open(source, self.folder / f"memory {number}" if kept else None)

    @precondition(lambda self: self.left and len(self.opened) < 3)
    @rule(data=st.data(), read_only=st.booleans())
    def reopen(self, data: st.DataObject, read_only: bool) -> None:
        folder = self.some(data, self.left)
        self.left.remove(folder)
        self.open(None if read_only else ListSource(FRAMES[:200]), folder)

    @precondition(lambda self: self.push_sources)
    @rule(data=st.data(), count=st.integers(1, 40), end=st.sampled_from([False] * 9 + [True]))
    def push(self, data: st.DataObject, count: int, end: bool) -> None:
        one = self.some(data, self.push_sources)
        for frame in FRAMES[one.pushed : one.pushed + count]:
            one.source.push(frame.image, frame.pts_seconds)
            one.pushed += 1
        if end:
            one.source.end()

    @precondition(lambda self: self.opened)
    @rule(count=st.integers(1, 8), rounds=st.integers(0, 60))
    def watch(self, count: int, rounds: int) -> None:
        """All that there is to read, as long as there is room."""
        for _ in range(rounds):
            for one in self.opened:
                one.pump(count)
            self.engine._round(self.sessions)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), tokens=st.integers(1, 16), count=st.integers(1, 6))
    def ask(self, data: st.DataObject, tokens: int, count: int) -> None:
        one = self.some(data, self.opened)
        at = data.draw(st.sampled_from(["now", "end"]) | st.integers(0, 150).map(float))
        options = DecodeOptions(max_tokens=tokens, temperature=1.0, seed=tokens)
        one.answers += [one.session.ask(QUESTION, at=at, options=options) for _ in range(count)]

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.some(data, self.answers).cancel()

    @rule(rounds=st.integers(1, 12))
    def step(self, rounds: int) -> None:
        for _ in range(rounds):
            self.engine._round(self.sessions)

    @rule()
    def rest(self) -> None:
        """With nothing new, the work comes to an end, and then no answer is on its way."""
        for _ in range(MANY_ROUNDS):
            if not self.engine._round(self.sessions):
                break
        assert not self.engine._round(self.sessions), "it has work for ever"
        for one in self.opened:
            assert one.session.status().running == 0
            assert [answer.place for answer in one.queue()] == [0] * len(one.queue()), "there is room, yet they wait"

    @precondition(lambda self: len(self.opened) == 3)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        one = self.some(data, self.opened)
        one.session.close()
        assert all(answer.done for answer in one.answers)
        self.opened.remove(one)
        self.over.update((answer, as_told(answer)) for answer in one.answers)
        if one.folder:
            self.left.append(one.folder)

    @property
    def sessions(self) -> list[Session]:
        return [one.session for one in self.opened]

    @invariant()
    def no_session_fails(self) -> None:
        assert [one.session.failure for one in self.opened] == [None] * len(self.opened)

    @invariant()
    def frames_add_up(self) -> None:
        for one in self.opened:
            frames = one.session.status().frames
            assert frames.received == frames.encoded + frames.skipped + frames.dropped + frames.queued
            assert frames.dropped == frames.skipped == 0
            if isinstance(one.source, PushSource):
                assert frames.received == one.read

    @invariant()
    def budgets_hold(self) -> None:
        for one in self.opened:
            session, config = one.session, one.session.config
            assert session._answer_bytes() <= config.answer_bytes
            tiers = session.memory.store.tier_bytes()
            assert tiers[Tier.HOST] <= config.host_bytes
            assert tiers[Tier.DISK] <= config.disk_bytes
            session.memory.store.check_integrity()

    @invariant()
    def places_are_consistent(self) -> None:
        for one in self.opened:
            places = [answer.place for answer in one.queue() if answer.place]
            assert places == sorted(set(places)), "in the order of the queue, each its own"
            assert all(answer.place == 0 for answer in one.answers if answer not in one.queue())

    @invariant()
    def what_is_over_stays(self) -> None:
        assert all(as_told(answer) == told for answer, told in self.over.items())
        done = [answer for one in self.opened for answer in one.answers if answer.done]
        self.over.update((answer, as_told(answer)) for answer in done)
        for answer, (*_, asked, place, _, _) in self.over.items():
            assert place == 0
            if answer.finish_reason in ("stop", "length"):
                assert answer.snapshot_seconds is not None
                assert answer.snapshot_seconds <= asked
            assert answer.error is None or isinstance(answer.error, ValueError), "refused, not failed"

    def teardown(self) -> None:
        folders = [*self.left, *(one.folder for one in self.opened if one.folder)]
        self.engine.close()
        self.engine.close()
        assert all(answer.done and answer.place == 0 for one in self.opened for answer in one.answers)
        self.what_is_over_stays()
        assert len(self.engine._batch) == 0
        assert no_threads_left(self.before)
        with Engine(self.engine.adapter) as other:
            for folder in folders:
                config = self.config(self.answer_bytes, kept=True)
                again = other.open(ListSource([]), memory=folder, config=config, start=False)
                again.memory.store.check_integrity(deep=True)
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_any_order_of_calls() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=NUM_EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # to make a failure smaller takes minutes
        ),
    )


# Many threads -------------------------------------------------------------------------------------------------------

STRESS_SECONDS = 8.0
STEP_SECONDS = 0.1  # between two frames
OPTIONS = DecodeOptions(max_tokens=12, temperature=1.0)


@contextmanager
def watchful(seconds: float) -> Iterator[list[BaseException]]:
    """Collects what any thread raises; a deadlock ends the program with all threads' stacks."""
    errors: list[BaseException] = []
    before, threading.excepthook = threading.excepthook, lambda hook: errors.append(hook.exc_value)  # type: ignore
    faulthandler.dump_traceback_later(seconds, exit=True, file=os.fdopen(os.dup(sys.__stderr__.fileno()), "w"))
    try:
        yield errors
    finally:
        faulthandler.cancel_dump_traceback_later()
        threading.excepthook = before


class Load:
    """Sessions of one engine, and threads that use them until the time is over."""

    def __init__(self, engine: Engine, sessions: list[Session]) -> None:
        self.engine, self.sessions = engine, sessions
        self.until = time.monotonic() + STRESS_SECONDS
        self.answers: list[Answer] = []
        self.counts: Counter[str] = Counter()
        self.most_lag_seconds = 0.0

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def pick(self, count: int) -> Session:
        return self.sessions[count % len(self.sessions)]

    def ask_and_iterate(self) -> None:
        for count in itertools.count():
            if not self.goes_on:
                return
            answer = self.pick(count).ask(f"{QUESTION} {count}", options=OPTIONS)
            self.answers.append(answer)
            assert "".join(answer) == answer.text(1)
            assert answer.place == 0
            self.counts["read"] += 1

    def ask_and_cancel(self) -> None:
        for count in itertools.count():
            if not self.goes_on:
                return
            answers = [self.pick(count + more).ask(QUESTION, options=OPTIONS) for more in range(4)]
            self.answers += answers
            time.sleep(0.01 * (count % 5))
            for answer in answers:
                answer.cancel()
            assert all(answer.wait(20) for answer in answers)
            self.counts["cancelled"] += sum(answer.finish_reason == "cancelled" for answer in answers)

    def ask_about_the_past(self) -> None:
        for count in itertools.count():
            if not self.goes_on:
                return
            session = self.pick(count)
            last = session.status().last_seconds or 0.0
            answer = session.ask(QUESTION, at=last / 2, options=OPTIONS)
            self.answers.append(answer)
            answer.text(20)
            assert answer.snapshot_seconds is None or answer.snapshot_seconds <= last / 2
            self.counts["past"] += 1

    def poll(self) -> None:
        while self.goes_on:
            for session in self.sessions:
                status = session.status()
                assert status.frames.dropped == 0
                self.most_lag_seconds = max(self.most_lag_seconds, status.lag_seconds)
                self.counts["polled"] += 1
            time.sleep(0.005)

    def tell_times(self) -> None:
        while self.goes_on:
            for session in self.sessions[1:]:
                if session.status().last_seconds is not None:
                    assert session.seconds_at(time.time()) > 0
                    self.counts["timed"] += 1
            time.sleep(0.005)

    def read_along(self) -> None:
        while self.goes_on:
            for answer in self.answers[-20:]:
                so_far, place = answer.text_so_far, answer.place
                assert place >= 0
                assert answer.text_so_far.startswith(so_far)
                assert repr(answer)
                assert all(evidence.end_seconds >= evidence.start_seconds for evidence in answer.evidence)
            time.sleep(0.002)

    def open_and_close(self) -> None:
        """Each second one has frames that wait when it closes, and are encoded then."""
        for count in itertools.count():
            if not self.goes_on:
                return
            source = self.full_camera() if count % 2 else ListSource(FRAMES[:40])
            session = self.engine.open(source, config=small_config())
            answers = [session.ask(QUESTION, at=at, options=OPTIONS) for at in ("now", 20.0, "end")]
            self.answers += answers
            if count % 4 == 0:
                answers[2].text(20)
            else:
                time.sleep(0.003 * (count % 7))
            session.close()
            assert session.failure is None
            assert all(answer.done for answer in answers)
            self.counts["opened"] += 1

    def full_camera(self) -> PushSource:
        source = PushSource("full", capacity=9)
        for frame in FRAMES[:9]:
            source.push(frame.image, frame.pts_seconds)
        return source


def push_paced(source: PushSource, load: Load) -> Callable[[], None]:
    """Pushes features as a camera would, until the time is over."""

    def push() -> None:
        for count, frame in enumerate(itertools.cycle(FRAMES)):
            if not load.goes_on:
                return source.end()
            source.push(frame.image, count * STEP_SECONDS)
            time.sleep(STEP_SECONDS)

    return push


@pytest.mark.slow
def test_many_threads_at_once() -> None:
    before = set(threading.enumerate())
    listed = [
        Frame(number * STEP_SECONDS, frame.image) for number, frame in enumerate(FRAMES[: int(STRESS_SECONDS * 10)])
    ]
    with watchful(100) as errors, Engine(RandomLlama(layers=2)) as engine:
        pushed = [PushSource("one"), PushSource("two")]
        live = small_config(fps=None, answer_bytes=4 << 20)
        sessions = [
            engine.open(ListSource(listed), config=replace(live, realtime=True)),
            engine.open(pushed[0], config=live),
            engine.open(pushed[1], config=replace(live, queue_policy="drop-oldest", max_queue_frames=32)),
        ]
        load = Load(engine, sessions)
        work = [load.ask_and_iterate, load.ask_and_iterate, load.ask_and_cancel, load.ask_and_cancel]
        work += [load.ask_about_the_past, load.poll, load.tell_times, load.read_along, load.open_and_close]
        work += [push_paced(source, load) for source in pushed]
        threads = [threading.Thread(target=one, name=one.__name__) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert not any(thread.is_alive() for thread in threads)
        assert all(answer.wait(20) for answer in load.answers)
        assert all(session.ask(QUESTION, at="end", options=OPTIONS).text(20) is not None for session in sessions)
        for session in sessions:
            status = session.status()
            assert status.ended
            assert status.frames.encoded == status.frames.received > STRESS_SECONDS * 5
            assert (status.running, status.waiting) == (0, 0)
        assert [answer.error for answer in load.answers if answer.error] == []
        assert min(load.counts[what] for what in ("read", "cancelled", "past", "polled", "timed", "opened")) > 5
        print(f"{load.counts}, lag at most {load.most_lag_seconds:.2f} s, {len(load.answers)} answers")
        assert max(session.status().max_lag_seconds for session in sessions) < 1.5
    assert errors == []
    assert no_threads_left(before)


def open_all(engine: Engine, config: Config, folders: list[Path]) -> None:
    for folder in folders:
        engine.open(ListSource(FRAMES[:20]), config=config, memory=folder)


@pytest.mark.slow
def test_opening_while_the_engine_closes(tmp_path: Path) -> None:
    """Whoever is first: what was opened is closed, and who comes too late is told so."""
    config = small_config(disk_bytes=64 * MIB)
    before = set(threading.enumerate())
    for number in range(12):
        folders = [tmp_path / f"{number} {name}" for name in range(6)]
        engine = Engine(RandomLlama(layers=1))
        with watchful(60) as errors:
            thread = threading.Thread(target=open_all, args=(engine, config, folders))
            thread.start()
            time.sleep(0.01 * number)
            engine.close()
            thread.join(30)
        assert {str(error) for error in errors} <= {"the engine is closed"}
        with Engine(RandomLlama(layers=1)) as again:
            for folder in folders:
                again.open(ListSource(FRAMES[:20]), config=config, memory=folder, start=False)
    assert no_threads_left(before)


# The real model -----------------------------------------------------------------------------------------------------

STREAM_SECONDS = 25.0
ASKED = [
    (6.2, 0, "What drink is shown?"),
    (6.2, 1, "What is shown?"),
    (14.6, 0, "What animal is shown?"),
    (14.6, 1, "When was the first thing shown?"),
    (14.6, 0, "What was shown before the animal?"),
    (21.1, 1, "What is shown now?"),
    (21.1, 0, "Describe the video."),
    (21.1, 0, "What is shown?"),
]


def camera_frames(path: Path) -> list[Frame]:
    """Pictures for a camera of one frame a second: the last half minute of the sample, at its own times from 0."""
    with open_source(SAMPLE, max_side=224) as source:
        last = [frame for frame in source.frames(lambda seconds: seconds % 1 < 0.04) if frame.pts_seconds >= 20]
    pictures = {float(second): frame.image for second, frame in enumerate(last)}
    size = last[0].image.shape[1::-1]
    write_video(path, list(pictures), size=size, draw=lambda seconds: pictures[seconds])
    with open_source(path, max_side=224) as source:
        return list(source.frames(lambda seconds: seconds <= STREAM_SECONDS))


def feed(source: PushSource, frames: Sequence[Frame], *, paced: bool) -> None:
    """As a camera does, or all at once."""
    zero = time.monotonic()
    for frame in frames:
        if paced:
            time.sleep(max(0.0, zero + frame.pts_seconds - time.monotonic()))
        source.push(frame.image, frame.pts_seconds)
    source.end()


def answered_alone(adapter: EmbeddedAdapter, source: Source, question: str, at: float, config: Config) -> Answer:
    """The same question over the same frames, with nothing else to do."""
    with Engine(adapter) as engine:
        session = engine.open(source, config=replace(config, realtime=False, queue_policy="block"), start=False)
        answer = session.ask(question, at=at)
        engine.serve(session)
        answer.text(60)
        return answer


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_eight_questions_on_two_real_time_streams(embedded_model: EmbeddedAdapter, tmp_path: Path) -> None:
    """Nothing is dropped, no clip waits long, and every answer is the one that it would be alone."""
    frames = camera_frames(tmp_path / "camera.mp4")
    file_config = Config(**embedded_model.settings, realtime=True, decode=DecodeOptions(max_tokens=16))
    camera_config = replace(file_config, queue_policy="drop-oldest", max_queue_frames=8)
    camera, answers = PushSource("camera"), list[Answer]()
    with watchful(200) as errors, Engine(embedded_model) as engine:
        sessions = [engine.open(SAMPLE, config=file_config), engine.open(camera, config=camera_config)]
        pushing = threading.Thread(target=feed, args=(camera, frames), kwargs={"paced": True})
        began = time.monotonic()
        pushing.start()
        for after, number, question in ASKED:
            time.sleep(max(0.0, began + after - time.monotonic()))
            answers.append(sessions[number].ask(question))
        assert all(answer.wait(60) for answer in answers)
        pushing.join()
        time.sleep(max(0.0, began + STREAM_SECONDS - time.monotonic()))
        statuses = [session.status() for session in sessions]
    assert errors == []
    for status in statuses:
        print(status.frames, f"lag at most {status.max_lag_seconds:.1f} s")
        assert status.frames.dropped == 0
        assert status.frames.encoded >= STREAM_SECONDS - 2 * file_config.clip_frames
        assert status.max_lag_seconds <= 2 * file_config.clip_frames
    for (_, number, question), answer in zip(ASKED, answers, strict=True):
        assert answer.asked_at_seconds is not None
        source: Source = open_source(SAMPLE, max_side=embedded_model.image_side)
        if number == 1:
            source = PushSource("camera", capacity=len(frames) + 1)
            feed(source, frames, paced=False)
        alone = answered_alone(embedded_model, source, question, answer.asked_at_seconds, file_config)
        assert (alone.text(), alone.snapshot_seconds) == (answer.text(), answer.snapshot_seconds)
        print(f"{answer.asked_at_seconds:5.1f} s, first token after {answer.ttft_seconds:.2f} s: {answer.text()!r}")
    assert len({answer.text() for answer in answers}) >= 4, "they are not all the same answer"
