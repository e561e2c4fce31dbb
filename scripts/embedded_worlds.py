"""Streams of the synthetic world for training the embedded model: pictures that the adapter itself looks at.

Here places, colours and cuts are real, and names are whatever the classifier takes the world's shapes for. The world's
truth says which frames are one scene. Nothing here knows of questions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from embedded_stories import BLOCK_FRAMES, Scene, Shown, Story, called, merged, seen_seconds, written

from vstream.app.lab.render import draw
from vstream.app.lab.world import World
from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.embedded.naming import Named
from vstream.types import Frame

MOST_FRAMES = 16  # each is looked at, which costs as much as ten tokens of training
SIDE = 160


class WorldStories:
    """A source of stories; see `embedded_stories.Source`."""

    def __init__(self, adapter: EmbeddedAdapter) -> None:
        self._adapter = adapter

    def __call__(self, rng: random.Random, frames: int) -> Story:
        """A story of at most so many frames, of which a question sees them all."""
        seconds = seen_seconds(rng, min(frames, MOST_FRAMES))
        world = World(rng.getrandbits(40), seconds[-1] + 1, start_seconds=seconds[0], scene_seconds=(3, 9), crowd=0)
        shown = written(
            [Shown(second, one) for second, one in zip(seconds, self._described(world, seconds), strict=True)]
        )
        starts = itertools.groupby(shown, key=lambda frame: world.scene_at(frame.second).start_seconds)
        scenes = [tuple(group) for _, group in starts]
        return Story(tuple(merged([Scene(frames_seen, called(frames_seen)) for frames_seen in scenes])))

    def _described(self, world: World, seconds: Sequence[int]) -> list[Named]:
        """What the adapter sees, clip by clip."""
        frames = [frame_of(world, second) for second in seconds]
        clips = (frames[start : start + BLOCK_FRAMES] for start in range(0, len(frames), BLOCK_FRAMES))
        return [one for clip in clips for one in self._adapter.describe(clip)]


def frame_of(world: World, second: int) -> Frame:
    """What is to be seen of a world at a second."""
    return Frame(pts_seconds=float(second), image=draw(world, second, side=SIDE))
