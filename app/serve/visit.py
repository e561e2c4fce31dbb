"""A request as the gate sees it: whom it wants to reach, where it comes from, what it shows for itself.

It reads headers and decides nothing: who is let in is up to `gate.py`. It knows nothing of routes.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]\\,]+)(?::([0-9]{1,5}))?", re.ASCII)
PORTS = {"http": 80, "https": 443}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def read_host(text: str) -> tuple[str, int | None] | None:
    """The name and the port of a `Host` header, without brackets, small; None if it is not one."""
    found = HOST.fullmatch(text.strip().lower())
    if found is None:
        return None
    return found[1].strip("[]").removesuffix("."), int(found[2]) if found[2] else None


def is_address(name: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Visit:
    """One HTTP request or WebSocket, by its ASGI scope."""

    scope: Scope

    @cached_property
    def headers(self) -> Headers:
        """All of them; names do not tell upper from lower case."""
        return Headers(scope=self.scope)

    @property
    def is_socket(self) -> bool:
        """Whether it is a WebSocket."""
        return bool(self.scope["type"] == "websocket")

    @property
    def method(self) -> str:
        """ "GET" for a WebSocket."""
        return "GET" if self.is_socket else str(self.scope["method"])

    @property
    def path(self) -> str:
        """As routes see it."""
        return str(self.scope["path"])

    @property
    def changes_things(self) -> bool:
        """Whether another site must not be able to send it: a WebSocket, or a method that is not safe."""
        return self.is_socket or self.method not in SAFE_METHODS

    @property
    def is_encrypted(self) -> bool:
        """Whether it came by TLS."""
        return self.scope.get("scheme") in ("https", "wss")

    @property
    def address(self) -> str:
        """Who sent it, as far as limits go: of an IPv6 address only the network, since people own whole ones."""
        client = self.scope.get("client")
        if not client:
            return "unknown"
        if ":" not in client[0]:
            return str(client[0])
        return str(ipaddress.ip_network((client[0].partition("%")[0], 64), strict=False))

    @cached_property
    def host(self) -> tuple[str, int | None] | None:
        """The one host that it names, and its port; None if it names none, or several."""
        named = self.headers.getlist("host")
        return read_host(named[0]) if len(named) == 1 else None

    @property
    def origins(self) -> list[str]:
        """What a browser says of the page that sent it; programs say nothing."""
        return self.headers.getlist("origin")

    @property
    def has_own_origin(self) -> bool:
        """Whether a page of this very server sent it."""
        return len(self.origins) == 1 and self._is_own(self.origins[0])

    @property
    def is_foreign(self) -> bool:
        """Whether a browser says that a page of another server sent it."""
        if self.origins and not self.has_own_origin:
            return True
        return any(said not in ("same-origin", "none") for said in self.headers.getlist("sec-fetch-site"))

    @property
    def follows_link(self) -> bool:
        """Whether it opens a page in a tab of its own, as links of any site may."""
        fetch = (self.headers.get("sec-fetch-mode"), self.headers.get("sec-fetch-dest"))
        return not self.changes_things and not self.origins and fetch == ("navigate", "document")

    @property
    def wants_page(self) -> bool:
        """Whether a person will see the response as a page."""
        if self.is_socket or self.method not in ("GET", "HEAD") or self.path.startswith("/v1/"):
            return False
        mode = self.headers.get("sec-fetch-mode", "navigate")
        return mode == "navigate" and "text/html" in self.headers.get("accept", "")

    @property
    def bearer(self) -> bytes | None:
        """What `Authorization: Bearer` holds; b"" for an `Authorization` of any other kind, None for none at all."""
        given = [value for name, value in self.scope["headers"] if name == b"authorization"]
        if not given:
            return None
        kind, _, secret = bytes(given[0]).partition(b" ")
        return secret.strip() if kind.lower() == b"bearer" and len(given) == 1 else b""

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        return cookie_parser("; ".join(self.headers.getlist("cookie"))).get(name)

    def _is_own(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
            port = parts.port
        except ValueError:
            return False
        if self.host is None or parts.scheme not in PORTS or (self.is_encrypted and parts.scheme != "https"):
            return False
        default = PORTS[parts.scheme]
        name, own_port = self.host
        return ((parts.hostname or "").removesuffix("."), port or default) == (name, own_port or default)
