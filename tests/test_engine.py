"""The engine without threads: answers decoded together, the rule of the rounds, places in the queue, freed budgets."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from streams import (
    MIB,
    ListSource,
    LoggingLlama,
    RememberingBatch,
    feature_frames,
    pump_all,
    small_config,
    watched,
)
from torch import Tensor

import vstream.batch
from vstream.answer import Answer
from vstream.answer_cache import AnswerCache
from vstream.answering import MIN_PIECE_TOKENS, Answerer
from vstream.batch import RowsCache
from vstream.config import DecodeOptions
from vstream.engine import Engine
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.sources import PushSource
from vstream.types import Frame

QUESTION = "what happened?"
LONG_QUESTION = "what happened, and why, and what came of it? " * 7
MANY_ROUNDS = 500


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(LoggingLlama()) as opened:
        yield opened


def log_of(engine: Engine) -> list[tuple[str, float]]:
    assert isinstance(engine.adapter, LoggingLlama)
    return engine.adapter.log


def opened(engine: Engine, frames: Sequence[Frame], *, seen: int | None = None, **settings: Any) -> Session:
    """A session over a list that nobody but the test steps; it has watched the first `seen` frames, or all."""
    session = engine.open(ListSource(frames), config=small_config(**settings), start=False)
    if seen is None:
        pump_all(session)
    else:
        watch(session, seen)
    return session


def watch(session: Session, count: int) -> None:
    """The next frames, two at a time as small clips are."""
    assert session.ingest is not None
    for _ in range(count // 2):
        assert session.ingest.pump(2) == 2
        assert session.step()


def opened_live(engine: Engine, frames: Sequence[Frame], *, seen: int, **settings: Any) -> Session:
    """The same over a program's frames, all of which are handed over already."""
    source = PushSource("live", capacity=len(frames) + 1)
    for frame in frames:
        source.push(frame.image, frame.pts_seconds)
    session = engine.open(source, config=small_config(**settings), start=False)
    watch(session, seen)
    return session


def encoded(session: Session) -> int:
    return session.status().frames.encoded


def rounds_until(engine: Engine, sessions: list[Session], over: Callable[[], bool]) -> int:
    """Rounds until something holds; how many."""
    for count in range(MANY_ROUNDS):
        if over():
            return count
        engine._round(sessions)
    raise AssertionError(f"not within {MANY_ROUNDS} rounds")


def finish(engine: Engine, sessions: list[Session], answers: Sequence[Answer]) -> None:
    rounds_until(engine, sessions, lambda: all(answer.done for answer in answers))


def running(engine: Engine, session: Session, count: int, **options: Any) -> list[Answer]:
    """That many answers about now, all of them past their first token."""
    answers = [session.ask(f"{QUESTION} {number}", at="now", **options) for number in range(count)]
    rounds_until(engine, [session], lambda: all(answer.num_tokens for answer in answers))
    return answers


# Decoded together ---------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A question, where, and how."""

    place: int
    text: str
    options: DecodeOptions


PLACES: list[tuple[int, dict[str, Any]]] = [(40, {}), (25, {"window_tokens": 150, "retrieve_tokens": 40})]
MIXED = [
    Asked(0, "what happened?", DecodeOptions(max_tokens=24)),
    Asked(1, "who was there, and when did they leave?", DecodeOptions(max_tokens=33, temperature=0.8, seed=5)),
    Asked(0, "why?", DecodeOptions(max_tokens=5, temperature=1.5, seed=9, top_p=0.9)),
    Asked(1, "what is the last thing to be seen?", DecodeOptions(max_tokens=48, temperature=0.5, seed=1)),
]


class Together:
    """Two sessions of one engine, and answers to some questions about them."""

    def __init__(self, adapter: RandomLlama, asked: Sequence[Asked]) -> None:
        self.engine = Engine(adapter)
        self.batch = self.engine._batch = RememberingBatch(adapter)
        self.sessions = [
            opened(self.engine, feature_frames(count, seed=count), max_answer_tokens=64, decode_steps=1, **settings)
            for count, settings in PLACES
        ]
        self.answers = [self.sessions[place].ask(text, options=options) for place, text, options in asked]

    def ids(self) -> list[list[int]]:
        """Token ids of every answer, all done."""
        finish(self.engine, self.sessions, self.answers)
        self.engine.close()
        return [self.batch.token_ids(answer) for answer in self.answers]


def ids_alone(asked: Sequence[Asked]) -> list[list[int]]:
    return [Together(RandomLlama(dtype=torch.float64), [one]).ids()[0] for one in asked]


def test_answers_decoded_together_are_those_decoded_alone() -> None:
    together = Together(RandomLlama(dtype=torch.float64), MIXED)
    ids = together.ids()
    assert ids == ids_alone(MIXED)
    assert together.batch.most >= 3
    assert len({tuple(one) for one in ids}) == 4, "four questions, four answers"
    assert min(len(one) for one in ids) == 5
    assert max(len(one) for one in ids) > 20


@pytest.mark.slow
def test_stop_strings_stop_their_own_answer_alone() -> None:
    unstopped = ids_alone(MIXED)
    text = RandomLlama().text(unstopped[1]).lstrip()
    stop = next(text[at : at + 2] for at in range(4, len(text)) if "\ufffd" not in text[at : at + 2])
    asked = [one._replace(options=replace(one.options, stop=(stop,))) for one in MIXED]
    together = Together(RandomLlama(dtype=torch.float64), asked)
    ids = together.ids()
    assert ids == ids_alone(asked)
    assert together.answers[1].finish_reason == "stop"
    assert together.answers[1].text() == text[: text.index(stop)]
    assert len(ids[1]) < len(unstopped[1])
    assert ids[0] == unstopped[0]


def test_a_cancelled_answer_does_not_disturb_the_others() -> None:
    together = Together(RandomLlama(dtype=torch.float64), MIXED)
    rounds_until(together.engine, together.sessions, lambda: together.answers[1].num_tokens == 7)
    together.answers[1].cancel()
    ids, alone = together.ids(), ids_alone(MIXED)
    assert (ids[0], ids[2:]) == (alone[0], alone[2:])
    assert ids[1] == alone[1][:7]
    assert together.answers[1].finish_reason == "cancelled"


class SwappingLlama(RandomLlama):
    """Gives every row the next one's position."""

    def forward_rows(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        return super().forward_rows(embeds, positions.roll(1, dims=1), cache, **kwargs)


def test_swapped_positions_would_show() -> None:
    assert Together(SwappingLlama(dtype=torch.float64), MIXED).ids() != ids_alone(MIXED)


def test_swapped_caches_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ids_alone(MIXED)
    monkeypatch.setattr(vstream.batch, "RowsCache", lambda caches: RowsCache([*caches[1:], caches[0]]))
    assert Together(RandomLlama(dtype=torch.float64), MIXED).ids() != alone


def test_a_model_that_fails_in_the_batch_fails_the_answers_and_not_the_streams(engine: Engine) -> None:
    session = opened(engine, feature_frames(30), seen=10, decode_steps=1)
    answers = running(engine, session, 2, options=DecodeOptions(max_tokens=16))

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("out of memory")

    engine.adapter.forward_rows = broken  # type: ignore[method-assign]
    finish(engine, [session], answers)
    for answer in answers:
        with pytest.raises(RuntimeError, match="out of memory"):
            answer.text()
    assert not session.closed
    watch(session, 10)
    assert encoded(session) == 20


def test_a_started_engine_answers() -> None:
    """An empty batch is falsy, and once was taken for none: the worker then decoded another one than answers joined."""
    with Engine(RandomLlama()) as engine:
        assert len(engine._batch) == 0
        sessions = [engine.open(ListSource(feature_frames(20, seed=seed)), config=small_config()) for seed in (1, 2)]
        assert all(session._batch is engine._batch for session in sessions)
        assert all(session.ask(QUESTION).text(30) is not None for session in sessions)


# The rule of the rounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", [False, True])
def test_a_waiting_clip_is_served_in_the_next_round_whatever_is_asked(engine: Engine, long: bool) -> None:
    asked = opened(engine, feature_frames(30), max_question_tokens=512)
    watching = opened(engine, feature_frames(400), seen=2)
    answers = [asked.ask(LONG_QUESTION if long else QUESTION) for _ in range(20)]
    assert watching.ingest
    for count in range(2, 122, 2):
        assert encoded(watching) == count
        watching.ingest.pump(2)
        engine._round([asked, watching])
    assert any(answer.num_tokens for answer in answers)
    assert not all(answer.done for answer in answers), "it was busy all the time"


def test_clips_of_a_stream_go_on_while_it_answers(engine: Engine) -> None:
    session = opened(engine, feature_frames(100), seen=10, decode_steps=1)
    answers = running(engine, session, 4, options=DecodeOptions(max_tokens=16))
    assert session.ingest
    before, rounds = encoded(session), 0
    while not all(answer.done for answer in answers):
        session.ingest.pump(2)
        engine._round([session])
        rounds += 1
    assert rounds >= 10
    assert encoded(session) == before + 2 * rounds


@pytest.mark.parametrize(("steps", "other_steps"), [(1, 1), (3, 8), (8, 3)])
def test_every_answer_gets_its_tokens_in_every_round(engine: Engine, steps: int, other_steps: int) -> None:
    """As many as the session with the fewest allows: its clips wait for no more."""
    options = DecodeOptions(max_tokens=60, temperature=1.0)
    session = opened(engine, feature_frames(30), decode_steps=steps, max_answer_tokens=64)
    other = opened(engine, feature_frames(400), seen=2, decode_steps=other_steps)
    answers = [session.ask(f"{QUESTION} {number}", options=options) for number in range(3)]
    rounds_until(engine, [session], lambda: all(answer.num_tokens for answer in answers))
    late = session.ask(LONG_QUESTION[:50], options=options)
    assert other.ingest
    checked = 0
    while not all(answer.done for answer in answers):
        before = [answer.num_tokens for answer in answers]
        other.ingest.pump(2)
        engine._round([session, other])
        for answer, tokens in zip(answers, before, strict=True):
            assert answer.done or answer.num_tokens == tokens + min(steps, other_steps)
            checked += not answer.done
    assert checked > 10
    assert late.num_tokens > 0


def encodes(log: list[tuple[str, float]]) -> list[float]:
    return [seconds for what, seconds in log if what == "encode"]


def test_live_streams_come_first_and_then_who_is_furthest_behind(engine: Engine) -> None:
    def later(start: int) -> list[Frame]:
        return feature_frames(start + 20, start=start)

    near, far = (opened(engine, later(start), seen=2) for start in (100, 200))
    live = opened_live(engine, later(300), seen=2)
    paced = opened(engine, later(400), seen=2, realtime=False)
    for session, count in ((near, 2), (far, 6), (live, 2)):
        assert session.ingest
        session.ingest.pump(count)
    log_of(engine).clear()
    engine._round([near, far, paced, live])
    assert encodes(log_of(engine)) == [302.0, 202.0, 102.0]


def marked(log: list[tuple[str, float]]) -> list[tuple[str, int]]:
    """Clips as ("clip", tokens) and pieces of questions as ("piece", tokens); single tokens are left out.

    A clip's pass is the one that follows its encoding.
    """
    pairs = zip([("", 0.0), *log], log, strict=False)
    passes = [(before, int(size)) for (before, _), (what, size) in pairs if what == "forward" and size > 1]
    return [("clip" if before == "encode" else "piece", size) for before, size in passes]


def pieces(log: list[tuple[str, float]]) -> list[int]:
    return [size for what, size in marked(log) if what == "piece"]


def test_a_long_question_goes_in_pieces_and_clips_between_them(engine: Engine) -> None:
    asked = opened(engine, feature_frames(30), max_question_tokens=512)
    watching = opened(engine, feature_frames(400), seen=2)
    limit = max(MIN_PIECE_TOKENS, asked.memory.clip_tokens)
    assert len(engine.adapter.question(LONG_QUESTION).span) > 300
    log_of(engine).clear()
    answer = asked.ask(LONG_QUESTION, options=DecodeOptions(max_tokens=1))
    assert watching.ingest
    while not answer.done:
        watching.ingest.pump(2)
        engine._round([asked, watching])
    sizes, order = pieces(log_of(engine)), "".join(what[0] for what, _ in marked(log_of(engine)))
    assert max(sizes) <= limit
    assert len(sizes) >= 300 // limit, "the question runs twice: to choose, and with what was chosen"
    assert "pp" not in order, "another session's clip comes between any two pieces"


def test_without_pieces_it_would_be_seen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answerer, "_piece_tokens", 1 << 20)
    session = opened(engine, feature_frames(30), max_question_tokens=512)
    log_of(engine).clear()
    finish(engine, [session], [session.ask(LONG_QUESTION)])
    assert max(pieces(log_of(engine))) > session.memory.clip_tokens


def long_answer(piece_tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """Token ids and evidence of a long question's answer."""
    with monkeypatch.context() as patch:
        if piece_tokens:
            patch.setattr(Answerer, "_piece_tokens", piece_tokens)
        engine = Engine(RandomLlama(dtype=torch.float64))
        batch = engine._batch = RememberingBatch(engine.adapter)  # type: ignore[arg-type]
        session = opened(engine, feature_frames(61), max_question_tokens=512, max_answer_tokens=64)
        answer = session.ask(LONG_QUESTION, options=DecodeOptions(max_tokens=40))
        finish(engine, [session], [answer])
        engine.close()
        return batch.token_ids(answer), [repr(evidence) for evidence in answer.evidence]


def test_pieces_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = long_answer(1 << 20, monkeypatch)
    assert len(whole[0]) == 40
    assert long_answer(None, monkeypatch) == whole
    assert long_answer(17, monkeypatch) == whole


def order_of_work(engine: Engine, session: Session, answers: Sequence[Answer]) -> str:
    """Rounds until all is done, a clip always waiting: "Q" where a question was prefilled, "C" where a clip was."""
    assert session.ingest
    order, begun, clips = "", 0, encoded(session)
    while not all(answer.done for answer in answers):
        session.ingest.pump(2 - session.ingest.counters().queued)
        engine._round([session])
        now_begun, now_clips = sum(answer.num_tokens > 0 for answer in answers), encoded(session)
        assert now_begun - begun + (now_clips - clips) // 2 <= 1, "one piece of work a round"
        order += "Q" * (now_begun - begun) + "C" * ((now_clips - clips) // 2)
        begun, clips = now_begun, now_clips
    return order


def test_on_a_live_stream_questions_and_clips_alternate(engine: Engine) -> None:
    session = opened_live(engine, feature_frames(120), seen=10)
    order = order_of_work(engine, session, [session.ask(QUESTION) for _ in range(20)])
    assert order.startswith("QC" * 19 + "Q")


def test_on_a_file_questions_come_first(engine: Engine) -> None:
    session = opened(engine, feature_frames(120), seen=10)
    order = order_of_work(engine, session, [session.ask(QUESTION, at=9.0) for _ in range(20)])
    assert order.startswith("Q" * 20)


# Places in the queue ------------------------------------------------------------------------------------------------


def for_two(engine: Engine, **settings: Any) -> Session:
    """A session whose budget holds two answers."""
    session = watched(RandomLlama(), feature_frames(30))
    one = session._answerer.num_bytes(session.adapter.question(QUESTION), small_config(**settings).decode)
    return opened(engine, feature_frames(30), answer_bytes=2 * one + one // 2, **{"decode_steps": 1, **settings})


def test_questions_that_wait_know_their_place(engine: Engine) -> None:
    session = for_two(engine)
    answers = [session.ask(QUESTION) for _ in range(6)]
    places: list[list[int]] = [[] for _ in answers]
    while not all(answer.done for answer in answers):
        engine._round([session])
        for answer, seen in zip(answers, places, strict=True):
            assert answer.place == 0 or not answer.done
            if seen[-1:] != [answer.place]:
                seen.append(answer.place)
    assert places == [[*range(number, -1, -1)] for number in range(6)]


def test_cancelled_questions_leave_the_queue_and_the_rest_move_up(engine: Engine) -> None:
    session = for_two(engine, decode=DecodeOptions(max_tokens=16))
    first = running(engine, session, 2)
    waiting = [session.ask(QUESTION) for _ in range(4)]
    engine._round([session])
    assert [answer.place for answer in waiting] == [1, 2, 3, 4]
    waiting[1].cancel()
    engine._round([session])
    assert [answer.place for answer in waiting] == [1, 0, 2, 3]
    assert waiting[1].finish_reason == "cancelled"
    first[0].cancel()
    engine._round([session])  # it ends
    engine._round([session])  # and another takes its room
    assert [answer.place for answer in waiting] == [0, 0, 1, 2]
    finish(engine, [session], waiting)
    assert [answer.place for answer in waiting] == [0, 0, 0, 0]


def test_closing_ends_the_queue(engine: Engine) -> None:
    session = for_two(engine)
    answers = [session.ask(QUESTION) for _ in range(6)]
    rounds_until(engine, [session], lambda: answers[1].num_tokens > 0)
    assert [answer.place for answer in answers[2:]] == [1, 2, 3, 4]
    engine.close()
    assert [answer.place for answer in answers] == [0] * 6
    assert {answer.finish_reason for answer in answers} == {"cancelled"}


# What a cancelled answer gives back ---------------------------------------------------------------------------------


def live_caches(others: Sequence[AnswerCache] = ()) -> list[AnswerCache]:
    """Answers' caches that are still in memory, but for others, which other tests may have left."""
    known = {id(one) for one in others}
    return [one for one in gc.get_objects() if type(one) is AnswerCache and id(one) not in known]


def test_a_cancelled_answer_ends_at_its_next_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(engine, feature_frames(30), decode_steps=8)
    answer = session.ask(QUESTION, options=DecodeOptions(max_tokens=16))
    add = answer.add

    def cancel_at_five(piece: str, num_tokens: int) -> None:
        add(piece, num_tokens)
        if num_tokens == 5:
            answer.cancel()

    monkeypatch.setattr(answer, "add", cancel_at_five)
    rounds_until(engine, [session], lambda: answer.num_tokens > 0)
    assert answer.finish_reason == "cancelled"
    assert answer.num_tokens == 5


def test_a_cancelled_answer_frees_its_budget_within_a_round(engine: Engine) -> None:
    session = for_two(engine, decode=DecodeOptions(max_tokens=16))
    first = running(engine, session, 2)
    waiting = session.ask(QUESTION)
    engine._round([session])
    assert waiting.place == 1
    full, each = session.status().memory.device_bytes, session._running[0].num_bytes
    tokens = first[0].num_tokens
    first[0].cancel()
    engine._round([session])
    assert first[0].num_tokens == tokens
    assert session.status().memory.device_bytes == full - each
    engine._round([session])
    assert waiting.place == 0
    assert session.status().memory.device_bytes >= full - each // 4
    assert waiting in [reserved.answer for reserved in session._running]


@pytest.mark.slow
@pytest.mark.parametrize("rounds", range(1, 10))
def test_a_cancelled_answer_frees_its_tensors(engine: Engine, rounds: int) -> None:
    """Wherever it was: from the first piece of its prefill to its tokens."""
    session = opened(engine, feature_frames(30), decode_steps=1)
    gc.collect()
    before = live_caches()
    answer = session.ask("x" * 50, options=DecodeOptions(max_tokens=16))
    for _ in range(rounds):
        engine._round([session])
    answer.cancel()
    engine._round([session])
    gc.collect()
    assert answer.finish_reason == "cancelled"
    assert live_caches(before) == []
    assert session.status().running == 0


def test_an_answer_holds_a_cache_while_it_runs(engine: Engine) -> None:
    """So that the test above can fail."""
    session = opened(engine, feature_frames(30), decode_steps=1)
    gc.collect()
    before = live_caches()
    running(engine, session, 2, options=DecodeOptions(max_tokens=16))
    assert len(live_caches(before)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("close_engine", [False, True])
def test_a_session_closed_in_the_middle_of_an_answer_leaves_nothing_to_do(engine: Engine, close_engine: bool) -> None:
    """The worker would else go round for ever, and the answer's tensors stay."""
    session = opened(engine, feature_frames(30), decode_steps=1)
    gc.collect()
    before = live_caches()
    answers = running(engine, session, 2, options=DecodeOptions(max_tokens=16))
    if close_engine:
        engine.close()
    else:
        session.close()
        engine._round([])
    assert {answer.finish_reason for answer in answers} == {"cancelled"}
    assert not engine._round([]), "there is no session and no answer"
    gc.collect()
    assert live_caches(before) == []


# Opening and closing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
def test_a_closed_engine_opens_nothing_and_keeps_no_folder(tmp_path: Path, start: bool) -> None:
    engine, config = Engine(RandomLlama()), small_config(disk_bytes=64 * MIB)
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.open(ListSource(feature_frames(4)), config=config, memory=tmp_path / "memory", start=start)
    with Engine(RandomLlama()) as other:
        other.open(ListSource(feature_frames(4)), config=config, memory=tmp_path / "memory", start=False)
