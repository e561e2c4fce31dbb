"""A benchmark's run: its questions as a batch, then marks and scores.

A run that was stopped goes on where it was, as a batch does. This module knows nothing of single benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vstream.app.batch.ledger import read_records
from vstream.app.batch.rows import Row
from vstream.app.batch.run import Batch
from vstream.app.bench.base import Benchmark, Item, Said
from vstream.app.bench.disk import Disk
from vstream.app.bench.options import BenchOptions
from vstream.app.bench.registry import benchmark_of
from vstream.app.bench.scores import Score, scores_of
from vstream.app.progress import Progress

SHOWN = 5


class Bench:
    """One command's work.

    Attributes:
        summary: what came of it as JSON values, empty before it is over.
        scores: of all groups, empty before it is over.
    """

    def __init__(self, name: str, options: BenchOptions) -> None:
        """Reads the annotations and checks all that can be checked before a model is loaded.

        Raises:
            ValueError: for an unknown benchmark, an option that will not do, or files that are missing.
        """
        kind = benchmark_of(name)
        if options.root is None:
            raise ValueError(f"--root must be the folder of {name}: {kind.needs or 'an empty one will do'}")
        disk = Disk(options.root)
        self.benchmark: Benchmark = kind(disk)
        self.out = options.out or Path(f"{name}.jsonl")
        options.check(self.out)
        items = spread(list(self.benchmark.items()), options.limit)
        self.benchmark.prepare(items)
        self.items, self.missing = present(items, disk, partial=options.partial)
        self._batch = Batch(rows_of(self.items, disk), disk.root, self.out, options, links=True)
        self.scores: list[Score] = []
        self.summary: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> int:
        """Answers, marks and scores; 1 if a question ended in an error, else 0, or what an interrupt says.

        Raises:
            ValueError: if the output file or the model will not do.
            OSError: if a line cannot be written.
        """
        code = self._batch(progress)
        if not self._batch.summary:
            return code
        said = said_of(self.items, self.out)
        marked = [(item.group, self.benchmark.mark(item, said[item.id], ())) for item in self.items]
        self.scores = scores_of(type(self.benchmark), marked)
        self.summary = {
            "benchmark": self.benchmark.name,
            "items": len(self.items),
            "items_without_video": sum(self.missing.values()),
            "scores": [score.as_json() for score in self.scores],
            **self._batch.summary,
        }
        return code


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """So many items at even distances, in their order; all for None."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def present(items: Sequence[Item], disk: Disk, *, partial: bool) -> tuple[list[Item], dict[str, int]]:
    """The items whose videos are there, and the videos that are not with the number of their items.

    Raises:
        ValueError: if any is missing and that was not said to be all right, or all are.
    """
    there = {name: disk.video(name) is not None for name in dict.fromkeys(item.video for item in items)}
    kept = [item for item in items if there[item.video]]
    missing = {name: sum(item.video == name for item in items) for name, is_there in there.items() if not is_there}
    if missing and not (partial and kept):
        names = ", ".join(list(missing)[:SHOWN]) + f" and {len(missing) - SHOWN:,} more" * (len(missing) > SHOWN)
        advice = "; --partial scores what is there" if kept else ""
        raise ValueError(f"{len(missing):,} of {len(there):,} videos are missing below {disk.root}: {names}{advice}")
    return kept, missing


def rows_of(items: Sequence[Item], disk: Disk) -> list[Row]:
    """A row for every question."""
    rows = list[Row]()
    for item in items:
        video = disk.video(item.video)
        assert video is not None, f"{item.video} is there"
        for number, ask in enumerate(item.asks):
            name = item.id if len(item.asks) == 1 else f"{item.id}/{number}"
            expected = item.gold if ask.choices else None
            group = " / ".join(item.group) or None
            rows.append(Row(len(rows) + 1, name, video, ask.question, ask.at, ask.choices, expected, group))
    return rows


def said_of(items: Sequence[Item], out: Path) -> Mapping[str, Said]:
    """What was answered, by item."""
    answers = {record["row"]: record.get("answer") for record in read_records(out)}
    said, row = dict[str, Said](), 0
    for item in items:
        said[item.id] = [answers.get(row + number + 1) for number in range(len(item.asks))]
        row += len(item.asks)
    return said
