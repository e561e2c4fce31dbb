"""Lookout: a session's standing questions, each looked at once after every clip, as far as there is time.

A look is one short prefill over a copy of the sink and the newest clip, and what memory brings back if that is wanted:
nothing is decoded, and nothing of the stream is changed. The newest clip alone is shown since "was there a cat?" shall
mean now: of the whole window it would be true until the cat has left it. This module knows nothing of sources, threads
or how events are delivered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from vstream.picture import jpeg_of
from vstream.standing import Alert, AlertOptions, Shown
from vstream.yes_no import YesNo, asked

if TYPE_CHECKING:
    from vstream.answering import Answerer
    from vstream.models.base import Adapter, Question
    from vstream.remembered import Remembered
    from vstream.types import Clip
    from vstream.view import View


class Watched:
    """A standing question, as tokens; `last_look` is the number of the clip on which it was looked at last."""

    def __init__(self, alert: Alert, question: Question) -> None:
        """Not looked at yet."""
        self.alert, self.question, self.last_look = alert, question, 0


class Budget:
    """Time for looks: a share of the stream's own, on average. What is spent too much is owed."""

    def __init__(self, share: float) -> None:
        """Of every second of stream, `share` seconds; at first there is none."""
        self._share, self._seconds = share, 0.0

    def grant(self, stream_seconds: float) -> None:
        """A clip of so many seconds has come; what was left of the one before is gone."""
        granted = self._share * stream_seconds
        self._seconds = min(self._seconds + granted, granted)

    def spend(self, seconds: float) -> None:
        """A look took so long."""
        self._seconds -= seconds

    @property
    def is_left(self) -> bool:
        """Whether another look may begin."""
        return self._seconds > 0


class Lookout:
    """The standing questions of one session. One thread calls it, but for `add` and `alerts`."""

    def __init__(
        self,
        memory: Remembered,
        answerer: Answerer,
        *,
        budget: Budget | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing to look for yet.

        Args:
            memory: of the stream.
            answerer: of its session.
            budget: of a stream that does not wait; None looks at everything.
            clock: seconds, by which looks are timed.
        """
        self._memory, self._answerer = memory, answerer
        self._adapter: Adapter = memory.adapter
        self._budget, self._clock = budget, clock
        self._yes_no: YesNo | None = None
        self._watched: tuple[Watched, ...] = ()
        self._changing = threading.Lock()  # who changes `_watched`
        self._due: list[Watched] = []
        self._clip: Clip | None = None
        self._num_clips = 0

    @property
    def is_due(self) -> bool:
        """Whether the newest clip is still to be looked at."""
        return bool(self._due)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Those that are not cancelled, oldest first."""
        return tuple(one.alert for one in self._watched if not one.alert.cancelled)

    def question(self, text: str) -> Question:
        """A standing question as the model is asked it, checked; any thread may call this.

        Raises:
            ValueError: if the model has no tokens for yes and no.
        """
        if self._yes_no is None:
            self._yes_no = YesNo(self._adapter)
        with torch.inference_mode():
            return self._adapter.question(asked(text))

    def add(self, text: str, question: Question, options: AlertOptions, wake: Callable[[], None]) -> Alert:
        """A standing question that is looked at from the next clip on."""
        with self._changing:
            taken = {one.alert.id for one in self._watched if not one.alert.cancelled}
            tried = (Alert(text, options, number=number, wake=wake) for number in count(1))
            alert = next(one for one in tried if one.id not in taken)
            self._watched = (*self._watched, Watched(alert, question))
        return alert

    def expect(self, clip: Clip, stream_seconds: float) -> None:
        """A clip of so many seconds was committed: everything is to be looked at, what waited longest first."""
        self.skip()
        self._clip, self._num_clips = clip, self._num_clips + 1
        self._due = sorted(self._watched, key=lambda one: one.last_look)
        if self._budget:
            self._budget.grant(stream_seconds)

    def skip(self) -> None:
        """There is no time for what is still to be looked at."""
        for one in self._due:
            one.alert.skipped += not one.alert.cancelled
        self._due = []

    def look(self) -> bool:
        """One look, if one is due and there is time; whether there was."""
        self._due = [one for one in self._due if not one.alert.cancelled]
        if self._budget and not self._budget.is_left:
            self.skip()
        if not self._due:
            return False
        began = self._clock()
        self._look_at(self._due.pop(0))
        if self._budget:
            self._budget.spend(self._clock() - began)
        return True

    def finish(self) -> None:
        """The stream is over, and so is what goes on."""
        for one in self._watched:
            one.alert.finish()

    def tell(self) -> None:
        """Tells who listens; without any lock of the session, so that they may look at it."""
        over = [one for one in self._watched if one.alert.cancelled]
        for one in self._watched:
            one.alert.tell()
        if over:
            with self._changing:
                self._watched = tuple(one for one in self._watched if one not in over)

    def _look_at(self, one: Watched) -> None:
        assert self._clip is not None, "a look follows a clip"
        if one.alert.needs_start:
            one.alert.start(self._log_odds(one.question, self._memory.newest_view(0, recalls=False)))
        view = self._memory.newest_view(1, recalls=one.alert.options.uses_memory)
        log_odds = self._log_odds(one.question, view)
        one.last_look = self._num_clips
        clip = self._clip
        one.alert.hear(log_odds, clip.start_seconds, clip.end_seconds, lambda: self._show(one, clip))

    def _log_odds(self, question: Question, view: View) -> float:
        assert self._yes_no is not None, "whoever asks knows the tokens"
        return self._yes_no.log_odds(self._answerer.first_logits(question, view))

    def _show(self, one: Watched, clip: Clip) -> Shown:
        """The frame that shows it best, each looked at by itself; the event starts with the first that shows it."""
        view = self._memory.newest_view(1, recalls=False)
        seen = set(view.snapshot.window[0].meta.seconds.tolist())
        frames = [frame for frame in clip.frames if frame.pts_seconds in seen]
        alone = [replace(view, snapshot=view.snapshot.frame(frame.pts_seconds)) for frame in frames]
        scores = [one.alert.score_of(self._log_odds(one.question, each)) for each in alone]
        best = scores.index(max(scores))
        first = next((n for n, score in enumerate(scores) if score > one.alert.options.on), best)
        start = frames[first].pts_seconds
        wall_clock = None if clip.epoch_seconds is None else clip.epoch_seconds + start
        return Shown(start, frames[best].pts_seconds, jpeg_of(frames[best]), wall_clock)
