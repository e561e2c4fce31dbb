"""The page's other parts as HTML: the top, the head of the conversation, the memories. Knows nothing of Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vstream.app.serve.page.gauges import standing
from vstream.app.serve.page.html import button, data, size
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.app.serve.library import Kept
    from vstream.app.serve.stream import Stream

LOGO = (
    '<svg width="20" height="20" viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="2" '
    'stroke-linecap="round" aria-hidden="true"><path d="M2 6h16M4 10h12M7 14h6"/></svg>'
)
HALF_MOON = (
    '<svg width="18" height="18" viewBox="0 0 18 18" aria-hidden="true"><circle cx="9" cy="9" r="7" fill="none" '
    'stroke="currentColor" stroke-width="1.6"/><path d="M9 2a7 7 0 0 1 0 14z" fill="currentColor"/></svg>'
)


def top(streams: Sequence[Stream], shown: str) -> str:
    """The bar with all open streams; `shown` is the id of the one that is looked at, "" for none."""
    tabs = "".join(_tab(stream, stream.id == shown) for stream in streams)
    add = button("Add", "home", kind="slight") if streams and shown else ""
    return (
        f'<header class="bar"><button type="button" class="brand" data-do="home" aria-label="vstream, begin">'
        f'{LOGO}<span>vstream</span></button><nav class="tabs" aria-label="Open streams">{tabs}{add}</nav>'
        f'<div class="tools"><button type="button" class="button slight round" data-do="theme" '
        f'aria-label="Light or dark" title="Light or dark">{HALF_MOON}</button></div></header>'
    )


def _tab(stream: Stream, current: bool) -> str:
    kind, state = standing(stream, stream.look())
    return (
        f'<button type="button" class="tab"{data({"do": "show", "stream": stream.id})} '
        f'aria-current="{"true" if current else "false"}" title="{escape(state)}"><span class="dot {kind}"></span>'
        f"<span>{escape(stream.card.title)}</span></button>"
    )


def chat_head(stream: Stream) -> str:
    """Title, model and what can be done with a stream."""
    card, base = stream.card, f"/v1/streams/{stream.id}/conversation"
    keep = "" if card.kept else button("Keep memory", "keep", kind="slight", stream=stream.id)
    kept = " · kept" if card.kept else ""
    about = f"{card.model}{f' · {card.preset}' if card.preset else ''}{kept}"
    sheet = (
        button("Rename…", "rename", kind="slight", memory=stream.id, title=card.title)
        + f'<a class="button slight" href="{base}.md" download>Export as Markdown</a>'
        + f'<a class="button slight" href="{base}.json" download>Export as JSON</a>'
        + button("Close…" if not card.kept else "Close", "close", kind="slight", stream=stream.id, kept=card.kept or "")
    )
    return (
        f'<div class="chat-head"><div class="what"><h2>{escape(card.title)}</h2><p>{escape(about)}</p></div>{keep}'
        f'<details class="menu"><summary class="button slight" aria-label="More">•••</summary>'
        f'<div class="sheet">{sheet}</div></details></div>'
    )


def shelf(memories: Sequence[Kept], open_ids: frozenset[str]) -> str:
    """The memories on disk, each with what can be done with it; those not kept say so. "" for none."""
    if not memories:
        return ""
    items = "".join(_memory(memory, memory.card.id in open_ids) for memory in memories)
    return f'<section class="shelf" aria-label="Memories"><h2>Memories</h2><ul>{items}</ul></section>'


def _memory(memory: Kept, is_open: bool) -> str:
    card = memory.card
    span = "nothing yet" if memory.seconds is None else format_seconds(memory.seconds)
    turns = f"{memory.turns} question{'s' * (memory.turns != 1)}"
    source = Path(card.source).name if card.source.startswith("/") else card.source
    facts = [escape(source), span, turns, size(memory.num_bytes), _day(card.created)]
    facts += ["not saved"] * (not card.kept)
    keep = "" if card.kept else button("Keep", "keep", kind="slight", stream=card.id)
    resume = button("Show", "show", kind="slight", stream=card.id) if is_open else ""
    resume = resume or button("Resume", "resume", kind="slight", memory=card.id)
    rename = button("Rename", "rename", kind="slight", memory=card.id, title=card.title)
    delete = button("Delete", "delete", kind="slight", memory=card.id, title=card.title)
    return (
        f'<li class="memory"><div><b>{escape(card.title)}</b><p class="quiet small num">{" · ".join(facts)}</p></div>'
        f'<div class="acts">{resume}{keep}{rename}{delete}</div></li>'
    )


def _day(iso: str) -> str:
    moment = datetime.fromisoformat(iso).astimezone()
    return f"today {moment:%H:%M}" if moment.date() == datetime.now().date() else f"{moment.day} {moment:%b %Y}"
