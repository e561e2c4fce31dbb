"""The benchmark of streams: its baselines are fair, its statistics right, and a quick run gives sane figures."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import small_config

from vstream.engine import Engine
from vstream.models.random import RandomLlama

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_stream.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_stream", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_baseline_holds_what_the_session_holds(bench: Any) -> None:
    """Sink and window, token for token, after every clip."""
    adapter, config = RandomLlama(), small_config()
    table = torch.randn(5, adapter.tokens_per_frame, adapter.config.hidden_size)
    with torch.inference_mode():
        baseline = bench.Baseline(adapter, table, config)
        session = Engine(adapter).open(bench.SyntheticSource(table), config=config, start=False)
        for clip in range(12):
            assert session.ingest is not None
            session.ingest.pump(config.clip_frames)
            assert session.step()
            baseline.watch(1)
            held = session.memory.cache.get_seq_length()
            assert baseline.num_tokens == held, f"after clip {clip}"
            if not session.memory.cache.num_rebases:
                theirs, ours = baseline.keys(0)[:, :, -1], session.memory.cache.spans[0].view()[0][:, :, -1]
                torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
        session.close()
    assert held < 12 * config.clip_frames * adapter.min_frame_tokens, "the window was never full"


def test_the_slope_bound_holds_the_true_slope(bench: Any) -> None:
    rng = np.random.default_rng(0)
    hours = np.linspace(0, 24, 200)
    bounds = [bench.slope_and_bound(hours, 0.5 * hours + rng.normal(size=200)) for _ in range(200)]
    covered = np.mean([upper >= 0.5 for _, upper in bounds])
    assert 0.9 <= covered <= 0.99
    assert max(upper for _, upper in bounds) < 0.6


def test_medians_come_with_an_interval_around_them(bench: Any) -> None:
    median, low, high = bench.median_interval(np.arange(101))
    assert median == 50
    assert 30 < low < 50 < high < 70


def test_aims_are_met_or_missed(bench: Any) -> None:
    assert bench.Figure("m", "1 h", "n", "x", 1.0).met is None
    assert bench.Figure("m", "1 h", "n", "x", 1.0, at_most=1.0).met is True
    assert bench.Figure("m", "1 h", "n", "x", 1.1, at_most=1.0).met is False
    assert bench.Figure("m", "1 h", "n", "x", 4.9, at_least=5.0).met is False


@pytest.mark.slow
def test_a_quick_run_gives_sane_figures() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--model", "random"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["quick"] is True
    assert report["threads"] == 1
    figures = {(one["stream"], one["name"]): one for one in report["figures"]}
    assert len(figures) == len(report["figures"]), "two figures of one name"
    for key, one in figures.items():
        assert set(one) == {
            "model", "stream", "name", "unit", "value", "low", "high", "floor", "at_most", "at_least", "met"
        }, key  # fmt: skip
        assert one["model"] == "random"
        for name in ("value", "low", "high", "floor", "at_most", "at_least"):
            assert one[name] is None or math.isfinite(one[name]), key
        if one["low"] is not None:
            assert one["low"] <= one["value"] <= one["high"], key
    check_figures({key: one["value"] for key, one in figures.items()})


def check_figures(values: dict[tuple[str, str], float]) -> None:
    """What must be so on any machine, however busy."""
    for stream in ("1 min", "5 min"):
        assert 1 < values[stream, "watching"] < 1e5
        assert -50 < values[stream, "overhead over the bare model"] < 2000
        assert 1 < values[stream, "answering, ours"] < 1e5
        assert 0.01 < values[stream, "answering, ours / full cache"] < 100
        assert 0 < values[stream, "memory on host"] <= 4 * 1.048576
        assert values[stream, "memory on disk"] == 0
    p50, p99 = (values["5 min", f"time to first token, {part}"] for part in ("p50", "p99"))
    assert 0 < values["5 min", "of it selection, p50"] < p50 <= p99
    assert 0.1 < values["5 min", "time to first token / just filled"] < 10
    assert 50 < values["5 min", "anonymous memory of the process"] < 4000
    lags = [value for (_, name), value in values.items() if name.startswith("lag under questions")]
    assert len(lags) == 3
    assert lags == sorted(lags)
    assert lags[-1] < 10
