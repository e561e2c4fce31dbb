"""The form in which Flash-VStream publishes questions (`test_qa.json`): the options stand within the question's text.

It knows nothing of single benchmarks, nor of how answers are marked.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from vstream.app.bench.entries import Entry

OPTION = re.compile(r"^\(([A-Z])\)(.*)$", re.M)


def question_and_options(entry: Entry) -> tuple[str, tuple[str, ...]]:
    """What is asked, and the options without their letters; either may be empty.

    Raises:
        ValueError: if there are not two or more options in lines of their own, (A) first.
    """
    text = entry.text("question")
    found = list(OPTION.finditer(text))
    if len(found) < 2 or "".join(one[1] for one in found) != ascii_uppercase[: len(found)]:
        raise entry.wrong(f"question must have lines (A), (B) and so on, got {text!r:.60}")
    before = text[: found[0].start()].strip().removesuffix("Options:")
    _, lead, question = before.partition("\nQuestion: ")
    return (question if lead else before).strip(), tuple(one[2].strip() for one in found)


def gold_letter(entry: Entry, options: tuple[str, ...]) -> str:
    """The letter of the right option, which is given by its number from 0. Raises `ValueError`."""
    number = entry["answer"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(options):
        raise entry.wrong(f"answer must be a whole number from 0 to {len(options) - 1}, got {number!r:.60}")
    return ascii_uppercase[number]
