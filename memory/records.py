"""How a block becomes bytes on disk and back: metadata records, tensors as bytes, checksummed pages.

A record is a byte string of any length, kept as numbered pages that fill one LMDB page each, so that a freed page
always fits the next one and the map cannot fragment. This module knows nothing of LMDB, folders or budgets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vstream.memory.block import BlockMeta

PAGE_BYTES = 4096
CHUNK_BYTES = PAGE_BYTES - 16 - 8
"""Bytes of a record in one page: LMDB's page header takes 16, the checksum 8."""
PAGE_CHARGE = PAGE_BYTES + 128
"""What a page costs: itself and its entry in a B-tree leaf that is a quarter full, the least LMDB keeps."""
MAX_AXES = 3
"""Most rotary axes that a block's positions may have."""

_KEY = struct.Struct(">BQI")
_LENGTH = struct.Struct("<Q")
_SEED_MASK = 2**64 - 1


class Part(IntEnum):
    """The records of a memory; the first byte of their keys."""

    IDENTITY = 0
    STATE = 1
    META = 2
    PICTURE = 3
    KV = 4


class DamagedError(RuntimeError):
    """Stored bytes are missing or are not those that were written."""


def page_key(part: Part, block_id: int, page: int) -> bytes:
    """Key of one page; keys sort by part, block and page."""
    return _KEY.pack(part, block_id, page)


def parse_key(key: bytes) -> tuple[Part, int, int]:
    """Part, block id and page number of a key.

    Raises:
        DamagedError: if it is no key of ours.
    """
    if len(key) != _KEY.size or key[0] > max(Part):
        raise DamagedError(f"there is a key {key.hex()} that vstream never writes")
    part, block_id, page = _KEY.unpack(key)
    return Part(part), block_id, page


def num_pages(body_bytes: int) -> int:
    """Pages of a record of `body_bytes`."""
    return -(-(_LENGTH.size + body_bytes) // CHUNK_BYTES)


def checksum(key: bytes, chunk: bytes | memoryview) -> bytes:
    """xxh3 of a page's bytes, seeded with its place, so that a page in another's place is noticed too; 8 bytes."""
    import xxhash

    part, block_id, page = _KEY.unpack(key)
    return bytes(xxhash.xxh3_64_digest(chunk, seed=(block_id << 28 ^ page << 3 ^ part) & _SEED_MASK))


def to_pages(part: Part, block_id: int, body: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a record; its first page starts with the length of the body."""
    view, start = memoryview(body), 0
    for page in range(num_pages(len(view))):
        head = _LENGTH.pack(len(view)) if page == 0 else b""
        end = min(start + CHUNK_BYTES - len(head), len(view))
        key, chunk = page_key(part, block_id, page), head + view[start:end]
        yield key, checksum(key, chunk) + chunk
        start = end


def open_page(key: bytes, value: bytes | memoryview | None) -> memoryview:
    """The checked bytes of one page.

    Raises:
        DamagedError: if it is missing or its checksum is not that of its bytes.
    """
    if value is None:
        raise DamagedError(f"{_page_name(key)} is missing")
    view = memoryview(value)
    chunk = view[8:]
    if view[:8] != checksum(key, chunk):
        raise DamagedError(f"{_page_name(key)} does not match its checksum")
    return chunk


def _page_name(key: bytes) -> str:
    part, block_id, page = parse_key(key)
    return f"page {page} of the {part.name.lower()} of block {block_id}"


def from_pages(pages: Iterable[tuple[bytes, memoryview]]) -> bytes:
    """The body of a record from all its (key, value) pairs in order.

    Raises:
        DamagedError: if a page is missing, out of place or altered.
    """
    chunks: list[bytes] = []
    for expected, (key, value) in enumerate(pages):
        part, block_id, page = parse_key(key)
        if page != expected:
            raise DamagedError(f"page {expected} of the {part.name.lower()} of block {block_id} is missing")
        chunks.append(bytes(open_page(key, value)))
    whole = b"".join(chunks)
    if len(whole) < _LENGTH.size or _LENGTH.unpack_from(whole)[0] != len(whole) - _LENGTH.size:
        raise DamagedError("the end of a record is missing")
    return whole[_LENGTH.size :]


def span_pages(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where bytes start..stop of a body lie: (page, first byte, last byte + 1) within the pages' chunks."""
    start, stop = start + _LENGTH.size, stop + _LENGTH.size
    for page in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
        base = page * CHUNK_BYTES
        yield page, max(start - base, 0), min(stop - base, CHUNK_BYTES)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements as raw bytes, row by row, whatever its dtype and device."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def own(meta: BlockMeta) -> BlockMeta:
    """A copy of the metadata on the CPU, sharing no storage with larger tensors."""
    fields = {name: getattr(meta, name).detach().cpu().clone() for name in _TENSORS}
    return replace(meta, **fields)


_TENSORS = {
    "kinds": torch.uint8, "seconds": torch.float64, "positions": torch.int64,
    "advance": torch.int64, "start": torch.int64,
}  # fmt: skip
_SCALARS = ("id", "level", "start_seconds", "end_seconds", "epoch_seconds", "weight", "picture_seconds", "codec")


def meta_bytes(num_tokens: int) -> int:
    """Most bytes that the metadata of a block of `num_tokens` takes, in RAM or encoded, without its representative."""
    return 1024 + num_tokens * (1 + 8 + 8 * MAX_AXES)


class StoredExtra(NamedTuple):
    """A policy's tensor of a block [A, H, D] float16, and whose it is."""

    policy: str
    tensor: Tensor


def encode_meta(meta: BlockMeta, representative: Tensor, picture_bytes: int, extra: StoredExtra | None = None) -> bytes:
    """Everything about a block but its keys, values and picture, as JSON scalars followed by raw tensors."""
    tensors = {name: getattr(meta, name) for name in _TENSORS} | {"representative": representative}
    for name, dtype in (_TENSORS | {"representative": torch.float16}).items():
        assert tensors[name].dtype == dtype, f"{name} of {meta} is {tensors[name].dtype}, not {dtype}"
    head = {name: getattr(meta, name) for name in _SCALARS} | {"picture_bytes": picture_bytes}
    if extra is not None:
        tensors["extra"], head["extra"] = extra.tensor, extra.policy
    head["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    text = json.dumps(head).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *(tensor_bytes(tensor) for tensor in tensors.values())])


def decode_meta(body: bytes) -> tuple[BlockMeta, Tensor, int, StoredExtra | None]:
    """Metadata, representative [L, K, D] float16, number of picture bytes and extra: the reverse of `encode_meta`."""
    offset = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    head: dict[str, Any] = json.loads(body[_LENGTH.size : offset])
    tensors: dict[str, Any] = {}
    halves = dict.fromkeys(("representative", *(["extra"] if "extra" in head else [])), torch.float16)
    for name, dtype in (_TENSORS | halves).items():
        shape = head["shapes"][name]
        count = torch.Size(shape).numel()
        raw = bytearray(body[offset : offset + count * dtype.itemsize])
        tensors[name] = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
        offset += count * dtype.itemsize
    representative = tensors.pop("representative")
    extra = StoredExtra(head["extra"], tensors.pop("extra")) if "extra" in head else None
    meta = BlockMeta(**{name: head[name] for name in _SCALARS}, **tensors)
    return meta, representative, head["picture_bytes"], extra
