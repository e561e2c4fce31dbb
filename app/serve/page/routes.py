"""What the page fetches by URL: the live view, recordings, evidence, and conversations to take away.

Pictures of any time are the API's (/v1/streams/ID/frames/SECONDS.jpg). Knows nothing of how the page looks. Errors
are the API's.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse

from vstream.app.serve.errors import ApiError
from vstream.app.serve.page.chat import moment_of
from vstream.app.serve.page.export import file_name, to_json, to_markdown

if TYPE_CHECKING:
    from vstream.app.serve.hub import Hub
    from vstream.app.serve.stream import Stream
    from vstream.app.serve.viewing import LiveView

LIVE_SECONDS = 0.2
"""The live view sends at most five pictures a second."""
IDLE_SECONDS = 2.0
"""Without a new picture the last one is sent again, which tells whether anybody still looks."""
BOUNDARY = "picture"
FRESH = {"Cache-Control": "no-store"}
LASTING = {"Cache-Control": "private, max-age=3600"}


def router(hub: Hub) -> APIRouter:
    """The routes, on one hub."""
    routes = APIRouter(prefix="/v1/streams/{stream_id}", include_in_schema=False)

    @routes.get("/live.mjpg", response_class=StreamingResponse)
    async def live(stream_id: str, request: Request) -> StreamingResponse:
        """The newest picture, again and again (multipart/x-mixed-replace), until the stream is closed."""
        parts = live_parts(hub.stream(stream_id), request)
        return StreamingResponse(parts, media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}", headers=FRESH)

    @routes.get("/source", response_class=FileResponse)
    def source(stream_id: str) -> FileResponse:
        """The recorded file that is watched; ranges can be asked for."""
        file = hub.stream(stream_id).file
        if file is None or not file.is_file():
            raise ApiError(404, "this stream has no recorded file that could be played")
        guessed = mimetypes.guess_type(file.name)[0] or ""
        kind = guessed if guessed.startswith("video/") else "video/mp4"  # never a page, whatever it is called
        return FileResponse(file, media_type=kind, content_disposition_type="inline")

    @routes.get("/turns/{number}/evidence/{index}.jpg", response_class=Response)
    def evidence(stream_id: str, number: int, index: Annotated[int, Path(ge=0)]) -> Response:
        """A picture that an answer saw; for answers of an earlier run the remembered one nearest to it."""
        stream = hub.stream(stream_id)
        try:
            found = stream.turn(number).answer.evidence[index]
        except LookupError as error:
            raise ApiError(404, f"question {number} has no evidence {index}") from error
        if found.picture and found.picture_seconds is not None:
            return _picture((found.picture, found.picture_seconds))
        return _picture(stream.picture(moment_of(found)))

    @routes.get("/conversation.md", response_class=Response)
    def markdown(stream_id: str) -> Response:
        """The conversation with its evidence, to read anywhere."""
        stream = hub.stream(stream_id)
        return _download(to_markdown(stream), "text/markdown; charset=utf-8", file_name(stream, "md"))

    @routes.get("/conversation.json", response_class=Response)
    def plain(stream_id: str) -> Response:
        """The conversation with its evidence, for programs."""
        stream = hub.stream(stream_id)
        return _download(to_json(stream), "application/json", file_name(stream, "json"))

    return routes


async def live_parts(stream: Stream, request: Request) -> AsyncIterator[bytes]:
    """Parts of a multipart answer, one for each new picture; the first comes at once if there is one."""
    news = asyncio.Event()
    loop, stopping = asyncio.get_running_loop(), request.app.state.stopping

    def listener() -> None:
        loop.call_soon_threadsafe(news.set)

    stream.view.subscribe(listener)
    forget = stopping.when_set(listener)
    try:
        yield f"--{BOUNDARY}\r\n".encode()
        while not (stopping.is_set() or stream.session.closed):
            news.clear()
            part = await run_in_threadpool(_part, stream.view)
            if part:
                yield part
            await asyncio.sleep(LIVE_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), IDLE_SECONDS)
    finally:
        forget()
        stream.view.unsubscribe(listener)


def _part(view: LiveView) -> bytes:
    """The newest picture, closed by the next part's boundary: browsers show a picture when they have seen that."""
    newest = view.newest()
    if newest is None:
        return b""
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(newest[0])}\r\n\r\n"
    return head.encode() + newest[0] + f"\r\n--{BOUNDARY}\r\n".encode()


def _picture(found: tuple[bytes, float] | None) -> Response:
    if found is None:
        raise ApiError(404, "no picture of that time is kept")
    return Response(found[0], media_type="image/jpeg", headers={**LASTING, "X-Stream-Seconds": f"{found[1]:.3f}"})


def _download(text: str, media_type: str, name: str) -> Response:
    return Response(
        text, media_type=media_type, headers={**FRESH, "Content-Disposition": f'attachment; filename="{name}"'}
    )
