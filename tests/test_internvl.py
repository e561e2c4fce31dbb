"""InternVL: what its text looks like around a frame, and what is refused. Exactness is in `test_family.py`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import make_checkpoint

from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.chat import Turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.internvl import InternVLAdapter
from vstream.types import Frame

P = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    """Not to be changed."""
    return make_checkpoint("internvl", tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> InternVLAdapter:
    adapter = load_adapter(str(folder), device="cpu")
    assert isinstance(adapter, InternVLAdapter)
    return adapter


@pytest.mark.slow
@torch.inference_mode()
def test_the_time_stands_where_the_family_has_the_frames_number(tiny: InternVLAdapter) -> None:
    frame = Frame(67.5, np.zeros((30, 40, 3), np.uint8))
    span = tiny.layout([frame], tiny.encode([frame]))
    before, after = tiny.tokens.ids("Frame [1:07]: "), tiny.tokens.marked("</img>\n")
    kinds = [TokenKind.TIMESTAMP] * len(before) + [TokenKind.MARKER] + [TokenKind.VISION] * P
    assert span.kinds.tolist() == kinds + [TokenKind.MARKER] * len(after)
    text = torch.tensor([*before, tiny.tokens.special("<img>"), *after])
    assert torch.equal(span.embeds[span.kinds != TokenKind.VISION], tiny.embed(text))


def test_the_newline_behind_the_last_frame_is_the_templates(tiny: InternVLAdapter) -> None:
    assert tiny.turn == Turn("<|im_start|>user\n", "", "<|im_end|>\n<|im_start|>assistant\n")
    assert tiny.frame_marks[1].endswith("\n")


def test_dynamic_rotary_positions_are_plain_up_to_the_trained_length(tiny: InternVLAdapter) -> None:
    rope = tiny.config.rope_parameters
    assert rope["rope_type"] == "dynamic"
    turns = 1 / rope["rope_theta"] ** (torch.arange(0, tiny.head_dim, 2) / tiny.head_dim)
    last = tiny.max_positions - 1
    for longest, same in ((last, True), (last + 1000, False), (last - 1, True)):
        cos, _ = tiny.rotary(torch.tensor([[0, 100, longest]]))
        plain = (torch.tensor([0.0, 100.0, longest])[:, None] * turns).cos()
        assert torch.allclose(cos[0, :, : tiny.head_dim // 2], plain, atol=1e-3) is same


def changed(folder: Path, target: Path, **vision: object) -> Path:
    """A copy whose vision tower is described otherwise."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["vision_config"].update(vision)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        ({"image_size": [112, 112]}, "makes pictures of 56 x 56, but its vision tower takes 112 x 112"),
        ({"patch_size": [14, 28]}, "has 4 x 2 patches, which must be square and divisible by 2"),
        ({"patch_size": [18, 18]}, "has 3 x 3 patches, which must be square and divisible by 2"),
    ],
)
def test_sizes_that_do_not_belong_together_are_refused(
    folder: Path, tmp_path: Path, vision: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        InternVLAdapter(Checkpoint(changed(folder, tmp_path / "changed", **vision), "tiny"))
