"""The folder of a persistent memory: is it one, whose is it, is it whole, and is anybody writing to it.

DIR/data.mdb and DIR/lock.mdb belong to LMDB, DIR/vstream.json says what made the memory, DIR/writer.lock is held by the
one process that writes. This module opens no LMDB environment and knows nothing of blocks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

FORMAT_VERSION = 2
DATA, LOCK, MANIFEST, WRITER = "data.mdb", "lock.mdb", "vstream.json", "writer.lock"

Identity = Mapping[str, str | int]

_MEANING = {
    "fingerprint": " (its model had other weights, or other options that change what it reads: system, max_pixels, "
    "quantize)"
}

_LOCK_BYTES = 8192  # what LMDB makes of lock.mdb for its default number of readers
_META = struct.Struct("<IIQQ96sQQ")  # LMDB's MDB_meta: magic, version, address, map size, two trees, last page, txn id
_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
_POSIX_LOCK = struct.Struct("@hhqqi4x")  # kind, whence, start, length, process


class BrokenError(ValueError):
    """Files of a memory are missing, cut short or damaged."""


def find_memory(folder: Path) -> bool:
    """Whether `folder` holds a memory (True), or is absent or empty, so that one can be made there (False).

    A creation that was cut short before anything could be committed counts as empty.

    Raises:
        ValueError: if it is no folder, or holds other things, or half a memory.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a memory needs a folder")
    names = set(os.listdir(folder)) if folder.exists() else set()
    if {DATA, MANIFEST} <= names:
        return True
    if MANIFEST in names:
        raise BrokenError(f"half of the memory in {folder} is missing: {MANIFEST} is there, but {DATA} is not")
    if DATA in names and _ever_committed(folder / DATA):
        raise BrokenError(f"half of the memory in {folder} is missing: {DATA} is there, but {MANIFEST} is not")
    foreign = sorted(names - {DATA, LOCK, WRITER, MANIFEST + ".new"})
    if foreign:
        raise ValueError(f"{folder} is not a memory folder: it holds {foreign[0]}; give an empty or a new folder")
    return False


def write_manifest(folder: Path, identity: Identity, created: str | None = None) -> None:
    """Write vstream.json as one atomic, durable step: from then on the folder is a memory, created now unless said."""
    created = datetime.now(UTC).isoformat(timespec="seconds") if created is None else created
    text = json.dumps({"format_version": FORMAT_VERSION, "identity": dict(identity), "created": created}, indent=2)
    part = folder / (MANIFEST + ".new")
    with part.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / MANIFEST)
    sync_folder(folder)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The contents of vstream.json.

    Raises:
        ValueError: if it is unreadable or of another format version.
    """
    for name in (MANIFEST, DATA):
        if (folder / name).exists() and not (folder / name).is_file():
            raise ValueError(f"{folder / name} is no ordinary file; restore the folder from a copy or give another one")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, identity = manifest["format_version"], manifest["identity"]
        if not isinstance(identity, dict):
            raise ValueError("its identity is no table of names")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenError(f"{folder / MANIFEST} is damaged: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the memory in {folder} has format version {version!r}, but this vstream reads version {FORMAT_VERSION}"
        )
    return dict(manifest)


def check_identity(folder: Path, found: Identity, wanted: Identity) -> None:
    """Raise ValueError naming what differs if the memory in `folder` was made by another model or layout.

    A model's name alone may differ: it may have been moved, and what tells models apart is the fingerprint.
    """
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if differing and differing != ["model"]:
        name = "model" if "model" in differing else differing[0]
        raise ValueError(
            f"the memory in {folder} was made with {name} {found.get(name)!r}, not {wanted.get(name)!r}"
            f"{_MEANING.get(name, '')}; open it with what made it, or give another folder"
        )


def check_whole(folder: Path) -> int:
    """Bytes that LMDB's data file must have by its own account.

    LMDB maps the file, and touching a page that is not there kills the process: so this looks without LMDB.

    Raises:
        ValueError: if the file is shorter, or no LMDB file.
    """
    path = folder / DATA
    needed = _newest_meta(path).used_bytes
    size = path.stat().st_size
    if not 0 < needed <= size:
        wrong = f"{size} bytes of {needed}" if needed else "it does not start like an LMDB file"
        raise BrokenError(
            f"{path} is truncated or damaged ({wrong}); restore the folder from a copy or give another one"
        )
    return needed


def map_bytes(folder: Path) -> int:
    """The most that LMDB's data file may grow to, as its writer has set it."""
    return _newest_meta(folder / DATA).map_bytes


def extend(folder: Path, num_bytes: int) -> None:
    """Make the data file at least this long, without using space.

    LMDB does not write pages that a transaction took and gave back, so its last page may lie behind the file's end;
    extending first keeps `check_whole` exact.
    """
    path = folder / DATA
    if path.stat().st_size < num_bytes:
        os.truncate(path, num_bytes)


def may_lock(folder: Path) -> bool:
    """Whether readers can tell a writer, in LMDB's lock file, what they read."""
    return os.access(folder / LOCK, os.W_OK)


def reserve_lock_file(folder: Path) -> None:
    """Make LMDB's lock file with space behind it: it is mapped, and writing to it on a full disk would kill us."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Take away what a creation that failed has left."""
    for name in (DATA, LOCK, MANIFEST, MANIFEST + ".new"):
        (folder / name).unlink(missing_ok=True)


def lock_writer(folder: Path) -> int:
    """Become the one writer of a folder, made if absent; the lock goes with the descriptor or the process.

    Raises:
        OSError: if the folder cannot be written to, or somebody else is its writer.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / WRITER, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to the memory folder {folder}: {error.strerror}") from error
    try:
        _flock(descriptor, fcntl.LOCK_EX, f"another process is writing to the memory folder {folder}")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def writers_held_off(folder: Path) -> Iterator[None]:
    """While entered nobody else becomes the folder's writer; others may do the same at once. Writes nothing.

    Raises:
        OSError: if somebody is its writer.
    """
    try:
        descriptor = os.open(folder / WRITER, os.O_RDONLY)
    except FileNotFoundError:  # a copy that nobody has ever written to
        yield
        return
    try:
        _flock(descriptor, fcntl.LOCK_SH, f"{folder} is being written to; try again when that is over")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def still(folder: Path, *, exclusive: bool = False) -> Iterator[None]:
    """Opening the files of a memory (shared) and putting others in their place (exclusive) never happen at once."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def being_written(folder: Path) -> bool:
    """Whether somebody is the folder's writer at this moment."""
    try:
        with writers_held_off(folder):
            return False
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return True


def lmdb_user(folder: Path) -> int | None:
    """Another process that has the memory open; see `environment.user_of`, which this process must ask instead."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        wanted = _POSIX_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)  # LMDB keeps the first byte locked for reading
        kind, _, _, _, pid = _POSIX_LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)


def _flock(descriptor: int, kind: int, refusal: str) -> None:
    """Takes a lock at once. Raises `OSError` with that sentence if somebody else has it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EAGAIN, refusal) from error


def sync_folder(folder: Path) -> None:
    """Makes what was renamed, made or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ever_committed(path: Path) -> bool:
    """Whether more than the creation's own first transaction was ever committed to a data file."""
    return path.stat().st_size > 0 and _newest_meta(path).txn > 1


class _Meta(NamedTuple):
    """What is used of one of LMDB's two meta pages."""

    txn: int
    used_bytes: int
    map_bytes: int


def _newest_meta(path: Path) -> _Meta:
    """The newer of the two; (-1, 0, 0) if there is none."""
    newest = _Meta(-1, 0, 0)
    with path.open("rb") as file:
        page_bytes = 0
        for page in (0, 1):
            file.seek(page * page_bytes + _PAGE_HEADER)
            raw = file.read(_META.size)
            if len(raw) < _META.size:
                break
            magic, _, _, map_size, trees, last_page, txn = _META.unpack(raw)
            if magic == _MAGIC:
                page_bytes = page_bytes or int.from_bytes(trees[:4], "little")
                newest = max(newest, _Meta(txn, (last_page + 1) * page_bytes, map_size))
    return newest
