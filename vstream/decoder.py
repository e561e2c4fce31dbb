"""Decoding: one answer, token by token. Knows nothing of streams, memory, threads or other answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vstream.config import DecodeOptions
    from vstream.models.base import Adapter

FinishReason = Literal["stop", "length", "cancelled", "nothing-seen"]


class Decoding:
    """An answer being generated: `choose` a token, then run it through the decoder, alone (`advance`) or in a batch.

    Attributes:
        token_ids: what was generated so far, the end token left out.
        finish_reason: None while it goes on.
        cache: what the decoder's attention sees, extended by every token that is run.
        cursor: [A], where the token chosen last is placed.
    """

    def __init__(self, adapter: Adapter, cache: Any, logits: Tensor, cursor: Tensor, options: DecodeOptions) -> None:
        """Continues a prompt in `cache` whose last token gave `logits` [V]; the answer begins at `cursor` [A]."""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.cache, self.cursor = cache, cursor
        self._adapter, self._options, self._logits = adapter, options, logits
        self._generator = torch.Generator(logits.device).manual_seed(options.seed)
        self._shown = 0

    def step(self) -> str:
        """One token further, alone; returns the text that has become certain, often empty."""
        piece = self.choose()
        if self.finish_reason is None:
            self.advance()
        return piece

    def choose(self) -> str:
        """The next token; returns the text that has become certain. Unless that ends it, the token is to be run."""
        assert self.finish_reason is None, f"the answer is over ({self.finish_reason})"
        token = sample(self._logits, self._options, self._generator)
        if token in self._adapter.eos_ids:
            self.finish_reason = "stop"
            return self._show(self._text())
        self.token_ids.append(token)
        text, stopped = cut_at_stop(self._text(), self._options.stop)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._options.max_tokens:
            self.finish_reason = "length"
        else:
            text = text[: len(text) - held_back(text, self._options.stop)]
        return self._show(text)

    def advance(self) -> None:
        """Runs the chosen token through the decoder."""
        embed = self._adapter.embed(torch.tensor(self.token_ids[-1:], device=self._adapter.device))
        hidden = self._adapter.forward(embed, self.cursor[:, None].to(self._adapter.device), self.cache)
        self.accept(self._adapter.head(hidden[-1]))

    def accept(self, logits: Tensor) -> None:
        """Takes the logits [V] that the chosen token gave."""
        self._logits, self.cursor = logits, self.cursor + 1

    def _text(self) -> str:
        return self._adapter.text(self.token_ids).lstrip()

    def _show(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece


def sample(logits: Tensor, options: DecodeOptions, generator: torch.Generator) -> int:
    """A token id from logits [V]: the likeliest at temperature 0, else by nucleus sampling."""
    if options.temperature == 0:
        return int(logits.argmax())
    below = (logits - logits.max()).double()  # so that no temperature overflows
    probabilities = torch.softmax(below / options.temperature, dim=-1)
    ranked, order = probabilities.sort(descending=True, stable=True)
    before = ranked.cumsum(dim=0) - ranked
    ranked = torch.where(before < options.top_p, ranked, 0.0)  # the likeliest is always kept
    return int(order[torch.multinomial(ranked, 1, generator=generator)])


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many last characters may still change: an unfinished character, or the beginning of a stop string."""
    certain = text.rstrip("\ufffd")
    begun = [n for stop in stops for n in range(1, len(stop)) if certain.endswith(stop[:n])]
    return len(text) - len(certain) + max(begun, default=0)
