"""The benchmark of retrieval: a small run gives a sane row for every policy, and refuses what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vstream.memory.policies import RETRIEVERS

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_retrieval.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--model", "random", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.slow  # it imports all of transformers
def test_a_small_run_has_a_row_for_every_policy() -> None:
    done = run("--blocks", "80", "--fetched", "16", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["model"], report["blocks"], report["fetched"], report["rounds"]) == ("random", 80, 16, 2)
    rows = {row["policy"]: row for row in report["policies"]}
    assert rows.keys() == RETRIEVERS.keys()
    for row in rows.values():
        assert 0 < row["select_ms"] < 1e4
        assert 0 < row["fetch_ms"] < 1e4
        assert 0 < row["prefill_ms"] < 1e4
        assert row["met"] == (row["select_ms"] + row["fetch_ms"] < row["prefill_ms"])
    assert {policy for policy, row in rows.items() if row["extra_bytes"]} == {"embedding", "prototypes", "quest"}


@pytest.mark.slow
def test_more_blocks_than_it_holds_are_refused() -> None:
    done = run("--fetched", "300")
    assert done.returncode == 2
    assert "--fetched must be from 1 to 256, got 300" in done.stderr
