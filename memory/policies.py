"""The retrieval policies: how blocks are scored. One class each; its docstring says where the rule comes from.

This module knows nothing of budgets, text, models or where the blocks' bytes lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vstream.kernels import best_match, score_blocks
from vstream.memory.block import Block, BlockShape, TokenKind
from vstream.memory.exact_search import inner_products
from vstream.memory.representatives import Kept
from vstream.memory.retriever import Candidates, Query, Retriever, Selection


class ReKV(Retriever):
    """Raw dot product of mean query and mean key, heads concatenated (ReKV, arXiv 2503.00540)."""

    name = "rekv"

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`."""
        return score_blocks(query.mean, blocks.keys).sum(dim=(0, 1))


class Centred(Retriever):
    """Cosine per key/value head after removing the mean key.

    Raw scores drift upwards with time, so late blocks win whatever the question is (measured by MemStream); what all
    blocks share says nothing about which of them to choose.
    """

    name = "centred"
    reads_mean = True

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`."""
        return best_match(query.mean[:, :, None], blocks.keys, blocks.common, cosine=True)


class MaxSim(Retriever):
    """Late interaction: the best match of any one word's key with the block's, in the first quarter of the layers.

    Early keys still say what a token is, and key against key needs no trained attention from question to frame: it
    finds scenes for models whose raw attention scores do not. After ColBERT (arXiv 2004.12832), on un-rotated keys.
    """

    name = "maxsim"
    reads_mean = True

    def num_layers_read(self, num_layers: int) -> int:
        """A quarter of them."""
        return -(-num_layers // 4)

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`."""
        return best_match(query.word_keys, blocks.keys, blocks.common, cosine=True)


class Prototypes(MaxSim):
    """MaxSim with several keys a block, the best of which counts: a mean of four frames hides what one of them shows.

    The block's vision tokens are split into `COUNT` runs of neighbours, each with its mean key, as StreamMem (arXiv
    2508.15717) keeps a prototype of every frame.
    """

    name = "prototypes"
    COUNT = 4

    def extra_size(self, num_layers: int, shape: BlockShape, embed_dim: int) -> tuple[int, int, int]:
        """`COUNT` keys for each head."""
        return num_layers, self.COUNT * shape.num_kv_heads, shape.head_dim

    def describe(
        self, kv: Tensor, kinds: Tensor, *, embeds: Tensor | None = None, parents: Sequence[Block] = ()
    ) -> Tensor:
        """Mean keys of the runs, [L, COUNT * K, D]; of a condensed block too they are those of the tokens it has."""
        keys = seen_keys(kv, kinds).float()
        tokens = keys.shape[2]
        starts = [tokens * run // self.COUNT for run in range(self.COUNT + 1)]
        runs = [keys[:, :, a : max(b, a + 1)].mean(dim=2) for a, b in pairwise(starts)]
        return torch.cat(runs, dim=1).half()

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`."""
        runs = blocks.extra.chunk(self.COUNT, dim=1)
        found = [best_match(query.word_keys, run, blocks.common, cosine=True) for run in runs]
        return torch.stack(found).amax(dim=0)


class Quest(Retriever):
    """The most that any key within a block's bounds could score (Quest, arXiv 2406.10774).

    Of every channel the least and the greatest of the block's keys are kept; a score is the sum over channels of
    max(q * least, q * greatest), no less than the raw score of any token in it.
    """

    name = "quest"

    def extra_size(self, num_layers: int, shape: BlockShape, embed_dim: int) -> tuple[int, int, int]:
        """Two bounds for each head."""
        return num_layers, 2 * shape.num_kv_heads, shape.head_dim

    def describe(
        self, kv: Tensor, kinds: Tensor, *, embeds: Tensor | None = None, parents: Sequence[Block] = ()
    ) -> Tensor:
        """Least, then greatest, [L, 2 * K, D]; of a condensed block too they are the bounds of the tokens it has."""
        keys = seen_keys(kv, kinds)
        return torch.cat([keys.amin(dim=2), keys.amax(dim=2)], dim=1).half()

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`: positive channels of the query meet the greatest, negative ones the least."""
        signed = torch.cat([query.mean.clamp_max(0), query.mean.clamp_min(0)], dim=1)
        return score_blocks(signed, blocks.extra).sum(dim=(0, 1))


class Keyless(Retriever):
    """Reads no layer's keys: one opinion, of all candidates together."""

    one_by_one = False
    per_layer = False

    def num_layers_read(self, num_layers: int) -> int:
        """None would do, but the engine asks for one."""
        return 1


class Embedding(Keyless):
    """Cosine of a question's words with what frames look like to the language model, before its first layer.

    A block keeps the mean of its visual tokens as they enter the decoder. Of that, what all blocks share is removed.
    Words count by how far their best match stands out from all blocks (as rare terms do in BM25), so that "the" and
    "what" hardly do. The search is exact (`exact_search.py`).
    """

    name = "embedding"
    reads_extra_mean = True

    def extra_size(self, num_layers: int, shape: BlockShape, embed_dim: int) -> tuple[int, int, int]:
        """One vector."""
        return 1, 1, embed_dim

    def describe(
        self, kv: Tensor, kinds: Tensor, *, embeds: Tensor | None = None, parents: Sequence[Block] = ()
    ) -> Tensor | None:
        """Mean of the visual tokens [1, 1, E] (of all, where there are none), or of the blocks merged, by weight."""
        if parents:
            weights = torch.tensor([max(block.meta.weight, 1e-9) for block in parents])
            return Kept.of(torch.stack([extra_of(block) for block in parents], dim=2)).mean(weights)[:, :, 0].half()
        if embeds is None:
            return None
        vision = kinds == TokenKind.VISION
        return embeds[vision if vision.any() else slice(None)].float().mean(dim=0)[None, None].half()

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`."""
        assert blocks.extra_mean is not None, f"{self.name!r} needs the mean of what it keeps"
        assert query.embeds is not None, f"{self.name!r} needs the words' embeddings"
        seen = normalize(blocks.extra[0, 0].float() - blocks.extra_mean[0, 0], dim=-1)
        return telling(inner_products(normalize(query.embeds, dim=-1), seen))


class Hierarchical(MaxSim):
    """Coarse to fine: stretches of about sqrt(B) neighbours by their mean key, then the blocks inside the best.

    The best stretches are opened until they hold `OPENED` times the budget; the blocks of the others follow by their
    stretch's score. LServe (arXiv 2502.14866) selects pages by such a hierarchy.
    """

    name = "hierarchical"
    one_by_one = False
    OPENED = 4

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`; where nothing is to be chosen all blocks are scored alone."""
        if not blocks.budget_tokens or not len(blocks):
            return super().score(query, blocks)
        parts = np.array_split(np.arange(len(blocks)), round(len(blocks) ** 0.5))
        coarse = super().score(query, replace(blocks, kept_keys=Kept.of(stretch_keys(blocks, parts)), kept_extra=None))
        order = coarse.argsort(descending=True, stable=True).tolist()
        tokens = np.cumsum([blocks.rows["num_tokens"][parts[part]].sum() for part in order])
        count = int(np.searchsorted(tokens, self.OPENED * blocks.budget_tokens)) + 1
        inside = np.sort(np.concatenate([parts[part] for part in order[:count]]))
        scores = coarse.repeat_interleave(torch.tensor([len(part) for part in parts], device=coarse.device)) - BELOW
        scores[torch.from_numpy(inside).to(scores.device)] = super().score(query, blocks.at(inside))
        return scores


class Uniform(Keyless):
    """Evenly spaced in time, whatever the question: a baseline."""

    name = "uniform"

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`: 1 for the most blocks, evenly spaced, that fit, 0 for all others."""
        scores, sizes = torch.zeros(len(blocks)), blocks.rows["num_tokens"]
        for count in range(blocks.budget_tokens // max(1, sizes.min(initial=blocks.budget_tokens)), 0, -1):
            picked = evenly(blocks.rows["start_seconds"], count)
            if sizes[picked].sum() <= blocks.budget_tokens:
                scores[torch.from_numpy(picked)] = 1
                break
        return scores


class Recent(Keyless):
    """The newest first, whatever the question: a baseline."""

    name = "recent"

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`: places in time order, from 0 to 1."""
        return torch.linspace(0, 1, len(blocks))


class Oracle(Keyless):
    """The truth, for the lab: brings back the blocks that overlap `evidence`, then others at random.

    A moment that the question names counts for nothing: without evidence it is blind. It draws from one sequence, so
    that blind answers to many questions are not all about the same blocks.

    Attributes:
        evidence: (start, end) in seconds, the end not included; set before each question.
    """

    name = "oracle"

    def __init__(self, neighbours: int = 0, seed: int = 0) -> None:
        super().__init__(neighbours)
        self.evidence: Sequence[tuple[float, float]] = ()
        self._random = torch.Generator().manual_seed(seed)

    def score(self, query: Query, blocks: Candidates) -> Tensor:
        """See `Retriever.score`: 10 for each piece of evidence that a block overlaps, and chance from 0 to 1."""
        scores = torch.rand(len(blocks), generator=self._random)
        for start, end in self.evidence:
            inside = (blocks.rows["start_seconds"] < end) & (blocks.rows["end_seconds"] >= start)
            scores += 10 * torch.from_numpy(inside)
        return scores

    def select(self, query: Query, blocks: Candidates) -> Selection:
        """See `Retriever.select`."""
        return super().select(replace(query, moments=()), blocks)


FEW = 3  # blocks, among which nothing stands out
BELOW = 2.0
"""Between the greatest mean of cosines and the least."""


def seen_keys(kv: Tensor, kinds: Tensor) -> Tensor:
    """Un-rotated keys [L, K, V, D] of the vision tokens in kv [L, 2, K, N, D], of all if there are none."""
    vision = kinds == TokenKind.VISION
    return kv[:, 0][:, :, vision] if vision.any() else kv[:, 0]


def telling(cosines: Tensor) -> Tensor:
    """Mean over words of cosines [W, B], [B]; a word weighs as its best match stands out, in deviations, squared."""
    if cosines.shape[1] < FEW:
        return cosines.mean(dim=0)
    best, mean, deviation = cosines.amax(dim=1), cosines.mean(dim=1), cosines.std(dim=1)
    weights = ((best - mean) / deviation.clamp_min(1e-6)).square()
    return weights @ cosines / weights.sum().clamp_min(1e-6)


def extra_of(block: Block) -> Tensor:
    """What is kept of a block."""
    assert block.extra is not None, f"{block} has nothing that a policy keeps"
    return block.extra


def stretch_keys(blocks: Candidates, parts: Sequence[np.ndarray]) -> Tensor:
    """Mean keys [L, K, S, D] of stretches of neighbours, by the frames they stand for."""
    weights = torch.from_numpy(blocks.rows["weight"].copy())
    stretches = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
    return torch.cat([blocks.kept_keys.at(one).mean(weights[one]) for one in stretches], dim=2)


def evenly(starts: np.ndarray, count: int) -> np.ndarray:
    """Places, each once, of the blocks that hold `count` evenly spaced times; `starts` [B] rise."""
    times = starts[0] + (starts[-1] - starts[0]) * (np.arange(count) + 0.5) / count
    return np.unique(np.searchsorted(starts, times, side="right") - 1)


POLICIES = (MaxSim, Centred, ReKV, Quest, Prototypes, Embedding, Hierarchical, Uniform, Recent, Oracle)
RETRIEVERS: dict[str, type[Retriever]] = {policy.name: policy for policy in POLICIES}


def make_retriever(name: str, neighbours: int = 0) -> Retriever:
    """The retriever of that name, which brings so many neighbours along.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in RETRIEVERS:
        raise ValueError(f"unknown retrieval policy {name!r}; choose one of {', '.join(sorted(RETRIEVERS))}")
    return RETRIEVERS[name](neighbours)
