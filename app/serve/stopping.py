"""The word that the server is going to stop, for those whose work has no end of its own. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class Stopping:
    """Said once, from any thread; heard by everybody. It lies at `app.state.stopping`.

    A loop that never ends asks `is_set()` in each round, or races its next piece against `wait()`. The gate ends event
    streams, live views and WebSockets by itself when it is said, so what they began must be in `try`/`finally`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = False
        self._listeners: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        """Says it. Listeners are called once, here and now."""
        with self._lock:
            self._said = True
            listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener()

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._said

    def when_set(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` when it is said, by whoever says it, or at once if it was; returns how to forget it."""
        key = object()
        with self._lock:
            if not self._said:
                self._listeners[key] = listener
                return lambda: self._forget(key)
        listener()
        return lambda: None

    def _forget(self, key: object) -> None:
        with self._lock:
            self._listeners.pop(key, None)

    async def wait(self) -> None:
        """Returns when it is said."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()

        def hear() -> None:
            loop.call_soon_threadsafe(heard.set)

        forget = self.when_set(hear)
        try:
            await heard.wait()
        finally:
            forget()
