"""Video files through PyAV (FFmpeg): every frame at its own pts, upright, whatever the container.

This module knows nothing of sampling: which frames become RGB is the caller's `wanted`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from vstream.sources.pyav import PyavSource, video_streams

MAX_REORDER_SECONDS = 1.0
"""A pts further back than this is no B-frame out of place: the file's clock began anew (joined recordings)."""

HEAD_BYTES = 4096

CONTAINERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "gif", "mjpeg", "wtv", "mxf", "nut",
    "ivf", "h264", "hevc", "m4v", "obu", "vc1", "dv",
)  # fmt: skip
"""What an untrusted file may be, by FFmpeg's names: containers that hold their pictures themselves, no playlists."""

UNTRUSTED = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS), "enable_drefs": "0"}
"""FFmpeg's options for such a file: it opens nothing but that one file, whatever the file names."""

MAX_PIXELS = 1 << 26
"""An untrusted picture may have so many pixels, 8192 x 8192; larger ones are left out before they are decoded."""


class StreamClock:
    """Turns pts into seconds that start at 0.

    * A frame without pts comes one average frame interval after the frame before it.
    * Where the clock jumps back by more than `MAX_REORDER_SECONDS`, as in joined recordings, it goes on one interval
      after the latest frame.

    Attributes:
        jumps: how often the file's clock jumped back.
    """

    def __init__(self, *, start_pts: int | None, time_base: Fraction, interval_seconds: float) -> None:
        self._zero_pts = start_pts
        self._time_base = time_base
        self._interval_seconds = interval_seconds
        self._offset_seconds = 0.0
        self._previous_seconds: float | None = None
        self._latest_seconds = 0.0
        self.jumps = 0

    def seconds(self, pts: int | None) -> float:
        """Stream time of the next decoder output."""
        seconds = self._following() if pts is None else self._from_pts(pts)
        self._previous_seconds = seconds
        self._latest_seconds = max(self._latest_seconds, seconds)
        return seconds

    def _following(self) -> float:
        return 0.0 if self._previous_seconds is None else self._previous_seconds + self._interval_seconds

    def _from_pts(self, pts: int) -> float:
        if self._zero_pts is None:
            self._zero_pts = pts
        since_zero = float((pts - self._zero_pts) * self._time_base)
        if since_zero + self._offset_seconds < self._latest_seconds - MAX_REORDER_SECONDS:
            self._offset_seconds = self._latest_seconds + self._interval_seconds - since_zero
            self.jumps += 1
        return since_zero + self._offset_seconds


class FileSource(PyavSource):
    """The first video stream of a file.

    Truncated and damaged files give every frame that can be decoded and then end. A file that is not `trusted` may be
    one of `CONTAINERS` alone: playlists, which name other files and addresses, are refused.

    Raises:
        ValueError: if the file is a folder, empty, no video, or no frame of it can be decoded.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, *, max_side: int, trusted: bool = True) -> None:
        path = Path(path)
        super().__init__(path.name, max_side=max_side)
        check_file(path)
        self.fingerprint = head_fingerprint(path)
        self._container = open_container(path, trusted=trusted)
        try:
            self._stream = video_streams(self._container)[0]
            self._stream.thread_type = "AUTO"
            if not trusted:
                _bound_pixels(path, self._stream)
            self._clock = clock_of(self._stream)
            self.duration_seconds = _duration_seconds(self._container, self._stream)
            self._decoder = self._decode()
            self._first = next(self._decoder, None)
            if self._first is None:
                raise ValueError(f"{path} is damaged: not one frame of its video can be decoded")
        except ValueError:
            self._container.close()
            raise

    def _pictures(self) -> Iterator[tuple[float, av.VideoFrame]]:
        assert self._first is not None, "the constructor has read one frame"
        first, self._first = self._first, None
        return chain([first], self._decoder)

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for packet in self._packets():
            for frame in self._decode_packet(self._stream, packet):
                seconds = self._clock.seconds(frame.pts)
                if self._is_intact(frame):
                    yield seconds, frame

    def _packets(self) -> Iterator[Any]:
        """The stream's packets, then None to empty the decoder; a file that breaks off in the middle just ends."""
        packets = self._container.demux(self._stream)
        try:
            while not self._interrupted.is_set() and (packet := next(packets, None)) is not None:
                if packet.size:  # PyAV adds empty packets at the end
                    yield packet
        except av.FFmpegError:
            self.errors += 1
        yield None

    @property
    def jumps(self) -> int:
        """How often the file's own clock began anew; its times are then not those of the container."""
        return self._clock.jumps

    @property
    def warning(self) -> str | None:
        """One sentence about what could not be read so far, None while all is well."""
        if self.errors or not self._clock.jumps:
            return super().warning
        return f"{self.name}: the file's clock began anew ({self._clock.jumps} x), the stream's clock goes on."

    def close(self) -> None:
        """Closes the file; to be called when no thread reads it any more."""
        super().close()
        self._decoder.close()  # type: ignore[attr-defined]
        self._container.close()


def head_fingerprint(path: Path) -> str:
    """Of a file's first bytes: a recording that still grows keeps it."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()[:16]


def check_file(path: Path) -> None:
    """Refuses what cannot be a video file, in one sentence that names it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")


def open_container(path: Path, *, trusted: bool = True) -> av.container.InputContainer:
    """An open container with at least one video stream that is no cover art, or `ValueError`."""
    try:
        # file: no name is taken for a URL or a pattern
        container = _open_seekable_or_not(f"file:{path}", {} if trusted else UNTRUSTED)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error.strerror}") from error
    if container.format.name == "tty" or not video_streams(container):
        held = {"cover art" if stream.type == "video" else stream.type for stream in container.streams}
        kinds = "text" if container.format.name == "tty" else " and ".join(sorted(held)) or "an empty container"
        container.close()
        raise ValueError(f"{path} holds no video, only {kinds}")
    return container


def _open_seekable_or_not(url: str, options: dict[str, str]) -> av.container.InputContainer:
    """A fragmented mp4 that breaks off in a fragment's header opens only where FFmpeg cannot seek ahead to it."""
    try:
        return av.open(url, metadata_errors="replace", options=options)
    except av.FFmpegError:
        return av.open(url, metadata_errors="replace", options={**options, "seekable": "0"})


def _bound_pixels(path: Path, stream: Any) -> None:
    """Refuses pictures of more than `MAX_PIXELS`, now and where the stream changes its size."""
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise ValueError(f"{path} has pictures of more than {MAX_PIXELS >> 20} million pixels; make them smaller first")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}


def clock_of(stream: Any) -> StreamClock:
    """The clock of a video stream that was just opened."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return StreamClock(start_pts=stream.start_time, time_base=stream.time_base, interval_seconds=float(1 / rate))


def _duration_seconds(container: av.container.InputContainer, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base
