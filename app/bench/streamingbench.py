"""StreamingBench (Lin et al., 2024, arXiv 2411.03628): questions at times of a stream, in four files.

A question at `time_stamp` sees everything up to it; the published runs show the last 60 s, or everything where their
`--context_time` is 0. The published count takes an answer's first character, whatever comes behind it, and leaves empty
answers out. Questions in sequence (SQA) are told the earlier ones with their right answers.

Proactive questions are polled each second from `time_stamp` + 1 to `ground_truth_time_stamp` + 4 whether it is the
right time, and asked for the answer at the first yes. The published poll names the right answer, takes "eyes" for a
yes, and an answer that holds the right one somewhere for right ("3" in "30"). Without any yes the last poll stands for
both, too late to be right.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from vstream.app.batch.marks import normalised
from vstream.app.bench.base import Ask, Benchmark, ChoiceBenchmark, Item, Mark, Measure, Said
from vstream.app.bench.entries import Entry, entries_of, list_of, read_entries

PAPER = "(arXiv 2411.03628)"
POLL_AFTER_SECONDS, NEAR_SECONDS = 4, 2
MOST_POLLED_SECONDS = 3600
"""Of the published questions the longest is polled for 48 s."""
SQA_LEAD = "Here are earlier questions about the video with their answers; answer the one below them.{}\nQuestion: {}"


class _StreamingChoice(ChoiceBenchmark):
    """What the three multiple-choice files have in common."""

    file: ClassVar[str]

    @abstractmethod
    def items(self) -> Iterator[Item]: ...

    def official(self, item: Item, said: str | None) -> float | None:
        """By the first character; None for an empty answer."""
        return float(said[0] == item.gold) if said else None


class _Alone(_StreamingChoice):
    """Questions that know nothing of each other."""

    def items(self) -> Iterator[Item]:
        """In the order of the file."""
        for subset in read_entries(self.disk, self.file):
            for question in subset.entries("questions"):
                options = question.options("options")
                yield _item(question, subset, question.text("question"), options)


class Real(_Alone):
    """Real-time visual understanding."""

    name, file = "streamingbench-real", "questions_real.json"
    about = f"StreamingBench, real-time visual understanding {PAPER}"
    needs = f"{file}, and the videos it names"


class Omni(_Alone):
    """Omni-source understanding, by what is seen alone: nothing is heard."""

    name, file = "streamingbench-omni", "questions_omni.json"
    about = f"StreamingBench, omni-source understanding, without its sound {PAPER}"
    needs = f"{file}, and the videos it names"


class Sqa(_StreamingChoice):
    """Questions in sequence."""

    name, file = "streamingbench-sqa", "questions_sqa.json"
    about = f"StreamingBench, questions in sequence {PAPER}"
    needs = f"{file}, and the videos it names"

    def items(self) -> Iterator[Item]:
        """In the order of the file; each question is told those before it about its video."""
        for number, values in enumerate(list_of(self.file, self.disk.read(self.file)), start=1):
            told = ""
            for subset in entries_of(f"{self.file}, list {number}", values):
                for question in subset.entries("questions"):
                    options = question.options("options")
                    text = question.text("question")
                    yield _item(question, subset, SQA_LEAD.format(told, text) if told else text, options)
                    answer = options[ord(question.letter("answer", options)) - ord("A")]
                    told += f"\nAt {question.text('time_stamp')}: {text} Answer: {answer}"


class Proactive(Benchmark):
    """Saying something at the right time."""

    name, file = "streamingbench-proactive", "questions_proactive.json"
    about = f"StreamingBench, proactive output: the right time, and then the right words {PAPER}"
    needs = f"{file}, and the videos it names"
    measures = (Measure("time"), Measure("answer"))

    def items(self) -> Iterator[Item]:
        """Each with a poll and the question itself every second."""
        for subset in read_entries(self.disk, self.file):
            for question in subset.entries("questions"):
                yield _polled(question, subset)

    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """By the first yes, officially in any word, strictly as a word."""
        official = first_yes(item, said, lambda reply: "yes" in reply.lower())
        strict = first_yes(item, said, lambda reply: re.match(r"\W*yes\b", reply, re.I) is not None)
        gold = item.gold["output"]
        on_time, strictly = (abs(at - item.gold["at"]) <= NEAR_SECONDS for at, _ in (official, strict))
        return {
            "time": Mark(float(on_time), float(strictly)),
            "answer": Mark(
                float(on_time and gold in official[1]), float(strictly and normalised(strict[1]) == normalised(gold))
            ),
        }


def first_yes(item: Item, said: Said, is_yes: Any) -> tuple[float, str]:
    """When the first yes was said and what was answered then; without any, the last poll's time and reply."""
    replies = [reply or "" for reply in said]
    for number in range(0, len(replies), 2):
        if is_yes(replies[number]):
            at = item.asks[number].at
            assert at != "end", "a poll has a time"
            return at, replies[number + 1]
    at = item.asks[-1].at
    assert at != "end", "a poll has a time"
    return at, replies[-2]


def _polled(question: Entry, subset: Entry) -> Item:
    start, gold = int(question.seconds("time_stamp")), int(question.seconds("ground_truth_time_stamp"))
    output, text = question.text("ground_truth_output"), question.text("question")
    if gold + POLL_AFTER_SECONDS <= start:
        raise question.wrong("ground_truth_time_stamp is before time_stamp")
    if gold - start > MOST_POLLED_SECONDS:
        raise question.wrong("ground_truth_time_stamp must be within an hour after time_stamp")
    poll = f'{text} Is it the right time to output "{output}"? You can only answer yes or no.'
    times = range(start + 1, gold + POLL_AFTER_SECONDS + 1)
    asks = tuple(Ask(one, float(at)) for at in times for one in (poll, text))
    return Item(
        _id(question), subset.text("video_path"), (question.text("task_type"),), asks, {"at": gold, "output": output}
    )


def _item(question: Entry, subset: Entry, text: str, options: tuple[str, ...]) -> Item:
    group = (question.text("task_type"),)
    asks = (Ask(text, question.seconds("time_stamp"), options),)
    return Item(_id(question), subset.text("video_path"), group, asks, question.letter("answer", options))


def _id(question: Entry) -> str:
    """The place in the file: the published entries have no names."""
    numbers = re.findall(r"(?:entry|list) (\d+)", question.where)
    return "-".join(numbers)
