"""Exact search by inner product: FAISS where it is installed, else torch. Ids and scores are the same.

This module knows nothing of blocks, words or models.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def inner_products(queries: Tensor, vectors: Tensor) -> Tensor:
    """Inner products [W, N] of queries [W, E] with vectors [N, E], float32; FAISS's come from the CPU."""
    faiss = installed_faiss()
    return by_torch(queries, vectors) if faiss is None or not len(vectors) else by_faiss(faiss, queries, vectors)


def by_torch(queries: Tensor, vectors: Tensor) -> Tensor:
    """One matrix product; arguments and result as of `inner_products`."""
    return queries @ vectors.T


def by_faiss(faiss: Any, queries: Tensor, vectors: Tensor) -> Tensor:
    """A flat index, asked for all it holds; arguments and result as of `inner_products`, N at least 1."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.cpu().contiguous().numpy())
    scores, ids = index.search(queries.cpu().contiguous().numpy(), len(vectors))
    return torch.empty(scores.shape).scatter_(1, torch.from_numpy(ids), torch.from_numpy(scores)).to(vectors.device)


@cache
def installed_faiss() -> Any:
    """The module `faiss`, None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss
