#!/usr/bin/env python3
"""Bytes that an hour of video takes in memory, by model size and codec: worked out, and measured in a real store.

A stream at 1 fps whose clips of four frames are kept as detail, or as digests of a third of their tokens. "Worked out"
is keys and values alone; "measured" is what a store charges for blocks of random numbers, times the blocks of an hour:
metadata, representatives and the rounding to slots included, no pictures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import torch

from vstream.memory.block import Block, BlockMeta, BlockShape, TokenKind
from vstream.memory.codec import CODECS, make_codec
from vstream.memory.levels import DETAIL, DIGEST_KEEPS
from vstream.memory.store import BlockStore

HOUR = 3600
CLIP_FRAMES = 4
GIB = 2**30
BLOCKS = 2  # stored to be measured


@dataclass(frozen=True)
class Size:
    """A model's language model, and what a frame takes of it."""

    layers: int
    heads: int
    dim: int
    frame_tokens: int

    @property
    def shape(self) -> BlockShape:
        """In bfloat16."""
        return BlockShape(self.layers, self.heads, self.dim, torch.bfloat16)


SIZES = {
    "LLaVA-OneVision-0.5B": Size(24, 2, 64, 196),
    "LLaVA-OneVision-7B": Size(28, 4, 128, 196),
    "Qwen3-VL-8B": Size(36, 8, 128, 256),
}
"""Layers, key/value heads and their width from the checkpoints' own configurations; frames of 384 or 512 pixels."""
REKV_GIB = {"LLaVA-OneVision-0.5B": 4.04, "LLaVA-OneVision-7B": 18.84}
"""ReKV's own figures, at half a frame a second (arXiv 2503.00540)."""


def computed(size: Size, codec: str, keep: float) -> int:
    """Bytes of keys and values of an hour."""
    tokens = math.ceil(keep * CLIP_FRAMES * size.frame_tokens)
    return make_codec(codec, size.shape).num_bytes(tokens) * (HOUR // CLIP_FRAMES)


def measured(size: Size, codec: str, keep: float) -> int:
    """Bytes that a store charges for an hour of blocks."""
    tokens = math.ceil(keep * CLIP_FRAMES * size.frame_tokens)
    room = (BLOCKS + 1) * size.shape.bytes_per_token * tokens * 2 + (16 << 20)
    with BlockStore(
        size.shape, device=torch.device("cpu"), device_bytes=0, host_bytes=room, disk_bytes=0,
        identity={"model": "none"}, max_block_tokens=tokens,
    ) as store:  # fmt: skip
        for number in range(BLOCKS):
            store.commit([random_block(size, codec, tokens, number)], [], b"")
        store.check_integrity(deep=True)
        return (store.used_bytes // BLOCKS + size.shape.representative_bytes) * (HOUR // CLIP_FRAMES)


def random_block(size: Size, codec: str, tokens: int, number: int) -> Block:
    """A block of vision tokens."""
    kv = torch.randn(size.layers, 2, size.heads, tokens, size.dim, dtype=torch.bfloat16)
    start = float(CLIP_FRAMES * number)
    meta = BlockMeta(
        id=number, level=DETAIL, start_seconds=start, end_seconds=start + CLIP_FRAMES - 1, epoch_seconds=None,
        weight=float(CLIP_FRAMES), kinds=torch.full((tokens,), int(TokenKind.VISION), dtype=torch.uint8),
        seconds=start + (torch.arange(tokens) * CLIP_FRAMES // tokens).double(), positions=torch.arange(tokens)[None],
        advance=torch.tensor([tokens]), start=torch.tensor([0]), codec=codec,
    )  # fmt: skip
    return Block(meta, kv, kv[:, 0].float().mean(dim=2).half())


def rows(names: list[str]) -> list[dict[str, Any]]:
    """One for each model, codec and level."""
    return [
        {
            "model": name,
            "codec": codec,
            "kept": kept,
            "computed_gib": round(computed(SIZES[name], codec, keep) / GIB, 2),
            "measured_gib": round(measured(SIZES[name], codec, keep) / GIB, 2),
        }
        for name in names
        for codec in CODECS
        for kept, keep in (("detail", 1.0), ("digest", DIGEST_KEEPS))
    ]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, action="append", help="only this one; may be given often")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(options.model or list(SIZES))
    print("| model, 1 fps | kept as | codec | worked out, GiB/h | measured, GiB/h |\n| --- | --- | --- | --- | --- |")
    for one in found:
        cells = (one["model"], one["kept"], one["codec"], f"{one['computed_gib']:.2f}", f"{one['measured_gib']:.2f}")
        print(f"| {' | '.join(cells)} |")
    print(json.dumps({"bytes_per_hour": found, "rekv_gib_at_half_a_frame_a_second": REKV_GIB}))


if __name__ == "__main__":
    sys.exit(main())
