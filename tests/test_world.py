"""The synthetic world: what it says was to be seen, what its pictures show, and what its questions take for true."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vstream.app.lab.exam import CHOICES, FOR_NEEDLES, NOT_SEEN, TEMPLATES, Examiner, Question
from vstream.app.lab.render import RGB, WorldSource, draw, film
from vstream.app.lab.world import COLOURS, DIGITS, KINDS, SHAPES, Scene, Sighting, Thing, World, plant
from vstream.sources import open_source

DAY = 24 * 3600


@st.composite
def worlds(pick: st.DrawFn) -> World:
    start = pick(st.integers(0, 500))
    length = pick(st.integers(10, 300))
    times = pick(st.lists(st.integers(0, max(0, length // 10 - 1)), max_size=6, unique=True))
    needles = plant(pick(st.integers(0, 99)), [start + 10 * at for at in times], seconds=pick(st.integers(1, 9)))
    shortest = pick(st.integers(1, 5))
    longest = shortest + pick(st.integers(0, 9))
    return World(
        pick(st.integers(0, 10**9)), start + length, needles, (shortest, longest), pick(st.floats(0, 1)), KINDS, start
    )


# The truth ----------------------------------------------------------------------------------------------------------


@given(worlds())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scenes_cover_every_second_once_and_any_moment_is_had_at_once(world: World) -> None:
    needles_end = max([needle.end_seconds for needle in world.needles], default=0)
    at = world.start_seconds
    for scene in world.scenes():
        assert scene.start_seconds == at < scene.end_seconds
        at = scene.end_seconds
    assert world.duration_seconds <= at <= max(world.duration_seconds, needles_end)
    scenes = list(world.scenes())
    for second in random.Random(1).sample(range(world.start_seconds, world.duration_seconds), 8):
        fresh = World(**vars(world))
        assert fresh.scene_at(second) == next(scene for scene in scenes if second < scene.end_seconds)
        assert fresh.at(second), "there is always something"


@given(worlds())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nothing_hides_or_doubles_a_needle(world: World) -> None:
    for needle in world.needles:
        seen = [one for one in world.sightings() if one.thing.kind == needle.thing.kind]
        assert seen == [needle]
        for second in range(needle.start_seconds, min(needle.end_seconds, world.duration_seconds)):
            assert world.at(second) == [needle.at(second)]


def test_two_things_are_never_on_one_another() -> None:
    for seed in range(40):
        world = World(seed, 60, crowd=1.0)
        for second in range(60):
            shown = world.at(second)
            for one, other in itertools.pairwise(shown):
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert apart >= (one.size + other.size) / 2


def test_a_day_takes_no_memory_and_its_end_no_time() -> None:
    began = time.perf_counter()
    assert World(1, DAY).at(DAY - 1)
    assert time.perf_counter() - began < 0.1
    tracemalloc.start()
    count = sum(1 for _ in World(2, DAY).sightings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 15_000
    assert peak < 6 << 20


def test_seeds_make_worlds() -> None:
    assert list(World(1, 100).sightings()) == list(World(1, 100).sightings()) != list(World(2, 100).sightings())
    kinds = Counter(one.thing.kind for one in World(3, 3600).sightings())
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) < 4 * min(kinds.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"duration_seconds": 0}, "a world must last from 0 or later until after its start, got 0 to 0 s"),
        ({"start_seconds": 20}, "a world must last .* got 20 to 10 s"),
        ({"scene_seconds": (3, 2)}, r"scene_seconds must be 1 <= shortest <= longest <= 60, got \(3, 2\)"),
        ({"needles": plant(1, [1, 3])}, "two needles overlap at 3 s; plant them apart"),
        ({"needles": plant(1, [1]), "kinds": (plant(1, [1])[0].thing.kind,)}, "kinds must leave something"),
        ({"needles": plant(1, [1], seconds=61)}, "a needle must last 1 to 60 s"),
    ],
)
def test_impossible_worlds_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        World(**{"seed": 1, "duration_seconds": 10, **arguments})  # type: ignore[arg-type]


def test_there_are_as_many_needles_as_kinds_at_most() -> None:
    with pytest.raises(ValueError, match="there are 27 times, but only 26 kinds"):
        plant(1, range(0, 270, 10))


def test_a_time_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="the world lasts from 5 to 10 s, got 10"):
        World(1, 10, start_seconds=5).at(10)


# What its pictures show ---------------------------------------------------------------------------------------------


def only(thing: Thing, **how: object) -> World:
    """A world in which one thing is to be seen from 0 to 10 s."""
    return World(5, 10, (Sighting(thing, 0, 10, **{"place": 0, **how}),))  # type: ignore[arg-type]


def test_the_same_moment_is_the_same_picture() -> None:
    one, again = draw(World(1, 30), 7.25), draw(World(1, 30), 7.25)
    assert (one == again).all()
    assert (one != draw(World(1, 30), 7.5)).any()
    assert one.shape == (128, 128, 3)
    with pytest.raises(ValueError, match="side must be at least 16"):
        draw(World(1, 30), 0, side=8)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", range(4))
def test_a_thing_is_where_the_truth_has_it_and_of_its_colour(colour: str, place: int) -> None:
    world = only(Thing(colour, "plain", "square"), place=place)
    shown = world.at(3)[0]
    picture = draw(world, 3).astype(float)
    x, y = round(shown.x * 128), round(shown.y * 128)
    assert np.abs(picture[y - 6 : y + 6, x - 6 : x + 6].mean((0, 1)) - RGB[colour]).max() < 60
    x, y = 128 - x, 128 - y
    assert picture[y - 6 : y + 6, x - 6 : x + 6].mean() < 110, "the opposite corner is background"


def test_kinds_textures_and_turns_can_be_told_apart() -> None:
    def seen(thing: Thing, seconds: float = 3, **how: object) -> np.ndarray:
        return draw(only(thing, **how), seconds, side=48).astype(float)[:24, :24]

    def differ(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).mean())

    assert differ(seen(Thing("red", "plain", "star")), seen(Thing("red", "plain", "star"))) == 0
    pictures = [seen(Thing("white", "plain", kind)) for kind in KINDS]
    closest = min(
        (differ(a, b), KINDS[i], KINDS[j]) for i, a in enumerate(pictures) for j, b in enumerate(pictures[:i])
    )
    assert closest > (6,), "shake and noise are those of the moment, the same for all"
    plain, striped, dotted = (seen(Thing("white", texture, "square")) for texture in ("plain", "striped", "dotted"))
    assert min(differ(plain, striped), differ(plain, dotted), differ(striped, dotted)) > 6
    turned = {"turned": "blue", "turn_seconds": 5}
    before, after = (seen(Thing("red", "plain", "heart"), s, **turned) for s in (4, 5))
    assert differ(before, after) > 20


def test_what_moves_moves() -> None:
    world = only(Thing("white", "plain", "circle"), direction="down")
    rows = [draw(world, second).mean((1, 2)).argmax() for second in range(10)]
    assert rows[0] < 60 < 70 < rows[-1]
    assert all(b >= a - 4 for a, b in itertools.pairwise(rows))


def test_a_film_is_what_was_drawn(tmp_path: Path) -> None:
    world = World(9, 12, start_seconds=4)
    film(world, tmp_path / "film.mp4", fps=5, side=128)
    with open_source(tmp_path / "film.mp4", max_side=128) as source:
        frames = list(source.frames(lambda seconds: True))
    assert len(frames) == 40
    for frame in frames[::7]:
        drawn = draw(world, 4 + frame.pts_seconds, side=128)
        assert np.abs(frame.image.astype(float) - drawn).mean() < 8
    with pytest.raises(ValueError, match="fps must be at least 1 and side even, got 5 and 33"):
        film(world, tmp_path / "odd.mp4", fps=5, side=33)


def test_a_world_is_a_source() -> None:
    world = World(9, 30, start_seconds=10)
    with WorldSource(world, fps=2, side=32) as source:
        frames = list(source.frames(lambda seconds: seconds >= 12))
    assert [frame.pts_seconds for frame in frames[:3]] == [12, 12.5, 13]
    assert len(frames) == 36
    assert (frames[2].image == draw(world, 13, side=32)).all()


# What its questions take for true -----------------------------------------------------------------------------------


class Watcher:
    """Answers from what is to be seen second by second, without looking at sightings."""

    def __init__(self, world: World, until: int) -> None:
        self.world, self.until = world, until
        self.seen = {second: world.at(second) for second in range(world.start_seconds, until + 1)}

    def names(self, second: int) -> list[str]:
        return [shown.thing.name for shown in self.seen[second]]

    def first(self, name: str) -> int | None:
        return next((second for second in self.seen if name in self.names(second)), None)

    def of_kind(self, kind: str) -> list[Thing]:
        return [shown.thing for shown in self._all() if shown.thing.kind == kind]

    def _all(self) -> list:
        return [shown for one in self.seen.values() for shown in one]

    def agrees(self, question: Question) -> bool:
        """Whether the answer is what was to be seen."""
        text, answer = question.text, question.answer
        named = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS if f"{colour} {kind}" in text]
        named = [name for name in named if text.split(name)[1][:1] in " ?,"]
        named.sort(key=text.index)
        absent = [name for name in named if self.first(name) is None]
        words = text.rstrip("?").replace(",", "").split()
        moment = next((60 * int(w.split(":")[0]) + int(w.split(":")[1]) for w in words if ":" in w), None)
        if question.type in ("texture", "when", "where", "direction", "change") and absent:
            return answer == NOT_SEEN
        return bool(getattr(self, f"_{question.type.replace(' ', '_')}")(named, words, moment, answer))

    def _now(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return self.names(self.until) == [answer]

    def _at(self, named: list, words: list, moment: int, answer: str) -> bool:
        return self.names(moment) == [answer]

    def _digit(self, named: list, words: list, moment: int, answer: str) -> bool:
        return [shown.thing.kind for shown in self.seen[moment] if shown.thing.kind in DIGITS] == [answer]

    def _colour(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        kind = next(word for word in words if word in KINDS)
        colours = {thing.colour for thing in self.of_kind(kind)}
        return colours == {answer} or (not colours and answer == NOT_SEEN)

    def _which(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        kinds = {shown.thing.kind for shown in self._all() if shown.thing.colour == words[-1]}
        return kinds == {answer} or (not kinds and answer == NOT_SEEN)

    def _texture(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return {shown.thing.texture for shown in self._all() if shown.thing.name == named[0]} == {answer}

    def _when(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        minutes, seconds = answer.split(":")
        return self.first(named[0]) == 60 * int(minutes) + int(seconds)

    def _where(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        places = {(shown.x < 0.5, shown.y < 0.5) for shown in self._all() if shown.thing.name == named[0]}
        return places == {("left" in answer, "top" in answer)}

    def _count(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return ("none", "one", "two", "three")[len(self.seen[self.until])] == answer

    def _how_many(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        kind, runs, before = next(word for word in words if word in KINDS), 0, None
        for second, shown in self.seen.items():
            there = [one for one in shown if one.thing.kind == kind]
            scene = self.world.scene_at(second).start_seconds
            runs += bool(there) and before != scene
            before = scene if there else None
        return ("none", "one", "two", "three")[runs] == answer

    def _order(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return answer == min(named[:2], key=lambda name: self.first(name) or 0) and len(set(named)) == 2

    def _earlier(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return (answer == "yes") == ((self.first(named[0]) or 0) < (self.first(named[1]) or 0))

    def _happened(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return (answer == "yes") == (self.first(named[0]) is not None)

    def _before(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return self._next_to(named[0], answer, -1)

    def _after(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return self._next_to(named[0], answer, 1)

    def _next_to(self, name: str, answer: str, step: int) -> bool:
        entered: list[tuple[int, str]] = []
        before: list[str] = []
        for second in self.seen:
            scene = self.world.scene_at(second).start_seconds
            fresh = before if scene != second else []
            for shown in self.seen[second]:
                if shown.thing.kind not in [one.split()[1] for one in fresh]:
                    entered.append((second, shown.thing.name))
            before = self.names(second)
        at = next(place for place, (_, seen) in enumerate(entered) if seen == name) + step
        return answer == (entered[at][1] if 0 <= at < len(entered) else "nothing")

    def _direction(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        path = [(s.x, s.y) for s in self._all() if s.thing.kind == named[0].split()[1]]
        (x0, y0), (x1, y1) = path[0], path[-1]
        way = {"left": x1 < x0, "right": x1 > x0, "up": y1 < y0, "down": y1 > y0}
        return [name for name, true in way.items() if true] == [answer]

    def _change(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return any(f"{answer} {named[0].split()[1]}" in self.names(second) for second in self.seen)

    def _first(self, named: list, words: list, moment: int | None, answer: str) -> bool:
        return self.names(self.world.start_seconds) == [answer]


def test_answers_are_what_was_to_be_seen() -> None:
    types: Counter[str] = Counter()
    for seed in range(150):
        world = World(seed, 40 + 7 * (seed % 5), start_seconds=7 * (seed % 5), scene_seconds=(1 + seed % 3, 7))
        until = world.duration_seconds - 1 - seed % 9
        watcher = Watcher(world, until)
        for question in Examiner(world, seed=seed).ask(until, 14):
            types[question.type] += 1
            kinds = [one.thing.kind for one in world.sightings(until)]
            if question.type == "direction" and len(kinds) != len(set(kinds)):
                continue  # the watcher cannot tell two of a kind apart
            assert watcher.agrees(question), question
    assert set(types) == set(TEMPLATES)
    assert min(types.values()) >= 15


def test_the_watcher_notices_wrong_answers() -> None:
    world = World(3, 40)
    asked = Examiner(world).ask(39, 30)
    wrong = [
        Question(q.text, other.answer, q.type, q.at_seconds) for q in asked for other in asked if q.type == other.type
    ]
    wrong = [one for one in wrong if not any(one.answer == q.answer and one.text == q.text for q in asked)]
    watcher = Watcher(world, 39)
    assert len(wrong) > 15
    assert not any(watcher.agrees(one) for one in wrong if one.type not in ("happened", "change"))


def test_later_frames_change_no_answer() -> None:
    short, long = World(11, 30), World(11, 3600)
    assert list(Examiner(short).ask(25, 20)) == list(Examiner(long).ask(25, 20))


def test_needles_of_a_day_are_asked_for() -> None:
    needles = plant(3, [600 * number + 17 for number in range(20)])
    world = World(3, DAY, needles)
    asked = Examiner(world).ask(DAY - 1, 25, types=FOR_NEEDLES, about=needles)
    spans = {(needle.start_seconds, needle.end_seconds) for needle in needles}
    assert len(asked) == 25
    assert all(start >= 17 for question in asked for start, _ in question.evidence)
    assert sum(any(span in spans for span in question.evidence) for question in asked) > 10


def test_choices_hold_the_answer_once() -> None:
    asked = [q for seed in range(20) for q in Examiner(World(seed, 40)).ask(39, 12, choices=1.0)]
    closed = [question for question in asked if question.choices]
    assert len(closed) > len(asked) / 3
    for question in closed:
        right = question.choices[CHOICES.index(question.answer)]
        assert question.choices.count(right) == 1
        assert len(set(question.choices)) == len(question.choices) >= 3
        assert f"{question.answer}: {right}" in question.text
    assert len({question.answer for question in closed}) == 4


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no question type 'taste'; choose from now, at, "):
        Examiner(World(1, 10)).ask(9, 1, types=("taste",))


def test_scenes_are_plain_values() -> None:
    assert isinstance(World(1, 10).scene_at(3), Scene)
    assert set(SHAPES) < set(KINDS)
