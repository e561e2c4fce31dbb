"""What is done to memories as a whole that nobody writes to: compacting one, removing one.

Either is one rename, made while nobody else can open the memory; so a process killed at any point leaves it as it was,
or done. This module knows nothing of blocks.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from vstream.memory import folder as folders
from vstream.memory.archive import remove_path
from vstream.memory.disk import DiskTier
from vstream.memory.environment import user_of

COMPACTED = "compacted.new"
REMOVED = ".removed-"


def compact(folder: Path) -> tuple[int, int]:
    """Writes the data file anew without what earlier commits have left free; its bytes before and after.

    Raises:
        ValueError: if there is no whole memory.
        OSError: if somebody has the memory open, or it cannot be written.
        RuntimeError: if stored bytes are damaged; nothing was changed then.
    """
    if not folders.find_memory(folder):
        raise ValueError(f"there is no memory in {folder}")
    folders.read_manifest(folder)
    writer = folders.lock_writer(folder)
    new = folder / COMPACTED
    try:
        _check_unused(folder)
        before = (folder / folders.DATA).stat()
        remove_path(new)
        _copy(folder, new)
        os.truncate(new / folders.DATA, folders.check_whole(new))
        os.utime(new / folders.DATA, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = (new / folders.DATA).stat().st_size
        if after < before.st_size:
            with folders.still(folder, exclusive=True):
                _check_unused(folder)  # who has the old file open would share LMDB's lock file with those of the new
                (new / folders.DATA).rename(folder / folders.DATA)
            folders.sync_folder(folder)
        return before.st_size, min(after, before.st_size)
    finally:
        remove_path(new)
        os.close(writer)


def remove(folder: Path, home: Path) -> None:
    """Removes a memory with the folder `home` that it is, or lies in, in one step.

    Raises:
        OSError: if somebody has the memory open, or it cannot be removed.
    """
    aside = home.parent / f"{REMOVED}{home.name}"
    remove_path(aside)
    writer = folders.lock_writer(folder)
    try:
        with folders.still(folder, exclusive=True):
            _check_unused(folder)
            home.rename(aside)
        folders.sync_folder(home.parent)
    finally:
        os.close(writer)
    shutil.rmtree(aside)


def finish_removals(root: Path) -> None:
    """Takes away what `remove` was killed at, directly in a folder."""
    for left in root.glob(f"{REMOVED}*"):
        remove_path(left)


def use_of(folder: Path) -> str:
    """Who has a memory open: "writing" if one watches into it, else "reading", else ""."""
    if folders.being_written(folder):
        return "writing"
    return "" if _user_of(folder) is None else "reading"


def _check_unused(folder: Path) -> None:
    if (user := _user_of(folder)) is not None:
        raise OSError(errno.EAGAIN, f"process {user} has the memory in {folder} open; try again when that is over")


def _user_of(folder: Path) -> int | None:
    return user_of(folder) if (folder / folders.DATA).exists() else None


def _copy(folder: Path, new: Path) -> None:
    """A whole memory in `new`, of which every page has been read and found right."""
    import lmdb

    new.mkdir()
    with DiskTier.open_readonly(folder) as disk:
        try:
            disk.copy_compact(new)
            folders.write_manifest(new, disk.identity, disk.created)
        except (lmdb.Error, OSError) as error:
            free = shutil.disk_usage(folder).free
            raise OSError(
                f"cannot compact the memory in {folder} ({error}; {free} bytes are free there), so nothing was changed"
            ) from error
    with DiskTier.open_readonly(new) as copied:
        copied.check_integrity()
