"""A run without a person: questions from standard input, answers and sentences as they come.

This module knows nothing of how answers are shown.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from vstream.app.alerts.notices import notice_text
from vstream.app.desk import Asked, Desk
from vstream.app.news import News
from vstream.app.progress import Progress
from vstream.app.questions import parse_line

if TYPE_CHECKING:
    from vstream.app.alerts.delivery import Delivered
    from vstream.app.alerts.desk import AlertDesk
    from vstream.app.output import PictureFolder

POLL_SECONDS = 0.1
MAX_WAITING_LINES = 64
MAX_LINE_BYTES = 1 << 16


class LineReader:
    """Reads lines on a thread that never keeps the program from ending; who writes faster than we ask must wait."""

    def __init__(self, descriptor: int) -> None:
        """Begins to read a file descriptor, which stays open."""
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING_LINES)
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._read, name="questions", daemon=True)
        self._thread.start()

    def take(self) -> Iterator[str]:
        """The lines that are there, without blank ones; never waits."""
        while not self._lines.empty():
            if line := self._lines.get().decode(errors="replace").strip():
                yield line

    @property
    def ended(self) -> bool:
        """Whether no more lines will come."""
        return not self._thread.is_alive() and self._lines.empty()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._descriptor, MAX_LINE_BYTES):  # not sys.stdin: its lock would outlive the program
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""  # too long to be a question; it is refused as one
            for line in lines:
                self._lines.put(line)
        self._lines.put(rest)


class LineScreen(Progress):
    """Shows a run line by line; a subclass says how an answer looks."""

    def __init__(
        self, pictures: PictureFolder, *, to_end: bool = True, reader: LineReader | None = None, stay: bool = False
    ) -> None:
        """How far a run goes.

        Args:
            pictures: where evidence goes.
            to_end: whether sources are watched on when all is answered.
            reader: of more questions.
            stay: whether to go on until the reader has ended.
        """
        super().__init__()
        self.pictures = pictures
        self._to_end, self._reader, self._stay = to_end, reader, stay

    @abstractmethod
    def show(self, asked: Asked) -> None:
        """Shows one answer; returns when it is over."""

    def show_event(self, event: Delivered) -> None:
        """Shows that an event has begun or is over."""
        self.tell(": ".join(notice_text(event.notice)))

    def show_events(self, alerts: AlertDesk) -> None:
        """Shows what standing questions have told since it was called last."""
        for event in alerts.take():
            self.show_event(event)
        self._tell(alerts.sentences())

    def run(self, desk: Desk) -> Literal["over", "left"]:
        """Shows answers and news until the run is over."""
        news = News(desk.watched)
        while True:
            over = not (self._to_end and desk.watching) and not self._more_may_come()
            self._take_lines(desk)
            self._tell(desk.catch_up())
            self._show(desk)
            if desk.alerts:
                self.show_events(desk.alerts)
            self._tell(news.sentences())  # after the answers: a failure that they ended by is told, too
            if over and desk.answered:
                return "over"
            for watched in desk.watched:
                self.update(watched)
            _wait(desk)

    def _more_may_come(self) -> bool:
        return self._stay and self._reader is not None and not self._reader.ended

    def _take_lines(self, desk: Desk) -> None:
        for line in self._reader.take() if self._reader else ():
            wrong = desk.attempt(partial(_ask_line, desk, line))
            self._tell([f"no answer to {line[:200]!r}: {sentence}" for sentence in wrong])

    def _show(self, desk: Desk) -> None:
        for asked in desk.take(lambda one: one.begun):
            if asked.answer.error is None:
                self.show(asked)
            if error := desk.told_error(asked):
                self.tell(error)

    def _tell(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self.tell(sentence)


def _ask_line(desk: Desk, line: str) -> None:
    desk.ask_of(parse_line(line), None)


def _wait(desk: Desk) -> None:
    """A moment, shorter if the next answer is there."""
    if desk.open:
        desk.open[0].answer.wait(POLL_SECONDS)
    else:
        time.sleep(POLL_SECONDS)
