"""What a person types below a live view: questions, and a few commands.

This module knows nothing of terminals or sessions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HELP = """\
  what is shown?       asks now, of every source
  @2 what is shown?    asks of source 2; @NAME will do, too
  /cancel              cancels the newest answer that is not over, /cancel 3 the third
  /status              tells what became of the frames and what is remembered
  /quit                ends; Ctrl-D, too
  the up key           brings back what was typed before"""


@dataclass(frozen=True)
class Question:
    """A question about the source `about`, which is a number or a name; None is every source."""

    text: str
    about: str | None


@dataclass(frozen=True)
class Cancel:
    """Answer `number` shall end; None is the newest that is not over."""

    number: int | None


@dataclass(frozen=True)
class Command:
    """A command that takes nothing: "help", "status" or "quit"."""

    name: str


def parse_typed(line: str) -> Question | Cancel | Command:
    """What a line means; one that is not empty.

    Raises:
        ValueError: for a command that is not known or is not complete.
    """
    line = " ".join(line.split())
    if line.startswith("/"):
        return _command(line)
    if not line.startswith("@"):
        return Question(line, None)
    about, _, text = line[1:].partition(" ")
    if not text:
        raise ValueError(f"there is no question in {line!r}; write @2 what is shown?")
    return Question(text, about)


def _command(line: str) -> Cancel | Command:
    if line in ("/help", "/status", "/quit"):
        return Command(line[1:])
    cancel = re.fullmatch(r"/cancel(?: ([0-9]{1,9}))?", line)
    if cancel is None:
        raise ValueError(f"{line!r} is no command; there are /help, /status, /cancel, /cancel NUMBER and /quit")
    return Cancel(None if cancel[1] is None else int(cancel[1]))
