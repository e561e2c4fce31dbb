"""The outbox: letters that wait to be sent, a file each, so that a crash loses none.

A letter is on disk before it is sent for the first time, and goes when it was received. Several processes may share a
folder: who sends a letter holds its lock. This module knows nothing of what letters say or how they are sent.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vstream.memory.folder import sync_folder

MAX_LETTERS = 2000
"""Of more, the oldest go."""
PART_SECONDS = 3600.0
"""A file that is not whole after so long never will be."""
_NAME = re.compile(r"([0-9]{20})-([0-9a-z-]+)\.letter")


@dataclass(frozen=True)
class Letter:
    """Something to be sent.

    Attributes:
        path: its file.
        key: the same whenever it is sent.
        written_at: Unix time.
    """

    path: Path
    key: str
    written_at: float

    @property
    def order(self) -> str:
        """What must arrive in order has the same."""
        return self.key.rpartition("-")[0]


class Outbox:
    """The letters in a folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder; takes away what a crash left half written. Raises `OSError`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for part in folder.glob("*.part"):
            if time.time() - part.stat().st_mtime > PART_SECONDS:
                part.unlink(missing_ok=True)

    def add(self, key: str, body: bytes) -> list[str]:
        """Puts a letter in, unless one of this key waits; when this returns, it is on disk.

        Returns:
            The keys of older ones that went, since there were too many.

        Raises:
            OSError: if it cannot be written.
        """
        waiting = self.waiting()
        if any(letter.key == key for letter in waiting):
            return []
        name = f"{time.time_ns():020d}-{key}.letter"
        part = self.folder / f"{name}.{os.getpid()}.part"
        with part.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.folder / name)
        sync_folder(self.folder)
        too_many = waiting[: max(0, len(waiting) + 1 - MAX_LETTERS)]
        for letter in too_many:
            self.remove(letter)
        return [letter.key for letter in too_many]

    def waiting(self) -> list[Letter]:
        """All letters, oldest first."""
        found = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        letters = [Letter(path, name[2], int(name[1]) / 1e9) for path, name in found if name]
        return sorted(letters, key=lambda letter: letter.path.name)

    @contextmanager
    def held(self, letter: Letter) -> Iterator[bytes | None]:
        """A letter's body, while no other process sends it; None if one does, or has."""
        try:
            file = letter.path.open("rb")
        except FileNotFoundError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield file.read() if os.fstat(file.fileno()).st_nlink else None

    def remove(self, letter: Letter) -> None:
        """Takes a letter out for good."""
        letter.path.unlink(missing_ok=True)
        sync_folder(self.folder)
