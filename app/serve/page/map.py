"""The memory map: time across, one lane for each level, what the last answer used in the accent colour.

A picture (SVG) made of at most 240 columns, however many blocks there are. Knows nothing of memories or of Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vstream.app.serve.page.words import LEVELS
from vstream.memory.levels import LEVEL_NAMES, SINK
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.memory.columns import Rows

MAX_COLUMNS = 240
WIDTH, LANE_HEIGHT, BAR_HEIGHT = 1000, 18, 12
SHADES = (0.0, 0.3, 0.55, 0.8)
"""How much of a column is remembered, in four steps: opacity."""

SHOWN = [level for level in LEVEL_NAMES if level != SINK]
JOINED_SECONDS = 2.0
"""Between the last frame of a block and the first of the next there is no gap to be seen in so short a time."""
STEPS_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)

Columns = npt.NDArray[np.float64]
"""[columns] the share of each column that is covered, 0 to 1."""
Times = npt.NDArray[np.float64]
"""[blocks, 2] first and last second."""


def lanes_of(rows: Rows) -> dict[str, Times]:
    """The blocks of a memory by the name of their level, as times [blocks, 2]."""
    starts, ends = rows["start_seconds"], rows["end_seconds"]
    following = np.append(starts[1:], np.inf)
    times = np.stack([starts, np.where(following - ends <= JOINED_SECONDS, following, ends)], axis=1)
    return {name: times[rows["level"] == level] for level, name in LEVEL_NAMES.items() if level in SHOWN}


def memory_map(lanes: Mapping[str, Times], used: Sequence[tuple[float, float]], end_seconds: float) -> str:
    """The figure, up to a stream time; `used` are the blocks that the last answer brought back."""
    end = max(end_seconds, 10.0, *(times[:, 1].max() for times in lanes.values() if len(times)))
    used_starts = np.array([start for start, _ in used])
    height = LANE_HEIGHT * len(lanes)
    drawn = "".join(_lane(row, times, used_starts, end) for row, times in enumerate(lanes.values()))
    svg = (
        f'<svg id="map-svg" data-end="{end:.3f}" viewBox="0 0 {WIDTH} {height}" height="{height}" '
        f'preserveAspectRatio="none" role="img" aria-label="{_summary(lanes, len(used))}">{drawn}'
        f'<rect id="needle" x="0" y="-2" width="2" height="{height}" visibility="hidden"/></svg>'
    )
    count = sum(map(len, lanes.values()))
    key = '<span class="key quiet"><i></i>brought back for the last answer</span>' if used else ""
    size = f"{count} {_blocks(count)}, up to {format_seconds(end_seconds)}"
    caption = f'<span><b>Memory</b> <span class="quiet num">{size}</span></span>{key}'
    names = "".join(f'<span title="{escape(LEVELS.get(level, ""))}">{escape(level)}</span>' for level in lanes)
    legend = " · ".join(f"{level}: {LEVELS[level]}" for level in ("window", *lanes) if level in LEVELS)
    return (
        f'<figure class="map"><figcaption>{caption}</figcaption><div class="rows"><div class="names">{names}</div>'
        f'{svg}<div class="ticks num" aria-hidden="true">{_ticks(end)}</div></div>'
        f'<p class="legend">{escape(legend)}</p></figure>'
    )


def cover(times: Times, end_seconds: float, num_columns: int = MAX_COLUMNS) -> Columns:
    """How much of each of `num_columns` equal parts of 0..end the stretches cover; a moment covers a little."""
    edges = np.clip(times * num_columns / end_seconds, 0, num_columns)  # [blocks, 2]
    starts, ends = edges[:, 0], np.minimum(np.maximum(edges[:, 1], edges[:, 0] + 0.2), num_columns)
    borders = np.arange(num_columns + 1)
    return np.clip(np.diff(_covered_before(borders, starts, ends)).round(6), 0.0, 1.0)  # sums are not exact


def _covered_before(borders: npt.NDArray[np.int64], starts: Columns, ends: Columns) -> Columns:
    """[borders] the summed length of all stretches left of each border."""
    return _ramp(borders, np.sort(starts)) - _ramp(borders, np.sort(ends))


def _ramp(borders: npt.NDArray[np.int64], edges: Columns) -> Columns:
    """[borders] the sum of max(0, border - edge) over sorted edges."""
    count = np.searchsorted(edges, borders)
    summed: Columns = np.concatenate([[0.0], np.cumsum(edges)])[count]
    return borders * count - summed


def _lane(row: int, times: Times, used_starts: Columns, end: float) -> str:
    top = row * LANE_HEIGHT + (LANE_HEIGHT - BAR_HEIGHT) // 2
    used = cover(times[np.isin(times[:, 0], used_starts)], end) > 0
    shades = np.ceil(cover(times, end) * (len(SHADES) - 1)).astype(int)
    paths = [f'<path class="lane" d="M0 {top}h{WIDTH}v{BAR_HEIGHT}H0z"/>']
    for shade in range(1, len(SHADES)):
        bars = _bars((shades == shade) & ~used, top)
        paths.append(f'<path class="block-bin" opacity="{SHADES[shade]}" d="{bars}"/>')
    paths.append(f'<path class="used" d="{_bars(used, top)}"/>')
    return "".join(paths)


def _bars(wanted: npt.NDArray[np.bool_], top: int) -> str:
    """The outline of every run of wanted columns."""
    step, left, path = WIDTH / len(wanted), 0, []
    for is_wanted, run in groupby(wanted):
        length = len(list(run))
        if is_wanted:
            path.append(f"M{left * step:.1f} {top}h{length * step:.1f}v{BAR_HEIGHT}h{-length * step:.1f}z")
        left += length
    return "".join(path)


def _ticks(end: float) -> str:
    """Up to seven times below the lanes; the end's own only where there is room for it."""
    step = next((step for step in STEPS_SECONDS if end / step <= 6), end / 6)
    times = np.arange(0, end, step)
    marks = [f'<span style="left:{100 * time / end:.2f}%">{format_seconds(time)}</span>' for time in times]
    if end - times[-1] > 0.14 * end:
        marks.append(f'<span class="end" style="left:100%">{format_seconds(end)}</span>')
    return "".join(marks)


def _summary(lanes: Mapping[str, Times], num_used: int) -> str:
    said = ", ".join(f"{len(times)} {_blocks(len(times))} in {escape(level)}" for level, times in lanes.items())
    return f"Memory map: {said}; {num_used} brought back for the last answer"


def _blocks(count: int) -> str:
    return "block" if count == 1 else "blocks"
