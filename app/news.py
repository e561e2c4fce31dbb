"""What people are told about cameras that come and go, one sentence a change. Knows nothing of cameras' workings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vstream.app.desk import Watched

if TYPE_CHECKING:
    from vstream.sources import Source

WATCHING = "watching"
WAITING = re.compile(r"waiting .*? after: (.*?)(?: \(attempt \d+\))?")


class News:
    """Notices what has changed since it was asked last."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        """Everything is well to begin with."""
        self._watched = watched
        self._troubles: dict[int, str] = {}
        self._failed: set[int] = set()

    def sentences(self) -> list[str]:
        """What to tell: cameras that were lost and found again, sessions that ended by an error."""
        return [sentence for one in self._watched for sentence in (*self._failure(one), *self._change(one))]

    def _failure(self, one: Watched) -> list[str]:
        failure, number = one.session.failure, one.planned.number
        if failure is None or number in self._failed:
            return []
        self._failed.add(number)
        return [one.about(f"the watching ended: {failure}")]

    def _change(self, one: Watched) -> list[str]:
        source, number = one.session.source, one.planned.number
        if source is None or not one.planned.is_live or one.session.failure:
            return []
        before, trouble = self._troubles.get(number), trouble_in(source.state)
        if trouble and trouble != before:
            self._troubles[number] = trouble
            return [f"{one.label or one.name}: {trouble}, trying again"]
        if source.state == WATCHING and before:
            del self._troubles[number]
            return [f"{one.label or one.name}: {_back(source)}"]
        return []


def trouble_in(state: str) -> str | None:
    """Why a camera is waited for, from its state, without what changes with every attempt; None if it is not."""
    found = WAITING.fullmatch(state)
    return found[1] if found else None


def _back(source: Source) -> str:
    if not source.gaps:
        return "watching"
    gap = source.gaps[-1]
    return f"watching again after a gap of {gap.end_seconds - gap.start_seconds:.0f} s"
