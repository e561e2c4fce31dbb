#!/usr/bin/env python3
"""Checks vstream on a CUDA machine without a network, in less than 8 minutes; the last line is JSON.

    .venv/bin/python scripts/gpu_check.py          # on a GPU
    .venv/bin/python scripts/gpu_check.py --tiny   # the same code with tiny shapes on a CPU

What is looked at, part by part (a new part is one function and one line in `PARTS`):

- exactness: every family at tiny sizes in float32, bfloat16 and float16 against the stock model (`gpu_exactness.py`).
- kernels: every kernel against its specification, and beside one plain copy of the same bytes (`gpu_kernels.py`).
- transfer: blocks between device and host, beside what one plain copy of pinned memory reaches (`gpu_speed.py`).
- models: the sizes of published 7B models with random weights (`gpu_shapes.py`): watching, answering and bytes with
  several presets, beside the bare model.

Weights are random, so nothing is said of what answers mean. Each part has its time; what it leaves out is named under
`left_out`. What fails says so in its row, the rest goes on, and the exit code is 1. `benchmarks/README.md` explains
the figures. This script knows nothing of how anything is measured.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_exactness import family_row, write_family
from gpu_kernels import kernel_rows
from gpu_shapes import SHAPES, Shape, build, tiny
from gpu_speed import PLAN, PRESETS, TINY_PLAN, Clock, Plan, preset_row, transfer, vision
from make_checkpoint import FAMILIES

from vstream.models import tiny as tiny_model
from vstream.models.embedded import fetch
from vstream.models.embedded.convert import LANGUAGE
from vstream.models.options import LoadOptions

os.environ.setdefault("VSTREAM_KERNELS", "triton")  # what is to be checked here; torch compares
ALL_SECONDS, HARD_SECONDS = 430, 475  # nothing is begun after the first; the second ends even what hangs
EXACTNESS_SECONDS, KERNEL_SECONDS, MODEL_SECONDS = 110, 60, 140
DTYPES, TINY_DTYPES = ("float32", "bfloat16", "float16"), ("float32", "bfloat16")
TINY_FAMILIES = ("qwen2_5_vl", "llava_onevision")
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What all parts share.

    Attributes:
        device: where it computes: "cuda" or "cpu".
        tiny: tiny shapes, in a few seconds.
        tokenizer_file: the one that random checkpoints get.
        clock: of all parts together.
    """

    device: str
    tiny: bool
    tokenizer_file: Path
    clock: Clock = field(default_factory=lambda: Clock(ALL_SECONDS))

    def part(self, seconds: float) -> Clock:
        """A part's own clock, which is over when the whole one is."""
        return Clock(min(seconds, self.clock.left))


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """A row, or what went wrong instead; either is printed at once."""
    try:
        row = work()
    except Exception as error:
        traceback.print_exc()
        row = {"ok": False, "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"{name}: {json.dumps(row)}", flush=True)
    return row


def machine(run: Run) -> Row:
    """What it runs on."""
    gpu = torch.cuda.get_device_properties(0) if run.device == "cuda" else None
    return {
        "gpu": gpu.name if gpu else None, "gpu_bytes": gpu.total_memory if gpu else None,
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
        "python": platform.python_version(), "threads": torch.get_num_threads(),
        "tokenizer": "tiny" if run.tokenizer_file == _tiny_tokenizer() else "SmolLM2",
    }  # fmt: skip


def exactness(run: Run) -> Row:
    """Every family in every type, until the time is over."""
    clock, rows, left_out = run.part(EXACTNESS_SECONDS), list[Row](), list[str]()
    for family in TINY_FAMILIES if run.tiny else FAMILIES:
        if clock.left:
            rows += family_rows(run, family)
        else:
            left_out.append(family)
    return {"ok": all(row["ok"] for row in rows), "rows": rows, "left_out": left_out}


def family_rows(run: Run, family: str) -> list[Row]:
    """One family in every type; its checkpoint lies in a folder of its own for so long."""
    with tempfile.TemporaryDirectory() as scratch:
        written: dict[str, Any] = {}

        def in_type(dtype: str) -> Row:
            if not written:
                written["exact"] = write_family(family, Path(scratch) / family, run.device, run.tokenizer_file)
            return family_row(family, written["exact"], dtype)

        dtypes = TINY_DTYPES if run.tiny else DTYPES
        rows = [attempt(f"exactness, {family} in {one}", lambda one=one: in_type(one)) for one in dtypes]
    return [{"family": family, "dtype": one, **row} for one, row in zip(dtypes, rows, strict=True)]


def kernels(run: Run) -> Row:
    """Whether kernels are right, and how fast."""
    clock = run.part(KERNEL_SECONDS)
    return attempt("kernels", lambda: kernel_rows(run.device, tiny=run.tiny, clock=clock))


def transfers(run: Run) -> Row:
    """How fast blocks travel."""
    return attempt("transfer", lambda: transfer(torch.device(run.device), tiny=run.tiny))


def models(run: Run) -> list[Row]:
    """One row for each model, whose presets are rows in it."""
    shapes, plan = ([tiny(shape) for shape in SHAPES], TINY_PLAN) if run.tiny else (SHAPES, PLAN)
    return [attempt(shape.name, lambda shape=shape: model_row(run, shape, plan)) for shape in shapes]


def model_row(run: Run, shape: Shape, plan: Plan) -> Row:
    """Builds a model, times its vision tower, and then each preset."""
    clock, start = run.part(MODEL_SECONDS), time.perf_counter()
    options = LoadOptions(device=run.device, dtype="float32" if run.device == "cpu" else "bfloat16")
    with tempfile.TemporaryDirectory() as scratch:
        adapter = build(shape, Path(scratch), options, run.tokenizer_file)
    row: Row = {
        "model": shape.name, "layers": adapter.num_layers, "hidden": int(adapter.config.hidden_size),
        "build_seconds": time.perf_counter() - start, **vision(adapter, shape),
        "weight_bytes": sum(weight.nbytes for weight in adapter.model.parameters()),
    }  # fmt: skip
    begun = {name: attempt(f"{shape.name}, {name}", lambda name=name: preset_row(adapter, shape, name, plan))
             for name in PRESETS if clock.left}  # fmt: skip
    presets = [{"preset": name, "ok": True, **found} for name, found in begun.items()]
    left_out = [name for name in PRESETS if name not in begun]
    return {"ok": all(one["ok"] for one in presets), **row, "presets": presets, "left_out": left_out}


PARTS: dict[str, Callable[[Run], Any]] = {
    "exactness": exactness,
    "kernels": kernels,
    "transfer": transfers,
    "models": models,
}
"""By name, in order."""


def failed(part: Any) -> bool:
    """Whether a part, or any of its rows, is not as it must be."""
    return not all(row["ok"] for row in (part if isinstance(part, list) else [part]))


def _tiny_tokenizer() -> Path:
    return Path(str(tiny_model.__file__)).parent / "tokenizer.json"


def tokenizer_file(tiny: bool) -> Path:
    """SmolLM2's where the embedded model is installed, else the one that comes with `tiny`."""
    found = fetch.embedded_dir() / LANGUAGE / "tokenizer.json"
    return found if found.is_file() and not tiny else _tiny_tokenizer()


def main() -> int:
    """Reads the command line, and runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, in half a minute")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; may be repeated")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("gpu_check: there is no CUDA device here; --tiny tries the same code on the CPU", file=sys.stderr)
        return 2
    faulthandler.dump_traceback_later(HARD_SECONDS, exit=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32
    start = time.perf_counter()
    run = Run("cpu" if options.tiny else "cuda", options.tiny, tokenizer_file(options.tiny))
    parts = {name: part(run) for name, part in PARTS.items() if name in (options.only or PARTS)}
    report = {"tiny": options.tiny, "seconds": time.perf_counter() - start, "machine": machine(run), **parts}
    print(json.dumps(report))
    return int(any(failed(part) for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
