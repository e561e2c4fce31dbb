"""From marks to scores: means by group, officially and strictly. It knows nothing of videos or of single benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vstream.app.batch.marks import wilson
from vstream.app.bench.base import Benchmark, Mark, Measure

Group = tuple[str, ...]
Marks = Mapping[str, Mark]


@dataclass(frozen=True)
class Score:
    """What a group of items comes to in one measure.

    Attributes:
        group: names from the outermost group; () for all.
        measure: what was marked.
        items: that were marked.
        left_out: of those, that the published script does not count.
        official: the published script's mean, None if it counts none.
        strict: ours.
        strict_interval: its 95% interval, where it is a share of items.
    """

    group: Group
    measure: str
    items: int
    left_out: int
    official: float | None
    strict: float | None
    strict_interval: tuple[float, float] | None

    def as_json(self) -> dict[str, Any]:
        """Itself as JSON values."""
        low, high = self.strict_interval or (None, None)
        return {
            "group": list(self.group), "measure": self.measure, "items": self.items, "left_out": self.left_out,
            "official": self.official, "strict": self.strict, "strict_low": low, "strict_high": high,
        }  # fmt: skip


def scores_of(benchmark: type[Benchmark], marked: Sequence[tuple[Group, Marks]]) -> list[Score]:
    """Scores of all groups in the order of their first items, an outer one before those in it."""
    groups = dict.fromkeys(group[:depth] for group, _ in marked for depth in range(len(group) + 1))
    ordered = sorted(groups, key=_place(list(groups)))
    scores = [_score(benchmark, group, measure, marked) for group in ordered for measure in benchmark.measures]
    return [one for one in scores if one.items]  # not every group is marked in every measure


def _place(groups: list[Group]) -> Callable[[Group], list[int]]:
    """Where a group comes: behind the one it is in, in the order in which groups were first seen."""
    first = {group: number for number, group in enumerate(groups)}
    return lambda group: [first[group[:depth]] for depth in range(len(group) + 1)]


def _score(benchmark: type[Benchmark], group: Group, measure: Measure, marked: Sequence[tuple[Group, Marks]]) -> Score:
    name = measure.name
    within = [(other, marks[name]) for other, marks in marked if other[: len(group)] == group and name in marks]
    marks = [mark for _, mark in within]
    is_share = measure.best == 1 and all(mark.strict in (0, 1) for mark in marks)
    by_items = benchmark.mean_of == "items" or all(other == group for other, _ in within)
    right = sum(int(mark.strict) for mark in marks)
    return Score(
        group, name, len(marks), sum(mark.official is None for mark in marks),
        _mean(benchmark, group, within, lambda mark: mark.official),
        _mean(benchmark, group, within, lambda mark: mark.strict),
        wilson(right, len(marks)) if is_share and by_items else None,
    )  # fmt: skip


def _mean(
    benchmark: type[Benchmark], group: Group, within: Iterable[tuple[Group, Mark]], of: Callable[[Mark], float | None]
) -> float | None:
    """The mean of items, or that of the means of the groups or tasks below; None for none."""
    within = list(within)
    depth = None if benchmark.mean_of == "tasks" else len(group) + 1
    below = dict.fromkeys(other[:depth] for other, _ in within if len(other) > len(group))
    if benchmark.mean_of != "items" and below:
        inner = [[one for one in within if one[0][:depth] == name] for name in below]
        values = [_mean(benchmark, name, one, of) for name, one in zip(below, inner, strict=True)]
    else:
        values = [of(mark) for _, mark in within]
    counted = [value for value in values if value is not None]
    return fmean(counted) if counted else None


# For people -----------------------------------------------------------------------------------------------------------


def line_of(score: Score, measures: Sequence[Measure]) -> dict[str, str]:
    """A line of a table; groups within groups are set in."""
    name = "  " * len(score.group) + (score.group[-1] if score.group else "all")
    best = next(one.best for one in measures if one.name == score.measure)
    line = {"": name, "items": f"{score.items:,}"}
    if len(measures) > 1:
        line["measure"] = score.measure
    line["official"] = value_text(score.official, best)
    line["strict"] = value_text(score.strict, best)
    if score.strict_interval is not None:
        low, high = score.strict_interval
        line["strict"] += f" ({100 * low:.1f} to {100 * high:.1f})"
    if score.left_out:
        line["official"] += f" of {score.items - score.left_out:,}"
    return line


def note_of(marks: Marks) -> str:
    """'officially 1, strictly 0', or the same of every measure."""
    said = {name: f"officially {_number(one.official)}, strictly {_number(one.strict)}" for name, one in marks.items()}
    return "; ".join(said.values() if len(said) == 1 else (f"{name}: {one}" for name, one in said.items()))


def _number(value: float | None) -> str:
    return "not counted" if value is None else f"{value:g}"


def value_text(value: float | None, best: float) -> str:
    """'61.3%', '3.20 of 5', or 'none'."""
    if value is None:
        return "none"
    return f"{100 * value:.1f}%" if best == 1 else f"{value:.2f} of {best:g}"
