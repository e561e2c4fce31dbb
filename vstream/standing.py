"""Standing questions: a condition that is looked for in every clip, and the events that come of it.

After each committed clip a model says how much likelier "yes" is than "no" (`yes_no.py`, `lookout.py`); here is what is
made of these numbers, without training:

- *Baseline.* A model leans to one answer by the wording alone. The question is first asked with nothing to see
  (contextual calibration: Zhao et al. 2021, "Calibrate before use", arXiv 2102.09690); the baseline is the median of
  that and of the latest clips without an event. A score is what a clip is above it. With one `on` for two
  wordings, of which `tiny` was trained on one, 0.99 and 0.88 of what appeared were found; by the best threshold
  without a baseline 1.00 and 0.59, above what is said to nothing alone 0.99 and 0.70 (`scripts/bench_alerts.py`).
- *Hysteresis.* An event begins above `on` and ends below `off`, which is lower.
- *Cool-down.* None begins soon after the end of the one before.

A confidence is the logistic of a score, 0.5 at `on`. VideoLLM-online (arXiv 2406.11816) speaks where the probability
of silence is below 0.725, for all questions alike: there that found 1.00 and 0.94, with 4 and 7 false alarms an hour
where this rule had 0.25 and 1.75. This module knows nothing of models, sources, sessions or how events are delivered.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, NamedTuple

KEPT_EVENTS = 100
MAX_CALIBRATE = 10_000


@dataclass(frozen=True, kw_only=True)
class AlertOptions:
    """How a standing question is judged.

    A score is the log-odds of yes against no, less the question's own baseline.

    Attributes:
        on: an event begins above this score.
        off: it ends below this one, which is lower than `on`.
        cool_down_seconds: no event begins so soon after the end of the one before, in stream time.
        calibrate: the baseline is taken from at most so many of the latest clips without an event; 0 takes none.
        uses_memory: whether what memory brings back is shown besides the newest clip: for what takes longer to see.

    Raises:
        ValueError: for a number out of range.
    """

    on: float = 6.0
    off: float = 3.0
    cool_down_seconds: float = 10.0
    calibrate: int = 64
    uses_memory: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.off < self.on < math.inf:
            raise ValueError(f"off must be below on, and both finite, got on={self.on} and off={self.off}")
        if not 0 <= self.cool_down_seconds < math.inf:
            raise ValueError(f"cool_down_seconds must be a finite number >= 0, got {self.cool_down_seconds}")
        whole = isinstance(self.calibrate, int) and not isinstance(self.calibrate, bool)
        if not whole or not 0 <= self.calibrate <= MAX_CALIBRATE:
            raise ValueError(f"calibrate must be a whole number from 0 to {MAX_CALIBRATE}, got {self.calibrate!r}")


@dataclass(frozen=True)
class Event:
    """Something that a standing question looks for has begun, or is over.

    Attributes:
        id: the same at its beginning, at its end and when the stream is watched again.
        alert_id: of the standing question.
        text: the standing question.
        start_seconds: stream time of the first frame that shows it.
        end_seconds: of the last frame of the last clip that does, None while it goes on.
        seconds: of the frame in `picture`.
        confidence: 0 to 1, of the clip in which it began; the highest one, once it is over.
        picture: JPEG of the frame that showed it best when it began, b"" where there is none.
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

    def __repr__(self) -> str:
        until = "" if self.end_seconds is None else f"{self.end_seconds:.3f}"
        return f"Event({self.text!r}, {self.start_seconds:.3f}..{until} s, confidence {self.confidence:.2f})"


class Shown(NamedTuple):
    """What shows that an event has begun, see `Event`."""

    start_seconds: float
    seconds: float
    picture: bytes
    wall_clock: float | None


class Judge:
    """The rule alone: from log-odds, one after the other, to whether there is an event.

    Attributes:
        on: whether there is one now.
        score: of the newest clip, None before the first.
        last_seconds: end of the newest clip with an event, -inf before the first.
    """

    def __init__(self, options: AlertOptions) -> None:
        """Nothing is heard, and nothing goes on."""
        self.options = options
        self.on = False
        self.score: float | None = None
        self.last_seconds = -math.inf
        self._quiet: deque[float] = deque(maxlen=options.calibrate)

    @property
    def needs_start(self) -> bool:
        """Whether it wants to hear what is said with nothing to see."""
        return self.options.calibrate > 0 and not self._quiet

    def start(self, log_odds: float) -> None:
        """Takes what is said with nothing to see as the baseline, until clips tell more."""
        self._quiet.append(log_odds)

    def hear(self, log_odds: float, start_seconds: float, end_seconds: float) -> Literal["begins", "ends"] | None:
        """The next clip's log-odds and times; whether an event begins or ends by it."""
        self.score = self.score_of(log_odds)
        was_on, cooled = self.on, start_seconds - self.last_seconds >= self.options.cool_down_seconds
        self.on = self.score >= self.options.off if was_on else self.score > self.options.on and cooled
        if self.on:
            self.last_seconds = end_seconds
        elif self.score <= self.options.on:  # what the cool-down alone keeps from being an event is not quiet
            self._quiet.append(log_odds)
        return None if self.on == was_on else "begins" if self.on else "ends"

    def score_of(self, log_odds: float) -> float:
        """How far log-odds are above the baseline."""
        return log_odds - (median(self._quiet) if self._quiet else 0.0)

    @property
    def confidence(self) -> float:
        """Of the newest clip, 0 to 1; 0.5 where an event may begin."""
        assert self.score is not None, "nothing was heard"
        return 1 / (1 + math.exp(min(self.options.on - self.score, 700.0)))

    def state(self) -> dict[str, Any]:
        """As JSON holds it."""
        last = None if math.isinf(self.last_seconds) else self.last_seconds
        return {"last_seconds": last, "quiet": list(self._quiet)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.last_seconds = -math.inf if state["last_seconds"] is None else float(state["last_seconds"])
        self._quiet = deque(map(float, state["quiet"]), maxlen=self.options.calibrate)


class Alert:
    """A standing question. The worker's thread feeds it; any thread may read, listen and cancel.

    Attributes:
        id: follows from its text, so it is the same when the stream is watched again.
        text: as given.
        options: how it is judged.
        looked: clips on which it was evaluated.
        skipped: clips on which there was no time to look.
        log_odds: of yes against no in the clip looked at last, None before the first.
    """

    def __init__(
        self, text: str, options: AlertOptions, *, number: int = 1, wake: Callable[[], None] = lambda: None
    ) -> None:
        """The `number`-th standing question of this text; `wake` is called when it is cancelled."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.id = digest if number == 1 else f"{digest}-{number}"
        self.text, self.options = text, options
        self.looked = self.skipped = 0
        self.log_odds: float | None = None
        self._judge = Judge(options)
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._untold: deque[Event] = deque()
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        self._lock = threading.Lock()
        self._cancelled = False
        self._wake = wake

    @property
    def events(self) -> tuple[Event, ...]:
        """The latest events, oldest first, at most `KEPT_EVENTS`; the last one may go on."""
        with self._lock:
            return tuple(self._events)

    @property
    def score(self) -> float | None:
        """Of the clip looked at last, None before the first."""
        return self._judge.score

    @property
    def confidence(self) -> float | None:
        """That it is so in the clip looked at last, 0 to 1; None before the first."""
        return None if self._judge.score is None else self._judge.confidence

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Has `callback` called with every event at its beginning and again at its end, by the worker's thread.

        It must neither block nor raise. What began before is not told: look at `events` once after subscribing.
        """
        with self._lock:
            self._listeners = (*self._listeners, callback)

    def unsubscribe(self, callback: Callable[[Event], None]) -> None:
        """Ends what `subscribe` began.

        Raises:
            ValueError: if it did not.
        """
        with self._lock:
            left = list(self._listeners)
            left.remove(callback)
            self._listeners = tuple(left)

    def cancel(self) -> None:
        """Looks no more. An event that goes on is over, and told as such."""
        with self._lock:
            self._finish()
            self._cancelled = True
        self._wake()

    def state(self) -> dict[str, Any]:
        """What a resumed stream needs to go on with it, as JSON holds it; the picture is not in it."""
        with self._lock:
            event = {**vars(self._events[-1]), "picture": None} if self._goes_on else None
            return {"text": self.text, **self._judge.state(), "event": event}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, before the first look.

        Raises:
            ValueError: if that was another question.
        """
        if state["text"] != self.text:
            raise ValueError(f"this is the state of the alert {state['text']!r}, not of {self.text!r}; give its own")
        with self._lock:
            self._judge.restore(state)
            if state["event"] is not None:
                self._judge.on = True
                self._events.append(Event(**{**state["event"], "picture": b""}))

    # What follows is the worker's side.

    @property
    def needs_start(self) -> bool:
        """Whether it wants to hear what is said with nothing to see."""
        return self._judge.needs_start

    def start(self, log_odds: float) -> None:
        """Hears what is said with nothing to see."""
        with self._lock:
            self._judge.start(log_odds)

    def score_of(self, log_odds: float) -> float:
        """How far log-odds are above the question's baseline."""
        return self._judge.score_of(log_odds)

    def hear(self, log_odds: float, start_seconds: float, end_seconds: float, show: Callable[[], Shown]) -> None:
        """A clip's log-odds and times; `show` is called if an event begins by it."""
        with self._lock:
            self.looked, self.log_odds = self.looked + 1, log_odds
            change = self._judge.hear(log_odds, start_seconds, end_seconds)
        shown = show() if change == "begins" else None  # takes a while
        with self._lock:
            if self._cancelled:
                return
            if shown is not None:
                self._begin(shown)
            elif change == "ends":
                self._end()
            elif self._goes_on:
                self._grow()

    def finish(self) -> None:
        """The stream is over, or nobody asks any more: what goes on ends with the clip looked at last."""
        with self._lock:
            self._finish()

    def tell(self) -> None:
        """Calls who listens with what is new."""
        while self._untold:
            event = self._untold.popleft()
            for listener in self._listeners:
                listener(event)

    @property
    def _goes_on(self) -> bool:
        return bool(self._events) and self._events[-1].end_seconds is None

    def _finish(self) -> None:
        if self._goes_on:
            self._judge.on = False
            self._end()

    def _begin(self, shown: Shown) -> None:
        event_id = f"{self.id}-{round(shown.start_seconds * 1000)}"
        start, seconds, picture, wall_clock = shown
        confidence = self._judge.confidence
        self._events.append(Event(event_id, self.id, self.text, start, None, seconds, confidence, picture, wall_clock))
        self._untold.append(self._events[-1])

    def _grow(self) -> None:
        newest = self._events[-1]
        self._events[-1] = replace(newest, confidence=max(newest.confidence, self._judge.confidence))

    def _end(self) -> None:
        self._events[-1] = replace(self._events[-1], end_seconds=self._judge.last_seconds)
        self._untold.append(self._events[-1])

    def __repr__(self) -> str:
        return f"Alert({self.text!r}, {len(self._events)} events, {self.looked} looked, {self.skipped} skipped)"
