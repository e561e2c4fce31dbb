# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: ANN001, ANN202
"""The memory's kernels in Triton, for CUDA devices; `reference.py` says what each does, in the same names.

Blocks are read where they lie, in the device's memory or, through its address, in pinned host memory: the GPU fetches
scattered rows itself, as PyTorch-Direct does (arXiv 2101.07956). Long runs of neighbouring rows are copied instead.
Keys are unpacked, turned and written by one kernel: KIVI's (arXiv 2402.02750) low bits, QuaRot's (arXiv 2404.00456)
transform, whose whole numbers tensor cores add up exactly.

Every kernel is built without fused multiply-adds, so that each step is the rounding the specification has: what is
stored by a GPU has the bytes that a CPU would store. This module knows nothing of who asks, and is imported only where
Triton is installed and a CUDA device computes (or Triton's interpreter stands in for one).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vstream.kernels import torch_memory
from vstream.kernels.layout import Places, RowLayout
from vstream.kernels.reference import LARGEST, SHORTEST, SMALLEST, bases_of, signs
from vstream.kernels.torch_memory import dequantise, rotate_into, unpack_rows

__all__ = ["best_match", "dequantise", "gather_rows", "place_rows", "quantise", "rotate_into", "unpack_rows"]

DIRECT_BYTES = 64 << 10
"""Runs of fewer bytes the GPU reads from pinned memory itself; longer ones are worth a copy each."""
TILE_TOKENS, TILE_PACKED, TILE_BLOCKS, TILE_CHANNELS, TILE_WORDS = 16, 16, 32, 32, 128
EXACT: dict[str, Any] = {"enable_fp_fusion": False}


# Gathering ------------------------------------------------------------------------------------------------------------


def gather_rows(slab_layer: Tensor, slots: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.gather_rows`; slots and offsets are where the rows are wanted, the slab there or pinned."""
    out = torch.empty(len(slots), slab_layer.shape[2], dtype=slab_layer.dtype, device=slots.device)
    if out.numel():
        grid = len(slots), triton.cdiv(slab_layer.shape[2], TILE_WORDS)
        gather_kernel[grid](
            slab_layer, slots, offsets, out, slab_layer.stride(0), slab_layer.stride(1), slab_layer.shape[2],
            TILE=TILE_WORDS,
        )  # fmt: skip
    return out


@triton.jit
def gather_kernel(slab, slots, offsets, out, slot_words, row_words, words, TILE: tl.constexpr):
    """Program (n, t): a tile of row n."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    start = tl.load(slots + row) * slot_words + tl.load(offsets + row) * row_words
    tl.store(out + row * words + at, tl.load(slab + start + at, mask=at < words), mask=at < words)


def near(slab_layer: Tensor, places: Places, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A slab that a kernel on the device can read, and where the rows are in it: slots and offsets.

    It is the slab itself where it lies there, or is pinned and the runs are short; else a copy of what is wanted.
    """
    if slab_layer.device == device:
        return slab_layer, *places.on(device)
    row_bytes = slab_layer.shape[2] * slab_layer.element_size()
    runs = places.runs(slab_layer.shape[1])
    if slab_layer.is_pinned() and len(places) * row_bytes < len(runs) * DIRECT_BYTES:
        return slab_layer, *places.on(device)
    rows = copied(slab_layer, places, device) if slab_layer.is_pinned() and slab_layer.is_contiguous() else (
        torch_memory.gather_rows(slab_layer, *places.on(slab_layer.device)).to(device))  # fmt: skip
    index = torch.arange(len(places), device=device)
    return rows[:, None], index, torch.zeros_like(index)


def copied(slab_layer: Tensor, places: Places, device: torch.device) -> Tensor:
    """Rows [M, W] by one copy for each run of neighbours, queued on the current stream."""
    flat = slab_layer.view(-1, slab_layer.shape[2])
    rows = torch.empty(len(places), flat.shape[1], dtype=flat.dtype, device=device)
    at = 0
    for start, count in places.runs(slab_layer.shape[1]):
        rows[at : at + count].copy_(flat[start : start + count], non_blocking=True)
        at += count
    return rows


# Placing --------------------------------------------------------------------------------------------------------------


def place_rows(
    slab_layer: Tensor,
    places: Places,
    owner: Tensor,
    layout: RowLayout,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
) -> None:
    """See `reference.place_rows`: one pass. In float64 torch does it."""
    if tables[0].dtype == torch.float64:
        torch_memory.place_rows(slab_layer, places, owner, layout, tables, keys, values)
        return
    tokens, dim = len(owner), layout.head_dim
    if not tokens:
        return
    slab, slots, offsets = near(slab_layer, places, keys.device)
    heads = len(places) - tokens
    bases = (
        bases_of(gather_rows(slab, slots[:heads], offsets[:heads]).view(torch.uint8)[None], layout)[0]
        if heads
        else keys
    )
    cos, sin = (table[0].contiguous() for table in tables)
    place_kernel[triton.cdiv(tokens, TILE_TOKENS), layout.num_kv_heads](
        slab, slots[heads:], offsets[heads:], owner, bases, half_signs(dim, keys.device), cos, sin, keys, values,
        tokens, 8 * slab.stride(0), 8 * slab.stride(1), *keys.stride()[:2], *values.stride()[:2],
        HEADS=layout.num_kv_heads, DIM=dim, WIDTH=dim & -dim, BITS=layout.bits, TILE=TILE_TOKENS,
        WIDE=max(16, triton.next_power_of_2(dim)), HALF=max(16, triton.next_power_of_2(dim // 2)),
        ROOT=math.sqrt(dim & -dim), SHRINK=1 / math.sqrt(dim & -dim), **EXACT,
    )  # fmt: skip


@cache
def half_signs(dim: int, device: torch.device) -> Tensor:
    """`reference.signs` in float16, exact: [D, D]."""
    with torch.inference_mode(False):
        return signs(dim, device).half().contiguous()


@triton.jit
def place_kernel(
    slab, slots, offsets, owner, bases, signs, cos, sin, keys, values, tokens, slot_bytes, row_bytes,
    key_head, key_row, value_head, value_row, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BITS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr, ROOT: tl.constexpr,
    SHRINK: tl.constexpr,
):  # fmt: skip
    """Program (t, k): head k of a tile of tokens, in two halves of its channels, [TILE, HALF] each."""
    token = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    head = tl.program_id(1)
    there = token < tokens
    row = (
        tl.load(slots + token, mask=there, other=0) * slot_bytes
        + tl.load(offsets + token, mask=there, other=0) * row_bytes
    )
    at = tl.arange(0, HALF)
    known = there[:, None] & (at < DIM // 2)[None, :]
    kind = keys.dtype.element_ty
    if BITS == 0:
        start = (slab.to(tl.pointer_type(tl.uint8)) + row).to(tl.pointer_type(kind))[:, None] + at[None, :]
        key = start + head * DIM
        value = start + (HEADS + head) * DIM
        key1 = tl.load(key, mask=known, other=0)
        key2 = tl.load(key + DIM // 2, mask=known, other=0)
        value1 = tl.load(value, mask=known, other=0)
        value2 = tl.load(value + DIM // 2, mask=known, other=0)
    else:
        bytes_ = slab.to(tl.pointer_type(tl.uint8)) + row
        numbers = bytes_.to(tl.pointer_type(tl.float16))
        wide = tl.arange(0, WIDE)
        codes = bytes_[:, None] + (8 * HEADS + head * DIM) + wide[None, :]
        all_known = there[:, None] & (wide < DIM)[None, :]
        if BITS == 4:
            both = tl.load(codes, mask=all_known, other=0)
            key_codes = both & 15
            value_codes = both >> 4
        else:
            key_codes = tl.load(codes, mask=all_known, other=0)
            value_codes = tl.load(codes + HEADS * DIM, mask=all_known, other=0)
        turn = signs + wide[:, None] * DIM + at[None, :]
        inside = (wide < DIM)[:, None] & (at < DIM // 2)[None, :]
        first = tl.load(turn, mask=inside, other=0)
        second = tl.load(turn + DIM // 2, mask=inside, other=0)
        group = (at < DIM // WIDTH)[None, :]
        key_scale = tl.load(numbers + head, mask=there, other=0).to(tl.float32) * SHRINK
        value_scale = tl.load(numbers + HEADS + head, mask=there, other=0).to(tl.float32) * SHRINK
        key_low = tl.load(numbers + 2 * HEADS + head, mask=there, other=0).to(tl.float32) * ROOT
        value_low = tl.load(numbers + 3 * HEADS + head, mask=there, other=0).to(tl.float32) * ROOT
        block = tl.load(owner + token, mask=there, other=0)
        base = bases + (block[:, None] * HEADS + head) * DIM + at[None, :]
        full1 = tl.dot(key_codes.to(tl.float16), first) * key_scale[:, None] + tl.where(group, key_low[:, None], 0.0)
        full2 = tl.dot(key_codes.to(tl.float16), second) * key_scale[:, None]
        key1 = (full1 + tl.load(base, mask=known, other=0).to(tl.float32)).to(kind)
        key2 = (full2 + tl.load(base + DIM // 2, mask=known, other=0).to(tl.float32)).to(kind)
        whole = tl.dot(value_codes.to(tl.float16), first) * value_scale[:, None]
        value1 = (whole + tl.where(group, value_low[:, None], 0.0)).to(kind)
        value2 = (tl.dot(value_codes.to(tl.float16), second) * value_scale[:, None]).to(kind)
    table = token[:, None] * DIM + at[None, :]
    x, y = key1.to(tl.float32), key2.to(tl.float32)
    cos1 = tl.load(cos + table, mask=known, other=0)
    sin1 = tl.load(sin + table, mask=known, other=0)
    cos2 = tl.load(cos + table + DIM // 2, mask=known, other=0)
    sin2 = tl.load(sin + table + DIM // 2, mask=known, other=0)
    into = keys + head * key_head + token[:, None] * key_row + at[None, :]
    tl.store(into, (x * cos1 - y * sin1).to(kind), mask=known)
    tl.store(into + DIM // 2, (y * cos2 + x * sin2).to(kind), mask=known)
    into = values + head * value_head + token[:, None] * value_row + at[None, :]
    tl.store(into, value1, mask=known)
    tl.store(into + DIM // 2, value2, mask=known)


# Scoring --------------------------------------------------------------------------------------------------------------


def best_match(words: Tensor, representatives: Tensor, centre: Tensor | None, *, cosine: bool) -> Tensor:
    """See `reference.best_match`: every representative is read once, and only [B] is written."""
    layers, heads, blocks, dim = representatives.shape
    out = torch.empty(blocks, device=words.device)
    if not blocks:
        return out
    asked = (torch.nn.functional.normalize(words, dim=-1) if cosine else words).contiguous()
    low = representatives.dtype == torch.float8_e4m3fn
    kept = representatives.view(torch.uint8) if low else representatives
    off = asked.new_zeros(layers, heads, dim) if centre is None else centre[:, :, 0].contiguous()
    tile_words = max(16, triton.next_power_of_2(asked.shape[2]))
    match_kernel[(triton.cdiv(blocks, TILE_BLOCKS),)](
        asked, kept, off, out, blocks, asked.shape[2], *kept.stride()[:3], LAYERS=layers, HEADS=heads, DIM=dim,
        WORDS=tile_words, TILE=TILE_BLOCKS, CHANNELS=min(TILE_CHANNELS, max(16, 1024 // tile_words)), COSINE=cosine,
        FLOAT8=low, SHORT=SHORTEST,
    )  # fmt: skip
    return out


@triton.jit
def match_kernel(
    words, kept, centre, out, blocks, num_words, layer_stride, head_stride, block_stride, LAYERS: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
    COSINE: tl.constexpr, FLOAT8: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Program t: a tile of blocks against all words, [WORDS, TILE], over all layers and heads."""
    block = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    word = tl.arange(0, WORDS)
    total = tl.zeros((WORDS, TILE), dtype=tl.float32)
    for pair in range(LAYERS * HEADS):
        start = kept + (pair // HEADS) * layer_stride + (pair % HEADS) * head_stride
        products = tl.zeros((WORDS, TILE), dtype=tl.float32)
        squares = tl.zeros((TILE,), dtype=tl.float32)
        for first in range(0, DIM, CHANNELS):
            at = first + tl.arange(0, CHANNELS)
            known = (block < blocks)[:, None] & (at < DIM)[None, :]
            said = (word < num_words)[:, None] & (at < DIM)[None, :]
            found = tl.load(start + block[:, None] * block_stride + at[None, :], mask=known, other=0)
            if FLOAT8:  # e4m3, moved up to float32's exponent: no architecture need know it
                whole = found.to(tl.int32)
                key = (((whole & 128) << 24) | ((whole & 127) << 20)).to(
                    tl.float32, bitcast=True
                ) * 1.329227995784916e36
            else:
                key = found.to(tl.float32)
            middle = tl.load(centre + pair * DIM + at, mask=at < DIM, other=0)
            key = tl.where(known, key - middle[None, :], 0.0)
            asked = tl.load(words + (pair * num_words + word)[:, None] * DIM + at[None, :], mask=said, other=0)
            products += tl.dot(asked, tl.trans(key), input_precision="ieee")
            squares += tl.sum(key * key, axis=1)
        if COSINE:
            products = products / tl.maximum(tl.sqrt(squares), SHORT)[None, :]
        total += products
    best = tl.max(tl.where((word < num_words)[:, None], total / (LAYERS * HEADS), float("-inf")), axis=0)
    tl.store(out + block, best, mask=block < blocks)


# Packing --------------------------------------------------------------------------------------------------------------


def quantise(kv: Tensor, base: Tensor, bits: int) -> Tensor:
    """See `reference.quantise`: the same bytes, since sums are taken in the same pairs and nothing is fused."""
    layers, _, heads, tokens, dim = kv.shape
    rows = torch.empty(layers, tokens, 2 * heads * dim * bits // 8 + 8 * heads, dtype=torch.uint8, device=kv.device)
    if rows.numel():
        width = dim & -dim
        pack_kernel[(triton.cdiv(tokens, TILE_PACKED), heads, layers)](
            kv, base.contiguous(), rows, tokens, *kv.stride()[:4], HEADS=heads, DIM=dim, WIDTH=width,
            GROUP=triton.next_power_of_2(dim // width), BITS=bits, TILE=TILE_PACKED, SHRINK=1 / math.sqrt(width),
            LEVELS=2**bits - 1, STEP=1 / (2**bits - 1), MOST=LARGEST, LEAST=SMALLEST, **EXACT,
        )  # fmt: skip
    return rows


@triton.jit
def turned(vectors, TILE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, SHRINK: tl.constexpr):
    """`reference.turn` of [TILE, WIDTH, GROUP]: WIDTH channels are mixed, GROUP of them apart."""
    half: tl.constexpr = WIDTH // 2
    if half > 0:
        vectors = folded(vectors, TILE, WIDTH, GROUP, half)
    return vectors * SHRINK


@triton.jit
def folded(vectors, TILE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr):
    """Sums and differences of channels HALF apart, then HALF / 2, down to neighbours."""
    pairs = tl.reshape(vectors, (TILE, WIDTH // (2 * HALF), 2, HALF * GROUP))
    one, other = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.permute(tl.join(one + other, one - other), (0, 1, 3, 2))
    vectors = tl.reshape(pairs, (TILE, WIDTH, GROUP))
    if HALF > 1:
        vectors = folded(vectors, TILE, WIDTH, GROUP, HALF // 2)
    return vectors


@triton.jit
def coded(vectors, known, LEVELS: tl.constexpr, STEP: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr):
    """Codes, scale and minimum of turned vectors."""
    vectors = tl.minimum(tl.maximum(vectors, -MOST), MOST)
    low = tl.min(tl.min(tl.where(known, vectors, float("inf")), axis=2), axis=1).to(tl.float16)
    high = tl.max(tl.max(tl.where(known, vectors, float("-inf")), axis=2), axis=1)
    scale = tl.maximum((high - low.to(tl.float32)) * STEP, 0.0).to(tl.float16)
    steps = tl.maximum(scale.to(tl.float32), LEAST)[:, None, None] + tl.zeros_like(vectors)
    codes = tl.div_rn(vectors - low.to(tl.float32)[:, None, None], steps)
    codes = tl.minimum(tl.maximum(codes, 0.0), LEVELS)
    return ((codes + 12582912.0) - 12582912.0).to(tl.uint8), scale, low  # to the nearest, halves to the even


@triton.jit
def pack_kernel(
    kv, base, rows, tokens, layer_stride, kind_stride, head_stride, token_stride, HEADS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr,
    SHRINK: tl.constexpr, LEVELS: tl.constexpr, STEP: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Program (t, k, l): head k of a tile of tokens of a layer, keys and values, [TILE, WIDTH, GROUP] each."""
    token = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    head, layer = tl.program_id(1), tl.program_id(2).to(tl.int64)
    among = tl.arange(0, GROUP)
    channel = tl.arange(0, WIDTH)[:, None] * (DIM // WIDTH) + among[None, :]  # [WIDTH, GROUP]
    real = (among < DIM // WIDTH)[None, :] & (channel >= 0)
    there = token < tokens
    known = there[:, None, None] & real[None, :, :]
    start = kv + layer * layer_stride + head * head_stride + token[:, None, None] * token_stride + channel[None, :, :]
    offset = tl.load(base + (layer * HEADS + head) * DIM + channel, mask=real, other=0).to(tl.float32)
    keys = turned(tl.load(start, mask=known, other=0) - offset[None, :, :], TILE, WIDTH, GROUP, SHRINK)
    values = turned(tl.load(start + kind_stride, mask=known, other=0), TILE, WIDTH, GROUP, SHRINK)
    key_codes, key_scale, key_low = coded(keys, known, LEVELS, STEP, MOST, LEAST)
    value_codes, value_scale, value_low = coded(values, known, LEVELS, STEP, MOST, LEAST)
    row = rows + (layer * tokens + token) * (2 * HEADS * DIM * BITS // 8 + 8 * HEADS)
    numbers = row.to(tl.pointer_type(tl.float16)) + head
    tl.store(numbers, key_scale, mask=there)
    tl.store(numbers + HEADS, value_scale, mask=there)
    tl.store(numbers + 2 * HEADS, key_low, mask=there)
    tl.store(numbers + 3 * HEADS, value_low, mask=there)
    codes = row[:, None, None] + (8 * HEADS + head * DIM) + channel[None, :, :]
    if BITS == 4:
        tl.store(codes, key_codes | (value_codes << 4), mask=known)
    else:
        tl.store(codes, key_codes, mask=known)
        tl.store(codes + HEADS * DIM, value_codes, mask=known)
