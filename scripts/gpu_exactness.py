"""How far streams are from the stock models in the types that GPUs compute in, on tiny random checkpoints.

In 16 bits nothing is equal to the last bit, so each difference has a floor beside it: how far the stock model in that
type is from itself in float64, weights included, which are rounded too. `gpu_check.py` runs it; what the stock models
are given for a conversation is in `tests/family_inputs.py`. It knows nothing of speed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_checkpoint import make_checkpoint
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from family_inputs import FLOAT32_ALONE, INPUTS, Stock
from streams import QUESTION, answer_logits, recording, watched

from vstream.cache import place, unplace
from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.loading import quiet_transformers
from vstream.types import Frame

COVERING = 2048  # tokens: the window holds the whole clip
ANSWER_TOKENS = 8
HERE, THERE = 3, 2500  # positions between which keys are moved
ALLOWED = 2.0  # times the floor: products of other shapes round otherwise
LEAST = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # relative, where the floor is lower
MOVED_ROUNDINGS = 8  # of the type, that moving a key may cost: out of its place, stored, and into another


@dataclass(frozen=True)
class Case:
    """One family in one type.

    Attributes:
        adapter: ours, a `Recording`.
        stock: transformers', on the same device.
        exact: the stock model in float64, or float32 where it does not run in that.
    """

    adapter: Any
    stock: Stock
    exact: Stock


def pictures(count: int, size: tuple[int, int] = (53, 91)) -> list[Frame]:
    """Frames one second apart, of an odd size, every one different."""
    noise = np.random.default_rng(0)
    return [Frame(float(second), noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for second in range(count)]


def write_family(family: str, folder: Path, device: str, tokenizer_file: Path | None = None) -> Stock:
    """Writes a family's tiny checkpoint and loads the stock model in the best type it runs in.

    Args:
        family: of `make_checkpoint.FAMILIES`.
        folder: where the checkpoint is written.
        device: where it computes.
        tokenizer_file: a tokenizer other than SmolLM2's; None is that one.
    """
    make_checkpoint(family, folder, tokenizer_file=tokenizer_file)
    return load_stock(folder, torch.float32 if family in FLOAT32_ALONE else torch.float64, device)


def family_row(family: str, exact: Stock, dtype_name: str) -> dict[str, Any]:
    """All differences of a family in one type, and whether they are as small as they must be."""
    dtype, device = getattr(torch, dtype_name), str(exact.model.device)
    adapter = recording(load_adapter(str(exact.folder), device=device, dtype=dtype))
    case, frames = Case(adapter, load_stock(exact.folder, dtype, device), exact), pictures(7)
    logits, moved = compare_logits(case, family, frames), compare_moved(case, frames)
    text = compare_text(case, family, frames)
    good = logits["relative"] <= max(ALLOWED * logits["floor"], LEAST[dtype])
    good = good and moved["moved_relative"] <= MOVED_ROUNDINGS * moved["rounding"]
    return {
        "ok": good and (text["greedy_equal"] or dtype != torch.float32), "family": family, "dtype": dtype_name,
        "reference": str(exact.model.dtype).removeprefix("torch."), **logits, **moved, **text,
    }  # fmt: skip


def load_stock(folder: Path, dtype: torch.dtype, device: str) -> Stock:
    """The stock model and its tokenizer."""
    with quiet_transformers():
        loaded = Stock.load(folder, dtype)
    loaded.model.to(device)
    return loaded


def compare_logits(case: Case, family: str, frames: list[Frame]) -> dict[str, float]:
    """Every logit of a stream and its question: from the stock model's own, and from float64."""
    case.adapter.hidden.clear()
    session = watched(case.adapter, frames, window_tokens=COVERING)
    with torch.inference_mode():
        streamed = case.adapter.head(torch.cat(case.adapter.hidden))
    ours = torch.cat([streamed, answer_logits(session)])
    stock, exact = (stock_logits(one, family, frames) for one in (case.stock, case.exact))
    return {
        "max_abs": float((ours.double() - stock.double()).abs().max()),
        "relative": relative(ours, exact),
        "floor": relative(stock, exact),
    }


def stock_logits(stock: Stock, family: str, frames: list[Frame]) -> Tensor:
    """[N, V] of the stock forward over the whole conversation."""
    with torch.inference_mode():
        found: Tensor = stock.model(**inputs_of(stock, family, frames), use_cache=False).logits[0]
    return found


def inputs_of(stock: Stock, family: str, frames: list[Frame]) -> dict[str, Any]:
    """What the stock model is given, where it is."""
    return {name: value.to(stock.model.device) for name, value in INPUTS[family](stock, frames).items()}


def relative(found: Tensor, exact: Tensor) -> float:
    """The size of the difference, as a part of the size."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@torch.inference_mode()
def compare_moved(case: Case, frames: list[Frame]) -> dict[str, float]:
    """First-layer keys brought to another place, from those computed there, as a part of the largest."""
    adapter = case.adapter
    span = adapter.layout(frames[:3], adapter.encode(frames[:3]))
    here, there = (span.positions + start for start in (HERE, THERE))
    found = first_layer(adapter, span.embeds, here)
    moved, computed = (
        place(adapter, unplace(adapter, found, here), there)[0],
        first_layer(adapter, span.embeds, there)[0],
    )
    off = (moved.double() - computed.double()).abs().max() / computed.double().abs().max()
    assert int((span.kinds == TokenKind.VISION).sum()), "no picture among what is moved"
    return {"moved_relative": float(off), "rounding": torch.finfo(adapter.dtype).eps}


def first_layer(adapter: Any, embeds: Tensor, positions: Tensor) -> Tensor:
    """Keys and values [2, K, N, D] that the model itself computes at positions [A, N]."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    adapter.forward(embeds, positions, cache)
    return torch.cat([cache.layers[0].keys, cache.layers[0].values])


def compare_text(case: Case, family: str, frames: list[Frame]) -> dict[str, Any]:
    """A greedy answer and the stock model's own; in 16 bits a tie may be told otherwise, so only float32 must agree."""
    session = watched(case.adapter, frames, window_tokens=COVERING)
    answer = session.ask(QUESTION)
    while session.step():
        pass
    inputs = inputs_of(case.stock, family, frames)
    with torch.inference_mode():
        ids = case.stock.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    stock = case.stock.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"greedy_equal": answer.text().strip() == stock.strip(), "greedy_characters": len(stock.strip())}
