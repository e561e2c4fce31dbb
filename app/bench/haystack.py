"""Haystacks: videos of the synthetic world with needles at known depths, filmed once into a folder.

A haystack is a function of its length and seed. A film is made aside and takes its name when it is whole, so one that
was cut short is made again. This module knows nothing of questions.
"""

from __future__ import annotations

import fcntl
import os
import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vstream.app.lab.render import film
from vstream.app.lab.world import KINDS, MINUTE, Sighting, World, plant

DEPTHS = (0, 25, 50, 75, 100)
LEAST_SECONDS, MOST_SECONDS = 10, 24 * 60 * MINUTE
NEEDLE_SECONDS = 4
ABSENT = 3
FPS, SIDE = 1, 96
LAYOUT = 1
"""Rises when a haystack of the same length and seed would look different; it is part of the film's name."""
SEEDS_FROM = 4 * 10**9
"""No world that `tiny` was trained on, nor one of the memory lab."""


@dataclass(frozen=True)
class Haystack:
    """One video.

    Attributes:
        seconds: its length.
        seed: tells it apart from others as long.
    """

    seconds: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not LEAST_SECONDS <= self.seconds <= MOST_SECONDS:
            raise ValueError(f"a haystack must last {LEAST_SECONDS} to {MOST_SECONDS} s, got {self.seconds}")
        if self.seed < 0:
            raise ValueError(f"a haystack's seed must be 0 or more, got {self.seed}")

    @property
    def name(self) -> str:
        """Of its file."""
        return f"haystack{LAYOUT}-{self.seconds}s-{self.seed}.mkv"

    @cached_property
    def needles(self) -> tuple[Sighting, ...]:
        """What is to be found, one for each of `DEPTHS`; each keeps its colour, and its kind occurs nowhere else."""
        shown = max(1, min(NEEDLE_SECONDS, self.seconds // (3 * len(DEPTHS))))
        times = [round(depth * (self.seconds - shown) / 100) for depth in DEPTHS]
        return tuple(replace(one, turned=None, turn_seconds=None) for one in plant(self._seed, times, seconds=shown))

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """Kinds that are nowhere to be seen."""
        left = [kind for kind in KINDS if kind not in {needle.thing.kind for needle in self.needles}]
        return tuple(random.Random(f"absent {self._seed}").sample(left, ABSENT))

    @cached_property
    def world(self) -> World:
        """All that is to be seen."""
        kinds = tuple(kind for kind in KINDS if kind not in self.absent)
        return World(self._seed, self.seconds, self.needles, kinds=kinds)

    @property
    def _seed(self) -> int:
        return SEEDS_FROM + self.seed * (MOST_SECONDS + 1) + self.seconds


def film_whole(haystack: Haystack, folder: Path) -> Path:
    """Films a haystack into a folder, losslessly, unless it is there; its path.

    Of two processes that want the same film one makes it, and the other waits.

    Raises:
        OSError: if the folder cannot be written.
    """
    path, aside = folder / haystack.name, folder / ".filming"
    aside.mkdir(exist_ok=True)
    with (aside / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            film(haystack.world, aside / path.name, fps=FPS, side=SIDE, codec="ffv1")
            with (aside / path.name).open("rb") as part:
                os.fsync(part.fileno())
            os.replace(aside / path.name, path)
    return path
