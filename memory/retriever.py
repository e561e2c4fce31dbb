"""Retriever: which blocks a question should see.

A policy (`policies.py`) writes only `score`; the base class owns the budget, the time order and what lies beside a
block. This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vstream.kernels import top_within
from vstream.memory.block import Block, BlockShape, Extra
from vstream.memory.columns import Rows
from vstream.memory.representatives import Kept


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
        kept_keys: [L, K, B, D] float16, mean un-rotated keys of the layers that choose.
        mean: [L, K, 1, D] float32, mean key of all that the question can see; None for a policy that does not read it.
        kept_extra: [A, H, B, D] float16, what the policy keeps beside them (`Retriever.describe`); None for nothing.
        extra_mean: [A, H, 1, D] float32, of all that the question can see, for a policy that reads it.
        budget_tokens: at most so many of their tokens are chosen.
    """

    rows: Rows
    kept_keys: Kept
    mean: Tensor | None
    kept_extra: Kept | None = None
    extra_mean: Tensor | None = None
    budget_tokens: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> Tensor:
        """[L, K, B, D] float16."""
        return self.kept_keys.read()

    @cached_property
    def extra(self) -> Tensor:
        """[A, H, B, D] float16."""
        assert self.kept_extra is not None, "nothing is kept beside the mean key"
        return self.kept_extra.read()

    @property
    def common(self) -> Tensor:
        """[L, K, 1, D] float32, the mean key."""
        assert self.mean is not None, "the mean key was not worked out"
        return self.mean

    def of_layers(self, layers: slice) -> Candidates:
        """The same blocks as some of the layers see them."""
        extra = None if self.kept_extra is None else self.kept_extra.of_layers(layers)
        mean, extra_mean = (None if one is None else one[layers] for one in (self.mean, self.extra_mean))
        keys = self.kept_keys.of_layers(layers)
        return replace(self, kept_keys=keys, mean=mean, kept_extra=extra, extra_mean=extra_mean)

    def pieces(self) -> Iterator[Candidates]:
        """The same blocks, some at a time."""
        return map(self.at, (self.kept_keys if self.kept_extra is None else self.kept_extra).parts())

    def at(self, places: slice | npt.NDArray[np.int64]) -> Candidates:
        """Only the blocks at some places, in that order."""
        index = places if isinstance(places, slice) else torch.from_numpy(places).to(self.kept_keys.table.device)
        extra = None if self.kept_extra is None else self.kept_extra.at(index)
        return replace(self, rows=self.rows[places], kept_keys=self.kept_keys.at(index), kept_extra=extra)


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
    reads_mean: ClassVar[bool] = False
    """Whether `score` reads the mean key of all that can be seen."""
    reads_extra_mean: ClassVar[bool] = False
    """Whether `score` reads the mean of what the policy keeps."""
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
        sizes, named = (
            torch.from_numpy(rows["num_tokens"].astype(np.int64)),
            torch.from_numpy(_named(rows, query.moments)),
        )
        chosen = top_within(_raised(scores, self.neighbours), sizes, blocks.budget_tokens, named)
        return Selection(tuple(rows["id"][chosen.numpy()].tolist()), scores)


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
