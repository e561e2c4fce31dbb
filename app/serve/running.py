"""The app's work on the requests under way, so that it can be ended from outside: cleanly, and at once.

Knows nothing of who asked, nor of why it is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vstream.app.serve.refusals import Refused, answer

ENDLESS = ("text/event-stream", "multipart/x-mixed-replace")


class Run:
    """The app's call for one request.

    Attributes:
        client: who asked.
        is_endless: whether it will not end by itself: a WebSocket, or an event stream or live view that was got.
            An event stream that was posted is an answer, and ends.
    """

    def __init__(self, app: ASGIApp, scope: Scope, client: str) -> None:
        self.client = client
        self._app, self._scope = app, scope
        self.is_endless = scope["type"] == "websocket"
        self._started = self._complete = False
        self._refused: Refused | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def end(self, why: Refused) -> None:
        """Cancels the app's work, from any thread. What was not begun is refused, an endless response is completed."""
        self._loop.call_soon_threadsafe(self._cancel, why)

    def _cancel(self, why: Refused) -> None:
        if self._task is not None and self._refused is None:
            self._refused = why
            self._task.cancel()

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Calls the app."""
        self._task = asyncio.current_task()
        assert self._task is not None, "a request is handled by a task"
        try:
            await self._app(self._scope, receive, self._noting(send))
        except asyncio.CancelledError:
            if self._refused is None or self._task.uncancel() > 0:
                raise
        except Exception:
            if self._refused is None:
                raise  # else it is what the app says of being ended
        finally:
            self._task = None
        if self._refused is not None:
            await self._finish(self._refused, receive, send)

    def _noting(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if self._refused is not None:
                return  # what the app still says while it is being ended
            await send(message)
            self._note(message)

        return sending

    def _note(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            self._started = True
        if kind == "http.response.start" and self._scope["method"] == "GET":
            self.is_endless = Headers(raw=message.get("headers", [])).get("content-type", "").startswith(ENDLESS)
        if kind in ("http.response.body", "websocket.http.response.body"):
            self._complete = not message.get("more_body", False)
        if kind == "websocket.close":
            self._complete = True

    async def _finish(self, why: Refused, receive: Receive, send: Send) -> None:
        if self._complete:
            return
        if not self._started:
            await answer(why.response(), self._scope, receive, send)
        elif self._scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1012 if why.status == 503 else 1008, "reason": why.sentence})
        elif self.is_endless:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Runs:
    """All requests under way."""

    def __init__(self) -> None:
        self._open: dict[Run, None] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    async def run(self, run: Run, receive: Receive, send: Send) -> None:
        """Has a request handled; until it is, it can be ended."""
        self._open[run] = None
        try:
            await run(receive, send)
        finally:
            del self._open[run]

    def end(self, why: Refused, which: Callable[[Run], bool] = lambda run: True) -> None:
        """Ends those under way that `which` chooses."""
        for run in list(self._open):
            if which(run):
                run.end(why)
