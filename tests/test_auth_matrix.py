"""Every route of the real app, whoever wrote it, against every kind of visitor: a new route is covered by being there.

The routes are those of the app as `vstream serve` builds it. What passes the gate is noted in front of the app, which
is then not bothered: here it matters who comes in, not what happens inside.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi.routing
import httpx
import pytest
import websockets.sync.client
from fastapi import FastAPI
from gate_app import BEARER, log_in
from servers import TOKEN, serving, serving_bare
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.exceptions import InvalidStatus

from vstream.app.serve.allowed import SourcePolicy
from vstream.app.serve.gate import Gate, GateSettings
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import Library
from vstream.app.serve.limits import Limits
from vstream.app.serve.page.page import mount_page
from vstream.app.serve.server import build_app
from vstream.app.serve.stopping import Stopping
from vstream.app.serve.uploads import Uploads

pytestmark = pytest.mark.slow

OPEN = {"/healthz", "/readyz"}
GATES_OWN = {"/login", "/logout"}
SAFE = ("GET", "HEAD", "OPTIONS")
MANY = 1_000_000
WITHOUT_LIMITS = Limits(
    questions_per_minute=MANY, requests_per_second=MANY, pushes_per_second=MANY, pictures_per_second=MANY,
    page_per_second=MANY, login_tries_per_minute=MANY,
)  # fmt: skip


@dataclass(frozen=True)
class Door:
    """A way in: a route with one of its methods; "SOCKET" for a WebSocket."""

    method: str
    path: str

    @property
    def is_safe(self) -> bool:
        return self.method in SAFE


def doors(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[Door]:
    """All ways in, mounted apps' too, with something in place of each parameter."""
    contexts = getattr(fastapi.routing, "iter_route_contexts", iter)  # since routers are not copied into the app
    for route in contexts(routes):
        original = getattr(route, "original_route", route)
        path = prefix + re.sub(r"\{[^}]*\}", "1", getattr(route, "path", "") or "")
        if isinstance(original, Mount):
            yield from doors(original.routes, path)
            if isinstance(original.app, StaticFiles):
                yield Door("GET", f"{path}/anything")
        elif isinstance(original, WebSocketRoute):
            yield Door("SOCKET", path)
        else:
            yield from (Door(method, path) for method in sorted(getattr(route, "methods", None) or ["GET"]))


class Doorman:
    """Stands in for the app: notes who came in, and lets nobody bother it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.came: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            self.came.append(scope["path"])
            await Response(status_code=204)(scope, receive, send)
        else:
            self.came.append(scope["path"])
            await send({"type": "websocket.close", "code": 4000})


@dataclass
class Building:
    """The server, and who came in.

    Attributes:
        doors: all but the gate's own.
    """

    url: str
    doors: list[Door]
    doorman: Doorman

    def knock(self, door: Door, headers: dict[str, str], client: httpx.Client) -> tuple[int, bool]:
        """What a visitor is told, and whether they came in."""
        before = len(self.doorman.came)
        if door.method == "SOCKET":
            status = self._knock_socket(door, headers)
        else:
            status = client.request(door.method, self.url + door.path, headers=headers).status_code
        return status, len(self.doorman.came) > before

    def _knock_socket(self, door: Door, headers: dict[str, str]) -> int:
        url = self.url.replace("http", "ws", 1) + door.path
        host = {name: value for name, value in headers.items() if name == "host"}
        others = {name: value for name, value in headers.items() if name != "host"}
        if host:
            url = re.sub(r"//[^:]+", f"//{host['host']}", url)
        there = httpx.URL(self.url)
        sock = socket.create_connection((there.host, there.port), timeout=5)
        with sock, pytest.raises(InvalidStatus) as refused:
            websockets.sync.client.connect(url, sock=sock, additional_headers=others)
        return refused.value.response.status_code

    def told(self, headers: dict[str, str], client: httpx.Client, doors: Any = None) -> dict[Door, tuple[int, bool]]:
        """The same at every door."""
        return {door: self.knock(door, headers, client) for door in (doors or self.doors)}


def build(folder: Path) -> FastAPI:
    """The app as `vstream serve` builds it; no model is loaded."""
    uploads = Uploads(folder / "uploads")
    policy = SourcePolicy((), uploads.folder)
    hub = Hub(lambda source, side: policy.open(source, max_side=side), Library(folder / "streams"), models=("tiny",))
    app = build_app(hub, policy=policy, uploads=uploads, stopping=Stopping())
    return mount_page(app, hub, policy, uploads)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return build(tmp_path_factory.mktemp("memories"))


def building(app: FastAPI, url: str, doorman: Doorman) -> Building:
    found = [door for door in dict.fromkeys(doors(app.routes)) if door.path not in GATES_OWN]
    return Building(url, found, doorman)


@pytest.fixture(scope="module")
def guarded(app: FastAPI) -> Iterator[Building]:
    """With a token."""
    doorman = Doorman(app)
    with serving(app, token=TOKEN) as (server, listener):
        settings = GateSettings(token=TOKEN, cookie=listener.settings.cookie, limits=WITHOUT_LIMITS)
        server.config.loaded_app = Gate(doorman, settings, app.state.stopping)
        yield building(app, listener.url, doorman)


@pytest.fixture(scope="module")
def local(app: FastAPI, guarded: Building) -> Iterator[Building]:
    """Without one."""
    doorman = Doorman(app)
    with serving(FastAPI()) as (server, listener):
        server.config.loaded_app = Gate(doorman, GateSettings(limits=WITHOUT_LIMITS), Stopping())
        yield building(app, listener.url, doorman)


@pytest.fixture
def program() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def browser(guarded: Building) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url) as client:
        assert log_in(client).status_code == 303
        yield client


def cookie(browser: httpx.Client) -> dict[str, str]:
    """As a header, since a WebSocket's client has no jar."""
    ((name, value),) = browser.cookies.items()
    return {"cookie": f"{name}={value}"}


def test_no_route_is_overlooked(app: FastAPI, guarded: Building) -> None:
    found = {door.path for door in guarded.doors}
    documented = {re.sub(r"\{[^}]*\}", "1", path) for path in app.openapi()["paths"]}
    assert documented <= found
    assert {
        "/v1/streams",
        "/metrics",
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/docs/assets/anything",
    } <= found
    assert {"/v1/chat/completions", "/v1/models", "/v1/uploads"} <= found
    assert {"/", "/config", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload"} <= found
    assert "/v1/streams/1/live.mjpg" in found
    assert Door("SOCKET", "/v1/streams/1/push") in guarded.doors
    assert len(guarded.doors) > 80


def test_nobody_comes_in_without_the_token(guarded: Building, program: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "vstream_session=wrong"}):
        for door, told in guarded.told(headers, program).items():
            is_open = door.path in OPEN and door.is_safe
            assert told == ((204, True) if is_open else (401, False)), (door, headers)


def test_everybody_comes_in_with_the_token(guarded: Building, program: httpx.Client) -> None:
    """So what the other tests refuse is refused for what it lacks."""
    for door, (status, came) in guarded.told(BEARER, program).items():
        assert came, door
        assert status == (403 if door.method == "SOCKET" else 204), "what the doorman says"


def test_under_another_name_nobody_comes_in(guarded: Building, local: Building, program: httpx.Client) -> None:
    for each, headers in ((guarded, BEARER), (local, {})):
        told = each.told({**headers, "host": "evil.example"}, program)
        assert set(told.values()) == {(421, False)}


def test_a_cookie_without_an_origin_only_looks(guarded: Building, browser: httpx.Client) -> None:
    for door, told in guarded.told(cookie(browser), browser).items():
        assert told == ((204, True) if door.is_safe else (403, False)), door


def test_a_cookie_from_another_site_does_nothing(guarded: Building, browser: httpx.Client) -> None:
    for door, told in guarded.told({**cookie(browser), "origin": "https://evil.example"}, browser).items():
        is_open = door.path in OPEN and door.is_safe
        assert told == ((204, True) if is_open else (403, False)), door


def test_a_cookie_from_the_own_page_does_everything(guarded: Building, browser: httpx.Client) -> None:
    for door, (_, came) in guarded.told({**cookie(browser), "origin": guarded.url}, browser).items():
        assert came, door


def test_on_this_machine_only_other_sites_stay_outside(local: Building, program: httpx.Client) -> None:
    assert all(came for _, came in local.told({}, program).values())
    assert all(came for _, came in local.told({"origin": local.url}, program).values())
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}):
        for door, told in local.told(headers, program).items():
            is_open = door.path in OPEN and door.is_safe
            assert told == ((204, True) if is_open else (403, False)), (door, headers)


def test_without_a_gate_everybody_would_come_in(app: FastAPI, program: httpx.Client) -> None:
    doorman = Doorman(FastAPI())
    with serving_bare(doorman) as url:
        bare = building(app, url, doorman)
        headers = {"origin": "https://evil.example", "host": "evil.example"}
        assert all(came for _, came in bare.told(headers, program).values())


@pytest.mark.parametrize("path", ["/", "/v1/streams", "/v1/models", "/metrics", "/docs", "/openapi.json", "/config"])
def test_behind_the_gate_is_the_app(tmp_path: Path, path: str) -> None:
    with serving(build(tmp_path), token=TOKEN) as (_, listener):
        assert httpx.get(listener.url + path).status_code == 401
        assert httpx.get(listener.url + path, headers=BEARER).status_code == 200
