"""LMDB's data file read without LMDB: every node of its tree, checked on the way.

LMDB follows what it finds in its pages; where bits of them have flipped that may end the process. This reader believes
nothing: page numbers, offsets, kinds, the order of keys and all totals are compared before they are used, so any bytes
may be read with it. It knows the layout that LMDB 0.9 has on 64-bit little-endian machines, and nothing of what keys
and values mean. Nobody may write to the file meanwhile.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<QHHHH")  # page number, padding, kind, end of the node table, start of the nodes
_OVERFLOW = struct.Struct("<QHHI")  # page number, padding, kind, pages
_NODE = struct.Struct("<HHHH")  # low and high half of a size or page number, flags or its highest part, key bytes
_TREE = struct.Struct("<IHHQQQQQ")
_META = struct.Struct("<IIQQ48s48sQQ")
_WORD = struct.Struct("<Q")
_MAGIC, _EMPTY = 0xBEEFC0DE, 2**64 - 1
_BRANCH, _LEAF, _BIG = 1, 2, 4
_BIG_DATA = 1
_DIRTY = 0x10  # set on pages while a transaction holds them; written so by some
_MAX_DEPTH = 32

Complain = Callable[[str], None]


class _Tree(NamedTuple):
    """A tree by its own account; `md_pad` and flags come first."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    big_pages: int
    entries: int
    root: int


class _Page(NamedTuple):
    number: int
    kind: int
    body: bytes
    nodes: tuple[int, ...]


class _Node(NamedTuple):
    low: int
    high: int
    flags: int
    key: bytes
    data_at: int


class _BadPageError(Exception):
    """A page that is not what it should be."""


class TreeFile:
    """The newest commit of a data file; a context manager.

    Attributes:
        used_pages: numbers of all pages that the walks so far have found in use.
    """

    def __init__(self, path: Path, complain: Complain) -> None:
        """Opens it; `complain` is told of everything that is wrong, a sentence each.

        Raises:
            ValueError: if it has no page of LMDB's that says where its trees are.
        """
        self._complain = complain
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metas = [meta for meta in (self._meta(0), self._meta(self._page_size())) if meta is not None]
        if not metas:
            self._map.close()
            raise ValueError(f"{path} does not start like an LMDB file")
        _, free, main, last_page = max(metas)
        self._free, self._main = _Tree(*_TREE.unpack(free)), _Tree(*_TREE.unpack(main))
        self._page_bytes, self._last_page = self._free.pad, last_page
        self.used_pages: set[int] = set()

    def __enter__(self) -> TreeFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._map.close()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value that can be read, keys rising. What is wrong with pages and totals is complained of."""
        return self._walk(self._main, "the tree", lambda key: key)

    def check_free(self) -> None:
        """Complains if the list of free pages cannot be read, or names pages in use; call it after `items`."""
        for key, value in self._walk(self._free, "the list of free pages", lambda key: key[::-1]):
            numbers = [_WORD.unpack_from(value, at)[0] for at in range(0, len(value) - 7, 8)]
            if not numbers or numbers[0] > len(numbers) - 1:
                self._complain(f"the list of pages freed by commit {int.from_bytes(key, 'little')} is cut short")
                continue
            wrong = sorted(set(numbers[1 : numbers[0] + 1]) & self.used_pages)
            if wrong:
                self._complain(f"page {wrong[0]} of data.mdb is called free, but it is in use")

    def _page_size(self) -> int:
        """By the first meta page; 4096 where that cannot be read."""
        first = self._meta(0)
        return 4096 if first is None else int(_TREE.unpack(first[1])[0])

    def _meta(self, at: int) -> tuple[int, bytes, bytes, int] | None:
        """(commit, free tree, main tree, last page) of a meta page, None if it is none."""
        if at + _HEADER.size + _META.size > len(self._map):
            return None
        magic, _, _, _, free, main, last_page, commit = _META.unpack_from(self._map, at + _HEADER.size)
        size = _TREE.unpack(free)[0]
        sound = magic == _MAGIC and size & (size - 1) == 0 and 256 <= size <= 1 << 16
        return (commit, free, main, last_page) if sound else None

    def _walk(self, tree: _Tree, name: str, order: Callable[[bytes], bytes]) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a tree; its totals are compared in the end, where no page was bad."""
        found = {_BRANCH: 0, _LEAF: 0, _BIG: 0}
        entries, bad, last = 0, 0, None
        pending = [] if tree.root == _EMPTY else [(tree.root, 1)]
        while pending:
            number, depth = pending.pop()
            try:
                page = self._page(number, _BRANCH | _LEAF)
                nodes = [self._node(page, at) for at in page.nodes]
                if (page.kind == _LEAF) != (depth == tree.depth) or depth > _MAX_DEPTH:
                    raise _BadPageError(f"page {number} of data.mdb is at the wrong depth of {name}")
            except _BadPageError as error:
                bad += 1
                self._complain(str(error))
                continue
            found[page.kind] += 1
            if page.kind == _BRANCH:
                children = [node.low | node.high << 16 | node.flags << 32 for node in nodes]
                pending += [(child, depth + 1) for child in reversed(children)]
                continue
            for node in nodes:
                try:
                    value, pages = self._value(page, node)
                except _BadPageError as error:
                    bad += 1
                    self._complain(str(error))
                    continue
                key = order(node.key)
                if last is not None and key <= last:
                    bad += 1
                    self._complain(f"page {number} of data.mdb holds keys out of order")
                last, entries = key, entries + 1
                found[_BIG] += pages
                yield node.key, value
        told = (tree.entries, tree.branch_pages, tree.leaf_pages, tree.big_pages)
        counted = (entries, found[_BRANCH], found[_LEAF], found[_BIG])
        if not bad and told != counted:
            self._complain(f"{name} of data.mdb counts {told} entries and pages, but has {counted}")

    def _page(self, number: int, kinds: int) -> _Page:
        """A page of a tree, taken once."""
        body = self._body(number, 1)
        found, _, flags, lower, upper = _HEADER.unpack_from(body)
        kind = flags & ~_DIRTY
        sound = found == number and kind in (_BRANCH, _LEAF) and kind & kinds
        if not sound or not _HEADER.size <= lower <= upper <= self._page_bytes or lower % 2:
            raise _BadPageError(f"page {number} of data.mdb is no page of a tree")
        count = (lower - _HEADER.size) // 2
        return _Page(number, kind, body, struct.unpack_from(f"<{count}H", body, _HEADER.size))

    def _node(self, page: _Page, at: int) -> _Node:
        if not _HEADER.size <= at <= self._page_bytes - _NODE.size:
            raise _BadPageError(f"page {page.number} of data.mdb has an entry outside of it")
        low, high, flags, key_bytes = _NODE.unpack_from(page.body, at)
        data_at = at + _NODE.size + key_bytes
        if data_at > self._page_bytes:
            raise _BadPageError(f"page {page.number} of data.mdb has a key outside of it")
        return _Node(low, high, flags, page.body[at + _NODE.size : data_at], data_at)

    def _value(self, page: _Page, node: _Node) -> tuple[bytes, int]:
        """A leaf's value, and how many pages of its own it has."""
        size = node.low | node.high << 16
        if node.flags == _BIG_DATA and node.data_at + _WORD.size <= self._page_bytes:
            number = _WORD.unpack_from(page.body, node.data_at)[0]
            count = (_HEADER.size + size - 1) // self._page_bytes + 1
            body = self._body(number, count)
            found, _, flags, pages = _OVERFLOW.unpack_from(body)
            if (found, flags & ~_DIRTY) != (number, _BIG) or pages < count:
                raise _BadPageError(f"page {number} of data.mdb does not begin a value, as page {page.number} says")
            return body[_HEADER.size : _HEADER.size + size], pages
        if node.flags or node.data_at + size > self._page_bytes:
            raise _BadPageError(f"page {page.number} of data.mdb has a value outside of it")
        return page.body[node.data_at : node.data_at + size], 0

    def _body(self, number: int, count: int) -> bytes:
        """The bytes of pages that nothing else uses."""
        end = (number + count) * self._page_bytes
        if not 2 <= number <= self._last_page or number + count - 1 > self._last_page or end > len(self._map):
            raise _BadPageError(f"page {number} of data.mdb is referred to, but does not exist")
        numbers = range(number, number + count)
        if not self.used_pages.isdisjoint(numbers):
            raise _BadPageError(f"page {number} of data.mdb is used twice")
        self.used_pages.update(numbers)
        return self._map[number * self._page_bytes : end]
