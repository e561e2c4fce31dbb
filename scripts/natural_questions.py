"""Questions about the held-out natural videos, and when an answer to one is right.

The questions were written before any answer was seen, in wordings that training does not use. An answer is right if
it names the thing or a group of things that it belongs to ("a dog", but not "an animal"), and names nothing else of
the video. It knows nothing of models.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from natural_set import NaturalClip, Seen, Thing, things

from vstream.models.embedded.naming import Names, load_names

WITHIN_SECONDS = 1
VERBS = {
    "animal": "What animal",
    "vehicle": "What vehicle",
    "instrument": "What musical instrument",
    "food": "What food",
}
WORDINGS = {
    "now": ("What is visible at this moment?", "What thing do you see at present?", "What is on screen right now?"),
    "at": ("What could you see at {time}?", "What did the video show at {time}?", "At {time}, what was visible?"),
    "when": (
        "When was the {word} on screen?",
        "When did the {word} come into view?",
        "At what time did the {word} appear?",
    ),
    "is": ("Was {a} in the video?", "Have you seen {a}?", "Did the video show {a}?", "Was there {a} anywhere?"),
    "kind": ("{what} was in the video?", "{what} have you seen?", "{what} did the video show?"),
    "after": ("What was on screen after the {word}?", "What did the video show after the {word}?"),
    "describe": ("What did the video show, in order?", "Give a summary of the video."),
}


@dataclass(frozen=True)
class Query:
    """A question with its truth.

    Attributes:
        kind: its type.
        text: the question.
        at: stream second at which it is asked, None for the end.
        score: from an answer, how right it is, 0 to 1.
        false_yes: whether a "yes" would be false.
    """

    kind: str
    text: str
    at: float | None
    score: Callable[[str], float]
    false_yes: bool = False


def begins(answer: str, word: str) -> bool:
    """Whether the answer's first word is this one."""
    return re.match(rf"\W*{word}\b", answer.lower()) is not None


def first_second(answer: str) -> int | None:
    """The first `m:ss` in an answer, in seconds."""
    found = re.search(r"(\d+):(\d\d)", answer)
    return 60 * int(found[1]) + int(found[2]) if found else None


class Truth:
    """What is right to call each thing."""

    def __init__(self) -> None:
        self.names: Names = load_names()
        self.kinds = {row[2] for row in self.names.rows}
        known = {word.lower() for row in self.names.rows for word in row} | {thing.word.lower() for thing in things()}
        longest_first = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
        self._known = re.compile(rf"\b({longest_first})(?:s|es)?\b")

    def words(self, thing: Thing) -> set[str]:
        """What names it: its own word, its classes' names, and their groups."""
        rows = [self.names.rows[index] for index in thing.classes]
        return {thing.word, *(row[0] for row in rows), *(row[1] for row in rows if row[1] not in self.kinds)}

    def kinds_of(self, thing: Thing) -> set[str]:
        """The kinds that it is of."""
        return {self.names.rows[index][2] for index in thing.classes}

    def names_thing(self, answer: str, thing: Thing) -> bool:
        """Whether the answer names it, in whatever detail."""
        return bool(self.named(answer) & {word.lower() for word in self.words(thing)})

    def named(self, answer: str) -> set[str]:
        """All names of things in an answer, the longest that fit: a "tiger cat" is no tiger and not any cat."""
        return set(self._known.findall(answer.lower()))


@functools.cache
def truth() -> Truth:
    """The one that all examiners share."""
    return Truth()


class Examiner:
    """Asks about one clip."""

    def __init__(self, clip: NaturalClip, index: int) -> None:
        self.scenes, self.truth = clip.scenes, truth()
        self.rng = random.Random(f"questions {index}")

    def queries(self) -> list[Query]:
        """All questions of the clip."""
        scenes = list(self.scenes)
        several = [*map(self._now, self.rng.sample(scenes, 2)), *map(self._at, self.rng.sample(scenes, 4))]
        several += [*map(self._when, self.rng.sample(scenes, 4)), *map(self._yes, self.rng.sample(scenes, 4))]
        several += [*map(self._no, self._absent(4)), *self._by_kind(), self._describe()]
        return several + [self._after(i) for i in self.rng.sample(range(len(scenes) - 1), 2)]

    def _say(self, kind: str, **words: str) -> str:
        return self.rng.choice(WORDINGS[kind]).format(**words)

    def _only(self, thing: Thing) -> Callable[[str], float]:
        """Right if the thing is named and none of the others."""
        mine = self.truth.words(thing)
        others = [scene.thing for scene in self.scenes if not self.truth.words(scene.thing) & mine]

        def score(answer: str) -> float:
            named = self.truth.names_thing(answer, thing)
            return float(named and not any(self.truth.names_thing(answer, other) for other in others))

        return score

    def _now(self, scene: Seen) -> Query:
        at = self.rng.randrange(scene.start + 1, scene.end)
        return Query("now", self._say("now"), at, self._only(scene.thing))

    def _at(self, scene: Seen) -> Query:
        second = self.rng.randrange(scene.start, scene.end)
        text = self._say("at", time=f"{second // 60}:{second % 60:02}")
        return Query("at", text, None, self._only(scene.thing))

    def _when(self, scene: Seen) -> Query:
        def score(answer: str) -> float:
            said = first_second(answer)
            return float(said is not None and abs(said - scene.start) <= WITHIN_SECONDS)

        return Query("when", self._say("when", word=scene.thing.word), None, score)

    def _yes(self, scene: Seen) -> Query:
        return Query("is", self._say("is", a=_a(scene.thing.word)), None, lambda answer: float(begins(answer, "yes")))

    def _no(self, thing: Thing) -> Query:
        text = self._say("is", a=_a(thing.word))
        return Query("is not", text, None, lambda answer: float(begins(answer, "no")), false_yes=True)

    def _absent(self, count: int) -> list[Thing]:
        """Things that the clip does not show: half of them of a kind that it shows."""
        shown = {word for scene in self.scenes for word in self.truth.words(scene.thing)}
        kinds = {kind for scene in self.scenes for kind in self.truth.kinds_of(scene.thing)}
        strange = [
            thing
            for thing in {one.word: one for one in things()}.values()
            if not {thing.word, *self._own(thing)} & shown
        ]
        near = [thing for thing in strange if self.truth.kinds_of(thing) & kinds]
        return self.rng.sample(near, count // 2) + self.rng.sample(strange, count - count // 2)

    def _own(self, thing: Thing) -> set[str]:
        return {self.truth.names.rows[index][0] for index in thing.classes}

    def _by_kind(self) -> list[Query]:
        """About every kind of which one scene is."""
        asked = []
        for kind, what in VERBS.items():
            scenes = [scene for scene in self.scenes if kind in self.truth.kinds_of(scene.thing)]
            if len(scenes) == 1:
                asked.append(Query("kind", self._say("kind", what=what), None, self._only(scenes[0].thing)))
        return asked

    def _after(self, index: int) -> Query:
        text = self._say("after", word=self.scenes[index].thing.word)
        return Query("after", text, None, self._only(self.scenes[index + 1].thing))

    def _describe(self) -> Query:
        """The share of scenes that are named in order, among all that are named or should be."""

        def score(answer: str) -> float:
            parts = [part for part in re.split(r",| then | and ", answer.split(" shows ")[-1]) if part.strip(" .")]
            rights = [[self.truth.names_thing(part, scene.thing) for part in parts] for scene in self.scenes]
            return longest_match(rights) / max(len(parts), len(self.scenes))

        return Query("describe", self._say("describe"), None, score)


def longest_match(rights: Sequence[Sequence[bool]]) -> int:
    """Length of the longest common subsequence, where rights[i][j] says whether scene i is part j."""
    best = [0] * (len(rights[0]) + 1)
    for row in rights:
        before = list(best)
        for j, right in enumerate(row):
            best[j + 1] = max(before[j + 1], best[j], before[j] + right)
    return best[-1]


def _a(word: str) -> str:
    if word == "binoculars":
        return "binoculars"
    return f"an {word}" if word[0].lower() in "aeiou" else f"a {word}"
