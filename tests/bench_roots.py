"""Benchmarks on disk for tests: annotations in the published format, videos of the synthetic world, planted answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vstream.app.bench.base import Benchmark, Item, Mark, Said
from vstream.app.bench.disk import Disk
from vstream.app.cli import main
from vstream.app.lab.render import film
from vstream.app.lab.world import World

SEED, SECONDS = 600_000_000, 24
TINY = ("--model", "tiny", "--threads", "1", "--max-tokens", "6")


@cache
def world() -> World:
    """What every video of a fixture shows: 24 seconds."""
    return World(SEED, SECONDS)


def lay_out(root: Path, annotations: dict[str, Any], videos: Sequence[str]) -> Path:
    """Writes annotation files (JSON, or lines of it) and videos into a folder, at the paths given."""
    for name, value in annotations.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(one) + "\n" for one in value) if name.endswith(".jsonl") else json.dumps(value)
        path.write_text(lines, "utf-8")
    for name in videos:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        film(world(), root / name, fps=2, side=96)
    return root


def items_of(kind: Callable[..., Benchmark], root: Path) -> list[Item]:
    """What a benchmark asks."""
    return list(kind(Disk(root)).items())


def mark(kind: Callable[..., Benchmark], root: Path, said: Said, number: int = 0, measure: str = "right") -> Mark:
    """The mark of one item for planted answers."""
    benchmark = kind(Disk(root))
    return benchmark.mark(list(benchmark.items())[number], said, ())[measure]


def run(name: str, root: Path, out: Path, *more: str) -> int:
    """`vstream bench` with the model `tiny`, to JSON on stdout; the exit code."""
    return main(["bench", name, "--root", str(root), "--out", str(out), "--json", *TINY, *more])
