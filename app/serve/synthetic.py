"""Synthetic cameras that anybody may ask for: graphs of FFmpeg made of known parts alone.

A filter graph can read files (`movie=`, and `life`'s pattern file), so a graph is not searched for what is bad: it is
taken only where every part of it is known. This module knows nothing of other sources.
"""

from __future__ import annotations

import re
from fractions import Fraction

SOURCES = (
    "testsrc2", "testsrc", "smptebars", "smptehdbars", "pal75bars", "pal100bars", "rgbtestsrc", "yuvtestsrc", "color",
    "colorspectrum", "mandelbrot", "life", "cellauto", "sierpinski", "gradients", "zoneplate",
)  # fmt: skip
MAX_PIXELS, MAX_FPS = 1920 * 1080, 60
EXAMPLE = "lavfi:testsrc2=size=320x240:rate=10,realtime"

_NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,3})?"
_VALUES = {
    "size": r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}",
    "rate": r"[1-9][0-9]{0,4}(?:/[1-9][0-9]{0,3})?",
    "duration": _NUMBER,
    "color": r"[A-Za-z]{1,32}|(?:0x|#)[0-9A-Fa-f]{6}",
    "seed": r"[0-9]{1,9}",
    "decimals": r"[0-9]",
}
_SHORT = {"s": "size", "r": "rate", "d": "duration", "c": "color", "n": "decimals"}


def check_graph(graph: str) -> None:
    """Raises `ValueError` for a graph that is not one known source with plain options and `,realtime`."""
    if not graph.endswith(",realtime"):
        raise ValueError(f"a synthetic camera ends with ,realtime, as in {EXAMPLE}, got {graph[:200]!r}")
    source, _, options = graph.removesuffix(",realtime").partition("=")
    if source not in SOURCES or not all(map(_is_plain, options.split(":") if options else [])):
        raise ValueError(
            f"the synthetic camera {graph[:200]!r} is not allowed here: give one of {', '.join(SOURCES)} with options "
            f"of {', '.join(_VALUES)} (at most 1920 x 1080 pixels and {MAX_FPS} a second), as in {EXAMPLE}"
        )


def _is_plain(option: str) -> bool:
    name, _, value = option.partition("=")
    name = _SHORT.get(name, name)
    if name not in _VALUES or not re.fullmatch(_VALUES[name], value):
        return False
    if name == "size":
        width, height = map(int, value.split("x"))
        return width * height <= MAX_PIXELS
    return name != "rate" or Fraction(value) <= MAX_FPS
