"""Servers for tests: real ones on a free port of this machine, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from vstream.app.serve.serving import Listener, ServeOptions, Server, Stopping, listen, make_server

TOKEN = "a-token-for-tests-0123456789"


@contextlib.contextmanager
def serving(app: Starlette, *, token: str | None = None, **options: Any) -> Iterator[tuple[Server, Listener]]:
    """Serves an app until the block ends; `options` are those of `ServeOptions`."""
    app.state.stopping = getattr(app.state, "stopping", None) or Stopping()
    environ = {} if token is None else {"VSTREAM_TOKEN": token}
    listener = listen(ServeOptions(**{"port": 0, "stop_seconds": 2.0, **options}), environ)
    server = make_server(app, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.socket]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server, listener
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def serving_bare(app: Any) -> Iterator[str]:
    """Serves an app with no gate before it: for negative controls, and as somebody else's site; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="error"))
    taken = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def wait_for(condition: Any, seconds: float = 10) -> None:
    """Waits until it is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)


def write_token(folder: Path) -> Path:
    """A file with the token."""
    file = folder / "token.txt"
    file.write_text(TOKEN + "\n")
    return file
