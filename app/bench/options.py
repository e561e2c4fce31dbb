"""The options of `vstream bench`, declared once. Light: nothing of torch is imported to show the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vstream.app.batch.options import MAX_AT_ONCE, AnsweringOptions

NO_MATTER = ("judge", "judge_model", "judge_at_once", "against", "partial", "limit")
"""Options that no answer depends on: only its mark does, or which are asked, and that is known from the questions."""


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
    judge: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenAI-compatible endpoint, for answers that need a judge; key in OPENAI_API_KEY.",
            metavar="URL",
        ),
    ] = None
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.", metavar="NAME")] = None
    judge_at_once: Annotated[int, typer.Option(help="Requests to the judge under way together.")] = 4
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another run's answers, where a judge chooses between two (inf-streams).", metavar="OTHER.jsonl"
        ),
    ] = None

    def check(self, out: Path) -> None:
        """Raises `ValueError` for what will not do in a benchmark whose answers go to `out`."""
        super().check(out)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError("--judge URL and --judge-model NAME belong together; give both, or neither")
        if not 1 <= self.judge_at_once <= MAX_AT_ONCE:
            raise ValueError(
                f"--judge-at-once must be a whole number from 1 to {MAX_AT_ONCE}, got {self.judge_at_once}"
            )

    def matter(self) -> dict[str, Any]:
        """What was given that answers depend on, as JSON values."""
        return {name: value for name, value in super().matter().items() if name not in NO_MATTER}
