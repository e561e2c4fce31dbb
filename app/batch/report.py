"""The report of a batch: one file with every answer and its pictures, for any browser, without script or network.

Whatever comes from rows, models or files is escaped. A picture stands in the file once, however many answers saw it.
This module knows nothing of how the answers came about.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vstream.app.batch.telling import UNKNOWN, facts_of, percent, share_text
from vstream.app.progress import printable
from vstream.types import format_seconds

MAX_PICTURES = 4
JPEG = b"\xff\xd8\xff"
STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Record = Mapping[str, Any]


def write_report(path: Path, summary: Record, records: Iterable[Record], scores: Sequence[Record] = ()) -> None:
    """Writes the page; a page that was there is replaced by a whole one.

    Args:
        path: of the page.
        summary: what all comes to.
        records: the lines of the answers; a `note` is shown with its answer.
        scores: lines of a table that comes first, each with the same columns.

    Raises:
        OSError: if it cannot be written.
    """
    html = page_of(summary, list(records), scores)
    part = path.with_name(f".{path.name}.part")
    part.write_text(html, encoding="utf-8", errors="replace")
    os.replace(part, path)


def page_of(summary: Record, records: Sequence[Record], scores: Sequence[Record] = ()) -> str:
    """The page as HTML."""
    gallery = Gallery()
    answers = [one for one in records if "error" not in one]
    videos = "".join(_video(name, about, gallery) for name, about in _by_video(answers).items())
    style = STYLE.read_text(encoding="utf-8") + gallery.style
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{POLICY}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Answers about {len(_by_video(answers)):,} videos</title><style>{style}</style></head><body><main>"
        f"{_head(summary, marked=bool(scores))}{_scores(scores) or _types(summary)}{_errors(records)}{videos}"
        "</main></body></html>\n"
    )


class Gallery:
    """Pictures, each once in the style sheet, by the path they lie at."""

    def __init__(self) -> None:
        """Empty."""
        self._names: dict[str, str | None] = {}
        self._rules: list[str] = []

    def name(self, path: str | None) -> str | None:
        """The class that shows a picture, None where there is none to show."""
        if path is None:
            return None
        if path not in self._names:
            self._names[path] = self._take(Path(path))
        return self._names[path]

    def _take(self, path: Path) -> str | None:
        data = path.read_bytes() if path.is_file() else b""
        if not data.startswith(JPEG):
            return None
        name = f"p{len(self._rules)}"
        self._rules.append(f".{name}{{background-image:url(data:image/jpeg;base64,{base64.b64encode(data).decode()})}}")
        return name

    @property
    def style(self) -> str:
        """The rules."""
        return "".join(self._rules)


def _by_video(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each video in the order of time, videos in that of the rows."""
    by_name: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda one: one["row"]):
        by_name.setdefault(record["video"], []).append(record)
    return {
        name: sorted(about, key=lambda one: (one["asked_at_seconds"] or 0.0, one["row"]))
        for name, about in by_name.items()
    }


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _head(summary: Record, *, marked: bool) -> str:
    """A few figures; not what is right where a table of marks says it with more care."""
    share = summary["right"]
    right = percent(share["share"]) if share["of"] else "–"
    tiles = [] if marked else [("right", right, share_text(share) if share["of"] else UNKNOWN)]
    tiles.append(("answers", f"{summary['answers']:,}", f"about {summary['videos']:,} videos"))
    tiles += [("errors", f"{summary['errors']:,}", "rows without an answer")] if summary["errors"] else []
    if summary["ttft_ms_p50"] is not None:
        tiles.append(("first token", f"{summary['ttft_ms_p50']:.0f} ms", f"p50; p99 {summary['ttft_ms_p99']:.0f} ms"))
    tiles.append(("memory", f"{summary['peak_bytes'] / 2**20:.1f} MiB", "at most, a video"))
    shown = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd><dd class=quiet>{_text(more)}</dd></div>"
        for name, value, more in tiles
    )
    runs = [f"<p class=quiet>{_text(line)}</p>" for name, line in facts_of(summary).items() if name == "this run"]
    return f"<header><h1>Answers</h1><dl class=tiles>{shown}</dl>{''.join(runs)}</header>"


def _scores(scores: Sequence[Record]) -> str:
    """A table; where one is given it says more than the bars."""
    if not scores:
        return ""
    names = dict.fromkeys(name for line in scores for name in line)
    head = "".join(f"<th scope=col>{_text(name)}</th>" for name in names)
    rows = "".join(f"<tr>{''.join(_cell(line.get(name, '')) for name in names)}</tr>" for line in scores)
    table = f"<table class=scores><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<section><h2>Scores</h2>{table}</section>"


def _cell(value: str) -> str:
    """Groups are set in by blanks."""
    depth = len(value) - len(value.lstrip())
    return f'<td style="padding-left:{depth / 2 + 0.5}em">{_text(value.strip())}</td>'


def _types(summary: Record) -> str:
    """A bar for each type, with its interval; nothing where there is only one."""
    known = {name: share for name, share in summary["by_type"].items() if share["of"]}
    if len(known) < 2:
        return ""
    rows = "".join(_type_row(name, share) for name, share in sorted(known.items()))
    return f"<section><h2>By type</h2><table class=types><tbody>{rows}</tbody></table></section>"


def _type_row(name: str, share: Record) -> str:
    left, width = 100 * share["low"], 100 * (share["high"] - share["low"])
    bar = (
        f'<i class=bar style="width:{100 * share["share"]:.1f}%"></i>'
        f'<i class=range style="left:{left:.1f}%;width:{width:.1f}%"></i>'
    )
    count = f"{share['right']:,} of {share['of']:,}"
    return (
        f"<tr><th scope=row>{_text(name)}</th><td class=track><div>{bar}</div></td>"
        f"<td class=num>{percent(share['share'])}</td><td class='num quiet'>{count}</td></tr>"
    )


def _errors(records: Iterable[Record]) -> str:
    wrong = [one for one in records if "error" in one]
    lines = "".join(
        f"<li><b>{_text('–' if one['id'] is None else one['id'])}</b> {_text(one['error'])}</li>" for one in wrong
    )
    return f"<section class=errors><h2>Rows without an answer</h2><ul>{lines}</ul></section>" if wrong else ""


def _video(name: str, records: Sequence[Record], gallery: Gallery) -> str:
    marked = [one["right"] for one in records if one["right"] is not None]
    right = f"{sum(marked):,} of {len(marked):,} right" if marked else f"{len(records):,} answers"
    cards = "".join(_card(one, gallery) for one in records)
    return (
        f"<details open><summary><h2>{_text(name)}</h2><span class=quiet>{right}</span></summary>"
        f"<div class=cards>{cards}</div></details>"
    )


def _card(record: Record, gallery: Gallery) -> str:
    state, said = {True: ("right", "right"), False: ("wrong", "wrong"), None: ("", "")}[record["right"]]
    badge = f"<span class=badge>{said}</span>" if said else ""
    kind = f"<span class=quiet>{_text(record['type'])}</span>" if record["type"] else ""
    at = record["asked_at_seconds"]
    time = f"<time>{format_seconds(at)}</time>" if at is not None else ""
    expected = record["answer_expected"]
    wanted = (
        f"<p class=quiet>expected: {_text(expected)}</p>" if expected is not None and record["right"] is False else ""
    )
    note = f"<p class=quiet>{_text(record['note'])}</p>" if record.get("note") else ""
    return (
        f'<article class="{state}"><p class=line>{time}{kind}<span class="quiet id">{_text(record["id"])}</span>{badge}'
        f"</p><h3>{_text(record['question'])}</h3>{_options(record)}"
        f"<p class=answer>{_text(record['answer'])}</p>{wanted}{note}{_evidence(record, gallery)}</article>"
    )


def _options(record: Record) -> str:
    chosen = record["choice"]
    lines = "".join(
        f"<li{' class=chosen' if index == chosen else ''}><b>{letter}</b> {_text(option)}</li>"
        for index, (letter, option) in enumerate(zip(ascii_uppercase, record["options"], strict=False))
    )
    return f"<ol class=options>{lines}</ol>" if lines else ""


def _evidence(record: Record, gallery: Gallery) -> str:
    """The pictures of what was seen, best first."""
    shown = [(one, name) for one in record["evidence"] if (name := gallery.name(one["image"])) is not None]
    return f"<div class=strip>{''.join(_figure(*one) for one in shown[:MAX_PICTURES])}</div>" if shown else ""


def _figure(one: Record, name: str) -> str:
    times = f"{format_seconds(one['start_seconds'])}–{format_seconds(one['end_seconds'])}"
    return (
        f'<figure><i class={name} role=img aria-label="{times}, {_text(one["level"])}"></i>'
        f"<figcaption>{times} <span>{_text(one['level'])}</span></figcaption></figure>"
    )
