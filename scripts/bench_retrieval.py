#!/usr/bin/env python3
"""Measures, for every retrieval policy, choosing and fetching blocks against the prefill of the question they are for.

One run, one thread, the policies in turns round by round: median time to select among many blocks and to fetch the
chosen ones and place them, and as the yardstick the model's own pass over the question's tokens behind a cache of sink,
window and as many tokens as were fetched. Wanted is that selecting and fetching take less than that pass. With
`--json`, the last line is JSON.

Keys and values are random, of the model's shapes: how long it takes does not depend on them. So many blocks are scored
as `--blocks` says, all with representatives of their own; keys and values are kept of the first 256, and what is
chosen is fetched as its number modulo 256, which costs the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from bench_stream import full_cache, load

from vstream.config import Config
from vstream.memory.block import Block, BlockMeta, BlockShape
from vstream.memory.columns import COLUMNS, Rows
from vstream.memory.policies import RETRIEVERS, make_retriever
from vstream.memory.representatives import RepresentativeTable
from vstream.memory.retriever import Candidates, Query
from vstream.memory.store import BlockStore
from vstream.models.base import Adapter
from vstream.types import Frame

STORED = 256
HALF_HOUR = 1800.0  # seconds into the stream: a clip of then is laid out to know how long blocks are
QUESTION = "Which animal was seen before the rocket started, and when was that?"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One policy's medians.

    Attributes:
        policy: its name.
        select_ms, fetch_ms: to choose among all blocks, and to bring the chosen ones and place them.
        prefill_ms: of the question, in the same rounds.
        extra_bytes: what the policy keeps of a block beside its mean key.
    """

    policy: str
    select_ms: float
    fetch_ms: float
    prefill_ms: float
    extra_bytes: int

    @property
    def met(self) -> bool:
        """Whether the question waits less for its blocks than for its own pass."""
        return self.select_ms + self.fetch_ms < self.prefill_ms


class Shelf:
    """All that one policy reads of `num_blocks` blocks, as a store has it."""

    def __init__(self, adapter: Adapter, policy: str, num_blocks: int, rows: Rows, keys: RepresentativeTable) -> None:
        """Random extras of the policy's size."""
        self.retriever, self._rows, self._keys = make_retriever(policy), rows, keys
        self._layers = slice(0, self.retriever.num_layers_read(adapter.num_layers))
        extra = self.retriever.extra(self._layers.stop, shape_of(adapter), adapter.config.hidden_size)
        self._extras = filled(extra.size, num_blocks) if extra else None
        self.extra_bytes = replace(shape_of(adapter), extra=extra).extra_bytes

    def select(self, query: Query, budget_tokens: int) -> tuple[int, ...]:
        """What a question does: the rows of all blocks, their mean, the policy's choice."""
        ids, weights = self._rows["id"].tolist(), torch.from_numpy(self._rows["weight"].copy())
        keys = self._keys.kept(ids, self._layers)
        extra = None if self._extras is None else self._extras.kept(ids)
        mean = keys.mean(weights) if self.retriever.reads_mean else None
        extra_mean = extra.mean(weights) if extra is not None and self.retriever.reads_extra_mean else None
        blocks = Candidates(self._rows, keys, mean, extra, extra_mean, budget_tokens)
        asked = replace(query, mean=query.mean[self._layers], word_keys=query.word_keys[self._layers])
        return self.retriever.select(asked, blocks).ids


def shape_of(adapter: Adapter) -> BlockShape:
    """Of a model's blocks."""
    return BlockShape(adapter.num_layers, adapter.num_kv_heads, adapter.head_dim, adapter.dtype)


def filled(size: tuple[int, int, int], num_blocks: int) -> RepresentativeTable:
    """A table with a random row for each of the blocks 0, 1, ..."""
    table = RepresentativeTable(size, device=CPU, max_rows=num_blocks)
    table.reserve(num_blocks)
    for block_id in range(num_blocks):
        table.add(block_id, torch.randn(size))
    return table


def rows_of(num_blocks: int, block_tokens: int) -> Rows:
    """Blocks of 4 s, one after the other."""
    rows = np.zeros(num_blocks, COLUMNS)
    rows["id"], rows["num_tokens"], rows["weight"] = np.arange(num_blocks), block_tokens, 4
    rows["start_seconds"] = np.arange(num_blocks) * 4.0
    rows["end_seconds"] = rows["start_seconds"] + 3
    return rows


def store_of(adapter: Adapter, block_tokens: int) -> BlockStore:
    """`STORED` random blocks in RAM."""
    shape = shape_of(adapter)
    slots = -(-block_tokens // 8) * 8 * shape.bytes_per_token + 65536
    store = BlockStore(
        shape,
        device=CPU,
        device_bytes=0,
        host_bytes=STORED * slots,
        disk_bytes=0,
        identity={},
        max_block_tokens=block_tokens,
    )
    for block_id in range(STORED):
        store.commit([random_block(shape, block_id, block_tokens, adapter.num_axes)], [], b"")
    return store


def random_block(shape: BlockShape, block_id: int, tokens: int, axes: int) -> Block:
    """A block of so many vision tokens."""
    start, count = 4.0 * block_id, torch.full((axes,), tokens)
    positions = torch.arange(tokens).expand(axes, tokens).clone()
    kinds, seconds = torch.zeros(tokens, dtype=torch.uint8), torch.full((tokens,), start, dtype=torch.float64)
    meta = BlockMeta(block_id, 0, start, start + 3, None, 4.0, kinds, seconds, positions, count, count * 0)
    kv = torch.randn(shape.num_layers, 2, shape.num_kv_heads, tokens, shape.head_dim, dtype=shape.dtype)
    return Block(meta, kv, kv[:, 0].float().mean(dim=2).half())


def random_query(adapter: Adapter, words: int) -> Query:
    """A question's, of all layers."""
    size = (adapter.num_layers, adapter.num_kv_heads)
    keys, embeds = torch.randn(*size, words, adapter.head_dim), torch.randn(words, adapter.config.hidden_size)
    return Query(torch.randn(*size, adapter.head_dim), keys, (), embeds)


def fetcher(adapter: Adapter, store: BlockStore, block_tokens: int) -> Callable[[tuple[int, ...]], None]:
    """Brings blocks back, placed one after the other, layer by layer, as `vstream.recall` does."""

    def fetch(chosen: tuple[int, ...]) -> None:
        found = store.fetch([block_id % STORED for block_id in chosen])
        positions = torch.arange(len(chosen) * block_tokens).expand(adapter.num_axes, -1) % adapter.max_positions
        tables, size = adapter.rotary(positions), (adapter.num_kv_heads, found.num_tokens, adapter.head_dim)
        keys, values = torch.empty(2, *size, dtype=adapter.dtype)
        for layer in found.layers:
            found.place(layer, tables, keys, values)

    return fetch


def prefiller(adapter: Adapter, cached_tokens: int) -> Callable[[], None]:
    """The model's pass over the question behind so many tokens; the cache is left as it was."""
    question, cache = adapter.question(QUESTION), full_cache(adapter, cached_tokens)
    start = min(cached_tokens, adapter.max_positions - len(question.span))

    def prefill() -> None:
        adapter.forward(question.span.embeds, start + question.span.positions, cache)
        cache.crop(-len(question.span))

    return prefill


@torch.inference_mode()
def bench(model: str, *, blocks: int, fetched: int, rounds: int) -> list[Row]:
    """Every policy's row."""
    adapter, table = load(model)
    config = Config(**adapter.settings)
    frames = [Frame(HALF_HOUR + number, table[0].float().numpy()) for number in range(config.clip_frames)]
    block_tokens = len(adapter.layout(frames, adapter.encode(frames)))
    keys, rows = filled(shape_of(adapter).representative_size, blocks), rows_of(blocks, block_tokens)
    shelves = [Shelf(adapter, policy, blocks, rows, keys) for policy in sorted(RETRIEVERS)]
    query = random_query(adapter, int(adapter.question(QUESTION).query.sum()))
    fetch = fetcher(adapter, store_of(adapter, block_tokens), block_tokens)
    prefill = prefiller(adapter, len(adapter.sink()) + config.window_tokens + fetched * block_tokens)
    return in_turns(shelves, lambda shelf: shelf.select(query, fetched * block_tokens), fetch, prefill, rounds)


def in_turns(
    shelves: Sequence[Shelf],
    select: Callable[[Shelf], tuple[int, ...]],
    fetch: Callable[[tuple[int, ...]], None],
    prefill: Callable[[], None],
    rounds: int,
) -> list[Row]:
    """Rows from so many rounds, each of all policies, after one that warms up."""
    found = np.zeros((rounds + 1, len(shelves), 3))
    for times in found:
        for shelf, row in zip(shelves, times, strict=True):
            start = time.perf_counter()
            ids = select(shelf)
            selected = time.perf_counter()
            fetch(ids)
            fetched = time.perf_counter()
            prefill()
            row[:] = selected - start, fetched - selected, time.perf_counter() - fetched
    medians = np.median(found[1:], axis=0) * 1e3
    each = zip(shelves, medians.tolist(), strict=True)
    return [Row(shelf.retriever.name, *times, shelf.extra_bytes) for shelf, times in each]


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    names = ("select ms", "fetch ms", "both ms", "prefill ms", "met", "extra bytes")
    print(f"{'policy':14}" + "".join(f"{name:>12}" for name in names))
    for row in rows:
        both = row.select_ms + row.fetch_ms
        times = f"{row.select_ms:12.1f}{row.fetch_ms:12.1f}{both:12.1f}{row.prefill_ms:12.1f}"
        print(f"{row.policy:14}{times}{'yes' if row.met else 'NO':>12}{row.extra_bytes:12}")


def main() -> None:
    """Runs one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("random", "embedded"), default="embedded", help="whose shapes")
    parser.add_argument("--blocks", type=int, default=1000, help="to choose among (4 s each with the embedded model)")
    parser.add_argument("--fetched", type=int, default=64, help="blocks brought back")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="all figures as JSON, on the last line")
    options = parser.parse_args()
    for name, most in (("blocks", 10**6), ("fetched", min(STORED, options.blocks)), ("rounds", 10**4)):
        if not 1 <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from 1 to {most}, got {getattr(options, name)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = bench(options.model, blocks=options.blocks, fetched=options.fetched, rounds=options.rounds)
    show(rows)
    if options.json:
        of = {"model": options.model, "blocks": options.blocks, "fetched": options.fetched, "rounds": options.rounds}
        print(json.dumps({**of, "policies": [{**asdict(row), "met": row.met} for row in rows]}))


if __name__ == "__main__":
    main()
