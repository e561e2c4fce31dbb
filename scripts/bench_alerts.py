#!/usr/bin/env python3
"""Standing questions on four hours of the synthetic world: what is found, what is not there, how late; last line JSON.

Four streams of an hour, a frame a second and four frames a clip, watched by `tiny` through the engine without waiting.
In each, six standing questions: three about things planted at known times for two to seven seconds, among as many of
the same kind in other colours; three about things that the world itself shows. Every question is asked in two wordings:
one that the model was trained on ("was there a red heart?"), and one that it never saw ("is there a red heart now?").

All rules judge the same log-odds of the same run (`alert_rules.py`):

- `ours`: above a baseline of the question's own, with hysteresis and cool-down (`vstream/standing.py`).
- `yes > 0.5`: an alarm wherever yes becomes likelier than no.
- `silence < 0.725`: VideoLLM-online's rule (arXiv 2406.11816), no against yes being its silence.
- `one threshold`: as these two, with the best threshold that there is for both wordings.
- `above nothing`: contextual calibration alone, above what is said with nothing to see, with hysteresis and cool-down.

`--tune` chooses the thresholds of `ours` and of the last two on two hours of other seeds, by the same number of trials
each: most found in both wordings with at most one false alarm an hour. An appearance is found if an alarm is raised
before it has been over for a clip and a second; what comes again within that time is the same one. An alarm for nothing
is false. Latency is stream time from its first frame to the end of the clip that raised the alarm, and the time of a
look; in time is within a clip and a second. Intervals are 95%: Wilson's for recall, exact Poisson for false alarms, of
all six questions together.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from alert_rules import (
    LATE_SECONDS,
    SILENCE,
    Heard,
    Rule,
    above,
    above_nothing,
    best,
    half_off,
    judged,
    ours,
    poisson_interval,
    silence_below,
)

from vstream.app.batch.marks import wilson
from vstream.app.lab.render import WorldSource
from vstream.app.lab.world import COLOURS, KINDS, MINUTE, Sighting, World, plant
from vstream.engine import Engine
from vstream.session import Session
from vstream.standing import Alert, AlertOptions, Event

HOUR, SIDE = 3600, 96
SEEDS, TUNING_SEEDS = (601, 602, 603, 604), (501, 502)
PLANTED = OWN = 3
WORDINGS = {"trained": "was there {a} {name}?", "new": "is there {a} {name} now?"}
THRESHOLDS = [-4 + 0.5 * n for n in range(12)]
SCORES = [3 + 0.5 * n for n in range(12)]
ONE_THRESHOLD, ABOVE_NOTHING = 1.0, 5.5  # by `--tune`, as the defaults of `AlertOptions`
RULES: dict[str, Rule] = {
    "ours": ours(AlertOptions()),
    "yes > 0.5": above(0.0),
    f"silence < {SILENCE}": silence_below(SILENCE),
    "one threshold": above(ONE_THRESHOLD),
    "above nothing": above_nothing(ABOVE_NOTHING),
}


@dataclass(frozen=True)
class Task:
    """A stream, and by name what is asked for: first and last second of each of its appearances."""

    world: World
    presences: Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Cost:
    """Seconds of work, and how often it was done."""

    clip_seconds: float
    clips: int
    look_seconds: float
    looks: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def make_task(seed: int, seconds: int) -> Task:
    """A stream of so many seconds and six things to be asked for."""
    rng = random.Random(f"alerts {seed}")
    targets = [f"{rng.choice(COLOURS)} {kind}" for kind in rng.sample(KINDS, PLANTED)]
    world = World(seed, seconds, tuple(planted(rng, targets, seconds)))
    seen = Counter(one.thing.name for one in world.sightings() if one not in world.needles)
    own = [name for name, _ in seen.most_common(OWN * 20)][::20]
    return Task(world, {name: presences(world, name) for name in [*targets, *own]})


def planted(rng: random.Random, targets: Sequence[str], seconds: int) -> Iterator[Sighting]:
    """Things of the targets' kinds every minute or so; half of them have the target's colour, others another."""
    at = MINUTE
    while at + MINUTE // 3 < seconds:
        colour, kind = rng.choice(targets).split()
        shown = colour if rng.random() < 0.5 else rng.choice([other for other in COLOURS if other != colour])
        (one,) = plant(rng.getrandbits(30), [at], seconds=rng.randint(2, 7), kinds=[kind])
        yield replace(one, thing=one.thing._replace(colour=shown), turned=None, turn_seconds=None)
        at += rng.randint(40, 110)


def presences(world: World, name: str) -> list[tuple[int, int]]:
    """First and last second of each appearance; those that no clip can tell apart are one."""
    found: list[tuple[int, int]] = []
    for second in seconds_of(world, name):
        if found and second - found[-1][1] <= LATE_SECONDS:
            found[-1] = found[-1][0], second
        else:
            found.append((second, second))
    return found


def seconds_of(world: World, name: str) -> list[int]:
    """Every second in which a thing can be seen."""
    seen = ((one, second) for one in world.sightings() for second in range(one.start_seconds, one.end_seconds))
    return sorted({second for one, second in seen if (shown := one.at(second)) and shown.thing.name == name})


def watch(engine: Engine, task: Task) -> tuple[list[Heard], Cost]:
    """Watches a stream with all standing questions; what was said, and what it cost."""
    source = WorldSource(task.world, side=SIDE)
    with closing(engine.open(source, start=False, **engine.adapter.settings)) as session:
        asked = [
            (session.alert(wording.format(a=article(name), name=name)), Heard(label, presences))
            for label, wording in WORDINGS.items()
            for name, presences in task.presences.items()
        ]
        for alert, heard in asked:
            alert.subscribe(noting(session, heard))
        for clip in clips_of(session):
            for alert, heard in asked:
                note(alert, heard, clip)
        looked, watched = session.looking.seconds, session.watching.seconds
        clips = len(asked[0][1].clips)
        return [heard for _, heard in asked], Cost(watched, clips, looked, clips * len(asked))


def clips_of(session: Session) -> Iterator[tuple[float, float]]:
    """First and last second of each clip, once it was looked at."""
    assert session.ingest is not None, "the world is watched"
    seen = None
    while not session.ingest.drained:
        session.ingest.pump(session.config.clip_frames)
        while session.step():
            pass
        newest = session.memory.cache.window[-1].meta
        if newest.id != seen:
            yield newest.start_seconds, newest.end_seconds
        seen = newest.id


def note(alert: Alert, heard: Heard, clip: tuple[float, float]) -> None:
    """What was said to a clip; to the first, what had been said to nothing."""
    assert alert.log_odds is not None, "on a stream that waits every clip is looked at"
    if not heard.clips:
        heard.nothing = alert.state()["quiet"][0]
    heard.clips.append(clip)
    heard.log_odds.append(alert.log_odds)


def noting(session: Session, heard: Heard) -> Callable[[Event], None]:
    """Takes down the engine's own events as they begin."""

    def told(event: Event) -> None:
        if event.end_seconds is None:
            heard.told.append((event.start_seconds, event.seconds, session.memory.last_seconds or 0.0))

    return told


def article(name: str) -> str:
    """The one before a colour."""
    return "an" if name[0] in "aeio" else "a"


def row_of(rule: str, wording: str, heard: Sequence[Heard], hours: float, look_seconds: float) -> dict[str, Any]:
    """A line of the table."""
    found = judged(RULES[rule], heard)
    late = sorted(seconds + look_seconds for seconds in found.late) or [float("nan")]
    return {
        "wording": wording,
        "rule": rule,
        "found": found.found,
        "of": found.of,
        "recall": found.recall,
        "recall_interval": wilson(found.found, found.of),
        "false": found.false,
        "false_per_hour": found.false / hours,
        "false_interval": [bound / hours for bound in poisson_interval(found.false)],
        "repeated": found.repeated,
        "in_time": sum(seconds + look_seconds <= LATE_SECONDS for seconds in found.late),
        "late_median": late[len(late) // 2],
        "late_95": late[int(0.95 * (len(late) - 1))],
        "late_most": late[-1],
    }


def line_of(row: Mapping[str, Any]) -> str:
    """A row as Markdown."""
    low, high = row["recall_interval"] or (float("nan"), float("nan"))
    fewest, most = row["false_interval"]
    cells = (
        row["wording"],
        row["rule"],
        f"{row['recall']:.3f} ({low:.3f} to {high:.3f}) of {row['of']}",
        f"{row['false_per_hour']:.2f} ({fewest:.2f} to {most:.2f})",
        str(row["repeated"]),
        str(row["in_time"]),
        f"{row['late_median']:.1f}, {row['late_95']:.1f}, {row['late_most']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def events_of(heard: Sequence[Heard]) -> dict[str, float]:
    """How the engine's own events do: whether they are those of the rule, and whether their pictures show the thing."""
    as_ruled = [[end for _, _, end in one.told] == list(RULES["ours"](one)) for one in heard]
    shown = [
        any(first <= picture <= last for first, last in one.presences) for one in heard for _, picture, _ in one.told
    ]
    firsts = [[first for first, _ in one.presences] for one in heard for _ in one.told]
    starts = [start for one in heard for start, _, _ in one.told]
    right = [start in meant for start, meant in zip(starts, firsts, strict=True)]
    return {
        "as_ruled": float(all(as_ruled)),
        "events": len(shown),
        "picture_right": fmean(shown or [math.nan]),
        "start_right": fmean(right or [math.nan]),
    }


def tune(heard: Sequence[Heard], hours: float) -> dict[str, float]:
    """The best threshold of each kind, over all wordings."""
    hours *= len(WORDINGS)
    return {
        "one threshold": best({number: above(number) for number in THRESHOLDS}, heard, hours),
        "above nothing": best({number: above_nothing(number) for number in SCORES}, heard, hours),
        "ours": best({number: half_off(number) for number in SCORES}, heard, hours),
    }


def measure(seeds: Sequence[int], seconds: int) -> tuple[list[Heard], Cost]:
    """Watches all streams, and says so on the way."""
    heard, cost = list[Heard](), Cost(0.0, 0, 0.0, 0)
    with Engine.load("tiny") as engine:
        for seed in seeds:
            more, spent = watch(engine, make_task(seed, seconds))
            heard, cost = heard + more, cost + spent
            print(f"seed {seed} is watched", file=sys.stderr, flush=True)
    return heard, cost


def report(heard: Sequence[Heard], cost: Cost, hours: float) -> dict[str, Any]:
    """Prints the table; everything in it, for JSON."""
    look_seconds = cost.look_seconds / cost.looks
    rows = [
        row_of(rule, wording, [one for one in heard if one.wording == wording], hours, look_seconds)
        for wording in WORDINGS
        for rule in RULES
    ]
    print("| wording | rule | recall | false alarms an hour | repeated | in time | seconds late: median, 95%, most |")
    print("| --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(map(line_of, rows)))
    spent = {"clip_ms": 1000 * cost.clip_seconds / cost.clips, "look_ms": 1000 * look_seconds}
    events = events_of([one for one in heard if one.wording == "trained"])
    print(f"a clip takes {spent['clip_ms']:.1f} ms, a look {spent['look_ms']:.1f} ms; events: {events}")
    return {"hours": hours, "rows": rows, **spent, "events": events}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one stream of 20 minutes")
    parser.add_argument("--tune", action="store_true", help="choose thresholds on other seeds")
    parser.add_argument("--keep", type=Path, help="write what was said to this file, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, seconds = TUNING_SEEDS if options.tune else SEEDS, HOUR
    if options.quick:
        seeds, seconds = seeds[:1], HOUR // 3
    heard, cost = measure(seeds, seconds)
    if options.keep:
        options.keep.write_text(json.dumps([asdict(one) for one in heard]))
    hours = len(seeds) * seconds / HOUR
    print(json.dumps(tune(heard, hours) if options.tune else report(heard, cost, hours)))


if __name__ == "__main__":
    main()
