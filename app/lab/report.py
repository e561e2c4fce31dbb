"""What the memory lab tells: scores with intervals, by type and by age, as a table, as JSON and as a picture.

Intervals are 95%, by bootstrap over needles: questions about one needle stand or fall together; those of the present,
or of what never was, each alone. It knows nothing of models or streams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vstream.app.lab.memory_lab import PRESENT, Marked, Outcome
from vstream.app.plot import check_can_plot

RESAMPLES = 1000
AGES = (0, 60, 300, 900, 1800, 3600, 7200)
"""Seconds at which age groups begin; the present is apart."""
HOUR = 3600.0
REFERENCE = "oracle"

Values = npt.NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""Takes sums [R, ...] over resamples to one figure each [R]."""


def report_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All that is told, ready for JSON: {"presets": [{"preset", "exact_match", "bytes", "recall_slope", ...}]}."""
    oracle = next((one for one in outcomes if one.preset == REFERENCE), None)
    return {"presets": [facts_of(one, oracle) for one in outcomes]}


def facts_of(outcome: Outcome, oracle: Outcome | None) -> dict[str, Any]:
    """One preset at one budget."""
    marked, past = outcome.marked, [one for one in outcome.marked if one.age_seconds > 0]
    low, high = interval(_rows(marked, lambda one: one.right), mean)
    return {
        "preset": outcome.preset,
        "share": outcome.share,
        "bytes": round(outcome.num_bytes),
        "exact_match": share_of(marked, lambda one: one.right),
        "low": low,
        "high": high,
        "questions": len(marked),
        "present": share_of([one for one in marked if one.type in PRESENT], lambda one: one.right),
        "past": share_of(past, lambda one: one.right),
        "recall": share_of(past, lambda one: one.found),
        "match_slope": slope(past, lambda one: one.right),
        "recall_slope": slope(past, lambda one: one.found),
        "ttft_seconds": round(float(np.median([one.ttft_seconds for one in marked])), 4),
        "by_type": groups(marked, lambda one: one.type),
        "by_age": groups(past, age_group),
        "of_oracle": None if oracle is None else ratio(outcome, oracle),
    }


def share_of(marked: Sequence[Marked], holds: Callable[[Marked], bool]) -> float | None:
    """How often something holds, None for no answers."""
    return round(sum(map(holds, marked)) / len(marked), 4) if marked else None


def groups(marked: Sequence[Marked], name: Callable[[Marked], str]) -> dict[str, dict[str, Any]]:
    """{group: {"exact_match", "recall", "questions"}}."""
    found = defaultdict(list)
    for one in marked:
        found[name(one)].append(one)
    return {
        group: {
            "exact_match": share_of(of_it, lambda one: one.right),
            "recall": share_of(of_it, lambda one: one.found),
            "questions": len(of_it),
        }
        for group, of_it in sorted(found.items(), key=lambda pair: pair[1][0].age_seconds if pair[1] else 0)
    }


def age_group(one: Marked) -> str:
    """In words, as "5 to 15 min"."""
    start = max(age for age in AGES if age <= one.age_seconds)
    later = [age for age in AGES if age > start]
    return f"{start // 60} to {later[0] // 60} min" if later else f"over {start // 60} min"


def slope(marked: Sequence[Marked], holds: Callable[[Marked], bool]) -> dict[str, float] | None:
    """Change per hour of age, in shares, by least squares: {"per_hour", "low", "high"}; None without two ages."""
    if len({one.age_seconds for one in marked}) < 2:
        return None
    rows = _rows(marked, holds)
    low, high = interval(rows, trend)
    sums = np.sum([numbers for _, numbers in rows], axis=0)[None]
    return {"per_hour": round(float(trend(sums)[0]), 4), "low": low, "high": high}


def ratio(outcome: Outcome, oracle: Outcome) -> dict[str, float]:
    """Right answers beside the oracle's, on the same questions: {"ratio", "low", "high"} by paired bootstrap."""
    rows = [
        (_cluster(number, ours), np.array([ours.right, theirs.right], dtype=np.float64))
        for number, (ours, theirs) in enumerate(zip(outcome.marked, oracle.marked, strict=True))
    ]
    low, high = interval(rows, quotient)
    sums = np.sum([numbers for _, numbers in rows], axis=0)[None]
    return {"ratio": round(float(quotient(sums)[0]), 4), "low": low, "high": high}


Row = tuple[Hashable, Values]
"""What stands or falls together, and the numbers that are added up."""


def _rows(marked: Sequence[Marked], holds: Callable[[Marked], bool]) -> list[Row]:
    """Sums of 1, age, holds, age squared and age times holds."""
    found = list[Row]()
    for number, one in enumerate(marked):
        x, y = one.age_seconds / HOUR, float(holds(one))
        found.append((_cluster(number, one), np.array([1.0, x, y, x * x, x * y])))
    return found


def _cluster(number: int, one: Marked) -> Hashable:
    """What an answer stands or falls with."""
    return (one.stream, one.age_seconds) if one.age_seconds else (one.stream, "alone", number)


def mean(sums: Values) -> Values:
    """Of the third number."""
    return np.asarray(sums[:, 2] / sums[:, 0])


def trend(sums: Values) -> Values:
    """The least squares slope of the third number over the second."""
    count, x, y, xx, xy = sums.T
    return np.asarray((count * xy - x * y) / np.maximum(count * xx - x * x, 1e-12))


def quotient(sums: Values) -> Values:
    """The first by the second."""
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1.0))


def interval(rows: Sequence[Row], statistic: Statistic) -> tuple[float, float]:
    """95% of a statistic, by bootstrap over what stands or falls together."""
    clusters: dict[Hashable, Values] = {}
    for key, numbers in rows:
        clusters[key] = clusters.get(key, np.zeros_like(numbers)) + numbers
    sums = np.stack(list(clusters.values()))
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.percentile(statistic(sums[drawn].sum(axis=1)), [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


COLUMNS = ("preset", "of all bytes", "MiB", "right", "present", "past", "found", "of oracle's", "per hour", "TTFT ms")


def table_of(report: dict[str, Any]) -> str:
    """A table in Markdown, the best first within each budget."""
    facts = sorted(report["presets"], key=lambda one: (-one["share"], -one["exact_match"]))
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, facts)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    beside, change = one["of_oracle"], one["match_slope"]
    return (
        one["preset"],
        f"{one['share']:.0%}",
        f"{one['bytes'] / 2**20:.1f}",
        f"{one['exact_match']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
        *(_share(one[name]) for name in ("present", "past", "recall")),
        "" if beside is None else f"{beside['ratio']:.2f} ({beside['low']:.2f} to {beside['high']:.2f})",
        "" if change is None else f"{change['per_hour']:+.2f}",
        f"{1000 * one['ttft_seconds']:.0f}",
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(report: dict[str, Any], file: Path) -> None:
    """Writes a PNG: right answers against bytes, one dot for every preset and budget, with intervals.

    Raises:
        ValueError: see `check_can_plot`.
        OSError: if the file cannot be written.
    """
    check_can_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    by_preset = defaultdict(list)
    for one in report["presets"]:
        by_preset[one["preset"]].append(one)
    for number, (name, found) in enumerate(by_preset.items()):
        found.sort(key=lambda one: one["bytes"])
        x = [one["bytes"] / 2**20 for one in found]
        y = [one["exact_match"] for one in found]
        below = [max(0.0, one["exact_match"] - one["low"]) for one in found]
        above = [max(0.0, one["high"] - one["exact_match"]) for one in found]
        look: dict[str, Any] = {"marker": "o" if number < 10 else "s", "color": f"C{number % 10}"}
        if name == "default":
            look |= {"marker": "*", "markersize": 14}
        axes.errorbar(x, y, yerr=[below, above], label=name, capsize=2, linewidth=1, **look)
    axes.set_xscale("log")
    axes.set_xlabel("memory, MiB on all tiers")
    axes.set_ylabel("right answers")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.savefig(file, format="png", dpi=120)
