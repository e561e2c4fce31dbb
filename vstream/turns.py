"""Turns: a lock that nobody can be kept from for long."""

from __future__ import annotations

import threading
from types import TracebackType


class Turns:
    """A lock whose next holder cannot be the last one again while another waits.

    A plain lock may go back to a thread that lets it go and asks again at once, for ever. Not reentrant.
    """

    def __init__(self) -> None:
        """Free."""
        self._held = threading.Lock()
        self._next = threading.Lock()  # whoever waits for `_held` holds it

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.release()
