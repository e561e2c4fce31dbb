"""Streams, answers and memories as records of the API.

These may wait for a step of the engine: they are for threads, not for an event loop. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from vstream.answer import Answer, Evidence
from vstream.app.serve import records
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import Kept, without_folders
from vstream.app.serve.stream import Span, Stream, Turn
from vstream.types import Gap


def stream_record(stream: Stream) -> records.StreamRecord:
    """A stream as it stands now."""
    card, look = stream.card, stream.look()
    return records.StreamRecord(
        id=stream.id,
        title=card.title,
        state=stream.state,
        note=without_folders(stream.note),
        trouble=without_folders(look.failure or look.state),
        source=card.source,
        model=card.model,
        preset=card.preset,
        fps=card.fps,
        realtime=card.realtime,
        dialogue=card.dialogue,
        kept=card.kept,
        is_live=stream.is_live,
        has_file=stream.file is not None,
        clock_seconds=look.clock_seconds,
        duration_seconds=look.duration_seconds,
        wall_seconds=look.wall_seconds,
        lag_seconds=look.lag_seconds,
        frames=records.Rates(
            decoded_per_second=look.decoded_per_second,
            encoded_per_second=look.encoded_per_second,
            dropped=look.dropped,
        ),
        blocks=look.blocks,
        bytes=look.tier_bytes,
        gaps=look.num_gaps,
        questions=stream.turns[-1].number if stream.turns else 0,
        created=card.created,
    )


def kept_record(hub: Hub, kept: Kept) -> records.KeptRecord:
    """A memory on disk."""
    card = kept.card
    return records.KeptRecord(
        id=card.id,
        title=card.title,
        source=card.source,
        model=card.model,
        preset=card.preset,
        kept=card.kept,
        is_open=any(stream.id == card.id for stream in hub.streams()),
        seconds=kept.seconds,
        bytes=kept.num_bytes,
        questions=kept.turns,
        created=card.created,
    )


# Answers


def turn_record(stream: Stream, turn: Turn) -> records.TurnRecord:
    """A question and what was said to it so far."""
    answer = turn.answer
    done, text = answer.done, answer.text_so_far
    begun = "answering" if answer.snapshot_seconds is not None else "waiting"
    return records.TurnRecord(
        stream_id=stream.id,
        number=turn.number,
        question=answer.question,
        choices=list(answer.choices),
        state="failed" if answer.error else "done" if done else cast("records.TurnState", begun),
        answer=text,
        finish_reason=answer.finish_reason,
        choice=answer.choice,
        evidence=evidence_records(stream, answer),
        usage=usage(answer),
        asked_at_seconds=answer.asked_at_seconds,
        snapshot_seconds=answer.snapshot_seconds,
        earlier=answer.num_earlier,
        ttft_seconds=answer.ttft_seconds,
        tokens_per_second=answer.tokens_per_second,
        asked_at=turn.asked_at,
        error=without_folders(str(answer.error)) if answer.error else None,
    )


def usage(answer: Answer) -> records.Usage:
    """Tokens, as counted."""
    prompt, completion = answer.num_prompt_tokens, answer.num_tokens
    return records.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def evidence_records(stream: Stream, answer: Answer) -> list[records.EvidenceRecord]:
    """What an answer saw, best first."""
    return [evidence_record(stream, one) for one in answer.evidence]


def evidence_record(stream: Stream, evidence: Evidence) -> records.EvidenceRecord:
    """One stretch that an answer saw, with the address of its picture."""
    seconds = evidence.picture_seconds
    return records.EvidenceRecord(
        start_seconds=evidence.start_seconds,
        end_seconds=evidence.end_seconds,
        level=cast("records.Level", evidence.level),
        score=evidence.score if math.isfinite(evidence.score) else None,
        wall_seconds=evidence.wall_clock,
        picture_seconds=seconds,
        picture_url=None if seconds is None else picture_url(stream.id, seconds),
    )


def picture_url(stream_id: str, seconds: float) -> str:
    """Where the picture of a time is, on this server."""
    return f"/v1/streams/{stream_id}/frames/{seconds:.6f}".rstrip("0").rstrip(".") + ".jpg"


# Memory


def memory_record(stream: Stream, *, bins: int, limit: int, offset: int) -> records.MemoryRecord:
    """What a stream remembers: its time in so many parts, and so many blocks from `offset` on."""
    look, spans = stream.look(), stream.spans()
    shown = spans[offset : offset + limit]
    more = offset + len(shown) < len(spans) and limit > 0
    gaps, num_gaps = _gaps(stream)
    return records.MemoryRecord(
        stream_id=stream.id,
        clock_seconds=look.clock_seconds,
        levels=_levels(spans),
        bytes=look.tier_bytes,
        bins=binned(spans, bins),
        blocks=[_block(span) for span in shown],
        next_offset=offset + len(shown) if more else None,
        gaps=[records.GapRecord(**gap.to_plain()) for gap in gaps],
        num_gaps=num_gaps,
        used=_used(stream),
    )


def binned(spans: Sequence[Span], bins: int) -> list[records.BinRecord]:
    """The time from 0 to the newest block in equal parts, a block's tokens shared among the parts that it lies in."""
    if not spans or not bins:
        return []
    width = max(max(span.end_seconds for span in spans), 1e-3) / bins
    tokens: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(bins)]
    for span in spans:
        first = min(bins - 1, int(span.start_seconds / width))
        last = min(bins - 1, int(span.end_seconds / width))
        for part in range(first, last + 1):
            tokens[part][span.level] += span.tokens / (last + 1 - first)
    return [
        records.BinRecord(
            start_seconds=part * width,
            end_seconds=(part + 1) * width,
            tokens={level: math.ceil(count) for level, count in by_level.items()},
        )
        for part, by_level in enumerate(tokens)
    ]


def _levels(spans: Sequence[Span]) -> dict[str, records.LevelRecord]:
    levels: dict[str, records.LevelRecord] = {}
    for span in spans:
        level = levels.setdefault(span.level, records.LevelRecord(blocks=0, tokens=0))
        level.blocks += 1
        level.tokens += span.tokens
    return levels


def _block(span: Span) -> records.BlockRecord:
    return records.BlockRecord(
        level=cast("records.Level", span.level),
        start_seconds=span.start_seconds,
        end_seconds=span.end_seconds,
        tokens=span.tokens,
    )


def _gaps(stream: Stream) -> tuple[tuple[Gap, ...], int]:
    """The newest gaps, remembered ones first, then those of this run that are not yet."""
    memory, source = stream.session.memory, stream.session.source
    kept = memory.gaps
    since = kept[-1].end_seconds if kept else -1.0
    fresh = () if source is None else tuple(gap for gap in source.gaps if gap.start_seconds >= since)
    return (*kept, *fresh), memory.num_gaps + len(fresh)


def _used(stream: Stream) -> records.UsedRecord | None:
    latest = next((turn for turn in reversed(stream.turns) if turn.answer.evidence), None)
    if latest is None:
        return None
    return records.UsedRecord(
        number=latest.number,
        evidence=evidence_records(stream, latest.answer),
        recalled=list(latest.answer.recalled),
    )
