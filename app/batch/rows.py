"""The rows of a file of questions: JSONL, JSON or CSV in UTF-8, with or without a byte order mark.

Columns are id, video, question, and where wanted at_seconds or at, options, answer and type; others are left alone. A
bad row becomes a `BadRow`, and the rest goes on. This module knows nothing of videos or models.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from vstream.app.questions import parse_moment
from vstream.choices import check_choices, choice_of

NEEDED = ("id", "video", "question")
Id = str | int | None


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        number: its place in the file, from 1; it tells rows apart.
        id: as written, text or a whole number.
        video: path below the folder of videos.
        question: what is asked.
        at: stream time in seconds at which it is asked, or the end.
        choices: options to choose from, without letters of their own; empty for an open question.
        expected: the right answer, None where it is not known.
        type: a kind of question, by which right answers are counted; None for none.
        fps: pictures per second, where the video is a folder of pictures.
    """

    number: int
    id: Id
    video: str
    question: str
    at: float | Literal["end"] = "end"
    choices: tuple[str, ...] = ()
    expected: str | None = None
    type: str | None = None
    fps: float = 1.0


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be asked: its number, its id if it has one, and one sentence."""

    number: int
    id: Id
    error: str


def read_rows(path: Path) -> list[Row | BadRow]:
    """Every row of a file, in order; of two with one id the second is bad.

    Raises:
        ValueError: if the file is empty, of another kind, not UTF-8, or lacks a column.
        FileNotFoundError: if there is no such file.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} must end in .jsonl, .json or .csv, so that it is known how to read it")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of questions {path}")
    rows = list(_checked(readers[path.suffix.lower()](path.read_bytes(), path)))
    if not rows:
        raise ValueError(f"{path} is empty; it needs a row for each question, with {_listed(NEEDED)}")
    return rows


def _checked(values: Iterator[Callable[[], Mapping[str, Any]]]) -> Iterator[Row | BadRow]:
    """Rows from what gives their values, or raises."""
    seen: dict[str, int] = {}
    for number, read in enumerate(values, start=1):
        name: Id = None
        try:
            value = read()
            name = _id(value.get("id"))
            if str(name) in seen:
                raise ValueError(f"the id {name!r} is that of row {seen[str(name)]} already; give each row its own")
            row = row_of(value, number)
        except ValueError as error:
            yield BadRow(number, name, f"row {number}: {error}")
            continue
        seen[str(name)] = number
        yield row


def row_of(value: Mapping[str, Any], number: int = 1) -> Row:
    """A row from its columns.

    Raises:
        ValueError: for a column that will not do.
    """
    missing = [name for name in NEEDED if value.get(name) in (None, "")]
    if missing:
        raise ValueError(f"it has no {_listed(missing)}; a row needs {_listed(NEEDED)}")
    choices = _choices(value.get("options"))
    return Row(
        number, _id(value["id"]), _text(value, "video"), _text(value, "question"), _moment(value), choices,
        _expected(value.get("answer"), choices), None if value.get("type") is None else _text(value, "type"),
    )  # fmt: skip


def _id(value: Any) -> Id:
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"id must be text or a whole number, got {value!r}")


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be text that is not empty, got {text!r}")
    return text.strip()


def _moment(value: Mapping[str, Any]) -> float | Literal["end"]:
    """When it is asked: `at_seconds`, a number, or `at`, as people write times."""
    seconds, at = value.get("at_seconds"), value.get("at")
    if seconds is not None and at is not None:
        raise ValueError("it has at_seconds and at; leave one out")
    if seconds is not None:
        return _seconds(seconds)
    if at is None:
        return "end"
    moment = parse_moment(at) if isinstance(at, str) else _seconds(at, "at")
    if isinstance(moment, datetime) or moment == "now":
        raise ValueError(f"at must be a time in the video such as 01:30 or end, got {at!r}")
    return moment


def _seconds(given: Any, name: str = "at_seconds") -> float:
    number = re.fullmatch(r"\s*\d+(\.\d*)?([eE][+-]?\d+)?\s*", given) if isinstance(given, str) else None
    value = float(given) if number else given
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of seconds >= 0, got {given!r}")
    return float(value)


def _choices(given: Any) -> tuple[str, ...]:
    """The options, without the letters that some data sets write before them."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(_is_plain(one) for one in given):
        raise ValueError(f'options must be a list of texts such as ["red", "blue"], got {given!r}')
    choices = check_choices([str(one) for one in given])
    own = [re.fullmatch(rf"\s*\(?{letter}(?:\)[.:]?|[.:])\s*(\S.*)", one, re.S) for letter, one in _lettered(choices)]
    return tuple(found[1].strip() for found in own if found) if all(own) else tuple(one.strip() for one in choices)


def _lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(ascii_uppercase, choices, strict=False))


def _expected(given: Any, choices: tuple[str, ...]) -> str | None:
    if given is None:
        return None
    if not _is_plain(given) or not str(given).strip():
        raise ValueError(f"answer must be text or a number, got {given!r}")
    if choices and choice_of(str(given), choices) is None:
        raise ValueError(f"answer must be one of the options or its letter, got {given!r}")
    return str(given).strip()


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


# How files are written. Each gives functions, so that what is wrong with one row is wrong with that row alone. --------

Values = Iterator[Callable[[], Mapping[str, Any]]]


def _jsonl(data: bytes, path: Path) -> Values:
    lines = (line for line in data.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip())
    return (lambda line=line: _object(_parsed(line)) for line in lines)  # type: ignore[misc]


def _json(data: bytes, path: Path) -> Values:
    if not data.strip():
        return iter(())
    try:
        values = _parsed(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, list):
        raise ValueError(f"{path} must hold a list of objects, one for each question")
    return (lambda value=value: _object(value) for value in values)  # type: ignore[misc]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"this is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'a question is written as {{"id": 1, "video": "a.mp4", "question": "..."}}, got {value!r}')
    return value


def _csv(data: bytes, path: Path) -> Values:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in NEEDED if name not in (reader.fieldnames or NEEDED)]
        if missing:
            raise ValueError(f"{path} has no column {_listed(missing)}; its first line must name {_listed(NEEDED)}")
        cells = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV after line {reader.line_num}: {error}") from error
    count = len(reader.fieldnames or ())
    return (lambda row=row: _of_cells(row, count) for row in cells)  # type: ignore[misc]


def _of_cells(row: Mapping[Any, Any], count: int) -> Mapping[str, Any]:
    """A row's cells; empty ones are left out, and options are a list as JSON."""
    if None in row or None in row.values():
        raise ValueError(f"it has not as many cells as the first line, which has {count}")
    values = {name: cell for name, cell in row.items() if cell.strip()}
    if "options" in values:
        try:
            values["options"] = json.loads(values["options"])
        except (ValueError, RecursionError) as error:
            sentence = f'options must be a list such as ["red", "blue"], got {values["options"]!r}'
            raise ValueError(sentence) from error
    return values


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
