"""The memory lab: its streams and scores against cases worked out by hand, and a short run with the real model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vstream.app.cli import main
from vstream.app.lab.exam import Question
from vstream.app.lab.memory_lab import LEAST_AGE, PRESENT, Marked, Outcome, Trial, age_of, is_found, make_task, run_lab
from vstream.app.lab.plan import SHORT, plan, show
from vstream.app.lab.report import age_group, facts_of, plot, report_of, slope, table_of
from vstream.config import Config
from vstream.engine import Engine
from vstream.models import load_adapter
from vstream.presets import PRESETS, preset_settings


def mark(age: float, right: bool, *, stream: int = 0, type: str = "colour", found: bool = True) -> Marked:
    return Marked("default", 1.0, stream, type, age, right, found, 0.01)


def outcome(marked: list[Marked], preset: str = "default") -> Outcome:
    return Outcome(preset, 1.0, 2.0 * 2**20, tuple(replace(one, preset=preset) for one in marked))


@pytest.mark.slow
def test_a_task_has_needles_of_all_ages_and_questions_of_the_present() -> None:
    task = make_task(0, 400, seed=3, needles=6)
    ages = sorted({age_of(one) for one in task.asked if one.type not in PRESENT and one.evidence})
    assert ages[0] >= LEAST_AGE
    assert ages[-1] > 300
    assert any(one.type in PRESENT for one in task.asked)
    assert [one.text for one in make_task(0, 400, seed=3, needles=6).asked] == [one.text for one in task.asked]
    assert len(task.pictures) == 400


def test_evidence_is_found_in_short_blocks_alone() -> None:
    one = Question("", "", "order", 500, ((100, 105), (200, 205)))
    assert is_found(one, [(98.0, 101.0), (204.0, 207.0)])
    assert not is_found(one, [(98.0, 101.0)])
    assert not is_found(one, [(98.0, 101.0), (205.0, 208.0)])
    assert not is_found(one, [(90.0, 210.0)])


def test_scores_of_a_hand_made_outcome() -> None:
    """Four needles an hour apart, one more of them lost with every hour: the slope is a quarter an hour."""
    hours = (1, 2, 3, 4)
    marked = [mark(3600.0 * hour, number >= hour) for hour in hours for number in range(4)]
    found = facts_of(outcome([*marked, mark(0.0, True, type="now")]), outcome([*marked, mark(0.0, True, type="now")]))
    assert found["past"] == pytest.approx(6 / 16)
    assert found["present"] == 1.0
    assert found["match_slope"]["per_hour"] == pytest.approx(-0.25)
    assert found["match_slope"]["low"] <= -0.25 <= found["match_slope"]["high"]
    assert found["recall_slope"]["per_hour"] == 0.0
    assert found["of_oracle"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert found["by_age"]["60 to 120 min"]["exact_match"] == pytest.approx(0.75)
    assert found["low"] < found["exact_match"] < found["high"]


def test_the_oracle_is_what_others_are_compared_with() -> None:
    truth = [mark(100.0 * n, True) for n in range(1, 21)]
    ours = [mark(100.0 * n, n % 2 == 0) for n in range(1, 21)]
    report = report_of([outcome(ours), outcome(truth, "oracle")])
    beside = report["presets"][0]["of_oracle"]
    assert beside["ratio"] == 0.5
    assert 0.2 < beside["low"] < 0.5 < beside["high"] < 0.8
    assert "| default | 100% | 2.0 | 0.50" in table_of(report)
    assert json.loads(json.dumps(report)) == report


def test_a_needles_questions_stand_or_fall_together() -> None:
    """Ten questions about one needle tell no more than one."""
    spread = facts_of(outcome([mark(100.0 * n, n % 2 == 0) for n in range(1, 41)]), None)
    bunched = facts_of(outcome([mark(100.0 * (n // 10 + 1), n // 10 % 2 == 0) for n in range(40)]), None)
    assert bunched["high"] - bunched["low"] > 2 * (spread["high"] - spread["low"])
    present = facts_of(outcome([mark(0.0, n % 2 == 0, type="now") for n in range(40)]), None)
    assert present["high"] - present["low"] < 1.5 * (spread["high"] - spread["low"])


@pytest.mark.parametrize(
    ("age", "group"), [(45, "0 to 1 min"), (60, "1 to 5 min"), (3599, "30 to 60 min"), (9e4, "over 120 min")]
)
def test_age_groups(age: float, group: str) -> None:
    assert age_group(mark(age, True)) == group


def test_one_age_has_no_slope() -> None:
    assert slope([mark(60.0, True), mark(60.0, False)], lambda one: one.right) is None


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = report_of([outcome([mark(100.0, True), mark(200.0, False)])])
    plot(report, tmp_path / "lab.png")
    assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_last_line() -> None:
    said: list[str] = []
    report = report_of([outcome([mark(100.0, True)])])
    show(report, as_json=False, say=said.append)
    assert json.loads(said[-1]) == report
    assert said[0].startswith("| preset |")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration(name: str) -> None:
    adapter = load_adapter("tiny")
    config = Config(**preset_settings(name, adapter, SHORT))
    assert config.max_answer_tokens == 16, "what is given counts more than the preset"
    with_window = {**SHORT, "window_tokens": 96}
    assert Config(**preset_settings(name, adapter, with_window)).window_tokens == 96


def test_unknown_presets_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown preset 'magic'; choose one of default, full, oracle"):
        preset_settings("magic", load_adapter("tiny"))
    with pytest.raises(ValueError, match="unknown preset 'magic'"):
        plan(["default", "magic"])
    assert main(["lab", "--seconds", "299"]) == 2
    assert "must take 300 to 86400 seconds, got 299" in capsys.readouterr().err
    assert main(["lab", "--preset", "magic"]) == 2
    assert "unknown preset 'magic'; choose from default" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "wrong"), [("lab.jpg", "does not end in .png"), ("no/lab.png", "there is no folder")])
def test_a_picture_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, wrong: str
) -> None:
    assert main(["lab", "--plot", str(tmp_path / name)]) == 2
    assert wrong in capsys.readouterr().err


@pytest.fixture(scope="module")
def short_run() -> dict[str, dict[str, Any]]:
    """Five presets on one stream of five minutes, by name."""
    task = make_task(0, 300, seed=5, needles=6)
    names = ("oracle", "default", "sink-window", "last-frames", "rekv")
    shares = {"sink-window": 0.16, "last-frames": 0.16}
    with Engine.load("tiny") as engine:
        trials = [Trial(name, shares.get(name, 1.0), SHORT) for name in names]
        outcomes = run_lab(engine, [task], trials)
    return {one["preset"]: one for one in report_of(outcomes)["presets"]}


@pytest.mark.slow
def test_memory_is_what_answers(short_run: dict[str, dict[str, Any]]) -> None:
    assert short_run["oracle"]["recall"] == 1.0
    assert short_run["oracle"]["past"] > 0.75
    assert short_run["default"]["past"] >= short_run["oracle"]["past"] - 0.15
    assert short_run["sink-window"]["recall"] == short_run["last-frames"]["recall"] == 0.0
    assert short_run["sink-window"]["past"] < 0.5 < short_run["default"]["past"]


@pytest.mark.slow
def test_the_present_needs_the_window(short_run: dict[str, dict[str, Any]]) -> None:
    assert short_run["default"]["present"] >= short_run["last-frames"]["present"] >= 0.5
    assert short_run["rekv"]["present"] < short_run["default"]["present"]


@pytest.mark.slow
def test_no_memory_takes_fewer_bytes(short_run: dict[str, dict[str, Any]]) -> None:
    assert short_run["last-frames"]["bytes"] < 0.75 * short_run["default"]["bytes"]
    assert all(one["ttft_seconds"] > 0 for one in short_run.values())
