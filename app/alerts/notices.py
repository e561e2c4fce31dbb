"""Notices: that an event has begun or is over, as records for programs and as a line for people.

This module knows nothing of sessions, screens or the network.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from vstream.standing import Event
from vstream.types import format_seconds

Phase = Literal["start", "end"]


@dataclass(frozen=True, eq=False)
class Notice:
    """One thing to tell.

    Attributes:
        event: as it stands.
        source: the name of what is watched, for people.
        stream: tells streams apart in which the same could happen at the same time.
        label: "@2 clip.mp4" where there are several sources, else "".
        told_at: Unix time at which it was noticed.
    """

    event: Event
    source: str | None
    stream: str = ""
    label: str = ""
    told_at: float = field(default_factory=time.time)

    @property
    def phase(self) -> Phase:
        """Whether it has begun or is over."""
        return "start" if self.event.end_seconds is None else "end"

    @property
    def event_id(self) -> str:
        """The same at its beginning and its end, and where the same stream is watched again; of no other event."""
        event = self.event
        wall = "" if event.wall_clock is None else f"{event.wall_clock:.0f}"
        return hashlib.sha256(f"{self.stream}|{self.source}|{event.id}|{wall}".encode()).hexdigest()[:20]

    @property
    def key(self) -> str:
        """Of this notice alone: who gets two with one key got the same twice."""
        return f"{self.event_id}-{self.phase}"


def notice_record(notice: Notice, image: str | None = None) -> dict[str, Any]:
    """A notice as JSON values; `image` is the path of its picture."""
    event = notice.event
    return {
        "event": notice.phase,
        "id": notice.event_id,
        "alert_id": event.alert_id,
        "source": notice.source,
        "text": event.text,
        "start_seconds": event.start_seconds,
        "end_seconds": event.end_seconds,
        "seconds": event.seconds,
        "confidence": round(event.confidence, 4),
        "wall_clock": None if event.wall_clock is None else iso(event.wall_clock),
        "image": image,
    }


def letter_record(notice: Notice) -> dict[str, Any]:
    """A notice as it travels: with its picture inside, as nobody elsewhere can open this machine's files."""
    picture = base64.b64encode(notice.event.picture).decode() or None
    record = notice_record(notice)
    del record["image"]
    return record | {"stream_id": notice.stream or None, "picture_jpeg_base64": picture}


def notice_text(notice: Notice) -> tuple[str, str]:
    """When and what, for people: ("00:12", "a cat appears (93 %)"), ("00:12-00:20", "over: a cat appears (97 %)")."""
    event = notice.event
    when = format_seconds(event.start_seconds)
    if event.end_seconds is not None:
        when = f"{when}-{format_seconds(event.end_seconds)}"
    over = "over: " if notice.phase == "end" else ""
    return f"{notice.label} {when}".strip(), f"{over}{event.text} ({event.confidence:.0%})"


def notice_plain(notice: Notice) -> dict[str, Any]:
    """All of a notice as JSON values."""
    picture = base64.b64encode(notice.event.picture).decode()
    return {**vars(notice), "event": {**vars(notice.event), "picture": picture}}


def notice_of(plain: Mapping[str, Any]) -> Notice:
    """The notice that `notice_plain` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    event = plain["event"]
    return Notice(**{**plain, "event": Event(**{**event, "picture": base64.b64decode(event["picture"])})})


def iso(unix_seconds: float) -> str:
    """ISO 8601 with the local time zone's offset, as `--at` takes it."""
    return datetime.fromtimestamp(unix_seconds).astimezone().isoformat(timespec="milliseconds")
