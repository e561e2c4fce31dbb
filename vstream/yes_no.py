"""Yes or no: how a standing question is put to a model, and how likely each answer is before anything is said.

The answer of VideoLLM-style models to a question of yes or no is in its first token. A tokenizer has several for each
word ("yes", " yes", "Yes", ...), whose probabilities are added. This module knows nothing of streams, memory or events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vstream.models.base import Adapter

CONDITION = 'Is this true of what is shown right now: "{text}"? Answer yes or no.'
FORMS = ("{}", " {}", "\n{}")


def asked(text: str) -> str:
    """The question of yes or no that a standing question is: its own text if that ends with a question mark."""
    text = text.strip()
    return text if text.endswith("?") else CONDITION.format(text=text.rstrip("."))


class YesNo:
    """One model's tokens for yes and for no."""

    def __init__(self, adapter: Adapter) -> None:
        """Looks them up.

        Raises:
            ValueError: if the model's tokenizer cannot tell them apart.
        """
        self._yes, self._no = _ids(adapter, "yes"), _ids(adapter, "no")
        if not self._yes or not self._no or set(self._yes) & set(self._no):
            raise ValueError(f"{adapter.name!r} has no tokens for yes and no; ask it in words instead")

    def log_odds(self, logits: Tensor) -> float:
        """Of yes against no, by the logits [V] of an answer's first token: above 0 where yes is likelier."""
        yes, no = (torch.logsumexp(logits[ids].double(), dim=-1) for ids in (self._yes, self._no))
        return float(yes - no)


def _ids(adapter: Adapter, word: str) -> list[int]:
    """Tokens that are the word in any form; where it is never a single one, those that it begins with."""
    written = [form.format(cased) for cased in (word, word.capitalize(), word.upper()) for form in FORMS]
    found = [adapter.token_ids(text) for text in written]
    whole = {ids[0] for ids in found if adapter.text(ids[:1]).strip().lower() == word}
    begun = {ids[0] for ids in found if adapter.text(ids[:1]).strip()}
    return sorted(whole or begun)
