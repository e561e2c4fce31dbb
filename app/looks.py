"""How sources stand at a moment, taken often and cheaply for a live view. Knows nothing of how it is shown."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vstream.app.news import WATCHING

if TYPE_CHECKING:
    from vstream.app.desk import Watched
    from vstream.ingest import Ingest
    from vstream.session import Session, Status

STATUS_EVERY_SECONDS = 0.5
RATE_OVER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """One source at one moment.

    Attributes:
        label: the source, by number and name.
        clock_seconds, duration_seconds: stream time of the newest frame, and the length, None where unknown.
        wall_seconds: Unix time of the newest frame, None where unknown.
        decoded_per_second, encoded_per_second, dropped: frames.
        lag_seconds: how far the newest frame that is remembered is behind the newest decoded.
        blocks: number of blocks by level.
        tier_bytes: memory by tier.
        state: what is the matter, "" while it is simply watched.
        num_gaps, last_gap_seconds: times at which a camera was not seen.
        over: whether the source has ended.
        failure: why the session has ended, None while it has not.
    """

    label: str
    clock_seconds: float | None = None
    duration_seconds: float | None = None
    wall_seconds: float | None = None
    decoded_per_second: float = 0.0
    encoded_per_second: float = 0.0
    dropped: int = 0
    lag_seconds: float = 0.0
    blocks: dict[str, int]
    tier_bytes: dict[str, int]
    state: str = ""
    num_gaps: int = 0
    last_gap_seconds: float = 0.0
    over: bool = False
    failure: str | None = None


class Rate:
    """Counts per second over the last seconds."""

    def __init__(self, over_seconds: float = RATE_OVER_SECONDS) -> None:
        """Begins with the first count."""
        self._over_seconds = over_seconds
        self._counts: deque[tuple[float, int]] = deque()

    def __call__(self, now_seconds: float, count: int) -> float:
        """The rate, now that `count` is reached."""
        self._counts.append((now_seconds, count))
        while now_seconds - self._counts[0][0] > self._over_seconds and len(self._counts) > 2:
            self._counts.popleft()
        since, before = self._counts[0]
        return (count - before) / (now_seconds - since) if now_seconds > since else 0.0


class Gauge:
    """One session, looked at again and again."""

    def __init__(self, session: Session, label: str = "") -> None:
        """`label` names it, its source's name unless given."""
        self._session, self._label = session, label
        self._decoded_rate, self._encoded_rate = Rate(), Rate()
        self._status: Status | None = None

    def fetch(self) -> None:
        """Takes what may have to wait for a step of the engine; a session that is closed keeps what it had last."""
        if not self._session.closed:
            self._status = self._session.status()

    def look(self) -> Look:
        """How it stands, with what was fetched last; never waits for long."""
        session, status = self._session, self._status
        memory = status.memory if status else None
        look = Look(
            label=self._label or session.memory.source_name or "",
            clock_seconds=session.memory.last_seconds,
            blocks=dict(status.blocks) if status else {},
            tier_bytes={"device": memory.device_bytes, "host": memory.host_bytes, "disk": memory.disk_bytes}
            if memory
            else {},
            over=session.closed or session.ingest is None or session.ingest.drained,
            failure=str(session.failure) if session.failure else None,
        )
        return look if session.ingest is None else self._watched(look, session.ingest)

    def _watched(self, look: Look, ingest: Ingest) -> Look:
        """With what is known of a source that is watched."""
        source, counts, clock, now = ingest.source, ingest.counters(), ingest.clock_seconds, time.monotonic()
        epoch, gaps = source.epoch_seconds if source.is_live else None, source.gaps
        return replace(
            look,
            clock_seconds=clock,
            duration_seconds=source.duration_seconds,
            wall_seconds=None if epoch is None or clock is None else epoch + clock,
            decoded_per_second=self._decoded_rate(now, counts.decoded),
            encoded_per_second=self._encoded_rate(now, counts.encoded),
            dropped=counts.dropped,
            lag_seconds=self._session.lag_seconds,
            state="" if source.state == WATCHING else source.state,
            num_gaps=source.num_gaps,
            last_gap_seconds=gaps[-1].end_seconds - gaps[-1].start_seconds if gaps else 0.0,
        )


class Lookout:
    """Looks at all sources; what may have to wait for a step of the engine is fetched on a thread of its own."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        """Nothing is fetched before it is entered."""
        self._gauges = [Gauge(one.session, one.label) for one in watched]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="lookout", daemon=True)

    def __enter__(self) -> Lookout:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """The thread is over before any session is closed."""
        self._stopping.set()
        self._thread.join()

    def looks(self) -> list[Look]:
        """How all sources stand; never waits for long."""
        return [gauge.look() for gauge in self._gauges]

    def _fetch(self) -> None:
        while not self._stopping.wait(STATUS_EVERY_SECONDS):
            for gauge in self._gauges:
                gauge.fetch()
