"""The progress of a watch, on stderr: a bar for each source on a terminal, sentences alone elsewhere.

This module knows nothing of answers.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.app.desk import Watched


def printable(text: str) -> str:
    """Text without control characters, which could drive the terminal: models and files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def without_credentials(text: str) -> str:
    """Text in which whatever looks like user:password@ is hidden: the last line of defence."""
    return re.sub(r"(?<![^\s/'\"])[^\s/]*:\S*@", "***@", text)


def is_terminal() -> bool:
    """Whether a person sits at a terminal that can be drawn on."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return os.environ.get("TERM", "dumb") != "dumb" and all(one is not None and one.isatty() for one in streams)


class Progress:
    """Stream time, pace and lag of sources; a context manager that takes its bars away in the end."""

    def __init__(self) -> None:
        """Nothing is drawn before the first `update`."""
        self.console = Console(stderr=True, highlight=False)
        columns = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("label", "clock", "pace")]
        self._bar = Bar(*columns[:2], BarColumn(bar_width=None), columns[2], console=self.console, transient=True)
        self._bar.expand = True
        self._tasks: dict[Watched, TaskID] = {}
        self._counts: dict[str, TaskID] = {}
        self._first: dict[Watched, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def update(self, watched: Watched) -> None:
        """Shows how far a source is, frames encoded per second since the first update, and how far it is behind."""
        session = watched.session
        if not self.console.is_terminal or session.ingest is None:
            return
        if watched not in self._tasks:
            label = printable(watched.label)
            self._tasks[watched] = self._bar.add_task("", total=None, label=label, clock="", pace="")
        self._bar.start()
        seconds, total = session.ingest.clock_seconds or 0.0, session.ingest.source.duration_seconds
        encoded = session.ingest.counters().encoded
        pace = f"{self._fps(watched, encoded):5.1f} frames/s  {session.lag_seconds:4.1f} s behind"
        clock = format_seconds(seconds) + (f" / {format_seconds(total)}" if total else "")
        self._bar.update(self._tasks[watched], completed=seconds, total=total, clock=clock, pace=pace)

    def count(self, what: str, done: int, total: int) -> None:
        """Shows how many of something are done, on a bar of its own below the others."""
        if not self.console.is_terminal:
            return
        if what not in self._counts:
            self._counts[what] = self._bar.add_task("", total=total, label=what, clock="", pace="")
        self._bar.start()
        self._bar.update(self._counts[what], completed=done, clock=f"{done:,} / {total:,}")

    def drop(self, watched: Watched) -> None:
        """Takes a source's bar away."""
        task = self._tasks.pop(watched, None)
        self._first.pop(watched, None)
        if task is not None:
            self._bar.remove_task(task)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Says on a terminal what is waited for."""
        with self.console.status(what) if self.console.is_terminal else nullcontext():
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No bar is drawn meanwhile; the next `update` draws it again."""
        self.stop()
        yield

    def stop(self) -> None:
        """Takes the bars away."""
        if self._bar.live.is_started:
            self._bar.stop()

    def tell(self, sentence: str) -> None:
        """One line on stderr, above the bars."""
        self.console.print(Text(f"vstream: {' '.join(printable(sentence).split())}"), soft_wrap=True)

    def _fps(self, watched: Watched, encoded: int) -> float:
        now = time.perf_counter()
        since, before = self._first.setdefault(watched, (now, encoded))
        return (encoded - before) / max(now - since, 1e-3)
