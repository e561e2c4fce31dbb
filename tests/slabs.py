"""Slabs of random rows for tests of the kernels: ragged blocks in scattered slots, everything else poisoned."""

import torch

from vstream.kernels import Places, RowLayout
from vstream.memory.block import BlockShape
from vstream.memory.codec import make_codec

POISON = -1  # all bits set: NaN in every float type, 255 as a code


def random_tensor(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rotary_tables(tokens, dim, seed=0, dtype=torch.float32):
    """cos and sin [1, N, D] of random angles, scaled as yarn scales them."""
    angles = random_tensor(1, tokens, dim // 2, seed=seed) * 100
    angles = torch.cat([angles, angles], dim=2)
    return (angles.cos() * 1.1).to(dtype), (angles.sin() * 1.1).to(dtype)


class Scattered:
    """One layer of a slab with blocks in it.

    Attributes:
        words: [S, P, W]; with `spare` the slots hold more than whole rows.
        places, owner, layout: as `place_rows` takes them; of each block the first `counts` tokens.
        kv: [2, K, N, D] as the blocks are read.
    """

    def __init__(self, codec, counts, *, dim=64, heads=2, dtype=torch.float32, per_slot=3, spare=1, seed=0):
        shape = BlockShape(1, heads, dim, dtype)
        codec = make_codec(codec, shape)
        self.layout: RowLayout = codec.layout
        width = codec.row_bytes // 8
        sizes = [codec.num_rows(count + 2) for count in counts]  # each block has two tokens more than are wanted
        slots = [-(-size // per_slot) for size in sizes]
        free = torch.randperm(sum(slots) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
        slab = torch.full((len(free), per_slot * width + spare), POISON, dtype=torch.int64)
        self.words = slab[:, : per_slot * width].unflatten(1, (per_slot, width))
        heads_at, tokens_at, kept = [], [], []
        for block, (count, size, needed) in enumerate(zip(counts, sizes, slots, strict=True)):
            own, free = free[:needed], free[needed:]
            kv = random_tensor(1, 2, heads, count + 2, dim, seed=seed + block, dtype=dtype) * 3 + 1
            rows = codec.encode(kv, 1)[0].contiguous().view(torch.int64)  # [rows, W]
            where = [(own[row // per_slot], row % per_slot) for row in range(size)]
            for (slot, offset), row in zip(where, rows, strict=True):
                self.words[slot, offset] = row
            heads_at += where[: codec.head_rows]
            tokens_at += where[codec.head_rows : codec.num_rows(count)]
            kept.append(codec.round_trip(kv, 1)[0, :, :, :count])
        both = torch.tensor(heads_at + tokens_at, dtype=torch.int64).reshape(-1, 2)
        self.places = Places(both[:, 0].contiguous(), both[:, 1].contiguous())
        self.owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        self.kv = torch.cat(kept, dim=2)

    def room(self, around=3):
        """Poisoned keys and values [K, N, D] inside a larger poisoned buffer, and that buffer."""
        layout, tokens = self.layout, len(self.owner)
        size = (2, layout.num_kv_heads, tokens + 2 * around, layout.head_dim)
        buffer = torch.full(size, torch.nan, dtype=layout.dtype)
        return buffer[0, :, around : around + tokens], buffer[1, :, around : around + tokens], buffer
