"""A real server for tests: the app on a port of its own, in a thread, and the hub behind it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import uvicorn

from vstream import batch
from vstream.app.serve.gate import Gate, GateSettings
from vstream.app.serve.hub import Hub, Opener
from vstream.app.serve.library import Library
from vstream.app.serve.limits import Limits
from vstream.app.serve.protocol import ImpatientProtocol
from vstream.app.serve.server import build_app
from vstream.sources import Source, open_source

START_SECONDS = 30
AMPLE = Limits(questions_per_minute=10_000, requests_per_second=1000, pushes_per_second=1000, open_requests=1000)
"""Tests are quicker than any client should be."""
QUESTION = {"question": "what is there now?"}
LONG = QUESTION | {"temperature": 8.0, "max_tokens": 200, "seed": 5}
"""A question whose answer goes on and on."""


def wait_for(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.002)


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1) -> float:
    """Has every token take so many seconds, of a model that is otherwise the real one."""
    advance = batch.advance

    def slow_advance(*arguments):
        time.sleep(seconds)
        advance(*arguments)

    monkeypatch.setattr(batch, "advance", slow_advance)
    return seconds


@dataclass(frozen=True)
class Plain:
    source: Source
    file: Path | None = None


def opener(given: str, max_side: int) -> Plain:
    """Opens anything, as nobody should who listens to others."""
    source = open_source(given, max_side=max_side)
    return Plain(source, None if source.is_live else Path(given))


def write_video(
    path: Path, seconds: int = 12, rate: int = 5, codec: str = "mpeg4", start_seconds: int = 0, **options
) -> Path:
    """A bar that moves to the right; its place tells a frame's number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(rate * seconds):
            image = np.full((64, 96, 3), 40, np.uint8)
            image[:, (i * 2) % 90 : (i * 2) % 90 + 6] = 230
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = start_seconds * rate + i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        url: of its root, without a slash at the end.
        http: a client of it.
    """

    hub: Hub
    url: str
    http: httpx.Client

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def open(self, source: object, **options) -> str:
        """A new stream's id."""
        reply = self.http.post("/v1/streams", json={"source": str(source), **options})
        assert reply.status_code == 201, reply.text
        return reply.json()["id"]

    def close_all(self) -> None:
        for stream in self.hub.streams():
            self.hub.close_stream(stream.id)


@contextmanager
def serve(hub: Hub, **options) -> Iterator[Served]:
    """Serves a hub while it lasts, behind the gate and by the protocols that `vstream serve` has."""
    app = build_app(hub, **options)
    gate = Gate(app, GateSettings(limits=AMPLE), app.state.stopping)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        gate, http=ImpatientProtocol, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + START_SECONDS
    while not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(hub, url, http)
    finally:
        server.should_exit = True
        thread.join(15)
        hub.close()
        assert not thread.is_alive(), "the server did not end"


def make_hub(root: Path, model: str = "tiny", opener: Opener = opener, **options) -> Hub:
    """A hub that opens anything, unless told otherwise; nothing is loaded yet."""
    return Hub(opener, Library(root), models=(model,), settings={"disk_bytes": 64 << 20}, **options)
