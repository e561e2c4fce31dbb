"""Pictures of a memory: what lies on which level, over the stream's time. It knows nothing of where that is stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.app.info import Span

LEVELS = ("detail", "digest", "gist")  # from below
KEPT, USED = "#9fb4c7", "#d1495b"
LEAST_SHARE = 1 / 400  # of the axis: narrower blocks could not be seen


def plot_memory(spans: Sequence[Span], file: Path, title: str) -> None:
    """Writes a PNG with a bar for every block: time on x, level on y, evidence of the last answer in red.

    Raises:
        ValueError: if the file's name does not end in `.png`, there is nothing to show, or matplotlib is missing.
        OSError: if the file cannot be written.
    """
    check_can_plot(file)
    if not spans:
        raise ValueError(f"{title} holds no blocks yet, so there is nothing to plot; watch something first")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, spans)
    axes.set_title(title, loc="left", fontsize=10)
    figure.savefig(file, format="png", dpi=120)


def check_can_plot(file: Path) -> None:
    """Says early what would keep a picture from being written.

    Raises:
        ValueError: if the file's name does not end in `.png`, its folder does not exist, or matplotlib is missing.
    """
    if file.suffix.lower() != ".png":
        raise ValueError(f"--plot writes a PNG, but {file} does not end in .png; give another name")
    if not file.parent.is_dir():
        raise ValueError(f"--plot cannot write {file}: there is no folder {file.parent}; make it first")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib; run `pip install matplotlib`, or install vstream[plot]") from None


def _draw(axes: Any, spans: Sequence[Span]) -> None:
    end = max(span.end_seconds for span in spans)
    least = LEAST_SHARE * max(end, 1.0)
    for used, colour, label in ((False, KEPT, "remembered"), (True, USED, "evidence of the last answer")):
        for number, level in enumerate(LEVELS):
            bars = [
                (span.start_seconds, max(least, span.end_seconds - span.start_seconds))
                for span in spans
                if (span.level, span.used) == (level, used)
            ]
            axes.broken_barh(bars, (number - 0.35, 0.7), facecolor=colour, edgecolor="white", linewidth=0.3)
        axes.plot([], [], color=colour, linewidth=6, label=label)
    axes.set_yticks(range(len(LEVELS)), LEVELS)
    axes.set_ylim(-0.6, len(LEVELS) - 0.4)
    axes.set_xlim(0, end + least)
    axes.xaxis.set_major_formatter(lambda seconds, _: format_seconds(max(0, seconds)))
    axes.set_xlabel("time of the stream")
    axes.legend(loc="upper left", bbox_to_anchor=(0.55, 1.16), ncols=2, frameon=False, fontsize=8)
