#!/usr/bin/env python3
"""What leaving out repeated frames and patches, and cutting at scenes, costs `tiny`, for several thresholds.

Streams and questions are those of `eval_tiny.py` in its setting `window`. A line of JSON for each row:
the share of vision tokens left out, of frames skipped, clips, exact match, and right answers won and lost against a run
with nothing left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import eval_tiny
import torch

from vstream.app.lab.world import World
from vstream.engine import Engine
from vstream.reduction import VisionTokens
from vstream.sampling import Counters
from vstream.session import Session, Status

ROWS: tuple[dict[str, float], ...] = (
    *({"drop_similarity": most} for most in (0.99, 0.95, 0.9, 0.7, 0.5, -1.0)),
    *({"skip_duplicates": most} for most in (1.0, 3.0, 6.0, 12.0, 60.0)),
    *({"scene_cut": least} for least in (10.0, 20.0, 30.0)),
    {"drop_similarity": 0.95, "skip_duplicates": 3.0, "scene_cut": 20.0},
)


def marked(engine: Engine, streams: int, seed: int, **settings: Any) -> tuple[list[eval_tiny.Marked], list[Status]]:
    """All answers with some settings, and how every stream stood at its end."""
    stood: list[Status] = []
    watch, usual = eval_tiny.watched, engine.adapter.settings

    def watched(engine: Engine, world: World) -> Session:
        session = watch(engine, world)
        stood.append(session.status())
        return session

    engine.adapter.settings, eval_tiny.watched = {**usual, **settings}, watched
    try:
        return list(eval_tiny.in_window(engine, streams, seed)), stood
    finally:
        engine.adapter.settings, eval_tiny.watched = usual, watch


def row(settings: dict[str, float], found: Sequence[eval_tiny.Marked], stood: Sequence[Status]) -> dict[str, Any]:
    """Shares and scores."""
    vision = sum((one.vision for one in stood), VisionTokens())
    frames: list[Counters] = [one.frames for one in stood]
    return {
        **settings,
        "left_out": round(vision.share_left_out, 3),
        "skipped": round(sum(one.skipped for one in frames) / sum(one.received for one in frames), 3),
        "clips": sum(one.blocks["detail"] for one in stood),
        **eval_tiny.score(found),
    }


def measure(streams: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row with everything, then one for each of `ROWS`."""
    with Engine.load("tiny") as engine:
        whole, stood = marked(engine, streams, seed)
        yield row({}, whole, stood)
        for settings in ROWS:
            found, stood = marked(engine, streams, seed, **settings)
            pairs = list(zip(found, whole, strict=True))
            won = sum(one.right and not other.right for one, other in pairs)
            lost = sum(other.right and not one.right for one, other in pairs)
            yield {**row(settings, found, stood), "won": won, "lost": lost}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for found in measure(options.streams, options.seed):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
