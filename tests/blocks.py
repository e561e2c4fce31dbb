"""Random blocks for tests of the memory, the same for the same seed."""

from dataclasses import fields

import torch

from vstream.memory.block import Block, BlockMeta, BlockShape, lead_tokens
from vstream.memory.codec import make_codec

SHAPE = BlockShape(num_layers=2, num_kv_heads=2, head_dim=16, dtype=torch.float32)
MAX_TOKENS = 40


def make_block(block_id, *, shape=SHAPE, tokens=None, axes=1, picture_bytes=None, level=0, codec="none"):
    """A block whose bytes depend on `block_id` alone; NaNs and infinities included."""
    random = torch.Generator().manual_seed(block_id)

    def pick(low, high):
        return int(torch.randint(low, high, (1,), generator=random))

    tokens = pick(1, MAX_TOKENS + 1) if tokens is None else tokens
    picture_bytes = pick(0, 3) * pick(0, 4000) if picture_bytes is None else picture_bytes
    start = float(pick(0, 1000))
    raw = torch.randint(0, 256, (shape.bytes_per_token * tokens,), dtype=torch.uint8, generator=random)
    size = (shape.num_layers, 2, shape.num_kv_heads, tokens, shape.head_dim)
    meta = BlockMeta(
        id=block_id,
        level=level,
        start_seconds=start,
        end_seconds=start + 8.5,
        epoch_seconds=None if block_id % 2 else 1.7e9 + 0.1,
        weight=float(pick(1, 30)),
        kinds=torch.randint(0, 3, (tokens,), dtype=torch.uint8, generator=random),
        seconds=torch.rand(tokens, dtype=torch.float64, generator=random),
        positions=torch.randint(0, 10_000, (axes, tokens), generator=random),
        advance=torch.randint(0, 100, (axes,), generator=random),
        start=torch.randint(0, 100, (axes,), generator=random),
        picture_seconds=float("nan") if block_id % 3 else start,
        codec=codec,
    )
    representative = torch.randn(
        (shape.num_layers, shape.num_kv_heads, shape.head_dim), generator=random, dtype=torch.float32
    ).half()
    picture = bytes(torch.randint(0, 256, (picture_bytes,), dtype=torch.uint8, generator=random).tolist())
    return Block(meta, raw.view(shape.dtype).reshape(size), representative, picture)


def as_stored(block, shape=SHAPE):
    """The kv that a store gives back of a block."""
    return make_codec(block.meta.codec, shape).round_trip(block.kv, lead_tokens(block.meta.seconds))


def raw(tensor):
    """A tensor's bytes: equal only where every bit is, NaNs too."""
    return bytes(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())


def same_meta(a, b):
    """Whether two metadata are equal, tensors and NaNs included."""
    return all(
        raw(x) == raw(y) if isinstance(x, torch.Tensor) else repr(x) == repr(y)
        for x, y in ((getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    )
