"""Compiles the memory's Triton kernels for a GPU that need not be there; prints what came out as JSON.

python tests/compiled_memory.py 90
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from vstream.kernels import triton_memory
from vstream.kernels.reference import LARGEST, SHORTEST, SMALLEST

PLACE = "slab:*i64 slots:*i64 offsets:*i64 owner:*i64 bases:*fp16 signs:*fp16 cos:*fp32 sin:*fp32"
PACK = "kv:*fp32 base:*fp16 rows:*u8 tokens:i32 layer_stride:i32 kind_stride:i32 head_stride:i32 token_stride:i32"
MATCH = "words:*fp32 centre:*fp32 out:*fp32 blocks:i32 num_words:i32 layer_stride:i32 head_stride:i32 block_stride:i32"


def place(bits: int, dim: int, dtype: str = "bf16") -> tuple[Any, str, dict[str, Any], bool]:
    """Kernel, signature, constants, and whether it must be exact."""
    rest = "tokens:i32 slot_bytes:i64 row_bytes:i64 key_head:i32 key_row:i32 value_head:i32 value_row:i32"
    width = dim & -dim
    constants = {"HEADS": 4, "DIM": dim, "WIDTH": width, "BITS": bits, "TILE": triton_memory.TILE_TOKENS,
                 "WIDE": triton.next_power_of_2(dim), "HALF": max(16, triton.next_power_of_2(dim // 2)),
                 "ROOT": math.sqrt(width), "SHRINK": 1 / math.sqrt(width)}  # fmt: skip
    return triton_memory.place_kernel, f"{PLACE} keys:*{dtype} values:*{dtype} {rest}", constants, True


def pack(bits: int, dim: int) -> tuple[Any, str, dict[str, Any], bool]:
    """As `place`."""
    width, levels = dim & -dim, 2**bits - 1
    constants = {"HEADS": 4, "DIM": dim, "WIDTH": width, "GROUP": triton.next_power_of_2(dim // width), "BITS": bits,
                 "TILE": triton_memory.TILE_PACKED, "SHRINK": 1 / math.sqrt(width), "LEVELS": levels,
                 "STEP": 1 / levels, "MOST": LARGEST, "LEAST": SMALLEST}  # fmt: skip
    return triton_memory.pack_kernel, PACK, constants, True


def match(dim: int, dtype: str, words: int) -> tuple[Any, str, dict[str, Any], bool]:
    """As `place`."""
    constants = {"LAYERS": 7, "HEADS": 4, "DIM": dim, "WORDS": words, "TILE": triton_memory.TILE_BLOCKS,
                 "CHANNELS": min(triton_memory.TILE_CHANNELS, 1024 // words), "COSINE": True, "FLOAT8": dtype == "u8",
                 "SHORT": SHORTEST}  # fmt: skip
    return triton_memory.match_kernel, f"{MATCH} kept:*{dtype}", constants, False


def gather() -> tuple[Any, str, dict[str, Any], bool]:
    """As `place`."""
    signature = "slab:*i64 slots:*i64 offsets:*i64 out:*i64 slot_words:i64 row_words:i64 words:i32"
    return triton_memory.gather_kernel, signature, {"TILE": triton_memory.TILE_WORDS}, False


PLACED = ((0, 64), (0, 128), (8, 128), (4, 64), (4, 128), (4, 80))
KERNELS = {
    "gather": gather(),
    **{f"place {bits} bits, {dim}": place(bits, dim) for bits, dim in PLACED},
    **{f"pack {bits} bits, {dim}": pack(bits, dim) for bits, dim in ((8, 128), (4, 64), (4, 96))},
    "match float16": match(128, "fp16", 16), "match float8": match(128, "u8", 64),
}  # fmt: skip


def compiled(kernel: Any, signature: str, constants: dict[str, Any], exact: bool, capability: int) -> dict[str, Any]:
    """What the compiler says of one kernel."""
    types = dict(part.split(":") for part in signature.split()) | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=ordered, constexprs=constants)
    options = triton_memory.EXACT if exact else {}
    found = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "cubin_bytes": len(found.asm["cubin"]), "shared_bytes": found.metadata.shared, "exact": exact,
        "fused": len(re.findall(r"\bfma\.rn", found.asm["ptx"])), **used(found.asm["cubin"]),
    }  # fmt: skip


def used(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack: what is spilled lies there."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return {"registers": int(found[-1][0]), "spilled_bytes": int(found[-1][1])}


if __name__ == "__main__":
    print(json.dumps({name: compiled(*given, int(sys.argv[1])) for name, given in KERNELS.items()}))
