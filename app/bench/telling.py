"""Benchmarks for people, on a terminal or as JSON. It knows nothing of how scores came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vstream.app.bench.registry import BENCHMARKS
from vstream.app.bench.scores import line_of

if TYPE_CHECKING:
    from vstream.app.bench.run import Bench


def show_scores(bench: Bench, *, as_json: bool) -> None:
    """Prints them on stdout: a table of the groups with a few facts, or one line of JSON."""
    from rich.console import Console

    from vstream.app.batch.telling import facts_of
    from vstream.app.output import print_json
    from vstream.app.terminal import fact_table, rows_table

    if as_json:
        print_json(bench.summary)
        return
    console = Console(highlight=False)
    if bench.scores:
        console.print(rows_table([line_of(score, bench.benchmark.measures) for score in bench.scores]))
    facts = {name: text for name, text in facts_of(bench.summary).items() if name != "right"}
    if bench.missing:
        facts["left out"] = (
            f"{sum(bench.missing.values()):,} items about {len(bench.missing):,} videos that are missing"
        )
    if late := bench.summary["questions_past_end"]:
        facts["asked early"] = f"{late:,} questions, at the end of their video: their times come after it"
    if bench.summary["judge"]:
        facts["judge"] = _judge_text(bench.summary["judge"])
    if bench.needs:
        facts["not marked"] = (
            f"{bench.summary['items_waiting']:,} items; the same command with {bench.needs} marks them"
        )
    console.print(fact_table({**facts, "written": str(bench.out)}))


def _judge_text(judge: Mapping[str, Any]) -> str:
    """'gpt-5 at 127.0.0.1: 120 judgments, 2 errors'."""
    errors = f", {judge['errors']:,} errors" * bool(judge["errors"])
    return f"{judge['model']} at {judge['host']}: {judge['judgments']:,} judgments{errors}"


def listing() -> Sequence[Mapping[str, Any]]:
    """What there is, as records."""
    return [{"name": one.name, "about": one.about, "needs": one.needs} for one in BENCHMARKS]


def show_listing(*, as_json: bool) -> None:
    """Prints which benchmarks there are and what they need on disk."""
    from rich.console import Console

    from vstream.app.output import print_json
    from vstream.app.terminal import fact_table

    if as_json:
        print_json({"benchmarks": list(listing())})
        return
    console = Console(highlight=False)
    console.print("vstream bench NAME --root DIR, where DIR holds the files of:\n")
    console.print(fact_table({one["name"]: f"{one['about']}\n{one['needs']}" for one in listing()}))
