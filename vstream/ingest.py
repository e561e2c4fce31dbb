"""Ingest: samples a source, queues what it sampled, and hands it out clip by clip, counting every frame.

One thread reads the source (`start`, or `pump` without a thread), one worker takes the clips. This module knows nothing
of models, tokens or memory: what becomes of a clip is the worker's business, and it says how that went.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from vstream.changes import is_cut
from vstream.sampling import Counters, Sampler
from vstream.sources.base import Source
from vstream.types import Clip, Frame

__all__ = ["Counters", "Ingest", "Sampler"]


class _Queued(NamedTuple):
    """A waiting frame, with the number of frames decoded up to it."""

    frame: Frame
    decoded: int


class Ingest:
    """A bounded queue of sampled frames between one reading thread and one worker.

    Clips are `clip_frames` consecutive frames of the queue. A clip is shorter where the next frame comes more than
    `max_gap_seconds` (or two sampling intervals) later, has another `epoch_seconds` (a camera that reconnected),
    has another size or begins another scene, and at the end of the stream. With the policy "block" the clips depend on
    the source alone, not on who was faster.

    The worker takes one clip at a time: `take_clip`, then `commit` or `release`. All methods but `pump`, `start` and
    `stop` are safe from any thread. The ingest owns its source and closes it in `stop`.

    Attributes:
        failure: what ended the reading thread, None while all is well; `take_clip` raises it when the queue is drained.
    """

    def __init__(
        self,
        source: Source,
        *,
        fps: float | None,
        clip_frames: int,
        max_queue_frames: int,
        policy: Literal["block", "drop-oldest"] = "block",
        realtime: bool = False,
        on_change: Callable[[], None] | None = None,
        max_gap_seconds: float = 10.0,
        resume_after_seconds: float | None = None,
        base: Counters | None = None,
        scene_cut: float | None = None,
    ) -> None:
        """Prepares; nothing is read before `start` or `pump`.

        Args:
            source: read from its start.
            fps: frames sampled per second of stream time, None for all.
            clip_frames: frames in a full clip.
            max_queue_frames: most frames that are queued, the clip in flight included.
            policy: what a full queue does: the reading waits, or the oldest frame that is not in flight is dropped.
            realtime: a source that is not live is paced by its own clock, as if it were.
            on_change: called, without any lock held, when a frame was queued, the stream ended, or the clock passed a
                time that `has_received_past` was asked for.
            max_gap_seconds: a clip never spans a longer hole.
            resume_after_seconds: end of the last committed clip of an earlier run over the same source: frames up to
                there are decoded, but not sampled again.
            base: counts of that run, its `counters_if_committed`; what it had queued is read again, not counted twice.
            scene_cut: how much more a picture must change for a cut than any since its clip began, of 255; None for
                clips without regard to scenes.

        Raises:
            ValueError: if a number or the policy is out of range.
        """
        if clip_frames < 1:
            raise ValueError(f"clip_frames must be at least 1, got {clip_frames}")
        if max_queue_frames < clip_frames:
            raise ValueError(f"max_queue_frames must hold a clip of {clip_frames} frames, got {max_queue_frames}")
        if policy not in ("block", "drop-oldest"):
            raise ValueError(f"policy must be 'block' or 'drop-oldest', got {policy!r}")
        if not max_gap_seconds > 0:
            raise ValueError(f"max_gap_seconds must be above 0, got {max_gap_seconds}")
        self.source = source
        self.failure: Exception | None = None
        self._clip_frames = clip_frames
        self._max_queue_frames = max_queue_frames
        self._drops = policy == "drop-oldest"
        self._paced = realtime and not source.is_live
        self._on_change = on_change or (lambda: None)
        self._max_gap_seconds = max(max_gap_seconds, 2 / fps if fps else 0.0)
        self._scene_cut = scene_cut
        self._resume_after_seconds = -1.0 if resume_after_seconds is None else resume_after_seconds
        self._sampler = Sampler(fps, after_seconds=resume_after_seconds)
        self._frames = source.frames(self._observe)
        self._zero_monotonic: float | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._changed = threading.Condition()  # guards all below
        base = base or Counters()
        self._base_decoded = base.decoded
        self._received, self._encoded = base.received - base.queued, base.encoded
        self._skipped, self._dropped = base.skipped, base.dropped
        self._observed = 0
        self._reread = 0
        self._waiting: deque[_Queued] = deque()
        self._in_flight: tuple[_Queued, ...] = ()
        self._clip: Clip | None = None
        self._dropped_before_clip = 0
        self._clock_seconds: float | None = None
        self._awaited_seconds = math.inf
        self._ended = False

    # Reading

    def start(self) -> None:
        """Starts the reading thread."""
        assert self._thread is None, "an ingest is started once"
        assert not self._stopping.is_set(), "a stopped ingest does not start again"
        thread = threading.Thread(target=self._run, name=f"ingest {self.source.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before: whoever was interrupted while it started could not join it

    def stop(self) -> None:
        """Ends the reading at once, whatever it waits for, and closes the source; calling it again does nothing.

        Frames that are queued stay so. The stream has then not `ended`: what is left of it is no short last clip.
        """
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        self.source.interrupt()
        if self._thread is not None:
            self._thread.join()
        self.source.close()
        self._on_change()

    def pump(self, max_frames: int) -> int:
        """Reads up to `max_frames` sampled frames in the caller's thread and returns how many.

        Fewer means that the queue is full (policy "block") or the stream is over.
        """
        assert self._thread in (None, threading.current_thread()), "the ingest's own thread reads the source"
        for count in range(max_frames):
            if not self._has_room():
                return count
            frame = next(self._frames, None)
            if frame is None:
                self._finish(None)
                return count
            self._queue(frame)
        return max_frames

    def _run(self) -> None:
        try:
            while self._wait_for_room() and self.pump(1):
                pass
        except Exception as failure:  # kept for the worker, which raises it
            self._finish(failure)

    def _wait_for_room(self) -> bool:
        """Waits until a frame may be queued; False if the ingest stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self._stopping.is_set())
        return not self._stopping.is_set()

    def _has_room(self) -> bool:
        return self._drops or self._num_queued < self._max_queue_frames

    def _observe(self, pts_seconds: float) -> bool:
        """The source's `wanted`: sees the time of every decoded frame and says whether it is sampled."""
        reread = pts_seconds <= self._resume_after_seconds
        if self._paced and not reread:
            self._pace(pts_seconds)
        if self._stopping.is_set():
            return False
        with self._changed:
            self._clock_seconds = pts_seconds
            self._observed = self.source.decoded
            if reread:
                self._reread = self._observed
            awaited = pts_seconds > self._awaited_seconds
            if awaited:
                self._awaited_seconds = math.inf
        if awaited:
            self._on_change()
        return self._sampler(pts_seconds)

    def _pace(self, pts_seconds: float) -> None:
        """Waits until as much time has passed since the first frame as between the two frames' times."""
        now = time.monotonic()
        if self._zero_monotonic is None:
            self._zero_monotonic = now - pts_seconds
        self._stopping.wait(max(0.0, self._zero_monotonic + pts_seconds - now))

    def _queue(self, frame: Frame) -> None:
        with self._changed:
            self._received += 1
            self._waiting.append(_Queued(frame, self._decoded))
            while self._num_queued > self._max_queue_frames:
                assert self._drops, "a lossless queue reads a frame only when it has room"
                self._waiting.popleft()
                self._dropped += 1
        self._on_change()

    def _finish(self, failure: Exception | None) -> None:
        """The source gave its last frame, or failed; being stopped is neither."""
        with self._changed:
            self.failure = failure
            self._observed = self.source.decoded
            self._ended = failure is not None or not self._stopping.is_set()
        self._on_change()

    # Taking clips

    def take_clip(self, *, flush: bool = False) -> Clip | None:
        """The next clip, now in flight; None if none is ready.

        Args:
            flush: an incomplete clip will do, too: for the rest of a live stream that is being left.

        Raises:
            Exception: `failure`, once all that was read before it has been taken.
        """
        with self._changed:
            assert self._clip is None, f"{self._clip} is still in flight"
            length = self._clip_length(0, flush)
            if not length and self.failure is not None:
                raise self.failure
            if length:
                self._in_flight = tuple(self._waiting.popleft() for _ in range(length))
                self._clip = self._as_clip(self._in_flight)
                self._dropped_before_clip = self._dropped
            return self._clip

    def peek_clip(self) -> Clip | None:
        """The frames that `take_clip` would take now."""
        with self._changed:
            length = self._clip_length(0)
            return self._as_clip(tuple(islice(self._waiting, length))) if length else None

    def commit(self, clip: Clip, *, skipped: int = 0) -> None:
        """The clip in flight is encoded, all but `skipped` of its frames."""
        with self._changed:
            self._check_in_flight(clip, skipped)
            self._encoded += len(clip.frames) - skipped
            self._skipped += skipped
            self._clip, self._in_flight = None, ()
            self._changed.notify_all()

    def release(self, clip: Clip) -> None:
        """The clip in flight could not be encoded: its frames wait again, before all others."""
        with self._changed:
            self._check_in_flight(clip, 0)
            self._waiting.extendleft(reversed(self._in_flight))
            self._clip, self._in_flight = None, ()

    def counters_if_committed(self, clip: Clip, *, skipped: int = 0) -> Counters:
        """The counts up to the end of the clip in flight, as if committed: stored with it, a later run's `base`."""
        with self._changed:
            self._check_in_flight(clip, skipped)
            encoded, skipped = self._encoded + len(clip.frames) - skipped, self._skipped + skipped
            dropped = self._dropped_before_clip  # frames dropped since then are later than the clip
            return Counters(self._in_flight[-1].decoded, encoded + skipped + dropped, encoded, skipped, dropped)

    def open_frames(self) -> tuple[Frame, ...]:
        """The newest queued frames, oldest first, that do not form a clip yet; fewer than `clip_frames`."""
        with self._changed:
            start = 0
            while length := self._clip_length(start):
                start += length
            return tuple(queued.frame for queued in islice(self._waiting, start, None))

    def has_queued(self, after_seconds: float, until_seconds: float) -> bool:
        """Whether a frame later than one time and no later than another waits."""
        with self._changed:
            return any(after_seconds < queued.frame.pts_seconds <= until_seconds for queued in self._waiting)

    def _clip_length(self, start: int, flush: bool = False) -> int:
        """Frames in the clip that begins at place `start` of the queue; 0 if it is not complete, unless to `flush`."""
        frames = [queued.frame for queued in islice(self._waiting, start, start + self._clip_frames)]
        for length in range(1, len(frames)):
            if not self._belong_together(frames[:length], frames[length]):
                return length
        return len(frames) if flush or self._ended or len(frames) == self._clip_frames else 0

    def _belong_together(self, scene: Sequence[Frame], following: Frame) -> bool:
        """Whether a clip may go on with a frame."""
        near = following.pts_seconds - scene[-1].pts_seconds <= self._max_gap_seconds
        same_clock = scene[-1].epoch_seconds == following.epoch_seconds
        same_shape = scene[-1].image.shape == following.image.shape
        cut = self._scene_cut is not None and is_cut(scene, following, self._scene_cut)
        return near and same_clock and same_shape and not cut

    def _as_clip(self, entries: Sequence[_Queued]) -> Clip:
        return Clip(tuple(queued.frame for queued in entries))

    def _check_in_flight(self, clip: Clip, skipped: int) -> None:
        assert clip is self._clip, f"{clip} is not in flight, {self._clip} is"
        assert 0 <= skipped <= len(clip.frames), f"{skipped} of {len(clip.frames)} frames skipped"

    # State

    @property
    def ended(self) -> bool:
        """Whether the source is over, or failed, and all that it gave is queued."""
        return self._ended

    @property
    def drained(self) -> bool:
        """Whether the stream has ended well and no frame waits or is in flight."""
        with self._changed:
            return self._ended and self.failure is None and not self._num_queued

    @property
    def clock_seconds(self) -> float | None:
        """Time of the latest decoded frame, sampled or not; None before the first."""
        return self._clock_seconds

    def has_received_past(self, seconds: float) -> bool:
        """Whether every frame up to this time that will ever be received has been."""
        with self._changed:
            past = self._ended or (self._clock_seconds is not None and self._clock_seconds > seconds)
            if not past:
                self._awaited_seconds = min(self._awaited_seconds, seconds)
            return past

    def counters(self) -> Counters:
        """All counts of one moment."""
        with self._changed:
            return Counters(
                self._decoded, self._received, self._encoded, self._skipped, self._dropped, self._num_queued
            )

    @property
    def _num_queued(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    @property
    def _decoded(self) -> int:
        """Decoded frames, those that an earlier run had decoded counted once."""
        return self._base_decoded + self._observed - self._reread

    def __repr__(self) -> str:
        return f"Ingest({self.source.name!r}, {self.counters()}{', ended' if self._ended else ''})"
