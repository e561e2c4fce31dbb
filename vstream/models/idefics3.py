"""Idefics3Adapter: stock checkpoints of Idefics3 and of the first SmolVLM, which is one of them.

They were made for pictures, so frames are shown as SmolVLM2, their successor of the same form, is shown them. This
module knows nothing of memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from vstream.models.smolvlm import SmolVLMAdapter


class Idefics3Adapter(SmolVLMAdapter):
    """An `Idefics3ForConditionalGeneration`: the frames, text and sizes of SmolVLM2."""

    prompt_version = 1
