"""The memory's kernels in vectorised torch: the same results as `reference.py`, in fewer passes over memory.

First class on a CPU, where each way was chosen by measurement (`scripts/bench_kernels_memory.py`); on another device it
is what runs where Triton is not installed. This module knows nothing of slabs' owners, models or streams.

What decides on a CPU: a temporary that leaves the cache is paid for twice, and copies of permuted 16-bit tensors cost
more than the arithmetic. So all is done a stretch of tokens at a time, straight into its place. The bits are those of
the reference: each number is made by the same roundings in the same order.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from vstream.kernels.layout import Places, RowLayout
from vstream.kernels.reference import SHORTEST, bases_of, own_numbers, quantise, signs

__all__ = [
    "best_match",
    "dequantise",
    "gather_rows",
    "place_rows",
    "quantise",
    "rotate_into",
    "top_within",
    "unpack_rows",
]

STRETCH_NUMBERS = 1 << 18
"""Numbers worked on together: 1 MB as float32, about what a core's own cache holds."""


def gather_rows(slab_layer: Tensor, slots: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.gather_rows`: `index_select` where rows lie one after the other, which advanced indexing is not.

    In `scripts/bench_kernels_memory.py` that is 1.1 to 3.1 times as fast.
    """
    num_slots, per_slot, words = slab_layer.shape
    if slab_layer.is_contiguous():
        return slab_layer.view(num_slots * per_slot, words).index_select(0, slots * per_slot + offsets)
    return slab_layer[slots, offsets]


def rotate_into(keys: Tensor, tables: tuple[Tensor, Tensor], out: Tensor) -> None:
    """`reference.rotate_halves`, written to `out` in its type.

    Args:
        keys: [.., K, N, D], not overlapping `out`.
        tables: cos and sin [1, N, D].
        out: [.., K, N, D].
    """
    cos, sin = tables
    for part in _stretches(keys.shape[-2], keys.numel() // max(1, keys.shape[-2])):
        _rotate(keys[..., part, :], cos[:, part], sin[:, part], out[..., part, :])


def _rotate(keys: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    wide, half = keys.to(cos.dtype), keys.shape[-1] // 2
    turned = wide * cos
    turned[..., :half].sub_(wide[..., half:] * sin[..., :half])
    turned[..., half:].add_(wide[..., :half] * sin[..., half:])
    out.copy_(turned)


def place_rows(
    slab_layer: Tensor,
    places: Places,
    owner: Tensor,
    layout: RowLayout,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
) -> None:
    """See `reference.place_rows`; a stretch of tokens at a time."""
    slots, offsets = places.on(slab_layer.device)
    heads = len(places) - len(owner)
    shared = gather_rows(slab_layer, slots[:heads], offsets[:heads])  # the heads of all blocks
    for part in _stretches(len(owner), layout.numbers):
        found = gather_rows(slab_layer, slots[heads:][part], offsets[heads:][part])
        rows = (torch.cat([shared, found]) if heads else found).view(torch.uint8).to(keys.device)
        kv = unpack_rows(rows[None], owner[part], layout)[0]  # [2, K, n, D]
        _rotate(kv[0], tables[0][:, part], tables[1][:, part], keys[:, part])
        values[:, part].copy_(kv[1])


def unpack_rows(rows: Tensor, owner: Tensor, layout: RowLayout) -> Tensor:
    """See `reference.unpack_rows`."""
    if not layout.bits:
        return own_numbers(rows, layout)
    heads = rows.shape[1] - len(owner)
    return dequantise(rows[:, heads:], bases_of(rows[:, :heads], layout), owner, layout.bits).to(layout.dtype)


def dequantise(rows: Tensor, bases: Tensor, owner: Tensor, bits: int) -> Tensor:
    """See `reference.dequantise`: codes are turned as int8, on a CPU faster than in float32, and as exact."""
    layers, tokens, _ = rows.shape
    heads, dim = bases.shape[2:]
    width = dim & -dim
    numbers, codes = rows[..., : 8 * heads].contiguous(), rows[..., 8 * heads : 8 * heads + 2 * heads * dim * bits // 8]
    scale, low = numbers.view(torch.float16).float().view(layers, tokens, 2, 2, heads, 1).unbind(2)  # [L, N, 2, K, 1]
    kv = _turned(codes, dim, bits).view(layers, tokens, 2, heads, dim).mul_(scale * (1 / math.sqrt(width)))
    kv[..., : dim // width] += low * math.sqrt(width)
    kv[:, :, 0] += bases.index_select(1, owner).float()
    return kv.permute(0, 2, 3, 1, 4)


def _turned(codes: Tensor, dim: int, bits: int) -> Tensor:
    """Codes [L, N, C] uint8 as turned whole numbers, float32; with 8 bits 128 less until they are turned."""
    apart = torch.cat([codes & 15, codes >> 4], dim=2) if bits == 4 else codes ^ 128
    if codes.device.type != "cpu":
        whole = apart.view(torch.int8).float().view(-1, dim) @ signs(dim, codes.device)
    else:
        whole = torch._int_mm(apart.view(torch.int8).view(-1, dim), _int_signs(dim))
    if bits == 8:
        whole[:, : dim // (dim & -dim)] += 128 * (dim & -dim)  # what was taken off, turned
    return whole.float()


@cache
def _int_signs(dim: int) -> Tensor:
    with torch.inference_mode(False):
        return signs(dim, torch.device("cpu")).to(torch.int8)


def best_match(words: Tensor, representatives: Tensor, centre: Tensor | None, *, cosine: bool) -> Tensor:
    """See `reference.best_match`: a stretch of blocks at a time, in one float32 copy that is changed in place."""
    asked = torch.nn.functional.normalize(words, dim=-1) if cosine else words
    blocks = representatives.shape[2]
    stretches = _stretches(blocks, representatives.numel() // max(1, blocks))
    found = [_best(asked, representatives[:, :, part], centre, cosine) for part in stretches]
    return torch.cat(found) if found else words.new_zeros(0)


def _best(words: Tensor, representatives: Tensor, centre: Tensor | None, cosine: bool) -> Tensor:
    wide = representatives.to(torch.float32, copy=centre is not None)
    if centre is not None:
        wide.sub_(centre)
    products = words @ wide.mT  # [L, K, W, B]
    if cosine:
        products.div_(torch.linalg.vector_norm(wide, dim=-1).clamp_min_(SHORTEST)[:, :, None])
    return products.mean(dim=(0, 1)).amax(dim=0)


def top_within(scores: Tensor, sizes: Tensor, budget: int, first: Tensor | None = None) -> Tensor:
    """See `reference.top_within`: the best that fit in a row at once, the rest one by one, on the CPU."""
    order = scores.cpu().argsort(descending=True, stable=True)
    if first is not None:
        order = order[(~first)[order].argsort(stable=True)]
    ranked = sizes[order]
    count = int((ranked.cumsum(0) <= budget).sum())
    chosen, left, budget = order[:count], ranked[count:].tolist(), budget - int(ranked[:count].sum())
    more, smallest = list[int](), min(left, default=0)
    for place, size in enumerate(left, count):
        if budget < smallest:
            break
        if size <= budget:
            budget -= size
            more.append(place)
    return torch.cat([chosen, order[more]]).sort().values


def _stretches(tokens: int, numbers: int) -> list[slice]:
    """Tokens or blocks, few enough at a time that what is made of them, so many numbers each, stays in a cache."""
    step = max(16, STRETCH_NUMBERS // max(1, numbers))
    return [slice(start, start + step) for start in range(0, tokens, step)]
