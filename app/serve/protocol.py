"""uvicorn's HTTP, but connections on which no request is being handled do not stay.

uvicorn waits for ever for a request that never comes, or comes a byte an hour. It knows nothing of what is requested.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """Closes a connection after `wait_seconds` without a request under way, whatever comes in that time.

    So nobody can hold connections that cost nothing, neither before a request's head is whole nor by sending more and
    more of a body that was refused long ago.
    """

    wait_seconds: ClassVar[float] = 15.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A client said something."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A request is over."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client went."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_socket = self.transport.get_protocol() is not self
        is_handled = self.cycle is not None and not self.cycle.response_complete
        if is_socket or is_handled or self.transport.is_closing():
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.wait_seconds, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
