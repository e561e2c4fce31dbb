"""Pictures as a checkpoint's own processor would prepare them, without torchvision.

Resizing is done in 8 bits, with antialiasing, on the CPU, as transformers' processors do it: by torch, or by PIL where
torch lacks the method. This module knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vstream.types import Frame

MAX_SIDE = 4096
_MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's number


@dataclass(frozen=True)
class PictureSpec:
    """What becomes of a picture: brought to one size, whatever its shape, then scaled and shifted by channel.

    Attributes:
        height, width: in pixels.
        mode: "lanczos", "bilinear" or "bicubic".
        scale: what 8-bit values are multiplied by.
        mean, std: of red, green and blue, after scaling.
        longest_edge: what the longer side is brought to first, the shape kept; None leaves that step out.
        shortest_edge: what the shorter side is brought to, the shape kept, before height and width are cut out of the
            middle; None stretches the picture to height and width.
    """

    height: int
    width: int
    mode: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    longest_edge: int | None = None
    shortest_edge: int | None = None

    def __post_init__(self) -> None:
        edges = [edge for edge in (self.longest_edge, self.shortest_edge) if edge is not None]
        sizes, numbers = (self.height, self.width, *edges), (self.scale, *self.mean, *self.std)
        if not all(isinstance(size, int) and 1 <= size <= MAX_SIDE for size in sizes):
            raise ValueError(f"the processor must bring pictures to 1 to {MAX_SIDE} pixels, got {sizes}")
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or 0 in self.std:
            raise ValueError(f"the processor's scale, mean and std must be numbers, std not 0, got {numbers}")
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise ValueError(
                f"the processor must not cut {self.height} x {self.width} pixels out of pictures whose shorter side "
                f"has {self.shortest_edge}; fetch the checkpoint again"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PictureSpec:
        """The steps that a processor's configuration (`preprocessor_config.json` and its like) asks for.

        Tiles are left out, whatever it says of them: a frame is one picture.

        Raises:
            ValueError: for a step that is missing or not supported.
        """
        resample, edges = config.get("resample"), _edges(config)
        if not isinstance(resample, int) or resample not in _MODES:
            allowed = " or ".join(f"{number} ({mode})" for number, mode in _MODES.items())
            raise ValueError(f"the processor's resample must be {allowed}, got {resample!r}")
        scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        mean, std = ((0.0,) * 3, (1.0,) * 3)
        if config.get("do_normalize", True):
            mean, std = _channels(config, "image_mean"), _channels(config, "image_std")
        return cls(mode=_MODES[resample], scale=scale, mean=mean, std=std, **edges)


def prepare(frames: Sequence[Frame], spec: PictureSpec) -> Tensor:
    """Pixel values [T, 3, height, width] float32 on the CPU, of T frames whose pictures may differ in size.

    Raises:
        ValueError: for a frame that holds features, not a picture [H, W, 3].
    """
    return torch.stack([_resized(frame, spec) for frame in frames]).float().mul_(spec.scale).sub_(
        torch.tensor(spec.mean)[:, None, None]
    ).div_(torch.tensor(spec.std)[:, None, None])  # fmt: skip


def resize(picture: Tensor, height: int, width: int, mode: str) -> Tensor:
    """A picture [3, H, W] uint8 brought to [3, height, width] uint8, with antialiasing."""
    if mode == "lanczos":
        return _lanczos(picture, height, width)
    return F.interpolate(picture[None], (height, width), mode=mode, antialias=True)[0]


def _lanczos(picture: Tensor, height: int, width: int) -> Tensor:
    """By PIL, since torch lacks it."""
    from PIL import Image

    image = Image.fromarray(picture.movedim(0, -1).contiguous().numpy())
    resized = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(resized).movedim(-1, 0)


def _resized(frame: Frame, spec: PictureSpec) -> Tensor:
    """[3, height, width] uint8."""
    if frame.image.ndim != 3:
        raise ValueError(f"this model takes pictures, got features {list(frame.image.shape)}")
    picture = torch.from_numpy(frame.image).movedim(-1, 0)
    if spec.longest_edge is not None:
        picture = resize(picture, *_by_longest(picture.shape[1], picture.shape[2], spec.longest_edge), spec.mode)
    if spec.shortest_edge is None:
        return resize(picture, spec.height, spec.width, spec.mode)
    picture = resize(picture, *_by_shortest(picture.shape[1], picture.shape[2], spec.shortest_edge), spec.mode)
    top, left = (picture.shape[1] - spec.height) // 2, (picture.shape[2] - spec.width) // 2
    return picture[:, top : top + spec.height, left : left + spec.width]


def _by_longest(height: int, width: int, edge: int) -> tuple[int, int]:
    """The size whose longer side is `edge`; the other is made even, as transformers' processors do it."""
    other = int(edge / (max(height, width) / min(height, width)))
    other = max(1, other + other % 2)
    return (other, edge) if width >= height else (edge, other)


def _by_shortest(height: int, width: int, edge: int) -> tuple[int, int]:
    """The size whose shorter side is `edge`."""
    return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)


def _edges(config: Mapping[str, Any]) -> dict[str, Any]:
    """Height and width of prepared pictures, and the edge that is brought to a size before; `ValueError` if unclear."""
    video = config.get("video_sampling")
    size = (video.get("video_size") if isinstance(video, Mapping) else None) or config.get("size") or {}
    sides, cut, crop = _sides(size), _sides(config.get("crop_size")), config.get("do_center_crop")
    if config.get("do_resize", True) and sides:
        if set(sides) == {"longest_edge"} and set(_sides(config.get("max_image_size"))) == {"longest_edge"}:
            square = config["max_image_size"]["longest_edge"]
            return {"height": square, "width": square, **sides, **_uncropped(crop)}
        if set(sides) == {"shortest_edge"} and crop and set(cut) == {"height", "width"}:
            return {**cut, **sides}
        if set(sides) == {"height", "width"}:
            return {**sides, **_uncropped(crop)}
    raise ValueError(f"the processor must bring pictures to a height and a width, but its size is {size}")


def _uncropped(crop: object) -> dict[str, Any]:
    if crop:
        raise ValueError("the processor must not crop pictures, but its do_center_crop is set")
    return {}


def _sides(size: object) -> dict[str, Any]:
    return {side: pixels for side, pixels in size.items() if pixels} if isinstance(size, Mapping) else {}


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(f"the processor's {name} must be three numbers, got {values!r}")
    red, green, blue = values
    return red, green, blue
