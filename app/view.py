"""The text of the live view: how sources and open answers look in a terminal of a given size.

Pure functions; a line is a list of (style, text), never wider than asked for. This module knows nothing of terminals,
sessions or threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from vstream.app.looks import Look
from vstream.app.progress import printable
from vstream.types import format_seconds

Line = list[tuple[str, str]]

SEPARATOR = "  "
TEXT_LINES = 3
MIB = 1 << 20
STYLES = {
    "name": "ansicyan",
    "dim": "ansibrightblack",
    "trouble": "ansiyellow",
    "failure": "ansired",
    "said": "bold",
    "prompt": "ansigreen bold",
}
"""The styles of lines, by names of prompt_toolkit."""


@dataclass(frozen=True)
class OpenAnswer:
    """A question that is not answered yet, as it is shown.

    Attributes:
        number, label, question: its own, and those of its source ("" where there is only one).
        place: n for the n-th in the queue, else 0.
        text: what has been said so far.
        num_tokens: how much that is.
    """

    number: int
    label: str
    question: str
    place: int
    text: str
    num_tokens: int


@dataclass(frozen=True)
class GoingOn:
    """A standing question, as it is shown.

    Attributes:
        label: of its source, "" where there is only one.
        text: what is looked for.
        since_seconds: since when it is so, None if it is not.
    """

    label: str
    text: str
    since_seconds: float | None


def live_lines(
    looks: Sequence[Look], answers: Sequence[OpenAnswer], width: int, rows: int, standing: Sequence[GoingOn] = ()
) -> list[Line]:
    """All that stands above the prompt: open answers, a rule, the sources, what is looked for; at most `rows` lines."""
    alerts = alert_lines(standing, width, rows // 3)
    status = [*status_lines(looks, width, max(1, rows - 1 - len(alerts))), *alerts]
    open_lines = [line for answer in answers for line in answer_lines(answer, width)]
    room = max(0, rows - len(status) - 1)
    return [*open_lines[len(open_lines) - min(room, len(open_lines)) :], [("class:dim", "─" * width)], *status]


def status_lines(looks: Sequence[Look], width: int, rows: int) -> list[Line]:
    """Up to three lines for each source; fewer where there is little room."""
    full = [_look_lines(look, width) for look in looks]
    for most in (3, 2, 1):
        lines = [line for of_one in full for line in _kept(of_one, most)]
        if len(lines) <= rows:
            return lines
    more = len(full) - rows + 1
    return [*lines[: rows - 1], [("class:dim", cut(f"and {more} more; /status tells all", width))]]


def alert_lines(standing: Sequence[GoingOn], width: int, rows: int) -> list[Line]:
    """A line for each standing question that is so now, and one that counts the others."""
    now = [one for one in standing if one.since_seconds is not None][: max(0, rows - 1)]
    lines = [
        fit(
            [
                (1, "class:said", f"● {cut(printable(one.text), max(8, width - 20))}"),
                (2, "", f"since {format_seconds(one.since_seconds or 0)}"),
                (3, "class:name", short(one.label, width)),
            ],
            width,
        )
        for one in now
    ]
    others = len(standing) - len(now)
    if others and rows:
        lines.append(fit([(1, "class:dim", f"○ {others} standing question{'s' * (others > 1)} more")], width))
    return lines


def _kept(lines: list[Line], most: int) -> list[Line]:
    """The first lines, but rather the trouble (the third) than the memory (the second)."""
    return lines if len(lines) <= most else [lines[0], *lines[len(lines) - most + 1 :]]


def _look_lines(look: Look, width: int) -> list[Line]:
    kept = [
        (2 if look.dropped else 3, "class:trouble" if look.dropped else "class:dim", f"dropped {look.dropped}"),
        (2, "class:dim", _blocks(look)),
        (1, "class:dim", _tiers(look)),
    ]
    troubles = [
        (1, "class:failure" if look.failure else "class:trouble", printable(look.failure or look.state)),
        (2, "class:dim", _gaps(look)),
    ]
    lines = [fit(_pace(look, width), width), fit(kept, width, indent=3)]
    return lines + ([fit(troubles, width, indent=3)] if any(text for _, _, text in troubles) else [])


def _pace(look: Look, width: int) -> list[tuple[int, str, str]]:
    clock = format_seconds(look.clock_seconds or 0)
    clock += f" / {format_seconds(look.duration_seconds)}" if look.duration_seconds else ""
    ended = "failed" if look.failure else "over" if look.over else ""
    going_on = [
        (4, "", f"in {look.decoded_per_second:4.1f}/s"),
        (4, "", f"encoded {look.encoded_per_second:4.1f}/s"),
        (2, "", f"lag {look.lag_seconds:3.1f} s"),
    ]
    return [
        (1, "class:name", short(look.label, width)),
        (2, "", clock),
        (3, "", "" if look.wall_seconds is None else format_wall(look.wall_seconds)),
        *([(2, "", ended)] if ended else going_on),
    ]


def blocks_text(blocks: Mapping[str, int]) -> str:
    """How many blocks lie on each level; empty levels above detail are not worth a word."""
    return ", ".join(f"{count} {level}" for level, count in blocks.items() if count or level == "detail") + " blocks"


def _blocks(look: Look) -> str:
    return blocks_text(look.blocks) if look.blocks else ""


def _tiers(look: Look) -> str:
    tiers = [f"{tier} {count / MIB:.1f}" for tier, count in look.tier_bytes.items()]
    return SEPARATOR.join(tiers) + " MiB" if tiers else ""


def _gaps(look: Look) -> str:
    if not look.num_gaps:
        return ""
    return f"{look.num_gaps} gap{'s' * (look.num_gaps > 1)}, the last {look.last_gap_seconds:.0f} s"


def answer_lines(answer: OpenAnswer, width: int) -> list[Line]:
    """A question with what it waits for, then the end of what was said so far."""
    said = printable(answer.text).strip()
    state = f"{ordinal(answer.place)} in the queue" if answer.place else f"{answer.num_tokens} tokens" if said else "…"
    head = f"{answer.number} {short(answer.label, width)}".strip()
    room = max(8, width - cell_len(head) - cell_len(state) - 2 * len(SEPARATOR))
    question = cut(" ".join(printable(answer.question).split()), room)
    title = fit([(1, "class:name", head), (2, "", question), (3, "class:dim", state)], width)
    text = Text(said).wrap(Console(width=width, file=None), max(8, width - 3))[-TEXT_LINES:] if said else []
    return [title, *([("class:said", cut(f"   {line.plain.rstrip()}", width))] for line in text)]


def hint_line(num_scheduled: int, width: int) -> Line:
    """What can be done, and how many questions wait for their time."""
    scheduled = f"{num_scheduled} question{'s' * (num_scheduled != 1)} scheduled" if num_scheduled else ""
    parts = [(1, "ask at any time"), (3, "/help"), (2, "/quit"), (4, scheduled)]
    return fit([(importance, "class:dim", text) for importance, text in parts], width)


def short(label: str, width: int) -> str:
    """A source's label, no longer than a quarter of a line."""
    return cut(printable(label), max(12, width // 4))


def ordinal(number: int) -> str:
    """1 -> '1st'."""
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def format_wall(unix_seconds: float) -> str:
    """A Unix time as people here read it: '15:00:12', with the date where it is not today's."""
    moment = datetime.fromtimestamp(unix_seconds)
    return f"{moment:%H:%M:%S}" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d %H:%M:%S}"


def fit(parts: Sequence[tuple[int, str, str]], width: int, indent: int = 0) -> Line:
    """A line of (importance, style, text), 1 being what goes last where there is no room; empty texts are left out."""
    kept = [part for part in parts if part[2]]
    while len(kept) > 1 and indent + sum(cell_len(text) + len(SEPARATOR) for *_, text in kept) > width + len(SEPARATOR):
        kept.remove(max(reversed(kept), key=lambda part: part[0]))
    line: Line = [("", " " * min(indent, width))] if indent else []
    for index, (_, style, text) in enumerate(kept):
        line += [("", SEPARATOR)] if index else []
        line.append((style, cut(text, width - indent)))
    return line


def cut(text: str, width: int) -> str:
    """Text of at most `width` cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"
