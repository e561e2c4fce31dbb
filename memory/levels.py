"""Levels: how a block fades. What each resolution makes of the one before it, and what it does when it overflows.

A policy of consolidation is a list of levels; the pyramid owns all else. This module knows nothing of where blocks'
bytes lie, of text or of models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vstream.memory.block import Block, Form
from vstream.memory.condense import condense, digest, halve, pool
from vstream.memory.neighbours import Neighbours, NeighboursInTime

SINK, DETAIL, DIGEST, GIST = -1, 0, 1, 2
LEVEL_NAMES = {SINK: "sink", DETAIL: "detail", DIGEST: "digest", GIST: "gist"}
DIGEST_KEEPS = 1 / 3  # of a block's tokens


Fill = Callable[[Form], int]


class Squeezed(NamedTuple):
    """What an overflowing last level does: some blocks leave, and one may stand for them; without, they are dropped."""

    leaving: Sequence[Block]
    instead: Block | None


@dataclass(frozen=True)
class Level(ABC):
    """One resolution of the pyramid.

    Attributes:
        number: as in `BlockMeta.level`.
        budget_bytes: what its blocks may take at home.
        codec: how its blocks are stored, see `codec.py`; one stored otherwise stays so until it is condensed.
    """

    number: int
    budget_bytes: int
    codec: str = field(default="none", kw_only=True)

    def neighbours(self) -> Neighbours:
        """What says which block goes first when the level overflows: the earlier of the most similar neighbours."""
        return Neighbours()

    @abstractmethod
    def take(self, block: Block, block_id: int) -> Block:
        """What a block of the level before becomes here."""

    def squeeze(self, pair: Sequence[Block], take_id: Callable[[], int]) -> Squeezed:
        """What becomes of its most similar neighbours, in time order, when this is the last level and overflows.

        Unless a subclass knows better, the earlier one is dropped (as in VideoScan and VideoChat-Online).
        """
        return Squeezed(pair[:1], None)


class Detail(Level):
    """Blocks as they were encoded."""

    def take(self, block: Block, block_id: int) -> Block:
        """Nothing is before it."""
        raise AssertionError(f"{block} cannot be demoted to detail")


class Recent(Detail):
    """Detail alone, the oldest dropped: what a rolling buffer keeps."""

    def neighbours(self) -> Neighbours:
        """In time order, whatever they show."""
        return NeighboursInTime(oldest_first=True)


class Spread(Detail):
    """Detail alone, thinned out evenly in time."""

    def neighbours(self) -> Neighbours:
        """The closest in time first."""
        return NeighboursInTime()

    def squeeze(self, pair: Sequence[Block], take_id: Callable[[], int]) -> Squeezed:
        """The later of the closest is dropped; dropping the earlier would eat the stream from its beginning."""
        return Squeezed(pair[1:] or pair, None)


@dataclass(frozen=True)
class Digest(Level):
    """A third of a block's tokens, and as many more as take no more room: the salient ones.

    Attributes:
        fill: the most tokens that take no more bytes than those of a form.
    """

    fill: Fill

    def take(self, block: Block, block_id: int) -> Block:
        """See `digest`."""
        third = Form(math.ceil(block.meta.num_tokens * DIGEST_KEEPS), self.codec)
        return digest(block, block_id=block_id, level=self.number, keep_tokens=self.fill(third))


@dataclass(frozen=True)
class Gist(Level):
    """One short frame of prototypes; the most similar neighbours merge, so nothing is ever dropped.

    Attributes:
        max_vision_tokens: of a block.
    """

    max_vision_tokens: int

    def take(self, block: Block, block_id: int) -> Block:
        """See `condense`."""
        return self._condensed([block], block_id)

    def squeeze(self, pair: Sequence[Block], take_id: Callable[[], int]) -> Squeezed:
        """Both become one, weights and time ranges kept."""
        assert len(pair) == 2, "the last level must hold at least two blocks within its budget"
        return Squeezed(pair, self._condensed(pair, take_id()))

    def _condensed(self, blocks: Sequence[Block], block_id: int) -> Block:
        return condense(blocks, block_id=block_id, level=self.number, max_vision_tokens=self.max_vision_tokens)


@dataclass(frozen=True)
class Pooled(Level):
    """Every frame kept, its vision tokens mean-pooled to fewer; the earlier of the most similar neighbours is dropped.

    Attributes:
        keep_share: of a frame's vision tokens; one is left at least.
    """

    keep_share: float

    def take(self, block: Block, block_id: int) -> Block:
        """See `pool`."""
        return pool(block, block_id=block_id, level=self.number, keep_share=self.keep_share)


class Halved(Level):
    """Half of a block's vision tokens, and half of those again when memory is full (after InfiniPot-V, 2506.15745)."""

    def take(self, block: Block, block_id: int) -> Block:
        """See `halve`."""
        return halve(block, block_id=block_id, level=self.number)

    def squeeze(self, pair: Sequence[Block], take_id: Callable[[], int]) -> Squeezed:
        """The earlier one is halved again, and dropped where nothing is left to halve."""
        smaller = halve(pair[0], block_id=take_id(), level=self.number)
        return Squeezed(pair[:1], smaller if smaller.meta.num_tokens < pair[0].meta.num_tokens else None)


@dataclass(frozen=True)
class Room:
    """What a policy of consolidation may share out.

    Attributes:
        total_bytes: for all levels.
        hot_bytes: the least that the first level needs: the hot window and a few clips.
        least_bytes: the least that any other level needs: two blocks.
        digest_share, gist_share: parts of the total for those levels.
        gist_vision_tokens: of a condensed block.
        fill: the most tokens that take no more bytes than those of a form.
        codecs: of detail, digest and gist.
    """

    total_bytes: int
    hot_bytes: int
    least_bytes: int
    digest_share: float
    gist_share: float
    gist_vision_tokens: int
    fill: Fill
    codecs: tuple[str, str, str] = ("none", "none", "none")

    @property
    def cold_bytes(self) -> int:
        """All but what the first level needs."""
        return self.total_bytes - self.hot_bytes


Levels = tuple[Level, ...]


def _pyramid(room: Room) -> Levels:
    """Ours: detail, a digest where it has a share, gists that merge for ever.

    Where memory is small, the shares give way to what detail needs at least.
    """
    shares = room.digest_share + room.gist_share
    cold = min(shares * room.total_bytes, room.cold_bytes)
    gist = max(int(cold * room.gist_share / shares), room.least_bytes)
    digest = int(cold) - gist if room.digest_share else 0
    detail, last = Detail(DETAIL, room.total_bytes - digest - gist), Gist(GIST, gist, room.gist_vision_tokens)
    return (detail, Digest(DIGEST, digest, room.fill), last) if digest else (detail, last)


def _recent(room: Room) -> Levels:
    """A rolling buffer of detail."""
    return (Recent(DETAIL, room.total_bytes),)


def _uniform(room: Room) -> Levels:
    """Detail thinned out evenly."""
    return (Spread(DETAIL, room.total_bytes),)


def _carrier(room: Room) -> Levels:
    """One mean-pooled token a frame outside the window (VideoScan, arXiv 2503.09387)."""
    return Detail(DETAIL, room.hot_bytes), Pooled(GIST, room.cold_bytes, keep_share=0.0)


def _pmb(room: Room) -> Levels:
    """Frames of a quarter, then a sixteenth of their tokens (VideoChat-Online, arXiv 2501.00584).

    There a frame's first resolution goes by its number, and the middle tier's overflow is lost; here every block
    passes through all tiers.
    """
    cold = room.cold_bytes // 3
    return Detail(DETAIL, room.total_bytes - 2 * cold), Pooled(DIGEST, cold, 0.25), Pooled(GIST, cold, 0.25)


def _star(room: Room) -> Levels:
    """Weighted clusters of all but the window (Flash-VStream, arXiv 2406.08085).

    There k-means clusters any frames; here neighbours in time merge, so that a cluster has a time range.
    """
    return Detail(DETAIL, room.hot_bytes), Gist(GIST, room.cold_bytes, room.gist_vision_tokens)


def _infinipot(room: Room) -> Levels:
    """Half of the tokens of what leaves the window, again and again (InfiniPot-V, arXiv 2506.15745)."""
    return Detail(DETAIL, room.hot_bytes), Halved(GIST, room.cold_bytes)


CONSOLIDATIONS: dict[str, Callable[[Room], Levels]] = {
    "pyramid": _pyramid, "recent": _recent, "uniform": _uniform, "carrier": _carrier, "pmb": _pmb, "star": _star,
    "infinipot": _infinipot,
}  # fmt: skip
"""How memory fades, by name."""


def make_levels(name: str, room: Room) -> Levels:
    """The levels of a policy, from the finest on.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in CONSOLIDATIONS:
        raise ValueError(f"unknown consolidation {name!r}; choose one of {', '.join(sorted(CONSOLIDATIONS))}")
    return tuple(replace(level, codec=room.codecs[level.number]) for level in CONSOLIDATIONS[name](room))
