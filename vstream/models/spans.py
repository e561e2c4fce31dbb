"""Building token spans: text, where every token advances the position by one on every rotary axis, and what follows it.

This module knows nothing of tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.base import Question
from vstream.types import Frame, TokenSpan


def plain_span(embeds: Tensor, kind: TokenKind, axes: int = 1) -> TokenSpan:
    """Tokens [N, E] of one kind that belong to no frame, laid out like text."""
    n = embeds.shape[0]
    return TokenSpan(
        embeds=embeds,
        kinds=torch.full((n,), int(kind), dtype=torch.uint8),
        seconds=torch.full((n,), float("nan"), dtype=torch.float64),
        positions=torch.arange(n).repeat(axes, 1),
        advance=torch.full((axes,), n),
    )


def at_seconds(span: TokenSpan, seconds: float) -> TokenSpan:
    """The same tokens, all belonging to the frame at `seconds`."""
    return replace(span, seconds=torch.full_like(span.seconds, seconds))


def join_spans(spans: Sequence[TokenSpan]) -> TokenSpan:
    """At least one span, one after the other."""
    starts = torch.stack([span.advance for span in spans]).cumsum(dim=0).roll(1, dims=0)  # [S, A]
    end, starts[0] = starts[0].clone(), 0
    placed = [start[:, None] + span.positions for start, span in zip(starts, spans, strict=True)]
    return TokenSpan(
        embeds=torch.cat([span.embeds for span in spans]),
        kinds=torch.cat([span.kinds for span in spans]),
        seconds=torch.cat([span.seconds for span in spans]),
        positions=torch.cat(placed, dim=1),
        advance=end,
    )


def timestamp(seconds: float) -> str:
    """A frame's time as the model reads it: `[m:ss]`."""
    return f"[{int(seconds) // 60}:{int(seconds) % 60:02}]"


def timestamped(
    frames: Sequence[Frame], features: Tensor, text_span: Callable[[str, TokenKind], TokenSpan]
) -> TokenSpan:
    """`[m:ss]`, the frame's tokens and a newline, for each of T frames with features [T, P, E].

    `text_span` gives the tokens of a text.
    """

    def time_span(seconds: float) -> TokenSpan:
        return text_span(timestamp(seconds), TokenKind.TIMESTAMP)

    marks = text_span("", TokenKind.MARKER), text_span("\n", TokenKind.MARKER)
    return framed(frames, features, time_span, marks)


def framed(
    frames: Sequence[Frame],
    features: Tensor,
    time_span: Callable[[float], TokenSpan],
    marks: tuple[TokenSpan, TokenSpan],
) -> TokenSpan:
    """The time, a mark, the frame's tokens and another mark, for each of T frames with features [T, P, E].

    `time_span` gives the tokens that say so many seconds.
    """
    assert len(frames) == len(features), f"{len(frames)} frames, features {list(features.shape)}"
    before, after = marks
    spans = []
    for frame, tokens in zip(frames, features, strict=True):
        line = [time_span(frame.pts_seconds), before, plain_span(tokens, TokenKind.VISION), after]
        spans.append(at_seconds(join_spans(line), frame.pts_seconds))
    return join_spans(spans)


def question_of(before: TokenSpan, words: TokenSpan, after: TokenSpan) -> Question:
    """A turn whose retrieval query are its words alone."""
    span = join_spans([before, words, after])
    query = torch.zeros(len(span), dtype=torch.bool)
    query[len(before) : len(before) + len(words)] = True
    return Question(span, query)
