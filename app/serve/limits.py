"""How much one client may ask for: so often in a while, so many at a time, so many bytes in a request.

Everything is counted in memory and by a key that the caller chooses. Knows nothing of who a client is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from starlette.types import Message, Receive

from vstream.app.serve.refusals import Refused
from vstream.app.serve.visit import Visit

MIB = 1 << 20
MAX_KEYS = 4096
"""Clients that a window knows; of more, those that were quiet longest are forgotten."""
ASKING = ("/v1/chat/completions", "/v1/responses")
UPLOADS = ("/v1/uploads", "/gradio_api/upload")

Kind: TypeAlias = Literal["question", "push", "picture", "request", "page"]
"""What a request is to the limits: "picture" is one in a list of many, "page" the page's files and its own polling."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may do: a session of the page, or all programs at one address.

    Attributes:
        questions_per_minute: asked through the API; questions of the page count as its polling does.
        requests_per_second: of the API, other than the following.
        pushes_per_second: frames pushed by HTTP, over all streams.
        pictures_per_second: evidence and the like.
        page_per_second: the page's files and events.
        open_views: live views at a time.
        open_sockets: WebSockets at a time.
        open_requests: of any kind at a time.
        body_bytes: of a request.
        upload_bytes: of a request whose path begins with one of `upload_paths`.
        upload_paths: where files are uploaded.
        login_tries_per_minute: wrong tokens from one address.
        clients: as much as so many clients may do is what all together may have open.
    """

    questions_per_minute: int = 60
    requests_per_second: int = 50
    pushes_per_second: int = 100
    pictures_per_second: int = 200
    page_per_second: int = 300
    open_views: int = 16
    open_sockets: int = 16
    open_requests: int = 64
    body_bytes: int = 32 * MIB
    upload_bytes: int = 4096 * MIB
    upload_paths: tuple[str, ...] = UPLOADS
    login_tries_per_minute: int = 10
    clients: int = 8

    def most_bytes(self, path: str) -> int:
        """What the body of a request to this path may weigh."""
        is_upload = any(path == each or path.startswith(f"{each}/") for each in self.upload_paths)
        return self.upload_bytes if is_upload else self.body_bytes


def kind_of(visit: Visit) -> Kind:
    """What a request is to the limits."""
    path, changes = visit.path, visit.changes_things
    if not path.startswith(("/v1/", "/metrics")):
        return "page"
    if not changes:
        return "picture" if path.endswith((".jpg", ".mjpg", "/source")) else "request"
    if path in ASKING or path.endswith("/ask"):
        return "question"
    return "push" if path.endswith("/frames") else "request"


class MovingWindow:
    """At most so many takes in any span of so many seconds, for each key."""

    def __init__(
        self, most: int, seconds: float, *, max_keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError unless all are positive."""
        if most < 1 or seconds <= 0 or max_keys < 1:
            raise ValueError(f"a limit must allow at least one in a positive time, got {most} in {seconds:g} s")
        self._most, self._seconds, self._max_keys, self._clock = most, seconds, max_keys, clock
        self._taken: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Takes one if there is one, and returns 0; else the seconds until there is."""
        wait_seconds = self.wait_seconds(key)
        if wait_seconds <= 0:
            self._taken.setdefault(key, deque()).append(self._clock())
            self._taken.move_to_end(key)
            if len(self._taken) > self._max_keys:
                self._taken.popitem(last=False)
        return wait_seconds

    def wait_seconds(self, key: str) -> float:
        """The seconds until there is one to take, 0 for now."""
        taken = self._taken.get(key)
        if taken is None:
            return 0.0
        now = self._clock()
        while taken and taken[0] <= now - self._seconds:
            taken.popleft()
        return taken[0] + self._seconds - now if len(taken) >= self._most else 0.0


class Places:
    """At most so many at a time for each key, and so many in all."""

    def __init__(self, most: int, most_in_all: int) -> None:
        self._most, self._most_in_all = most, most_in_all
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many are taken."""
        return self._taken.total()

    @contextmanager
    def taken(self, key: str, what: str) -> Iterator[None]:
        """Holds a place.

        Raises:
            Refused: with 429 if there is none; `what` says of what.
        """
        if self._taken[key] >= self._most or len(self) >= self._most_in_all:
            most = min(self._most, self._most_in_all)
            raise Refused.for_now(f"at most {most} {what} at a time: close one, or wait", "too_many_open", 5)
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


class Counted:
    """The limits of `Limits` at work."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._windows: dict[Kind, MovingWindow] = {
            "question": MovingWindow(limits.questions_per_minute, 60),
            "request": MovingWindow(limits.requests_per_second, 1),
            "push": MovingWindow(limits.pushes_per_second, 1),
            "picture": MovingWindow(limits.pictures_per_second, 1),
            "page": MovingWindow(limits.page_per_second, 1),
        }
        self._views = Places(limits.open_views, limits.open_views * limits.clients)
        self._sockets = Places(limits.open_sockets, limits.open_sockets * limits.clients)
        self._requests = Places(limits.open_requests, limits.open_requests * limits.clients)

    @contextmanager
    def admitted(self, visit: Visit, client: str) -> Iterator[None]:
        """Counts a request while it lasts.

        Raises:
            Refused: with 429 and `Retry-After`.
        """
        kind = kind_of(visit)
        if wait_seconds := self._windows[kind].take(client):
            what = "questions" if kind == "question" else "requests"
            raise Refused.for_now(
                f"too many {what} in a short time: wait a moment", "rate_limit_exceeded", wait_seconds
            )
        places, what = self._requests, "requests"
        if visit.is_socket:
            places, what = self._sockets, "WebSockets"
        elif visit.path.endswith(".mjpg"):
            places, what = self._views, "live views"
        with places.taken(client, what):
            yield


def check_announced(visit: Visit, most: int) -> None:
    """Refuses a body that is too long by its own account, before any of it is read.

    Raises:
        Refused: with 413.
    """
    announced = visit.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise too_long(most)


def too_long(most: int) -> Refused:
    """The refusal of a body that is longer than `most` bytes."""
    size = f"{most // MIB} MiB" if most >= MIB else f"{most} bytes"
    return Refused(413, f"the request is too large: at most {size} are taken", "request_too_large")


def bounded(receive: Receive, most: int, on_too_long: Callable[[], None]) -> Receive:
    """Passes on a body of at most `most` bytes. Beyond them it calls `on_too_long`, which ends whoever is reading."""
    left = most

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            on_too_long()
            await asyncio.Event().wait()  # the reader hears no more of it
        return message

    return receiving
