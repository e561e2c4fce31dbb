"""MLVU (Zhou et al., 2024, arXiv 2406.04264): multiple choice about long videos, the dev set, in seven tasks.

The published total is the mean of the tasks (M-Avg). Three forms are read: the seven files of the project, ReKV's
conversations and Flash-VStream's `test_qa.json`, all with the same 2,175 questions.

The published script, `choice_bench.py`, takes the character before the first closing bracket, else all that was said:
"A" and "(A) Red" are A, while "A.", "(a)" and the option's own words are nothing, and "B, see A)" is A.

What is strange in the files: of options that are alike the last one alone counts officially, any of them strictly; the
answer to two questions is none of their options, so officially nothing is right; some options, and all of one question,
are empty, and read "(empty)".
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase

from vstream.app.bench.base import Ask, ChoiceBenchmark, Item
from vstream.app.bench.entries import Entry, read_entries
from vstream.app.bench.flash_form import gold_letter, question_and_options

FILES = (
    "1_plotQA.json", "2_needle.json", "3_ego.json", "4_count.json", "5_order.json", "6_anomaly_reco.json",
    "7_topic_reasoning.json",
)  # fmt: skip
REKV, FLASH = "mlvu/dev_debug_mc.json", "mlvu/test_qa.json"
EMPTY = "(empty)"
MEANT = {"Catching a flying drone quadcopter": "Catching the drone"}
"""Published answers that are none of their options, and the option that is meant."""


class Mlvu(ChoiceBenchmark):
    """The seven tasks of multiple choice."""

    name = "mlvu"
    about = "MLVU, multiple choice about videos of 3 minutes to 2 hours, the dev set (arXiv 2406.04264)"
    needs = f"{FILES[0]} to {FILES[-1]}, or {REKV}, or {FLASH}; and the videos they name"
    mean_of = "groups"

    def items(self) -> Iterator[Item]:
        """Asked at the end of the video."""
        read = {FILES[0]: self._files, REKV: self._conversations, FLASH: self._flash}
        return read[self.disk.first(*read)]()

    def official(self, item: Item, said: str | None) -> float | None:
        """By the character before a bracket."""
        right = item.asks[0].choices[ord(item.gold) - ord("A")]
        return float(named_letter(said or "") == item.gold and right not in MEANT.values())

    def _files(self) -> Iterator[Item]:
        """The project's own files, a task each."""
        for name in FILES:
            task = name.removesuffix(".json")
            for number, entry in enumerate(read_entries(self.disk, name), start=1):
                video = f"{task}/{entry.text('video')}"
                options = entry.options("candidates")
                yield _item(f"{task}-{number}", video, entry, "question_type", options, _gold(entry, options))

    def _conversations(self) -> Iterator[Item]:
        """ReKV's form: several questions a video."""
        for outer, entry in enumerate(read_entries(self.disk, REKV), start=1):
            for inner, one in enumerate(entry.entries("conversations"), start=1):
                options = one.options("choices")
                video = entry.text("video_path")
                yield _item(f"{outer}-{inner}", video, one, "question_type", options, _gold(one, options))

    def _flash(self) -> Iterator[Item]:
        """Flash-VStream's form."""
        for entry in read_entries(self.disk, FLASH):
            question, options = question_and_options(entry)
            named = Entry(entry.where, {**entry.fields, "question": question})
            gold = gold_letter(entry, options)
            yield _item(entry.text("id"), entry.text("video_id"), named, "type", options, gold)


def named_letter(said: str) -> str:
    """What the published script takes for the letter."""
    bracket = said.find(")")
    return said if bracket < 0 else said[bracket - 1 : bracket]


def _item(name: str, video: str, entry: Entry, task: str, options: tuple[str, ...], gold: str) -> Item:
    question = str(entry["question"]).strip() or EMPTY
    ask = Ask(question, "end", tuple(one or EMPTY for one in options))
    return Item(name, video, (entry.text(task),), (ask,), gold)


def _gold(entry: Entry, options: tuple[str, ...]) -> str:
    """The letter of the last option that reads as the answer does."""
    answer = str(entry["answer"]).strip()
    right = [number for number, one in enumerate(options) if one == MEANT.get(answer, answer)]
    if not right:
        raise entry.wrong(f"answer must be one of the options, got {answer!r:.60}")
    return ascii_uppercase[right[-1]]
