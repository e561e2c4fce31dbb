"""How the decoder attends in every pass of vstream's: through `vstream.kernels`, without a mask.

All that is cached is visible and new tokens are causal, bottom right, so no mask of new x all tokens has to be made.
Registered attention functions of a few lines; a hook may see the query first. Outside such a pass the decoder attends
as it was loaded. This module knows nothing of frames, text or where keys and values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from vstream.kernels import Dense, attend, attend_one, prefill

ATTENTION, ROWS_ATTENTION = "vstream", "vstream-rows"

LayerHook = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Given a layer, its query [1, H, N, D], keys and values [1, K, M, D], says which keys and values are seen."""


class Rows(Protocol):
    """The caches of a batch of one token each."""

    def held(self, layer: int) -> Sequence[tuple[Tensor, Tensor]]:
        """Keys and values [1, K, N_r, D] of every row."""


@contextmanager
def attending(decoder: Any, attention: str = ATTENTION) -> Iterator[None]:
    """While it lasts, the decoder attends as vstream does; afterwards as before.

    It sets the configuration that all layers look into. `set_attn_implementation` does more, for every pass anew.
    """
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = attention
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vstream: LayerHook | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One sequence, query [1, H, N, D]; where there is a mask, as transformers does it."""
    if vstream is not None:
        assert attention_mask is None, "a hook changes what is seen: no mask fits that"
        key, value = vstream(int(module.layer_idx), query, key, value)  # type: ignore[arg-type]
    if attention_mask is not None or len(query) > 1:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    kernel = attend_one if query.shape[2] == 1 else prefill
    return kernel(query, key, value, kwargs.get("scaling")).transpose(1, 2).contiguous(), None


def _rows_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vstream: Rows,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each row [1, H, 1, D] of the query over its own keys and values."""
    held = vstream.held(int(module.layer_idx))  # type: ignore[arg-type]
    rows = [[Dense(keys[0], values[0])] for keys, values in held]
    return attend(query[:, :, 0], rows, kwargs.get("scaling")).unsqueeze(1), None


def _mask(*, mask_function: Any = causal_mask_function, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
    """None where attention is plainly causal, else transformers' own mask."""
    if mask_function is causal_mask_function and attention_mask is None:
        return None
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)


for _name, _function in ((ATTENTION, _attention), (ROWS_ATTENTION, _rows_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _mask)
