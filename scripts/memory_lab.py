#!/usr/bin/env python3
"""The memory lab: presets side by side on streams of the synthetic world, by bytes; the last line is JSON.

`vstream lab` does the same without the search. `--tune` first tries so many settings of every preset on streams of
another seed, the same number for each, and goes on with the best.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vstream.app.lab.memory_lab import Outcome, Trial, make_task, run_lab
from vstream.app.lab.plan import SHORT, lab, show
from vstream.engine import Engine
from vstream.presets import PRESETS

TUNED_ON = 1000  # a seed
TUNE_SECONDS, TUNE_SHARE = 1800, 0.10
POLICIES = ("maxsim", "centred", "prototypes", "embedding")
SEARCH: dict[str, Sequence[dict[str, Any]]] = {
    "default": [
        {"digest_share": digest, "gist_share": gist}
        for digest, gist in ((0.8, 0.05), (0.6, 0.05), (0.45, 0.45), (0.0, 0.3))
    ],
    **{name: [{"policy": policy} for policy in POLICIES] for name in ("pmb", "star", "carrier", "infinipot")},
    **{
        name: [{"selection": way, "retrieve_neighbours": count} for way in ("per-layer", "shared") for count in (0, 1)]
        for name in ("rekv", "rekv+window")
    },
    "uniform": [{"clip_frames": count} for count in (1, 2, 4, 8)],
}
"""Four settings for every preset that bounds a memory of its own."""


def tune(model: str, presets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The best settings of each preset, by right answers on a stream of another seed."""
    with Engine.load(model) as engine:
        task = make_task(0, TUNE_SECONDS, seed=TUNED_ON)
        best = {}
        for name in (one for one in presets if one in SEARCH):
            tried = SEARCH[name]
            trials = [Trial(name, TUNE_SHARE, {**SHORT, **settings}) for settings in tried]
            outcomes = run_lab(engine, [task], trials, lambda line: print(f"tuning: {line}", file=sys.stderr), SHORT)
            best[name] = tried[max(range(len(tried)), key=lambda index: right(outcomes[index]))]
            print(f"tuning: {name} takes {best[name]}", file=sys.stderr)
    return best


def right(outcome: Outcome) -> int:
    """Right answers."""
    return sum(one.right for one in outcome.marked)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one stream and one budget, some minutes")
    parser.add_argument("--json", action="store_true", help="no table")
    parser.add_argument("--tune", action="store_true", help="search every preset's settings first")
    parser.add_argument("--preset", action="append", help="only this one; may be given often")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, action="append", help="a stream so long instead; may be given often")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    presets = options.preset or list(PRESETS)
    report = lab(
        model=options.model, presets=presets, quick=options.quick, seed=options.seed,
        seconds=options.seconds or (), picture=options.plot,
        settings=tune(options.model, presets) if options.tune else None,
        told=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    show(report, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
