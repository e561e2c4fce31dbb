"""Invariants 1 to 5: streaming, retrieval and positions are exact, and what is exact can be seen to fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from streams import (
    QUESTION,
    TOLERANCE,
    ListSource,
    RecordingLlama,
    altered,
    answer_logits,
    assert_window_is_placed,
    difference,
    feature_frames,
    forget_all_but,
    full_forward,
    pump_all,
    run,
    small_config,
    watch_with_a_shifted_clip,
    watched,
)
from torch import Tensor

from vstream.answer_cache import AnswerCache
from vstream.answering import make_prompt
from vstream.cache import place, unplace
from vstream.models.random import RandomLlama
from vstream.session import Session

ROPES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 10000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "rope_theta": 10000.0,
    },
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
ropes = pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
COVERING = 2048


def stream_embeds(adapter: RandomLlama, frames: Any) -> Tensor:
    """Embeddings of sink and frames, as one sequence."""
    return torch.cat([adapter.sink().embeds, adapter.layout(frames, adapter.encode(frames)).embeds])


def with_question(adapter: RandomLlama, embeds: Tensor) -> Tensor:
    return torch.cat([embeds, adapter.question(QUESTION).span.embeds])


@dtypes
@ropes
def test_streaming_equals_offline(dtype: torch.dtype, rope: dict[str, Any] | None) -> None:
    adapter = RecordingLlama(dtype=dtype, rope=rope)
    frames = feature_frames(11)
    session = watched(adapter, frames, window_tokens=COVERING)
    streamed = torch.cat(adapter.hidden)
    offline = full_forward(adapter, stream_embeds(adapter, frames))
    assert streamed.shape == offline.shape
    assert difference(adapter.head(streamed), adapter.head(offline)) < TOLERANCE[dtype]

    asked = full_forward(adapter, with_question(adapter, stream_embeds(adapter, frames)))
    logits = answer_logits(session)
    assert difference(logits, adapter.head(asked[-len(logits) :])) < TOLERANCE[dtype]


def test_streaming_differs_where_it_must() -> None:
    """Negative control of the test above: a window that is too small, and positions that are off by one."""
    adapter = RecordingLlama()
    frames = feature_frames(11)
    watched(adapter, frames)
    streamed = adapter.head(torch.cat(adapter.hidden))
    offline = adapter.head(full_forward(adapter, stream_embeds(adapter, frames)))
    assert difference(streamed, offline) > 1e-2

    adapter.hidden.clear()
    watch_with_a_shifted_clip(adapter, frames, window_tokens=COVERING)
    assert difference(adapter.head(torch.cat(adapter.hidden)), offline) > 1e-2


@dtypes
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("policy", ["rekv", "centred", "maxsim"])
def test_retrieving_everything_equals_full_context(
    dtype: torch.dtype, selection: str, positions: str, policy: str
) -> None:
    adapter = RecordingLlama(dtype=dtype)
    frames = feature_frames(15)
    session = watched(
        adapter,
        frames,
        window_tokens=COVERING,
        retrieve_tokens=1024,
        selection=selection,
        positions=positions,
        policy=policy,
    )
    forget_all_but(session, 30)
    assert len(session.memory.cache.window) < len(session.memory.view(1e9).candidates)
    offline = full_forward(adapter, with_question(adapter, stream_embeds(adapter, frames)))
    logits = answer_logits(session)
    assert difference(logits, adapter.head(offline[-len(logits) :])) < TOLERANCE[dtype]


def test_retrieving_less_differs() -> None:
    adapter = RecordingLlama()
    frames = feature_frames(15)
    offline = full_forward(adapter, with_question(adapter, stream_embeds(adapter, frames)))
    for tokens in (0, 64):
        session = watched(adapter, frames, window_tokens=COVERING, retrieve_tokens=tokens)
        forget_all_but(session, 30)
        logits = answer_logits(session)
        assert difference(logits, adapter.head(offline[-len(logits) :])) > 1e-2


@dtypes
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_retrieval_behind_a_window_equals_a_masked_forward(dtype: torch.dtype, selection: str) -> None:
    """Blocks encoded behind a window: the reference is one forward with the same sink+window mask."""
    adapter = RecordingLlama(dtype=dtype)
    frames = feature_frames(16)
    session = watched(adapter, frames, retrieve_tokens=1024, selection=selection)
    embeds = with_question(adapter, stream_embeds(adapter, frames))
    mask = window_mask(session, len(embeds))
    reference = full_forward(adapter, embeds, mask)
    logits = answer_logits(session)
    assert difference(logits, adapter.head(reference[-len(logits) :])) < TOLERANCE[dtype]
    causal = full_forward(adapter, embeds)
    assert difference(logits, adapter.head(causal[-len(logits) :])) > 1e-2, "the window must matter here"


def window_mask(session: Session, total: int) -> Tensor:
    """[total, total]: clip tokens see the sink, the window as it was, and their own past; the question sees all."""
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    metas = session.memory.store.metas()
    sink, clips = metas[0], metas[1:]
    ends = torch.tensor([meta.num_tokens for meta in clips]).cumsum(0) + sink.num_tokens
    begins = [sink.num_tokens, *ends.tolist()]
    first = 0  # oldest clip in the window
    for index, end in enumerate(ends.tolist()):
        mask[begins[index] : end, sink.num_tokens : begins[first]] = False
        while end - begins[first] > session.config.window_tokens:
            first += 1
    return mask


@dtypes
@ropes
def test_moved_keys_equal_computed_keys(dtype: torch.dtype, rope: dict[str, Any] | None) -> None:
    adapter = RandomLlama(dtype=dtype, rope=rope)
    embeds = stream_embeds(adapter, feature_frames(5))
    here, there = (torch.arange(len(embeds))[None] + start for start in (3, 3500))
    moved = place(adapter, unplace(adapter, keys_at(adapter, embeds, here), here), there)
    computed = keys_at(adapter, embeds, there)
    scale = float(computed[0, 0].abs().max())
    assert difference(moved[0], computed[0]) / scale < 1e-6
    assert difference(keys_at(adapter, embeds, here)[0], computed[0]) / scale > 1e-2, "unmoved keys must differ"


@torch.inference_mode()
def keys_at(adapter: RandomLlama, embeds: Tensor, positions: Tensor) -> Tensor:
    """kv [L, 2, K, N, D] that the model itself computes at positions [1, N]."""
    out = adapter.decoder(inputs_embeds=embeds[None], position_ids=positions, use_cache=True)
    layers = out.past_key_values.layers
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in layers])


def test_repeated_moves_from_the_pristine_copy_do_not_drift() -> None:
    adapter = RandomLlama()
    embeds = stream_embeds(adapter, feature_frames(5))
    positions = torch.arange(len(embeds))[None]
    pristine = unplace(adapter, keys_at(adapter, embeds, positions), positions)
    for start in range(0, 4000, 7):
        place(adapter, pristine, positions + start)
    assert torch.equal(place(adapter, pristine, positions), place(adapter, pristine.clone(), positions))


def test_positions_never_reach_the_trained_length() -> None:
    adapter = RecordingLlama(max_positions=640)
    session = watched(adapter, feature_frames(300))
    assert session.memory.cache.num_rebases >= 3
    answer = session.ask(QUESTION)
    while session.step():
        pass
    assert answer.done
    assert max(int(positions.max()) for positions in adapter.positions) < adapter.max_positions
    assert_window_is_placed(session)


def test_original_positions_are_refused_where_they_no_longer_hold() -> None:
    frames = feature_frames(60)
    for adapter, at in ((RandomLlama(max_positions=640), "end"), (RandomLlama(), 20.0)):
        session = watched(adapter, frames, positions="original")
        answer = session.ask(QUESTION, at=at)  # type: ignore[arg-type]
        while session.step():
            pass
        with pytest.raises(ValueError, match="serve only the present"):
            answer.text()


def prompt_logits(frames: Any, at: float) -> tuple[Tensor, tuple[Any, ...]]:
    """Logits [V] before the first answer token to a question asked at `at`, and what the answer cites."""
    adapter = RecordingLlama()
    session = Session(adapter, ListSource(frames), small_config())
    answer = session.ask(QUESTION, at=at)
    seen: list[Tensor] = []
    begin = session._answerer.start

    def recording(*args: Any) -> Any:
        running = yield from begin(*args)
        seen.append(adapter.hidden[-1].clone())
        return running

    session._answerer.start = recording  # type: ignore[method-assign]
    pump_all(session)
    return seen[0], (answer.text(), answer.evidence[0].block_id, answer.snapshot_seconds)


def test_later_frames_leave_an_answer_bit_identical() -> None:
    frames = feature_frames(40)
    hidden, told = prompt_logits(frames, at=20.5)
    for index in (21, 22, 30, 39):
        other, other_told = prompt_logits(altered(frames, index), at=20.5)
        assert torch.equal(hidden, other), f"frame {index} is later than the question"
        assert told == other_told
    for index in (20, 19, 3):
        assert not torch.equal(hidden, prompt_logits(altered(frames, index), at=20.5)[0]), f"frame {index} was seen"
    assert told[2] == 20.0


def test_an_answer_does_not_change_the_stream() -> None:
    """Blocks are bit-identical whether or not questions are asked while they are made."""
    frames = feature_frames(40)
    quiet, asked = (Session(RandomLlama(), ListSource(frames), small_config()) for _ in range(2))
    answers = [asked.ask(f"{QUESTION} {at}", at=at) for at in (0.0, 3.0, 10.5, 11.0, 25.0, 39.0)]
    pump_all(quiet)
    pump_all(asked)
    assert all(answer.finish_reason in ("stop", "length") for answer in answers)
    ids = [meta.id for meta in quiet.memory.store.metas()]
    assert ids == [meta.id for meta in asked.memory.store.metas()]
    assert torch.equal(quiet.memory.store.gather(ids), asked.memory.store.gather(ids))


def test_an_answer_goes_on_unchanged_while_the_stream_does() -> None:
    alone = watched(RandomLlama(), feature_frames(12))
    expected = alone.ask(QUESTION)
    while alone.step():
        pass
    session = Session(RandomLlama(), ListSource(feature_frames(60)), small_config())
    answer = session.ask(QUESTION, at=11.0)
    pump_all(session)
    assert session.memory.last_seconds == 59.0
    assert answer.text() == expected.text()
    assert answer.evidence == expected.evidence


@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_sink_and_window_are_always_in_an_answer(selection: str) -> None:
    adapter = RandomLlama()
    session = watched(adapter, feature_frames(60), selection=selection)
    view = session.memory.view(1e9)
    question = adapter.question(QUESTION)
    with torch.inference_mode():
        prompt = make_prompt(view.snapshot.cursor, None, question)
        cache = AnswerCache(adapter, view.snapshot, memory_tokens=96, tail_tokens=len(prompt.words))
        recall, _, _ = run(session._answerer._prefill(cache, prompt, view))
    assert recall.chosen
    sink_tokens = view.snapshot.sink.meta.num_tokens
    for layer, (keys, values) in zip(cache.layers, view.snapshot.keys_values, strict=True):
        stop = layer.get_seq_length() - len(prompt.words)
        for held, expected in zip(layer.view(), (keys, values), strict=True):
            window_tokens = expected.shape[2] - sink_tokens
            assert torch.equal(held[:, :, :sink_tokens], expected[:, :, :sink_tokens])
            assert torch.equal(held[:, :, stop - window_tokens : stop], expected[:, :, sink_tokens:])
