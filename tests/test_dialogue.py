"""Talking about a stream: earlier turns, options to choose from, and a system prompt of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from streams import MIB, ListSource, feature_frames, pump_all, small_config, watched

from vstream.answer import Answer
from vstream.choices import INSTRUCTION, check_choices, choice_of, choices_text
from vstream.config import DecodeOptions
from vstream.engine import Engine
from vstream.models import load_adapter
from vstream.models.base import Adapter, Exchange, Question
from vstream.models.random import RandomLlama
from vstream.session import Session

FRAMES = feature_frames(24)
FIRST, SECOND = "what happened?", "and then?"
FRUIT = ("an apple", "a pear", "a plum")
TALKING: dict[str, Any] = {"dialogue": True, "dialogue_tokens": 200}


class Listening(RandomLlama):
    """Keeps the earlier turns of every question that it was asked."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.heard: list[tuple[str, list[Exchange]]] = []

    def question(self, text: str, *, choices: Sequence[str] = (), earlier: Sequence[Exchange] = ()) -> Question:
        self.heard.append((text, list(earlier)))
        return super().question(text, choices=choices, earlier=earlier)


def drain(session: Session) -> None:
    while session.step():
        pass


def asked(session: Session, question: str, **options: Any) -> Answer:
    """An answer, made in this thread."""
    answer = session.ask(question, **options)
    drain(session)
    return answer


def prompt_of(adapter: Any, question: Question) -> str:
    """A question's tokens, read back from their embeddings."""
    table = adapter.decoder.get_input_embeddings().weight
    ids = [int((table - one).abs().sum(-1).argmin()) for one in question.span.embeds]
    return str(adapter.tokens.tokenizer.decode(ids)) if hasattr(adapter, "tokens") else adapter.text(ids)


def query_text(adapter: Any, question: Question) -> str:
    """What of it is searched for."""
    table = adapter.decoder.get_input_embeddings().weight
    ids = [int((table - one).abs().sum(-1).argmin()) for one in question.span.embeds[question.query]]
    return str(adapter.text(ids))


# --- earlier turns ------------------------------------------------------------------------------------------------


def test_without_a_dialogue_every_question_stands_alone() -> None:
    alone, second = watched(Listening(), FRAMES), watched(Listening(), FRAMES)
    asked(second, FIRST)
    assert asked(second, SECOND).text() == (answer := asked(alone, SECOND)).text()
    assert answer.num_earlier is None
    assert all(earlier == [] for _, earlier in second.adapter.heard)  # type: ignore[attr-defined]


def test_a_dialogue_hears_earlier_questions_and_answers() -> None:
    session = watched(Listening(), FRAMES, **TALKING)
    first, second = asked(session, FIRST), asked(session, SECOND)
    third = asked(session, "why?")
    assert session.adapter.heard[-1] == (  # type: ignore[attr-defined]
        "why?", [Exchange(FIRST, first.text()), Exchange(SECOND, second.text())]
    )  # fmt: skip
    assert (first.num_earlier, second.num_earlier, third.num_earlier) == (0, 1, 2)
    assert third.num_left_out == 0
    assert third.text() != asked(watched(RandomLlama(), FRAMES), "why?").text(), "what was said before matters"


def test_a_first_question_is_answered_as_without_a_dialogue() -> None:
    plain, talking = watched(RandomLlama(), FRAMES), watched(RandomLlama(), FRAMES, **TALKING)
    answers = [asked(session, FIRST) for session in (plain, talking)]
    assert answers[0].text() == answers[1].text()
    assert answers[0].evidence == answers[1].evidence


def test_what_is_searched_for_is_the_question_alone() -> None:
    adapter = RandomLlama()
    question = adapter.question(SECOND, choices=FRUIT, earlier=[Exchange(FIRST, "a cat")])
    assert prompt_of(adapter, question) == (
        f"\nQ: {FIRST}\nA: a cat\nQ: {SECOND}\nA. an apple\nB. a pear\nC. a plum\n{INSTRUCTION}\nA: "
    )
    assert query_text(adapter, question) == SECOND


def test_the_oldest_turns_are_left_out_and_that_is_told() -> None:
    adapter = Listening()
    one = len(adapter.question("q0?", earlier=[Exchange("q0?", "12345678")]).span) - len(adapter.question("q0?").span)
    session = watched(adapter, FRAMES, dialogue=True, dialogue_tokens=4 * one)
    answers = [asked(session, f"q{i}?") for i in range(12)]
    last = answers[-1]
    assert last.num_earlier is not None
    assert 1 <= last.num_earlier < 11
    assert last.num_earlier + last.num_left_out == 11
    text, earlier = adapter.heard[-2]  # the last one had no room
    assert text == "q11?"
    assert [turn.question for turn in earlier] == [f"q{i}?" for i in range(11 - last.num_earlier, 11)]
    extra = len(adapter.question("q11?", earlier=earlier).span) - len(adapter.question("q11?").span)
    assert extra <= 4 * one


def test_a_question_about_the_past_hears_nothing_said_later() -> None:
    session = watched(Listening(), FRAMES, window_tokens=400, **TALKING)
    early = asked(session, FIRST, at=8.0)
    asked(session, SECOND, at=20.0)
    answer = asked(session, "why?", at=12.0)
    assert answer.num_earlier == 1
    assert session.adapter.heard[-1] == ("why?", [Exchange(FIRST, early.text())])  # type: ignore[attr-defined]


def test_questions_asked_at_once_are_answered_as_one_after_the_other() -> None:
    def answers(*, at_once: bool) -> list[str]:
        session = Session(RandomLlama(), ListSource(FRAMES), small_config(**TALKING))
        if at_once:
            given = [session.ask(text, at=at) for text, at in ((FIRST, 9.0), (SECOND, 9.0), ("why?", 15.0))]
            pump_all(session)
        else:
            pump_all(session)
            given = [asked(session, text, at=at) for text, at in ((FIRST, 9.0), (SECOND, 9.0), ("why?", 15.0))]
        return [f"{answer.text()} {answer.num_earlier}" for answer in given]

    at_once = answers(at_once=True)
    assert [text[-1] for text in at_once] == ["0", "1", "2"]
    assert at_once == answers(at_once=True)
    assert [text[-1] for text in answers(at_once=False)] == ["0", "1", "2"]


def test_an_answer_that_is_cancelled_holds_no_other_up() -> None:
    with Engine(RandomLlama()) as engine:
        settings = {"max_answer_tokens": 1000, "decode": DecodeOptions(max_tokens=1000), "answer_bytes": 64 * MIB}
        session = engine.open(ListSource(FRAMES), config=small_config(**{**settings, **TALKING}))
        first, second = session.ask(FIRST), session.ask(SECOND, options=DecodeOptions(max_tokens=4))
        next(iter(first))
        first.cancel()
        assert second.text(30)
        assert first.finish_reason in ("cancelled", "stop")


def test_an_answer_that_was_just_over_when_its_stream_was_closed_is_kept(tmp_path: Path) -> None:
    config = small_config(disk_bytes=64 * MIB)
    session = Session(RandomLlama(), ListSource(FRAMES), config, folder=tmp_path / "memory")
    pump_all(session)
    answer = session.ask(FIRST)
    while not answer.done:  # as `step` does, but for `settle`
        session.advance()
        session._batch.decode(1)
    session.close()
    reading = Session(RandomLlama(), None, small_config(), folder=tmp_path / "memory")
    assert [(turn["question"], turn["answer"]) for turn in reading.memory.dialogue] == [(FIRST, answer.text())]
    reading.close()


def test_a_resumed_stream_still_knows_what_was_said(tmp_path: Path) -> None:
    def opened(folder: Path | None, frames: Sequence[Any] = FRAMES, **settings: Any) -> Session:
        config = small_config(disk_bytes=0 if folder is None else 64 * MIB, **{**TALKING, **settings})
        return Session(RandomLlama(), ListSource(frames), config, folder=folder)

    whole = opened(None)
    pump_all(whole)
    first, expected = asked(whole, FIRST), asked(whole, SECOND)
    stopped = opened(tmp_path / "memory")
    pump_all(stopped)
    assert asked(stopped, FIRST).text() == first.text()
    stopped.close()
    resumed = opened(tmp_path / "memory")
    pump_all(resumed)
    answer = asked(resumed, SECOND)
    assert (answer.text(), answer.num_earlier) == (expected.text(), 1)
    resumed.close()
    reading = Session(RandomLlama(), None, small_config(**TALKING), folder=tmp_path / "memory")
    assert asked(reading, "why?").num_earlier == 2, "who only reads it knows it too"
    reading.close()
    forgetful = opened(tmp_path / "memory", dialogue=False)
    assert asked(forgetful, SECOND).num_earlier is None
    forgetful.close()


def test_a_model_without_earlier_turns_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    first_alone = template.replace("for message in messages %}", "for message in messages[:1] %}", 1)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": first_alone}))
    adapter = load_adapter(str(folder), device="cpu")
    with pytest.raises(ValueError, match="has no earlier turns; leave dialogue off"):
        Session(adapter, ListSource(FRAMES), small_config(dialogue=True))


# --- options ------------------------------------------------------------------------------------------------------


def test_options_stand_behind_the_question() -> None:
    assert choices_text(()) == ""
    assert choices_text(("red", "blue")) == f"\nA. red\nB. blue\n{INSTRUCTION}"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1), ("b.", 1), ("(C)", 2), ("A: an apple", 0), ("B. a pear", 1), (" C\n", 2),
        ("a plum", 2), ("A pear.", 1), ("D", None), ("Because", None), ("a banana", None), ("", None),
        ("I think B", None), ("(C) a plum", 2),
    ],
)  # fmt: skip
def test_the_option_that_an_answer_names(text: str, choice: int | None) -> None:
    assert choice_of(text, FRUIT) == choice
    assert choice_of(text, ()) is None


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ("red", "choices must be several texts, got one: 'red'"),
        (["red"], "give a question 2 to 26 options, or none; it has 1"),
        (["x"] * 27, "give a question 2 to 26 options, or none; it has 27"),
        (["red", " "], "an option is empty"),
    ],
)
def test_wrong_options_are_refused(choices: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_choices(choices)
    with pytest.raises(ValueError, match=sentence):
        watched(RandomLlama(), FRAMES[:2]).ask(FIRST, choices=choices)


def test_options_are_no_part_of_what_is_searched_for() -> None:
    session = watched(RandomLlama(), FRAMES, max_question_tokens=200)
    plain, fruit, other = (asked(session, FIRST, choices=choices) for choices in ((), FRUIT, ("a dog", "a cat")))
    assert plain.evidence == fruit.evidence == other.evidence
    assert plain.recalled == fruit.recalled
    assert fruit.text() != other.text(), "yet they are read"
    inside = asked(session, FIRST + choices_text(FRUIT))
    assert inside.evidence != plain.evidence, "as part of the question they would be"


def test_options_count_as_part_of_the_question() -> None:
    session = watched(RandomLlama(), FRAMES[:4], max_question_tokens=100)
    with pytest.raises(ValueError, match=r"the question has [0-9]+ tokens, but at most 100 fit"):
        session.ask(FIRST, choices=("red" * 30, "blue"))


class Decided(RandomLlama):
    """Says B, whatever it is asked."""

    def text(self, token_ids: Sequence[int]) -> str:
        return "B"[: len(token_ids)]


def test_an_answer_tells_its_choice() -> None:
    session = watched(Decided(), FRAMES[:4], max_question_tokens=200)
    answer = session.ask(FIRST, choices=FRUIT)
    assert answer.choice is None
    drain(session)
    assert (answer.text(), answer.choice, answer.choices) == ("B", 1, FRUIT)
    assert asked(session, FIRST).choice is None


def test_earlier_options_are_heard_again() -> None:
    session = watched(Listening(), FRAMES, max_question_tokens=200, **TALKING)
    first = asked(session, FIRST, choices=FRUIT)
    asked(session, SECOND)
    earlier = [Exchange(FIRST + choices_text(FRUIT), first.text())]
    assert session.adapter.heard[-1] == (SECOND, earlier)  # type: ignore[attr-defined]


# --- stock checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def stock(folder: Path) -> Adapter:
    return load_adapter(str(folder), device="cpu")


def rendered(adapter: Any, messages: list[tuple[str, str]]) -> str:
    """What the checkpoint's own template makes of a dialogue about a video, behind the video."""
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    parts[0]["content"].insert(0, {"type": "video"})  # type: ignore[attr-defined]
    template = json.loads((adapter._folder / "chat_template.json").read_text())["chat_template"]
    whole = adapter.tokens.tokenizer.apply_chat_template(
        parts, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return str(whole).partition("<video>")[2]


def test_a_stock_checkpoints_dialogue_is_its_own_templates(stock: Any) -> None:
    earlier = [Exchange(FIRST, "a cat"), Exchange("where?", "on a mat")]
    question = stock.question(SECOND, earlier=earlier)
    messages = [("user", FIRST), ("assistant", "a cat"), ("user", "where?"), ("assistant", "on a mat")]
    with torch.inference_mode():
        ends = len(stock._end_of_video())
    expected = rendered(stock, [*messages, ("user", SECOND)])
    ids = stock.tokens.marked(expected)
    assert torch.equal(question.span.embeds[ends:], stock.embed(torch.tensor(ids)))
    assert query_text(stock, question) == SECOND


def test_special_tokens_in_a_dialogue_stay_text(stock: Any) -> None:
    plain = stock.question(SECOND, earlier=[Exchange("<|im_end|>", "<video>")])
    special = stock.tokens.special("<video>")
    table = stock.decoder.get_input_embeddings().weight
    assert not any(torch.equal(one, table[special]) for one in plain.span.embeds)


def test_a_system_prompt_becomes_the_sink(folder: Path, stock: Any) -> None:
    other = load_adapter(str(folder), device="cpu", system="Count the cats.")
    sink = other.tokens.text([int((other.model.get_input_embeddings().weight - one).abs().sum(-1).argmin())
                              for one in other.sink().embeds])  # fmt: skip
    assert "Count the cats." in sink
    assert len(other.sink()) > len(stock.sink())
    assert other.turn.before_question == stock.turn.before_question
    assert other.fingerprint != stock.fingerprint


@pytest.mark.parametrize(
    "instead",
    ["{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
     "{% if message['role'] == 'system' %}{% continue %}{% endif %}"],
    ids=["refused", "ignored"],
)  # fmt: skip
def test_a_template_without_a_system_prompt_is_told(folder: Path, tmp_path: Path, instead: str) -> None:
    copy = write_checkpoint(tmp_path)
    template = json.loads((copy / "chat_template.json").read_text())["chat_template"]
    changed = template.replace("for message in messages %}", "for message in messages %}" + instead, 1)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": changed}))
    load_adapter(str(copy), device="cpu")
    with pytest.raises(ValueError, match="takes no system prompt; leave it out"):
        load_adapter(str(copy), device="cpu", system="Count the cats.")
