"""Recall: brings the blocks that a question needs from memory into its cache.

This module knows nothing of text, frames or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vstream.cache import place_into
from vstream.kernels.streams import arrivals, queued
from vstream.memory.block import BlockMeta
from vstream.memory.levels import DETAIL, DIGEST, GIST
from vstream.memory.retriever import Query

if TYPE_CHECKING:
    from vstream.answer_cache import AnswerCache
    from vstream.memory.fetch import Fetch
    from vstream.memory.retriever import Candidates, Retriever
    from vstream.memory.store import BlockStore
    from vstream.models.base import Adapter
    from vstream.view import View


LEVELS = (DETAIL, DIGEST, GIST)


class Recall:
    """One question's retrieval.

    Attributes:
        chosen: blocks brought back by any layer, by id.
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
        moments: tuple[float, ...] = (),
        word_embeds: Tensor | None = None,
    ) -> None:
        """Chooses among what the view holds, for the answer whose cache is given.

        The question names moments; its words are [W, E] before the decoder. Without tokens of their own, gists compete
        with detail.
        """
        self.chosen: dict[int, BlockMeta] = {}
        self._adapter, self._store, self._retriever, self._cache = adapter, store, retriever, cache
        shown = {(GIST,): gist_tokens, (DETAIL, DIGEST): detail_tokens} if gist_tokens else {LEVELS: detail_tokens}
        self._shelves = [Shelf(view.on_levels(levels, budget)) for levels, budget in shown.items()]
        self._shelves.append(Shelf(view.in_window))  # in the answer anyway; the scores are evidence
        self._view = view
        self._original = original_positions
        self._moments = moments
        self._word_embeds = None if word_embeds is None else word_embeds.float()
        self._votes = 0
        self.layers = slice(0, retriever.num_layers_read(adapter.num_layers))

    @property
    def has_candidates(self) -> bool:
        """Whether there is anything to choose from."""
        return len(self._view.candidates) > 0

    def scores(self) -> dict[int, float]:
        """Mean score, over all who have chosen, of every block that is in the answer."""
        shown = {*self.chosen, *self._view.window["id"].tolist()}
        found: dict[int, float] = {}
        for shelf in self._shelves:
            ids = shelf.blocks.rows["id"]
            where = np.flatnonzero(np.isin(ids, list(shown)))
            mean = shelf.total[torch.from_numpy(where)] / self._votes
            found.update(zip(ids[where].tolist(), mean.tolist(), strict=True))
        return found

    def query(self, means: Tensor, word_keys: Tensor, layers: slice | None = None) -> Query:
        """A query from mean queries [L, K, D] and word keys [L, K, W, D] of `self.layers`, unless others are given."""
        word_keys = word_keys - self._view.sink_key[layers or self.layers]
        return Query(means.float(), word_keys, self._moments, self._word_embeds)

    def for_all_layers(self, query: Query) -> None:
        """Inserts one choice of blocks into every layer.

        On a GPU the blocks come on a stream of their own: while a layer computes, the next one's are on their way.
        """
        metas = self._choose(query, self.layers)
        if metas:
            fetch, tables = self._fetch(metas), self._adapter.rotary(self._positions(metas))
            side, buffers = arrivals(self._adapter.device), [(span.keys, span.values) for span in self._cache.spans]
            with side.beside(*tables, *fetch.held, *chain(*buffers)):
                for layer in fetch.layers:
                    self._place(fetch, layer, tables, *self._cache.open(layer, fetch.num_tokens))
                    self._cache.spans[layer].arriving = queued(self._adapter.device)

    def for_layer(self, layer: int, mean: Tensor, word_keys: Tensor) -> Tensor | None:
        """One layer's own choice, placed [2, K, R, D], given its query [K, D] and [K, W, D]; None for nothing."""
        layers = slice(layer, layer + 1)
        metas = self._choose(self.query(mean[None], word_keys[None], layers), layers)
        if not metas:
            return None
        fetch, tables = self._fetch(metas, range(layer, layer + 1)), self._adapter.rotary(self._positions(metas))
        kv = self._cache.spans[layer].keys.new_empty(2, len(mean), fetch.num_tokens, mean.shape[1])
        self._place(fetch, layer, tables, kv[0], kv[1])
        return kv

    def _fetch(self, metas: Sequence[BlockMeta], layers: range | None = None) -> Fetch:
        return self._store.fetch([meta.id for meta in metas], [meta.num_tokens for meta in metas], layers)

    def _place(self, fetch: Fetch, layer: int, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> None:
        """One layer of blocks into keys and values [K, R, D], in one pass where the model turns as our kernels do."""
        if self._adapter.turns_halves:
            fetch.place(layer, tables, keys, values)
        else:
            place_into(self._adapter, fetch.read_layer(layer)[None], tables, keys[None], values[None])

    def _positions(self, metas: Sequence[BlockMeta]) -> Tensor:
        return self._cache.memory_positions(metas, original=self._original)

    def _choose(self, query: Query, layers: slice) -> list[BlockMeta]:
        """The gist of the past, then detail and digests, each in time order and within its budget."""
        room, metas = self._room_tokens, list[BlockMeta]()
        for shelf in self._shelves:
            picked = self._select(query, shelf, min(shelf.blocks.budget_tokens, room), layers)
            room -= sum(meta.num_tokens for meta in picked)
            metas += picked
        self.chosen |= {meta.id: meta for meta in metas}
        self._votes += 1
        return metas

    @cached_property
    def _room_tokens(self) -> int:
        """How many tokens may be brought back: where all lay between sink and window, all; else one for a position.

        A grid of tokens takes fewer positions than tokens, but not once it is condensed.
        """
        room, wanted = self._cache.room, sum(shelf.blocks.budget_tokens for shelf in self._shelves)
        if room >= wanted:
            return wanted
        laid_out = sum(int(self._meta(block_id).advance.max()) for block_id in self._view.candidates["id"].tolist())
        return wanted if laid_out <= room else room

    def _meta(self, block_id: int) -> BlockMeta:
        """Of a block as far as it can be seen."""
        return self._view.shortened.get(block_id) or self._store.meta(block_id)

    def _select(self, query: Query, shelf: Shelf, budget: int, layers: slice) -> list[BlockMeta]:
        """Chooses, and takes the scores into the mean over all who have chosen."""
        blocks = replace(shelf.blocks.of_layers(layers), budget_tokens=budget)
        ids, scores = self._retriever.select(query, blocks)
        shelf.total += scores
        return [self._meta(block_id) for block_id in ids]


class Shelf:
    """Blocks to choose from together, and what they have scored.

    Attributes:
        blocks: B of them.
        total: [B], sum of their scores.
    """

    def __init__(self, blocks: Candidates) -> None:
        """Nothing has scored yet."""
        self.blocks = blocks
        self.total = torch.zeros(len(blocks))
