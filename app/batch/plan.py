"""Which videos are to be watched, with their questions in the order of time. It knows nothing of models.

A name of a video comes from a data set, so it may lead nowhere but into the folder of videos.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from vstream.app.batch.rows import BadRow, Row

MARK_BYTES = 1 << 16


@dataclass(frozen=True)
class Video:
    """A video with all that is asked about it.

    Attributes:
        name: as in the rows.
        path: where it is.
        rows: its questions, in the order in which they are asked.
        fps: pictures per second, where it is a folder of pictures.
        mark: what tells that it is still the same video, see `mark_of`.
    """

    name: str
    path: Path
    rows: tuple[Row, ...]
    fps: float = 1.0
    mark: str = ""


def plan(rows: Sequence[Row], folder: Path, links: bool = False) -> tuple[list[Video], list[BadRow]]:
    """The videos in the order in which the rows first name them, and the rows whose video cannot be watched."""
    by_name: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        by_name.setdefault((row.video, row.fps), []).append(row)
    videos, bad = list[Video](), list[BadRow]()
    for (name, fps), about in by_name.items():
        try:
            path = find_video(folder, name, links)
            videos.append(Video(name, path, tuple(sorted(about, key=_asked_at)), fps, mark_of(path)))
        except (ValueError, OSError) as error:
            bad += [BadRow(row.number, row.id, f"row {row.number}: {error}") for row in about]
    return videos, bad


def find_video(folder: Path, name: str, links: bool = False) -> Path:
    """The path of a video by its name below a folder.

    Raises:
        ValueError: if it leads out of the folder, goes through a symbolic link without `links`, or is not there.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name or not parts:
        raise ValueError(f"video must be a path below {folder} without '..', got {name!r}")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink() and not links:
            raise ValueError(f"video {name!r} goes through a symbolic link; put the file itself into {folder}")
    if not path.exists():
        raise ValueError(f"there is no video {name!r} in {folder}")
    return path.absolute()


def mark_of(path: Path) -> str:
    """Tells whether a video is the same as before without reading all of it: its size, its beginning and its end.

    Of a folder of pictures the names and sizes.
    """
    if path.is_dir():
        names = sorted((one.name, one.stat().st_size) for one in path.iterdir())
        return xxh3_64_hexdigest(repr(names).encode())
    with path.open("rb") as video:
        size = video.seek(0, os.SEEK_END)
        video.seek(0)
        first = video.read(MARK_BYTES)
        video.seek(max(0, size - MARK_BYTES))
        return f"{size}-{xxh3_64_hexdigest(first + video.read(MARK_BYTES))}"


def check_folder(folder: Path) -> None:
    """Raises `ValueError` if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"--videos must be a folder that is there, got {folder}")


def _asked_at(row: Row) -> float:
    return math.inf if row.at == "end" else row.at
