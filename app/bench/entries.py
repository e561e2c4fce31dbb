"""Entries of annotation files, read with care: what is missing or strange is told with the file and the entry's number.

It knows the ways in which the field writes times, options and right answers, and nothing of single benchmarks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from vstream.app.bench.disk import Disk


class Entry:
    """An object of an annotation file.

    Attributes:
        where: the file and the place in it, for people.
        fields: what it holds, as JSON values.
    """

    def __init__(self, where: str, fields: Any) -> None:
        """Raises `ValueError` if it is no object."""
        self.where = where
        if not isinstance(fields, dict):
            raise self.wrong(f"an object is expected, got {fields!r:.60}")
        self.fields: dict[str, Any] = fields

    def wrong(self, what: str) -> ValueError:
        """An error about this entry, to be raised."""
        return ValueError(f"{self.where}: {what}; is this the file as it was published?")

    def __getitem__(self, name: str) -> Any:
        """A field's value. Raises `ValueError` if there is none."""
        if name not in self.fields:
            raise self.wrong(f"it has no {name!r}")
        return self.fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def text(self, name: str) -> str:
        """Text, or a number as text. Raises `ValueError` for anything else, or what is empty."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise self.wrong(f"{name} must be text, got {value!r:.60}")
        return str(value).strip()

    def number(self, name: str) -> float:
        """A number. Raises `ValueError` for anything else."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"{name} must be a number, got {value!r:.60}")
        return value

    def seconds(self, name: str) -> float:
        """A time in seconds, which may be written as 190, "190.0", "3:10" or "00:03:10". Raises `ValueError`."""
        value = self[name]
        parts = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)", str(value).strip())
        if isinstance(value, bool) or not isinstance(value, str | int | float) or parts is None:
            raise self.wrong(f"{name} must be a time such as 00:03:10, got {value!r:.60}")
        hours, minutes, seconds = (float(part or 0) for part in parts.groups())
        total = 3600 * hours + 60 * minutes + seconds
        if math.isinf(total):
            raise self.wrong(f"{name} must be a time such as 00:03:10, got {value!r:.60}")
        return total

    def options(self, name: str) -> tuple[str, ...]:
        """Options to choose from, without the letters that most files write before them. Raises `ValueError`.

        Where they have letters, what is empty is none of them, as between those of a question of StreamingBench.
        """
        value = self[name]
        if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
            raise self.wrong(f"{name} must be a list of two or more options, got {value!r:.60}")
        strange = [one for one in value if isinstance(one, bool) or not isinstance(one, str | int | float)]
        if strange:
            raise self.wrong(f"{name} must be texts, got {strange[0]!r:.60} among them")
        texts = [str(one).strip() for one in value]
        lettered = _without_letters([text for text in texts if text])
        return lettered if len(lettered) > 1 else tuple(texts)

    def letter(self, name: str, options: Sequence[str]) -> str:
        """The letter of the right option, given as it or in the option's own words. Raises `ValueError`."""
        value, letters = self.text(name), ascii_uppercase[: len(options)]
        own = re.fullmatch(rf"\(?([{letters}])[.):]*", value)
        if own:
            return own[1]
        if list(options).count(value) != 1:
            raise self.wrong(f"{name} must be one of the options or its letter, got {value!r:.60}")
        return letters[list(options).index(value)]

    def entries(self, name: str) -> list[Entry]:
        """A list of objects within. Raises `ValueError`."""
        return entries_of(f"{self.where}, {name}", self[name])


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """What stands behind A, B and so on; nothing where any text lacks its letter."""
    own = [re.fullmatch(rf"\(?{a}[.):]+\s*(.+)", text, re.S) for a, text in zip(ascii_uppercase, texts, strict=False)]
    return tuple(found[1] for found in own if found) if all(own) else ()


def read_entries(disk: Disk, name: str) -> list[Entry]:
    """The objects of an annotation file, which is a list of them.

    Raises:
        ValueError: if it is missing or holds something else.
    """
    return entries_of(name, disk.read(name))


def entries_of(where: str, values: Any) -> list[Entry]:
    """The same, for a list that was read already."""
    return [Entry(f"{where}, entry {number}", value) for number, value in enumerate(list_of(where, values), start=1)]


def list_of(where: str, values: Any) -> list[Any]:
    """A list that was read, of whatever it holds. Raises `ValueError` for anything else."""
    if not isinstance(values, list):
        raise ValueError(f"{where}: a list is expected, got {values!r:.60}; is this the file as it was published?")
    return values
