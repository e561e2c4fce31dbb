"""Rules that make alarms of what a model said to a standing question, and how good they are. It knows no streams.

All judge the same log-odds of yes against no, a number for each clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from vstream.standing import AlertOptions, Judge

LATE_SECONDS = 5  # a clip and a second
FALSE_PER_HOUR = 1.0  # at most, where thresholds are chosen
SILENCE = 0.725


@dataclass
class Heard:
    """What a model said to one standing question on one stream.

    Attributes:
        wording: the question's.
        presences: first and last second of each appearance of what it asks for.
        nothing: the log-odds with nothing to see.
        clips: first and last second of each.
        log_odds: of yes against no, in each.
        told: of the engine's own events, seconds of their beginnings, their pictures and the clips that raised them.
    """

    wording: str
    presences: Sequence[tuple[int, int]]
    nothing: float = 0.0
    clips: list[tuple[float, float]] = field(default_factory=list)
    log_odds: list[float] = field(default_factory=list)
    told: list[tuple[float, float, float]] = field(default_factory=list)


Rule = Callable[[Heard], Iterator[float]]
"""Gives the last second of each clip that raises an alarm."""


def above(threshold: float) -> Rule:
    """An alarm wherever log-odds rise above a threshold."""

    def alarms(heard: Heard) -> Iterator[float]:
        on = False
        for (_, end), log_odds in zip(heard.clips, heard.log_odds, strict=True):
            on, was_on = log_odds > threshold, on
            if on and not was_on:
                yield end

    return alarms


def silence_below(share: float) -> Rule:
    """VideoLLM-online's rule: an alarm wherever the probability of silence, here of no against yes, falls below it."""
    return above(math.log(1 / share - 1))


def ours(options: AlertOptions) -> Rule:
    """That of `vstream.standing`."""

    def alarms(heard: Heard) -> Iterator[float]:
        judge = Judge(options)
        if judge.needs_start:
            judge.start(heard.nothing)
        yield from _begun(judge, heard, heard.log_odds)

    return alarms


def above_nothing(on: float) -> Rule:
    """Contextual calibration alone: as ours, above what is said with nothing to see, whatever clips tell."""

    def alarms(heard: Heard) -> Iterator[float]:
        judge = Judge(AlertOptions(on=on, off=on / 2, calibrate=0))
        yield from _begun(judge, heard, [log_odds - heard.nothing for log_odds in heard.log_odds])

    return alarms


def _begun(judge: Judge, heard: Heard, log_odds: Sequence[float]) -> Iterator[float]:
    for (start, end), said in zip(heard.clips, log_odds, strict=True):
        if judge.hear(said, start, end) == "begins":
            yield end


def half_off(on: float) -> Rule:
    """Ours, where an event ends below half the score at which it begins."""
    return ours(AlertOptions(on=on, off=on / 2))


@dataclass(frozen=True)
class Found:
    """What a rule made of it.

    Attributes:
        found, of: appearances with an alarm, and all.
        false: alarms where there was nothing.
        repeated: alarms for what had one already.
        late: of each that was found, seconds from its first frame to the end of the clip that raised the alarm.
    """

    found: int = 0
    of: int = 0
    false: int = 0
    repeated: int = 0
    late: tuple[float, ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(
            self.found + other.found,
            self.of + other.of,
            self.false + other.false,
            self.repeated + other.repeated,
            self.late + other.late,
        )

    @property
    def recall(self) -> float:
        """Share of appearances with an alarm."""
        return self.found / self.of if self.of else math.nan


def judged(rule: Rule, heard: Sequence[Heard]) -> Found:
    """A rule on several questions."""
    return sum((_judged(list(rule(one)), one.presences) for one in heard), Found())


def _judged(alarms: Sequence[float], presences: Sequence[tuple[int, int]]) -> Found:
    late: dict[int, float] = {}
    false = repeated = 0
    for alarm in alarms:
        meant = next((n for n, (first, last) in enumerate(presences) if first <= alarm <= last + LATE_SECONDS), None)
        if meant is None:
            false += 1
        elif meant in late:
            repeated += 1
        else:
            late[meant] = alarm - presences[meant][0]
    return Found(len(late), len(presences), false, repeated, tuple(late.values()))


def best(rules: dict[float, Rule], heard: Sequence[Heard], hours: float) -> float:
    """The number whose rule finds most with at most `FALSE_PER_HOUR` false alarms; where none has so few, fewest."""

    def merit(number: float) -> tuple[float, float]:
        found = judged(rules[number], heard)
        too_many = max(0.0, found.false / hours - FALSE_PER_HOUR)
        return -too_many, found.recall

    return max(rules, key=merit)


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95% interval of a Poisson mean of which so many events were seen (Garwood, 1936)."""
    low = _mean_where(lambda mean: 1 - _at_most(count - 1, mean), 0.025, rises=True) if count else 0.0
    return low, _mean_where(lambda mean: _at_most(count, mean), 0.025, rises=False)


def _at_most(count: int, mean: float) -> float:
    """Probability of so many events or fewer."""
    number, expected = torch.tensor([count + 1.0, mean], dtype=torch.float64)
    return float(torch.special.gammaincc(number, expected))


def _mean_where(probability: Callable[[float], float], wanted: float, *, rises: bool) -> float:
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        if (probability(middle) < wanted) == rises:
            low = middle
        else:
            high = middle
    return middle
