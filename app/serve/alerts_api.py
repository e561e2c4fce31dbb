"""The API's routes for standing questions: what is looked for in a stream, and its events as they come.

This module knows nothing of models, or of how events reach others than those who ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vstream.app.alerts.notices import Notice
from vstream.app.alerts.standing import since_seconds
from vstream.app.serve import records
from vstream.app.serve.alerts import StreamAlerts
from vstream.app.serve.api import StreamId, event, hub_of
from vstream.app.serve.errors import ApiError, documented
from vstream.app.serve.stream import Stream
from vstream.standing import Alert, AlertOptions

router = APIRouter(prefix="/v1/streams/{stream_id}", tags=["alerts"])

LOOK_SECONDS, BEAT_SECONDS = 1.0, 15.0
"""So often it is looked whether the stream is still open, and a line is sent that tells both sides of the other."""
AlertId = Annotated[str, Path(max_length=64, description="of a standing question that goes on")]
EventId = Annotated[str, Path(max_length=64, description="of an event that is kept")]

EVENTS = """The latest events. As JSON: each as it stands. As server-sent events (`Accept: text/event-stream`): those
after `Last-Event-ID`, or all that are kept, and then each `start` and `end` as it comes, until the stream is closed."""
EVENT = {
    "type": "object",
    "description": EVENTS,
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["start", "end"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.get("/alerts", responses=documented(404))
def list_alerts(request: Request, stream_id: StreamId) -> records.AlertList:
    """What is looked for."""
    stream = hub_of(request).stream(stream_id)
    return records.AlertList(data=[alert_record(stream, alert) for alert in stream.alerts.alerts])


@router.post("/alerts", status_code=201, responses=documented(400, 404, 409))
def add_alert(request: Request, stream_id: StreamId, new: records.NewAlert) -> records.AlertRecord:
    """Looks for something in every clip from the next one on."""
    stream = hub_of(request).stream(stream_id)
    return alert_record(stream, stream.alerts.add(new.text, _options(new)))


@router.delete("/alerts/{alert_id}", responses=documented(404))
def remove_alert(request: Request, stream_id: StreamId, alert_id: AlertId) -> records.Gone:
    """Looks for it no more. An event that goes on is over."""
    try:
        hub_of(request).stream(stream_id).alerts.remove(alert_id)
    except LookupError as error:
        raise _unknown(error) from error
    return records.Gone(id=alert_id)


@router.get(
    "/events",
    response_model=records.EventList,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}, **documented(404)},
    description=EVENTS,
)
async def list_events(
    request: Request,
    stream_id: StreamId,
    last_event_id: Annotated[str | None, Header(max_length=200, description="of the last that is known")] = None,
) -> Any:
    """The latest events, or those that come."""
    stream = hub_of(request).stream(stream_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(stream, last_event_id or "", request.app.state.stopping.is_set)
    told = [event_record(stream, notice) for _, notice in stream.alerts.events]
    return JSONResponse(records.EventList(data=told).model_dump())


@router.get(
    "/events/{event_id}.jpg",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        **documented(404),
    },
)
def get_event_picture(request: Request, stream_id: StreamId, event_id: EventId) -> Response:
    """The frame that shows an event; of older ones the nearest that the memory has."""
    stream = hub_of(request).stream(stream_id)
    try:
        event = stream.alerts.event(event_id).event
    except LookupError as error:
        raise _unknown(error) from error
    found = (event.picture, event.seconds) if event.picture else stream.picture(event.seconds)
    if found is None:
        raise ApiError(404, "no picture of that event is kept", code="no_picture")
    headers = {"x-stream-seconds": f"{found[1]:.3f}", "cache-control": "private, max-age=3600"}
    return Response(found[0], media_type="image/jpeg", headers=headers)


def alert_record(stream: Stream, alert: Alert) -> records.AlertRecord:
    """A standing question as it stands now."""
    return records.AlertRecord(
        id=alert.id,
        stream_id=stream.id,
        text=alert.text,
        on=alert.options.on,
        off=alert.options.off,
        cool_down_seconds=alert.options.cool_down_seconds,
        since_seconds=since_seconds(alert),
        confidence=alert.confidence,
        events=len(alert.events),
        looked=alert.looked,
        skipped=alert.skipped,
    )


def event_record(stream: Stream, notice: Notice) -> records.EventRecord:
    """An event, with the address of its picture."""
    event = notice.event
    return records.EventRecord(
        id=notice.event_id,
        alert_id=event.alert_id,
        stream_id=stream.id,
        text=event.text,
        start_seconds=event.start_seconds,
        end_seconds=event.end_seconds,
        seconds=event.seconds,
        confidence=event.confidence,
        wall_seconds=event.wall_clock,
        picture_url=event_picture_url(stream.id, notice.event_id) if event.picture else None,
    )


def event_picture_url(stream_id: str, event_id: str) -> str:
    """Where an event's picture is, on this server."""
    return f"/v1/streams/{stream_id}/events/{event_id}.jpg"


class EventStream(StreamingResponse):
    """Server-sent events of one stream. When the client goes, nothing of it is left."""

    def __init__(self, stream: Stream, last_key: str, is_stopping: Callable[[], bool]) -> None:
        """Begins after the notice `last_key`."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        self._news, self._loop = asyncio.Event(), asyncio.get_running_loop()
        super().__init__(self._events(stream, last_key, is_stopping), media_type="text/event-stream", headers=headers)
        self._alerts: StreamAlerts = stream.alerts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        self._alerts.subscribe(self._hear)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._alerts.unsubscribe(self._hear)

    def _hear(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody is there to be told
            self._loop.call_soon_threadsafe(self._news.set)

    async def _events(self, stream: Stream, last_key: str, is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
        quiet_seconds = 0.0
        yield ": events\n\n"  # so that the client knows at once that it is connected
        while True:
            self._news.clear()
            over = is_stopping() or stream.session.closed
            for notice in stream.alerts.after(last_key):
                last_key, quiet_seconds = notice.key, 0.0
                yield f"id: {notice.key}\n{event(notice.phase, event_record(stream, notice))}"
            if over:
                return
            with anyio.move_on_after(LOOK_SECONDS):
                await self._news.wait()
            quiet_seconds += LOOK_SECONDS
            if quiet_seconds >= BEAT_SECONDS:
                quiet_seconds = 0.0
                yield ":\n\n"


def _options(new: records.NewAlert) -> AlertOptions:
    """How it is judged: what was given, else the usual; `off` keeps its distance from `on`. Raises `ValueError`."""
    usual = AlertOptions()
    on = usual.on if new.on is None else new.on
    off = on - (usual.on - usual.off) if new.off is None else new.off
    cool_down = usual.cool_down_seconds if new.cool_down_seconds is None else new.cool_down_seconds
    return AlertOptions(on=on, off=off, cool_down_seconds=cool_down)


def _unknown(error: LookupError) -> Exception:
    """An alert or event that is not there; an unknown stream stays what it is."""
    return ApiError(404, str(error.args[0]), code="not_found")
