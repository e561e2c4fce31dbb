"""Where the server listens, TLS, and how it ends: real sockets, processes and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.sync.client
from gate_app import BEARER, make_app
from servers import TOKEN, serving, wait_for
from websockets.exceptions import ConnectionClosed

from vstream.app.serve.listening import read_token
from vstream.app.serve.serving import ServeOptions, Stopping, is_loopback, listen

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent


# Where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LOCALHOST"])
def test_nobody_else_comes_to_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "0", "192.168.1.5", "::ffff:127.0.0.1", "localhost.example", "127.0.0.1.de", "127.1"]
)
def test_everything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.1"])
def test_without_a_token_others_are_not_let_in(host: str) -> None:
    with pytest.raises(ValueError, match=r"needs a token: make one with `.+`, then add --token-file token.txt"):
        listen(ServeOptions(host=host, port=0), {})
    listen(ServeOptions(host=host, port=0), {"VSTREAM_TOKEN": TOKEN}).socket.close()


def test_the_token_that_is_proposed_will_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a token") as refused:
        listen(ServeOptions(host="0.0.0.0"), {})
    command = re.search("`(.+)`", str(refused.value))[1].replace("python3", sys.executable)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert len(read_token(tmp_path / "token.txt", {})) >= 40


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": 65536}, "--port must be from 1 to 65535, or 0 for a free one, got 65536"),
        ({"port": -1}, "--port must be from 1 to 65535"),
        ({"host": ""}, "--host must be an address or a name of this machine .* got ''"),
        ({"host": "no such name"}, "--host must be an address or a name"),
        ({"host": "203.0.113.7"}, "--host 203.0.113.7 is no address of this machine"),
        (
            {"allow_host": ("a.example:80",)},
            "--allow-host must be a name or an address without a port, got 'a.example:80'",
        ),
        ({"allow_host": ("https://a",)}, "--allow-host must be a name"),
        ({"questions_per_minute": 0}, "--questions-per-minute must be a whole number from 1"),
        ({"stop_seconds": 0}, "--stop-seconds must be above 0"),
        ({"tls_cert": Path("cert.pem")}, "--tls-cert and --tls-key go together"),
        (
            {"tls_cert": Path("none.pem"), "tls_key": Path("none.pem")},
            "--tls-cert none.pem cannot be read: No such file",
        ),
        ({"token_file": Path("none.txt")}, "--token-file none.txt cannot be read: No such file"),
        ({"token_file": TESTS}, "cannot be read: Is a directory"),
    ],
)
def test_what_will_not_do_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        listen(ServeOptions(**{"port": 0, **options}), {"VSTREAM_TOKEN": TOKEN})
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must hold a token of 16 to 512 characters, got 0: make one with"),
        ("short\n", "got 5"),
        ("x" * 513, "got 513"),
        ("two words with more than sixteen", "without spaces"),
        ("umlauts-äöü-are-not-for-headers", "without spaces"),
    ],
)
def test_tokens_that_will_not_do(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "token.txt"
    file.write_text(text)
    for given, environ in ((file, {}), (None, {"VSTREAM_TOKEN": text})):
        with pytest.raises(ValueError, match=sentence):
            read_token(given, environ)


def test_the_file_comes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text(f"  {TOKEN}-of-a-file\r\n")
    assert read_token(file, {"VSTREAM_TOKEN": "x"}) == f"{TOKEN}-of-a-file"
    assert read_token(None, {"VSTREAM_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) is None


def test_a_port_that_is_taken() -> None:
    first = listen(ServeOptions(port=0), {})
    port = first.socket.getsockname()[1]
    with first.socket, pytest.raises(RuntimeError, match=f"port {port} of localhost is taken: .* another --port"):
        listen(ServeOptions(host="localhost", port=port), {})
    listen(ServeOptions(port=port), {}).socket.close()


def test_addresses_are_told_as_a_browser_takes_them() -> None:
    for host, told in (("127.0.0.1", r"127\.0\.0\.1"), ("localhost", "localhost"), ("::1", r"\[::1\]")):
        listener = listen(ServeOptions(host=host, port=0), {})
        listener.socket.close()
        assert re.fullmatch(rf"http://{told}:\d+", listener.url)
        assert listener.notes == ()
    everywhere = listen(ServeOptions(host="0.0.0.0", port=0), {"VSTREAM_TOKEN": TOKEN})
    everywhere.socket.close()
    assert "0.0.0.0" not in everywhere.url
    assert "unencrypted" in everywhere.notes[0]


def test_ipv6_is_served() -> None:
    with serving(make_app(), host="::1") as (_, listener):
        assert httpx.get(f"{listener.url}/v1/streams").status_code == 200


def test_responses_do_not_wait_for_acknowledgements() -> None:
    """asyncio turns Nagle's algorithm off only where it knows that it is TCP."""
    with serving(make_app()) as (_, listener):
        assert listener.socket.proto == socket.IPPROTO_TCP


# TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One for this machine, signed by itself. Where openssl is missing, tests fail on CI and are skipped elsewhere."""
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-out", cert, "-keyout", key], check=True, capture_output=True)
    return cert, key


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=cert)
    with serving(make_app(), token=TOKEN, tls_cert=cert, tls_key=key) as (_, listener):
        assert listener.url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=listener.url, verify=trusting) as client:
            login = client.post("/login", data={"token": TOKEN}, headers={"origin": listener.url})
            assert "Secure" in login.headers["set-cookie"]
            assert client.post("/v1/streams", headers={"origin": listener.url}).status_code == 200
            plain = listener.url.replace("https", "http")
            assert client.post("/v1/streams", headers={"origin": plain}).status_code == 403, "anybody may have made it"
        url = f"{listener.url.replace('https', 'wss')}/v1/streams/1/push"
        with websockets.sync.client.connect(url, ssl=trusting, additional_headers=BEARER) as pushing:
            pushing.send(b"12")
            assert pushing.recv(timeout=5) == "2"


def test_certificates_that_will_not_do(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    for first, second in ((key, cert), (cert, locked), (Path(__file__), key)):
        with pytest.raises(ValueError, match="must be a PEM certificate and its own key, without a password"):
            listen(ServeOptions(port=0, tls_cert=first, tls_key=second), {})


# The word that it stops ----------------------------------------------------------------------------------------------


def test_stopping_is_heard_by_all_once() -> None:
    stopping, heard = Stopping(), []
    stopping.when_set(lambda: heard.append("first"))
    forget = stopping.when_set(lambda: heard.append("forgotten"))
    forget()
    assert not stopping.is_set()
    stopping.set()
    stopping.set()
    assert stopping.is_set()
    stopping.when_set(lambda: heard.append("late"))
    assert heard == ["first", "late"]


def test_stopping_is_waited_for_from_any_thread() -> None:
    stopping = Stopping()

    async def wait() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stopping.wait(), 0.05)
        threading.Timer(0.1, stopping.set).start()
        begun = time.monotonic()
        await asyncio.gather(stopping.wait(), stopping.wait())
        await stopping.wait()
        return time.monotonic() - begun

    assert 0.05 < asyncio.run(wait()) < 2
    assert stopping._listeners == {}


# How it ends ---------------------------------------------------------------------------------------------------------


class Process:
    """The server of `serve_program.py`."""

    def __init__(self, stop_seconds: float) -> None:
        command = [sys.executable, TESTS / "serve_program.py", str(stop_seconds)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("vstream serves "), line
        self.url = line.split()[-1]

    def signal(self, number: int) -> float:
        self.process.send_signal(number)
        return time.monotonic()

    def wait(self) -> tuple[int, str]:
        """Its exit code, and what it said since its address."""
        said, _ = self.process.communicate(timeout=15)
        return self.process.returncode, said


@contextlib.contextmanager
def running(stop_seconds: float = 5) -> Iterator[tuple[Process, httpx.Client]]:
    server = Process(stop_seconds)
    try:
        with httpx.Client(base_url=server.url, headers=BEARER, timeout=20) as client:
            yield server, client
    finally:
        server.process.kill()
        server.process.wait()


def in_thread(work: object, *arguments: object) -> tuple[threading.Thread, list[object]]:
    """Begins work; the thread, and where its result will be."""
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(work(*arguments)))
    thread.start()
    return thread, result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_endless_responses_and_lets_answers_finish(number: int) -> None:
    with running() as (server, client), contextlib.ExitStack() as views:
        live = views.enter_context(client.stream("GET", "/v1/streams/1/live.mjpg"))
        events = views.enter_context(client.stream("GET", "/v1/streams/1/events"))
        url = f"{server.url.replace('http', 'ws')}/v1/streams/1/push"
        pushing = views.enter_context(websockets.sync.client.connect(url, additional_headers=BEARER))
        asked, said = in_thread(lambda: client.post("/v1/streams/1/ask", json={"seconds": 1.5}).text)
        pieces = live.iter_raw()
        next(pieces)
        time.sleep(0.3)
        begun = server.signal(number)
        assert b"".join(pieces).endswith(b"picture\r\n"), "it ends whole"
        assert events.read().endswith(b"data: first\n\n")
        with pytest.raises(ConnectionClosed) as closed:
            pushing.recv(timeout=5)
        assert closed.value.rcvd.code == 1012
        assert time.monotonic() - begun < 1.2, "they do not wait for the answer"
        asked.join()
        assert said == ["data: word\n\ndata: [DONE]\n\n"]
        code, output = server.wait()
        assert code == 0, output
        left = re.search(r"stopped, (.+) s left, ended \[(.+)\], open 0\nover\n$", output)
        assert left, output
        assert 2.5 < float(left[1]) < 4.5
        assert sorted(left[2].split(", ")) == ["'ask'", "'events'", "'live'", "'push'"]
        assert left[2].endswith("'ask'")
        assert "Traceback" not in output


def test_answers_that_take_too_long_are_cancelled() -> None:
    with running(stop_seconds=1) as (server, client):

        def ask() -> str:
            with pytest.raises(httpx.RemoteProtocolError):  # cut, or it would look whole
                client.post("/v1/streams/1/ask", json={"seconds": 60})
            return "cut"

        asked, said = in_thread(ask)
        time.sleep(0.5)
        begun = server.signal(signal.SIGTERM)
        code, output = server.wait()
        assert time.monotonic() - begun < 4
        asked.join()
        assert said == ["cut"]
        assert code == 0, output
        assert "1.0 s left, ended ['ask'], open 0\nover\n" in output
        assert "Traceback" not in output


def test_a_second_signal_ends_it_at_once() -> None:
    with running(stop_seconds=60) as (server, client), client.stream("POST", "/v1/streams/1/ask", json={"seconds": 60}):
        server.signal(signal.SIGINT)
        assert "a second signal ends it at once" in server.process.stdout.readline()
        begun = server.signal(signal.SIGINT)
        code, output = server.wait()
        assert code == -signal.SIGINT
        assert time.monotonic() - begun < 2
        assert "over" not in output


def test_while_it_stops_nothing_new_is_begun() -> None:
    app = make_app()
    with serving(app, token=TOKEN) as (server, listener):
        app.state.stopping.set()
        response = httpx.post(f"{listener.url}/v1/streams/1/ask", headers=BEARER, json={"seconds": 0})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "10"
        assert httpx.get(f"{listener.url}/healthz").status_code == 200
        assert len(server.gate.runs) == 0


def test_who_goes_frees_the_work_and_the_place() -> None:
    app = make_app()
    with serving(app) as (server, listener):
        for path in ("live.mjpg", "events"):
            with httpx.stream("GET", f"{listener.url}/v1/streams/1/{path}"):
                wait_for(lambda: app.state.work.open == 1)
            wait_for(lambda: app.state.work.open == 0)
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{listener.url}/v1/streams/1/ask", json={"seconds": 60}, timeout=0.3)
        wait_for(lambda: app.state.work.ended == ["live", "events", "ask"])
        assert len(server.gate.runs) == 0
