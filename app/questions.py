"""Questions with the stream time at which they are asked, as people write them.

This module knows nothing of sessions or models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vstream.types import parse_seconds

Moment = float | Literal["end"]
"""Seconds of stream time, or the end of the stream."""


@dataclass(frozen=True)
class Scheduled:
    """A question and the moment at which it is asked."""

    text: str
    at: Moment


def parse_moment(text: str) -> Moment:
    """A moment from '90', '01:30', '00:01:30' or 'end'.

    Raises:
        ValueError: if it is none of these.
    """
    return "end" if text.strip() == "end" else parse_seconds(text)


def parse_scheduled(text: str) -> Scheduled:
    """A question from 'TIME question'.

    Raises:
        ValueError: if it does not begin with a time, or asks nothing.
    """
    moment, _, question = text.strip().partition(" ")
    return _checked(question, parse_moment(moment))


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


def _read_line(line: bytes, where: str) -> Scheduled:
    try:
        value = _json(line)
        if not isinstance(value, dict) or value.keys() != {"at", "question"}:
            raise ValueError('a question is written as {"at": "00:01:30", "question": "..."}')
        return _checked(value["question"], _moment(value["at"]))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except ValueError as error:
        raise ValueError("this is no JSON in UTF-8") from error


def _moment(value: Any) -> Moment:
    """A moment as JSON has it: a text, or a number of seconds."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return parse_moment(str(value))
    raise ValueError(f'"at" must be a time in seconds or text such as "00:01:30", got {value!r}')


def _checked(question: Any, at: Moment) -> Scheduled:
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the question is empty; ask something about the video")
    return Scheduled(question.strip(), at)
