"""`vstream info DIR --plot FILE.png`: a picture of a real memory, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streams import MIB, ListSource, feature_frames, pump_all, small_config
from typer.testing import CliRunner

from vstream.app import plot
from vstream.app.cli import app
from vstream.app.info import Span, memory_info, memory_spans
from vstream.models.random import RandomLlama
from vstream.session import Session

FRAMES = 400
USED = np.array([0xD1, 0x49, 0x5B])


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes on three levels, asked about one moment at the end."""
    folder = tmp_path_factory.mktemp("plot") / "memory"
    config = small_config(disk_bytes=2 * MIB, host_bytes=MIB, digest_share=0.1, gist_share=0.3)
    session = Session(RandomLlama(), ListSource(feature_frames(FRAMES)), config, folder=folder)
    answer = session.ask("what was there at 6:20?")
    pump_all(session)
    assert answer.evidence
    session.close()
    return folder


@pytest.mark.slow
def test_spans_are_the_blocks_and_the_last_answers_evidence(memory: Path) -> None:
    spans = memory_spans(memory)
    found = memory_info(memory)
    for level in found["levels"]:
        assert sum(span.level == level["level"] for span in spans) == level["blocks"]
    assert {span.level for span in spans} == {"detail", "digest", "gist"}
    assert 0 < sum(span.used for span in spans) <= 5
    assert any(span.used and span.start_seconds <= 380 <= span.end_seconds + 1 for span in spans)
    assert "evidence" not in found["dialogue"][0]


def test_the_picture_shows_where_the_evidence_lies(memory: Path, tmp_path: Path) -> None:
    """Red where there is evidence, from left to right as in time."""
    file = tmp_path / "memory.png"
    done = CliRunner().invoke(app, ["info", str(memory), "--plot", str(file), "--json"])
    assert done.exit_code == 0, done.output
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = np.abs(pixels - USED).sum(-1) < 12
    red[: len(red) // 5] = False  # the legend
    columns = np.flatnonzero(red.any(0))
    used = [span for span in memory_spans(memory) if span.used]
    middle = np.mean([min(one.start_seconds for one in used), max(one.end_seconds for one in used)]) / FRAMES
    assert abs(columns.min() + columns.max()) / 2 / red.shape[1] == pytest.approx(middle, abs=0.08)


def test_a_memory_without_questions_has_no_red(tmp_path: Path) -> None:
    session = Session(
        RandomLlama(), ListSource(feature_frames(8)), small_config(disk_bytes=64 * MIB), folder=tmp_path / "m"
    )
    pump_all(session)
    session.close()
    assert not any(span.used for span in memory_spans(tmp_path / "m"))


SPAN = Span("detail", 0.0, 3.0, False)


@pytest.mark.parametrize(
    ("spans", "name", "match"),
    [([SPAN], "memory.jpg", "does not end in .png; give another name"), ([], "memory.png", "holds no blocks yet")],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(tmp_path: Path, spans: list[Span], name: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plot.plot_memory(spans, tmp_path / name, "DIR")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="needs matplotlib; run `pip install matplotlib`"):
        plot.plot_memory([SPAN], tmp_path / "memory.png", "DIR")


def test_a_plot_needs_a_memory() -> None:
    done = CliRunner().invoke(app, ["info", "--plot", "x.png"])
    assert done.exit_code != 0
    assert "give its folder" in str(done.exception)
