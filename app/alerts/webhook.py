"""A webhook: sends the letters of an outbox, again and again until they are received, refused, or a day old.

At least once: a letter leaves the outbox after it was received, so who is killed between the two sends it again, with
the same key. After a failure the next attempt waits, twice as long each time and a random part of that (full jitter);
where nobody answers at all, everything waits. Letters about one event arrive in their order. This module knows nothing
of what letters say.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vstream.app.alerts.endpoint import Endpoint, Reply
from vstream.app.alerts.outbox import Letter, Outbox

LOOK_SECONDS = 30.0
"""So often the outbox is looked through for what another process has left."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long it is tried, in seconds.

    Attributes:
        first_seconds: the longest wait after the first failure, twice as much after the next, and so on.
        most_seconds: no wait is longer.
        give_up_seconds: a letter so old is given up.
    """

    first_seconds: float = 1.0
    most_seconds: float = 600.0
    give_up_seconds: float = 86_400.0

    def wait_seconds(self, failures: int) -> float:
        """At random between half of the longest wait after so many failures, and all of it."""
        longest = min(self.most_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))
        return random.uniform(0.5, 1.0) * longest


class Webhook:
    """A thread that sends what is in an outbox.

    Attributes:
        endpoint: where to.
        outbox: what.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        outbox: Outbox,
        *,
        told: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        """Begins at once with what was left by an earlier run.

        Args:
            endpoint: where to.
            outbox: what.
            told: is told sentences about what goes wrong, each once; called by the thread.
            patience: how long it is tried.
        """
        self.endpoint, self.outbox = endpoint, outbox
        self._told, self._patience = told, patience or Patience()
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._said, self._next_seconds = "", math.inf
        self._changed = threading.Condition()
        self._closing = self._asked = self._idle = self._is_down = False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def put(self, key: str, body: bytes) -> None:
        """Takes a letter: it is on disk when this returns, and sent soon. Raises `OSError`."""
        for lost in self.outbox.add(key, body):
            self._tell(f"the webhook's outbox is full: {lost} is given up")
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def close(self, timeout_seconds: float = 0.0) -> int:
        """Ends; what is due by then has so long for it. How many letters wait on: the next run sends them."""
        until = time.monotonic() + timeout_seconds
        with self._changed:
            self._changed.wait_for(
                lambda: self._idle and not self._asked and self._next_seconds > until, timeout_seconds
            )
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self.endpoint.try_seconds + 1)
        return len(self.outbox.waiting())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._asked = self._idle = False
                if self._closing:
                    return
            self._send_due()
            with self._changed:
                self._idle, self._next_seconds = True, min(self._due.values(), default=math.inf)
                self._changed.notify_all()
                wait_seconds = max(0.0, min(LOOK_SECONDS, self._next_seconds - time.monotonic()))
                self._changed.wait_for(lambda: self._closing or self._asked, wait_seconds)

    def _send_due(self) -> None:
        """Sends what is due."""
        letters, blocked = self.outbox.waiting(), set[str]()
        self._forget_all_but(letters)
        for letter in letters:
            if self._closing:
                break
            if letter.order in blocked or self._due.get(letter.key, 0.0) > time.monotonic():
                blocked.add(letter.order)
                continue
            reply = self._send(letter)
            if reply is not None and reply.status == 0:
                self._postpone(letters, letter)
                return
            if letter.key in self._due:
                blocked.add(letter.order)

    def _send(self, letter: Letter) -> Reply | None:
        """One attempt; None where another process sees to it."""
        with self.outbox.held(letter) as body:
            if body is None:
                return None
            if time.time() - letter.written_at > self._patience.give_up_seconds:
                self._drop(letter, f"{letter.key} could not be sent to {self.endpoint.host} in time and is given up")
                return None
            reply = self.endpoint.send(letter.key, body)
            if reply.received:
                self._drop(letter, "")
            elif not reply.may_be_tried_again:
                self._drop(letter, f"the webhook at {self.endpoint.host} refuses events: {reply.trouble}")
            else:
                self._fail(letter, reply)
            return reply

    def _drop(self, letter: Letter, sentence: str) -> None:
        """Takes a letter out that was received or refused."""
        self.outbox.remove(letter)
        self._failures.pop(letter.key, None)
        self._due.pop(letter.key, None)
        if sentence:
            self._tell(sentence)
            return
        if self._is_down:  # it is there again: who waited for it waits no longer
            self._is_down = False
            self._due.clear()
        if self._said:
            self._said = ""
            self._told(f"the webhook at {self.endpoint.host} takes events again")

    def _fail(self, letter: Letter, reply: Reply) -> None:
        failures = self._failures[letter.key] = self._failures.get(letter.key, 0) + 1
        wait_seconds = max(self._patience.wait_seconds(failures), min(reply.wait_seconds, self._patience.most_seconds))
        self._due[letter.key] = time.monotonic() + wait_seconds
        self._tell(f"the webhook at {self.endpoint.host} takes no events: {reply.trouble}; it is tried again for a day")

    def _postpone(self, letters: list[Letter], failed: Letter) -> None:
        """Nobody answers: no other letter is tried before the one that failed, but for new ones."""
        self._is_down = True
        for letter in letters:
            self._due[letter.key] = max(self._due.get(letter.key, 0.0), self._due[failed.key])

    def _forget_all_but(self, letters: list[Letter]) -> None:
        there = {letter.key for letter in letters}
        for known in (self._failures, self._due):
            for key in known.keys() - there:
                del known[key]

    def _tell(self, sentence: str) -> None:
        """The same is told once, until it is well again."""
        if sentence != self._said:
            self._said = sentence
            self._told(sentence)
