"""Retriever: which blocks a question should see.

A policy writes only `score`; the base class owns the budget, the time order and the statistics that outlive a process.
This module knows nothing of text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vstream.kernels import score_blocks
from vstream.memory.block import Block, BlockMeta, BlockShape


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what every candidate scored.

    Attributes:
        ids: the chosen blocks in time order.
        scores: block id to score, for all candidates.
    """

    ids: tuple[int, ...]
    scores: dict[int, float]


class Retriever(ABC):
    """Chooses the best-scoring blocks within a budget of tokens.

    `observe` is called once for every block that is committed, in order, and is the only call that changes the
    retriever. Ties go to the earlier block, so the choice is a function of its inputs alone.
    """

    name: ClassVar[str]

    def __init__(self, shape: BlockShape) -> None:
        """Statistics start empty."""
        self._sum = torch.zeros(shape.num_layers, shape.num_kv_heads, shape.head_dim)
        self._count = 0

    @abstractmethod
    def score(self, query: Tensor, representatives: Tensor, mean: Tensor) -> Tensor:
        """Scores of blocks, higher is better.

        Args:
            query: [L, K, D] mean un-rotated query of the question's own words.
            representatives: [L, K, B, D] float16 mean un-rotated keys.
            mean: [L, K, 1, D] running mean of all representatives ever observed.

        Returns:
            [B]; with one layer given, that layer's own opinion.
        """

    def observe(self, block: Block) -> None:
        """Takes a committed block into the running mean."""
        self._sum += block.representative.float().cpu()
        self._count += 1

    def scores(self, query: Tensor, representatives: Tensor, layers: slice = slice(None)) -> Tensor:
        """Scores [B] of representatives [L, K, B, D] of some layers (all, unless given)."""
        mean = (self._sum / max(self._count, 1))[layers, :, None].to(representatives.device)
        return self.score(query, representatives, mean)

    def select(
        self,
        query: Tensor,
        candidates: Sequence[BlockMeta],
        representatives: Tensor,
        budget_tokens: int,
        layer: int | None = None,
    ) -> Selection:
        """The best candidates whose tokens fit the budget together.

        Args:
            query: [L, K, D], or [1, K, D] when one layer chooses for itself.
            candidates: B blocks in time order.
            representatives: [L, K, B, D] of all layers.
            budget_tokens: at most so many tokens are chosen.
            layer: the layer that chooses, None when all choose together.
        """
        if not candidates:
            return Selection((), {})
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        scores = self.scores(query, representatives[layers], layers).tolist()
        ranked = sorted(range(len(candidates)), key=lambda i: (-scores[i], i))
        chosen = sorted(_fill(ranked, [meta.num_tokens for meta in candidates], budget_tokens))
        ids = tuple(candidates[i].id for i in chosen)
        return Selection(ids, {meta.id: score for meta, score in zip(candidates, scores, strict=True)})

    def state(self) -> dict[str, Any]:
        """The statistics, as JSON values."""
        return {"sum": base64.b64encode(self._sum.numpy().tobytes()).decode(), "count": self._count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave, bit for bit."""
        raw = bytearray(base64.b64decode(state["sum"]))
        self._sum = torch.frombuffer(raw, dtype=torch.float32).view(self._sum.shape)
        self._count = int(state["count"])


def _fill(ranked: Sequence[int], sizes: Sequence[int], budget: int) -> list[int]:
    """Best first, everything that still fits."""
    chosen = []
    for i in ranked:
        if sizes[i] <= budget:
            budget -= sizes[i]
            chosen.append(i)
    return chosen


class ReKV(Retriever):
    """Raw dot product of mean query and mean key, heads concatenated (ReKV, arXiv 2503.00540)."""

    name = "rekv"

    def score(self, query: Tensor, representatives: Tensor, mean: Tensor) -> Tensor:
        """See `Retriever.score`."""
        return score_blocks(query, representatives).sum(dim=(0, 1))


class Centred(Retriever):
    """Cosine per key/value head after removing the running mean key.

    Raw scores drift upwards with time, so late blocks win whatever the question is (measured by MemStream); what all
    blocks share says nothing about which of them to choose.
    """

    name = "centred"

    def score(self, query: Tensor, representatives: Tensor, mean: Tensor) -> Tensor:
        """See `Retriever.score`."""
        keys = torch.nn.functional.normalize(representatives.float() - mean, dim=-1)
        return score_blocks(torch.nn.functional.normalize(query.float(), dim=-1), keys).mean(dim=(0, 1))


RETRIEVERS: dict[str, type[Retriever]] = {policy.name: policy for policy in (Centred, ReKV)}


def make_retriever(name: str, shape: BlockShape) -> Retriever:
    """The retriever of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in RETRIEVERS:
        raise ValueError(f"unknown retrieval policy {name!r}; choose one of {', '.join(sorted(RETRIEVERS))}")
    return RETRIEVERS[name](shape)
