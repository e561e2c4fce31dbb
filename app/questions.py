"""Questions with the moment at which they are asked, as people and files write them.

This module knows nothing of sessions or models.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any, Literal

from vstream.types import parse_seconds

Moment = float | datetime | Literal["now", "end"]
"""Seconds of stream time, a wall-clock time (it has a time zone), the newest frame, or the end of the stream."""

EMPTY = "the question is empty; ask something about the video"


@dataclass(frozen=True)
class Scheduled:
    """A question, the moment at which it is asked, and options to choose from."""

    text: str
    at: Moment
    choices: tuple[str, ...] = ()


def parse_moment(text: str) -> Moment:
    """A moment from '90', '01:30', '00:01:30', 'end', '2026-11-21T15:00' or 'T15:00' (today).

    Wall-clock times are ISO 8601, of the local time zone unless they name one.

    Raises:
        ValueError: if it is none of these.
    """
    text = text.strip()
    if text == "end":
        return "end"
    return _wall_clock(text) if re.match(r"T\d|\d{4}-", text) else parse_seconds(text)


def _wall_clock(text: str) -> datetime:
    try:
        if text.startswith("T"):
            clock = time.fromisoformat(text)
            moment = datetime.combine(datetime.now(clock.tzinfo).date(), clock)
        else:
            moment = datetime.fromisoformat(text)
        return moment.astimezone()  # one without a time zone is local
    except (ValueError, OverflowError) as error:
        allowed = "2026-11-21T15:00 or T15:00, with +01:00 or Z for another time zone"
        raise ValueError(f"{text!r} is not a time; write a wall-clock time as {allowed}") from error


def parse_scheduled(text: str) -> Scheduled:
    """A question from 'TIME question'.

    Raises:
        ValueError: if it does not begin with a time, or asks nothing.
    """
    moment, _, question = text.strip().partition(" ")
    return _checked(question, parse_moment(moment))


def parse_line(text: str) -> Scheduled:
    """A question from a line of JSON as in files, or of plain text, which is asked now.

    Raises:
        ValueError: if it is JSON of another kind, or asks nothing.
    """
    return _question_of(text.encode()) if text.lstrip().startswith("{") else _checked(text, "now")


def read_questions(path: Path) -> list[Scheduled]:
    """The questions of a file with one JSON object per line: {"at": "00:01:30" or seconds, "question": "..."}.

    Raises:
        ValueError: for a line that is no such object; it names the line.
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of questions {path}")
    numbered = enumerate(path.read_bytes().splitlines(), start=1)
    return [_read_line(line, f"{path} line {number}") for number, line in numbered if line.strip()]


def in_order(scheduled: list[Scheduled]) -> list[Scheduled]:
    """Questions in the order of their stream times, then those of the wall clock, then those about the end."""
    return sorted(scheduled, key=_order)


def _order(question: Scheduled) -> tuple[int, float]:
    at = question.at
    if isinstance(at, datetime):
        return 1, at.timestamp()
    return (2, 0.0) if isinstance(at, str) else (0, at)


def _read_line(line: bytes, where: str) -> Scheduled:
    try:
        return _question_of(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _question_of(line: bytes) -> Scheduled:
    value = _json(line)
    if not isinstance(value, dict) or value.keys() != {"at", "question"}:
        raise ValueError('a question is written as {"at": "00:01:30", "question": "..."}')
    return _checked(value["question"], _moment(value["at"]))


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError("this is no JSON in UTF-8") from error


def _moment(value: Any) -> Moment:
    """A moment as JSON has it: a text, or a number of seconds."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return parse_moment(str(value))
    raise ValueError(f'"at" must be a time in seconds or text such as "00:01:30", got {value!r}')


def _checked(question: Any, at: Moment) -> Scheduled:
    if not isinstance(question, str) or not question.strip():
        raise ValueError(EMPTY)
    return Scheduled(question.strip(), at)
