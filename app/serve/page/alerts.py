"""Standing questions on the page as HTML: the list below the map, chips on the picture, events in the conversation.

Knows nothing of Gradio or HTTP.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vstream.app.alerts.standing import since_seconds
from vstream.app.serve.page.html import data
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.app.alerts.notices import Notice
    from vstream.app.serve.stream import Stream
    from vstream.standing import Alert

MAX_CHIPS = 2


def standing_questions(stream: Stream) -> str:
    """What is looked for, each with a dot that says whether it is so; "" where nothing is."""
    items = "".join(_item(stream, alert) for alert in stream.alerts.alerts)
    return f'<ul class="alerts" aria-label="Standing questions">{items}</ul>' if items else ""


def _item(stream: Stream, alert: Alert) -> str:
    since, count = since_seconds(alert), len(alert.events)
    times = "not yet" if not count else "once" if count == 1 else f"{count} times"
    state = times if since is None else f"since {format_seconds(since)}"
    dot = f'<i class="dot{" on" if since is not None else ""}"></i>'
    remove, label = data({"do": "untell", "stream": stream.id, "alert": alert.id}), f"Remove: {escape(alert.text)}"
    return (
        f'<li class="alert"{data({"text": alert.text})}>{dot}<span class="text">{escape(alert.text)}</span>'
        f'<span class="quiet num">{state}</span>'
        f'<button type="button" class="button slight round"{remove} aria-label="{label}">×</button>'
        "</li>"
    )


def alert_chips(stream: Stream) -> str:
    """What is so now, over the picture; screen readers say it."""
    now = [alert.text for alert in stream.alerts.alerts if since_seconds(alert) is not None]
    more = [f"{len(now) - MAX_CHIPS} more"] * (len(now) > MAX_CHIPS)
    return "".join(
        f'<span class="chip seen" role="status"><i class="dot on"></i><span>{escape(text)}</span></span>'
        for text in now[:MAX_CHIPS] + more
    )


def event_html(stream_id: str, notice: Notice) -> str:
    """An event in the conversation: when, what, and its picture, which seeks."""
    event = notice.event
    time = format_seconds(event.seconds)
    until = "" if event.end_seconds is None else f" to {format_seconds(event.end_seconds)}"
    values = {"do": "seek", "seconds": f"{event.seconds:.3f}", "key": f"{stream_id}-{notice.event_id}"}
    picture = f"/v1/streams/{stream_id}/events/{notice.event_id}.jpg"
    dot = "" if until else '<i class="dot on"></i>'
    return (
        f'<li class="event"><button type="button"{data(values)} aria-label="Show {time}, {escape(event.text)}">'
        f'<img src="{picture}" alt="" width="60" height="40"><span class="what"><span class="text">{dot}'
        f'{escape(event.text)}</span><span class="quiet num">{format_seconds(event.start_seconds)}{until}</span></span>'
        "</button></li>"
    )
