"""The live view, as text and on a real terminal: questions typed while cameras and files are watched."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.cells import cell_len
from terminals import Terminal
from videos import constant_times, write_video

from vstream.app.looks import Look, Rate
from vstream.app.news import trouble_in
from vstream.app.progress import without_credentials
from vstream.app.questions import Scheduled, in_order, parse_line, parse_moment
from vstream.app.typed import Cancel, Command, Question, parse_typed
from vstream.app.view import Line, OpenAnswer, format_wall, hint_line, live_lines, ordinal, status_lines

TINY = ("--model", "random", "--threads", "1", "--fps", "2", "--max-tokens", "8")
CAMERA = "lavfi:testsrc2=size=320x240:rate=10,realtime"
LOOK = Look(
    label="@1 rtsp://camera/front door",
    clock_seconds=75.3,
    wall_seconds=datetime.now().replace(hour=15, minute=0, second=12).timestamp(),
    decoded_per_second=25.0,
    encoded_per_second=1.0,
    lag_seconds=0.4,
    blocks={"detail": 12, "gist": 3},
    tier_bytes={"device": 3 << 20, "host": 14 << 20, "disk": 0},
)
ANSWER = OpenAnswer(3, "@1 rtsp://camera/front door", "Was there a cat?", 0, "The animal is a 猫 " * 30, 90)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four seconds of a clock."""
    return str(write_video(tmp_path_factory.mktemp("video") / "clock.mp4", constant_times(20, 5.0)))


def texts(lines: list[Line]) -> list[str]:
    return ["".join(text for _, text in line) for line in lines]


# The text ---------------------------------------------------------------------------------------------------------


def test_a_source_has_its_pace_and_its_memory() -> None:
    pace, memory = texts(status_lines([LOOK], 120, 30))
    assert pace == "@1 rtsp://camera/front door  01:15  15:00:12  in 25.0/s  encoded  1.0/s  lag 0.4 s"
    assert memory == "   dropped 0  12 detail, 3 gist blocks  device 3.0  host 14.0  disk 0.0 MiB"
    file = dataclasses.replace(LOOK, label="a.mp4", wall_seconds=None, duration_seconds=3700.0, over=True)
    assert texts(status_lines([file], 79, 30))[0] == "a.mp4  01:15 / 1:01:40  over"


def test_what_is_the_matter_has_a_line_of_its_own() -> None:
    lost = dataclasses.replace(
        LOOK, state="waiting 4 s after: connection refused (attempt 7)", num_gaps=2, last_gap_seconds=12.2, dropped=5
    )
    lines = status_lines([lost], 100, 30)
    assert texts(lines)[2] == "   waiting 4 s after: connection refused (attempt 7)  2 gaps, the last 12 s"
    assert ("class:trouble", "dropped 5") in lines[1]
    failed = dataclasses.replace(LOOK, failure="the disk is full", over=True)
    assert ("class:failure", "the disk is full") in status_lines([failed], 100, 30)[2]
    assert "failed" in texts(status_lines([failed], 100, 30))[0]


@pytest.mark.parametrize("width", [8, 20, 39, 79, 199])
@pytest.mark.parametrize("rows", [3, 5, 12, 40])
def test_no_line_is_wider_and_no_view_higher_than_the_terminal(width: int, rows: int) -> None:
    looks = [
        dataclasses.replace(LOOK, label=f"@{number} 正面ドア{'x' * number}", state="connecting") for number in range(9)
    ]
    answers = [dataclasses.replace(ANSWER, number=number, place=number % 3) for number in range(5)]
    lines = live_lines(looks, answers, width, rows)
    assert len(lines) <= rows
    assert max(cell_len(text) for text in texts(lines)) <= width
    assert all("\n" not in text for text in texts(lines))


def test_where_there_is_little_room_trouble_comes_before_memory_and_sources_are_counted() -> None:
    looks = [LOOK, dataclasses.replace(LOOK, label="@2 back", state="connecting")]
    assert [text.split()[0] for text in texts(status_lines(looks, 100, 4))] == ["@1", "dropped", "@2", "connecting"]
    assert [text.split()[0] for text in texts(status_lines(looks, 100, 2))] == ["@1", "@2"]
    assert texts(status_lines([LOOK] * 9, 100, 3))[-1] == "and 7 more; /status tells all"


def test_an_open_answer_tells_its_place_and_the_end_of_its_text() -> None:
    waiting = dataclasses.replace(ANSWER, text="", num_tokens=0, place=2)
    assert texts(live_lines([], [waiting], 100, 30))[0].endswith("Was there a cat?  2nd in the queue")
    title, *said = texts(live_lines([], [ANSWER], 60, 30))[:-1]
    assert title.endswith("90 tokens")
    assert len(said) == 3
    assert said[-1].strip().endswith("猫")
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th",
    ]  # fmt: skip


def test_control_characters_of_models_and_names_are_not_drawn() -> None:
    answer = dataclasses.replace(ANSWER, text="a\x1b[2Jb\rc", question="x\x07?")
    look = dataclasses.replace(LOOK, label="a\x1b]0;b")
    assert not any(set("\x1b\x07\r") & set(text) for text in texts(live_lines([look], [answer], 100, 30)))


def test_the_hint_counts_what_is_scheduled() -> None:
    assert texts([hint_line(2, 79)])[0].endswith("2 questions scheduled")
    assert texts([hint_line(0, 20)]) == ["ask at any time"]


def test_wall_clock_times_have_a_date_where_they_need_one() -> None:
    now = datetime.now().replace(hour=12)
    assert format_wall(now.timestamp()) == f"{now:%H:%M:%S}"
    assert format_wall((now - timedelta(days=3)).timestamp()).startswith(f"{now - timedelta(days=3):%Y-%m-%d} 12:")


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(over_seconds=10.0)
    assert rate(0.0, 0) == 0.0
    assert rate(5.0, 50) == 10.0
    assert [rate(float(seconds), 50) for seconds in (14, 16, 30)][-1] == 0.0


# What is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("what  is\tshown?", Question("what is shown?", None)),
        ("@2 what?", Question("what?", "2")),
        ("@front what?", Question("what?", "front")),
        ("/cancel", Cancel(None)),
        ("/cancel 3", Cancel(3)),
        ("/status", Command("status")),
    ],
)
def test_typed_lines_are_understood(line: str, meaning: object) -> None:
    assert parse_typed(line) == meaning


@pytest.mark.parametrize("line", ["/quit now", "/cancel x", "/", "/exit", "@2", "@"])
def test_other_commands_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"is no command; there are /help|there is no question in"):
        parse_typed(line)


def test_lines_of_standard_input_are_json_or_plain() -> None:
    assert parse_line(" what? ") == Scheduled("what?", "now")
    assert parse_line('{"at": 2, "question": "what?"}') == Scheduled("what?", 2.0)
    with pytest.raises(ValueError, match="no JSON"):
        parse_line('{"at"')
    with pytest.raises(ValueError, match="no JSON"):
        parse_line('{"a":' * 100_000)


def test_wall_clock_moments() -> None:
    assert parse_moment("2026-11-21T15:00+01:00") == datetime(2026, 11, 21, 14, tzinfo=UTC)
    assert parse_moment("2026-11-21T15:00") == datetime(2026, 11, 21, 15).astimezone()
    assert parse_moment("T15:00:12") == datetime.now().replace(hour=15, minute=0, second=12, microsecond=0).astimezone()
    today = datetime.now(UTC).replace(hour=15, minute=0, second=0, microsecond=0)
    assert parse_moment("T15:00Z") == today


@pytest.mark.parametrize("wrong", ["T25:00", "2026-13-01T00:00", "2026-11-21T", "T1:00"])
def test_other_wall_clock_moments_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"'{wrong}' is not a time; write a wall-clock time as"):
        parse_moment(wrong)


def test_questions_are_asked_in_the_order_of_time() -> None:
    moment = datetime(2026, 11, 21, 15, tzinfo=UTC)
    questions = [Scheduled("c", "end"), Scheduled("b", moment), Scheduled("a", 9.0), Scheduled("0", 1.0)]
    assert [question.text for question in in_order(questions)] == ["0", "a", "b", "c"]


def test_a_camera_s_trouble_is_told_without_what_changes_with_every_attempt() -> None:
    assert trouble_in("waiting 4 s after: connection refused (attempt 7)") == "connection refused"
    assert trouble_in("waiting 0.5 s after: stalled") == "stalled"
    assert trouble_in("watching") is trouble_in("connecting") is trouble_in("") is None


def test_credentials_are_hidden_even_where_they_are_written_wrongly() -> None:
    for address in ("rtsp://me:secret@host/x", "rtsp:/me:secret@host/x", "rtsp://me:se/cr@et@host"):
        assert "me:" not in without_credentials(f"there is no {address}, sorry")
        assert "host" in without_credentials(address)
    assert without_credentials("a@b 12:30 rtsp://host:554/x") == "a@b 12:30 rtsp://host:554/x"


# On a terminal ----------------------------------------------------------------------------------------------------


def encoded(terminal: Terminal) -> int:
    """Frames encoded so far, as /status tells."""
    shown = len(terminal.text)
    terminal.type("/status\r")
    return int(terminal.wait_for(r"(\d+) encoded", after=shown)[1])


@pytest.mark.slow
def test_questions_are_answered_while_a_camera_is_watched() -> None:
    with Terminal("watch", CAMERA, *TINY) as terminal:
        terminal.wait_for("ask at any time")
        terminal.wait_for(r"\d+ detail")
        before = encoded(terminal)
        shown = len(terminal.text)
        terminal.type("what is shown?\r")
        terminal.wait_for(r"\d\d:\d\d what is shown\?", after=shown)
        terminal.wait_for("first token after", after=shown)
        time.sleep(2.5)
        assert encoded(terminal) > before
        shown = len(terminal.text)
        for key in ("\x1b[A", "\x1b[A", "\r"):  # up, up: /status, then the question
            time.sleep(0.5)  # as a person would
            terminal.type(key)
        terminal.wait_for(r"what is shown\?  ─", after=shown)
        terminal.type("/help\r/nonsense\r/cancel\r")
        terminal.wait_for("cancels the newest answer")
        terminal.wait_for("'/nonsense' is no command")
        terminal.wait_for("there is no answer that could be cancelled")
        terminal.type("/quit\r")
        assert terminal.ends() == 0
        assert "stopped; nothing is kept without --memory DIR" in terminal.text
        assert "Traceback" not in terminal.text


@pytest.mark.slow
def test_a_camera_that_is_away_is_waited_for_and_its_password_never_shown(tmp_path: Path) -> None:
    cameras = ("rtsp://me:secret@127.0.0.1:9/door", CAMERA)
    with Terminal("watch", *cameras, *TINY, "--memory", str(tmp_path / "kept"), columns=180) as terminal:
        terminal.wait_for(r"waiting .* after: connection refused")
        terminal.wait_for(r"[1-9]\d* detail")
        terminal.type("@2 what?\r")
        terminal.wait_for(r"@2 lavfi:testsrc2=size=320x24… 00:\d\d what\?")
        terminal.type("@3 what?\r@door what?\r")
        terminal.wait_for("@3 is no source; choose from @1 rtsp://127.0.0.1:9/door, @2 lavfi")
        terminal.wait_for("@door is no source")
        terminal.type("\x03")
        assert terminal.ends() == 130
        assert re.search(r"kept keeps everything up to 00:\d\d @2 lavfi\S+ and the same command", terminal.text)
        assert "secret" not in terminal.raw
    folders = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert folders == ["lavfi_testsrc2_size_320x240_rate_10_realtime", "rtsp_127.0.0.1_9_door"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_the_terminal_as_it_was(number: signal.Signals) -> None:
    with Terminal("watch", CAMERA, *TINY) as terminal:
        terminal.wait_for("ask at any time")
        terminal.process.send_signal(number)
        assert terminal.ends() == 128 + number
        assert "stopped; nothing is kept" in terminal.text


@pytest.mark.slow
def test_a_file_ends_with_a_table_and_waits_for_what_is_being_typed(video: str) -> None:
    with Terminal("watch", video, *TINY, "--ask", "00:02 one?", "--realtime") as terminal:
        terminal.wait_for("ask at any time")
        terminal.type("tw")
        terminal.wait_for(r"00:02 one\?")
        terminal.wait_for("over")
        time.sleep(1)
        assert terminal.process.poll() is None
        terminal.type("o?\r")
        terminal.wait_for(r"00:03 two\?")
        assert terminal.ends() == 0
        assert re.search(r"frames +20 decoded, \d+ taken", terminal.text)


@pytest.mark.slow
def test_stay_takes_questions_about_the_end_on_a_terminal_that_is_small_and_resized(video: str) -> None:
    with Terminal("watch", video, *TINY, "--stay", columns=40, rows=10) as terminal:
        terminal.wait_for("over")
        terminal.resize(200, 50)
        terminal.type("one?\r")
        terminal.wait_for(r"00:03 one\?")
        terminal.resize(12, 4)
        time.sleep(1)
        terminal.resize(40, 10)
        terminal.type("two?\r")
        terminal.wait_for(r"00:03 two\?")
        terminal.type("\x04")
        assert terminal.ends() == 0
        assert "Traceback" not in terminal.text
