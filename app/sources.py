"""What a command is asked to watch: sources with their numbers, names and memory folders, checked before a model loads.

What the user typed may hold a password: it is kept to open the source, and never shown. This module knows nothing of
models or of how anything looks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vstream.app.questions import Scheduled

if TYPE_CHECKING:
    from vstream.app.options import Options
    from vstream.sources import Source

MEMORY_FILES = ("vstream.json", "data.mdb")
PROBE_SIDE = 64


@dataclass(frozen=True)
class Planned:
    """One thing to open.

    Attributes:
        number: its place on the command line, from 1.
        name: shown to people, without credentials.
        is_live: whether it is a camera, which has no end.
        memory: where its memory is kept, None for nowhere.
        given: as typed, None for a memory that is asked alone.
    """

    number: int
    name: str
    is_live: bool
    memory: Path | None
    given: str | None = field(repr=False)

    def open(self, options: Options, max_side: int) -> Source | None:
        """Opens the source, frames at most `max_side` pixels long; None for a memory alone."""
        return None if self.given is None else options.open_source(self.given, max_side)


def is_memory(path: str | Path) -> bool:
    """Whether a path is a folder that holds a memory, whole or not."""
    return any((Path(path) / name).exists() for name in MEMORY_FILES)


def plan(sources: Sequence[str], options: Options) -> list[Planned]:
    """What to open, in the order given.

    Raises:
        ValueError: for a source that cannot be watched, or whose memory would lie where another's does.
        FileNotFoundError: if there is no such file.
    """
    if len(sources) == 1 and is_memory(sources[0]):
        return [_plan_memory(sources[0], options)]
    probed = [_probe(given, options) for given in sources]
    folders = _folders([name for name, _ in probed], options.memory)
    return [
        Planned(number, name, is_live, folder, given)
        for number, ((name, is_live), folder, given) in enumerate(zip(probed, folders, sources, strict=True), start=1)
    ]


def plan_recordings(sources: Sequence[str], options: Options, memory: Path) -> tuple[list[Planned], list[str]]:
    """What to open, each with a folder of its own in `memory`; sentences about what cannot be.

    Raises:
        ValueError: if two memories would lie in one folder.
    """
    probed, wrong = [], []
    for number, given in enumerate(sources, start=1):
        try:
            name, is_live = _probe(given, options)
            if is_live:
                raise ValueError(f"{name} is a camera and has no end: use vstream watch")
        except (ValueError, OSError) as error:
            wrong.append(str(error))
        else:
            probed.append((number, name, given))
    folders = _own_folders([name for _, name, _ in probed], memory)
    planned = [
        Planned(number, name, False, folder, given)
        for (number, name, given), folder in zip(probed, folders, strict=True)
    ]
    return planned, wrong


def check_questions(planned: Sequence[Planned], scheduled: Sequence[Scheduled]) -> None:
    """Raises `ValueError` if a camera is to be asked at its end."""
    live = next((one for one in planned if one.is_live), None)
    if live and any(question.at == "end" for question in scheduled):
        raise ValueError(
            f"{live.name} is a camera and has no end: use vstream watch, or ask at a time such as 00:30 or T15:00"
        )


def folder_name(name: str) -> str:
    """A source's name as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "source"


def _plan_memory(folder: str, options: Options) -> Planned:
    if options.memory is not None:
        raise ValueError(f"{folder} is a memory already; leave out --memory {options.memory}")
    return Planned(1, Path(folder).name, False, Path(folder), None)


def _probe(given: str, options: Options) -> tuple[str, bool]:
    """A source's (name, whether it is live): opened for a moment, so that what cannot be is refused at once."""
    if not given.strip():
        raise ValueError("SOURCE is empty; give a video file, a folder of pictures, a camera or a memory folder")
    if options.evidence_dir and Path(given).is_dir() and options.evidence_dir.resolve() == Path(given).resolve():
        raise ValueError(f"--evidence-dir {options.evidence_dir} is the source itself; give another folder")
    if is_memory(given):
        raise ValueError(f"{given} is a memory: there is nothing to watch; use vstream ask {given} QUESTION")
    with options.open_source(given, PROBE_SIDE) as source:
        return source.name, source.is_live


def _folders(names: Sequence[str], memory: Path | None) -> list[Path | None]:
    """Each source's memory folder: `memory` itself for one source, else a folder in it by the source's name."""
    return [memory] * len(names) if memory is None or len(names) == 1 else [*_own_folders(names, memory)]


def _own_folders(names: Sequence[str], memory: Path) -> list[Path]:
    """A folder in `memory` for each source."""
    if is_memory(memory):
        raise ValueError(f"{memory} is the memory of one source; give several a folder of their own with --memory")
    folders = [folder_name(name) for name in names]
    twice, count = Counter([name.casefold() for name in folders] or [""]).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} sources are called {twice!r} and would share one memory folder: watch them with separate "
            "commands, each with its own --memory"
        )
    return [memory / name for name in folders]
