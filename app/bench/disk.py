"""A benchmark's folder as it lies on disk: its annotation files, and its videos wherever they were unpacked.

Nobody unpacks archives alike, so files are found by their names at any depth. A folder that holds pictures is a video
too. This module knows nothing of benchmarks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv"})
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SHOWN = 3


class Disk:
    """Files below a folder.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        """Looks what is there, through links to folders too.

        Raises:
            ValueError: if there is no such folder.
        """
        if not root.is_dir():
            raise ValueError(f"--root must be a folder that is there, got {root}")
        self.root = root
        self.look()

    def look(self) -> None:
        """Looks again."""
        self._by_name: dict[str, list[PurePosixPath]] = {}
        self._by_stem: dict[str, list[PurePosixPath]] = {}
        self._folders: dict[str, list[PurePosixPath]] = {}
        for path in _files(self.root):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                self._add_folder(path.parent)
                continue
            if not (self.root / path).is_file():  # a link to what is not there, for one
                continue
            self._by_name.setdefault(path.name, []).append(path)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._by_stem.setdefault(path.stem, []).append(path)

    def _add_folder(self, folder: PurePosixPath) -> None:
        """Once, since the pictures of a folder come one after the other."""
        alike = self._folders.setdefault(folder.name, [])
        if folder not in alike[-1:]:
            alike.append(folder)

    def first(self, *names: str) -> str:
        """The first of some names of annotation files that there is one of.

        Raises:
            ValueError: if there is none.
        """
        for name in names:
            if self._by_name.get(PurePosixPath(name).name):
                return name
        what = "no file of that name" if len(names) == 1 else "none of them, and one is needed,"
        raise ValueError(f"{' or '.join(names)} is missing: there is {what} in {self.root} or in a folder below it")

    def read(self, name: str) -> Any:
        """What an annotation file holds: JSON, lines of JSON (*.jsonl) as a list, or a table (*.parquet) as its rows.

        Raises:
            ValueError: if there is none, more than one, or it is damaged.
        """
        name = self.first(name)
        found = _best(self._by_name[PurePosixPath(name).name], name)
        if len(found) > 1:
            raise ValueError(f"{name} is in {self.root} more than once: {_listed(found)}; leave one there")
        path = self.root / found[0]
        try:
            return _READERS.get(path.suffix, _json)(path)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from error

    def video(self, name: str) -> str | None:
        """The path below the root of what a benchmark calls by a path, a file's name, or one without its ending.

        Where there is no such file it is that of a folder of pictures. A file whose name is only a number, as those of
        many archives are, must be in the folder that the benchmark names, if it names one.

        Raises:
            ValueError: if several files could be meant.
        """
        path = PurePosixPath(name)
        places = (self._by_name, self._by_stem, self._folders)
        alike = next((place[path.name] for place in places if path.name in place), [])
        if path.stem.isdigit() and len(path.parts) > 1:
            alike = [one for one in alike if one.parent.name == path.parent.name]
        found = _best(alike, name)
        if len(found) > 1:
            raise ValueError(f"the video {name} is in {self.root} more than once: {_listed(found)}; leave one there")
        return str(found[0]) if found else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8-sig"))


def _json_lines(path: Path) -> Any:
    return [json.loads(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise RuntimeError(
            f"{path} is read by pyarrow, which is missing; install it: pip install 'vstream[bench]'"
        ) from error
    return parquet.read_table(path).to_pylist()


_READERS = {".jsonl": _json_lines, ".parquet": _parquet}


def _files(root: Path) -> Iterator[PurePosixPath]:
    """Every file below a folder, by its path from there, in order; a folder that links to one above it only once."""
    seen = set[str]()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (PurePosixPath(os.path.relpath(os.path.join(folder, name), root)) for name in sorted(names))


def _best(found: list[PurePosixPath], name: str) -> list[PurePosixPath]:
    """Of files with the right name those whose folders are most like what was asked for."""
    wanted = [part for part in PurePosixPath(name).parts[:-1] if part not in (".", "..", "/")]
    alike = [_shared(list(path.parts[:-1]), wanted) for path in found]
    return [path for path, count in zip(found, alike, strict=True) if count == max(alike)]


def _shared(one: list[str], other: list[str]) -> int:
    """How many of the last parts are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def _listed(paths: list[PurePosixPath]) -> str:
    shown = ", ".join(map(str, paths[:SHOWN]))
    return f"{shown} and {len(paths) - SHOWN} more" if len(paths) > SHOWN else shown
