"""Video-MME (Fu et al., 2024, arXiv 2405.21075): multiple choice about whole videos, without subtitles.

The published script, `eval_your_results.py`, takes the first capital A, B, C or D of an answer, in any word, once it
has taken away phrases such as "The answer is"; what holds no such letter is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vstream.app.bench.base import Ask, ChoiceBenchmark, Item
from vstream.app.bench.entries import Entry, read_entries

TEMPLATE, TABLE = "output_test_template.json", "videomme/test-00000-of-00001.parquet"
PHRASES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:",
)  # fmt: skip
"""As published: a comma is missing behind the fifth and the sixth, so four phrases became two that nobody says."""


class VideoMme(ChoiceBenchmark):
    """900 videos, three questions each, by length and task."""

    name = "video-mme"
    about = "Video-MME: multiple choice about videos of minutes to an hour (arXiv 2405.21075)"
    needs = f"{TABLE} or {TEMPLATE}; videos named by videoID or video_id"

    def items(self) -> Iterator[Item]:
        """Asked at the end of the video."""
        name = self.disk.first(TABLE, TEMPLATE)
        for entry in read_entries(self.disk, name):
            about = entry.text("videoID") if "videoID" in entry else entry.text("video_id")
            for question in entry.entries("questions") if "questions" in entry else [entry]:
                yield _item(question, about, entry.text("duration"))

    def official(self, item: Item, said: str | None) -> float | None:
        """By the first capital letter, None where there is none."""
        letter = first_letter(said or "")
        return None if letter is None else float(letter == item.gold)


def _item(question: Entry, video: str, length: str) -> Item:
    options = question.options("options")
    group = (length, question.text("task_type"))
    asks = (Ask(question.text("question"), "end", options),)
    return Item(question.text("question_id"), video, group, asks, question.letter("answer", options))


def first_letter(said: str) -> str | None:
    """The letter that the published script finds."""
    for phrase in PHRASES:
        said = said.replace(phrase, "")
    found = re.search("[ABCD]", said)
    return found[0] if found else None
