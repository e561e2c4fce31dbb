"""Ingest: sampling by time, clips that depend on the frames alone, and counts that never lose a frame."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import constant_times, read_clock, variable_times, write_video

from vstream.ingest import Counters, Ingest, Sampler
from vstream.sources import PushSource, Source, open_source
from vstream.types import Clip, Frame


class ListSource(Source):
    """Frames at given times; an exception among them is raised there."""

    def __init__(self, times, *, is_live=False):
        super().__init__("list", max_side=8)
        self.times = times
        self.is_live = is_live
        self.closed = False

    def _pictures(self) -> Iterator[tuple[float, float]]:
        for seconds in self.times:
            if isinstance(seconds, Exception):
                raise seconds
            yield seconds, seconds

    def _image(self, picture, max_side):
        return np.zeros((2, 2, 3), np.uint8)

    def close(self):
        super().close()
        self.closed = True


def make(source, **options) -> Ingest:
    return Ingest(source, **({"fps": None, "clip_frames": 4, "max_queue_frames": 100} | options))


def times_of(clip: Clip | None) -> list[float] | None:
    return None if clip is None else [frame.pts_seconds for frame in clip.frames]


def drain(ingest: Ingest) -> list[list[float]]:
    """Pumps, takes and commits until the stream is over; returns the clips' times."""
    clips = []
    while not ingest.drained:
        ingest.pump(1)
        while clip := ingest.take_clip():
            clips.append(times_of(clip))
            ingest.commit(clip)
    return clips


def wait_until(condition, seconds=10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.005)


# Sampling


def sampled(times, fps, after=None) -> list[float]:
    sampler = Sampler(fps, after_seconds=after)
    return [seconds for seconds in times if sampler(seconds)]


def test_a_frame_is_taken_for_each_grid_time_by_pts_not_by_index():
    times = [0.0, 0.2, 0.9, 1.3, 1.4, 1.9, 2.0, 2.9, 3.0]
    assert sampled(times, 1.0) == [0.0, 1.3, 2.0, 3.0]
    assert sampled(times, 2.0) == [0.0, 0.9, 1.3, 1.9, 2.0, 2.9, 3.0]
    assert sampled(times, None) == times
    assert sampled(times, 0.5) == [0.0, 2.0]


def test_the_first_frame_is_always_taken_and_a_gap_gives_just_one():
    assert sampled([7.4, 7.9, 8.0], 1.0) == [7.4, 8.0]
    assert sampled([0.0, 50.0, 50.1, 51.0], 1.0) == [0.0, 50.0, 51.0]


@pytest.mark.parametrize("fps", [1, 3, 7, 10, 24, 29.97, 30, 60])
def test_rounded_container_times_lose_no_frame_at_the_source_rate(fps):
    exact = [k / fps for k in range(2000)]
    assert sampled(exact, fps) == exact
    rounded = [round(seconds, 3) for seconds in exact]
    assert sampled(rounded, fps) == rounded
    ticks = [round(seconds * 90000) / 90000 for seconds in exact]
    assert sampled(ticks, fps) == ticks


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_wrong_rate_is_named(fps):
    with pytest.raises(ValueError, match=f"fps must be a finite number above 0, or None for every frame, got {fps}"):
        Sampler(fps)


@given(
    steps=st.lists(st.integers(1, 3000), max_size=60),
    fps=st.one_of(st.none(), st.floats(0.1, 50)),
    cut=st.integers(0, 59),
)
def test_a_sampler_that_resumes_goes_on_like_the_one_before(steps, fps, cut):
    times = (np.cumsum([0, *steps]) / 1000).tolist()
    whole = sampled(times, fps)
    after = whole[min(cut, len(whole) - 1)]
    resumed = sampled(times, fps, after)
    assert resumed == [seconds for seconds in whole if seconds > after]
    assert sampled([seconds for seconds in times if seconds > after], fps, after) == resumed, "even from the middle"


# Clips


def test_clips_are_full_until_the_short_one_at_the_end():
    ingest = make(ListSource([float(k) for k in range(10)]))
    assert ingest.pump(3) == 3
    assert (ingest.peek_clip(), ingest.take_clip()) == (None, None)
    assert [frame.pts_seconds for frame in ingest.open_frames()] == [0, 1, 2]
    assert ingest.pump(3) == 3
    assert times_of(ingest.peek_clip()) == [0, 1, 2, 3]
    assert [frame.pts_seconds for frame in ingest.open_frames()] == [4, 5]
    clip = ingest.take_clip()
    assert times_of(clip) == [0, 1, 2, 3]
    assert ingest.counters() == Counters(decoded=6, received=6, queued=6)
    ingest.commit(clip, skipped=1)
    assert ingest.counters() == Counters(decoded=6, received=6, encoded=3, skipped=1, queued=2)
    assert (ingest.ended, ingest.drained) == (False, False)
    assert ingest.pump(100) == 4
    assert (ingest.ended, ingest.drained) == (True, False)
    assert ingest.open_frames() == ()
    assert drain(ingest) == [[4, 5, 6, 7], [8, 9]]
    assert (ingest.take_clip(), ingest.peek_clip()) == (None, None)
    assert ingest.counters() == Counters(decoded=10, received=10, encoded=9, skipped=1)


def test_a_released_clip_is_taken_again():
    ingest = make(ListSource([float(k) for k in range(6)]))
    ingest.pump(6)
    clip = ingest.take_clip()
    with pytest.raises(AssertionError, match="still in flight"):
        ingest.take_clip()
    ingest.release(clip)
    assert ingest.counters() == Counters(decoded=6, received=6, queued=6)
    with pytest.raises(AssertionError, match="is not in flight"):
        ingest.commit(clip)
    assert times_of(ingest.take_clip()) == [0, 1, 2, 3]


def test_a_clip_closes_early_where_a_hole_follows():
    times = [0.0, 1.0, 20.0, 21.0, 22.0, 23.0, 24.0, 99.0]
    assert drain(make(ListSource(times))) == [[0, 1], [20, 21, 22, 23], [24], [99]]
    assert drain(make(ListSource(times), max_gap_seconds=100)) == [times[:4], times[4:]]
    assert drain(make(ListSource(times), max_gap_seconds=0.5)) == [[seconds] for seconds in times]
    ingest = make(ListSource(times))
    ingest.pump(3)
    assert times_of(ingest.peek_clip()) == [0, 1], "the hole is known once the frame behind it is there"
    assert [frame.pts_seconds for frame in ingest.open_frames()] == [20]


def test_a_clip_closes_early_where_the_wall_clock_changes():
    """A camera that reconnected: no clip has frames of two epochs, taken late or not, and each keeps its own."""

    class Reconnecting(ListSource):
        def _pictures(self):
            for seconds, picture in super()._pictures():
                self.epoch_seconds = {0: None, 1: 1e9}.get(int(seconds), 2e9)
                yield seconds, picture

    times = [0.0, 0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    ingest = make(Reconnecting(times))
    ingest.pump(99)
    assert ingest.source.epoch_seconds == 2e9, "the source is far ahead of the worker"
    taken = []
    while clip := ingest.take_clip():
        taken.append((times_of(clip), clip.epoch_seconds))
        ingest.commit(clip)
    assert taken == [(times[:2], None), (times[2:6], 1e9), (times[6:7], 1e9), (times[7:], 2e9)]


def test_the_open_frames_are_of_one_wall_clock():
    source = ListSource([0.0, 0.5, 1.0])
    ingest = make(source)
    for epoch_seconds in (1e9, 1e9, 2e9):
        source.epoch_seconds = epoch_seconds
        ingest.pump(1)
    assert [frame.pts_seconds for frame in ingest.open_frames()] == [1.0]
    assert times_of(ingest.take_clip()) == [0.0, 0.5]


def test_sampling_slower_than_the_gap_makes_no_holes():
    assert drain(make(ListSource([0.0, 30.0, 60.0, 90.0]), fps=1 / 30)) == [[0, 30, 60, 90]]


def test_flush_takes_what_is_there():
    ingest = make(ListSource([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    ingest.pump(5)
    ingest.commit(ingest.take_clip(flush=True))
    clip = ingest.take_clip(flush=True)
    assert times_of(clip) == [4]
    ingest.commit(clip)
    assert ingest.take_clip(flush=True) is None


@given(
    steps=st.lists(st.integers(1, 15_000), max_size=40),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    clip_frames=st.integers(1, 5),
    spare=st.integers(0, 6),
)
def test_clips_depend_on_the_frames_alone_not_on_who_is_faster(steps, chunks, clip_frames, spare):
    times = (np.cumsum([0, *steps]) / 1000).tolist()
    expected = drain(make(ListSource(times), clip_frames=clip_frames, max_queue_frames=len(times) + 5))
    ingest = make(ListSource(times), clip_frames=clip_frames, max_queue_frames=clip_frames + spare)
    clips, turn = [], 0
    while not ingest.drained:
        ingest.pump(chunks[turn % len(chunks)])
        turn += 1
        clip = ingest.take_clip()
        if clip and turn % 3 == 0:
            ingest.release(clip)
        elif clip:
            clips.append(times_of(clip))
            ingest.commit(clip)
    assert clips == expected
    assert [seconds for clip in clips for seconds in clip] == times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_frames": 0}, "clip_frames must be at least 1, got 0"),
        ({"max_queue_frames": 3}, "max_queue_frames must hold a clip of 4 frames, got 3"),
        ({"policy": "drop-newest"}, "policy must be 'block' or 'drop-oldest', got 'drop-newest'"),
        ({"max_gap_seconds": 0}, "max_gap_seconds must be above 0, got 0"),
        ({"fps": -2}, "got -2"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(ListSource([]), **options)


# A full queue


def test_a_lossless_queue_reads_no_more_than_it_has_room_for():
    source = ListSource([float(k) for k in range(20)])
    ingest = make(source, max_queue_frames=6)
    assert ingest.pump(20) == 6
    assert source.decoded == 6
    clip = ingest.take_clip()
    assert ingest.pump(20) == 0, "a clip in flight still takes room"
    ingest.commit(clip)
    assert ingest.pump(20) == 4


def test_drop_oldest_spares_the_clip_in_flight():
    ingest = make(ListSource([float(k) for k in range(20)]), max_queue_frames=6, policy="drop-oldest")
    ingest.pump(4)
    clip = ingest.take_clip()
    ingest.pump(5)
    assert ingest.counters() == Counters(decoded=9, received=9, dropped=3, queued=6)
    assert [frame.pts_seconds for frame in ingest.open_frames()] == [7, 8]
    ingest.release(clip)
    ingest.pump(1)
    assert times_of(ingest.take_clip()) == [1, 2, 3, 7], "given back, it is the oldest"
    assert ingest.counters() == Counters(decoded=10, received=10, dropped=4, queued=6)


def test_with_everything_in_flight_the_arriving_frame_is_dropped():
    ingest = make(ListSource([float(k) for k in range(9)]), max_queue_frames=4, policy="drop-oldest")
    ingest.pump(4)
    clip = ingest.take_clip()
    ingest.pump(3)
    assert ingest.counters() == Counters(decoded=7, received=7, dropped=3, queued=4)
    ingest.commit(clip)
    ingest.pump(9)
    assert drain(ingest) == [[7, 8]]
    assert ingest.counters() == Counters(decoded=9, received=9, encoded=6, dropped=3)


# Counts


class Miscounting(Ingest):
    """A negative control: one in three frames that are dropped is not counted."""

    def _queue(self, frame: Frame) -> None:
        super()._queue(frame)
        if self._dropped and self._received % 3 == 0:
            self._dropped -= 1


OPERATIONS = ["feed", "feed", "feed", "take", "commit", "skip", "release"]


def play(operations: list[str], num_frames: int, policy: str, kind: type[Ingest] = Ingest) -> None:
    """Plays operations on an ingest and on a model of plain sets of frames, and compares the two after each one."""
    times = [k / 2 for k in range(num_frames)]
    ingest = kind(ListSource(times), fps=1.0, clip_frames=3, max_queue_frames=5, policy=policy)
    received, encoded, skipped = 0, 0, 0
    seen, clip = set(), None
    for operation in operations:
        if operation == "feed":
            received += ingest.pump(1)
        elif operation == "take" and clip is None:
            clip = ingest.take_clip()
        elif clip is not None and operation in ("commit", "skip", "release"):
            if operation == "release":
                ingest.release(clip)
            else:
                part = len(clip.frames) // 2 if operation == "skip" else 0
                assert seen.isdisjoint(times_of(clip)), "a frame is committed once"
                seen.update(times_of(clip))
                after = ingest.counters_if_committed(clip, skipped=part)
                ingest.commit(clip, skipped=part)
                skipped, encoded = skipped + part, encoded + len(clip.frames) - part
                assert (after.encoded, after.skipped, after.queued) == (encoded, skipped, 0)
            clip = None
        waiting = len(ingest._waiting) + (len(clip.frames) if clip else 0)
        counters = ingest.counters()
        assert (counters.received, counters.encoded, counters.skipped) == (received, encoded, skipped)
        assert counters.queued == waiting <= 5
        assert counters.dropped == received - encoded - skipped - waiting
        assert counters.dropped == 0 or policy == "drop-oldest"
        assert counters.decoded == ingest.source.decoded >= received


@given(
    operations=st.lists(st.sampled_from(OPERATIONS), max_size=80),
    num_frames=st.integers(0, 60),
    policy=st.sampled_from(["block", "drop-oldest"]),
)
def test_no_interleaving_loses_a_frame_from_the_counts(operations, num_frames, policy):
    play(operations, num_frames, policy)


def test_the_check_of_the_counts_catches_a_miscount():
    """Negative control of the property test, and of the counters' own check."""
    with pytest.raises(AssertionError, match="a frame was lost"):
        play(["feed"] * 20, 60, "drop-oldest", Miscounting)
    play(["feed"] * 20, 60, "drop-oldest", Ingest)
    with pytest.raises(AssertionError, match="a frame was lost"):
        Counters(decoded=5, received=5, encoded=4)
    with pytest.raises(AssertionError, match="more frames were received than decoded"):
        Counters(decoded=4, received=5, encoded=5)
    with pytest.raises(AssertionError, match="never negative"):
        Counters(decoded=4, received=0, encoded=1, dropped=-1)


# Resuming


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(1, 4000), min_size=1, max_size=50),
    fps=st.sampled_from([None, 0.5, 1.0, 2.5]),
    commits=st.integers(1, 6),
    ahead=st.integers(0, 8),
)
def test_a_resumed_run_gives_the_same_clips_and_counts(steps, fps, commits, ahead):
    times = (np.cumsum([0, *steps]) / 1000).tolist()
    whole = make(ListSource(times), fps=fps, max_queue_frames=9)
    expected = drain(whole)
    first = make(ListSource(times), fps=fps, max_queue_frames=9)
    clips, after, base = [], None, None
    while len(clips) < min(commits, len(expected)):
        first.pump(1)
        if clip := first.take_clip():
            first.pump(ahead)
            clips.append(times_of(clip))
            after, base = clip.end_seconds, first.counters_if_committed(clip)
            first.commit(clip)
    resumed = make(ListSource(times), fps=fps, max_queue_frames=9, resume_after_seconds=after, base=base)
    assert resumed.counters() == base
    assert clips + drain(resumed) == expected
    assert resumed.counters() == whole.counters()


def test_frames_dropped_after_the_clip_in_flight_are_not_in_its_checkpoint():
    ingest = make(ListSource([float(k) for k in range(20)]), max_queue_frames=5, policy="drop-oldest")
    ingest.pump(7)  # drops 0 and 1
    clip = ingest.take_clip()
    ingest.pump(6)  # drops later ones
    assert times_of(clip) == [2, 3, 4, 5]
    assert ingest.counters().dropped == 2 + 6
    assert ingest.counters_if_committed(clip) == Counters(decoded=6, received=6, encoded=4, dropped=2)


def test_queued_frames_of_a_base_are_folded_away():
    base = Counters(decoded=9, received=8, encoded=4, skipped=1, dropped=1, queued=2)
    ingest = make(ListSource([0.0]), base=base)
    assert ingest.counters() == replace(base, received=6, queued=0)


def test_resuming_a_real_video_samples_the_same_pictures(tmp_path):
    path = write_video(tmp_path / "a.mp4", variable_times(80))

    def clips(**options):
        ingest = make(open_source(path, max_side=160), fps=2.0, **options)
        found = drain(ingest)
        ingest.stop()
        return found, ingest.counters()

    whole, counters = clips()
    assert len(whole) > 5
    for done in (1, 3, len(whole)):
        rest, _ = clips(resume_after_seconds=whole[done - 1][-1])
        assert rest == whole[done:]
    assert counters.decoded == 80
    assert counters.received == counters.encoded == sum(map(len, whole))


# The stream's clock


def test_received_past_is_told_by_decoded_frames_not_only_by_sampled_ones():
    changes = []
    source = ListSource([0.0, 0.4, 0.8, 1.2])
    ingest = make(source, fps=1.0, on_change=lambda: changes.append(ingest.clock_seconds))
    assert ingest.clock_seconds is None
    assert not ingest.has_received_past(0.5)
    ingest.pump(1)
    assert ingest.clock_seconds == 0.0
    assert not ingest.has_received_past(0.0), "an equal time may still come"
    changes.clear()
    ingest.pump(1)
    assert ingest.clock_seconds == 1.2
    assert changes[0] == 0.4, "whoever asked is woken by a frame that was not sampled"
    assert ingest.has_received_past(1.1)
    assert not ingest.has_received_past(1.2)
    ingest.pump(1)
    assert ingest.has_received_past(math.inf), "the stream has ended"


# Threads


def consume(ingest: Ingest, work_seconds: float = 0.0, deadline_seconds: float = 20.0) -> list[list[float]]:
    """A worker: takes and commits clips until the stream is drained, checking the counts from its side."""
    clips, deadline = [], time.monotonic() + deadline_seconds
    while not ingest.drained:
        assert time.monotonic() < deadline, f"took too long: {ingest}"
        ingest.counters()
        clip = ingest.take_clip()
        if clip is None:
            time.sleep(0.001)
            continue
        time.sleep(work_seconds)
        clips.append(times_of(clip))
        ingest.commit(clip)
    return clips


@pytest.mark.parametrize("work_seconds", [0.0, 0.004])
def test_a_fast_producer_loses_nothing_under_block(work_seconds):
    times = [k / 4 for k in range(203)]
    woken = threading.Event()
    ingest = make(ListSource(times), max_queue_frames=8, on_change=woken.set)
    ingest.start()
    clips = consume(ingest, work_seconds)
    ingest.stop()
    assert clips == [times[k : k + 4] for k in range(0, 203, 4)]
    assert ingest.counters() == Counters(decoded=203, received=203, encoded=203)
    assert woken.is_set()


def test_a_fast_producer_loses_only_counted_frames_under_drop_oldest():
    times = [k / 4 for k in range(2003)]
    ingest = make(ListSource(times), max_queue_frames=8, policy="drop-oldest")
    ingest.start()
    clips = consume(ingest, 0.01)
    ingest.stop()
    seen = [seconds for clip in clips for seconds in clip]
    counters = ingest.counters()
    assert (counters.received, counters.encoded, counters.queued) == (2003, len(seen), 0)
    assert counters.dropped == 2003 - len(seen) > 0
    assert seen == sorted(set(seen))
    assert seen[-4:] == times[-4:], "the newest frames stay"


def assert_stops_at_once(ingest: Ingest) -> None:
    thread = ingest._thread
    began = time.monotonic()
    ingest.stop()
    assert time.monotonic() - began < 2
    assert not thread.is_alive()
    ingest.stop()


def test_stop_while_the_queue_is_full():
    source = ListSource([float(k) for k in range(100)])
    ingest = make(source, max_queue_frames=5)
    ingest.start()
    wait_until(lambda: ingest.counters().queued == 5)
    assert_stops_at_once(ingest)
    assert source.closed
    assert (ingest.ended, ingest.drained, ingest.failure) == (False, False, None)
    assert times_of(ingest.take_clip()) == [0, 1, 2, 3]
    assert ingest.open_frames()[0].pts_seconds == 4, "the rest stays open"


def test_stop_while_it_paces_and_while_a_push_source_waits():
    paced = make(ListSource([0.0, 3600.0]), realtime=True)
    paced.start()
    wait_until(lambda: paced.counters().received == 1)
    assert_stops_at_once(paced)
    assert paced.counters().received == 1

    pushed = make(PushSource())
    pushed.start()
    time.sleep(0.05)
    assert_stops_at_once(pushed)
    with pytest.raises(ValueError, match="has ended"):
        pushed.source.push(np.zeros((2, 2, 3), np.uint8))


def test_stop_without_start_and_after_the_end_closes_the_source():
    source = ListSource([0.0])
    make(source).stop()
    assert source.closed
    ingest = make(ListSource([0.0, 1.0]))
    ingest.start()
    assert consume(ingest) == [[0, 1]]
    assert_stops_at_once(ingest)
    assert ingest.drained


def test_stop_after_an_interrupt_while_the_thread_started_closes_the_source(monkeypatch):
    def interrupt(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    source = ListSource([0.0])
    ingest = make(source)
    with pytest.raises(KeyboardInterrupt):
        ingest.start()
    ingest.stop()
    assert source.closed


def test_an_exception_of_the_reading_thread_reaches_the_worker_after_the_frames_before_it():
    trouble = OSError("the disk is gone")
    woken = threading.Event()
    ingest = make(ListSource([0.0, 1.0, 2.0, 3.0, 4.0, trouble]), on_change=woken.set)
    ingest.start()
    wait_until(lambda: ingest.ended)
    assert woken.is_set()
    assert ingest.failure is trouble
    for expected in ([0, 1, 2, 3], [4]):
        clip = ingest.take_clip()
        assert times_of(clip) == expected
        ingest.commit(clip)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            ingest.take_clip()
    assert ingest.counters() == Counters(decoded=5, received=5, encoded=5)
    ingest.stop()


def test_realtime_paces_a_file_by_its_own_clock(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0.0, 0.1, 0.5, 0.6, 1.2])
    arrivals = []
    ingest = make(open_source(path, max_side=160), realtime=True, on_change=lambda: arrivals.append(time.monotonic()))
    ingest.start()
    wait_until(lambda: ingest.ended)
    ingest.stop()
    since_first = [moment - arrivals[0] for moment in arrivals[:5]]
    late = np.array(since_first) - [0.0, 0.1, 0.5, 0.6, 1.2]
    assert late.min() > -0.1, "never early, but by what the first frame's own conversion took"
    assert late.max() < 0.4

    arrivals.clear()
    fast = make(open_source(path, max_side=160), on_change=lambda: arrivals.append(time.monotonic()))
    fast.start()
    wait_until(lambda: fast.ended)
    fast.stop()
    assert arrivals[4] - arrivals[0] < 0.5, "negative control: unpaced it is much faster"


def test_a_resumed_realtime_run_does_not_wait_for_what_it_had():
    ingest = make(ListSource([0.0, 500.0, 1000.0, 1000.1]), realtime=True, resume_after_seconds=1000.0)
    began = time.monotonic()
    ingest.start()
    wait_until(lambda: ingest.ended)
    ingest.stop()
    assert time.monotonic() - began < 2
    assert ingest.counters() == Counters(decoded=1, received=1, queued=1)


def test_a_live_source_is_never_paced():
    ingest = make(ListSource([0.0, 1000.0], is_live=True), realtime=True)
    ingest.start()
    wait_until(lambda: ingest.ended, 2)
    ingest.stop()


def test_pushed_frames_flow_through_a_thread_with_their_wall_clock():
    source = PushSource(max_side=160)
    ingest = make(source)
    ingest.start()
    for k in range(9):
        source.push(np.full((4, 4, 3), k, np.uint8), k / 2)
    source.end()
    wait_until(lambda: ingest.ended)
    clip = ingest.take_clip()
    assert [int(frame.image[0, 0, 0]) for frame in clip.frames] == [0, 1, 2, 3]
    assert clip.epoch_seconds == source.epoch_seconds == pytest.approx(time.time(), abs=60)
    ingest.commit(clip)
    assert len(consume(ingest)) == 2
    ingest.stop()


def test_a_real_video_through_a_real_thread_shows_its_own_times(tmp_path):
    times = variable_times(100)
    path = write_video(tmp_path / "a.mkv", times, codec="libx265")
    ingest = make(open_source(path, max_side=80), fps=2.0, max_queue_frames=6)
    ingest.start()
    shown = []
    while not ingest.drained:
        if clip := ingest.take_clip():
            shown += [(frame.pts_seconds, read_clock(frame.image)) for frame in clip.frames]
            ingest.commit(clip)
        time.sleep(0.001)
    ingest.stop()
    sampler = Sampler(2.0)
    assert [claimed for claimed, _ in shown] == pytest.approx([seconds for seconds in times if sampler(seconds)])
    assert [seen for _, seen in shown] == pytest.approx([claimed for claimed, _ in shown], abs=1e-3)
    assert ingest.counters().decoded == 100


def test_no_thread_is_left_behind(tmp_path):
    path = write_video(tmp_path / "a.mp4", constant_times(50))
    before = set(threading.enumerate())
    for _ in range(3):
        ingest = make(open_source(path, max_side=80), max_queue_frames=4)
        ingest.start()
        ingest.stop()
    assert set(threading.enumerate()) == before
