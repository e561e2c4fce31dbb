"""The specification of every kernel, in plain torch: written to be read, not to be quick.

It knows nothing of devices or of what is installed. Shape letters: B blocks, L layers, H query heads, K key/value
heads, N tokens, D head dim, S slots, P rows per slot, R bytes of a row, W words.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from vstream.kernels.layout import Places, RowLayout


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


def rotate_halves(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys [.., K, N, D] turned by tables [1, N, D], channel d with channel d + D / 2, in the tables' type.

    It is what transformers' `apply_rotary_pos_emb` does for all families whose pairs are two halves. Those that pair
    neighbours (interleaved) turn otherwise: ask the model (`Adapter.turns_halves`).
    """
    wide = keys.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    return wide * cos + torch.cat([-second, first], dim=-1) * sin


def unpack_rows(rows: Tensor, owner: Tensor, layout: RowLayout) -> Tensor:
    """Rows of bytes as keys and values.

    Args:
        rows: [L, B * head_rows + N, R] uint8: the heads of all blocks, then all their tokens.
        owner: [N] int64, which of the blocks a token is of.
        layout: of the rows.

    Returns:
        [L, 2, K, N, D] of the layout's type.
    """
    if not layout.bits:
        return own_numbers(rows, layout)
    heads = rows.shape[1] - len(owner)
    return dequantise(rows[:, heads:], bases_of(rows[:, :heads], layout), owner, layout.bits).to(layout.dtype)


def own_numbers(rows: Tensor, layout: RowLayout) -> Tensor:
    """Rows [L, N, R] that hold the model's own numbers as keys and values [L, 2, K, N, D]."""
    own = rows[..., : layout.used_bytes].contiguous().view(layout.dtype)
    return own.view(*rows.shape[:2], 2, layout.num_kv_heads, layout.head_dim).permute(0, 2, 3, 1, 4)


def bases_of(heads: Tensor, layout: RowLayout) -> Tensor:
    """Bases [L, B, K, D] float16 of the heads [L, B * head_rows, R] of B blocks."""
    base_bytes = 2 * layout.num_kv_heads * layout.head_dim
    kept = heads.reshape(len(heads), heads.shape[1] // layout.head_rows, -1)[..., :base_bytes].contiguous()
    return kept.view(torch.float16).view(len(heads), -1, layout.num_kv_heads, layout.head_dim)


def place_rows(
    slab_layer: Tensor,
    places: Places,
    owner: Tensor,
    layout: RowLayout,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
) -> None:
    """Blocks of a slab, placed: gathered, unpacked, their keys turned to new positions, written where they are wanted.

    Keys are rounded to the layout's type before they are turned, as they are when a cache reads them.

    Args:
        slab_layer: [S, P, W] int64, W words a row.
        places: of B * head_rows + N rows: the heads of all blocks, then all their tokens.
        owner: [N] int64, which of the blocks a token is of.
        layout: of the rows.
        tables: cos and sin [1, N, D] of the new positions, for pairs of halves (`rotate_halves`).
        keys, values: [K, N, D] of the layout's type, written in full; they may be views of a larger buffer.
    """
    rows = gather_rows(slab_layer, *places.on(slab_layer.device)).view(torch.uint8)
    kv = unpack_rows(rows[None].to(keys.device), owner, layout)[0]
    keys.copy_(rotate_halves(kv[0], *tables))
    values.copy_(kv[1])


def score_blocks(query: Tensor, representatives: Tensor) -> Tensor:
    """Dot product of each key/value head's query with each block's representative, in float32.

    Args:
        query: [L, K, D].
        representatives: [L, K, B, D].

    Returns:
        [L, K, B] float32.
    """
    return torch.einsum("lkd,lkbd->lkb", query.float(), representatives.float())


def best_match(words: Tensor, representatives: Tensor, centre: Tensor | None, *, cosine: bool) -> Tensor:
    """How well the best of some words matches each block: mean over layers and heads, then the best word's.

    Args:
        words: [L, K, W, D] float32 (one word is a mean query).
        representatives: [L, K, B, D] of any float type, float8 too; read in float32.
        centre: [L, K, 1, D] float32, taken off every representative; None for nothing.
        cosine: products are divided by the length of the representative (less the centre) and of the word.

    Returns:
        [B] float32.
    """
    wide = representatives.float() if centre is None else representatives.float() - centre
    if cosine:
        words = torch.nn.functional.normalize(words, dim=-1)
    products = words @ wide.mT  # [L, K, W, B]
    if cosine:
        products = products / torch.linalg.vector_norm(wide, dim=-1).clamp_min(SHORTEST)[:, :, None]
    return products.mean(dim=(0, 1)).amax(dim=0)


def top_within(scores: Tensor, sizes: Tensor, budget: int, first: Tensor | None = None) -> Tensor:
    """Places of the best that fit a budget together: best first, everything that still fits, ties to the earlier.

    Args:
        scores: [B], higher is better.
        sizes: [B] int64, not negative.
        budget: the sizes of all that are chosen add up to no more.
        first: [B] bool, those that come before all others, whatever they score.

    Returns:
        [C] int64 on the CPU, rising.
    """
    early = torch.zeros(len(scores), dtype=torch.bool) if first is None else first
    order = sorted(range(len(scores)), key=lambda place: (not early[place], -float(scores[place])))  # stable
    chosen = []
    for place in order:
        if int(sizes[place]) <= budget:
            budget -= int(sizes[place])
            chosen.append(place)
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def group_query(query: Tensor, num_kv_heads: int) -> Tensor:
    """Mean query of some tokens, summed over the query heads that share a key/value head.

    Args:
        query: [H, N, D], un-rotated.

    Returns:
        [K, D] float32.
    """
    heads, _, dim = query.shape
    return query.float().mean(dim=1).view(num_kv_heads, heads // num_kv_heads, dim).sum(dim=1)


STRETCH_VECTORS = 1 << 10
SHORTEST = 1e-12
"""A vector's length is never taken for less, so that none is divided by 0."""
LARGEST = 65504.0
"""The largest number of float16, in which scales and minima are kept."""
SMALLEST = 1e-30
"""Instead of a scale of 0, where all numbers of a vector are alike."""


def turn(vectors: Tensor) -> Tensor:
    """Vectors [..., D] turned so that no channel sticks out: a Hadamard transform, which is its own inverse.

    It mixes channels in groups of the largest power of two that divides D. After QuaRot (arXiv 2404.00456). Sums are
    taken in pairs, in one order, and scaled by a product: the bits are the same on every device and for any number of
    vectors, as those of a matrix product would not be.
    """
    stretches = torch.split(vectors.reshape(-1, vectors.shape[-1]), STRETCH_VECTORS)
    return torch.cat([_turn_some(one) for one in stretches]).view(vectors.shape)


def _turn_some(vectors: Tensor) -> Tensor:
    """Vectors [M, D] turned; M is small enough that all stays in a CPU's cache."""
    dim = vectors.shape[1]
    width, half = dim & -dim, (dim & -dim) // 2
    turned = vectors.T.contiguous()  # [D, M]: whole rows are added
    while half:
        pairs = turned.view(width // (2 * half), 2, half * dim // width, -1)
        sums = torch.empty_like(pairs)
        torch.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        turned, half = sums.view(dim, -1), half // 2
    return (turned * (1 / math.sqrt(width))).T


def quantise(kv: Tensor, base: Tensor, bits: int) -> Tensor:
    """Keys and values as rows of bytes, one per layer and token, each with its own scales and minima.

    A row holds 2 * K scales and 2 * K minima, float16, then the codes of 2 * K * D numbers (with 4 bits, a key's in the
    low half of a byte and a value's in the high half). Each vector is turned first; a turned number is
    `code * scale + minimum`. Every step is one rounding of IEEE arithmetic in an order that is said: what is stored is
    checksummed, so another version of this must give the same bytes.

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
    scale = ((high - low) * (1 / levels)).clamp_min(0).half()
    codes = ((turned - low[..., None]) / scale.float().clamp_min(SMALLEST)[..., None]).round_().clamp_(0, levels)
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
    kv = (flat.float().view(layers, tokens, 2, heads, dim) @ signs(dim, rows.device)) * (scale * (1 / math.sqrt(width)))
    kv[..., : dim // width] += low * math.sqrt(width)  # a constant, turned, is all in the first channel of each group
    kv[:, :, 0] += bases.index_select(1, owner).float()
    return kv.permute(0, 2, 3, 1, 4)


@cache
def signs(dim: int, device: torch.device) -> Tensor:
    """What `turn` multiplies by, but for its scale: [D, D] float32 of 1, 0 and -1."""
    width = dim & -dim
    with torch.inference_mode(False):
        pair, found = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.ones(1, 1)
        while len(found) < width:
            found = torch.kron(pair, found)
        return torch.kron(found, torch.eye(dim // width)).to(device)
