#!/usr/bin/env python3
"""How often `tiny` is right on the synthetic world, by question type; the last line is JSON.

Everything goes through the engine, as any stream does: pictures, clips, memory, questions.

- `window`: streams all of which is shown, one question of every type about each.
- `oracle`: an hour of stream with needles, asked at its end; memory brings back the blocks that hold the evidence.
- `blind`: the questions of `oracle` with blocks chosen at random: what the window and luck are good for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vstream.app.lab.exam import FOR_NEEDLES, TEMPLATES, Examiner, Question
from vstream.app.lab.render import WorldSource
from vstream.app.lab.world import Sighting, World, plant
from vstream.engine import Engine
from vstream.memory.policies import Oracle
from vstream.session import Session

HOUR = 3600
WINDOW_SECONDS = 32
RESAMPLES = 1000
SETTINGS = ("window", "oracle", "blind")
MODELS = Path(__file__).resolve().parent.parent / "vstream" / "models"
SCORES, CARD = MODELS / "scores.json", MODELS / "tiny" / "MODEL_CARD.md"


@dataclass(frozen=True)
class Marked:
    """A question, what was answered, and in which setting."""

    setting: str
    stream: int
    question: Question
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is the one."""
        return self.answer.strip() == self.question.answer


def in_window(engine: Engine, streams: int, seed: int) -> Iterator[Marked]:
    """Streams of several lengths, each asked one question of every type at its end, where the truth gives one."""
    rng = random.Random(seed)
    for number in range(streams):
        length = rng.randint(10, WINDOW_SECONDS)
        start = rng.choice([0, rng.randrange(2 * HOUR)])
        world = World(10**9 + seed + number, start + length, start_seconds=start)
        asked = every_type(Examiner(world, seed=1), start + length - 1, 1)
        with closing(watched(engine, world)) as session:
            yield from (Marked("window", number, one, answer(session, one)) for one in asked)


def in_an_hour(engine: Engine, streams: int, seed: int, *, seconds: int, count: int) -> Iterator[Marked]:
    """Long streams with needles; each question twice, with the evidence brought back and with blocks at random."""
    for number in range(streams):
        every = seconds // 14
        needles = plant(seed + number, [40 + every * n + 7 * (n % 3) for n in range(12)], seconds=5)
        world = World(2 * 10**9 + seed + number, seconds, needles)
        asked = every_type(Examiner(world, seed=1), seconds - 1, count, types=FOR_NEEDLES, about=needles)
        with closing(watched(engine, world)) as session:
            oracle = session.memory.retriever = Oracle(seed=seed)
            for question in asked:
                oracle.evidence = question.evidence
                yield Marked("oracle", number, question, answer(session, question))
                oracle.evidence = ()
                yield Marked("blind", number, question, answer(session, question))


def every_type(
    examiner: Examiner,
    now: int,
    count: int,
    *,
    types: Sequence[str] = tuple(TEMPLATES),
    about: Sequence[Sighting] | None = None,
) -> list[Question]:
    """So many questions of each type, or fewer where the truth gives no more."""
    return [one for type in types for one in examiner.ask(now, count, types=(type,), about=about)]


def watched(engine: Engine, world: World) -> Session:
    """A session that has seen all of a world."""
    session = engine.open(WorldSource(world, side=96), start=False, **engine.adapter.settings)
    assert session.ingest is not None
    while not session.ingest.drained:
        session.ingest.pump(session.config.clip_frames)
        session.step()
    return session


def answer(session: Session, question: Question) -> str:
    """What is answered at the end of the stream."""
    asked = session.ask(question.text, at="end")
    while not asked.done:
        session.step()
    return asked.text()


def score(marked: Sequence[Marked]) -> dict[str, float]:
    """Share of right answers with its 95 % interval, by bootstrap over streams."""
    by_stream: dict[int, list[bool]] = defaultdict(list)
    for one in marked:
        by_stream[one.stream].append(one.right)
    sums = np.array([(sum(rights), len(rights)) for rights in by_stream.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    shares = sums[drawn].sum(1)
    low, high = np.percentile(shares[:, 0] / shares[:, 1], [2.5, 97.5])
    right, count = sums.sum(0)
    shares = {"exact_match": right / count, "low": low, "high": high}
    return {**{name: round(float(share), 4) for name, share in shares.items()}, "questions": int(count)}


def examine(model: str, *, quick: bool, seed: int) -> list[Marked]:
    """Every answer in all three settings."""
    with Engine.load(model) as engine:
        marked = list(in_window(engine, 12 if quick else 80, seed))
        hour = {"seconds": HOUR // 2, "count": 5} if quick else {"seconds": HOUR, "count": 8}
        return marked + list(in_an_hour(engine, 1 if quick else 6, seed, **hour))


def summary(marked: Sequence[Marked]) -> dict[str, Any]:
    """All scores, as the JSON has them: those of `window` at the top, `oracle` and `blind` below."""
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        of_it = [one for one in marked if one.setting == setting]
        types = sorted({one.question.type for one in of_it}, key=list(TEMPLATES).index)
        by_type = {name: score([one for one in of_it if one.question.type == name]) for name in types}
        found[setting] = {**score(of_it), "by_type": by_type}
    return {**found.pop("window"), **found}


def evaluate_tiny(*, quick: bool = False, model: str = "tiny", seed: int = 100) -> dict[str, Any]:
    """{"exact_match", "low", "high", "questions", "by_type": {type: the same four}, "oracle": ..., "blind": ...}.

    The top is the setting `window`; "oracle" and "blind" hold the same five of theirs.

    Args:
        quick: fewer and shorter streams.
        model: `tiny`, or the folder of another checkpoint of its kind.
        seed: of the streams.
    """
    return summary(examine(model, quick=quick, seed=seed))


def table_of(found: dict[str, Any]) -> str:
    """Scores by type as a table in Markdown, as the model card has it."""
    parts = (found, found["oracle"], found["blind"])
    rows = [("question type", *SETTINGS), ("---",) * (1 + len(SETTINGS)), ("all", *(cell(part) for part in parts))]
    rows += [(name, *(cell(part["by_type"].get(name)) for part in parts)) for name in TEMPLATES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(part: dict[str, float] | None) -> str:
    """A score as the table and the model card show it; empty where nothing was asked."""
    if part is None:
        return ""
    return f"{part['exact_match']:.2f} ({part['low']:.2f} to {part['high']:.2f}) of {part['questions']}"


def write_score(model: str, right: float, found: dict[str, Any], of: str) -> None:
    """Puts a model's score, with its interval and number of questions, where `vstream models` reads it."""
    scores = json.loads(SCORES.read_text())
    scores[model] = {"right": right, **{name: found[name] for name in ("low", "high", "questions")}, "of": of}
    SCORES.write_text(json.dumps(scores, indent=1) + "\n")


def write_card(found: dict[str, Any]) -> None:
    """Puts the table into the model card."""
    before, _, rest = CARD.read_text().partition("| question type |")
    CARD.write_text(before + table_of(found) + "\n" + rest.partition("\n\n")[2])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter streams, about a minute")
    parser.add_argument("--model", default="tiny", help="another checkpoint of the same kind")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the scores into the package and its card")
    options = parser.parse_args()
    torch.set_num_threads(1)
    marked = examine(options.model, quick=options.quick, seed=options.seed)
    found = summary(marked)
    print(table_of(found))
    for one in [one for one in marked if not one.right and one.setting != "blind"][: options.wrong]:
        print(f"{one.setting}: {one.question.text} {one.answer!r}, not {one.question.answer!r}")
    if options.write:
        write_score("tiny", found["exact_match"], found, "questions on the synthetic world, about all of its window")
        write_card(found)
    print(json.dumps({"tiny": found}))


if __name__ == "__main__":
    sys.exit(main())
