"""The attention kernels in Triton: their numbers in its interpreter, and machine code for GPUs that are not here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

PROGRAM = Path(__file__).parent / "triton_attention.py"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.mark.slow
def test_the_kernels_agree_with_float64_in_the_interpreter():
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    done = subprocess.run(
        [sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout.splitlines()[-1])
    assert len(losses) == 16
    for name, loss in losses.items():
        assert loss < (1e-3 if name.startswith("half") else 2e-6), (name, loss)


def compiled(kernel_name, kind, dim, capability, *, bits=0, paged=False):
    """One kernel as for 7 query heads a key/value head, 5 parts, aligned pointers."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vstream.kernels import triton_attention

    tokens, warps, stages = triton_attention._tiles(dim, TYPES[kind])
    channels = triton.next_power_of_2(dim // (2 if bits == 4 else 1))
    constants = {"PARTS": 5, "GROUP": 7, "ROWS": 16, "DIM": dim, "CHANNELS": channels, "TOKENS": tokens}
    constants |= {"ALIGNED": True, **({"BITS": bits} if bits else {"PAGED": paged})}
    signature = {"query": f"*{kind}", "table": "*i64", "lengths": "*i32", "outs": "*fp32", "sums": "*fp32"}
    signature |= {"scale": "fp32", "first": "i32", "splits": "i32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(5)}
    source = ASTSource(getattr(triton_attention, kernel_name), signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(kernel, tmp_path):
    """Where registers would be spilled to, as Triton's own tool reads it from the machine code."""
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum(int(count) for count in re.findall(r"STACK:(\d+)", done.stdout + done.stderr))


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize(
    ("kernel_name", "kind", "dim", "more"),
    [
        ("plain_kernel", "bf16", 128, {}),
        ("plain_kernel", "bf16", 64, {}),
        ("plain_kernel", "bf16", 80, {"paged": True}),
        ("plain_kernel", "fp32", 128, {}),
        ("codes_kernel", "bf16", 128, {"bits": 4}),
        ("codes_kernel", "bf16", 96, {"bits": 8}),
    ],
)
def test_kernels_compile_for_gpus_that_are_not_here(kernel_name, kind, dim, more, capability, tmp_path):
    kernel = compiled(kernel_name, kind, dim, capability, **more)
    assert len(kernel.asm["cubin"]) > 1000
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert stack_bytes(kernel, tmp_path) == 0
    ptx = kernel.asm["ptx"]
    assert re.search(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10", ptx), (
        "keys and values are read 16 bytes at a time"
    )
    assert ("mma.sync" in ptx or "wgmma" in ptx) == (kind == "bf16"), "tensor cores multiply 16 bits"


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_merge_compiles_for_gpus_that_are_not_here(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vstream.kernels.triton_attention import merge_kernel

    constants = {"DIM": 128, "CHANNELS": 128, "SPLITS": 64}
    signature = {
        "outs": "*fp32",
        "sums": "*fp32",
        "both": "*fp32",
        "splits": "i32",
        "turned_from": "i32",
        "apart": "i64",
    }
    source = ASTSource(merge_kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(kernel.asm["cubin"]) > 1000
