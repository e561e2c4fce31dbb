"""The kernels' specification against loops, and against transformers' own rotation."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exactness import ROPES

from vstream.kernels import gather_rows, group_query, invert_rotary, score_blocks
from vstream.models.random import RandomLlama


def random_tensor(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tables(positions, dim, *, scale=1.0, base=10_000.0):
    """Rotary tables (cos, sin) [1, N, D] in float64, both halves alike, as transformers makes them."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=1)[None]
    return angles.cos() * scale, angles.sin() * scale


def turned(keys, cos, sin):
    """Keys [B, K, N, D] turned pair by pair, each a plane (d, d + D/2)."""
    out, half = keys.clone(), keys.shape[-1] // 2
    for token in range(keys.shape[2]):
        for d in range(half):
            x, y, c, s = keys[..., token, d], keys[..., token, d + half], cos[0, token, d], sin[0, token, d]
            out[..., token, d], out[..., token, d + half] = x * c - y * s, x * s + y * c
    return out


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 17), max_size=6), slot_tokens=st.integers(1, 8), seed=st.integers(0, 99))
def test_gather_takes_ragged_blocks_from_scattered_slots(lengths, slot_tokens, seed):
    """Blocks of any length whose slots lie anywhere come back row by row, in the order asked for."""
    needed = [math.ceil(length / slot_tokens) for length in lengths]
    free = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    slab = random_tensor(len(free), slot_tokens, 4, seed=seed)  # [S, P, W]
    expected, slots, offsets = [], [], []
    for length, count in zip(lengths, needed, strict=True):
        block_slots, free = free[:count], free[count:]
        for token in range(length):
            slot, offset = block_slots[token // slot_tokens], token % slot_tokens
            slots.append(slot)
            offsets.append(offset)
            expected.append(slab[slot, offset])  # [W]
    got = gather_rows(slab, torch.tensor(slots, dtype=torch.int64), torch.tensor(offsets, dtype=torch.int64))
    assert got.shape == (sum(lengths), 4)
    if lengths:
        assert torch.equal(got, torch.stack(expected))


def test_gather_repeats_and_reorders_rows():
    slab = torch.arange(2 * 3 * 2).view(2, 3, 2)
    got = gather_rows(slab, torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 2, 0]))
    assert got.tolist() == [[10, 11], [0, 1], [10, 11], [6, 7]]


@pytest.mark.parametrize("scale", [1.0, 1.3, 0.25], ids=["plain", "larger", "smaller"])
def test_inverted_tables_undo_a_rotation(scale):
    keys = random_tensor(1, 2, 6, 16, dtype=torch.float64)
    cos, sin = tables([0, 1, 7, 1000, 31_337, 1_000_003], 16, scale=scale)
    back = turned(turned(keys, cos, sin), *invert_rotary(cos, sin))
    assert float((back - keys).abs().max()) < 1e-13
    assert float((turned(keys, cos, sin) - keys).abs().max()) > 0.1, "the rotation must do something"


def test_a_plain_transpose_would_keep_the_scale():
    """Negative control: (cos, -sin) undoes the angle but not the attention scaling, nor the rounding of the tables."""
    keys = random_tensor(1, 2, 6, 16, dtype=torch.float64)
    cos, sin = tables([0, 1, 7, 1000, 31_337, 1_000_003], 16, scale=1.3)
    back = turned(turned(keys, cos, sin), cos, -sin)
    assert float((back / keys - 1.3**2).abs().max()) < 1e-9


def test_rounded_tables_are_inverted_as_they_are():
    """Tables rounded to float32 are no rotations any more; their inverse is exact all the same."""
    keys = random_tensor(1, 1, 4, 8, dtype=torch.float64)
    cos, sin = (table.float().double() for table in tables([3, 99, 4096, 123_456], 8, scale=1.1))
    assert float((turned(turned(keys, cos, sin), *invert_rotary(cos, sin)) - keys).abs().max()) < 1e-14


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_inversion_agrees_with_transformers_rotation(rope):
    """Through the model's own tables and `apply_rotary_pos_emb`: there and back is the same key."""
    adapter = RandomLlama(dtype=torch.float64, rope=rope)
    apply = sys.modules[type(adapter.decoder).__module__].apply_rotary_pos_emb
    keys = random_tensor(1, 2, 5, 16, dtype=torch.float64)
    cos, sin = adapter.rotary(torch.tensor([[0, 1, 5, 900, 3999]]))
    there = apply(keys, keys, cos, sin)[1]
    assert torch.allclose(there, turned(keys, cos, sin), atol=1e-12)
    back = apply(there, there, *invert_rotary(cos, sin))[1]
    assert float((back - keys).abs().max()) < 1e-12
    assert float((there - keys).abs().max()) > 0.1


def test_yarn_tables_are_scaled():
    """What the test above relies on: there is a family whose tables are longer than 1."""
    cos, sin = RandomLlama(dtype=torch.float64, rope=ROPES["yarn"]).rotary(torch.tensor([[5]]))
    assert float((cos**2 + sin**2).min()) > 1.05


def test_scores_are_dot_products_per_head():
    query, representatives = random_tensor(3, 2, 8), random_tensor(3, 2, 5, 8, seed=1).half()
    scores = score_blocks(query, representatives)
    assert scores.shape == (3, 2, 5)
    assert scores.dtype == torch.float32
    for layer in range(3):
        for head in range(2):
            for block in range(5):
                expected = sum(a * b for a, b in zip(
                    query[layer, head].tolist(), representatives[layer, head, block].tolist(), strict=True
                ))  # fmt: skip
                assert float(scores[layer, head, block]) == pytest.approx(expected, abs=1e-5)


def test_half_precision_is_scored_in_single():
    """Sums that would overflow or vanish in float16 are right."""
    query, representatives = torch.full((1, 1, 64), 200.0).half(), torch.full((1, 1, 1, 64), 200.0).half()
    assert float(score_blocks(query, representatives)) == 64 * 200.0 * 200.0


def test_scores_of_no_blocks_are_empty():
    assert score_blocks(random_tensor(2, 2, 4), torch.zeros(2, 2, 0, 4).half()).shape == (2, 2, 0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 2), (3, 3), (5, 1)])
def test_grouped_query_is_the_mean_over_tokens_summed_over_the_group(heads, kv_heads):
    query, group = random_tensor(heads, 7, 4), heads // kv_heads
    got = group_query(query, kv_heads)
    assert got.shape == (kv_heads, 4)
    for head in range(kv_heads):
        shared = [query[h].mean(dim=0) for h in range(head * group, (head + 1) * group)]
        assert torch.allclose(got[head], torch.stack(shared).sum(dim=0), atol=1e-6)


def test_grouped_query_scores_like_its_heads_together():
    """q1.k + q2.k == (q1 + q2).k: what summing over the group is for."""
    query, key = random_tensor(4, 3, 8), random_tensor(1, 2, 1, 8, seed=1)
    grouped = score_blocks(group_query(query, 2)[None], key)[0, :, 0]
    for head in range(2):
        alone = sum(query[h].mean(dim=0) @ key[0, head, 0] for h in (2 * head, 2 * head + 1))
        assert float(grouped[head]) == pytest.approx(float(alone), abs=1e-5)
