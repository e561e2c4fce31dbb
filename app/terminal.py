"""What people see: answers on stdout, panels on a terminal and paragraphs elsewhere; tables.

This module knows nothing of models or of how anything is computed.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vstream.app.alerts.notices import Notice, notice_text
from vstream.app.lines import LineScreen
from vstream.app.progress import printable
from vstream.app.view import blocks_text, cut, format_wall
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer, Evidence
    from vstream.app.alerts.delivery import Delivered
    from vstream.app.desk import Asked, Desk, Watched
    from vstream.app.output import PictureFolder
    from vstream.session import Status

GROW_SECONDS = 0.1
LABEL_CELLS, TITLE_MARGIN = 30, 8
THUMBNAIL_CELLS = (24, 8)
"""Columns and lines of an evidence picture in the terminal; a line shows two rows of pixels."""


class TerminalScreen(LineScreen):
    """Shows answers on stdout while they grow, and a table on stderr at the end."""

    def __init__(self, pictures: PictureFolder, **settings: Any) -> None:
        """`pictures` is where the evidence goes; the rest is `LineScreen`'s."""
        super().__init__(pictures, **settings)
        self._console = Console(highlight=False)

    def show(self, asked: Asked) -> None:
        """Shows one answer; returns when it is over."""
        with self.paused():
            if self._console.is_terminal:
                self._grow(asked)
            else:
                asked.answer.wait()
                self._console.print(_paragraph(asked, self._paths(asked)), soft_wrap=True)

    def show_finished(self, asked: Asked) -> None:
        """Shows one answer that is over, as a panel."""
        self._console.print(self._panel(asked))

    def show_event(self, event: Delivered) -> None:
        """Shows that an event has begun or is over, on a line."""
        with self.paused():
            self._console.print(event_line(event.notice, event.image), soft_wrap=True)

    def print(self, text: str) -> None:
        """Prints a text as it is."""
        self._console.print(Text(text), soft_wrap=True)

    def print_status(self, desk: Desk, wall_seconds: float) -> None:
        """Prints how everything stands."""
        answers = [asked.answer for asked in desk.asked if asked.answer.done]
        self._console.print(
            self.summary([one for one in desk.watched if not one.session.closed], answers, wall_seconds)
        )

    def close(self, watched: Sequence[Watched], answers: Sequence[Answer], wall_seconds: float) -> None:
        """Sums up streams that were watched to their end."""
        self.stop()
        self.console.print(self.summary(watched, answers, wall_seconds))

    def summary(self, watched: Sequence[Watched], answers: Sequence[Answer], wall_seconds: float) -> RenderableType:
        """A table for each source, what became of the answers in the last one."""
        parts: list[RenderableType] = []
        for one in watched:
            facts = closing_facts(one.session.status(), wall_seconds)
            last = {"answers": _speeds(answers)} if one is watched[-1] else {}
            parts += [Text(printable(one.label), style="bold")] if one.label else []
            parts.append(fact_table(facts | last))
        return Group(*parts)

    def _grow(self, asked: Asked) -> None:
        with Live(console=self._console, redirect_stderr=False, vertical_overflow="visible") as live:
            while not asked.answer.wait(GROW_SECONDS):
                live.update(self._panel(asked))
            live.update(self._panel(asked))

    def _paths(self, asked: Asked) -> list[str | None]:
        name = asked.watched.name
        return [self.pictures.save(evidence, name) for evidence in asked.answer.evidence]

    def _panel(self, asked: Asked) -> RenderableType:
        answer = asked.answer
        said = Text(printable(answer.text_so_far), style="bold")
        body: RenderableType = Group(said, Text(), *evidence_lines(answer.evidence, self._paths(asked)))
        pictured = next((one for one in answer.evidence if one.picture), None)
        if pictured and self._console.color_system in ("256", "truecolor") and self._console.width >= 80:
            grid = Table.grid(padding=(0, 2))
            assert pictured.picture_seconds is not None, f"{pictured} has a picture of no time"
            when = Text(format_seconds(pictured.picture_seconds), style="dim")
            grid.add_row(Group(thumbnail(pictured.picture), when), body)
            body = grid
        title, question = _asked_at(asked), Text(" ".join(printable(answer.question).split()), style="cyan")
        if cell_len(title) + cell_len(question.plain) + TITLE_MARGIN > self._console.width:
            body = Group(question, Text(), body)
        else:
            title = f"{title} {question.plain}"
        return Panel(
            body,
            title=Text(f" {title} ", style="cyan"),
            title_align="left",
            subtitle=_speed(answer),
            subtitle_align="right",
        )


def event_line(notice: Notice, image: str | None) -> Text:
    """When, what, and where its picture is."""
    when, what = notice_text(notice)
    wall = notice.event.wall_clock
    parts = [Text(f"[{when}]", style="cyan"), Text(printable(what), style="bold" if notice.phase == "start" else "")]
    parts += [Text(text, style="dim") for text in (wall and format_wall(wall), image) if text]
    return Text("  ").join(parts)


def _paragraph(asked: Asked, paths: Sequence[str | None]) -> Text:
    answer = asked.answer
    lines = [Text(f"[{_asked_at(asked)}] {printable(answer.question)}"), Text(printable(answer.text_so_far))]
    lines += [Text("  ") + line for line in evidence_lines(answer.evidence, paths)]
    return Text("\n").join([*lines, Text(f"  {_speed(answer)}\n")])


def _asked_at(asked: Asked) -> str:
    seconds = asked.answer.asked_at_seconds
    when = "end" if seconds is None else format_seconds(seconds)
    return f"{cut(printable(asked.watched.label), LABEL_CELLS)} {when}".strip()


def _speed(answer: Answer) -> str:
    parts = []
    if answer.choice is not None:
        parts.append(f"option {ascii_uppercase[answer.choice]}")
    if answer.num_left_out:
        parts.append(f"{answer.num_left_out} earlier turns left out")
    if answer.ttft_seconds is not None:
        parts.append(f"first token after {answer.ttft_seconds * 1000:.0f} ms")
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.finish_reason == "cancelled":
        parts.append("cancelled")
    return ", ".join(parts)


def evidence_lines(evidence: Sequence[Evidence], paths: Sequence[str | None]) -> list[Text]:
    """A line for each piece of evidence: its times, level, score and picture."""
    return [
        Text(f"{_times(one)}  {one.level:<6} {one.score:6.3f}") + Text(f"  {path}" if path else "", style="dim")
        for one, path in zip(evidence, paths, strict=True)
    ]


def _times(one: Evidence) -> str:
    span = f"{format_seconds(one.start_seconds)}-{format_seconds(one.end_seconds)}"
    return span if one.wall_clock is None else f"{span}  {format_wall(one.wall_clock)}"


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


def closing_facts(status: Status, wall_seconds: float) -> dict[str, str]:
    """What became of the frames, how fast it went, and how much is remembered where."""
    frames, memory = status.frames, status.memory
    tiers = {"device": memory.device_bytes, "host": memory.host_bytes, "disk": memory.disk_bytes}
    return {
        "frames": f"{frames.decoded} decoded, {frames.received} taken: {frames.encoded} encoded, "
        f"{frames.skipped} skipped, {frames.dropped} dropped, {frames.queued} queued",
        "vision": f"{status.vision.made} tokens made, {status.vision.left_out} "
        f"({status.vision.share_left_out:.0%}) left out",
        "time": f"{format_seconds(status.clock_seconds or 0)} of video in {wall_seconds:.1f} s, "
        f"at most {status.max_lag_seconds:.1f} s behind",
        "memory": f"{blocks_text(status.blocks)} ({', '.join(f'{n} {name}' for name, n in status.moved.items())})",
        "bytes": ", ".join(f"{tier} {megabytes(count)}" for tier, count in tiers.items()),
    }


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
        table.add_row(Text(printable(name), style="cyan"), Text(printable(str(value))))
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows under their keys."""
    table = Table(*(rows[0] if rows else ()), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    return table
