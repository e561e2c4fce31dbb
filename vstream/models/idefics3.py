"""Idefics3Adapter: stock checkpoints of Idefics3 and of the first SmolVLM, which is one of them.

They were made for pictures, so frames are shown as SmolVLM2, their successor of the same form, is shown them. This
module knows nothing of memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vstream.models.checkpoint import Checkpoint
from vstream.models.smolvlm import SmolVLMAdapter

if TYPE_CHECKING:
    import torch


class Idefics3Adapter(SmolVLMAdapter):
    """An `Idefics3ForConditionalGeneration`: the frames, text and sizes of SmolVLM2."""

    prompt_version = 1

    def _model_class(self) -> Any:
        from transformers import Idefics3ForConditionalGeneration

        return Idefics3ForConditionalGeneration


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0
) -> Idefics3Adapter:
    """The checkpoint as the registry loads it; it has nothing random, so `seed` changes nothing."""
    return Idefics3Adapter(checkpoint, device=device, dtype=dtype)
