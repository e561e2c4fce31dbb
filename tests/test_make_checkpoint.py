"""The writer of tiny family checkpoints: the hub's layout, the seed, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from family_table import SHAPES
from make_checkpoint import FAMILIES, make_checkpoint

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "make_checkpoint.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    return make_checkpoint("internvl", tmp_path_factory.mktemp("made") / "internvl")


def test_the_layout_is_the_hubs(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json",
            "processor_config.json"} == names  # fmt: skip
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["InternVLForConditionalGeneration"]


@pytest.mark.slow
def test_the_seed_alone_makes_the_weights(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for seed, same in ((0, True), (1, False)):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        other = load_file(make_checkpoint("internvl", tmp_path / str(seed), seed=seed) / "model.safetensors")
        assert torch.equal(torch.get_rng_state(), before), "the program's own random state is left alone"
        matrices = [name for name, weight in weights.items() if weight.ndim >= 2]
        assert all(torch.equal(weights[name], other[name]) is same for name in matrices)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no recipe for 'blip'; choose from llava_onevision, "):
        make_checkpoint("blip", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_without_the_embedded_model_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "internvl", tmp_path / "made"]
    environment = os.environ | {"VSTREAM_CACHE": str(tmp_path / "empty")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "make_checkpoint: the tokenizer is the embedded model's; run `vstream models add embedded` first"
    ]


def test_every_family_has_a_published_shape() -> None:
    assert set(FAMILIES) == set(SHAPES), "a row is missing in scripts/family_table.py"
