"""Fetch: blocks about to be read, layer by layer, from wherever they lie.

All that can fail (a block that is gone, damaged bytes) has happened before there is one. This module knows nothing of
tiers, budgets or models; positions reach it as tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vstream.kernels import Places, gather_rows, place_rows
from vstream.kernels.streams import queued
from vstream.memory.block import BlockShape
from vstream.memory.codec import Codec
from vstream.memory.slab import Slab

Tables = tuple[Tensor, Tensor]
"""cos and sin [1, N, D] of the positions that N tokens get."""


@dataclass(frozen=True, eq=False)
class Part:
    """Blocks of one codec that lie together.

    Attributes:
        codec: how they are stored.
        words: of a layer, what they lie in: [S, P, W] int64, W words a row.
        places: of their rows, heads first.
        owner: [n] int64, which of the blocks a token is of.
        columns: where the tokens belong among all N: a slice where they are neighbours, else [n] int64.
    """

    codec: Codec
    words: Callable[[int], Tensor]
    places: Places
    owner: Tensor
    columns: slice | Tensor

    def read(self, layer: int, out: Tensor) -> None:
        """One layer, un-rotated, into its columns of `out` [2, K, N, D]."""
        words = self.words(layer)
        rows = gather_rows(words, *self.places.on(words.device)).view(torch.uint8).to(out.device)
        found = self.codec.decode(rows[None], self.owner)[0]  # [2, K, n, D]
        if isinstance(self.columns, slice):
            out[:, :, self.columns].copy_(found)
        else:
            out.index_copy_(2, self.columns, found)

    def place(self, layer: int, tables: Tables, keys: Tensor, values: Tensor) -> None:
        """One layer, keys turned by `tables`, into its columns of keys and values [K, N, D]."""
        cos, sin = (table[:, self.columns] for table in tables)
        apart = not isinstance(self.columns, slice)
        into = [one.new_empty(len(one), len(self.owner), one.shape[2]) if apart else one[:, self.columns]
                for one in (keys, values)]  # fmt: skip
        place_rows(self.words(layer), self.places, self.owner, self.codec.layout, (cos, sin), into[0], into[1])
        if apart:
            for one, found in zip((keys, values), into, strict=True):
                one.index_copy_(1, self.columns, found)  # type: ignore[arg-type]


class Fetch:
    """N tokens of blocks in the order asked for; good until the store's next fetch or commit.

    Attributes:
        num_tokens: N.
        layers: those that can be read.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        slabs: Sequence[Slab],
        num_tokens: int,
        layers: range,
        shape: BlockShape,
        device: torch.device,
    ) -> None:
        """Parts of so many tokens, which lie in some slabs."""
        self.num_tokens, self.layers = num_tokens, layers
        self._parts, self._slabs, self._shape, self._device = parts, slabs, shape, device

    @property
    def held(self) -> list[Tensor]:
        """Small tensors on the device that reading needs until it is done."""
        both = (one for part in self._parts for one in (part.owner, part.columns))
        return [one for one in both if isinstance(one, Tensor)]

    def read(self) -> Tensor:
        """All its layers as they are stored, keys un-rotated, [L, 2, K, N, D] on the device."""
        out = self._empty(len(self.layers))
        for into, layer in zip(out, self.layers, strict=True):
            self._read(layer, into)
        return out

    def read_layer(self, layer: int) -> Tensor:
        """One layer of them, [2, K, N, D]."""
        out = self._empty(1)[0]
        self._read(layer, out)
        return out

    def place(self, layer: int, tables: Tables, keys: Tensor, values: Tensor) -> None:
        """One layer with its keys at new positions, straight into a cache.

        Args:
            layer: one of `layers`.
            tables: of the new positions, for models that turn halves (`kernels.rotate_halves`).
            keys, values: [K, N, D] on the device, views of a larger buffer as a rule; written in full.
        """
        for part in self._parts:
            part.place(layer, tables, keys, values)
        self._mark()

    def _empty(self, layers: int) -> Tensor:
        size = (layers, 2, self._shape.num_kv_heads, self.num_tokens, self._shape.head_dim)
        return torch.empty(size, dtype=self._shape.dtype, device=self._device)

    def _read(self, layer: int, out: Tensor) -> None:
        for part in self._parts:
            part.read(layer, out)
        self._mark()

    def _mark(self) -> None:
        """Slots may be written again once a GPU has fetched what it was told to."""
        for slab in self._slabs:
            slab.read = queued(self._device)
