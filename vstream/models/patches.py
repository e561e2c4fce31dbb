"""Pictures of any shape as rows of patches, as Qwen's own processors make them, without torchvision.

A picture keeps its shape: its sides become multiples of a token's side, within a range of pixels. Consecutive frames
share a patch in time. This module knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vstream.models.pictures import MAX_SIDE, PictureSpec, prepare
from vstream.types import Frame

VIDEO_TOKENS = 768  # a frame's most, as in the families' own tools for videos; their processors allow 16,384


@dataclass(frozen=True)
class PatchSpec:
    """What becomes of pictures.

    Attributes:
        pictures: their colours; its size is replaced by each picture's own.
        patch: side of a patch, in pixels.
        merge: patches beside each other, and as many below each other, become one token.
        frames: in a patch; of the last one, the last frame is repeated where there are too few.
        min_pixels, max_pixels: of a picture.
        enlarges: whether a picture with a side below a token's is enlarged before all else.
    """

    pictures: PictureSpec
    patch: int
    merge: int
    frames: int
    min_pixels: int
    max_pixels: int
    enlarges: bool = False

    def __post_init__(self) -> None:
        sizes = (self.patch, self.merge, self.frames, self.min_pixels, self.max_pixels)
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(f"the processor's patches and pixels must be whole numbers >= 1, got {sizes}")
        if not self.min_pixels <= self.max_pixels or self.side**2 > self.max_pixels:
            raise ValueError(
                f"a frame's pixels must be between {self.min_pixels} and {self.max_pixels}, of which a token takes "
                f"{self.side**2}; allow more"
            )

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, max_pixels: int | None = None, volume: bool = False
    ) -> PatchSpec:
        """The steps that a processor's configuration asks for.

        Args:
            config: `preprocessor_config.json` or its like.
            max_pixels: of a frame; None for the checkpoint's own, or 768 tokens if that is less.
            volume: whether the configuration's sizes are of a whole video, frames included.

        Raises:
            ValueError: for a step that is missing or not supported, or more pixels than the checkpoint allows.
        """
        patch, merge, frames = (config.get(f"{name}_size", 0) for name in ("patch", "merge", "temporal_patch"))
        if not all(isinstance(size, int) and size >= 1 for size in (patch, merge, frames)):
            raise ValueError(
                "the processor must name patch_size, merge_size, temporal_patch_size, whole numbers >= 1, got "
                f"{(patch, merge, frames)}; fetch the checkpoint again"
            )
        side, least_most = patch * merge, _pixels(config)
        least, most = (pixels // frames if volume else pixels for pixels in least_most)
        if max_pixels is not None and not side**2 <= max_pixels <= most:
            raise ValueError(f"max_pixels must be {side**2} (one token) to {most} for this model, got {max_pixels}")
        most = min(most, VIDEO_TOKENS * side**2) if max_pixels is None else max_pixels
        colours = {"resample": 3, **config, "size": {"height": side, "width": side}}
        pictures = PictureSpec.from_config(colours)
        return cls(pictures, patch, merge, frames, max(1, min(least, most)), most, enlarges=volume)

    @property
    def side(self) -> int:
        """Of a token, in pixels."""
        return self.patch * self.merge

    @property
    def tokens(self) -> tuple[int, int]:
        """The fewest and the most tokens of a picture."""
        return math.ceil(self.min_pixels / self.side**2), self.max_pixels // self.side**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture: its shape, within the range of pixels.

        As the families' processors have it, but that a very long picture is made shorter rather than have more pixels.
        """
        if self.enlarges and min(height, width) < self.side:
            scale = max(self.side / height, self.side / width)
            height, width = int(height * scale), int(width * scale)
        rows, columns = round(height / self.side), round(width / self.side)
        if rows * columns * self.side**2 > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rows, columns = (max(1, math.floor(pixels / scale / self.side)) for pixels in (height, width))
        elif rows * columns * self.side**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(pixels * scale / self.side) for pixels in (height, width))
        longest, most = MAX_SIDE // self.side, self.tokens[1]
        rows = min(rows, longest, most)
        return rows, min(columns, longest, most // rows)

    def patches(self, frames: Sequence[Frame], rows: int, columns: int) -> Tensor:
        """Patches [G * rows * columns * merge**2, C * F * patch**2] float32 of G groups of F frames, token by token.

        Groups are of consecutive frames, which are all brought to the size of so many tokens.
        """
        spec = replace(self.pictures, height=rows * self.side, width=columns * self.side)
        pixels = prepare(frames, spec)  # [T, C, H, W]
        missing = -len(frames) % self.frames
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        tokens = (rows, self.merge, self.patch, columns, self.merge, self.patch)
        parts = pixels.view(-1, self.frames, pixels.shape[1], *tokens).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return parts.reshape(-1, pixels.shape[1] * self.frames * self.patch**2)


def _pixels(config: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most, by any of the names that they have had."""
    size = config.get("size")
    size = size if isinstance(size, Mapping) else {}
    found = [
        next((place[name] for place, name in where if place.get(name) is not None), None)
        for where in (
            ((config, "min_pixels"), (size, "shortest_edge"), (size, "min_pixels")),
            ((config, "max_pixels"), (size, "longest_edge"), (size, "max_pixels")),
        )
    ]
    least, most = found
    if not isinstance(least, int) or not isinstance(most, int):
        raise ValueError(
            "the processor must name the fewest and the most pixels of a picture, but its size is "
            f"{config.get('size')!r}; fetch the checkpoint again"
        )
    return least, most
