"""Runs the app until it is told to stop, and then ends what is under way: answers finish, endless responses end.

    listener = listen(options)                    # takes the port, says what is wrong; nothing slow has begun
    app = build_app(...)                          # app.state.stopping = Stopping()
    run(app, listener, on_stop=hub.close)         # returns when everything is over

It knows nothing of what the app does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from vstream.app.serve.gate import Gate, ending
from vstream.app.serve.limits import MIB
from vstream.app.serve.listening import Listener, is_loopback, listen
from vstream.app.serve.options import ServeOptions
from vstream.app.serve.protocol import ImpatientProtocol
from vstream.app.serve.stopping import Stopping

__all__ = ["Listener", "ServeOptions", "Server", "Stopping", "is_loopback", "listen", "make_server", "run"]

MAX_CONNECTIONS = 512
"""Of everybody; more get 503."""
MAX_HEAD_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 8 * MIB
"""Of a WebSocket's message."""
NOTICE_SECONDS = 0.1
"""Endless responses have so long to end before connections are closed."""


def run(
    app: Starlette,
    listener: Listener,
    on_stop: Callable[[float], None],
    *,
    told: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Serves `app`, whose `state.stopping` is a `Stopping`, until SIGINT, SIGTERM or SIGHUP.

    The first signal says `stopping`: no more requests are taken, endless responses end, answers have the options'
    `stop_seconds`, then they are cancelled. Last comes `on_stop(seconds)`, with what is left of them, at least one. A
    second signal ends the process at once.
    """
    server = make_server(app, listener, told=told)
    try:
        with _signals(server):
            try:
                server.run(sockets=[listener.socket])
            finally:
                on_stop(server.seconds_left)
    finally:
        listener.socket.close()


def make_server(app: Starlette, listener: Listener, *, told: Callable[[str], None] = lambda line: None) -> Server:
    """The server that `run` runs, for whoever runs it in a thread: setting its `should_exit` is the first signal."""
    stopping = app.state.stopping
    assert isinstance(stopping, Stopping), "the app's state has no Stopping"
    options = listener.options
    gate = Gate(app, listener.settings, stopping)
    config = uvicorn.Config(
        gate,
        loop="asyncio",
        http=ImpatientProtocol,  # and not httptools', which bounds no headers
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=options.access_log,
        proxy_headers=False,  # anybody could send them
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_graceful_shutdown=int(options.stop_seconds) + 2,  # in vain: `Server` has ended everything by then
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    if options.access_log:
        _log_accesses()
    return Server(config, gate, stopping, listener, told)


class Server(uvicorn.Server):
    """uvicorn's, with an end of its own.

    Attributes:
        gate: what stands before the app.
    """

    def __init__(
        self, config: uvicorn.Config, gate: Gate, stopping: Stopping, listener: Listener, told: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self.gate = gate
        self._stopping, self._listener, self._told = stopping, listener, told
        self._stop_by = float("inf")

    @property
    def seconds_left(self) -> float:
        """For what must be ended when the server is over, at least one."""
        seconds = self._listener.options.stop_seconds
        return max(1.0, min(seconds, self._stop_by - time.monotonic()))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says where."""
        await super().startup(sockets)
        for note in self._listener.notes:
            self._told(f"vstream: {note}")
        self._told(f"vstream serves {self._listener.url}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends endless responses now, others when their time is over."""
        seconds = self._listener.options.stop_seconds
        self._stop_by = time.monotonic() + seconds
        self._told("vstream is stopping; a second signal ends it at once")
        self._stopping.set()
        await asyncio.sleep(NOTICE_SECONDS)
        asyncio.get_running_loop().call_later(max(0.0, self._stop_by - time.monotonic()), self._end_all)
        await super().shutdown(sockets)

    def _end_all(self) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of each answer it would say that it was cut
        self.gate.runs.end(ending())

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are caught by `run`."""
        yield


@contextmanager
def _signals(server: Server) -> Iterator[None]:
    """The first signal stops the server, the second ends the process; one that was ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
        server.should_exit = True

    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


class _WithoutQuery(logging.Filter):
    """Takes the query off a logged request: secrets may be in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(each.partition("?")[0] if isinstance(each, str) else each for each in record.args)
        return True


def _log_accesses() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(_WithoutQuery())
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("uvicorn.access")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
