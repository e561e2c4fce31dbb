"""OVO-Bench (Li et al., 2025, arXiv 2501.05510): what was, what is, and whether what is to come has come yet.

Twelve tasks in three modes, all in `ovo_bench_new.json`. Questions of the modes backward and realtime have options and
are asked at `realtime`, in seconds. Those of the mode forward are asked again and again, at the times of `test_info`:
how often something was done so far (REC), whether a step is being done right now (SSR), whether enough was seen to
answer a question (CRR). Each time is an item of its own, as in the published count; that is the mean of a mode's tasks,
and then of the modes. `ask_time`, `clue_time`, `start_time` and `end_time` say how the right answers were made.

The published clips end at the next whole second, so they show up to a second more than vstream, which sees nothing
later than `realtime`. Where the source videos are missing, those clips are watched, up to the same time.

The published script has traps. Options: the right capital anywhere counts ("All" for A). REC: all digits are joined,
so "1 or 2" is 12, and number words are none. SSR and CRR: "Yes" and "No" count as parts of words ("Nothing"), in this
case alone. An answer that is missing is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vstream.app.bench.base import Ask, Benchmark, Item, Mark, Said, strict_choice
from vstream.app.bench.disk import Disk
from vstream.app.bench.entries import Entry, read_entries

FILE, CLIPS = "ovo_bench_new.json", "chunked_videos"
MODES = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
MODE_OF = {task: mode for mode, tasks in MODES.items() for task in tasks}
COUNT = (
    "People in the video may do the following, once or more often: {}. "
    "How many times have they done it so far, all together? Answer only with a number."
)
STEP = 'This is one step of a tutorial: {}. Is it being done right now? Answer only with "Yes" or "No".'
ENOUGH = (
    "Does the video so far, above all what is seen last, show enough to answer the question below? "
    'Answer only with "Yes" or "No".\n{}'
)
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
WORDS = {word: number for number, word in enumerate(NUMBERS)} | {"once": 1, "twice": 2, "thrice": 3}


class OvoBench(Benchmark):
    """1,640 entries about 644 videos, 3,035 questions."""

    name = "ovo-bench"
    about = "OVO-Bench: looking back, seeing what is, and knowing when (arXiv 2501.05510)"
    needs = f"{FILE}, and src_videos or {CLIPS}"
    mean_of = "groups"

    def items(self) -> Iterator[Item]:
        """In the order of the file."""
        for entry in read_entries(self.disk, FILE):
            task = entry.text("task")
            if task not in MODE_OF:
                raise entry.wrong(f"task must be one of {', '.join(MODE_OF)}, got {task!r:.60}")
            if MODE_OF[task] != "forward":
                yield _item(self.disk, entry, task, entry.text("id"), *_choice(entry))
                continue
            for number, test in enumerate(entry.entries("test_info")):
                yield _item(self.disk, entry, task, f"{entry.text('id')}_{number}", *_forward(task, entry, test))

    def mark(self, item: Item, said: Said, judged: Said) -> Mapping[str, Mark]:
        """One mark."""
        return {"right": Mark(official(item.gold, said[0]), _strict(item, said[0]))}


def _item(disk: Disk, entry: Entry, task: str, name: str, ask: Ask, gold: str | int) -> Item:
    """`name` is the item's, and that of the clip that was cut for it."""
    source, clip = entry.text("video"), f"{CLIPS}/{name}.mp4"
    video = clip if disk.video(source) is None and disk.video(clip) is not None else source
    return Item(name, video, (MODE_OF[task], task), (ask,), gold)


def _choice(entry: Entry) -> tuple[Ask, str]:
    """A question with options, and the letter of the right one."""
    options, gold = entry.options("options"), entry["gt"]
    if type(gold) is not int or not 0 <= gold < len(options):
        raise entry.wrong(f"gt must be the place of one of {len(options)} options, from 0, got {gold!r:.60}")
    return Ask(entry.text("question"), entry.seconds("realtime"), options), chr(ord("A") + gold)


def _forward(task: str, entry: Entry, test: Entry) -> tuple[Ask, str | int]:
    """What is asked at one of the times, and how often it was done, or "Yes" or "No"."""
    at = test.seconds("realtime")
    if task == "REC":
        return Ask(COUNT.format(entry.text("activity")), at), _whole(test, "count")
    text = STEP.format(test.text("step")) if task == "SSR" else ENOUGH.format(entry.text("question"))
    return Ask(text, at), "Yes" if _whole(test, "type", most=1) else "No"


def _whole(test: Entry, name: str, most: int | None = None) -> int:
    value = test[name]
    if type(value) is not int or value < 0 or (most is not None and value > most):
        allowed = "a whole number from 0" if most is None else f"a whole number from 0 to {most}"
        raise test.wrong(f"{name} must be {allowed}, got {value!r:.60}")
    return value


def official(gold: str | int, said: str | None) -> float:
    """The published script's mark, by what is right: a letter, "Yes" or "No", or a number."""
    if said is None:
        return 0.0
    if isinstance(gold, int):
        return float("".join(re.findall(r"\d+", said)) == str(gold))
    return float(gold in said or said == gold[0])


def _strict(item: Item, said: str | None) -> float:
    """1 for the option that is named, the one number that is said, or a yes or no at the beginning."""
    if item.asks[0].choices:
        return strict_choice(item, said)
    heard: Any = number_in(said or "") if isinstance(item.gold, int) else _yes_or_no(said or "")
    return float(heard == item.gold)


def number_in(said: str) -> float | None:
    """The number that is said, in digits or as a word up to twenty; None for none, or for several."""
    found = re.findall(rf"\d+(?:\.\d+)?|(?<!no )\b(?:{'|'.join(WORDS)})\b", said.casefold())
    numbers = {float(WORDS.get(one, one)) for one in found}
    return numbers.pop() if len(numbers) == 1 else None


def _yes_or_no(said: str) -> str | None:
    """The first word, where it is one of them, or their first letter where that is all there is."""
    first = re.match(r"\W*(yes\b|no\b|[yn]\W*$)", said, re.I)
    return None if first is None else "Yes" if first[1][0] in "yY" else "No"
