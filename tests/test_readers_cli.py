"""`vstream ask DIR` while another process watches into DIR, and while DIR is not yet, or no longer, a whole memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from memory_processes import open_writer, watch_until

from vstream.app.cli import main
from vstream.memory import folder as folders
from vstream.memory.block import BlockShape
from vstream.memory.disk import DiskTier
from vstream.models.random import RandomLlama

VSTREAM = Path(sys.executable).with_name("vstream")
RANDOM = ["--model", "random", "--threads", "1"]
CAMERA = "lavfi:testsrc2=size=64x48:rate=10,realtime"


def ask(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, Any]:
    """The one answer that `vstream ask DIR` prints."""
    capsys.readouterr()
    code = main(["ask", str(folder), "what?", *RANDOM, "--max-tokens", "4", *arguments, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    answer: dict[str, Any] = json.loads(said.out)
    return answer


def refused(capsys: pytest.CaptureFixture[str], folder: Path, sentence: str, *arguments: str) -> None:
    """Checks that asking ends with 2 and one sentence."""
    capsys.readouterr()
    code = main(["ask", str(folder), "what?", *(arguments or RANDOM)])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert re.fullmatch(rf"vstream: [^\n]*({sentence})[^\n]*\n", said.err), said.err


@pytest.fixture
def watching(tmp_path: Path) -> Any:
    """A camera that is being watched into a folder, by another process."""
    command = [VSTREAM, "watch", CAMERA, *RANDOM, "--fps", "4", "--memory", str(tmp_path / "memory")]
    streams: dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams) as process:
        yield process
        process.kill()


def wait_for_clip(capsys: pytest.CaptureFixture[str], folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Asks until there is something to ask about; until then each refusal is one sentence."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        capsys.readouterr()
        code, said = main(["ask", str(folder), "what?", *RANDOM, "--max-tokens", "4"]), capsys.readouterr()
        if code == 0 and "Nothing has been seen yet." not in said.out:
            return
        assert code == 0 or (code, said.out, said.err.count("\n")) == (2, "", 1), said
        time.sleep(0.05)
    raise AssertionError("nothing was committed")


@pytest.mark.slow
def test_asking_a_camera_that_another_process_watches(
    watching: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "memory"
    wait_for_clip(capsys, folder, watching)
    answers = []
    for _ in range(3):
        answers.append(ask(capsys, folder))
        time.sleep(1.5)
    seen = [answer["snapshot_seconds"] for answer in answers]
    assert seen[0] < seen[1] < seen[2]
    assert answers[0]["memory"]["blocks"] < answers[2]["memory"]["blocks"]
    first = min(answers[2]["evidence"], key=lambda one: one["start_seconds"])
    wall = datetime.fromisoformat(first["wall_clock"]) + timedelta(seconds=1.2)
    then = ask(capsys, folder, "--at", wall.isoformat())
    assert then["asked_at_seconds"] == pytest.approx(first["start_seconds"] + 1.2, abs=0.01)
    assert then["snapshot_seconds"] <= then["asked_at_seconds"]
    refused(capsys, folder, "the stream was not watched before", *RANDOM, "--at", "2001-01-01T00:00")
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert ask(capsys, folder)["snapshot_seconds"] >= seen[2]


def test_a_folder_that_is_only_being_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, adapter = tmp_path / "memory", RandomLlama()
    refused(capsys, folder, "there is no file")
    folder.mkdir()
    refused(capsys, folder, "holds no pictures")
    folders.lock_writer(folder)
    refused(capsys, folder, "holds no pictures")
    (folder / "data.mdb").touch()
    refused(capsys, folder, "there is no memory in")
    (folder / "data.mdb").unlink()
    (folder / "writer.lock").unlink()
    shape = BlockShape(adapter.num_layers, adapter.num_kv_heads, adapter.head_dim, adapter.dtype)
    identity = {"model": adapter.name, "fingerprint": adapter.fingerprint, "dtype": str(adapter.dtype)}
    layout = {"layers": shape.num_layers, "kv heads": shape.num_kv_heads, "head dim": shape.head_dim}
    with DiskTier.open(folder, {**identity, **layout, "dtype": "float32"}, disk_bytes=1 << 20):
        refused(capsys, folder, "holds nothing yet; ask again when a clip was watched")


def test_a_memory_of_which_nothing_was_seen_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = open_writer(tmp_path / "memory")
    assert ask(capsys, tmp_path / "memory")["answer"] == "Nothing has been seen yet."
    watch_until(writer, 9)
    assert ask(capsys, tmp_path / "memory")["snapshot_seconds"] == 9
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A memory of ten clips."""
    writer = open_writer(tmp_path / "memory")
    watch_until(writer, 19)
    writer.close()
    return tmp_path / "memory"


def test_half_a_memory_or_another_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, manifest = folder / "data.mdb", folder / "vstream.json"
    whole = data.read_bytes()
    data.write_bytes(whole[: 16 * 1024])
    refused(capsys, folder, "data.mdb is truncated or damaged")
    data.write_bytes(b"no LMDB file at all" * 1000)
    refused(capsys, folder, "data.mdb is truncated or damaged")
    data.unlink()
    refused(capsys, folder, "half of the memory in .* is missing: vstream.json is there, but data.mdb is not")
    data.write_bytes(whole)
    text = manifest.read_text()
    manifest.write_text(text.replace(RandomLlama().fingerprint, "another"))
    refused(capsys, folder, "was made with fingerprint|half of the memory in .* is another's")
    manifest.unlink()
    refused(capsys, folder, "half of the memory in .* is missing: data.mdb is there, but vstream.json is not")
    manifest.write_text(text)
    assert ask(capsys, folder)["snapshot_seconds"] == 19
