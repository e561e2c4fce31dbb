"""Where frames come from: files, folders of pictures, cameras, and programs that push them.

`open_source` chooses. Sources know nothing of sampling, queues or models; a new one is one file with one subclass of
`Source` and one line here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from vstream.sources.base import Source
from vstream.sources.camera import CameraSource
from vstream.sources.camera_address import camera_address
from vstream.sources.decord import DecordSource
from vstream.sources.directory import DirectorySource
from vstream.sources.file import FileSource
from vstream.sources.push import PushSource

__all__ = ["CameraSource", "DecordSource", "DirectorySource", "FileSource", "PushSource", "Source", "open_source"]

_READERS = ("av", "decord")


def open_source(
    source: str | Path | Source,
    *,
    max_side: int,
    reader: Literal["av", "decord"] = "av",
    directory_fps: float = 1.0,
    transport: Literal["tcp", "udp"] = "tcp",
    trusted: bool = True,
) -> Source:
    """Opens what a user names: a video file, a folder of pictures, a camera, or a source that is open already.

    Args:
        source: a path; a camera (`rtsp://`, `rtsps://`, `webcam:0`, `/dev/video0`, or `lavfi:GRAPH`, a synthetic one to
            try things out); or a `Source`, which is given back as it is. A camera need not be there yet.
        max_side: longest side, in pixels, that frames are brought to; frames are never enlarged.
        reader: what reads files: "av" (PyAV), or "decord" (extra `decord`).
        directory_fps: pictures of a folder per second of stream time.
        transport: how an RTSP camera sends: "tcp" loses nothing, "udp" may.
        trusted: False for a file or folder of a stranger, which then opens nothing but itself, and by "av" alone. It
            says nothing of cameras: `vstream.app.serve.allowed` decides which may be connected to.

    Raises:
        ValueError: if the input is not of a supported kind or cannot be read.
        FileNotFoundError: if there is nothing of that name.
    """
    if isinstance(source, Source):
        return source
    if reader not in _READERS:
        raise ValueError(f"reader must be one of {', '.join(_READERS)}, got {reader!r}")
    if not trusted and reader != "av":
        raise ValueError(f"only reader='av' is safe with files that are not trusted, got {reader!r}")
    address = camera_address(str(source), transport=transport)
    if address is not None:
        return CameraSource(address, max_side=max_side)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(source))
    if scheme:
        raise ValueError(
            f"{scheme[1]}:// is not supported: give a file, a folder, rtsp://host/path, webcam:0 or /dev/video0"
        )
    path = Path(source)
    if path.is_dir():
        return DirectorySource(path, max_side=max_side, directory_fps=directory_fps, trusted=trusted)
    if reader == "decord":
        return DecordSource(path, max_side=max_side)
    return FileSource(path, max_side=max_side, trusted=trusted)
