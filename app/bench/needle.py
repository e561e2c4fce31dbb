"""Our own needle in a video haystack: things shown for four seconds somewhere in a video of up to a day.

The videos are of the synthetic world; what is missing is filmed into the folder, an hour in about 20 s and 20 MB. At
the end each needle is asked for in words and by letters: its colour, its texture, and where it was or moved to. Other
questions must be answered "not seen": about things that are nowhere, and about needles a second before they come. With
letters, "not seen" is always one of the four. A file `needle.json` in the folder says which videos there are:
`{"seconds": [60, 86400], "seeds": [0, 1]}`.

Officially marked as V-NIAH does (LongVA, arXiv 2406.16852, `eval_vision_niah.py`): its model is forced along the right
answer and must have chosen each of its tokens, so an answer is right if it begins with the right one, whatever comes
behind: "reddish" is red, and "Blue" is B. Capitals count for letters alone. Strictly, it must be that and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vstream.app.batch.marks import is_right
from vstream.app.bench.base import Ask, Benchmark, Item, Mark, Measure, Said
from vstream.app.bench.entries import Entry
from vstream.app.bench.haystack import DEPTHS, Haystack, film_whole
from vstream.app.lab.exam import NOT_SEEN, TEMPLATES
from vstream.app.lab.world import COLOURS, DIRECTIONS, PLACES, TEXTURES, Sighting
from vstream.app.progress import Progress
from vstream.types import format_seconds

PLAN = "needle.json"
SECONDS, SEEDS = (60, 600, 3600), (0, 1)
WORDS, LETTERS = "words", "letters"
ANSWERS = {"colour": COLOURS, "texture": TEXTURES, "where": PLACES, "direction": DIRECTIONS}
WRONG = 2  # options beside the right one and "not seen"


class Needle(Benchmark):
    """A grid of lengths and depths, the answers in words and by letters."""

    name = "needle"
    about = f"Needles in haystacks of our own: films them into DIR, a minute to an hour or as its {PLAN} says"
    needs = ""
    measures = (Measure(WORDS), Measure(LETTERS))

    def items(self) -> Iterator[Item]:
        """By length: the needles from the first to the last, what is nowhere, and what is still to come."""
        for haystacks in self._haystacks().values():
            asked = [one for haystack in haystacks for one in _items(haystack)]
            for group in dict.fromkeys(one.group for one in asked):
                yield from (one for one in asked if one.group == group)

    def prepare(self, items: Sequence[Item]) -> None:
        """Films what is asked about and not there."""
        wanted = {item.video for item in items}
        for haystack in (one for some in self._haystacks().values() for one in some):
            if haystack.name in wanted and self.disk.video(haystack.name) is None:
                progress, length = Progress(), format_seconds(haystack.seconds)
                progress.tell(f"filming {self.disk.root / haystack.name}, {length} of the synthetic world")
                with progress.busy("filming"):
                    film_whole(haystack, self.disk.root)
        self.disk.look()

    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """One mark, for words or for a letter."""
        (ask,), answer = item.asks, said[0] or ""
        strict = is_right(answer, item.gold, ask.choices)
        return {LETTERS if ask.choices else WORDS: Mark(float(begins(answer, item)), float(bool(strict)))}

    def _haystacks(self) -> dict[int, list[Haystack]]:
        """By length."""
        planned = (self.disk.root / PLAN).exists()
        plan = Entry(PLAN, self.disk.read(PLAN) if planned else {})
        strange = sorted(plan.fields.keys() - {"seconds", "seeds"})
        if strange:
            raise ValueError(f"{PLAN} may have seconds and seeds, got {strange[0]!r:.60}")
        seeds = _numbers(plan, "seeds", SEEDS)
        return {seconds: [Haystack(seconds, seed) for seed in seeds] for seconds in _numbers(plan, "seconds", SECONDS)}


def begins(answer: str, item: Item) -> bool:
    """Whether an answer begins with the right one."""
    if item.asks[0].choices:
        return answer.lstrip().startswith(item.gold)
    return answer.lstrip().casefold().startswith(item.gold.casefold())


def _numbers(plan: Entry, name: str, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers, each once, of the plan or as usual."""
    values = plan[name] if name in plan else list(usual)
    if not isinstance(values, list) or not values or any(type(value) is not int for value in values):
        raise ValueError(f"{plan.where}: {name} must be a list of whole numbers, got {values!r:.60}")
    return tuple(dict.fromkeys(values))


def _items(haystack: Haystack) -> Iterator[Item]:
    """Everything about one video, in the order of groups."""
    length, end = format_seconds(haystack.seconds), haystack.seconds
    for depth, needle in zip(DEPTHS, haystack.needles, strict=True):
        for type, words, answer in _about(needle):
            yield from _both(haystack, (length, f"at {depth}%"), f"{depth}-{type}", type, words, answer, end)
    for kind in haystack.absent:
        yield from _both(haystack, (length, "nowhere"), kind, "colour", {"kind": kind}, NOT_SEEN, end)
    for depth, needle in zip(DEPTHS, haystack.needles, strict=True):
        words, before = {"kind": needle.thing.kind}, needle.start_seconds - 1
        if before >= 0:
            yield from _both(haystack, (length, "to come"), f"{depth}-before", "colour", words, NOT_SEEN, before)


def _about(needle: Sighting) -> Iterator[tuple[str, dict[str, str], str]]:
    """Question types that a needle answers, with what fills their templates and the answer."""
    thing, name = needle.thing, {"name": needle.thing.name}
    yield "colour", {"kind": thing.kind}, thing.colour
    yield "texture", name, thing.texture
    yield ("where", name, PLACES[needle.place]) if needle.direction is None else ("direction", name, needle.direction)


def _both(
    haystack: Haystack, group: tuple[str, str], id: str, type: str, words: dict[str, str], answer: str, at: int
) -> Iterator[Item]:
    """A question in words, and with four options to choose from by letter."""
    name = f"{haystack.seconds}-{haystack.seed}-{id}"
    text, rng = TEMPLATES[type][0].format(**words), random.Random(f"options {name}")
    time: Any = "end" if at == haystack.seconds else float(at)
    yield Item(f"{name}-{WORDS}", haystack.name, group, (Ask(text, time),), answer)
    options = _options(rng, ANSWERS[type], answer)
    gold = ascii_uppercase[options.index(answer)]
    yield Item(f"{name}-{LETTERS}", haystack.name, group, (Ask(text, time, options),), gold)


def _options(rng: random.Random, answers: Iterable[str], right: str) -> tuple[str, ...]:
    """The right answer, "not seen", and wrong ones until there are four, in any order."""
    others = [one for one in answers if one != right]
    options = {right, NOT_SEEN}
    chosen = [*options, *rng.sample(others, WRONG + 2 - len(options))]
    return tuple(rng.sample(sorted(chosen), len(chosen)))
