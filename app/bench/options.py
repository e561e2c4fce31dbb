"""The options of `vstream bench`, declared once. Light: nothing of torch is imported to show the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vstream.app.batch.options import AnsweringOptions


@dataclass(frozen=True, kw_only=True)
class BenchOptions(AnsweringOptions):
    """As given."""

    root: Annotated[
        Path | None,
        typer.Option(help="Folder with the benchmark's annotations and videos, at any depth.", metavar="DIR"),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where answers go, a line of JSON each; what is there is gone on with (NAME.jsonl).",
            metavar="FILE.jsonl",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(help="Only so many items, spread over all.")] = None
    partial: Annotated[
        bool, typer.Option("--partial", help="Leaves out what is asked about videos that are missing.")
    ] = False

    def check(self, out: Path) -> None:
        """Raises `ValueError` for what will not do in a benchmark whose answers go to `out`."""
        super().check(out)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
