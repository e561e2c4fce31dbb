"""Benchmarks about whole videos: MLVU with its two generation tasks, and EgoSchema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_roots import items_of, lay_out, mark, run

from vstream.app.bench.base import Ask, Mark
from vstream.app.bench.disk import Disk
from vstream.app.bench.egoschema import EgoSchema, first_letter
from vstream.app.bench.entries import Entry
from vstream.app.bench.flash_form import question_and_options
from vstream.app.bench.mlvu import FILES, Mlvu, named_letter
from vstream.app.bench.mlvu_generation import MlvuGeneration
from vstream.app.bench.scores import scores_of

COLOURS = ["Yellow", "Red", "Green", "Blue"]
TASKS = ("plotQA", "findNeedle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")


# MLVU ---------------------------------------------------------------------------------------------------------------


def plot(answer: str = "Red", candidates: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "video": "movie101_66.mp4", "duration": 246, "question": "What color is the main male character in the video?",
        "candidates": candidates or COLOURS, "answer": answer, "question_type": "plotQA", **more,
    }  # fmt: skip


def mlvu(root: Path, *entries: dict[str, Any], videos: tuple[str, ...] = ()) -> Path:
    """The seven files: the first with the entries given, the others with one each."""
    others = {name: [plot(question_type=task, duration=24.0)] for name, task in zip(FILES[1:], TASKS[1:], strict=True)}
    return lay_out(root, {f"MLVU/json/{FILES[0]}": list(entries), **others}, videos)


def test_mlvu_reads_its_seven_files_and_the_task_says_which_video(tmp_path: Path) -> None:
    items = items_of(Mlvu, mlvu(tmp_path, plot(), plot("Blue")))
    assert items[0].asks == (Ask("What color is the main male character in the video?", "end", tuple(COLOURS)),)
    assert [(one.id, one.gold) for one in items[:3]] == [("1_plotQA-1", "B"), ("1_plotQA-2", "D"), ("2_needle-1", "B")]
    assert [one.group for one in items[1:]] == [(task,) for task in TASKS]
    for name in ("2_needle/movie101_66.mp4", "1_plotQA/movie101_66.mp4"):
        (tmp_path / "video" / name).parent.mkdir(parents=True)
        (tmp_path / "video" / name).touch()
    assert [Disk(tmp_path).video(one.video) for one in items[:3:2]] == [
        "video/1_plotQA/movie101_66.mp4", "video/2_needle/movie101_66.mp4",
    ]  # fmt: skip


def test_mlvu_lacks_a_file_or_an_answer(tmp_path: Path) -> None:
    root = mlvu(tmp_path, plot("Purple"))
    with pytest.raises(ValueError, match=r"1_plotQA\.json, entry 1: answer must be one of the options, got 'Purple'"):
        items_of(Mlvu, root)
    (root / "5_order.json").unlink()
    lay_out(root, {f"MLVU/json/{FILES[0]}": [plot()]}, [])
    with pytest.raises(ValueError, match=r"5_order\.json is missing"):
        items_of(Mlvu, root)


def test_other_forms_of_mlvu_say_the_same(tmp_path: Path) -> None:
    of_files = items_of(Mlvu, mlvu(tmp_path / "files", plot(), plot("Blue")))[:2]
    conversations = [
        {"question": one["question"], "choices": one["candidates"], "answer": one["answer"], "question_type": "plotQA"}
        for one in (plot(), plot("Blue"))
    ]
    video = {"video_id": "movie101_66", "video_path": "data/mlvu/videos/movie101_66.mp4", "duration": 246}
    rekv = {"mlvu/dev_debug_mc.json": [{**video, "conversations": conversations}]}
    of_rekv = items_of(Mlvu, lay_out(tmp_path / "rekv", rekv, []))
    text = f"{plot()['question']}\nOptions:\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue\n"
    flash = [
        {"id": f"00000{n}", "video_id": "1_plotQA/movie101_66", "question": text, "answer": n, "type": "plotQA",
         "duration": 246} for n in (1, 3)
    ]  # fmt: skip
    other = {"EgoSchema/test_qa.json": [EGO_FLASH], "mlvu/test_qa.json": flash}
    of_flash = items_of(Mlvu, lay_out(tmp_path / "flash", other, []))
    for form in (of_rekv, of_flash):
        assert [(one.asks, one.group, one.gold) for one in form] == [
            (one.asks, one.group, one.gold) for one in of_files
        ]
    assert [one.id for one in of_rekv] == ["1-1", "1-2"]
    assert {one.video for one in of_flash} == {"1_plotQA/movie101_66"}
    (tmp_path / "flash/mlvu/test_qa.json").unlink()
    with pytest.raises(ValueError, match=r"mlvu/test_qa\.json, entry 1: it has no 'type'"):  # it is EgoSchema's
        items_of(Mlvu, tmp_path / "flash")


def test_a_question_in_which_options_stand_wrongly_is_told() -> None:
    for text in ("What?\n(A) one", "What?\n(B) one\n(C) two", "What? (A) one (B) two"):
        with pytest.raises(ValueError, match=r"f: question must have lines \(A\), \(B\) and so on, got 'What"):
            question_and_options(Entry("f", {"question": text}))
    assert question_and_options(Entry("f", {"question": "\nOptions:\n(A) \n(B) x\n"})) == ("", ("", "x"))


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("B", 1, 1),
        ("B) Red", 1, 1),  # as their prompt, which ends in an opening bracket, makes models answer
        ("(B) Red", 1, 1),
        ("B. Red", 0, 1),  # a point is no bracket
        ("B.", 0, 1),
        ("b", 0, 1),  # nor is a small letter one
        ("(b)", 0, 1),
        ("Red", 0, 1),  # nor are the option's own words
        ("The answer is (B)", 1, 0),  # what stands before the bracket is all that counts
        ("C, since (A) and (B) are", 0, 1),  # of brackets the first
        ("not seen :B)", 1, 0),
        ("AB)", 1, 0),
        (")B", 0, 1),  # nothing stands before it
        ("A", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_mlvu_counts_what_stands_before_a_bracket(
    tmp_path: Path, said: str | None, official: float, strict: float
) -> None:
    gold = "Green" if said and said.startswith("C,") else "Red"
    assert mark(Mlvu, mlvu(tmp_path, plot(gold)), [said]) == Mark(official, strict)


def test_what_mlvu_takes_for_a_letter() -> None:
    assert [named_letter(said) for said in ("A) x", "(AB) x", "A", ")", "yes :)")] == ["A", "B", "A", "", ":"]


@pytest.mark.parametrize(
    ("candidates", "answer", "right", "also"),
    [
        (["Six", "Three", "Three", "Eight"], "Three", "C", "B"),  # alike: the last one officially, both strictly
        (["", "An archery scene", "No archery scene", ""], "An archery scene", "B", ""),
        (["In the garage", "In the toolbox", "", "On the shelf"], "", "C", ""),
        (["", "", "", ""], "", "D", "ABC"),
    ],
)
def test_strange_options_of_mlvu(tmp_path: Path, candidates: list[str], answer: str, right: str, also: str) -> None:
    root = mlvu(tmp_path, plot(answer, candidates, question="" if not any(candidates) else "What?"))
    ask = items_of(Mlvu, root)[0].asks[0]
    assert ask.choices == tuple(one or "(empty)" for one in candidates)
    assert ask.question == ("What?" if any(candidates) else "(empty)")
    for letter in "ABCD":
        assert mark(Mlvu, root, [letter]) == Mark(letter == right, letter == right or letter in also)


def test_an_answer_that_is_no_option_is_never_right_officially(tmp_path: Path) -> None:
    candidates = ["Fishing", "Catching the drone", "Launching the drone", "Sunbathing"]
    root = mlvu(tmp_path, plot("Catching a flying drone quadcopter", candidates))
    assert [mark(Mlvu, root, [letter]) for letter in "ABCD"] == [Mark(0, 0), Mark(0, 1), Mark(0, 0), Mark(0, 0)]


def test_the_mlvu_total_is_the_mean_of_tasks(tmp_path: Path) -> None:
    root = mlvu(tmp_path, plot(), plot(), plot())
    benchmark = Mlvu(Disk(root))
    marked = [
        (one.group, benchmark.mark(one, ["B" if one.group == ("plotQA",) else "A"], ())) for one in items_of(Mlvu, root)
    ]
    every = scores_of(Mlvu, marked)[0]
    assert (every.items, every.official) == (9, pytest.approx(1 / 7))


# MLVU, generation ---------------------------------------------------------------------------------------------------

SCENE = {
    "video": "subPlot_new_all_126.mp4", "duration": 5632.83, "question": "Please describe the scene of the red heart.",
    "answer": "A red heart moves left.", "question_type": "subPlot",
    "scoring_points": ["The heart is red", "The heart moves left"],
}  # fmt: skip
SUMMARY = {
    "video": "217.mp4", "duration": 480.0, "question": "Please summarize this video, including its main content.",
    "answer": "Shapes come and go.", "question_type": "summary",
}  # fmt: skip


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    return lay_out(tmp_path, {"json/8_sub_scene.json": [SCENE], "json/9_summary.json": [SUMMARY]}, [])


def test_a_judge_is_told_the_points_or_the_right_summary(generation: Path) -> None:
    benchmark = MlvuGeneration(Disk(generation))
    scene, summary = items_of(MlvuGeneration, generation)
    assert scene.asks == (Ask("Please describe the scene of the red heart.", "end"),)
    assert [one.video for one in (scene, summary)] == ["8_sub_scene/subPlot_new_all_126.mp4", "9_summary/217.mp4"]
    (of_scene,) = benchmark.prompts(scene, ["A heart."])
    assert "- The heart is red\n- The heart moves left\nAnswer to mark: A heart." in of_scene
    assert "A red heart moves left." not in of_scene  # as published: the points, not the answer
    assert of_scene.endswith("{'score_accuracy': ..., 'score_relevance': ..., 'total_score': ...}")
    (of_summary,) = benchmark.prompts(summary, ["Shapes."])
    assert "Right summary: Shapes come and go.\nAnswer to mark: Shapes." in of_summary
    assert of_summary.endswith("{'score_completeness': ..., 'score_reliability': ..., 'total_score': ...}")
    assert benchmark.prompts(scene, [None]) == ()


@pytest.mark.parametrize(
    ("reply", "accuracy", "relevance"),
    [
        ("Good.\n{'score_accuracy': 4, 'score_relevance': 5, 'total_score': 9}", (4, 4), (5, 5)),
        ('```json\n{"score_accuracy": 3.5, "score_relevance": 4, "total_score": 7.5}\n```', (3.5, 3.5), (4, 4)),
        ("{'score_accuracy': 4, 'score_relevance': 5}", (4, 4), (5, 5)),  # the last character is always lost
        ("{'score_accuracy': 4, 'score_relevance': 5}.", (None, 4), (None, 5)),  # and here it is the wrong one
        ("{'score_accuracy':4, 'score_relevance':5, 'total_score':9}", (None, 4), (None, 5)),  # no blank
        ("score_accuracy: high. {'score_accuracy': 4, 'score_relevance': 5, 't': 9}", (None, 4), (None, 5)),
        ("{'score_accuracy': 4/5, 'score_relevance': 5, 't': 9}", (None, 4), (None, 5)),
        ("{'score_accuracy': 8, 'score_relevance': 5, 'total_score': 13}", (8, 0), (5, 5)),  # beyond the best
        ("{'score_accuracy': nan, 'score_relevance': 5, 'total_score': 13}", (None, 0), (None, 5)),
        ("{'score_relevance': 5, 'total_score': 9}", (5, 0), (0, 5)),  # the only mark is taken for the first
        ("{'score_accuracy': 4, 'total_score': 9}", (4, 4), (0, 0)),
        ("I cannot mark this.", (0, 0), (0, 0)),
        (None, (None, 0), (None, 0)),
    ],
)  # fmt: skip
def test_marks_of_the_judge(
    generation: Path, reply: str | None, accuracy: tuple[float | None, float], relevance: tuple[float | None, float]
) -> None:
    benchmark = MlvuGeneration(Disk(generation))
    marks = benchmark.mark(items_of(MlvuGeneration, generation)[0], ["A heart."], [reply])
    assert marks["accuracy"] == accuracy
    assert marks["relevance"] == relevance
    official = None if accuracy[0] is None or relevance[0] is None else accuracy[0] + relevance[0]
    assert marks["total"] == (official, accuracy[1] + relevance[1] if accuracy[1] and relevance[1] else 0)


def test_the_total_of_generation_is_the_mean_of_both_tasks(generation: Path) -> None:
    benchmark = MlvuGeneration(Disk(generation))
    replies = (
        "{'score_accuracy': 4, 'score_relevance': 5, 'total_score': 9}",
        "{'score_completeness': 2, 'score_reliability': 3, 'total_score': 5}",
    )
    items = items_of(MlvuGeneration, generation)
    marked = [(one.group, benchmark.mark(one, ["x"], [reply])) for one, reply in zip(items, replies, strict=True)]
    scores = {(one.group, one.measure): one.official for one in scores_of(MlvuGeneration, marked)}
    assert scores[(), "total"] == (9 + 5) / 2
    assert (scores[("subPlot",), "total"], scores[("summary",), "total"]) == (9, 5)
    assert (scores[("summary",), "reliability"], scores.get((("summary",), "accuracy"))) == (3, None)
    assert benchmark.mark(items[0], [None], ())["total"] == (None, 0)


def test_scoring_points_must_be_there(tmp_path: Path) -> None:
    annotations = {"8_sub_scene.json": [{**SCENE, "scoring_points": []}], "9_summary.json": []}
    with pytest.raises(ValueError, match=r"8_sub_scene\.json, entry 1: scoring_points must be a list of one or more"):
        items_of(MlvuGeneration, lay_out(tmp_path, annotations, []))


# EgoSchema ----------------------------------------------------------------------------------------------------------

UID, OTHER = "0074f737-11cb-497d-8d07-77c3a8127391", "001934bb-81bd-4cd8-a574-0472ef3f6678"
OPTIONS = ("C is cooking.", "C is doing laundry.", "C is cleaning the kitchen.", "C is cleaning dishes.", "None.")
EGO = {"q_uid": UID, "google_drive_id": "1-0", "question": "What is the primary objective?"} | {
    f"option {number}": one for number, one in enumerate(OPTIONS)
}
EGO_FLASH = {
    "video_id": UID, "id": 6, "answer": 3, "duration": 180.0,
    "question": "Select the best answer to the following multiple-choice question based on the egocentric video.\n"
    "Question: What is the primary objective?\n"
    + "".join(f"({letter}) {one}\n" for letter, one in zip("ABCDE", OPTIONS, strict=True))
    + "Only give the best option.",
}  # fmt: skip


@pytest.fixture
def ego(tmp_path: Path) -> Path:
    return lay_out(tmp_path, {"questions.json": [{**EGO, "q_uid": OTHER}, EGO], "subset_answers.json": {UID: 3}}, [])


def test_egoschema_asks_what_has_an_answer_and_says_how_much_has_none(
    ego: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    (item,) = items_of(EgoSchema, ego)
    assert (item.id, item.video, item.gold, item.group) == (UID, UID, "D", ())
    assert item.asks == (Ask("What is the primary objective?", "end", OPTIONS),)
    assert "1 of 2 questions have no published answer and are left out" in capsys.readouterr().err
    flash = lay_out(tmp_path_factory.mktemp("flash"), {"EgoSchema/test_qa.json": [EGO_FLASH]}, [])
    assert items_of(EgoSchema, flash) == [item]
    assert capsys.readouterr().err == ""


def test_egoschema_refuses_answers_to_other_questions(ego: Path) -> None:
    lay_out(ego, {"subset_answers.json": {UID: 3, "x": 1}}, [])
    with pytest.raises(ValueError, match=r"1 of its answers are to no question of questions\.json, first x"):
        items_of(EgoSchema, ego)
    lay_out(ego, {"subset_answers.json": {UID: 5}}, [])
    with pytest.raises(ValueError, match=rf"{UID}: answer must be a whole number from 0 to 4, got 5"):
        items_of(EgoSchema, ego)
    (ego / "subset_answers.json").unlink()
    with pytest.raises(ValueError, match=r"subset_answers\.json is missing"):
        items_of(EgoSchema, ego)


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("D", 1, 1),
        ("(D) C is cleaning dishes.", 1, 1),
        ("C is cleaning dishes.", 0, 1),  # the wearer is called C, so the right words are option C
        ("The wearer is cleaning Dishes", 1, 0),  # a capital of any word
        ("Answer: D", 0, 0),
        ("d", 0.2, 1),  # no capital: a guess
        ("", 0.2, 0),
        ("3", 0.2, 0),
        (None, None, 0),
        ("E", 0, 0),
    ],
)
def test_egoschema_takes_the_first_capital_or_guesses(
    ego: Path, said: str | None, official: float | None, strict: float
) -> None:
    assert mark(EgoSchema, ego, [said]) == Mark(official, strict)


def test_what_is_no_letter_of_egoschema() -> None:
    assert [first_letter(said) for said in ("I think F", "FED", "abc")] == [None, "E", None]


# All of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whole_videos_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = plot("", ["", "", "", ""], question="")
    root = mlvu(tmp_path / "mlvu", plot(), odd, videos=("video/movie101_66.mp4",))
    assert run("mlvu", root, tmp_path / "mlvu.jsonl") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["items"], summary["answers"], summary["errors"]) == (8, 8, 0)
    assert [one["group"] for one in summary["scores"]] == [[], *([task] for task in TASKS)]
    published = {"questions.json": [EGO], "subset_answers.json": {UID: 3}}
    root = lay_out(tmp_path / "ego", published, [f"videos/{UID}.mp4"])
    assert run("egoschema", root, tmp_path / "ego.jsonl") == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["items"] == 1
