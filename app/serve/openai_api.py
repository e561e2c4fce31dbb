"""The routes that OpenAI's clients use: models, chat completions, responses.

A stream is named by the model `stream:ID`, or by an extra field `stream_id`. Where none is named, the pictures in the
messages are watched as a stream of their own, a second each, which is closed after the answer. This module knows
nothing of the API's own routes but how they ask.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse

from vstream.answer import Answer
from vstream.app.serve import openai_records as records
from vstream.app.serve import telling
from vstream.app.serve.api import ask_stream, check_answer, event, hub_of, opening
from vstream.app.serve.errors import ApiError, documented, problem
from vstream.app.serve.following import AnswerStream, ended, pieces
from vstream.app.serve.hub import PUSH, Hub
from vstream.app.serve.openai_asked import Asked, asked, check_no_instructions
from vstream.app.serve.pictures import decode_picture
from vstream.app.serve.records import EvidenceRecord
from vstream.app.serve.stream import Stream, Turn

router = APIRouter(prefix="/v1", tags=["openai"])
PREFIX = "stream:"
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
EVENT_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


@dataclass(frozen=True)
class Conversation:
    """An answer on its way to a client.

    Attributes:
        id: of the response.
        model: as it was named.
        is_temporary: whether the stream is only of the message's pictures.
    """

    id: str
    created: int
    model: str
    stream: Stream
    turn: Turn
    asked: Asked
    is_temporary: bool

    @property
    def answer(self) -> Answer:
        """What is being said."""
        return self.turn.answer

    @property
    def evidence(self) -> list[EvidenceRecord]:
        """What the answer saw; a stream that is closed afterwards has no addresses."""
        known = telling.evidence_records(self.stream, self.answer)
        return [one.model_copy(update={"picture_url": None}) for one in known] if self.is_temporary else known

    @property
    def about(self) -> records.About:
        """What is ours about it."""
        return records.About(
            stream_id=None if self.is_temporary else self.stream.id,
            number=self.turn.number,
            asked_at_seconds=self.answer.asked_at_seconds,
            snapshot_seconds=self.answer.snapshot_seconds,
            ignored_messages=self.asked.ignored,
            earlier=self.answer.num_earlier,
        )

    @property
    def was_cut(self) -> bool:
        """Whether the answer had no room for more."""
        return self.answer.finish_reason == "length"


# Models -------------------------------------------------------------------------------------------------------------


@router.get("/models", responses=documented())
async def list_models(request: Request) -> records.ModelList:
    """The models, and every open stream as `stream:ID`."""
    return records.ModelList(data=_models(hub_of(request)))


@router.get("/models/{name:path}", responses=documented(404))
async def get_model(request: Request, name: Annotated[str, Path(max_length=200)]) -> records.Model:
    """One of them."""
    found = next((model for model in _models(hub_of(request)) if model.id == name), None)
    if found is None:
        raise _no_model(hub_of(request), name)
    return found


def _models(hub: Hub) -> list[records.Model]:
    streams = [records.Model(id=PREFIX + one.id, created=_unix(one.card.created)) for one in hub.streams()]
    return [records.Model(id=name, created=0) for name in hub.models] + streams


def _unix(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp())


def _no_model(hub: Hub, name: str) -> ApiError:
    known = ", ".join((*hub.models, f"{PREFIX}ID"))
    return ApiError(404, f"there is no model {name!r}; there are {known}", code="model_not_found", param="model")


# Chat completions ---------------------------------------------------------------------------------------------------


@router.post(
    "/chat/completions",
    response_model=records.ChatCompletion,
    responses={**EVENT_STREAM, **documented(400, 404, 409, 500)},
)
async def chat_completions(request: Request, wanted: records.ChatRequest) -> Any:
    """Asks a stream. The last message is the question."""
    wanted.check_extras()
    question = asked(wanted.messages)
    options = {"seed": wanted.seed, "stop": wanted.stop or None}
    max_tokens = wanted.max_completion_tokens or wanted.max_tokens
    talk, close = await _ask(request, wanted, question, "chatcmpl", max_tokens=max_tokens, **options)
    if wanted.stream:
        with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
        return AnswerStream(talk.answer, _chunks(talk, with_usage), on_end=close)
    await _whole(request, talk, close)
    message = records.ChatMessage(content=talk.answer.text_so_far)
    choice = records.ChatChoice(message=message, finish_reason="length" if talk.was_cut else "stop")
    completion = records.ChatCompletion(
        id=talk.id,
        created=talk.created,
        model=talk.model,
        choices=[choice],
        usage=telling.usage(talk.answer),
        evidence=talk.evidence,
        vstream=talk.about,
    )
    return JSONResponse(completion.model_dump())


async def _chunks(talk: Conversation, with_usage: bool) -> AsyncIterator[str]:
    begun = False
    async for text in pieces(talk.answer):
        if not begun:
            begun = True
            yield _first_chunk(talk, with_usage)
        yield _chunk(talk, {"content": text}, with_usage)
    failed = _failure(talk)
    if failed is not None:
        yield event(None, problem(failed.status, str(failed), code=failed.code))
        return
    if not begun:
        yield _first_chunk(talk, with_usage)
    yield _chunk(talk, {}, with_usage, finish_reason="length" if talk.was_cut else "stop")
    if with_usage:
        usage = telling.usage(talk.answer).model_dump()
        yield event(None, {**_chunk_head(talk), "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _first_chunk(talk: Conversation, with_usage: bool) -> str:
    evidence = [one.model_dump() for one in talk.evidence]
    delta = {"role": "assistant", "content": ""}
    return _chunk(talk, delta, with_usage, evidence=evidence, vstream=talk.about.model_dump())


def _chunk(
    talk: Conversation, delta: dict[str, Any], with_usage: bool, *, finish_reason: str | None = None, **extra: Any
) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    usage = {"usage": None} if with_usage else {}
    return event(None, {**_chunk_head(talk), "choices": [choice], **usage, **extra})


def _chunk_head(talk: Conversation) -> dict[str, Any]:
    return {"id": talk.id, "object": "chat.completion.chunk", "created": talk.created, "model": talk.model}


# Responses ----------------------------------------------------------------------------------------------------------


@router.post(
    "/responses",
    response_model=records.ResponseRecord,
    responses={**EVENT_STREAM, **documented(400, 404, 409, 500)},
)
async def responses(request: Request, wanted: records.ResponsesRequest) -> Any:
    """Asks a stream. `input`, or its last message, is the question."""
    wanted.check_extras()
    check_no_instructions(wanted.instructions, "instructions")
    assert wanted.metadata is not None, "what cannot be told is refused before anything is asked"
    given = wanted.input
    question = Asked(given) if isinstance(given, str) else asked(given)
    talk, close = await _ask(request, wanted, question, "resp", max_tokens=wanted.max_output_tokens)
    if wanted.stream:
        return AnswerStream(talk.answer, _response_events(talk, wanted), on_end=close)
    await _whole(request, talk, close)
    return JSONResponse(_response(talk, wanted, _final_status(talk)).model_dump())


def _final_status(talk: Conversation) -> str:
    return "incomplete" if talk.was_cut else "completed"


def _response(talk: Conversation, wanted: records.ResponsesRequest, status: Any) -> records.ResponseRecord:
    """The response as it stands, by its status."""
    over = status in ("completed", "incomplete")
    usage = telling.usage(talk.answer)
    return records.ResponseRecord(
        id=talk.id,
        created_at=talk.created,
        status=status,
        incomplete_details=records.Incomplete() if status == "incomplete" else None,
        max_output_tokens=wanted.max_output_tokens,
        model=talk.model,
        output=[_message(talk, status)] if over else [],
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        usage=records.ResponseUsage(
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
        )
        if over
        else None,
        metadata=wanted.metadata,
        evidence=talk.evidence if over else [],
        vstream=talk.about if over else None,
    )


def _message(talk: Conversation, status: Any, *, begun: bool = True) -> records.ResponseMessage:
    content = [records.ResponseText(text=talk.answer.text_so_far)] if begun else []
    return records.ResponseMessage(id=f"msg_{talk.id.removeprefix('resp_')}", status=status, content=content)


async def _response_events(talk: Conversation, wanted: records.ResponsesRequest) -> AsyncIterator[str]:
    number = 0

    def told(kind: str, **fields: Any) -> str:
        nonlocal number
        number += 1
        return event(kind, {"type": kind, "sequence_number": number - 1, **fields})

    def response(status: str) -> dict[str, Any]:
        return _response(talk, wanted, status).model_dump()

    yield told("response.created", response=response("in_progress"))
    yield told("response.in_progress", response=response("in_progress"))
    message = _message(talk, "in_progress", begun=False)
    item = {"output_index": 0, "item_id": message.id}
    text = {**item, "content_index": 0}
    yield told("response.output_item.added", output_index=0, item=message.model_dump())
    yield told("response.content_part.added", **text, part=records.ResponseText(text="").model_dump())
    async for piece in pieces(talk.answer):
        yield told("response.output_text.delta", **text, delta=piece, logprobs=[])
    failed = _failure(talk)
    if failed is not None:
        record = _response(talk, wanted, "failed")
        record.error = records.ResponseProblem(message=str(failed))
        yield told("response.failed", response=record.model_dump())
        return
    status = _final_status(talk)
    done = _message(talk, status)
    yield told("response.output_text.done", **text, text=done.content[0].text, logprobs=[])
    yield told("response.content_part.done", **text, part=done.content[0].model_dump())
    yield told("response.output_item.done", output_index=0, item=done.model_dump())
    yield told(f"response.{status}", response=response(status))


# Asking -------------------------------------------------------------------------------------------------------------


async def _ask(
    request: Request, wanted: records.Wanted, question: Asked, kind: str, *, max_tokens: int | None, **options: Any
) -> tuple[Conversation, Callable[[], None]]:
    """Asks the stream that is named, or one of the pictures that were sent; and what is to be done afterwards.

    More tokens than the stream allows are as many as it allows: an answer that is cut says so.
    """
    hub = hub_of(request)
    stream = _named(hub, wanted)
    temporary = stream is None
    if stream is None:
        stream = await anyio.to_thread.run_sync(_watch_pictures, hub, wanted, question, limiter=opening)
    elif question.pictures:
        message = f"stream {stream.id} is asked about what it has seen; leave out the pictures, or the stream"
        raise ApiError(400, message, param="messages")

    def close() -> None:
        if temporary:
            hub.close_stream(stream.id)

    try:
        limit = stream.session.config.max_answer_tokens
        turn = await ask_stream(
            hub,
            stream,
            question.text,
            at="end" if temporary else wanted.at,
            choices=wanted.choices,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            max_tokens=min(max_tokens, limit) if max_tokens else None,
            **options,
        )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(close)
        raise
    name = f"{kind}{'-' if kind == 'chatcmpl' else '_'}{secrets.token_hex(12)}"
    return Conversation(name, int(time.time()), wanted.model, stream, turn, question, temporary), close


async def _whole(request: Request, talk: Conversation, close: Callable[[], None]) -> None:
    """Waits until all is said. Raises `ApiError` if the answer failed."""
    try:
        await ended(talk.answer, request)
        check_answer(talk.stream, talk.answer)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(close)


def _failure(talk: Conversation) -> ApiError | None:
    try:
        check_answer(talk.stream, talk.answer)
    except ApiError as error:
        return error
    return None


def _named(hub: Hub, wanted: records.Wanted) -> Stream | None:
    """The stream that a request names, None where it names only a model. Raises `ApiError`, `UnknownStreamError`."""
    by_model = wanted.model.removeprefix(PREFIX) if wanted.model.startswith(PREFIX) else None
    if by_model is None and wanted.model not in hub.models:
        raise _no_model(hub, wanted.model)
    if by_model and wanted.stream_id and by_model != wanted.stream_id:
        raise ApiError(400, f"model names stream {by_model}, stream_id names {wanted.stream_id}", param="stream_id")
    stream_id = wanted.stream_id or by_model
    if stream_id is None:
        return None
    stream = hub.stream(stream_id)
    if by_model is None and stream.card.model != wanted.model:
        raise ApiError(400, f"stream {stream_id} is watched by {stream.card.model}, not {wanted.model}", param="model")
    return stream


def _watch_pictures(hub: Hub, wanted: records.Wanted, question: Asked) -> Stream:
    """A stream of the pictures in a request, at one a second, that is over."""
    if not question.pictures:
        message = (
            f"no stream is named: give the model {PREFIX}ID or an extra field stream_id (POST /v1/streams opens one)"
        )
        raise ApiError(400, message, code="no_stream", param="model")
    side = hub.engine(wanted.model).adapter.image_side
    images = [decode_picture(data, max_side=side) for data in question.pictures]
    stream = hub.open(PUSH, title="Pictures of a message", model=wanted.model, fps=1.0)
    try:
        assert stream.source is not None, "frames are pushed to it"
        for seconds, image in enumerate(images):
            stream.source.push(image, float(seconds))
        stream.source.end()
    except BaseException:
        hub.close_stream(stream.id)
        raise
    return stream
