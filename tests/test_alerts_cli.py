"""Standing questions of `vstream watch`: events on the terminal, as JSON, in a file, by webhook, kept with a memory."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from alert_films import CLIP_SECONDS, HEART, OTHER, TIMES, heart_film
from receivers import event_at, receiving
from terminals import VSTREAM, Terminal

from vstream import Engine
from vstream.app.alerts.eventlog import EventLog
from vstream.app.alerts.notices import Notice, notice_record
from vstream.app.alerts.standing import KEPT, Standing, read_kept
from vstream.app.cli import main
from vstream.app.terminal import event_line
from vstream.app.view import GoingOn, alert_lines
from vstream.standing import AlertOptions

TINY = ("--model", "tiny", "--threads", "1", "--fps", "1")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heart_film(tmp_path_factory.mktemp("film") / "hearts.mp4")


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def check_events(events: list[dict[str, Any]]) -> None:
    """A beginning and an end of each time that there is a heart, and no others."""
    assert [event["event"] for event in events] == ["start", "end"] * len(TIMES)
    for (start, end), begins, ends in zip(TIMES, events[::2], events[1::2], strict=True):
        assert begins["id"] == ends["id"]
        assert start <= begins["start_seconds"] == ends["start_seconds"] <= start + CLIP_SECONDS
        assert begins["end_seconds"] is None
        assert end - CLIP_SECONDS <= ends["end_seconds"] <= end + CLIP_SECONDS
        assert begins["text"] == HEART
        assert 0.5 < begins["confidence"] <= ends["confidence"] <= 1


@pytest.mark.slow
def test_events_stand_between_the_answers_and_in_a_file(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pictures = tmp_path / "events.jsonl", tmp_path / "pictures"
    alerts = ("--alert", HEART, "--alert", OTHER, "--events", str(file), "--evidence-dir", str(pictures))
    assert main(["watch", str(film), *TINY, "--json", "--ask", f"00:20 {HEART}", *alerts]) == 0
    told = capsys.readouterr()
    lines = lines_of(told.out)
    (answer,) = [line for line in lines if "answer" in line]
    events = [line for line in lines if "event" in line]
    check_events(events)
    assert answer["answer"] == "yes"
    assert lines_of(file.read_text()) == events
    for event in events:
        assert Path(event["image"]).read_bytes().startswith(b"\xff\xd8")
        assert event["source"] == "hearts.mp4"
    assert main(["watch", str(film), *TINY, "--json", "--alert", HEART, "--events", str(file)]) == 0
    again = [{**line, "image": None} for line in events]
    assert lines_of(capsys.readouterr().out) == again, "the same film has the same events, with the same ids"
    assert [{**line, "image": None} for line in lines_of(file.read_text())] == again * 2, "lines are added"


def test_without_a_terminal_events_are_lines(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(film), *TINY, "--alert", HEART]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"\[00:0[6-9]\]  was there a red heart\? \(\d+%\)", lines[0])
    assert re.fullmatch(r"\[00:0[6-9]-00:1\d\]  over: was there a red heart\? \(\d+%\)", lines[1])


@pytest.mark.slow
def test_events_go_to_the_webhook(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSTREAM_WEBHOOK_SECRET", "a-secret-of-both-sides")
    with receiving(500) as receiver:
        memory = ("--memory", str(tmp_path / "memory"))
        assert main(["watch", str(film), *TINY, "--json", "--alert", HEART, "--webhook", receiver.url, *memory]) == 0
        told = capsys.readouterr()
        posted = [request.record for request in receiver.requests[1:]]
        assert all(request.is_signed() for request in receiver.requests)
    shown = lines_of(told.out)
    check_events(shown)
    assert sorted((one["id"], one["event"]) for one in posted) == sorted((one["id"], one["event"]) for one in shown)
    assert "takes no events: it answers 500" in told.err
    assert list((tmp_path / "memory" / "outbox").rglob("*.letter")) == []


def test_what_the_webhook_did_not_take_waits_for_the_next_run(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vstream.app.alerts.delivery.CLOSE_SECONDS", 0.2)
    with receiving() as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
    command = ["watch", str(film), *TINY, "--json", "--alert", HEART, "--webhook", receiver.url]
    command += ["--memory", str(tmp_path / "memory")]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "4 events for 127.0.0.1 could not be sent yet; the next run" in told.err
    monkeypatch.setattr("vstream.app.alerts.delivery.CLOSE_SECONDS", 10.0)
    with receiving(port=port) as receiver:
        assert main(command) == 0
        assert [request.record["id"] for request in receiver.requests] == [one["id"] for one in lines_of(told.out)]


@pytest.mark.slow
def test_with_a_memory_they_go_on(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped while a heart is to be seen, and resumed without a word about it: one event, begun and ended."""
    memory, file = tmp_path / "memory", tmp_path / "events.jsonl"
    command = [str(VSTREAM), "watch", str(film), *TINY, "--json", "--realtime", "--events", str(file)]
    with subprocess.Popen([*command, "--alert", HEART, "--memory", str(memory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stdout.read() == b""
    assert first["event"] == "start"
    (kept,) = read_kept(memory / KEPT).alerts
    assert kept["text"] == HEART
    assert kept["state"]["event"]["start_seconds"] == first["start_seconds"]
    assert main(["watch", str(film), *TINY, "--json", "--events", str(file), "--memory", str(memory)]) == 0
    later = lines_of(capsys.readouterr().out)
    check_events([first, *later])
    assert later[0]["event"] == "end"
    assert [line["id"] for line in lines_of(file.read_text())] == [first["id"], *(line["id"] for line in later)]


@pytest.mark.slow
def test_killed_while_it_watches_nothing_told_is_lost(film: Path, tmp_path: Path) -> None:
    """kill -9 when the first event was written down, and the same command again: every event is in the file."""
    memory, file = tmp_path / "memory", tmp_path / "events.jsonl"
    command = [str(VSTREAM), "watch", str(film), *TINY, "--json", "--events", str(file), "--memory", str(memory)]
    command += ["--alert", HEART]
    with subprocess.Popen([*command, "--realtime"], stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    events = lines_of(file.read_text())
    assert len({event["id"] for event in events}) == len(TIMES), "told again with the same id, or not at all"
    starts = [event["start_seconds"] for event in events if event["event"] == "start"]
    ended = {event["id"] for event in events if event["event"] == "end"}
    for start, _ in TIMES:
        assert any(start <= seconds <= start + CLIP_SECONDS for seconds in starts)
    assert {event["id"] for event in events} == ended, "each has ended"


@pytest.mark.slow
@pytest.mark.parametrize("at", ["save", "append", "written"])
def test_wherever_it_is_killed_a_notice_is_told_again_with_its_id(tmp_path: Path, at: str) -> None:
    """Each step of writing a notice down, cut off: what the next run finds has it, or it was told."""
    session = Engine.load("tiny").open(str(heart_film(tmp_path / "film.mp4", times=((2, 4),), seconds=8)), start=False)
    standing = Standing(session, tmp_path, stream="s")
    standing.add(HEART)
    noticed: list[Notice] = []
    standing.told = noticed.append
    standing._tell("film.mp4", event_at(2.0))
    log = EventLog(tmp_path / "events.jsonl")
    steps = {
        "save": standing.save,
        "append": lambda: log.append(notice_record(noticed[0])),
        "written": lambda: standing.written(noticed[0]),
    }
    for name, step in steps.items():
        step()
        if name == at:
            break
    session.close()
    told = [line["id"] for line in lines_of((tmp_path / "events.jsonl").read_text())]
    untold = read_kept(tmp_path / KEPT).untold
    assert [notice.event_id for notice in untold] == ([noticed[0].event_id] if at != "written" else [])
    assert untold or told == [noticed[0].event_id]
    for notice in untold:
        assert vars(notice.event) == vars(noticed[0].event)
        assert notice.key == noticed[0].key


@pytest.mark.slow
def test_kept_ones_can_be_changed_and_forgotten(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual, short = AlertOptions(), heart_film(tmp_path / "short.mp4", times=((4, 8),), seconds=12)
    command, path = ["watch", str(short), *TINY, "--json", "--memory", str(tmp_path / "memory")], tmp_path / "memory"
    assert main([*command, "--alert", HEART, "--alert", OTHER]) == 0
    assert [kept["text"] for kept in read_kept(path / KEPT).alerts] == [HEART, OTHER]
    assert main([*command, "--alert", HEART, "--alert-on", "7", "--cool-down", "3"]) == 0
    kept = {one["text"]: one["options"] for one in read_kept(path / KEPT).alerts}
    assert (kept[HEART]["on"], kept[HEART]["off"], kept[HEART]["cool_down_seconds"]) == (
        7.0,
        7.0 - usual.on + usual.off,
        3.0,
    )
    assert kept[OTHER]["on"] == usual.on
    assert main([*command, "--forget-alerts"]) == 0
    assert read_kept(path / KEPT) == ([], [])
    (path / KEPT).write_text('{"alerts": [{"text"')
    capsys.readouterr()
    assert main(command) == 2
    assert "alerts.json is damaged" in capsys.readouterr().err
    assert main([*command, "--forget-alerts"]) == 0


@pytest.mark.slow
def test_of_several_sources_each_event_says_which(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = heart_film(tmp_path / "other.mp4", times=((4, 10),), seconds=16)
    twin = shutil.copy(other, tmp_path / "twin.mp4")
    assert main(["watch", str(other), str(twin), *TINY, "--json", "--alert", HEART]) == 0
    events = lines_of(capsys.readouterr().out)
    assert sorted((event["source"], event["event"]) for event in events) == [
        ("other.mp4", "end"), ("other.mp4", "start"), ("twin.mp4", "end"), ("twin.mp4", "start"),
    ]  # fmt: skip
    assert len({event["id"] for event in events}) == 2
    assert main(["watch", str(other), str(twin), *TINY, "--alert", HEART]) == 0
    assert re.search(r"^\[@2 twin\.mp4 00:0\d\]  was there a red heart\?", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--alert", " "], "a standing question has 1 to 1000 characters that can be seen, got 0"),
        (["--alert", "x" * 1001], "1 to 1000 characters that can be seen, got 1001"),
        (["--alert", "a cat", "--alert-on", "nan"], "both finite"),
        (["--alert", "a cat", "--cool-down", "-1"], "cool_down_seconds must be"),
        (["--alert", "a cat", "--webhook", "hooks.example"], "--webhook must be an http or https address"),
        (["--alert", "a cat", "--webhook", "http://169.254.169.254/"], "link-local addresses"),
        (["--alert", "a cat", "--webhook-secret-file", "nothing"], "--webhook URL, which is not given"),
        (["--alert", "a cat", "--events", "/nowhere/events.jsonl"], "give a file in a folder that exists"),
        ([arg for n in range(17) for arg in ("--alert", f"cat {n}")], "16 standing questions, which is the most"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_refused_before_anything_is_watched(
    film: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["watch", str(film), *TINY, *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(re.escape(sentence), told.err)
    assert told.err.count("\n") == 1


# Looks ----------------------------------------------------------------------------------------------------------------


def test_a_line_has_time_text_and_picture() -> None:
    start = Notice(event_at(12.0, wall_clock=1_790_000_000.0), "a.mp4")
    line = event_line(start, "pictures/a.jpg").plain
    assert re.fullmatch(r"\[00:12\]  a cat appears \(90%\)  2026-[\d-]+ [\d:]+  pictures/a\.jpg", line)
    evil = event_line(Notice(event_at(12.0, text="a\x1b[2Jcat"), "a.mp4"), None).plain
    assert "\x1b" not in evil


def test_what_goes_on_is_shown_below_the_sources() -> None:
    standing = [GoingOn("", "a cat", 12.0), GoingOn("@2 b.mp4", "a dog", None), GoingOn("", "x" * 200, 75.0)]
    lines = ["".join(text for _, text in line) for line in alert_lines(standing, 60, 5)]
    assert lines[0] == "● a cat  since 00:12"
    assert len(lines[1]) <= 60
    assert "since 01:15" in lines[1]
    assert lines[2] == "○ 1 standing question more"
    assert alert_lines(standing, 60, 0) == []
    assert len(alert_lines(standing, 60, 2)) == 2
    assert alert_lines([], 60, 5) == []


@pytest.mark.slow
def test_on_a_terminal_they_are_seen_to_go_on_and_to_end(film: Path) -> None:
    with Terminal("watch", str(film), *TINY, "--alert", HEART, "--alert", OTHER, "--realtime") as terminal:
        terminal.wait_for(r"○ 2 standing questions more")
        terminal.wait_for(r"\[00:0[6-9]\]  was there a red heart\? \(\d+%\)")
        terminal.wait_for(r"● was there a red heart\?  since 00:0[6-9]")
        terminal.wait_for(r"\[00:0[6-9]-00:1\d\]  over: was there a red heart\?")
        terminal.type("/quit\r")
        assert terminal.ends() == 0
