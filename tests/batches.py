"""Videos of the synthetic world and files of questions about them, for tests of batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vstream.app.lab.exam import Examiner
from vstream.app.lab.render import film
from vstream.app.lab.world import World

SEED = 500_000_000
TIMES = ("ttft_ms", "tokens_per_second", "memory", "frames", "vision_tokens")
"""What may differ between two runs: times, and how far a reader had got."""


def film_worlds(folder: Path, count: int, seconds: int) -> list[World]:
    """Writes w0.mp4, w1.mp4 ... and gives what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    worlds = [World(SEED + number, seconds) for number in range(count)]
    for number, world in enumerate(worlds):
        film(world, folder / f"w{number}.mp4", fps=2, side=96)
    return worlds


def rows_about(worlds: Sequence[World], each: int) -> list[dict[str, Any]]:
    """Questions about every world, spread over its time, those of one world not together."""
    rows = []
    for turn in range(each):
        for number, world in enumerate(worlds):
            at = (turn * 7 % each + 1) * (world.duration_seconds - 1) // each
            asked = Examiner(world, seed=turn).ask(at, 1)
            rows += [
                {"id": f"{number}-{turn}", "video": f"w{number}.mp4", "question": one.text, "at_seconds": at,
                 "answer": one.answer, "type": one.type}
                for one in asked
            ]  # fmt: skip
    return rows


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every record of a JSONL file, which must be whole."""
    data = path.read_bytes()
    assert data.endswith(b"\n"), "the last line is whole"
    return [json.loads(line) for line in data.splitlines()]


def by_row(path: Path) -> dict[int, dict[str, Any]]:
    """Records by row without what may differ; no row has two."""
    records = read_lines(path)
    found = {one["row"]: {name: value for name, value in one.items() if name not in TIMES} for one in records}
    assert len(found) == len(records), "a row has one line"
    return found
