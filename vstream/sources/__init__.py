"""Where frames come from: files, folders of pictures, and programs that push them.

`open_source` chooses. Sources know nothing of sampling, queues or models; a new one is one file with one subclass of
`Source` and one line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vstream.sources.base import Source
from vstream.sources.decord import DecordSource
from vstream.sources.directory import DirectorySource
from vstream.sources.file import FileSource
from vstream.sources.push import PushSource

__all__ = ["DecordSource", "DirectorySource", "FileSource", "PushSource", "Source", "open_source"]

_FILE_READERS: dict[str, Callable[..., Source]] = {"av": FileSource, "decord": DecordSource}


def open_source(
    source: str | Path | Source,
    *,
    max_side: int,
    reader: Literal["av", "decord"] = "av",
    directory_fps: float = 1.0,
) -> Source:
    """Opens what a user names: a video file, a folder of pictures, or a source that is open already.

    Args:
        source: a path, or a `Source`, which is given back as it is.
        max_side: longest side, in pixels, that frames are brought to; frames are never enlarged.
        reader: what reads files: "av" (PyAV), or "decord" (extra `decord`).
        directory_fps: pictures of a folder per second of stream time.

    Raises:
        ValueError: if the input is not of a supported kind or cannot be read.
        FileNotFoundError: if there is nothing of that name.
    """
    if isinstance(source, Source):
        return source
    if reader not in _FILE_READERS:
        raise ValueError(f"reader must be one of {', '.join(_FILE_READERS)}, got {reader!r}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(source))
    if scheme:
        raise ValueError(f"{scheme[1]}:// is not supported yet: give a file or a folder, cameras will follow")
    path = Path(source)
    if path.is_dir():
        return DirectorySource(path, max_side=max_side, directory_fps=directory_fps)
    return _FILE_READERS[reader](path, max_side=max_side)
