"""Retriever: which blocks a question should see.

A policy writes only `score`; the base class owns the budget and the time order.
This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vstream.kernels import score_blocks
from vstream.memory.columns import Rows


@dataclass(frozen=True, eq=False)
class Query:
    """What a question's own words (not the chat template) look like inside the model, positions taken out.

    Attributes:
        mean: [L, K, D] float32, mean query, summed over the query heads that share a key/value head.
        word_keys: [L, K, W, D] float32, each word's own key, less the mean key of the system prompt.
        moments: stream times in seconds that the question names.
    """

    mean: Tensor
    word_keys: Tensor
    moments: tuple[float, ...] = ()


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

    It holds no state: the same question, candidates and representatives give the same choice. Ties go to the earlier
    block.
    """

    name: ClassVar[str]

    def num_layers_read(self, num_layers: int) -> int:
        """How many of a model's layers `score` looks at when all choose together, from the first on."""
        return num_layers

    @abstractmethod
    def score(self, query: Query, representatives: Tensor, mean: Tensor) -> Tensor:
        """Scores of blocks, higher is better.

        Args:
            query: of the layers that choose together (the first `num_layers_read`), or one that chooses for itself.
            representatives: [L, K, B, D] float16 mean un-rotated keys.
            mean: [L, K, 1, D] mean key of all that the question can see.

        Returns:
            [B]; with one layer given, that layer's own opinion.
        """

    def select(
        self, query: Query, candidates: Rows, representatives: Tensor, mean: Tensor, budget_tokens: int
    ) -> Selection:
        """The best candidates whose tokens fit the budget together.

        Args:
            query: see `score`.
            candidates: B blocks in time order.
            representatives: [L, K, B, D].
            mean: [L, K, 1, D].
            budget_tokens: at most so many tokens are chosen.
        """
        if not len(candidates):
            return Selection((), torch.zeros(0))
        scores = self.score(query, representatives, mean).float().cpu()
        order = scores.argsort(descending=True, stable=True).numpy()
        ranked = order[np.argsort(~_named(candidates, query.moments)[order], kind="stable")].tolist()
        chosen = sorted(_fill(ranked, candidates["num_tokens"].tolist(), budget_tokens))
        return Selection(tuple(candidates["id"][chosen].tolist()), scores)


def mean_key(representatives: Tensor, weights: Tensor) -> Tensor:
    """Mean over blocks, by the frames they stand for: merging blocks does not move it.

    Args:
        representatives: [L, K, B, D].
        weights: [B].

    Returns:
        [L, K, 1, D] float32; zero for no blocks.
    """
    share = weights.float() / weights.float().sum().clamp_min(1e-9)
    return torch.einsum("lkbd,b->lkd", representatives.float(), share.to(representatives.device))[:, :, None]


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


class ReKV(Retriever):
    """Raw dot product of mean query and mean key, heads concatenated (ReKV, arXiv 2503.00540)."""

    name = "rekv"

    def score(self, query: Query, representatives: Tensor, mean: Tensor) -> Tensor:
        """See `Retriever.score`."""
        return score_blocks(query.mean, representatives).sum(dim=(0, 1))


class Centred(Retriever):
    """Cosine per key/value head after removing the mean key.

    Raw scores drift upwards with time, so late blocks win whatever the question is (measured by MemStream); what all
    blocks share says nothing about which of them to choose.
    """

    name = "centred"

    def score(self, query: Query, representatives: Tensor, mean: Tensor) -> Tensor:
        """See `Retriever.score`."""
        keys = normalize(representatives.float() - mean, dim=-1)
        return score_blocks(normalize(query.mean, dim=-1), keys).mean(dim=(0, 1))


class MaxSim(Retriever):
    """Late interaction: the best match of any one word's key with the block's, in the first quarter of the layers.

    Early keys still say what a token is, and key against key needs no trained attention from question to frame: it
    finds scenes for models whose raw attention scores do not. After ColBERT (arXiv 2004.12832), on un-rotated keys.
    """

    name = "maxsim"

    def num_layers_read(self, num_layers: int) -> int:
        """A quarter of them."""
        return -(-num_layers // 4)

    def score(self, query: Query, representatives: Tensor, mean: Tensor) -> Tensor:
        """See `Retriever.score`."""
        keys = representatives.float() - mean
        words = normalize(query.word_keys, dim=-1)
        lengths: Tensor = torch.linalg.vector_norm(keys, dim=-1).clamp_min(1e-12)  # [L, K, B]
        cosines: Tensor = words @ keys.mT / lengths[:, :, None]  # [L, K, W, B]
        return cosines.mean(dim=(0, 1)).amax(dim=0)


RETRIEVERS: dict[str, type[Retriever]] = {policy.name: policy for policy in (MaxSim, Centred, ReKV)}


def make_retriever(name: str) -> Retriever:
    """The retriever of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in RETRIEVERS:
        raise ValueError(f"unknown retrieval policy {name!r}; choose one of {', '.join(sorted(RETRIEVERS))}")
    return RETRIEVERS[name]()
