"""Tokens: a tokenizer that threads may share, which keeps people's text apart from special tokens.

It knows nothing of embeddings, templates or models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

MAX_MINUTES = 9999  # a week


class Tokens:
    """A transformers tokenizer behind a lock: a fast one that two threads use at once raises "Already borrowed".

    Attributes:
        tokenizer: the tokenizer itself; not to be called without the lock.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text: what looks like a special token in it stays text."""
        return self._encode([text], special=False)[0]

    def marked(self, text: str) -> list[int]:
        """Token ids of a template's own text, where special tokens are meant."""
        return self._encode([text], special=True)[0]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each plain text takes."""
        return [len(ids) for ids in self._encode(list(texts), special=False)]

    def special(self, token: str) -> int:
        """The id of a special token."""
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        with self._lock:
            decoded: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return decoded

    def _encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        with self._lock:
            encoded: list[list[int]] = self.tokenizer(
                texts, add_special_tokens=False, split_special_tokens=not special, return_attention_mask=False
            )["input_ids"]
        return encoded


def timestamp_tokens(tokens: Tokens, time_text: Callable[[float], str]) -> tuple[int, int]:
    """The fewest and the most tokens that a time up to 9999:59 takes, as `time_text` says it of seconds.

    Minutes and seconds are counted apart, which is exact where a tokenizer cuts at the colon, as they all do.
    """
    minutes = tokens.counts([time_text(60.0 * minute) for minute in range(MAX_MINUTES + 1)])
    seconds = tokens.counts([time_text(float(second)) for second in range(60)])
    return min(minutes) + min(seconds) - seconds[0], max(minutes) + max(seconds) - seconds[0]
