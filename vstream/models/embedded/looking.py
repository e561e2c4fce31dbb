"""Looks at pictures with the classifier: what is there, where in the picture, and in which colour.

It looks twice: at all of a picture squashed to a square, and undistorted, where the classifier's last layer works on
square windows of the feature map, of which those that are surest count most. A class's weights on each cell say where
it is: Zhou et al., "Learning Deep Features for Discriminative Localization" (2016). It knows nothing of names, tokens
or time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vstream.models.embedded.efficientnet import SIDE, EfficientNetLite0, prepare, undistorted_size

WINDOWS = 7, 5  # cells: as large as a picture was in the classifier's training, and a closer look
SHARP = 6  # the power of a class's map whose peak is where a colour is taken from
SURE_COLOUR = 0.5  # of the peak must have one colour
AREA_SIDE = 96  # pixels of a picture's longer side in which colours are counted
COLOURS = ("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
PLACES = ("left", "right", "top", "bottom", "middle")
OFF_CENTRE = 0.12  # share of a picture's side that is still the middle
STEADY = 0.04  # what a place must be better by than the one before
HUES = (
    ("orange", 15, 42), ("yellow", 42, 70), ("green", 70, 165), ("blue", 165, 255), ("purple", 255, 295),
    ("pink", 295, 345),
)  # fmt: skip
"""Degrees of hues, from and up to; what is left is red."""


@dataclass(frozen=True)
class Looks:
    """What T pictures show.

    Attributes:
        likely: class probabilities, [T, 1000].
        features: of each picture as a whole, to tell cuts by, [T, 1280].
        centres: of the likeliest thing, [T, 2], x and y in 0 to 1 from left and top.
        colours: shares of `COLOURS` where it is, [T, 11].
    """

    likely: Tensor
    features: Tensor
    centres: Tensor
    colours: Tensor

    @staticmethod
    def joined(parts: Sequence[Looks]) -> Looks:
        """All of them, in a row."""
        names = ("likely", "features", "centres", "colours")
        return Looks(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def look_at(vision: EfficientNetLite0, pictures: Tensor) -> Looks:
    """What T pictures [T, H, W, 3] uint8 RGB show."""
    size = undistorted_size(*pictures.shape[1:3])
    cells = vision.feature_map(prepare(pictures, size))  # [T, 1280, h, w]
    squashed = cells if size == (SIDE, SIDE) else vision.feature_map(prepare(pictures))
    whole = vision.classifier(squashed.mean((2, 3))).softmax(-1)
    likely = (whole + _surest(vision.classifier(_windows(cells)).softmax(-1))) / 2
    weights = vision.classifier.weight[likely.argmax(-1)]  # [T, 1280]
    there = torch.einsum("tchw,tc->thw", cells, weights).clamp(min=0)
    return Looks(likely, cells.mean((2, 3)), _centre(there), _colours(pictures, there))


def _windows(cells: Tensor) -> Tensor:
    """Means over all square windows of a map [T, C, h, w], [N, T, C]."""
    sizes = [min(size, *cells.shape[2:]) for size in WINDOWS]
    pooled = [F.avg_pool2d(cells, size, stride=1).flatten(2) for size in sizes]
    return torch.cat(pooled, -1).permute(2, 0, 1)


def _surest(likely: Tensor) -> Tensor:
    """One row of probabilities [T, K] from those of N windows [N, T, K], by the square of their greatest."""
    weights = likely.amax(-1, keepdim=True).square()
    return (likely * weights).sum(0) / weights.sum(0)


def _centre(there: Tensor) -> Tensor:
    """The centre [T, 2] of maps [T, h, w]; of one that is zero, the middle."""
    weights = there.square() + 1e-9
    weights = weights / weights.sum((1, 2), keepdim=True)
    h, w = there.shape[1:]
    x = (weights.sum(1) * (torch.arange(w, device=there.device) + 0.5) / w).sum(-1)
    y = (weights.sum(2) * (torch.arange(h, device=there.device) + 0.5) / h).sum(-1)
    return torch.stack([x, y], -1)


def _colours(pictures: Tensor, there: Tensor) -> Tensor:
    """Shares of colours [T, 11] where maps [T, h, w] peak."""
    height, width = pictures.shape[1:3]
    size = [max(1, round(side * AREA_SIDE / max(height, width))) for side in (height, width)]
    pixels = F.interpolate(pictures.movedim(-1, 1).float() / 255, size, mode="area").movedim(1, -1)
    peak = F.interpolate(there[:, None], size, mode="bicubic", align_corners=False)[:, 0].clamp(min=0)
    peak = (peak / (peak.amax((1, 2), keepdim=True) + 1e-9)) ** SHARP
    is_colour = F.one_hot(colour_of(pixels), len(COLOURS)).float()
    shares = torch.einsum("thw,thwc->tc", peak, is_colour)
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-9)


def colour_of(pixels: Tensor) -> Tensor:
    """Indices into `COLOURS` [..] of pixels [.., 3] in 0 to 1, by hue, saturation and brightness."""
    hue, saturation, bright = _hue_saturation_brightness(pixels)
    reddish = (hue < 15) | (hue >= 345)
    dull = ((bright < 0.65) | (saturation < 0.55)) & (bright < 0.85)
    pure_red = ((hue < 12) & (saturation > 0.65)) | ((hue >= 345) & (saturation > 0.6))
    rules = [(name, (hue >= low) & (hue < high)) for name, low, high in HUES]
    rules += [
        ("pink", reddish & (saturation < 0.5) & (bright > 0.75)),
        ("brown", (reddish | (hue < 48)) & dull & ~pure_red),
        ("gray", saturation < 0.18),
        ("white", (saturation < 0.18) & (bright > 0.78)),
        ("black", bright < 0.2),
    ]
    found = torch.full(hue.shape, COLOURS.index("red"), device=pixels.device)
    for name, where in rules:  # later ones win
        found[where] = COLOURS.index(name)
    return found


def _hue_saturation_brightness(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of pixels [.., 3], each [..]: degrees, and twice 0 to 1."""
    red, green, blue = pixels.unbind(-1)
    bright, spread = pixels.amax(-1), pixels.amax(-1) - pixels.amin(-1)
    some = spread.clamp(min=1e-6)
    sixth = torch.where(bright == green, (blue - red) / some + 2, (red - green) / some + 4)
    sixth = torch.where(bright == red, ((green - blue) / some) % 6, sixth)
    return 60 * sixth, spread / bright.clamp(min=1e-6), bright


def colour_word(shares: Tensor) -> str:
    """The colour of shares [11], empty where none is sure."""
    share, index = shares.max(-1)
    return COLOURS[int(index)] if share >= SURE_COLOUR else ""


def place_word(x: float, y: float, before: str = "") -> str:
    """The one of `PLACES` that says most of where a centre is; that of the frame before it, where both would do."""
    off = {"left": 0.5 - x, "right": x - 0.5, "top": 0.5 - y, "bottom": y - 0.5, "middle": OFF_CENTRE}
    if before:
        off[before] += STEADY
    return max(off, key=lambda place: off[place])


def places_of(centres: Tensor, joined: Sequence[bool]) -> list[str]:
    """The places of T centres [T, 2], steadied where a frame goes on with the one before (T - 1 times yes or no)."""
    places: list[str] = []
    for index, (x, y) in enumerate(centres.tolist()):
        places.append(place_word(x, y, places[-1] if index and joined[index - 1] else ""))
    return places


def by_shape(pictures: Sequence[Tensor], most: int) -> list[Tensor]:
    """Pictures [H, W, 3] as batches [T, H, W, 3] of neighbours of one shape, at most so many in each."""
    batches = []
    for _, group in itertools.groupby(pictures, key=lambda picture: picture.shape):
        same = list(group)
        batches += [torch.stack(same[start : start + most]) for start in range(0, len(same), most)]
    return batches
