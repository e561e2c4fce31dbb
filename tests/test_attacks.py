"""What attackers and newcomers ran into, so that nobody does again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streams import feature_frames
from videos import constant_times, variable_times, write_video

from vstream import Engine, PushSource
from vstream.app.cli import main
from vstream.app.options import MAX_THREADS
from vstream.models.random import RandomLlama
from vstream.types import Frame

TINY = ["--model", "random", "--threads", "1", "--max-tokens", "2"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds: at one frame a second the last clip is short."""
    return write_video(tmp_path_factory.mktemp("video") / "clock.mp4", constant_times(45, 5.0))


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    capsys.readouterr()
    assert main([*arguments, *TINY]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert sentence in told.err


def test_the_example_of_the_readme_runs(video: Path, tmp_path: Path) -> None:
    """No budget is named, and the memory is kept."""
    with Engine.load("random") as engine:
        session = engine.open(str(video), memory=tmp_path / "kept")
        text = session.ask("What is shown?").text(60)
    with Engine.load("random") as engine:
        assert engine.open(None, memory=tmp_path / "kept").ask("What is shown?").text(60) == text


@pytest.mark.parametrize("at", ["11", "1e6"])
def test_past_the_end_is_refused_though_the_last_clip_is_short(
    at: str, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ["ask", str(video), "What?", "--at", at], "but the video ends at 00:09")


def test_another_video_of_the_same_name_is_refused(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, memory = tmp_path / "v.mp4", str(tmp_path / "memory")
    shutil.copy(video, copy)
    assert main(["ask", str(copy), "What?", "--memory", memory, *TINY]) == 0
    write_video(copy, variable_times(30, seed=1))
    refused(capsys, ["ask", str(copy), "What?", "--memory", memory], "this memory holds another 'v.mp4'")


def test_an_empty_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["ask", "", "What?"], "SOURCE is empty")
    assert list(tmp_path.iterdir()) == []


def test_evidence_does_not_go_among_the_pictures_it_is_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    refused(capsys, ["ask", str(tmp_path), "What?", "--evidence-dir", str(tmp_path)], "is the source itself")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threads", "100000000"], f"--threads must be a whole number from 1 to {MAX_THREADS}"),
        (["--host-mib", "1e308"], "--host-mib must be a number of MiB from 0 to"),
        (["--device-mib", "1e300"], "--device-mib must be a number of MiB from 0 to"),
        (["--fps", "1e308"], "fps must be a number > 0 and <= 1000"),
    ],
)
def test_absurd_numbers_are_refused(
    options: list[str], sentence: str, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["ask", str(video), "What?", "--model", "random", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"format_version": 1, "identity": []}', "[" * 100_000, "[]"])
def test_a_strange_manifest_is_refused(
    content: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "memory"
    assert main(["ask", str(video), "What?", "--memory", str(memory), *TINY]) == 0
    (memory / "vstream.json").write_text(content)
    refused(capsys, ["ask", str(memory), "What?"], "vstream.json is damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_features_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="features must be finite"):
        Frame(0.0, np.full((4, 64), value))


def test_a_frame_with_too_many_tokens_is_refused() -> None:
    with Engine(RandomLlama()) as engine:
        source = PushSource("p")
        session = engine.open(source, start=False)
        answer = session.ask("What?", at="end")
        engine.serve(session)
        source.push(feature_frames(1, tokens=40)[0].image)
        source.end()
        with pytest.raises(ValueError, match="tokens each, but 'random' allows"):
            answer.text(30)
