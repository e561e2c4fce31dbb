"""Where `tiny` starts: weights near a way to do it, which training then finds sooner.

In the spirit of mimetic weights (Trockman and Kolter, 2023). Words that must be told apart stand at right angles. Layer
0: what is seen looks up the second of its frame, a word the word before it. Layer 1: what is seen looks up the minute.
Layer 2: it notes what the frame before showed. Layers 3 to 6: words look for what is seen with the same kind, colour or
second, and take over what else it is; layer 5 also looks for what came after such a thing, layer 6 takes minutes. Later
layers: the answer looks at the question's words. It knows nothing of streams or training.
"""

from __future__ import annotations

from collections.abc import Sequence
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
FRAME_TOKENS = 6  # from a quarter to the same quarter of the frame before
KEYS = (("shapes", "colours"), ("digits", "colours"), ("letters", "colours"), ("seconds", "ones"))
LOOK, ONLY_KINDS = ("colours", "textures", "places", "seconds"), ("shapes", "digits", "letters")
MINUTE = ("ones", "tens", "hundreds")
LOOK_UP = {
    3: (LOOK, LOOK, ONLY_KINDS, ONLY_KINDS),
    4: (MINUTE, LOOK, LOOK, LOOK),
    5: (MINUTE, LOOK, LOOK, LOOK),
    6: (MINUTE, MINUTE, MINUTE, ("colours", "shapes", "digits")),
}
"""What each head of these layers takes over."""
BY_PREVIOUS = 5


def right_angles(hidden: int, seed: int = 0) -> Tensor:
    """Vectors of length `LENGTH` at right angles, [E, E], always the same."""
    drawn = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
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
    groups, text = begin_words(words, tokenizer), language.config
    marks = {name: unit(vector) for name, vector in (("minute", words.digits[-2]), ("second", words.digits[-1]))}
    marks |= {"seen": unit(words.seen), "answer": unit(words.table[tokenizer.convert_tokens_to_ids(ANSWER)])}
    elsewhere = right_angles(text.hidden_size, seed=1) / LENGTH
    for number, layer in enumerate(language.layers):
        mimetic(layer.self_attn, 0.1)
        if number == 0:
            tell_second(layer.self_attn, text, marks)
        elif number == 1:
            tell_minute(layer.self_attn, text, groups, marks)
        elif number == 2:
            note_previous(layer.self_attn, text, groups, marks, elsewhere)
        elif number in LOOK_UP:
            look_up(layer.self_attn, text, groups, marks, values=LOOK_UP[number])
            if number == BY_PREVIOUS:
                by_previous(layer.self_attn, text, groups, elsewhere)
        else:
            look_near(layer.self_attn, text)


def tell_second(attention: Any, text: Any, marks: Groups) -> None:
    """What is seen finds the second before it; any other token the one before it."""
    heads, near, anywhere = text.num_attention_heads, pointer(text, 0, (1, 3)), anywhere_of(text)
    attention.q_proj.weight.mul_(0.1).add_(near.repeat(heads)[:, None] * marks["seen"])
    attention.k_proj.weight.mul_(0.1).add_(near.repeat(heads)[:, None] * marks["second"])
    attention.q_proj.bias.copy_(2.0 * pointer(text, 1, (0, 3)).repeat(heads))
    attention.k_proj.bias.copy_(2.0 * (1.5 * anywhere + pointer(text, 0, (0, 3))).repeat(heads))
    attention.q_norm.weight.fill_(2.0)


def tell_minute(attention: Any, text: Any, groups: Groups, marks: Groups) -> None:
    """What is seen finds the minute two to five tokens before it, and takes its digits over; others look elsewhere.

    Without it training finds no reason to carry minutes along: a question's answer lies in the window too often.
    """
    heads, size, anywhere = text.num_attention_heads, text.head_dim, anywhere_of(text)
    wanted, offered = pointer(text, 3.5, (1, 4)).repeat(heads), pointer(text, 0, (1, 4)).repeat(heads)
    attention.q_proj.weight.mul_(0.03).add_(2.0 * wanted[:, None] * marks["seen"])
    attention.k_proj.weight.mul_(0.03).add_(2.0 * offered[:, None] * (marks["minute"] - 0.5 * marks["second"]))
    attention.q_proj.bias.copy_(anywhere.repeat(heads))
    attention.k_proj.bias.copy_(5.0 * anywhere.repeat(heads))
    attention.q_norm.weight.fill_(4.0)
    for projection in (attention.v_proj, attention.o_proj):
        projection.weight.copy_(0.01 * torch.randn(projection.weight.shape))
    for head, names in enumerate((("ones", "tens"), ("hundreds",)) * 2):
        taken = torch.cat([groups[name] for name in names])
        attention.v_proj.weight[head * size : head * size + len(taken)] += taken
        attention.o_proj.weight[:, head * size : head * size + len(taken)] += 0.2 * taken.T


def note_previous(attention: Any, text: Any, groups: Groups, marks: Groups, elsewhere: Tensor) -> None:
    """Two heads copy what the frame before showed into directions of its own (`elsewhere`); two look near."""
    look_near(attention, text)
    size, here, anywhere = text.head_dim, pointer(text, 0, (1, 4)), anywhere_of(text)
    kinds = torch.cat([groups[name] for name in ("shapes", "digits", "letters")])
    a_thing = 0.3 * kinds.sum(0) - 0.5 * (groups["nothing"][0] + marks["minute"] + marks["second"])
    for head, taken in enumerate((kinds, torch.cat([groups["colours"], groups["places"]]))):
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.bias[rows] = 4.0 * pointer(text, FRAME_TOKENS, (1, 4)) + 3.0 * anywhere
        attention.k_proj.bias[rows] = 4.0 * here
        attention.q_proj.weight[rows] *= 0.2
        attention.k_proj.weight[rows] = 0.2 * attention.k_proj.weight[rows] + torch.outer(anywhere, a_thing)
        attention.v_proj.weight[head * size : head * size + len(taken)] = taken
        attention.o_proj.weight[:, head * size : head * size + len(taken)] = 0.3 * elsewhere @ taken.T


def look_up(attention: Any, text: Any, groups: Groups, marks: Groups, *, values: Sequence[Sequence[str]]) -> None:
    """Heads for shapes, digits and letters, each with colours too, and for seconds; `values` are taken over."""
    size, heads, anywhere = text.head_dim, text.num_attention_heads, anywhere_of(text)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.03)
    for head, (by, take) in enumerate(zip(KEYS, values, strict=True)):
        first = head * size
        for place, vector in zip(slow_places(size), torch.cat([groups[name] for name in by]), strict=False):
            attention.q_proj.weight[first + place] += vector
            attention.k_proj.weight[first + place] += vector
        taken = torch.cat([groups[name] for name in take])[:size]
        attention.v_proj.weight[first : first + len(taken)] = taken
        attention.o_proj.weight[:, first : first + len(taken)] = 0.1 * taken.T
    attention.q_proj.bias.copy_(10.0 * anywhere.repeat(heads))
    attention.q_proj.weight.sub_(anywhere.repeat(heads)[:, None] * (2.2 * marks["seen"] + marks["answer"]))
    attention.k_proj.weight.add_(anywhere.repeat(heads)[:, None] * marks["seen"])
    attention.q_norm.weight.fill_(6.0)


def by_previous(attention: Any, text: Any, groups: Groups, elsewhere: Tensor) -> None:
    """The heads for things look for those before which such a thing was seen, and take over what they are."""
    size, names = text.head_dim, torch.cat([groups[name] for name in ("shapes", "digits", "letters", "colours")])
    for head, by in enumerate(KEYS[:3]):
        first = head * size
        for place, vector in zip(slow_places(size), torch.cat([groups[name] for name in by]), strict=False):
            attention.k_proj.weight[first + place] += elsewhere @ vector - 2.0 * vector
        mixed = torch.linalg.qr(torch.randn(len(names), size))[0].T @ names
        attention.v_proj.weight[first : first + size] = mixed
        attention.o_proj.weight[:, first : first + size] = 0.2 * mixed.T


def look_near(attention: Any, text: Any) -> None:
    """Every token looks at the few before it."""
    near = pointer(text, 0, (1, 3)).repeat(text.num_attention_heads)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.2)
        projection.bias.copy_(6.0 * near)
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


def pointer(text: Any, back: float, pairs: tuple[int, int]) -> Tensor:
    """A query [D] that keys `pointer(text, 0, pairs)` answer best from so many tokens back; over these rotary pairs."""
    half, theta, made = text.head_dim // 2, text.rope_parameters["rope_theta"], torch.zeros(text.head_dim)
    for pair in range(*pairs):
        angle = torch.tensor(back * theta ** (-pair / half))
        made[pair], made[half + pair] = angle.cos(), -angle.sin()
    return made / (pairs[1] - pairs[0]) ** 0.5


def anywhere_of(text: Any) -> Tensor:
    """The direction [D] that hardly turns with position."""
    made = torch.zeros(text.head_dim)
    made[text.head_dim // 2 - 1] = 1.0
    return made


def slow_places(size: int) -> list[int]:
    """Places of a query or key, those that turn least first; the very last pair means "anywhere"."""
    half = size // 2
    return [place for pair in range(half - 2, -1, -1) for place in (pair, pair + half)]


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
