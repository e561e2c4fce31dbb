"""Attention over parts and prefill without a mask: the CPU path against the specification in float64, over odd sizes.

Errors are ||out - ref|| / ||ref||. What must not be read holds NaN.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vstream.kernels import Dense, Paged, attend, attend_one, dequantise, pack, prefill, quantise, uses_triton
from vstream.kernels.attention import attend_cpu, attend_reference, attend_sdpa, merge
from vstream.kernels.prefill import prefill_reference

HEADS = [(9, 3), (28, 4), (8, 8), (5, 1), (14, 2)]
DIMS = [64, 80, 96, 128]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}
heads = st.sampled_from(HEADS)
dims = st.sampled_from(DIMS)
lengths = st.one_of(st.just(0), st.integers(1, 70), st.integers(500, 1100))


def noise(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(out, ref):
    return float((out.double() - ref.double()).norm() / ref.double().norm())


def dense_part(num_kv_heads, tokens, dim, seed, dtype=torch.float32):
    """A view into a buffer whose other tokens are NaN."""
    buffer = torch.full((2, num_kv_heads, tokens + 13, dim), math.nan, dtype=dtype)
    buffer[:, :, 5 : 5 + tokens] = noise(2, num_kv_heads, tokens, dim, seed=seed, dtype=dtype)
    return Dense(buffer[0, :, 5 : 5 + tokens], buffer[1, :, 5 : 5 + tokens])


def paged_part(num_kv_heads, tokens, dim, seed, dtype=torch.float32, slot_tokens=16):
    """Slots in no order, of a slab whose other slots and rows are NaN; a row holds keys, then values."""
    count = -(-tokens // slot_tokens)
    table = torch.randperm(count + 3, generator=torch.Generator().manual_seed(seed))[:count]
    slab = torch.full((count + 3, slot_tokens, 2, num_kv_heads, dim), math.nan, dtype=dtype)
    token = torch.arange(tokens)
    slab[table[token // slot_tokens], token % slot_tokens] = noise(tokens, 2, num_kv_heads, dim, seed=seed, dtype=dtype)
    return Paged(slab[:, :, 0], slab[:, :, 1], table, tokens)


def quantised_part(num_kv_heads, tokens, dim, seed, bits=4):
    return pack(*noise(2, num_kv_heads, tokens, dim, seed=seed), bits)


KINDS = {
    "dense": dense_part,
    "paged": paged_part,
    "int8": lambda *size: quantised_part(*size, bits=8),
    "int4": quantised_part,
}
rows_of_parts = st.lists(st.lists(st.tuples(st.sampled_from(list(KINDS)), lengths), max_size=4), min_size=1, max_size=2)


def made(plan, num_kv_heads, dim, seed):
    """Rows of parts as drawn; a row in which there is nothing gets one token."""
    rows = []
    for number, row in enumerate(plan):
        sizes = row if any(tokens for _, tokens in row) else [*row, ("dense", 1)]
        parts = [KINDS[kind](num_kv_heads, n, dim, seed + 9 * number + i) for i, (kind, n) in enumerate(sizes)]
        rows.append(parts)
    return rows


def exact(query, rows):
    """The specification in float64."""
    wide = [[Dense(*(part.double() for part in part.dense())) for part in parts] for parts in rows]
    return attend_reference(query.double(), wide)


# Over parts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(plan=rows_of_parts, heads=heads, dim=dims, seed=st.integers(0, 99))
def test_attention_over_parts_is_attention_over_all_of_them(plan, heads, dim, seed):
    rows = made(plan, heads[1], dim, seed)
    query = noise(len(rows), heads[0], dim, seed=seed + 1000)
    expected = exact(query, rows)
    whole_numbers = any(kind.startswith("int") for row in plan for kind, _ in row)
    for out in (attend(query, rows), attend_sdpa(query, rows), attend_reference(query, rows)):
        assert out.shape == query.shape
        assert out.dtype == query.dtype
        assert error(out, expected) < (1e-4 if whole_numbers else 2e-6)  # their sums cancel where many count the same


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(lengths, max_size=4),
    heads=heads,
    dim=dims,
    dtype=st.sampled_from(list(TOLERANCE)),
    threads=st.integers(1, 3),
)
def test_all_types_and_numbers_of_threads(sizes, heads, dim, dtype, threads):
    parts = [KINDS["dense" if i % 2 else "paged"](heads[1], n, dim, i, dtype) for i, n in enumerate([*sizes, 300])]
    query = noise(1, heads[0], dim, seed=7, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = attend_cpu(query, [parts])
    finally:
        torch.set_num_threads(before)
    assert out.dtype == dtype
    assert error(out, exact(query, [parts])) < TOLERANCE[dtype]


def test_a_row_has_the_same_bits_alone_and_among_others():
    rows = [[dense_part(3, 20 + 31 * r, 64, r), paged_part(3, 100 * r, 64, r)] for r in range(4)]
    query = noise(4, 9, 64)
    together = attend(query, rows)
    for row in range(4):
        assert torch.equal(attend(query[row : row + 1], rows[row : row + 1])[0], together[row])


@pytest.mark.parametrize("threads", [1, 2])
def test_one_part_alone_gives_the_same_bits_as_a_row(threads):
    part, query = dense_part(3, 700, 64, 1), noise(1, 9, 1, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        row, alone = attend(query[:, :, 0], [[part]]), attend_one(query, part.keys[None], part.values[None])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(row, alone[:, :, 0])
    assert error(row, exact(query[:, :, 0], [[part]])) < 2e-6


def test_the_scale_is_as_given():
    rows = [[dense_part(3, 50, 64, 1), dense_part(3, 9, 64, 2)]]
    query = noise(1, 9, 64, seed=3)
    assert error(attend(query, rows, 0.3), exact(query * 0.3 * 8, rows)) < 2e-6
    assert error(attend(query, rows, 0.3), exact(query, rows)) > 0.1


def test_scores_far_apart_do_not_overflow():
    keys, values = noise(2, 3, 40, 64, seed=1)
    rows = [[Dense(keys * 1e4, values), Dense(-keys * 1e4, values), Dense(keys * 1e-4, values)]]
    query = noise(1, 9, 64, seed=2)
    out = attend(query, rows)
    assert out.isfinite().all()
    assert error(out, exact(query, rows)) < 1e-5


def test_nothing_to_attend_to_is_a_bug():
    query = noise(2, 9, 64)
    with pytest.raises(AssertionError, match="row 1 has nothing to attend to"):
        attend(query, [[dense_part(3, 4, 64, 0)], [dense_part(3, 0, 64, 0), paged_part(3, 0, 64, 0)]])
    with pytest.raises(AssertionError, match="2 queries, but parts for 1"):
        attend(query, [[dense_part(3, 4, 64, 0)]])


def test_merging_needs_the_sums():
    """The negative control: parts averaged as if all weighed the same are something else."""
    parts = [dense_part(3, 40, 64, 1), dense_part(3, 2, 64, 2)]
    query = noise(1, 9, 64, seed=5)
    each = [attend(query, [[part]])[0] for part in parts]
    even = merge([(out, torch.zeros(out.shape[:-1])) for out in each])
    assert error(even, exact(query, [parts])[0]) > 0.1


def test_a_table_holds_what_it_says():
    part = paged_part(3, 40, 64, 0)
    with pytest.raises(ValueError, match="num_tokens must be 0 to 48, what the table's slots hold, got 49"):
        Paged(part.keys, part.values, part.table, 49)


# Whole numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "largest"), [(8, 0.012), (4, 0.2)])
@pytest.mark.parametrize("dim", DIMS)
def test_packing_loses_as_little_as_the_store_does(bits, largest, dim):
    """One step of the codes, whatever shares all keys: against float64, and beside the store's own quantisation."""
    shared = 30 * noise(3, 1, dim, seed=4)  # in all keys, as real ones have it
    keys, values = noise(2, 3, 700, dim, seed=5)
    keys, query = keys + shared, noise(1, 9, dim, seed=6)
    expected = exact(query, [[Dense(keys, values)]])
    base = keys.mean(dim=1)[None].half()
    rows = quantise(torch.stack([keys, values])[None], base, bits)
    stored = dequantise(rows, base[:, None], torch.zeros(700, dtype=torch.int64), bits)[0]
    loss = error(attend(query, [[pack(keys, values, bits)]]), expected)
    assert loss < largest
    assert loss < 1.2 * error(attend(query, [[Dense(*stored)]]), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_tokens_take_what_they_should(bits):
    part = pack(*noise(2, 3, 100, 64), bits)
    packed = part.key_codes.nbytes + part.value_codes.nbytes + part.numbers.nbytes
    assert packed == 3 * 100 * (2 * 64 * bits // 8 + 8)


@pytest.mark.parametrize(("bits", "dim"), [(3, 64), (4, 63)])
def test_other_bits_are_refused(bits, dim):
    with pytest.raises(ValueError, match=f"bits must be 8, or 4 .* got {bits} for a head dim of {dim}"):
        pack(*noise(2, 3, 5, dim), bits)


def test_vectors_all_alike_and_empty_ones_can_be_packed():
    constant = torch.ones(3, 10, 64)
    assert error(pack(constant, 2 * constant, 4).dense()[1], 2 * constant) < 1e-2
    assert len(pack(constant[:, :0], constant[:, :0], 4)) == 0


# Prefill ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    new=st.integers(1, 150),
    past=st.one_of(st.just(0), st.integers(1, 700)),
    heads=heads,
    dim=dims,
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_prefill_is_causal_from_the_bottom_right(new, past, heads, dim, dtype):
    part = dense_part(heads[1], new + past, dim, 3, dtype)
    query = noise(1, new, heads[0], dim, seed=4, dtype=dtype).transpose(1, 2)
    out = prefill(query, part.keys[None], part.values[None])
    expected = prefill_reference(query.double(), part.keys[None].double(), part.values[None].double())
    assert out.dtype == dtype
    assert out.shape == query.shape
    assert error(out, expected) < TOLERANCE[dtype]


def test_a_token_sees_none_that_comes_later():
    part = dense_part(3, 60, 64, 1)
    query = noise(1, 9, 20, 64, seed=2)
    before = prefill(query, part.keys[None], part.values[None])
    part.keys[:, -1], part.values[:, -1] = 7.0, 7.0
    after = prefill(query, part.keys[None], part.values[None])
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.allclose(before[:, :, -1], after[:, :, -1])


def test_more_new_tokens_than_there_are_is_a_bug():
    part = dense_part(3, 5, 64, 1)
    with pytest.raises(AssertionError, match="6 tokens cannot be the last of 5"):
        prefill(noise(1, 9, 6, 64), part.keys[None], part.values[None])


# Which version runs -------------------------------------------------------------------------------------------------


def test_kernels_of_a_gpu_run_where_they_are_asked_for(monkeypatch):
    asked = uses_triton.__wrapped__
    monkeypatch.delenv("VSTREAM_KERNELS", raising=False)
    assert not asked("cuda")
    monkeypatch.setenv("VSTREAM_KERNELS", "triton")
    assert asked("cuda")
    assert not asked("cpu")
    monkeypatch.setenv("VSTREAM_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"VSTREAM_KERNELS must be torch \(the default\) or triton, got 'cuda'"):
        asked("cpu")
