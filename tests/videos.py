"""Real test videos, made with PyAV's encoders, with the time of every frame drawn in its picture.

A frame's time in whole milliseconds is drawn as a grid of black and white blocks with a checksum, which survives lossy
compression and shrinking. `read_clock` reads it back, so that a test compares a frame's pts with what the frame shows,
and a turned, mirrored or garbled picture is noticed. This module knows nothing of vstream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

COLUMNS, ROWS, MS_BITS = 8, 4, 24
QUIET_OPTIONS = {
    "libx264": {"preset": "veryfast", "bf": "3", "g": "20", "b_strategy": "0", "crf": "20"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=20:bframes=3"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "20"},
    "libsvtav1": {"preset": "8", "crf": "20", "g": "20", "svtav1-params": "lp=1"},
}


def _bits(ms: int) -> npt.NDArray[np.bool_]:
    """32 bits: 24 of `ms`, then an 8-bit checksum, which no turn or mirror of the grid satisfies by accident."""
    checksum = (ms * 0x9E3779B1 >> 16 ^ 0x5A) & 0xFF
    word = ms << 8 | checksum
    return np.array([word >> shift & 1 for shift in reversed(range(COLUMNS * ROWS))], dtype=np.bool_)


def draw_clock(seconds: float, size: tuple[int, int] = (160, 120)) -> Image:
    """A picture [height, width, 3] of `size` (width, height) that shows `seconds`, to the millisecond."""
    width, height = size
    grid = _bits(round(seconds * 1000)).reshape(ROWS, COLUMNS)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    grey = np.where(grid[rows][:, columns], 225, 30).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_clock(image: Image) -> float:
    """The seconds that `draw_clock` drew; `ValueError` if the picture shows no valid clock."""
    height, width = image.shape[:2]
    ys = [round((row + 0.5) * height / ROWS) for row in range(ROWS)]
    xs = [round((column + 0.5) * width / COLUMNS) for column in range(COLUMNS)]
    grey = image.mean(axis=2)
    bits = np.array([grey[y - 2 : y + 2, x - 2 : x + 2].mean() > 127 for y in ys for x in xs])
    ms = int("".join("1" if bit else "0" for bit in bits[:MS_BITS]), 2)
    if not np.array_equal(bits, _bits(ms)):
        raise ValueError(f"the picture [{height}, {width}] shows no valid clock")
    return ms / 1000


def constant_times(count: int, fps: float = 10.0) -> list[float]:
    """`count` frame times at a constant rate, rounded to milliseconds."""
    return [round(k * 1000 / fps) / 1000 for k in range(count)]


def variable_times(count: int, seed: int = 0) -> list[float]:
    """`count` frame times from 0 with steps between 20 and 400 ms."""
    steps = np.random.default_rng(seed).integers(20, 400, count - 1)
    return [0.0, *(np.cumsum(steps) / 1000).tolist()]


def write_video(
    path: Path | str,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (160, 120),
    draw: Callable[[float], Image] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    with_audio: bool = False,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Writes one frame at each of `times` (seconds, milliseconds exact) and returns `path`.

    Args:
        path: the suffix chooses the container (.mp4, .mkv, .webm, .ts, .avi, .h264).
        times: presentation times, in rising order.
        codec: an encoder of the PyAV wheel, see `QUIET_OPTIONS` for the tested ones.
        size: (width, height) as stored, before `rotation`.
        draw: seconds -> [height, width, 3] uint8 upright picture; the clock by default.
        options: added to the codec's defaults.
        container_options: for the muxer, e.g. {"movflags": "frag_keyframe+empty_moov"}.
        rotation: degrees clockwise that a player must turn the stored picture by (0, 90, 180, 270; mp4 only).
        with_audio: adds a sine tone as a second stream, interleaved.
        pix_fmt: pixel format of the encoder.
    """
    path = Path(path)
    upright = size if rotation % 180 == 0 else size[::-1]
    draw = draw or (lambda seconds: draw_clock(seconds, upright))
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=QUIET_OPTIONS.get(codec, {}) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        tone = container.add_stream("aac", rate=16000, layout="mono") if with_audio else None
        for seconds in times:
            stored = np.ascontiguousarray(np.rot90(draw(seconds), rotation // 90))  # anticlockwise: players undo it
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            _mux_tone(container, tone, times[-1] if times else 1.0)
    if rotation:
        set_rotation(path, rotation)
    return path


def _mux_tone(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    """A 440 Hz tone."""
    for start in range(0, int(seconds * 16000) + 1024, 1024):
        wave = (np.sin(np.arange(start, start + 1024) * 440 * 2 * np.pi / 16000) * 8000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio(path: Path | str, *, seconds: float = 1.0, cover: bool = False) -> Path:
    """An audio file (.m4a or .mp3); `cover` adds a picture the way music files carry it (.mp3 only)."""
    with av.open(str(path), "w") as container:
        codec = "libmp3lame" if str(path).endswith(".mp3") else "aac"
        tone = container.add_stream(codec, rate=16000, layout="mono")
        if cover:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = 64, 64, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(draw_clock(0, (64, 64)), format="rgb24").reformat(format="yuvj420p")
            container.mux(art.encode(picture) + art.encode(None))
        _mux_tone(container, tone, seconds)
    return Path(path)


def set_rotation(path: Path, degrees: int) -> None:
    """Writes the display matrix for `degrees` clockwise into the first track header (tkhd) of an mp4."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    assert data[box + 4] == 0, f"{path.name} has a version {data[box + 4]} track header, only 0 is known here"
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data[box + 44 : box + 80] = matrix
    path.write_bytes(bytes(data))


def cut_bytes(source: Path, target: Path, *, start: float = 0.0, end: float = 1.0, align: int = 1) -> Path:
    """Copies the bytes from fraction `start` to `end` of a file, both rounded down to `align` (188 for .ts)."""
    data = source.read_bytes()
    first, last = (int(len(data) * fraction) // align * align for fraction in (start, end))
    target.write_bytes(data[first:last])
    return target


def write_images(folder: Path | str, images: Iterable[tuple[str, Image]], *, exif_orientation: int = 1) -> Path:
    """Writes (file name, [height, width, 3]) pictures into a folder, made if missing; returns the folder."""
    from PIL import Image as PillowImage

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images:
        exif = PillowImage.Exif()
        exif[0x0112] = exif_orientation
        PillowImage.fromarray(image).save(folder / name, exif=exif)
    return folder
