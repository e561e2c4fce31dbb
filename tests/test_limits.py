"""How much one client may ask of a real server: rates, places, sizes."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from gate_app import BEARER, connect, logged_in, raw, served, url_of
from servers import TOKEN, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vstream.app.serve.limits import Limits, MovingWindow
from vstream.app.serve.protocol import ImpatientProtocol

# How much ----------------------------------------------------------------------------------------------------------


def test_questions_are_limited() -> None:
    with served(Limits(questions_per_minute=2)) as (client, _, _):
        asked = [client.post("/v1/streams/1/ask", json={"seconds": 0}) for _ in range(3)]
        assert [each.status_code for each in asked] == [200, 200, 429]
        assert 50 <= int(asked[2].headers["retry-after"]) <= 60
        assert asked[2].json()["error"]["type"] == "rate_limit_error"
        assert client.get("/v1/streams").status_code == 200, "other requests are counted apart"
        with logged_in(client) as browser:
            page = browser.post("/v1/streams/1/ask", json={"seconds": 0}, headers={"origin": url_of(client)})
            assert page.status_code == 200, "and so are other clients"


@pytest.mark.slow
def test_requests_are_limited_pictures_and_the_page_less() -> None:
    limits = Limits(requests_per_second=2, pictures_per_second=5, page_per_second=8)
    with served(limits) as (client, _, _):
        for path, most in (("/v1/streams", 2), ("/v1/streams/1/frames/2.jpg", 5), ("/static/sample.json", 8)):
            begun = time.monotonic()
            passed = [client.get(path).status_code for _ in range(12)].count(200)
            assert most <= passed <= most * (1 + int(time.monotonic() - begun)), path
        time.sleep(1.1)
        assert client.get("/v1/streams").status_code == 200


def test_a_moving_window_forgets_and_stays_small() -> None:
    now = [100.0]
    window = MovingWindow(2, 10, max_keys=3, clock=lambda: now[0])
    assert [window.take("a"), window.take("a")] == [0, 0]
    assert window.take("a") == 10
    now[0] += 4
    assert [window.take("a"), window.take("b")] == [6, 0]
    now[0] += 6
    assert window.take("a") == 0
    for key in "cdefgh":
        window.take(key)
    assert len(window._taken) == 3
    for most, seconds in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one in a positive time"):
            MovingWindow(most, seconds)


def test_so_many_views_and_sockets_at_a_time() -> None:
    with served(Limits(open_views=2, open_sockets=1, open_requests=1)) as (client, server, work):
        with contextlib.ExitStack() as views:
            for _ in range(2):
                assert views.enter_context(client.stream("GET", "/v1/streams/1/live.mjpg")).status_code == 200
            refused = client.get("/v1/streams/1/live.mjpg")
            assert refused.status_code == 429
            assert "at most 2 live views at a time" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
            with connect(client, BEARER), pytest.raises(InvalidStatus) as closed:
                connect(client, BEARER)
            assert closed.value.response.status_code == 429
        wait_for(lambda: len(server.gate.runs) == 0)
        assert work.open == 0, "who goes frees the work"
        with client.stream("GET", "/v1/streams/1/live.mjpg") as again:
            assert again.status_code == 200


def test_so_many_of_all_clients() -> None:
    with served(Limits(open_views=1, clients=2)) as (client, _, _), contextlib.ExitStack() as views:
        statuses = []
        for _ in range(3):
            browser = views.enter_context(logged_in(client))
            statuses.append(views.enter_context(browser.stream("GET", "/v1/streams/1/live.mjpg")).status_code)
        assert statuses == [200, 200, 429]


def test_bodies_are_bounded_before_they_are_read() -> None:
    with served(Limits(body_bytes=1000, upload_bytes=100_000)) as (client, _, _):
        assert client.post("/v1/streams", content=b"x" * 1000).json() == {"bytes": 1000}
        refused = client.post("/v1/streams", content=b"x" * 1001)
        assert refused.status_code == 413
        assert "at most 1000 bytes" in refused.json()["error"]["message"]
        endless = raw(client, f"POST /v1/streams HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
                              "content-length: 99999999999\r\n\r\n")  # fmt: skip
        assert endless.startswith("HTTP/1.1 413"), "no byte of the body was sent"
        assert client.post("/v1/uploads", files={"file": b"x" * 90_000}).json() == {"bytes": 90_000}
        assert client.post("/v1/uploads", files={"file": b"x" * 110_000}).status_code == 413
        assert client.post("/v1/uploadsx", content=b"x" * 1001).status_code == 413


def test_a_body_of_unknown_length_is_bounded_while_it_comes() -> None:
    with served(Limits(body_bytes=1000, upload_bytes=1000)) as (client, server, _):
        assert client.post("/v1/streams", content=iter([b"x" * 500] * 2)).json() == {"bytes": 1000}
        for path in ("/v1/streams", "/v1/streams/1/ask"):
            request = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
            body = f"transfer-encoding: chunked\r\n\r\n400\r\n{'x' * 1024}\r\n"
            assert raw(client, request + body).startswith("HTTP/1.1 413"), "the body has not even ended"
        multipart = "content-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n\r\n"
        part = '--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + "x" * 2000
        request = f"POST /v1/uploads HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n{multipart}"
        assert raw(client, f"{request}{len(part):x}\r\n{part}\r\n").startswith("HTTP/1.1 413")
        wait_for(lambda: len(server.gate.runs) == 0)


def test_heads_and_messages_are_bounded() -> None:
    with served() as (client, _, _):
        head = f"GET / HTTP/1.1\r\nhost: localhost\r\nx: {'x' * 100_000}"
        assert raw(client, head).startswith("HTTP/1.1 400"), "it has not even ended"
        with connect(client, BEARER, max_size=None) as pushing:
            with contextlib.suppress(ConnectionClosed):
                pushing.send(b"x" * (9 << 20))
            with pytest.raises(ConnectionClosed) as closed:
                pushing.recv(timeout=5)
            assert closed.value.rcvd.code == 1009


def test_silent_and_slow_connections_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "wait_seconds", 0.5)
    with served() as (client, server, work), contextlib.ExitStack() as open_ones:
        address = (client.base_url.host, client.base_url.port)
        silent, slow, refused = (
            open_ones.enter_context(socket.create_connection(address, timeout=5)) for _ in range(3)
        )
        live = open_ones.enter_context(client.stream("GET", "/v1/streams/1/live.mjpg")).iter_raw()
        pushing = open_ones.enter_context(connect(client, BEARER))
        refused.sendall(b"POST /v1/streams HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n")
        assert b" 401 " in refused.recv(4096)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begun + 1.5:
                slow.sendall(b"x")
                refused.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < 1.4, "bytes now and then do not help"
        with contextlib.suppress(ConnectionError):
            assert silent.recv(100) == b""
        assert time.monotonic() - begun < 2.5
        assert work.open == 2, "what is under way stays"
        assert next(live)
        pushing.send(b"123")
        assert pushing.recv(timeout=5) == "3"
        assert len(server.server_state.connections) == 2
