"""Starting an answer: snapshot, recall, question prefill. Continuing it is one decode step at a time.

This module knows nothing of sources, scheduling or threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.answer import Answer, Evidence
from vstream.answer_cache import AnswerCache, LayerRecall, QueryProbe, hooked
from vstream.decoder import Decoding
from vstream.memory.block import TokenKind
from vstream.memory.pyramid import LEVEL_NAMES
from vstream.picture import jpeg_of
from vstream.recall import Recall

if TYPE_CHECKING:
    from vstream.config import Config, DecodeOptions
    from vstream.memory.block import BlockMeta
    from vstream.memory.retriever import Query
    from vstream.models.base import Adapter, Question
    from vstream.stream_memory import StreamMemory
    from vstream.types import Frame, TokenSpan
    from vstream.view import View

MAX_EVIDENCE = 5


@dataclass(frozen=True, eq=False)
class Prompt:
    """What follows the window in one answer: frames not yet encoded, then the question.

    Attributes:
        embeds: [N, E].
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


class RunningAnswer:
    """An answer between its prefill and its last token. It owns its cache; the stream goes on without it."""

    def __init__(self, answer: Answer, decoding: Decoding, num_bytes: int) -> None:
        """`num_bytes` is what its cache takes of the answers' budget."""
        self.answer, self.num_bytes = answer, num_bytes
        self._decoding = decoding

    def step(self) -> None:
        """One token further, unless it was cancelled."""
        if self.answer.cancelled:
            self.answer.finish("cancelled")
            return
        piece = self._decoding.step()
        self.answer.add(piece, num_tokens=len(self._decoding.token_ids))
        if self._decoding.finish_reason:
            self.answer.finish(self._decoding.finish_reason)


class Answerer:
    """Turns questions about one stream into running answers."""

    def __init__(self, memory: StreamMemory, config: Config) -> None:
        """For the stream that `memory` keeps."""
        self._memory, self._config = memory, config
        self._adapter: Adapter = memory.adapter

    def num_bytes(self, question: Question, options: DecodeOptions) -> int:
        """What an answer's cache will take at most."""
        config = self._config
        tokens = self._memory.cache.sink_tokens + config.window_tokens + config.gist_tokens + config.retrieve_tokens
        tokens += self._memory.clip_tokens + len(question.span) + options.max_tokens
        return tokens * self._memory.store.shape.bytes_per_token

    def start(
        self, answer: Answer, question: Question, options: DecodeOptions, view: View, frames: Sequence[Frame]
    ) -> RunningAnswer:
        """Brings memory back, prefills the question and fills in the evidence.

        Args:
            answer: the handle to fill.
            question: as tokens.
            options: how to generate.
            view: what the question can see of the stream.
            frames: received but not yet encoded, seen by this answer alone.
        """
        open_span = self._memory.layout(frames, self._adapter.encode(frames)) if frames else None
        prompt = make_prompt(view.snapshot.cursor, open_span, question)
        cache = AnswerCache(
            self._adapter,
            view.snapshot,
            memory_tokens=self._config.gist_tokens + self._config.retrieve_tokens,
            tail_tokens=len(prompt.words) + options.max_tokens,
        )
        recall, query, hidden = self._prefill(cache, prompt, view)
        evidence = self._evidence(recall, view)
        if open_span is not None:
            vision = torch.nonzero(open_span.kinds == TokenKind.VISION)[:, 0]
            own = cache.representative(vision, len(prompt.words), prompt.positions)
            score = float(self._memory.retriever.score(query, own[:, :, None], view.mean_key)[0])
            evidence.append(self._open_evidence(frames, score))
        answer.evidence = tuple(sorted(evidence, key=lambda e: (-e.score, e.start_seconds))[:MAX_EVIDENCE])
        answer.snapshot_seconds = frames[-1].pts_seconds if frames else view.end_seconds
        decoding = Decoding(self._adapter, cache, self._adapter.head(hidden[-1]), prompt.cursor, options)
        return RunningAnswer(answer, decoding, cache.num_bytes)

    def _prefill(self, cache: AnswerCache, prompt: Prompt, view: View) -> tuple[Recall, Query, Tensor]:
        """The prompt behind [sink | gist | retrieved | window]; gives the recall, its query and [N, E]."""
        config, memory = self._config, self._memory
        recall = Recall(
            self._adapter,
            memory.store,
            memory.retriever,
            cache,
            view,
            detail_tokens=config.retrieve_tokens,
            gist_tokens=config.gist_tokens,
            original_positions=config.positions == "original",
        )
        if config.selection == "per-layer":
            hook: QueryProbe = LayerRecall(self._adapter, prompt.positions, prompt.words, cache, recall.for_layer)
            hidden = self._forward(cache, prompt, hook)
            return recall, recall.query(torch.stack(hook.queries), torch.stack(hook.word_keys)), hidden
        hook = QueryProbe(self._adapter, prompt.positions, prompt.words)
        hidden = self._forward(cache, prompt, hook)
        query = recall.query(torch.stack(hook.queries), torch.stack(hook.word_keys))
        if recall.for_all_layers(query, drop_tokens=len(prompt.words)):
            hidden = self._adapter.forward(prompt.embeds, prompt.positions, cache)
        return recall, query, hidden

    def _forward(self, cache: AnswerCache, prompt: Prompt, hook: QueryProbe) -> Tensor:
        with hooked(self._adapter.decoder):
            return self._adapter.forward(prompt.embeds, prompt.positions, cache, vstream=hook)

    def _evidence(self, recall: Recall, view: View) -> list[Evidence]:
        """What was brought back, and the window, with their scores."""
        window = [placed.meta for placed in view.snapshot.window]
        recalled = [meta for meta in view.candidates if meta.id in recall.chosen]
        named = [(meta, LEVEL_NAMES[meta.level]) for meta in recalled] + [(meta, "window") for meta in window]
        best = sorted(named, key=lambda pair: (-recall.scores[pair[0].id], pair[0].id))[:MAX_EVIDENCE]
        return [self._block_evidence(meta, level, recall.scores[meta.id]) for meta, level in best]

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
        )
