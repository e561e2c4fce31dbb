#!/usr/bin/env python3
"""What a question costs in a batch, against encoding its video anew for each question; the last line is JSON.

Both go through the same code with the same model in one process: a batch gives a video to one session with all its
questions, the other a session for every question, which watches from the start up to the question's time. Videos are
worlds filmed at 2 frames a second, of which 1 a second is encoded; questions are spread evenly over their time. Presets
that remember differently are run as batches too. The first pass of all is thrown away.

    scripts/bench_batch.py --videos 2 --seconds 120 --questions 30 --model tiny
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vstream.app.batch.ledger import Ledger
from vstream.app.batch.marks import summary_of
from vstream.app.batch.options import BatchOptions
from vstream.app.batch.plan import Video, plan
from vstream.app.batch.rows import Row
from vstream.app.batch.run import Pass, Spent, session_settings
from vstream.app.lab.exam import Examiner
from vstream.app.lab.render import film
from vstream.app.lab.world import World
from vstream.app.output import PictureFolder
from vstream.app.progress import Progress
from vstream.engine import Engine

SEED = 7 * 10**8
PRESETS = ("default", "last-frames", "full")

Measured = tuple[dict[str, Any], dict[int, Any]]
"""What a pass took, as JSON values; answers by row."""


def make_videos(folder: Path, count: int, seconds: int, each: int) -> list[Row]:
    """Films worlds into a folder, and asks about each."""
    rows = list[Row]()
    for number in range(count):
        world = World(SEED + number, seconds)
        film(world, folder / f"w{number}.mp4", fps=2, side=96)
        for turn in range(each):
            at = (turn + 1) * (seconds - 1) // each
            for one in Examiner(world, seed=turn).ask(at, 1):
                row = len(rows) + 1
                rows.append(Row(row, row, f"w{number}.mp4", one.text, float(at), (), one.answer, one.type))
    return rows


def one_by_one(videos: Sequence[Video]) -> list[Video]:
    """Every question as if it were the only one about its video."""
    return [Video(video.name, video.path, (row,)) for video in videos for row in video.rows]


def measure(engine: Engine, folder: Path, videos: Sequence[Video], rows: Sequence[Row], given: Any) -> Measured:
    """What one pass over some videos took, and its answers."""
    preset = None if given.preset == "none" else given.preset
    options = BatchOptions(
        videos=folder, out=folder / "out.jsonl", model=given.model, preset=preset, max_tokens=given.max_tokens,
        overwrite=True, at_once=given.at_once,
    )  # fmt: skip
    spent, decoded = Spent(), engine.decoding_seconds
    with Ledger(options.out, overwrite=True) as ledger:
        began = time.perf_counter()
        watch = Pass(engine, options, session_settings(options), ledger, PictureFolder(None), Progress(), spent)
        watch(videos, len(rows))
        spent.wall_seconds = time.perf_counter() - began
        spent.answer_seconds += engine.decoding_seconds - decoded
        summary = summary_of(ledger.records())
        answers = {record["row"]: record.get("answer") for record in ledger.records()}
    taken = {name: summary[name] for name in ("right", "errors", "ttft_ms_p50")}
    return {**taken, **asdict(spent)}, answers


def table(results: dict[str, dict[str, Any]], questions: int) -> str:
    """A line for each way, with what a question costs."""
    head = f"{'':24}{'frames':>9}{'open':>7}{'encode s':>10}{'answer s':>10}{'total s':>9}{'ms a question':>15}  right"
    lines = [
        f"{name:24}{one['frames_encoded']:>9,}{one['frames_open']:>7,}{one['encode_seconds']:>10.2f}"
        f"{one['answer_seconds']:>10.2f}{one['wall_seconds']:>9.2f}{1000 * one['wall_seconds'] / questions:>15.1f}"
        f"  {one['right']['right']} of {one['right']['of']}"
        for name, one in results.items()
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=120, help="of each video")
    parser.add_argument("--questions", type=int, default=30, help="about each video")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--max-tokens", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--preset", action="append", help=f"may be given often; {', '.join(PRESETS)} unless given")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name, Engine.load(given.model) as engine:
        folder = Path(name)
        rows = make_videos(folder, given.videos, given.seconds, given.questions)
        videos, _ = plan(rows, folder)
        given.preset, presets = "none", given.preset or PRESETS
        measure(engine, folder, videos[:1], rows, given)
        measured = {"batch": measure(engine, folder, videos, rows, given)}
        measured["anew for each question"] = measure(engine, folder, one_by_one(videos), rows, given)
        for given.preset in presets:
            measured[f"batch, {given.preset}"] = measure(engine, folder, videos, rows, given)
    results = {name: taken for name, (taken, _) in measured.items()}
    batch, anew = measured["batch"][1], measured["anew for each question"][1]
    same = sum(batch[row] == anew[row] for row in batch)
    about = f"{len(rows)} questions about {given.videos} videos of {given.seconds} s"
    print(f"{about}, model {given.model}, {given.threads} threads; {same} answers of the first two are the same")
    print(table(results, len(rows)))
    setting = {
        name: getattr(given, name) for name in ("videos", "seconds", "model", "max_tokens", "threads", "at_once")
    }
    print(json.dumps({**setting, "questions": len(rows), "same_answers": same, "results": results}))


if __name__ == "__main__":
    sys.exit(main())
