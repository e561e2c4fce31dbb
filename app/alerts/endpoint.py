"""A webhook's address: checked when it is given, signed letters to it, one attempt at a time.

The connection goes to the one address that was checked (`serve/hosts.py`): never to a cloud's metadata, to a private
address only where whoever started the program named it, and to no place that a redirect names. This module knows
nothing of when letters are sent again.

A receiver checks X-Vstream-Signature, "sha256=" and the hex HMAC-SHA256 of X-Vstream-Timestamp, "." and the body as it
came, by the common secret; refuses timestamps that are old; and takes what has an X-Vstream-Event it knows for done.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from vstream.app.serve.hosts import AllowedHost, Resolver, allowed_host, connect, resolved, why_never
from vstream.sources.relay import CameraRefused

SECRET_VARIABLE = "VSTREAM_WEBHOOK_SECRET"
MIN_SECRET, MAX_SECRET = 16, 4096
MAX_REPLY_BYTES = 1 << 16
TRY_SECONDS = 20.0
"""An attempt is over after so long, whatever the other side does."""
AGAIN = frozenset({408, 425, 429})
"""Answers below 500 that may be others later."""


@dataclass(frozen=True)
class Reply:
    """What came of an attempt.

    Attributes:
        status: of HTTP; 0 where there was none.
        trouble: what went wrong, in a few words, "" where it was received.
        wait_seconds: for which the other side asked, 0 where it asked for nothing.
    """

    status: int
    trouble: str = ""
    wait_seconds: float = 0.0

    @property
    def received(self) -> bool:
        """Whether the letter has arrived."""
        return 200 <= self.status < 300

    @property
    def may_be_tried_again(self) -> bool:
        """Whether it is worth another attempt: not where the letter itself, or its address, is refused."""
        return self.status == 0 or self.status >= 500 or self.status in AGAIN


@dataclass(frozen=True)
class Endpoint:
    """Where events are sent.

    Attributes:
        url: http or https; what follows the host may be secret, so only `host` is shown.
        secret: that signatures are made with, None for none.
        allowed: hosts that may have private addresses.
        resolver: looks names up; for tests.
    """

    url: str = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)
    allowed: tuple[AllowedHost, ...] = ()
    resolver: Resolver = resolved
    try_seconds: float = TRY_SECONDS

    def __post_init__(self) -> None:
        """Raises `ValueError` for an address that will not do."""
        parts = _split(self.url)
        if parts is None:
            raise ValueError(
                "--webhook must be an http or https address, with a host and without a user, password or fragment"
            )
        if special := why_never(self.host):
            raise ValueError(f"--webhook: {special} addresses like {self.host} are never connected to; give another")

    @property
    def host(self) -> str:
        """The host's name or address."""
        parts = _split(self.url)
        assert parts is not None, "it was checked"
        return parts[1]

    @property
    def name(self) -> str:
        """For folders: tells addresses apart and nothing else of them."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def send(self, key: str, body: bytes, *, now: float | None = None) -> Reply:
        """One attempt to send a letter; `now` is the Unix time that it is signed with."""
        parts = _split(self.url)
        assert parts is not None, "it was checked"
        scheme, host, port, path = parts
        connection = _Connection(host, port, tls=scheme == "https", resolver=self._checked)
        timer = threading.Timer(self.try_seconds, connection.cut)
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", path, body, self.headers(key, body, time.time() if now is None else now))
            reply = connection.getresponse()
            reply.read(MAX_REPLY_BYTES)
            return _reply(reply)
        except CameraRefused as error:
            return Reply(0, str(error))
        except TimeoutError:
            return Reply(0, "it does not answer")
        except (OSError, http.client.HTTPException) as error:
            return Reply(0, "it does not answer" if connection.was_cut else _why(error))
        finally:
            timer.cancel()
            connection.close()

    def headers(self, key: str, body: bytes, now: float) -> dict[str, str]:
        """Of one attempt: its time is signed along, so that nobody can send a letter again much later."""
        timestamp = str(int(now))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "vstream",
            "X-Vstream-Event": key,
            "X-Vstream-Timestamp": timestamp,
        }
        if self.secret is None:
            return headers
        signature = hmac.new(self.secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        return headers | {"X-Vstream-Signature": f"sha256={signature}"}

    def _checked(self, host: str, port: int) -> Sequence[str]:
        """A name's addresses; raises `CameraRefused` if one is private and nobody allowed the name."""
        addresses = self.resolver(host, port)
        named = host.rstrip(".").casefold() == "localhost" or any(one.allows(host, port) for one in self.allowed)
        private = next((one for one in addresses if not ip_address(one).is_global), None)
        if private is not None and not named:
            raise CameraRefused(f"{host} has the private address {private}; --webhook-allow {host} would permit it")
        return addresses


def allowed_hosts(texts: Sequence[str]) -> tuple[AllowedHost, ...]:
    """What was given with `--webhook-allow`. Raises `ValueError` for what is no host."""
    found = []
    for text in texts:
        host = allowed_host(text)
        if host is None:
            raise ValueError(f"--webhook-allow takes a host such as hooks.lan or hooks.lan:8080, got {text!r}")
        found.append(host)
    return tuple(found)


def read_secret(file: Path | None, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret that was given, by a file or else by the environment; None if there is none.

    Raises:
        ValueError: if it cannot be read, or is too short to be safe.
    """
    where = f"--webhook-secret-file {file}" if file else SECRET_VARIABLE
    if file is None and SECRET_VARIABLE not in environ:
        return None
    try:
        secret = file.read_bytes().strip() if file else environ[SECRET_VARIABLE].strip().encode()
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from None
    if not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise ValueError(f"{where} must hold a secret of {MIN_SECRET} to {MAX_SECRET} bytes, got {len(secret)}")
    return secret


class _Connection(http.client.HTTPConnection):
    """To an address that was checked; it can be cut off from another thread."""

    def __init__(self, host: str, port: int, *, tls: bool, resolver: Resolver) -> None:
        super().__init__(host, port)
        self.default_port = 443 if tls else 80  # leaves the port out of Host where it is usual
        self._tls, self._resolver = tls, resolver
        self.was_cut = False

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, tls=self._tls, resolver=self._resolver)
        if self.was_cut:
            raise TimeoutError

    def cut(self) -> None:
        self.was_cut = True
        if self.sock is not None:
            with suppress(OSError):  # it has ended by itself
                self.sock.shutdown(socket.SHUT_RDWR)


def _split(url: str) -> tuple[str, str, int, str] | None:
    """(scheme, host, port, path and query) of an address; None if it will not do."""
    if not re.fullmatch(r"[!-~]{1,2048}", url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or "#" in url or port == 0:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path


def _reply(reply: http.client.HTTPResponse) -> Reply:
    if 200 <= reply.status < 300:
        return Reply(reply.status)
    said = "it redirects, which is not followed" if 300 <= reply.status < 400 else f"it answers {reply.status}"
    after = reply.headers.get("Retry-After", "")
    return Reply(reply.status, said, float(after) if re.fullmatch(r"[0-9]{1,6}", after) else 0.0)


def _why(error: Exception) -> str:
    """An error of the network in a few words."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
