"""Asking and watching: opens a session for a command, shows the answers as they come, and ends cleanly.

This module knows nothing of tensors, or of how things look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from vstream.app.interrupts import Interrupted
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.app.options import Options
    from vstream.app.output import PictureFolder
    from vstream.app.questions import Scheduled
    from vstream.engine import Engine
    from vstream.session import Session, Status

POLL_SECONDS = 0.1
MEMORY_FILES = ("vstream.json", "data.mdb")
DEFAULT_MODEL = "embedded"


class Screen(Protocol):
    """Where a run is shown."""

    def show(self, answer: Answer) -> None:
        """Shows one answer; returns when it is over."""

    def update(self, session: Session) -> None:
        """Shows how far a session is."""

    def tell(self, sentence: str) -> None:
        """Says something beside the answers."""

    def stop(self) -> None:
        """No more progress is shown."""

    def close(self, status: Status, answers: Sequence[Answer], wall_seconds: float) -> None:
        """Sums up a stream that was watched to its end."""


def is_memory(source: str) -> bool:
    """Whether a path is a folder that holds a memory, whole or not."""
    return any((Path(source) / name).exists() for name in MEMORY_FILES)


class Run:
    """One command's work: a source or a memory, and the questions about it."""

    def __init__(
        self, source: str, scheduled: Sequence[Scheduled], options: Options, pictures: PictureFolder, **settings: Any
    ) -> None:
        """Checks all that can be checked before a model is loaded.

        Args:
            source: a video file, a folder of pictures, or a memory folder, which is asked alone.
            scheduled: the questions.
            options: as given by the user.
            pictures: told the source's name.
            settings: more settings of the session.

        Raises:
            ValueError: for an option that will not do.
            FileNotFoundError: if there is no such source.
        """
        if not source.strip():
            raise ValueError("SOURCE is empty; give a video file, a folder of pictures or a memory folder")
        if options.evidence_dir and Path(source).is_dir() and options.evidence_dir.resolve() == Path(source).resolve():
            raise ValueError(f"--evidence-dir {options.evidence_dir} is the source itself; give another folder")
        if "://" not in source and not Path(source).exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
        self._source = None if is_memory(source) else source
        self._memory = options.memory if self._source else Path(source)
        if not self._source and options.memory is not None:
            raise ValueError(f"{source} is a memory already; leave out --memory {options.memory}")
        self._scheduled = sorted(scheduled, key=lambda one: float("inf") if one.at == "end" else one.at)
        self._options, self._pictures = options, pictures
        self._settings = options.settings(self._memory, **settings)
        self._session: Session | None = None

    def __call__(self, screen: Screen, *, to_end: bool) -> int:
        """Answers the questions and, `to_end`, watches the rest; the exit code.

        Raises:
            ValueError: if the source, the memory or a question will not do.
            RuntimeError: if the watching failed.
        """
        began = time.perf_counter()
        try:
            with self._load() as engine:
                session, answers = self._open(engine)
                errors = follow(session, answers, screen)
                if to_end:
                    screen.close(watch_on(session, screen), answers, time.perf_counter() - began)
        except Interrupted as interrupt:
            screen.stop()
            screen.tell(self._farewell())
            return interrupt.exit_code
        screen.stop()
        if session.source and session.source.warning:
            screen.tell(session.source.warning)
        return exit_code(errors)

    def _load(self) -> Engine:
        """The model asked for; unless one was, that of the memory; unless there is one, the embedded model."""
        quieten()
        import torch

        from vstream.engine import Engine

        torch.set_num_threads(self._options.threads or os.cpu_count() or 1)
        return Engine.load(self._options.model or _model_of(self._memory) or DEFAULT_MODEL)

    def _open(self, engine: Engine) -> tuple[Session, list[Answer]]:
        """The session, every question asked before the first frame comes in; the answers in the order of time."""
        from vstream.sources import open_source

        side, reader = engine.adapter.image_side, cast("Literal['av', 'decord']", self._options.reader)
        source = open_source(self._source, max_side=side, reader=reader) if self._source else None
        session = engine.open(source, memory=self._memory, start=False, **self._settings)
        self._session, self._pictures.source_name = session, session.memory.source_name or "frame"
        try:
            answers = [session.ask(one.text, at=one.at) for one in self._scheduled]
        except BaseException:
            session.close()
            raise
        engine.serve(session)
        return session, answers

    def _farewell(self) -> str:
        last_seconds = self._session.memory.last_seconds if self._session else None
        if self._memory is None:
            return "stopped; nothing is kept without --memory DIR"
        if last_seconds is None:
            return f"stopped before anything was kept in {self._memory}; the same command begins anew"
        seconds = format_seconds(last_seconds)
        return f"stopped; {self._memory} keeps everything up to {seconds} and the same command goes on from there"


def _model_of(memory: Path | None) -> str | None:
    from vstream.memory.folder import MANIFEST, read_manifest

    if memory is None or not (memory / MANIFEST).is_file():
        return None
    model = read_manifest(memory)["identity"].get("model")
    return str(model) if model else None


def quieten() -> None:
    """Keeps libraries' notices off the terminal; to be called before they are imported."""
    for name, value in {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        os.environ.setdefault(name, value)


def follow(session: Session, answers: Sequence[Answer], screen: Screen) -> list[Exception]:
    """Shows the answers one after the other; the errors of questions that could not be answered.

    Raises:
        RuntimeError: if the session itself has failed.
    """
    errors = []
    for answer in answers:
        while not (answer.done or answer.ttft_seconds is not None):
            screen.update(session)
            answer.wait(POLL_SECONDS)
        if answer.error is None:
            screen.show(answer)
        elif answer.error is not session.failure:
            errors.append(answer.error)
            screen.tell(f"no answer to {answer.question!r}: {answer.error}")
    _check_failure(session)
    return errors


def watch_on(session: Session, screen: Screen) -> Status:
    """Watches until the source is over; how the session stands then.

    Raises:
        RuntimeError: if the session has failed.
    """
    while not (session.ingest is None or session.ingest.drained or session.closed):
        screen.update(session)
        time.sleep(POLL_SECONDS)
    _check_failure(session)
    return session.status()


def _check_failure(session: Session) -> None:
    if session.failure is not None:
        raise RuntimeError(f"the watching ended: {session.failure}") from session.failure


def exit_code(errors: Sequence[Exception]) -> int:
    """0 for none, 2 if all are about the input, else 1."""
    if not errors:
        return 0
    return 2 if all(isinstance(error, ValueError) for error in errors) else 1
