"""Which presets the memory lab compares, at which budgets, on which streams; and telling what came out.

It knows nothing of argument parsing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vstream.app.lab.memory_lab import Task, Trial, make_task, run_lab
from vstream.app.lab.report import plot, report_of, table_of
from vstream.app.plot import check_can_plot
from vstream.config import DecodeOptions
from vstream.engine import Engine
from vstream.presets import PRESETS

SHORT = {"max_question_tokens": 64, "max_answer_tokens": 16, "decode": DecodeOptions(max_tokens=8)}
"""The world's questions and answers are short; so more positions are left for the stream."""
UNBOUNDED = ("full", "oracle")
WITHOUT_PAST = ("last-frames", "sink-window")
GROWING = ("rekv", "rekv+window", "default")
"""Presets that are worth a look with everything kept too."""
SHARES = (0.10, 0.03)
SECONDS, QUICK_SECONDS = (1800, 3600), (900,)
QUICK_SHARES = (0.10,)
LEAST_SECONDS, MOST_SECONDS = 300, 24 * 3600
"""Of a stream: twelve needles must have room, and its pictures (28 kB a second) RAM."""


def plan(
    presets: Sequence[str], *, quick: bool = False, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Trial]:
    """What is tried: presets that bound their memory at each share of everything's bytes, the others with everything.

    Args:
        presets: names; `oracle` is what others are compared with.
        quick: fewer budgets.
        settings: by preset, on top of its own.

    Raises:
        ValueError: for a name that is no preset.
    """
    unknown = [name for name in presets if name not in PRESETS]
    if unknown:
        raise ValueError(f"unknown preset {unknown[0]!r}; choose from {', '.join(PRESETS)}")
    trials = []
    for name in presets:
        more = {**SHORT, **(settings or {}).get(name, {})}
        trials += [Trial(name, share, more) for share in _shares(name, QUICK_SHARES if quick else SHARES)]
    return trials


def _shares(name: str, bounded: Sequence[float]) -> tuple[float, ...]:
    if name in UNBOUNDED:
        return (1.0,)
    if name in WITHOUT_PAST:
        return (min(bounded),)
    return (1.0, *bounded) if name in GROWING else tuple(bounded)


def lab(
    *,
    model: str = "tiny",
    presets: Sequence[str] = tuple(PRESETS),
    quick: bool = False,
    seed: int = 0,
    seconds: Sequence[int] = (),
    picture: Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs the lab and says what came out, see `report_of`.

    Args:
        model: who watches and answers; the questions are those that `tiny` knows.
        presets: names of `vstream.presets`.
        quick: one stream of a quarter of an hour and one budget, instead of two of up to an hour, and two.
        seed: of the streams.
        seconds: how long each stream is, instead.
        picture: PNG to write.
        settings: by preset, on top of its own.
        told: hears of progress, line by line.

    Raises:
        ValueError: for an unknown model or preset, streams too short or long, or a picture that could not be written.
    """
    for length in seconds:
        if not LEAST_SECONDS <= length <= MOST_SECONDS:
            raise ValueError(f"a stream of the lab must take {LEAST_SECONDS} to {MOST_SECONDS} seconds, got {length}")
    trials = plan(presets, quick=quick, settings=settings)
    if picture is not None:
        check_can_plot(picture)  # before the minutes that the rest takes
    with Engine.load(model) as engine:
        tasks = tasks_for(seconds or (QUICK_SECONDS if quick else SECONDS), seed=seed)
        report = report_of(run_lab(engine, tasks, trials, told, SHORT))
    if picture is not None:
        plot(report, picture)
    return report


def tasks_for(seconds: Sequence[int], *, seed: int) -> list[Task]:
    """The streams, each so long."""
    return [make_task(number, length, seed=seed) for number, length in enumerate(seconds)]


def show(report: Mapping[str, Any], *, as_json: bool, say: Callable[[str], None] = print) -> None:
    """The table, unless only JSON is wanted, and the report as JSON on the last line."""
    if not as_json:
        say(table_of(dict(report)))
    say(json.dumps(report))
