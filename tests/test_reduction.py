"""Fewer tokens before prefill: patches, frames that repeat, cuts; what stays, where it stays, and what is counted."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    MIB,
    QUESTION,
    ListSource,
    RecordingLlama,
    altered,
    answer_logits,
    difference,
    feature_frames,
    pump_all,
    small_config,
    watched,
)
from torch import Tensor

from vstream.answer_cache import AnswerCache
from vstream.app.lab.exam import Examiner
from vstream.app.lab.render import WorldSource
from vstream.app.lab.world import World
from vstream.changes import is_cut, largest_change, mean_change
from vstream.ingest import Ingest
from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.base import Adapter
from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.random import RandomLlama
from vstream.reduction import Reduction, VisionTokens, new_patches
from vstream.session import Session
from vstream.types import Frame

P = 4  # vision tokens of a frame


def still(count: int, *, seed: int = 0) -> list[Frame]:
    """Features that never change."""
    (first,) = feature_frames(1, seed=seed)
    return [Frame(float(i), first.image) for i in range(count)]


def half_moving(count: int) -> list[Frame]:
    """Features of which the last two patches change in every frame."""
    (first,) = feature_frames(1)
    return [
        Frame(frame.pts_seconds, np.concatenate([first.image[:2], frame.image[2:]])) for frame in feature_frames(count)
    ]


def picture(seconds: float, level: float | tuple[float, float, float], *, spot: float | None = None) -> Frame:
    """A plain picture of a colour, with a spot of another brightness in it."""
    image = np.broadcast_to(np.asarray(level, np.uint8), (64, 64, 3)).copy()
    if spot is not None:
        image[20:24, 40:44] = spot
    return Frame(seconds, image)


def pictures(levels: list[float]) -> list[Frame]:
    return [picture(float(i), level) for i, level in enumerate(levels)]


SCENES = [10.0, 10, 13, 200, 200, 203, 203, 203, 203, 60, 60, 60, 60, 60, 60, 72, 84, 96, 108, 120, 10, 10]
"""Cuts before the frames 3, 9 and 20; from 15 to 19 the camera moves."""


def scenes(times: int = 1) -> list[Frame]:
    """`SCENES` again and again, with a spot that changes in the first half of each."""
    levels = SCENES * times
    return [picture(float(i), level, spot=200 + i if i % 22 < 11 else None) for i, level in enumerate(levels)]


# Patches ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), frames=st.integers(1, 6), most=st.floats(-1, 0.99))
@settings(max_examples=60, deadline=None)
def test_new_patches_are_those_of_a_plain_loop(seed: int, frames: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((frames, 3, 2)).astype(np.float32)
    known = list(features[0])
    expected = [[True] * 3]
    for frame in features[1:]:
        expected.append([])
        for patch, vector in enumerate(frame):
            cosine = vector @ known[patch] / np.linalg.norm(vector) / np.linalg.norm(known[patch])
            if abs(cosine - most) < 1e-5:
                return  # a tie may go either way
            expected[-1].append(bool(cosine <= most))
            if cosine <= most:
                known[patch] = vector
    assert new_patches(torch.from_numpy(features), most).tolist() == expected


def test_a_slow_drift_shows() -> None:
    """Each frame is nearly the one before, but not the one that was kept."""
    angles = torch.arange(20) * 0.1
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None]  # [20, 1, 2]
    consecutive = torch.cosine_similarity(features[1:], features[:-1], dim=-1)
    assert consecutive.min() > 0.95, "compared with the frame before, nothing would be new"
    news = new_patches(features, 0.95)[:, 0]
    assert news.nonzero()[:, 0].tolist() == [0, 4, 8, 12, 16], "0.4 rad is where the cosine falls below 0.95"


@torch.inference_mode()
def test_what_stays_is_where_it_was() -> None:
    adapter, frames = RandomLlama(), half_moving(4)
    features = adapter.encode(frames)
    whole = adapter.layout(frames, features)
    span = Reduction(adapter, skip_duplicates=None, drop_similarity=0.9).thin(features, whole)
    left_out = [
        index
        for frame in range(1, 4)
        for index in torch.nonzero((whole.kinds == TokenKind.VISION) & (whole.seconds == frame))[:2, 0].tolist()
    ]
    stays = [index for index in range(len(whole)) if index not in left_out]
    assert torch.equal(span.embeds, whole.embeds[stays])
    assert torch.equal(span.positions, whole.positions[:, stays])
    assert torch.equal(span.seconds, whole.seconds[stays])
    assert torch.equal(span.advance, whole.advance)
    text = [whole.kinds != TokenKind.VISION, span.kinds != TokenKind.VISION]
    assert text[0].sum() == text[1].sum(), "timestamps and markers stay"


@pytest.mark.parametrize(
    ("frames", "left_out"),
    [(still(8), 4 * P), (half_moving(8), 4 * 2), (feature_frames(8), 0)],
    ids=["still", "half", "moving"],
)
def test_the_first_frame_of_every_clip_is_whole(frames: list[Frame], left_out: int) -> None:
    session = watched(RandomLlama(), frames, drop_similarity=0.9)
    assert session.status().vision == VisionTokens(8 * P, left_out)
    for meta in session.memory.store.metas()[1:]:
        vision = meta.kinds == TokenKind.VISION
        assert (vision & (meta.seconds == meta.start_seconds)).sum() == P
        assert meta.weight == 2


@torch.inference_mode()
def masked_forward(adapter: RandomLlama, embeds: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [N, E] of the model's own causal forward, at given positions [1, N]."""
    causal = torch.ones(len(embeds), len(embeds), dtype=torch.bool).tril()[None, None]  # gaps are no packed sequences
    out = adapter.decoder(inputs_embeds=embeds[None], position_ids=positions, attention_mask=causal, use_cache=False)
    return out.last_hidden_state[0]


@torch.inference_mode()
def thinned(adapter: Adapter, frames: list[Frame], most: float) -> tuple[Tensor, Tensor]:
    """Sink and clips of two frames as one row of embeddings [N, E], and their positions [1, N] of the full layout."""
    reduction = Reduction(adapter, skip_duplicates=None, drop_similarity=most)
    spans, cursor, embeds, positions = [adapter.sink()], 0, [], []
    for start in range(0, len(frames), 2):
        clip = frames[start : start + 2]
        features = adapter.encode(clip)
        spans.append(reduction.thin(features, adapter.layout(clip, features)))
    for span in [*spans, adapter.question(QUESTION).span]:
        embeds.append(span.embeds)
        positions.append(span.positions + cursor)
        cursor += int(span.advance[0])
    return torch.cat(embeds), torch.cat(positions, dim=1)


@pytest.mark.parametrize("most", [0.9, -1.0])
def test_streaming_is_the_models_own_forward_over_what_stays(most: float) -> None:
    adapter, frames = RecordingLlama(dtype=torch.float64), half_moving(10)
    logits = answer_logits(watched(adapter, frames, window_tokens=512, drop_similarity=most))
    hidden = masked_forward(adapter, *thinned(adapter, frames, most))
    assert difference(logits, adapter.head(hidden)[-len(logits) :]) < 1e-10
    whole = answer_logits(watched(adapter, frames, window_tokens=512))
    assert difference(logits, whole) > 1e-3, "the test would see a token more"


def test_nothing_is_left_out_unless_asked_for() -> None:
    frames = still(8)
    assert watched(RandomLlama(), frames).status().vision == VisionTokens(8 * P, 0)


def test_a_model_that_leaves_out_by_itself_is_refused() -> None:
    class Terse(RandomLlama):
        keeps_patches = False

    assert not EmbeddedAdapter.keeps_patches
    with pytest.raises(ValueError, match="drop_similarity is not for 'random', which itself leaves out"):
        Session(Terse(), ListSource([]), small_config(drop_similarity=0.9))
    pump_all(Session(Terse(), ListSource(still(4)), small_config(skip_duplicates=0.0)))


# Positions --------------------------------------------------------------------------------------------------------


def test_positions_never_reach_the_trained_length() -> None:
    """Tokens of a still stream are few, but lie as far apart as ever."""
    adapter = RecordingLlama(max_positions=900)
    room = {"window_tokens": 160, "retrieve_tokens": 160, "clip_frames": 4, "max_question_tokens": 32}
    session = watched(adapter, still(120), drop_similarity=-1.0, **room)
    assert session.memory.cache.num_rebases > 0
    assert max(int(positions.max()) for positions in adapter.positions) < 900
    assert sum(placed.meta.num_tokens for placed in session.memory.cache.window) <= 160
    spread = session.memory.cache.window[-1].stop - session.memory.cache.window[0].start
    assert int(spread) > 160, "positions count for themselves"


def test_blocks_brought_back_close_up_where_they_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[Tensor, AnswerCache]] = []
    place = AnswerCache.memory_positions

    def noting(self: AnswerCache, metas: Any, *, original: bool) -> Tensor:
        placed.append((place(self, metas, original=original), self))
        return placed[-1][0]

    monkeypatch.setattr(AnswerCache, "memory_positions", noting)
    room = {"window_tokens": 160, "retrieve_tokens": 160, "gist_tokens": 0, "clip_frames": 4, "max_question_tokens": 32}
    session = watched(RandomLlama(max_positions=900), still(120), **room, drop_similarity=0.9)
    asked = [session.ask(QUESTION, at=float(at)) for at in range(8, 120, 8)]
    pump_all(session)
    assert all(answer.done and answer.error is None for answer in asked)
    tight = 0
    for positions, cache in placed:
        assert int(positions.min()) >= int(cache.snapshot.sink.stop)
        assert int(positions.max()) == int(cache.snapshot.window_start) - 1
        assert bool((positions[0].diff() > 0).all())
        tight += positions.shape[1] == int(positions.max() - positions.min()) + 1
    assert 0 < tight < len(placed), "both happen"


# Frames that repeat -----------------------------------------------------------------------------------------------


def test_a_small_thing_is_a_change() -> None:
    empty, there = picture(0.0, 100), picture(1.0, 100, spot=130)
    assert largest_change(empty, there) > 20
    assert mean_change(empty, there) < 1
    assert largest_change(empty, picture(2.0, 100)) == 0
    assert largest_change(picture(0.0, (200, 0, 0)), picture(1.0, (0, 102, 0))) > 90, "as bright, in another colour"
    one, other = feature_frames(2)
    assert (largest_change(one, one), largest_change(one, other)) == (0.0, 255.0)


def test_frames_are_compared_with_the_last_one_taken() -> None:
    reduction = Reduction(RandomLlama(), skip_duplicates=4.0, drop_similarity=None)
    times = [frame.pts_seconds for frame in reduction.distinct(pictures([50, 52, 54, 56, 58, 60, 58, 56]))]
    assert times == [0.0, 3.0], "2 levels a frame are more than 4 in three; then it stays within 4 of 56"


def test_a_still_camera_is_encoded_once_a_clip() -> None:
    frames = [picture(float(i), 90) for i in range(42)]
    session = watched(RandomLlama(), frames, clip_frames=4, window_tokens=160, skip_duplicates=3.0)
    counts = session.status().frames
    assert (counts.received, counts.encoded, counts.skipped) == (42, 11, 31)
    blocks = session.memory.store.metas()[1:]
    assert [(one.start_seconds, one.end_seconds) for one in blocks[:2]] == [(0.0, 3.0), (4.0, 7.0)], "no second is lost"
    assert sum(one.weight for one in blocks) == 42
    named = session.ask("what was there at 0:38?")
    pump_all(session)
    assert named.evidence
    assert watched(RandomLlama(), frames, clip_frames=4, window_tokens=160).status().frames.skipped == 0


def test_what_moves_is_encoded() -> None:
    frames = [picture(float(i), 90, spot=(i * 40) % 256) for i in range(12)]
    assert watched(RandomLlama(), frames, skip_duplicates=3.0).status().frames.encoded == 12


def test_an_answer_says_up_to_when_it_saw() -> None:
    """A frame that was skipped was seen to be the same."""
    session = Session(
        RandomLlama(),
        ListSource(pictures([90.0] * 8)),
        small_config(clip_frames=4, window_tokens=160, skip_duplicates=3.0),
    )
    answer = session.ask(QUESTION, at=6.0)
    pump_all(session)
    assert answer.snapshot_seconds == 6.0
    assert [(one.start_seconds, one.end_seconds) for one in answer.evidence if one.level == "open"] == [(4.0, 6.0)]


# Cuts -------------------------------------------------------------------------------------------------------------


def clip_times(frames: list[Frame], *, at_once: int, after: float | None = None, **options: Any) -> list[list[float]]:
    """The clips of a stream, taken as soon as they are ready."""
    keywords = {"fps": None, "clip_frames": 4, "max_queue_frames": 64, "resume_after_seconds": after, **options}
    ingest, clips = Ingest(ListSource(frames), **keywords), []
    while not ingest.drained:
        ingest.pump(at_once)
        while clip := ingest.take_clip():
            clips.append([frame.pts_seconds for frame in clip.frames])
            ingest.commit(clip)
    return clips


def test_a_clip_holds_one_scene() -> None:
    clips = clip_times(pictures(SCENES), at_once=1, scene_cut=25.0)
    lengths = [len(clip) for clip in clips]
    assert [clip[0] for clip in clips] == [0, 3, 7, 9, 13, 17, 20]
    assert lengths == [3, 4, 2, 4, 4, 3, 2]
    blind = clip_times(pictures(SCENES), at_once=1)
    assert blind[0] == [0.0, 1.0, 2.0, 3.0], "without it, a clip spans the cut"


def test_a_cut_between_colours_of_one_brightness() -> None:
    red, green = picture(0.0, (200, 0, 0)), picture(1.0, (0, 102, 0))
    luma = [float(frame.image[0, 0] @ np.array([0.299, 0.587, 0.114])) for frame in (red, green)]
    assert abs(luma[0] - luma[1]) < 1
    assert is_cut([red], green, 25.0)
    assert not any(is_cut([one], other, 25.0) for one in feature_frames(2) for other in feature_frames(2))


def test_a_camera_that_moves_is_no_cut() -> None:
    moving = pictures([10, 40, 70, 100])
    assert mean_change(moving[2], moving[3]) > 25
    assert not is_cut(moving[:3], moving[3], 25.0)
    assert is_cut(moving[:3], picture(3.0, 250), 25.0)


@given(levels=st.lists(st.integers(0, 255), min_size=1, max_size=30), cut=st.floats(1, 100), at_once=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_clips_depend_on_the_frames_alone(levels: list[int], cut: float, at_once: int) -> None:
    frames = pictures([float(level) for level in levels])
    clips = clip_times(frames, at_once=1, scene_cut=cut)
    assert clip_times(frames, at_once=at_once, scene_cut=cut) == clips
    assert [seconds for clip in clips for seconds in clip] == [frame.pts_seconds for frame in frames]
    for index, clip in enumerate(clips):
        assert clip_times(frames, at_once=at_once, scene_cut=cut, after=clip[-1]) == clips[index + 1 :]
        for length in range(1, len(clip)):
            first = int(clip[0])
            assert not is_cut(frames[first : first + length], frames[first + length], cut)


# All of it, in a session ------------------------------------------------------------------------------------------


ALL = {"skip_duplicates": 3.0, "drop_similarity": 0.99, "scene_cut": 25.0, "clip_frames": 4, "window_tokens": 96}


@torch.inference_mode()
def told(session: Session) -> list[Any]:
    """All that is remembered, bit for bit, and all counts."""
    store, status = session.memory.store, session.status()
    blocks = [(repr(meta), store.gather([meta.id]).tolist()) for meta in store.metas()]
    return [blocks, status.frames, status.vision, answer_logits(session).tolist()]


@pytest.mark.parametrize("clips", [1, 2, 3, 5, 8])
@pytest.mark.slow
def test_resumed_equals_run_on(tmp_path: Path, clips: int) -> None:
    frames = scenes(2)

    def opened(name: str) -> Session:
        config = small_config(disk_bytes=64 * MIB, **ALL)
        return Session(RecordingLlama(tokens_per_frame=P), ListSource(frames), config, folder=tmp_path / name)

    pump_all(whole := opened("whole"))
    parts = opened("parts")
    assert parts.ingest
    for _ in range(clips):
        while parts.ingest.peek_clip() is None:
            parts.ingest.pump(1)
        parts.step()
    parts.close()
    pump_all(resumed := opened("parts"))
    assert told(resumed) == told(whole)
    counts, vision = whole.status().frames, whole.status().vision
    assert counts.skipped > 0
    assert vision.left_out > 0
    assert vision.made == P * counts.encoded


@pytest.mark.parametrize("at", [0.0, 2.0, 3.0, 5.0, 9.0, 14.0, 17.5, 21.0])
def test_a_question_between_clips_sees_the_same_however_frames_come(at: float) -> None:
    frames, answers = scenes(), []
    for at_once in (1, 3, 8):
        session = Session(RandomLlama(), ListSource(frames), small_config(**ALL))
        assert session.ingest
        answer = session.ask(QUESTION, at=at)
        while session.ingest.pump(at_once) or not session.ingest.drained:
            while session.step():
                pass
        while session.step():
            pass
        answers.append((answer.text(), answer.snapshot_seconds, answer.evidence))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][1] == float(int(at))


def test_open_frames_are_reduced_as_their_clip_is() -> None:
    """The clip's tokens are the same whether a question looks at them before, and it sees no others."""
    adapter, frames = RecordingLlama(dtype=torch.float64), half_moving(8)
    config = small_config(clip_frames=4, window_tokens=512, drop_similarity=0.9)
    session = Session(adapter, ListSource(frames), config)
    assert session.ingest
    answer = session.ask(QUESTION, at=6.0)
    session.ingest.pump(8)
    adapter.positions.clear()
    while not answer.done:
        session.step()
    clip, prompt = adapter.positions[0], adapter.positions[1]
    reduction = Reduction(adapter, skip_duplicates=None, drop_similarity=0.9)
    with torch.inference_mode():
        features = adapter.encode(frames[4:7])
        whole = adapter.layout(frames[4:7], features)
        expected = reduction.thin(features, whole)
        question = adapter.question(QUESTION).span
    open_positions, words = prompt[:, : len(expected)], prompt[:, len(expected) :]
    first = int(open_positions[0, 0])
    assert len(expected) < len(whole)
    assert prompt.shape[1] == len(expected) + len(question)
    assert torch.equal(open_positions - first, expected.positions)
    assert torch.equal(words - first, question.positions + len(whole))
    assert int(clip.max()) < first


def test_older_memories_have_no_count_of_tokens(tmp_path: Path) -> None:
    config = small_config(disk_bytes=64 * MIB)
    with closing(Session(RandomLlama(), ListSource(still(6)), config, folder=tmp_path / "memory")) as session:
        pump_all(session)
        state = json.loads(session.memory.store.state or "")
        assert state.pop("vision_tokens") == {"made": 6 * P, "left_out": 0}
        session.memory.store.commit([], [], json.dumps(state).encode())
    with closing(Session(RandomLlama(), None, config, folder=tmp_path / "memory")) as reopened:
        assert reopened.status().vision == VisionTokens()
        assert reopened.status().frames.encoded == 6


def test_a_frame_that_is_new_changes_what_is_remembered() -> None:
    frames = still(8)
    sessions = [watched(RandomLlama(), some, drop_similarity=0.9) for some in (frames, altered(frames, 3))]
    assert [session.status().vision.left_out for session in sessions] == [16, 12]


# What it costs ----------------------------------------------------------------------------------------------------


def right(adapter: Adapter, **settings: Any) -> tuple[float, float]:
    """Share of `tiny`'s answers about short streams that are right, and share of tokens left out."""
    answers, vision = [], VisionTokens()
    for seed in range(3):
        world = World(7000 + seed, 20)
        asked = Examiner(world, seed=1).ask(19, 12)
        config = small_config(**{**adapter.settings, "host_bytes": 64 * MIB, "gist_tokens": 0, **settings})
        with closing(Session(adapter, WorldSource(world, side=96), config)) as session:
            running = [(session.ask(one.text, at="end"), one.answer) for one in asked]
            pump_all(session)
            answers += [answer.text().strip() == truth for answer, truth in running]
            vision += session.status().vision
    return sum(answers) / len(answers), vision.share_left_out


@pytest.mark.slow
def test_leaving_out_what_matters_is_found_out() -> None:
    adapter = load_adapter("tiny", device="cpu")
    whole, reduced, nothing = (right(adapter, drop_similarity=most) for most in (None, 0.95, -1.0))
    assert whole[0] > 0.9
    assert whole[1] == 0
    assert reduced[1] > 0.4
    assert reduced[0] > nothing[0] + 0.05
    assert nothing[1] > 0.7
