"""The memory's Triton kernels without a GPU: right in the interpreter, and compiled for the GPUs they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).resolve().parent
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
FEW_BYTES = 64  # of a thread's stack: all but one kernel have none, that one 48 bytes on sm_80, with registers to spare


@pytest.mark.slow
def test_the_interpreter_finds_every_kernel_right() -> None:
    """In a process of its own, since Triton is told before it is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(TESTS / "interpreted_memory.py"),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_is_compiled_for(capability: int, tmp_path: Path) -> None:
    """A cubin comes out, its shared memory fits, registers do, and nothing that must be exact is fused."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(TESTS / "compiled_memory.py"), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 10
    for name, one in found.items():
        assert one["cubin_bytes"] > 1000, name
        assert one["shared_bytes"] <= SHARED_BYTES[capability], name
        assert one["spilled_bytes"] <= FEW_BYTES, name
        assert one["fused"] == 0 or not one["exact"], name
