"""Evidence pictures: small JPEGs of frames. Knows nothing of clips or memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

    from vstream.types import Frame

MAX_SIDE = 320
MAX_BYTES = 32 * 1024
QUALITIES = (80, 60, 40, 20, 5)


def jpeg_of(frame: Frame) -> bytes:
    """A frame as JPEG, its longest side at most `MAX_SIDE` pixels and at most `MAX_BYTES` long.

    b"" for frames that are features.
    """
    if frame.image.dtype != np.uint8:
        return b""
    from PIL import Image

    image = Image.fromarray(frame.image)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = (_encoded(image, quality) for quality in QUALITIES)
    return next(data for data in encoded if len(data) <= MAX_BYTES)


def encode_jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A picture [height, width, 3] as JPEG, at its own size; quality from 1 to 95."""
    from PIL import Image

    return _encoded(Image.fromarray(image), quality)


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
