"""Attention of a clip or question over [sink | window | clip]: the last n of N tokens, causal among themselves.

No kernel of our own: the best of a library that fits. None needs the mask of n x N that `sdpa` is given otherwise.

| where | what | why |
| --- | --- | --- |
| CUDA, 16 bits, `flash-attn` installed | `flash_attn_func(causal=True)` | causal from the bottom right, GQA as it is |
| CUDA, 16 bits | sdpa with `causal_lower_right` | its FlashAttention-2 (arXiv 2307.08691) |
| else | the same, heads as expanded views | sdpa's efficient backend, which has no GQA |
| CPU | torch's flash attention, twice | it is causal only for n x n: the past apart, and merged |

FlexAttention does the same as `causal_lower_right` once compiled, and is compiled again for other sizes: of use only
where masks are not plain. On a CPU with one thread, 9/3 heads of 64 channels in float32, 64 tokens behind 500 took
1.7 ms a layer where sdpa with a mask took 2.1, 200 behind 2,000 17 and 21 (`scripts/bench_kernels.py --quick`).

Where sdpa has no such backend, it makes the mask itself. This module knows nothing of frames or caches.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # a packet takes longer to call


def prefill_reference(query: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """The specification: token i of n sees the first N - n + 1 + i.

    Args:
        query: [1, H, n, D].
        keys, values: [1, K, N, D], N >= n, the query's own tokens the last.
        scale: of the scores; 1 / sqrt(D) unless given.

    Returns:
        [1, H, n, D].
    """
    heads, count, dim = query.shape[1:]
    group = heads // keys.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = (part.to(wide).repeat_interleave(group, dim=1) for part in (keys, values))
    scores = query.to(wide) @ keys.mT * (1 / math.sqrt(dim) if scale is None else scale)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril(keys.shape[2] - count)
    return (scores.masked_fill(~seen, -math.inf).softmax(-1) @ values).to(query.dtype)


def prefill(query: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """The same as `prefill_reference`, by the library kernel that fits: see the top of this file."""
    assert keys.shape[2] >= query.shape[2], f"{query.shape[2]} tokens cannot be the last of {keys.shape[2]}"
    if query.device.type == "cpu":
        return _on_cpu(query, keys, values, scale)
    if query.device.type == "cuda" and query.element_size() == 2:
        return (_flash_attn if _has_flash_attn() else _sdpa)(query, keys, values, scale)
    by_head = _as_heads(query[0], keys, values)
    return _sdpa(*by_head, scale).reshape(query.shape)


def _on_cpu(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    """The past with G * n query rows for each key/value head, the tokens themselves causally; merged."""
    count, dim = query.shape[2:]
    past = keys.shape[2] - count
    own = _as_heads(query[0], keys[:, :, past:], values[:, :, past:])
    out, log_sum = _flash(*own, 0.0, True, scale=scale)  # [K, G, n, D], [K, G, n]
    if past:
        folded = own[0].reshape(1, len(own[0]), -1, dim)
        before, its_sum = _flash(folded, keys[:, :, :past], values[:, :, :past], scale=scale)
        share = (its_sum.view(log_sum.shape) - log_sum).sigmoid_().unsqueeze(-1)  # of the past
        out = torch.lerp(out.to(share.dtype), before.view(out.shape).to(share.dtype), share)
    found: Tensor = out.reshape(query.shape).to(query.dtype)
    return found


def _as_heads(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A query [H, n, D] as [K, G, n, D], keys and values [1, K, N, D] as views [K, G, N, D]."""
    grouped = query.view(keys.shape[1], -1, *query.shape[1:])
    size = (*grouped.shape[:2], -1, -1)
    return grouped, keys[0].unsqueeze(1).expand(size), values[0].unsqueeze(1).expand(size)


def _sdpa(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    from torch.nn.attention.bias import causal_lower_right  # loads Triton, where that is installed

    bias: Any = causal_lower_right(query.shape[2], keys.shape[2])
    grouped = query.shape[1] != keys.shape[1]
    out: Tensor = scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return out


def _flash_attn(query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_func

    by_token = (part.transpose(1, 2) for part in (query, keys, values))
    out: Tensor = flash_attn_func(*by_token, causal=True, softmax_scale=scale)
    return out.transpose(1, 2)


@cache
def _has_flash_attn() -> bool:
    return find_spec("flash_attn") is not None
