"""Errors as responses: every one under /v1 has the shape of OpenAI's, and says in one sentence what is wrong.

This module knows nothing of what the routes do, only of what they may raise.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from vstream.app.serve.allowed import SourceRefused
from vstream.app.serve.busy import BusyError
from vstream.app.serve.hub import OpenAlreadyError
from vstream.app.serve.library import UnknownStreamError, without_folders
from vstream.app.serve.records import Problem, Refusal
from vstream.app.serve.uploads import NoRoom, UploadRefused, UploadTooLarge

log = logging.getLogger("vstream.serve")
RETRY_SECONDS = 5
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
MEANINGS = {
    400: "The request will not do; the message says what to change.",
    401: "A token is needed.",
    403: "This server does not open that source; the message says what it opens.",
    404: "There is no such stream, memory, picture or source.",
    409: "The stream is in no state for this: it has ended, failed, or takes no frames.",
    413: "What was sent is too large.",
    415: "What was sent is of another type than can be read.",
    422: "A field is missing, unknown, or has a value that is not allowed.",
    429: "There is no room for more now; see Retry-After.",
    500: "The answer failed for a reason of the server's own.",
    503: "The server is stopping, or not ready; see Retry-After.",
    507: "The server's disk is full.",
}
UNREADABLE = "There was an error parsing the body"
"""What the framework says of a body that it cannot decode, or that has too many levels."""
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
OPENAI_PATHS = ("/v1/chat/", "/v1/responses")
"""Here a field that will not do is 400, as OpenAI's clients expect."""


class ApiError(Exception):
    """A refusal with a status of its own."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        """`message` is one sentence; `param` the field that it is about."""
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route that are errors, for its documentation; those that any route has come by themselves."""
    return {status: {"model": Refusal, "description": MEANINGS[status]} for status in (*statuses, 401, 422, 429, 503)}


def problem(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Refusal(error=Problem(message=without_folders(message), type=kind, code=code, param=param)).model_dump()


def refusal(status: int, message: str, *, code: str | None = None, param: str | None = None) -> JSONResponse:
    """A refusal as a response."""
    headers = {"retry-after": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(problem(status, message, code=code, param=param), status, headers)


def told(error: Exception) -> ApiError:
    """An error of the hub, a stream or an answer as a refusal."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):  # of what the server itself was going to say
        log.error("a record is not what it should be", exc_info=error)
        return ApiError(500, "the server failed; its log says more")
    if isinstance(error, UnknownStreamError):
        return ApiError(404, str(error), code="not_found")
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="busy")
    if isinstance(error, FileNotFoundError):
        return ApiError(404, _sentence(error), code="not_found")
    if isinstance(error, SourceRefused):
        return ApiError(403, str(error), code="source_refused")
    if isinstance(error, NoRoom):
        return ApiError(507, str(error), code="no_room")
    if isinstance(error, UploadRefused):
        too_large = isinstance(error, UploadTooLarge)
        return ApiError(413 if too_large else 415, str(error), code="too_large" if too_large else "unreadable")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    if isinstance(error, OpenAlreadyError):
        return ApiError(409, str(error), code="open")
    if isinstance(error, RuntimeError):
        return ApiError(409, str(error), code="ended")
    if isinstance(error, OSError):
        return _of_system(error)
    return ApiError(500, f"the server failed: {type(error).__name__}")


def install(app: FastAPI) -> None:
    """Has every error of an app answered in this way."""
    for kind in (ApiError, UnknownStreamError, BusyError, ValueError, RuntimeError, OSError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(OwnPaths)


async def _refused(request: Request, error: Exception) -> Response:
    known = told(error)
    stopping = known.status == 429 and request.app.state.hub.stopping
    return refusal(503 if stopping else known.status, str(known), code=known.code, param=known.param)


def _of_system(error: OSError) -> ApiError:
    """What the server's own files and disk refuse, without their names."""
    if isinstance(error, BlockingIOError):
        return ApiError(409, "another server has this memory open; close it there first", code="in_use")
    log.error("%s", error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "the server's disk is full; delete memories that are not needed", code="no_room")
    why = (error.strerror or type(error).__name__).lower()
    return ApiError(500, f"the server cannot use its files: {without_folders(why)}; its log says more")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    status = 400 if request.url.path.startswith(OPENAI_PATHS) else 422
    message, param = sentence_of(error.errors())
    return refusal(status, message, code="invalid_value", param=param)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _not_allowed(request)
    unknown = error.status_code == 404 and error.detail == "Not Found"
    message = f"there is nothing at {request.url.path}" if unknown else str(error.detail)
    if message == UNREADABLE:
        message = "the body is not JSON that can be read; send UTF-8, with plain numbers and few levels"
    response = refusal(error.status_code, message)
    response.headers.update(error.headers or {})
    return response


def _not_allowed(request: Request) -> Response:
    """405 with all methods of the path that was called: the framework names those of one route alone."""
    found = [method for method in METHODS if Match.FULL in _matches({**request.scope, "method": method})]
    response = refusal(405, f"{request.method} is not possible here, only {', '.join(found)}")
    response.headers["allow"] = ", ".join(found)
    return response


def _matches(scope: Scope) -> set[Match]:
    """How the routes of an app would take a request; what is mounted is not asked."""
    return {route.matches(scope)[0] for route in scope["app"].routes if not isinstance(route, Mount)}


class OwnPaths:
    """ASGI middleware that keeps /v1 for the API: the page, which is mounted on all paths, would take what is none."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is asked for all that is known."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        app = self._app
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            found = _matches(scope)
            if Match.FULL not in found and Match.PARTIAL not in found:
                app = refusal(404, f"there is nothing at {scope['path']}")
            elif Match.FULL not in found:
                app = _not_allowed(Request(scope))
        await app(scope, receive, send)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal(500, f"the server failed: {type(error).__name__}; its log says more")


def sentence_of(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """The first of several errors of validation as one sentence, and the field that it is about."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    # unions name their branches too: those are no fields
    field = (
        ".".join(part for part in where if (part.isidentifier() or part.isdigit()) and part not in _BRANCHES) or None
    )
    more = f" ({len(errors) - 1} more)" if len({error["loc"][:2] for error in errors}) > 1 else ""
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}", None
    if first["type"] == "missing":
        return f"{field or 'the body'} is missing{more}", field
    if isinstance(first.get("input"), bytes):
        return "the body must be JSON, sent with content-type: application/json", None
    if first["type"] == "extra_forbidden":
        return f"{field} is not known here; leave it out{more}", field
    said = str(first["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(first.get("input"), dict | list) else f", got {_shown(first.get('input'))}"
    return f"{field or 'the body'}: {said[:1].lower()}{said[1:]}{given}{more}", field


_BRANCHES = frozenset({"float", "str", "int", "bool", "constrained", "function"})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sentence(error: OSError) -> str:
    """What an error of the system says; its own words where it was raised with a sentence."""
    return str(error) if error.strerror is None else f"there is no such file: {error.strerror}"
