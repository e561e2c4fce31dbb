"""Where `tiny` starts: weights near a way to do it, which training then finds sooner.

In the spirit of mimetic weights (Trockman and Kolter, 2023). Words that must be told apart stand at right angles. Layer
0: what is seen looks up the time of its frame, a word the word before it. Layers 1 to 3: words look for what is seen
with the same kind, colour or second, and take over what else it is. Later layers: the answer looks at the question's
words. It knows nothing of streams or training.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_model import ANSWER
from torch import Tensor, nn

from vstream.app.lab.exam import NOTHING
from vstream.app.lab.world import COLOURS, DIGITS, LETTERS, SHAPES, TEXTURES

Groups = dict[str, Tensor]
NAMED = {
    "shapes": SHAPES, "digits": DIGITS, "letters": LETTERS, "colours": COLOURS, "textures": TEXTURES,
    "places": ("top", "bottom", "left", "right"), "nothing": (NOTHING,),
}  # fmt: skip
TIMES = {"hundreds": (0, 15), "tens": (15, 25), "ones": (25, 35), "seconds": (35, 51), "types": (51, 53)}
"""Rows of `Words.digits`: minutes by their hundreds, tens and ones, then seconds; minute or second."""
LENGTH = 0.9  # of an embedding
LOOK_UP = (1, 2, 3)


def right_angles(hidden: int) -> Tensor:
    """Vectors of length `LENGTH` at right angles, [E, E], always the same."""
    drawn = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float() * LENGTH


def named_ids(tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of the words that pictures are made of, by group."""
    return {
        name: [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in group]
        for name, group in NAMED.items()
    }


@torch.no_grad()
def begin(words: Any, language: Any, tokenizer: Any) -> None:
    """Sets embeddings and attention; `words` is a `Words`, `language` the stock language model."""
    text = language.config
    groups = begin_words(words, tokenizer)
    near, anywhere, back, one_back = rotary_pointers(text)
    heads, size = text.num_attention_heads, text.head_dim
    seen, answer = unit(words.seen), unit(words.table[tokenizer.convert_tokens_to_ids(ANSWER)])
    minute, second = unit(words.digits[-2]), unit(words.digits[-1])
    for number, layer in enumerate(language.layers):
        attention = layer.self_attn
        mimetic(attention, 0.1)
        query, key = attention.q_proj, attention.k_proj
        if number == 0:
            query.weight.mul_(0.1)
            key.weight.mul_(0.1)
            query.weight.add_(near.repeat(heads)[:, None] * seen)
            key.weight.add_(torch.cat([torch.outer(near, of) for of in (second, second, minute, minute)]))
            query.bias.copy_(2.0 * one_back.repeat(heads))
            key.bias.copy_(2.0 * (1.5 * anywhere + back).repeat(heads))
            attention.q_norm.weight.fill_(2.0)
        elif number in LOOK_UP:
            look_up(attention, groups, number, size)
            query.bias.copy_(10.0 * anywhere.repeat(heads))
            query.weight.sub_(anywhere.repeat(heads)[:, None] * (2.2 * seen + answer))
            key.weight.add_(anywhere.repeat(heads)[:, None] * seen)
            attention.q_norm.weight.fill_(6.0)
        else:
            query.weight.mul_(0.2)
            key.weight.mul_(0.2)
            query.bias.copy_(6.0 * near.repeat(heads))
            key.bias.copy_(6.0 * near.repeat(heads))
            attention.q_norm.weight.fill_(2.0)


def begin_words(words: Any, tokenizer: Any) -> Groups:
    """Sets the embeddings; those at right angles, of length 1, by group [n, E]."""
    basis = right_angles(words.table.shape[1])
    groups, at = {}, 0
    for name, ids in named_ids(tokenizer).items():
        groups[name] = basis[at : at + len(ids)]
        at += len(ids)
    for name, (first, last) in TIMES.items():
        groups[name] = words.digits[first:last] = basis[at : at + last - first]
        at += last - first
    free = basis[at + 1 :]  # `at` itself is `seen`
    words.table.copy_(0.16 * torch.randn(len(words.table), len(free)) @ free / LENGTH)
    return {name: group / LENGTH for name, group in groups.items()}


def rotary_pointers(text: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Directions [D] of a query or key that mean: near, anywhere, here, and here for the token that follows."""
    size = text.head_dim
    theta = text.rope_parameters["rope_theta"]
    turn = torch.tensor([theta ** (-pair / (size // 2)) for pair in range(3)])
    near, anywhere, back, one_back = torch.zeros(4, size)
    near[1:3], anywhere[size // 2 - 1], back[:3] = 2**-0.5, 1.0, 3**-0.5
    one_back[:3], one_back[size // 2 : size // 2 + 3] = back[:3] * turn.cos(), -back[:3] * turn.sin()
    return near, anywhere, back, one_back


def look_up(attention: Any, groups: Groups, number: int, size: int) -> None:
    """Heads for shapes, digits and letters, each with colours too, and for seconds; what they take over."""
    keys = [("shapes", "colours"), ("digits", "colours"), ("letters", "colours"), ("seconds", "ones")]
    look, kinds = ("colours", "textures", "places", "seconds"), ("shapes", "digits", "letters")
    rest = ("ones", "tens", "hundreds")
    values = [look, look, kinds, kinds] if number == 1 else [rest, look, look, look]
    half = size // 2
    slow = [place for pair in range(half - 2, -1, -1) for place in (pair, pair + half)]  # the last pair: "anywhere"
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.03)
    for head, (by, take) in enumerate(zip(keys, values, strict=True)):
        first = head * size
        for place, vector in zip(slow, torch.cat([groups[name] for name in by]), strict=False):
            attention.q_proj.weight[first + place] += vector
            attention.k_proj.weight[first + place] += vector
        taken = torch.cat([groups[name] for name in take])[:size]
        attention.v_proj.weight[first : first + len(taken)] = taken
        attention.o_proj.weight[:, first : first + len(taken)] = 0.1 * taken.T


def mimetic(attention: Any, scale: float) -> None:
    """Queries like keys, outputs like values: every token looks for its like, and copies it."""
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.bias.zero_()
    nn.init.orthogonal_(attention.k_proj.weight)
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.q_proj.weight.copy_(attention.k_proj.weight)
    attention.o_proj.weight.copy_(scale * attention.v_proj.weight.T)


def unit(vector: Tensor) -> Tensor:
    """Of length 1."""
    return vector / vector.norm()
