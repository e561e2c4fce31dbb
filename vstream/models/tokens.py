"""Tokens: a tokenizer that threads may share, which keeps people's text apart from special tokens.

It knows nothing of embeddings, templates or models.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
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
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token.content: int(number) for number, token in added if token.special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text: what looks like a special token in it stays text."""
        return self._encode([text], special=False)[0]

    def marked(self, text: str) -> list[int]:
        """Token ids of a template's own text, where special tokens are meant."""
        return self._encode([text], special=True)[0]

    def joined(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids, by part, of texts that stand one behind the other and are cut into tokens as one text.

        A token that lies across a border belongs to the part in which it ends.

        Args:
            parts: a text, and whether it is a template's, in which special tokens are meant.
        """
        ids: list[list[int]] = [[] for _ in parts]
        for special, group in groupby(self._pieces(parts), key=lambda piece: piece[2]):
            pieces = [(part, text) for part, text, _ in group]
            found = [(part, self._special[text]) for part, text in pieces] if special else self._run(pieces)
            for part, token in found:
                ids[part].append(token)
        return ids

    def _pieces(self, parts: Sequence[tuple[str, bool]]) -> Iterator[tuple[int, str, bool]]:
        """Part, text, and whether it is a special token, in order."""
        for part, (text, template) in enumerate(parts):
            for piece in filter(None, self._cut.split(text) if template and self._cut else [text]):
                yield part, piece, template and piece in self._special

    def _run(self, pieces: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int]]:
        """Part and token id of plain text that is cut as one."""
        with self._lock:
            found = self.tokenizer(
                "".join(text for _, text in pieces), add_special_tokens=False, split_special_tokens=True,
                return_offsets_mapping=True,
            )  # fmt: skip
        part_of = [part for part, text in pieces for _ in text]  # by character
        for token, (_, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield part_of[max(0, stop - 1)], token

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
