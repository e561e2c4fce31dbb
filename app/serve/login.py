"""Logging in with a token: the page for it, the sessions it begins, and how often it may go wrong.

Knows nothing of what the sessions may do.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import Template
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Message, Receive

from vstream.app.serve.limits import MovingWindow
from vstream.app.serve.refusals import Refused

SESSION_SECONDS = 7 * 24 * 3600
MAX_SESSIONS = 256
FORM_BYTES = 4096
FORM_SECONDS = 10.0
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
TRIES_OF_ALL = 10
"""All addresses together may try so many times as often as one."""


def is_same(given: bytes, expected: bytes) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of either, their lengths included."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())


class Sessions:
    """Who is logged in. Only digests of the ids are kept; nothing outlives the process."""

    def __init__(
        self,
        *,
        seconds: float = SESSION_SECONDS,
        most: int = MAX_SESSIONS,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Beyond `most`, the oldest ends. `on_end` is told the name of one that ended before its time."""
        self._seconds, self._most, self._clock, self._on_end = seconds, most, clock, on_end
        self._ends: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def begin(self) -> str:
        """A new session's id, for its cookie alone."""
        given = secrets.token_urlsafe(32)
        self._ends[self._name(given)] = self._clock() + self._seconds
        while len(self._ends) > self._most:
            self._on_end(self._ends.popitem(last=False)[0])
        return given

    def find(self, given: str) -> str | None:
        """The name of the session with this id, which is no secret; None if there is none, or it is over."""
        name = self._name(given)
        ends = self._ends.get(name)
        if ends is not None and ends <= self._clock():
            del self._ends[name]
            return None
        return None if ends is None else name

    def end(self, given: str) -> None:
        """Ends a session, if there is one."""
        name = self._name(given)
        if self._ends.pop(name, None) is not None:
            self._on_end(name)

    @staticmethod
    def _name(given: str) -> str:
        return "session " + hashlib.sha256(given.encode()).hexdigest()[:32]


class Tries:
    """Slows down guessing: wrong tokens from one address, and from all together."""

    def __init__(self, per_minute: int) -> None:
        self._of_one = MovingWindow(per_minute, 60)
        self._of_all = MovingWindow(per_minute * TRIES_OF_ALL, 60)

    def check(self, address: str) -> None:
        """Refuses to even compare.

        Raises:
            Refused: with 429 after too many wrong tokens.
        """
        if wait_seconds := max(self._of_one.wait_seconds(address), self._of_all.wait_seconds("")):
            raise Refused.for_now("too many wrong tokens: wait, then try again", "too_many_tries", wait_seconds)

    def wrong(self, address: str) -> None:
        """Counts a wrong one."""
        self._of_one.take(address)
        self._of_all.take("")


@cache
def _template() -> Template:
    return Template((Path(__file__).parent / "login.html").read_text(encoding="utf-8"))


def page(notice: str = "", *, status: int = 200, retry_after: str | None = None) -> Response:
    """The page to log in on; `notice` is what went wrong."""
    alert = f'<div role="alert" id="notice">{html.escape(notice)}</div>' if notice else ""
    described = ' aria-describedby="notice" aria-invalid="true"' if notice else ""
    headers = {"cache-control": "no-store", "content-security-policy": PAGE_POLICY}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    text = _template().substitute(notice=alert, described=described)
    return HTMLResponse(text, status_code=status, headers=headers)


def enter(cookie: str, session_id: str, *, secure: bool) -> Response:
    """To the page, with a cookie that scripts cannot read and other sites' requests do not bring."""
    response = to("/")
    response.set_cookie(
        cookie, session_id, max_age=SESSION_SECONDS, path="/", httponly=True, samesite="strict", secure=secure
    )
    return response


def leave(cookie: str, *, secure: bool) -> Response:
    """Back to the page to log in on, without the cookie."""
    response = to("/login")
    response.delete_cookie(cookie, path="/", httponly=True, samesite="strict", secure=secure)
    return response


def to(path: str) -> Response:
    """A browser goes there."""
    return RedirectResponse(path, status_code=303, headers={"cache-control": "no-store"})


async def read_token(receive: Receive) -> bytes:
    """The token of a form that was sent, b"" if it has none.

    Raises:
        Refused: if the form is long or slow.
        ClientDisconnect: if nobody waits for the answer.
    """
    try:
        async with asyncio.timeout(FORM_SECONDS):
            body = await _read(receive)
    except TimeoutError:
        raise Refused(408, "the form took too long", "too_slow") from None
    try:
        fields = parse_qs(body.decode("ascii", "replace"), max_num_fields=8)
    except ValueError:
        raise Refused(400, "the form has too many fields: it needs one, the token", "invalid_form") from None
    return fields.get("token", [""])[0].strip().encode()


async def _read(receive: Receive) -> bytes:
    body = b""
    more = True
    while more:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > FORM_BYTES:
            raise Refused(413, f"the form is too large: at most {FORM_BYTES} bytes are taken", "request_too_large")
    return body
