"""The contract of every source of frames, written once here.

A source knows nothing of sampling rates, queues, clips or models: it decodes, tells the time of every decoder output,
and converts to RGB only the frames that its caller wants.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from vstream.types import Frame, Gap

KEPT_GAPS = 100
"""How many gaps a source remembers; all are counted."""


class Viewer(Protocol):
    """Looks on while a source is read, at a pace and size of its own; it never holds the reading up.

    Attributes:
        max_side: longest side, in pixels, of the pictures it is shown.
    """

    max_side: int

    def wants(self, pts_seconds: float) -> bool:
        """Whether it wants to be shown the picture of this time."""

    def show(self, pts_seconds: float, image: npt.NDArray[np.uint8]) -> None:
        """Shows it a picture [height, width, 3]."""


class Source(ABC):
    """One stream of pictures, read once from its start to its end.

    A subclass opens its input in its constructor (and raises `ValueError` there, in one sentence that names the input),
    and writes `_pictures` and `_image`; what follows is the same for all sources.

    * One thread calls `frames`, once. `interrupt` may be called by any thread at any time: `frames` then ends soon,
      even while it waits for a camera. `close` frees what the source holds, before `frames` began or after it ended.
    * Times are seconds on the stream's own clock, which starts at 0 and only rises. A decoder output whose time does
      not rise is decoded and counted, but not offered.
    * Every frame carries the `epoch_seconds` that was in force when it was decoded; it may change while a source is
      read, so no other thread takes it from the source.
    * A source never loses a readable picture by itself; what it cannot read it counts in `errors`.

    Attributes:
        name: shown to people; never holds credentials.
        is_live: whether time passes whether or not we read (a camera, a program that pushes).
        epoch_seconds: wall-clock (Unix) time of the stream's zero, None where unknown (so far).
        duration_seconds: length as the container tells it, None where it does not.
        decoded: decoder outputs so far, all of them, not only the wanted.
        errors: inputs so far that could not be decoded.
        gaps: the newest stretches in which a live source was not seen, at most `KEPT_GAPS`, oldest first.
        num_gaps: how many there were in all.
        fingerprint: tells inputs of one name apart, "" where nothing is known.
        max_side: longest side, in pixels, that wanted frames are brought to; frames are never enlarged.
        viewer: somebody who looks on, set before reading begins; what is read does not depend on it.
    """

    is_live: bool = False
    duration_seconds: float | None = None

    def __init__(self, name: str, *, max_side: int) -> None:
        """Sets the common attributes. Raises `ValueError` for a `max_side` below 1."""
        if max_side < 1:
            raise ValueError(f"max_side must be at least 1 pixel, got {max_side}")
        self.name = name
        self.max_side = max_side
        self.viewer: Viewer | None = None
        self.fingerprint = ""
        self.epoch_seconds: float | None = None
        self.decoded = 0
        self.errors = 0
        self.gaps: tuple[Gap, ...] = ()
        self.num_gaps = 0
        self._interrupted = threading.Event()
        self._began = False

    @abstractmethod
    def _pictures(self) -> Iterator[tuple[float, Any]]:
        """(pts_seconds, decoder output), in the decoder's order; ends soon after `_interrupted` is set."""

    @abstractmethod
    def _image(self, picture: Any, max_side: int) -> npt.NDArray[Any]:
        """A decoder output as an upright image [height, width, 3] uint8, no side longer than `max_side` pixels."""

    def frames(self, wanted: Callable[[float], bool]) -> Iterator[Frame]:
        """Yields, in rising pts_seconds, the frames for which `wanted(pts_seconds)` is True.

        `wanted` is called once for every decoder output whose time rises, in that order, with `decoded` already
        counting it; only wanted ones are converted.
        """
        assert not self._began, f"{self.name} is read once, from its start"
        self._began = True
        return self._frames(wanted)

    def _frames(self, wanted: Callable[[float], bool]) -> Iterator[Frame]:
        latest_seconds = -1e-9  # time zero rises above it, negative times do not
        unseen: tuple[float, Any] | None = None
        for pts_seconds, picture in self._pictures():
            if self._interrupted.is_set():
                return
            self.decoded += 1
            if pts_seconds <= latest_seconds:
                continue
            latest_seconds = pts_seconds
            is_wanted = wanted(pts_seconds)
            unseen = None if self._show(pts_seconds, picture) else (pts_seconds, picture)
            if is_wanted:
                yield Frame(pts_seconds, self._image(picture, self.max_side), self.epoch_seconds)

        if unseen is not None:  # the last picture stays before the viewer's eyes
            self._show(*unseen, last=True)

    def _show(self, pts_seconds: float, picture: Any, *, last: bool = False) -> bool:
        """Whether the viewer has seen it."""
        if self.viewer is None or not (last or self.viewer.wants(pts_seconds)):
            return False
        image = self._image(picture, self.viewer.max_side)
        if image.ndim == 3:  # features are no picture
            self.viewer.show(pts_seconds, image)
        return True

    def _add_gap(self, gap: Gap) -> None:
        self.gaps = (*self.gaps, gap)[-KEPT_GAPS:]
        self.num_gaps += 1

    @property
    def state(self) -> str:
        """What the source is doing now, in a few words for people; "" for sources that have nothing to say."""
        return ""

    @property
    def warning(self) -> str | None:
        """One sentence about what could not be read so far, None while all is well."""
        if not self.errors:
            return None
        return f"{self.name}: {self.errors} damaged part{'s' * (self.errors > 1)} left out."

    def resume_after(self, seconds: float, wall_seconds: float | None = None) -> None:
        """Told before reading begins that a memory holds all up to this time: a live clock goes on later than that.

        A source that is not live gives the same frames as ever; its reader knows which it has had.

        Args:
            seconds: stream time of the newest frame that is remembered.
            wall_seconds: wall-clock (Unix) time of that frame, None where unknown.

        Raises:
            ValueError: if a time is not finite.
        """
        if not math.isfinite(seconds) or not math.isfinite(wall_seconds or 0.0):
            raise ValueError(f"a source resumes after finite times, got {seconds} and {wall_seconds}")

    def interrupt(self) -> None:
        """Makes `frames` end soon, from any thread, for good."""
        self._interrupted.set()

    def close(self) -> None:
        """Frees what the source holds; calling it again does nothing."""
        self.interrupt()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.decoded} decoded)"


def fitted_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """(width, height) with the same aspect and no side longer than `max_side` pixels; never larger than given."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit_image(image: npt.NDArray[np.uint8], max_side: int) -> npt.NDArray[np.uint8]:
    """An image [height, width, 3] shrunk to `max_side` pixels where it is larger, else itself."""
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image
    from PIL import Image

    size = fitted_size(width, height, max_side)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
