"""Uploaded videos: files of one folder, within limits of size, length and kind, and of all together.

What an upload is, is found out by opening it as a stranger's file, never by its name. This module knows nothing of
HTTP, and does not know who uses a file: it asks `in_use` before it deletes one to make room.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
import unicodedata
from collections.abc import AsyncIterable, Callable, Collection
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

import av

from vstream.sources.file import FileSource, clock_of, open_container
from vstream.sources.pyav import video_streams

MIB, HOUR_SECONDS = 1 << 20, 3600.0
WRITE_BYTES = MIB
STALE_SECONDS = 3600.0
"""A part this old was left by a server that was killed."""

MAX_STEM = 60
PART = ".part"
SCHEME = "upload:"
"""`upload:NAME` is how an upload is named as a source."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "mov": (".mp4", ".mov", ".m4v", ".3gp"),
    "matroska": (".mkv", ".webm"),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "asf": (".wmv", ".asf"),
    "ogg": (".ogv", ".ogg"),
    "mjpeg": (".mjpeg", ".mjpg"),
}
"""What files of a container are called, first the usual; of any other container, as the container."""


class UploadRefused(ValueError):
    """An upload that is not taken; its text is one sentence. Nothing of it is left."""


class NoRoom(UploadRefused):
    """There is no room for an upload on the disk, or among the others."""


class UploadTooLarge(UploadRefused):
    """An upload of too many bytes."""


class Uploads:
    """A folder of uploaded videos.

    Attributes:
        folder: resolved; made if missing, for this user alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_mib: float = 2048,
        max_hours: float = 12,
        budget_mib: float = 16384,
        in_use: Callable[[], Collection[str | Path]] = tuple,
    ) -> None:
        """Makes the folder, and removes what a killed server left half received.

        Args:
            folder: where uploads are kept; nothing else should be in it.
            max_mib: of one upload.
            max_hours: the longest video.
            budget_mib: of all together; when it is reached the oldest that nobody uses are deleted.
            in_use: what must not be deleted now, as files or `upload:NAME`; called by any thread.

        Raises:
            ValueError: if a limit is not above 0, or the budget is smaller than one upload.
        """
        for name, value in [("--max-upload-mib", max_mib), ("--max-upload-hours", max_hours)]:
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0, got {value:g}")
        if budget_mib < max_mib:
            raise ValueError(f"uploads need room for at least one of {max_mib:g} MiB, got {budget_mib:g} MiB in all")
        self._max_bytes, self._max_seconds = int(max_mib * MIB), max_hours * HOUR_SECONDS
        self._budget_bytes = int(budget_mib * MIB)
        self._in_use = in_use
        self._room = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._remove_stale()

    async def save(self, name: str, chunks: AsyncIterable[bytes]) -> Path:
        """Receives a video and returns its file, in `folder`; `upload:` and the file's name is what opens it.

        If it is refused, or the sender goes, or the task is cancelled, nothing is left of it.

        Args:
            name: as the sender calls it; its last part is kept, as far as it is harmless.
            chunks: its bytes, in pieces of any size.

        Raises:
            UploadTooLarge: if it has too many bytes.
            UploadRefused: if it is no video, too long, or there is no room.
        """
        handle, text = tempfile.mkstemp(suffix=PART, dir=self.folder)
        part = Path(text)
        try:
            with open(handle, "wb") as file:
                await self._receive(file, chunks)
            suffix = await asyncio.to_thread(self._checked_suffix, part, name)
            with self._room:
                return part.rename(free_path(self.folder / file_name(name, suffix)))
        finally:
            with self._room:
                part.unlink(missing_ok=True)

    async def _receive(self, file: BinaryIO, chunks: AsyncIterable[bytes]) -> None:
        waiting, received = bytearray(), 0
        async for chunk in chunks:
            received += len(chunk)
            if received > self._max_bytes:
                raise UploadTooLarge(
                    f"an upload may have {self._max_bytes / MIB:g} MiB, and this has more; cut it, or start the server "
                    "with a larger --max-upload-mib"
                )
            waiting += chunk
            if len(waiting) >= WRITE_BYTES:
                await asyncio.to_thread(self._write, file, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(self._write, file, bytes(waiting))

    def _write(self, file: BinaryIO, data: bytes) -> None:
        with self._room:
            self._make_room(len(data))
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                raise NoRoom(f"the upload could not be written: {(error.strerror or '').lower()}") from None

    def _make_room(self, num_bytes: int) -> None:
        """Deletes the oldest uploads that nobody uses, until so many more bytes are within the budget."""
        sizes = {path: path.stat().st_size for path in self.folder.iterdir()}
        excess = sum(sizes.values()) + num_bytes - self._budget_bytes
        if excess <= 0:
            return
        used = {upload_path(self.folder, str(one)) for one in self._in_use()}
        unused = sorted((path for path in sizes if path.suffix != PART and path not in used), key=_mtime)
        if sum(sizes[path] for path in unused) < excess:
            raise NoRoom(
                f"there is no room: streams use all {self._budget_bytes / MIB:g} MiB that uploads may have; close one"
            )
        while excess > 0:
            oldest = unused.pop(0)
            oldest.unlink()
            excess -= sizes[oldest]

    def _checked_suffix(self, part: Path, name: str) -> str:
        """The suffix that tells what the file is. Raises `UploadRefused` if it is no video, or too long."""
        shown = repr(name[:100])
        try:
            with FileSource(part, max_side=1, trusted=False):
                pass
            seconds, container = _measured(part, self._max_seconds)
        except ValueError as error:
            raise UploadRefused(str(error).replace(str(part), shown)) from None
        if seconds > self._max_seconds:
            raise UploadRefused(
                f"{shown} is longer than {self._max_seconds / HOUR_SECONDS:g} hours; cut it, or start the server with "
                "a larger --max-upload-hours"
            )
        suffixes = SUFFIXES.get(container, (f".{container}",))
        declared = Path(name).suffix.lower()
        return declared if declared in suffixes else suffixes[0]

    def _remove_stale(self) -> None:
        for part in self.folder.glob(f"*{PART}"):
            if time.time() - _mtime(part) > STALE_SECONDS:
                part.unlink()


def upload_path(folder: Path, text: str) -> Path:
    """The file that `upload:NAME` names, of that folder alone; another text is a path."""
    return folder / Path(text.removeprefix(SCHEME)).name if text.startswith(SCHEME) else Path(text).resolve()


def free_path(path: Path) -> Path:
    """This path, or where there is such a file the first of NAME-2, NAME-3 ... that is free."""
    paths = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(free for free in chain([path], paths) if not free.exists())


def file_name(name: str, suffix: str) -> str:
    """A declared name as that of a file: letters, digits and _ . - of its last part, with this suffix."""
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    stem = last.rpartition(".")[0] or last
    return (re.sub(r"[^\w.-]+", "_", stem).strip("._-")[:MAX_STEM] or "video") + suffix


def _measured(path: Path, enough_seconds: float) -> tuple[float, str]:
    """(seconds up to the last picture, FFmpeg's first name of the container); a header's own length may be a lie.

    It stops counting where there are more than `enough_seconds`.
    """
    with open_container(path, trusted=False) as container:
        stream = video_streams(container)[0]
        clock, seconds = clock_of(stream), 0.0
        try:
            for packet in container.demux(stream):
                if packet.size:
                    seconds = max(seconds, clock.seconds(packet.pts))
                if seconds > enough_seconds:
                    break
        except av.FFmpegError:  # broken off in the middle: it is watched up to there
            return seconds, container.format.name.split(",")[0]
        return seconds, container.format.name.split(",")[0]


def _mtime(path: Path) -> float:
    return path.stat().st_mtime
