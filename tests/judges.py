"""A judge for tests: a small real server on a free port, which speaks chat completions and judges by rules."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[dict[str, Any]], str]
"""What is replied to the JSON within a prompt."""


def by_gold(told: dict[str, Any]) -> str:
    """Right if the right answer is in the given one."""
    right = told["right answer"].lower() in told["answer given"].lower()
    return str({"pred": "yes" if right else "no", "score": 5 if right else 1})


@dataclass
class Stub:
    """What the server does, and what it was asked.

    Attributes:
        rule: makes replies.
        seconds: that a reply takes.
        trouble: HTTP statuses with which it answers requests before it behaves, by request number from 0.
        refuses: parameters that it answers with 400, as models that reason do.
        key: the only one it takes.
        model: the only one it has.
        html: sends a page instead.
        body: sends this instead.
        moved_to: sends whoever asks there.
        asked: the JSON within every prompt that it took, in order.
        requests: all of them, as JSON.
        most: how many were under way together.
    """

    rule: Rule = by_gold
    seconds: float = 0.0
    trouble: dict[int, int] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    key: str | None = None
    model: str = "stub"
    html: bool = False
    body: bytes | None = None
    moved_to: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    url: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, key: str | None, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self._answer(path, key, request, number)
        finally:
            with self._lock:
                self._now -= 1

    def wait_until_idle(self) -> None:
        """Until nothing has been under way for a while."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.3:
            quiet_since = time.monotonic() if self._now else quiet_since
            time.sleep(0.01)

    def _answer(self, path: str, key: str | None, request: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if path != "/v1/chat/completions" or request["model"] != self.model:
            return 404, {"error": {"message": f"there is no {request['model']} at {path}"}}
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {"error": {"message": f"wrong key {key}"}}
        for name in self.refuses:
            if name in request:
                return 400, {"error": {"message": f"unsupported: {name}", "param": name}}
        if number in self.trouble:
            return self.trouble[number], {"error": {"message": "trouble"}}
        time.sleep(self.seconds)
        (message,) = request["messages"]
        (line,) = [line for line in message["content"].splitlines() if line.startswith("{")]
        told = json.loads(line)
        with self._lock:
            self.asked.append(told)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.rule(told)}}
        return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": self.model, "choices": [choice]}


@contextmanager
def judge(**options: Any) -> Iterator[Stub]:
    """Serves until the block ends."""
    stub = Stub(**options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = stub.answer(self.path, self.headers["Authorization"], request)
            kind = "text/html" if stub.html else "application/json"
            data = stub.body or (b"<html>welcome</html>" if stub.html else json.dumps(body).encode())
            self.send_response(status if stub.moved_to is None else 307)
            if stub.moved_to is not None:
                self.send_header("Location", f"{stub.moved_to}/chat/completions")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Nothing is printed."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients of these tests are killed while they wait."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
