"""Sessions: resuming, bounds, determinism, memory as what answers, and questions at every odd moment."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import MIB, ListSource, RecordingLlama, altered, feature_frames, pump_all, small_config, watched

from vstream.answer import Answer, Evidence
from vstream.cache import place
from vstream.config import CodecName, Config, DecodeOptions
from vstream.engine import Engine
from vstream.memory.block import Tier
from vstream.memory.codec import CODECS
from vstream.memory.levels import DETAIL, DIGEST, GIST, SINK
from vstream.memory.policies import RETRIEVERS
from vstream.models.random import RandomLlama
from vstream.session import NOTHING_SEEN, Session
from vstream.sources import PushSource
from vstream.types import Frame

QUESTION = "what happened?"


def drain(session: Session) -> None:
    while session.step():
        pass


def asked(session: Session, question: str = QUESTION, **options: Any) -> Answer:
    """An answer, made in this thread."""
    answer = session.ask(question, **options)
    drain(session)
    return answer


def told(answer: Answer) -> tuple[Any, ...]:
    return answer.text(), answer.snapshot_seconds, answer.evidence


@torch.inference_mode()
def kv_of(session: Session) -> dict[int, torch.Tensor]:
    store = session.memory.store
    return {meta.id: store.gather([meta.id]) for meta in store.metas()}


def assert_same_memory(left: Session, right: Session) -> None:
    ours, theirs = kv_of(left), kv_of(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[block_id], theirs[block_id]) for block_id in ours)
    assert [repr(meta) for meta in left.memory.store.metas()] == [repr(meta) for meta in right.memory.store.metas()]


def persistent(folder: Path, frames: Any, adapter: RandomLlama | None = None, **settings: Any) -> Session:
    config = small_config(disk_bytes=64 * MIB, **settings)
    return Session(adapter or RandomLlama(), ListSource(frames), config, folder=folder)


# Resuming (invariants 8 and 9) ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("clips_before_stop", [1, 3, 7, 12])
@pytest.mark.parametrize("disk_mib", [2, 64])
def test_a_resumed_stream_is_bit_identical(tmp_path: Path, clips_before_stop: int, disk_mib: int) -> None:
    check_resuming(tmp_path, clips_before_stop, small_config(disk_bytes=disk_mib * MIB, host_bytes=MIB, gist_share=0.3))


@pytest.mark.parametrize(("codec", "disk_mib"), [("int8", 2), ("int4", 2), ("int8", 64)])
@pytest.mark.slow
def test_so_is_one_that_is_stored_with_fewer_bits(tmp_path: Path, codec: CodecName, disk_mib: int) -> None:
    config = small_config(
        disk_bytes=disk_mib * MIB,
        host_bytes=MIB,
        gist_share=0.3,
        detail_codec=codec,
        digest_codec="int4",
        gist_codec=codec,
    )
    check_resuming(tmp_path, 7, config, frames=401)


@pytest.mark.parametrize("codec", ["none", "int8", "int4"])
def test_the_window_holds_what_is_stored(monkeypatch: pytest.MonkeyPatch, codec: CodecName) -> None:
    """Not what the decoder made: else a resumed stream would go on from other keys."""

    @torch.inference_mode()
    def window_is_stored() -> bool:
        memory = watched(RandomLlama(), feature_frames(20), detail_codec=codec).memory
        assert memory.cache.sink
        ids = [placed.meta.id for placed in (memory.cache.sink, *memory.cache.window)]
        positions = torch.cat([placed.positions for placed in (memory.cache.sink, *memory.cache.window)], dim=1)
        kv = place(memory.adapter, memory.store.gather(ids), positions)
        held = [torch.cat(span.view()) for span in memory.cache.spans]
        assert {memory.store.meta(block_id).codec for block_id in ids[1:]} == {codec}
        assert memory.store.meta(ids[0]).codec == "none", "the sink keeps every bit"
        return torch.equal(torch.stack(held), kv)

    assert window_is_stored()
    for kind in CODECS.values():
        monkeypatch.setattr(kind, "round_trip", lambda self, kv, lead: kv)
    assert window_is_stored() == (codec == "none"), "negative control"


def check_resuming(tmp_path: Path, clips_before_stop: int, config: Config, frames: int = 91) -> None:
    source = feature_frames(frames)

    def open_session(name: str) -> Session:
        return Session(RandomLlama(), ListSource(source), config, folder=tmp_path / name)

    whole = open_session("whole")
    pump_all(whole)
    interrupted = open_session("parts")
    assert interrupted.ingest
    for _ in range(clips_before_stop):
        interrupted.ingest.pump(2)
        interrupted.step()
    assert interrupted.memory.counters.encoded == 2 * clips_before_stop
    interrupted.close()

    resumed = open_session("parts")
    assert resumed.memory.last_seconds == 2 * clips_before_stop - 1
    pump_all(resumed)
    assert_same_memory(whole, resumed)
    for ours, theirs in zip(whole.memory.cache.spans, resumed.memory.cache.spans, strict=True):
        assert all(map(torch.equal, ours.view(), theirs.view()))
    assert whole.status().frames == resumed.status().frames
    assert whole.status().moved == resumed.status().moved
    assert (whole.status().moved["demoted"] > 0) == (config.disk_bytes <= 2 * MIB)
    assert told(asked(whole)) == told(asked(resumed))
    whole.memory.store.check_integrity(deep=True)
    resumed.memory.store.check_integrity(deep=True)


def test_a_memory_answers_without_its_source(tmp_path: Path) -> None:
    session = persistent(tmp_path / "memory", feature_frames(30))
    pump_all(session)
    before = told(asked(session))
    session.close()
    alone = Session(RandomLlama(), None, small_config(disk_bytes=64 * MIB), folder=tmp_path / "memory")
    assert told(asked(alone)) == before
    assert [turn["question"] for turn in alone.memory.dialogue] == [QUESTION] * 2
    alone.close()


def test_the_dialogue_comes_back(tmp_path: Path) -> None:
    frames = feature_frames(30)
    session = persistent(tmp_path / "memory", frames)
    early, last = session.ask(QUESTION, at=10.0), session.ask(QUESTION)
    pump_all(session)
    session.close()
    resumed = persistent(tmp_path / "memory", frames)
    assert list(resumed.memory.dialogue) == [
        {
            "question": QUESTION,
            "answer": answer.text(),
            "asked_at_seconds": seconds,
            "evidence": [
                [one.start_seconds, one.end_seconds, one.level, one.picture_seconds] for one in answer.evidence
            ],
        }
        for answer, seconds in ((early, 10.0), (last, 29.0))
    ]


def test_another_source_or_model_is_refused(tmp_path: Path) -> None:
    session = persistent(tmp_path / "memory", feature_frames(6))
    pump_all(session)
    session.close()
    config = small_config(disk_bytes=64 * MIB)
    with pytest.raises(ValueError, match="made with source 'list', not 'other'"):
        Session(RandomLlama(), ListSource([], "other"), config, folder=tmp_path / "memory")
    with pytest.raises(ValueError, match="fingerprint"):
        Session(RandomLlama(seed=1), ListSource([]), config, folder=tmp_path / "memory")
    persistent(tmp_path / "memory", feature_frames(6)).close()


@pytest.mark.parametrize("policy", sorted(set(RETRIEVERS) - {"embedding"}))  # which keeps what no other does
def test_a_memory_may_be_searched_by_any_policy(tmp_path: Path, policy: str) -> None:
    frames = feature_frames(30)
    pump_all(session := persistent(tmp_path / "memory", frames))
    session.close()
    pump_all(searched := persistent(tmp_path / "memory", frames, policy=policy))
    assert told(asked(searched)) == told(asked(watched(RandomLlama(), frames, policy=policy)))


# Determinism (invariant 9) and bounds (invariant 6) ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_same_input_same_everything(selection: str) -> None:
    frames = feature_frames(400)
    sessions = [watched(RandomLlama(), frames, host_bytes=MIB, gist_share=0.3, selection=selection) for _ in range(2)]
    assert_same_memory(*sessions)
    assert told(asked(sessions[0])) == told(asked(sessions[1]))
    assert sessions[0].status().moved["merged"] > 0


@pytest.mark.slow
def test_a_long_stream_stays_within_its_budgets() -> None:
    frames = feature_frames(1200)
    adapter = RandomLlama()
    config = small_config(host_bytes=MIB, gist_share=0.3)
    session = Session(adapter, ListSource(frames), config)
    assert session.ingest
    while session.ingest.pump(2) or not session.ingest.drained:
        drain(session)
        tiers = session.memory.store.tier_bytes()
        assert tiers[Tier.HOST] <= config.host_bytes
        assert session.memory.store.used_bytes <= session.memory.store.capacity_bytes
    session.memory.store.check_integrity(deep=True)
    status = session.status()
    assert status.frames.encoded == 1200
    metas = [meta for meta in session.memory.store.metas() if meta.level != SINK]
    assert sum(meta.weight for meta in metas) == 1200
    assert metas[0].start_seconds == 0.0
    past_detail = 600 - status.blocks["detail"]
    assert status.moved["demoted"] == 2 * past_detail - status.blocks["digest"]  # to digest, and on to gist
    assert status.moved["merged"] == past_detail - status.blocks["digest"] - status.blocks["gist"]
    assert status.blocks["digest"] > 2
    answer = asked(session)
    assert {e.level for e in answer.evidence} <= {"detail", "digest", "gist", "window"}
    assert answer.text() is not None


@pytest.mark.slow
def test_anonymous_memory_does_not_grow() -> None:
    frames = feature_frames(1500)
    session = Session(RandomLlama(), ListSource(frames), small_config(host_bytes=MIB, gist_share=0.3))
    assert session.ingest
    used: list[int] = []
    while session.ingest.pump(2) or not session.ingest.drained:
        drain(session)
        used.append(anonymous_kib())
    half, end = used[len(used) // 2], used[-1]
    assert end - half < 2048, f"grew from {half} to {end} KiB over {len(used) // 2} clips"


def anonymous_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon in /proc/self/status")


def test_answers_own_a_budget_and_the_rest_wait() -> None:
    adapter = RandomLlama()
    session = watched(adapter, feature_frames(30))
    one = session._answerer.num_bytes(adapter.question(QUESTION), session.config.decode)
    session = watched(adapter, feature_frames(30), answer_bytes=2 * one + one // 2, decode_steps=1)
    answers = [session.ask(QUESTION) for _ in range(6)]
    most = 0
    while session.step():
        status = session.status()
        most = max(most, status.running)
        assert sum(running.num_bytes for running in session._running) <= session.config.answer_bytes
    assert most == 2
    assert len({answer.text() for answer in answers}) == 1
    with pytest.raises(ValueError, match="answer_bytes"):
        watched(adapter, feature_frames(4), answer_bytes=one // 2).ask(QUESTION)


# Memory is what answers (invariant 10) -----------------------------------------------------------------------------


def hidden_of_question(frames: Any, **settings: Any) -> torch.Tensor:
    adapter = RecordingLlama()
    session = watched(adapter, frames, **settings)
    adapter.hidden.clear()
    answer = session.ask(QUESTION, options=DecodeOptions(max_tokens=1))
    drain(session)
    assert answer.done
    return adapter.hidden[-1]


def test_what_is_behind_the_window_reaches_an_answer_through_memory_alone() -> None:
    frames = feature_frames(80)  # further back than three layers of windows can see
    changed = altered(frames, 4)
    everything = {"retrieve_tokens": 2048}
    assert not torch.equal(hidden_of_question(frames, **everything), hidden_of_question(changed, **everything))
    nothing = {"retrieve_tokens": 0, "gist_tokens": 0}
    assert torch.equal(hidden_of_question(frames, **nothing), hidden_of_question(changed, **nothing))


@pytest.mark.slow
def test_digests_are_brought_back_beside_detail() -> None:
    session = watched(RandomLlama(), feature_frames(400), host_bytes=MIB, retrieve_tokens=2048, gist_tokens=0)
    digests = {meta.id for meta in session.memory.store.metas() if meta.level == DIGEST}
    answer = asked(session, "what was there at 0:02?")
    assert digests
    assert "digest" in {one.level for one in answer.evidence}


def test_condensed_blocks_reach_an_answer_too() -> None:
    frames = feature_frames(200)
    settings = {"host_bytes": MIB, "gist_share": 0.3, "retrieve_tokens": 0, "gist_tokens": 1024}
    assert not torch.equal(hidden_of_question(frames, **settings), hidden_of_question(altered(frames, 4), **settings))


@pytest.mark.slow
def test_without_tokens_of_their_own_gists_compete_with_detail() -> None:
    settings = {"host_bytes": MIB, "gist_share": 0.3, "retrieve_tokens": 1024}
    levels = {}
    for gist_tokens in (0, 64):
        session = watched(RandomLlama(), feature_frames(400), gist_tokens=gist_tokens, **settings)
        answer = asked(session)
        store = session.memory.store
        spans = {(meta.start_seconds, meta.end_seconds): meta.level for meta in store.metas()}
        levels[gist_tokens] = [spans[span] for span in answer.recalled]
        assert set(levels[gist_tokens]) >= {DETAIL, GIST}
    assert levels[0].count(GIST) != levels[64].count(GIST)


def test_an_answer_without_the_window_sees_the_present_through_memory_alone() -> None:
    frames = feature_frames(120)
    seen = {}
    for answer_window in (True, False):
        session = watched(RandomLlama(), frames, answer_window=answer_window, retrieve_tokens=0, gist_tokens=0)
        seen[answer_window] = {one.level for one in asked(session).evidence}
        everything = watched(RandomLlama(), frames, answer_window=answer_window, retrieve_tokens=1024, gist_tokens=0)
        newest = max(end for _, end in asked(everything).recalled)
        assert (newest == 119.0) == (not answer_window)
    assert seen == {True: {"window"}, False: set()}


@pytest.mark.parametrize("consolidation", ["recent", "uniform", "carrier", "pmb", "star", "infinipot"])
@pytest.mark.slow
def test_every_consolidation_serves_a_stream(tmp_path: Path, consolidation: str) -> None:
    """Within its budget, the same whether it ran on or was resumed, and with counted losses."""
    settings = {"consolidation": consolidation, "disk_bytes": 2 * MIB, "host_bytes": MIB}
    frames = feature_frames(240)
    whole = Session(RandomLlama(), ListSource(frames), small_config(**settings), folder=tmp_path / "whole")
    pump_all(whole)
    first = Session(RandomLlama(), ListSource(frames), small_config(**settings), folder=tmp_path / "parts")
    assert first.ingest
    for _ in range(70):
        first.ingest.pump(2)
        first.step()
    first.close()
    resumed = Session(RandomLlama(), ListSource(frames), small_config(**settings), folder=tmp_path / "parts")
    pump_all(resumed)
    assert_same_memory(whole, resumed)
    assert whole.status().moved == resumed.status().moved
    assert (whole.status().moved["dropped"] > 0) == (consolidation != "star")
    assert sum(whole.status().moved.values()) > 20
    assert told(asked(whole)) == told(asked(resumed))


def test_a_named_moment_is_brought_back() -> None:
    """Room for few of many blocks: the one that holds the second asked for is among them, whatever it shows."""
    session = watched(RandomLlama(), feature_frames(200), retrieve_tokens=64, gist_tokens=0)

    def seen(question: str) -> list[Evidence]:
        return [one for one in asked(session, question).evidence if one.level == "detail"]

    for second in (3, 50, 101):
        question = f"what was shown at {second // 60}:{second % 60:02}?"
        assert any(one.start_seconds <= second <= one.end_seconds for one in seen(question)), question


# Questions at odd moments ------------------------------------------------------------------------------------------


def test_before_the_first_frame_there_is_a_plain_answer() -> None:
    session = Session(RandomLlama(), PushSource("p"), small_config())
    answer = asked(session)
    assert answer.text() == NOTHING_SEEN
    assert answer.finish_reason == "nothing-seen"
    assert answer.evidence == ()
    assert answer.snapshot_seconds is None
    session.close()


def test_open_frames_are_seen_but_not_kept() -> None:
    """A question between two clips sees frames that are not encoded yet."""
    frames = feature_frames(5)
    session = Session(RandomLlama(), ListSource(frames), small_config())
    assert session.ingest
    session.ingest.pump(3)
    answer = asked(session, at=2.0)
    assert not answer.done, "a frame at 2 s is not known to be the last up to there until a later one has come"
    session.ingest.pump(1)
    drain(session)
    assert answer.snapshot_seconds == 2.0
    assert [(e.start_seconds, e.level) for e in answer.evidence if e.level == "open"] == [(2.0, "open")]
    assert session.status().frames.encoded == 4


PAST = [(at, "none") for at in (0.0, 2.0, 19.0)] + [(2.0, "int4")]
PAST += [pytest.param(at, "none", marks=pytest.mark.slow) for at in (0.5, 1.0, 7.3, 39.0)]
PAST += [pytest.param(at, "int4", marks=pytest.mark.slow) for at in (0.5, 8.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("at", "codec"), PAST)
def test_a_question_about_the_past_sees_nothing_later(at: float, codec: CodecName) -> None:
    frames = feature_frames(40)
    late = watched(RandomLlama(), frames, detail_codec=codec)
    answer = asked(late, at=at)
    assert answer.snapshot_seconds == float(int(at))
    assert all(e.end_seconds <= at for e in answer.evidence)
    for index in {int(at) + 1, 39} - {40}:
        if index > at:
            other = watched(RandomLlama(), altered(frames, index), detail_codec=codec)
            assert told(asked(other, at=at)) == told(answer)
    other = watched(RandomLlama(), altered(frames, int(at)), detail_codec=codec)
    assert told(asked(other, at=at)) != told(answer)


def test_the_past_is_refused_where_merged_blocks_straddle_it() -> None:
    session = watched(RandomLlama(), feature_frames(200), host_bytes=MIB, gist_share=0.3)
    gist = max(
        (meta for meta in session.memory.store.metas() if meta.level == GIST),
        key=lambda meta: meta.end_seconds - meta.start_seconds,
    )
    answer = asked(session, at=gist.start_seconds + 0.5)
    with pytest.raises(ValueError, match="only as one condensed block"):
        answer.text()
    assert asked(session).text() is not None, "the session goes on"


def test_past_the_end_is_that_questions_error_alone() -> None:
    session = Session(RandomLlama(), ListSource(feature_frames(20)), small_config())
    good, bad = session.ask(QUESTION, at=12.0), session.ask(QUESTION, at=500.0)
    pump_all(session)
    assert good.text() is not None
    with pytest.raises(ValueError, match="asked at 08:20, but the video ends at 00:19"):
        bad.text()


@pytest.mark.parametrize(
    ("question", "match"),
    [("", "the question is empty"), (" \n", "the question is empty"), ("x" * 100_000, "at most 64 fit")],
)
def test_bad_questions_are_refused_at_once(question: str, match: str) -> None:
    session = watched(RandomLlama(), feature_frames(4))
    with pytest.raises(ValueError, match=match):
        session.ask(question)


@pytest.mark.parametrize("at", [-1.0, float("nan"), "yesterday"])
def test_bad_times_are_refused_at_once(at: Any) -> None:
    session = watched(RandomLlama(), feature_frames(4))
    with pytest.raises(ValueError, match="at must be a stream time"):
        session.ask(QUESTION, at=at)


def test_cancelled_answers_free_their_budget_at_the_next_token() -> None:
    session = watched(RandomLlama(), feature_frames(10), decode_steps=1)
    answer, waiting = session.ask(QUESTION), session.ask(QUESTION)
    session.step()
    assert session.status().running == 1
    answer.cancel()
    waiting.cancel()
    session.step()
    assert (answer.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
    assert session.status().running == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"window_tokens": 20}, "too small for one clip"),
        ({"host_bytes": 20_000}, "host_bytes"),
        ({"host_bytes": 300_000}, "too small: the window"),
        ({"window_tokens": 4000}, "was trained for 4096"),
    ],
)
def test_budgets_that_cannot_work_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Session(RandomLlama(), ListSource([]), small_config(**settings))


# What reviewers found -----------------------------------------------------------------------------------------------


def test_the_answers_budget_does_not_change_what_is_seen() -> None:
    """Questions that must queue hold the stream: all five see the same."""
    adapter, frames = RandomLlama(), feature_frames(30)
    one = watched(adapter, frames)._answerer.num_bytes(adapter.question(QUESTION), small_config().decode)
    session = Session(adapter, ListSource(frames), small_config(answer_bytes=one + one // 2))
    answers = [session.ask(QUESTION, at=10.0) for _ in range(5)]
    pump_all(session)
    assert len({told(answer) for answer in answers}) == 1
    assert session.status().frames.encoded == 30


@pytest.mark.parametrize("worker_is_quick", [True, False])
def test_a_short_last_clip_is_seen_the_same_whoever_was_first(worker_is_quick: bool) -> None:
    frames = feature_frames(9)
    source = ListSource([*frames, Frame(8.9, frames[0].image)])
    session = Session(RandomLlama(), source, small_config(max_queue_frames=16))
    assert session.ingest
    answer = session.ask(QUESTION, at=8.5)
    for _ in range(12):
        session.ingest.pump(1)
        if worker_is_quick:
            drain(session)
    drain(session)
    levels = sorted((e.start_seconds, e.level) for e in answer.evidence)
    assert (8.0, "open") in levels
    assert answer.snapshot_seconds == 8.0


def test_a_memory_goes_on_with_a_smaller_window(tmp_path: Path) -> None:
    frames = feature_frames(60)
    pump_all(first := persistent(tmp_path / "memory", frames[:40], window_tokens=400))
    first.close()
    pump_all(second := persistent(tmp_path / "memory", frames, window_tokens=50))
    assert second.status().frames.encoded == 60
    assert asked(second).text() is not None


def test_positions_stay_below_the_trained_length_when_limits_change(tmp_path: Path) -> None:
    adapter = RecordingLlama(max_positions=700)
    for stop, longest in ((30, 16), (31, 200)):
        session = persistent(tmp_path / "memory", feature_frames(stop), adapter, max_answer_tokens=longest)
        pump_all(session)
        asked(session, options=DecodeOptions(max_tokens=longest))
        session.close()
    assert max(int(positions.max()) for positions in adapter.positions) < adapter.max_positions


@pytest.mark.slow
def test_sparse_pictures_fill_the_window_without_overflow() -> None:
    """One frame a clip, each with its own picture: the worst case for the memory's budget."""
    noise = np.random.default_rng(0)
    frames = [Frame(20.0 * i, noise.integers(0, 255, (320, 320, 3), dtype=np.uint8)) for i in range(240)]
    settings = {"clip_frames": 8, "window_tokens": 448, "max_queue_frames": 16, "gist_share": 0.3}
    for host_kib in range(600, 4000, 100):
        try:
            session = Session(RandomLlama(), ListSource(frames), small_config(host_bytes=host_kib << 10, **settings))
        except ValueError:
            continue
        pump_all(session)
        assert session.status().frames.encoded == 240
        assert session.status().moved["demoted"] > 0
        return
    raise AssertionError("no budget was accepted")


def test_a_live_source_goes_on_after_what_its_memory_holds(tmp_path: Path) -> None:
    config = small_config(disk_bytes=64 * MIB, fps=None)
    for run in (1, 2):
        source = PushSource("p")
        with Engine(RandomLlama()) as engine:
            session = engine.open(source, config=config, memory=tmp_path / "memory")
            for frame in feature_frames(4):
                source.push(frame.image)
            if run == 2:
                with pytest.raises(ValueError, match="frame times must rise"):
                    source.push(frame.image, 0.5e-3)
            source.end()
            assert session.ask(QUESTION, at="end").text(30) is not None
        kept = Session(RandomLlama(), None, config, folder=tmp_path / "memory")
        assert kept.memory.counters.encoded == 4 * run
        kept.close()


def test_a_failing_question_is_told() -> None:
    """Frames that the model cannot take end the session; the question that met them is not left waiting."""
    frames = [*feature_frames(6), Frame(6.0, np.zeros((4, 63), np.float32))]
    with Engine(RandomLlama()) as engine:
        session = engine.open(ListSource(frames), config=small_config(), start=False)
        answer = session.ask(QUESTION, at=6.0)
        engine.serve(session)
        with pytest.raises(ValueError, match="features must be"):
            answer.text(30)


def test_a_source_that_fails_is_not_one_that_ends() -> None:
    class Broken(ListSource):
        def _pictures(self) -> Any:
            yield from super()._pictures()
            raise OSError("the camera is gone")

    with Engine(RandomLlama()) as engine:
        session = engine.open(Broken(feature_frames(5)), config=small_config())
        with pytest.raises(OSError, match="the camera is gone"):
            session.ask(QUESTION, at="end").text(30)


def test_a_cancelled_question_ends_though_nothing_happens() -> None:
    with Engine(RandomLlama()) as engine:
        session = engine.open(PushSource("p"), config=small_config())
        answer = session.ask(QUESTION, at=100.0)
        answer.cancel()
        assert answer.wait(10)
        assert answer.finish_reason == "cancelled"


def test_an_engine_closes_what_it_opened(tmp_path: Path) -> None:
    config = small_config(disk_bytes=64 * MIB)
    for _ in range(2):  # the folder's lock is free again
        with Engine(RandomLlama()) as engine:
            session = engine.open(PushSource("p"), config=config, memory=tmp_path / "memory", start=False)
        assert session.closed
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine.serve(session)


# The engine --------------------------------------------------------------------------------------------------------


def no_threads_left(before: set[threading.Thread]) -> bool:
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


def test_engine_answers_while_a_program_pushes() -> None:
    before = set(threading.enumerate())
    engine = Engine(RandomLlama())
    source = PushSource("p")
    session = engine.open(source, config=small_config())
    assert session.ask(QUESTION).text(30) == NOTHING_SEEN
    for frame in feature_frames(9):
        source.push(frame.image, frame.pts_seconds)
    answer = session.ask(QUESTION, at=7.0)
    assert answer.text(30) == "".join(answer)
    assert answer.snapshot_seconds == 7.0
    assert answer.ttft_seconds is not None
    assert answer.ttft_seconds > 0
    source.end()
    assert session.ask(QUESTION, at="end").text(30) is not None
    assert session.status().frames.encoded == 9
    engine.close()
    assert no_threads_left(before)
    with pytest.raises(RuntimeError, match="the session has ended"):
        session.ask(QUESTION)


def test_live_frames_that_wait_are_kept_when_it_closes(tmp_path: Path) -> None:
    source = PushSource("p")
    config = small_config(disk_bytes=64 * MIB)
    with Engine(RandomLlama()) as engine:
        session = engine.open(source, config=config, memory=tmp_path / "memory")
        for frame in feature_frames(5):
            source.push(frame.image, frame.pts_seconds)
        deadline = time.monotonic() + 20
        while session.status().frames.received < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        session.close()
    reopened = Session(RandomLlama(), None, config, folder=tmp_path / "memory")
    assert reopened.memory.counters.encoded == 5
    reopened.close()


def test_two_sessions_share_one_engine() -> None:
    with Engine(RandomLlama()) as engine:
        frames = [feature_frames(30, seed=seed) for seed in (1, 2)]
        sessions = [engine.open(ListSource(one), config=small_config()) for one in frames]
        texts = [told(session.ask(QUESTION)) for session in sessions]
    assert texts == [told(asked(watched(RandomLlama(), one))) for one in frames]


def test_an_error_ends_its_session_and_no_other() -> None:
    with Engine(RandomLlama()) as engine:
        broken = ListSource([*feature_frames(7), Frame(7.0, np.zeros((4, 3), np.float32))])
        good = engine.open(ListSource(feature_frames(30)), config=small_config())
        bad = engine.open(broken, config=small_config())
        with pytest.raises(ValueError, match="features must be"):
            bad.ask(QUESTION).text(30)
        assert bad.closed
        assert isinstance(bad.failure, ValueError)
        assert good.ask(QUESTION).text(30) is not None


def test_open_needs_something_to_open() -> None:
    with Engine(RandomLlama()) as engine, pytest.raises(ValueError, match="nothing to open"):
        engine.open(None)
