"""Frames that a program hands over itself, from any thread.

This module knows nothing of where the program has its pictures from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vstream.sources.base import Source, fit_image
from vstream.types import Frame

CLOCK_STEP_SECONDS = 1e-3  # between the last frame of one run and the first of the next


class PushSource(Source):
    """A live source that is fed by `push` and ended by `end`.

        source = PushSource("my program")
        source.push(image)              # [height, width, 3] uint8 RGB, now
        source.push(image, 12.5)        # or at a time of one's own, in seconds from the stream's start
        source.end()

    `push` waits while `capacity` frames wait to be read: with the lossless policy a slow model slows the program down,
    with a dropping policy the reader never waits and neither does `push`. Features [tokens, embedding] pass unchanged.
    """

    is_live = True

    def __init__(self, name: str = "push", *, max_side: int = 1 << 14, capacity: int = 2) -> None:
        super().__init__(name, max_side=max_side)
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 frame, got {capacity}")
        self._capacity = capacity
        self._waiting: deque[Frame] = deque()
        self._ended = False
        self._latest_seconds: float | None = None
        self._first_monotonic: float | None = None
        self._zero_seconds = 0.0
        self._turn = threading.Lock()  # pushes of several threads go in one after the other
        self._changed = threading.Condition()

    def push(self, image: npt.NDArray[Any], pts_seconds: float | None = None) -> None:
        """Hands over one frame; returns when it has a place, at once while fewer than `capacity` wait.

        Args:
            image: [height, width, 3] uint8 RGB, or [tokens, embedding] floating point; copied, so it may be reused.
            pts_seconds: time on the stream's clock; the time since the first push if None.

        Raises:
            ValueError: if the time does not rise, the image has another shape, or the source has ended.
        """
        with self._turn:
            frame = self._stamped(image, pts_seconds)
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._over)
                if self._over:
                    raise ValueError(f"the source {self.name!r} has ended and takes no more frames")
                self._latest_seconds = frame.pts_seconds
                self._waiting.append(frame)
                self._changed.notify_all()

    def _stamped(self, image: npt.NDArray[Any], pts_seconds: float | None) -> Frame:
        """The frame at its time, with a picture of its own."""
        now = time.monotonic()
        first = now if self._first_monotonic is None else self._first_monotonic
        seconds = self._zero_seconds + now - first if pts_seconds is None else float(pts_seconds)
        if self._latest_seconds is not None and seconds <= self._latest_seconds:
            raise ValueError(f"frame times must rise: {seconds} s was pushed after {self._latest_seconds} s")
        frame = Frame(seconds, np.array(image))
        if self._first_monotonic is None:
            self._first_monotonic = now
            self.epoch_seconds = time.time() - seconds
        return frame

    def resume_after(self, seconds: float, wall_seconds: float | None = None) -> None:
        """Times of this run are later: those it gives itself begin there, those of the program are checked."""
        super().resume_after(seconds, wall_seconds)
        self._latest_seconds, self._zero_seconds = seconds, seconds + CLOCK_STEP_SECONDS

    def end(self) -> None:
        """No more frames will come; those handed over are still read. Calling it again does nothing."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Ends at once: waiting frames are left unread and waiting pushes raise."""
        super().interrupt()
        self.end()

    @property
    def _over(self) -> bool:
        return self._ended or self._interrupted.is_set()

    def _pictures(self) -> Iterator[tuple[float, Frame]]:
        while (frame := self._next()) is not None:
            yield frame.pts_seconds, frame

    def _next(self) -> Frame | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._over)
            if not self._waiting or self._interrupted.is_set():
                return None
            frame = self._waiting.popleft()
            self._changed.notify_all()
            return frame

    def _image(self, picture: Frame, max_side: int) -> npt.NDArray[Any]:
        image: npt.NDArray[Any] = picture.image
        return fit_image(image, max_side) if image.dtype == np.uint8 else image
