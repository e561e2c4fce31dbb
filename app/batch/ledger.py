"""The ledger: a file of JSON lines that grows by one line for each row, and loses none however the program ends.

Beside FILE lies FILE.run, which says by what settings it is made; it is locked while it is written. A line that was cut
short by a crash is taken away when it is opened again. This module knows nothing of videos or models.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]


class Ledger:
    """Records by row number, on disk.

    Attributes:
        path: of the lines.
        done: numbers of the rows that have a line.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, retry: bool = False) -> None:
        """Opens or begins a file.

        Args:
            path: of the lines.
            overwrite: whatever is there goes.
            retry: lines that tell of an error go, so that their rows are asked again.

        Raises:
            ValueError: if it cannot be a ledger, is none, or another process writes it.
        """
        if (path.exists() and not path.is_file()) or not path.parent.is_dir():
            raise ValueError(f"--out must be a file in a folder that is there, got {path}")
        self.path, self._side = path, path.with_name(f"{path.name}.run")
        self._lock = os.open(self._side, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take_lock()
            if overwrite:
                path.unlink(missing_ok=True)
            identity = self._read_identity()
            self.done = self._recover(retry)
            self._identity = identity if self.done else {}
            self._out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _sync_folder(path.parent)
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another run; wait for it or give another --out"
            ) from error

    def _read_identity(self) -> Record:
        """What the lines were made by; nothing where there are none."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return {}
        if os.fstat(self._lock).st_size == 0:
            self._side.unlink()
            raise ValueError(f"{self.path} is not of a batch; give another --out, or --overwrite to lose it")
        try:
            identity: Record = json.loads(os.pread(self._lock, os.fstat(self._lock).st_size, 0))
        except ValueError as error:
            raise ValueError(f"{self._side} is damaged; give another --out, or --overwrite to begin anew") from error
        return identity

    def agree(self, **identity: Any) -> None:
        """Says what the lines are made by; to be called before the first is written.

        Raises:
            ValueError: if the lines that are there were made by something else.
        """
        for name, value in identity.items():
            before = self._identity.get(name, value)
            if before != value:
                raise self._differs(_told(name, before, value))
        self._keep_identity(identity)

    def agree_on_videos(self, found: Mapping[str, str]) -> None:
        """Says what the videos are that lines are about to be written of, by name; others may follow later.

        Raises:
            ValueError: if there are answers about another video of the same name.
        """
        known: dict[str, str] = self._identity.get("videos", {})
        changed = [name for name, mark in found.items() if known.get(name, mark) != mark and name in self._answered]
        if changed:
            raise self._differs(f"another video {changed[0]}")
        self._keep_identity({"videos": {**known, **found}})

    def _differs(self, what: str) -> ValueError:
        advice = "give the same again, another --out, or --overwrite to begin anew"
        return ValueError(f"{self.path} was made with {what}; {advice}")

    def _keep_identity(self, identity: Record) -> None:
        self._identity |= identity
        data = json.dumps(self._identity).encode()
        os.pwrite(self._lock, data, 0)
        os.ftruncate(self._lock, len(data))
        os.fsync(self._lock)

    def _recover(self, retry: bool) -> set[int]:
        """Takes away a line that was cut short, and with `retry` those of errors; the rows that are left."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = [(line, self._parsed(line, number)) for number, line in enumerate(whole.splitlines(), start=1)]
        kept = [(line, record) for line, record in lines if not (retry and "error" in record)]
        if len(kept) < len(lines):
            _replace(self.path, b"".join(line + b"\n" for line, _ in kept))
        elif len(whole) < len(data):
            os.truncate(self.path, len(whole))
        self._answered = {record.get("video") for _, record in kept if "error" not in record}
        return {record["row"] for _, record in kept}

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            assert isinstance(record["row"], int), "a row has a number"
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{self.path} line {number} is damaged; give --overwrite to begin anew") from error
        return dict(record)

    def write(self, records: list[Record]) -> None:
        """Appends lines; when it returns they are on disk.

        Raises:
            OSError: if the disk is full, for one.
        """
        data = b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records)
        try:
            while data:
                data = data[os.write(self._out, data) :]
            os.fsync(self._out)
        except OSError as error:  # without the file's name
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.done |= {record["row"] for record in records}

    def records(self) -> Iterator[Record]:
        """Every line so far, in the order in which they were written."""
        return read_records(self.path)

    def close(self) -> None:
        """Lets go of the files."""
        os.close(self._out)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[Record]:
    """Every line of a file that a run has written to its end, in the order in which they were written."""
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def _told(name: str, before: Any, now: Any) -> str:
    """What differs, for people."""
    if name == "questions":
        return "other questions"
    if name == "settings":
        names = [one for one in {**before, **now} if before.get(one) != now.get(one)]
        return _differ(f"--{names[0].replace('_', '-')}", before.get(names[0]), now.get(names[0]))
    return _differ(name.replace("_", " "), before, now)


def _differ(name: str, before: Any, now: Any) -> str:
    return f"{name} {'unset' if before is None else before}, not {'unset' if now is None else now}"


def _replace(path: Path, data: bytes) -> None:
    """Gives a file new contents, at once or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
