"""A batch's summary for people, on a terminal or as JSON. It knows nothing of how the answers came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vstream.types import format_seconds

UNKNOWN = "not known: no row has an answer"


def show_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints it on stdout: a few facts and a table of types, or one line of JSON."""
    from rich.console import Console

    from vstream.app.output import print_json
    from vstream.app.terminal import fact_table, rows_table

    if as_json:
        print_json(dict(summary))
        return
    console = Console(highlight=False)
    console.print(fact_table(facts_of(summary)))
    if len(summary["by_type"]) > 1:
        types = summary["by_type"].items()
        console.print(rows_table([{"type": name, "right": share_text(share)} for name, share in types]))


def facts_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What is told, line by line."""
    spent, errors = summary["this_run"], summary["errors"]
    p50, p99 = summary["ttft_ms_p50"], summary["ttft_ms_p99"]
    facts = {
        "answers": f"{summary['answers']:,} about {summary['videos']:,} videos"
        + (f", {errors:,} errors" * bool(errors)),
        "one error": f"{summary['first_error']}; --retry asks again",
        "right": share_text(summary["right"]),
        "first token": "none" if p50 is None else f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        "memory": f"at most {summary['peak_bytes'] / 2**20:.1f} MiB a video",
    }
    if not errors:
        del facts["one error"]
    if spent["videos"]:
        watched = f"{format_seconds(spent['stream_seconds'])} of {spent['videos']:,} videos"
        encoded = f"{spent['encode_seconds']:.1f} s on {spent['frames_encoded']:,} frames, each once"
        answered = (
            f"{spent['answer_seconds']:.1f} s on answers, with {spent['frames_open']:,} frames seen before their clip"
        )
        facts["this run"] = f"{watched} in {spent['wall_seconds']:.1f} s: {encoded}, {answered}"
    return facts


def share_text(share: Mapping[str, Any]) -> str:
    """'45 of 60, 75.0% (62.8 to 84.2)'."""
    if not share["of"]:
        return UNKNOWN
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{share['right']:,} of {share['of']:,}, {percent(share['share'])} ({low:.1f} to {high:.1f})"


def percent(share: float) -> str:
    """'75.0%'."""
    return f"{100 * share:.1f}%"
