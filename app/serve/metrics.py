"""For Prometheus and for supervisors: /metrics, /healthz, /readyz.

Labels have few values: streams that are open, levels, tiers, outcomes, routes as they are written down, never as they
are called. This module knows nothing of what the routes do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from vstream.app.serve import records

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vstream.answer import Answer
    from vstream.app.serve.hub import Hub
    from vstream.app.serve.stream import Stream

router = APIRouter(tags=["server"])
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
TTFT_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 50, 100, 200)


@router.get("/healthz")
async def healthz() -> records.Health:
    """The process lives."""
    return records.Health(status="ok")


@router.get("/readyz", response_model=records.Health, responses={503: {"model": records.Health}})
async def readyz(request: Request) -> JSONResponse:
    """The default model is loaded, and questions are taken; 503 while not."""
    hub: Hub = request.app.state.hub
    status = "ok" if hub.ready else "stopping" if hub.stopping else "loading"
    return JSONResponse({"status": status}, 200 if hub.ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Counts and gauges, as Prometheus reads them."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def install(app: FastAPI, hub: Hub) -> None:
    """Counts every request and every question from now on."""
    app.state.metrics = found = Metrics(hub)
    hub.on_ask = found.follow
    app.add_middleware(CountRequests, metrics=found)


class Metrics:
    """What is counted, with a registry of its own."""

    def __init__(self, hub: Hub) -> None:
        """Of one hub; nothing has happened yet."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(StreamMetrics(hub))
        self.requests = Counter(
            "vstream_requests", "Requests by route.", ("method", "route", "status"), registry=registry
        )
        self._questions = Counter("vstream_questions", "Answers that are over.", ("outcome",), registry=registry)
        self._ttft = Histogram(
            "vstream_ttft_seconds", "From a due question to its first token.", buckets=TTFT_SECONDS, registry=registry
        )
        self._speed = Histogram(
            "vstream_tokens_per_second", "Decoding speed of answers.", buckets=TOKENS_PER_SECOND, registry=registry
        )
        self._tokens = Counter(
            "vstream_tokens", "Tokens that questions saw, and that were generated.", ("kind",), registry=registry
        )

    def follow(self, answer: Answer) -> None:
        """Counts an answer when it is over."""
        once = threading.Lock()

        def look() -> None:
            if answer.done and once.acquire(blocking=False):
                self._count(answer)

        answer.subscribe(look)
        look()  # it may be over already

    def _count(self, answer: Answer) -> None:
        outcome = "failed" if answer.error else answer.finish_reason or "failed"
        self._questions.labels(outcome).inc()
        self._tokens.labels("prompt").inc(answer.num_prompt_tokens)
        self._tokens.labels("completion").inc(answer.num_tokens)
        if answer.ttft_seconds is not None:
            self._ttft.observe(answer.ttft_seconds)
        if answer.tokens_per_second is not None:
            self._speed.observe(answer.tokens_per_second)


class StreamMetrics(Collector):
    """The open streams, looked at when somebody asks."""

    def __init__(self, hub: Hub) -> None:
        """Of one hub."""
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """A sample of every gauge for every stream."""
        streams = self._hub.streams()
        yield GaugeMetricFamily("vstream_ready", "Whether the default model is loaded.", value=float(self._hub.ready))
        yield GaugeMetricFamily("vstream_streams", "Streams that are open.", value=len(streams))
        families = _families()
        for stream in streams:
            _sample(stream, families)
        yield from families.values()


def _families() -> dict[str, Metric]:
    def gauge(name: str, text: str, *labels: str) -> Metric:
        return GaugeMetricFamily(f"vstream_stream_{name}", text, labels=("stream", *labels))

    def count(name: str, text: str, *labels: str) -> Metric:
        return CounterMetricFamily(f"vstream_stream_{name}", text, labels=("stream", *labels))

    return {
        "decoded": gauge("decoded_frames_per_second", "Frames decoded, over the last ten seconds."),
        "encoded": gauge("encoded_frames_per_second", "Frames encoded, over the last ten seconds."),
        "lag": gauge("lag_seconds", "How far memory is behind the newest frame."),
        "clock": gauge("clock_seconds", "Stream time of the newest frame."),
        "questions": gauge("open_questions", "Questions that are being answered, or wait."),
        "blocks": gauge("blocks", "Blocks of the memory.", "level"),
        "bytes": gauge("bytes", "Bytes of memory, caches and answers.", "tier"),
        "frames": count("frames", "What became of the frames.", "fate"),
        "gaps": count("gaps", "Times at which a camera was not seen."),
    }


def _sample(stream: Stream, families: dict[str, Metric]) -> None:
    def add(name: str, value: float | None, *labels: str) -> None:
        if value is not None:
            families[name].add_metric((stream.id, *labels), float(value))  # type: ignore[attr-defined]

    look = stream.look()
    add("decoded", look.decoded_per_second)
    add("encoded", look.encoded_per_second)
    add("lag", look.lag_seconds)
    add("clock", look.clock_seconds)
    add("questions", sum(not turn.answer.done for turn in stream.turns))
    add("gaps", look.num_gaps)
    for level, blocks in look.blocks.items():
        add("blocks", blocks, level)
    for tier, num_bytes in look.tier_bytes.items():
        add("bytes", num_bytes, tier)
    if stream.session.ingest is not None:
        counts = stream.session.ingest.counters()
        for fate in ("decoded", "encoded", "skipped", "dropped"):
            add("frames", getattr(counts, fate), fate)


class CountRequests:
    """ASGI middleware that counts requests by the route that served them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Counts in `metrics`."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = 500 if scope["type"] == "http" else 403  # a socket that is closed before it is accepted

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._metrics.requests.labels(_method(scope), _route(scope), status).inc()


def _method(scope: Scope) -> str:
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """The route as it is written down; everything that has none, the page's own files among them, is one."""
    return str(getattr(scope.get("route"), "path", "other"))
