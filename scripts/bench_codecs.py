#!/usr/bin/env python3
"""How much of real keys and values the codecs lose, and the other schemes that were weighed; the last line is JSON.

Blocks of the sample video by `embedded` and of the synthetic world by `tiny`, as their decoders made them. The figure
is the root mean square error as a share of what tells a block's tokens apart: its keys, or values, less their mean over
the block. It is the mean over layers, heads and blocks.

- `int8`, `int4`: the codecs themselves (per token, turned, keys less the first frame's mean).
- `plain`: a scale and a minimum per token, as values in KIVI (arXiv 2402.02750).
- `turned`: the same after a Hadamard transform, as in QuaRot (arXiv 2404.00456).
- `mean`: turned, less the mean over the whole block, which no cut of a block may know.
- `channel`: a scale and a minimum per channel over the block, as keys in KIVI; the same holds of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vstream.app.lab.render import WorldSource
from vstream.app.lab.world import World
from vstream.engine import Engine
from vstream.kernels import turn
from vstream.memory.block import BlockShape, lead_tokens
from vstream.memory.codec import make_codec
from vstream.memory.levels import DETAIL

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
WORLD_SEED, WORLD_SECONDS = 2 * 10**9, 160
SCHEMES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "plain": lambda kv, bits: rounded(kv, bits, -1),
    "turned": lambda kv, bits: turn(rounded(turn(kv), bits, -1)),
    "mean": lambda kv, bits: turn(rounded(turn(kv - mean_of(kv)), bits, -1)) + mean_of(kv),
    "channel": lambda kv, bits: rounded(kv, bits, -2),
}


def main() -> None:
    """Prints a table and a line of JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [row for name in ("embedded", "tiny") for row in measured(name)]
    for row in rows:
        print("  ".join(f"{value:.4f}" if isinstance(value, float) else f"{value:8}" for value in row.values()))
    print(json.dumps(rows))


def measured(name: str) -> list[dict[str, Any]]:
    """A row for each scheme and number of bits."""
    shape, blocks = watched(name)
    ways: dict[str, Callable[[Tensor, int], Tensor]] = {
        f"{scheme} {bits}": partial(lambda kv, lead, made, bits: made(kv.float(), bits), made=made, bits=bits)
        for bits in (8, 4)
        for scheme, made in SCHEMES.items()
    }
    ways |= {codec: make_codec(codec, shape).round_trip for codec in ("int8", "int4")}
    rows = []
    for scheme, way in ways.items():
        keys, values = torch.stack([loss(way(kv, lead), kv) for kv, lead in blocks]).mean(dim=0).tolist()
        rows.append({"model": name, "scheme": scheme, "keys": keys, "values": values})
    return rows


@torch.inference_mode()
def watched(name: str) -> tuple[BlockShape, list[tuple[Tensor, int]]]:
    """Keys and values [L, 2, K, N, D] of every clip a model has seen, and the tokens of its first frame."""
    with Engine.load(name) as engine:
        source = SAMPLE if name == "embedded" else WorldSource(World(WORLD_SEED, WORLD_SECONDS), side=96)
        session = engine.open(source, start=False, **getattr(engine.adapter, "settings", {}))
        assert session.ingest is not None
        while not session.ingest.drained:
            session.ingest.pump(session.config.clip_frames)
            session.step()
        store = session.memory.store
        found = [(store.gather([one.id]), lead_tokens(one.seconds)) for one in store.metas_on(DETAIL)]
        return store.shape, found


def rounded(kv: Tensor, bits: int, dim: int) -> Tensor:
    """Whole numbers of a few bits, with a float16 scale and minimum for what lies along `dim`, and back."""
    levels = 2**bits - 1
    low, high = kv.amin(dim, keepdim=True).half().float(), kv.amax(dim, keepdim=True)
    scale = ((high - low) / levels).half().float().clamp_min(1e-30)
    return ((kv - low) / scale).round().clamp(0, levels) * scale + low


def mean_of(kv: Tensor) -> Tensor:
    """The mean token [L, 2, K, 1, D], in float16."""
    return kv.mean(dim=3, keepdim=True).half().float()


def loss(found: Tensor, kv: Tensor) -> Tensor:
    """Of keys and of values [2]: see above."""
    apart = kv - kv.mean(dim=3, keepdim=True)
    off, size = ((part.square().mean(dim=(3, 4))).sqrt() for part in (found - kv, apart))  # [L, 2, K]
    return (off / size.clamp_min(1e-9)).mean(dim=(0, 2))


if __name__ == "__main__":
    main()
