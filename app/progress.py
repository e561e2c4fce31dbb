"""The progress of a watch, on stderr: a bar on a terminal, sentences alone elsewhere.

This module knows nothing of answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.session import Session


def printable(text: str) -> str:
    """Text without control characters, which could drive the terminal: models and files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


class Progress:
    """Stream time, pace and lag of a session; a context manager that takes its bar away in the end."""

    def __init__(self) -> None:
        """Nothing is drawn before the first `update`."""
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.fields[clock]}"), BarColumn(bar_width=None), TextColumn("{task.fields[pace]}"))
        self._bar = Bar(*columns, console=self.console, transient=True, expand=True)
        self._task = self._bar.add_task("", total=None, clock="", pace="")
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def update(self, session: Session) -> None:
        """Shows how far a session is, frames encoded per second since the first update, and how far it is behind."""
        if not self.console.is_terminal or session.ingest is None:
            return
        self._bar.start()
        seconds, total = session.ingest.clock_seconds or 0.0, session.ingest.source.duration_seconds
        pace = f"{self._fps(session.ingest.counters().encoded):5.1f} frames/s  {session.lag_seconds:4.1f} s behind"
        clock = format_seconds(seconds) + (f" / {format_seconds(total)}" if total else "")
        self._bar.update(self._task, completed=seconds, total=total, clock=clock, pace=pace)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No bar is drawn meanwhile; the next `update` draws it again."""
        self.stop()
        yield

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar.live.is_started:
            self._bar.stop()

    def tell(self, sentence: str) -> None:
        """One line on stderr, above the bar."""
        self.console.print(Text(f"vstream: {' '.join(printable(sentence).split())}"), soft_wrap=True)

    def _fps(self, encoded: int) -> float:
        now = time.perf_counter()
        since, before = self._first = self._first or (now, encoded)
        return (encoded - before) / max(now - since, 1e-3)
