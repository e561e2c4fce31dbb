"""Pictures from outside, decoded with care: of few kinds and bounded size, and one sentence for what will not do.

This module knows nothing of streams or HTTP.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

KINDS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 8 << 20
MAX_PIXELS = 32_000_000
MAX_SIDE = 16_384
_NO_PICTURE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for bytes that are none, or are damaged."""


def decode_picture(data: bytes, *, max_side: int) -> npt.NDArray[np.uint8]:
    """A picture as [height, width, 3] RGB, upright, shrunk to sides of at most about `max_side`.

    Raises:
        ValueError: in one sentence, if it is too large, of another kind, or damaged. Its size is looked at first: what
            would be large is never decoded.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"a picture may have {MAX_BYTES} bytes, this one has {len(data)}")
    if not data:
        raise ValueError("there is no picture: 0 bytes came")
    try:
        image = _opened(data)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture has too many pixels; {MAX_PIXELS} are allowed") from error
    except _NO_PICTURE as error:
        raise ValueError(f"these {len(data)} bytes are no JPEG, PNG or WebP picture") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"the picture has {width}x{height}, which is too many pixels; {MAX_PIXELS} are allowed, {MAX_SIDE} a side"
        )
    try:
        return _decoded(image, max_side)
    except _NO_PICTURE as error:
        raise ValueError(f"the picture is damaged: {error}") from error


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=KINDS)


def _decoded(image: Image.Image, max_side: int) -> npt.NDArray[np.uint8]:
    image.draft("RGB", (max_side, max_side))  # a JPEG is decoded at about the size that is wanted
    upright: Any = ImageOps.exif_transpose(image)
    upright = upright.convert("RGB")
    upright.thumbnail((max_side, max_side))
    return np.array(upright)
