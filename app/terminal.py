"""What people see: answers on stdout, panels on a terminal and paragraphs elsewhere; tables.

This module knows nothing of models or of how anything is computed.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vstream.app.progress import Progress, printable
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer, Evidence
    from vstream.app.output import PictureFolder
    from vstream.session import Status

THUMBNAIL_CELLS = (24, 8)
"""Columns and lines of an evidence picture in the terminal; a line shows two rows of pixels."""


class TerminalScreen(Progress):
    """Shows answers on stdout while they grow, and a table on stderr at the end."""

    def __init__(self, pictures: PictureFolder) -> None:
        """`pictures` is where the evidence goes."""
        super().__init__()
        self._console = Console(highlight=False)
        self._pictures = pictures

    def show(self, answer: Answer) -> None:
        """Shows one answer; returns when it is over."""
        with self.paused():
            if self._console.is_terminal:
                self._grow(answer)
            else:
                self._console.print(_paragraph(answer, answer.text(), self._paths(answer)), soft_wrap=True)

    def close(self, status: Status, answers: Sequence[Answer], wall_seconds: float) -> None:
        """Sums up a stream that was watched to its end."""
        self.stop()
        self.console.print(closing_table(status, answers, wall_seconds))

    def _grow(self, answer: Answer) -> None:
        text = ""
        with Live(console=self._console, redirect_stderr=False, vertical_overflow="visible") as live:
            for piece in answer:
                text += piece
                live.update(self._panel(answer, text))
            live.update(self._panel(answer, text))

    def _paths(self, answer: Answer) -> list[str | None]:
        return [self._pictures.save(evidence) for evidence in answer.evidence]

    def _panel(self, answer: Answer, text: str) -> RenderableType:
        said = Text(printable(text), style="bold")
        body: RenderableType = Group(said, Text(), *evidence_lines(answer.evidence, self._paths(answer)))
        pictured = next((one for one in answer.evidence if one.picture), None)
        if pictured and self._console.color_system in ("256", "truecolor") and self._console.width >= 80:
            grid = Table.grid(padding=(0, 2))
            assert pictured.picture_seconds is not None, f"{pictured} has a picture of no time"
            when = Text(format_seconds(pictured.picture_seconds), style="dim")
            grid.add_row(Group(thumbnail(pictured.picture), when), body)
            body = grid
        title = Text(f" {_asked_at(answer)} {' '.join(printable(answer.question).split())} ", style="cyan")
        return Panel(body, title=title, title_align="left", subtitle=_speed(answer), subtitle_align="right")


def _paragraph(answer: Answer, text: str, paths: Sequence[str | None]) -> Text:
    lines = [Text(f"[{_asked_at(answer)}] {printable(answer.question)}"), Text(printable(text))]
    lines += [Text("  ") + line for line in evidence_lines(answer.evidence, paths)]
    return Text("\n").join([*lines, Text(f"  {_speed(answer)}\n")])


def _asked_at(answer: Answer) -> str:
    return "end" if answer.asked_at_seconds is None else format_seconds(answer.asked_at_seconds)


def _speed(answer: Answer) -> str:
    parts = []
    if answer.ttft_seconds is not None:
        parts.append(f"first token after {answer.ttft_seconds * 1000:.0f} ms")
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    return ", ".join(parts)


def evidence_lines(evidence: Sequence[Evidence], paths: Sequence[str | None]) -> list[Text]:
    """A line for each piece of evidence: its times, level, score and picture."""
    return [
        Text(f"{format_seconds(one.start_seconds)}-{format_seconds(one.end_seconds)}  {one.level:<6} {one.score:6.3f}")
        + Text(f"  {path}" if path else "", style="dim")
        for one, path in zip(evidence, paths, strict=True)
    ]


def thumbnail(jpeg: bytes) -> Text:
    """A picture of coloured half blocks, at most `THUMBNAIL_CELLS` large."""
    from PIL import Image

    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    image.thumbnail((THUMBNAIL_CELLS[0], 2 * THUMBNAIL_CELLS[1]))
    pixels, lines = image.load(), []
    assert pixels is not None, "a decoded picture has pixels"
    for y in range(0, image.height - 1, 2):
        line = Text()
        for x in range(image.width):
            line.append("▀", Style(color=_hex(pixels[x, y]), bgcolor=_hex(pixels[x, y + 1])))
        lines.append(line)
    return Text("\n").join(lines)


def _hex(pixel: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*pixel)


def closing_table(status: Status, answers: Sequence[Answer], wall_seconds: float) -> Table:
    """What became of the frames, how fast it went, and how much is remembered where."""
    frames, memory = status.frames, status.memory
    blocks = ", ".join(f"{count} {level}" for level, count in status.blocks.items())
    tiers = {"device": memory.device_bytes, "host": memory.host_bytes, "disk": memory.disk_bytes}
    return fact_table(
        {
            "frames": f"{frames.decoded} decoded, {frames.received} taken: {frames.encoded} encoded, "
            f"{frames.skipped} skipped, {frames.dropped} dropped, {frames.queued} queued",
            "time": f"{format_seconds(status.clock_seconds or 0)} of video in {wall_seconds:.1f} s, "
            f"at most {status.max_lag_seconds:.1f} s behind",
            "answers": _speeds(answers),
            "memory": f"{blocks} blocks ({status.moved['demoted']} demoted, {status.moved['merged']} merged)",
            "bytes": ", ".join(f"{tier} {megabytes(count)}" for tier, count in tiers.items()),
        }
    )


def _speeds(answers: Sequence[Answer]) -> str:
    ttfts = [answer.ttft_seconds for answer in answers if answer.ttft_seconds is not None]
    speeds = [answer.tokens_per_second for answer in answers if answer.tokens_per_second is not None]
    if not ttfts:
        return "none"
    first = (
        f"{len(ttfts)}, first token after {statistics.median(ttfts) * 1000:.0f} ms (at most {max(ttfts) * 1000:.0f})"
    )
    return f"{first}, {statistics.median(speeds):.1f} tokens/s" if speeds else first


def megabytes(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def fact_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="cyan"), Text(printable(str(value))))
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows under their keys."""
    table = Table(*(rows[0] if rows else ()), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    return table
