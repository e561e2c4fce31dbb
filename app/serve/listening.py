"""Where the server listens and what it asks of visitors, checked before anything slow is begun.

Everything that is wrong is one sentence: ValueError for what was given, RuntimeError for a port that cannot be had.
It knows nothing of the app.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vstream.app.serve.gate import LOOPBACK, GateSettings
from vstream.app.serve.limits import MIB, Limits
from vstream.app.serve.options import TOKEN_VARIABLE, ServeOptions
from vstream.app.serve.visit import is_address, read_host

MIN_TOKEN = 16
MAX_TOKEN = 512
MAX_PER_SECOND = 1_000_000
MAKE_A_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe())' > token.txt"
NOWHERE = ("192.0.2.1", 9)
"""An address of nobody (it is for documentation). Nothing is sent there."""


@dataclass(frozen=True)
class Listener:
    """A socket that connections come to, and what goes with it.

    Attributes:
        socket: listening: who connects waits until the server runs.
        url: for a browser: of this machine or, if others may come, of one of theirs.
        settings: of the gate.
        options: as given.
        notes: sentences that whoever starts the server should read.
    """

    socket: socket.socket
    url: str
    settings: GateSettings
    options: ServeOptions
    notes: tuple[str, ...]


def listen(options: ServeOptions, environ: Mapping[str, str] = os.environ) -> Listener:
    """Checks everything, and takes the port.

    Raises:
        ValueError: for an option that will not do, or a missing token.
        RuntimeError: if the port is taken, or not to be had.
    """
    _check_numbers(options)
    family, address = _resolve(options.host)
    private = is_loopback(options.host) and is_loopback(address)
    token = read_token(options.token_file, environ)
    if token is None and not private:
        raise ValueError(
            f"--host {options.host} lets other machines in, and that needs a token: make one with `{MAKE_A_TOKEN}`, "
            f"then add --token-file token.txt (or set {TOKEN_VARIABLE})"
        )
    _check_certificate(options.tls_cert, options.tls_key)
    hosts = _hosts(options, address)
    taken = _bind(family, address, options)
    port = taken.getsockname()[1]
    settings = GateSettings(
        token=token,
        hosts=hosts,
        any_address=_is_every(address),
        cookie=f"vstream_session_{port}",
        limits=Limits(
            questions_per_minute=options.questions_per_minute,
            requests_per_second=options.requests_per_second,
            upload_bytes=options.max_upload_mib * MIB,
        ),
    )
    return Listener(taken, _url(options, address, port), settings, options, _notes(options, private))


def is_loopback(host: str) -> bool:
    """Whether only this machine's own programs can reach what listens there. Of a name other than localhost: no."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(file: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token that was given, by a file or else by the environment.

    Raises:
        ValueError: if it cannot be read, is too short to be safe, or cannot be sent in a header.
    """
    where = f"--token-file {file}" if file else TOKEN_VARIABLE
    if file is None and TOKEN_VARIABLE not in environ:
        return None
    token = (_read(file, where) if file else environ[TOKEN_VARIABLE]).strip()
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN:
        size = f"{MIN_TOKEN} to {MAX_TOKEN} characters"
        raise ValueError(f"{where} must hold a token of {size}, got {len(token)}: make one with `{MAKE_A_TOKEN}`")
    if not all("!" <= one <= "~" for one in token):
        raise ValueError(f"{where} must hold one token of ASCII letters, digits and signs, without spaces")
    return token


def _read(file: Path, where: str) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_TOKEN * 2).decode("utf-8", "replace")
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from None


def _check_numbers(options: ServeOptions) -> None:
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, or 0 for a free one, got {options.port}")
    for name, value in (
        ("--questions-per-minute", options.questions_per_minute),
        ("--requests-per-second", options.requests_per_second),
        ("--max-upload-mib", options.max_upload_mib),
    ):
        if not 1 <= value <= MAX_PER_SECOND:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_PER_SECOND}, got {value}")
    if not 0 < options.stop_seconds <= 3600:
        raise ValueError(f"--stop-seconds must be above 0 and at most 3600, got {options.stop_seconds:g}")


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """The address to listen at; of a name's several an IPv4 one, which most people type."""
    where = f"--host must be an address or a name of this machine (0.0.0.0 is every one), got {host!r}"
    if not host.strip():
        raise ValueError(where)
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ValueError(where) from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(address[0])


def _is_every(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_unspecified


def _hosts(options: ServeOptions, address: str) -> frozenset[str]:
    """The names that this server goes by."""
    named = {options.host.lower().strip("[]"), address}
    if _is_every(address):
        machine = socket.gethostname().lower()
        named |= {machine, f"{machine.partition('.')[0]}.local"}
    for each in options.allow_host or ():
        read = read_host(each) or read_host(f"[{each}]")
        if read is None or read[1] is not None:
            raise ValueError(f"--allow-host must be a name or an address without a port, got {each!r}")
        named.add(read[0])
    return LOOPBACK | named


def _check_certificate(cert: Path | None, key: Path | None) -> None:
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key go together: give both files, or neither")
    for name, file in (("--tls-cert", cert), ("--tls-key", key)):
        _read(file, f"{name} {file}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise ValueError(
            f"--tls-cert {cert} and --tls-key {key} must be a PEM certificate and its own key, without a password"
        ) from None


def _bind(family: socket.AddressFamily, address: str, options: ServeOptions) -> socket.socket:
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if _is_every(address) else 1)
        taken.bind((address, options.port))
        taken.listen()
        return taken
    except OSError as error:
        taken.close()
        raise _why_not(error, options) from None


def _why_not(error: OSError, options: ServeOptions) -> Exception:
    where = f"port {options.port} of {options.host}"
    if error.errno == errno.EADDRINUSE:
        return RuntimeError(f"{where} is taken: stop what uses it, or give another --port (0 takes a free one)")
    if error.errno == errno.EADDRNOTAVAIL:
        return ValueError(f"--host {options.host} is no address of this machine")
    return RuntimeError(f"{where} cannot be listened at: {error.strerror}")


def _url(options: ServeOptions, address: str, port: int) -> str:
    scheme = "https" if options.tls_cert else "http"
    host = _outward_address() if _is_every(address) else options.host.strip("[]")
    return f"{scheme}://{f'[{host}]' if is_address(host) and ':' in host else host}:{port}"


def _outward_address() -> str:
    """The address by which others know this machine, by its routes."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(NOWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _notes(options: ServeOptions, private: bool) -> tuple[str, ...]:
    if private or options.tls_cert:
        return ()
    return ("without --tls-cert and --tls-key, token and pictures travel unencrypted, and no phone gives its camera",)
