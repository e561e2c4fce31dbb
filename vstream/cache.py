"""The stream's cache: sink and recent window, and where every token is placed.

It goes through transformers' public extension points only: a `Cache` with layers of our own. This module knows
nothing of frames, text, threads or where blocks are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vstream.kernels import invert_rotary
from vstream.memory.block import BlockMeta

if TYPE_CHECKING:
    from vstream.models.base import Adapter
    from vstream.types import TokenSpan


class SpanLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: a span [begin, end) of a preallocated buffer.

    Appending a token writes one slot. Evicting behind the sink, and inserting behind it, move only the sink.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, capacity: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """An empty span in a buffer of [1, K, capacity, D]; `begin` may be moved while it is empty."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = torch.empty(1, num_kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.begin = self.end = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffer exists."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [1, K, N, D] and returns the whole span."""
        self.write(self.end, key_states, value_states)
        self.end += key_states.shape[2]
        return self.view()

    def write(self, at: int, keys: Tensor, values: Tensor) -> None:
        """Puts [1, K, N, D] at a place of the buffer."""
        stop = at + keys.shape[2]
        assert 0 <= at <= stop <= self.get_max_length(), f"{at}..{stop} is outside {self.get_max_length()} tokens"
        self.keys[:, :, at:stop] = keys
        self.values[:, :, at:stop] = values

    def view(self) -> tuple[Tensor, Tensor]:
        """The span's keys and values, [1, K, end - begin, D] each."""
        return self.keys[:, :, self.begin : self.end], self.values[:, :, self.begin : self.end]

    def slide(self, head: int, begin: int) -> None:
        """Moves the first `head` tokens so that the span starts at `begin`."""
        if begin == self.begin:
            return
        for buffer in (self.keys, self.values):
            buffer[:, :, begin : begin + head] = buffer[:, :, self.begin : self.begin + head].clone()
        self.begin = begin

    def compact(self) -> None:
        """Moves the whole span to the start of the buffer."""
        if self.begin:
            keys, values = (part.clone() for part in self.view())
            self.begin, self.end = 0, self.end - self.begin
            self.write(0, keys, values)

    def get_seq_length(self) -> int:
        """Tokens in the span."""
        return self.end - self.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Every cached token is visible; new tokens are causal, bottom right."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Tokens the buffer can hold."""
        return self.keys.shape[2]


class SpanCache(Cache):
    """A transformers cache whose layers are spans.

    Attributes:
        spans: the layers.
    """

    spans: list[SpanLayer]

    def __init__(self, adapter: Adapter, capacity: int) -> None:
        """Empty layers for a model, each with a buffer of so many tokens."""
        self.adapter = adapter
        super().__init__(layers=[])
        self.allocate(capacity)

    def allocate(self, capacity: int) -> None:
        """Replaces all layers by empty ones."""
        heads, dim, dtype, device = (getattr(self.adapter, name) for name in _LAYER_SHAPE)
        self.spans = [SpanLayer(capacity, heads, dim, dtype, device) for _ in range(self.adapter.num_layers)]
        self.layers = list(self.spans)

    @property
    def num_bytes(self) -> int:
        """Bytes of its buffers."""
        return sum(span.keys.nbytes + span.values.nbytes for span in self.spans)


_LAYER_SHAPE = ("num_kv_heads", "head_dim", "dtype", "device")


def place(adapter: Adapter, kv: Tensor, positions: Tensor) -> Tensor:
    """Un-rotated keys brought to positions [A, N], by the model's own rotary embedding in float32 or better.

    Args:
        kv: [L, 2, K, N, D] or [2, K, N, D].

    Returns:
        The same shape, keys rotated, values as they were.
    """
    return _turned_kv(adapter, kv, *adapter.rotary(positions))


def unplace(adapter: Adapter, kv: Tensor, positions: Tensor) -> Tensor:
    """The reverse of `place`."""
    return _turned_kv(adapter, kv, *invert_rotary(*adapter.rotary(positions)))


def _turned_kv(adapter: Adapter, kv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    whole = kv if kv.ndim == 5 else kv[None]
    keys = adapter.rotate(whole[:, 0].to(cos.dtype), cos, sin).to(kv.dtype)
    return torch.stack([keys, whole[:, 1]], dim=1).view(kv.shape)


@dataclass(frozen=True, eq=False)
class Placed:
    """A block in the hot window, and where: `start` [A] int64 is the position of its zero."""

    meta: BlockMeta
    start: Tensor

    @property
    def positions(self) -> Tensor:
        """[A, N] int64, where its tokens are."""
        return self.start[:, None] + self.meta.positions

    @property
    def stop(self) -> Tensor:
        """[A] int64, where what follows is placed."""
        return self.start + self.meta.advance


@dataclass(frozen=True)
class Snapshot:
    """What a question sees of a stream: fixed when it is taken, whatever the stream does next.

    Attributes:
        sink: the tokens before the first frame.
        window: the recent blocks, in time order.
        keys_values: per layer, placed keys and values [1, K, S + W, D] of sink and window.
        cursor: [A] int64, where what follows the window is placed.
    """

    sink: Placed
    window: tuple[Placed, ...]
    keys_values: list[tuple[Tensor, Tensor]]
    cursor: Tensor

    @property
    def window_start(self) -> Tensor:
        """[A] int64, where the window begins (the cursor, when it is empty)."""
        return self.window[0].start if self.window else self.cursor

    def newest(self, count: int) -> Snapshot:
        """The sink and the newest blocks alone, where they are: a copy."""
        window = self.window[len(self.window) - count :]
        later = sum(placed.meta.num_tokens for placed in window)
        tokens = [*range(self.sink.meta.num_tokens), *range(-later, 0)]
        return replace(self, window=window, keys_values=self._tokens(tokens))

    def frame(self, seconds: float) -> Snapshot:
        """The sink and the tokens of one time alone, where they are: a copy, of whose window nothing else is seen."""
        times = [float("nan")] * self.sink.meta.num_tokens
        times += [time for placed in self.window for time in placed.meta.seconds.tolist()]
        sink = range(self.sink.meta.num_tokens)
        return replace(self, keys_values=self._tokens([*sink, *(n for n, time in enumerate(times) if time == seconds)]))

    def _tokens(self, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of some of its tokens."""
        chosen = torch.tensor(numbers, dtype=torch.int64, device=self.keys_values[0][0].device)
        return [(keys[:, :, chosen], values[:, :, chosen]) for keys, values in self.keys_values]


class StreamCache(SpanCache):
    """Sink and recent window of one stream, as the decoder sees them while it watches.

    Positions grow with the stream and are rebased before they reach the trained length. The keys in it are always
    those that `place` gives for the stored, un-rotated ones: a resumed stream holds the same bits as one that ran on.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        window_tokens: int,
        clip_tokens: int,
        sink_positions: int,
        reserve: int,
        limit: int,
    ) -> None:
        """An empty cache.

        Args:
            adapter: the model.
            window_tokens: at most so many tokens stay hot behind the sink.
            clip_tokens: the longest clip there can be.
            sink_positions: what the sink takes.
            reserve: positions left free between sink and window at a rebase, for what answers place there.
            limit: the window is rebased before the cursor would pass it.
        """
        self.sink: Placed | None = None
        self.window: list[Placed] = []
        self.num_rebases = 0
        self._window_tokens, self._reserve, self._limit = window_tokens, reserve, limit
        self._window_positions = limit - sink_positions - reserve - clip_tokens
        self._slack = max(window_tokens, 4 * clip_tokens)
        self._clip_tokens = clip_tokens
        super().__init__(adapter, 0)

    @property
    def cursor(self) -> Tensor:
        """[A] int64, where the next clip is placed."""
        if self.window:
            return self.window[-1].stop
        return self.sink.stop if self.sink else torch.zeros(self.adapter.num_axes, dtype=torch.int64)

    @property
    def sink_tokens(self) -> int:
        """Tokens in the sink."""
        return self.sink.meta.num_tokens if self.sink else 0

    def prefill(self, span: TokenSpan, as_stored: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Runs a span through the decoder behind what is cached, and appends it, for `adopt` to keep.

        Args:
            span: the tokens.
            as_stored: what will be read of kv [L, 2, K, N, D] once it is stored: that is what the cache holds. None:
                the same.

        Returns:
            Its keys (un-rotated) and values [L, 2, K, N, D] as the decoder made them, and its start [A].
        """
        if not self.window and self.sink is None:
            self._allocate(len(span))
        self._compact_for(len(span))
        start = self.cursor
        positions = start[:, None] + span.positions
        try:
            self.adapter.forward(span.embeds, positions, self)
            kv = unplace(self.adapter, self._tail(len(span)), positions)
            self._write_tail(place(self.adapter, as_stored(kv) if as_stored else kv, positions))
        except BaseException:
            self._drop_tail()
            raise
        return kv, start

    def adopt(self, meta: BlockMeta) -> None:
        """Makes the span just prefilled the newest block of the window (or the sink), and evicts the oldest."""
        placed = Placed(meta, self.cursor)
        if self.sink is None:
            self.sink = placed
            return
        self.window.append(placed)
        self._evict()

    def restore(self, sink: BlockMeta, window: Sequence[tuple[BlockMeta, Tensor]], kv: Tensor) -> None:
        """Takes back a stream: its sink and window blocks with their starts, and their stored kv in that order."""
        self._allocate(sink.num_tokens)
        self.sink = Placed(sink, torch.zeros(self.adapter.num_axes, dtype=torch.int64))
        self.window = [Placed(meta, start) for meta, start in window]
        if int(self.cursor.max()) > self._limit:
            self.rebase(kv)
        else:
            self._fill(kv)

    def fits(self, blocks: Sequence[BlockMeta]) -> bool:
        """Whether so many blocks may be in the window: by their tokens, and by the positions that lie between these."""
        tokens = sum(meta.num_tokens for meta in blocks)
        positions = sum(int(meta.advance.max()) for meta in blocks)
        return tokens <= self._window_tokens and positions <= self._window_positions

    def must_rebase(self, span: TokenSpan) -> bool:
        """Whether the next span would pass the limit."""
        return bool(self.window) and int((self.cursor + span.advance).max()) > self._limit

    def rebase(self, kv: Tensor) -> None:
        """Moves the window back to the lowest positions it may have.

        Args:
            kv: stored kv [L, 2, K, S + W, D] of sink and window, in that order.
        """
        assert self.sink is not None
        starts = consecutive_starts(self.sink.stop + self._reserve, [placed.meta for placed in self.window])
        self.window = [Placed(placed.meta, start) for placed, start in zip(self.window, starts, strict=True)]
        self._fill(kv)
        self.num_rebases += 1

    def snapshot(self) -> Snapshot:
        """The present. Its keys and values are the cache's own, to be copied before the stream goes on."""
        assert self.sink is not None
        return Snapshot(self.sink, tuple(self.window), [layer.view() for layer in self.spans], self.cursor)

    def _allocate(self, sink_tokens: int) -> None:
        self.allocate(sink_tokens + self._window_tokens + self._clip_tokens + self._slack)

    def _fill(self, kv: Tensor) -> None:
        assert self.sink is not None
        positions = torch.cat([placed.positions for placed in [self.sink, *self.window]], dim=1)
        placed_kv = place(self.adapter, kv, positions)
        for layer, (keys, values) in zip(self.spans, placed_kv, strict=True):
            layer.begin = layer.end = 0
            layer.update(keys[None], values[None])

    def _evict(self) -> None:
        """Lets the oldest blocks go until the window fits."""
        excess = 0
        while not self.fits([placed.meta for placed in self.window]):
            excess += self.window.pop(0).meta.num_tokens
        for layer in self.spans:
            layer.slide(self.sink_tokens, layer.begin + excess)

    def _compact_for(self, tokens: int) -> None:
        for layer in self.spans:
            if layer.end + tokens > layer.get_max_length():
                layer.compact()

    def _held_tokens(self) -> int:
        return self.sink_tokens + sum(placed.meta.num_tokens for placed in self.window)

    def _tail(self, count: int) -> Tensor:
        tail = slice(self.spans[0].end - count, self.spans[0].end)
        return torch.stack([torch.cat([span.keys[:, :, tail], span.values[:, :, tail]]) for span in self.spans])

    def _write_tail(self, kv: Tensor) -> None:
        for layer, (keys, values) in zip(self.spans, kv, strict=True):
            layer.write(layer.end - kv.shape[3], keys[None], values[None])

    def _drop_tail(self) -> None:
        for layer in self.spans:
            layer.end = layer.begin + self._held_tokens()


def consecutive_starts(first: Tensor, metas: Sequence[BlockMeta]) -> list[Tensor]:
    """Starts [A] of blocks placed one right after the other."""
    starts = []
    for meta in metas:
        starts.append(first)
        first = first + meta.advance
    return starts


def closed_up(meta: BlockMeta) -> BlockMeta:
    """The same block laid out like text, one position a token on every axis."""
    axes, count = len(meta.advance), meta.num_tokens
    return replace(meta, positions=torch.arange(count).expand(axes, count).clone(), advance=torch.full((axes,), count))
