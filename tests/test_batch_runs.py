"""Batches from the outside: no frame after a question's time has a part in its answer, and no crash costs one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batches import SEED, by_row, film_worlds, read_lines, rows_about, write_rows
from torch import Tensor

from vstream.app.cli import main
from vstream.app.lab.exam import Examiner
from vstream.app.lab.render import film
from vstream.app.lab.world import COLOURS, World, plant
from vstream.decoder import Decoding

VSTREAM = Path(sys.executable).with_name("vstream")
TINY = ("--model", "tiny", "--threads", "1", "--max-tokens", "6")
QUESTIONS = int(os.environ.get("VSTREAM_BATCH_QUESTIONS", "300"))
VIDEOS = 20
NEEDLE_SECONDS, HALF, WHOLE = 16, 12, 24


def command(questions: Path, videos: Path, out: Path, *more: str) -> list[str]:
    return ["batch", str(questions), "--videos", str(videos), "--out", str(out), *TINY, *more]


# Causality --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """One world, lossless, whose needle comes in its second half: as it is, in another colour, cut off before it."""
    folder = tmp_path_factory.mktemp("futures")
    (needle,) = plant(SEED, [NEEDLE_SECONDS], kinds=["heart"])
    needle = replace(needle, turned=None, turn_seconds=None)
    other = next(colour for colour in COLOURS if colour != needle.thing.colour)
    world = World(SEED, WHOLE, (needle,))
    changed = replace(world, needles=(replace(needle, thing=needle.thing._replace(colour=other)),))
    film(world, folder / "as-it-is.mkv", fps=2, side=96, codec="ffv1")
    film(changed, folder / "changed.mkv", fps=2, side=96, codec="ffv1")
    data = (folder / "as-it-is.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * (HALF + 2) // WHOLE])
    return folder, world


def test_an_answer_is_known_once_it_was_shown_and_not_before(futures: tuple[Path, World], tmp_path: Path) -> None:
    folder, world = futures
    colours = {"as-it-is.mkv": world.needles[0].thing.colour}
    colours["changed.mkv"] = next(colour for colour in COLOURS if colour != colours["as-it-is.mkv"])
    rows = [
        {"id": f"{video} {at}", "video": video, "question": "what colour was the heart?", "at": at, "answer": answer}
        for video, colour in colours.items()
        for at, answer in (("end", colour), (f"00:{HALF}", "not seen"), (f"00:{NEEDLE_SECONDS - 1}", "not seen"))
    ]
    out = tmp_path / "out.jsonl"
    assert main(command(write_rows(tmp_path / "q.jsonl", rows), folder, out)) == 0
    assert {one["id"]: one["answer"] for one in read_lines(out)} == {row["id"]: row["answer"] for row in rows}


@pytest.mark.slow
def test_another_future_changes_no_bit_of_an_answer(
    futures: tuple[Path, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, world = futures
    asked = [one for at in (3, 7, HALF) for one in Examiner(world).ask(at, 3)]
    first: list[Tensor] = []
    begin = Decoding.__init__

    def noting(self: Decoding, adapter: Any, cache: Any, logits: Tensor, *more: Any) -> None:
        first.append(logits.clone())
        begin(self, adapter, cache, logits, *more)

    monkeypatch.setattr(Decoding, "__init__", noting)
    seen = {}
    for video in ("as-it-is.mkv", "changed.mkv", "cut.mkv"):
        rows = [
            {"id": n, "video": video, "question": one.text, "at_seconds": one.at_seconds} for n, one in enumerate(asked)
        ]
        # a last question, which sees what follows
        rows.append({"id": "later", "video": video, "question": "what is there now?", "at": "end"})
        out = tmp_path / f"{video}.jsonl"
        pictures = str(tmp_path / "pictures")
        questions = write_rows(tmp_path / "q.jsonl", rows)
        assert main(command(questions, folder, out, "--evidence-dir", pictures)) == 0
        records = [{**one, "video": "", "source": "", "evidence": _without_names(one)} for one in by_row(out).values()]
        records.sort(key=lambda one: one["row"])
        seen[video] = records, [logits.tolist() for logits in first]
        first.clear()
    (records, logits), *others = seen.values()
    assert len(logits) == len(asked) + 1 == len(records)
    for other_records, other_logits in others:
        assert other_records[:-1] == records[:-1]
        assert other_logits[:-1] == logits[:-1]
        assert other_logits[-1] != logits[-1], "the futures differ"


def _without_names(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Evidence with the bytes of its pictures in place of their paths, which name the video."""
    return [{**one, "image": Path(one["image"]).read_bytes().hex()} for one in record["evidence"] if one["image"]]


# Crashes ----------------------------------------------------------------------------------------------------------


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_until(arguments: list[str], out: Path, lines: int, number: int) -> int:
    """Runs the installed command until so many lines are there, then sends it a signal; its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([VSTREAM, *arguments], env=environment, text=True, **quiet) as process:  # type: ignore[call-overload]
        while count_lines(out) < lines and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.stderr is not None
        told = process.stderr.read()
    if number != signal.SIGKILL:
        assert "the same command goes on from there" in told
    return int(process.returncode)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_questions_killed_twice_end_complete_and_equal_to_an_uninterrupted_run(tmp_path: Path) -> None:
    each = QUESTIONS // VIDEOS
    rows = rows_about(film_worlds(tmp_path / "v", VIDEOS, 20), each + 2)[:QUESTIONS]
    assert len(rows) == QUESTIONS
    questions, whole, killed = (
        write_rows(tmp_path / "q.jsonl", rows),
        tmp_path / "whole.jsonl",
        tmp_path / "killed.jsonl",
    )
    arguments = command(questions, tmp_path / "v", killed)
    done = [0]
    for share in (1 / 3, 2 / 3):
        assert run_until(arguments, killed, int(share * QUESTIONS), signal.SIGKILL) == -signal.SIGKILL
        done.append(count_lines(killed))
        assert done[-2] < done[-1] < QUESTIONS, "killed on the way"
        with killed.open("rb+") as lines:  # as if it had been in the middle of a line
            lines.write(b"") if share > 0.5 else lines.truncate(killed.stat().st_size - 7)
    assert main([*arguments, "--json"]) == 0
    assert main(command(questions, tmp_path / "v", whole)) == 0
    assert len(read_lines(whole)) == QUESTIONS
    assert by_row(killed) == by_row(whole)


@pytest.mark.slow
def test_an_interrupt_ends_a_run_cleanly_and_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worlds = film_worlds(tmp_path / "v", 3, 20)
    questions, out = write_rows(tmp_path / "q.jsonl", rows_about(worlds, 20)), tmp_path / "out.jsonl"
    arguments = command(questions, tmp_path / "v", out)
    assert run_until(arguments, out, 5, signal.SIGINT) == 128 + signal.SIGINT
    kept = out.read_bytes()
    assert 5 <= kept.count(b"\n") < count_lines(questions)
    assert main([*arguments, "--json"]) == 0
    assert out.read_bytes().startswith(kept)
    assert len(by_row(out)) == count_lines(questions)
    assert json.loads(capsys.readouterr().out)["answers"] == count_lines(questions)
