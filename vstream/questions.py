"""Questions that wait for their stream time. Knows nothing of models, memory or how answers are made."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.config import DecodeOptions
    from vstream.ingest import Ingest
    from vstream.models.base import Question


@dataclass(frozen=True, eq=False)
class Pending:
    """A question that waits. `at_seconds` is inf for the end of the stream; `now` if no later frame had arrived."""

    answer: Answer
    question: Question
    options: DecodeOptions
    at_seconds: float
    now: bool


class QuestionQueue:
    """The waiting questions of one session, in the order of their stream time. Any thread may call it."""

    def __init__(self) -> None:
        """Empty and open."""
        self._lock = threading.Lock()
        self._pending: list[Pending] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> bool:
        """Takes a question; False if the queue is closed."""
        with self._lock:
            if not self._closed:
                self._pending.append(pending)
                self._pending.sort(key=lambda one: one.at_seconds)
            return not self._closed

    def drop_cancelled(self) -> None:
        """Ends the questions that were cancelled while they waited."""
        with self._lock:
            for pending in [pending for pending in self._pending if pending.answer.cancelled]:
                pending.answer.place = 0
                pending.answer.finish("cancelled")
                self._pending.remove(pending)

    def take_due(
        self, ingest: Ingest | None, last_seconds: float, clip_frames: int, has_room: Callable[[Pending], bool]
    ) -> tuple[Pending | None, int]:
        """Takes the first question whose time has come, if there is room; and how many still wait for their turn.

        Those are told their place.
        """
        with self._lock:
            due = [pending for pending in self._pending if is_due(pending, ingest, last_seconds, clip_frames)]
            taken = due.pop(0) if due and has_room(due[0]) else None
            if taken:
                self._pending.remove(taken)
                taken.answer.place = 0
            for place, pending in enumerate(due, start=1):
                pending.answer.place = place
            return taken, len(due)

    def close(self) -> list[Pending]:
        """Takes no more questions, and gives back those that still wait."""
        with self._lock:
            self._closed = True
            waiting, self._pending = self._pending, []
            return waiting


def is_due(pending: Pending, ingest: Ingest | None, last_seconds: float, clip_frames: int) -> bool:
    """Whether every frame up to a question's time is committed or in hand, and no clip with later ones is committed.

    A clip that is short, because the stream ended or has a gap, counts as not closed yet as long as no frame up to the
    question's time follows it: what is seen must not depend on which came first, the question or the end.

    Args:
        pending: the question.
        ingest: of the stream, None for a memory alone.
        last_seconds: time of the newest committed frame, -1 for none.
        clip_frames: frames in a full clip.
    """
    at_seconds = pending.at_seconds
    if ingest is None or at_seconds < last_seconds:
        return True
    if math.isinf(at_seconds):
        return ingest.drained
    clip = ingest.peek_clip()
    if clip is None:
        return pending.now or ingest.has_received_past(at_seconds)
    if at_seconds < clip.end_seconds:
        return True
    return len(clip.frames) < clip_frames and not ingest.has_queued(clip.end_seconds, at_seconds)
