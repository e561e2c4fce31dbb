"""Building token spans for decoders with one rotary axis, where every token advances the position by one.

This module knows nothing of tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.types import TokenSpan


def plain_span(embeds: Tensor, kind: TokenKind) -> TokenSpan:
    """Tokens [N, E] of one kind that belong to no frame."""
    n = embeds.shape[0]
    return TokenSpan(
        embeds=embeds,
        kinds=torch.full((n,), int(kind), dtype=torch.uint8),
        seconds=torch.full((n,), float("nan"), dtype=torch.float64),
        positions=torch.arange(n)[None],
        advance=torch.tensor([n]),
    )


def at_seconds(span: TokenSpan, seconds: float) -> TokenSpan:
    """The same tokens, all belonging to the frame at `seconds`."""
    return replace(span, seconds=torch.full_like(span.seconds, seconds))


def join_spans(spans: Sequence[TokenSpan]) -> TokenSpan:
    """At least one span, one after the other."""
    n = sum(len(span) for span in spans)
    return TokenSpan(
        embeds=torch.cat([span.embeds for span in spans]),
        kinds=torch.cat([span.kinds for span in spans]),
        seconds=torch.cat([span.seconds for span in spans]),
        positions=torch.arange(n)[None],
        advance=torch.tensor([n]),
    )
