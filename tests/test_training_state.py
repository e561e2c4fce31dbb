"""Checkpoints of training: small files, whole or not at all."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import training_state
from training_state import load_state, save_state


def state(value: float) -> dict[str, torch.Tensor]:
    """40 MB in four tensors and a scalar."""
    return {f"part {i}": torch.full((2_500_000,), value + i) for i in range(4)} | {"step": torch.tensor(value)}


def test_files_stay_below_16_mb_and_come_back(tmp_path):
    save_state(tmp_path / "state", state(1.0), {"step": 7, "seconds": 1.5})
    assert max(file.stat().st_size for file in (tmp_path / "state").iterdir()) < 16e6
    tensors, counters = load_state(tmp_path / "state")
    assert counters == {"step": 7, "seconds": 1.5}
    assert tensors.keys() == state(1.0).keys()
    assert all(torch.equal(tensors[name], one) for name, one in state(1.0).items())


def test_nothing_saved_is_nothing(tmp_path):
    assert load_state(tmp_path / "state") is None


@pytest.mark.parametrize("broken", ["save_torch_state_dict", "COUNTERS", "rename"])
def test_a_run_killed_while_it_saves_goes_on_from_before(tmp_path, monkeypatch, broken):
    """Wherever the second save ends, the first is there, and the third replaces it."""
    save_state(tmp_path / "state", {"a": torch.ones(2)}, {"step": 1})

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken == "rename":  # the old one is out of the way, the new one not yet in its place
            rename = Path.rename
            patch.setattr(Path, "rename", lambda path, to: rename(path, to) if to.name == "state.old" else killed())
        else:
            patch.setattr(training_state, broken, killed)
        with pytest.raises((KeyboardInterrupt, TypeError)):
            save_state(tmp_path / "state", {"a": torch.zeros(2)}, {"step": 2})
    tensors, counters = load_state(tmp_path / "state")
    assert (counters["step"], tensors["a"].tolist()) == (1, [1, 1])
    save_state(tmp_path / "state", {"a": torch.zeros(2)}, {"step": 3})
    assert load_state(tmp_path / "state")[1]["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
