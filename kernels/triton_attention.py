# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: ANN001, ANN201
"""Attention over parts in Triton, for CUDA devices; `attention.py` says what it does.

A row's parts are one virtual sequence, of which every program takes an even share, whatever parts that crosses
(FlashDecoding's split-K; the running softmax is FlashAttention-2's, arXiv 2307.08691); a second kernel merges. Where
the parts lie, and how long they are, is read from tables on the device. So one launch covers all parts of all rows,
empty ones cost nothing, and its grid never changes: in a CUDA graph lengths may grow between replays
(`Placed.lengths`). A launch for each part would fix each part's share of the programs when the graph is captured.
Whole numbers are read by a launch of their own, so that neither kernel holds the other's registers.

Tiles are fixed by head dim, not tuned: 128 tokens of 64 channels, 64 of 128, are 16 KB of keys and as much of values
in 16 bits, so that three stages fit an SM's shared memory twice. This module knows nothing of who asks, and is imported
only where Triton is installed and a CUDA device computes (or Triton's interpreter stands in for one).

Shape letters: R rows, H query heads, K key/value heads, G = H / K, D head dim, Q parts of the longest row, T splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vstream.kernels.parts import Dense, Paged, Part, Quantised, check
from vstream.kernels.reference import turn

FIELDS = tl.constexpr(10)
LOWEST = tl.constexpr(-1e30)  # of no score: not -inf, since what is scaled by the difference of two would be NaN
ALIGNED_BYTES = 16  # of pointers and strides, so that loads are vectors
_UNPAGED = 1 << 30  # the tokens of a slot, where there are no slots: all are in the first, whose place counts nothing
_LOG2_E = math.log2(math.e)
_MOST_SPLITS = 64


class Placed:
    """Where the parts of some rows lie, on the device: made once, of use as long as their buffers stay where they are.

    Attributes:
        lengths: [R, Q] int32 on the device, tokens of the parts that are not quantised, in their order; may be changed
            in place, within the buffers.
    """

    def __init__(self, query: Tensor, rows: Sequence[Sequence[Part]], *, splits: int | None = None) -> None:
        """For queries of the type, device and shape [R, H, D] of one; with `splits` programs a head and row, if given.

        Raises:
            ValueError: for keys or values of another type, or with channels that are not side by side.
        """
        check(query, rows)
        self._rows = [list(row) for row in rows]  # keeps what the tables point at
        heads = next(part for part in self._rows[0] if len(part))
        self._num_kv_heads = len(heads.base) if isinstance(heads, Quantised) else _num_heads(heads)
        self._splits = splits or _num_splits(query.device, len(rows) * self._num_kv_heads)
        plain = [[part for part in row if not isinstance(part, Quantised)] for row in self._rows]
        codes = {bits: [_of_bits(row, bits) for row in self._rows] for bits in (8, 4)}
        self._plain, self.lengths = _tables(plain, query)
        self._codes = {bits: _tables(found, query) for bits, found in codes.items() if any(found)}
        self._has_plain = any(plain)
        self._paged = any(isinstance(part, Paged) for row in plain for part in row)
        self._aligned = all(_is_aligned(part) for row in self._rows for part in row if len(part))
        self._launches = int(self._has_plain) + len(self._codes)
        size = (*query.shape[:2], self._launches * self._splits)
        self._outs = torch.empty(*size, query.shape[2], dtype=torch.float32, device=query.device)
        self._sums = torch.empty(size, dtype=torch.float32, device=query.device)

    def attend(self, query: Tensor, scale: float | None = None) -> Tensor:
        """See `attend_reference`, for a query [R, H, D] of the same shape: no host sync, always the same launches."""
        scale = (1 / math.sqrt(query.shape[2]) if scale is None else scale) * _LOG2_E
        query, launch = query.contiguous(), 0
        if self._has_plain:
            self._launch(plain_kernel, query, self._plain, self.lengths, scale, launch, {"PAGED": self._paged})
            launch += 1
        turned = turn(query) if self._codes else query
        for bits, (table, lengths) in self._codes.items():
            self._launch(codes_kernel, turned, table, lengths, scale, launch, {"BITS": bits})
            launch += 1
        return self._merged(query)

    def _launch(
        self,
        kernel: Any,
        query: Tensor,
        table: Tensor,
        lengths: Tensor,
        scale: float,
        launch: int,
        more: dict[str, int],
    ) -> None:
        rows, heads, dim = query.shape
        tokens, warps, stages = _tiles(dim, query.dtype)
        kernel[(self._splits, self._num_kv_heads, rows)](
            query, table, lengths, self._outs, self._sums, scale, launch * self._splits, self._outs.shape[2],
            PARTS=lengths.shape[1], GROUP=heads // self._num_kv_heads, ROWS=_rows_of(heads // self._num_kv_heads),
            DIM=dim, CHANNELS=triton.next_power_of_2(dim // (2 if more.get("BITS") == 4 else 1)), TOKENS=tokens,
            ALIGNED=self._aligned, num_warps=warps, num_stages=stages, **more,
        )  # fmt: skip

    def _merged(self, query: Tensor) -> Tensor:
        """[R, H, D], what quantised parts gave turned back."""
        rows, heads, dim = query.shape
        splits = self._outs.shape[2]
        first = self._splits if self._has_plain else 0
        both = torch.empty(2, rows, heads, dim, dtype=torch.float32, device=query.device)
        merge_kernel[(heads, rows)](
            self._outs, self._sums, both, splits, first, both.stride(0),
            DIM=dim, CHANNELS=triton.next_power_of_2(dim), SPLITS=triton.next_power_of_2(splits),
        )  # fmt: skip
        return (both[0] + turn(both[1]) if self._codes else both[0]).to(query.dtype)


def attend(query: Tensor, rows: Sequence[Sequence[Part]], scale: float | None = None) -> Tensor:
    """See `attend_reference`. Who attends to the same buffers again keeps a `Placed` instead."""
    return Placed(query, rows).attend(query, scale)


def _of_bits(row: Sequence[Part], bits: int) -> list[Part]:
    return [part for part in row if isinstance(part, Quantised) and part.bits == bits]


def _num_heads(part: Dense | Paged) -> int:
    return part.keys.shape[0 if isinstance(part, Dense) else 2]


def _rows_of(group: int) -> int:
    """Rows of the matrix of grouped query heads: tensor cores take 16 at least."""
    return max(16, 1 << (group - 1).bit_length())


def _tiles(dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tokens of a tile, warps, and stages of the pipeline."""
    if dtype == torch.float32:
        return (64 if dim <= 64 else 32), 4, 2
    return (128 if dim <= 64 else 64), 4, 3


@cache
def _num_splits(device: torch.device, programs: int) -> int:
    """So many that two programs run on every SM."""
    if device.type != "cuda":
        return 4
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(_MOST_SPLITS, -(-2 * count // programs)))


def _tables(rows: Sequence[Sequence[Part]], query: Tensor) -> tuple[Tensor, Tensor]:
    """Where parts lie [R, Q, FIELDS] int64 and how many tokens they have [R, Q] int32, both on the device."""
    most = max(1, *(len(row) for row in rows))
    table = torch.zeros(len(rows), most, FIELDS.value, dtype=torch.int64)
    lengths = torch.zeros(len(rows), most, dtype=torch.int32)
    for r, row in enumerate(rows):
        for p, part in enumerate(row):
            table[r, p], lengths[r, p] = torch.tensor(_fields(part, query)), len(part)
    return table.to(query.device), lengths.to(query.device)


def _fields(part: Part, query: Tensor) -> list[int]:
    """Pointers, then strides over heads, tokens and slots, in numbers; in a slot of one part, how many tokens."""
    if isinstance(part, Quantised):
        codes, numbers = (part.key_codes, part.value_codes), part.numbers
        strides = [*codes[0].stride()[:2], *codes[1].stride()[:2], *numbers.stride()[:2]]
        assert numbers.stride(2) == codes[0].stride(2) == codes[1].stride(2) == 1, "codes are not side by side"
        assert part.base.is_contiguous(), "a base lies in one piece"
        return [*(one.data_ptr() for one in (*codes, numbers, part.base)), *strides]
    for one in (part.keys, part.values):
        if one.dtype != query.dtype or one.stride(-1) != 1:
            raise ValueError(f"keys and values must be {query.dtype} with stride 1 over channels, got {one.dtype}")
    pointers = [part.keys.data_ptr(), part.values.data_ptr()]
    if isinstance(part, Dense):
        return [*pointers, pointers[0], _UNPAGED, *part.keys.stride()[:2], 0, *part.values.stride()[:2], 0]
    assert part.table.dtype == torch.int64, f"a table is int64, not {part.table.dtype}"
    assert part.table.is_contiguous(), "a table lies in one piece"
    by_head = [(one.stride(2), one.stride(1), one.stride(0)) for one in (part.keys, part.values)]
    return [*pointers, part.table.data_ptr(), part.keys.shape[1], *by_head[0], *by_head[1]]


def _is_aligned(part: Part) -> bool:
    """Whether its rows begin at multiples of `ALIGNED_BYTES`."""
    rows = (part.key_codes, part.value_codes) if isinstance(part, Quantised) else (part.keys, part.values)
    places = (x for one in rows for x in (one.data_ptr(), *(s * one.element_size() for s in one.stride()[:-1])))
    return all(place % ALIGNED_BYTES == 0 for place in places)


# Kernels --------------------------------------------------------------------------------------------------------------


@triton.jit
def share_of(lengths, PARTS: tl.constexpr, TOKENS: tl.constexpr):
    """Of all tokens of a row, those of this program: [begin, end), whole tiles but for the last."""
    total = tl.load(lengths)
    for part in range(1, PARTS):
        total += tl.load(lengths + part)
    size = tl.cdiv(tl.cdiv(total, tl.num_programs(0)), TOKENS) * TOKENS
    begin = tl.program_id(0) * size
    return begin, tl.minimum(begin + size, total)


@triton.jit
def stride_of(fields, index: tl.constexpr, ALIGNED: tl.constexpr, UNIT: tl.constexpr):
    """A stride from the table; a multiple of so many numbers, where all are aligned."""
    found = tl.load(fields + index)
    if ALIGNED:
        found = tl.multiple_of(found, UNIT)
    return found


@triton.jit
def softmax_step(scores, highest, total):
    """The running softmax, base 2: shares [rows, tokens] of a tile, what earlier ones are to be scaled by, and sums."""
    new = tl.maximum(highest, tl.max(scores, axis=1))
    shares = tl.exp2(scores - new[:, None])
    faded = tl.exp2(highest - new)
    return shares, faded, new, total * faded + tl.sum(shares, axis=1)


@triton.jit
def store_partial(outs, sums, out, highest, total, first, splits, head, row, heads,
                  GROUP: tl.constexpr, DIM: tl.constexpr, at, fits):  # fmt: skip
    """What this program's tokens give [rows, channels], and the base 2 log of their sum; -inf for no tokens."""
    rows = tl.arange(0, out.shape[0])
    place = ((row * heads + head * GROUP + rows) * splits + first + tl.program_id(0)).to(tl.int64)
    some = total > 0
    out = out / tl.where(some, total, 1.0)[:, None]
    tl.store(outs + place[:, None] * DIM + at[None, :], out, mask=(rows < GROUP)[:, None] & fits[None, :])
    tl.store(
        sums + place, tl.where(some, highest + tl.log2(tl.where(some, total, 1.0)), -float("inf")), mask=rows < GROUP
    )


@triton.jit
def plain_kernel(query, table, lengths, outs, sums, scale, first, splits,
                 PARTS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
                 CHANNELS: tl.constexpr, TOKENS: tl.constexpr, ALIGNED: tl.constexpr, PAGED: tl.constexpr):  # fmt: skip
    """Program (split, head, row): its share of a row's dense and paged parts."""
    head, row, heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1) * GROUP
    kind = query.dtype.element_ty
    unit: tl.constexpr = 16 // (kind.primitive_bitwidth // 8)
    begin, end = share_of(lengths + row * PARTS, PARTS, TOKENS)
    rows, at = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    fits = at < DIM
    inside = (rows < GROUP)[:, None] & fits[None, :]
    q = tl.load(query + (row * heads + head * GROUP + rows)[:, None] * DIM + at[None, :], mask=inside, other=0.0)
    highest, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, CHANNELS], tl.float32)
    before = 0
    for part in range(PARTS):
        fields, length = table + (row * PARTS + part) * FIELDS, tl.load(lengths + row * PARTS + part)
        start, stop = tl.maximum(begin - before, 0), tl.minimum(end - before, length)
        key_at, value_at = tl.load(fields), tl.load(fields + 1)
        slots, page = tl.load(fields + 2).to(tl.pointer_type(tl.int64)), tl.load(fields + 3).to(tl.int32)
        keys, values = key_at.to(tl.pointer_type(kind)), value_at.to(tl.pointer_type(kind))
        if ALIGNED:  # said of pointers, not of the numbers they come from: the compiler forgets these
            keys, values = tl.multiple_of(keys, 16), tl.multiple_of(values, 16)
        keys += head * stride_of(fields, 4, ALIGNED, unit)
        values += head * stride_of(fields, 7, ALIGNED, unit)
        key_token, key_slot = stride_of(fields, 5, ALIGNED, unit), stride_of(fields, 6, ALIGNED, unit)
        value_token, value_slot = stride_of(fields, 8, ALIGNED, unit), stride_of(fields, 9, ALIGNED, unit)
        for token in range(start, stop, TOKENS):
            n = token + tl.arange(0, TOKENS)
            seen = n < stop
            shown = seen[:, None] & fits[None, :]
            key_place, value_place = n * key_token, n * value_token
            if PAGED:
                slot = tl.load(slots + n // page, mask=seen, other=0)
                key_place = slot * key_slot + (n % page) * key_token
                value_place = slot * value_slot + (n % page) * value_token
            k = tl.load(keys + key_place[:, None] + at[None, :], mask=shown, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, -float("inf"))
            shares, faded, highest, total = softmax_step(scores, highest, total)
            v = tl.load(values + value_place[:, None] + at[None, :], mask=shown, other=0.0)
            out = out * faded[:, None] + tl.dot(shares.to(kind), v, input_precision="ieee")
        before += length
    store_partial(outs, sums, out, highest, total, first, splits, head, row, heads, GROUP, DIM, at, fits)


@triton.jit
def centred(codes, BITS: tl.constexpr, kind: tl.constexpr):
    """Codes uint8 less the middle of their range, as numbers: small, so that sums with minima cancel little."""
    middle: tl.constexpr = 1 << (BITS - 1)
    return (codes.to(tl.int16) - middle).to(tl.int8).to(kind)


@triton.jit
def codes_kernel(query, table, lengths, outs, sums, scale, first, splits,
                 PARTS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
                 CHANNELS: tl.constexpr, TOKENS: tl.constexpr, ALIGNED: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """The same of a row's quantised parts, the query turned: scales and minima are applied to scores and shares.

    Codes become the query's type at once: exact, and quick in bfloat16. In float16 a share times a scale of less than
    6e-8 is lost.

    With 4 bits `CHANNELS` is for half of them: low halves of bytes are the first half of the channels.
    """
    head, row, heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1) * GROUP
    kind = query.dtype.element_ty
    width: tl.constexpr = DIM * BITS // 8
    middle: tl.constexpr = 1 << (BITS - 1)
    begin, end = share_of(lengths + row * PARTS, PARTS, TOKENS)
    rows, at = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    fits = at < width
    inside = (rows < GROUP)[:, None] & fits[None, :]
    mine = query + (row * heads + head * GROUP + rows)[:, None] * DIM + at[None, :]
    q = tl.load(mine, mask=inside, other=0.0)
    of_ones = tl.sum(q.to(tl.float32), axis=1)
    if BITS == 4:
        q_high = tl.load(mine + width, mask=inside, other=0.0)
        of_ones += tl.sum(q_high.to(tl.float32), axis=1)
    highest, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    out, out_high = tl.zeros([ROWS, CHANNELS], tl.float32), tl.zeros([ROWS, CHANNELS], tl.float32)
    constant = tl.zeros([ROWS], tl.float32)  # the same in all channels: what comes of the minima
    before = 0
    for part in range(PARTS):
        fields, length = table + (row * PARTS + part) * FIELDS, tl.load(lengths + row * PARTS + part)
        start, stop = tl.maximum(begin - before, 0), tl.minimum(end - before, length)
        key_at, value_at = tl.load(fields), tl.load(fields + 1)
        keys, values = key_at.to(tl.pointer_type(tl.uint8)), value_at.to(tl.pointer_type(tl.uint8))
        if ALIGNED:
            keys, values = tl.multiple_of(keys, 16), tl.multiple_of(values, 16)
        keys += head * stride_of(fields, 4, ALIGNED, 16)
        values += head * stride_of(fields, 6, ALIGNED, 16)
        numbers = tl.load(fields + 2).to(tl.pointer_type(tl.float16)) + head * tl.load(fields + 8)
        base = tl.load(fields + 3).to(tl.pointer_type(tl.float32)) + head * DIM + at
        key_token, value_token = stride_of(fields, 5, ALIGNED, 16), stride_of(fields, 7, ALIGNED, 16)
        number_token, some = tl.load(fields + 9), at < tl.where(length > 0, width, 0)
        shared = tl.sum(q.to(tl.float32) * tl.load(base, mask=some, other=0.0)[None, :], axis=1)
        if BITS == 4:
            b = tl.load(base + width, mask=some, other=0.0)
            shared += tl.sum(q_high.to(tl.float32) * b[None, :], axis=1)
        for token in range(start, stop, TOKENS):
            n = (token + tl.arange(0, TOKENS)).to(tl.int64)
            seen = n < stop
            shown = seen[:, None] & fits[None, :]
            number = numbers + n * number_token
            key_scale = tl.load(number, mask=seen, other=0.0).to(tl.float32)
            key_low = tl.load(number + 1, mask=seen, other=0.0).to(tl.float32) + middle * key_scale
            k = tl.load(keys + (n * key_token)[:, None] + at[None, :], mask=shown, other=0)
            if BITS == 4:
                scores = tl.dot(q, tl.trans(centred(k & 15, BITS, kind)), input_precision="ieee")
                scores = tl.dot(q_high, tl.trans(centred(k >> 4, BITS, kind)), scores, input_precision="ieee")
            else:
                scores = tl.dot(q, tl.trans(centred(k, BITS, kind)), input_precision="ieee")
            scores = scores * key_scale[None, :] + of_ones[:, None] * key_low[None, :] + shared[:, None]
            scores = tl.where(seen[None, :], scores * scale, -float("inf"))
            shares, faded, highest, total = softmax_step(scores, highest, total)
            value_scale = tl.load(number + 2, mask=seen, other=0.0).to(tl.float32)
            value_low = tl.load(number + 3, mask=seen, other=0.0).to(tl.float32) + middle * value_scale
            constant = constant * faded + tl.sum(shares * value_low[None, :], axis=1)
            weights = (shares * value_scale[None, :]).to(kind)
            v = tl.load(values + (n * value_token)[:, None] + at[None, :], mask=shown, other=0)
            if BITS == 4:
                out = out * faded[:, None] + tl.dot(weights, centred(v & 15, BITS, kind), input_precision="ieee")
                out_high = out_high * faded[:, None]
                out_high = tl.dot(weights, centred(v >> 4, BITS, kind), out_high, input_precision="ieee")
            else:
                out = out * faded[:, None] + tl.dot(weights, centred(v, BITS, kind), input_precision="ieee")
        before += length
    out += constant[:, None]
    store_partial(outs, sums, out, highest, total, first, splits, head, row, heads, GROUP, DIM, at, fits)
    if BITS == 4:
        out_high += constant[:, None]
        store_partial(
            outs, sums, out_high, highest, total, first, splits, head, row, heads, GROUP, DIM, at + width, fits
        )


@triton.jit
def merge_kernel(outs, sums, both, splits, turned_from, apart,
                 DIM: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """Program (head, row): the splits of plain parts, and those of quantised ones, each by its share of the sum."""
    place = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    split, at = tl.arange(0, SPLITS), tl.arange(0, CHANNELS)
    log_sums = tl.load(sums + place * splits + split, mask=split < splits, other=-float("inf"))
    shares = tl.exp2(log_sums - tl.max(log_sums, axis=0))
    shares = shares / tl.sum(shares, axis=0)
    shown = (split < splits)[:, None] & (at < DIM)[None, :]
    found = (
        tl.load(outs + (place * splits + split)[:, None] * DIM + at[None, :], mask=shown, other=0.0) * shares[:, None]
    )
    turned = (split >= turned_from)[:, None]
    tl.store(both + place * DIM + at, tl.sum(tl.where(turned, 0.0, found), axis=0), mask=at < DIM)
    tl.store(both + apart + place * DIM + at, tl.sum(tl.where(turned, found, 0.0), axis=0), mask=at < DIM)
