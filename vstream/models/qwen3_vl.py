"""Qwen3VlAdapter: stock Qwen3-VL checkpoints: times as the model's own text, and features for the first layers.

A grid stands behind `<12.0 seconds>`, the mean of its two frames, as the model was trained; no vision markers stand
around the whole video, though transformers 5 leaves the template's there. Behind the first layers of its decoder the
model adds features of deeper layers of its vision tower to its vision tokens. They travel behind the input embeddings,
in one row [(1 + layers) * E], zeros for text, to which that adds nothing. All else is told in `qwen2_vl.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vstream.memory.block import TokenKind
from vstream.models.qwen2_vl import QwenVlAdapter
from vstream.models.spans import plain_span
from vstream.types import TokenSpan


class Qwen3VlAdapter(QwenVlAdapter):
    """A `Qwen3VLForConditionalGeneration`, or the same with experts, `Qwen3VLMoeForConditionalGeneration`."""

    parts = ("text_config", "vision_config")
    volume = True

    def forward(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        """As in `Adapter`; embeds are [N, W], or [N, E] of text alone."""
        width = self.config.hidden_size
        deep = embeds[:, width:]
        if deep.shape[1]:
            everywhere = torch.ones(1, len(deep), dtype=torch.bool, device=deep.device)
            kwargs |= {"visual_pos_masks": everywhere, "deepstack_visual_embeds": torch.split(deep, width, dim=1)}
        return super().forward(embeds[:, :width], positions, cache, **kwargs)

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        embeds = self.embed(torch.tensor(ids, dtype=torch.long))
        layers = len(self.model.config.vision_config.deepstack_visual_indexes)
        return plain_span(pad(embeds, (0, layers * embeds.shape[1])), kind, self.num_axes)

    def _tokens(self, seen: Any) -> Tensor:
        """[G, P, W]: what enters the decoder, then what each of its first layers is given.

        By transformers' version, a layer is a list of groups, or all tokens in one row.
        """
        groups = len(seen.pooler_output)
        layers = [torch.stack(list(layer)) for layer in (seen.pooler_output, *seen.deepstack_features)]
        return torch.cat([layer.reshape(groups, -1, layer.shape[-1]) for layer in layers], dim=-1)

    def time_text(self, seconds: float) -> str:
        """`<12.0 seconds>`."""
        return f"<{seconds:.1f} seconds>"
