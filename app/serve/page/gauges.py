"""Gauges, and how a stream stands, as HTML. Knows nothing of Gradio or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from vstream.app.serve.library import without_folders
from vstream.app.serve.page.alerts import alert_chips
from vstream.app.serve.page.words import TIERS
from vstream.app.view import MIB, format_wall
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.app.looks import Look
    from vstream.app.serve.stream import Stream

STALE_SECONDS = 5.0
TIER_NAMES = {"host": "RAM"}
TIERS_SAID = {TIER_NAMES.get(tier, tier): text for tier, text in TIERS.items()}


def gauges(look: Look, answers: Sequence[Answer]) -> str:
    """Five quiet tiles."""
    first = next((one.ttft_seconds for one in reversed(answers) if one.ttft_seconds), None)
    speed = next((one.tokens_per_second for one in reversed(answers) if one.tokens_per_second is not None), None)
    tiles = [
        _tile("Watching", [_number(None if look.over else look.encoded_per_second, 1, "fps")], "Frames a second"),
        _tile("Behind", [_number(None if look.over else look.lag_seconds, 1, "s")], "From newest frame to memory"),
        _tile("First word", [_number(first, 1, "s")], "From the last question to its first word (TTFT)"),
        _tile("Speaking", [_number(speed, 0, "tokens/s")], "Tokens a second of the last answer"),
        _tile("Memory, MiB", _tiers(look) or [("0", "")], "What memory takes, by tier"),
    ]
    return f'<dl class="tiles" aria-label="Gauges">{"".join(tiles)}</dl>'


def _number(value: float | None, digits: int, unit: str) -> tuple[str, str]:
    return ("–", "") if value is None else (f"{value:.{digits}f}", unit)


def _tiers(look: Look) -> list[tuple[str, str]]:
    mib = {tier: count / MIB for tier, count in look.tier_bytes.items() if count}
    return [(f"{count:.{count < 10:d}f}", TIER_NAMES.get(tier, tier)) for tier, count in mib.items()]


def _tile(name: str, values: Sequence[tuple[str, str]], title: str) -> str:
    said = " ".join(
        f'{value} <small title="{escape(TIERS_SAID.get(unit, ""))}">{unit}</small>' for value, unit in values
    )
    return f'<div class="tile" title="{escape(title)}"><dt>{name}</dt><dd>{said}</dd></div>'


def overlay(stream: Stream, look: Look) -> str:
    """Stream time and state, over the picture."""
    clock = format_seconds(look.clock_seconds or 0.0)
    rest = f"/ {format_seconds(look.duration_seconds)}" if look.duration_seconds else ""
    rest = format_wall(look.wall_seconds) if look.wall_seconds is not None else rest
    kind, state = standing(stream, look)
    return (
        f'<div class="over"><span class="chip num">{clock} <span class="rest">{rest}</span></span>'
        f'<span class="chip" role="status"><i class="dot {kind}"></i>{escape(state)}</span>{alert_chips(stream)}</div>'
    )


def standing(stream: Stream, look: Look) -> tuple[str, str]:
    """The dot's kind ("on", "bad" or "") and what is going on, in few words."""
    state, age = stream.state, stream.view.age_seconds
    if state == "watching" and stream.is_live and age is not None and age > STALE_SECONDS:
        return "bad", f"No new pictures, the last came {age:.0f} s ago"
    if state == "reconnecting":
        since = f", last picture {age:.0f} s ago" if age is not None and age >= 1 else ""
        return "bad", f"Reconnecting{since}: {look.state.rpartition(': ')[2]}"
    return {
        "connecting": ("", "Connecting…"),
        "watching": ("on", "Live" if stream.is_live else "Watching"),
        "over": ("", "Seen to its end; ask on"),
        "memory": ("", "A memory; nothing is watched"),
        "failed": ("bad", f"Failed: {without_folders(look.failure or '')}"),
        "closed": ("", "Closed"),
    }[state]
