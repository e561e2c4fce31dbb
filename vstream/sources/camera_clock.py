"""One clock for a camera's frames that only rises, over reconnects and whatever the camera's own clock does.

This module knows nothing of connections, pictures or FFmpeg.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

STEP_SECONDS = 1e-3
"""Between a frame and the first of the next epoch, where no time is known to have passed."""

MAX_AHEAD_SECONDS = 2.0
"""A camera's clock further ahead of ours is wrong: it runs fast, it jumped, or the epoch began with old frames."""

MAX_BEHIND_SECONDS, MAX_LATE_SECONDS = 2.0, 10.0
"""Frames may be late (a slow network, a reader that waits); a clock that is this far behind for this long is wrong."""


class CameraClock:
    """Stream times of a camera's frames.

    An *epoch* is a stretch in which the camera's own clock is believed: stream time is the epoch's start plus what
    that clock says has passed. A new epoch begins with every connection, and where the camera's clock does not rise,
    is ahead of the monotonic clock, or stays behind it. It starts where the monotonic clock stands, always after the
    latest frame; where that is later, the stream's clock is ahead from then on.

    A frame without a time comes one average interval after the one before it.

    Attributes:
        epoch_seconds: wall-clock (Unix) time of the stream's zero, measured when the present epoch began; another value
            than that of the epoch before, if only by the last bit.
        latest_seconds: time of the latest frame, or what the stream resumes after; None before both.
        connected: whether the present connection has given a frame.
    """

    def __init__(
        self, *, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        """`monotonic` and `wall` give seconds."""
        self._monotonic = monotonic
        self._wall = wall
        self.epoch_seconds: float | None = None
        self.latest_seconds: float | None = None
        self.connected = False
        self._resumed_wall_seconds: float | None = None
        self._zero_monotonic: float | None = None
        self._interval_seconds = 0.0
        self._offset_seconds: float | None = None  # stream time minus the camera's, None while that is unknown
        self._late_since: float | None = None

    def resume_after(self, seconds: float, wall_seconds: float | None) -> None:
        """The stream has frames up to a time, which was at that wall-clock time: it goes on later than that."""
        self.latest_seconds, self._resumed_wall_seconds = seconds, wall_seconds

    def reconnect(self, interval_seconds: float) -> None:
        """What follows comes from a new connection, whose frames are about so far apart."""
        self.connected, self._interval_seconds = False, interval_seconds

    def seconds(self, camera_seconds: float | None) -> float:
        """Stream time of the next frame, whose time on the camera's clock is given, None where it has none."""
        now = self._monotonic()
        seconds = self._in_epoch(camera_seconds)
        if seconds is None or not self._is_plausible(seconds, now):
            seconds = self._begin_epoch(now)
        if camera_seconds is not None and self._offset_seconds is None:
            self._offset_seconds = seconds - camera_seconds
        self.latest_seconds = seconds
        return seconds

    def _in_epoch(self, camera_seconds: float | None) -> float | None:
        if not self.connected or self.latest_seconds is None:
            return None
        if camera_seconds is None or self._offset_seconds is None:
            return self.latest_seconds + max(self._interval_seconds, STEP_SECONDS)
        return self._offset_seconds + camera_seconds

    def _is_plausible(self, seconds: float, now: float) -> bool:
        assert self.latest_seconds is not None, "an epoch has begun"
        ahead = seconds - self._passed(now)
        if ahead >= -MAX_BEHIND_SECONDS:
            self._late_since = None
            return seconds > self.latest_seconds and ahead <= MAX_AHEAD_SECONDS
        self._late_since = now if self._late_since is None else self._late_since
        return seconds > self.latest_seconds and now - self._late_since < MAX_LATE_SECONDS

    def _begin_epoch(self, now: float) -> float:
        start = self._first_seconds() if self._zero_monotonic is None else self._passed(now)
        if self.latest_seconds is not None:
            start = max(start, self.latest_seconds + STEP_SECONDS)
        self._zero_monotonic = now - start
        epoch_seconds = self._wall() - start
        is_same = epoch_seconds == self.epoch_seconds
        self.epoch_seconds = math.nextafter(epoch_seconds, math.inf) if is_same else epoch_seconds
        self.connected, self._offset_seconds, self._late_since = True, None, None
        return start

    def _first_seconds(self) -> float:
        """Stream time of the very first frame."""
        if self.latest_seconds is None:
            return 0.0
        passed = 0.0 if self._resumed_wall_seconds is None else self._wall() - self._resumed_wall_seconds
        return self.latest_seconds + passed

    def _passed(self, now: float) -> float:
        """Where the monotonic clock stands in stream time."""
        assert self._zero_monotonic is not None, "the first frame sets the zero"
        return now - self._zero_monotonic
