"""Which hosts a camera may be on, and the connection to the one address that was checked.

A name is looked up once for every connection, all its addresses are checked, and the connection goes to one of those:
what the name says a moment later does not matter. This module knows nothing of RTSP or of files.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from vstream.sources.camera_address import OPEN_SECONDS
from vstream.sources.relay import CameraRefused

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) -> its addresses as text; raises `OSError`."""

SILENCE_SECONDS = 10.0
"""A connection on which a TLS record is not completed, or a request not taken, for so long is broken."""

METADATA = frozenset(
    map(ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)
"""Where clouds tell their machines secrets, beside link-local 169.254.169.254."""

_NAT64, _COMPATIBLE = ip_network("64:ff9b::/96"), ip_network("::/96")
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[\w-]+(?:\.[\w-]+)*\.?))(?::(?P<port>[0-9]{1,5}))?")


def resolved(host: str, port: int) -> list[str]:
    """The system's resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class AllowedHost:
    """What one `--allow HOST` says.

    Attributes:
        text: as given.
        network: its addresses; None for a name.
        port: the only port; None for all.
    """

    text: str
    network: IPv4Network | IPv6Network | None
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        """Whether it speaks of this host, as given in a camera's address; a name is not looked up."""
        if self.port not in (None, port):
            return False
        address = _literal(host)
        if self.network is None or address is None:
            return self.network is None and address is None and _plain(self._name) == _plain(host)
        return address in self.network

    @property
    def _name(self) -> str:
        return self.text if self.port is None else self.text.rpartition(":")[0]


def allowed_host(text: str) -> AllowedHost | None:
    """A name, an address or a network, with a port or without; None if the text is none of these.

    Raises:
        ValueError: for addresses that nobody may connect to, and impossible ports.
    """
    try:
        host = AllowedHost(text, ip_network(text, strict=False), None)
    except ValueError:
        parts = _HOST.fullmatch(text)
        if parts is None:
            return None
        host = _with_port(text, parts["six"] or parts["name"], parts["port"])
    special = host.network and host.network.num_addresses == 1 and why_special(host.network.network_address)
    if special:
        raise ValueError(f"--allow {text}: {special} addresses are never connected to; give the camera's own address")
    return host


def _with_port(text: str, host: str, port: str | None) -> AllowedHost:
    if port is not None and not 0 < int(port) < 1 << 16:
        raise ValueError(f"--allow {text}: a port is a number from 1 to 65535")
    address = _literal(host)
    return AllowedHost(text, None if address is None else ip_network(address), int(port) if port else None)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _plain(name: str) -> str:
    return name.casefold().rstrip(".")


def why_special(address: Address) -> str | None:
    """What makes an address one that nobody may connect to, in a word or two; None for all others."""
    inner = _inner(address)
    if inner is not None:
        return why_special(inner)
    if address in METADATA:
        return "cloud metadata"
    kinds = {
        "unspecified": address.is_unspecified or (address.version == 4 and address in ip_network("0.0.0.0/8")),
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "reserved": address.is_reserved and not address.is_loopback,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def why_never(host: str) -> str | None:
    """What makes a host that is given as an address one that nobody may connect to; None for others, and for names."""
    literal = _literal(host)
    return why_special(literal) if literal else None


def _inner(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def checked_addresses(host: str, port: int, resolver: Resolver) -> list[str]:
    """All addresses of an allowed host, looked up now. Raises `CameraRefused` if one may not be connected to."""
    literal = _literal(host)
    addresses = [str(literal)] if literal else list(dict.fromkeys(resolver(host, port)))
    if not addresses:
        raise CameraRefused(f"{host} has no address")
    for text in addresses:
        address = ip_address(text)
        special = why_special(address)
        if special is None and not literal and (_inner(address) or address).is_loopback and not _is_local(host):
            special = "loopback"
        if special:
            raise CameraRefused(f"{host} has the {special} address {text}, which is never connected to")
    return addresses


def _is_local(name: str) -> bool:
    return _plain(name) == "localhost" or _plain(name).endswith(".localhost")


def connect(host: str, port: int, *, tls: bool, resolver: Resolver = resolved) -> socket.socket:
    """A connection to an allowed host, at an address that was checked; certificates are checked by the system's list.

    Raises:
        CameraRefused: if one of its addresses may not be connected to.
        OSError: if it cannot be found or reached, or its certificate is not trusted.
    """
    addresses = checked_addresses(host, port, resolver)
    connection = _first_connection(addresses, port)
    connection.settimeout(SILENCE_SECONDS)
    if not tls:
        return connection
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except OSError:
        connection.close()
        raise


def _first_connection(addresses: Sequence[str], port: int) -> socket.socket:
    """To the first that answers, all of them within about `OPEN_SECONDS`. Raises the last one's `OSError`."""
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), OPEN_SECONDS / len(addresses))
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), OPEN_SECONDS / len(addresses))
