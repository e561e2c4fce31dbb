"""The specification of every kernel, in plain torch.

Shape letters: B blocks, L layers, H query heads, K key/value heads, N tokens, D head dim, S slots, P rows per slot,
R bytes of a row.
"""

from __future__ import annotations

import math
from functools import cache

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


def gather_rows(slab_layer: Tensor, slots: Tensor, offsets: Tensor) -> Tensor:
    """Rows of one layer of a slab, in the order given, in one indexing operation.

    Args:
        slab_layer: [S, P, W], W words a row.
        slots, offsets: [N] int64, which slot and which place in it.

    Returns:
        [N, W].
    """
    return slab_layer[slots, offsets]


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


LARGEST = 65504.0
"""The largest number of float16, in which scales and minima are kept."""
_SMALLEST = 1e-30  # instead of a scale of 0, where all numbers of a vector are alike


def turn(vectors: Tensor) -> Tensor:
    """Vectors [..., D] turned so that no channel sticks out: a Hadamard transform, which is its own inverse.

    It mixes channels in groups of the largest power of two that divides D. After QuaRot (arXiv 2404.00456).
    """
    dim = vectors.shape[-1]
    return vectors @ _signs(dim, vectors.device).to(vectors.dtype) / math.sqrt(dim & -dim)


def quantise(kv: Tensor, base: Tensor, bits: int) -> Tensor:
    """Keys and values as rows of bytes, one per layer and token, each with its own scales and minima.

    A row holds 2 * K scales and 2 * K minima, float16, then the codes of 2 * K * D numbers (with 4 bits, a key's in the
    low half of a byte and a value's in the high half). Each vector is turned first; a turned number is
    `code * scale + minimum`.

    Args:
        kv: [L, 2, K, N, D] float32, finite and within float16's range.
        base: [L, K, D] float16, what keys are counted from.
        bits: 8 or 4.

    Returns:
        [L, N, R] uint8, R = 2 * K * D * bits / 8 + 8 * K.
    """
    levels = 2**bits - 1
    offset = torch.stack([base.float(), torch.zeros_like(base, dtype=torch.float32)], dim=1)
    turned = turn(kv - offset[:, :, :, None]).clamp_(-LARGEST, LARGEST)  # [L, 2, K, N, D]
    low, high = (part.float() for part in (turned.amin(-1).half(), turned.amax(-1)))
    scale = ((high - low) / levels).clamp_min(0).half()
    codes = ((turned - low[..., None]) / scale.float().clamp_min(_SMALLEST)[..., None]).round_().clamp_(0, levels)
    flat = codes.to(torch.uint8).permute(0, 3, 1, 2, 4).flatten(2)  # [L, N, 2 * K * D]
    if bits == 4:
        keys, values = flat.chunk(2, dim=2)
        flat = keys | values << 4
    numbers = torch.stack([scale, low.half()], dim=1).permute(0, 4, 1, 2, 3).flatten(2)  # [L, N, 4 * K]
    return torch.cat([numbers.contiguous().view(torch.uint8), flat], dim=2)


def dequantise(rows: Tensor, bases: Tensor, owner: Tensor, bits: int) -> Tensor:
    """The reverse of `quantise`, for tokens of several blocks.

    The codes are turned as whole numbers below 2**24, which is exact in whatever order they are added up. So a token's
    bits do not depend on which others are read with it.

    Args:
        rows: [L, N, R] uint8.
        bases: [L, B, K, D] float16, each block's.
        owner: [N] int64, which block a token is of.
        bits: 8 or 4.

    Returns:
        [L, 2, K, N, D] float32.
    """
    layers, tokens, _ = rows.shape
    heads, dim = bases.shape[2:]
    code_bytes, width = 2 * heads * dim * bits // 8, dim & -dim
    numbers, flat = rows[..., : 8 * heads].contiguous(), rows[..., 8 * heads : 8 * heads + code_bytes]
    if bits == 4:
        flat = torch.cat([flat & 15, flat >> 4], dim=2)
    scale, low = numbers.view(torch.float16).float().view(layers, tokens, 2, 2, heads, 1).unbind(2)  # [L, N, 2, K, 1]
    kv = (flat.float().view(layers, tokens, 2, heads, dim) @ _signs(dim, rows.device)) * (scale / math.sqrt(width))
    kv[..., : dim // width] += low * math.sqrt(width)  # a constant, turned, is all in the first channel of each group
    kv[:, :, 0] += bases.index_select(1, owner).float()
    return kv.permute(0, 2, 3, 1, 4)


@cache
def _signs(dim: int, device: torch.device) -> Tensor:
    """What `turn` multiplies by, but for its scale: [D, D] float32 of 1, 0 and -1."""
    width = dim & -dim
    with torch.inference_mode(False):
        pair, signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.ones(1, 1)
        while len(signs) < width:
            signs = torch.kron(pair, signs)
        return torch.kron(signs, torch.eye(dim // width)).to(device)
