"""The synthetic world: what is to be seen when. It knows the truth, and nothing of pixels or questions.

A world is a function of its seed and of time: every minute is made from (seed, minute) alone, so any moment of a day of
it is had at once and nothing of the stream is held. Things (a colour, a texture, a kind) enter, stand or move, may turn
into another colour, and leave; a cut ends a scene. Needles are planted: at their time nothing else is to be seen, and
what they are occurs nowhere else.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "brown")
TEXTURES = ("plain", "striped", "dotted")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond")
DIGITS = tuple("0123456789")
LETTERS = tuple("ABDEFHKR")
KINDS = SHAPES + DIGITS + LETTERS
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIRECTIONS = ("left", "right", "up", "down")
MINUTE = 60


class Thing(NamedTuple):
    """What is seen; of several, `name` says which."""

    colour: str
    texture: str
    kind: str

    @property
    def name(self) -> str:
        """Colour and kind, as questions and answers say it."""
        return f"{self.colour} {self.kind}"


class Shown(NamedTuple):
    """A thing at a moment.

    Attributes:
        x, y: its centre, 0 to 1 from left and top.
        size: its width, as a share of the picture's.
    """

    thing: Thing
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Sighting:
    """A thing from when it enters until it leaves, in whole seconds.

    Attributes:
        thing: as it enters.
        start_seconds, end_seconds: when it can be seen; the end is not included.
        place: index into `PLACES` where it enters.
        direction: where it moves to, one of `DIRECTIONS`; None if it stands still.
        turned: the colour it has from `turn_seconds` on, None if it keeps its own.
        size: its width, as a share of the picture's.
    """

    thing: Thing
    start_seconds: int
    end_seconds: int
    place: int
    direction: str | None = None
    turned: str | None = None
    turn_seconds: int | None = None
    size: float = 0.36

    def at(self, seconds: float) -> Shown | None:
        """What is seen of it at a time, None before it enters and after it left."""
        if not self.start_seconds <= seconds < self.end_seconds:
            return None
        turned = self.turned is not None and self.turn_seconds is not None and seconds >= self.turn_seconds
        thing = self.thing._replace(colour=self.turned) if turned and self.turned else self.thing
        x, y = _centre(self.place)
        if self.direction is not None:
            last = max(1, self.end_seconds - self.start_seconds - 1)
            done = min(1.0, (seconds - self.start_seconds) / last)
            x, y = (x + (1 - 2 * x) * done, y) if self.direction in ("left", "right") else (x, y + (1 - 2 * y) * done)
        return Shown(thing, x, y, self.size)


@dataclass(frozen=True)
class Scene:
    """Between two cuts: sightings before one background.

    Attributes:
        seed: of everything about its look that is no truth: background, noise, light, shake.
    """

    start_seconds: int
    end_seconds: int
    sightings: tuple[Sighting, ...]
    seed: int


@dataclass(frozen=True)
class World:
    """A stream that was never filmed.

    Attributes:
        seed: everything follows from it.
        duration_seconds: when it ends; 10 to 86,400 are usual, nothing grows with it.
        start_seconds: when it begins.
        needles: sightings at times of their own, see `plant`. No kind of theirs occurs anywhere else.
        scene_seconds: shortest and longest scene.
        crowd: chance that a scene shows two things rather than one.
        kinds: what there can be besides needles.
    """

    seed: int
    duration_seconds: int
    needles: tuple[Sighting, ...] = ()
    scene_seconds: tuple[int, int] = (2, 7)
    crowd: float = 0.3
    kinds: tuple[str, ...] = KINDS
    start_seconds: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < self.duration_seconds:
            span = f"{self.start_seconds} to {self.duration_seconds}"
            raise ValueError(f"a world must last from 0 or later until after its start, got {span} s")
        low, high = self.scene_seconds
        if not 1 <= low <= high <= MINUTE:
            raise ValueError(f"scene_seconds must be 1 <= shortest <= longest <= {MINUTE}, got {self.scene_seconds}")
        if not set(self.kinds) - self._rare:
            raise ValueError("kinds must leave something besides the needles' kinds")
        if any(not 1 <= needle.end_seconds - needle.start_seconds <= MINUTE for needle in self.needles):
            raise ValueError(f"a needle must last 1 to {MINUTE} s")
        ordered = sorted(self.needles, key=lambda needle: needle.start_seconds)
        for one, following in itertools.pairwise(ordered):
            if following.start_seconds < one.end_seconds:
                raise ValueError(f"two needles overlap at {following.start_seconds} s; plant them apart")

    @property
    def _rare(self) -> set[str]:
        return {needle.thing.kind for needle in self.needles}

    def scenes(self, start_seconds: float = 0, end_seconds: float | None = None) -> Iterator[Scene]:
        """All scenes that touch a time range, in order; they cover every second."""
        start_seconds = max(start_seconds, self.start_seconds)
        end = self.duration_seconds if end_seconds is None else min(end_seconds, self.duration_seconds)
        first = max(0, int(start_seconds) // MINUTE - 1)  # a needle may reach into the next minute
        for minute in range(first, int(end) // MINUTE + 1):
            for scene in _minute(self, minute):
                if scene.end_seconds > start_seconds and scene.start_seconds < end:
                    yield scene

    def scene_at(self, seconds: float) -> Scene:
        """The scene at a time.

        Raises:
            ValueError: if the world does not last so long.
        """
        if not self.start_seconds <= seconds < self.duration_seconds:
            raise ValueError(f"the world lasts from {self.start_seconds} to {self.duration_seconds} s, got {seconds}")
        return next(scene for scene in self.scenes(seconds, seconds + 1) if seconds < scene.end_seconds)

    def at(self, seconds: float) -> list[Shown]:
        """Everything that is to be seen at a time."""
        shown = (sighting.at(seconds) for sighting in self.scene_at(seconds).sightings)
        return [one for one in shown if one is not None]

    def sightings(self, until_seconds: float | None = None) -> Iterator[Sighting]:
        """All sightings that began by a time, in the order in which they enter."""
        until = self.duration_seconds - 1 if until_seconds is None else until_seconds
        for scene in self.scenes(0, until + 1):
            for sighting in sorted(scene.sightings, key=lambda one: one.start_seconds):
                if sighting.start_seconds <= until:
                    yield sighting


def plant(
    seed: int, times: Sequence[int], *, seconds: int = 4, kinds: Sequence[str] | None = None
) -> tuple[Sighting, ...]:
    """Needles at these times, each of a kind of its own; half of them move.

    Raises:
        ValueError: if there are more times than kinds.
    """
    rng = random.Random(f"needles {seed}")
    kinds = list(KINDS if kinds is None else kinds)
    if len(times) > len(kinds):
        raise ValueError(f"there are {len(times)} times, but only {len(kinds)} kinds; plant fewer needles")
    rng.shuffle(kinds)
    return tuple(_sighting(rng, kind, at, at + seconds, None) for at, kind in zip(times, kinds, strict=False))


@lru_cache(maxsize=256)
def _minute(world: World, minute: int) -> tuple[Scene, ...]:
    """The scenes that begin in one minute; a scene ends with its minute."""
    rng = random.Random(f"{world.seed} {minute}")
    start, end = max(minute * MINUTE, world.start_seconds), min((minute + 1) * MINUTE, world.duration_seconds)
    kinds = [kind for kind in world.kinds if kind not in world._rare]
    scenes: list[Scene] = []
    while start < end:
        stop = min(end, start + rng.randint(*world.scene_seconds))
        stop = end if end - stop < world.scene_seconds[0] else stop
        scenes += _around_needles(_scene(rng, world, kinds, start, stop), world.needles)
        start = stop
    return tuple(scenes)


def _scene(rng: random.Random, world: World, kinds: Sequence[str], start: int, end: int) -> Scene:
    """One or two things; two keep to lanes of their own, so that neither hides the other."""
    one, other = rng.sample(kinds, 2) if len(kinds) > 1 else (kinds[0], kinds[0])
    first = _sighting(rng, one, start, end, None)
    sightings = [first]
    if rng.random() < world.crowd:
        enters = rng.randint(start, max(start, end - 2))
        sightings.append(_sighting(rng, other, enters, end, first))
    return Scene(start, end, tuple(sightings), rng.getrandbits(32))


def _sighting(rng: random.Random, kind: str, start: int, end: int, beside: Sighting | None) -> Sighting:
    thing = Thing(rng.choice(COLOURS), rng.choice(TEXTURES), kind)
    place, direction = rng.randrange(4), None
    if beside is not None:
        place, direction = _lane_beside(rng, beside)
    elif end - start >= 3 and rng.random() < 0.4:
        direction = rng.choice(_ways_out(place))
    turned = turn = None
    if end - start >= 4 and rng.random() < 0.15:
        turned = rng.choice([colour for colour in COLOURS if colour != thing.colour])
        turn = start + (end - start) // 2
    return Sighting(thing, start, end, place, direction, turned, turn, rng.uniform(0.32, 0.42))


def _lane_beside(rng: random.Random, other: Sighting) -> tuple[int, str | None]:
    """A place in the lane that the other does not use, moving as it does or standing still."""
    if other.direction in ("left", "right"):
        place = rng.choice([2, 3] if other.place < 2 else [0, 1])
    elif other.direction is not None:
        place = rng.choice([1, 3] if other.place % 2 == 0 else [0, 2])
    else:
        place = rng.choice([place for place in range(4) if place != other.place])
    return place, None


def _ways_out(place: int) -> tuple[str, str]:
    """The two directions into the picture from a corner."""
    return ("right" if place % 2 == 0 else "left", "down" if place < 2 else "up")


def _centre(place: int) -> tuple[float, float]:
    return (0.25 if place % 2 == 0 else 0.75, 0.25 if place < 2 else 0.75)


def _around_needles(scene: Scene, needles: Sequence[Sighting]) -> Iterator[Scene]:
    """A scene with needles in its place where they are planted; what a needle cuts short is seen for so long only."""
    at = scene.start_seconds
    for needle in sorted(needles, key=lambda one: one.start_seconds):
        if needle.start_seconds >= scene.end_seconds or needle.end_seconds <= at:
            continue
        if needle.start_seconds > at:
            yield _cut(scene, at, needle.start_seconds)
        if needle.start_seconds >= scene.start_seconds:
            yield Scene(needle.start_seconds, needle.end_seconds, (needle,), scene.seed ^ 1)
        at = needle.end_seconds
    if at < scene.end_seconds:
        yield _cut(scene, at, scene.end_seconds)


def _cut(scene: Scene, start: int, end: int) -> Scene:
    """The part of a scene between two times: things are there when it begins or enter later, and go when it ends."""
    if (start, end) == (scene.start_seconds, scene.end_seconds):
        return scene
    parts = (
        replace(one, start_seconds=max(one.start_seconds, start), end_seconds=end)
        for one in scene.sightings
        if one.start_seconds < end
    )
    return Scene(start, end, tuple(parts), scene.seed)
