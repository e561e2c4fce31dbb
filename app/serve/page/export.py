"""A conversation to take away, with its evidence: Markdown to read, JSON for programs.

Pictures are inside the file (base64), so that it stands alone. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vstream.app.serve.library import without_folders
from vstream.app.serve.page.chat import LEVEL_NAMES, moment_of
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Evidence
    from vstream.app.serve.stream import Stream, Turn


def to_json(stream: Stream) -> str:
    """The whole conversation; times in seconds of the stream, `asked_at` as ISO 8601 in UTC."""
    card = stream.card
    return json.dumps(
        {
            "title": card.title, "source": card.source, "model": card.model, "preset": card.preset,
            "created": card.created,
            "conversation": [_turn(stream, turn) for turn in stream.turns],
        }, indent=2, ensure_ascii=False,
    )  # fmt: skip


def _turn(stream: Stream, turn: Turn) -> dict[str, Any]:
    answer = turn.answer
    return {
        "number": turn.number,
        "question": answer.question,
        "answer": answer.text_so_far.strip(),
        "finish_reason": answer.finish_reason,
        "error": without_folders(str(answer.error)) if answer.error else None,
        "asked_at": None if turn.asked_at is None else datetime.fromtimestamp(turn.asked_at, UTC).isoformat(),
        "asked_at_seconds": answer.asked_at_seconds,
        "evidence": [_evidence(stream, evidence) for evidence in in_time(answer.evidence)],
    }


def _evidence(stream: Stream, evidence: Evidence) -> dict[str, Any]:
    picture, seconds = _picture_of(stream, evidence)
    return {
        "start_seconds": evidence.start_seconds,
        "end_seconds": evidence.end_seconds,
        "level": evidence.level or None,
        "score": evidence.score if math.isfinite(evidence.score) else None,
        "picture_seconds": seconds,
        "picture_jpeg_base64": base64.b64encode(picture).decode() or None,
    }


def _picture_of(stream: Stream, evidence: Evidence) -> tuple[bytes, float | None]:
    """What the answer saw; for answers of an earlier run the remembered picture nearest to it."""
    if evidence.picture:
        return evidence.picture, evidence.picture_seconds
    return stream.picture(moment_of(evidence)) or (b"", None)


def to_markdown(stream: Stream) -> str:
    """The whole conversation as a text with pictures."""
    card = stream.card
    about = f"{_plain(card.source)}, watched by vstream with {card.model}"
    about += f", begun {datetime.fromisoformat(card.created).astimezone():%Y-%m-%d %H:%M %Z}"
    return "\n\n".join([f"# {_plain(card.title)}", about, *(_section(stream, turn) for turn in stream.turns)]) + "\n"


def _section(stream: Stream, turn: Turn) -> str:
    answer = turn.answer
    at = "" if answer.asked_at_seconds is None else f" (asked at {format_seconds(answer.asked_at_seconds)})"
    said = f"No answer: {without_folders(str(answer.error))}" if answer.error else answer.text_so_far.strip()
    shown = [_shown(stream, evidence) for evidence in in_time(answer.evidence)]
    return "\n\n".join([f"## {_plain(answer.question)}{at}", _plain(said), *(["Looked at:"] if shown else []), *shown])


def _shown(stream: Stream, evidence: Evidence) -> str:
    picture, seconds = _picture_of(stream, evidence)
    span, level = _span(evidence), LEVEL_NAMES.get(evidence.level, evidence.level)
    line = f"- {span}{f', {level}' if level else ''}"
    if not picture:
        return line
    name = f"picture at {format_seconds(seconds or 0.0)}"
    return f"{line}\n\n  ![{name}](data:image/jpeg;base64,{base64.b64encode(picture).decode()})"


def _span(evidence: Evidence) -> str:
    start, end = format_seconds(evidence.start_seconds), format_seconds(evidence.end_seconds)
    return start if start == end else f"{start} to {end}"


def in_time(evidence: Sequence[Evidence]) -> list[Evidence]:
    """In the order of the stream's time."""
    return sorted(evidence, key=lambda one: (one.start_seconds, one.end_seconds))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)


def file_name(stream: Stream, suffix: str) -> str:
    """A name for a download, of letters that every system takes."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", stream.card.title).strip("-").lower()
    return f"{plain or 'conversation'}.{suffix}"
