"""SmolVLMAdapter: stock SmolVLM2 checkpoints, of Idefics3's form and made for videos.

This module knows nothing of memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from vstream.models.checkpoint import Checkpoint
from vstream.models.idefics3 import Idefics3Adapter


class SmolVLMAdapter(Idefics3Adapter):
    """A `SmolVLMForConditionalGeneration`."""

    prompt_version = 1

    def _chat_template(self, checkpoint: Checkpoint) -> str | None:
        """The checkpoint's; where that knows of no videos, the one that the processor in transformers has for them."""
        from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

        own = super()._chat_template(checkpoint)
        return own if own and "video" in own else str(DEFAULT_CHAT_TEMPLATE)
