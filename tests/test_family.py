"""Every family, on a tiny random checkpoint in the hub's layout: what our streams compute is what the stock model does.

The reference is the stock class over the whole conversation at once, with its own placeholders, its own merging of
features and its own positions; `family_inputs.py` says what each is given. A new family is one function there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_inputs import FLOAT32_ALONE, INPUTS, Stock
from streams import (
    QUESTION,
    TOLERANCE,
    answer_logits,
    assert_window_is_placed,
    difference,
    forget_all_but,
    recording,
    watch_with_a_shifted_clip,
    watched,
)
from torch import Tensor
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import recipes as recipe_modules
from make_checkpoint import FAMILIES, make_checkpoint

from vstream.cache import place, unplace
from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.base import Adapter
from vstream.types import Frame

COVERING = 2048
DOUBLE = pytest.param(torch.float64, id="float64", marks=pytest.mark.slow)
MUST_DIFFER = 1e-2
shapes = pytest.mark.parametrize(
    ("size", "count"), [((64, 64), 6), ((53, 91), 7), ((200, 64), 3)], ids=["square", "odd", "tall"]
)


@dataclass
class Case:
    """A family's checkpoint, loaded by us and by transformers."""

    family: str
    dtype: torch.dtype
    adapter: Any  # Recording
    stock: Stock

    def logits(self, frames: list[Frame]) -> Tensor:
        """[N, V] of the stock forward over the whole conversation."""
        with torch.inference_mode():
            found: Tensor = self.stock.model(**INPUTS[self.family](self.stock, frames), use_cache=False).logits[0]
        return found

    def streamed(self) -> Tensor:
        """[N, V] of all that was watched since recording began anew."""
        return self.adapter.head(torch.cat(self.adapter.hidden))

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    """A family's checkpoint, under the family's name; not to be changed."""
    return make_checkpoint(request.param, tmp_path_factory.mktemp("checkpoint") / request.param)


@pytest.fixture(scope="module", params=[pytest.param(torch.float32, id="float32"), DOUBLE])
def loaded(folder: Path, request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    if request.param == torch.float64 and folder.name in FLOAT32_ALONE:
        pytest.skip(f"{folder.name} does not run in 64 bits")
    adapter = recording(load_adapter(str(folder), device="cpu", dtype=request.param))
    return Case(folder.name, request.param, adapter, Stock.load(folder, request.param))


@pytest.fixture
def case(loaded: Case) -> Case:
    loaded.adapter.hidden.clear()
    loaded.adapter.positions.clear()
    return loaded


def pictures(count: int, size: tuple[int, int] = (50, 70), seed: int = 0) -> list[Frame]:
    """Frames one second apart, every one with colours and an edge of its own."""
    noise, frames = np.random.default_rng(seed), []
    for i in range(count):
        image = noise.integers(0, 256, (*size, 3)) // 2 + noise.integers(0, 128, 3)
        image[:, : int(noise.integers(1, size[1]))] //= 2
        frames.append(Frame(float(i), image.astype(np.uint8)))
    return frames


def test_every_family_that_is_served_is_tried_here() -> None:
    recipes = {path.stem for path in Path(recipe_modules.__file__).parent.glob("*.py")} - {"__init__"}
    assert recipes == set(FAMILIES), "a family without a module in scripts/recipes, or the reverse"
    assert set(INPUTS) == set(FAMILIES), "a family without a function in tests/family_inputs.py, or the reverse"


@pytest.mark.slow
@shapes
def test_streaming_equals_the_stock_forward(
    case: Case, size: tuple[int, int], count: int, record_property: Callable[[str, object], None]
) -> None:
    frames = pictures(count, size)
    session = watched(case.adapter, frames, window_tokens=COVERING)
    streamed, stock = case.streamed(), case.logits(frames)
    answered = answer_logits(session)
    assert len(stock) == len(streamed) + len(answered)
    off = difference(torch.cat([streamed, answered]), stock)
    told = {"family": case.family, "dtype": str(case.dtype).removeprefix("torch."), "difference": off}
    for name, value in told.items():
        record_property(name, value)  # scripts/family_table.py reads them
    assert off < case.tolerance


@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_retrieving_everything_equals_the_stock_forward(case: Case, selection: str) -> None:
    frames = pictures(11)
    session = watched(case.adapter, frames, window_tokens=COVERING, retrieve_tokens=1024, selection=selection)
    forget_all_but(session, few_tokens(case, frames))
    assert len(session.memory.cache.window) < len(session.memory.view(1e9).candidates)
    answered = answer_logits(session)
    assert difference(answered, case.logits(frames)[-len(answered) :]) < case.tolerance


def test_what_must_differ_from_the_stock_forward_does(case: Case) -> None:
    """Negative controls of the tests above: a picture changed, two swapped, less brought back, positions shifted."""
    frames = pictures(11)
    stock = case.logits(frames)
    swapped = [replace(frames[0], image=frames[1].image), replace(frames[1], image=frames[0].image), *frames[2:]]
    for others in ([pictures(1, seed=9)[0], *frames[1:]], swapped):
        answered = answer_logits(watched(case.adapter, others, window_tokens=COVERING))
        assert difference(answered, stock[-len(answered) :]) > MUST_DIFFER

    few = few_tokens(case, frames)
    session = watched(case.adapter, frames, window_tokens=COVERING, retrieve_tokens=few)
    forget_all_but(session, few)
    answered = answer_logits(session)
    assert difference(answered, stock[-len(answered) :]) > MUST_DIFFER

    case.adapter.hidden.clear()
    watch_with_a_shifted_clip(case.adapter, frames, window_tokens=COVERING)
    streamed = case.streamed()
    assert difference(streamed, stock[: len(streamed)]) > MUST_DIFFER


@torch.inference_mode()
def few_tokens(case: Case, frames: list[Frame]) -> int:
    """Two clips of two frames."""
    return 2 * len(case.adapter.layout(frames[:2], case.adapter.encode(frames[:2])))


@pytest.mark.slow
def test_a_long_stream_stays_below_the_trained_length(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.adapter, "max_positions", 450)
    frames, most = pictures(80), case.adapter.max_frame_tokens
    session = watched(case.adapter, frames, window_tokens=4 * most, retrieve_tokens=2 * most, gist_tokens=most)
    assert session.memory.cache.num_rebases >= 1
    assert max(int(positions.max()) for positions in case.adapter.positions) < 450
    assert_window_is_placed(session)


@torch.inference_mode()
def test_moved_keys_equal_computed_keys(case: Case) -> None:
    adapter, frames = case.adapter, pictures(3)
    span = adapter.layout(frames, adapter.encode(frames))
    here, there = (span.positions + start for start in (3, 2500))
    moved = place(adapter, unplace(adapter, keys_at(adapter, span.embeds, here), here), there)
    computed = keys_at(adapter, span.embeds, there)
    scale = float(computed[0, 0].abs().max())
    assert difference(moved[0], computed[0]) / scale < 1e-6
    assert difference(keys_at(adapter, span.embeds, here)[0], computed[0]) / scale > MUST_DIFFER


def keys_at(adapter: Adapter, embeds: Tensor, positions: Tensor) -> Tensor:
    """kv [L, 2, K, N, D] that the model itself computes at positions [A, N]."""
    cache: Any = DynamicCache()
    adapter.forward(embeds, positions, cache)
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])


def test_greedy_text_equals_generate(case: Case) -> None:
    frames = pictures(5)
    told = {seed: greedy(case, [pictures(1, seed=seed)[0], *frames[1:]]) for seed in (0, 9)}
    inputs = INPUTS[case.family](case.stock, frames)
    with torch.inference_mode():
        ids = case.stock.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert told[0] == case.stock.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert told[9] != told[0], "another picture must be told otherwise"


def greedy(case: Case, frames: list[Frame]) -> str:
    session = watched(case.adapter, frames, window_tokens=COVERING)
    answer = session.ask(QUESTION)
    while session.step():
        pass
    return answer.text().strip()


@torch.inference_mode()
def test_frames_take_as_many_tokens_as_told(case: Case) -> None:
    adapter, image = case.adapter, pictures(1)[0].image
    frames = [Frame(seconds, image) for seconds in (0.0, 9.0, 72.0, 600.0, 7212.0, 359999.0)]
    for frame in frames:
        features = adapter.encode([frame])
        span = adapter.layout([frame], features)
        assert adapter.min_frame_tokens <= len(span) <= adapter.max_frame_tokens
        assert int((span.kinds == TokenKind.VISION).sum()) == features.shape[1]
        assert set(span.seconds.tolist()) == {frame.pts_seconds}
