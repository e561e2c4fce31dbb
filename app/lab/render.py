"""Pictures of a synthetic world, one at a time: what a camera would see of it. It knows no questions."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vstream.app.lab.world import SHAPES, Shown, World
from vstream.sources.base import Source

Picture = npt.NDArray[np.uint8]
Canvas = npt.NDArray[Any]  # float32

RGB = {
    "red": (214, 38, 40), "orange": (250, 140, 20), "yellow": (245, 225, 50), "green": (45, 165, 60),
    "blue": (45, 85, 215), "purple": (150, 65, 180), "white": (245, 245, 245), "brown": (120, 72, 35),
}  # fmt: skip
DARK = 0.58  # brightness of stripes and dots
FINER = 2  # pictures are drawn so many times larger, and averaged
MASK_SIDE = 96


def draw(world: World, seconds: float, *, side: int = 128) -> Picture:
    """What is to be seen at a time, [side, side, 3] uint8: the same for the same world, time and side.

    Raises:
        ValueError: if the world does not last so long, or the side is below 16.
    """
    if side < 16:
        raise ValueError(f"side must be at least 16 pixels, got {side}")
    look = random.Random(f"{world.seed} {float(seconds)}")
    rng = random.Random(world.scene_at(seconds).seed)
    large = FINER * side
    canvas = _background(rng, large)
    jitter = [rng.uniform(-14, 14) for _ in range(3)]
    shake = 0.02 * rng.random()
    dx, dy = look.uniform(-shake, shake), look.uniform(-shake, shake)
    for shown in world.at(seconds):
        _paint(canvas, shown, (shown.x + dx) * large, (shown.y + dy) * large, jitter)
    small = canvas.reshape(side, FINER, side, FINER, 3).mean((1, 3))
    noise = np.random.default_rng(look.getrandbits(32)).standard_normal((side, side, 1), dtype=np.float32)
    small = small * _light(world, seconds) + noise * rng.uniform(1, 8)
    picture: Picture = small.clip(0, 255).astype(np.uint8)
    return picture


def _light(world: World, seconds: float) -> float:
    """Brightness, drifting over minutes."""
    rng = random.Random(f"light {world.seed}")
    period, phase = rng.uniform(90, 400), rng.uniform(0, math.tau)
    return 0.95 + 0.13 * math.sin(math.tau * seconds / period + phase)


def _background(rng: random.Random, side: int) -> Canvas:
    """A dull colour that changes from one corner to another, [side, side, 3]."""
    one = np.array([rng.uniform(15, 90) for _ in range(3)], dtype=np.float32)
    grey = one.mean()
    one = grey + 0.3 * (one - grey)
    other = one * rng.uniform(0.6, 1.4)
    angle = rng.uniform(0, math.tau)
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    across = 0.5 + 0.5 * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    shaded: Canvas = one + (other - one) * across[..., None]
    return shaded


def _paint(canvas: Canvas, shown: Shown, x: float, y: float, jitter: list[float]) -> None:
    """Puts a thing onto the canvas, its centre at pixel (x, y); what lies outside is cut off."""
    side = len(canvas)
    width = max(4, round(shown.size * side))
    inside, shade = _mask(shown.thing.kind, width), _texture(shown.thing.texture, width)
    left, top = round(x - width / 2), round(y - width / 2)
    rows, columns = slice(max(0, top), min(side, top + width)), slice(max(0, left), min(side, left + width))
    cut = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    colour = np.array(RGB[shown.thing.colour], dtype=np.float32) + np.array(jitter, dtype=np.float32)
    alpha = inside[cut][..., None]
    canvas[rows, columns] = canvas[rows, columns] * (1 - alpha) + colour * shade[cut][..., None] * alpha


@lru_cache(maxsize=512)
def _mask(kind: str, width: int) -> Canvas:
    """Where a thing is, [width, width], 0 to 1."""
    image = Image.new("L", (MASK_SIDE, MASK_SIDE), 0)
    if kind in SHAPES:
        _shape(ImageDraw.Draw(image), kind)
    else:
        font = ImageFont.load_default(MASK_SIDE * 1.32)
        centre = (MASK_SIDE / 2, MASK_SIDE / 2)
        ImageDraw.Draw(image).text(centre, kind, 255, font=font, anchor="mm", stroke_width=5)
    return np.asarray(image.resize((width, width), Image.Resampling.BOX), dtype=np.float32) / 255


@lru_cache(maxsize=256)
def _texture(texture: str, width: int) -> Canvas:
    """Brightness of a thing's surface, [width, width]."""
    grid = np.arange(width, dtype=np.float32) / width
    if texture == "striped":
        dark = np.broadcast_to(((grid * 3.5) % 1 < 0.45)[:, None], (width, width))
    elif texture == "dotted":
        wave = ((grid * 3.0) % 1 - 0.5) ** 2
        dark = wave[:, None] + wave[None, :] < 0.06
    else:
        dark = np.zeros((width, width), dtype=bool)
    return np.where(dark, np.float32(DARK), np.float32(1))


def _around(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Points around the middle of a mask, at radii in turn."""
    half = MASK_SIDE / 2
    points = ((math.tau * index / count - math.pi / 2, half * radii[index % len(radii)]) for index in range(count))
    return [(half + radius * math.cos(angle), half + radius * math.sin(angle)) for angle, radius in points]


def _shape(pen: ImageDraw.ImageDraw, kind: str) -> None:
    """One of `SHAPES`, as large as its mask."""
    full, third = MASK_SIDE - 1, MASK_SIDE // 3
    if kind == "circle":
        pen.ellipse((2, 2, full - 2, full - 2), 255)
    elif kind == "ring":
        pen.ellipse((2, 2, full - 2, full - 2), 255)
        pen.ellipse((third - 4, third - 4, full - third + 4, full - third + 4), 0)
    elif kind == "square":
        pen.rectangle((10, 10, full - 10, full - 10), 255)
    elif kind == "cross":
        pen.rectangle((third, 0, full - third, full), 255)
        pen.rectangle((0, third, full, full - third), 255)
    elif kind == "heart":
        half = full // 2
        pen.ellipse((2, 8, half + 4, half + 10), 255)
        pen.ellipse((half - 4, 8, full - 2, half + 10), 255)
        pen.polygon([(6, half), (full - 6, half), (half, full)], 255)
    else:
        corners = {"triangle": (3, (1.1,)), "diamond": (4, (1.0, 0.7)), "star": (10, (1.05, 0.42))}
        pen.polygon(_around(*corners[kind]), 255)


def film(world: World, path: Path, *, fps: int = 10, side: int = 256, codec: str = "libx264") -> None:
    """Writes a world as a video file, one picture after the other; its times start at 0 with the world's start.

    Raises:
        ValueError: if fps is below 1, or the side is odd.
    """
    if fps < 1 or side % 2:
        raise ValueError(f"fps must be at least 1 and side even, got {fps} and {side}")
    import av

    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(fps * (world.duration_seconds - world.start_seconds)):
            picture = draw(world, world.start_seconds + number / fps, side=side)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


class WorldSource(Source):
    """A synthetic world as a stream to be watched; frames are drawn when they are wanted."""

    def __init__(self, world: World, *, fps: float = 1.0, side: int = 128) -> None:
        """Frames every 1 / fps seconds from the world's start on, at the world's own times, each [side, side, 3]."""
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        super().__init__(f"world {world.seed}", max_side=side)
        self.world, self._fps, self._side = world, fps, side
        self.duration_seconds = float(world.duration_seconds)
        self.fingerprint = hashlib.sha256(f"{world} {fps} {side}".encode()).hexdigest()[:16]

    def _pictures(self) -> Iterator[tuple[float, Any]]:
        start, number = self.world.start_seconds, 0
        while (seconds := start + number / self._fps) < self.world.duration_seconds and not self._interrupted.is_set():
            yield seconds, seconds
            number += 1

    def _image(self, picture: Any, max_side: int) -> npt.NDArray[Any]:
        return draw(self.world, picture, side=self._side)
