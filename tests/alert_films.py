"""A film of the synthetic world in which a red heart is to be seen at two known times."""

from __future__ import annotations

from pathlib import Path

from vstream.app.lab.render import film
from vstream.app.lab.world import Sighting, Thing, World

HEART, OTHER = "was there a red heart?", "was there a blue heart?"
"""What is to be seen, and the same in a colour in which it is not."""
TIMES = ((6, 10), (24, 28))
SECONDS, CLIP_SECONDS = 32, 4


def heart_film(path: Path, *, times: tuple[tuple[int, int], ...] = TIMES, seconds: int = SECONDS) -> Path:
    """Films it, two frames a second."""
    film(heart_world(times, seconds), path, fps=2)
    return path


def heart_world(times: tuple[tuple[int, int], ...] = TIMES, seconds: int = SECONDS) -> World:
    """What is filmed."""
    hearts = [Sighting(Thing("red", "plain", "heart"), start, end, 0) for start, end in times]
    return World(5, seconds, needles=tuple(hearts))
