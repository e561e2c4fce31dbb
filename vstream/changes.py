"""How much a picture changed, by thumbnails: where a clip's scene ends, and whether anything moved.

Colours count, since a red and a green scene may be equally bright. PySceneDetect's detectors were looked at: they need
OpenCV, and are made for every frame of a video, not for one a second. This module knows nothing of queues or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vstream.types import Frame

FULL_CHANGE = 255.0


def largest_change(before: Frame, after: Frame) -> float:
    """The change of the part that changed most, from 0 to 255: a small thing that moves counts.

    Frames of features have changed fully unless they are equal.
    """
    if before.thumbnail is None or after.thumbnail is None:
        return 0.0 if np.array_equal(before.image, after.image) else FULL_CHANGE
    return float(np.abs(after.thumbnail - before.thumbnail).max())


def mean_change(before: Frame, after: Frame) -> float:
    """The mean change over a picture, from 0 to 255; 0 for frames of features, of which nobody sees a cut."""
    if before.thumbnail is None or after.thumbnail is None:
        return 0.0
    return float(np.abs(after.thumbnail - before.thumbnail).mean())


def is_cut(scene: Sequence[Frame], following: Frame, least_jump: float) -> bool:
    """Whether another scene begins after `scene`, one or more frames.

    The change must be so much above the largest within the scene: where a camera moves, every frame changes much. Only
    frames up to the cut decide, so it never depends on when they came.
    """
    largest = max((mean_change(a, b) for a, b in pairwise(scene)), default=0.0)
    return mean_change(scene[-1], following) - largest > least_jump
