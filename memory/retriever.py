"""Retriever: which blocks a question should see.

A policy (`policies.py`) writes only `score`; the base class owns the budget, the time order and what lies beside a
block. This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vstream.memory.block import Block, BlockShape, Extra
from vstream.memory.columns import Rows

PIECE = 256
"""Blocks looked at together: few enough that float32 copies of their keys stay in a CPU's cache (5 times faster)."""


@dataclass(frozen=True, eq=False)
class Query:
    """What a question's own words (not the chat template) look like inside the model, positions taken out.

    Attributes:
        mean: [L, K, D] float32, mean query, summed over the query heads that share a key/value head.
        word_keys: [L, K, W, D] float32, each word's own key, less the mean key of the system prompt.
        moments: stream times in seconds that the question names.
        embeds: [W, E] float32, the words before the decoder; None where nobody asks for them.
    """

    mean: Tensor
    word_keys: Tensor
    moments: tuple[float, ...] = ()
    embeds: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """B blocks to choose from together, in time order.

    Attributes:
        rows: [B], their times, tokens and weights.
        keys: [L, K, B, D] float16, mean un-rotated keys of the layers that choose.
        mean: [L, K, 1, D] float32, mean key of all that the question can see.
        extra: [A, H, B, D] float16, what the policy keeps beside them (`Retriever.describe`); None for nothing.
        extra_mean: [A, H, 1, D] float32, of all that the question can see.
        budget_tokens: at most so many of their tokens are chosen.
    """

    rows: Rows
    keys: Tensor
    mean: Tensor
    extra: Tensor | None = None
    extra_mean: Tensor | None = None
    budget_tokens: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def of_layers(self, layers: slice) -> Candidates:
        """The same blocks as some of the layers see them."""
        extra, extra_mean = (None if one is None else one[layers] for one in (self.extra, self.extra_mean))
        return replace(self, keys=self.keys[layers], mean=self.mean[layers], extra=extra, extra_mean=extra_mean)

    def pieces(self) -> Iterator[Candidates]:
        """The same blocks, `PIECE` at a time."""
        for start in range(0, len(self), PIECE):
            part = slice(start, start + PIECE)
            extra = None if self.extra is None else self.extra[:, :, part]
            yield replace(self, rows=self.rows[part], keys=self.keys[:, :, part], extra=extra)

    def at(self, places: npt.NDArray[np.int64]) -> Candidates:
        """Only the blocks at some places, in that order."""
        index = torch.from_numpy(places).to(self.keys.device)
        extra = None if self.extra is None else self.extra.index_select(2, index)
        return replace(self, rows=self.rows[places], keys=self.keys.index_select(2, index), extra=extra)


class Selection(NamedTuple):
    """What was chosen, and what every candidate scored.

    Attributes:
        ids: the chosen blocks in time order.
        scores: [B] float32, of all candidates.
    """

    ids: tuple[int, ...]
    scores: Tensor


class Retriever(ABC):
    """Chooses the best-scoring blocks within a budget of tokens, after those of moments that the question names.

    It holds no state: the same question and candidates give the same choice. Ties go to the earlier block. A policy
    that needs more of a block than its mean key says how large that is (`extra_size`) and makes it (`describe`): it is
    then kept, counted and condensed with the block.

    Attributes:
        neighbours: so many blocks before and after a chosen one come right behind it.
    """

    name: ClassVar[str]
    per_layer: ClassVar[bool] = True
    """Whether every layer may have an opinion of its own."""
    one_by_one: ClassVar[bool] = True
    """Whether a block's score does not depend on the other candidates: then they are scored piece by piece."""

    def __init__(self, neighbours: int = 0) -> None:
        self.neighbours = neighbours

    def num_layers_read(self, num_layers: int) -> int:
        """How many of a model's layers `score` looks at when all choose together, from the first on."""
        return num_layers

    def extra_size(self, num_layers: int, shape: BlockShape, embed_dim: int) -> tuple[int, int, int] | None:
        """(A, H, D) of what it keeps of each block beside the mean key, None for nothing.

        Args:
            num_layers: that choose.
            shape: of the blocks.
            embed_dim: E, of tokens before the decoder.
        """
        return None

    def describe(
        self, kv: Tensor, kinds: Tensor, *, embeds: Tensor | None = None, parents: Sequence[Block] = ()
    ) -> Tensor | None:
        """What it keeps of a block, [A, H, D] float16, None where that cannot be told; see `block.Describe`."""
        return None

    def extra(self, num_layers: int, shape: BlockShape, embed_dim: int) -> Extra | None:
        """What it keeps of each block, as `BlockShape.extra` takes it; arguments as in `extra_size`."""
        size = self.extra_size(num_layers, shape, embed_dim)
        return Extra(self.name, size, self.describe) if size else None

    @abstractmethod
    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """Scores [B] of blocks, higher is better.

        Both are of the layers that choose together (the first `num_layers_read`), or of one that chooses for itself.
        """

    def select(self, query: Query, blocks: Candidates) -> Selection:
        """The best candidates whose tokens fit the budget together."""
        if not len(blocks):
            return Selection((), torch.zeros(0))
        pieces = blocks.pieces() if self.one_by_one else [blocks]
        rows, scores = blocks.rows, torch.cat([self.score(query, piece) for piece in pieces]).float().cpu()
        order = _raised(scores, self.neighbours).argsort(descending=True, stable=True).numpy()
        ranked = order[np.argsort(~_named(rows, query.moments)[order], kind="stable")].tolist()
        chosen = sorted(_fill(ranked, rows["num_tokens"].tolist(), blocks.budget_tokens))
        return Selection(tuple(rows["id"][chosen].tolist()), scores)


def mean_key(representatives: Tensor, weights: Tensor) -> Tensor:
    """Mean over blocks, by the frames they stand for: merging blocks does not move it.

    Args:
        representatives: [L, K, B, D].
        weights: [B].

    Returns:
        [L, K, 1, D] float32; zero for no blocks.
    """
    share = (weights.float() / weights.float().sum().clamp_min(1e-9)).to(representatives.device)
    pieces = zip(torch.split(representatives, PIECE, dim=2), torch.split(share, PIECE), strict=True)
    means = [torch.einsum("lkbd,b->lkd", keys.float(), part) for keys, part in pieces]
    return torch.stack(means).sum(dim=0)[:, :, None]


def _raised(scores: Tensor, neighbours: int) -> Tensor:
    """Scores [B], none further below one of so many before and after than a float32's last bit for each step."""
    for _ in range(neighbours):
        around = torch.full((len(scores) + 2,), -torch.inf)
        around[1:-1] = scores
        best = torch.maximum(around[:-2], around[2:])
        scores = torch.maximum(scores, torch.nextafter(best, around[:1]))
    return scores


def _named(candidates: Rows, moments: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Which of B blocks hold one of the moments, [B]; a block's last frame stands for up to the next whole second."""
    named = np.zeros(len(candidates), dtype=bool)
    for moment in moments:
        named |= (candidates["start_seconds"] < moment + 1) & (candidates["end_seconds"] > moment - 1)
    return named


def _fill(ranked: Sequence[int], sizes: Sequence[int], budget: int) -> list[int]:
    """Best first, everything that still fits."""
    chosen, smallest = [], min(sizes)
    for i in ranked:
        if budget < smallest:
            break
        if sizes[i] <= budget:
            budget -= sizes[i]
            chosen.append(i)
    return chosen
