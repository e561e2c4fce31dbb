"""One LMDB environment per memory folder and process, shared by all in the process who have the folder open.

LMDB cannot open a file twice in one process, but several sessions may ask one memory, also while another one writes it.
This module knows nothing of what is stored.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vstream.memory import folder as folders

MAX_READERS = 126  # processes that may read at once; LMDB's own default, which its lock file has room for

_environments: dict[tuple[int, int], Environment] = {}  # by device and inode of the data file
_guard = threading.Lock()


class Environment:
    """An open LMDB file, counted: it is closed when the last one who has it lets it go.

    Attributes:
        folder: where it is.
        lmdb: LMDB's environment; it can write while somebody in the process does.
    """

    def __init__(self, folder: Path, key: tuple[int, int]) -> None:
        self.folder = folder
        self.lmdb = open_env(folder, **_reading_options(folder))
        self._key = key
        self._holders = 0
        self._alone = threading.RLock()  # held by read transactions: the map must not move under them

    @classmethod
    def take(cls, folder: Path) -> Self:
        """The folder's environment, opened if nobody in the process has it; to be let go of by `release`."""
        with _guard, folders.still(folder):
            key = _key_of(folder)
            if key not in _environments:
                _environments[key] = cls(folder, key)
            shared = _environments[key]
            shared._holders += 1
        assert isinstance(shared, cls)
        return shared

    def release(self) -> None:
        """Lets it go; the last one closes it."""
        with _guard:
            self._holders -= 1
            if not self._holders:
                self.lmdb.close()
                del _environments[self._key]

    def begin_writing(self, *, map_bytes: int, durable: bool) -> None:
        """Makes it writable, for the one who holds the writer's lock. It stays so for those who read on after that.

        Raises:
            OSError: if LMDB cannot open it for writing; those who read go on.
        """
        with self._alone:
            self.lmdb.close()
            try:
                self.lmdb = open_env(self.folder, map_size=map_bytes, sync=durable)
            except OSError:
                self.lmdb = open_env(self.folder, **_reading_options(self.folder))
                raise
            self.lmdb.reader_check()  # lets go of what readers that were killed still held

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A read transaction; what it yields must be copied out of it."""
        with self._alone, self._begin() as txn:
            yield txn

    @property
    def is_current(self) -> bool:
        """Whether the folder's data file is still the one that was opened."""
        return (self.folder / folders.DATA).exists() and _key_of(self.folder) == self._key

    def late_readers(self) -> list[int]:
        """Processes that read a commit before the last: they keep its pages from being used again."""
        last = self.lmdb.info()["last_txnid"]
        rows = [row.split() for row in self.lmdb.readers().splitlines()]
        busy = [(int(row[0]), int(row[2])) for row in rows if len(row) == 3 and row[0].isdigit() and row[2].isdigit()]
        return sorted({pid for pid, txn in busy if txn < last})

    def _begin(self) -> Any:
        """Once more after what hinders it is out of the way: a map that has grown, or readers that were killed."""
        import lmdb

        try:
            return self.lmdb.begin(buffers=True)
        except lmdb.MapResizedError:
            self.lmdb.set_mapsize(0)
        except lmdb.ReadersFullError:
            self.lmdb.reader_check()
        try:
            return self.lmdb.begin(buffers=True)
        except lmdb.ReadersFullError:
            raise OSError(
                f"{MAX_READERS} processes read the memory in {self.folder} already; ask again later"
            ) from None


def user_of(folder: Path) -> int | None:
    """A process that has the memory open, to read or to write, this one included; None if there is none.

    Who reads where LMDB's lock file cannot be written to is not seen.
    """
    with _guard:  # looking into LMDB's lock file would let go of the locks that this process has there
        return os.getpid() if _key_of(folder) in _environments else folders.lmdb_user(folder)


def _key_of(folder: Path) -> tuple[int, int]:
    data = (folder / folders.DATA).stat()
    return data.st_dev, data.st_ino


def open_env(folder: Path, **options: Any) -> Any:
    """LMDB's own environment of a folder that nobody in the process has open.

    Raises:
        OSError: if LMDB cannot open it.
    """
    import lmdb

    try:
        return lmdb.open(str(folder), subdir=True, max_readers=MAX_READERS, **options)
    except lmdb.Error as error:
        raise OSError(f"cannot open the memory in {folder}: {error}") from error


def _reading_options(folder: Path) -> dict[str, bool]:
    """Without LMDB's lock where its file cannot be written to, as on a read-only mount."""
    return {"readonly": True, "lock": folders.may_lock(folder)}
