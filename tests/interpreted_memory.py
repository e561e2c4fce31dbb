"""The memory's Triton kernels in Triton's interpreter, against their specification; see `test_triton_memory.py`.

Run by a pytest of its own with TRITON_INTERPRET=1: the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from blocks import raw
from slabs import Scattered, random_tensor, rotary_tables

assert os.environ.get("TRITON_INTERPRET") == "1", "run it by tests/test_triton_memory.py"

from vstream.kernels import reference, triton_memory  # noqa: E402

DIMS = (64, 80, 96, 128)
CASES = [(codec, dim) for codec in ("none", "int8", "int4") for dim in DIMS]


@pytest.mark.parametrize(("codec", "dim"), CASES)
def test_placing_gives_the_bits_of_the_specification(codec: str, dim: int) -> None:
    """Ragged blocks in scattered slots; unused memory, and what is beside the room, are poisoned.

    The interpreter cuts bfloat16 off where GPUs round: there last bits differ.
    """
    dtype = {64: torch.float16, 80: torch.float32, 96: torch.bfloat16, 128: torch.float32}[dim]
    given = Scattered(codec, [5, 1, 33], dim=dim, heads=1 + dim % 3, dtype=dtype, per_slot=4, seed=dim)
    tables, results = rotary_tables(39, dim, dim), []
    for version in (reference, triton_memory):
        keys, values, buffer = given.room()
        version.place_rows(given.words, given.places, given.owner, given.layout, tables, keys, values)
        assert int(buffer.isnan().sum()) == buffer.numel() - keys.numel() - values.numel(), "beside the room"
        results.append(torch.stack([keys, values]))
    if dtype is torch.bfloat16:
        off = (results[0].double() - results[1].double()).norm() / results[0].double().norm()
        assert float(off) < 2**-7
    else:
        assert raw(results[0]) == raw(results[1])


@pytest.mark.parametrize("codec", ["none", "int4"])
def test_rows_that_no_kernel_can_reach_are_brought_first(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of neighbours are copied, one by one, and then placed: the same bits."""
    given = Scattered(codec, [5, 9], per_slot=4, spare=0)
    tables, results = rotary_tables(14, 64), []
    runs = given.places.runs(4)
    assert sum(count for _, count in runs) == len(given.places)
    assert 1 < len(runs) < len(given.places)
    for direct in (True, False):
        keys, values, _ = given.room()
        if not direct:
            monkeypatch.setattr(triton_memory, "near", brought)
        triton_memory.place_rows(given.words, given.places, given.owner, given.layout, tables, keys, values)
        results.append((raw(keys), raw(values)))
    assert results[0] == results[1]


def brought(slab_layer: torch.Tensor, places: Any, device: torch.device) -> Any:
    index = torch.arange(len(places))
    return triton_memory.copied(slab_layer, places, device)[:, None], index, torch.zeros_like(index)


def test_rows_are_gathered_from_slots_with_room_to_spare() -> None:
    given = Scattered("int8", [3, 7], per_slot=2)
    places = given.places.on(torch.device("cpu"))
    assert raw(triton_memory.gather_rows(given.words, *places)) == raw(reference.gather_rows(given.words, *places))
    assert triton_memory.gather_rows(given.words, *(one[:0] for one in places)).shape == (0, given.words.shape[2])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [*DIMS, 6, 2])
@pytest.mark.parametrize("kind", ["normal", "alike", "huge", "one sticks out"])
def test_what_is_packed_has_the_same_bytes(bits: int, dim: int, kind: str) -> None:
    """Which are stored, with a checksum: not one may differ."""
    kv = random_tensor(2, 2, 2, 35, dim, seed=dim)
    if kind == "alike":
        kv.fill_(-3.7)
    elif kind == "huge":
        kv *= 30_000
    elif kind == "one sticks out":
        kv[..., -1] *= 300
    kv = kv.transpose(2, 3).contiguous().transpose(2, 3)  # heads are not far apart, as in a cache
    base = kv[:, 0, :, :4].mean(dim=2).half()
    assert raw(triton_memory.quantise(kv, base, bits)) == raw(reference.quantise(kv, base, bits))


def exactly(words: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor | None, cosine: bool) -> torch.Tensor:
    """The best match [B] in float64."""
    keys = keys if centre is None else keys - centre
    if cosine:
        words, keys = words / words.norm(dim=-1, keepdim=True), keys / keys.norm(dim=-1, keepdim=True)
    return (words @ keys.mT).mean(dim=(0, 1)).amax(dim=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize(("dim", "blocks", "words"), [(64, 33, 1), (80, 5, 17), (128, 40, 3)])
@pytest.mark.parametrize("cosine", [True, False])
def test_the_best_match_is_that_of_the_specification(
    dtype: Any, dim: int, blocks: int, words: int, cosine: bool
) -> None:
    asked = random_tensor(2, 3, words, dim)
    table = torch.full((2, 3, blocks + 9, dim), torch.nan)
    table[:, :, 4 : 4 + blocks] = random_tensor(2, 3, blocks, dim, seed=1) * torch.logspace(-4, 1, blocks)[:, None]
    kept, centre = table.to(dtype)[:, :, 4 : 4 + blocks], random_tensor(2, 3, 1, dim, seed=2) if cosine else None
    found = triton_memory.best_match(asked, kept, centre, cosine=cosine)
    wanted = exactly(asked.double(), kept.double(), None if centre is None else centre.double(), cosine)
    off = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert float(off) < 1e-6
