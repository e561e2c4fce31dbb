"""The gate before a real server: who is let in, from where, and what is said of it."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator

import httpx
import pytest
import websockets.sync.client
from gate_app import BEARER, FOREIGN, PAGE, connect, cookie_of, log_in, logged_in, make_app, raw, served, url_of
from servers import TOKEN, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vstream.app.serve.limits import Limits
from vstream.app.serve.login import Sessions


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A server with a token."""
    with serving(make_app(page=True), token=TOKEN) as (_, listener), httpx.Client(base_url=listener.url) as client:
        yield client


@pytest.fixture(scope="module")
def local() -> Iterator[httpx.Client]:
    """A server without: only this machine reaches it."""
    with serving(make_app(page=True)) as (_, listener), httpx.Client(base_url=listener.url) as client:
        yield client


# The token --------------------------------------------------------------------------------------------------------

CLOSED = [
    "/", "/metrics", "/v1/streams", "/v1/streams/1/frames/2.jpg", "/v1/streams/1/live.mjpg", "/v1/streams/1/events",
    "/static/sample.json", "/docs", "/openapi.json", "/redoc", "/config", "/gradio_api/info", "/theme.css",
    "/gradio_api/queue/data?session_hash=1", "/gradio_api/heartbeat/1", "/nothing", "/healthz/",
    "//healthz", "/HEALTHZ", "/login/", "/logins", "/%2e%2e/healthz/x", "/healthz%2f..%2fv1/streams", "/healthz;x",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_without_a_token_nothing_is_shown(guarded: httpx.Client, path: str) -> None:
    response = guarded.get(path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "missing_token")


@pytest.mark.parametrize("path", ["/", "/metrics", "/v1/streams", "/v1/streams/1/frames/2.jpg", "/static/sample.json"])
def test_the_token_opens_everything(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path, headers=BEARER).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/login"])
def test_some_need_no_token(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200
    assert guarded.head(path).status_code != 401
    assert guarded.put(path).status_code in (401, 405)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_no_method_gets_around_it(guarded: httpx.Client, method: str) -> None:
    assert guarded.request(method, "/v1/streams").status_code == 401


WRONG = [
    "Bearer", "Bearer x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
    f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN}, Bearer x", "Bearer \xe4",
]  # fmt: skip


def test_wrong_tokens() -> None:
    with served(Limits(login_tries_per_minute=100)) as (client, _, _):
        for header in WRONG:
            response = client.get("/v1/streams", headers={"authorization": header.encode("latin-1")})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), header
            assert TOKEN not in response.text


def test_two_tokens_are_none() -> None:
    with served() as (client, _, _):
        twice = f"authorization: Bearer {TOKEN}\r\nauthorization: Bearer other\r\n"
        request = f"GET /v1/streams HTTP/1.1\r\nhost: 127.0.0.1\r\n{twice}\r\n"
        assert raw(client, request).startswith("HTTP/1.1 401")


def test_the_kind_of_authorization_may_be_small(guarded: httpx.Client) -> None:
    assert guarded.get("/v1/streams", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_token_in_the_address_is_none(guarded: httpx.Client) -> None:
    assert guarded.get(f"/v1/streams?token={TOKEN}&access_token={TOKEN}").status_code == 401


def test_wrong_tokens_are_slowed_down() -> None:
    with served(Limits(login_tries_per_minute=3)) as (client, _, _):
        wrong = [client.get("/v1/streams", headers={"authorization": "Bearer x"}).status_code for _ in range(5)]
        assert wrong == [401, 401, 401, 429, 429]
        late = log_in(client)
        assert late.status_code == 429
        assert 1 <= int(late.headers["retry-after"]) <= 60
        assert "Too many wrong tokens" in late.text
        assert client.get("/v1/streams").status_code == 429, "guessing goes on with the right one"


def test_right_tokens_are_not() -> None:
    with served(Limits(login_tries_per_minute=2)) as (client, _, _):
        assert {client.get("/v1/streams").status_code for _ in range(8)} == {200}


# Logging in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs", "/anything"])
def test_a_person_is_asked_to_log_in(guarded: httpx.Client, path: str) -> None:
    response = guarded.get(path, headers=PAGE)
    assert (response.status_code, response.headers["location"]) == (303, "/login")


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/v1/streams", PAGE), ("/", {**PAGE, "sec-fetch-mode": "cors"}), ("/", {"accept": "image/avif,*/*"})],
)
def test_what_is_no_page_gets_401(guarded: httpx.Client, path: str, headers: dict[str, str]) -> None:
    assert guarded.get(path, headers=headers).status_code == 401


def test_the_page_to_log_in_on_needs_nothing_else(guarded: httpx.Client) -> None:
    page = guarded.get("/login")
    assert "token-file" in page.text
    assert not re.search(r"<script|https?:|src=|@import|url\(|<link", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["cache-control"] == "no-store"


def test_the_cookie_is_for_this_server_alone(guarded: httpx.Client) -> None:
    with httpx.Client(base_url=guarded.base_url) as browser:
        response = log_in(browser)
        assert (response.status_code, response.headers["location"]) == (303, "/")
        name, *attributes = response.headers["set-cookie"].split("; ")
        assert {each.lower() for each in attributes} == {"httponly", "samesite=strict", "path=/", "max-age=604800"}
        assert re.fullmatch(rf"vstream_session_{guarded.base_url.port}=[\w-]{{43}}", name)
        assert TOKEN not in response.headers["set-cookie"]
        assert browser.get("/v1/streams").status_code == 200
        assert browser.get("/", headers=PAGE).status_code == 200
        assert browser.get("/login").headers["location"] == "/"


def test_behind_a_proxy_with_tls_the_cookie_is_for_tls(guarded: httpx.Client) -> None:
    origin = url_of(guarded).replace("http", "https", 1)
    response = guarded.post("/login", data={"token": TOKEN}, headers={"origin": origin})
    guarded.cookies.clear()
    assert "Secure" in response.headers["set-cookie"]


def test_a_wrong_token_is_told() -> None:
    with served() as (client, server, _):
        for form in ({}, {"token": ""}, {"token": "wrong"}, {"other": TOKEN}, {"token": TOKEN + "x"}):
            response = httpx.post(f"{url_of(client)}/login", data=form)
            assert response.status_code == 401
            assert 'role="alert" id="notice">This is not the server&#x27;s token.' in response.text
            assert "set-cookie" not in response.headers
        assert len(server.gate.sessions) == 0


def test_a_pasted_token_may_have_a_line_end(guarded: httpx.Client) -> None:
    with httpx.Client(base_url=guarded.base_url) as browser:
        assert log_in(browser, f" {TOKEN}\r\n").status_code == 303


def test_a_long_form_is_refused(guarded: httpx.Client) -> None:
    assert guarded.post("/login", data={"token": "x" * 5000}).status_code == 413
    assert guarded.post("/login", content=iter([b"token=", b"x" * 5000])).status_code == 413


def test_a_form_of_many_fields_is_refused(guarded: httpx.Client) -> None:
    reply = guarded.post("/login", content="&".join(f"a{number}=1" for number in range(9)))
    assert reply.status_code == 400
    assert "The form has too many fields" in reply.text


def test_another_site_cannot_log_anybody_in(guarded: httpx.Client) -> None:
    assert guarded.post("/login", data={"token": TOKEN}, headers=FOREIGN).status_code == 403
    assert guarded.post("/login", data={"token": TOKEN}, headers={"sec-fetch-site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("cookie", ["", "x", "x" * 43, "\xff"])
def test_a_made_up_cookie_is_none(guarded: httpx.Client, cookie: str) -> None:
    header = f"vstream_session_{guarded.base_url.port}={cookie}".encode("latin-1")
    assert guarded.get("/v1/streams", headers=[(b"cookie", header)]).status_code == 401


def test_cookies_of_other_servers_do_no_harm(guarded: httpx.Client) -> None:
    with logged_in(guarded) as browser:
        cookies = f'bad name=1; x="; {{json: [1,2]}}; {cookie_of(guarded, browser)}; \x80=2; =; ;'
        assert guarded.get("/v1/streams", headers=[(b"cookie", cookies.encode("latin-1"))]).status_code == 200


def test_logging_out_ends_the_session_and_what_it_has_open(guarded: httpx.Client) -> None:
    with logged_in(guarded) as browser:
        own = {"origin": url_of(guarded)}
        cookie = (
            f"vstream_session_{guarded.base_url.port}={browser.cookies[f'vstream_session_{guarded.base_url.port}']}"
        )
        with connect(guarded, {"cookie": cookie}, origin=url_of(guarded)) as pushing:
            pushing.send(b"123")
            assert pushing.recv(timeout=5) == "3"
            assert browser.post("/logout").status_code == 403
            assert browser.post("/logout", headers=FOREIGN).status_code == 403
            assert browser.get("/logout").status_code == 405
            assert browser.get("/v1/streams").status_code == 200
            left = browser.post("/logout", headers=own)
            assert (left.status_code, left.headers["location"]) == (303, "/login")
            assert "Max-Age=0" in left.headers["set-cookie"]
            with pytest.raises(ConnectionClosed) as closed:
                pushing.recv(timeout=5)
            assert closed.value.rcvd.code == 1008
        assert guarded.get("/v1/streams", headers={"cookie": cookie}).status_code == 401


def test_sessions_end_and_are_few() -> None:
    now = [0.0]
    ended: list[str] = []
    sessions = Sessions(seconds=10, most=2, clock=lambda: now[0], on_end=ended.append)
    first, second, third = (sessions.begin() for _ in range(3))
    assert sessions.find(first) is None
    assert [len(ended), len(sessions)] == [1, 2]
    name = sessions.find(second)
    assert name is not None
    assert second not in name
    now[0] = 10.0
    assert sessions.find(second) is None
    sessions.end(third)
    assert len(sessions) == 0


# Other sites' pages ------------------------------------------------------------------------------------------------


def own(client: httpx.Client) -> list[str]:
    port = client.base_url.port
    return [f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"https://127.0.0.1:{port}"]


FOREIGN_ORIGINS = [
    "https://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "null", "", "http://localhost:PORT.evil.example",
    "http://127.0.0.1:PORT@evil.example", "http://evil.example#127.0.0.1:PORT", "file://", "http://[::1]:PORT",
    "chrome-extension://127.0.0.1:PORT", "http://127.0.0.1:PORT, https://evil.example", "http://127.0.0.1:x", "http://[",
]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_page_of_another_site_can_do_nothing(local: httpx.Client, guarded: httpx.Client, origin: str) -> None:
    with logged_in(guarded) as browser:
        for client in (local, browser):
            headers = {"origin": origin.replace("PORT", str(client.base_url.port))}
            assert client.post("/v1/streams", content=b"x", headers=headers).status_code == 403
            assert client.delete("/v1/streams/1", headers=headers).status_code == 403
            assert client.get("/v1/streams", headers=headers).status_code == 403
            assert client.options("/v1/streams", headers=headers).status_code == 403
            assert "access-control-allow-origin" not in client.get("/config", headers=headers).headers


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of"])
def test_what_browsers_say_of_a_site_counts_as_well(local: httpx.Client, site: str) -> None:
    """Pages of other ports of this machine are of the same site, and their pictures have no Origin."""
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert local.get("/v1/streams/1/frames/2.jpg", headers=headers).status_code == 403
    assert local.post("/v1/streams", headers=headers).status_code == 403
    framed = {**headers, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert local.get("/", headers=framed).status_code == 403
    followed = {**headers, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert local.get("/", headers=followed).status_code == 200, "a link may lead here"
    assert local.post("/v1/streams", headers=followed).status_code == 403, "a form may not"


def test_the_own_page_may_do_everything(local: httpx.Client, guarded: httpx.Client) -> None:
    with logged_in(guarded) as browser:
        for client in (local, browser):
            headers = {"origin": url_of(client), "sec-fetch-site": "same-origin"}
            assert client.post("/v1/streams", content=b"x", headers=headers).json() == {"bytes": 1}
            assert client.get("/v1/streams", headers=headers).status_code == 200


def test_under_another_name_of_the_server_the_page_is_its_own(local: httpx.Client) -> None:
    named = f"localhost:{local.base_url.port}"
    assert local.post("/v1/streams", headers={"host": named, "origin": f"http://{named}"}).status_code == 200
    assert local.post("/v1/streams", headers={"host": named, "origin": url_of(local)}).status_code == 403


def test_a_cookie_alone_changes_nothing(guarded: httpx.Client) -> None:
    with logged_in(guarded) as browser:
        assert browser.post("/v1/streams").status_code == 403
        assert browser.post("/v1/streams", headers={"sec-fetch-site": "same-origin"}).status_code == 403


def test_programs_send_no_origin_and_need_none(local: httpx.Client, guarded: httpx.Client) -> None:
    assert local.post("/v1/streams").status_code == 200
    assert guarded.post("/v1/streams", headers=BEARER).status_code == 200


def test_a_token_counts_wherever_it_comes_from(guarded: httpx.Client) -> None:
    assert guarded.post("/v1/streams", headers={**BEARER, **FOREIGN}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:7860", "10.0.0.1", "[::2]"],
)
def test_another_name_is_refused(local: httpx.Client, guarded: httpx.Client, host: str) -> None:
    """A site may point its own name at this machine (DNS rebinding): to a browser that is its own server."""
    for client, headers in ((local, {}), (guarded, BEARER)):
        for path in ("/", "/v1/streams", "/healthz", "/login"):
            response = client.get(path, headers={**headers, "host": host, "origin": f"http://{host}"})
            assert response.status_code == 421
            assert "--allow-host" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", ["", "a b", "user@127.0.0.1", "127.0.0.1:99999999", "127.0.0.1/", "[127.0.0.1"])
def test_a_broken_name_is_refused(local: httpx.Client, host: str) -> None:
    assert re.match(r"HTTP/1.1 (400|421)", raw(local, f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"))


def test_two_names_or_none_are_refused(local: httpx.Client) -> None:
    twice = "host: 127.0.0.1\r\nhost: evil.example\r\n"
    assert raw(local, f"GET / HTTP/1.1\r\n{twice}\r\n").startswith("HTTP/1.1 400")
    assert raw(local, "GET / HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 400")
    assert raw(local, "GET / HTTP/1.0\r\n\r\n").startswith("HTTP/1.1 400")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "localhost.", "[::1]:80", "127.0.0.1"])
def test_every_own_name_will_do_with_any_port(local: httpx.Client, host: str) -> None:
    """A tunnel may listen on another port."""
    assert local.get("/v1/streams", headers={"host": host}).status_code == 200


def test_names_can_be_added() -> None:
    with serving(make_app(), allow_host=("Camera.example", "::5")) as (_, listener):
        for host, status in (("camera.example:443", 200), ("[::5]", 200), ("other.example", 421)):
            assert httpx.get(f"{listener.url}/v1/streams", headers={"host": host}).status_code == status


def test_at_every_address_any_address_is_a_name() -> None:
    with serving(make_app(), token=TOKEN, host="0.0.0.0") as (_, listener):
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1/streams"
        for host, status in (("192.168.1.5:7860", 200), ("[fe80::1]", 200), ("evil.example", 421)):
            assert httpx.get(url, headers={**BEARER, "host": host}).status_code == status


def test_a_proxy_that_anybody_can_be_is_not_believed(local: httpx.Client) -> None:
    evil = "evil.example"
    headers = {"x-forwarded-host": evil, "x-gradio-server": f"http://{evil}", "forwarded": f"host={evil}"}
    assert evil not in local.get("/config", headers=headers).text
    assert evil not in local.get("/", headers=headers).text


# WebSockets -------------------------------------------------------------------------------------------------------


def test_a_websocket_needs_the_token(guarded: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, {"cookie": f"vstream_session_{guarded.base_url.port}=x"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(guarded, headers)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["type"] == "authentication_error"
    with connect(guarded, BEARER) as pushing:
        pushing.send(b"1234")
        assert pushing.recv(timeout=5) == "4"


def test_a_websocket_with_a_cookie_needs_the_own_origin(guarded: httpx.Client) -> None:
    with logged_in(guarded) as browser:
        headers = {"cookie": cookie_of(guarded, browser)}
        for origin in (None, "https://evil.example", "null"):
            with pytest.raises(InvalidStatus) as refused:
                connect(guarded, headers, origin=origin)
            assert refused.value.response.status_code == 403
        with connect(guarded, headers, origin=url_of(guarded)):
            pass


def test_on_this_machine_a_websocket_is_for_the_own_page_and_programs(local: httpx.Client) -> None:
    for origin in ("https://evil.example", f"http://localhost:{local.base_url.port}", "null"):
        with pytest.raises(InvalidStatus) as refused:
            connect(local, {}, origin=origin)
        assert refused.value.response.status_code == 403
    for origin in (None, url_of(local)):
        with connect(local, {}, origin=origin):
            pass


def test_a_websocket_under_another_name_is_refused(local: httpx.Client) -> None:
    port = local.base_url.port
    there = socket.create_connection(("127.0.0.1", port))
    with there, pytest.raises(InvalidStatus) as refused:
        websockets.sync.client.connect(f"ws://evil.example:{port}/v1/streams/1/push", sock=there)
    assert refused.value.response.status_code == 421


# What is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1/streams", "/nothing", "/login", "/healthz", "/static/sample.json"])
def test_every_response_has_safe_headers(guarded: httpx.Client, path: str) -> None:
    for headers in ({}, BEARER, {**BEARER, "host": "evil.example"}):
        said = guarded.get(path, headers=headers).headers
        assert said["x-content-type-options"] == "nosniff"
        assert said["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in said["content-security-policy"]
        assert said["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in said


def test_no_log_has_the_token_or_a_query(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(make_app(), token=TOKEN, access_log=True) as (_, listener):
        httpx.get(f"{listener.url}/v1/streams?secret=hidden", headers=BEARER)
        httpx.get(f"{listener.url}/v1/streams?token={TOKEN}")
        httpx.post(f"{listener.url}/login", data={"token": TOKEN})
        with websockets.sync.client.connect(
            f"{listener.url.replace('http', 'ws', 1)}/v1/streams/1/push?secret=hidden", additional_headers=BEARER
        ):
            pass
    logging.getLogger("uvicorn.access").handlers.clear()
    said = capfd.readouterr().err
    assert 'GET /v1/streams HTTP/1.1" 200' in said
    assert 'GET /v1/streams HTTP/1.1" 401' in said
    assert "hidden" not in said
    assert TOKEN not in said
    assert TOKEN not in repr(listener.settings)
    assert TOKEN not in repr(listener)
