#!/usr/bin/env python3
"""Times every kernel beside its reference and the libraries' own; prints tables, the last line is JSON.

    .venv/bin/python scripts/bench_kernels.py [--quick] [--json]

Attention: one token of one answer, one layer, over [sink | gist | retrieved | window | tail] that lie apart.

- `parts`: `kernels.attend`; `one part`: `kernels.attend_one` over the gathered buffer, as vstream's answers are today;
  `paged`: what is retrieved lies in slots of a slab; `int8`, `int4`: it is quantised as `kernels.pack` does it.
- `sdpa`: torch's, with `enable_gqa`, as transformers calls it, on a buffer into which the parts were gathered once. Its
  gather is shown apart: a 64th of it added (an answer of 64 tokens), and all of it (gathered for every token).
- `sdpa rows`: the same with grouped heads as rows, the best that sdpa can do on a CPU.
- `flex`: FlexAttention, compiled (not with `--quick` on a CPU: compiling takes longer than all else); `flashinfer`:
  on a GPU, if it is installed.

Prefill: the last n of N tokens, `kernels.prefill` beside `sdpa` with the mask that transformers makes.

All ways take turns in one run, on one thread of a CPU, where the process's own time counts, not others'. A call goes
through as many layers of the model as do not fit the caches together, and is divided by them. `copy` is the share of
what a plain copy of as many bytes reaches here (what must be read, at the speed at which a copy reads and writes).
Errors are ||out - ref|| / ||ref|| against float64. Rows of `bench_kernels_memory.py`, where it is there, follow.
`--json` prints the last line alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vstream.kernels import Dense, Paged, Part, attend, attend_one, pack, prefill
from vstream.kernels.attention import attend_reference, grouped

ANSWER_TOKENS = 64
CACHE_BYTES = 96 << 20  # more than fit the caches
SLOT_TOKENS = 16
SHARES = {"gist": 1 / 16, "retrieved": 7 / 16, "window": 1 / 2}
SINK_TOKENS, TAIL_TOKENS = 16, 40
WHOLE_NUMBERS = {"int8": 8, "int4": 4}
Row = dict[str, Any]
Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Shape:
    """Attention of a published model: H query heads, K key/value heads, head dim D."""

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    dim: int

    def noise(self, tokens: int, plan: Plan) -> Tensor:
        """Random keys and values [2, K, N, D]."""
        return torch.randn(2, self.num_kv_heads, tokens, self.dim, device=plan.device).to(plan.dtype)

    def query(self, plan: Plan, tokens: int = 1) -> Tensor:
        """Random queries [1, H, N, D]."""
        return torch.randn(1, self.num_heads, tokens, self.dim, device=plan.device).to(plan.dtype)


EMBEDDED, HALF, SEVEN, EIGHT = (
    Shape("embedded", 30, 9, 3, 64),
    Shape("0.5B", 24, 14, 2, 64),
    Shape("7B", 28, 28, 4, 128),
    Shape("8B", 32, 32, 8, 128),
)


@dataclass(frozen=True)
class Plan:
    """What is measured where: decoding over so many tokens, and prefill of n tokens after a past of so many."""

    decode: Sequence[tuple[Shape, int]]
    prefill: Sequence[tuple[Shape, int, int]]
    rounds: int
    device: str
    dtype: torch.dtype
    quick: bool

    @classmethod
    def of(cls, quick: bool) -> Plan:
        """The whole of it, or a minute's worth."""
        cuda = torch.cuda.is_available()
        sizes = (4096,) if quick else (4096, 16384, 65536)
        decode = [(EMBEDDED, 500), (EMBEDDED, 2000), (EMBEDDED, 8000)]
        decode += [(shape, tokens) for shape in (HALF, SEVEN, EIGHT) for tokens in sizes]
        clips = [(EMBEDDED, 64, 500), (EMBEDDED, 200, 2000)]
        clips += [] if quick else [(EMBEDDED, 200, 8000), (SEVEN, 200, 2000), (SEVEN, 200, 8000)]
        rounds, dtype = (7 if quick else 11), (torch.bfloat16 if cuda else torch.float32)
        return cls(decode, clips, rounds, "cuda" if cuda else "cpu", dtype, quick)

    def medians(self, ways: Ways) -> dict[str, float]:
        """Median milliseconds of each way; they take turns, after two rounds that do not count."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        clock = time.perf_counter if self.device == "cuda" else time.process_time
        for _ in range(self.rounds + 2):
            for name, work in ways.items():
                self.settle()
                start = clock()
                work()
                self.settle()
                times[name].append(clock() - start)
        return {name: 1e3 * statistics.median(found[2:]) for name, found in times.items()}

    def settle(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Answer:
    """What one token attends to, in parts that lie apart and in one buffer."""

    def __init__(self, shape: Shape, tokens: int, plan: Plan) -> None:
        """Random numbers."""
        sizes = {"sink": SINK_TOKENS, **{name: int(tokens * share) for name, share in SHARES.items()}}
        sizes["tail"] = TAIL_TOKENS
        self.shape = shape
        self.query = shape.query(plan)  # [1, H, 1, D]
        self.parts: dict[str, Part] = {name: Dense(*shape.noise(count, plan)) for name, count in sizes.items()}
        self.num_tokens = sum(sizes.values())
        self.gathered = self.gather()

    def gather(self) -> tuple[Tensor, Tensor]:
        """Keys and values [1, K, N, D] in one buffer."""
        keys, values = (torch.cat(some, dim=1)[None] for some in zip(*map(_dense, self.parts.values()), strict=True))
        return keys, values

    @property
    def num_bytes(self) -> int:
        """Of keys and values."""
        return sum(part.nbytes for part in self.gathered)

    def bytes_read(self, way: str) -> int:
        """What must be read: less where what is retrieved is whole numbers, with 8 bytes for a token and head."""
        if way not in WHOLE_NUMBERS:
            return self.num_bytes
        keys, values = self.parts["retrieved"].dense()
        heads, tokens, dim = keys.shape
        packed = 2 * heads * tokens * dim * WHOLE_NUMBERS[way] // 8 + 8 * heads * tokens
        return self.num_bytes - keys.nbytes - values.nbytes + packed

    def with_retrieved(self, make: Callable[[Tensor, Tensor], Part]) -> list[Part]:
        """The parts, what is retrieved in another form."""
        return list((self.parts | {"retrieved": make(*self.parts["retrieved"].dense())}).values())

    def exactly(self) -> Tensor:
        """The answer [1, H, D] in float64."""
        keys, values = (part[0].double() for part in self.gathered)
        return attend_reference(self.query[:, :, 0].double(), [[Dense(keys, values)]])

    def attend(self, parts: Sequence[Part]) -> Tensor:
        """By the kernel."""
        return attend(self.query[:, :, 0], [parts])

    def sdpa(self) -> Tensor:
        """By torch, as transformers calls it."""
        return scaled_dot_product_attention(self.query, *self.gathered, enable_gqa=True)

    def sdpa_rows(self) -> Tensor:
        """By torch, grouped heads as rows."""
        return scaled_dot_product_attention(grouped(self.query[0, :, 0], self.shape.num_kv_heads)[None], *self.gathered)


def _dense(part: Part) -> tuple[Tensor, Tensor]:
    return part.dense()


def paged(keys: Tensor, values: Tensor) -> Paged:
    """The same tokens [K, N, D] in scattered slots of a slab."""
    heads, tokens, dim = keys.shape
    count = -(-tokens // SLOT_TOKENS)
    table = torch.randperm(2 * count)[:count].to(keys.device)
    slab = keys.new_zeros(2 * count, SLOT_TOKENS, 2, heads, dim)
    rows = torch.stack([keys, values]).permute(2, 0, 1, 3)  # [N, 2, K, D]
    filled = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, 0, 0, count * SLOT_TOKENS - tokens))
    slab[table] = filled.view(count, SLOT_TOKENS, 2, heads, dim)
    return Paged(slab[:, :, 0], slab[:, :, 1], table, tokens)


def decode_rows(plan: Plan) -> Iterator[Row]:
    """One row for each way, shape and number of tokens."""
    for shape, tokens in plan.decode:
        answer = Answer(shape, tokens, plan)
        count = max(1, min(shape.num_layers, CACHE_BYTES // answer.num_bytes))
        by_layer = [
            decode_ways(one, plan) for one in (answer, *(Answer(shape, tokens, plan) for _ in range(count - 1)))
        ]
        ways: Ways = {name: partial(through, [layer[name] for layer in by_layer]) for name in by_layer[0]}
        copy, exact = ceiling(answer.num_bytes * count, plan), answer.exactly()
        found = {name: ms / count for name, ms in plan.medians(ways).items()}
        gather = found.pop("gather")
        for name, ms in found.items():
            yield {
                "op": "decode", "way": name, "shape": shape.name, "tokens": answer.num_tokens, "ms": ms,
                "vs_sdpa": found["sdpa"] / ms, "vs_sdpa_answer": (found["sdpa"] + gather / ANSWER_TOKENS) / ms,
                "vs_sdpa_gather": (found["sdpa"] + gather) / ms, "megabytes": answer.bytes_read(name) / 1e6,
                "copy": answer.bytes_read(name) / 1e6 / ms / copy, "error": error(ways[name](), exact),
            }  # fmt: skip


def decode_ways(answer: Answer, plan: Plan) -> Ways:
    """All ways to attend in one layer."""
    forms: dict[str, list[Part]] = {
        "parts": list(answer.parts.values()),
        "paged": answer.with_retrieved(paged),
        "int8": answer.with_retrieved(partial(pack, bits=8)),
        "int4": answer.with_retrieved(partial(pack, bits=4)),
    }
    ways: Ways = {name: partial(answer.attend, parts) for name, parts in forms.items()}
    ways["one part"] = partial(attend_one, answer.query, *answer.gathered)
    return ways | {"sdpa": answer.sdpa, "sdpa rows": answer.sdpa_rows, "gather": answer.gather, **others(answer, plan)}


def through(layers: Sequence[Callable[[], Any]]) -> Any:
    """Calls all, and gives what the first gave."""
    first, *_ = [layer() for layer in layers]
    return first


def others(answer: Answer, plan: Plan) -> Ways:
    """Other libraries' kernels on the gathered buffer, as far as they run here."""
    ways: Ways = {}
    if not plan.quick or plan.device == "cuda":
        ways["flex"] = flex(answer)
    if plan.device == "cuda" and find_spec("flashinfer"):
        flashinfer: Any = importlib.import_module("flashinfer")
        keys, values = (part[0].transpose(0, 1) for part in answer.gathered)  # [N, K, D]
        ways["flashinfer"] = lambda: flashinfer.single_decode_with_kv_cache(answer.query[0, :, 0], keys, values)
    return ways


def flex(answer: Answer) -> Callable[[], Tensor]:
    """FlexAttention, compiled."""
    compiled = _compiled_flex()
    return lambda: compiled(answer.query, *answer.gathered, enable_gqa=True)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64  # once for every size
    return torch.compile(flex_attention, dynamic=False)


def prefill_rows(plan: Plan) -> Iterator[Row]:
    """`kernels.prefill` and what transformers does, the mask's making in it."""
    for shape, new, past in plan.prefill:
        query, (keys, values) = shape.query(plan, new), shape.noise(past + new, plan)[:, None]
        ways: Ways = {"prefill": partial(prefill, query, keys, values), "sdpa": partial(masked, query, keys, values)}
        found = plan.medians(ways)
        outs = {name: way() for name, way in ways.items()}
        for name, ms in found.items():
            yield {
                "op": "prefill", "way": name, "shape": shape.name, "tokens": past + new, "new": new, "ms": ms,
                "vs_sdpa": found["sdpa"] / ms, "mask_megabytes": 0.0 if name == "prefill" else new * (past + new) / 1e6,
                "error": error(outs[name], outs["sdpa"].double()),
            }  # fmt: skip


def masked(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As transformers does it: repeated heads, and a mask."""
    seen = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
    group = query.shape[1] // keys.shape[1]
    repeated = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    return scaled_dot_product_attention(query, *repeated, attn_mask=seen.tril(keys.shape[2] - query.shape[2]))


def error(out: Tensor, ref: Tensor) -> float:
    """Of float64."""
    return float((out.double().flatten() - ref.flatten()).norm() / ref.norm())


def ceiling(num_bytes: int, plan: Plan) -> float:
    """Megabytes a millisecond that a plain copy reads and writes, of as many bytes in all."""
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    return num_bytes / 1e6 / plan.medians({"copy": lambda: target.copy_(source)})["copy"]


OPS: dict[str, Callable[[Plan], Iterator[Row]]] = {"decode": decode_rows, "prefill": prefill_rows}


def show(row: Row) -> str:
    """A line of the table."""
    ratios = "  ".join(f"{row[name]:6.2f}x" for name in ("vs_sdpa", "vs_sdpa_answer", "vs_sdpa_gather") if name in row)
    share = f"  copy {100 * row['copy']:4.0f}%" if "copy" in row else ""
    name = f"{row['op']:8}{row['way']:11}{row['shape']:9}{row['tokens']:7,}"
    return f"{name}{row['ms']:10.3f} ms  {ratios}{share}  error {row['error']:.1e}"


def ratio_of(rows: Sequence[Row]) -> float:
    """Parts against sdpa on a buffer gathered once for an answer: the geometric mean over shapes and sizes."""
    return statistics.geometric_mean(row["vs_sdpa_answer"] for row in rows if row["way"] == "parts")


def memory_rows(quick: bool) -> list[Row]:
    """Those of the memory's kernels, where their script is there."""
    if find_spec("bench_kernels_memory") is None:
        return []
    memory: Any = importlib.import_module("bench_kernels_memory")
    shapes, blocks = (memory.SHAPES[:2], 1000) if quick else (memory.SHAPES, 4000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = memory.rows(shapes, device, rounds=5 if quick else 15, blocks=blocks)
    return [{**asdict(row), "ratio": row.ratio} for row in found]


@torch.inference_mode()
def main() -> None:
    """Prints tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds: a minute")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan, rows = Plan.of(options.quick), list[Row]()
    for make in OPS.values():
        for row in make(plan):
            rows.append(row)
            if not options.json:
                print(show(row), file=sys.stdout, flush=True)
    result: Row = {
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    result |= {"parts_attention_vs_gather_sdpa": ratio_of(rows), "rows": rows + memory_rows(options.quick)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
