"""Encoding recordings for later: each is watched to its end, without questions, into a memory of its own.

A recording that fails does not keep the others from being watched. This module knows nothing of tensors, or of how
things look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vstream.app.desk import Desk, Watched
from vstream.app.interrupts import Interrupted
from vstream.app.output import print_json
from vstream.app.sources import Planned, plan_recordings
from vstream.app.view import blocks_text
from vstream.app.watching import Screen, load_engine, open_planned
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.app.options import Options
    from vstream.engine import Engine

MAX_AT_ONCE = 64


class Encoding:
    """One command's work: recordings, and the folder for their memories."""

    def __init__(self, videos: Sequence[str], options: Options, at_once: int) -> None:
        """Checks all that can be checked before a model is loaded.

        Args:
            videos: what to watch; those that cannot be are told when it runs.
            options: as given by the user.
            at_once: so many are watched together, then the next ones.

        Raises:
            ValueError: for an option that will not do, or two recordings of one name.
        """
        if options.memory is None:
            raise ValueError("vstream encode needs a folder for the memories: --memory DIR")
        if not 1 <= at_once <= MAX_AT_ONCE:
            raise ValueError(f"--at-once must be a whole number from 1 to {MAX_AT_ONCE}, got {at_once}")
        options.loading()
        self._settings = options.settings(options.memory, queue_policy="block")
        self._options, self._at_once, self._num_videos = options, at_once, len(videos)
        self._planned, self._wrong = plan_recordings(videos, options, options.memory)

    def __call__(self, screen: Screen) -> int:
        """Watches all of them; the exit code, 1 if one could not be watched to its end.

        Raises:
            ValueError: if the model will not do.
        """
        for sentence in self._wrong:
            screen.tell(sentence)
        failed = len(self._wrong)
        if not self._planned:
            return 1
        try:
            with screen.busy("loading the model"):
                engine = load_engine(self._planned, self._options)
            with engine:
                for first in range(0, len(self._planned), self._at_once):
                    failed += self._watch(screen, engine, self._planned[first : first + self._at_once])
        except Interrupted as interrupt:
            screen.stop()
            screen.tell(f"stopped; the same command goes on in {self._options.memory}")
            return interrupt.exit_code
        return 1 if failed else 0

    def _watch(self, screen: Screen, engine: Engine, planned: Sequence[Planned]) -> int:
        """Watches some together; how many of them failed."""
        opened = [one for one in (self._open(screen, engine, each) for each in planned) if one is not None]
        before = {one: one.session.memory.last_seconds for one in opened}
        for one in opened:
            engine.serve(one.session)
        screen.run(Desk(opened))  # tells of those that fail, too
        screen.stop()
        for one in opened:
            if one.session.failure is None:
                self._tell(one, begun_at=before[one])
        whole = sum(one.session.failure is None for one in opened)
        for one in opened:
            one.session.close()
        return len(planned) - whole

    def _open(self, screen: Screen, engine: Engine, planned: Planned) -> Watched | None:
        label = f"{planned.number}/{self._num_videos} {planned.name}"
        try:
            return open_planned(engine, planned, self._options, self._settings, label)
        except (ValueError, OSError, RuntimeError) as error:
            screen.tell(f"{label}: {error}")
            return None

    def _tell(self, one: Watched, begun_at: float | None) -> None:
        """What became of a recording, on stdout."""
        status = one.session.status()
        record: dict[str, Any] = {
            "source": one.planned.name,
            "memory": str(one.planned.memory),
            "from_seconds": begun_at,
            "last_seconds": status.last_seconds,
            "blocks": status.blocks,
            "disk_bytes": status.memory.disk_bytes,
            "frames": status.frames.encoded,
        }
        if self._options.json:
            print_json(record)
            return
        upto = "nothing" if status.last_seconds is None else format_seconds(status.last_seconds)
        new = "was there already" if begun_at == status.last_seconds and begun_at is not None else "encoded"
        print(f"{one.label}: {new} up to {upto} in {one.planned.memory} ({blocks_text(status.blocks)})", flush=True)
