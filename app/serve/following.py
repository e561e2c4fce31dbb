"""Following an answer from an event loop, without a thread for it; and letting it go when its reader goes.

This module knows nothing of what is asked, nor of how pieces are written down.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vstream.answer import Answer


@contextmanager
def told_of(answer: Answer) -> Iterator[asyncio.Event]:
    """An event of the running loop that is set after each piece of text and at the end."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed while an answer went on: nobody is there to be told
            loop.call_soon_threadsafe(changed.set)

    answer.subscribe(tell)
    try:
        yield changed
    finally:
        answer.unsubscribe(tell)


async def pieces(answer: Answer) -> AsyncIterator[str]:
    """The text of an answer as it comes. It ends with the answer, well or not: see `answer.error`."""
    read = 0
    with told_of(answer) as changed:
        while True:
            changed.clear()
            over, text = answer.done, answer.text_so_far  # in this order: what is over has all its text
            if len(text) > read:
                yield text[read:]
                read = len(text)
            if over:
                return
            await changed.wait()


async def ended(answer: Answer, request: Request) -> None:
    """Returns when an answer is over, well or not; cancels it if the client goes first.

    Raises:
        ClientDisconnect: if nobody waits for it any more.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    over = asyncio.ensure_future(_over(answer))
    try:
        await asyncio.wait((gone, over), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        over.cancel()
        if not answer.done:
            answer.cancel()
    if not answer.done:
        raise ClientDisconnect


async def _over(answer: Answer) -> None:
    with told_of(answer) as changed:
        while not answer.done:
            changed.clear()
            if not answer.done:
                await changed.wait()


async def _disconnected(request: Request) -> None:
    """Returns when the client is gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AnswerStream(StreamingResponse):
    """Server-sent events about one answer, which is cancelled at once when the client goes or the response is dropped.

    A generator's own `finally` would not do: it runs late where the response is cancelled between two of its pieces.
    """

    def __init__(
        self, answer: Answer, events: AsyncIterator[str], *, on_end: Callable[[], None] = lambda: None
    ) -> None:
        """`events` are written as they come; `on_end` is called last, on a thread."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answer, self._on_end = answer, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._answer.done:
                self._answer.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._on_end)
