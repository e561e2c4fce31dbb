"""The options of `vstream batch` and what `vstream bench` shares with it, declared once.

Light: nothing of torch is imported to show the help.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vstream.app.options import SessionOptions

MAX_AT_ONCE = 64
NO_MATTER = (
    "videos",
    "root",
    "out",
    "at_once",
    "report",
    "evidence_dir",
    "overwrite",
    "retry",
    "json",
    "threads",
    "offline",
)
"""Options that no answer depends on: another run may go on with others."""


@dataclass(frozen=True, kw_only=True)
class AnsweringOptions(SessionOptions):
    """How questions about many videos are answered; which videos and where answers go is for others to say."""

    at_once: Annotated[int, typer.Option(help="Videos watched at once; each has budgets of its own.")] = 1
    report: Annotated[
        Path | None, typer.Option(help="A page with every answer and its pictures, in one file.", metavar="FILE.html")
    ] = None
    evidence_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the answers' pictures (with --report FILE.jsonl.pictures).", metavar="DIR"),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begins anew; lines that are there are lost.")] = False
    retry: Annotated[bool, typer.Option("--retry", help="Asks rows again that ended in an error.")] = False
    json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False

    def check(self, out: Path) -> None:
        """Raises `ValueError` for what will not do in a batch whose answers go to `out`."""
        if not 1 <= self.at_once <= MAX_AT_ONCE:
            raise ValueError(f"--at-once must be a whole number from 1 to {MAX_AT_ONCE}, got {self.at_once}")
        if self.dialogue:
            raise ValueError("--dialogue is not for a batch: each of its questions is asked alone")
        if self.report is not None and (self.report.is_dir() or not self.report.parent.is_dir()):
            raise ValueError(f"--report must be a file in a folder that is there, got {self.report}")
        if self.report is not None and self.report.absolute() == out.absolute():
            raise ValueError(f"--report and --out must be two files, got {out} twice")

    def pictures(self, out: Path) -> Path | None:
        """Where evidence is kept, if it is."""
        beside = out.with_name(f"{out.name}.pictures") if self.report else None
        return self.evidence_dir or beside

    def matter(self) -> dict[str, Any]:
        """What was given that answers depend on, as JSON values."""
        given = asdict(self)
        return {name: value for name, value in given.items() if name not in NO_MATTER and value is not None}


@dataclass(frozen=True, kw_only=True)
class BatchOptions(AnsweringOptions):
    """As given."""

    videos: Annotated[Path, typer.Option(help="Folder that the rows' videos are below.", metavar="DIR")]
    out: Annotated[
        Path,
        typer.Option(
            help="Where answers go, a line of JSON each; what is there is gone on with.", metavar="FILE.jsonl"
        ),
    ]
