"""Pictures as a checkpoint's own processor would prepare them, without torchvision.

Resizing is done in 8 bits, with antialiasing, on the CPU, as transformers' processors do it. This module knows nothing
of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vstream.types import Frame

MAX_SIDE = 4096
_MODES = {2: "bilinear", 3: "bicubic"}  # by PIL's number


@dataclass(frozen=True)
class PictureSpec:
    """What becomes of a picture: brought to one size, whatever its shape, then scaled and shifted by channel.

    Attributes:
        height, width: in pixels.
        mode: "bilinear" or "bicubic".
        scale: what 8-bit values are multiplied by.
        mean, std: of red, green and blue, after scaling.
    """

    height: int
    width: int
    mode: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        sizes, numbers = (self.height, self.width), (self.scale, *self.mean, *self.std)
        if not all(isinstance(size, int) and 1 <= size <= MAX_SIDE for size in sizes):
            raise ValueError(f"the processor must bring pictures to 1 to {MAX_SIDE} pixels, got {sizes}")
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or 0 in self.std:
            raise ValueError(f"the processor's scale, mean and std must be numbers, std not 0, got {numbers}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PictureSpec:
        """The steps that a processor's configuration (`preprocessor_config.json` and its like) asks for.

        Raises:
            ValueError: for a step that is missing or not supported.
        """
        size, resample = config.get("size") or {}, config.get("resample")
        if set(_sides(size)) != {"height", "width"} or not config.get("do_resize", True):
            raise ValueError(f"the processor must bring pictures to a height and a width, but its size is {size}")
        if config.get("do_center_crop"):
            raise ValueError("the processor must not crop pictures, but its do_center_crop is set")
        if not isinstance(resample, int) or resample not in _MODES:
            allowed = " or ".join(f"{number} ({mode})" for number, mode in _MODES.items())
            raise ValueError(f"the processor's resample must be {allowed}, got {resample!r}")
        scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        mean, std = ((0.0,) * 3, (1.0,) * 3)
        if config.get("do_normalize", True):
            mean, std = _channels(config, "image_mean"), _channels(config, "image_std")
        return cls(size["height"], size["width"], _MODES[resample], scale, mean, std)


def prepare(frames: Sequence[Frame], spec: PictureSpec) -> Tensor:
    """Pixel values [T, 3, height, width] float32 on the CPU, of T frames whose pictures may differ in size.

    Raises:
        ValueError: for a frame that holds features, not a picture [H, W, 3].
    """
    return torch.stack([_resized(frame, spec) for frame in frames]).float().mul_(spec.scale).sub_(
        torch.tensor(spec.mean)[:, None, None]
    ).div_(torch.tensor(spec.std)[:, None, None])  # fmt: skip


def _resized(frame: Frame, spec: PictureSpec) -> Tensor:
    """[3, height, width] uint8."""
    if frame.image.ndim != 3:
        raise ValueError(f"this model takes pictures, got features {list(frame.image.shape)}")
    picture = torch.from_numpy(frame.image).movedim(-1, 0)[None]
    return F.interpolate(picture, (spec.height, spec.width), mode=spec.mode, antialias=True)[0]


def _sides(size: object) -> dict[str, Any]:
    return {side: pixels for side, pixels in size.items() if pixels} if isinstance(size, Mapping) else {}


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(f"the processor's {name} must be three numbers, got {values!r}")
    red, green, blue = values
    return red, green, blue
