"""Streams of features for tests: a source that needs no decoder, and sessions over it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vstream.answer import Answer
from vstream.batch import DecodeBatch, RunningAnswer
from vstream.cache import Placed, place
from vstream.config import Config, DecodeOptions
from vstream.models.base import Adapter
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.sources.base import Source
from vstream.types import Frame

MIB = 1 << 20
QUESTION = "what happened?"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # largest logit difference
Result = TypeVar("Result")


class ListSource(Source):
    """Frames that are there already."""

    def __init__(self, frames: Sequence[Frame], name: str = "list") -> None:
        super().__init__(name, max_side=64)
        self._listed = frames

    def _pictures(self) -> Iterator[tuple[float, Frame]]:
        for frame in self._listed:
            yield frame.pts_seconds, frame

    def _image(self, picture: Frame, max_side: int) -> Any:
        return picture.image


def feature_frames(count: int, *, seed: int = 0, tokens: int = 4, hidden: int = 64, start: int = 0) -> list[Frame]:
    """Frames one second apart whose images are features; frame i depends on the seed and i alone."""

    def image(i: int) -> Any:
        return np.random.default_rng((seed, i)).standard_normal((tokens, hidden)).astype(np.float32)

    return [Frame(float(i), image(i)) for i in range(start, count)]


def altered(frames: Sequence[Frame], index: int) -> list[Frame]:
    """The same frames, one of them with other features."""
    frame = frames[index]
    return [*frames[:index], Frame(frame.pts_seconds, np.roll(frame.image, 1, axis=1)), *frames[index + 1 :]]


class Recording(Adapter):
    """An adapter, mixed in before its class, that keeps what went through the decoder.

    Attributes:
        hidden: [N, E] of every forward call.
        positions: [A, N] of every forward call.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.hidden: list[Tensor] = []
        self.positions: list[Tensor] = []
        super().__init__(*args, **keywords)

    def forward(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        hidden = super().forward(embeds, positions, cache, **kwargs)
        self.hidden.append(hidden)
        self.positions.append(positions)
        return hidden


def recording(adapter: Adapter) -> Any:
    """The same adapter, which from now on is a `Recording` too."""
    adapter.__class__ = type("Recorded", (Recording, type(adapter)), {})
    adapter.hidden, adapter.positions = [], []  # type: ignore[attr-defined]
    return adapter


class RecordingLlama(Recording, RandomLlama):
    """The tiny random model, recording."""


class LoggingLlama(RandomLlama):
    """Keeps the order of what was asked of it.

    Attributes:
        log: ("encode", seconds of the first frame), ("forward", tokens) and ("rows", answers), in order.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.log: list[tuple[str, float]] = []

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        self.log.append(("encode", frames[0].pts_seconds))
        return super().encode(frames)

    def forward(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        self.log.append(("forward", len(embeds)))
        return super().forward(embeds, positions, cache, **kwargs)

    def forward_rows(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        self.log.append(("rows", len(embeds)))
        return super().forward_rows(embeds, positions, cache, **kwargs)


class RememberingBatch(DecodeBatch):
    """Keeps every answer that ever ran.

    Attributes:
        seen: in the order they came.
        most: how many ran together at most.
    """

    def __init__(self, adapter: RandomLlama) -> None:
        super().__init__(adapter)
        self.seen: list[RunningAnswer] = []
        self.most = 0

    def add(self, running: RunningAnswer) -> None:
        super().add(running)
        self.seen.append(running)
        self.most = max(self.most, len(self))

    def token_ids(self, answer: Answer) -> list[int]:
        return next(running.decoding.token_ids for running in self.seen if running.answer is answer)


def small_config(**settings: Any) -> Config:
    """A configuration for tiny tests: 2 frames a clip, about three clips in the window."""
    defaults: dict[str, Any] = {
        "clip_frames": 2,
        "window_tokens": 96,
        "retrieve_tokens": 64,
        "gist_tokens": 32,
        "digest_share": 0.1,
        "device_bytes": 0,
        "host_bytes": 16 * MIB,
        "max_question_tokens": 64,
        "max_answer_tokens": 16,
        "max_queue_frames": 8,
        "decode": DecodeOptions(max_tokens=8),
    }
    return Config(**{**defaults, **settings})


def pump_all(session: Session) -> None:
    """Watches a whole list source in this thread, answering what falls due."""
    assert session.ingest is not None
    while session.ingest.pump(4) or not session.ingest.ended or not session.ingest.drained:
        while session.step():
            pass
    while session.step():
        pass


def run(pieces: Generator[None, None, Result]) -> Result:
    """Does all pieces of some work; what it gives in the end."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            return done.value


def watched(adapter: Adapter, frames: Sequence[Frame], **settings: Any) -> Session:
    """A session that has watched all of `frames`."""
    session = Session(adapter, ListSource(frames), small_config(**settings))
    pump_all(session)
    return session


def watch_with_a_shifted_clip(adapter: Adapter, frames: Sequence[Frame], **settings: Any) -> None:
    """The first clip is said to begin one position later, which the window's keys then follow."""
    session = Session(adapter, ListSource(frames), small_config(**settings))
    assert session.ingest
    session.ingest.pump(session.config.clip_frames)
    session.step()
    first = session.memory.cache.window[0]
    session.memory.cache.window[0] = Placed(first.meta, first.start.clone() + 1)
    pump_all(session)


@torch.inference_mode()
def full_forward(adapter: RandomLlama, embeds: Tensor, mask: Tensor | None = None, shift: int = 0) -> Tensor:
    """Hidden states [N, E] of the model's ordinary causal forward, with no cache of ours.

    Args:
        embeds: [N, E].
        mask: [N, N] bool, True where a token (row) sees another; causal unless given.
        shift: added to all positions.
    """
    positions = torch.arange(len(embeds))[None] + shift
    mask4d = None if mask is None else mask[None, None]
    out = adapter.decoder(inputs_embeds=embeds[None], position_ids=positions, attention_mask=mask4d, use_cache=False)
    return out.last_hidden_state[0]


def answer_logits(session: Session) -> Tensor:
    """Logits [Q, V] of the question's own tokens, asked now."""
    assert isinstance(session.adapter, Recording)
    session.adapter.hidden.clear()
    with torch.inference_mode():
        question = session.adapter.question(QUESTION)
        view = session.memory.view(1e9)
        run(session._answerer.start(Answer(QUESTION, None), question, DecodeOptions(max_tokens=1), view, ()))
        return session.adapter.head(session.adapter.hidden[-1])


def difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


@torch.inference_mode()
def forget_all_but(session: Session, window_tokens: int) -> None:
    """Shrinks the hot window, so that blocks encoded with full context are retrieved ones."""
    session.memory.cache._window_tokens = window_tokens
    session.memory.cache._evict()


def assert_window_is_placed(session: Session) -> None:
    """The hot keys are exactly the stored ones, placed where the window says they are."""
    memory = session.memory
    blocks = [memory.cache.sink, *memory.cache.window]
    positions = torch.cat([placed.positions for placed in blocks if placed], dim=1)
    kv = place(session.adapter, memory.store.gather([placed.meta.id for placed in blocks if placed]), positions)
    for layer, (keys, values) in zip(memory.cache.layers, kv, strict=True):
        hot_keys, hot_values = layer.view()
        assert torch.equal(hot_keys[0], keys)
        assert torch.equal(hot_values[0], values)
