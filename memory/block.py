"""Block: one clip's tokens as the model keeps them, the unit of memory.

This module knows nothing of pixels, models or questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class TokenKind(IntEnum):
    """What a token is. Timestamps and markers live or die with their frame and are never merged."""

    VISION = 0
    TIMESTAMP = 1
    MARKER = 2


class Tier(IntEnum):
    """Where bytes live, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Describe(Protocol):
    """How a policy makes its `Extra` of a block."""

    def __call__(
        self, kv: Tensor, kinds: Tensor, *, embeds: Tensor | None = None, parents: Sequence[Block] = ()
    ) -> Tensor | None:
        """Its [A, H, D] float16, None where that cannot be told from what is given.

        Args:
            kv: [L, 2, K, N, D], keys un-rotated, of the first layers.
            kinds: [N].
            embeds: [N, E] before the decoder, of a new block.
            parents: the blocks that a condensed one stands for.
        """


@dataclass(frozen=True)
class Extra:
    """What a retrieval policy keeps of every block beside the mean key: a tensor [A, H, D] float16.

    Attributes:
        policy: whose it is.
        size: (A, H, D).
        describe: makes it.
    """

    policy: str
    size: tuple[int, int, int]
    describe: Describe


@dataclass(frozen=True)
class BlockShape:
    """What all blocks of one model share: `kv` is [L, 2, K, N, D] of `dtype`; a policy may keep an `extra` of each."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    extra: Extra | None = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def representative_size(self) -> tuple[int, int, int]:
        """(L, K, D)."""
        return self.num_layers, self.num_kv_heads, self.head_dim

    @property
    def representative_bytes(self) -> int:
        """Bytes of one block's representative, [L, K, D] float16, and of its extra."""
        return 2 * prod(self.representative_size) + self.extra_bytes

    @property
    def extra_bytes(self) -> int:
        """Bytes of one block's extra."""
        return 2 * prod(self.extra.size) if self.extra else 0


class Form(NamedTuple):
    """How a block's keys and values are stored, which says how many bytes they take.

    Attributes:
        num_tokens: tokens N.
        codec: by name, see `vstream.memory.codec`.
    """

    num_tokens: int
    codec: str = "none"


@dataclass(frozen=True, eq=False)
class BlockMeta:
    """All of a block but its tensors of keys and values.

    Attributes:
        id: rises with every block made, never used twice in a memory.
        level: 0 is full detail; higher levels stand for more frames with fewer tokens.
        start_seconds, end_seconds: times of its first and last frame on the stream's clock.
        epoch_seconds: wall-clock (Unix) time of the stream's zero, None where unknown.
        weight: how many frames it stands for.
        kinds: [N] uint8 `TokenKind`.
        seconds: [N] float64, the time of each token's frame.
        positions: [A, N] int64, relative to where the block is placed.
        advance: [A] int64: what follows is placed this much further.
        start: [A] int64, where it was placed when it was encoded.
        picture_seconds: time of the frame in its picture (NaN for none).
        codec: how its keys and values are stored, on every tier, see `vstream.memory.codec`.
    """

    id: int
    level: int
    start_seconds: float
    end_seconds: float
    epoch_seconds: float | None
    weight: float
    kinds: Tensor
    seconds: Tensor
    positions: Tensor
    advance: Tensor
    start: Tensor
    picture_seconds: float = float("nan")
    codec: str = "none"

    @cached_property
    def num_tokens(self) -> int:
        """Tokens N."""
        return int(self.kinds.shape[0])

    @property
    def form(self) -> Form:
        """How its keys and values are stored."""
        return Form(self.num_tokens, self.codec)

    def __repr__(self) -> str:
        span = f"{self.start_seconds:.2f}..{self.end_seconds:.2f} s"
        return f"BlockMeta({self.id}, level {self.level}, {span}, {self.num_tokens} tokens)"


@dataclass(frozen=True, eq=False)
class Block:
    """Keys (un-rotated) and values of one clip, with its metadata. Immutable: a changed block is a new one.

    Attributes:
        meta: see `BlockMeta`.
        kv: [L, 2, K, N, D], keys at index 0 and un-rotated, so that they can be placed anywhere.
        representative: [L, K, D] float16, the mean un-rotated key.
        picture: JPEG of the frame that stands for it, b"" for none.
        extra: [A, H, D] float16, what the retrieval policy keeps of it (`BlockShape.extra`); None for nothing.
    """

    meta: BlockMeta
    kv: Tensor
    representative: Tensor
    picture: bytes = b""
    extra: Tensor | None = None

    def __post_init__(self) -> None:
        layers, two, heads, tokens, dim = self.kv.shape
        assert (two, tokens) == (2, self.meta.num_tokens), f"kv {list(self.kv.shape)} of {self.meta}"
        assert self.representative.shape == (layers, heads, dim), f"representative {list(self.representative.shape)}"
        assert self.representative.dtype == torch.float16, f"representative {self.representative.dtype}"
        assert self.extra is None or self.extra.dtype == torch.float16, f"extra {self.extra}"

    def __repr__(self) -> str:
        return f"Block({self.meta}, kv {list(self.kv.shape)} {self.kv.dtype}, picture {len(self.picture)} bytes)"


def lead_tokens(seconds: Tensor) -> int:
    """How many first tokens are of the same frame: no cut of a block has fewer.

    Args:
        seconds: [N] float64, the time of each token's frame, NaN for none.
    """
    others = torch.nonzero(seconds[1:] != seconds[:1])[:, 0]
    return 1 + int(others[0]) if len(others) else len(seconds)


def prefix_until(meta: BlockMeta, seconds: float) -> BlockMeta:
    """The part of a detail block whose frames are no later than `seconds`; its kv is cut to the same length.

    Causal attention makes the prefix exact: its keys and values never saw the later frames. The choice of its picture
    did, so a shortened block has none.
    """
    assert meta.level == 0, f"only detail blocks have prefixes, not {meta}"
    keep = int((meta.seconds <= seconds).sum())
    assert 0 < keep <= meta.num_tokens, f"{meta} has no frame up to {seconds} s"
    kept = meta.seconds[:keep]
    advance = meta.advance if keep == meta.num_tokens else meta.positions[:, keep].clone()
    frames = len(torch.unique(kept))
    return replace(
        meta,
        end_seconds=float(kept.max()),
        weight=float(frames),
        kinds=meta.kinds[:keep],
        seconds=kept,
        positions=meta.positions[:, :keep],
        advance=advance,
        picture_seconds=meta.picture_seconds if keep == meta.num_tokens else float("nan"),
    )
