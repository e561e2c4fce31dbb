"""Refusals, each one sentence, in the form that whoever asked can read; and headers that go with every response.

Knows nothing of why something is refused.
"""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
}
"""The `type` of an error by its status, as OpenAI's clients know it."""

POLICY = "; ".join((
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page is full of both
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "media-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self' data: blob:",
    "worker-src 'self' blob:",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
))  # fmt: skip
"""No page of ours may send anything to another server, not even if an answer's text should try to make it."""

SAFE_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "same-origin",  # with no-referrer, the login form would have no Origin
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Refused(Exception):
    """A request goes no further.

    Attributes:
        status: the HTTP status.
        sentence: what the sender should know.
        code: the same for programs, in a word.
        headers: of the response.
    """

    def __init__(self, status: int, sentence: str, code: str, **headers: str) -> None:
        """`headers` by their names, with "_" for "-"."""
        super().__init__(sentence)
        self.status, self.sentence, self.code = status, sentence, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @classmethod
    def for_now(cls, sentence: str, code: str, wait_seconds: float, *, status: int = 429) -> Refused:
        """It may be tried again after so many seconds."""
        return cls(status, sentence, code, retry_after=str(max(1, math.ceil(wait_seconds))))

    def response(self) -> Response:
        """The refusal in the form of OpenAI's errors, which serves everybody else as well."""
        error = {"message": self.sentence, "type": KINDS[self.status], "param": None, "code": self.code}
        headers = {"cache-control": "no-store", **self.headers}
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends a response, to a WebSocket too: before it is accepted it can be given one."""
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await send({"type": "websocket.close", "code": 1008})  # which servers turn into 403


def with_safe_headers(send: Send) -> Send:
    """Adds the headers that every response has; those of the app come first."""

    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
