"""A receiver of webhooks: a real HTTP server that answers as it is told to, and checks signatures by its own code."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vstream.standing import Event

SECRET = b"a-secret-of-both-sides"
JPEG = b"\xff\xd8\xff\xe0 a picture \xff\xd9"


@dataclass(frozen=True)
class Request:
    """What came, and when (monotonic seconds)."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        return self.headers["x-vstream-event"]

    def is_signed(self, secret: bytes = SECRET) -> bool:
        """HMAC by its definition (RFC 2104), without the module that the sender uses for it."""
        block = secret.ljust(64, b"\0")
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        inner.update(f"{self.headers['x-vstream-timestamp']}.".encode() + self.body)
        outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner.digest())
        return hmac.compare_digest(self.headers["x-vstream-signature"], f"sha256={outer.hexdigest()}")


Answer = int | tuple[int, dict[str, str]] | Callable[[], int]
"""A status, with headers, or what is done before it."""


@dataclass
class Receiver:
    """What came, and what is answered next; 204 when there is nothing more to answer."""

    url: str
    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)

    def wait_for(self, count: int, seconds: float = 15.0) -> list[Request]:
        until = time.monotonic() + seconds
        while len(self.requests) < count:
            assert time.monotonic() < until, f"{len(self.requests)} requests came, not {count}"
            time.sleep(0.01)
        return self.requests


@contextmanager
def receiving(*answers: Answer, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Receives until the block ends."""
    receiver = Receiver("", list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append(Request(self.path, headers, body, time.monotonic()))
            answer = receiver.answers.pop(0) if receiver.answers else 204
            status, more = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status() if callable(status) else status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *arguments: None  # a sender that was killed
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/hook?for=tests"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def event_at(seconds: float, end_seconds: float | None = None, text: str = "a cat appears", **more: Any) -> Event:
    """An event made by hand."""
    values = {"confidence": 0.9, "picture": JPEG, "wall_clock": None, **more}
    return Event(f"a1-{round(seconds * 1000)}", "a1", text, seconds, end_seconds, seconds + 1, **values)


def same_keys(requests: Sequence[Request]) -> bool:
    return len({request.key for request in requests}) == 1
