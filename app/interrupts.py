"""Ctrl-C, SIGTERM and SIGHUP: the first ends a command cleanly, the second at once.

This module knows nothing of what the commands do.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """The user, or the system, wants the command to end.

    Attributes:
        exit_code: what shells expect of a command that ended so: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        self.exit_code = 128 + number


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Interrupted` in here, once; a signal that was ignored stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def interrupt(number: int, frame: object) -> NoReturn:
        for each in caught:
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process: what is committed is safe
        raise Interrupted(number)

    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])
