"""Benchmarks: folders as they lie on disk, entries that are strange, scores, and StreamingBench and Video-MME."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_roots import items_of, lay_out, mark, run

from vstream.app.bench.base import Ask, Benchmark, Item, Mark, Measure
from vstream.app.bench.disk import Disk
from vstream.app.bench.entries import Entry
from vstream.app.bench.registry import BENCHMARKS, benchmark_of
from vstream.app.bench.run import numbers_of, present, rows_of, spread, told_apart
from vstream.app.bench.scores import note_of, scores_of
from vstream.app.bench.streamingbench import Omni, Proactive, Real, Sqa
from vstream.app.bench.video_mme import TABLE, TEMPLATE, VideoMme, first_letter
from vstream.app.cli import main

LETTERED = ["A. Red.", "B. Blue.", "C. Green.", "D. White."]


# The folder ---------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Disk:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Disk(root)


def test_videos_are_found_however_archives_were_unpacked(tmp_path: Path) -> None:
    disk = touch(tmp_path, "part1/videos/a.mp4", "deep/er/b.MKV", "c.txt", "d.mp4.part")
    assert disk.video("./videos/a.mp4") == "part1/videos/a.mp4"
    assert disk.video("a.mp4") == disk.video("a") == "part1/videos/a.mp4"
    assert disk.video("/home/someone/b") == "deep/er/b.MKV"
    assert disk.video("c") is None
    assert disk.video("d") is None


def test_of_two_videos_of_one_name_the_folder_decides_and_else_nobody_guesses(tmp_path: Path) -> None:
    disk = touch(tmp_path, "x/1/a.mp4", "x/2/a.mp4")
    assert disk.video("2/a.mp4") == "x/2/a.mp4"
    with pytest.raises(ValueError, match=r"more than once: x/1/a.mp4, x/2/a.mp4; leave one"):
        disk.video("3/a.mp4")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "videos").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root)
    assert Disk(root).video("a.mp4") == "videos/a.mp4"


def test_what_is_missing_or_damaged_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root must be a folder that is there"):
        Disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"questions_real\.json is missing"):
        items_of(Real, tmp_path)
    with pytest.raises(ValueError, match=r"parquet or output_test_template\.json is missing"):
        items_of(VideoMme, tmp_path)
    (tmp_path / "questions_real.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"questions_real\.json is damaged .* download it again"):
        items_of(Real, tmp_path)
    (tmp_path / "questions_real.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"questions_real\.json: a list is expected"):
        items_of(Real, tmp_path)


def test_missing_videos_are_named_unless_the_rest_will_do(tmp_path: Path) -> None:
    disk = touch(tmp_path, "a.mp4")
    items = [Item(str(n), video, (), (Ask("?"),), "A") for n, video in enumerate(["a.mp4", "b.mp4", "b.mp4", "c.mp4"])]
    with pytest.raises(ValueError, match=r"2 of 3 videos are missing below .*: b\.mp4, c\.mp4; --partial scores what"):
        present(items, disk, partial=False)
    kept, missing = present(items, disk, partial=True)
    assert ([one.id for one in kept], missing) == (["0"], {"b.mp4": 2, "c.mp4": 1})
    with pytest.raises(ValueError, match=r"2 of 2 videos are missing below .*: b\.mp4, c\.mp4$"):
        present(items[1:], disk, partial=True)


# Entries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("00:03:10", 190), ("1:02", 62), ("01:00:00.5", 3600.5), (7, 7), (7.5, 7.5), ("12.25", 12.25)],
)
def test_times(given: Any, seconds: float) -> None:
    assert Entry("f, entry 1", {"t": given}).seconds("t") == seconds


@pytest.mark.parametrize("given", ["", "soon", -1, None, True, "1:2:3:4", [1]])
def test_strange_times_are_told_with_their_place(given: Any) -> None:
    with pytest.raises(ValueError, match=r"f, entry 1: t must be a time such as 00:03:10"):
        Entry("f, entry 1", {"t": given}).seconds("t")


@pytest.mark.parametrize("given", [["A. x", "B. y"], ["A) x", "B) y"], ["(A) x", "(B) y"], ["x", "y"], ["A.x", "B.y"]])
def test_options_lose_letters_of_their_own(given: list[str]) -> None:
    entry = Entry("f", {"o": given, "letter": "B", "text": "y", "dotted": "(B).", "other": "z"})
    assert entry.options("o") == ("x", "y")
    assert entry.letter("letter", ("x", "y")) == entry.letter("text", ("x", "y")) == "B"
    assert entry.letter("dotted", ("x", "y")) == "B"
    with pytest.raises(ValueError, match=r"f: other must be one of the options or its letter, got 'z'"):
        entry.letter("other", ("x", "y"))


def test_options_keep_what_only_looks_like_letters() -> None:
    assert Entry("f", {"o": ["A. Smith", "B. Jones", "nobody"]}).options("o") == ("A. Smith", "B. Jones", "nobody")


# Scores -------------------------------------------------------------------------------------------------------------


class ByGroups(Real):
    mean_of = "groups"


def test_the_mean_is_of_items_or_of_groups_as_was_published() -> None:
    right, wrong = {"right": Mark(1, 1)}, {"right": Mark(0, 0)}
    marked = [(("x", "a"), right), (("x", "b"), right), (("x", "b"), wrong), (("x", "b"), wrong), (("y", "c"), wrong)]
    by_items, by_groups = ({one.group: one for one in scores_of(kind, marked)} for kind in (Real, ByGroups))
    assert list(by_items) == [(), ("x",), ("x", "a"), ("x", "b"), ("y",), ("y", "c")]
    assert by_items[()].official == by_items[()].strict == 2 / 5
    assert by_groups[("x",)].official == pytest.approx((1 + 1 / 3) / 2)
    assert by_groups[()].official == pytest.approx((1 + 1 / 3) / 4)
    assert by_groups[()].strict_interval is None
    assert by_groups[("x", "b")].strict_interval == by_items[("x", "b")].strict_interval != None  # noqa: E711


def test_what_the_published_script_leaves_out_counts_strictly() -> None:
    marked = [(("a",), {"right": Mark(None, 0)}), (("a",), {"right": Mark(1, 1)}), (("b",), {"right": Mark(None, 0)})]
    every, a, b = scores_of(Real, marked)
    assert (every.items, every.left_out, every.official, every.strict) == (3, 2, 1, 1 / 3)
    assert (a.official, a.strict) == (1, 0.5)
    assert (b.official, b.strict) == (None, 0)


# What there is ------------------------------------------------------------------------------------------------------


def test_every_benchmark_has_a_name_of_its_own_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [one.name for one in BENCHMARKS]
    assert len(set(names)) == len(names)
    assert main(["bench", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["benchmarks"]
    assert [one["name"] for one in listed] == names
    assert main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in names if name not in shown] == []
    assert benchmark_of(names[0]) is BENCHMARKS[0]


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_benchmark_says_what_an_empty_folder_lacks(kind: type[Benchmark], tmp_path: Path) -> None:
    if not kind.needs:
        pytest.skip("it makes its own videos")
    with pytest.raises(ValueError, match=r"missing"):
        items_of(kind, tmp_path)


def test_bad_commands_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing", "--root", str(tmp_path)]) == 2
    assert "there is no benchmark 'nothing'; choose from streamingbench-real" in capsys.readouterr().err
    assert main(["bench", "video-mme"]) == 2
    assert "--root must be the folder of video-mme" in capsys.readouterr().err
    assert main(["bench", "video-mme", "--root", str(tmp_path), "--limit", "0"]) == 2
    assert "--limit must be at least 1, got 0" in capsys.readouterr().err


def test_two_questions_of_one_id_are_refused() -> None:
    items = [Item("7", "a.mp4", (), (Ask("?"),), "A"), Item("7", "b.mp4", (), (Ask("?"),), "B")]
    assert told_apart(items[:1]) == items[:1]
    with pytest.raises(ValueError, match="two questions have the id '7'"):
        told_apart(items)


def test_a_limit_spreads_over_all() -> None:
    items = [Item(str(number), "a.mp4", (), (Ask("?"),), "A") for number in range(10)]
    assert [one.id for one in spread(items, 3)] == ["0", "3", "6"]
    assert spread(items, 99) == spread(items, None) == items


# StreamingBench -----------------------------------------------------------------------------------------------------


def streaming(options: list[str], stamp: str = "00:00:12", answer: str = "A", **more: Any) -> dict[str, Any]:
    question = {
        "task_type": "Object Recognition", "question": "What colour is it?", "time_stamp": stamp, "answer": answer,
        "options": options, "required_ability": "working memory", **more,
    }  # fmt: skip
    return {
        "time": "[0:00:00 - 0:00:10]", "questions": [question], "video_categories": "world",
        "video_path": "./videos/sample_1.mp4",
    }  # fmt: skip


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return lay_out(tmp_path, {"questions_real.json": [streaming(LETTERED), streaming(LETTERED, "00:00:20", "B")]}, [])


def test_streamingbench_asks_at_its_times_without_letters(real: Path) -> None:
    first, second = items_of(Real, real)
    assert first.asks == (Ask("What colour is it?", 12.0, ("Red.", "Blue.", "Green.", "White.")),)
    assert (second.asks[0].at, second.gold, second.group, second.id) == (20.0, "B", ("Object Recognition",), "2-1")
    items = items_of(Real, real)
    rows = rows_of(items, numbers_of(items), touch(real, "somewhere/videos/sample_1.mp4"))
    assert [(row.video, row.at, row.expected) for row in rows] == [
        ("somewhere/videos/sample_1.mp4", 12.0, "A"), ("somewhere/videos/sample_1.mp4", 20.0, "B"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("A", 1, 1),
        ("A. Red.", 1, 1),
        ("Red", 0, 1),  # the option's own words do not begin with its letter
        ("(A)", 0, 1),  # nor does a letter in brackets
        ("All of them", 1, 0),  # and any word with a capital A does
        ("", None, 0),  # what says nothing is not counted
        (None, None, 0),
        ("B", 0, 0),
    ],
)
def test_streamingbench_counts_the_first_character(
    real: Path, said: str | None, official: float | None, strict: float
) -> None:
    assert mark(Real, real, [said]) == Mark(official, strict)


def test_questions_in_sequence_are_told_the_earlier_ones_of_their_video_alone(tmp_path: Path) -> None:
    options = ["Red.", "Blue.", "Green.", "White."]
    lists = [[streaming(options), streaming(options, "00:00:20", "B")], [streaming(options, "00:00:05")]]
    first, second, third = items_of(Sqa, lay_out(tmp_path, {"questions_sqa.json": lists}, []))
    assert first.asks[0].question == third.asks[0].question == "What colour is it?"
    assert "At 00:00:12: What colour is it? Answer: Red." in second.asks[0].question
    assert "Blue" not in second.asks[0].question
    assert [one.id for one in (first, second, third)] == ["1-1-1", "1-2-1", "2-1-1"]


PROACTIVE = {
    "time": "[0:00:00 - 0:00:10]", "video_categories": "world", "video_path": "./videos/sample_1.mp4",
    "questions": [{
        "task_type": "Proactive Output", "question": 'When a 3 is seen, output "3".', "time_stamp": "00:00:05",
        "ground_truth_time_stamp": "00:00:08", "ground_truth_output": "3", "required_ability": "working memory",
    }],
}  # fmt: skip


@pytest.fixture
def proactive(tmp_path: Path) -> Path:
    return lay_out(tmp_path, {"questions_proactive.json": [PROACTIVE]}, [])


def test_proactive_questions_are_polled_each_second_to_four_past_the_right_one(proactive: Path) -> None:
    (item,) = items_of(Proactive, proactive)
    assert [ask.at for ask in item.asks] == [at for at in range(6, 13) for _ in range(2)]
    assert 'the right time to output "3"? You can only answer yes or no.' in item.asks[0].question
    assert item.asks[1].question == 'When a 3 is seen, output "3".'


@pytest.mark.parametrize(
    ("polls", "answer", "time", "right"),
    [
        ({8: "Yes."}, "3", (1, 1), (1, 1)),
        ({6: "yes"}, "3", (1, 1), (1, 1)),  # two seconds early is right
        ({11: "yes"}, "3", (0, 0), (0, 0)),  # three late is not
        ({8: "Yes"}, "30 points", (1, 1), (1, 0)),  # a 3 somewhere
        ({8: "I see eyes"}, "3", (1, 0), (1, 0)),  # a yes in a word
        ({8: "No, yes would be wrong"}, "3", (1, 0), (1, 0)),  # a yes that is none
        ({6: "eyes", 9: "yes"}, "3", (1, 1), (1, 1)),
        ({}, "3", (0, 0), (0, 0)),
        ({8: None}, None, (0, 0), (0, 0)),
    ],
)
def test_proactive_output_is_right_at_its_time(
    proactive: Path, polls: dict[int, Any], answer: str | None, time: tuple[int, int], right: tuple[int, int]
) -> None:
    said = [one for at in range(6, 13) for one in (polls.get(at, "no"), answer)]
    assert mark(Proactive, proactive, said, measure="time") == time
    assert mark(Proactive, proactive, said, measure="answer") == right


# Video-MME ----------------------------------------------------------------------------------------------------------

MME_QUESTION = {"question_id": "001-1", "task_type": "Counting Problem", "question": "What?", "options": LETTERED}


def test_video_mme_reads_its_table_and_its_template(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    nested = [{"video_id": "001", "duration": "short", "questions": [{**MME_QUESTION, "answer": "C", "response": ""}]}]
    flat = {**MME_QUESTION, "video_id": "001", "videoID": "fFjv93ACGo8", "duration": "short", "answer": "C"}
    (of_template,) = items_of(VideoMme, lay_out(tmp_path / "template", {TEMPLATE: nested}, []))
    (tmp_path / "table/videomme").mkdir(parents=True)
    parquet.write_table(Table.from_pylist([flat]), tmp_path / "table" / TABLE)
    (of_table,) = items_of(VideoMme, tmp_path / "table")
    assert of_table.asks == of_template.asks == (Ask("What?", "end", ("Red.", "Blue.", "Green.", "White.")),)
    assert (of_template.video, of_table.video) == ("001", "fFjv93ACGo8")
    assert of_table.group == ("short", "Counting Problem")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("C", "C"),
        ("The answer is C.", "C"),
        ("The best option is C", "C"),
        ("I do not know", None),
        ("It is a Cat", "C"),  # the first capital of any word
        ("Because of B", "B"),
        ("Answer: B", "A"),  # a comma is missing in the published list, so this phrase stays and has an A
        ("the red one", None),
    ],
)
def test_video_mme_takes_the_first_capital(said: str, letter: str | None) -> None:
    assert first_letter(said) == letter


# All of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_scored_goes_on_and_leaves_out_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subsets = [streaming(LETTERED), streaming(LETTERED, "00:00:20", "B")]
    gone = {**streaming(LETTERED), "video_path": "./videos/gone.mp4"}
    lay_out(tmp_path, {"data/questions_real.json": [*subsets, gone]}, ["videos/sample_1.mp4"])
    out = tmp_path / "out.jsonl"
    assert run("streamingbench-real", tmp_path, out) == 2
    assert "1 of 2 videos are missing" in capsys.readouterr().err
    assert run("streamingbench-real", tmp_path, out, "--partial") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["items"], summary["items_without_video"], summary["this_run"]["videos"]) == (2, 1, 1)
    every = summary["scores"][0]
    assert (every["group"], every["measure"], every["items"]) == ([], "right", 2)
    lines = out.read_bytes()
    assert run("streamingbench-real", tmp_path, out, "--partial") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["scores"], again["this_run"]["videos"], out.read_bytes()) == (summary["scores"], 0, lines)
    report = tmp_path / "report.html"
    assert main(["bench", "streamingbench-real", "--root", str(tmp_path), "--out", str(out), "--partial",
                 "--report", str(report), "--model", "tiny", "--threads", "1", "--max-tokens", "6"]) == 0  # fmt: skip
    page = report.read_text("utf-8")
    assert page.count("officially ") == 2
    assert "<th scope=col>strict</th>" in page
    shown = capsys.readouterr().out
    assert "official" in shown
    assert "left out" in shown
    assert "1 items about 1 videos that are missing" in shown


@pytest.mark.slow
def test_more_can_be_asked_of_the_same_benchmark_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = [streaming(LETTERED, f"00:00:{at:02}") for at in (4, 8, 12, 16, 20)]
    lay_out(tmp_path, {"questions_real.json": times}, ["videos/sample_1.mp4"])
    out = tmp_path / "out.jsonl"

    def answered(*more: str) -> tuple[int, int, int]:
        assert run("streamingbench-real", tmp_path, out, *more) == 0
        summary = json.loads(capsys.readouterr().out)
        return summary["answers"], summary["scores"][0]["items"], len(out.read_bytes().splitlines())

    assert answered("--limit", "2") == (2, 2, 2)
    first = out.read_bytes()
    assert answered() == (5, 5, 5)
    assert out.read_bytes().startswith(first)
    assert answered("--limit", "2") == (2, 2, 5)
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted((line["row"], line["id"], line["asked_at_seconds"]) for line in lines) == [
        (number, f"{number}-1", 4.0 * number) for number in range(1, 6)
    ]


@pytest.mark.slow
def test_proactive_runs_and_polls_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = PROACTIVE["questions"][0] | {"time_stamp": "00:00:20", "ground_truth_time_stamp": "00:00:23"}
    both = [PROACTIVE, {**PROACTIVE, "questions": [late]}]  # the video is over at 24 s, before the last polls
    lay_out(tmp_path, {"questions_proactive.json": both}, ["videos/sample_1.mp4"])
    assert run("streamingbench-proactive", tmp_path, tmp_path / "out.jsonl") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["answers"], summary["errors"]) == (28, 0)
    assert [(one["group"], one["measure"]) for one in summary["scores"][:2]] == [([], "time"), ([], "answer")]


def test_marks_are_told_in_words() -> None:
    assert note_of({"right": Mark(1, 0)}) == "officially 1, strictly 0"
    two = {"time": Mark(None, 0), "answer": Mark(0.5, 1)}
    assert note_of(two) == "time: officially not counted, strictly 0; answer: officially 0.5, strictly 1"


def test_two_measures_are_two_scores() -> None:
    assert Proactive.measures == (Measure("time"), Measure("answer"))
    marked = [(("a",), {"time": Mark(1, 1), "answer": Mark(0, 0)})]
    assert [(one.measure, one.official) for one in scores_of(Proactive, marked)] == [
        ("time", 1), ("answer", 0), ("time", 1), ("answer", 0),
    ]  # fmt: skip
    assert Omni.file == "questions_omni.json"
