"""Answer: what `ask` returns at once, and fills while the answer is being made.

The session writes it from its worker thread; any number of threads may read it. This module knows nothing of models or
memory.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vstream.choices import choice_of
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.decoder import FinishReason
    from vstream.reduction import VisionTokens
    from vstream.sampling import Counters


@dataclass(frozen=True)
class Evidence:
    """A stretch of the stream that the answer saw.

    Attributes:
        start_seconds, end_seconds: its first and last frame.
        score: how well it fits the question, by the retrieval policy.
        level: "detail", "digest" or "gist" (brought back from memory), "window" (recent), "open" (not yet encoded when
            asked).
        block_id: None for frames that were not yet encoded.
        picture: JPEG of a frame, b"" where there is none.
        picture_seconds: the time of that frame, None where there is none.
        wall_clock: Unix time of `start_seconds`, None where unknown.
    """

    start_seconds: float
    end_seconds: float
    score: float
    level: str
    block_id: int | None
    picture: bytes
    picture_seconds: float | None
    wall_clock: float | None = None

    def __repr__(self) -> str:
        span = f"{format_seconds(self.start_seconds)}-{format_seconds(self.end_seconds)}"
        return f"Evidence({span}, score {self.score:.3f}, {self.level}, picture {len(self.picture)} bytes)"


def _evidence_of(start: float, end: float, level: str = "", picture_seconds: float | None = None) -> Evidence:
    """Evidence as a memory keeps it."""
    return Evidence(start, end, math.nan, level, None, b"", picture_seconds)


@dataclass(frozen=True)
class MemoryReport:
    """How much is remembered, and the bytes in use by tier (caches and answers included)."""

    blocks: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int


class Answer:
    """One answer, from the moment it was asked.

    Attributes:
        question: as asked.
        asked_at_seconds: stream time of the question; no later frame is seen. None until it is known (the end).
        snapshot_seconds: time of the newest frame it saw, None for none.
        evidence: best first; known when the first text is.
        recalled: (start, end) seconds of every block that memory brought back, in no order; known with the evidence.
        finish_reason: None while it goes on.
        place: n while it is the n-th of the questions whose time has come and that wait for room, else 0.
        memory, frames, vision: as they were when it was asked.
        num_tokens: generated so far.
        num_prompt_tokens: that its first token was made from: what memory brought back, window, open frames, question.
        choices: the options that the question gave.
        num_earlier: how many earlier turns it was asked with, None without a dialogue.
        num_left_out: how many more there were, which had no room.
    """

    def __init__(
        self,
        question: str,
        asked_at_seconds: float | None,
        wake: Callable[[], None] = lambda: None,
        choices: tuple[str, ...] = (),
    ) -> None:
        """An answer that waits for its turn; `wake` is called when it is cancelled."""
        self.question, self.choices = question, choices
        self.num_earlier: int | None = None
        self.num_left_out = 0
        self.asked_at_seconds = asked_at_seconds
        self.snapshot_seconds: float | None = None
        self.evidence: tuple[Evidence, ...] = ()
        self.recalled: tuple[tuple[float, float], ...] = ()
        self.finish_reason: FinishReason | None = None
        self.memory: MemoryReport | None = None
        self.frames: Counters | None = None
        self.vision: VisionTokens | None = None
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.place = 0
        self._pieces: list[str] = []
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._cancelled = threading.Event()
        self._wake = wake
        self._listeners: list[Callable[[], None]] = []
        self._received = time.perf_counter()
        self._first_token: float | None = None
        self._finished: float | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.

        Raises:
            The error that ended it, if one did.
        """
        read, over = 0, False
        while not over:
            pieces, over = self._news(read)
            read += len(pieces)
            yield from pieces
        if self._error:
            raise self._error

    def text(self, timeout_seconds: float | None = None) -> str:
        """The whole answer, once it is there.

        Raises:
            TimeoutError: if it is not there in time.
            The error that ended it, if one did.
        """
        if not self.wait(timeout_seconds):
            raise TimeoutError(f"no answer within {timeout_seconds} s to {self.question!r}")
        if self._error:
            raise self._error
        return "".join(self._pieces)

    @classmethod
    def remembered(cls, turn: Mapping[str, Any]) -> Self:
        """An answer of an earlier run, as `Remembered.dialogue` keeps it: over, with no times and no pictures."""
        answer = cls(turn["question"], turn["asked_at_seconds"], choices=tuple(turn.get("choices", ())))
        answer.evidence = tuple(_evidence_of(*kept) for kept in turn.get("evidence", ()))
        answer._pieces.append(turn["answer"])
        answer.finish("stop")
        return answer

    @property
    def text_so_far(self) -> str:
        """What has been said by now; never waits."""
        with self._changed:
            return "".join(self._pieces)

    @property
    def choice(self) -> int | None:
        """Which of the options it names, from 0; None before it is over, and where it names none."""
        return choice_of(self.text_so_far, self.choices) if self.done else None

    def _news(self, read: int) -> tuple[list[str], bool]:
        """Waits for pieces beyond the first `read`; those, and whether there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._pieces) > read or self.done)
            return self._pieces[read:], self.done

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until it is over; False if it is not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout_seconds)

    def cancel(self) -> None:
        """Ends it before its next token; what was said so far stays."""
        self._cancelled.set()
        self._wake()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Has `listener` called after each piece of text and at the end, by the thread that makes the answer.

        It must return at once. What was there before is not told: look once after subscribing.
        """
        with self._changed:
            self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Ends what `subscribe` began."""
        with self._changed:
            self._listeners.remove(listener)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether it is over, well or not."""
        return self._finished is not None

    @property
    def error(self) -> Exception | None:
        """What ended it, if it failed."""
        return self._error

    @property
    def ttft_seconds(self) -> float | None:
        """From the moment the question was due to its first token."""
        return None if self._first_token is None else self._first_token - self._received

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed after the first token, None for fewer than two tokens."""
        if self._finished is None or self._first_token is None or self.num_tokens < 2:
            return None
        return (self.num_tokens - 1) / max(self._finished - self._first_token, 1e-9)

    # What follows is the session's side.

    def mark_received(self) -> None:
        """Restarts the clock of `ttft_seconds`, for a question whose stream time has only now come."""
        self._received = time.perf_counter()

    def add(self, piece: str, num_tokens: int) -> None:
        """The text that has become certain, and how many tokens were generated so far; nothing once it is over."""
        with self._changed:
            if self.done:
                return
            self.num_tokens = num_tokens
            if self._first_token is None:
                self._first_token = time.perf_counter()
            if piece:
                self._pieces.append(piece)
                self._tell()

    def finish(self, reason: FinishReason) -> None:
        """Ends it well."""
        with self._changed:
            if not self.done:
                self.finish_reason = reason
                self._finished = time.perf_counter()
                self._tell()

    def fail(self, error: Exception) -> None:
        """Ends it with an error, which its readers get."""
        with self._changed:
            if not self.done:
                self._error = error
                self._finished = time.perf_counter()
                self._tell()

    def _tell(self) -> None:
        """Wakes who waits, calls who listens; `_changed` is held."""
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def __repr__(self) -> str:
        state = "failed" if self._error else self.finish_reason or "running"
        return f"Answer({self.question!r}, {state}, {self.num_tokens} tokens)"
