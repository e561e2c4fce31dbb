"""A real process that commits blocks and says so; it is killed, or watched by strace, by test_durability.py."""

import os
import random
import sys
from pathlib import Path

import torch
import xxhash
from blocks import MAX_TOKENS, SHAPE, as_stored, make_block, raw

from vstream.memory.codec import CODECS
from vstream.memory.store import BlockStore

DISK_BYTES = 1000 * 1024


def open_memory(folder):
    return BlockStore(
        SHAPE,
        device=torch.device("cpu"),
        device_bytes=64 * 1024,
        host_bytes=0,
        disk_bytes=DISK_BYTES,
        folder=folder,
        identity={"model": "writer"},
        max_block_tokens=MAX_TOKENS,
        max_state_bytes=100,
    )


def digest(kv):
    return xxhash.xxh3_64_hexdigest(raw(kv))


def write_blocks(folder, commits, say):
    """Commit blocks, the oldest leaving when it gets tight; say what is tried before a commit, `ack` after it."""
    torch.set_num_threads(1)
    with open_memory(Path(folder)) as store:
        step = int((store.state or b"-1").decode()) + 1
        for number in range(step, step + commits):
            add = [make_block(3 * number + i, codec=(*CODECS,)[i]) for i in range(random.Random(number).randint(1, 3))]
            need = sum(map(store.charge_of, add))
            ids, remove = sorted(store.entries), []
            while not store.fits(need, remove):
                remove.append(ids[len(remove)])
            added = " ".join(f"{block.meta.id}:{digest(as_stored(block))}" for block in add)
            say(f"try {number} add {added} remove {' '.join(map(str, remove))}")
            store.commit(add, remove, str(number).encode())
            say(f"ack {number}")


def child(folder, commits, pipe):
    """As a multiprocessing target: lines go to a pipe, one message each."""
    write_blocks(folder, commits, lambda line: pipe.send_bytes(line.encode()))


if __name__ == "__main__":
    if "--nosync" in sys.argv:
        import lmdb

        really_open = lmdb.open
        lmdb.open = lambda *args, **options: really_open(*args, **(options | {"sync": False}))
    write_blocks(sys.argv[1], int(sys.argv[2]), lambda line: os.write(1, (line + "\n").encode()))
