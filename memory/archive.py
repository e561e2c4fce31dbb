"""One file that holds a whole memory, to be carried to another machine.

FILE.vstream is an uncompressed POSIX (ustar) tar of plain members, always these, always in this order:

    vstream.json      versions, byte order, what made the memory and when, the ids of its blocks
    state             the session's state, absent before the first commit
    blocks/ID.meta    for every block, by rising id: times, level, codec, positions and representatives (`encode_meta`),
    blocks/ID.jpg     its picture, where it has one,
    blocks/ID.kv      its keys and values, as its codec has stored them
    SHA256SUMS        of all members before it, as `sha256sum --check` reads them

What is guaranteed: the same memory gives the same bytes, also after it was imported and exported again. Members are
the store's own records, not pages of LMDB, so they do not depend on its version, on a page size or on a file system.
Numbers are little-endian, and a machine of the other order refuses them. A file is written beside its name and moved
there when it is whole; an import is checked in full before the folder appears. The checksums tell accidents, not
forgers: who made the file could have made them fit. So the reader believes nothing either way: it makes every header
anew and compares it, follows no names, and bounds every size before it reads.

This module knows nothing of models, nor of what a session's state means.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vstream.memory import folder as folders
from vstream.memory.audit import CheckState, check_meta, shape_of
from vstream.memory.budget import FIXED_DISK_BYTES
from vstream.memory.disk import DiskTier
from vstream.memory.records import DamagedError, Part

ARCHIVE_VERSION = 1
MANIFEST, STATE, SUMS = "vstream.json", "state", "SHA256SUMS"

MAX_MANIFEST_BYTES = 64 << 20  # some million blocks
MAX_STATE_BYTES = 4 << 20
MAX_META_BYTES = 64 << 20
MAX_PICTURE_BYTES = 64 << 20
MAX_PAYLOAD_BYTES = 4 << 30
BATCH_BYTES = 32 << 20  # written to a new memory in one transaction
SPARE_BYTES = 64 << 20  # of its map, which takes no space

_TAR_BYTES = 512
_PARTS = {Part.META: "meta", Part.PICTURE: "jpg", Part.KV: "kv"}


def export_memory(folder: Path, file: Path) -> int:
    """Writes a memory, which nobody may be writing to, as one file; its bytes.

    Raises:
        ValueError: if there is no memory, or the file cannot be of that name.
        FileExistsError: if there is such a file.
        OSError: if somebody is writing to the memory, or the file cannot be written.
        RuntimeError: if something of the memory is damaged.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists already; give another name, or remove it")
    _check_parent(file)
    with (
        DiskTier.open_readonly(folder) as disk,
        folders.writers_held_off(folder),
        disk.snapshot(),
        _beside(file, "exported") as part,
    ):
        _written(file, part, disk)
        part.rename(file)
        folders.sync_folder(file.parent)
    return file.stat().st_size


def import_memory(file: Path, folder: Path, check_state: CheckState = lambda state: None) -> int:
    """Makes a memory folder of an exported file; how many blocks it has.

    Raises:
        ValueError: if the file is no whole archive that this vstream and machine can read.
        FileExistsError: if there is such a folder, and something in it.
        OSError: if the folder cannot be written.
    """
    if not file.is_file():
        raise ValueError(f"{file} is {'no ordinary file' if file.exists() else 'not there'}; give an archive to import")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; give another name, or remove it")
    _check_parent(folder)
    needed, free = file.stat().st_size, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{folder.parent} has {free} bytes free, but {file} needs {needed}")
    with _beside(folder, "imported") as part, file.open("rb") as opened:
        part.unlink()
        part.mkdir()
        count = _Reader(file, opened).into(part, check_state)
        part.rename(folder)
        folders.sync_folder(folder.parent)
    return count


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first")


@contextmanager
def _beside(path: Path, what: str) -> Iterator[Path]:
    """A file beside `path` to begin with, ours alone; it, or a folder in its place, is gone in the end.

    What a process that was killed has left there goes first.
    """
    claim, part = path.parent / f".{path.name}.lock", path.parent / f".{path.name}.part"
    descriptor = _claim(claim, f"{path} is being {what} by another process")
    try:
        remove_path(part)
        part.touch()
        yield part
    finally:
        remove_path(part)
        claim.unlink()
        os.close(descriptor)


def _claim(claim: Path, refusal: str) -> int:
    """A file that one process at a time has."""
    try:
        descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {claim.parent}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not claim.exists() or claim.stat().st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError("it was given back, and removed, at this moment")
    except BlockingIOError as error:
        os.close(descriptor)
        raise OSError(errno.EAGAIN, refusal) from error
    return descriptor


def remove_path(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; nothing where there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _written(file: Path, part: Path, disk: DiskTier) -> None:
    """Writes all members to `part`, durably."""
    try:
        with part.open("wb") as opened:
            writer = _Writer(opened)
            for name, body in _members(disk):
                writer.add(name, body)
            writer.finish()
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise OSError(error.errno, f"cannot write {file}: {error.strerror or error}; nothing is left of it") from error


def _members(disk: DiskTier) -> Iterator[tuple[str, bytes]]:
    ids = disk.block_ids()
    yield MANIFEST, _manifest(disk.identity, disk.created, ids)
    if (state := disk.state) is not None:
        yield STATE, state
    for block_id in ids:
        for part in _PARTS:
            body = disk.record(part, block_id)
            if body is not None:
                yield _name(part, block_id), body


def _manifest(identity: folders.Identity, created: str, ids: Sequence[int]) -> bytes:
    facts = {
        "archive_version": ARCHIVE_VERSION,
        "format_version": folders.FORMAT_VERSION,
        "byte_order": "little",
        "created": created,
        "identity": dict(sorted(identity.items())),
        "blocks": list(ids),
    }
    return json.dumps(facts, indent=1).encode() + b"\n"


def _name(part: Part, block_id: int) -> str:
    return f"blocks/{block_id:012d}.{_PARTS[part]}"


def _header(name: str, size: int) -> bytes:
    """The one header that a member may have."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def _sum_line(name: str, body: bytes) -> bytes:
    return f"{hashlib.sha256(body).hexdigest()}  {name}\n".encode()


class _Writer:
    """Members, and in the end their checksums."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sums: list[bytes] = []

    def add(self, name: str, body: bytes) -> None:
        self._sums.append(_sum_line(name, body))
        self._put(name, body)

    def finish(self) -> None:
        self._put(SUMS, b"".join(self._sums))
        self._file.write(bytes(2 * _TAR_BYTES))

    def _put(self, name: str, body: bytes) -> None:
        self._file.write(_header(name, len(body)))
        self._file.write(body)
        self._file.write(bytes(-len(body) % _TAR_BYTES))


class _Reader:
    """Members that are expected by name, each of a size within bounds, byte for byte as `_Writer` writes them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._sums: list[bytes] = []

    def into(self, folder: Path, check_state: CheckState) -> int:
        """Writes all of it as a memory into an empty folder; how many blocks there are."""
        manifest = self._manifest()
        identity, ids = manifest["identity"], manifest["blocks"]
        map_bytes = 4 * self._path.stat().st_size + SPARE_BYTES + FIXED_DISK_BYTES
        with DiskTier.open(folder, identity, disk_bytes=map_bytes, created=manifest["created"]) as disk:
            batch: dict[tuple[Part, int], bytes] = {}
            num_bytes = 0
            for part, block_id, body in self._records(identity, ids, check_state):
                batch[part, block_id] = body
                num_bytes += len(body)
                if num_bytes >= BATCH_BYTES:
                    disk.restore(batch)
                    batch, num_bytes = {}, 0
            self._check_end()
            disk.restore(batch)
        os.truncate(folder / folders.DATA, folders.check_whole(folder))
        return len(ids)

    def _records(
        self, identity: dict[str, Any], ids: Sequence[int], check_state: CheckState
    ) -> Iterator[tuple[Part, int, bytes]]:
        shape = shape_of(identity)
        if (state := self._take(STATE, MAX_STATE_BYTES, optional=True)) is not None:
            self._checked(lambda: check_state(state), "its state")
            yield Part.STATE, 0, state
        for block_id in ids:
            body = self._member(_name(Part.META, block_id), MAX_META_BYTES)
            described = self._checked(lambda: check_meta(body, block_id, shape), "")  # noqa: B023 - called at once
            yield Part.META, block_id, body
            for part, length, most in (
                (Part.PICTURE, described.picture_bytes, MAX_PICTURE_BYTES),
                (Part.KV, described.payload_bytes, MAX_PAYLOAD_BYTES),
            ):
                if length:
                    yield part, block_id, self._member(_name(part, block_id), most, length)

    def _manifest(self) -> dict[str, Any]:
        """The facts about the memory, of which every one is such as a memory may have."""
        body = self._take(MANIFEST, MAX_MANIFEST_BYTES, optional=True)
        if body is None:
            raise ValueError(f"{self._path} is no archive of a memory (vstream memory export makes one)")
        found = self._checked(lambda: json.loads(body), "its vstream.json")
        if not isinstance(found, dict):
            raise self._damaged("its vstream.json is no table of names")
        for name, known in (("archive_version", ARCHIVE_VERSION), ("format_version", folders.FORMAT_VERSION)):
            if found.get(name) != known:
                raise ValueError(f"{self._path} has {name} {found.get(name)!r}, but this vstream reads {known}")
        if found.get("byte_order") != sys.byteorder:
            raise ValueError(
                f"{self._path} holds numbers in {found.get('byte_order')!r} byte order, but this machine "
                f"has {sys.byteorder!r}; import it on a machine of its own kind"
            )
        identity, created, ids = found.get("identity"), found.get("created"), found.get("blocks")
        sound = (
            isinstance(identity, dict)
            and all(isinstance(value, str | int) for value in identity.values())
            and isinstance(created, str)
            and isinstance(ids, list)
            and all(type(one) is int and 0 <= one < 10**12 for one in ids)
            and ids == sorted(set(ids))
        )
        if not sound or _manifest(identity, created, ids) != body:  # type: ignore[arg-type]
            raise self._damaged("its vstream.json is not such as vstream writes it")
        self._checked(lambda: shape_of(identity), "its vstream.json")  # type: ignore[arg-type]
        return found

    def _member(self, name: str, most: int, length: int | None = None) -> bytes:
        body = self._take(name, most, length=length)
        assert body is not None, f"{name} is not optional"
        return body

    def _take(self, name: str, most: int, *, length: int | None = None, optional: bool = False) -> bytes | None:
        """The next member, which must have this name; None, and nothing taken, if it may have another."""
        at = self._file.tell()
        header = self._read(_TAR_BYTES, name)
        if optional and header[: len(name) + 1] != name.encode() + b"\0":
            self._file.seek(at)
            return None
        size = header[124:135]
        if not size.isdigit() or header != _header(name, int(size, 8)):
            raise self._damaged(f"at byte {at} there should be {name}")
        num_bytes = int(size, 8)
        if num_bytes > most or (length is not None and num_bytes != length):
            raise self._damaged(f"{name} has {num_bytes} bytes, not {f'at most {most}' if length is None else length}")
        body = self._read(num_bytes, name)
        if any(self._read(-num_bytes % _TAR_BYTES, name)):
            raise self._damaged(f"there is something behind {name}")
        if name != SUMS:
            self._sums.append(_sum_line(name, body))
        return body

    def _check_end(self) -> None:
        """The checksums are those of what was read, and nothing follows them."""
        wanted = b"".join(self._sums)
        found = self._member(SUMS, len(wanted), len(wanted))
        if found != wanted:
            pairs = zip(found.split(b"\n"), self._sums, strict=False)
            name = next((line.split()[1].decode() for told, line in pairs if told + b"\n" != line), SUMS)
            raise self._damaged(f"{name} does not match its checksum")
        if self._read(2 * _TAR_BYTES, "its end") != bytes(2 * _TAR_BYTES) or self._file.read(1):
            raise self._damaged("there is something behind its end")

    def _read(self, num_bytes: int, name: str) -> bytes:
        if num_bytes > self._path.stat().st_size - self._file.tell():
            raise self._damaged(f"it ends within {name}")
        return self._file.read(num_bytes)

    def _checked(self, make: Any, what: str) -> Any:
        try:
            return make()
        except (ValueError, DamagedError, RecursionError) as error:
            raise self._damaged(f"{what}: {error}".removeprefix(": ")) from error

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self._path} is damaged or cut short ({why}); take another copy")
