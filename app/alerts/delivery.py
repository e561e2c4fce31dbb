"""Delivery: a thread that writes down what alerts tell, hands it to the webhook, and then to whoever shows it.

Nobody who watches waits for it. What it hands to a screen is on disk already, as far as anything was to be. This module
knows nothing of sessions or of how events look.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vstream.app.alerts.eventlog import EventLog
from vstream.app.alerts.notices import Notice, letter_record, notice_record
from vstream.app.alerts.webhook import Webhook
from vstream.app.output import PictureFolder

if TYPE_CHECKING:
    from vstream.app.alerts.standing import Standing

CLOSE_SECONDS = 5.0
"""Letters that are due have so long at the end."""


@dataclass(frozen=True, eq=False)
class Delivered:
    """A notice that was written down.

    Attributes:
        notice: it.
        image: the path of its picture, None where none is kept.
    """

    notice: Notice
    image: str | None


class Delivery:
    """Takes notices from any thread; a context manager that ends with what it was given."""

    def __init__(
        self,
        pictures: PictureFolder,
        *,
        log: EventLog | None = None,
        make_webhook: Callable[[Callable[[str], None]], Webhook] | None = None,
        shown: Callable[[Delivered], None] = lambda delivered: None,
        told: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Starts the threads.

        Args:
            pictures: where pictures go.
            log: a line for every notice.
            make_webhook: makes the webhook, given who is told what goes wrong with it.
            shown: is told of every notice that was written down, in order, by a thread.
            told: is told sentences about what went wrong, by any thread.
        """
        self._pictures, self._log = pictures, log
        self._shown, self._told = shown, told
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._webhook = make_webhook(told) if make_webhook else None
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, notice: Notice, standing: Standing | None = None) -> None:
        """Takes a notice of standing questions, which are kept; returns at once."""
        self._jobs.put(lambda: self._deliver(notice, standing))

    def settle(self) -> None:
        """Waits until all that was put is written down."""
        self._jobs.join()

    def close(self) -> None:
        """Writes down the rest; letters that are due have some seconds, those that wait on are told of. Idempotent."""
        if not self._thread.is_alive():
            return
        self._jobs.put(None)
        self._thread.join()
        if self._webhook is not None and (left := self._webhook.close(CLOSE_SECONDS)):
            self._told(
                f"{left} event{'s' * (left > 1)} for {self._webhook.endpoint.host} could not be sent yet; the next run "
                "with the same --webhook and memory sends them"
            )

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._jobs.task_done()

    def _deliver(self, notice: Notice, standing: Standing | None) -> None:
        if standing is not None:
            self._attempt("how standing questions stand", standing.save)
        image = self._attempt("the picture of an event", lambda: self._picture(notice))
        if self._log is not None:
            log = self._log
            self._attempt("an event", lambda: log.append(notice_record(notice, image)))
        if self._webhook is not None:
            webhook = self._webhook
            body = json.dumps(letter_record(notice), allow_nan=False).encode()
            self._attempt("an event for the webhook", lambda: webhook.put(notice.key, body))
        if standing is not None:
            self._attempt("how standing questions stand", lambda: standing.written(notice))
        self._shown(Delivered(notice, image))

    def _picture(self, notice: Notice) -> str | None:
        event = notice.event
        return self._pictures.save_picture(event.picture, event.seconds, notice.source)

    def _attempt(self, what: str, write: Callable[[], str | None]) -> str | None:
        """What writing gives; a full disk is told of, and loses nothing else."""
        try:
            return write()
        except OSError as error:
            self._told(f"{what} could not be written: {error}")
            return None
