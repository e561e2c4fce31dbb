"""A stream's standing questions, and the latest of what they have told, for whoever asks or listens.

Any thread may use it. This module knows nothing of HTTP or of how anything looks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vstream.app.alerts.notices import Notice
from vstream.app.alerts.standing import Standing, TooManyAlertsError
from vstream.app.serve.busy import BusyError

if TYPE_CHECKING:
    from vstream.session import Session
    from vstream.standing import Alert, AlertOptions

KEPT_NOTICES, PICTURED_NOTICES = 200, 60
"""The latest beginnings and ends, and how many of those hold their pictures."""
PassOn = Callable[[Notice, Standing], None]
"""Takes a notice of standing questions, as `Delivery.put` does."""


class StreamAlerts:
    """What is looked for in one stream, and what was told of it."""

    def __init__(self, session: Session, stream_id: str, folder: Path | None, pass_on: PassOn) -> None:
        """Nothing is looked for yet.

        Args:
            session: that looks.
            stream_id: of the stream.
            folder: of its memory, None for nowhere.
            pass_on: takes every notice further.
        """
        self._standing = Standing(session, folder, stream=stream_id)
        self._standing.told = self._tell
        self._pass_on = pass_on
        self._lock = threading.Lock()
        self._notices: deque[Notice] = deque(maxlen=KEPT_NOTICES)
        self._listeners: tuple[Callable[[], None], ...] = ()

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Those that go on, oldest first."""
        return self._standing.alerts

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The latest beginnings and ends, oldest first."""
        with self._lock:
            return tuple(self._notices)

    @property
    def events(self) -> list[tuple[float, Notice]]:
        """The latest events, in the order in which they came: when each was noticed (Unix), and what is known now."""
        latest = {notice.event_id: notice for notice in self.notices}
        began = {notice.event_id: notice.told_at for notice in reversed(self.notices)}
        return [(began[event_id], notice) for event_id, notice in latest.items()]

    def after(self, key: str) -> list[Notice]:
        """Notices after the one with a key; all of them where it is none of those kept."""
        notices = list(self.notices)
        known = next((index for index, notice in enumerate(notices) if notice.key == key), -1)
        return notices[known + 1 :]

    def event(self, event_id: str) -> Notice:
        """The latest that is known of an event. Raises `LookupError` for one that is not, or no longer, there."""
        found = next((notice for notice in reversed(self.notices) if notice.event_id == event_id), None)
        if found is None:
            raise LookupError(f"there is no event {event_id!r}")
        return found

    def add(self, text: str, options: AlertOptions) -> Alert:
        """Looks for something from the next clip on.

        Raises:
            BusyError: if there are as many as there may be.
            ValueError: for a text that will not do or is looked for already, or a stream that is not watched.
            RuntimeError: if the stream has ended.
        """
        try:
            return self._standing.add(text, options)
        except TooManyAlertsError as error:
            raise BusyError(str(error)) from error

    def remove(self, alert_id: str) -> None:
        """Looks for it no more. Raises `LookupError` if there is none of this id."""
        self._standing.remove(alert_id)

    def resume(self) -> list[str]:
        """Takes up what was kept; sentences about what could not be. Raises `ValueError` if that is damaged."""
        wrong = self._standing.resume()
        self._standing.tell_again()
        return wrong

    def save(self) -> None:
        """Writes down how they stand. Raises `OSError`."""
        self._standing.save()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Has `listener` called after each notice, by the session's thread; it must return at once."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Ends what `subscribe` began."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one != listener)

    @property
    def num_listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def _tell(self, notice: Notice) -> None:
        with self._lock:
            self._notices.append(notice)
            if len(self._notices) > PICTURED_NOTICES:
                old = self._notices[-1 - PICTURED_NOTICES]
                self._notices[-1 - PICTURED_NOTICES] = replace(old, event=replace(old.event, picture=b""))
            listeners = self._listeners
        self._pass_on(notice, self._standing)
        for listener in listeners:
            listener()
