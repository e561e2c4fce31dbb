"""The specification of every kernel, in plain torch.

Shape letters: B blocks, L layers, H query heads, K key/value heads, N tokens, D head dim, S slots, P tokens per slot.
"""

from __future__ import annotations

import torch
from torch import Tensor


def invert_rotary(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Tables that undo a rotation by `(cos, sin)`, scaled tables (yarn) included.

    A rotary pair is multiplied by the matrix [[c, -s], [s, c]]; its inverse is [[c, s], [-s, c]] / (c^2 + s^2).
    Dividing by the measured norm makes the inverse exact although the tables are rounded to float32, and takes the
    model's `attention_scaling` out again.

    Args:
        cos, sin: [1, N, D].
    """
    norm = cos * cos + sin * sin
    return cos / norm, -sin / norm


def gather_tokens(slab_layer: Tensor, slots: Tensor, offsets: Tensor) -> Tensor:
    """Tokens of one layer of a slab, in the order given, in one indexing operation.

    Args:
        slab_layer: [S, 2, K, P, D].
        slots, offsets: [N] int64, which slot and which place in it.

    Returns:
        [2, K, N, D].
    """
    return slab_layer.permute(1, 2, 0, 3, 4)[:, :, slots, offsets]


def score_blocks(query: Tensor, representatives: Tensor) -> Tensor:
    """Dot product of each key/value head's query with each block's representative, in float32.

    Args:
        query: [L, K, D].
        representatives: [L, K, B, D].

    Returns:
        [L, K, B] float32.
    """
    return torch.einsum("lkd,lkbd->lkb", query.float(), representatives.float())


def group_query(query: Tensor, num_kv_heads: int) -> Tensor:
    """Mean query of some tokens, summed over the query heads that share a key/value head.

    Args:
        query: [H, N, D], un-rotated.

    Returns:
        [K, D] float32.
    """
    heads, _, dim = query.shape
    return query.float().mean(dim=1).view(num_kv_heads, heads // num_kv_heads, dim).sum(dim=1)
