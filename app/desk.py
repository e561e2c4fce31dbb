"""The desk: takes questions about the sources that are watched, and hands out their answers.

Only one thread uses a desk. It knows nothing of terminals, of reading input, or of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

from vstream.app.questions import Moment, Scheduled, in_order
from vstream.app.sources import Planned, folder_name

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.app.alerts.desk import AlertDesk
    from vstream.session import Session


@dataclass(frozen=True, eq=False)
class Watched:
    """A source and the session that watches it.

    Attributes:
        planned: the source, as told on the command line.
        session: of the source, or of a memory that is asked alone.
        label: "@2 clip.mp4", "" where there is only one source.
    """

    planned: Planned
    session: Session
    label: str

    @property
    def name(self) -> str | None:
        """The source's name, that of the source it was made of for a memory alone."""
        return self.session.memory.source_name

    @property
    def over(self) -> bool:
        """Whether no more of it is going to be watched, or looked at for standing questions."""
        session = self.session
        if session.closed or session.ingest is None:
            return True
        return session.ingest.drained and (not session.alerts or session.status().ended)

    def about(self, sentence: str) -> str:
        """A sentence that says which source it is about, where there are several."""
        return f"{self.label}: {sentence}" if self.label else sentence


@dataclass(frozen=True, eq=False)
class Asked:
    """A question that was asked of one source.

    Attributes:
        number: by which people name it, from 1.
        watched: whom it was asked.
        answer: what came of it.
        now: whether it was asked of the present.
    """

    number: int
    watched: Watched
    answer: Answer
    now: bool

    @property
    def begun(self) -> bool:
        """Whether there is something of the answer."""
        return self.answer.done or self.answer.ttft_seconds is not None


class Desk:
    """Questions in, answers out.

    Attributes:
        watched: the sources, by number.
        asked: all that was asked so far, in order.
        open: those whose answers were not taken yet.
        errors: why questions could not be answered.
        alerts: the standing questions, None where there can be none.
    """

    def __init__(self, watched: Sequence[Watched], alerts: AlertDesk | None = None) -> None:
        """For sources that are open."""
        self.watched, self.alerts = tuple(watched), alerts
        self.asked: list[Asked] = []
        self.open: list[Asked] = []
        self.errors: list[Exception] = []
        self._postponed: list[tuple[Scheduled, Watched]] = []

    def schedule(self, questions: Sequence[Scheduled]) -> None:
        """Asks every source, in the order of time.

        Raises:
            ValueError: for a question that will not do, or a wall-clock time that a stream does not have.
            RuntimeError: if a session has ended.
        """
        for question in in_order(list(questions)):
            for watched in self.watched:
                self.ask(question, watched)

    def ask(self, question: Scheduled, watched: Watched) -> None:
        """Asks one source; a camera that shall be asked at a time to come is asked then. Raises as `schedule` does."""
        if isinstance(question.at, datetime) and _is_to_come(question.at, watched):
            self._postponed.append((question, watched))
            return
        at = _stream_time(question.at, watched)
        answer = watched.session.ask(question.text, at=at, choices=question.choices)
        asked = Asked(len(self.asked) + 1, watched, answer, at == "now")
        self.asked.append(asked)
        self.open.append(asked)

    def ask_of(self, question: Scheduled, about: str | None) -> None:
        """Asks the source of a number or name, None for all that go on; raises as `schedule` does."""
        for watched in self._among(about):
            self.ask(question, watched)

    def _among(self, about: str | None) -> list[Watched]:
        if about is None:
            return [one for one in self.watched if not one.session.closed] or [self.watched[0]]
        found = [one for one in self.watched if str(one.planned.number) == about]
        found = found or [one for one in self.watched if about in (one.name, folder_name(one.name or ""))]
        known = ", ".join(f"@{one.planned.number} {one.name}" for one in self.watched)
        if len(found) != 1:
            raise ValueError(f"@{about} is {'not one source only' if found else 'no source'}; choose from {known}")
        return found

    def cancel(self, number: int | None) -> str:
        """Cancels an answer, the newest for None; a sentence that says what it did.

        Raises:
            ValueError: if there is none like this that goes on.
        """
        running = [one for one in self.open if not one.answer.done and number in (None, one.number)]
        if number is None:
            running = [one for one in running if one.now or one.begun] or running
        if not running:
            which = "no answer" if number is None else f"no answer {number}"
            raise ValueError(f"there is {which} that could be cancelled")
        running[-1].answer.cancel()
        return f"answer {running[-1].number} is cancelled"

    def catch_up(self) -> list[str]:
        """Asks what was postponed and is due now; sentences about what could not be asked."""
        sentences = []
        for question, watched in list(self._postponed):
            assert isinstance(question.at, datetime), f"{question} was postponed"
            if watched.over or not _is_to_come(question.at, watched):
                self._postponed.remove((question, watched))
                wrong = self.attempt(partial(self.ask, question, watched))
                sentences += [watched.about(f"no answer to {question.text!r}: {sentence}") for sentence in wrong]
        return sentences

    def attempt(self, ask: Callable[[], None]) -> list[str]:
        """Runs what asks while the watching goes on; the sentence of what was wrong with it, if anything was."""
        try:
            ask()
        except (ValueError, RuntimeError) as error:
            self.errors.append(error)
            return [str(error)]
        return []

    def take(self, ready: Callable[[Asked], bool]) -> list[Asked]:
        """Takes the open answers that are ready, in the order they were asked."""
        taken = [asked for asked in self.open if ready(asked)]
        self.open = [asked for asked in self.open if asked not in taken]
        return taken

    def told_error(self, asked: Asked) -> str | None:
        """Why an answer has failed, None where it did not, or where its whole session did."""
        error = asked.answer.error
        if error is None or error is asked.watched.session.failure:
            return None
        self.errors.append(error)
        return asked.watched.about(f"no answer to {asked.answer.question!r}: {error}")

    @property
    def answered(self) -> bool:
        """Whether nothing is left to be answered."""
        return not self.open and not self._postponed

    @property
    def watching(self) -> bool:
        """Whether any source goes on."""
        return not all(one.over for one in self.watched)

    @property
    def exit_code(self) -> int:
        """1 if a session or an answer failed, 2 if there were only questions that will not do, 0 if all went well."""
        if any(one.session.failure for one in self.watched):
            return 1
        if not self.errors:
            return 0
        return 2 if all(isinstance(error, ValueError) for error in self.errors) else 1


def _is_to_come(moment: datetime, watched: Watched) -> bool:
    """Whether a camera's own wall clock has yet to pass a moment."""
    session = watched.session
    if not watched.planned.is_live or session.ingest is None or watched.over:
        return False
    clock_seconds, epoch_seconds = session.ingest.clock_seconds, session.ingest.source.epoch_seconds
    if clock_seconds is None or epoch_seconds is None:
        return moment > datetime.now(moment.tzinfo)
    return epoch_seconds + clock_seconds < moment.timestamp()


def _stream_time(moment: Moment, watched: Watched) -> float | Literal["now", "end"]:
    return watched.session.seconds_at(moment.timestamp()) if isinstance(moment, datetime) else moment
