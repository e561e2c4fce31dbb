"""Network cameras through a relay on this machine, for servers whose users name the cameras.

FFmpeg follows every redirect of a camera by itself, to any host. So it connects to a relay instead, which has one
connection to the one address that its `connect` chose. The relay passes what the camera says only as far as it
understands it, written anew, and ends the connection where the camera redirects. Addresses inside answers
(Content-Base, a=control) make FFmpeg connect nowhere: it names them over the connection that it has, to the relay.

This module knows nothing of which hosts are allowed.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import av

from vstream.sources.camera_address import OPEN_SECONDS, CameraAddress

MAX_HEAD_BYTES, MAX_BODY_BYTES = 1 << 16, 1 << 20
MIN_PACKET_BYTES = 8
"""Shorter interleaved packets hold no RTP or RTCP; FFmpeg would read their bytes as an answer."""

PASSED_HEADERS = (
    "cseq", "session", "transport", "range", "public", "content-base", "content-type", "rtp-info", "www-authenticate",
    "authentication-info",
)  # fmt: skip
"""What FFmpeg needs of an answer; not Location, and nothing that tells of RealNetworks' or Microsoft's servers."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"RTSP/[0-9]\.[0-9] ([0-9]{3})(?: .*)?")
_REQUEST = re.compile(rb"([A-Z_]{1,32}) \S+ RTSP/[0-9]\.[0-9]")
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class CameraRefused(Exception):
    """A connection that is not made, or ended; its text is the reason, for people, without credentials."""


@dataclass(frozen=True)
class RelayedAddress(CameraAddress):
    """A network camera that FFmpeg sees only through a `Relay`, a new one for every connection.

    Attributes:
        connect: gives a connected socket (TLS done, if any), or raises `CameraRefused` or `OSError`. It is called for
            every connection, in the relay's thread.
    """

    connect: Callable[[], socket.socket] = field(kw_only=True, repr=False)
    _newest: list[Relay] = field(default_factory=list, repr=False, compare=False)

    def open(self) -> av.container.InputContainer:
        """Connects, blocking. Raises `av.FFmpegError`, whose text may hold the secret url; `why` knows more."""
        relay = Relay(self.connect)
        self._newest[:] = [relay]
        return self._open(self.url_through(relay.port))

    def why(self) -> str | None:
        """Why the relay ended the newest connection; None where it did not."""
        return self._newest[0].reason if self._newest else None


def relayed(address: CameraAddress, connect: Callable[[], socket.socket]) -> RelayedAddress:
    """A network camera (over TCP) that is reached by `connect` alone."""
    options = {**address.options, "rtsp_transport": "tcp", "protocol_whitelist": "tcp"}
    return RelayedAddress(address.name, address.url, None, options, connect=connect)


class Relay:
    """Takes one connection on a loopback port and passes it on, in a thread that ends with either side.

    Attributes:
        port: where FFmpeg connects to, within `OPEN_SECONDS`; nobody can after the first.
        reason: why the relay ended the connection, None as long as it did not.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self.reason: str | None = None
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listening.settimeout(OPEN_SECONDS)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._run, name="RTSP relay", daemon=True).start()

    def _run(self) -> None:
        with self._listening:
            try:
                ours, _ = self._listening.accept()
            except TimeoutError:
                return
        with ours:
            try:
                with self._connect() as camera:
                    _pass(ours, camera)
            except CameraRefused as refused:
                self.reason = str(refused)
            except OSError as error:
                self.reason = reason_of_os(error)


def _pass(ours: socket.socket, camera: socket.socket) -> None:
    """Until either side ends: requests as they are, answers through `Answers`. Raises for trouble with the camera."""
    answers = Answers()
    while True:
        ready = _ready(ours, camera)
        if ours in ready:
            asked = _received(ours)
            if not asked:
                return
            camera.sendall(asked)
        if camera in ready:
            said = camera.recv(1 << 16)
            if not said or not _sent(ours, b"".join(answers.passed(said))):
                return


def _ready(ours: socket.socket, camera: socket.socket) -> list[object]:
    """Waits for those of the two that have something to say."""
    if isinstance(camera, ssl.SSLSocket) and camera.pending():
        return [camera]
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        selector.register(camera, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select()]


def _received(ours: socket.socket) -> bytes:
    """What FFmpeg sends; nothing once it has gone."""
    try:
        return ours.recv(1 << 16)
    except OSError:
        return b""


def _sent(ours: socket.socket, data: bytes) -> bool:
    """Whether FFmpeg is still there to take it."""
    try:
        ours.sendall(data)
    except OSError:
        return False
    return True


class Answers:
    """What a camera says, in pieces of any size, as what FFmpeg may hear.

    Every answer is read whole, and written anew from what was understood, so that FFmpeg cannot read it in another way.
    """

    def __init__(self) -> None:
        self._waiting = b""

    def passed(self, said: bytes) -> Iterator[bytes]:
        """The packets and answers that are complete now.

        Raises:
            CameraRefused: for a redirect, and for what is no RTSP.
        """
        self._waiting += said
        while (size_passed := self._first()) is not None:
            size, passed = size_passed
            self._waiting = self._waiting[size:]
            yield passed

    def _first(self) -> tuple[int, bytes] | None:
        """(how many bytes the first packet or answer takes, what is passed of it); None while it is incomplete."""
        if self._waiting[:1] in (b"\r", b"\n"):
            return 1, b""
        return self._packet() if self._waiting[:1] == b"$" else self._answer()

    def _packet(self) -> tuple[int, bytes] | None:
        """An interleaved packet: $, channel, size in two bytes, payload."""
        size = 4 + int.from_bytes(self._waiting[2:4], "big")
        if len(self._waiting) < max(4, size):
            return None
        return size, self._waiting[:size] if size >= 4 + MIN_PACKET_BYTES else b""

    def _answer(self) -> tuple[int, bytes] | None:
        end = _HEAD_END.search(self._waiting)
        if end is None:
            if len(self._waiting) > MAX_HEAD_BYTES:
                raise CameraRefused("what answers there is no RTSP camera")
            return None
        first, *lines = re.split(rb"\r?\n", self._waiting[: end.start()])
        headers = [header.groups() for line in lines if (header := _HEADER.fullmatch(line))]
        size = end.end() + _body_bytes(headers)
        if len(self._waiting) < size:
            return None
        return size, _written(_first_line(first), headers, self._waiting[end.end() : size])


def _first_line(line: bytes) -> bytes:
    """The first line of an answer, or of a request of the camera's own, written anew."""
    if status := _STATUS.fullmatch(line):
        if status[1].startswith(b"3"):
            raise CameraRefused(
                f"the camera redirects to another address (RTSP {status[1].decode()}), which is not followed"
            )
        return b"RTSP/1.0 %s -" % status[1]
    request = _REQUEST.fullmatch(line)
    if request is None:
        raise CameraRefused("what answers there is no RTSP camera")
    if request[1] == b"REDIRECT":
        raise CameraRefused("the camera redirects to another address, which is not followed")
    return b"%s * RTSP/1.0" % request[1]


def _body_bytes(headers: list[tuple[bytes, ...]]) -> int:
    sizes = {value.strip() for name, value in headers if name.lower() == b"content-length"} or {b"0"}
    size = sizes.pop()
    if sizes or not re.fullmatch(rb"[0-9]{1,7}", size) or int(size) > MAX_BODY_BYTES:
        raise CameraRefused("the camera's answer has no readable length")
    return int(size)


def _written(first: bytes, headers: list[tuple[bytes, ...]], body: bytes) -> bytes:
    passed = [b"%s: %s" % (name, value) for name, value in headers if name.lower().decode() in PASSED_HEADERS]
    return b"\r\n".join([first, *passed, b"Content-Length: %d" % len(body), b"", body])


def reason_of_os(error: OSError) -> str:
    """Why a camera cannot be reached, in a phrase."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the camera's certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "the camera speaks no TLS that is understood here"
    return "no answer" if isinstance(error, TimeoutError) else (error.strerror or "no connection").lower()
