"""LLaVA-OneVision: streaming against the stock model, pictures against transformers' own, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from checkpoints import PICTURES, write_checkpoint
from streams import (
    QUESTION,
    TOLERANCE,
    Recording,
    answer_logits,
    difference,
    watched,
)
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from vstream.models import load_adapter
from vstream.models.checkpoint import Checkpoint
from vstream.models.llava_onevision import LlavaOnevisionAdapter
from vstream.models.pictures import PictureSpec, prepare
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
P = 4  # tokens of a picture of 64 pixels in patches of 16, pooled
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
texts = pytest.mark.parametrize("text", ["qwen2", "qwen3", "llama"])


class RecordingLlava(Recording, LlavaOnevisionAdapter):
    """The adapter, recording what the streams do."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each text model; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {text: write_checkpoint(root / text, text=text) for text in ("qwen2", "qwen3", "llama")}


@pytest.fixture(scope="module")
def tiny(folders: dict[str, Path]) -> LlavaOnevisionAdapter:
    adapter = load_adapter(str(folders["qwen2"]), device="cpu")
    assert isinstance(adapter, LlavaOnevisionAdapter)
    return adapter


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(folders["qwen2"], tmp_path / "checkpoint"))


def pictures(count: int, seed: int = 0) -> list[Frame]:
    noise = np.random.default_rng(seed)
    return [Frame(float(i), noise.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for i in range(count)]


def photographs(count: int) -> list[Frame]:
    """Frames of the sample video, 6 seconds apart."""
    with av.open(str(SAMPLE)) as video:
        every = 6 * round(float(video.streams.video[0].average_rate or 1))
        shown = (frame for index, frame in enumerate(video.decode(video=0)) if index % every == 0)
        return [Frame(6.0 * i, frame.to_ndarray(format="rgb24")) for i, frame in zip(range(count), shown, strict=False)]


def recording(folder: Path, dtype: torch.dtype) -> RecordingLlava:
    adapter = RecordingLlava(Checkpoint(folder, "tiny"), dtype=dtype)
    adapter.hidden.clear()  # of the check at load
    return adapter


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


# --- exactness ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def stock_logits(folder: Path, frames: list[Frame], dtype: torch.dtype) -> Tensor:
    """Logits [N, V] of the stock class over one prompt: the chat template's text, with a time before every frame.

    The stock forward puts the tokens of a whole video, of which the last is its newline, where `<video>` stands, in
    order. So one `<video>` a token between the times, and one more before the question, is our layout.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shown = "".join(f"[0:{int(frame.pts_seconds):02}]{'<video>' * P}\n" for frame in frames)
    prompt = TEMPLATE_TEXT.replace("<video>", f"{shown}<video>", 1)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    pixels = prepare(frames, PictureSpec.from_config(PICTURES))[None].to(dtype)
    logits: Tensor = model(input_ids=ids, pixel_values_videos=pixels, use_cache=False).logits[0]
    return logits


TEMPLATE_TEXT = f"<|im_start|>user <video>\n\n{QUESTION}<|im_end|><|im_start|>assistant\n"


@dtypes
@texts
def test_streaming_equals_the_stock_forward(folders: dict[str, Path], text: str, dtype: torch.dtype) -> None:
    adapter, frames = recording(folders[text], dtype), pictures(11)
    session = watched(adapter, frames, window_tokens=2048)
    streamed = adapter.head(torch.cat(adapter.hidden))
    stock = stock_logits(folders[text], frames, dtype)
    answered = answer_logits(session)
    print(text, dtype, difference(streamed, stock[: len(streamed)]), difference(answered, stock[len(streamed) :]))
    assert len(stock) == len(streamed) + len(answered)
    assert difference(streamed, stock[: len(streamed)]) < TOLERANCE[dtype]
    assert difference(answered, stock[len(streamed) :]) < TOLERANCE[dtype]
