"""The benchmark of standing questions: rules, scores and intervals are right, and a short run gives sane figures."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from alert_rules import (
    Found,
    Heard,
    above,
    above_nothing,
    best,
    half_off,
    judged,
    ours,
    poisson_interval,
    silence_below,
)
from bench_alerts import PLANTED, RULES, WORDINGS, events_of, make_task, measure, report, seconds_of

from vstream.app.lab.world import World
from vstream.standing import AlertOptions


def heard(log_odds: list[float], *presences: tuple[int, int]) -> Heard:
    clips = [(4.0 * number, 4.0 * number + 3) for number in range(len(log_odds))]
    return Heard("trained", presences, -5.0, clips, log_odds)


def test_alarms_are_found_false_or_repeated() -> None:
    one = heard([-1, 1, -1, 1, -1, -1, 1, -1], (5, 6), (29, 40))
    assert list(above(0.0)(one)) == [7, 15, 27]
    assert judged(above(0.0), [one]) == Found(1, 2, 2, 0, (2.0,)), "15 s is too late for it, 27 s too early for another"
    assert judged(above(0.0), [heard([1, -1, 1, -1], (2, 9))]) == Found(1, 1, 0, 1, (1.0,))
    assert judged(above(0.0), [one, one]) == Found(2, 4, 4, 0, (2.0, 2.0))


def test_silence_is_below_its_share_where_no_is_as_unlikely_as_that() -> None:
    at = math.log((1 - 0.725) / 0.725)
    assert list(silence_below(0.725)(heard([at - 1e-6]))) == []
    assert list(silence_below(0.725)(heard([at + 1e-6]))) == [3]


def test_our_rule_starts_from_what_is_said_to_nothing() -> None:
    one = heard([1.5, -5, -5])
    assert list(ours(AlertOptions(on=6.0, off=3.0))(one)) == [3]
    assert list(ours(AlertOptions(on=6.0, off=3.0, calibrate=0))(one)) == [], "negative control"
    rising = heard([-2.0] * 200 + [2.0])
    assert list(above_nothing(6.0)(rising)) == [803]
    assert list(half_off(6.0)(rising)) == [], "by then it knows that -2 is nothing"


def test_the_best_threshold_finds_most_within_the_limit() -> None:
    said = [heard([-5, -5, 0.5, -5, -5, 2, -5], (21, 22))]
    rules = {number: above(number) for number in (-9.0, 0.0, 1.0, 3.0)}
    assert best(rules, said, hours=0.1) == 1.0
    assert best({0.0: above(0.0), -9.0: above(-9.0)}, said, hours=1.0) == 0.0
    assert best({6.0: half_off(6.0), 9.0: half_off(9.0)}, said, hours=1.0) == 6.0


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0.0, 3.6889), (1, 0.0253, 5.5716), (10, 4.7954, 18.3904), (100, 81.3640, 121.6272)]
)
def test_intervals_are_garwoods(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=1e-3)


def test_a_task_plants_what_is_asked_for_among_other_colours() -> None:
    task = make_task(7, 1200)
    assert task == make_task(7, 1200) != make_task(8, 1200)
    assert len(task.presences) == 6
    targets = list(task.presences)[:PLANTED]
    needles = [needle.thing.name for needle in task.world.needles]
    assert {name.split()[1] for name in needles} <= {name.split()[1] for name in targets}
    assert 0.2 < sum(name in targets for name in needles) / len(needles) < 0.8
    assert sum(map(len, task.presences.values())) > 5
    for name, presences in task.presences.items():
        seen = seconds_of(task.world, name)
        assert sum(first <= second <= last for second in seen for first, last in presences) == len(seen)
        assert all(any(shown.thing.name == name for shown in task.world.at(second)) for second in seen)


def test_a_thing_that_turns_is_another_one_from_then_on() -> None:
    world = World(3, 600)
    turning = next(one for one in world.sightings() if one.turned and one.turn_seconds)
    assert turning.turn_seconds is not None
    after = f"{turning.turned} {turning.thing.kind}"
    assert turning.turn_seconds in seconds_of(world, after)
    assert turning.turn_seconds not in seconds_of(world, turning.thing.name)


@pytest.mark.slow
def test_a_short_run_gives_sane_figures() -> None:
    torch.set_num_threads(1)
    said, cost = measure((700,), 200)
    found = report(said, cost, 200 / 3600)
    rows = {(row["wording"], row["rule"]): row for row in found["rows"]}
    assert set(rows) == {(wording, rule) for wording in WORDINGS for rule in RULES}
    trained = rows["trained", "ours"]
    assert (trained["found"], trained["of"], trained["false"]) == (5, 5, 0)
    assert trained["in_time"] == 5
    assert trained["late_most"] < 5
    assert (cost.clips, cost.looks) == (50, 600)
    assert events_of([one for one in said if one.wording == "trained"])["as_ruled"] == 1
    for one in said:
        one.told.clear()
        one.told.append((0.0, 0.0, 3.0))
    assert events_of(said)["as_ruled"] == 0, "negative control"
