"""DecodeBatch: the running answers of one model, decoded together, one token each at a time.

A decode step reads every weight once, whoever it is for: together, answers cost little more than one alone. Each keeps
its own cache; only the layers' weights are shared. This module knows nothing of streams, memory or how answers begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vstream.stopwatch import Stopwatch

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.decoder import Decoding
    from vstream.models.base import Adapter


class RunningAnswer:
    """An answer between its prefill and its last token. It owns its cache; the stream goes on without it."""

    def __init__(self, answer: Answer, decoding: Decoding) -> None:
        """`answer` is the handle that `decoding` fills."""
        self.answer, self.decoding = answer, decoding

    def choose(self) -> bool:
        """One token further, unless it was cancelled; whether that token is to be run."""
        if self.answer.cancelled:
            self.answer.finish("cancelled")
        if self.answer.done:
            return False
        piece = self.decoding.choose()
        self.answer.add(piece, num_tokens=len(self.decoding.token_ids))
        if self.decoding.finish_reason:
            self.answer.finish(self.decoding.finish_reason)
        return not self.answer.done


class DecodeBatch:
    """All answers that are running on one model, of any number of streams. To be used from one thread.

    Attributes:
        decoding: how long it took.
    """

    def __init__(self, adapter: Adapter) -> None:
        """Empty."""
        self._adapter = adapter
        self._running: list[RunningAnswer] = []
        self.decoding = Stopwatch()

    def __len__(self) -> int:
        return len(self._running)

    def add(self, running: RunningAnswer) -> None:
        """Takes an answer in, from its next token on."""
        self._running.append(running)

    def drop_done(self) -> None:
        """Lets answers go that are over, and their tensors with them."""
        self._running = [running for running in self._running if not running.answer.done]

    def decode(self, num_tokens: int) -> bool:
        """Up to so many tokens of every answer; those that are over leave. Whether there was anything to do.

        If the model fails, every running answer has failed; the streams go on.
        """
        with self.decoding:
            return self._decode(num_tokens)

    @torch.inference_mode()
    def _decode(self, num_tokens: int) -> bool:
        self.drop_done()
        worked = bool(self._running)
        try:
            for _ in range(num_tokens):
                self._running = [running for running in self._running if running.choose()]
                if not self._running:
                    break
                with self._adapter.alone:
                    advance(self._adapter, [running.decoding for running in self._running])
        except Exception as error:
            for running in self._running:
                running.answer.fail(error)
            self._running = []
        return worked


def advance(adapter: Adapter, decodings: Sequence[Decoding]) -> None:
    """Runs the token that each of some decodings has chosen through the decoder, all in one pass."""
    if len(decodings) == 1:
        decodings[0].advance()
        return
    ids = torch.tensor([decoding.token_ids[-1] for decoding in decodings], device=adapter.device)
    positions = torch.stack([decoding.cursor for decoding in decodings], dim=1)  # [A, R]
    rows = RowsCache([decoding.cache for decoding in decodings])
    hidden = adapter.forward_rows(adapter.embed(ids), positions, rows)  # [R, E]
    for decoding, logits in zip(decodings, adapter.head(hidden), strict=True):
        decoding.accept(logits)


class _RowsLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of several caches: a new token's keys and values go each to its own."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = layers
        self.held: list[tuple[Tensor, Tensor]] = []
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the caches exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends row r of [R, K, 1, D] to cache r, and notes what each holds then: the attention looks there."""
        rows = enumerate(self.layers)
        self.held = [layer.update(key_states[r : r + 1], value_states[r : r + 1]) for r, layer in rows]
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Caches of several lengths have none in common."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A single token sees all of its own cache: no mask is needed."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No common limit."""
        return -1


class RowsCache(Cache):
    """Several caches as the rows of one batch, for a single new token each. Nothing is copied."""

    def __init__(self, caches: Sequence[Any]) -> None:
        """`caches` are transformers caches of the same model."""
        by_layer = zip(*(cache.layers for cache in caches), strict=True)
        self._rows = [_RowsLayer(layers) for layers in by_layer]
        super().__init__(layers=list(self._rows))

    def held(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [1, K, N_r, D] of every row, as the last update left them."""
        return self._rows[layer].held
