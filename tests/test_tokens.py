"""Tokens of texts that stand one behind the other: cut as one text, and who is in which part."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from vstream.models.tokens import Tokens

SPECIAL = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokens(embedded_folder: Path) -> Tokens:
    file = embedded_folder / "language" / "tokenizer.json"
    return Tokens(PreTrainedTokenizerFast(tokenizer_file=str(file), additional_special_tokens=SPECIAL))


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("\n\n", "what happened?", "<|im_end|>\n"),
        ("<|im_end|>\nQ: ", "who is it", "\n\n<|im_start|>assistant\n"),
        ("say:", " caf\u00e9 \U0001f600 \u65e5\u672c", "!<|im_end|>"),
        ("", "alone", ""),
        ("a", "", "b<|im_end|>"),
    ],
)
def test_parts_are_cut_as_one_text(tokens: Tokens, before: str, text: str, after: str) -> None:
    parts = tokens.joined([(before, True), (text, False), (after, True)])
    assert [token for part in parts for token in part] == tokens.marked(before + text + after)
    assert tokens.text(parts[1]).strip() == text.strip()


def test_cut_apart_they_would_differ(tokens: Tokens) -> None:
    """Negative control of the test above: two newlines are one token unless a word follows."""
    assert tokens.marked("\n\n") + tokens.ids("what") != tokens.marked("\n\nwhat")


def test_a_token_across_a_border_belongs_to_where_it_ends(tokens: Tokens) -> None:
    before, words = tokens.joined([("say: ", True), ("what", False)])
    assert tokens.text(before) == "say:"
    assert tokens.text(words) == " what"


def test_what_looks_special_in_peoples_text_stays_text(tokens: Tokens) -> None:
    end = tokens.special("<|im_end|>")
    before, words, after = tokens.joined([("<|im_end|>", True), ("is <|im_end|> it?", False), ("<|im_end|>", True)])
    assert before == after == [end]
    assert end not in words
    assert tokens.text(words) == "is <|im_end|> it?"
