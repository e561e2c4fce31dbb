#!/usr/bin/env python3
"""Measures the memory's kernels beside their references: placing, gathering, scoring, packing, float8; last line JSON.

    .venv/bin/python scripts/bench_kernels_memory.py [--quick]

The two are taken in turns (A B B A ..) in one run on one thread, or on a GPU where there is one; a row says the median
of both, their ratio (above 1: ours is quicker), the bytes that must move at least, and the share of what one plain copy
of as many bytes reaches. `placing` is what a question's blocks cost: the reference is the chain of gather, dequantise,
turn and write that it replaces. `float8` says how many of the blocks chosen by float16 representatives are chosen by
float8 ones too. Numbers are random, of the shapes of published models: times do not depend on them. `bench_kernels.py`
shows these rows beside those of attention. This script knows nothing of attention.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from bench_stream import in_turns, timed
from torch import Tensor

from vstream import kernels
from vstream.kernels import Places, reference
from vstream.memory.block import BlockShape
from vstream.memory.codec import CODECS, make_codec

SEED = 0
BLOCKS = 64
WORDS = 12


@dataclass(frozen=True)
class ModelShape:
    """A published model's keys and values, and what is read of them.

    Attributes:
        name: of the model.
        heads, dim: K and D.
        scored_layers: a quarter of the layers, which choose.
        block_tokens: of a block of 4 frames.
        dtype: of keys and values.
    """

    name: str
    heads: int
    dim: int
    scored_layers: int
    block_tokens: int
    dtype: torch.dtype


SHAPES = (
    ModelShape("SmolLM2-135M", 3, 64, 8, 25, torch.float32),
    ModelShape("0.5B", 2, 64, 6, 64, torch.bfloat16),
    ModelShape("7B", 4, 128, 7, 64, torch.bfloat16),
    ModelShape("8B", 8, 128, 9, 64, torch.bfloat16),
)
TINY = ModelShape("tiny", 2, 16, 2, 6, torch.float32)


@dataclass(frozen=True)
class Row:
    """One kernel at one shape.

    Attributes:
        op, shape: what and of which size.
        reference_ms, ours_ms: medians, taken in turns.
        bytes: read and written, at the least.
        copy_share: of the bytes a second that one plain copy of as many reaches.
    """

    op: str
    shape: str
    reference_ms: float
    ours_ms: float
    bytes: int
    copy_share: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference."""
        return self.reference_ms / self.ours_ms


def noise(*size: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers, the same every time."""
    return torch.randn(size, generator=torch.Generator().manual_seed(SEED)).to(device, dtype)


def settled(device: str, work: Callable[[], object]) -> Callable[[], None]:
    """The same work, done when it returns."""

    def done() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return done


def copy_seconds(num_bytes: int, device: str) -> float:
    """Of one plain copy that reads and writes so many bytes together."""
    source = torch.zeros(max(1, num_bytes // 2), dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return float(np.median(timed(settled(device, lambda: into.copy_(source)), 7)))


def measured(
    op: str,
    shape: str,
    spec: Callable[[], object],
    ours: Callable[[], object],
    num_bytes: int,
    device: str,
    rounds: int,
) -> Row:
    """A row."""
    first, second = in_turns(settled(device, spec), settled(device, ours), rounds)
    seconds = float(np.median(second))
    share = copy_seconds(num_bytes, device) / seconds
    return Row(op, shape, float(np.median(first)) * 1e3, seconds * 1e3, num_bytes, share)


class Stored:
    """`BLOCKS` blocks of one layer in a slab, in scattered order, as `kernels.place_rows` takes them."""

    def __init__(
        self, shape: ModelShape, codec: str, device: str, *, blocks: int = BLOCKS, together: bool = False
    ) -> None:
        """Random keys and values; `together` the blocks are neighbours."""
        one = make_codec(codec, BlockShape(1, shape.heads, shape.dim, shape.dtype))
        kv = noise(1, 2, shape.heads, shape.block_tokens, shape.dim, device=device, dtype=shape.dtype)
        rows = one.encode(kv, 4)[0].contiguous().view(torch.int64)  # [rows of a block, W]
        order = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(SEED))[:blocks]
        self.slab = rows.repeat(2 * blocks, 1)[:, None]  # [S, 1, W]
        first = (torch.arange(blocks) if together else order)[:, None] * len(rows)
        heads, tokens = torch.arange(one.head_rows), torch.arange(one.head_rows, len(rows))
        slots = torch.cat([(first + heads).flatten(), (first + tokens).flatten()]).to(device)
        self.places = Places(slots, torch.zeros_like(slots))
        self.owner = torch.arange(blocks, device=device).repeat_interleave(shape.block_tokens)
        self.layout, self.num_tokens = one.layout, len(self.owner)
        self.keys, self.values = noise(
            2, shape.heads, self.num_tokens, shape.dim, device=device, dtype=shape.dtype
        )  # [K, N, D] each
        angles = noise(1, self.num_tokens, shape.dim, device=device)
        self.tables = angles.cos(), angles.sin()

    def on_host(self, slab: Tensor) -> Stored:
        """The same blocks in a copy of the slab that lies elsewhere."""
        other = copy(self)
        other.slab = slab
        other.places = Places(*self.places.on(slab.device))
        return other

    @property
    def num_bytes(self) -> int:
        """Rows in, keys and values out."""
        return len(self.places) * self.layout.row_bytes + self.keys.nbytes + self.values.nbytes

    def place(self, version: Any) -> None:
        """By a version of the kernel."""
        version.place_rows(self.slab, self.places, self.owner, self.layout, self.tables, self.keys, self.values)

    def gather(self, version: Any) -> Tensor:
        """The rows alone."""
        found: Tensor = version.gather_rows(self.slab, *self.places.on(self.slab.device))
        return found


def versions(call: Callable[[Any], object]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same call by the specification and by what is chosen here."""
    return lambda: call(reference), lambda: call(kernels)


def placing_rows(shape: ModelShape, device: str, rounds: int) -> Iterator[Row]:
    """One layer's blocks gathered alone, and gathered, unpacked, turned and written."""
    for codec in CODECS:
        stored = Stored(shape, codec, device)
        size, row_bytes = f"{shape.name}, {stored.num_tokens} tokens, {codec}", stored.layout.row_bytes
        yield measured("gather", size, *versions(stored.gather), 2 * stored.num_tokens * row_bytes, device, rounds)
        yield measured("place", size, *versions(stored.place), stored.num_bytes, device, rounds)


def scoring_rows(shape: ModelShape, device: str, rounds: int, blocks: int) -> Iterator[Row]:
    """All blocks scored by a question's words, and the best chosen."""
    layers = shape.scored_layers
    words, centre = (noise(layers, shape.heads, count, shape.dim, device=device) for count in (WORDS, 1))
    for dtype in (torch.float16, torch.float8_e4m3fn):
        kept = noise(layers, shape.heads, blocks, shape.dim, device=device).to(dtype)
        size = f"{shape.name}, {blocks} blocks, {str(dtype).removeprefix('torch.')}"
        score = partial(_scored, words, kept, centre)
        yield measured("score", size, *versions(score), kept.nbytes, device, rounds)
    scores, sizes = noise(blocks, device=device), torch.full((blocks,), shape.block_tokens)
    choose = partial(_chosen, scores, sizes, BLOCKS * shape.block_tokens)
    yield measured("choose", f"{blocks} blocks", *versions(choose), scores.nbytes, device, rounds)


def _scored(words: Tensor, kept: Tensor, centre: Tensor, version: Any) -> Any:
    return version.best_match(words, kept, centre, cosine=True)


def _chosen(scores: Tensor, sizes: Tensor, budget: int, version: Any) -> Any:
    return version.top_within(scores, sizes, budget)


def packing_rows(shape: ModelShape, device: str, rounds: int) -> Iterator[Row]:
    """One layer of `BLOCKS` blocks quantised and packed."""
    kv = noise(1, 2, shape.heads, BLOCKS * shape.block_tokens, shape.dim, device=device)
    base = kv[:, 0, :, :4].mean(dim=2).half()
    for bits in (8, 4):
        pack = partial(_packed, kv, base, bits)
        size = f"{shape.name}, {kv.shape[3]} tokens"
        yield measured(f"pack int{bits}", size, *versions(pack), kv.nbytes + kv.nbytes * bits // 32, device, rounds)


def _packed(kv: Tensor, base: Tensor, bits: int, version: Any) -> Any:
    return version.quantise(kv, base, bits)


def rows(shapes: Sequence[ModelShape], device: str, *, rounds: int, blocks: int) -> list[Row]:
    """All rows, printed as they come."""
    found = []
    with torch.inference_mode():
        for shape in shapes:
            for make in (placing_rows(shape, device, rounds), scoring_rows(shape, device, rounds, blocks),
                         packing_rows(shape, device, rounds)):  # fmt: skip
                for row in make:
                    show(row)
                    found.append(row)
    return found


def show(row: Row) -> None:
    """Prints one."""
    print(
        f"{row.op:10}{row.shape:42}{row.reference_ms:10.2f} ms{row.ours_ms:10.2f} ms{row.ratio:7.2f}x"
        f"{row.bytes / 1e6:9.1f} MB{100 * row.copy_share:6.0f} %",
        flush=True,
    )


def float8_overlap(blocks: int, budget: int, questions: int = 50) -> dict[str, float]:
    """Of the blocks chosen by float16 mean keys, the share that float8 ones choose too, and of the best tenth of these.

    Keys share a large part, as un-rotated keys do, ten times what tells them apart, or do not.
    """
    found = {}
    for name, shared in (("apart", 0.0), ("sharing", 10.0)):
        random = torch.Generator().manual_seed(SEED)
        own = torch.randn(4, 3, blocks, 64, generator=random)
        keys = (own + shared * torch.randn(4, 3, 1, 64, generator=random)).half()
        centre, low = keys.float().mean(dim=2, keepdim=True), keys.to(torch.float8_e4m3fn)
        shares = []
        for _ in range(questions):
            words = torch.randn(4, 3, WORDS, 64, generator=random)
            scores = (kernels.best_match(words, one, centre, cosine=True) for one in (keys, low))
            high_ids, low_ids = (set(one.topk(budget).indices.tolist()) for one in scores)
            shares.append(len(high_ids & low_ids) / budget)
        found[name] = float(np.mean(shares))
    return found


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models, fewer rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, rounds = (SHAPES[:2], 5) if options.quick else (SHAPES, 15)
    found = rows(shapes, device, rounds=rounds, blocks=1000 if options.quick else 4000)
    report: dict[str, Any] = {"device": device, "rows": [{**asdict(row), "ratio": row.ratio} for row in found]}
    report["float8_overlap"] = float8_overlap(1000, BLOCKS)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
