"""Memories on disk, seen from outside: which there are, whether they are whole, which may go.

What is done to them is in `vstream.memory`. This module knows nothing of terminals: it returns JSON values.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vstream.app.info import memory_info
from vstream.app.sources import MEMORY_FILES, is_memory

CARD, CARD_MEMORY = "stream.json", "memory"  # as the server keeps its memories, see `serve/library.py`
DAY_SECONDS = 86_400
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Found:
    """A memory below a folder.

    Attributes:
        folder: of the memory itself.
        home: what goes when it is removed: the folder, or the one that holds it and its card.
        title: that people gave it, "" where none did.
        num_bytes: of its data file.
        written: when that was written last, Unix seconds.
    """

    folder: Path
    home: Path
    title: str
    num_bytes: int
    written: float


def memory_in(folder: Path) -> Path:
    """The memory that a folder is, or that a folder of the server's holds beside its card.

    Raises:
        ValueError: if there is none.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder of a memory")
    found = next((one for one in (folder, folder / CARD_MEMORY) if is_memory(one)), None)
    if found is None:
        raise ValueError(f"there is no memory in {folder}")
    return found


def find_memories(root: Path) -> list[Found]:
    """Every memory in a folder or below it, by folder; hidden folders and links are not looked into.

    Raises:
        ValueError: if it is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}; give a folder that holds memories")
    folders = []
    for path, below, names in os.walk(root, onerror=_refuse):
        if any(name in names for name in MEMORY_FILES):
            folders.append(Path(path))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return [_found(folder) for folder in sorted(folders)]


def memories_listing(root: Path) -> list[dict[str, Any]]:
    """What is known of every memory below a folder; what cannot be read of one is told in `damaged`."""
    return [_row(one) for one in find_memories(root)]


def check_state(state: bytes) -> None:
    """Raises ValueError unless a memory's state is one that a session may have written."""
    found = json.loads(state)
    if not isinstance(found, dict) or not isinstance(found.get("last_seconds"), float | int | None):
        raise ValueError("it is no table with a time")


def audit_memory(folder: Path) -> dict[str, Any]:
    """Whether a memory is whole, and what of it is not. Raises as `audit` does."""
    from vstream.memory.audit import audit

    found = audit(folder, check_state)
    return {
        "folder": str(folder),
        "whole": not found.damages,
        "blocks": found.num_blocks,
        "bytes": found.num_bytes,
        "damages": [one._asdict() for one in found.damages],
    }


def bytes_of(text: str) -> int:
    """Bytes from a number such as 500000, 200M or 1.5G.

    Raises:
        ValueError: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(f"--keep-bytes must be a number of bytes such as 200M or 1.5G, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True)
class Rule:
    """Which memories stay; exactly one of them is given.

    Attributes:
        days: those written to in so many last days.
        num_bytes: the newest that take no more together.
        last: so many of the newest.
    """

    days: float | None = None
    num_bytes: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.days, self.num_bytes, self.last) if value is not None]
        if len(given) != 1:
            raise ValueError("say which memories to keep: one of --keep-days N, --keep-bytes N and --keep-last N")
        if not 0 <= given[0] < float("inf"):
            raise ValueError(f"what is kept must be a number from 0, got {given[0]:g}")

    def leaves_out(self, memories: Sequence[Found]) -> list[Found]:
        """Those that go, oldest first."""
        newest = sorted(memories, key=lambda one: (one.written, one.folder), reverse=True)
        if self.days is not None:
            kept = sum(one.written >= time.time() - self.days * DAY_SECONDS for one in newest)
        elif self.last is not None:
            kept = self.last
        else:
            kept, total = 0, 0
            while kept < len(newest) and total + newest[kept].num_bytes <= (self.num_bytes or 0):
                total += newest[kept].num_bytes
                kept += 1
        return newest[kept:][::-1]


@dataclass(frozen=True)
class Pruning:
    """What `prune` would do, or has done.

    Attributes:
        going: that go, oldest first.
        spared: that would go, but somebody has them open.
    """

    going: list[Found]
    spared: list[Found]


def plan_pruning(root: Path, rule: Rule) -> Pruning:
    """What goes by a rule.

    Raises:
        ValueError: if it is no folder that holds memories, but one itself, or none.
    """
    from vstream.memory.upkeep import use_of

    if is_memory(root):
        raise ValueError(f"{root} is a memory itself; give the folder that holds memories")
    going = rule.leaves_out(find_memories(root))
    spared = [one for one in going if use_of(one.folder)]
    return Pruning([one for one in going if one not in spared], spared)


def prune(root: Path, plan: Pruning) -> Pruning:
    """Removes what a plan says; what somebody has opened meanwhile is spared, too."""
    from vstream.memory.upkeep import finish_removals, remove

    finish_removals(root)
    gone, spared = [], list(plan.spared)
    for one in plan.going:
        try:
            remove(one.folder, one.home)
        except BlockingIOError:
            spared.append(one)
        else:
            gone.append(one)
    return Pruning(gone, spared)


def _refuse(error: OSError) -> None:
    raise error


def _found(folder: Path) -> Found:
    card = _card(folder)
    size, written = next(
        (((folder / name).stat().st_size, (folder / name).stat().st_mtime))
        for name in reversed(MEMORY_FILES)
        if (folder / name).exists()
    )
    return Found(folder, folder if card is None else folder.parent, (card or {}).get("title", ""), size, written)


def _card(folder: Path) -> dict[str, str] | None:
    """The card of one of the server's memories; None for others."""
    path = folder.parent / CARD
    if folder.name != CARD_MEMORY or not path.is_file():
        return None
    try:
        card = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return {"title": str(card.get("title", ""))} if isinstance(card, dict) else {}


def _row(one: Found) -> dict[str, Any]:
    from vstream.memory.upkeep import use_of

    row: dict[str, Any] = {"folder": str(one.folder), "title": one.title, "damaged": None}
    try:
        row["open"] = use_of(one.folder)
        facts = memory_info(one.folder)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        return row | {"bytes": one.num_bytes, "written": _iso(one.written), "damaged": str(error)}
    return row | {
        "source": facts["source"],
        "model": facts["identity"].get("model"),
        "start_seconds": min((level["start_seconds"] for level in facts["levels"]), default=None),
        "end_seconds": facts["last_seconds"],
        "blocks": {level["level"]: level["blocks"] for level in facts["levels"]},
        "bytes": facts["file_bytes"],
        "created": facts["created"],
        "written": _iso(one.written),
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
