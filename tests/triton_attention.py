"""A program, run with TRITON_INTERPRET=1: errors of the attention kernels in Triton's interpreter, as JSON by case.

The interpreter multiplies no matrices of bfloat16, so these are float32 and float16. What is not to be read, and all
that the kernels write, holds NaN before.
"""

import json
import math

import torch
from test_kernels_attention import dense_part, error, exact, noise, paged_part, quantised_part

from vstream.kernels.triton_attention import Placed


def loss(heads, dim, rows, dtype=torch.float32, splits=3):
    """Error against float64, of a call whose partial results hold NaN before."""
    query = noise(len(rows), heads, dim, seed=5, dtype=dtype)
    placed = Placed(query, rows, splits=splits)
    poison(placed)
    return error(placed.attend(query), exact(query, rows))


def poison(placed):
    placed._outs.fill_(math.nan)
    placed._sums.fill_(math.nan)


def plain_rows(kv_heads, dim, dtype=torch.float32):
    """Ragged rows of dense and paged parts, empty ones among them."""
    parts = [dense_part(kv_heads, 20, dim, 1, dtype), dense_part(kv_heads, 0, dim, 1, dtype)]
    parts += [paged_part(kv_heads, 133, dim, 2, dtype), dense_part(kv_heads, 1, dim, 3, dtype)]
    return [parts, [paged_part(kv_heads, 17, dim, 4, dtype)]]


def mixed_rows(kv_heads, dim):
    """Dense parts and some of 4 and 8 bits; the second row has none of these."""
    mixed = [dense_part(kv_heads, 40, dim, 4), quantised_part(kv_heads, 90, dim, 1, 4)]
    return [[*mixed, quantised_part(kv_heads, 20, dim, 1, 8)], [dense_part(kv_heads, 33, dim, 4)]]


def grown():
    """A tail grows in its buffer between two calls of one `Placed`; the bits are those of a new one."""
    whole = dense_part(3, 30, 64, 1)
    before = type(whole)(whole.keys[:, :12], whole.values[:, :12])
    query = noise(1, 9, 64, seed=5)
    placed = Placed(query, [[dense_part(3, 50, 64, 2), before]], splits=2)
    first = error(placed.attend(query), exact(query, [[dense_part(3, 50, 64, 2), before]]))
    placed.lengths[:, 1] += 18
    poison(placed)
    return max(first, error(placed.attend(query), exact(query, [[dense_part(3, 50, 64, 2), whole]])))


def unaligned():
    """Views whose rows begin anywhere."""
    part = dense_part(3, 40, 67, 1)
    cut = type(part)(part.keys[..., 3:], part.values[..., 3:])
    return loss(9, 64, [[cut]])


def main():
    cases = {"grown": grown(), "unaligned": unaligned()}
    for heads, kv_heads, dim in ((9, 3, 64), (4, 2, 80), (7, 1, 96), (8, 2, 128)):
        cases[f"plain {heads}/{kv_heads} {dim}"] = loss(heads, dim, plain_rows(kv_heads, dim))
        cases[f"mixed {heads}/{kv_heads} {dim}"] = loss(heads, dim, mixed_rows(kv_heads, dim))
        cases[f"int4 {heads}/{kv_heads} {dim}"] = loss(heads, dim, [[quantised_part(kv_heads, 90, dim, 1)]], splits=1)
    cases["half 9/3 64"] = loss(9, 64, plain_rows(3, 64, torch.float16), torch.float16)
    cases["more programs than tokens"] = loss(9, 64, [[dense_part(3, 3, 64, 1)]], splits=7)
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
