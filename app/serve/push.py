"""Frames that clients send, one by one by HTTP or one after the other on a WebSocket.

The event loop never waits for the model, nor for a picture to be decoded: of those that wait, the oldest are dropped.
This module knows nothing of what is asked.
"""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from vstream.app.serve import pictures, records, telling
from vstream.app.serve.api import StreamId, hub_of
from vstream.app.serve.errors import ApiError, documented, problem, told
from vstream.app.serve.library import UnknownStreamError
from vstream.app.serve.stream import Stream
from vstream.sources import PushSource

router = APIRouter(prefix="/v1")
decoding = anyio.CapacityLimiter(4)
"""Pictures that are being decoded."""
TYPES = ("image/jpeg", "image/png", "image/webp")
MAX_WAITING = 4
"""Pictures of one connection that wait to be decoded."""
TELL_SECONDS = 0.5
"""How often a connection is told what became of its pictures, at most."""
MAX_SECONDS = 1e9
ENDED = ("failed", "closed", "over")
PICTURE_BODY = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}


@router.post(
    "/streams/{stream_id}/frames",
    tags=["frames"],
    responses=documented(400, 404, 409, 413, 415),
    openapi_extra={"requestBody": {"required": True, "content": PICTURE_BODY}},
)
async def push_frame(
    request: Request,
    stream_id: StreamId,
    seconds: Annotated[
        float | None,
        Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False, description="its time; that of its coming unless given"),
    ] = None,
) -> records.Pushed:
    """Takes one picture (JPEG, PNG or WebP) into a stream that was opened with the source "push"."""
    stream = hub_of(request).stream(stream_id)
    source = pushed_source(stream)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise ApiError(415, f"a frame is one of {', '.join(TYPES)} (content-type), got {kind or 'none'}")
    data = await body_of(request, pictures.MAX_BYTES)
    await push(source, data, seconds)
    return pushed_record(stream)


@router.post("/streams/{stream_id}/end", tags=["frames"], responses=documented(404, 409))
def end_stream(request: Request, stream_id: StreamId) -> records.StreamRecord:
    """Says that no more frames come: what waits is still watched, and questions about the end are answered."""
    stream = hub_of(request).stream(stream_id)
    pushed_source(stream).end()
    return telling.stream_record(stream)


async def body_of(request: Request, max_bytes: int) -> bytes:
    """A request's body; never more than so much of it is held. Raises `ApiError` 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise ApiError(413, f"a frame may have {max_bytes} bytes", code="too_large")
    return bytes(body)


def pushed_source(stream: Stream) -> PushSource:
    """Where the frames of a stream go. Raises `ApiError` 409 for a stream that takes none, or none any more."""
    if stream.state in ENDED:
        raise ApiError(409, f"stream {stream.id} has ended and takes no more frames", code="ended")
    if stream.source is None:
        message = f'stream {stream.id} takes no frames; POST /v1/streams with {{"source": "push"}} opens one that does'
        raise ApiError(409, message, code="not_pushed")
    return stream.source


async def push(source: PushSource, data: bytes, seconds: float | None) -> None:
    """Decodes a picture and hands it over, on a thread. Raises `ApiError`."""

    def work() -> None:
        image = pictures.decode_picture(data, max_side=source.max_side)
        try:
            source.push(image, seconds)
        except ValueError as error:
            ended = "has ended" in str(error)
            raise ApiError(409 if ended else 400, str(error), code="ended" if ended else None) from error

    await anyio.to_thread.run_sync(work, limiter=decoding)


def pushed_record(stream: Stream, received: int | None = None, dropped: int = 0) -> records.Pushed:
    """What became of a stream's frames, and of those of a connection that never got into it."""
    ingest = stream.session.ingest
    assert ingest is not None, "a stream that frames are pushed to has an ingest"
    counts = ingest.counters()
    return records.Pushed(received=counts.decoded if received is None else received, dropped=counts.dropped + dropped)


# WebSocket ----------------------------------------------------------------------------------------------------------


@router.websocket("/streams/{stream_id}/push")
async def push_frames(socket: WebSocket, stream_id: str) -> None:
    """Takes pictures, one in each binary message; {"seconds": s} in a text message is the time of the next one.

    What became of them is told now and then, {"received": n, "dropped": m}; what will not do is answered by {"error"},
    and the next picture may come. The stream stays open when the socket closes.
    """
    try:
        stream = socket.app.state.hub.stream(stream_id)
        source = pushed_source(stream)
    except (ApiError, UnknownStreamError) as error:
        refused = told(error)
        body = problem(refused.status, str(refused), code=refused.code)
        await socket.send_denial_response(JSONResponse(body, refused.status))
        return
    await socket.accept()
    await _Connection(socket, stream, source).run()


class _Connection:
    """One client's pictures on their way into a stream.

    One task receives, and never waits for anything else; one decodes and hands over, and tells the client.
    """

    def __init__(self, socket: WebSocket, stream: Stream, source: PushSource) -> None:
        self._socket, self._stream, self._source = socket, stream, source
        self._waiting: deque[tuple[bytes, float | None]] = deque()
        self._news = anyio.Event()
        self._gone = False
        self._received = self._dropped = self._told = 0
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Until the client goes, the stream ends or the server stops; what has come by then is still taken."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_with_server, group.cancel_scope)
            group.start_soon(self._receive)
            await self._take()
            group.cancel_scope.cancel()

    async def _stop_with_server(self, scope: anyio.CancelScope) -> None:
        await self._socket.app.state.stopping.wait()
        await self._close(1012, "the server is stopping")
        scope.cancel()

    async def _receive(self) -> None:
        seconds: float | None = None
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            if message.get("bytes") is not None:
                self._queue(message["bytes"], seconds)
                seconds = None
            else:
                try:
                    seconds = _seconds_in(message.get("text") or "")
                except ValueError as error:
                    await self._tell(problem(400, str(error)))
        self._gone = True
        self._news.set()

    def _queue(self, data: bytes, seconds: float | None) -> None:
        self._received += 1
        self._waiting.append((data, seconds))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._news.set()

    async def _take(self) -> None:
        """Hands over what comes, and tells now and then; returns when nothing more will come, or be taken."""
        while self._waiting or not self._gone:
            if not self._waiting:
                self._news = anyio.Event()
                with anyio.move_on_after(TELL_SECONDS):
                    await self._news.wait()
            if self._waiting:
                await self._push(*self._waiting.popleft())
            if self._stream.state in ENDED:
                await self._close(1000, "the stream has ended")
                return
            await self._tell_counts()

    async def _push(self, data: bytes, seconds: float | None) -> None:
        try:
            await push(self._source, data, seconds)
        except (ApiError, ValueError) as error:
            refused = told(error)
            await self._tell(problem(refused.status, str(refused), code=refused.code))

    async def _tell_counts(self) -> None:
        now = anyio.current_time()
        if self._received != self._told and now - self._told_at >= TELL_SECONDS:
            self._told, self._told_at = self._received, now
            await self._tell(pushed_record(self._stream, self._received, self._dropped).model_dump())

    async def _tell(self, plain: dict[str, Any]) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # it may go at any moment, which `_receive` will hear
            if not self._gone:
                await self._socket.send_json(plain)

    async def _close(self, code: int, why: str) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            if not self._gone:
                await self._socket.close(code, why)


def _seconds_in(text: str) -> float:
    """The time in a text message. Raises `ValueError`."""
    try:
        seconds = json.loads(text)["seconds"]
    except (ValueError, TypeError, KeyError):
        seconds = None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f'a text message is {{"seconds": s}}, the time of the next picture, got {text[:60]!r}')
    return float(seconds)
