"""What is right, and what a whole file of answers comes to. It knows nothing of videos or models."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vstream.choices import choice_of

Z95 = 1.959964
UNTYPED = "none"


def is_right(answer: str, expected: str | None, choices: Sequence[str]) -> bool | None:
    """Whether an answer is the expected one; None where none is.

    With options, it must name the expected option, by its letter or in its own words. Without, it must be the same
    text after `normalised`: nothing more is forgiven, neither articles nor synonyms nor words around it.
    """
    if expected is None:
        return None
    if choices:
        return choice_of(answer, choices) == choice_of(expected, choices)
    return normalised(answer) == normalised(expected)


def normalised(text: str) -> str:
    """Text as it is compared: Unicode NFKC, case folded, white space as one blank, without .,!?;:"' at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,!?;:\"'")


def wilson(right: int, count: int) -> tuple[float, float] | None:
    """The 95% interval of a share (Wilson, 1927), None for no trials."""
    if count == 0:
        return None
    share, spread = right / count, Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that so much of all are at or below (nearest rank), None for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def summary_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file of answers comes to, as JSON values.

    `right` has {"right", "of", "share", "low", "high"} over the answers for which the right one is known, `by_type` the
    same for each type. Latency is that to the first token, from the moment a question's time had come. `peak_bytes` is
    the most that memory, caches and answers of one video took when a question was asked. `first_error` may be None.
    """
    answers, errors, videos = list[Mapping[str, Any]](), list[str](), set[str]()
    for record in records:
        if "error" in record:
            errors.append(record["error"])
        else:
            answers.append(_light(record))
            videos.add(record["video"])
    latencies = [one["ttft_ms"] for one in answers if one["ttft_ms"] is not None]
    types = dict.fromkeys(one["type"] or UNTYPED for one in answers)
    return {
        "videos": len(videos),
        "answers": len(answers),
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "right": _share(answers),
        "by_type": {name: _share([one for one in answers if (one["type"] or UNTYPED) == name]) for name in types},
        "ttft_ms_p50": percentile(latencies, 0.5),
        "ttft_ms_p99": percentile(latencies, 0.99),
        "peak_bytes": max((one["bytes"] for one in answers), default=0),
    }


def _light(record: Mapping[str, Any]) -> dict[str, Any]:
    memory = record["memory"] or {}
    size = sum(memory.get(tier, 0) for tier in ("device_bytes", "host_bytes", "disk_bytes"))
    return {"type": record["type"], "right": record["right"], "ttft_ms": record["ttft_ms"], "bytes": size}


def _share(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    marked = [one["right"] for one in answers if one["right"] is not None]
    right, interval = sum(marked), wilson(sum(marked), len(marked))
    low, high = interval or (None, None)
    return {
        "right": right,
        "of": len(marked),
        "share": right / len(marked) if marked else None,
        "low": low,
        "high": high,
    }
