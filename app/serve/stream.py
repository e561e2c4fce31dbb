"""Stream: one source that the server watches, or a memory that is asked alone, and the conversation about it.

Any thread may use it. This module knows nothing of HTTP or of how anything looks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vstream.answer import Answer
from vstream.app.looks import Gauge, Look
from vstream.app.news import WATCHING
from vstream.app.serve.alerts import PassOn, StreamAlerts
from vstream.app.serve.busy import BusyError
from vstream.app.serve.library import Card
from vstream.app.serve.viewing import LiveView
from vstream.config import DecodeOptions
from vstream.memory.levels import LEVEL_NAMES
from vstream.session import Session
from vstream.sources import PushSource

KEPT_TURNS, PICTURED_TURNS = 200, 40
"""Of the conversation, and how many of those hold their pictures: for older ones memory or the file has others."""
MAX_TEXT = 20_000
"""Characters of a question."""
MAX_WAITING = 16
"""Questions of one stream that may be open at once."""
LOOK_SECONDS = 0.5

State = Literal["connecting", "watching", "reconnecting", "over", "memory", "failed", "closed"]


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer.

    Attributes:
        number: from 1 in each conversation.
        answer: fills while it is made.
        asked_at: Unix time; None for turns of an earlier run, which the memory remembers.
    """

    number: int
    answer: Answer
    asked_at: float | None


@dataclass(frozen=True)
class Span:
    """A block on the stream's clock.

    Attributes:
        level: its level's name.
        start_seconds, end_seconds: its first and last frame.
        tokens: how many it has.
    """

    level: str
    start_seconds: float
    end_seconds: float
    tokens: int


class Stream:
    """What is watched, remembered and asked under one id.

    Attributes:
        card: what it is of; replaced when its title changes.
        session: the engine's side of it.
        view: the newest picture.
        file: the recorded file that is watched, where a browser may play it.
        note: a sentence about how it was opened, "" where there is nothing to say.
        alerts: what is looked for all the time, and what that has told.
        on_ask: is told of every answer when it is asked for.
    """

    def __init__(
        self,
        card: Card,
        session: Session,
        *,
        view: LiveView,
        file: Path | None = None,
        note: str = "",
        folder: Path | None = None,
        pass_on: PassOn = lambda notice, standing: None,
    ) -> None:
        """For a session that is open; what its memory remembers of a conversation comes first in it.

        Args:
            card, session, view, file, note: see the attributes.
            folder: of its memory, where standing questions are kept.
            pass_on: takes what standing questions tell further.
        """
        self.alerts = StreamAlerts(session, card.id, folder, pass_on)
        self.card, self.session, self.view, self.file, self.note = card, session, view, file, note
        self.on_ask: Callable[[Answer], None] = lambda answer: None
        self._gauge = Gauge(session, card.title)
        self._looked_at = float("-inf")
        self._lock = threading.Lock()
        self._turns: deque[Turn] = deque(maxlen=KEPT_TURNS)
        for remembered in session.memory.dialogue:
            self._add(Answer.remembered(remembered), None)

    @property
    def id(self) -> str:
        """Its own, and its memory's."""
        return self.card.id

    @property
    def source(self) -> PushSource | None:
        """Where frames are pushed to; None for streams that are not pushed."""
        return self.session.source if isinstance(self.session.source, PushSource) else None

    @property
    def is_live(self) -> bool:
        """Whether it has no end of its own."""
        return self.session.source is not None and self.session.source.is_live

    @property
    def state(self) -> State:
        """What it is doing."""
        session, source = self.session, self.session.source
        if session.failure is not None:
            return "failed"
        if session.closed:
            return "closed"
        if session.ingest is None or source is None:
            return "memory"
        if session.ingest.drained:
            return "over"
        if source.state in ("", WATCHING):
            return "watching"
        return "connecting" if session.ingest.clock_seconds is None else "reconnecting"

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The latest of the conversation, oldest first."""
        with self._lock:
            return tuple(self._turns)

    def turn(self, number: int) -> Turn:
        """One of the conversation. Raises `LookupError` for one that is not, or no longer, there."""
        found = next((turn for turn in self.turns if turn.number == number), None)
        if found is None:
            raise LookupError(f"stream {self.id} has no question {number}")
        return found

    def ask(
        self,
        question: str,
        *,
        at: float | Literal["now", "end"] | None = None,
        choices: Sequence[str] = (),
        options: DecodeOptions | None = None,
    ) -> Turn:
        """Asks, as `Session.ask` does.

        Raises:
            BusyError: if so many questions are open already.
            ValueError: for a question or a time that will not do.
            RuntimeError: if the stream has ended.
        """
        _check_texts(question, *choices)
        with self._lock:
            if sum(not turn.answer.done for turn in self._turns) >= MAX_WAITING:
                raise BusyError(f"{MAX_WAITING} questions about this stream wait already; ask again in a moment")
        answer = self.session.ask(question, at=at, choices=choices, options=options)
        self.on_ask(answer)
        with self._lock:
            return self._add(answer, time.time())

    def look(self) -> Look:
        """How it stands, at most half a second old."""
        now = time.monotonic()
        with self._lock:
            stale = now - self._looked_at > LOOK_SECONDS
            if stale:
                self._looked_at = now
        if stale:
            self._gauge.fetch()
        return self._gauge.look()

    def spans(self) -> list[Span]:
        """Every block of its memory, in time order."""
        rows = self.session.rows()
        return [
            Span(LEVEL_NAMES[level], start, end, tokens)
            for level, start, end, tokens in zip(
                rows["level"].tolist(),
                rows["start_seconds"].tolist(),
                rows["end_seconds"].tolist(),
                rows["num_tokens"].tolist(),
                strict=True,
            )
        ]

    def picture(self, seconds: float) -> tuple[bytes, float] | None:
        """The remembered picture nearest to a stream time, as JPEG, and its own time; None where there is none."""
        return self.session.picture_near(seconds)

    def _add(self, answer: Answer, asked_at: float | None) -> Turn:
        number = self._turns[-1].number + 1 if self._turns else 1
        turn = Turn(number, answer, asked_at)
        self._turns.append(turn)
        if len(self._turns) > PICTURED_TURNS and (old := self._turns[-1 - PICTURED_TURNS].answer).done:
            old.evidence = tuple(replace(one, picture=b"") for one in old.evidence)
        return turn


def _check_texts(*texts: str) -> None:
    """Raises `ValueError` for a text that is too long to be looked at, or no text at all."""
    for text in texts:
        if len(text) > MAX_TEXT:
            raise ValueError(f"a question may have {MAX_TEXT} characters, got {len(text)}; shorten it")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("the question holds half of a character (a lone surrogate); send whole ones, as UTF-8")
