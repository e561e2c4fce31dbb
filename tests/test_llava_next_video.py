"""LLaVA-NeXT-Video: pictures cut out of the middle, its text, and where it begins. Exactness is in `test_family.py`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import make_checkpoint

from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.chat import Turn, render_turn
from vstream.models.llava_next_video import LlavaNextVideoAdapter
from vstream.models.pictures import PictureSpec, prepare
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
P = 4
BEGIN = "<|endoftext|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    """Not to be changed."""
    return make_checkpoint("llava_next_video", tmp_path_factory.mktemp("llava_next_video"))


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> LlavaNextVideoAdapter:
    adapter = load_adapter(str(checkpoint), device="cpu")
    assert isinstance(adapter, LlavaNextVideoAdapter)
    return adapter


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(("shortest", "cut"), [(336, (336, 336)), (100, (64, 96)), (61, (56, 56))])
def test_pictures_are_prepared_as_transformers_does(resample: int, shortest: int, cut: tuple[int, int]) -> None:
    """In steps of 8 bits. Of pictures higher than wide, new versions of PIL resize columns first."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": shortest}, crop_size={"height": cut[0], "width": cut[1]}, resample=resample
    )
    spec = PictureSpec.from_config(processor.to_dict())
    with av.open(str(SAMPLE)) as video:
        image = next(video.decode(video=0)).to_ndarray(format="rgb24")
    for height, width in ((360, 640), (53, 91), (64, 64), (200, 53), (360, 301)):
        picture = np.ascontiguousarray(image[-height:, :width])
        found = torch.as_tensor(processor.preprocess([picture], return_tensors="pt")["pixel_values"])[0]
        steps = (prepare([Frame(0.0, picture)], spec)[0] - found).abs() * torch.tensor(spec.std)[:, None, None] * 255
        tall = height > width
        assert float(steps.max()) < (8 if tall else 3)
        assert float(steps.mean()) < (0.5 if tall else 0.05)


@torch.inference_mode()
def test_what_is_cut_off_is_not_seen(tiny: LlavaNextVideoAdapter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    side, middle = image.copy(), image.copy()
    side[:, :20], middle[:, 50:60] = 0, 0
    plain, without_side, without_middle = tiny.encode([Frame(0.0, one) for one in (image, side, middle)])
    assert plain.shape == (P, 64)
    assert float((plain - without_side).abs().max()) < 1e-5
    assert float((plain - without_middle).abs().max()) > 0.1


def test_the_turn_is_the_templates(tiny: LlavaNextVideoAdapter) -> None:
    assert tiny.turn == Turn("USER: ", "\n", " ASSISTANT:")
    frame = Frame(67.0, np.zeros((30, 40, 3), np.uint8))
    span = tiny.layout([frame], torch.zeros(1, P, 64))
    time = [TokenKind.TIMESTAMP] * len(tiny.tokens.ids("[1:07]"))
    assert span.kinds.tolist() == time + [TokenKind.VISION] * P + [TokenKind.MARKER]


@pytest.mark.slow
@pytest.mark.parametrize("in_template", [False, True], ids=["tokenizer", "template"])
def test_a_text_begins_once_with_the_tokenizers_first_token(folder: Path, in_template: bool) -> None:
    """As Vicuna's and Llama 3's do: the first puts it before every text, the second also has it in its template."""
    if in_template:
        template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
        edit(folder / "chat_template.json", chat_template=BEGIN + template)
    begin = {"id": BEGIN, "ids": [0], "tokens": [BEGIN]}
    sequence, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": BEGIN, "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [special, sequence], "pair": [special, sequence],
                 "special_tokens": {BEGIN: begin}}  # fmt: skip
    edit(folder / "tokenizer.json", post_processor=processor)
    edit(folder / "tokenizer_config.json", bos_token=BEGIN)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 0

    adapter = load_adapter(str(folder), device="cpu")
    assert isinstance(adapter, LlavaNextVideoAdapter)
    assert adapter.turn.before_video == f"{BEGIN}USER: "
    assert torch.equal(adapter.sink().embeds, adapter.embed(torch.tensor(tokenizer("USER: ")["input_ids"])))
    assert adapter.tokens.ids("USER: ") == tokenizer("USER: ")["input_ids"][1:], "only the whole text begins with it"


def test_a_first_token_that_the_tokenizer_does_not_put_is_not_added(tiny: LlavaNextVideoAdapter) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model.config.name_or_path)
    tokenizer.bos_token = BEGIN
    assert render_turn(tokenizer, "{{ 'USER: <video>' }}") == "USER: <video>"


def test_a_processor_for_another_tower_is_refused(folder: Path) -> None:
    edit(folder / "video_preprocessor_config.json", crop_size={"height": 40, "width": 40})
    with pytest.raises(ValueError, match="makes pictures of 40 x 40, but its vision tower takes 56 x 56"):
        load_adapter(str(folder), device="cpu")
