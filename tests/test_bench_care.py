"""Benchmarks whose files are odd or damaged: what is published so is understood, all else is one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bench_roots import TINY, items_of, lay_out, run

from vstream.app.bench.base import Ask, Item, Mark, Measure, strict_choice
from vstream.app.bench.disk import Disk
from vstream.app.bench.entries import Entry
from vstream.app.bench.needle import Needle
from vstream.app.bench.run import numbers_of, past_end
from vstream.app.bench.scores import scores_of
from vstream.app.bench.streamingbench import Omni, Proactive, Real, Sqa
from vstream.app.cli import main


def subset(video: str = "./videos/sample_1.mp4", **fields: Any) -> dict[str, Any]:
    question = {
        "task_type": "Scene Understanding", "question": "What colour is it?", "time_stamp": "00:00:12", "answer": "A",
        "options": ["A. red", "B. blue"], "required_ability": "episodic memory", **fields,
    }  # fmt: skip
    return {
        "time": "[0:00:00 - 0:00:10]", "questions": [question], "video_categories": "world", "video_path": video,
    }  # fmt: skip


def test_what_is_empty_between_lettered_options_is_none(tmp_path: Path) -> None:
    """As in a published question about sample_21 of StreamingBench."""
    published = subset(options=["A. one", "", "B. two", "C. three", "", "D. four"], answer="C")
    (item,) = items_of(Omni, lay_out(tmp_path, {"questions_omni.json": [published]}, []))
    assert item.asks[0].choices == ("one", "two", "three", "four")
    assert (item.gold, strict_choice(item, "three"), strict_choice(item, "C"), strict_choice(item, "two")) == (
        "C", 1, 1, 0,
    )  # fmt: skip


@pytest.mark.parametrize("given", [["x", "", "y"], ["", ""], ["A. x", ""], ["A. x", "", "y"]])
def test_other_empty_options_stay_what_they_are(given: list[str]) -> None:
    assert Entry("f", {"o": given}).options("o") == tuple(given)


@pytest.mark.parametrize("strange", [None, ["x"], {"x": 1}, True])
def test_an_option_that_is_no_text_is_refused(strange: Any) -> None:
    with pytest.raises(ValueError, match=r"f: o must be texts, got .* among them"):
        Entry("f", {"o": ["x", strange]}).options("o")


@pytest.mark.parametrize(("said", "mark"), [("A", 1), ("C", 1), ("red", 1), ("B", 0), ("", 0), (None, 0)])
def test_options_that_read_alike_are_one_strictly(said: str | None, mark: float) -> None:
    item = Item("1", "v.mp4", ("t",), (Ask("What?", "end", ("red", "blue", "red")),), "C")
    assert strict_choice(item, said) == mark


@pytest.mark.parametrize("given", ["9" * 500, 10**400])
def test_a_time_that_never_comes_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"f: t must be a time such as 00:03:10"):
        Entry("f", {"t": given}).seconds("t")


@pytest.mark.parametrize("given", [None, 5, "x", {}, True])
def test_questions_in_sequence_must_be_a_list(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ValueError, match=r"questions_sqa.json: a list is expected"):
        items_of(Sqa, lay_out(tmp_path, {"questions_sqa.json": given}, []))


def test_nobody_is_polled_for_more_than_an_hour(tmp_path: Path) -> None:
    late = subset(ground_truth_time_stamp="9999:00:00", ground_truth_output="3")
    with pytest.raises(ValueError, match=r"entry 1: ground_truth_time_stamp must be within an hour after time_stamp"):
        items_of(Proactive, lay_out(tmp_path, {"questions_proactive.json": [late]}, []))


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "itself.mp4").symlink_to("itself.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "whole.mp4").write_bytes(b"1")
    (tmp_path / "link.mp4").symlink_to("whole.mp4")
    disk = Disk(tmp_path)
    assert [disk.video(name) for name in ("gone", "itself", "pipe", "link")] == [None, None, None, "link.mp4"]


def test_annotations_without_a_question_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Real.name, lay_out(tmp_path, {"questions_real.json": []}, []), tmp_path / "out.jsonl") == 2
    assert "the annotations of streamingbench-real in" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_only_a_benchmark_that_makes_its_videos_makes_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README says it, nobody has to make it before."""
    monkeypatch.setattr(Needle, "prepare", lambda *_: None)  # nothing is filmed
    for kind, root in ((Needle, tmp_path / "haystacks"), (Real, tmp_path / "nothing")):
        assert run(kind.name, root, tmp_path / "out.jsonl") == 2
        assert root.exists() == (kind is Needle)
    assert "--root must be a folder that is there, got" in capsys.readouterr().err


def test_only_shares_have_an_interval() -> None:
    """Marks of 5 that all happen to be 1 or 0 are no share."""

    class Judged(Real):
        measures = (Measure("share"), Measure("score", best=5))

    share, score, *_ = scores_of(Judged, [(("t",), {"share": Mark(1, 1), "score": Mark(1, 1)})])
    assert share.strict_interval is not None
    assert (score.strict, score.strict_interval) == (1, None)


def test_what_is_asked_after_the_end_is_counted(tmp_path: Path) -> None:
    """A second of slack is given, since the last frame of a video is before its end."""
    times: list[Any] = [24.0, 25.0, 90.0, "end"]
    items = [Item(str(at), "v.mp4", ("t",), (Ask("What?", at),), "A") for at in times]
    lines = [{"row": row, "answer": "A", "asked_at_seconds": 23.5} for row in range(1, 5)]
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps(one) + "\n" for one in [*lines[:3], {"row": 4, "error": "damaged"}]))
    assert past_end(items, numbers_of(items), out) == 2


@pytest.mark.slow
def test_a_damaged_video_is_told_and_asked_again_once_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path, {"questions_real.json": [subset(), subset("gone.mp4", time_stamp="00:09:00")]}, ["gone.mp4"])
    (tmp_path / "sample_1.mp4").write_bytes(b"half a file")
    command = ["bench", Real.name, "--root", str(tmp_path), "--out", str(tmp_path / "out.jsonl"), *TINY]
    assert main(command) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 errors one error" in shown
    assert "--retry asks again" in shown
    assert "asked early 1 questions" in shown
    lay_out(tmp_path, {}, ["sample_1.mp4"])
    assert main([*command, "--retry", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["answers"], summary["errors"], summary["first_error"]) == (2, 0, None)
    assert main([*command, "--fps", "2"]) == 2
    assert "was made with --fps unset, not 2.0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_question_that_is_no_unicode_is_a_line_with_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [subset(question="What \ud800?"), subset(options=["A. \udfff", "B. blue"]), subset()]
    lay_out(tmp_path, {"questions_real.json": asked}, ["videos/sample_1.mp4"])
    assert run(Real.name, tmp_path, tmp_path / "out.jsonl") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["answers"], summary["errors"]) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["row"] for one in lines if "half of a character" in one.get("error", "")] == [1, 2]
