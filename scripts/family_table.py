#!/usr/bin/env python3
"""The README's table of model families: tokens of a frame, bytes of an hour, exactness.

Tokens and bytes are worked out from the shapes of each family's example checkpoint, as published. Exactness is the
largest difference of any logit from the stock model's own forward, which `tests/test_family.py` measures on tiny random
checkpoints; these are run for this (a minute). `--json` prints the rows as JSON instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vstream.models.families import FAMILIES
from vstream.models.patches import VIDEO_TOKENS

ROOT = Path(__file__).resolve().parent.parent
HOUR = 3600
GIB = 2**30
BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True)
class Published:
    """The shape of an example checkpoint, by its own configuration files.

    Attributes:
        layers, kv_heads, head_dim: of its language model.
        frame: how pictures are brought to a size, for people.
        frame_tokens: visual tokens of a frame, without the few of the text around it.
    """

    layers: int
    kv_heads: int
    head_dim: int
    frame: str
    frame_tokens: int

    @property
    def hour_bytes(self) -> int:
        """Of keys and values in bfloat16 of an hour at 1 frame a second, nothing condensed."""
        token = 2 * self.layers * self.kv_heads * self.head_dim * BYTES
        return HOUR * self.frame_tokens * token


_QWEN_FRAME = f"shape kept, two in at most {VIDEO_TOKENS} tokens"
SHAPES = {
    "llava_onevision": Published(28, 4, 128, "384 x 384, pooled", 14**2),
    "llava_next_video": Published(32, 32, 128, "336 x 336, pooled", 12**2),
    "qwen2_vl": Published(28, 4, 128, _QWEN_FRAME, VIDEO_TOKENS // 2),
    "qwen2_5_vl": Published(28, 4, 128, _QWEN_FRAME, VIDEO_TOKENS // 2),
    "qwen3_vl": Published(36, 8, 128, _QWEN_FRAME, VIDEO_TOKENS // 2),
    "qwen3_vl_moe": Published(48, 4, 128, _QWEN_FRAME, VIDEO_TOKENS // 2),
    "smolvlm": Published(24, 32, 64, "384 x 384", 9**2),
    "idefics3": Published(24, 32, 64, "384 x 384", 9**2),
    "internvl": Published(28, 4, 128, "448 x 448", 16**2),
}
"""By `model_type`, of the example that the registry names; a frame as it is by default."""


def measure() -> dict[str, dict[str, float]]:
    """The largest logit difference by family and dtype, as the tests of exactness report it.

    Raises:
        RuntimeError: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = ["-m", "pytest", "-q", "tests/test_family.py", "-k", "equals_the_stock", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the tests of exactness failed:\n{done.stdout[-2000:]}")
        return _largest(ElementTree.parse(report))


def _largest(report: ElementTree.ElementTree[Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case in report.iter("testcase"):
        told = {one.get("name"): str(one.get("value")) for one in case.iter("property")}
        if told:
            family = found.setdefault(told["family"], {})
            family[told["dtype"]] = max(family.get(told["dtype"], 0.0), float(told["difference"]))
    return found


def rows() -> list[dict[str, Any]]:
    """One for each family, in the registry's order."""
    measured = measure()
    return [
        {
            "family": family.model_type,
            "example": family.example,
            "frame": SHAPES[family.model_type].frame,
            "tokens_per_frame": SHAPES[family.model_type].frame_tokens,
            "bytes_per_hour": SHAPES[family.model_type].hour_bytes,
            "difference": measured[family.model_type],
        }
        for family in FAMILIES
    ]


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| family, for example | a frame | tokens | GiB an hour | logits off by, float32; float64 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        off = "; ".join(_short(one["difference"].get(dtype)) for dtype in ("float32", "float64"))
        cells = (
            f"`{one['family']}`, {one['example']}", one["frame"], f"{one['tokens_per_frame']}",
            f"{one['bytes_per_hour'] / GIB:.1f}", off,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(difference: float | None) -> str:
    """A dash where a family does not run in a type."""
    return "-" if difference is None else f"{difference:.0e}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    found = rows()
    print(json.dumps({"families": found}) if options.json else table(found))


if __name__ == "__main__":
    sys.exit(main())
