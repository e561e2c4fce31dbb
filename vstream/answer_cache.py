"""An answer's cache: a copy of the stream's, with the blocks that memory brings back.

Where each layer chooses its own blocks, a hook of the attention (`attention.py`) sees the query. This module knows
nothing of frames, text, threads or where blocks are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vstream.cache import Snapshot, SpanCache, closed_up, consecutive_starts, unplace
from vstream.kernels import group_query, invert_rotary
from vstream.memory.block import BlockMeta

if TYPE_CHECKING:
    from vstream.models.base import Adapter


class AnswerCache(SpanCache):
    """One answer's own keys and values: [sink | gist | retrieved | window | question | answer].

    It starts as a copy of a snapshot, with room in front for what memory brings back and behind for what is generated.
    Nothing in it is shared with the stream, which goes on.
    """

    def __init__(self, adapter: Adapter, snapshot: Snapshot, *, memory_tokens: int, tail_tokens: int) -> None:
        """Copies a snapshot into buffers with room for so many tokens before the window and after it."""
        held = snapshot.keys_values[0][0].shape[2]
        super().__init__(adapter, memory_tokens + held + tail_tokens)
        self.snapshot = replace(snapshot, keys_values=[])  # copied; no need to keep it
        for layer, (keys, values) in zip(self.spans, snapshot.keys_values, strict=True):
            layer.begin = layer.end = memory_tokens
            layer.update(keys, values)
        self._prompt_start = memory_tokens + held

    @property
    def room(self) -> int:
        """Positions free between sink and window."""
        return int((self.snapshot.window_start - self.snapshot.sink.stop).min())

    def memory_positions(self, metas: Sequence[BlockMeta], *, original: bool) -> Tensor:
        """Positions [A, R] of recalled blocks: right before the window, or where they were encoded.

        Where tokens were left out, and what would lie between the others is more than the room, they close up.
        """
        if original:
            starts = [meta.start for meta in metas]
        else:
            advance = torch.stack([meta.advance for meta in metas]).sum(dim=0)
            if int(advance.max()) > self.room:
                metas = [closed_up(meta) for meta in metas]
                advance = torch.stack([meta.advance for meta in metas]).sum(dim=0)
            starts = consecutive_starts(self.snapshot.window_start - advance, metas)
        return torch.cat([start[:, None] + meta.positions for start, meta in zip(starts, metas, strict=True)], dim=1)

    def open(self, layer_index: int, count: int) -> tuple[Tensor, Tensor]:
        """Room for placed keys and values, [K, R, D] each, between sink and window of one layer; it holds anything."""
        layer, start = self.spans[layer_index], self.snapshot.sink.meta.num_tokens
        assert count <= layer.begin, f"{count} tokens in front, where there is room for {layer.begin}"
        layer.slide(start, layer.begin - count)
        room = slice(layer.begin + start, layer.begin + start + count)
        return layer.keys[0, :, room], layer.values[0, :, room]

    def insert(self, layer_index: int, placed_kv: Tensor) -> None:
        """Puts placed keys and values [2, K, R, D] between sink and window of one layer."""
        for room, found in zip(self.open(layer_index, placed_kv.shape[2]), placed_kv, strict=True):
            room.copy_(found)

    def forget_prompt(self) -> None:
        """Back to what it was before the prompt, in the layers that have seen it."""
        for layer in self.spans:
            layer.end = self._prompt_start

    def of_prompt(self, tokens: Tensor, prompt_tokens: int, positions: Tensor) -> Tensor:
        """Keys, un-rotated, and values [L, 2, K, n, D] of tokens [n] of the prompt, which is at positions [A, N]."""
        rows = tokens + self.spans[0].end - prompt_tokens
        kv = torch.stack([torch.cat([span.keys[:, :, rows], span.values[:, :, rows]]) for span in self.spans])
        return unplace(self.adapter, kv, positions[:, tokens])


class Seen(Exception):
    """No error: a probe has seen all it wanted, and ends a forward pass whose later layers nobody needs."""


class QueryProbe:
    """Records what a question's own words look like to each layer, positions taken out, piece by piece."""

    def __init__(self, adapter: Adapter, layers: slice, *, then_stop: bool = False) -> None:
        """Looks at some layers; `then_stop` ends every pass after the last of them, by `Seen`."""
        self._adapter = adapter
        self._layers = range(adapter.num_layers)[layers]
        self._stops = then_stop
        self._queries: dict[int, list[Tensor]] = {}
        self._word_keys: dict[int, list[Tensor]] = {}

    def expect(self, positions: Tensor, words: Tensor) -> None:
        """The next pass runs tokens at positions [A, N], of which `words` [N] bool are the retrieval query."""
        self._words = words.to(self._adapter.device)
        self._tables = invert_rotary(*self._adapter.rotary(positions[:, words]))

    def query(self) -> tuple[Tensor, Tensor]:
        """Mean query [L, K, D] and word keys [L, K, W, D] over all pieces, float32, of the layers it looks at."""
        means, keys = zip(*(self.layer_query(layer) for layer in self._layers), strict=True)
        return torch.stack(means), torch.stack(keys)

    def layer_query(self, layer: int) -> tuple[Tensor, Tensor]:
        """One layer's mean query [K, D] and word keys [K, W, D]."""
        queries = torch.cat(self._queries[layer], dim=1)  # [H, W, D]
        return group_query(queries, self._adapter.num_kv_heads), torch.cat(self._word_keys[layer], dim=1).float()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The hook: looks, and passes keys and values on as they are."""
        if layer not in self._layers:
            return key, value
        self._queries.setdefault(layer, []).append(self._plain(query))
        self._word_keys.setdefault(layer, []).append(self._plain(key[:, :, -query.shape[2] :]))
        if self._stops and layer == self._layers[-1]:
            raise Seen
        return key, value

    def _plain(self, states: Tensor) -> Tensor:
        """Un-rotated states [H, W, D] of the words, from the prompt's [1, H, N, D]."""
        return self._adapter.rotate(states[:, :, self._words].to(self._tables[0].dtype), *self._tables)[0]


class LayerRecall(QueryProbe):
    """Lets each layer choose its own blocks, with the query it has just computed, in a single pass.

    Attributes:
        inserted: tokens brought into each layer so far.
    """

    def __init__(
        self, adapter: Adapter, cache: AnswerCache, recall: Callable[[int, Tensor, Tensor], Tensor | None]
    ) -> None:
        """`recall(layer, query [K, D], word_keys [K, W, D])` gives placed kv [2, K, R, D], or None for nothing."""
        super().__init__(adapter, slice(None))
        self.inserted: dict[int, int] = {}
        self._cache, self._recall = cache, recall

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The hook: inserts what this layer recalls, and shows it to every token."""
        assert layer not in self.inserted, f"layer {layer} has chosen its blocks already"
        super().__call__(layer, query, key, value)
        placed_kv = self._recall(layer, *self.layer_query(layer))
        self.inserted[layer] = 0 if placed_kv is None else placed_kv.shape[2]
        if placed_kv is None:
            return key, value
        self._cache.insert(layer, placed_kv)
        return self._cache.spans[layer].view()
