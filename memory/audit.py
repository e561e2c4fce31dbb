"""Whether a memory folder is whole: its file's tree, every record's checksums, what records say of each other.

Reads only, without LMDB, and believes nothing that it reads; so it may be given any bytes. It finds all that is
damaged, not only the first. This module knows nothing of models, nor of what a session's state means.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from vstream.memory import folder as folders
from vstream.memory.block import BlockMeta, BlockShape
from vstream.memory.codec import make_codec
from vstream.memory.disk import identity_body
from vstream.memory.records import DamagedError, Part, decode_meta, encode_meta, from_pages, parse_key
from vstream.memory.tree import TreeFile

CheckState = Callable[[bytes], None]
"""Raises ValueError if a session's state is none."""

MAX_AXIS = 1 << 24  # of any tensor of a block's metadata
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_DECODING = (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError, OverflowError, struct.error)


class Damage(NamedTuple):
    """Something that is not as it was written.

    Attributes:
        what: one clause.
        block_id: whose it is, None where it is no block's.
        start_seconds, end_seconds: the stretch of the stream that is concerned, None where that cannot be told.
    """

    what: str
    block_id: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
        num_blocks: that are listed and can be read.
        num_bytes: of all records.
        damages: what is damaged, in the order of blocks.
    """

    num_blocks: int
    num_bytes: int
    damages: tuple[Damage, ...]


class Described(NamedTuple):
    """What a block's metadata promise.

    Attributes:
        meta: decoded and sound.
        picture_bytes, payload_bytes: lengths of its other records.
    """

    meta: BlockMeta
    picture_bytes: int
    payload_bytes: int


def audit(folder: Path, check_state: CheckState = lambda state: None) -> Audit:
    """Reads all of a memory folder.

    Raises:
        ValueError: if there is no memory, or one of another format version.
        OSError: if somebody is writing to it.
    """
    try:
        if not folders.find_memory(folder):
            raise ValueError(f"there is no memory in {folder}")
        with folders.writers_held_off(folder):
            identity = folders.read_manifest(folder)["identity"]
            shape = shape_of(identity)
            folders.check_whole(folder)
            return _Auditor(identity, shape, check_state).read(folder / folders.DATA)
    except folders.BrokenError as error:
        return Audit(0, 0, (Damage(str(error)),))


def shape_of(identity: Mapping[str, object]) -> BlockShape:
    """The shape of all blocks of a memory.

    Raises:
        BrokenError: if the identity names none.
    """
    sizes = [identity.get(name) for name in ("layers", "kv heads", "head dim")]
    dtype = DTYPES.get(str(identity.get("dtype")))
    numbers = [size for size in sizes if isinstance(size, int) and 0 < size <= MAX_AXIS]
    if dtype is None or len(numbers) < len(sizes):
        raise folders.BrokenError(f"what made the memory names no shape of blocks: {dict(identity)}"[:500])
    layers, heads, dim = numbers
    return BlockShape(layers, heads, dim, dtype)


def check_meta(body: bytes, block_id: int, shape: BlockShape) -> Described:
    """A block's metadata, of which every size has been compared.

    Raises:
        DamagedError: if they are not such as `encode_meta` writes for a block of this id and shape.
    """
    try:
        _check_sizes(body)
        meta, representative, picture_bytes, extra = decode_meta(body)
        sound = encode_meta(meta, representative, picture_bytes, extra) == body and _sound(meta, picture_bytes)
        codec = make_codec(meta.codec, shape)
        payload_bytes = codec.num_bytes(meta.num_tokens)
    except (*_DECODING, RecursionError) as error:
        raise DamagedError(f"the meta of block {block_id} cannot be decoded ({error})") from error
    if not sound or meta.id != block_id or tuple(representative.shape) != shape.representative_size:
        raise DamagedError(f"the meta of block {block_id} is not that of such a block")
    return Described(meta, picture_bytes, payload_bytes)


def _check_sizes(body: bytes) -> None:
    """Raises ValueError unless the tensors that metadata announce are as long as what there is of them."""
    (head_bytes,) = struct.unpack_from("<Q", body)
    if head_bytes > len(body):
        raise ValueError("its beginning is longer than all of it")
    head = json.loads(body[8 : 8 + head_bytes])
    sizes = {"kinds": 1, "representative": 2, "extra": 2}
    total = 8 + head_bytes
    for name, axes in head["shapes"].items():
        if len(axes) > 3 or not all(type(axis) is int and 0 <= axis <= MAX_AXIS for axis in axes):
            raise ValueError(f"{name} has the shape {axes}")
        total += math.prod(axes) * sizes.get(name, 8)
    if total != len(body):
        raise ValueError(f"it is {len(body)} bytes long, not {total}")


def _sound(meta: BlockMeta, picture_bytes: int) -> bool:
    """Whether scalars are numbers of their kind, and tensors fit each other."""
    tokens, axes = meta.num_tokens, len(meta.positions)
    times = (meta.start_seconds, meta.end_seconds, meta.weight)
    shapes = [tuple(one.shape) for one in (meta.kinds, meta.seconds, meta.positions, meta.advance, meta.start)]
    return (
        all(type(number) is int for number in (meta.id, meta.level, picture_bytes))
        and picture_bytes >= 0
        and -1 <= meta.level <= 2
        and all(type(time) is float and math.isfinite(time) for time in times)
        and (meta.epoch_seconds is None or type(meta.epoch_seconds) is float)
        and type(meta.picture_seconds) is float
        and tokens > 0
        and shapes == [(tokens,), (tokens,), (axes, tokens), (axes,), (axes,)]
    )


class _Auditor:
    """Takes records as they lie in the file: what is of no block, then all metadata, all pictures, all payloads."""

    def __init__(self, identity: folders.Identity, shape: BlockShape, check_state: CheckState) -> None:
        self._identity, self._shape, self._check_state = identity, shape, check_state
        self._damages: list[Damage] = []
        self._listed: dict[int, Described | None] = {}  # None where the metadata are damaged
        self._lengths: dict[tuple[Part, int], int | None] = {}  # None where the record is damaged
        self._num_bytes = 0

    def read(self, path: Path) -> Audit:
        """Reads a data file."""
        try:
            with TreeFile(path, self._complain) as tree:
                for (part, block_id), pages in groupby(self._pages(tree), lambda page: parse_key(page[0])[:2]):
                    self._take(part, block_id, pages)
                tree.check_free()
        except ValueError as error:
            self._complain(str(error))
        if (Part.IDENTITY, 0) not in self._lengths:
            self._complain("data.mdb does not say whose it is")
        for block_id in sorted(
            self._listed.keys() | {block_id for part, block_id in self._lengths if part > Part.STATE}
        ):
            self._compare(block_id)
        damages = sorted(self._damages, key=lambda one: -1 if one.block_id is None else one.block_id)
        return Audit(len(self._listed), self._num_bytes, tuple(damages))

    def _pages(self, tree: TreeFile) -> Iterator[tuple[bytes, memoryview]]:
        for key, value in tree.items():
            try:
                parse_key(key)
            except (DamagedError, ValueError) as error:
                self._complain(str(error))
                continue
            self._num_bytes += len(value)
            yield key, memoryview(value)

    def _take(self, part: Part, block_id: int, pages: Iterator[tuple[bytes, memoryview]]) -> None:
        try:
            body = from_pages(pages)
            self._check_body(part, block_id, body)
        except (DamagedError, ValueError) as error:
            self._complain(str(error) if part > Part.STATE else f"the {part.name.lower()}: {error}", block_id, part)
            self._lengths[part, block_id] = None
            if part is Part.META:
                self._listed[block_id] = None
        else:
            self._lengths[part, block_id] = len(body)

    def _check_body(self, part: Part, block_id: int, body: bytes) -> None:
        if part is Part.IDENTITY and body != identity_body(self._identity):
            raise DamagedError("data.mdb is not the one of vstream.json")
        if part is Part.STATE:
            self._check_state(body)
        if part is Part.META:
            self._listed[block_id] = check_meta(body, block_id, self._shape)

    def _compare(self, block_id: int) -> None:
        """A block's other records with what its metadata say of them."""
        if block_id not in self._listed:
            self._complain(f"the meta of block {block_id} is missing", block_id, Part.META)
        described = self._listed.get(block_id)
        if described is None:
            return
        for part, wanted in ((Part.PICTURE, described.picture_bytes), (Part.KV, described.payload_bytes)):
            found = self._lengths.get((part, block_id), 0)
            if found is not None and found != wanted:
                self._complain(
                    f"the {part.name.lower()} of block {block_id} has {found} bytes, not {wanted}", block_id, part
                )

    def _complain(self, what: str, block_id: int | None = None, part: Part = Part.STATE) -> None:
        of_block = part > Part.STATE
        described = self._listed.get(block_id) if of_block and block_id is not None else None
        span = (described.meta.start_seconds, described.meta.end_seconds) if described else (None, None)
        self._damages.append(Damage(what, block_id if of_block else None, *span))
