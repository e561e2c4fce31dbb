"""The check for GPUs: its tiny form runs whole on a CPU, and what is wrong is told as such."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import gpu_check
import gpu_exactness
import gpu_kernels
import gpu_speed
from gpu_shapes import SHAPES, build, frames, tiny, write_shape

from vstream.memory.block import BlockShape
from vstream.memory.codec import CODECS
from vstream.models.families import family_of
from vstream.models.options import LoadOptions

pytestmark = pytest.mark.slow

SCRIPT = Path(gpu_check.__file__)
TOKENIZER = gpu_check.tokenizer_file(tiny=True)
CPU = torch.device("cpu")


@pytest.fixture
def exact(tmp_path: Path) -> Any:
    """A family's stock model in float64."""
    torch.set_num_threads(1)
    return gpu_exactness.write_family("llava_onevision", tmp_path / "model", "cpu", TOKENIZER)


def test_differences_are_as_small_as_the_stock_models_own_rounding(exact: Any) -> None:
    rows = [gpu_exactness.family_row("llava_onevision", exact, dtype) for dtype in ("float32", "bfloat16")]
    assert [row["ok"] for row in rows] == [True, True]
    assert rows[0]["floor"] < 1e-5 < 1e-3 < rows[1]["floor"], "16 bits round more"
    assert rows[0]["relative"] < 1e-5
    assert rows[0]["greedy_equal"]
    assert rows[0]["greedy_characters"] > 0


@pytest.mark.parametrize("wrong", ["picture", "key"])
def test_what_differs_is_not_ok(exact: Any, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: the stock model sees another picture; keys are not moved."""
    if wrong == "key":
        monkeypatch.setattr(gpu_exactness, "place", lambda adapter, kv, positions: kv)
    else:
        inputs = gpu_exactness.inputs_of
        monkeypatch.setattr(
            gpu_exactness,
            "inputs_of",
            lambda stock, family, frames: inputs(stock, family, [frames[-1], *frames[1:]]),
        )
    assert not gpu_exactness.family_row("llava_onevision", exact, "bfloat16")["ok"]


def test_what_fails_says_so_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Any:
        raise RuntimeError("no luck\nat all")

    row = gpu_check.attempt("trying", fail)
    assert row == {"ok": False, "error": "RuntimeError: no luck"}
    printed = capsys.readouterr()
    assert printed.out == f"trying: {json.dumps(row)}\n"
    assert "Traceback" in printed.err
    assert gpu_check.failed(row)
    assert gpu_check.failed([{"ok": True}, row])
    assert not gpu_check.failed([{"ok": True}])


def test_kernels_are_compared_and_timed() -> None:
    found = gpu_kernels.kernel_rows("cpu", tiny=True, clock=gpu_speed.Clock(60))
    assert found["ok"]
    assert len(found["rows"]) == 16
    assert all(row["ours_ms"] > 0 and row["copy_share"] > 0 for row in found["rows"])
    assert found["left_out"] == [f"triton {name}" for name in gpu_kernels.CASES]
    late = gpu_kernels.kernel_rows("cpu", tiny=True, clock=gpu_speed.Clock(0))
    assert late["left_out"][len(gpu_kernels.CASES) :] == list(gpu_kernels.CASES)


@pytest.mark.parametrize("tolerance", [gpu_kernels.EXACT, 1e-5])
def test_a_kernel_that_is_a_little_wrong_is_not_ok(tolerance: float) -> None:
    """Negative control."""
    right = torch.ones(100)
    wrong = gpu_kernels.Case("wrong", lambda: right, lambda: right * 1.001, 400, tolerance)
    assert not gpu_kernels.case_row(wrong, "cpu")["ok"]
    same = gpu_kernels.Case("same", lambda: right, lambda: right.clone(), 400, tolerance)
    assert gpu_kernels.case_row(same, "cpu")["ok"]


def test_what_there_is_no_time_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "EXACTNESS_SECONDS", 0)
    found = gpu_check.exactness(gpu_check.Run("cpu", True, TOKENIZER))
    assert found == {"ok": True, "rows": [], "left_out": list(gpu_check.TINY_FAMILIES)}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_resting_vision_tower_gives_what_it_gave(shape: Any, tmp_path: Path) -> None:
    small = tiny(shape)
    with torch.inference_mode():
        adapter = build(small, tmp_path, LoadOptions(device="cpu"), TOKENIZER)
        stream = frames(small, 16)
        seen = adapter.encode(stream)
        assert float((seen[0] - seen[1]).abs().max()) > 1e-3, "all pictures look alike"
        adapter.kept = seen
        groups = 16 // adapter.group_frames
        assert torch.equal(adapter.encode(stream[4:8]), seen[4 * groups // 16 : 8 * groups // 16])
    assert not list(tmp_path.glob("*.safetensors")), "weights were written"


@pytest.mark.parametrize(("shape", "parameters"), [(SHAPES[0], 8_292_166_656), (SHAPES[1], 8_030_348_832)])
def test_shapes_have_as_many_parameters_as_published(shape: Any, parameters: int, tmp_path: Path) -> None:
    checkpoint = write_shape(shape, tmp_path, TOKENIZER)
    stock = getattr(transformers, family_of(checkpoint).class_name)
    with torch.device("meta"):
        model = stock._from_config(stock.config_class.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize("codec", CODECS)
def test_blocks_travel_both_ways(codec: str) -> None:
    row = gpu_speed.transfer_row(BlockShape(2, 2, 16, torch.bfloat16), CPU, tokens=24, blocks=3, codec=codec)
    assert row["block_bytes"] == 2 * 2 * 2 * 24 * 16 * 2
    assert min(row["to_host_bytes_per_second"], row["to_device_bytes_per_second"]) > 0


@pytest.mark.slow
def test_the_tiny_check_is_well() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["tiny"] is True
    assert {"gpu", "torch", "transformers", "python", "cuda"} <= set(report["machine"])
    check_exactness(report["exactness"])
    assert report["kernels"]["ok"]
    assert {row["codec"] for row in report["transfer"]["blocks"]} == set(CODECS)
    assert min(report["transfer"]["copy"].values()) > 0
    assert [row["model"] for row in report["models"]] == [tiny(shape).name for shape in SHAPES]
    for row in report["models"]:
        assert row["left_out"] == []
        assert [one["preset"] for one in row["presets"]] == list(gpu_speed.PRESETS)
        for one in row["presets"]:
            check_preset(one)


def check_exactness(found: dict[str, Any]) -> None:
    tried = [(row["family"], row["dtype"]) for row in found["rows"]]
    assert tried == [(family, dtype) for family in gpu_check.TINY_FAMILIES for dtype in gpu_check.TINY_DTYPES]
    assert all(row["ok"] for row in found["rows"])


def check_preset(row: dict[str, Any]) -> None:
    """What must be so on any machine, however busy."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in numbers.values()), row
    for name in ("frames_per_second", "bare_frames_per_second", "ttft_seconds", "tokens_per_second"):
        assert row[name] > 0, name
    assert row["overhead_low"] <= row["overhead_percent"] <= row["overhead_high"]
    assert row["answers"] >= 1
    assert 24 < row["stream_seconds"] <= 120
    assert row["extrapolated"] is True, "two minutes are no hour"
    assert row["device_bytes_at_an_hour"] == row["device_bytes"], "the device's bytes grow with the stream"
