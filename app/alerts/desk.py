"""The standing questions of one command: opened for every source, their events written down, sent and handed out.

One thread uses it. This module knows nothing of screens or of tensors.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vstream.app.alerts.notices import Notice
from vstream.app.alerts.standing import Standing, checked_text

if TYPE_CHECKING:
    from vstream.app.alerts.delivery import Delivered, Delivery
    from vstream.app.alerts.options import WatchOptions
    from vstream.app.desk import Watched
    from vstream.app.output import PictureFolder
    from vstream.standing import Alert

Item = TypeVar("Item")


class AlertDesk:
    """Alerts in, events out. `open` begins, `end` says that nobody looks any more, `close` comes after the sessions."""

    def __init__(self, options: WatchOptions) -> None:
        """Checks all that can be checked before a model is loaded.

        Raises:
            ValueError: for an alert or an option that will not do.
        """
        self._options, self._settings = options, options.alert_options()
        self._texts = list(dict.fromkeys(checked_text(text) for text in options.alert or ()))
        options.check_delivery()
        self._standing: list[tuple[Watched, Standing]] = []
        self._delivery: Delivery | None = None
        self._shown: queue.SimpleQueue[Delivered] = queue.SimpleQueue()
        self._sentences: queue.SimpleQueue[str] = queue.SimpleQueue()

    def open(self, watched: Sequence[Watched], pictures: PictureFolder) -> None:
        """Looks for everything in every source, none of which lets frames in yet.

        Raises:
            ValueError: for a text that the model cannot be asked.
        """
        for one in watched:
            standing = Standing(one.session, one.planned.memory, stream=_identity(one), label=one.label)
            standing.told = partial(self._put, standing)
            self._standing.append((one, standing))
            self._open(one, standing)
        if any(standing.is_needed for _, standing in self._standing):
            self._delivery = self._options.delivery(
                pictures, self._options.memory, shown=self._shown.put, told=self._sentences.put
            )
            for _, standing in self._standing:
                standing.tell_again()

    def _open(self, one: Watched, standing: Standing) -> None:
        if not self._options.forget_alerts:
            for sentence in standing.resume():
                self._sentences.put(one.about(sentence))
        before = {alert.text: alert for alert in standing.alerts}
        for text in self._texts:
            if text in before and before[text].options == self._settings:
                continue
            if text in before:
                standing.remove(before[text].id)
            standing.add(text, self._settings)
        standing.save()

    def _put(self, standing: Standing, notice: Notice) -> None:
        assert self._delivery is not None, "sessions look when all is open"
        self._delivery.put(notice, standing)

    @property
    def alerts(self) -> list[tuple[Watched, Alert]]:
        """Those that go on, with the source each is about."""
        return [(one, alert) for one, standing in self._standing for alert in standing.alerts]

    def take(self) -> list[Delivered]:
        """Events that were written down since it was asked last."""
        return _taken(self._shown)

    def sentences(self) -> list[str]:
        """What went wrong since it was asked last."""
        return _taken(self._sentences)

    def end(self) -> None:
        """Nobody looks any more: what is not kept is over."""
        for _, standing in self._standing:
            standing.end()

    def close(self) -> None:
        """The sessions are closed: writes down the rest, and how everything stands."""
        if self._delivery:
            self._delivery.close()
            for _, standing in self._standing:
                standing.save()


def _taken(waiting: queue.SimpleQueue[Item]) -> list[Item]:
    taken = []
    while not waiting.empty():
        taken.append(waiting.get())
    return taken


def _identity(one: Watched) -> str:
    """Tells sources of one name apart."""
    source = one.session.source
    return "" if source is None else source.fingerprint
