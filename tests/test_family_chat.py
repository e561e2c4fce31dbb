"""Every family: a dialogue and a system prompt are what the checkpoint's own chat template makes of them.

The reference is the stock class over the whole conversation at once, as in `test_family.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_inputs import INPUTS, Stock
from streams import QUESTION, TOLERANCE, difference, recording, run, watched
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import FAMILIES, make_checkpoint

from vstream.answer import Answer
from vstream.choices import choices_text
from vstream.config import DecodeOptions
from vstream.models import load_adapter
from vstream.models.base import Exchange
from vstream.models.chat import SENTINEL, render_turn
from vstream.models.checkpoint import Checkpoint
from vstream.session import Session
from vstream.types import Frame

EARLIER = (Exchange("was there a cat?", "Yes, at 0:02."),)
CHOICES = ("a cat", "a dog")
SYSTEM = "Count all cats, and say so."


class TalkingStock(Stock):
    """A stock model that is asked QUESTION with options behind an earlier turn."""

    def rendered(self, kind: str = "video") -> str:
        template = Checkpoint(self.folder, "stock").chat_template()
        text = render_turn(self.tokenizer, template, kind, again=True)
        for said in (EARLIER[0].question, EARLIER[0].answer, QUESTION + choices_text(CHOICES)):
            text = text.replace(SENTINEL, said, 1)
        bos = self.tokenizer.bos_token
        begun = render_turn(self.tokenizer, template, kind)
        return bos + text if bos and begun.startswith(bos) and not text.startswith(bos) else text


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    """A family's checkpoint, under the family's name; not to be changed."""
    torch.set_num_threads(1)
    return make_checkpoint(request.param, tmp_path_factory.mktemp("checkpoint") / request.param)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Any:
    return recording(load_adapter(str(folder), device="cpu"))


def pictures(count: int) -> list[Frame]:
    noise = np.random.default_rng(0)
    return [Frame(float(i), noise.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for i in range(count)]


@torch.inference_mode()
def answer_logits(session: Session, **question: Any) -> Tensor:
    """Logits [Q, V] of the last tokens of a question, asked now."""
    adapter: Any = session.adapter
    adapter.hidden.clear()
    asked = adapter.question(QUESTION, **question)
    options, view = DecodeOptions(max_tokens=1), session.memory.view(1e9)
    run(session._answerer.start(Answer(QUESTION, None), asked, options, view, ()))
    logits: Tensor = adapter.head(adapter.hidden[-1])
    return logits


@pytest.mark.slow
def test_a_dialogue_equals_the_stock_forward(folder: Path, adapter: Any) -> None:
    frames = pictures(5)
    session = watched(adapter, frames, window_tokens=2048, dialogue=True)
    with torch.inference_mode():
        stock = TalkingStock.load(folder, torch.float32)
        expected = stock.model(**INPUTS[folder.name](stock, frames), use_cache=False).logits[0]
    found = answer_logits(session, earlier=EARLIER, choices=CHOICES)
    assert difference(found, expected[-len(found) :]) < TOLERANCE[torch.float32]
    other = answer_logits(session, earlier=[Exchange(EARLIER[0].question, "No.")], choices=CHOICES)
    assert difference(other[-1], expected[-1]) > 1e-2, "what was said before matters"


@pytest.mark.slow
def test_a_system_prompt_is_in_the_sink(folder: Path, adapter: Any) -> None:
    other: Any = load_adapter(str(folder), device="cpu", system=SYSTEM)
    assert SYSTEM in other.turn.before_video
    assert SYSTEM not in adapter.turn.before_video
    assert len(other.sink()) == len(other.tokens.marked(other.turn.before_video + other.video_marks[0]))
    assert other.fingerprint != adapter.fingerprint


def test_a_system_prompt_holds_no_video(folder: Path, adapter: Any) -> None:
    placeholder = adapter._placeholder(adapter.model.config, "video")
    shown = placeholder if placeholder in adapter._render() else adapter._placeholder(adapter.model.config, "image")
    with pytest.raises(ValueError, match=r"must not hold .*, which stands for the video; leave that out"):
        load_adapter(str(folder), device="cpu", system=f"Look at {shown}.")
