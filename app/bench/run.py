"""A benchmark's run: its questions as a batch, then marks and scores.

A run that was stopped goes on where it was, as a batch does. This module knows nothing of single benchmarks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vstream.app.batch.ledger import read_records
from vstream.app.batch.rows import Row
from vstream.app.batch.run import Batch
from vstream.app.bench.base import Benchmark, Item, Said
from vstream.app.bench.disk import Disk
from vstream.app.bench.judge import Judge
from vstream.app.bench.judging import Judging
from vstream.app.bench.options import BenchOptions
from vstream.app.bench.registry import benchmark_of
from vstream.app.bench.scores import Marks, Score, line_of, note_of, scores_of
from vstream.app.interrupts import Interrupted
from vstream.app.progress import Progress

SHOWN, SHOWN_CHARS = 5, 100
SLACK_SECONDS = 1.0
"""A time of a question may be so much behind the last frame, as a video's length is."""


class Bench:
    """One command's work.

    Attributes:
        summary: what came of it as JSON values, empty before it is over.
        scores: of all groups, empty before it is over.
        needs: what has to be given so that everything is marked, None where it is.
    """

    def __init__(self, name: str, options: BenchOptions) -> None:
        """Reads the annotations and checks all that can be checked before a model is loaded.

        Raises:
            ValueError: for an unknown benchmark, an option that will not do, or files that are missing.
        """
        kind = benchmark_of(name)
        if options.root is None:
            raise ValueError(f"--root must be the folder of {name}: {kind.needs or 'an empty one will do'}")
        if not kind.needs and not options.root.exists():  # it makes its own videos
            options.root.mkdir()
        disk = Disk(options.root)
        self.benchmark: Benchmark = kind(disk)
        self.out = options.out or Path(f"{name}.jsonl")
        options.check(self.out)
        every = told_apart(self.benchmark.items())
        self._numbers = numbers_of(every)
        items = spread(every, options.limit)
        if not items:
            raise ValueError(f"the annotations of {name} in {disk.root} hold no question; download them again")
        self.benchmark.prepare(items)
        self.items, self.missing = present(items, disk, partial=options.partial)
        if options.against is not None:
            self.benchmark = kind(disk, against_of(kind, self.items, options.against))
        self._options = options
        self._judging: Judging | None = None
        if options.judge is not None and options.judge_model is not None:
            self._judging = Judging(Judge(options.judge, options.judge_model), self.out, options.judge_at_once)
        rows = rows_of(self.items, self._numbers, disk)
        asked = [(item.id, item.asks) for item in every]
        self._batch = Batch(rows, disk.root, self.out, options, asked=asked, links=True, past_end="end")
        self.scores: list[Score] = []
        self.summary: dict[str, Any] = {}
        self.needs: str | None = None
        self._notes: dict[int, str] = {}

    def __call__(self, progress: Progress) -> int:
        """Answers, has judged what needs it, marks and scores.

        Returns:
            1 if a question or a judgment ended in an error, else 0, or what an interrupt says.

        Raises:
            ValueError: if an output file or the model will not do.
            RuntimeError: if the judge cannot be asked.
            OSError: if a line cannot be written.
        """
        code = self._batch(progress)
        if not self._batch.summary:
            return code
        said = said_of(self.items, self._numbers, self.out)
        prompts = {item.id: self.benchmark.prompts(item, said[item.id]) for item in self.items}
        try:
            replies = self._judged(prompts, progress)
        except Interrupted as interrupt:
            progress.stop()
            progress.tell("stopped; answers and judgments are kept, and the same command goes on from there")
            return interrupt.exit_code
        self._score(list(self._marked(said, prompts, replies)))
        return code or int(self._judging is not None and self._judging.errors > 0)

    def _judged(self, prompts: Mapping[str, Sequence[str]], progress: Progress) -> Mapping[str, str]:
        """The judge's replies by prompt; none where nobody judges."""
        if self._judging is None:
            return {}
        items = {prompt: name for name, each in prompts.items() for prompt in each}
        self._judging(items, progress, overwrite=self._options.overwrite, retry=self._options.retry)
        progress.stop()
        return self._judging.replies

    def _marked(
        self, said: Mapping[str, Said], prompts: Mapping[str, Sequence[str]], replies: Mapping[str, str]
    ) -> Iterator[tuple[Item, Marks]]:
        """Marks of the items that can be marked."""
        if self.benchmark.compares and not self.benchmark.against:
            return
        for item in self.items:
            judged = [replies[prompt] for prompt in prompts[item.id] if prompt in replies]
            if len(judged) == len(prompts[item.id]):
                yield item, self.benchmark.mark(item, said[item.id], judged)

    def _score(self, marked: Sequence[tuple[Item, Marks]]) -> None:
        waiting = len(self.items) - len(marked)
        self.needs = self._needed() if waiting else None
        self.scores = scores_of(type(self.benchmark), [(item.group, marks) for item, marks in marked])
        self._notes = {row: note_of(marks) for item, marks in marked for row in self._numbers[item.id]}
        self.summary = {
            "benchmark": self.benchmark.name,
            "items": len(self.items),
            "items_without_video": sum(self.missing.values()),
            "questions_past_end": past_end(self.items, self._numbers, self.out),
            "items_waiting": waiting,
            "waiting_for": self.needs,
            "judge": None if self._judging is None else self._judging.as_json(),
            "scores": [score.as_json() for score in self.scores],
            **self._batch.summary,
        }

    def report(self) -> None:
        """Writes the report, if one is wanted, once all is marked. Raises `OSError` if it cannot be written."""
        self._batch.report([line_of(score, self.benchmark.measures) for score in self.scores], self._notes)

    def _needed(self) -> str:
        """What has to be given for the marks of items that wait."""
        needed = []
        if self.benchmark.compares and not self.benchmark.against:
            needed.append(f"--against OTHER.jsonl (answers of another run of {self.benchmark.name})")
        if self._judging is None:
            needed.append("--judge URL --judge-model NAME")
        return " and ".join(needed) or "--retry"


def told_apart(items: Iterable[Item]) -> list[Item]:
    """The items, each with an id of its own. Raises `ValueError` if two have the same."""
    found = dict[str, Item]()
    for item in items:
        if item.id in found:
            raise ValueError(f"two questions have the id {item.id!r} in the annotations; leave one there")
        found[item.id] = item
    return list(found.values())


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """So many items at even distances, in their order; all for None."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def present(items: Sequence[Item], disk: Disk, *, partial: bool) -> tuple[list[Item], dict[str, int]]:
    """The items whose videos are there, and the videos that are not with the number of their items.

    Raises:
        ValueError: if any is missing and that was not said to be all right, or all are.
    """
    asked = Counter(item.video for item in items)
    missing = {name: count for name, count in asked.items() if disk.video(name) is None}
    kept = [item for item in items if item.video not in missing]
    if missing and not (partial and kept):
        shown = ", ".join(f"{name:.{SHOWN_CHARS}}" for name in list(missing)[:SHOWN])
        names = shown + f" and {len(missing) - SHOWN:,} more" * (len(missing) > SHOWN)
        advice = "; --partial scores what is there" if kept else ""
        raise ValueError(f"{len(missing):,} of {len(asked):,} videos are missing below {disk.root}: {names}{advice}")
    return kept, missing


def numbers_of(items: Sequence[Item]) -> dict[str, range]:
    """The rows of every item's questions, whichever are asked: so a run can go on with more of them."""
    starts = accumulate((len(item.asks) for item in items), initial=1)
    return {item.id: range(start, start + len(item.asks)) for item, start in zip(items, starts, strict=False)}


def rows_of(items: Sequence[Item], numbers: Mapping[str, range], disk: Disk) -> list[Row]:
    """A row for every question."""
    rows = list[Row]()
    for item in items:
        video = disk.video(item.video)
        assert video is not None, f"{item.video} is there"
        for number, name, ask in zip(numbers[item.id], names_of(item), item.asks, strict=True):
            expected = item.gold if ask.choices else None
            group = " / ".join(item.group) or None
            rows.append(Row(number, name, video, ask.question, ask.at, ask.choices, expected, group, item.fps))
    return rows


def names_of(item: Item) -> list[str]:
    """What its questions are called in the file of answers."""
    return [item.id] if len(item.asks) == 1 else [f"{item.id}/{number}" for number in range(len(item.asks))]


def said_of(items: Sequence[Item], numbers: Mapping[str, range], out: Path) -> Mapping[str, Said]:
    """What was answered, by item."""
    answers = {record["row"]: record.get("answer") for record in read_records(out)}
    return {item.id: [answers.get(number) for number in numbers[item.id]] for item in items}


def past_end(items: Sequence[Item], numbers: Mapping[str, range], out: Path) -> int:
    """How many questions have a time after the end of their video, and so were asked at it."""
    pairs = ((number, ask.at) for item in items for number, ask in zip(numbers[item.id], item.asks, strict=True))
    times = {number: at for number, at in pairs if at != "end"}
    asked = ((one["asked_at_seconds"], times.get(one["row"])) for one in read_records(out) if "answer" in one)
    return sum(time is not None and seconds + SLACK_SECONDS < time for seconds, time in asked)


def against_of(kind: type[Benchmark], items: Sequence[Item], path: Path) -> Mapping[str, Said]:
    """What another run answered to the same questions, by item.

    Raises:
        ValueError: if this benchmark compares nothing, or the file is not of such a run, or lacks questions.
    """
    if not kind.compares:
        raise ValueError(f"--against is for benchmarks that compare two runs; {kind.name} marks each alone")
    try:
        answers = {record["id"]: record.get("answer") for record in read_records(path)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--against must be a file of answers as vstream bench {kind.name} writes it, got {path}"
        ) from error
    lacking = sum(name not in answers for item in items for name in names_of(item))
    if lacking:
        asked = sum(len(item.asks) for item in items)
        raise ValueError(
            f"--against {path} lacks {lacking:,} of {asked:,} questions; let that run come to its end first"
        )
    return {item.id: [answers[name] for name in names_of(item)] for item in items}
