"""Options of a multiple-choice question: how they are written behind it, and which one an answer names.

It knows nothing of tokens, models or sessions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

INSTRUCTION = "Answer with the letter of the right option."


def choices_text(choices: Sequence[str]) -> str:
    """What stands behind the question: a line for each option, `A. ...`, and what is wanted; empty for none."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return "".join(f"\n{line}" for line in [*lines, INSTRUCTION]) if choices else ""


def check_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """The options as they are kept.

    Raises:
        ValueError: for a single text, fewer than two or more than 26 options, or an empty one.
    """
    if isinstance(choices, str):
        raise ValueError(f"choices must be several texts, got one: {choices!r}")
    if choices and not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError(f"give a question 2 to {len(ascii_uppercase)} options, or none; it has {len(choices)}")
    for choice in choices:
        if not choice.strip():
            raise ValueError("an option is empty; leave it out or give some text")
    return tuple(choices)


def choice_of(text: str, choices: Sequence[str]) -> int | None:
    """Which option an answer names, from 0: by its letter at the beginning, or in the option's own words; else None."""
    letters = ascii_uppercase[: len(choices)]
    named = re.match(rf"\W*([{letters}{letters.lower()}])(?![\w'])(?!\s+\w)", text) if choices else None
    if named:
        return letters.index(named[1].upper())
    said = _plain(text)
    return next((index for index, choice in enumerate(choices) if _plain(choice) == said), None)


def _plain(text: str) -> str:
    return text.strip(" \t\n.!\"'").casefold()
