"""Asking and watching: opens sessions for a command, has them shown, and ends cleanly.

This module knows nothing of tensors, or of how things look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vstream.app.desk import Desk, Watched
from vstream.app.interrupts import Interrupted
from vstream.app.sources import Planned, check_questions, plan
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.app.alerts.desk import AlertDesk
    from vstream.app.options import Options
    from vstream.app.output import PictureFolder
    from vstream.app.questions import Scheduled
    from vstream.engine import Engine

DEFAULT_MODEL = "embedded"
Ending = Literal["over", "left"]
"""All was watched or answered, or a person left before."""


class Screen(Protocol):
    """Where a run is shown, and where its questions come from.

    Attributes:
        pictures: where evidence goes.
    """

    pictures: PictureFolder

    def show_events(self, alerts: AlertDesk) -> None:
        """Shows what standing questions have told since it was called last."""

    def run(self, desk: Desk) -> Ending:
        """Shows answers until the run is over, or left."""

    def busy(self, what: str) -> AbstractContextManager[None]:
        """Says what is waited for."""

    def tell(self, sentence: str) -> None:
        """Says something beside the answers."""

    def stop(self) -> None:
        """No more progress is shown."""

    def close(self, watched: Sequence[Watched], answers: Sequence[Answer], wall_seconds: float) -> None:
        """Sums up streams that were watched to their end."""


class Run:
    """One command's work: sources or a memory, and the questions about them."""

    def __init__(
        self, sources: Sequence[str], scheduled: Sequence[Scheduled], options: Options, *,
        queue_policy: str | None = None, alerts: AlertDesk | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        """Checks all that can be checked before a model is loaded.

        Args:
            sources: what to watch, or one memory folder, which is asked alone.
            scheduled: the questions, for every source.
            options: as given by the user.
            queue_policy: of every source; unless given, cameras drop the oldest frames and files wait.
            alerts: what is looked for all the time, in every source.
            settings: more settings of the sessions.

        Raises:
            ValueError: for a source or an option that will not do.
            FileNotFoundError: if there is no such source.
        """
        self._planned = plan(sources, options)
        check_questions(self._planned, scheduled)
        self._scheduled, self._options, self._alerts = scheduled, options, alerts
        options.loading()  # refuses what will not do before torch is loaded
        self._settings = {
            one: options.settings(one.memory, queue_policy=queue_policy or _policy(one), **settings)
            for one in self._planned
        }
        self._watched: list[Watched] = []

    def __call__(self, screen: Screen, *, to_end: bool) -> int:
        """Answers the questions and, `to_end`, sums up; the exit code.

        Raises:
            ValueError: if a source, a memory or a scheduled question will not do.
        """
        began = time.perf_counter()
        try:
            with screen.busy("loading the model"):
                engine = load_engine(self._planned, self._options)
            with self._closing_alerts(screen), engine:
                desk = self._open(engine, screen)
                try:
                    ending = screen.run(desk)
                finally:
                    if self._alerts:
                        self._alerts.end()
                whole = [one for one in self._watched if one.session.failure is None]
                if to_end and ending == "over" and whole:
                    screen.close(whole, [asked.answer for asked in desk.asked], time.perf_counter() - began)
        except Interrupted as interrupt:
            screen.stop()
            screen.tell(self._farewell())
            return interrupt.exit_code
        screen.stop()
        if ending == "left":
            screen.tell(self._farewell())
        for warning in self._warnings():
            screen.tell(warning)
        return desk.exit_code

    @contextmanager
    def _closing_alerts(self, screen: Screen) -> Iterator[None]:
        """Shows the events that closing the sessions brings."""
        try:
            yield
        finally:
            if self._alerts:
                self._alerts.close()
                screen.show_events(self._alerts)

    def _open(self, engine: Engine, screen: Screen) -> Desk:
        """Opens every source, and asks every question before the first frame comes in."""
        for planned in self._planned:
            label = f"@{planned.number} {planned.name}" if len(self._planned) > 1 else ""
            self._watched.append(open_planned(engine, planned, self._options, self._settings[planned], label))
        if self._alerts:
            self._alerts.open(self._watched, screen.pictures)
        desk = Desk(self._watched, self._alerts)
        desk.schedule(self._scheduled)
        for watched in self._watched:
            engine.serve(watched.session)
        return desk

    def _warnings(self) -> list[str]:
        sources = [one.session.source for one in self._watched]
        return [source.warning for source in sources if source is not None and source.warning]

    def _farewell(self) -> str:
        kept = [one for one in self._watched if one.session.memory.last_seconds is not None]
        where = self._options.memory or self._planned[0].memory
        if where is None:
            return "stopped; nothing is kept without --memory DIR"
        if not kept:
            return f"stopped before anything was kept in {where}; the same command begins anew"
        upto = ", ".join(f"{format_seconds(one.session.memory.last_seconds or 0)} {one.label}".strip() for one in kept)
        return f"stopped; {where} keeps everything up to {upto} and the same command goes on from there"


def load_engine(planned: Sequence[Planned], options: Options) -> Engine:
    """The model asked for; unless one was, that of the memory; unless there is one, the embedded model."""
    quieten()
    import torch

    from vstream.engine import Engine

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    remembered = next((model for one in planned if (model := _model_of(one.memory))), None)
    model = remembered or DEFAULT_MODEL if options.model is None else options.model
    return Engine.load(model, options.loading())


def open_planned(
    engine: Engine, planned: Planned, options: Options, settings: Mapping[str, Any], label: str
) -> Watched:
    """A session of a source or memory, which the engine does not serve yet.

    Raises:
        ValueError: if the source or the memory will not do.
    """
    source = planned.open(options, engine.adapter.image_side)
    session = engine.open(source, memory=planned.memory, preset=options.preset, start=False, **settings)
    return Watched(planned, session, label)


def _policy(planned: Planned) -> str:
    """What a full queue does: nothing may hold a camera up."""
    return "drop-oldest" if planned.is_live else "block"


def _model_of(memory: Path | None) -> str | None:
    from vstream.memory.folder import MANIFEST, read_manifest

    if memory is None or not (memory / MANIFEST).is_file():
        return None
    model = read_manifest(memory)["identity"].get("model")
    return str(model) if model else None


def quieten() -> None:
    """Keeps libraries' notices off the terminal; to be called before they are imported."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
