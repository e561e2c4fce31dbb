"""One frame of a recorded file, by its time on the stream's clock. Knows nothing of streams, memory or HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vstream.picture import encode_jpeg
from vstream.sources.base import fitted_size
from vstream.sources.file import MAX_PIXELS, open_container
from vstream.sources.pyav import video_streams

EARLY_SECONDS = 0.001
"""A frame this much later than asked for is the one meant: times are written with few digits."""
QUALITY = 85
BACK_SECONDS = (0.0, 2.0, 20.0)
"""Where it is looked for from: in some containers FFmpeg lands after the time that is sought."""
MAX_DECODED = 2000
"""Frames between a keyframe and the one wanted that are decoded at most."""


def frame_at(path: Path, seconds: float, *, max_side: int) -> tuple[bytes, float] | None:
    """The frame that is shown at a time, as JPEG, and its own time, told as a `FileSource` tells it.

    It is found from the keyframe before it, by its own pts. The last frame stands for all later times.

    Args:
        path: a file that may be read.
        seconds: on the stream's clock.
        max_side: longest side of the picture, in pixels.

    Returns:
        None where there is no such frame to be had: the file cannot be sought in, or is damaged there.

    Raises:
        ValueError, FileNotFoundError: if the file is no video, gone, or it would take too long.
    """
    frames = (_frame(path, seconds, back_seconds, max_side) for back_seconds in BACK_SECONDS)
    return next((frame for frame in frames if frame is not None), None)


def _frame(path: Path, seconds: float, back_seconds: float, max_side: int) -> tuple[bytes, float] | None:
    """The frame, looked for from the keyframe before so many seconds earlier; None if it is not found from there."""
    with open_container(path, trusted=False) as container:
        stream = video_streams(container)[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the file is a stranger's
        start = stream.start_time or 0
        wanted = start + round((seconds + EARLY_SECONDS) / stream.time_base)
        begin = start + round((seconds - back_seconds) / stream.time_base)
        try:
            if begin > start:
                container.seek(begin, stream=stream, backward=True)
            frame = _last_until(container, stream, wanted)
        except av.FFmpegError:
            return None
        if frame is None:
            return None
        return encode_jpeg(_upright(frame, max_side), QUALITY), float((frame.pts - start) * stream.time_base)


def _last_until(container: Any, stream: Any, wanted_pts: int) -> Any:
    """The last intact frame up to a pts, decoding on from where the container stands; None where there is none."""
    found = None
    for number, frame in enumerate(container.decode(stream)):
        if number == MAX_DECODED:
            raise ValueError(f"more than {MAX_DECODED} frames lie between a keyframe and the one wanted")
        if frame.pts is None:
            return None
        if frame.pts > wanted_pts:
            break
        if not frame.is_corrupt:
            found = frame
    return found


def _upright(frame: Any, max_side: int) -> Any:
    """A frame as [height, width, 3] uint8, no side longer than `max_side`."""
    width, height = fitted_size(frame.width, frame.height, max_side)
    rgb = VideoReformatter().reformat(frame, width=width, height=height, format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), round(frame.rotation / 90)))
