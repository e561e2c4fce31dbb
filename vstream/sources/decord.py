"""Video files through decord, an optional second reader (extra `decord`).

Limits of decord 0.6, whose FFmpeg is of 2021: no AV1; only mp4/mov, mkv/webm and avi (of MPEG-TS with B-frames it gives
other frames than asked for, so that is refused here); damaged and truncated files mostly fail rather than come as far
as they go; times are float32, 2 ms at 8 hours. This module knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vstream.sources.base import Source, fit_image
from vstream.sources.file import check_file, head_fingerprint, open_container

CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
"""What decord reads right, by FFmpeg's names."""


class DecordSource(Source):
    """The first video stream of a file, read by decord; a picture is an index until it is wanted.

    Times are decord's own timestamps, never index / fps.

    Raises:
        ValueError: if decord is not installed, or cannot read the file.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, *, max_side: int) -> None:
        path = Path(path)
        super().__init__(path.name, max_side=max_side)
        check_file(path)
        self.fingerprint = head_fingerprint(path)
        _check_container(path)
        self._error, self._reader = _open_reader(path)
        self._image(0, max_side)  # what cannot be decoded at all is refused here
        starts_ends = np.asarray(self._reader.get_frame_timestamp(range(len(self._reader))))  # [T, 2] seconds
        self._seconds = starts_ends[:, 0] - starts_ends[0, 0]
        self.duration_seconds = float(starts_ends[-1, 1] - starts_ends[0, 0])

    def _pictures(self) -> Iterator[tuple[float, int]]:
        for index, seconds in enumerate(self._seconds.tolist()):
            yield seconds, index

    def _image(self, picture: int, max_side: int) -> npt.NDArray[np.uint8]:
        try:
            image: npt.NDArray[np.uint8] = self._reader[picture].asnumpy()
        except (self._error, RuntimeError) as error:
            raise ValueError(f"decord cannot decode frame {picture} of {self.name}; use reader='av'") from error
        return fit_image(image, max_side)

    def close(self) -> None:
        """Lets go of decord's reader."""
        super().close()
        self._reader = None


def _check_container(path: Path) -> None:
    with open_container(path) as container:
        if container.format.name not in CONTAINERS:
            raise ValueError(f"{path} cannot be read by decord, which knows mp4, mkv and avi; use reader='av'")


def _open_reader(path: Path) -> tuple[type[Exception], Any]:
    """(decord's own exception, a reader of `path`)."""
    try:
        import decord
    except ImportError as error:
        raise ValueError("reader='decord' needs decord: pip install 'vstream[decord]'") from error
    try:
        return decord.DECORDError, decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read by decord; use reader='av'") from error
