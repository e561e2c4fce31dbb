"""An app that has every kind of route, and clients of it, for tests of what stands before it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import httpx
import websockets.sync.client
from fastapi import FastAPI, File, Request, UploadFile, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from servers import TOKEN, serving

from vstream.app.serve.gate import Gate, GateSettings
from vstream.app.serve.limits import Limits
from vstream.app.serve.serving import Server, Stopping

BEARER = {"authorization": f"Bearer {TOKEN}"}
SAMPLES = Path(__file__).resolve().parent.parent / "samples"
PICTURE = BytesIO()
Image.new("RGB", (8, 8)).save(PICTURE, "JPEG")
PAGE = {"accept": "text/html,*/*;q=0.8"}
FOREIGN = {"origin": "https://evil.example"}


class Work:
    """What the app's endless routes leave behind."""

    def __init__(self) -> None:
        self.open = 0
        self.ended: list[str] = []

    @contextlib.contextmanager
    def going_on(self, name: str) -> Iterator[None]:
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self.ended.append(name)


def make_app(*, page: bool = False) -> FastAPI:
    """One route of every kind: what the real app has, without its models; with a page of Gradio's if it is needed."""
    app = FastAPI()
    app.state.work = work = Work()
    app.state.stopping = Stopping()

    @app.get("/healthz")
    @app.get("/readyz")
    def health() -> str:
        return "ok"

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse("up 1\n")

    @app.get("/v1/streams")
    def streams() -> list[str]:
        return []

    @app.post("/v1/streams")
    async def open_stream(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.delete("/v1/streams/{name}")
    def close(name: str) -> str:
        return name

    @app.get("/v1/streams/{name}/frames/{seconds}.jpg")
    def frame(name: str, seconds: float) -> Response:
        return Response(PICTURE.getvalue(), media_type="image/jpeg")

    @app.get("/v1/streams/{name}/live.mjpg")
    async def live(name: str) -> StreamingResponse:
        async def pictures() -> AsyncIterator[bytes]:
            with work.going_on("live"):
                while True:
                    yield b"--frame\r\n\r\npicture\r\n"
                    await asyncio.sleep(0.02)

        return StreamingResponse(pictures(), media_type="multipart/x-mixed-replace; boundary=frame")

    @app.get("/v1/streams/{name}/events")
    async def events(name: str) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            with work.going_on("events"):
                yield "data: first\n\n"
                await asyncio.Event().wait()

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.post("/v1/streams/{name}/ask")
    async def ask(name: str, request: Request) -> StreamingResponse:
        seconds = (await request.json())["seconds"]

        async def words() -> AsyncIterator[str]:
            with work.going_on("ask"):
                yield "data: word\n\n"
                await asyncio.sleep(seconds)
                yield "data: [DONE]\n\n"

        return StreamingResponse(words(), media_type="text/event-stream")

    @app.websocket("/v1/streams/{name}/push")
    async def push(name: str, websocket: WebSocket) -> None:
        await websocket.accept()
        with work.going_on("push"):
            async for message in websocket.iter_bytes():
                await websocket.send_json(len(message))

    @app.post("/v1/uploads")
    async def upload(file: Annotated[UploadFile, File()]) -> JSONResponse:
        return JSONResponse({"bytes": len(await file.read())})

    app.mount("/static", StaticFiles(directory=SAMPLES))
    return _with_page(app) if page else app


def _with_page(app: FastAPI) -> FastAPI:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    with gr.Blocks() as page:
        gr.Markdown("a page of gradio's")
    return gr.mount_gradio_app(app, page, path="/", footer_links=[])


@contextlib.contextmanager
def served(limits: Limits | None = None, **options: Any) -> Iterator[tuple[httpx.Client, Server, Work]]:
    """A server of its own, with other limits: a client with the token, and what the app does."""
    app = make_app()
    with serving(app, token=TOKEN, **options) as (server, listener):
        gate = Gate(app, GateSettings(token=TOKEN, limits=limits or Limits()), app.state.stopping)
        server.gate = server.config.loaded_app = gate
        with httpx.Client(base_url=listener.url, headers=BEARER) as client:
            yield client, server, app.state.work


def url_of(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def log_in(client: httpx.Client, token: str = TOKEN) -> httpx.Response:
    return client.post("/login", data={"token": token}, headers={"origin": url_of(client)})


@contextlib.contextmanager
def logged_in(client: httpx.Client) -> Iterator[httpx.Client]:
    """A browser that has logged in; it says where its requests come from, as they all do."""
    with httpx.Client(base_url=client.base_url) as browser:
        assert log_in(browser).status_code == 303
        yield browser


def cookie_of(client: httpx.Client, browser: httpx.Client) -> str:
    """The header with the session's cookie, for whoever has no jar."""
    name = f"vstream_session_{client.base_url.port}"
    return f"{name}={browser.cookies[name]}"


def socket_url(client: httpx.Client, path: str = "/v1/streams/1/push") -> str:
    return f"{url_of(client).replace('http', 'ws', 1)}{path}"


def connect(client: httpx.Client, headers: dict[str, str], **options: Any) -> Any:
    return websockets.sync.client.connect(socket_url(client), additional_headers=headers, **options)


def raw(client: httpx.Client, request: str) -> str:
    """What a server says to bytes that no client would send; the head alone."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as connection:
        connection.sendall(request.encode("latin-1"))
        return connection.recv(4096).decode("latin-1").partition("\r\n\r\n")[0]
