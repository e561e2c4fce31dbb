"""Evidence pictures: small JPEGs of frames. Knows nothing of clips or memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vstream.types import Frame

MAX_SIDE = 320
QUALITY = 80


def jpeg_of(frame: Frame) -> bytes:
    """A frame as JPEG, its longest side at most `MAX_SIDE` pixels; b"" for frames that are features."""
    if frame.image.dtype != np.uint8:
        return b""
    from PIL import Image

    image = Image.fromarray(frame.image)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
