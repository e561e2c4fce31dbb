"""Which frames of a stream are taken, and the count of what became of them.

This module knows nothing of sources, queues or threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EARLY_SECONDS = 0.001
"""A frame this much before its grid time is on time: containers round times to milliseconds."""


@dataclass(frozen=True)
class Counters:
    """What became of every frame: `received == encoded + skipped + dropped + queued`, always.

    Attributes:
        decoded: decoder outputs, at least as many as were received.
        received: frames that were sampled.
        encoded: frames of committed clips, without the skipped ones.
        skipped: frames of committed clips that the worker chose not to encode.
        dropped: frames that left a full queue unread.
        queued: frames that wait, the clip in flight included.
    """

    decoded: int = 0
    received: int = 0
    encoded: int = 0
    skipped: int = 0
    dropped: int = 0
    queued: int = 0

    def __post_init__(self) -> None:
        assert min(vars(self).values()) >= 0, f"counts are never negative: {self}"
        assert self.received == self.encoded + self.skipped + self.dropped + self.queued, f"a frame was lost: {self}"
        assert self.decoded >= self.received, f"more frames were received than decoded: {self}"


class Sampler:
    """Says which frames are due: the first in each interval [k / fps, (k + 1) / fps) of stream time, never by index.

    The answers depend on the times alone. The grid stands at stream time 0, and a sampler that starts `after_seconds`,
    a time that was sampled before, goes on exactly like the one that sampled it.
    """

    def __init__(self, fps: float | None, *, after_seconds: float | None = None) -> None:
        """`fps` None means every frame. Raises `ValueError` for an `fps` that is not a finite number above 0."""
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps must be a finite number above 0, or None for every frame, got {fps}")
        self._fps = fps
        self._latest = -1.0 if after_seconds is None else self._interval(after_seconds)

    def __call__(self, pts_seconds: float) -> bool:
        """Whether the frame at this time is due; to be asked for every decoded frame, in rising time."""
        interval = self._interval(pts_seconds)
        due = interval > self._latest
        self._latest = max(self._latest, interval)
        return due

    def _interval(self, pts_seconds: float) -> float:
        return pts_seconds if self._fps is None else math.floor((pts_seconds + EARLY_SECONDS) * self._fps)
