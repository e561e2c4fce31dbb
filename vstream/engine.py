"""Engine: one model, any number of sessions, one worker thread that serves them all.

This module knows nothing of web pages or argument parsing.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vstream.config import DEFAULT_DISK_BYTES, Config
from vstream.models import load_adapter
from vstream.session import Session
from vstream.sources import Source, open_source

if TYPE_CHECKING:
    from vstream.models.base import Adapter


class Engine:
    """Owns a loaded model and the thread that runs it.

        with Engine.load("embedded") as engine:
            session = engine.open("clip.mp4")
            print(session.ask("What is shown?").text())

    The worker takes small steps, none longer than one clip or one question's prefill, in turns: the stream that is
    furthest behind comes first.
    """

    def __init__(self, adapter: Adapter) -> None:
        """For a model that is loaded already."""
        self.adapter = adapter
        self._sessions: list[Session] = []  # all that are open
        self._served: list[Session] = []  # those that the worker steps
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closing = False
        self._worker: threading.Thread | None = None

    @classmethod
    def load(cls, model: str = "embedded", **options: Any) -> Self:
        """Loads a model by name.

        Args:
            model: "embedded", or another name that `vstream models` lists.
            options: passed on to the model's loader (`device`, `dtype`, `seed`).

        Raises:
            ValueError: for an unknown name.
            FileNotFoundError: if its files are not on this machine.
        """
        return cls(load_adapter(model, **options))

    def open(
        self,
        source: str | Path | Source | None,
        *,
        memory: str | Path | None = None,
        config: Config | None = None,
        start: bool = True,
        **settings: Any,
    ) -> Session:
        """Starts watching a source, or opens a memory to be asked.

        Args:
            source: a video file, a folder of images, a `Source`, or None to ask `memory` only.
            memory: folder where the memory is kept and resumed from; None keeps it while the session lasts.
            config: all settings; or give single ones by name, as in `Config`, and leave the rest to the model. A kept
                memory may then take `DEFAULT_DISK_BYTES`.
            start: False leaves it to the caller to `serve` the session, or to drive it by `Session.step`.

        Raises:
            ValueError: for a source, a setting or a memory folder that will not do.
        """
        if config is not None and settings:
            raise ValueError("give config or single settings, not both")
        if source is None and memory is None:
            raise ValueError("there is nothing to open: give a source, a memory folder, or both")
        kept = {} if memory is None else {"disk_bytes": DEFAULT_DISK_BYTES}
        config = config or Config(**{**self.adapter.settings, **kept, **settings})
        opened = None if source is None else open_source(source, max_side=self.adapter.image_side)
        folder = None if memory is None else Path(memory)
        try:
            session = Session(self.adapter, opened, config, folder=folder, wake=self._work.set)
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        with self._lock:
            self._sessions = [one for one in self._sessions if not one.closed] + [session]
        if start:
            self.serve(session)
        return session

    def serve(self, session: Session) -> None:
        """Starts a session that was opened with `start=False`: questions asked before see its very first frame."""
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._served.append(session)
            if self._worker is None:
                self._worker = threading.Thread(target=self._run, name="vstream engine", daemon=True)
                self._worker.start()
        session.start()
        self._work.set()

    def close(self) -> None:
        """Closes every session and ends the worker. Idempotent."""
        self._closing = True
        for session in list(self._sessions):
            session.close()
        self._work.set()
        if self._worker is not None:
            self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        """Serves until closed; sleeps when no session has work."""
        while True:
            self._work.clear()
            if self._closing:
                return
            sessions = sorted(self._served_sessions(), key=lambda session: -session.lag_seconds)
            worked = [_step(session) for session in sessions]
            if not any(worked):
                self._work.wait()

    def _served_sessions(self) -> list[Session]:
        with self._lock:
            self._served = [session for session in self._served if not session.closed]
            return list(self._served)


def _step(session: Session) -> bool:
    """One step of a session; an error ends that session and no other."""
    try:
        return session.step()
    except Exception as error:
        session.fail(error)
        return True
