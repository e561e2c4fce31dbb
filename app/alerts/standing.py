"""The standing questions of one session: opened, kept beside its memory, and taken up again with it.

FOLDER/alerts.json holds texts, options, how each stands, and what was noticed and is not written down elsewhere yet. It
is written anew, in one durable step, before and after an event's beginning or end is told: who is killed in between
tells it again, with the same id. This module knows nothing of how events reach anybody, or of models.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vstream.app.alerts.notices import Notice, notice_of, notice_plain
from vstream.memory.folder import sync_folder
from vstream.standing import Alert, AlertOptions, Event

if TYPE_CHECKING:
    from vstream.session import Session

KEPT = "alerts.json"
MAX_ALERTS = 16
MAX_TEXT = 1000
"""Characters of a standing question."""


class TooManyAlertsError(ValueError):
    """A session has as many standing questions as it may have."""


class Kept(NamedTuple):
    """What a file holds: alerts as tables of text, options and state; notices that may not have been told."""

    alerts: list[dict[str, Any]]
    untold: list[Notice]


class Standing:
    """Alerts of a session, and a file that says how they stand. Any thread may use it.

    Attributes:
        told: is told of every beginning and end, by the session's own thread; it must return at once.
    """

    def __init__(self, session: Session, folder: Path | None, *, stream: str = "", label: str = "") -> None:
        """No alert is open yet.

        Args:
            session: that looks for them.
            folder: where they are kept, None for nowhere. A memory must be there already.
            stream, label: as a `Notice` has them.
        """
        self.told: Callable[[Notice], None] = lambda notice: None
        self._session, self._folder = session, folder
        self._stream, self._label = stream, label
        self._lock, self._noticing = threading.Lock(), threading.Lock()
        self._untold: list[Notice] = []

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Those that go on, oldest first."""
        return self._session.alerts

    @property
    def is_needed(self) -> bool:
        """Whether there is, or was, something to tell."""
        return bool(self.alerts or self._untold)

    def add(self, text: str, options: AlertOptions | None = None) -> Alert:
        """Looks for something from the next clip on.

        Raises:
            TooManyAlertsError: if there are as many as there may be.
            ValueError: for a text that will not do or is looked for already, or a session that watches nothing.
            RuntimeError: if the session has ended.
        """
        alert = self._open(checked_text(text), options, None)
        self.save()
        return alert

    def remove(self, alert_id: str) -> None:
        """Looks for it no more. Raises `LookupError` if there is none of this id."""
        alert = self.find(alert_id)
        alert.cancel()
        self.save()

    def find(self, alert_id: str) -> Alert:
        """One that goes on. Raises `LookupError` if there is none of this id."""
        found = next((alert for alert in self.alerts if alert.id == alert_id), None)
        if found is None:
            raise LookupError(f"there is no standing question {alert_id!r}")
        return found

    def resume(self) -> list[str]:
        """Takes up what was kept; sentences about what could not be. Raises `ValueError` for a file that is damaged."""
        wrong = []
        kept = read_kept(self._folder / KEPT) if self._folder else Kept([], [])
        for one in kept.alerts:
            try:
                self._open(one["text"], AlertOptions(**one["options"]), one["state"])
            except (ValueError, TypeError) as error:
                wrong.append(f"the standing question {one['text']!r} cannot go on: {error}")
        self._untold = [replace(notice, label=self._label) for notice in kept.untold]
        return wrong

    def tell_again(self) -> None:
        """Tells what an earlier run noticed, but was killed before it was written down."""
        for notice in list(self._untold):
            self.told(notice)

    def written(self, notice: Notice) -> None:
        """A notice was written down where it lasts. Raises `OSError`."""
        with self._noticing:
            self._untold = [one for one in self._untold if one is not notice]
        self.save()

    def end(self) -> None:
        """Nobody looks any more: what is not kept is over."""
        if self._folder is None:
            for alert in self.alerts:
                alert.cancel()

    def save(self) -> None:
        """Writes down how they stand. Raises `OSError`."""
        if self._folder is None or self._session.source is None:
            return
        with self._lock:
            alerts = [
                {"text": alert.text, "options": asdict(alert.options), "state": alert.state()} for alert in self.alerts
            ]
            untold = [notice_plain(notice) for notice in self._untold]
            if alerts or untold or (self._folder / KEPT).exists():
                _write(self._folder / KEPT, {"alerts": alerts, "untold": untold})

    def _open(self, text: str, options: AlertOptions | None, state: dict[str, Any] | None) -> Alert:
        with self._lock:
            if any(alert.text == text for alert in self.alerts):
                raise ValueError(f"{text!r} is looked for already; remove it to look for it in another way")
            if len(self.alerts) >= MAX_ALERTS:
                raise TooManyAlertsError(f"there are {MAX_ALERTS} standing questions, which is the most; remove one")
            alert = self._session.alert(text, options)
            if state is not None:
                alert.restore(state)
            alert.subscribe(partial(self._tell, self._session.memory.source_name))
        return alert

    def _tell(self, source: str | None, event: Event) -> None:
        notice = Notice(event, source, self._stream, self._label)
        with self._noticing:
            self._untold = [*self._untold, notice]
        self.told(notice)


def since_seconds(alert: Alert) -> float | None:
    """Stream time since which it is so, None if it is not."""
    newest = alert.events[-1:]
    return newest[0].start_seconds if newest and newest[0].end_seconds is None else None


def checked_text(text: str) -> str:
    """A standing question on one line. Raises `ValueError` if there is none, or it is too long."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not 1 <= len(plain) <= MAX_TEXT:
        raise ValueError(f"a standing question has 1 to {MAX_TEXT} characters that can be seen, got {len(plain)}")
    return plain


def read_kept(path: Path) -> Kept:
    """What a file of `Standing` holds; nothing where there is none. Raises `ValueError` for one that is damaged."""
    if not path.is_file():
        return Kept([], [])
    try:
        found = json.loads(path.read_text("utf-8"))
        alerts = [{name: one[name] for name in ("text", "options", "state")} for one in found["alerts"]]
        return Kept(alerts, [notice_of(one) for one in found["untold"]])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to go on without its standing questions") from error


def _write(path: Path, kept: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.new")
    with part.open("w", encoding="utf-8") as file:
        json.dump(kept, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)
