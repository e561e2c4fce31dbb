"""Codecs: how a block's keys and values become rows of bytes, and back.

A payload is rows: per layer first a few that all tokens of the block share (its head), then one per token, which needs
no other token's. So blocks can be cut after any token, and gathered from slots row by row. This module knows nothing
of levels, tiers or what tokens mean.

Root mean square error of 4 bits, as a share of what tells a block's tokens apart (`scripts/bench_codecs.py`; blocks of
13 to 25 tokens by `embedded`, of 24 by `tiny`), and bits per number with all scales for 32 tokens of 64 channels:

| 4 bits | embedded: keys | values | tiny: keys | values | bits |
| --- | --- | --- | --- | --- | --- |
| a scale per token | 0.378 | 0.125 | 0.185 | 0.110 | 4.5 |
| the same, turned (QuaRot) | 0.237 | 0.109 | 0.177 | 0.107 | 4.5 |
| **the same, keys less the first frame's mean** | **0.091** | **0.109** | **0.082** | **0.107** | 4.75 |
| turned, less the block's mean | 0.089 | 0.089 | 0.077 | 0.078 | 5 |
| a scale per channel (KIVI's keys) | 0.065 | 0.066 | 0.065 | 0.068 | 5 |

With 8 bits all errors are 17 times smaller.

Un-rotated keys share a large part over the whole block; once it is taken off, the rest is small. Of the means, only
that of the first frame is not changed by what is seen later, so that a question about the past sees nothing of it;
the block's mean and scales per channel are. Values gain little from the first frame's mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vstream.kernels import LARGEST, RowLayout, quantise, unpack_rows
from vstream.memory.block import BlockShape

WORD_BYTES = 8
"""Rows are a whole number of words, so that they can be moved as such."""


class Codec(ABC):
    """A way to store keys and values of one shape.

    Attributes:
        name: as in `BlockMeta.codec`.
        shape: of the blocks.
        bits: of a number; 0 where the model's own are kept.
        row_bytes: R, bytes of one row of one layer.
        head_rows: rows of a layer that all tokens of a block share.
    """

    name: str
    bits: int
    row_bytes: int
    head_rows: int

    def __init__(self, shape: BlockShape) -> None:
        self.shape = shape

    def num_rows(self, num_tokens: int) -> int:
        """Rows of one layer of a block."""
        return self.head_rows + num_tokens

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of a block's payload."""
        return self.shape.num_layers * self.num_rows(num_tokens) * self.row_bytes

    @abstractmethod
    def encode(self, kv: Tensor, lead: int) -> Tensor:
        """A block's payload. The same kv gives the same bytes.

        Args:
            kv: [L, 2, K, N, D].
            lead: so many first tokens are in every cut of the block; what tokens share is taken from them.

        Returns:
            [L, head_rows + N, R] uint8.
        """

    @property
    def layout(self) -> RowLayout:
        """Its rows, as kernels read them."""
        shape = self.shape
        return RowLayout(self.bits, shape.dtype, shape.num_kv_heads, shape.head_dim, self.row_bytes, self.head_rows)

    def decode(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Keys and values of some blocks' tokens, or of their first ones; the bits do not depend on which.

        Args:
            rows: [l, B * head_rows + N, R] uint8 of some layers: the heads of all blocks, then all their tokens.
            owner: [N] int64, which of the blocks a token is of.

        Returns:
            [l, 2, K, N, D] of the shape's dtype.
        """
        return unpack_rows(rows, owner, self.layout)

    def round_trip(self, kv: Tensor, lead: int) -> Tensor:
        """A block's kv [L, 2, K, N, D] as it will be read, of the same bits."""
        owner = torch.zeros(kv.shape[3], dtype=torch.int64, device=kv.device)
        return torch.cat([self.decode(layer[None], owner) for layer in self.encode(kv, lead)])


class Raw(Codec):
    """The model's own numbers, bit for bit."""

    name = "none"
    bits = 0
    head_rows = 0

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape)
        self.row_bytes = _whole_words(shape.bytes_per_token // shape.num_layers)

    def encode(self, kv: Tensor, lead: int) -> Tensor:
        """See `Codec.encode`."""
        rows = kv.detach().permute(0, 3, 1, 2, 4).contiguous().flatten(2).view(torch.uint8)
        return _padded(rows, self.row_bytes)

    def round_trip(self, kv: Tensor, lead: int) -> Tensor:
        """The same."""
        return kv


class Quantised(Codec):
    """Whole numbers of a few bits, with a scale and a minimum per token, head, and keys or values; see `quantise`.

    The head is the mean key of the first frame, float16, from which keys are counted. A number that is none becomes 0,
    one beyond float16's range the end of it.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape)
        self.row_bytes = _whole_words(2 * shape.num_kv_heads * shape.head_dim * self.bits // 8 + 8 * shape.num_kv_heads)
        self._base_bytes = 2 * shape.num_kv_heads * shape.head_dim
        self.head_rows = -(-self._base_bytes // self.row_bytes)

    def encode(self, kv: Tensor, lead: int) -> Tensor:
        """See `Codec.encode`."""
        wide = kv.detach().float().nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
        base = wide[:, 0, :, :lead].mean(dim=2).half()  # [L, K, D]
        head = _padded(base.flatten(1).view(torch.uint8), self.head_rows * self.row_bytes)
        rows = _padded(quantise(wide, base, self.bits), self.row_bytes)
        return torch.cat([head.view(len(head), self.head_rows, self.row_bytes), rows], dim=1)


class Int8(Quantised):
    """8 bits a number."""

    name, bits = "int8", 8


class Int4(Quantised):
    """4 bits a number."""

    name, bits = "int4", 4


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Raw, Int8, Int4)}


def make_codec(name: str, shape: BlockShape) -> Codec:
    """A codec by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in CODECS:
        raise ValueError(f"a codec must be one of {', '.join(CODECS)}, got {name!r}")
    return CODECS[name](shape)


def make_codecs(shape: BlockShape) -> dict[str, Codec]:
    """All codecs by name: every block of a memory says which is its own."""
    return {name: make_codec(name, shape) for name in CODECS}


def _whole_words(num_bytes: int) -> int:
    return -(-num_bytes // WORD_BYTES) * WORD_BYTES


def _padded(rows: Tensor, num_bytes: int) -> Tensor:
    """Rows [..., R] with zeros up to so many bytes."""
    return torch.nn.functional.pad(rows, (0, num_bytes - rows.shape[-1])) if rows.shape[-1] < num_bytes else rows
