"""The conversation as HTML: questions, answers as they grow, their evidence. Knows nothing of Gradio or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from operator import itemgetter
from typing import TYPE_CHECKING

from vstream.app.serve.library import without_folders
from vstream.app.serve.page.alerts import event_html
from vstream.app.serve.page.html import button, data
from vstream.app.serve.page.words import LEVELS, model_about
from vstream.app.view import ordinal
from vstream.types import format_seconds

if TYPE_CHECKING:
    from vstream.answer import Answer, Evidence
    from vstream.app.serve.stream import Stream, Turn

MAX_EVIDENCE = 5
MAX_TURNS = MAX_EVENTS = 40
LEVEL_NAMES = {"open": "just now"}
"""What levels are called under a picture, where their own name says too little."""

SAMPLE_QUESTIONS = ("What is shown now?", "What animal is shown?", "Was there a cat?", "What drink is shown?")
QUESTIONS = ("What is shown now?", "What happened so far?", "When did it change?")


def conversation(stream: Stream) -> str:
    """The last turns and events of a stream, or what to ask where there are none yet."""
    turns, events = stream.turns[-MAX_TURNS:], stream.alerts.events[-MAX_EVENTS:]
    if not turns and not events:
        return _empty(stream)
    earlier = len(stream.turns) - len(turns)
    note = f'<p class="quiet small">{earlier} earlier turns are in the export.</p>' if earlier else ""
    said = [(turn.asked_at or 0.0, turn_html(stream.id, turn)) for turn in turns]
    said += [(began, event_html(stream.id, notice)) for began, notice in events]
    return f'<div id="log">{note}<ol>{"".join(html for _, html in sorted(said, key=itemgetter(0)))}</ol></div>'


def _empty(stream: Stream) -> str:
    questions = SAMPLE_QUESTIONS if stream.card.source == "sample" else QUESTIONS
    asks = "".join(button(question, "ask", question=question) for question in questions)
    return (
        '<div id="log" class="empty"><h3>Ask at any moment</h3>'
        '<p class="quiet">The watching goes on meanwhile. Every answer shows what it looked at.</p>'
        f"{_about_model(stream.card.model)}"
        f'<div class="asks">{asks}</div></div>'
    )


def _about_model(name: str) -> str:
    about = model_about(name)
    return f'<p class="quiet small">{escape(name)}: {escape(about)}</p>' if about else ""


def turn_html(stream_id: str, turn: Turn) -> str:
    """One question and its answer."""
    answer = turn.answer
    asked_at = "" if answer.asked_at_seconds is None else f"at {format_seconds(answer.asked_at_seconds)}"
    return (
        f'<li class="turn" id="turn-{turn.number}"><p class="asked">{escape(answer.question)}</p>'
        f'<p class="asked-at num">{asked_at}</p>'
        f"{_said(answer)}{evidence_strip(stream_id, turn)}{_foot(stream_id, turn)}</li>"
    )


def _said(answer: Answer) -> str:
    if answer.error is not None:
        return f'<p class="said failed" role="alert">No answer: {escape(without_folders(str(answer.error)))}</p>'
    text = escape(answer.text_so_far.strip())
    if answer.done:
        return f'<p class="said" aria-live="polite">{text or _silence(answer)}</p>'
    return f'<p class="said" aria-live="polite" aria-busy="true">{text}<span class="caret"></span></p>'


def _silence(answer: Answer) -> str:
    why = "Stopped before a word was said." if answer.cancelled else "It had nothing to say."
    return f'<span class="quiet">{why}</span>'


def best_evidence(answer: Answer) -> list[tuple[int, Evidence]]:
    """Up to five pieces with their places in `answer.evidence`: the best, one for each second, in the order of time."""
    seen: dict[str, tuple[int, Evidence]] = {}
    for index, evidence in enumerate(answer.evidence):
        if len(seen) < MAX_EVIDENCE:
            seen.setdefault(format_seconds(moment_of(evidence)), (index, evidence))
    return sorted(seen.values(), key=lambda found: moment_of(found[1]))


def moment_of(evidence: Evidence) -> float:
    """The time of its picture; its first frame's where it has none."""
    return evidence.start_seconds if evidence.picture_seconds is None else evidence.picture_seconds


def evidence_strip(stream_id: str, turn: Turn) -> str:
    """Thumbnails with times that seek; "" before the evidence is known."""
    pictures = [_thumbnail(stream_id, turn.number, *found) for found in best_evidence(turn.answer)]
    if not pictures:
        return ""
    strip = f'<div class="evidence" role="group" aria-label="Looked at">{"".join(pictures)}</div>'
    return f'<div class="looked"><p class="label">looked at</p>{strip}</div>'


def _thumbnail(stream_id: str, number: int, index: int, evidence: Evidence) -> str:
    seconds = moment_of(evidence)
    time, level = format_seconds(seconds), LEVEL_NAMES.get(evidence.level, evidence.level)
    hint = escape(LEVELS.get(evidence.level, ""))
    values = {"do": "seek", "seconds": f"{seconds:.3f}", "key": f"{stream_id}-{number}-{index}", "level": level}
    return (
        f'<button type="button"{data(values)} title="{hint}" aria-label="Show {time}{f", {level}" if level else ""}">'
        f'<img src="/v1/streams/{stream_id}/turns/{number}/evidence/{index}.jpg" alt="What was seen at {time}" '
        f'width="104" height="64"><span class="cap"><b>{time}</b>{escape(level)}</span></button>'
    )


def _foot(stream_id: str, turn: Turn) -> str:
    answer = turn.answer
    if not answer.done:
        state = f"{ordinal(answer.place)} in the queue" if answer.place else _progress(answer)
        stop = button("Stop", "stop", kind="slight", stream=stream_id, turn=turn.number)
        return f'<div class="foot">{stop}<span>{state}</span></div>'
    parts: Sequence[str] = (
        "stopped" if answer.cancelled else "",
        "cut at its longest" if answer.finish_reason == "length" else "",
        f"first word after {answer.ttft_seconds:.1f} s" if turn.asked_at is not None and answer.ttft_seconds else "",
    )
    return f'<p class="foot num">{" · ".join(filter(None, parts))}</p>'


def _progress(answer: Answer) -> str:
    return f"{answer.num_tokens} tokens" if answer.num_tokens else "looking back…"
