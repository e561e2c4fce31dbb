"""The memory's kernels against their specification, and that against float64; everything unused is poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blocks import raw
from hypothesis import given, settings
from hypothesis import strategies as st
from slabs import Scattered, random_tensor, rotary_tables
from streams import QUESTION, feature_frames, pump_all, watched
from torch import Tensor

from vstream import kernels
from vstream.cache import place
from vstream.kernels import Places, reference, torch_memory
from vstream.kernels.streams import DONE, Side, arrivals, queued
from vstream.memory.codec import CODECS
from vstream.models.random import RandomLlama
from vstream.recall import Recall

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DIMS = (16, 64, 80, 96, 128)
FLOAT8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny tensors: a thread pool would only wait for other processes' threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative distance from what is right, in float64."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


# Placing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    codec=st.sampled_from(sorted(CODECS)),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dim=st.sampled_from(DIMS),
    heads=st.integers(1, 3),
    dtype=st.sampled_from(FLOATS),
    per_slot=st.integers(1, 5),
    spare=st.integers(0, 2),
    stretch=st.sampled_from([1, 1 << 18]),
    seed=st.integers(0, 99),
)
def test_placing_gives_the_bits_of_the_specification(
    codec: str, counts: list[int], dim: int, heads: int, dtype: Any, per_slot: int, spare: int, stretch: int, seed: int
) -> None:
    """Whatever the slab looks like; and both are right by float64; nothing beside the room is touched."""
    given_ = Scattered(codec, counts, dim=dim, heads=heads, dtype=dtype, per_slot=per_slot, spare=spare, seed=seed)
    tables = rotary_tables(sum(counts), dim, seed)
    results = []
    for version in (reference, torch_memory, kernels):
        keys, values, buffer = given_.room()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_memory, "STRETCH_NUMBERS", stretch)
            version.place_rows(given_.words, given_.places, given_.owner, given_.layout, tables, keys, values)
        assert int(buffer.isnan().sum()) == buffer.numel() - keys.numel() - values.numel(), "beside the room"
        results.append(raw(torch.stack([keys, values])))
    assert results[0] == results[1] == results[2]
    exact = reference.rotate_halves(given_.kv[0].double(), *(table.double() for table in tables))
    assert off(keys, exact) < 4 * torch.finfo(dtype).eps
    assert torch.equal(values, given_.kv[1])


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_placing_nothing_writes_nothing(codec: str) -> None:
    given_ = Scattered(codec, [4])
    keys, values, buffer = given_.room()
    nowhere = torch.zeros(0, dtype=torch.int64)
    places, tables = Places(nowhere, nowhere), rotary_tables(0, 64)
    kernels.place_rows(given_.words, places, given_.owner[:0], given_.layout, tables, keys[:, :0], values[:, :0])
    assert bool(buffer.isnan().all())


def test_rows_of_other_slots_are_other_keys() -> None:
    """Negative control: an offset that is wrong by one is seen."""
    given_ = Scattered("none", [6, 3])
    tables, (keys, values, _) = rotary_tables(9, 64), given_.room()
    slots, offsets = given_.places.on(given_.words.device)
    wrong = Places(slots, (offsets + 1) % 3)
    kernels.place_rows(given_.words, wrong, given_.owner, given_.layout, tables, keys, values)
    assert not torch.equal(values, given_.kv[1])


@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from(DIMS), tokens=st.integers(0, 70), layers=st.integers(1, 3),
    dtype=st.sampled_from([*FLOATS, torch.float64]), stretch=st.sampled_from([1, 1 << 18]),
)  # fmt: skip
def test_turning_into_a_view_gives_the_bits_of_the_specification(
    dim: int, tokens: int, layers: int, dtype: Any, stretch: int
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    keys = random_tensor(layers, tokens, 2, dim, dtype=dtype).transpose(1, 2)  # [L, K, N, D], tokens apart
    tables = rotary_tables(tokens, dim, dtype=wide)
    out = torch.full((layers, 3, tokens + 2, dim), torch.nan, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_memory, "STRETCH_NUMBERS", stretch)
        kernels.rotate_into(keys, tables, out[:, :2, 1:-1])
    assert raw(out[:, :2, 1:-1]) == raw(reference.rotate_halves(keys, *tables).to(dtype))
    assert int(out.isnan().sum()) == out.numel() - keys.numel()


# Quantised rows ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]), dim=st.sampled_from(DIMS), tokens=st.integers(1, 30),
    heads=st.integers(1, 3), layers=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_whole_numbers_are_turned_exactly(bits: int, dim: int, tokens: int, heads: int, layers: int, seed: int) -> None:
    """Integer products give the same bits as the specification's float32 ones."""
    kv, base = random_tensor(layers, 2, heads, tokens, dim, seed=seed), random_tensor(layers, heads, dim).half()
    rows, owner = reference.quantise(kv, base, bits), torch.zeros(tokens, dtype=torch.int64)
    found = kernels.dequantise(rows, base[:, None], owner, bits)
    assert raw(found) == raw(reference.dequantise(rows, base[:, None], owner, bits))


@pytest.mark.parametrize("dim", [1, 3, *DIMS])
def test_a_turn_is_a_hadamard_transform_whose_bits_do_not_depend_on_how_many(dim: int) -> None:
    vectors = random_tensor(37, dim, seed=dim)
    turned = kernels.turn(vectors)
    width = dim & -dim
    exact = vectors.double() @ reference.signs(dim, vectors.device).double() / width**0.5
    assert off(turned, exact) < 1e-6
    assert raw(turned) == raw(torch.cat([kernels.turn(one[None]) for one in vectors]))
    assert raw(turned) == raw(kernels.turn(vectors.T.contiguous().T)), "nor on how they lie"


# Choosing ---------------------------------------------------------------------------------------------------------


def best_by_loops(words: Tensor, blocks: Tensor, centre: Tensor | None, cosine: bool) -> Tensor:
    """[B] in float64, by the words of the specification."""
    words, keys = words.double(), blocks.double() - (0 if centre is None else centre.double())
    if cosine:
        words, keys = words / words.norm(dim=-1, keepdim=True), keys / keys.norm(dim=-1, keepdim=True)
    layers, heads, count = keys.shape[:3]
    found = [
        max(
            sum(float(words[i, j, w] @ keys[i, j, block]) for i in range(layers) for j in range(heads))
            for w in range(words.shape[2])
        ) / (layers * heads) for block in range(count)
    ]  # fmt: skip
    return torch.tensor(found, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)), words=st.integers(1, 4),
    dim=st.sampled_from(DIMS), dtype=st.sampled_from([torch.float16, torch.float32, FLOAT8]),
    centred=st.booleans(), cosine=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_best_match_is_that_of_loops(
    size: tuple[int, int, int], words: int, dim: int, dtype: Any, centred: bool, cosine: bool, seed: int
) -> None:
    layers, heads, blocks = size
    asked = random_tensor(layers, heads, words, dim, seed=seed)
    kept = random_tensor(layers, heads, blocks, dim, seed=seed + 1).to(dtype)
    centre = random_tensor(layers, heads, 1, dim, seed=seed + 2) if centred else None
    before, wanted = raw(kept), best_by_loops(asked, kept.float(), centre, cosine)
    for version in (reference, kernels):
        found = version.best_match(asked, kept, centre, cosine=cosine)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert raw(kept) == before, "what is kept is not changed"


def test_matches_of_no_blocks_are_none() -> None:
    kept, words = torch.zeros(2, 2, 0, 16).half(), random_tensor(2, 2, 3, 16)
    assert kernels.best_match(words, kept, None, cosine=True).shape == (0,)


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=30),
    budget=st.integers(0, 60),
)
def test_what_fits_is_what_the_specification_takes(blocks: list[tuple[int, int, bool]], budget: int) -> None:
    """Few different scores, so that there are ties."""
    scores, sizes = (torch.tensor([one[i] for one in blocks], dtype=kind)
                     for i, kind in ((0, torch.float32), (1, torch.int64)))  # fmt: skip
    first = torch.tensor([one[2] for one in blocks], dtype=torch.bool)
    for early in (None, first):
        wanted = reference.top_within(scores, sizes, budget, early)
        assert kernels.top_within(scores, sizes, budget, early).tolist() == wanted.tolist()
        assert int(sizes[wanted].sum()) <= budget


def test_ties_go_to_the_earlier_and_what_is_too_large_is_passed_over() -> None:
    scores, sizes = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), torch.tensor([3, 5, 9, 5, 2])
    assert kernels.top_within(scores, sizes, 12).tolist() == [1, 3, 4]
    assert kernels.top_within(scores, sizes, 9).tolist() == [0, 1]
    first = torch.tensor([False, False, False, False, True])
    assert kernels.top_within(scores, sizes, 9, first).tolist() == [1, 4]


# In a session -----------------------------------------------------------------------------------------------------


class Interleaved(RandomLlama):
    """A model that turns neighbouring channels together."""

    def rotate(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1] // 2
        cos, sin = (table[..., :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
        turned = torch.stack([-keys[..., 1::2], keys[..., ::2]], dim=-1).flatten(-2)
        return keys * cos + turned * sin


def test_models_that_turn_otherwise_are_told_apart() -> None:
    assert RandomLlama().turns_halves
    assert not Interleaved().turns_halves


def recalled(adapter: RandomLlama, codec: str, patch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """What a question's recall puts into every layer, and the same by `gather` and `place`."""
    there: list[Tensor] = []
    wanted: list[Tensor] = []
    really = Recall.for_all_layers

    def noting(self: Recall, query: Any) -> None:
        sink = self._cache.snapshot.sink.meta.num_tokens
        really(self, query)
        metas = self._choose(query, self.layers)
        kv = self._store.gather([meta.id for meta in metas], [meta.num_tokens for meta in metas])
        wanted.extend(place(adapter, kv, self._positions(metas)))
        there.extend(torch.cat(span.view())[:, :, sink : sink + kv.shape[3]] for span in self._cache.spans)

    patch.setattr(Recall, "for_all_layers", noting)
    session = watched(adapter, feature_frames(60), detail_codec=codec, window_tokens=40, retrieve_tokens=64)
    answer = session.ask(QUESTION)
    pump_all(session)
    assert answer.error is None
    return there, wanted


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("kind", [RandomLlama, Interleaved])
def test_recall_on_its_own_stream_brings_what_gather_and_place_do(
    kind: type[RandomLlama], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass and beside the work, or in three and within it: the same bits, for both kinds of rotation."""
    there, wanted = recalled(kind(), codec, monkeypatch)
    assert len(wanted) == kind().num_layers
    assert wanted[0].shape[2] > 30, "blocks were brought back"
    assert [raw(one) for one in there] == [raw(one) for one in wanted]


def test_without_a_gpu_work_beside_is_done_at_once() -> None:
    side = arrivals(torch.device("cpu"))
    assert side is arrivals(torch.device("cpu"))
    out = torch.zeros(3)
    with side.beside(out):
        out += 1
        assert queued(torch.device("cpu")) is DONE
    DONE.wait()
    DONE.settle()
    assert out.tolist() == [1, 1, 1]
    assert isinstance(side, Side)
