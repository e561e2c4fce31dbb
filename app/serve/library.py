"""Memories on disk, by id: a folder each, with a card that says what it is of and how it is watched.

ROOT/ID/stream.json is the card, ROOT/ID/memory/ the memory itself. A card never holds a password. This module knows
nothing of models, sessions or HTTP.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vstream.app.sources import is_memory

CARD, MEMORY = "stream.json", "memory"
MAX_TITLE = 100
_ID = re.compile(r"[0-9a-f]{12}")


class UnknownStreamError(LookupError):
    """There is no stream or memory of this id."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a stream is of, and how it is watched.

    Attributes:
        id: of the stream and of its memory.
        title: for people, who may change it.
        kept: whether its memory stays when the stream is closed.
        source: what is watched, as a person gives it; no password.
        reopens: whether `source` is enough to watch it again.
        model, preset: by name; preset None for the model's own settings.
        fps: frames a second, None for the model's own.
        realtime: whether a recorded file is watched at its own pace.
        dialogue: whether questions see earlier ones.
        created: ISO 8601, UTC.
    """

    id: str
    title: str
    kept: bool
    source: str
    reopens: bool
    model: str
    preset: str | None
    fps: float | None
    realtime: bool
    dialogue: bool
    created: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A memory on disk.

    Attributes:
        card: what it is of.
        seconds: time of the newest frame it holds, None for none.
        num_bytes: what its folder takes on disk.
        turns: questions and answers it remembers.
    """

    card: Card
    seconds: float | None
    num_bytes: int
    turns: int


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(6)


def now_iso() -> str:
    """This moment as a card has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def checked_title(title: str) -> str:
    """A title on one line.

    Raises:
        ValueError: if nothing of it can be seen, or it is too long.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    if not plain or len(plain) > MAX_TITLE:
        raise ValueError(f"a title has 1 to {MAX_TITLE} characters that can be seen, got {len(plain)}")
    return plain


def title_of(name: str) -> str:
    """A title made of a source's name, cut where it is too long."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "Untitled"
    return plain if len(plain) <= MAX_TITLE else plain[: MAX_TITLE - 1].rstrip() + "…"


_FOLDER = re.compile(r"(?<![^\s'\"(])/[^\n]*?/([0-9a-f]{12})/memory\b")


def without_folders(text: str) -> str:
    """A sentence for strangers: memories in it are named by their ids, not by where they lie on this machine."""
    return _FOLDER.sub(r"\1", text)


class Library:
    """The memories below one folder. Any thread may use it."""

    def __init__(self, root: Path) -> None:
        """Makes the folder.

        Raises:
            ValueError: if there cannot be a folder of that name.
        """
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root} is a file; memories need a folder (--memories DIR)")
        if is_memory(root):
            raise ValueError(f"{root} is a memory itself; give the folder that shall hold memories (--memories DIR)")
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._lock = threading.Lock()  # cards are read and written whole

    def folder(self, memory_id: str) -> Path:
        """Where a memory itself is, or will be."""
        return self._home(memory_id) / MEMORY

    def write(self, card: Card) -> None:
        """Puts a card down, in one step."""
        home = self._home(card.id)
        with self._lock:
            home.mkdir(exist_ok=True)
            part = home / (CARD + ".new")
            part.write_text(json.dumps(asdict(card), indent=2) + "\n", "utf-8")
            part.replace(home / CARD)

    def card(self, memory_id: str) -> Card:
        """A memory's card.

        Raises:
            UnknownStreamError: if there is none of this id.
        """
        if not _ID.fullmatch(memory_id):
            raise UnknownStreamError(f"there is no stream or memory {memory_id!r}")
        with self._lock:
            card = _read(self._home(memory_id) / CARD)
        if card is None:
            raise UnknownStreamError(f"there is no stream or memory {memory_id!r}")
        return card

    def change(self, memory_id: str, **changes: Any) -> Card:
        """Writes a card anew, with some of it changed. Raises `UnknownStreamError`."""
        card = replace(self.card(memory_id), **changes)
        self.write(card)
        return card

    def memories(self) -> list[Kept]:
        """All memories that hold something, newest first."""
        with self._lock:
            cards = [_read(path) for path in sorted(self._root.glob(f"*/{CARD}"))]
        found = [_kept(card, self.folder(card.id)) for card in cards if card is not None]
        return sorted((one for one in found if one is not None), key=lambda one: one.card.created, reverse=True)

    def delete(self, memory_id: str) -> None:
        """Removes a memory and its card; the caller has closed it.

        Raises:
            UnknownStreamError: if there is none of this id.
            BlockingIOError: if another process has it open.
        """
        self.card(memory_id)
        with self._lock, _alone(self.folder(memory_id)):
            (self._home(memory_id) / CARD).unlink()  # without a card it is no memory any more, whatever comes next
            shutil.rmtree(self._home(memory_id))

    def _home(self, memory_id: str) -> Path:
        assert _ID.fullmatch(memory_id), f"{memory_id!r} is no id"
        return self._root / memory_id


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else writes to a memory meanwhile. Raises `BlockingIOError` if another process does."""
    from vstream.memory.folder import lock_writer

    if not folder.is_dir():
        yield
        return
    try:
        lock = lock_writer(folder)
    except BlockingIOError:
        raise
    except OSError:  # such as a full disk, which deleting helps
        yield
        return
    try:
        yield
    finally:
        os.close(lock)


def _read(path: Path) -> Card | None:
    """The card in a file; None where there is none, or one that is not whole."""
    if not path.is_file():
        return None
    try:
        plain = json.loads(path.read_text("utf-8"))
        card = Card(**{one.name: plain[one.name] for one in fields(Card)})
        if not _is_sound(card):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    return card if path.parent.name == card.id else None


def _is_sound(card: Card) -> bool:
    """Whether every field has its type. Raises `ValueError` for a time that is none."""
    datetime.fromisoformat(card.created)
    texts = (card.id, card.title, card.source, card.model, card.preset or "")
    flags = (card.kept, card.reopens, card.realtime, card.dialogue)
    fps = card.fps is None or type(card.fps) in (int, float)
    return fps and all(isinstance(one, str) for one in texts) and all(isinstance(one, bool) for one in flags)


def _kept(card: Card, folder: Path) -> Kept | None:
    """What a memory holds by its last commit; None where there is nothing that can be read."""
    from vstream.memory.disk import DiskTier

    if not is_memory(folder):
        return None
    try:
        with DiskTier.open_readonly(folder) as disk:
            state = json.loads(disk.state) if disk.state else {}
            return Kept(
                card=card,
                seconds=state.get("last_seconds"),
                num_bytes=disk.file_bytes,
                turns=len(state.get("dialogue", [])),
            )
    except (ValueError, OSError):
        return None
