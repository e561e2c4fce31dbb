"""What a benchmark is: questions about videos at their times, and marks for what was said.

Every answer gets two marks. The official one is what the published script would give, traps and all: a capital A in any
word may count for option A. The strict one counts what a careful reader would: the option that was named, or the same
text. A benchmark is one file, which says what is asked and how it is marked, and one line in `registry.py`. This module
knows nothing of models, nor of how answers come about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from vstream.app.bench.disk import Disk
from vstream.choices import choice_of

Said = Sequence[str | None]
"""What was answered to an item's questions, in their order; None where there is only an error."""


class Measure(NamedTuple):
    """Something that is marked: its name, and the best mark. One of 1 is a share, told in percent."""

    name: str
    best: float = 1.0


class Mark(NamedTuple):
    """What an item gets, from 0 to the best; None where the published script leaves it out of its count."""

    official: float | None
    strict: float


@dataclass(frozen=True)
class Ask:
    """One question.

    Attributes:
        question: as the model reads it.
        at: stream time in seconds at which it is asked; no later frame has a part in its answer.
        choices: options to choose from, without letters of their own; empty for an open question.
    """

    question: str
    at: float | Literal["end"] = "end"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """What is marked together.

    Attributes:
        id: tells it apart within the benchmark, and stays the same from run to run.
        video: as the benchmark names it.
        group: where it is counted, from the outermost group to the task.
        asks: the questions, one or more.
        gold: what is right, as `Benchmark.mark` wants it.
        fps: pictures per second, where the video is a folder of pictures.
    """

    id: str
    video: str
    group: tuple[str, ...]
    asks: tuple[Ask, ...]
    gold: Any
    fps: float = 1.0


class Benchmark(ABC):
    """Base class; a benchmark says what it needs, asks and marks, and nothing more.

    Attributes:
        name: on the command line.
        about: what it is, with its paper, in a line.
        needs: files that `--root` must hold, for people.
        measures: what is marked.
        mean_of: what the published total is the mean of, in every group of groups: items, the groups right below it, or
            tasks, which are the innermost groups.
        compares: whether answers are judged against those of another run; without them nothing can be marked.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]] = (Measure("right"),)
    mean_of: ClassVar[Literal["items", "groups", "tasks"]] = "items"
    compares: ClassVar[bool] = False

    def __init__(self, disk: Disk, against: Mapping[str, Said] | None = None) -> None:
        """Reads from a folder.

        Args:
            disk: the folder.
            against: what another run said, by item, for benchmarks that let a judge choose.
        """
        self.disk, self.against = disk, against or {}

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """Everything that is asked, in the order of the files.

        Raises:
            ValueError: if a file is missing, or not as it is published.
        """

    def prepare(self, items: Sequence[Item]) -> None:
        """Makes the videos that items are about, for benchmarks that make their own; nothing for others."""
        return

    @abstractmethod
    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """Marks by measure.

        Args:
            item: one of `items`.
            said: answers to its questions.
            judged: what the judge replied to `prompts`; an item that lacks a reply is not marked.
        """

    def prompts(self, item: Item, said: Said) -> tuple[str, ...]:
        """What a judge is asked about an item; nothing where none is needed."""
        return ()


class ChoiceBenchmark(Benchmark):
    """Multiple choice, one question an item; `gold` is the letter of the right option.

    A subclass says by `official` what the published script makes of an answer.
    """

    @abstractmethod
    def official(self, item: Item, said: str | None) -> float | None:
        """The published script's mark."""

    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """One mark; a strict one for the option's letter at the beginning, or the option's own words."""
        return {"right": Mark(self.official(item, said[0]), strict_choice(item, said[0]))}


def strict_choice(item: Item, said: str | None) -> float:
    """1 for the right option's letter at the beginning, or its own words, else 0; options that read alike are one."""
    options = item.asks[0].choices
    named = None if said is None else choice_of(said, options)
    return float(named is not None and options[named] == options[ord(item.gold) - ord("A")])
