"""Attention of single tokens over parts that lie apart, without putting them together. CPU, and the specification.

Query heads that share a key/value head are rows of one matrix, so keys and values are read once and never repeated.
Each part gives its own softmax and log-sum-exp, from which the whole is put together in float32 (FlashDecoding; split
softmax as in FlashAttention-2, arXiv 2307.08691). This module knows nothing of what the tokens are.

Shape letters: R rows, each with its own parts; H query heads, K key/value heads, G = H / K; N tokens, D head dim.

Milliseconds for one layer and row in float32 on one thread, by sdpa with `enable_gqa` as transformers calls it, by this
file over one piece, and over five parts (`scripts/bench_kernels.py --quick`):

| heads, D, tokens | sdpa | one piece | five parts |
| --- | --- | --- | --- |
| 9/3, 64, 555 | 0.18 | 0.20 | 0.32 |
| 9/3, 64, 8,056 | 2.6 | 2.4 | 3.2 |
| 28/4, 128, 4,152 | 6.9 | 3.4 | 3.7 |

Whole numbers are turned into float32 a piece at a time that stays in the cache. What they save here is memory, not
time: int4 in place of what is retrieved took 4.1 and 4.3 ms where the last two rows have 3.2 and 3.7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vstream.kernels.parts import Dense, Paged, Part, Quantised, check
from vstream.kernels.reference import turn

Partial = tuple[Tensor, Tensor]
"""What some tokens alone would give: out [.., G, D], and the log-sum-exp of their scores [.., G]."""

_PIECE_TOKENS = 1024  # of whole numbers, made float32 at a time: 512 and 4,096 were slower
_GATHER_TOKENS = 512  # copied out of a slab at a time
_SHORT = 256  # tokens: shorter parts are copied together, since a call of their own takes longer
_LEAST_SPLIT = 256  # tokens for one thread
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # a packet takes longer to call


def attend_reference(query: Tensor, rows: Sequence[Sequence[Part]], scale: float | None = None) -> Tensor:
    """The specification: softmax over all tokens of a row's parts, put together.

    Args:
        query: [R, H, D].
        rows: for each of R rows its parts, of K heads; empty ones are allowed, but not all of a row.
        scale: of the scores; 1 / sqrt(D) unless given.

    Returns:
        [R, H, D].
    """
    check(query, rows)
    return torch.stack([_attend_row(one, parts, _scale(query, scale)) for one, parts in zip(query, rows, strict=True)])


def _attend_row(query: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    both = zip(*(part.dense() for part in parts), strict=True)
    keys, values = (torch.cat([one.to(wide) for one in some], dim=1) for some in both)  # [K, N, D]
    scores = grouped(query, len(keys)).to(wide) @ keys.mT * scale  # [K, G, N]
    return (scores.softmax(-1) @ values).view(query.shape).to(query.dtype)


def attend_sdpa(query: Tensor, rows: Sequence[Sequence[Part]], scale: float | None = None) -> Tensor:
    """The same by the library's kernel, over each row's parts put together: what runs elsewhere without Triton."""
    check(query, rows)
    outs = [_sdpa_row(one, parts, scale) for one, parts in zip(query, rows, strict=True)]
    return torch.cat(outs)[:, :, 0]


def _sdpa_row(query: Tensor, parts: Sequence[Part], scale: float | None) -> Tensor:
    """One row [H, D], as [1, H, 1, D]."""
    both = zip(*(part.dense() for part in parts), strict=True)
    keys, values = (some[0] if len(some) == 1 else torch.cat(some, dim=1) for some in both)  # [K, N, D]
    keys, values = keys[None].to(query.dtype), values[None].to(query.dtype)
    return scaled_dot_product_attention(
        query[None, :, None], keys, values, scale=scale, enable_gqa=len(query) != keys.shape[1]
    )


def attend_cpu(query: Tensor, rows: Sequence[Sequence[Part]], scale: float | None = None) -> Tensor:
    """The same as `attend_reference`, with nothing put together; the bits of a row do not depend on the others."""
    check(query, rows)
    scale = _scale(query, scale)
    outs = [_attend_parts(one, parts, scale) for one, parts in zip(query, rows, strict=True)]
    return (torch.stack(outs) if len(outs) > 1 else outs[0][None]).to(query.dtype)


def attend_one_cpu(query: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """A token [1, H, 1, D] over keys and values [1, K, N, D] that lie in one piece: the same bits, and one call.

    At 500 tokens all that parts take beside the call would be a fifth of the time.
    """
    if _num_splits(*keys.shape[1:3]) > 1:
        of_heads = grouped(query[0, :, 0], keys.shape[1])
        return (
            merge([*_over_dense(of_heads, keys[0], values[0], _scale(query, scale))]).view(query.shape).to(query.dtype)
        )
    rows = query.view(1, keys.shape[1], -1, query.shape[3])
    return scaled_dot_product_attention(rows, keys, values, scale=scale).reshape(query.shape)


def _attend_parts(query: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """One row [H, D]."""
    if len(parts) == 1 and isinstance(parts[0], Dense):
        return attend_one_cpu(query[None, :, None], parts[0].keys[None], parts[0].values[None], scale)[0, :, 0]
    return merge([*_partials(query, parts, scale)]).view(query.shape)


def grouped(query: Tensor, num_kv_heads: int) -> Tensor:
    """A query [H, D] as [K, G, D]: the heads that share a key/value head are its rows."""
    return query.reshape(num_kv_heads, -1, query.shape[-1])


def merge(partials: Sequence[Partial]) -> Tensor:
    """What several parts give together [.., G, D]: their outs, each by its share of the sum; in float32 or better."""
    if len(partials) == 1:
        return partials[0][0]
    outs, sums = zip(*partials, strict=True)
    shares = torch.stack(sums, dim=-1).softmax(-1)  # [.., G, P]
    return (shares.unsqueeze(-2) @ torch.stack(outs, dim=-2).to(shares.dtype)).squeeze(-2)


def _scale(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _partials(query: Tensor, parts: Sequence[Part], scale: float) -> Iterator[Partial]:
    """Of one row [H, D]: one or more for each part that is not empty, one for all short ones."""
    short = [part for part in parts if isinstance(part, Dense) and 0 < len(part) < _SHORT]
    if short:
        keys, values = (torch.cat(some, dim=1) for some in zip(*(part.dense() for part in short), strict=True))
        yield from _over_dense(grouped(query, len(keys)), keys, values, scale)
    for part in parts:
        if isinstance(part, Paged):
            yield from _over_paged(grouped(query, part.keys.shape[2]), part, scale)
        elif isinstance(part, Quantised) and len(part):
            yield _over_quantised(grouped(query, len(part.base)), part, scale)
        elif isinstance(part, Dense) and len(part) >= _SHORT:
            yield from _over_dense(grouped(query, len(part.keys)), part.keys, part.values, scale)


def _over_dense(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Iterator[Partial]:
    """Rows [K, G, D] over keys and values [K, N, D], in as many splits as keep all threads busy."""
    heads, tokens, _ = keys.shape
    splits = _num_splits(heads, tokens)
    size = tokens // splits
    if splits > 1:
        cut = (part[:, : splits * size].view(heads, splits, size, -1).transpose(0, 1) for part in (keys, values))
        out, log_sum = _flash(query.expand(splits, *query.shape), *cut, scale=scale)
        yield from zip(out, log_sum, strict=True)
    rest = slice(splits * size if splits > 1 else 0, tokens)
    if rest.start < tokens:
        out, log_sum = _flash(query[None], keys[None, :, rest], values[None, :, rest], scale=scale)
        yield out[0], log_sum[0]


def _num_splits(heads: int, tokens: int) -> int:
    """The fewest for which the work can be shared out evenly, unless that leaves a thread too little."""
    threads = torch.get_num_threads()
    return max(1, min(threads // math.gcd(heads, threads), tokens // _LEAST_SPLIT))


def _over_paged(query: Tensor, part: Paged, scale: float) -> Iterator[Partial]:
    """Copied piece by piece: slots lie anywhere, and a piece is still in the cache when it is read again."""
    piece = max(1, _GATHER_TOKENS // part.keys.shape[1]) * part.keys.shape[1]
    for start in range(0, len(part), piece):
        keys, values = part.rows(start, min(start + piece, len(part)))
        out, log_sum = _flash(query[None], keys[None], values[None], scale=scale)
        yield out[0], log_sum[0]


def _over_quantised(query: Tensor, part: Quantised, scale: float) -> Partial:
    """The query is turned once, and what comes of all pieces is turned back once."""
    turned = turn(query.float()) * scale  # [K, G, D]
    pieces = range(0, len(part), _PIECE_TOKENS)
    found = [_over_codes(turned, part, slice(start, start + _PIECE_TOKENS)) for start in pieces]
    log_sum = torch.stack([log_sum for _, log_sum in found]).logsumexp(0)
    return turn(merge(found)), log_sum + (turned * part.base[:, None]).sum(-1)


def _over_codes(query: Tensor, part: Quantised, piece: slice) -> Partial:
    """Scales and minima are applied to scores and shares, not to keys and values."""
    key_scale, key_low, value_scale, value_low = part.numbers[:, None, piece].float().unbind(-1)  # [K, 1, n]
    scores = _times_codes(query, part.key_codes[:, piece], part.bits) * key_scale
    scores += query.sum(-1, keepdim=True) * key_low
    highest = scores.amax(-1, keepdim=True)
    shares = (scores - highest).exp_()  # [K, G, n]
    total = shares.sum(-1, keepdim=True)
    out = _of_codes(shares * value_scale, part.value_codes[:, piece], part.bits)
    out += (shares * value_low).sum(-1, keepdim=True)
    return out / total, (highest + total.log()).squeeze(-1)


def _times_codes(query: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Products [K, G, n] of rows [K, G, D] with codes [K, n, C]: of 4 bits by halves, so that none is put in order."""
    if bits == 8:
        return query @ codes.float().mT
    first, second = query.chunk(2, dim=-1)
    return torch.baddbmm(first @ (codes & 15).float().mT, second, (codes >> 4).float().mT)


def _of_codes(shares: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Sums [K, G, D] of codes [K, n, C] with shares [K, G, n]."""
    if bits == 8:
        return shares @ codes.float()
    return torch.cat([shares @ (codes & 15).float(), shares @ (codes >> 4).float()], dim=-1)
