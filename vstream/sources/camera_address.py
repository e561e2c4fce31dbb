"""What a user writes to name a camera, and what FFmpeg needs to open it.

Credentials are in `url` alone: names, errors and reprs never show them. This module knows nothing of reconnecting.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import av

OPEN_SECONDS, READ_SECONDS = 4.0, 1.5
"""How long FFmpeg may block before it looks up: in each step of opening, and in reading a packet."""

_RTSP = re.compile(
    r"(?P<scheme>rtsps?)://(?P<user>[^/?#]*@)?"  # user and password, to the last @
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:/?#\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#@]*)?(?P<query>[?#][^@]*)?"
)
_RTSP_OPTIONS = {
    "allowed_media_types": "video",  # sound is not wanted, and would hide that the picture stalls
    "analyzeduration": "200000",  # microseconds: a longer look at the stream makes its first frames late ...
    "fpsprobesize": "3",  # ... as would more frames to measure its rate by; `nobuffer` would lose them
}
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322}
_DEVICE_PATH = re.compile(r"/dev/(video[0-9]|v4l/)")


@dataclass(frozen=True)
class CameraAddress:
    """A camera, not connected yet.

    Attributes:
        name: for people; no user, password or query.
        url: as FFmpeg takes it; secret.
        format: FFmpeg's input device, None for network cameras.
        options: FFmpeg's options.
    """

    name: str
    url: str = field(repr=False)
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> av.container.InputContainer:
        """Connects, blocking. Raises `av.FFmpegError`, whose text may hold the secret url."""
        return self._open(self.url)

    def why(self) -> str | None:
        """Why the newest connection failed or ended, in a phrase, where the address itself knows; else None."""
        return None

    @property
    def endpoint(self) -> tuple[str, int, bool]:
        """(host, port, whether TLS) of a network camera; an IPv6 host without brackets."""
        parts = _RTSP.fullmatch(self.url)
        assert parts is not None, f"{self.name} is no network camera"
        return parts["host"].strip("[]"), int(parts["port"] or _DEFAULT_PORTS[parts["scheme"]]), "s:" in self.url[:6]

    def url_through(self, port: int) -> str:
        """The secret url of a network camera as seen through a port of this machine, without TLS."""
        parts = _RTSP.fullmatch(self.url)
        assert parts is not None, f"{self.name} is no network camera"
        return f"rtsp://{parts['user'] or ''}127.0.0.1:{port}{parts['path'] or ''}{parts['query'] or ''}"

    def _open(self, url: str) -> av.container.InputContainer:
        return av.open(
            url,
            format=self.format,
            options=dict(self.options),
            timeout=(OPEN_SECONDS, READ_SECONDS),
            metadata_errors="replace",
        )


def camera_address(text: str, *, transport: Literal["tcp", "udp"] = "tcp") -> CameraAddress | None:
    """The camera that a text names: rtsp://, rtsps://, webcam:, lavfi: or a video device; None if it names none.

    Raises:
        ValueError: if it begins like a camera, but is malformed; the sentence does not repeat it, as it may hold a
            password.
    """
    if transport not in ("tcp", "udp"):
        raise ValueError(f"transport must be 'tcp' or 'udp', got {transport!r}")
    if re.match("rtsps?://", text, re.IGNORECASE):
        return _rtsp(text, transport)
    if text.startswith("webcam:"):
        return _webcam(text.removeprefix("webcam:"))
    if text.startswith("lavfi:"):
        return _lavfi(text.removeprefix("lavfi:"))
    return _webcam(text) if _DEVICE_PATH.match(text) else None


def _rtsp(text: str, transport: str) -> CameraAddress:
    scheme, rest = text.split("://", 1)
    url = f"{scheme.lower()}://{rest}"
    if not text.isprintable() or " " in text:
        raise ValueError("the camera's address holds spaces or control characters; write them percent-encoded, as %20")
    parts = _RTSP.fullmatch(url)
    if parts is None or not 0 < int(parts["port"] or 554) < 1 << 16:
        raise ValueError(
            "the camera's address is not rtsp://[user:password@]host[:port]/path with a port from 1 to 65535; "
            "write @ / ? # in a password or path as %40 %2F %3F %23"
        )
    port = f":{parts['port']}" if parts["port"] else ""
    name = f"{scheme.lower()}://{parts['host']}{port}{parts['path'] or ''}"
    return CameraAddress(name, url.split("#")[0], None, {"rtsp_transport": transport, **_RTSP_OPTIONS})


def _webcam(device: str, platform: str = sys.platform) -> CameraAddress:
    """A camera of this machine, by its number, name or path."""
    if not device or not device.isprintable():
        raise ValueError(f"webcam: needs a number, a name or a device path, as in webcam:0, got {device!r}")
    is_number = device.isascii() and device.isdigit()
    if platform == "darwin":
        return CameraAddress(f"webcam:{device}", device, "avfoundation", {"framerate": "30"})
    if platform == "win32":
        if is_number:
            raise ValueError(f"on Windows a webcam has a name: give webcam:NAME, got webcam:{device}")
        return CameraAddress(f"webcam:{device}", f"video={device}", "dshow")
    if not is_number and not device.startswith("/"):
        raise ValueError(f"a webcam is a number or a device path, as in webcam:0 or /dev/video0, got {device!r}")
    path = f"/dev/video{int(device)}" if is_number else device
    return CameraAddress(path, path, "v4l2")


def _lavfi(graph: str) -> CameraAddress:
    """A synthetic camera, to try things out: a filter graph of FFmpeg (which may read files of this machine)."""
    if "realtime" not in graph or not graph.isprintable():
        raise ValueError(
            "a synthetic camera is a filter graph with 'realtime' in it, as in "
            f"lavfi:testsrc2=size=320x240:rate=10,realtime, got {graph!r}"
        )
    return CameraAddress(f"lavfi:{graph}", graph, "lavfi")
