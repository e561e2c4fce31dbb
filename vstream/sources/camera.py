"""Cameras: a source that connects, notices when nothing comes, and connects again, for ever.

This module knows nothing of sampling or queues; how times are told is in `camera_clock.py`, how cameras are named in
`camera_address.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import av

from vstream.sources.camera_address import OPEN_SECONDS, CameraAddress
from vstream.sources.camera_clock import CameraClock
from vstream.sources.pyav import PyavSource, video_streams
from vstream.types import Gap

SILENCE_SECONDS = 2.9
"""A connection that gives no packet for so long is stalled (noticed within 5 s, as reads return every 1.5 s)."""

PICTURELESS_SECONDS, MAX_PICTURELESS_SECONDS = 10.0, 60.0
"""A connection that gives packets but no picture for so long is given up; the next one may take twice as long."""

MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 30.0
MAX_FAILURES = 16  # from here on the wait is the longest
POLL_SECONDS = 0.01
NOT_AUTHORISED = "not authorised"


class CameraSource(PyavSource):
    """A camera (network, webcam or synthetic), watched until it is interrupted.

    The constructor does not connect: a camera may be off now, and is waited for. When a connection breaks, stalls or
    gives no pictures, `frames` waits (longer after every failure) and connects again; stream time goes on meanwhile,
    and the break is a `Gap`. Nothing that is shown, told or raised holds the address's credentials.

    A webcam that stalls without an error blocks its driver, and so an interrupt, until it goes on or is unplugged.
    """

    is_live = True

    def __init__(
        self,
        address: CameraAddress,
        *,
        max_side: int,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`rng` spreads the waits between attempts, `monotonic` and `wall` give seconds: all three for tests."""
        super().__init__(address.name, max_side=max_side)
        self._address = address
        self._rng = rng or random.Random()
        self._monotonic = monotonic
        self._clock = CameraClock(monotonic=monotonic, wall=wall)
        self._reader: Generator[tuple[float, av.VideoFrame], None, None] | None = None
        self._state = ""
        self._break_reason = ""
        self._patience_seconds = PICTURELESS_SECONDS

    @property
    def state(self) -> str:
        """'connecting', 'watching', or how long it waits after what; "" before it is read and once interrupted."""
        return "" if self._interrupted.is_set() else self._state

    def resume_after(self, seconds: float, wall_seconds: float | None = None) -> None:
        """The stream goes on at that time plus the wall-clock time passed since; between is a gap, "not watching"."""
        super().resume_after(seconds, wall_seconds)
        self._clock.resume_after(seconds, wall_seconds)
        self._break_reason = "not watching"

    def close(self) -> None:
        """Closes the connection; to be called when no thread reads it any more."""
        super().close()
        if self._reader is not None:
            self._reader.close()

    def _pictures(self) -> Iterator[tuple[float, av.VideoFrame]]:
        self._reader = self._watch_for_ever()
        return self._reader

    def _watch_for_ever(self) -> Generator[tuple[float, av.VideoFrame], None, None]:
        failures = 0
        while not self._interrupted.is_set():
            reason = yield from self._watch_once()
            if self._clock.connected:
                failures, self._break_reason = 0, reason
            failures += 1
            self._wait(failures, reason)

    def _wait(self, failures: int, reason: str) -> None:
        seconds = wait_seconds(MAX_FAILURES if reason == NOT_AUTHORISED else failures, self._rng)
        self._state = f"waiting {seconds:.2g} s after: {reason} (attempt {failures})"
        self._interrupted.wait(seconds)

    # One connection

    def _watch_once(self) -> Generator[tuple[float, av.VideoFrame], None, str]:
        """Everything that one connection gives; returns why it ended."""
        self._state = "connecting"
        self._clock.connected = False
        try:
            with self._open() as container:
                yield from self._frames_of(container)
        except av.FFmpegError as error:
            return self._address.why() or reason_of(error)
        except _Break as broken:
            return str(broken)
        return self._address.why() or "the camera ended the stream"

    def _open(self) -> av.container.InputContainer:
        began = self._monotonic()
        try:
            return self._address.open()
        except av.FFmpegError as error:
            timed_out = self._monotonic() - began > OPEN_SECONDS - POLL_SECONDS  # FFmpeg names other reasons then
            reason = self._address.why() or ("no answer" if timed_out else reason_of(error))
            raise _Break(reason) from None

    def _frames_of(self, container: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
        stream = next(iter(video_streams(container)), None)
        if stream is None:
            raise _Break("the camera has no video")
        stream.thread_type = "SLICE"  # threads by frame would hold frames back
        self._clock.reconnect(_interval_seconds(stream))
        latest = self._monotonic()
        for packet in self._packets(container):
            for frame in self._decode_packet(stream, packet) if packet.stream is stream else []:
                if self._is_intact(frame):
                    yield self._seconds_of(frame), frame
                    latest = self._monotonic()
            if self._monotonic() - latest > self._patience_seconds:
                self._patience_seconds = min(2 * self._patience_seconds, MAX_PICTURELESS_SECONDS)
                raise _Break("packets, but no pictures")

    def _packets(self, container: av.container.InputContainer) -> Iterator[Any]:
        """All packets up to the end of the stream, and one to empty the decoder; a read that times out is repeated."""
        heard = self._monotonic()
        while not self._interrupted.is_set():
            try:
                for packet in container.demux():
                    yield packet
                    heard = self._monotonic()  # what the reader took is no silence
                return
            except (av.ExitError, av.BlockingIOError):  # the read timed out, or the driver has nothing yet
                self._interrupted.wait(POLL_SECONDS)
            if self._monotonic() - heard > SILENCE_SECONDS:
                raise _Break("stalled")

    def _seconds_of(self, frame: av.VideoFrame) -> float:
        """Stream time of a frame; the first of a connection ends a gap."""
        before, reconnected = self._clock.latest_seconds, not self._clock.connected
        seconds = self._clock.seconds(frame.time)
        self.epoch_seconds = self._clock.epoch_seconds
        if reconnected:
            self._state, self._patience_seconds = "watching", PICTURELESS_SECONDS
            if before is not None:
                self._add_gap(Gap(before, seconds, self._break_reason))
        return seconds


class _Break(Exception):
    """Ends a connection; its text is the reason, for people."""


def _interval_seconds(stream: Any) -> float:
    """About how far apart frames are; FFmpeg guesses rates like 1000 where it does not know."""
    rate = stream.guessed_rate or 0
    return float(1 / rate) if 0 < rate <= 120 else 1 / 25


def wait_seconds(failures: int, rng: random.Random) -> float:
    """How long to wait after so many failures in a row: 0.5 s, doubling up to 30 s, less up to a half by chance."""
    longest = min(MAX_WAIT_SECONDS, MIN_WAIT_SECONDS * 2.0 ** min(failures, MAX_FAILURES))
    return max(MIN_WAIT_SECONDS, rng.uniform(longest / 2, longest))


def reason_of(error: av.FFmpegError) -> str:
    """FFmpeg's reason in a phrase, without the address that its own text repeats."""
    if isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError)):
        return NOT_AUTHORISED
    if isinstance(error, av.HTTPNotFoundError):
        return "the camera has no such stream"
    return (error.strerror or "unknown reason").lower()
