"""Every kernel against its specification on the device at hand, and how long both take; for `gpu_check.py`.

A kernel's cases come from one function in `CASES`; a new one is a line there. On a GPU the version under test is the
one that `vstream.kernels` chooses (`gpu_check.py` has it choose Triton's); on a CPU Triton's are named as left out. A
case is well if what comes out is as near to the specification as it says, or has the same bits where it says so. It
knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from bench_kernels_memory import SHAPES, TINY, WORDS, ModelShape, Stored, copy_seconds, noise, settled
from bench_stream import timed
from gpu_speed import Clock
from torch import Tensor

from vstream import kernels
from vstream.kernels import Dense, pack, reference
from vstream.kernels.attention import attend_reference
from vstream.memory.codec import CODECS

ROUNDS = 7
EXACT = 0.0
SCORES = 1e-5
"""Sums of float32 products in another order."""
ATTENTION = 1e-2
"""Two roundings of bfloat16, and sums in another order."""


@dataclass(frozen=True)
class Case:
    """A kernel at one size.

    Attributes:
        name: of both.
        spec, ours: the same work by the specification and as it is chosen here; what they give is compared.
        num_bytes: that must move, at the least.
        tolerance: largest relative distance; 0 for the same bits.
        over_the_link: whether the bytes come from the host: then a copy from there is the ceiling.
    """

    name: str
    spec: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    num_bytes: int
    tolerance: float = EXACT
    over_the_link: bool = False


def placing_cases(device: str, shape: ModelShape) -> Iterator[Case]:
    """Blocks unpacked, turned and written, out of the device's own memory."""
    for codec in CODECS:
        stored = Stored(shape, codec, device)
        spec, ours = (partial(placed, stored, version) for version in (reference, kernels))
        yield Case(f"place {codec}", spec, ours, stored.num_bytes)


def fetching_cases(device: str, shape: ModelShape) -> Iterator[Case]:
    """The same out of pinned memory of the host: scattered rows that the GPU reads, and long runs that are copied."""
    for codec in CODECS:
        for name, together in (("scattered", False), ("in runs", True)):
            stored = Stored(shape, codec, device, together=together)
            here = stored.slab.cpu()
            held = stored.on_host(here.pin_memory() if device == "cuda" else here)
            spec, ours = partial(placed, stored, reference), partial(placed, held, kernels)
            num_bytes = len(stored.places) * stored.layout.row_bytes
            yield Case(f"fetch {codec} {name}", spec, ours, num_bytes, over_the_link=True)


def scoring_cases(device: str, shape: ModelShape) -> Iterator[Case]:
    """All blocks scored by a question's words."""
    layers, blocks = shape.scored_layers, 4000 if device == "cuda" else 50
    words, centre = (noise(layers, shape.heads, count, shape.dim, device=device) for count in (WORDS, 1))
    for dtype in (torch.float16, torch.float8_e4m3fn):
        kept = noise(layers, shape.heads, blocks, shape.dim, device=device).to(dtype)

        def score(version: Any, kept: Tensor = kept) -> Tensor:
            found: Tensor = version.best_match(words, kept, centre, cosine=True)
            return found

        name = f"score {str(dtype).removeprefix('torch.')}"
        yield Case(name, lambda s=score: s(reference), lambda s=score: s(kernels), kept.nbytes, SCORES)


def packing_cases(device: str, shape: ModelShape) -> Iterator[Case]:
    """What is stored: the very bytes that a CPU would store."""
    kv = noise(2, 2, shape.heads, 8 * shape.block_tokens, shape.dim, device=device)
    base = kv[:, 0, :, :4].mean(dim=2).half()
    there = kv.cpu(), base.cpu()
    for bits in (8, 4):
        yield Case(f"pack int{bits}", lambda b=bits: reference.quantise(*there, b),
                   lambda b=bits: kernels.quantise(kv, base, b), kv.nbytes + kv.nbytes * bits // 32)  # fmt: skip


def attending_cases(device: str, shape: ModelShape) -> Iterator[Case]:
    """One token of two answers over parts that lie apart: in the model's own type, and as whole numbers."""
    tokens = (16, 7 * 1024, 8 * 1024, 40) if device == "cuda" else (16, 70, 80, 4)  # sink, retrieved, window, tail
    query = noise(2, 4 * shape.heads, shape.dim, device=device, dtype=shape.dtype)
    dense = [Dense(*noise(2, shape.heads, count, shape.dim, device=device, dtype=shape.dtype)) for count in tokens]
    numbers = 2 * 2 * shape.heads * sum(tokens) * shape.dim  # keys and values of both answers
    for bits in (0, 8, 4):
        parts = [pack(part.keys, part.values, bits) if bits else part for part in dense]
        spec, ours = (partial(version, query, [parts] * 2) for version in (attend_reference, kernels.attend))
        num_bytes = numbers * bits // 8 if bits else numbers * shape.dtype.itemsize
        yield Case(f"attend int{bits}" if bits else "attend", spec, ours, num_bytes, ATTENTION)


def placed(stored: Stored, version: Any) -> Tensor:
    """Keys and values, written anew: [2, K, N, D]."""
    both = torch.stack([stored.keys, stored.values])
    both.fill_(torch.nan)
    version.place_rows(stored.slab, stored.places, stored.owner, stored.layout, stored.tables, both[0], both[1])
    return both


CASES: dict[str, Callable[[str, ModelShape], Iterator[Case]]] = {
    "placing": placing_cases,
    "fetching": fetching_cases,
    "scoring": scoring_cases,
    "packing": packing_cases,
    "attending": attending_cases,
}
"""By name, in order; others add theirs here."""


def kernel_rows(device: str, *, tiny: bool, clock: Clock) -> dict[str, Any]:
    """A row for each case, as long as the clock runs; what was not tried is named."""
    rows, left_out = list[dict[str, Any]](), [] if device == "cuda" else [f"triton {name}" for name in CASES]
    with torch.inference_mode():
        for name, cases in CASES.items():
            if not clock.left:
                left_out.append(name)
                continue
            rows += [case_row(case, device) for case in cases(device, TINY if tiny else SHAPES[2])]
    return {"ok": all(row["ok"] for row in rows), "rows": rows, "left_out": left_out}


def case_row(case: Case, device: str) -> dict[str, Any]:
    """Compared once, then timed."""
    wanted, found = case.spec().cpu(), case.ours().cpu()
    equal = wanted.shape == found.shape and bytes_of(wanted) == bytes_of(found)
    off = float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))
    took = [float(np.median(timed(settled(device, work), ROUNDS))) for work in (case.spec, case.ours)]
    ceiling = link_seconds(case.num_bytes, device) if case.over_the_link else copy_seconds(case.num_bytes, device)
    return {"op": case.name, "ok": equal if case.tolerance == EXACT else off <= case.tolerance, "equal": equal,
            "relative": off, "spec_ms": took[0] * 1e3, "ours_ms": took[1] * 1e3, "bytes": case.num_bytes,
            "copy_share": ceiling / took[1]}  # fmt: skip


def bytes_of(tensor: Tensor) -> bytes:
    """Equal only where every bit is."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def link_seconds(num_bytes: int, device: str) -> float:
    """Of one copy of so many bytes from the host, pinned where there is a GPU."""
    here = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device == "cuda")
    there = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return float(np.median(timed(settled(device, lambda: there.copy_(here, non_blocking=True)), ROUNDS)))
