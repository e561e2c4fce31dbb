"""What is done to memories, in a process of its own that is killed on the way, or may write little. No tests here."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import torch

from vstream.app import memories
from vstream.memory.archive import export_memory, import_memory
from vstream.memory.upkeep import compact

EVENTS = ("open", "os.", "shutil.", "fcntl.")  # what touches files, as Python's audit hooks see it


def do(what: str, place: Path) -> None:
    """One of the commands, on `place`/memory, `place`/one.vstream, `place`/imported and `place`/many."""
    if what == "compact":
        compact(place / "memory")
    elif what == "export":
        export_memory(place / "memory", place / "one.vstream")
    elif what == "import":
        import_memory(place / "kept.vstream", place / "imported")
    else:
        plan = memories.plan_pruning(place / "many", memories.Rule(last=1))
        memories.prune(place / "many", plan)


def killed_at(what: str, place: str, count: int) -> None:
    """Does it, and is killed (-9) at the `count`-th time that it touches a file."""
    torch.set_num_threads(1)
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event.startswith(EVENTS):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    do(what, Path(place))


def with_small_files(what: str, place: str, num_bytes: int, pipe) -> None:  # type: ignore[no-untyped-def]
    """Does it where no file may grow beyond `num_bytes`, as on a full disk; sends the error's sentence."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    try:
        do(what, Path(place))
    except OSError as error:
        pipe.send_bytes((error.strerror or str(error)).encode())
    else:
        pipe.send_bytes(b"done")
