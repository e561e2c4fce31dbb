"""The API's own routes: streams, questions, memories, pictures. Its documentation is at /docs.

What may wait, for a model to load or for a step of the engine, runs on threads, never on the event loop. This module
knows nothing of tokens, of other sites or of how much a client may do: the gate around the app does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import anyio
from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from vstream.answer import Answer
from vstream.app.serve import records, telling
from vstream.app.serve.errors import ApiError, documented, problem, told
from vstream.app.serve.following import AnswerStream, ended, pieces
from vstream.app.serve.frames import frame_at
from vstream.app.serve.hub import Hub, OpenAlreadyError
from vstream.app.serve.library import UnknownStreamError
from vstream.app.serve.stream import Stream, Turn
from vstream.sources import FileSource

router = APIRouter(prefix="/v1")
opening = anyio.CapacityLimiter(4)
"""Streams that are being opened: models load meanwhile, and other requests need threads too."""
decoding = anyio.CapacityLimiter(2)
"""Frames that are being sought: each keeps a core busy."""

StreamId = Annotated[str, Path(max_length=64, description="of a stream that is open")]
MemoryId = Annotated[str, Path(max_length=64, description="of a memory, open or not")]
FILE_CACHE, MEMORY_CACHE = "private, max-age=86400", "private, max-age=30"


def hub_of(request: Request) -> Hub:
    """The hub that the app was built for."""
    hub: Hub = request.app.state.hub
    return hub


# Streams ------------------------------------------------------------------------------------------------------------


@router.get("/streams", tags=["streams"], responses=documented())
def list_streams(request: Request) -> records.StreamList:
    """All streams that are open."""
    return records.StreamList(data=[telling.stream_record(stream) for stream in hub_of(request).streams()])


@router.post("/streams", tags=["streams"], status_code=201, responses=documented(400, 403, 404, 409))
async def open_stream(request: Request, response: Response, new: records.NewStream) -> records.StreamRecord:
    """Starts watching a source. The first stream of a model waits until it is loaded."""

    def work() -> records.StreamRecord:
        return telling.stream_record(
            hub_of(request).open(
                new.source,
                title=new.title,
                model=new.model,
                preset=new.preset,
                kept=new.keep,
                realtime=new.realtime,
                fps=new.fps,
                dialogue=new.dialogue,
            )
        )

    record = await anyio.to_thread.run_sync(work, limiter=opening)
    response.headers["location"] = f"/v1/streams/{record.id}"
    return record


@router.delete("/streams", tags=["streams"], responses=documented())
def close_streams(request: Request) -> list[records.Gone]:
    """Closes every stream; memories that are kept stay."""
    hub = hub_of(request)
    closed = []
    for stream in hub.streams():
        with suppress(UnknownStreamError, OpenAlreadyError):  # somebody else was quicker
            closed.append(_close(hub, stream.id))
    return closed


@router.get("/streams/{stream_id}", tags=["streams"], responses=documented(404))
def get_stream(request: Request, stream_id: StreamId) -> records.StreamRecord:
    """A stream as it stands now."""
    return telling.stream_record(hub_of(request).stream(stream_id))


@router.patch("/streams/{stream_id}", tags=["streams"], responses=documented(400, 404))
def change_stream(request: Request, stream_id: StreamId, change: records.Change) -> records.StreamRecord:
    """Gives a stream another title, or says whether its memory is kept."""
    hub = hub_of(request)
    stream = hub.stream(stream_id)
    _change(hub, stream_id, change)
    return telling.stream_record(stream)


@router.delete("/streams/{stream_id}", tags=["streams"], responses=documented(404))
def close_stream(request: Request, stream_id: StreamId) -> records.Gone:
    """Ends a stream. Its memory stays where it is kept, and goes where it is not."""
    return _close(hub_of(request), stream_id)


def _close(hub: Hub, stream_id: str) -> records.Gone:
    hub.close_stream(stream_id)
    return records.Gone(id=stream_id)


def _change(hub: Hub, stream_id: str, change: records.Change) -> None:
    if change.title is None and change.kept is None:
        raise ApiError(400, "there is nothing to change: give a title, kept, or both")
    if change.title is not None:
        hub.rename(stream_id, change.title)
    if change.kept is not None:
        hub.keep(stream_id, change.kept)


# Questions ----------------------------------------------------------------------------------------------------------

EVENTS = """As server-sent events: `evidence` (what the answer saw, as soon as it is known), then `token`s
({"text"}), then `done` (the whole turn, with `usage`), or `error` in place of it. As JSON: the whole turn."""

EVENT = {
    "type": "object",
    "description": EVENTS,
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["evidence", "token", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.post(
    "/streams/{stream_id}/ask",
    tags=["questions"],
    response_model=records.TurnRecord,
    responses={
        200: {"content": {"text/event-stream": {"schema": EVENT}}},
        **documented(400, 404, 409, 500),
    },
    description=f"Asks about what was seen. {EVENTS} If the client goes away, the answer is not made any further.",
)
async def ask(request: Request, stream_id: StreamId, question: records.Question) -> Any:
    """Asks about what was seen."""
    stream = hub_of(request).stream(stream_id)
    turn = await ask_stream(
        hub_of(request),
        stream,
        question.question,
        at=question.at,
        choices=question.choices,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        top_p=question.top_p,
        seed=question.seed,
        stop=question.stop,
    )
    if question.stream or "text/event-stream" in request.headers.get("accept", ""):
        return AnswerStream(turn.answer, _events(stream, turn))
    await ended(turn.answer, request)
    check_answer(stream, turn.answer)
    return JSONResponse(telling.turn_record(stream, turn).model_dump())


@router.get("/streams/{stream_id}/turns", tags=["questions"], responses=documented(404))
def list_turns(request: Request, stream_id: StreamId) -> records.TurnList:
    """The latest questions and answers, those that go on too."""
    stream = hub_of(request).stream(stream_id)
    return records.TurnList(data=[telling.turn_record(stream, turn) for turn in stream.turns])


async def ask_stream(
    hub: Hub, stream: Stream, question: str, *, at: float | str | None, choices: Sequence[str], **decode: Any
) -> Turn:
    """Asks, on a thread; `decode` are fields of `DecodeOptions`, None for the stream's own. Raises as `Stream.ask`."""
    if hub.stopping:
        raise ApiError(503, "the server is stopping; ask again when it is back", code="stopping")
    given = {name: value for name, value in decode.items() if value is not None}
    if "stop" in given:
        given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    options = replace(stream.session.config.decode, **given)
    when = cast("float | Literal['now', 'end'] | None", at)
    return await anyio.to_thread.run_sync(lambda: stream.ask(question, at=when, choices=choices, options=options))


def check_answer(stream: Stream, answer: Answer) -> None:
    """Raises `ApiError` for an answer that failed, or was cancelled by others than its reader."""
    error = answer.error
    if isinstance(error, ValueError):
        raise told(error)
    if error is not None and stream.session.failure is not None:
        raise ApiError(409, f"the stream has failed: {stream.session.failure}", code="failed")
    if error is not None:
        raise ApiError(500, f"the answer failed: {error}")
    if answer.finish_reason == "cancelled" and not answer.cancelled:
        raise ApiError(409, "the stream was closed before the answer was there", code="ended")


async def _events(stream: Stream, turn: Turn) -> AsyncIterator[str]:
    begun = False
    async for text in pieces(turn.answer):
        if not begun:
            begun = True
            yield _evidence_event(stream, turn)
        yield event("token", {"text": text})
    try:
        check_answer(stream, turn.answer)
    except ApiError as error:
        yield event("error", problem(error.status, str(error), code=error.code))
        return
    if not begun:
        yield _evidence_event(stream, turn)
    yield event("done", telling.turn_record(stream, turn))


def _evidence_event(stream: Stream, turn: Turn) -> str:
    answer = turn.answer
    return event(
        "evidence",
        {
            "number": turn.number,
            "asked_at_seconds": answer.asked_at_seconds,
            "snapshot_seconds": answer.snapshot_seconds,
            "evidence": [one.model_dump() for one in telling.evidence_records(stream, answer)],
        },
    )


def event(name: str | None, data: BaseModel | dict[str, Any]) -> str:
    """A server-sent event, by name or without."""
    plain = data.model_dump() if isinstance(data, BaseModel) else data
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(plain, allow_nan=False, ensure_ascii=False)}\n\n"


# Memory and pictures ------------------------------------------------------------------------------------------------


@router.get("/streams/{stream_id}/memory", tags=["memory"], responses=documented(404))
def get_memory(
    request: Request,
    stream_id: StreamId,
    bins: Annotated[int, Query(ge=0, le=2000, description="parts that the stream's time is cut into")] = 240,
    limit: Annotated[int, Query(ge=0, le=10_000, description="blocks that are listed one by one")] = 0,
    offset: Annotated[int, Query(ge=0, le=1 << 40, description="the first of them")] = 0,
) -> records.MemoryRecord:
    """What a stream remembers, and what of it the latest answer saw."""
    return telling.memory_record(hub_of(request).stream(stream_id), bins=bins, limit=limit, offset=offset)


PICTURE_HEADERS = {
    "X-Frame-Seconds": {"description": "the picture's own time", "schema": {"type": "number"}},
    "X-Frame-From": {"description": "where it is from", "schema": {"type": "string", "enum": ["file", "memory"]}},
}


@router.get(
    "/streams/{stream_id}/frames/{seconds}.jpg",
    tags=["memory"],
    response_class=Response,
    responses={
        200: {
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
            "headers": PICTURE_HEADERS,
        },
        **documented(404),
    },
)
async def get_frame(
    request: Request,
    stream_id: StreamId,
    seconds: Annotated[float, Path(ge=0, le=1e9, allow_inf_nan=False)],
    side: Annotated[int, Query(ge=16, le=1920, description="longest side of the picture, of a file's frame")] = 640,
) -> Response:
    """The picture of a time: the very frame of a recorded file, else the nearest that the memory has."""
    stream = hub_of(request).stream(stream_id)
    found = await anyio.to_thread.run_sync(_file_frame, stream, seconds, side, limiter=decoding)
    cache, origin = FILE_CACHE, "file"
    if found is None:
        found = await anyio.to_thread.run_sync(stream.picture, seconds)
        cache, origin = MEMORY_CACHE, "memory"
    if found is None:
        raise ApiError(404, f"stream {stream_id} has no picture yet", code="no_picture")
    headers = {"x-frame-seconds": f"{found[1]:.6f}", "x-frame-from": origin, "cache-control": cache}
    return Response(found[0], media_type="image/jpeg", headers=headers)


def _file_frame(stream: Stream, seconds: float, side: int) -> tuple[bytes, float] | None:
    """The frame of a recorded file; None where memory knows better: its clock began anew, or it is gone."""
    source = stream.session.source
    if stream.file is None or not isinstance(source, FileSource) or source.jumps:
        return None
    try:
        return frame_at(stream.file, seconds, max_side=side)
    except (ValueError, OSError):
        return None


# Memories -----------------------------------------------------------------------------------------------------------


@router.get("/memories", tags=["memories"], responses=documented())
def list_memories(request: Request) -> records.KeptList:
    """Memories on disk, newest first, those of open streams too."""
    hub = hub_of(request)
    return records.KeptList(data=[telling.kept_record(hub, kept) for kept in hub.memories()])


@router.post(
    "/memories/{memory_id}/resume", tags=["memories"], status_code=201, responses=documented(400, 403, 404, 409)
)
async def resume_memory(
    request: Request, response: Response, memory_id: MemoryId, resume: Annotated[records.Resume | None, Body()] = None
) -> records.StreamRecord:
    """Opens a memory as a stream: its source is watched on where it can be, else the memory is asked alone."""
    given = None if resume is None else resume.source

    def work() -> records.StreamRecord:
        return telling.stream_record(hub_of(request).resume(memory_id, given))

    record = await anyio.to_thread.run_sync(work, limiter=opening)
    response.headers["location"] = f"/v1/streams/{record.id}"
    return record


@router.patch("/memories/{memory_id}", tags=["memories"], status_code=204, responses=documented(400, 404))
def change_memory(request: Request, memory_id: MemoryId, change: records.Change) -> None:
    """Gives a memory another title, or says whether it stays when its stream is closed."""
    _change(hub_of(request), memory_id, change)


@router.delete("/memories/{memory_id}", tags=["memories"], responses=documented(404))
def delete_memory(request: Request, memory_id: MemoryId) -> records.Gone:
    """Removes a memory for good, and closes its stream."""
    hub_of(request).delete(memory_id)
    return records.Gone(id=memory_id)
