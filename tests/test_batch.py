"""Batches: rows of every kind, the ledger, what is right, one pass over each video, and the report."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from batches import by_row, film_worlds, read_lines, rows_about, write_rows
from rich.console import Console

from vstream.app.batch.ledger import Ledger
from vstream.app.batch.marks import is_right, normalised, percentile, summary_of, wilson
from vstream.app.batch.plan import find_video, mark_of, plan
from vstream.app.batch.report import page_of
from vstream.app.batch.rows import BadRow, Row, read_rows
from vstream.app.cli import main
from vstream.app.progress import Progress

TINY = ("--model", "tiny", "--threads", "1", "--max-tokens", "6")
GOOD = {"id": 1, "video": "a.mp4", "question": "What?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three worlds of 24 seconds, six questions about each, in q.jsonl; videos in v."""
    where = tmp_path_factory.mktemp("batch")
    write_rows(where / "q.jsonl", rows_about(film_worlds(where / "v", 3, 24), 6))
    return where


def batch(folder: Path, out: Path, *more: str, questions: str | Path = "q.jsonl") -> int:
    given = ["batch", str(folder / questions), "--videos", str(folder / "v"), "--out", str(out), *TINY, *more]
    return main(given)


@pytest.fixture(scope="module")
def answered(folder: Path) -> Path:
    """The answers to q.jsonl, with pictures; not to be changed."""
    out = folder / "answers.jsonl"
    assert batch(folder, out, "--report", str(folder / "report.html"), "--json") == 0
    return out


# Rows -------------------------------------------------------------------------------------------------------------


def read(path: Path, data: str | bytes) -> list[Row | BadRow]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_rows(path)


def test_the_same_rows_come_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "at_seconds": 90, "options": ["red", "blue"], "answer": "B", "type": "colour"},
        {"id": "2", "video": "b/c.mp4", "question": 'Says "stop",\nor not?', "at": "01:30"},
        {"id": "3", "video": "a.mp4", "question": "Who?", "at": "end", "answer": "é"},
    ]
    expected = [
        Row(1, "1", "a.mp4", "What?", 90.0, ("red", "blue"), "B", "colour"),
        Row(2, "2", "b/c.mp4", 'Says "stop",\nor not?', 90.0),
        Row(3, "3", "a.mp4", "Who?", "end", expected="é"),
    ]
    rows[0]["id"] = "1"
    cells = (
        "id,video,question,at_seconds,at,options,answer,type,seen by\r\n"
        '1,a.mp4,What?,90,,"[""red"", ""blue""]",B,colour,\r\n'
        '\r\n2,b/c.mp4,"Says ""stop"",\nor not?",,01:30,,,,me\r\n3,a.mp4,Who?,,end,,é,,\r\n'
    )
    for mark in ("", "\ufeff"):
        assert read(tmp_path / "q.csv", mark + cells) == expected
        assert read(tmp_path / "q.json", mark + json.dumps(rows)) == expected
        lines = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        assert read(tmp_path / "q.jsonl", mark + lines) == expected


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["A. red", "B. blue"], ("red", "blue")),
        (["(A) red", "(B) blue"], ("red", "blue")),
        (["(A). red", "(B). A. M."], ("red", "A. M.")),
        (["A. red", "C. blue"], ("A. red", "C. blue")),
        ([1, 2.5], ("1", "2.5")),
    ],
)
def test_options_lose_letters_of_their_own(tmp_path: Path, given: list[Any], options: tuple[str, ...]) -> None:
    (row,) = read(tmp_path / "q.jsonl", json.dumps({**GOOD, "options": given}))
    assert isinstance(row, Row)
    assert row.choices == options


BAD_ROWS = [
    ({"question": None}, "has no question; a row needs id, video and question"),
    ({"id": None, "video": ""}, "has no id and video"),
    ({"id": 1.5}, "id must be text or a whole number, got 1.5"),
    ({"id": True}, "id must be text or a whole number, got True"),
    ({"video": 3}, "video must be text that is not empty, got 3"),
    ({"question": " "}, "question must be text"),
    ({"options": "red, blue"}, "options must be a list of texts"),
    ({"options": ["red"]}, "2 to 26 options"),
    ({"options": ["red", " "]}, "an option is empty"),
    ({"options": ["red", ["blue"]]}, "options must be a list of texts"),
    ({"options": ["red", "blue"], "answer": "green"}, "answer must be one of the options or its letter, got 'green'"),
    ({"answer": ["red"]}, "answer must be text or a number"),
    ({"type": 1}, "type must be text"),
    ({"at": "1:2:3:4"}, "is not a time"),
    ({"at": "2026-11-21T15:00"}, "at must be a time in the video"),
    ({"at": 5, "at_seconds": 5}, "at_seconds and at; leave one out"),
    ({"at_seconds": -1}, "at_seconds must be a number of seconds >= 0, got -1"),
    ({"at_seconds": "soon"}, "at_seconds must be a number of seconds >= 0, got 'soon'"),
    ({"at_seconds": 1e999}, "no JSON"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD_ROWS)
def test_a_bad_row_is_told_in_one_sentence_and_the_next_is_read(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    rows = read(tmp_path / "q.jsonl", f"{json.dumps({**GOOD, **changed})}\n{json.dumps({**GOOD, 'id': 'next'})}\n")
    assert isinstance(rows[0], BadRow)
    assert sentence in rows[0].error
    assert rows[0].error.startswith("row 1: ")
    assert "\n" not in rows[0].error
    assert rows[1] == Row(2, "next", "a.mp4", "What?")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "no JSON"),
        (b"[1]", "a question is written as"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (b'{"id": 2, "video": "a.mp4", "question": "?", "at_seconds": NaN}', "NaN is no number of JSON"),
        (json.dumps({**GOOD, "id": "1"}).encode(), "the id '1' is that of row 1 already"),
    ],
)
def test_a_line_that_is_no_row_is_one_error(tmp_path: Path, line: bytes, sentence: str) -> None:
    first, second = read(tmp_path / "q.jsonl", json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    assert isinstance(first, Row)
    assert isinstance(second, BadRow)
    assert sentence in second.error


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("q.csv", b"", "q.csv is empty; it needs a row"),
        ("q.csv", b"id,video,question\n", "is empty"),
        ("q.csv", b"id,video\n1,a.mp4\n", "has no column question; its first line must name id, video and question"),
        ("q.csv", b"id,video,question\n1,a.mp4,caf\xe9\n", "is not UTF-8 (byte 30); save the file as UTF-8"),
        ("q.csv", b'id,video,question\n1,a.mp4,"what\n', "q.csv is no CSV after line 1"),
        ("q.json", b"", "is empty"),
        ("q.json", b"[]", "is empty"),
        ("q.json", b'{"id": 1}', "must hold a list of objects"),
        ("q.json", b"[{]", "no JSON"),
        ("q.jsonl", b"\n \n", "is empty"),
        ("q.txt", b"x", "must end in .jsonl, .json or .csv"),
    ],
)
def test_a_file_that_will_not_do_is_refused(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read(tmp_path / name, data)


def test_a_csv_row_with_too_few_or_too_many_cells_is_bad(tmp_path: Path) -> None:
    few, many, good = read(tmp_path / "q.csv", "id,video,question\n1,a.mp4\n2,a.mp4,What,now?\n3,a.mp4,What?\n")
    assert isinstance(few, BadRow)
    assert isinstance(many, BadRow)
    assert "as many cells as the first line, which has 3" in few.error == many.error.replace("row 2", "row 1")
    assert good == Row(3, "3", "a.mp4", "What?")


# Videos -----------------------------------------------------------------------------------------------------------


def test_a_video_lies_in_the_folder_and_nowhere_else(tmp_path: Path) -> None:
    videos, outside = tmp_path / "v", tmp_path / "outside"
    (videos / "in").mkdir(parents=True)
    outside.mkdir()
    for path in (videos / "in" / "a.mp4", outside / "b.mp4"):
        path.write_bytes(b"x")
    (videos / "link.mp4").symlink_to(videos / "in" / "a.mp4")
    (videos / "out").symlink_to(outside)
    assert find_video(videos, "in/a.mp4") == videos / "in" / "a.mp4"
    for name in ("../outside/b.mp4", "in/../../outside/b.mp4", str(outside / "b.mp4"), ".", "", "a\0.mp4"):
        with pytest.raises(ValueError, match="video must be a path below"):
            find_video(videos, name)
    for name in ("link.mp4", "out/b.mp4"):
        with pytest.raises(ValueError, match="goes through a symbolic link"):
            find_video(videos, name)
    with pytest.raises(ValueError, match=r"there is no video 'nope\.mp4' in"):
        find_video(videos, "nope.mp4")


def test_a_plan_has_each_video_once_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").write_bytes(b"x")
    asked = (("b.mp4", "end"), ("a.mp4", 7.0), ("b.mp4", 3.0), ("gone.mp4", 1.0), ("b.mp4", 1.0))
    rows = [Row(number, number, video, "?", at) for number, (video, at) in enumerate(asked, 1)]  # type: ignore[arg-type]
    videos, bad = plan(rows, tmp_path)
    assert [(one.name, [row.number for row in one.rows]) for one in videos] == [("b.mp4", [5, 3, 1]), ("a.mp4", [2])]
    assert [one.number for one in bad] == [4]


# Marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected", "choices", "right"),
    [
        ("Red star.", "red  STAR", (), True),
        ("the red star", "red star", (), False),
        ("ﬁve", "five", (), True),
        ("", "red", (), False),
        ("anything", None, (), None),
        ("B", "blue", ("red", "blue"), True),
        ("b) blue", "B", ("red", "blue"), True),
        ("red", "B", ("red", "blue"), False),
        ("neither", "B", ("red", "blue"), False),
    ],
)
def test_what_is_right(answer: str, expected: str | None, choices: Sequence[str], right: bool | None) -> None:
    assert is_right(answer, expected, choices) is right


def test_the_interval_is_wilsons() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) is None


def test_percentiles_are_values_that_occur() -> None:
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([3.0], 0.01) == 3.0
    assert percentile([], 0.5) is None
    assert normalised(" «Yes»  it IS! ") == "«yes» it is"


# The ledger -------------------------------------------------------------------------------------------------------


def test_a_line_cut_short_anywhere_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.agree(questions="q")
        ledger.write([{"row": number, "text": "é" * number} for number in (1, 2, 3)])
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Ledger(path) as ledger:
            kept = sum(end <= length for end in ends)
            assert ledger.done == set(range(1, kept + 1))
            ledger.agree(questions="q")
            ledger.write([{"row": 9}])
            assert [one["row"] for one in ledger.records()] == [*range(1, kept + 1), 9]


def test_lines_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.agree(questions="a", settings={"fps": 1.0})
        ledger.write([{"row": 1}])
    with Ledger(path) as ledger:
        with pytest.raises(ValueError, match="made with other questions; give the same again"):
            ledger.agree(questions="b")
        with pytest.raises(ValueError, match=r"made with --fps 1\.0, not unset"):
            ledger.agree(settings={})
        with pytest.raises(ValueError, match="made with --max-tokens unset, not 4"):
            ledger.agree(settings={"fps": 1.0, "max_tokens": 4})
        ledger.agree(questions="a", settings={"fps": 1.0}, model="m")
    with Ledger(path) as ledger, pytest.raises(ValueError, match="made with model m, not n"):
        ledger.agree(model="n")
    with Ledger(path, overwrite=True) as ledger:
        assert not ledger.done
        ledger.agree(questions="b", model="n")


def test_lines_about_another_video_of_the_same_name_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.agree_on_videos({"a.mp4": "1", "b.mp4": "2"})
        ledger.write([{"row": 1, "video": "a.mp4"}, {"row": 2, "video": "b.mp4", "error": "b.mp4 is damaged"}])
    with Ledger(path) as ledger:
        ledger.agree_on_videos({"a.mp4": "1", "b.mp4": "3"})  # it was downloaded again
        with pytest.raises(ValueError, match=r"made with another video a\.mp4; give the same again, another --out"):
            ledger.agree_on_videos({"a.mp4": "4"})
    with Ledger(path, overwrite=True) as ledger:
        ledger.agree_on_videos({"a.mp4": "4"})


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_answers_go_into_a_file_and_nothing_else(path: str) -> None:
    with pytest.raises(ValueError, match="--out must be a file in a folder that is there"):
        Ledger(Path(path))
    assert not Path(f"{path}.run").exists()


def test_a_video_is_told_from_another_by_its_size_and_its_ends(tmp_path: Path) -> None:
    video, data = tmp_path / "a.mp4", bytes(range(256)) * 1024
    marks = set()
    for content in (b"", data, data + b"x", b"x" + data[1:], data[:-1] + b"x"):
        video.write_bytes(content)
        marks.add(mark_of(video))
        assert mark_of(video) in marks
    assert len(marks) == 5
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "1.png").write_bytes(b"x")
    before = mark_of(pictures)
    (pictures / "2.png").write_bytes(b"x")
    assert mark_of(pictures) != before


def test_errors_are_tried_again_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.agree(questions="a")
        ledger.write([{"row": 1}, {"row": 2, "error": "no"}, {"row": 3}])
    with Ledger(path) as ledger:
        assert ledger.done == {1, 2, 3}
    with Ledger(path, retry=True) as ledger:
        assert ledger.done == {1, 3}
        assert read_lines(path) == [{"row": 1}, {"row": 3}]


def test_what_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine\n")
    with pytest.raises(ValueError, match="is not of a batch; give another --out, or --overwrite to lose it"):
        Ledger(foreign)
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]
    for path in (tmp_path, tmp_path / "no" / "out.jsonl"):
        with pytest.raises(ValueError, match="--out must be a file in a folder that is there"):
            Ledger(path)
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.agree(questions="a")
        ledger.write([{"row": 1}])
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(ValueError, match="line 1 is damaged"):
        Ledger(path)


def test_one_run_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Ledger(path), pytest.raises(ValueError, match="is being written by another run"):
        Ledger(path)
    Ledger(path).close()
    with (tmp_path / "out.jsonl.run").open() as side:
        fcntl.flock(side, fcntl.LOCK_EX | fcntl.LOCK_NB)


# The run ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_row_has_its_line_with_all_that_a_single_answer_has(
    folder: Path, answered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, lines = read_lines(folder / "q.jsonl"), sorted(read_lines(answered), key=lambda one: one["row"])
    assert [one["id"] for one in lines] == [one["id"] for one in rows]
    assert sum(one["right"] for one in lines) >= 0.7 * len(lines)
    for line, row in list(zip(lines, rows, strict=True))[4:7]:
        video = str(folder / "v" / row["video"])
        assert main(["ask", video, row["question"], "--at", str(row["at_seconds"]), "--json", *TINY]) == 0
        single = json.loads(capsys.readouterr().out)
        assert single.keys() <= line.keys()
        assert (line["video"], line["answer_expected"], line["type"]) == (row["video"], row["answer"], row["type"])
        for name in ("source", "question", "answer", "asked_at_seconds", "snapshot_seconds"):
            assert line[name] == single[name]
        spans = [[(one["start_seconds"], one["level"]) for one in each["evidence"]] for each in (line, single)]
        assert spans[0] == spans[1]


@pytest.mark.slow
def test_a_frame_is_encoded_once_and_none_after_the_last_question(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"id": n, "video": "w0.mp4", "question": "what is there now?", "at_seconds": n % 6} for n in range(30)]
    questions = write_rows(tmp_path / "q.jsonl", asked)
    assert batch(folder, tmp_path / "out.jsonl", "--json", questions=questions) == 0
    spent = json.loads(capsys.readouterr().out)["this_run"]
    assert spent["videos"] == 1
    assert spent["frames_encoded"] < 24, "the video is left before its end"
    assert spent["frames_open"] <= (1 + 2 + 3 + 4) + (1 + 2 + 3), (
        "once for each of 6 times, not for each of 30 questions"
    )
    assert [one["asked_at_seconds"] for one in read_lines(tmp_path / "out.jsonl")] == sorted(n % 6 for n in range(30))


def test_several_videos_at_once_and_another_order_of_rows_change_no_answer(
    folder: Path, answered: Path, tmp_path: Path
) -> None:
    rows = read_lines(folder / "q.jsonl")
    shuffled = write_rows(tmp_path / "q.jsonl", rows[::-1])
    assert batch(folder, tmp_path / "out.jsonl", "--at-once", "3", questions=shuffled) == 0
    one, other = (
        {line["id"]: line["answer"] for line in read_lines(path)} for path in (answered, tmp_path / "out.jsonl")
    )
    assert one == other


def test_bad_videos_and_rows_become_errors_and_the_run_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "v" / "bad.mp4").write_bytes(b"this is no video" * 100)
    good = {"video": "w1.mp4", "question": "what is there now?", "at_seconds": 5}
    rows = [
        {**good, "id": "late", "at_seconds": 99}, {"id": "none", "video": "w1.mp4"},
        {**good, "id": "bad", "video": "bad.mp4"},
        {**good, "id": "gone", "video": "gone.mp4"}, {**good, "id": "out", "video": "../q.jsonl"},
        {**good, "id": "long", "question": "what " * 3000}, {**good, "id": "good"}, {**good, "id": "good"},
    ]  # fmt: skip
    questions, out = write_rows(tmp_path / "q.jsonl", rows), tmp_path / "out.jsonl"
    assert batch(folder, out, "--json", questions=questions) == 1
    lines = read_lines(out)
    errors = {one["row"]: one["error"] for one in lines if "error" in one}
    assert [one["id"] for one in lines if "error" not in one] == ["good"]
    for row, sentence in {
        1: "asked at 01:39, but the video ends at 00:24", 2: "has no question", 3: "bad.mp4", 4: "there is no video",
        5: "without '..'", 6: "tokens", 8: "that of row 7 already",
    }.items():  # fmt: skip
        assert sentence in errors[row]
        assert "\n" not in errors[row]
    assert json.loads(capsys.readouterr().out)["errors"] == 7
    before = out.read_bytes()
    assert batch(folder, out, questions=questions) == 1, "there are errors still"
    assert out.read_bytes() == before
    assert "8 about" not in capsys.readouterr().out


def test_what_will_not_do_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    for more, sentence in (
        (("--dialogue",), "--dialogue is not for a batch"),
        (("--at-once", "0"), "--at-once must be a whole number from 1 to 64, got 0"),
        (("--report", str(tmp_path)), "--report must be a file"),
        (("--report", str(out)), "--report and --out must be two files"),
        (("--fps", "-1"), "fps must be"),
        (("--preset", "best"), "a preset must be one of"),
        (("--videos", str(out)), "--videos must be a folder"),
    ):
        assert batch(folder, out, *more) == 2
        assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_summary_counts_what_is_in_the_file(
    answered: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, lines = summary_of(read_lines(answered)), read_lines(answered)
    assert summary["right"]["right"] == sum(one["right"] for one in lines)
    assert sum(share["of"] for share in summary["by_type"].values()) == summary["answers"] == len(lines)
    assert summary["ttft_ms_p50"] <= summary["ttft_ms_p99"]
    assert summary["peak_bytes"] > 1 << 20
    assert batch(folder, answered, "--threads", "2") == 0, "the number of threads is no setting of answers"
    told = capsys.readouterr().out
    assert "about 3 videos" in told
    assert "this run" not in told, "there was nothing left to do"
    assert batch(folder, answered, "--fps", "2") == 2
    assert "made with --fps unset, not 2.0" in capsys.readouterr().err


def test_progress_has_a_bar_for_questions_on_a_terminal_only() -> None:
    with Progress() as progress:
        progress.console = progress._bar.live.console = Console(force_terminal=True, width=80, record=True, stderr=True)
        progress.count("questions", 5, 1000)
        progress.count("questions", 6, 1000)
        assert [(task.completed, task.total) for task in progress._bar.tasks] == [(6, 1000)]
    with Progress() as silent:
        silent.count("questions", 5, 1000)
        assert not silent._bar.tasks


# The report -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, checked to be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone_and_holds_each_picture_once(folder: Path, answered: Path) -> None:
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "img", "object"})
    assert not re.search(r"https?:|@import|url\((?!data:image/jpeg;base64,)", html)
    pictures = re.findall(r"url\(data:image/jpeg;base64,([^)]+)\)", html)
    assert len(pictures) == len(set(pictures)) > 10
    shown = [values for tag, values in page.tags if tag == "i" and values.get("role") == "img"]
    assert len(shown) > len(pictures)
    assert sum(tag == "article" for tag, _ in page.tags) == len(read_lines(answered))
    assert "light-dark(" in html


def test_whatever_rows_and_models_say_is_text_in_the_report(answered: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b'
    record = {
        **read_lines(answered)[0], "id": evil, "video": evil, "question": evil, "answer": evil, "type": evil,
        "answer_expected": evil, "right": False, "options": [evil, "b"], "choice": 0,
    }  # fmt: skip
    record["evidence"] = [{**record["evidence"][0], "level": evil}]
    records = [record, {"id": evil, "row": 2, "error": evil}]
    summary = {**summary_of(records), "this_run": {"videos": 0}}
    page = Page(page_of(summary, records))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, values in page.tags for name in values)
    assert "\x1b" not in page_of(summary, records)


def test_rows_by_number_are_those_of_the_file(answered: Path) -> None:
    assert sorted(by_row(answered)) == list(range(1, 19))
