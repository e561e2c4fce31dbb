"""Engine: one model, any number of sessions, one worker thread that serves them all.

This module knows nothing of web pages or argument parsing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vstream.batch import DecodeBatch
from vstream.config import DEFAULT_DISK_BYTES, Config
from vstream.models import load_adapter
from vstream.presets import preset_settings
from vstream.session import Session
from vstream.sources import Source, open_source

if TYPE_CHECKING:
    from vstream.models.base import Adapter
    from vstream.models.options import LoadOptions


class Engine:
    """Owns a loaded model and the thread that runs it.

        with Engine.load("embedded") as engine:
            session = engine.open("clip.mp4")
            print(session.ask("What is shown?").text())

    The worker goes round: a piece of work for every session that has some, none longer than one clip, live streams and
    those furthest behind first; then a few tokens for all running answers in one batch. So a clip waits for at most one
    round, an answer gets tokens in every round, and no session can keep another from its turn.
    """

    def __init__(self, adapter: Adapter) -> None:
        """For a model that is loaded already."""
        self.adapter = adapter
        self._batch = DecodeBatch(adapter)
        self._sessions: list[Session] = []  # all that are open
        self._served: list[Session] = []  # those that the worker steps
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closing = False
        self._worker: threading.Thread | None = None

    @classmethod
    def load(cls, model: str = "embedded", options: LoadOptions | None = None, **single: Any) -> Self:
        """Loads a model by name.

        Args:
            model: "embedded", another name that `vstream models` lists, a checkpoint's folder or its name on the hub.
            options: how it is loaded; or give single ones by name, as in `LoadOptions` (`device`, `dtype`, ...).

        Raises:
            ValueError: for an unknown name, or a model that cannot be served.
            FileNotFoundError: if its files are not on this machine, and cannot be fetched.
        """
        return cls(load_adapter(model, options, **single))

    def open(
        self,
        source: str | Path | Source | None,
        *,
        memory: str | Path | None = None,
        config: Config | None = None,
        preset: str | None = None,
        start: bool = True,
        **settings: Any,
    ) -> Session:
        """Starts watching a source, or opens a memory to be asked.

        Args:
            source: a video file, a folder of images, a `Source`, or None to ask `memory` only.
            memory: folder where the memory is kept and resumed from; None keeps it while the session lasts.
            config: all settings; or give single ones by name, as in `Config`, and leave the rest to the model. A kept
                memory may then take `DEFAULT_DISK_BYTES`.
            preset: a way to remember, of `vstream.presets`; single settings go before its own.
            start: False leaves it to the caller to `serve` the session, or to drive it by `Session.step`.

        Raises:
            ValueError: for a source, a setting or a memory folder that will not do.
            RuntimeError: if the engine is closed.
        """
        if config is not None and (settings or preset):
            raise ValueError("give config, or a preset and single settings, not both")
        if source is None and memory is None:
            raise ValueError("there is nothing to open: give a source, a memory folder, or both")
        kept = {} if memory is None else {"disk_bytes": DEFAULT_DISK_BYTES}
        given = {**kept, **settings}
        own = preset_settings(preset, self.adapter, given) if preset else {**self.adapter.settings, **given}
        config = config or Config(**own)
        self._check_open()
        opened = None if source is None else open_source(source, max_side=self.adapter.image_side)
        folder = None if memory is None else Path(memory)
        try:
            session = Session(self.adapter, opened, config, folder=folder, wake=self._work.set, batch=self._batch)
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        try:
            self._take_in(session)
            if start:
                self.serve(session)
        except BaseException:
            session.close()
            raise
        return session

    @property
    def decoding_seconds(self) -> float:
        """Time spent on the answers' tokens after the first, of all sessions."""
        return self._batch.decoding.seconds

    def serve(self, session: Session) -> None:
        """Starts a session that was opened with `start=False`: questions asked before see its very first frame."""
        with self._lock:
            self._check_open()
            session.start()
            self._served.append(session)
            if self._worker is None:
                worker = threading.Thread(target=self._run, name="vstream engine", daemon=True)
                worker.start()
                self._worker = worker  # not before: whoever was interrupted while it started could not join it
        self._work.set()

    def close(self) -> None:
        """Closes every session and ends the worker. Idempotent."""
        with self._lock:
            self._closing = True
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        self._work.set()
        if self._worker is not None:
            self._worker.join()
        self._batch.drop_done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_in(self, session: Session) -> None:
        with self._lock:
            self._check_open()
            self._sessions = [one for one in self._sessions if not one.closed] + [session]

    def _check_open(self) -> None:
        if self._closing:
            raise RuntimeError("the engine is closed")

    def _run(self) -> None:
        """Serves until closed; sleeps when no session has work."""
        while True:
            self._work.clear()
            if self._closing:
                return
            if not self._round(self._served_sessions()):
                self._work.wait()

    def _round(self, sessions: list[Session]) -> bool:
        """A piece of work for each session, a few tokens for each answer; whether there was anything to do."""
        advanced = [_guarded(session, session.advance) for session in sorted(sessions, key=_urgency)]
        steps = min((session.config.decode_steps for session in sessions), default=0)
        decoded = self._batch.decode(steps)
        for session in sessions:
            _guarded(session, session.settle)
        return decoded or any(advanced)

    def _served_sessions(self) -> list[Session]:
        with self._lock:
            self._served = [session for session in self._served if not session.closed]
            return list(self._served)


def _urgency(session: Session) -> tuple[bool, float]:
    """Sorts live sessions before others, and those furthest behind first."""
    paced = session.config.realtime or (session.source is not None and session.source.is_live)
    return not paced, -session.lag_seconds


def _guarded(session: Session, work: Callable[[], bool | None]) -> bool:
    """Some work of a session; an error ends that session and no other."""
    try:
        return bool(work())
    except Exception as error:
        session.fail(error)
        return True
