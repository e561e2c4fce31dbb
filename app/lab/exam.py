"""Questions about a synthetic world, each with its one true answer. It knows nothing of pixels or models.

A question is asked at a time, about what was to be seen until then. It is asked only where the truth gives one answer:
"what colour was the star?" needs a star, and one colour of stars. Where there is none, the answer is "not seen".
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vstream.app.lab.world import COLOURS, DIGITS, DIRECTIONS, KINDS, PLACES, TEXTURES, Sighting, Thing, World

NOT_SEEN = "not seen"
NOTHING = "nothing"
CHOICES = ("a", "b", "c", "d")
SECONDS_TO_MOVE = 3  # seen for less, a direction cannot be told

TEMPLATES: dict[str, tuple[str, ...]] = {
    "now": ("what is there now?", "what is shown now?", "what do you see now?"),
    "at": ("what was there at {time}?", "what was shown at {time}?", "what did you see at {time}?"),
    "digit": ("which digit was shown at {time}?", "what digit was there at {time}?"),
    "colour": ("what colour was the {kind}?", "which colour had the {kind}?", "the {kind} was of what colour?"),
    "which": ("what was {colour}?", "which thing was {colour}?", "what did you see that was {colour}?"),
    "texture": ("was the {name} plain, striped or dotted?", "which texture had the {name}?"),
    "when": ("when did the {name} appear?", "when was the {name} first shown?", "at what time did you see the {name}?"),
    "where": ("where was the {name}?", "in which corner was the {name}?"),
    "count": ("how many things are there now?", "how many things do you see now?"),
    "how many": ("how many times was there {a} {kind}?", "how often did you see {a} {kind}?"),
    "order": ("which came first, the {name} or the {other}?", "what was shown first, the {name} or the {other}?"),
    "happened": ("was there {a} {name}?", "did you see {a} {name}?", "was {a} {name} shown?"),
    "earlier": ("did the {name} come before the {other}?", "was the {name} shown before the {other}?"),
    "before": ("what came before the {name}?", "what was shown just before the {name}?"),
    "after": ("what came after the {name}?", "what was shown right after the {name}?"),
    "direction": ("which way did the {name} move?", "where did the {name} move to?"),
    "change": ("what colour did the {name} turn?", "which colour did the {name} change to?"),
    "first": ("what came first?", "what was the first thing shown?"),
}
"""Question types and their wordings."""

FOR_NEEDLES = ("colour", "texture", "when", "where", "happened", "direction", "change", "order", "earlier", "at")
"""Types that a needle answers by itself, or a pair of them."""


@dataclass(frozen=True)
class Question:
    """A question with its one answer.

    Attributes:
        type: a key of `TEMPLATES`.
        at_seconds: when it is asked; nothing later counts.
        evidence: (start, end) seconds of what must be seen to know; empty if it is that something was not.
        choices: what may be chosen from, in the order of `CHOICES`; empty for an open question.
    """

    text: str
    answer: str
    type: str
    at_seconds: int
    evidence: tuple[tuple[int, int], ...] = ()
    choices: tuple[str, ...] = ()


@dataclass
class Past:
    """What was to be seen of a world until a time, as questions need it."""

    world: World
    at_seconds: int
    seen: list[Sighting] = field(init=False)
    names: Counter[str] = field(init=False)
    kinds: Counter[str] = field(init=False)
    colours: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = list(self.world.sightings(self.at_seconds))
        self.names = Counter(name for one in self.seen for name in self.names_of(one))
        self.kinds = Counter(one.thing.kind for one in self.seen)
        self.colours = Counter(colour for one in self.seen for colour in self.colours_of(one))

    def end_of(self, one: Sighting) -> int:
        """Until when it was seen, as far as is known at that time; not included."""
        return min(one.end_seconds, self.at_seconds + 1)

    def turned(self, one: Sighting) -> bool:
        """Whether its turn was seen."""
        return one.turn_seconds is not None and one.start_seconds < one.turn_seconds < self.end_of(one)

    def colours_of(self, one: Sighting) -> set[str]:
        """Every colour it was seen in."""
        return {one.thing.colour} | ({one.turned} if self.turned(one) and one.turned else set())

    def names_of(self, one: Sighting) -> set[str]:
        """Everything it could be called."""
        return {f"{colour} {one.thing.kind}" for colour in self.colours_of(one)}

    def alone(self, one: Sighting) -> bool:
        """Whether its name means it and nothing else."""
        return self.names[one.thing.name] == 1

    def span(self, one: Sighting) -> tuple[int, int]:
        """(start, end) of what was seen of it."""
        return one.start_seconds, self.end_of(one)


Ask = tuple[dict[str, str], str, tuple[tuple[int, int], ...]]
"""What a template takes, the answer, the evidence."""


class Examiner:
    """Asks about a world, for ever differently."""

    def __init__(self, world: World, *, seed: int = 0) -> None:
        """The same world and seed give the same questions."""
        self.world, self._rng = world, random.Random(f"exam {world.seed} {seed}")

    def ask(
        self,
        at_seconds: int,
        count: int,
        *,
        types: Sequence[str] = tuple(TEMPLATES),
        about: Sequence[Sighting] | None = None,
        choices: float = 0.0,
    ) -> list[Question]:
        """Questions at one time, as many types as have one; fewer than `count` where the truth gives no more.

        Args:
            at_seconds: when they are asked.
            count: how many.
            types: keys of `TEMPLATES`, each as likely.
            about: only these sightings are asked for, all unless given.
            choices: chance of a question with answers to choose from.

        Raises:
            ValueError: for a type that there is not.
        """
        unknown = set(types) - set(TEMPLATES)
        if unknown:
            raise ValueError(f"there is no question type {min(unknown)!r}; choose from {', '.join(TEMPLATES)}")
        past, found, texts = Past(self.world, at_seconds), list[Question](), set[str]()
        for _ in range(8 * count):
            if len(found) == count:
                break
            question = self._one(self._rng.choice(list(types)), past, about)
            if question is not None and question.text not in texts:
                texts.add(question.text)
                found.append(self._with_choices(question) if self._rng.random() < choices else question)
        return found

    def _one(self, type: str, past: Past, about: Sequence[Sighting] | None) -> Question | None:
        asked = _ASK[type](self._rng, past, past.seen if about is None else about)
        if asked is None:
            return None
        words, answer, evidence = asked
        text = self._rng.choice(TEMPLATES[type]).format(a=_article(words), **words)
        return Question(text, answer, type, past.at_seconds, evidence)

    def _with_choices(self, question: Question) -> Question:
        """The same, with wrong answers of its kind beside the right one; as it is, where there are none."""
        others = [one for one in _alternatives(self._rng, question.answer) if one != question.answer]
        if len(others) < 2:
            return question
        options = [question.answer, *self._rng.sample(others, min(3, len(others)))]
        self._rng.shuffle(options)
        listed = ", ".join(f"{letter}: {option}" for letter, option in zip(CHOICES, options, strict=False))
        answer = CHOICES[options.index(question.answer)]
        text = f"{question.text} choose {listed}"
        return Question(text, answer, question.type, question.at_seconds, question.evidence, tuple(options))


def clock(seconds: int) -> str:
    """A time as the model reads and writes it."""
    return f"{seconds // 60}:{seconds % 60:02}"


def _article(words: dict[str, str]) -> str:
    """The article before what a question names first."""
    named = words.get("name", words.get("kind", ""))
    return "an" if named[:1] in "aeioAEFHR8" and named else "a"


def _alternatives(rng: random.Random, answer: str) -> list[str]:
    """Answers of the same kind."""
    for group in (COLOURS, TEXTURES, PLACES, DIRECTIONS, DIGITS):
        if answer in group:
            return list(group)
    if ":" in answer:
        minutes, seconds = (int(part) for part in answer.split(":"))
        return [
            clock(60 * minutes + seconds + by) for by in (-17, -9, -4, 5, 11, 23) if 60 * minutes + seconds + by >= 0
        ]
    if answer in {f"{colour} {kind}" for colour in COLOURS for kind in KINDS}:
        return list({f"{rng.choice(COLOURS)} {kind}": None for kind in rng.sample(KINDS, 6)})
    return []


# One function a type: what fills the template, the answer, the evidence; None where there is no single answer ---------


def _visible(past: Past, seconds: int) -> list[tuple[Sighting, Thing]]:
    pairs = ((one, one.at(seconds)) for one in past.world.scene_at(seconds).sightings)
    return [(one, shown.thing) for one, shown in pairs if shown is not None]


def _now(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    visible = _visible(past, past.at_seconds)
    return ({}, visible[0][1].name, ((past.at_seconds, past.at_seconds + 1),)) if len(visible) == 1 else None


def _count(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    number = len(_visible(past, past.at_seconds))
    return {}, ("none", "one", "two", "three")[number], ((past.at_seconds, past.at_seconds + 1),)


def _moment(rng: random.Random, past: Past, about: Sequence[Sighting]) -> tuple[int, list[tuple[Sighting, Thing]]]:
    one = rng.choice(list(about))
    seconds = rng.randrange(one.start_seconds, max(one.start_seconds + 1, past.end_of(one)))
    return seconds, _visible(past, seconds)


def _at(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    seconds, visible = _moment(rng, past, about)
    return ({"time": clock(seconds)}, visible[0][1].name, ((seconds, seconds + 1),)) if len(visible) == 1 else None


def _digit(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    digits = [one for one in about if one.thing.kind in DIGITS]
    if not digits:
        return None
    seconds, visible = _moment(rng, past, digits)
    shown = [thing.kind for _, thing in visible if thing.kind in DIGITS]
    return ({"time": clock(seconds)}, shown[0], ((seconds, seconds + 1),)) if len(shown) == 1 else None


def _absent_kind(rng: random.Random, past: Past) -> str | None:
    absent = [kind for kind in KINDS if not past.kinds[kind]]
    return rng.choice(absent) if absent else None


def _colour(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    if rng.random() < 0.15:
        kind = _absent_kind(rng, past)
        return ({"kind": kind}, NOT_SEEN, ()) if kind else None
    one = rng.choice(list(about))
    if past.kinds[one.thing.kind] > 1 or past.turned(one):
        return None
    return {"kind": one.thing.kind}, one.thing.colour, (past.span(one),)


def _which(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    if rng.random() < 0.15:
        absent = [colour for colour in COLOURS if not past.colours[colour]]
        return ({"colour": rng.choice(absent)}, NOT_SEEN, ()) if absent else None
    one = rng.choice(list(about))
    if past.colours[one.thing.colour] > 1:
        return None
    return {"colour": one.thing.colour}, one.thing.kind, (past.span(one),)


def _chosen(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Sighting | None:
    """A sighting that its name alone tells."""
    alone = [one for one in about if past.alone(one)]
    return rng.choice(alone) if alone else None


def _absent(rng: random.Random, past: Past) -> str | None:
    """A name of nothing that was seen: often of something that was seen in another colour."""
    kinds = [kind for kind in past.kinds if past.kinds[kind]] if rng.random() < 0.6 else list(KINDS)
    for _ in range(20):
        name = f"{rng.choice(COLOURS)} {rng.choice(kinds)}"
        if not past.names[name]:
            return name
    return None


def _about_one(
    tell: Callable[[Past, Sighting], str | None], absent: float = 0.1
) -> Callable[[random.Random, Past, Sequence[Sighting]], Ask | None]:
    """A type that asks something of one thing by its name; sometimes there was no such thing."""

    def ask(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
        if rng.random() < absent:
            name = _absent(rng, past)
            return ({"name": name}, NOT_SEEN, ()) if name else None
        one = _chosen(rng, past, about)
        answer = None if one is None else tell(past, one)
        return None if one is None or answer is None else ({"name": one.thing.name}, answer, (past.span(one),))

    return ask


def _corner(past: Past, one: Sighting) -> str | None:
    return None if one.direction else PLACES[one.place]


def _way(past: Past, one: Sighting) -> str | None:
    first, last = past.span(one)
    whole = last == one.end_seconds and last - first >= SECONDS_TO_MOVE
    return one.direction if whole else None


def _new_colour(past: Past, one: Sighting) -> str | None:
    return one.turned if past.turned(one) else None


def _how_many(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    kind = rng.choice(list(about)).thing.kind if rng.random() < 0.85 else rng.choice(KINDS)
    number = past.kinds[kind]
    if number > 3:
        return None
    spans = tuple(past.span(one) for one in past.seen if one.thing.kind == kind)
    return {"kind": kind}, ("none", "one", "two", "three")[number], spans


def _two(rng: random.Random, past: Past, about: Sequence[Sighting]) -> tuple[Sighting, Sighting] | None:
    """Two different things that entered at different times, in any order."""
    alone = [one for one in about if past.alone(one)]
    if len(alone) < 2:
        return None
    one, other = rng.sample(alone, 2)
    return (one, other) if one.start_seconds != other.start_seconds else None


def _order(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    two = _two(rng, past, about)
    if two is None:
        return None
    first = min(two, key=lambda one: one.start_seconds)
    words = {"name": two[0].thing.name, "other": two[1].thing.name}
    return words, first.thing.name, tuple(past.span(one) for one in two)


def _earlier(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    two = _two(rng, past, about)
    if two is None:
        return None
    words = {"name": two[0].thing.name, "other": two[1].thing.name}
    answer = "yes" if two[0].start_seconds < two[1].start_seconds else "no"
    return words, answer, tuple(past.span(one) for one in two)


def _happened(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    if rng.random() < 0.5:
        name = _absent(rng, past)
        return ({"name": name}, "no", ()) if name else None
    one = rng.choice(list(about))
    return {"name": one.thing.name}, "yes", (past.span(one),)


def _beside(step: int) -> Callable[[random.Random, Past, Sequence[Sighting]], Ask | None]:
    """What entered next to a thing in time: `step` sightings later."""

    def ask(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
        one = _chosen(rng, past, about)
        if one is None:
            return None
        at = past.seen.index(one)
        if not 0 <= at + step < len(past.seen):
            return ({"name": one.thing.name}, NOTHING, (past.span(one),))
        other = past.seen[at + step]
        starts = [seen.start_seconds for seen in past.seen[max(0, at - 2) : at + 3]]
        if len(set(starts)) < len(starts) or past.turned(one) or past.turned(other):
            return None  # two entered at once, or one has two names
        return {"name": one.thing.name}, other.thing.name, (past.span(one), past.span(other))

    return ask


def _first(rng: random.Random, past: Past, about: Sequence[Sighting]) -> Ask | None:
    first = past.seen[0]
    alone = len(past.seen) == 1 or past.seen[1].start_seconds > first.start_seconds
    return ({}, first.thing.name, (past.span(first),)) if alone else None


_ASK: dict[str, Callable[[random.Random, Past, Sequence[Sighting]], Ask | None]] = {
    "now": _now,
    "at": _at,
    "digit": _digit,
    "colour": _colour,
    "which": _which,
    "texture": _about_one(lambda past, one: one.thing.texture),
    "when": _about_one(lambda past, one: clock(one.start_seconds)),
    "where": _about_one(_corner, absent=0.05),
    "count": _count,
    "how many": _how_many,
    "order": _order,
    "happened": _happened,
    "earlier": _earlier,
    "before": _beside(-1),
    "after": _beside(1),
    "direction": _about_one(_way, absent=0.05),
    "change": _about_one(_new_colour, absent=0.05),
    "first": _first,
}
assert set(_ASK) == set(TEMPLATES)
