"""Recall: brings the blocks that a question needs from memory into its cache.

This module knows nothing of text, frames or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vstream.cache import place
from vstream.memory.block import BlockMeta
from vstream.memory.pyramid import DETAIL, GIST
from vstream.memory.retriever import Query

if TYPE_CHECKING:
    from vstream.answer_cache import AnswerCache
    from vstream.memory.retriever import Retriever
    from vstream.memory.store import BlockStore
    from vstream.models.base import Adapter
    from vstream.view import View


class Recall:
    """One question's retrieval.

    Attributes:
        chosen: ids brought back, by any layer.
        scores: block id to score, for every candidate and every block of the window.
        layers: those that choose together, when all do.
    """

    def __init__(
        self,
        adapter: Adapter,
        store: BlockStore,
        retriever: Retriever,
        cache: AnswerCache,
        view: View,
        *,
        detail_tokens: int,
        gist_tokens: int,
        original_positions: bool,
    ) -> None:
        """Chooses among what the view holds, for the answer whose cache is given."""
        self.chosen: set[int] = set()
        self.scores: dict[int, float] = {}
        self._adapter, self._store, self._retriever, self._cache = adapter, store, retriever, cache
        self._levels = [(view.on_level(GIST), gist_tokens), (view.on_level(DETAIL), detail_tokens)]
        self._view = view
        self._original = original_positions
        self._votes = 0
        self.layers = slice(0, retriever.num_layers_read(adapter.num_layers))

    @property
    def has_candidates(self) -> bool:
        """Whether there is anything to choose from."""
        return bool(self._view.candidates)

    def query(self, means: Tensor, word_keys: Tensor, layers: slice | None = None) -> Query:
        """A query from mean queries [L, K, D] and word keys [L, K, W, D] of `self.layers`, unless others are given."""
        return Query(means.float(), word_keys - self._view.sink_key[layers or self.layers])

    def for_all_layers(self, query: Query) -> None:
        """Inserts one choice of blocks into every layer."""
        metas = self._choose(query, self.layers)
        if metas:
            kv = self._store.gather([meta.id for meta in metas], [meta.num_tokens for meta in metas])
            for layer, placed_kv in enumerate(self._place(kv, metas)):
                self._cache.insert(layer, placed_kv)

    def for_layer(self, layer: int, mean: Tensor, word_keys: Tensor) -> Tensor | None:
        """One layer's own choice, placed [2, K, R, D], given its query [K, D] and [K, W, D]; None for nothing."""
        layers = slice(layer, layer + 1)
        metas = self._choose(self.query(mean[None], word_keys[None], layers), layers)
        if not metas:
            return None
        kv = self._store.gather_layer(layer, [meta.id for meta in metas], [meta.num_tokens for meta in metas])
        return self._place(kv, metas)

    def _place(self, kv: Tensor, metas: Sequence[BlockMeta]) -> Tensor:
        positions = self._cache.memory_positions(metas, original=self._original)
        return place(self._adapter, kv, positions)

    def _choose(self, query: Query, layers: slice) -> list[BlockMeta]:
        """The condensed past, then detail, each in time order and within its budget."""
        room, metas = self._cache.room, list[BlockMeta]()
        for (candidates, representatives), budget in self._levels:
            picked = self._select(query, candidates, representatives, min(budget, room), layers)
            room -= sum(meta.num_tokens for meta in picked)
            metas += picked
        self._select(query, *self._view.in_window, 0, layers)  # in the answer anyway; the scores are evidence
        self.chosen |= {meta.id for meta in metas}
        self._votes += 1
        return metas

    def _select(
        self, query: Query, candidates: Sequence[BlockMeta], representatives: Tensor, budget: int, layers: slice
    ) -> list[BlockMeta]:
        """Chooses, and takes the scores into the mean over all who have chosen."""
        mean = self._view.mean_key[layers]
        selection = self._retriever.select(query, candidates, representatives[layers], mean, budget)
        if self._votes:
            pairs = ((block_id, self.scores[block_id], score) for block_id, score in selection.scores.items())
            self.scores.update({block_id: old + (new - old) / (self._votes + 1) for block_id, old, new in pairs})
        else:
            self.scores.update(selection.scores)
        chosen = set(selection.ids)
        return [meta for meta in candidates if meta.id in chosen]
