"""A folder of pictures as a stream: one picture is one frame.

This module knows nothing of video containers or sampling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vstream.sources.base import Source, fit_image

MAX_PIXELS = 1 << 26
"""A picture of an untrusted folder may have so many pixels, 8192 x 8192; a larger one is left out."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What such a picture may be, whatever its name: PIL's reader of PostScript would start another program."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which 'frame2' stands before 'frame10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(part), "") if part[0].isascii() and part[0].isdigit() else (1, 0, part) for part in parts]


class DirectorySource(Source):
    """The pictures directly in a folder (jpg, jpeg, png, webp, bmp), in natural order of their names.

    The picture at place `index` has the time `index / directory_fps`. Pictures may differ in size; they are turned
    upright by their EXIF orientation. One that cannot be read is left out (its time stays empty), counted in `errors`
    and named in `warning`. Of a folder that is not `trusted`, so are links that lead out of it, huge pictures
    (`MAX_PIXELS`), and other kinds of files under a picture's name.

    Raises:
        ValueError: if the folder holds no picture, or none that can be read, or `directory_fps` is not above 0.
    """

    def __init__(self, path: str | Path, *, max_side: int, directory_fps: float = 1.0, trusted: bool = True) -> None:
        path = Path(path)
        super().__init__(path.name or str(path), max_side=max_side)
        if not 0 < directory_fps < float("inf"):
            raise ValueError(f"directory_fps must be a finite number above 0, got {directory_fps}")
        self._fps = directory_fps
        self._trusted = trusted
        self._folder = path.resolve()
        self._unreadable: str | None = None
        self._paths = _picture_paths(path)
        self.duration_seconds = len(self._paths) / directory_fps
        self._decoder = self._decode()
        self._first = next(self._decoder, None)
        if self._first is None:
            raise ValueError(f"none of the {len(self._paths)} pictures in the folder {path} can be read")

    def _pictures(self) -> Iterator[tuple[float, Image.Image]]:
        assert self._first is not None, "the constructor has read one picture"
        first, self._first = self._first, None
        return chain([first], self._decoder)

    def _decode(self) -> Iterator[tuple[float, Image.Image]]:
        for index, path in enumerate(self._paths):
            picture = self._load(path)
            if picture is not None:
                yield index / self._fps, picture

    def _load(self, path: Path) -> Image.Image | None:
        try:
            with self._opened(path) as picture:
                picture.draft("RGB", (self.max_side, self.max_side))  # a JPEG decodes straight to about this size
                picture.load()
                return picture
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            self.errors += 1
            self._unreadable = self._unreadable or path.name
            return None

    def _opened(self, path: Path) -> Image.Image:
        """A picture before it is decoded. Raises `ValueError` for one that an untrusted folder may not hold."""
        if self._trusted:
            return Image.open(path)
        path = path.resolve()
        if not path.is_relative_to(self._folder):
            raise ValueError(f"{path.name} leads out of its folder")
        picture = Image.open(path, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            picture.close()
            raise ValueError(f"{path.name} has {picture.width} x {picture.height} pixels")
        return picture

    def _image(self, picture: Image.Image, max_side: int) -> npt.NDArray[np.uint8]:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I"):  # grey of 16 bits, which PIL would cut off at 255
            upright = Image.fromarray((np.array(upright).clip(0, 65535) >> 8).astype(np.uint8))
        return fit_image(np.array(upright.convert("RGB")), max_side)

    @property
    def warning(self) -> str | None:
        """One sentence that names the first unreadable picture, None while all could be read."""
        if self._unreadable is None:
            return None
        others = f" and {self.errors - 1} more" if self.errors > 1 else ""
        return f"{self.name}: {self._unreadable}{others} left out, as unreadable."


def _picture_paths(folder: Path) -> list[Path]:
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not pictures:
        raise ValueError(f"the folder {folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return sorted(pictures, key=lambda path: (natural_key(path.name), path.name))
