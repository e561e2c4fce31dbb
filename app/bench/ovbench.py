"""OVBench (Huang et al., 2025, arXiv 2501.00584): what is, was and will be, at times of a stream.

It is published twice. `ovbench.json`, also in three parts, is a list of videos with their questions, or of questions;
options are written behind their letters, `answer` is a letter. `lmms-eval-ovbench` has a file for each source of
videos: every entry is a question, `answer` an option's own words. Some videos are folders of pictures, with `fps`
pictures a second; a picture's place in its folder gives its time.

A question is asked at `middle_frame_timestamp`, as in the published streaming script, which shows everything from the
clip's beginning up to it; vstream sees from the beginning of the video. For the last question of a video the script
goes on to the clip's end, even where that is later; vstream never does. `end` is the same time, but for AVA: its
pictures begin 895 s into the film and `end` is on their clock, so it is taken where pictures are found, not the film.

The streaming script's total is the mean over all tasks. It takes the first of A to E that stands alone, in either case:
"a red ball" names A, "I'd say B" names D. Nothing is drawn by chance where there is none, and an option's own words are
wrong. (`lmms-eval-ovbench` marks alike, but leaves empty answers out and takes the mean over all answers.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vstream.app.bench.base import Ask, ChoiceBenchmark, Item
from vstream.app.bench.entries import Entry, read_entries

LISTS = (
    ("ovbench.json",),
    ("ovbench_action.json", "ovbench_event.json", "ovbench_object.json"),
    ("ava.json", "coin.json", "hirest.json", "tao.json"),
)
"""The ways in which it is published; all files of the first one that is there are read."""

MARKS = ';/[]"{}()=+\\_->@<`,?!'
MOST_DOTS = 32


class OvBench(ChoiceBenchmark):
    """7,005 questions of 20 kinds about 1,441 videos, as `lmms-eval-ovbench` has them."""

    name = "ovbench"
    about = "OVBench: what is, was and will be at times of a stream (arXiv 2501.00584)"
    needs = "; or ".join(", ".join(names) for names in LISTS) + "; videos, or folders of their pictures"
    mean_of = "tasks"

    def items(self) -> Iterator[Item]:
        """In the order of the files."""
        there = self.disk.first(*(name for names in LISTS for name in names))
        files = next(names for names in LISTS if there in names)
        for file in files:
            source = (file.removesuffix(".json").removeprefix("ovbench_"),) if len(files) > 1 else ()
            for entry in read_entries(self.disk, file):
                for question in entry.entries("questions") if "questions" in entry else [entry]:
                    yield self._item(entry, question, source)

    def _item(self, entry: Entry, question: Entry, source: tuple[str, ...]) -> Item:
        video = entry.text("video_id" if "video_id" in entry else "video")
        options = question.options("options" if "options" in question else "candidates")
        group = (*source, question.text("answer_type"), question.text("sub_answer_type"))
        asks = (Ask(question.text("question"), self._when(video, question), options),)
        return Item(_id(question), video, group, asks, question.letter("answer", options), _fps(entry))

    def _when(self, video: str, question: Entry) -> float:
        """Its time, on the clock of what is found: a folder of pictures, or a file."""
        found = self.disk.video(video)
        is_folder = found is not None and (self.disk.root / found).is_dir()
        return question.seconds("end" if is_folder and "end" in question else "middle_frame_timestamp")

    def official(self, item: Item, said: str | None) -> float:
        """By the first letter that stands alone."""
        return float(named(said or "") == item.gold)


def named(said: str) -> str | None:
    """The letter that the published script finds; None where it finds none."""
    whole = re.match(r"([A-E])\.\s*.+$", said.strip(), re.I)
    found = whole or re.search(r"\b([A-E])\b", _plain(said), re.I)
    return found[1].upper() if found else None


def _plain(said: str) -> str:
    """An answer as the published script searches it.

    Marks become blanks, or nothing: each that stands beside a blank somewhere, and all where a number has a comma in
    it. Dots go.
    """
    text = re.sub(r"[\n\t]", " ", said).strip()
    has_comma = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in MARKS:
        plain = plain.replace(mark, "" if has_comma or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", plain, count=MOST_DOTS)


def _fps(entry: Entry) -> float:
    fps = entry.number("fps") if "fps" in entry else 1.0
    if not 0 < fps < float("inf"):
        raise entry.wrong(f"fps must be above 0, got {fps}")
    return float(fps)


def _id(question: Entry) -> str:
    """The file and the place in it: the published entries have no names."""
    return "-".join(re.findall(r"^\w+|(?<=entry )\d+", question.where))
