"""The newest picture of a stream, for any number of live views. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from vstream.picture import encode_jpeg

MAX_SIDE = 960
FPS = 8.0
IDLE_SECONDS = 2.0
"""While nobody looks, a picture is taken so often, for the next one who does."""
QUALITY = 75


class LiveView:
    """What a source shows right now; a `vstream.sources.base.Viewer`.

    The source's thread shows pictures, others look. A picture is encoded when somebody looks, and once for all of them.
    """

    max_side = MAX_SIDE

    def __init__(self, *, fps: float = FPS, monotonic: Callable[[], float] = time.monotonic) -> None:
        """At most `fps` pictures a second are taken, fewer while nobody looks."""
        self._interval_seconds = 1 / fps
        self._monotonic = monotonic
        self._taken_at = float("-inf")
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._image: npt.NDArray[Any] | None = None
        self._jpeg: bytes | None = None
        self._seconds: float | None = None

    def wants(self, pts_seconds: float) -> bool:
        """Whether it is time for another picture."""
        interval = self._interval_seconds if self._listeners else max(IDLE_SECONDS, self._interval_seconds)
        return self._monotonic() - self._taken_at >= interval

    def show(self, pts_seconds: float, image: npt.NDArray[Any]) -> None:
        """Takes a picture [height, width, 3] uint8 and tells those who look."""
        self._taken_at = self._monotonic()
        with self._lock:
            self._image, self._jpeg, self._seconds = image, None, pts_seconds
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def newest(self) -> tuple[bytes, float] | None:
        """The newest picture as JPEG and its stream time; None before the first."""
        with self._lock:
            if self._image is None or self._seconds is None:
                return None
            if self._jpeg is None:
                self._jpeg = encode_jpeg(self._image, QUALITY)
            return self._jpeg, self._seconds

    @property
    def age_seconds(self) -> float | None:
        """How long ago the newest picture came; None before the first."""
        return None if self._image is None else self._monotonic() - self._taken_at

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Has `listener` called after each new picture, by the source's thread; it must return at once."""
        with self._lock:
            self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Ends what `subscribe` began."""
        with self._lock:
            self._listeners.remove(listener)
