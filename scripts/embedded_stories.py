"""Made-up streams for training the embedded model: what a classifier would name, second by second, without a picture.

A scene is a class; its frames' features are the classifier's own weight vector of that class, with those of a similar
class, of some other thing in the picture and noise, and go through the classifier's last layer and the naming that real
pictures go through. So frames of one scene disagree, and unsure ones get broader names, as they do in real video.
Its colour is drawn, and missed now and then; it stands or moves. Another source of stories is `embedded_worlds`.
Nothing here knows of questions.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vstream.models.embedded.looking import COLOURS, place_word
from vstream.models.embedded.naming import Named, Names, running_means

BLOCK_FRAMES = 4
LATEST_START_SECONDS = 7200
SURE_ENOUGH = 0.6  # of a scene's frames must agree on what it is called


@dataclass(frozen=True)
class Shown:
    """One frame that a question sees.

    Attributes:
        second: when it was.
        named: what it shows.
        has_line: whether that is written out, because it is not what the frame before showed.
    """

    second: int
    named: Named
    has_line: bool = True


@dataclass(frozen=True)
class Scene:
    """Consecutive frames of one thing, as far as they are seen.

    Attributes:
        frames: at least one.
        chain: what it is called, and all that is broader.
    """

    frames: tuple[Shown, ...]
    chain: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.chain[0]

    @property
    def start(self) -> int:
        """Second of its first frame that is written out, in its first clip."""
        return next((frame.second for frame in self.frames if frame.has_line), self.frames[0].second)

    @property
    def last(self) -> int:
        """Second of its last frame that is written out."""
        return next((frame.second for frame in reversed(self.frames) if frame.has_line), self.frames[-1].second)

    @property
    def colour(self) -> str:
        """The colour that is written most often, empty if none is."""
        written = Counter(frame.named.colour for frame in self.frames if frame.has_line and frame.named.colour)
        return written.most_common(1)[0][0] if written else ""

    @property
    def places(self) -> list[str]:
        """Where it is, one after the other."""
        return [place for place, _ in itertools.groupby(frame.named.place for frame in self.frames)]


@dataclass(frozen=True)
class Story:
    """What a question sees of a stream: scenes in order of time, possibly with gaps between and within them."""

    scenes: tuple[Scene, ...]

    @property
    def frames(self) -> list[Shown]:
        """All frames in order."""
        return [frame for scene in self.scenes for frame in scene.frames]


Source = Callable[[random.Random, int], Story]
"""Makes the story of so many frames with the given random numbers."""


class NaturalStories:
    """Stories about the 1000 classes, from the classifier's last layer: weights [1000, D] and bias [1000]."""

    def __init__(self, names: Names, weight: Tensor, bias: Tensor) -> None:
        self.names = names
        centred = (weight - weight.mean(0)).float()
        self._weight, self._bias = centred, (bias - bias.mean()).float()
        self._one = centred / centred.norm(dim=1, keepdim=True) ** 2  # raises a class's logit by one, [1000, D]
        self._noise = 1 / float(centred.norm(dim=1).mean())  # raises logits by about one, in any direction
        near = torch.nn.functional.normalize(centred) @ torch.nn.functional.normalize(centred).T
        self._similar = near.topk(6).indices[:, 1:].tolist()  # the five most similar classes of each

    def __call__(self, rng: random.Random, frames: int) -> Story:
        """A story of so many frames, of which a question sees them all."""
        drawn = self._scenes(rng, frames)
        seconds = seen_seconds(rng, frames)
        looks = [look for _, length in drawn for look in looks_of_scene(rng, length)]
        named = [
            replace(one, colour=colour, place=place)
            for one, (colour, place) in zip(self._names(rng, drawn, seconds), looks, strict=True)
        ]
        shown = iter(zip(seconds, named, strict=True))
        frames_seen = iter(written([Shown(*one) for one in shown]))
        scenes = [self._scene(tuple(next(frames_seen) for _ in range(length))) for _, length in drawn]
        return Story(tuple(merged(scenes)))

    def _scenes(self, rng: random.Random, frames: int) -> list[tuple[int, int]]:
        """Classes and lengths: things return now and then, and similar things follow each other more than by chance."""
        drawn: list[tuple[int, int]] = []
        longest = rng.choice((4, 8, 12, 20))
        while frames:
            length = min(frames, rng.randint(min(2, longest), longest))
            drawn.append((self._next_class(rng, [one for one, _ in drawn]), length))
            frames -= length
        return drawn

    def _next_class(self, rng: random.Random, before: Sequence[int]) -> int:
        luck = rng.random()
        if before and luck < 0.15:
            return rng.choice(before)
        if before and luck < 0.25:
            return int(rng.choice(self._similar[before[-1]]))
        if luck < 0.6:  # groups are of very different sizes: half of the time a group first
            group = rng.choice(sorted({row[1] for row in self.names.rows}))
            return rng.choice([index for index, row in enumerate(self.names.rows) if row[1] == group])
        return rng.randrange(1000)

    def _names(self, rng: random.Random, drawn: Sequence[tuple[int, int]], seconds: Sequence[int]) -> list[Named]:
        """Names as the adapter gives them: steadied within a clip, back to the last cut that was noticed."""
        features = torch.cat([self._features(rng, one, length) for one, length in drawn])
        starts = {sum(length for _, length in drawn[:index]) for index in range(1, len(drawn))}
        noticed = {start for start in starts if rng.random() < 0.97}
        joined = [index not in noticed and index % BLOCK_FRAMES != 0 for index in range(1, len(seconds))]
        return self.names.name(running_means((features @ self._weight.T + self._bias).softmax(-1), joined))

    def _features(self, rng: random.Random, one: int, length: int) -> Tensor:
        """Centred features [length, D] of a scene of class `one`."""
        random_numbers = torch.Generator().manual_seed(rng.getrandbits(48))
        strength = rng.uniform(4.5, 11)
        centre = strength * self._one[one]
        centre = centre + rng.uniform(0, 0.85) * strength * self._one[rng.choice(self._similar[one])]
        centre = centre + rng.uniform(0, 0.6) * strength * self._one[rng.randrange(1000)]
        noise = self._noise * torch.randn(1 + length, centre.numel(), generator=random_numbers)
        return centre + noise[0] + rng.choice((0.2, 0.5, 0.9, 1.3)) * noise[1:]

    def _scene(self, frames: tuple[Shown, ...]) -> Scene:
        return Scene(frames, called(frames))


def looks_of_scene(rng: random.Random, length: int) -> list[tuple[str, str]]:
    """Colour and place in each frame of a scene: the colour is not always sure, and the thing may move."""
    colour = rng.choice(("", *COLOURS, "black", "white", "gray", "brown", "brown", "green", "gray"))
    missed = rng.choice((0.0, 0.1, 0.3))
    start = rng.gauss(0.5, 0.18), rng.gauss(0.5, 0.1)
    end = start if rng.random() < 0.5 else (rng.gauss(0.5, 0.22), rng.gauss(0.5, 0.1))
    looks = []
    for index in range(length):
        part = index / max(1, length - 1)
        x, y = (a + (b - a) * part + rng.gauss(0, 0.01) for a, b in zip(start, end, strict=True))
        looks.append(("" if rng.random() < missed else colour, place_word(x, y)))
    return looks


def written(frames: Sequence[Shown]) -> list[Shown]:
    """The same frames: those that go on with the one before, in the same clip, are not written out."""
    found = list(frames[:1])
    for index in range(1, len(frames)):
        before, frame = frames[index - 1], frames[index]
        same = index % BLOCK_FRAMES and before.named.chain == frame.named.chain and frame.second - before.second <= 1
        found.append(replace(frame, has_line=not same))
    return found


def called(frames: Sequence[Shown]) -> tuple[str, ...]:
    """The most specific chain that most frames agree on; where they agree on nothing, the commonest."""
    counts: Counter[tuple[str, ...]] = Counter()
    for frame in frames:
        chain = frame.named.chain
        counts.update(chain[start:] for start in range(len(chain)))
    agreed = [chain for chain, count in counts.items() if count >= SURE_ENOUGH * len(frames)]
    commonest = Counter(frame.named.chain for frame in frames).most_common(1)[0][0]
    return max(agreed, key=lambda chain: (len(chain), counts[chain]), default=commonest)


def merged(scenes: Sequence[Scene]) -> list[Scene]:
    """Neighbours that are called the same are one scene."""
    found: list[Scene] = []
    for scene in scenes:
        if found and found[-1].name == scene.name:
            found[-1] = Scene(found[-1].frames + scene.frames, scene.chain)
        else:
            found.append(scene)
    return found


def seen_seconds(rng: random.Random, frames: int) -> list[int]:
    """Rising seconds of so many frames: blocks of four, with gaps where memory brought nothing back."""
    now = rng.choice((0, 0, 0, rng.randrange(120), rng.randrange(LATEST_START_SECONDS)))
    every = 2 if rng.random() < 0.1 else 1
    gap = rng.choice((0.0, 0.0, 0.3, 0.6))
    seconds = []
    for index in range(frames):
        if index % BLOCK_FRAMES == 0 and rng.random() < gap:
            now += rng.choice((4, 8, 16, rng.randrange(4, 600)))
        seconds.append(now)
        now += every
    return seconds
