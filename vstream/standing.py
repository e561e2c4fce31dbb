"""Standing questions: a condition that is looked for in every clip, and the events that come of it.

After each committed clip a model says how much likelier "yes" is than "no" (`yes_no.py`, `lookout.py`). What is made of
these numbers is here: they are compared with a baseline of the question's own, an event begins above `on` and ends
below `off`, and none begins within the cool-down after the one before. This module knows nothing of models, sources,
sessions or how events are delivered.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KEPT_EVENTS = 100


@dataclass(frozen=True, kw_only=True)
class AlertOptions:
    """How a standing question is judged.

    A score is the log-odds of yes against no, less the question's own baseline.

    Attributes:
        on: an event begins above this score.
        off: it ends below this one, which is lower than `on`.
        cool_down_seconds: no event begins so soon after the end of the one before, in stream time.
        calibrate: the baseline is taken from at most so many of the latest clips without an event; 0 takes none.
        uses_memory: whether what memory brings back is shown besides the newest clip.

    Raises:
        ValueError: for a number out of range.
    """

    on: float = 0.0
    off: float = -1.0
    cool_down_seconds: float = 10.0
    calibrate: int = 64
    uses_memory: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.off < self.on < math.inf:
            raise ValueError(f"off must be below on, and both finite, got on={self.on} and off={self.off}")
        if not 0 <= self.cool_down_seconds < math.inf:
            raise ValueError(f"cool_down_seconds must be a finite number >= 0, got {self.cool_down_seconds}")
        if not isinstance(self.calibrate, int) or not 0 <= self.calibrate <= 10_000:
            raise ValueError(f"calibrate must be a whole number of clips from 0 to 10000, got {self.calibrate!r}")


@dataclass(frozen=True, eq=False)
class Event:
    """Something that a standing question looks for has begun, or is over.

    Attributes:
        id: the same at its beginning, at its end and when the stream is watched again.
        alert_id: of the standing question.
        text: the standing question.
        start_seconds: stream time of the first frame that shows it.
        end_seconds: of the last one, None while it goes on.
        seconds: of the frame in `picture`.
        confidence: 0 to 1, when it began; the highest one, once it is over.
        picture: JPEG of the frame that shows it best, b"" where frames are no pictures.
        wall_clock: Unix time of `start_seconds`, None where unknown.
    """

    id: str
    alert_id: str
    text: str
    start_seconds: float
    end_seconds: float | None
    seconds: float
    confidence: float
    picture: bytes
    wall_clock: float | None


class Alert:
    """A standing question. The worker's thread feeds it; any thread may read, listen and cancel.

    Attributes:
        id: follows from its text, so it is the same when the stream is watched again.
        text: as given.
        options: how it is judged.
        looked: clips on which it was evaluated.
        skipped: clips on which there was no time to look.
    """

    def __init__(self, alert_id: str, text: str, options: AlertOptions) -> None:
        """A standing question without an event yet."""
        self.id, self.text, self.options = alert_id, text, options
        self.looked = self.skipped = 0
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    @property
    def events(self) -> tuple[Event, ...]:
        """The latest events, oldest first; the last one may go on."""
        with self._lock:
            return tuple(self._events)

    @property
    def confidence(self) -> float | None:
        """That it is so now, 0 to 1; None before the first look."""
        raise NotImplementedError

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Has `callback` called with every event at its beginning and again at its end, by the worker's thread.

        It must neither block nor raise, nor call the session.
        """
        with self._lock:
            self._listeners = (*self._listeners, callback)

    def unsubscribe(self, callback: Callable[[Event], None]) -> None:
        """Ends what `subscribe` began. Raises `ValueError` if it did not."""
        with self._lock:
            left = list(self._listeners)
            left.remove(callback)
            self._listeners = tuple(left)

    def cancel(self) -> None:
        """Looks no more. An event that goes on ends with the clip looked at last."""
        self._cancelled.set()

    def state(self) -> dict[str, Any]:
        """All that goes on, as JSON holds it: baseline, and the event that goes on, without its picture."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave. Raises `ValueError` for the state of another question."""
        raise NotImplementedError
