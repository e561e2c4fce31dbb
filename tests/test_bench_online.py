"""OVO-Bench and OVBench: what they ask and when, both scorers with their traps, and a run of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_roots import items_of, lay_out, mark, run, world
from PIL import Image

from vstream.app.batch.plan import plan
from vstream.app.batch.rows import Row
from vstream.app.bench.base import Ask, Mark
from vstream.app.bench.disk import PICTURE_SUFFIXES, Disk
from vstream.app.bench.ovbench import OvBench
from vstream.app.bench.ovo_bench import FILE, MODES, OvoBench, number_in
from vstream.app.bench.scores import scores_of
from vstream.app.lab.render import draw
from vstream.sources.directory import SUFFIXES

Entry = dict[str, Any]


def film_pictures(folder: Path, count: int, fps: int) -> None:
    """The first pictures of the world, a file each, as OVBench has them."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw(world(), number / fps, side=96)).save(folder / f"frame{number + 1:04}.jpg")


# The folder ---------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Disk:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Disk(root)


def test_a_folder_of_pictures_is_a_video_unless_there_is_a_file(tmp_path: Path) -> None:
    assert PICTURE_SUFFIXES == SUFFIXES
    disk = touch(tmp_path, "val/HACS/v_1.a/frame0001.jpg", "val/HACS/v_1.a/frame0002.JPG", "x/b/1.png", "y/b.mp4")
    assert disk.video("v_1.a") == disk.video("HACS/v_1.a") == "val/HACS/v_1.a"
    assert disk.video("b") == "y/b.mp4"
    assert disk.video("HACS") is None  # it holds folders, no pictures


def test_of_two_folders_of_one_name_nobody_guesses(tmp_path: Path) -> None:
    disk = touch(tmp_path, "x/b/1.png", "x/b/2.png", "y/b/1.png")
    assert disk.video("x/b") == "x/b"
    with pytest.raises(ValueError, match=r"the video b is in .* more than once: x/b, y/b; leave one there"):
        disk.video("b")


def test_a_number_is_the_name_of_a_video_in_its_own_folder_alone(tmp_path: Path) -> None:
    disk = touch(tmp_path, "chunked_videos/106.mp4", "more/106_0.mp4")
    assert disk.video("AutoEvalMetaData/106.mp4") is None
    for name in ("chunked_videos/106.mp4", "106.mp4", "106"):
        assert disk.video(name) == "chunked_videos/106.mp4"
    assert disk.video("else/106_0.mp4") == "more/106_0.mp4"


def test_pictures_have_their_own_pace(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b.mp4")
    rows = [Row(1, 1, "a", "?", fps=30.0), Row(2, 2, "b.mp4", "?"), Row(3, 3, "a", "?", 1.0, fps=30.0)]
    videos, bad = plan(rows, tmp_path)
    assert [(one.name, one.fps, [row.number for row in one.rows]) for one in videos] == [
        ("a", 30.0, [3, 1]), ("b.mp4", 1.0, [2]),
    ]  # fmt: skip
    assert bad == []


# OVO-Bench ----------------------------------------------------------------------------------------------------------

PERCEIVED = {
    "id": 809, "task": "OJR", "video": "YouTube_Games/film.mp4", "realtime": 12.4, "question": "What colour is it?",
    "answer": "It is red.", "options": ["Blue.", "Red.", "Green.", "White."], "gt": 1,
}  # fmt: skip
TRACED = {**PERCEIVED, "id": 0, "task": "EPM", "video": "Ego4D/clips/film.mp4", "realtime": 20, "gt": 0}
RESPONDED = {
    "id": 1468, "task": "CRR", "video": "MovieNet/film.mp4", "question": "What is red?", "answer": "The heart.",
    "ask_time": 4, "clue_time": 8, "test_info": [{"realtime": 4, "type": 0}, {"realtime": 10, "type": 1}],
}  # fmt: skip
STEPS = ["take it", "turn it"]
STEPPED = {
    "id": 1516, "task": "SSR", "video": "COIN/film.mp4", "tutorial": "Turning", "all_steps": STEPS,
    "start_time": [2, 7], "end_time": [6, 12],
    "test_info": [{"realtime": 3, "step": STEPS[0], "type": 1}, {"realtime": 3, "step": STEPS[1], "type": 0}],
}  # fmt: skip
REPEATED = {
    "id": 1558, "task": "REC", "video": "perception_test/film.mp4", "activity": "breaking something",
    "start_times": [1, 5], "end_times": [4, 9],
    "test_info": [{"realtime": 2, "count": 0}, {"realtime": 9, "count": 2}, {"realtime": 24.0, "count": 12}],
}  # fmt: skip
OVO = [TRACED, PERCEIVED, RESPONDED, STEPPED, REPEATED]


@pytest.fixture
def ovo(tmp_path: Path) -> Path:
    return lay_out(tmp_path, {f"data/{FILE}": OVO}, [])


def test_ovo_bench_asks_everything_at_its_own_time(ovo: Path) -> None:
    items = items_of(OvoBench, ovo)
    assert [(one.id, one.group, one.asks[0].at, one.gold) for one in items] == [
        ("0", ("backward", "EPM"), 20, "A"),
        ("809", ("realtime", "OJR"), 12.4, "B"),
        ("1468_0", ("forward", "CRR"), 4, "No"),
        ("1468_1", ("forward", "CRR"), 10, "Yes"),
        ("1516_0", ("forward", "SSR"), 3, "Yes"),
        ("1516_1", ("forward", "SSR"), 3, "No"),
        ("1558_0", ("forward", "REC"), 2, 0),
        ("1558_1", ("forward", "REC"), 9, 2),
        ("1558_2", ("forward", "REC"), 24, 12),
    ]
    assert items[1].asks == (Ask("What colour is it?", 12.4, ("Blue.", "Red.", "Green.", "White.")),)
    assert "The heart" not in items[2].asks[0].question
    assert "What is red?" in items[2].asks[0].question
    assert STEPS[1] in items[5].asks[0].question
    assert "breaking something" in items[6].asks[0].question
    assert all(not one.asks[0].choices for one in items[2:])


def test_ovo_bench_has_twelve_tasks_and_counts_their_means(ovo: Path) -> None:
    assert [len(tasks) for tasks in MODES.values()] == [3, 6, 3]
    right = {"1468_0", "1468_1", "1516_0", "809"}
    marked = [(one.group, {"right": Mark(one.id in right, one.id in right)}) for one in items_of(OvoBench, ovo)]
    official = {score.group: score.official for score in scores_of(OvoBench, marked)}
    assert official[("forward", "SSR")] == 0.5
    assert official[("forward",)] == (1 + 0.5 + 0) / 3
    assert official[()] == pytest.approx((0 + 1 + 0.5) / 3)


def test_ovo_bench_watches_clips_where_there_are_no_source_videos(tmp_path: Path) -> None:
    entries = [
        {**TRACED, "video": "COIN/here.mp4"},
        {**RESPONDED, "video": "MovieNet/clips.mp4"},
        {**PERCEIVED, "video": "AutoEvalMetaData/0.mp4"},
    ]
    lay_out(tmp_path, {FILE: entries}, [])
    clips = [f"chunked_videos/{name}.mp4" for name in ("0", "1468_0", "1468_1")]
    touch(tmp_path, *clips, "src_videos/COIN/here.mp4")
    items = items_of(OvoBench, tmp_path)
    assert [one.video for one in items] == ["COIN/here.mp4", *clips[1:], "AutoEvalMetaData/0.mp4"]
    assert [one.asks[0].at for one in items] == [20, 4, 10, 12.4]
    assert Disk(tmp_path).video(items[3].video) is None  # the clip 0 is the first entry's, not that video


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "ABC"}, "entry 1: task must be one of EPM, ASI, .* got 'ABC'"),
        ({"gt": 4}, "entry 1: gt must be the place of one of 4 options, from 0, got 4"),
        ({"gt": "B"}, "entry 1: gt must be .* got 'B'"),
        ({"realtime": None}, "entry 1: realtime must be a time"),
        (
            {**REPEATED, "test_info": [{"realtime": 1, "count": 1.5}]},
            "test_info, entry 1: count must be a whole",
        ),
        (
            {**STEPPED, "test_info": [{"realtime": 1, "step": "a", "type": 2}]},
            "type must be a whole .* from 0 to 1",
        ),
    ],
)
def test_ovo_bench_says_what_is_strange(tmp_path: Path, change: Entry, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        items_of(OvoBench, lay_out(tmp_path, {FILE: [{**PERCEIVED, **change}]}, []))


@pytest.mark.parametrize(
    ("number", "said", "official", "strict"),
    [
        (1, "B", 1, 1),
        (1, "(B) Red.", 1, 1),
        (1, "Red", 0, 1),  # the option's own words have no capital B
        (1, "b", 0, 1),
        (1, "ABCD", 1, 0),  # all letters at once
        (1, "By no means", 1, 0),  # a capital in any word
        (0, "All of them", 1, 0),
        (1, "A", 0, 0),
        (1, "", 0, 0),
        (1, None, 0, 0),  # an error is wrong, not left out
        (3, "Yes", 1, 1),
        (3, "Yes.", 1, 1),
        (3, "Y", 1, 1),
        (3, "Y.", 0, 1),
        (3, "yes", 0, 1),  # the case matters
        (3, "Yesterday it was", 1, 0),  # part of a word
        (3, "No, not Yes", 1, 0),  # anywhere
        (3, "eyes", 0, 0),
        (3, "Maybe", 0, 0),
        (3, "", 0, 0),
        (3, None, 0, 0),
        (2, "No", 1, 1),
        (2, "N", 1, 1),
        (2, "no.", 0, 1),
        (2, "Not sure", 1, 0),
        (2, "Nothing is seen", 1, 0),
        (2, "Now it is", 1, 0),
        (2, "Yes. No doubt.", 1, 0),
        (2, "N/A", 0, 0),
        (7, "2", 1, 1),
        (7, "They did it 2 times.", 1, 1),
        (7, "two", 0, 1),  # number words are none
        (7, "Twice", 0, 1),
        (7, "2 times, so two", 1, 1),
        (7, "at least 2, not three", 1, 0),  # two numbers are no answer
        (7, "1 or 2", 0, 0),
        (8, "1 or 2", 1, 0),  # joined digits: 12
        (8, "12", 1, 1),
        (8, "twelve", 0, 1),
        (7, "02", 0, 1),
        (7, "2.5", 0, 0),
        (6, "0", 1, 1),
        (6, "zero", 0, 1),
        (6, "none", 0, 0),
        (6, "", 0, 0),
        (6, None, 0, 0),
    ],
)  # fmt: skip
def test_ovo_bench_finds_letters_words_and_digits_anywhere(
    ovo: Path, number: int, said: str | None, official: float, strict: float
) -> None:
    assert mark(OvoBench, ovo, [said], number) == Mark(official, strict)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("once", 1),
        ("no one did", None),
        ("someone", None),
        ("1.1", 1.1),
        ("3 of 4", None),
        ("Ten", 10),
        ("In 3.", 3),
    ],
)
def test_one_number_that_is_said(said: str, number: float | None) -> None:
    assert number_in(said) == number


# OVBench ------------------------------------------------------------------------------------------------------------

TAO = {
    "fps": 30, "middle_frame_timestamp": 7.0, "question": "Where may the person move?", "answer": "left",
    "sub_answer_type": "FuturePrediction-1", "image_file": "val/HACS/v_1/frame0211.jpg",
    "answer_type": "FuturePrediction", "video": "v_1", "candidates": ["stationary", "left", "right", "below"],
    "start": 0.0, "end": 7.0,
}  # fmt: skip
AVA = {
    "middle_frame_timestamp": 945.0, "question": "Are there still 2 people?", "answer": "No",
    "sub_answer_type": "Hallucination-2", "answer_type": "Hallucination", "video": "1j20qq1JyX4",
    "candidates": ["Yes", "No"], "start": 0.0, "end": 50.0, "fps": 1,
}  # fmt: skip
COIN = {
    "middle_frame_timestamp": 8.0, "question": "How long has it been going on?", "answer": "6-7s",
    "sub_answer_type": "TemporalPerception-1", "answer_type": "TemporalPerception", "video": "AIAqkAAXnjg.mp4",
    "candidates": ["8-9s", "50-51s", "6-7s", "19-20s"], "start": 0.0, "end": 8.0,
}  # fmt: skip
BY_SOURCE = {"ava.json": [AVA], "coin.json": [COIN], "hirest.json": [{**COIN, "video": "-2e.mp4"}], "tao.json": [TAO]}
ASKED = {
    "middle_frame_timestamp": 7.0, "question": "Where may it move?", "answer": "B", "answer_type": "FP",
    "sub_answer_type": "MP", "options": ["A. up", "B. left", "C. right", "D. below"],
}  # fmt: skip
LATER = {**ASKED, "middle_frame_timestamp": 8.5}
NESTED = [
    {
        "video_id": "TAO/v_1",
        "fps": 30,
        "clip": [0, 9.0],
        "questions": [ASKED, LATER],
    },
    {"video_id": "COIN/a.mp4", "clip": [0, 9.0], "questions": [{**ASKED, "sub_answer_type": "GSP", "answer": "A"}]},
]


@pytest.fixture
def by_source(tmp_path: Path) -> Path:
    return lay_out(tmp_path, dict(BY_SOURCE), [])


def test_ovbench_reads_a_file_for_each_source(by_source: Path) -> None:
    items = items_of(OvBench, by_source)
    assert [(one.id, one.video, one.group, one.asks[0].at, one.gold, one.fps) for one in items] == [
        ("ava-1", "1j20qq1JyX4", ("ava", "Hallucination", "Hallucination-2"), 945, "B", 1),
        ("coin-1", "AIAqkAAXnjg.mp4", ("coin", "TemporalPerception", "TemporalPerception-1"), 8, "C", 1),
        ("hirest-1", "-2e.mp4", ("hirest", "TemporalPerception", "TemporalPerception-1"), 8, "C", 1),
        ("tao-1", "v_1", ("tao", "FuturePrediction", "FuturePrediction-1"), 7, "B", 30),
    ]
    assert items[3].asks == (Ask("Where may the person move?", 7.0, ("stationary", "left", "right", "below")),)


@pytest.mark.parametrize(("found", "at"), [("frames_1fps/1j20qq1JyX4/00001.jpg", 50), ("films/1j20qq1JyX4.mkv", 945)])
def test_questions_about_ava_follow_the_clock_of_what_is_there(by_source: Path, found: str, at: float) -> None:
    touch(by_source, found)
    assert items_of(OvBench, by_source)[0].asks[0].at == at


@pytest.mark.parametrize("name", ["ovbench.json", "ovbench_action.json"])
def test_ovbench_reads_lists_of_videos_too(tmp_path: Path, name: str) -> None:
    part = name != "ovbench.json"
    others = {"ovbench_event.json": [], "ovbench_object.json": []} if part else {}
    items = items_of(OvBench, lay_out(tmp_path, {name: NESTED, **others}, []))
    stem, outer = name.removesuffix(".json"), ("action",) if part else ()
    assert [(one.id, one.video, one.group, one.asks[0].at, one.gold, one.fps) for one in items] == [
        (f"{stem}-1-1", "TAO/v_1", (*outer, "FP", "MP"), 7, "B", 30),
        (f"{stem}-1-2", "TAO/v_1", (*outer, "FP", "MP"), 8.5, "B", 30),
        (f"{stem}-2-1", "COIN/a.mp4", (*outer, "FP", "GSP"), 7, "A", 1),
    ]
    assert items[0].asks[0].choices == ("up", "left", "right", "below")


def test_ovbench_reads_lists_of_questions(tmp_path: Path) -> None:
    flat = [{**ASKED, "video_id": "TAO/v_1", "fps": 24.0}]
    (item,) = items_of(OvBench, lay_out(tmp_path, {"ovbench.json": flat}, []))
    assert (item.id, item.video, item.fps, item.asks[0].at) == ("ovbench-1", "TAO/v_1", 24, 7)


def test_ovbench_says_what_is_strange(by_source: Path) -> None:
    lay_out(by_source, {"tao.json": [{**TAO, "fps": 0}]}, [])
    with pytest.raises(ValueError, match=r"tao\.json, entry 1: fps must be above 0, got 0"):
        items_of(OvBench, by_source)
    (by_source / "hirest.json").unlink()
    with pytest.raises(ValueError, match=r"hirest\.json is missing"):
        items_of(OvBench, by_source)


def test_the_total_of_ovbench_is_the_mean_of_all_tasks() -> None:
    right, wrong = {"right": Mark(1, 1)}, {"right": Mark(0, 0)}
    marked = [(("t", "F", "1"), right), (("t", "P", "1"), right), (("t", "P", "1"), wrong), (("t", "P", "2"), wrong)]
    official = {score.group: score for score in scores_of(OvBench, marked)}
    assert official[()].official == official[("t",)].official == (1 + 0.5 + 0) / 3
    assert official[("t", "P")].official == 0.25
    assert (official[()].strict_interval, official[("t", "P", "1")].strict) == (None, 0.5)
    assert official[("t", "P", "1")].strict_interval is not None


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("B", 1, 1),
        ("b", 1, 1),
        ("B. left", 1, 1),
        ("(B) left", 1, 1),
        ("Answer: B", 1, 0),  # strictly the letter stands at the beginning
        ("left", 0, 1),  # the option's own words hold no letter alone
        ("A man moves to B", 0, 0),
        ("i.e. b", 1, 0),  # dots go first, so no e stands alone
        ("I'd say B", 0, 0),  # the d behind the apostrophe
        ("Of B/C, D / A", 0, 0),  # marks go and join B to C, so D stands alone
        ("not a but B", 0, 0),
        ("E.g. B", 0, 0),  # E is no option here, and is taken for one
        ("1,000 of_b", 0, 0),  # a comma in a number makes all marks go
        ("10 of_b", 1, 0),
        ("no idea", 0, 0),  # nothing is drawn by chance
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_ovbench_counts_the_first_letter_that_stands_alone(
    by_source: Path, said: str | None, official: float, strict: float
) -> None:
    assert mark(OvBench, by_source, [said], 3) == Mark(official, strict)


@pytest.mark.parametrize("said", ["a red ball", "It is a ball"])
def test_the_article_is_an_option_in_ovbench(tmp_path: Path, said: str) -> None:
    root = lay_out(tmp_path, {"ovbench.json": NESTED}, [])
    assert mark(OvBench, root, [said], 2) == Mark(1, 0)


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ovo_bench_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = [{**entry, "video": "COIN/film.mp4"} for entry in OVO]
    lay_out(tmp_path, {FILE: one}, ["src_videos/COIN/film.mp4"])
    assert run("ovo-bench", tmp_path, tmp_path / "out.jsonl") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["items"], summary["answers"], summary["this_run"]["videos"]) == (9, 9, 1)
    groups = [tuple(score["group"]) for score in summary["scores"]]
    assert groups[:4] == [(), ("backward",), ("backward", "EPM"), ("realtime",)]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line["id"]: line["asked_at_seconds"] for line in lines} == {
        one.id: one.asks[0].at for one in items_of(OvoBench, tmp_path)
    }
    assert [line["id"] for line in lines if line["snapshot_seconds"] > line["asked_at_seconds"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("fps", [2, 4])
def test_ovbench_runs_and_its_pictures_go_at_their_own_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fps: int
) -> None:
    end = 24 / fps
    about = [{**TAO, "fps": fps, "middle_frame_timestamp": at, "end": at} for at in (1.0, end)]
    lay_out(tmp_path, {**BY_SOURCE, "tao.json": about}, [])
    film_pictures(tmp_path / "frames/val/HACS/v_1", 24, fps)
    assert run("ovbench", tmp_path, tmp_path / "out.jsonl", "--partial") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["items"], summary["items_without_video"], summary["answers"]) == (2, 3, 2)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["asked_at_seconds"], line["snapshot_seconds"]) for line in lines] == [(1, 1), (end, end - 1)]
