"""Parts of what a token attends to: keys and values that lie in several places, each as it lies there.

An answer sees [sink | gist | retrieved | window | tail]. Each part is plain rows (`Dense`), slots of a slab (`Paged`)
or whole numbers (`Quantised`), and none has to be copied to stand beside the others. All keys are rotated to where they
are seen. This module knows nothing of queries, nor of what the tokens mean.

Shape letters: K key/value heads, N tokens, D head dim, S slots, P tokens per slot, B slots of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vstream.kernels.reference import LARGEST, turn

_SMALLEST = 1e-30  # instead of a scale of 0, where all numbers of a vector are alike


@dataclass(frozen=True, eq=False)
class Dense:
    """Rows one after the other.

    Attributes:
        keys, values: [K, N, D], with any stride over K and N.
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[1]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values [K, N, D]."""
        return self.keys, self.values


@dataclass(frozen=True, eq=False)
class Paged:
    """Rows in slots of a slab: the first `num_tokens` of the slots of a table, slot after slot (as in PagedAttention).

    Attributes:
        keys, values: [S, P, K, D], with any stride over S, P and K.
        table: [B] int64, which slots.
        num_tokens: N, at most B * P.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    num_tokens: int

    def __post_init__(self) -> None:
        """Raises ValueError for more tokens than the table's slots hold."""
        room = len(self.table) * self.keys.shape[1]
        if not 0 <= self.num_tokens <= room:
            raise ValueError(f"num_tokens must be 0 to {room}, what the table's slots hold, got {self.num_tokens}")

    def __len__(self) -> int:
        return self.num_tokens

    def dense(self) -> tuple[Tensor, Tensor]:
        """Copies of keys and values [K, N, D]."""
        return self.rows(0, self.num_tokens)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of some tokens, [K, stop - start, D]; `start` is the first of a slot."""
        size = self.keys.shape[1]
        slots = self.table[start // size : -(-stop // size)]
        both = (part.index_select(0, slots).flatten(0, 1)[: stop - start] for part in (self.keys, self.values))
        keys, values = (part.transpose(0, 1) for part in both)
        return keys, values


@dataclass(frozen=True, eq=False)
class Quantised:
    """Whole numbers of a few bits with a scale and a minimum per token and head, made for decoding; see `pack`.

    Attributes:
        key_codes, value_codes: [K, N, D * bits / 8] uint8; with 4 bits, channel d is in the low half of byte d, channel
            d + D / 2 in the high half.
        numbers: [K, N, 4] float16: scale and minimum of the key, then of the value.
        base: [K, D] float32, what keys are counted from, turned.
        bits: 8 or 4.
    """

    key_codes: Tensor
    value_codes: Tensor
    numbers: Tensor
    base: Tensor
    bits: int

    def __len__(self) -> int:
        return self.key_codes.shape[1]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values [K, N, D] float32."""
        key_scale, key_low, value_scale, value_low = self.numbers.float().unsqueeze(-2).unbind(-1)  # [K, N, 1]
        keys = unpack(self.key_codes, self.bits) * key_scale + key_low + self.base[:, None]
        values = unpack(self.value_codes, self.bits) * value_scale + value_low
        return turn(keys), turn(values)


Part = Dense | Paged | Quantised


def pack(keys: Tensor, values: Tensor, bits: int) -> Quantised:
    """Keys and values quantised for attention to read as they are.

    They are turned as in QuaRot (arXiv 2404.00456), which leaves products of queries with keys as they are once the
    query is turned too; what comes of the values is turned back. The keys' mean is taken off, since it adds the same
    to the score of every token of the part.

    Args:
        keys, values: [K, N, D], finite; the keys where they are seen.
        bits: 8 or 4.

    Raises:
        ValueError: for other bits, or 4 bits of an odd D.
    """
    dim = keys.shape[2]
    if bits not in (4, 8) or dim * bits % 8:
        raise ValueError(f"bits must be 8, or 4 where the head dim is even, got {bits} for a head dim of {dim}")
    turned = turn(keys.float())  # [K, N, D]
    base = turned.mean(dim=1) if len(turned[0]) else turned.new_zeros(len(keys), dim)
    key_codes, key_numbers = _rounded(turned - base[:, None], bits)
    value_codes, value_numbers = _rounded(turn(values.float()), bits)
    return Quantised(key_codes, value_codes, torch.cat([key_numbers, value_numbers], dim=-1), base, bits)


def unpack(codes: Tensor, bits: int) -> Tensor:
    """Codes [.., D * bits / 8] uint8 as numbers [.., D] float32."""
    return (codes if bits == 8 else torch.cat([codes & 15, codes >> 4], dim=-1)).float()


def _rounded(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Vectors [K, N, D] as codes [K, N, D * bits / 8] uint8 and their scales and minima [K, N, 2] float16."""
    levels = 2**bits - 1
    vectors = vectors.clamp(-LARGEST, LARGEST)
    low, high = vectors.amin(-1, keepdim=True).half(), vectors.amax(-1, keepdim=True)
    scale = ((high - low.float()) / levels).clamp_min(0).half()
    codes = ((vectors - low.float()) / scale.float().clamp_min(_SMALLEST)).round_().clamp_(0, levels).to(torch.uint8)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | second << 4
    return codes, torch.cat([scale, low], dim=-1)


def check(query: Tensor, rows: Sequence[Sequence[Part]]) -> None:
    """Asserts that every row [H, D] of a query [R, H, D] has something to attend to, of fitting shape."""
    assert query.shape[0] == len(rows), f"{query.shape[0]} queries, but parts for {len(rows)}"
    for row, parts in enumerate(rows):
        assert any(len(part) for part in parts), f"row {row} has nothing to attend to: all its parts are empty"
