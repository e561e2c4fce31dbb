"""Stopwatch: how long one kind of work took in all. It knows nothing of what the work is."""

from __future__ import annotations

import time
from typing import Self


class Stopwatch:
    """A context manager that adds up wall time; one thread uses it, any may read it.

    Attributes:
        seconds: what was timed so far. Work that a GPU has yet to do when the block is left is not in it.
    """

    def __init__(self) -> None:
        """At zero."""
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def __repr__(self) -> str:
        return f"Stopwatch({self.seconds:.3f} s)"
