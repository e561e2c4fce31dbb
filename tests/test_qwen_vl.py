"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: streaming against the stock models, pictures and positions against transformers' own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import QUESTION, TOLERANCE, Recording, answer_logits, difference, forget_all_but, watched
from torch import Tensor

from vstream.models.checkpoint import Checkpoint
from vstream.models.qwen2_5_vl import Qwen25VlAdapter
from vstream.models.qwen2_vl import QwenVlAdapter
from vstream.models.qwen3_vl import Qwen3VlAdapter
from vstream.types import Frame

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import make_checkpoint

ADAPTERS: dict[str, type[QwenVlAdapter]] = {
    "qwen2_vl": QwenVlAdapter, "qwen2_5_vl": Qwen25VlAdapter, "qwen3_vl": Qwen3VlAdapter,
}  # fmt: skip
families = pytest.mark.parametrize("family", ADAPTERS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
COVERING = 2048


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: make_checkpoint(family, root / family) for family in ADAPTERS}


def recording(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The family's adapter, recording what the streams do."""
    adapter = type("Recorded", (Recording, ADAPTERS[family]), {})(Checkpoint(folder, "tiny"), dtype=dtype)
    adapter.hidden.clear()  # of the check at load
    return adapter


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (90, 140)) -> list[Frame]:
    noise = np.random.default_rng(seed)
    return [Frame(float(i), noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for i in range(count)]


def stock_prompt(adapter: QwenVlAdapter, frames: list[Frame]) -> dict[str, Tensor]:
    """What the stock model is given: our layout in its own words, one video a group."""
    rows, columns = adapter.patches.grid(*frames[0].image.shape[:2])
    groups = [frames[start : start + 2] for start in range(0, len(frames), 2)]
    ids = list(adapter.tokens.marked(adapter.turn.before_video))
    for group in groups:
        mean = (group[0].pts_seconds + group[-1].pts_seconds) / 2
        ids += adapter.tokens.ids(adapter.time_text(mean))
        ids += adapter.tokens.marked(f"<|vision_start|>{'<|video_pad|>' * rows * columns}<|vision_end|>")
    ids += adapter.tokens.marked(adapter.turn.before_question) + adapter.tokens.ids(QUESTION)
    ids += adapter.tokens.marked(adapter.turn.after_question)
    pad = adapter.tokens.special("<|video_pad|>")
    patches = [adapter.patches.patches(group, rows, columns) for group in groups]
    input_ids = torch.tensor([ids])
    return {
        "input_ids": input_ids, "pixel_values_videos": torch.cat(patches),
        "video_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * len(groups)),
        "mm_token_type_ids": (input_ids == pad).int() * 2,
    }  # fmt: skip


@torch.inference_mode()
def stock_logits(adapter: QwenVlAdapter, frames: list[Frame]) -> Tensor:
    """Logits [N, V] of the stock class over one prompt, positions its own."""
    adapter.model.model.rope_deltas = None
    logits: Tensor = adapter.model(**stock_prompt(adapter, frames), use_cache=False).logits[0]
    return logits


@dtypes
@families
def test_streaming_equals_the_stock_forward(folders: dict[str, Path], family: str, dtype: torch.dtype) -> None:
    adapter, frames = recording(folders[family], family, dtype), pictures(11)
    session = watched(adapter, frames, window_tokens=COVERING)
    streamed = adapter.head(torch.cat(adapter.hidden))
    answered = answer_logits(session)
    stock = stock_logits(adapter, frames)
    print(
        family,
        dtype,
        difference(streamed, stock[: len(streamed)]),
        difference(answered, stock[len(streamed) :]),
        stock.std(),
    )
    assert len(stock) == len(streamed) + len(answered)
    assert difference(streamed, stock[: len(streamed)]) < TOLERANCE[dtype]
    assert difference(answered, stock[len(streamed) :]) < TOLERANCE[dtype]


@dtypes
@families
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_retrieving_everything_equals_the_stock_forward(
    folders: dict[str, Path], family: str, selection: str, dtype: torch.dtype
) -> None:
    adapter, frames = recording(folders[family], family, dtype), pictures(15)
    session = watched(adapter, frames, window_tokens=COVERING, retrieve_tokens=1024, selection=selection)
    forget_all_but(session, 60)
    assert len(session.memory.cache.window) < len(session.memory.view(1e9).candidates)
    answered = answer_logits(session)
    stock = stock_logits(adapter, frames)
    assert difference(answered, stock[-len(answered) :]) < TOLERANCE[dtype]
