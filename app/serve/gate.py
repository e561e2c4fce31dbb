"""The gate: one ASGI middleware around the whole app, so that no route, picture or WebSocket can be forgotten.

It decides who is let in and how much they may do. It knows neither the routes behind it nor what they do, but for the
names of those that are open to all, and what `limits.py` says of paths.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vstream.app.serve import login
from vstream.app.serve.limits import Counted, Limits, bounded, check_announced, too_long
from vstream.app.serve.refusals import Refused, answer, with_safe_headers
from vstream.app.serve.running import Run, Runs
from vstream.app.serve.stopping import Stopping
from vstream.app.serve.visit import Visit, is_address

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_TO_ALL = ("/healthz", "/readyz")
UNTRUSTED_HEADERS = (b"forwarded", b"x-forwarded-host", b"x-forwarded-prefix", b"x-gradio-server")
"""From these Gradio would take its own address, and anybody can send them."""
CHALLENGE = 'Bearer realm="vstream"'


def ending() -> Refused:
    """What is said while the server stops."""
    return Refused.for_now("the server is stopping", "stopping", 10, status=503)


def logged_out() -> Refused:
    """What is said to whom was logged in, and is no longer."""
    return Refused(401, "the session has ended: log in again", "session_ended", www_authenticate=CHALLENGE)


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What the gate goes by.

    Attributes:
        token: what must be shown; None for nobody but this machine's own browsers and programs.
        hosts: names of this server, small and without port or brackets.
        any_address: whether every IP address is a name of it: where it listens on all that the machine has. No
            other site can make a browser say one (DNS rebinding needs a name).
        cookie: the name of the sessions' cookie. Servers on other ports of a machine see it, so it should name ours.
        limits: how much one client may do.
    """

    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = LOOPBACK
    any_address: bool = False
    cookie: str = "vstream_session"
    limits: Limits = field(default_factory=Limits)


class Gate:
    """Lets requests through to `app`, or answers them itself with a refusal."""

    def __init__(self, app: ASGIApp, settings: GateSettings, stopping: Stopping | None = None) -> None:
        """When it is said that the server stops, endless responses end and new requests get 503."""
        self.app, self.settings = app, settings
        self.sessions = login.Sessions(on_end=self._end_session)
        self.runs = Runs()
        self._stopping = stopping or Stopping()
        self._stopping.when_set(lambda: self.runs.end(ending(), lambda run: run.is_endless))
        self._tries = login.Tries(settings.limits.login_tries_per_minute)
        self._counted = Counted(settings.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        send = with_safe_headers(send)
        try:
            response = await self._handle(Visit(scope), receive, send)
        except Refused as refused:
            response = refused.response()
        except ClientDisconnect:
            return
        if response is not None:
            await answer(response, scope, receive, send)

    async def _handle(self, visit: Visit, receive: Receive, send: Send) -> Response | None:
        """Checks a request, in the order in which it can be trusted, and has it handled."""
        self._check_host(visit)
        if visit.path in ("/login", "/logout") and not visit.is_socket:
            return await self._log(visit, receive)
        is_open = visit.path in OPEN_TO_ALL and not visit.changes_things
        client = f"anybody {visit.address}" if is_open else self._client(visit)
        if client is None:
            return login.to("/login")
        await self._pass_on(visit, client, receive, send)
        return None

    # Who -----------------------------------------------------------------------------------------------------------

    def _check_host(self, visit: Visit) -> None:
        """Raises Refused unless the request is meant for this server: against DNS rebinding."""
        if visit.host is None:
            raise Refused(400, "the request needs one Host header with a name", "invalid_host")
        name = visit.host[0]
        if name not in self.settings.hosts and not (self.settings.any_address and is_address(name)):
            sentence = f"this server does not go by the name {name[:80]!r}: start it with --allow-host to add a name"
            raise Refused(421, sentence, "unknown_host")

    def _client(self, visit: Visit) -> str | None:
        """Who sends a request, as a key for limits; None for a person who must log in first.

        Raises:
            Refused: 401 without the token or a session, 403 if another site's page sent it.
        """
        if self.settings.token is None:
            self._check_not_foreign(visit)
            return f"address {visit.address}"
        if visit.bearer is not None:
            self._check_token(visit, visit.bearer)
            return f"token {visit.address}"
        session = self.sessions.find(visit.cookie(self.settings.cookie) or "")
        if session is None:
            if visit.wants_page and not visit.changes_things:
                return None
            sentence = "this server needs its token: send it as 'Authorization: Bearer TOKEN', or log in at /login"
            raise Refused(401, sentence, "missing_token", www_authenticate=CHALLENGE)
        self._check_not_foreign(visit)
        if visit.changes_things and not visit.has_own_origin:
            raise Refused(403, "with a cookie, this needs an Origin header of this server's page", "origin_missing")
        return session

    def _check_token(self, visit: Visit, given: bytes) -> None:
        assert self.settings.token is not None, "there is a token to compare with"
        self._tries.check(visit.address)
        if not login.is_same(given, self.settings.token.encode()):
            self._tries.wrong(visit.address)
            sentence = "this is not the server's token"
            raise Refused(401, sentence, "invalid_api_key", www_authenticate=f'{CHALLENGE}, error="invalid_token"')

    @staticmethod
    def _check_not_foreign(visit: Visit) -> None:
        if visit.is_foreign and not visit.follows_link:
            raise Refused(403, "pages of other sites may not use this server", "foreign_origin")

    # Logging in ----------------------------------------------------------------------------------------------------

    async def _log(self, visit: Visit, receive: Receive) -> Response:
        """The pages /login and /logout."""
        if self.settings.token is None:
            return login.to("/")
        is_login = visit.path == "/login"
        if visit.method == "POST":
            self._check_not_foreign(visit)
            return await self._log_in(visit, receive) if is_login else self._log_out(visit)
        if visit.method not in ("GET", "HEAD") or not is_login:
            raise Refused(
                405, f"{visit.path} is for POST", "method_not_allowed", allow="GET, POST" if is_login else "POST"
            )
        return login.to("/") if self._has_session(visit) else login.page()

    async def _log_in(self, visit: Visit, receive: Receive) -> Response:
        try:
            self._tries.check(visit.address)
            self._check_token(visit, await login.read_token(receive))
        except Refused as refused:
            sentence = refused.sentence[0].upper() + refused.sentence[1:] + "."
            return login.page(sentence, status=refused.status, retry_after=refused.headers.get("retry-after"))
        return login.enter(self.settings.cookie, self.sessions.begin(), secure=self._is_secure(visit))

    def _log_out(self, visit: Visit) -> Response:
        if not visit.has_own_origin:
            raise Refused(403, "logging out needs an Origin header of this server's page", "origin_missing")
        self.sessions.end(visit.cookie(self.settings.cookie) or "")
        return login.leave(self.settings.cookie, secure=self._is_secure(visit))

    def _has_session(self, visit: Visit) -> bool:
        return self.sessions.find(visit.cookie(self.settings.cookie) or "") is not None

    @staticmethod
    def _is_secure(visit: Visit) -> bool:
        """Whether the browser speaks TLS, with us or with a proxy before us."""
        return visit.is_encrypted or any(origin.startswith("https:") for origin in visit.origins)

    def _end_session(self, name: str) -> None:
        self.runs.end(logged_out(), lambda run: run.client == name)

    # How much ------------------------------------------------------------------------------------------------------

    async def _pass_on(self, visit: Visit, client: str, receive: Receive, send: Send) -> None:
        """Has the app handle a request within the client's limits.

        Raises:
            Refused: 413, 429 or, while the server stops, 503.
        """
        if self._stopping.is_set() and visit.path not in OPEN_TO_ALL:
            raise ending()
        most = self.settings.limits.most_bytes(visit.path)
        check_announced(visit, most)
        scope = dict(visit.scope, headers=[one for one in visit.scope["headers"] if one[0] not in UNTRUSTED_HEADERS])
        run = Run(self.app, scope, client)
        with ExitStack() as places:
            places.enter_context(self._counted.admitted(visit, client))
            await self.runs.run(run, bounded(receive, most, lambda: run.end(too_long(most))), send)
