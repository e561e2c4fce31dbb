"""The disk tier: blocks in an LMDB file, durable when a write returns, checked whenever they are read.

One transaction adds blocks, removes blocks and replaces the session's state. LMDB has one writer and copies pages
before it changes them, so a process killed at any point leaves the last committed state. This module knows nothing of
caches, devices or what the bytes mean.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vstream.memory import folder as folders
from vstream.memory.block import Block, BlockMeta
from vstream.memory.budget import FIXED_DISK_BYTES
from vstream.memory.codec import Codec
from vstream.memory.environment import Environment, open_env
from vstream.memory.records import (
    PAGE_BYTES,
    DamagedError,
    Part,
    StoredExtra,
    decode_meta,
    encode_meta,
    from_pages,
    num_pages,
    open_page,
    page_key,
    parse_key,
    span_pages,
    tensor_bytes,
    to_pages,
)

PATIENCE_SECONDS = 10.0  # how long a write waits for room that a reader's snapshot keeps busy


class HeldBackError(Exception):
    """Processes keep freed pages busy."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__(
            f"process {', '.join(map(str, pids))} has been reading one commit of it for more than "
            f"{PATIENCE_SECONDS:g} s; let it go on, or end it"
        )


@dataclass(frozen=True)
class StoredBlock:
    """What opening a memory reads of each block.

    Attributes:
        meta: its metadata.
        representative: [L, K, D] float16.
        picture_bytes: length of its picture.
        extra: what a retrieval policy, maybe another than today's, has kept of it.
    """

    meta: BlockMeta
    representative: Tensor
    picture_bytes: int
    extra: StoredExtra | None = None


class DiskTier:
    """An open memory folder. `open` writes and reads it, `open_readonly` looks at it, a read-only mount included.

    Errors: ValueError where the folder is not what was asked for, OSError where the system refuses, RuntimeError where
    stored bytes are damaged or the map is full; each one sentence.

    Attributes:
        folder: where it is.
        identity: what made it; blocks of another identity would be meaningless here.
        created: when, ISO 8601.
    """

    def __init__(self, folder: Path, shared: Environment, writer: int | None) -> None:
        manifest = folders.read_manifest(folder)
        self.folder = folder
        self.identity: dict[str, str | int] = manifest["identity"]
        self.created = str(manifest.get("created", ""))
        self._shared = shared
        self._writer = writer
        self._closed = False
        self._snapshot: Any = None  # the read transaction of `snapshot`, while it lasts

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: folders.Identity,
        *,
        disk_bytes: int,
        durable: bool = True,
        created: str | None = None,
    ) -> DiskTier:
        """Open or create a memory for writing, its file never above `disk_bytes`.

        With `durable`, a write is on the disk when it returns; without, it may be lost if the system (not the process)
        goes down. A new one was created now, unless `created` says when.
        """
        map_bytes = (disk_bytes - FIXED_DISK_BYTES) // PAGE_BYTES * PAGE_BYTES
        folders.find_memory(folder)
        writer = folders.lock_writer(folder)
        with ExitStack() as undo:
            undo.callback(os.close, writer)
            if not folders.find_memory(folder):
                _create(folder, identity, map_bytes, created)
            folders.check_identity(folder, folders.read_manifest(folder)["identity"], identity)
            _fit_file(folder, map_bytes)
            shared = Environment.take(folder)
            undo.callback(shared.release)
            shared.begin_writing(map_bytes=map_bytes, durable=durable)
            tier = _checked(cls(folder, shared, writer))
            undo.pop_all()
        return tier

    @classmethod
    def open_readonly(cls, folder: Path) -> DiskTier:
        """Open an existing memory to look at it; another process may be writing to it."""
        if not folders.find_memory(folder):
            raise ValueError(f"there is no memory in {folder}")
        folders.read_manifest(folder)
        folders.check_whole(folder)
        with ExitStack() as undo:
            shared = Environment.take(folder)
            undo.callback(shared.release)
            tier = _checked(cls(folder, shared, None))
            undo.pop_all()
        return tier

    @property
    def file_bytes(self) -> int:
        """Size of the data file."""
        return (self.folder / folders.DATA).stat().st_size

    @property
    def state(self) -> bytes | None:
        """The session's state of the last write, None before the first."""
        return self._read(Part.STATE, 0)

    @property
    def num_commits(self) -> int:
        """Rises with every write, by whatever process."""
        with self._reading() as txn:
            return int(txn.id())

    def block_ids(self) -> list[int]:
        """All blocks, in the order of their ids."""
        return list(self.page_counts(Part.META))

    def block(self, block_id: int) -> StoredBlock:
        """One block's metadata; keys, values and picture are not read."""
        body = self._read(Part.META, block_id)
        assert body is not None, f"there is no block {block_id} in {self.folder}"
        return StoredBlock(*decode_meta(body))

    def blocks(self) -> Iterator[StoredBlock]:
        """All blocks' metadata, in the order of their ids."""
        return map(self.block, self.block_ids())

    def picture(self, block_id: int) -> bytes:
        """A block's picture, b"" if it has none."""
        return self._read(Part.PICTURE, block_id) or b""

    def read_rows(self, block_id: int, codec: Codec, num_tokens: int, layers: range | None = None) -> Tensor:
        """A block's payload [len(layers), head_rows + N, R] uint8 on the CPU; only the layers asked for are read."""
        layers = range(codec.shape.num_layers) if layers is None else layers
        assert layers.step == 1, f"layers are read as one stretch, not {layers}"
        rows = torch.empty(len(layers), codec.num_rows(num_tokens), codec.row_bytes, dtype=torch.uint8)
        target = tensor_bytes(rows)  # a new CPU tensor's bytes are shared, not copied
        offset = layers.start * rows[:1].nbytes
        with self._reading() as txn:
            for page, start, stop in span_pages(offset, offset + len(target)):
                key = page_key(Part.KV, block_id, page)
                chunk = open_page(key, txn.get(key))[start:stop]
                target[: len(chunk)], target = chunk, target[len(chunk) :]
        return rows

    def write(self, add: Sequence[tuple[Block, Tensor]], remove: Sequence[int], state: bytes, policy: str = "") -> None:
        """Add blocks with their payloads, remove some and replace the state: all of it, or, if this raises, nothing.

        What `Block.extra` holds is `policy`'s.
        """
        records: dict[tuple[Part, int], bytes | memoryview] = {(Part.STATE, 0): bytes(state)}
        records |= {key: body for block, rows in add for key, body in _records(block, rows, policy)}
        self._store(records, remove, len(add))

    def record(self, part: Part, block_id: int) -> bytes | None:
        """A whole record as it is stored, None if it does not exist."""
        return self._read(part, block_id)

    def restore(self, records: dict[tuple[Part, int], bytes]) -> None:
        """Take records as another memory has them, all of them or, if this raises, none."""
        self._store(dict(records), (), sum(part is Part.META for part, _ in records))

    def _store(self, records: dict[tuple[Part, int], bytes | memoryview], remove: Sequence[int], num_new: int) -> None:
        """One transaction; whatever hinders it is told as one sentence."""
        import lmdb

        try:
            self._write_reusing(records, remove)
        except lmdb.MapFullError as error:
            raise RuntimeError(
                f"the memory in {self.folder} has no room for {num_new} more blocks in its "
                f"{self._env.info()['map_size']} bytes, so nothing was changed; give it a larger disk budget"
            ) from error
        except HeldBackError as error:
            raise RuntimeError(f"the memory in {self.folder} has no room: {error}, so nothing was changed") from error
        except (lmdb.Error, OSError) as error:
            free = shutil.disk_usage(self.folder).free
            raise OSError(
                f"could not write to the memory in {self.folder} ({error}; {free} bytes are free there), "
                "so nothing was changed"
            ) from error

    def copy_compact(self, folder: Path) -> None:
        """A data file in another folder that holds the same and has no free pages. Raises LMDB's own errors.

        It has to be written to once: LMDB counts its commits anew, and a file of one commit passes for one whose
        creation was cut short (`find_memory`).
        """
        import lmdb

        self._env.copy(str(folder), compact=True)
        map_bytes = folders.map_bytes(self.folder)
        with lmdb.open(str(folder), map_size=map_bytes, lock=False) as env, env.begin(write=True) as txn:
            txn.cursor().putmulti(to_pages(Part.IDENTITY, 0, identity_body(self.identity)))

    def page_counts(self, part: Part) -> dict[int, int]:
        """Pages of each block's record of one part, as they are in the file."""
        counts: dict[int, int] = {}
        with self._reading() as txn:
            for key, _ in _scan(txn, bytes([part])):
                block_id = parse_key(key)[1]
                counts[block_id] = counts.get(block_id, 0) + 1
        return counts

    def check_integrity(self) -> None:
        """Raise RuntimeError if any page of any record is damaged, missing or of no block; reads everything."""
        counts = {part: self.page_counts(part) for part in Part}
        for part in (Part.PICTURE, Part.KV):
            orphans = sorted(counts[part].keys() - counts[Part.META].keys())
            if orphans:
                raise RuntimeError(
                    f"{self.folder} has the {part.name.lower()} of blocks {orphans}, which it does not list"
                )
        for part, blocks in counts.items():
            for block_id in blocks:
                self._read(part, block_id)

    @property
    def is_current(self) -> bool:
        """Whether the folder still holds the file that was opened."""
        return self._shared.is_current

    @property
    def _env(self) -> Any:
        return self._shared.lmdb

    def close(self) -> None:
        """Let go of the file and of the writer's lock; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._shared.release()
        if self._writer is not None:
            os.close(self._writer)

    def __enter__(self) -> DiskTier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, part: Part, block_id: int) -> bytes | None:
        """A whole record, None if it does not exist."""
        with self._reading() as txn:
            pages = list(_scan(txn, page_key(part, block_id, 0)[:-4]))
            return from_pages(pages) if pages else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads in here see one commit, whatever another process writes. To be short: it keeps freed pages busy."""
        with self._reading() as txn:
            self._snapshot = txn
            try:
                yield
            finally:
                self._snapshot = None

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A short read transaction, or the snapshot's; what it yields must be copied out of it."""
        import lmdb

        if self._closed:
            raise RuntimeError(f"the memory in {self.folder} is closed; open it again")
        try:
            if self._snapshot is not None:
                yield self._snapshot
                return
            with self._shared.reading() as txn:
                yield txn
        except (DamagedError, lmdb.Error) as error:
            raise RuntimeError(f"the memory in {self.folder} is damaged: {error}") from error

    def _write_reusing(self, records: dict[tuple[Part, int], bytes | memoryview], remove: Sequence[int]) -> None:
        """One transaction; if the map is full, again when the last commits' freed pages can be used again.

        That takes two commits more, and that no process still reads an earlier one: a write waits for those that do.
        """
        import lmdb

        info = self._env.info()
        tree = info["last_pgno"] // 32  # no commit rewrites more than the whole tree
        pages = 256 + tree + 2 * sum(num_pages(len(body)) for body in records.values())
        folders.extend(self.folder, min((info["last_pgno"] + 1 + pages) * PAGE_BYTES, info["map_size"]))
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            self._transact(records, remove)
        except lmdb.MapFullError:
            late = self._shared.late_readers()
            while not self._reclaimed(records, remove):
                late = late or self._shared.late_readers()
                if not late:
                    raise
                if time.monotonic() > deadline:
                    raise HeldBackError(late) from None
                time.sleep(0.01)
                late = self._shared.late_readers()

    def _reclaimed(self, records: dict[tuple[Part, int], bytes | memoryview], remove: Sequence[int]) -> bool:
        """The transaction after two small ones: pages freed by one commit are free for the next but one."""
        import lmdb

        self._env.reader_check()
        try:
            for _ in range(2):
                self._transact({(Part.IDENTITY, 0): identity_body(self.identity)}, ())
            self._transact(records, remove)
        except lmdb.MapFullError:
            return False
        return True

    def _transact(self, records: dict[tuple[Part, int], bytes | memoryview], remove: Sequence[int]) -> None:
        """Durable, where the tier is, when it returns: LMDB syncs the data, then writes the page that refers to it."""
        with self._env.begin(write=True) as txn:
            stale = [(part, block_id) for block_id in remove for part in (Part.META, Part.PICTURE, Part.KV)]
            for part, block_id in [*stale, *(key for key in records if key[0] in (Part.STATE, Part.IDENTITY))]:
                for key in [key for key, _ in _scan(txn, page_key(part, block_id, 0)[:-4])]:
                    txn.delete(key)
            for (part, block_id), body in sorted(records.items(), key=lambda record: record[0]):
                txn.cursor().putmulti(to_pages(part, block_id, body))


def _records(block: Block, rows: Tensor, policy: str) -> Iterator[tuple[tuple[Part, int], bytes | memoryview]]:
    """What a block is stored as; `policy` says whose its extra is."""
    meta, extra = block.meta, None if block.extra is None else StoredExtra(policy, block.extra)
    yield (Part.META, meta.id), encode_meta(meta, block.representative, len(block.picture), extra)
    yield (Part.KV, meta.id), tensor_bytes(rows)
    if block.picture:
        yield (Part.PICTURE, meta.id), block.picture


def _scan(txn: Any, prefix: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The pages whose keys start with `prefix`, in order."""
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            yield bytes(cursor.key()), cursor.value()
            found = cursor.next()


def identity_body(identity: folders.Identity) -> bytes:
    """What the data file holds of what vstream.json says: it tells that the two belong together."""
    return json.dumps({"format_version": folders.FORMAT_VERSION, **identity}, sort_keys=True).encode()


def _create(folder: Path, identity: folders.Identity, map_bytes: int, created: str | None) -> None:
    """Make an empty memory; vstream.json comes last, so a creation that is cut short is known by its absence.

    Raises:
        OSError: if there is no space, or the folder cannot be written to; nothing is left behind then.
    """
    import lmdb

    folders.remove_unfinished(folder)
    try:
        folders.reserve_lock_file(folder)
        with open_env(folder, map_size=map_bytes) as env, env.begin(write=True) as txn:
            txn.cursor().putmulti(to_pages(Part.IDENTITY, 0, identity_body(identity)))
        folders.write_manifest(folder, identity, created)
    except (lmdb.Error, OSError) as error:
        folders.remove_unfinished(folder)
        raise OSError(f"cannot create a memory in {folder}: {error}") from error


def _fit_file(folder: Path, map_bytes: int) -> None:
    """Check that the data file is whole and fits the budget; cut off what it was extended by beyond it.

    Raises:
        ValueError: if the budget is smaller than what is in use, or the file is truncated.
    """
    used_bytes = folders.check_whole(folder)
    if used_bytes > map_bytes:
        raise ValueError(
            f"disk_bytes={map_bytes + FIXED_DISK_BYTES} is less than the memory in {folder} uses; "
            f"give at least {used_bytes + FIXED_DISK_BYTES}"
        )
    data = folder / folders.DATA
    if data.stat().st_size > map_bytes:
        os.truncate(data, map_bytes)


def _checked(tier: DiskTier) -> DiskTier:
    """The tier, if the data file is the one that vstream.json describes.

    Raises:
        ValueError: if it is another memory's.
    """
    if tier._read(Part.IDENTITY, 0) != identity_body(tier.identity):
        raise ValueError(f"half of the memory in {tier.folder} is another's: data.mdb is not the one of vstream.json")
    return tier
