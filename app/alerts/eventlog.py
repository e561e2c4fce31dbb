"""A file of events: one line of JSON each, on disk before anybody hears of it. Knows nothing of what events are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vstream.memory.folder import sync_folder


class EventLog:
    """Lines are appended, so that several runs, and several processes, may share a file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it; a last line that was torn by a crash is ended.

        Raises:
            ValueError: if it cannot be such a file.
        """
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"--events {path}: give a file in a folder that exists")
        self.path = path
        with path.open("ab+") as file:
            if (size := file.tell()) and os.pread(file.fileno(), 1, size - 1) != b"\n":
                file.write(b"\n")
        sync_folder(path.parent)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line. When this returns, it is on disk. Raises `OSError`."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
