"""Starting an answer: snapshot, recall, question prefill in pieces. Continuing it is the decode batch's business.

This module knows nothing of sources, scheduling or threads.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vstream.answer import Answer, Evidence
from vstream.answer_cache import AnswerCache, LayerRecall, QueryProbe, Seen, hooked
from vstream.batch import RunningAnswer
from vstream.choices import choices_text
from vstream.clip_block import described, representative_of
from vstream.decoder import Decoding
from vstream.memory.columns import COLUMNS
from vstream.memory.levels import DETAIL, LEVEL_NAMES
from vstream.memory.representatives import Kept
from vstream.memory.retriever import Candidates
from vstream.models.base import Exchange
from vstream.picture import jpeg_of
from vstream.recall import Recall
from vstream.types import moments_in

if TYPE_CHECKING:
    from vstream.config import Config, DecodeOptions
    from vstream.memory.block import BlockMeta, Extra
    from vstream.memory.retriever import Query
    from vstream.models.base import Adapter, Question
    from vstream.remembered import Remembered
    from vstream.types import Frame, TokenSpan
    from vstream.view import View

Result = TypeVar("Result")
MAX_EVIDENCE = 5
MIN_PIECE_TOKENS = 64  # every pass reads all weights, which costs as much as 20 tokens do


@dataclass(frozen=True, eq=False)
class Prompt:
    """What follows the window in one answer: frames not yet encoded, then the question.

    Attributes:
        embeds: [N, W], as spans have them.
        positions: [A, N], where they are placed.
        words: [N] bool, True on the question's own words.
        num_open: how many of the tokens are frames.
        cursor: [A], where the answer begins.
    """

    embeds: Tensor
    positions: Tensor
    words: Tensor
    num_open: int
    cursor: Tensor

    def pieces(self, num_tokens: int) -> Iterator[Prompt]:
        """The same prompt, at most so many tokens at a time."""
        for start in range(0, len(self.words), num_tokens):
            part = slice(start, start + num_tokens)
            words = self.words[part]
            yield replace(self, embeds=self.embeds[part], positions=self.positions[:, part], words=words)


def make_prompt(cursor: Tensor, open_span: TokenSpan | None, question: Question) -> Prompt:
    """Places the spans one after the other from `cursor` [A] on."""
    spans = [span for span in (open_span, question.span) if span is not None]
    positions = []
    for span in spans:
        positions.append(cursor[:, None] + span.positions)
        cursor = cursor + span.advance
    num_open = len(open_span) if open_span else 0
    words = torch.cat([torch.zeros(num_open, dtype=torch.bool), question.query])
    return Prompt(torch.cat([span.embeds for span in spans]), torch.cat(positions, dim=1), words, num_open, cursor)


def open_block(frames: Sequence[Frame], span: TokenSpan, kv: Tensor, view: View, extra: Extra | None) -> Candidates:
    """Frames not yet encoded, their kv [L, 2, K, N, D] un-rotated, as a block to be scored beside those of the view."""
    times = frames[0].pts_seconds, frames[-1].pts_seconds
    rows = np.array([(-1, DETAIL, len(span), len(frames), *times)], COLUMNS)
    kept = Kept.of(described(extra, kv, span.kinds, span.embeds)[:, :, None]) if extra else None
    keys = Kept.of(representative_of(kv, span.kinds)[:, :, None])
    return Candidates(rows, keys, view.mean_key, kept, view.mean_extra)


def is_earlier(turn: Mapping[str, Any], at_seconds: float) -> bool:
    """Whether a turn that is remembered was asked by then, and answered: later ones would tell of later frames."""
    return bool(turn["answer"]) and turn["asked_at_seconds"] <= at_seconds


def exchange_of(turn: Mapping[str, Any]) -> Exchange:
    """A turn that is remembered, as the model reads it again."""
    return Exchange(turn["question"] + choices_text(turn.get("choices", ())), turn["answer"])


def finished(pieces: Generator[None, None, Result]) -> Result:
    """Does all pieces of some work at once; what it gives in the end."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            return cast(Result, done.value)


class Answerer:
    """Turns questions about one stream into running answers."""

    def __init__(self, memory: Remembered, config: Config) -> None:
        """For the stream that `memory` keeps; `num_open_frames` counts the frames it looked at before their clip."""
        self._memory, self._config = memory, config
        self._adapter: Adapter = memory.adapter
        self.num_open_frames = 0
        self._open: tuple[tuple[Frame, ...], TokenSpan | None] = ((), None)

    def num_bytes(self, question: Question, options: DecodeOptions) -> int:
        """What an answer's cache will take at most."""
        config = self._config
        tokens = self._memory.cache.sink_tokens + config.window_tokens + config.gist_tokens + config.retrieve_tokens
        tokens += self._memory.clip_tokens + len(question.span) + config.earlier_tokens + options.max_tokens
        return tokens * self._memory.store.shape.bytes_per_token

    def in_dialogue(self, answer: Answer, question: Question, at_seconds: float) -> Question:
        """The question behind the turns of the dialogue up to its time, as many of the latest as have room.

        Args:
            answer: told how many these are.
            question: as tokens, without them.
            at_seconds: its stream time.
        """
        if not self._config.dialogue:
            return question
        earlier = [exchange_of(turn) for turn in self._memory.dialogue if is_earlier(turn, at_seconds)]
        room, kept = len(question.span) + self._config.dialogue_tokens, 0
        while kept < len(earlier):
            more = earlier[-kept - 1 :]
            longer = self._adapter.question(answer.question, choices=answer.choices, earlier=more)
            if len(longer.span) > room:
                break
            question, kept = longer, kept + 1
        answer.num_earlier, answer.num_left_out = kept, len(earlier) - kept
        return question

    def start(
        self, answer: Answer, question: Question, options: DecodeOptions, view: View, frames: Sequence[Frame]
    ) -> Generator[None, None, RunningAnswer]:
        """Brings memory back, prefills the question and fills in the evidence; pauses after each piece of work.

        No piece takes more tokens than a clip, or `MIN_PIECE_TOKENS`. The stream's memory must not change meanwhile:
        what is selected is only then copied. Per-layer selection has a single piece, since a layer's own choice needs
        the whole question.

        Args:
            answer: the handle to fill.
            question: as tokens.
            options: how to generate.
            view: what the question can see of the stream.
            frames: received but not yet encoded, seen by this answer alone.
        """
        open_span = self._look(frames)
        prompt = make_prompt(view.snapshot.cursor, open_span, question)
        cache = AnswerCache(
            self._adapter,
            view.snapshot,
            memory_tokens=self._config.gist_tokens + self._config.retrieve_tokens,
            tail_tokens=len(prompt.words) + options.max_tokens,
        )
        yield
        recall, query, hidden = yield from self._prefill(cache, prompt, view, moments_in(answer.question))
        assert hidden is not None, "the last pass of a prompt runs to its end"
        evidence = self._evidence(recall, view)
        if open_span is not None:
            kv = cache.of_prompt(torch.arange(len(open_span)), len(prompt.words), prompt.positions)
            block = open_block(frames, open_span, kv, view, self._memory.store.shape.extra)
            score = float(self._memory.retriever.score(query, block.of_layers(recall.layers))[0])
            evidence.append(self._open_evidence(frames, score))
        answer.evidence = tuple(sorted(evidence, key=lambda e: (-e.score, e.start_seconds))[:MAX_EVIDENCE])
        answer.recalled = tuple((meta.start_seconds, meta.end_seconds) for meta in recall.chosen.values())
        answer.snapshot_seconds = frames[-1].pts_seconds if frames else view.end_seconds
        answer.num_prompt_tokens = max(layer.get_seq_length() for layer in cache.spans)
        decoding = Decoding(self._adapter, cache, self._adapter.head(hidden[-1]), prompt.cursor, options)
        return RunningAnswer(answer, decoding)

    def first_logits(self, question: Question, view: View) -> Tensor:
        """Logits [V] of the first token that an answer would have; nothing is decoded, and nothing kept of it."""
        prompt, recalls = make_prompt(view.snapshot.cursor, None, question), len(view.candidates) > 0
        memory_tokens = self._config.gist_tokens + self._config.retrieve_tokens if recalls else 0
        cache = AnswerCache(self._adapter, view.snapshot, memory_tokens=memory_tokens, tail_tokens=len(prompt.words))
        if recalls:
            _, _, hidden = finished(self._prefill(cache, prompt, view))
        else:
            hidden = self._forward_piece(cache, prompt, None)
        assert hidden is not None, "the last pass of a prompt runs to its end"
        logits: Tensor = self._adapter.head(hidden[-1])
        return logits

    def _look(self, frames: Sequence[Frame]) -> TokenSpan | None:
        """Frames not yet encoded as tokens, None for none; the next question about the same ones gets the same."""
        before, span = self._open
        if len(before) != len(frames) or any(one is not other for one, other in zip(before, frames, strict=True)):
            span = self._memory.look(frames).span if frames else None
            self._open = tuple(frames), span
            self.num_open_frames += len(frames)
        return span

    def _prefill(
        self, cache: AnswerCache, prompt: Prompt, view: View, moments: tuple[float, ...] = ()
    ) -> Generator[None, None, tuple[Recall, Query, Tensor | None]]:
        """The prompt behind [sink | gist | retrieved | window]; gives the recall, its query and the last [n, E]."""
        config, memory, adapter = self._config, self._memory, self._adapter
        recall = Recall(
            adapter,
            memory.store,
            memory.retriever,
            cache,
            view,
            detail_tokens=config.retrieve_tokens,
            gist_tokens=config.gist_tokens,
            original_positions=config.positions == "original",
            moments=moments,
            word_embeds=prompt.embeds[prompt.words, : adapter.config.hidden_size],
        )
        if config.selection == "per-layer":
            chooser = LayerRecall(adapter, cache, recall.for_layer)
            hidden = yield from self._forward(cache, prompt, len(prompt.words), chooser)
            means, word_keys = chooser.query()
            return recall, recall.query(means[recall.layers], word_keys[recall.layers]), hidden
        probe = QueryProbe(adapter, recall.layers, then_stop=recall.has_candidates)
        hidden = yield from self._forward(cache, prompt, self._piece_tokens, probe)
        query = recall.query(*probe.query())
        recall.for_all_layers(query)
        if recall.has_candidates:
            cache.forget_prompt()
            yield
            hidden = yield from self._forward(cache, prompt, self._piece_tokens, None)
        return recall, query, hidden

    @property
    def _piece_tokens(self) -> int:
        return max(MIN_PIECE_TOKENS, self._memory.clip_tokens)

    def _forward(
        self, cache: AnswerCache, prompt: Prompt, piece_tokens: int, probe: QueryProbe | None
    ) -> Generator[None, None, Tensor | None]:
        """The prompt through the decoder, piece by piece, looked at by a probe.

        Returns:
            Hidden states [n, E] of the last piece, None where the probe has ended the pass.
        """
        hidden = None
        for number, piece in enumerate(prompt.pieces(piece_tokens)):
            if number:
                yield
            hidden = self._forward_piece(cache, piece, probe)
        return hidden

    def _forward_piece(self, cache: AnswerCache, piece: Prompt, probe: QueryProbe | None) -> Tensor | None:
        if probe is None:
            return self._adapter.forward(piece.embeds, piece.positions, cache)
        probe.expect(piece.positions, piece.words)
        try:
            with hooked(self._adapter.decoder):
                return self._adapter.forward(piece.embeds, piece.positions, cache, vstream=probe)
        except Seen:
            return None

    def _evidence(self, recall: Recall, view: View) -> list[Evidence]:
        """What was brought back, and the window, with their scores."""
        window = [placed.meta for placed in view.snapshot.window]
        named = [(meta, LEVEL_NAMES[meta.level]) for meta in recall.chosen.values()]
        named += [(meta, "window") for meta in window]
        scores = recall.scores()
        best = sorted(named, key=lambda pair: (-scores[pair[0].id], pair[0].id))[:MAX_EVIDENCE]
        return [self._block_evidence(meta, level, scores[meta.id]) for meta, level in best]

    def _block_evidence(self, meta: BlockMeta, level: str, score: float) -> Evidence:
        shown = not math.isnan(meta.picture_seconds)
        return Evidence(
            start_seconds=meta.start_seconds,
            end_seconds=meta.end_seconds,
            score=score,
            level=level,
            block_id=meta.id,
            picture=self._memory.store.picture(meta.id) if shown else b"",
            picture_seconds=meta.picture_seconds if shown else None,
            wall_clock=None if meta.epoch_seconds is None else meta.epoch_seconds + meta.start_seconds,
        )

    def _open_evidence(self, frames: Sequence[Frame], score: float) -> Evidence:
        newest = frames[-1]
        return Evidence(
            start_seconds=frames[0].pts_seconds,
            end_seconds=newest.pts_seconds,
            score=score,
            level="open",
            block_id=None,
            picture=jpeg_of(newest),
            picture_seconds=newest.pts_seconds,
            wall_clock=None if frames[0].epoch_seconds is None else frames[0].epoch_seconds + frames[0].pts_seconds,
        )
