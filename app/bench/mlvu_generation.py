"""MLVU's two generation tasks (arXiv 2406.04264): describing a scene, and the whole video. A judge gives the marks.

A description gets accuracy (by scoring points) and relevance, a summary completeness and reliability (by a right
answer), each 1 to 5. Their sum is the total, and the mean of the two tasks' totals is the published G-Avg. Answers of
some length are wanted: `--max-tokens 512`.

The published scripts, `calculate.py` and `calculate_sum.py`, take what stands between the first colon behind a mark's
first mention and the next comma, without its first character. So a mark written without a blank behind the colon, or
mentioned before it is given, ends them; here it is left out. A mark that is not there at all makes the other one the
first, and the second 0. Nothing keeps marks between 1 and 5. Strictly, the last of each must be there, and be 1 to 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vstream.app.bench.base import Ask, Benchmark, Item, Mark, Measure, Said
from vstream.app.bench.entries import Entry, read_entries

BEST = 5.0


class Task(NamedTuple):
    """One of the two: its file, what it is marked by, and what the judge is told."""

    file: str
    measures: tuple[str, str]
    rules: str


SCENE = Task(
    "8_sub_scene.json",
    ("accuracy", "relevance"),
    "You mark how somebody described a scene of a video that you cannot see.\n"
    "Accuracy: give 5 for each scoring point that the answer states correctly, 3 for one that it touches on but gets "
    "partly wrong, 1 for one that it misses; the accuracy is the mean over the points.\n"
    "Relevance, whether or not the answer is right: 5 if it speaks of nothing but what was asked, and with certainty; "
    "4 if mostly so; 3 if it is about the question but unsure of itself; 2 if much of it is beside the question; 1 if "
    "it is about something else.",
)
SUMMARY = Task(
    "9_summary.json",
    ("completeness", "reliability"),
    "You mark how somebody summed up a video that you cannot see, by a right summary.\n"
    "Completeness: 5 if everything important is there; 4 if nearly everything; 3 if most; 2 if some, with much "
    "missing; 1 if hardly anything.\n"
    "Reliability: 5 if nothing is wrong and all is clear; 4 for slips that hardly matter; 3 for small errors; 2 for "
    "several errors or contradictions; 1 for many, or if it is confusing. What goes beyond the right summary without "
    "contradicting it costs nothing. Both are whole numbers.",
)
TASKS = (SCENE, SUMMARY)


class MlvuGeneration(Benchmark):
    """201 scenes and 217 summaries."""

    name = "mlvu-generation"
    about = "MLVU, descriptions and summaries of long videos, marked by a judge (arXiv 2406.04264)"
    needs = f"{SCENE.file} and {SUMMARY.file}, and the videos they name"
    measures = (Measure("total", 2 * BEST), *(Measure(name, BEST) for task in TASKS for name in task.measures))
    mean_of = "groups"

    def items(self) -> Iterator[Item]:
        """Asked at the end of the video."""
        for task in TASKS:
            folder = task.file.removesuffix(".json")
            for number, entry in enumerate(read_entries(self.disk, task.file), start=1):
                ask = Ask(entry.text("question"), "end")
                video = f"{folder}/{entry.text('video')}"
                group = (entry.text("question_type"),)
                yield Item(f"{folder}-{number}", video, group, (ask,), {"task": task, "right": _right(entry, task)})

    def prompts(self, item: Item, said: Said) -> tuple[str, ...]:
        """One, where there is an answer."""
        if said[0] is None:
            return ()
        task = item.gold["task"]
        asked = f"Question: {item.asks[0].question}\nScoring points:\n" if task is SCENE else "Right summary: "
        first, second = task.measures
        ending = f"{{'score_{first}': ..., 'score_{second}': ..., 'total_score': ...}}"
        return (
            f"{task.rules}\n\n{asked}{item.gold['right']}\nAnswer to mark: {said[0]}\n\n"
            f"Say briefly why, then end with the marks from 1 to 5 and their sum, in this form: {ending}",
        )

    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """Both marks of its task, and their sum."""
        names: tuple[str, str] = item.gold["task"].measures
        reply = judged[0] if judged else None
        official = None if reply is None else official_scores(reply, names)
        strict = (0.0, 0.0) if reply is None else tuple(strict_score(reply, name) for name in names)
        marks = {
            name: Mark(None if official is None else official[number], strict[number])
            for number, name in enumerate(names)
        }
        total = Mark(None if official is None else sum(official), sum(strict) if all(strict) else 0.0)
        return {"total": total, **marks}


def official_scores(reply: str, names: tuple[str, str]) -> tuple[float, float] | None:
    """Both marks as the published scripts read them, None where they would have ended."""
    found = [_after_colon(reply, at) for at in (reply.find(f"score_{name}") for name in names) if at >= 0]
    if any(not math.isfinite(score) for score in found):
        return None
    first, second = (*found, 0.0, 0.0)[:2]
    return first, second


def _after_colon(reply: str, at: int) -> float:
    """The number between the next colon, a character and the next comma; not a number where there is none."""
    start = reply.find(":", at) + 2
    try:
        return float(reply[start : reply.find(",", start)])
    except ValueError:
        return math.nan


def strict_score(reply: str, name: str) -> float:
    """The last mark of a name, 0 where it is not there or not from 1 to 5."""
    found = re.findall(rf"score_{name}\W{{0,2}}\s*:\s*\W{{0,2}}(\d+(?:\.\d+)?)(?!\d|\.\d)", reply)
    score = float(found[-1]) if found else 0.0
    return score if 1 <= score <= BEST else 0.0


def _right(entry: Entry, task: Task) -> str:
    """What the judge goes by: the scoring points, a line each, or the right answer."""
    if task is SUMMARY:
        return entry.text("answer")
    points = entry["scoring_points"]
    if not isinstance(points, list) or not points:
        raise entry.wrong(f"scoring_points must be a list of one or more, got {points!r:.60}")
    return "\n".join(f"- {point}" for point in points)
