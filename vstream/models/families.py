"""The registry of checkpoint families: what serves a checkpoint, by `model_type` in its `config.json`.

Importing it loads neither torch nor transformers. A new family is one line here and one file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vstream.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from vstream.models.checkpoint_adapter import CheckpointAdapter


@dataclass(frozen=True)
class Family:
    """A family of checkpoints that is served.

    Attributes:
        model_type: in `config.json`.
        class_name: transformers' class.
        example: a repository on the hub.
        adapter: who serves it, as "module:class" in `vstream.models`.
    """

    model_type: str
    class_name: str
    example: str
    adapter: str

    def adapter_class(self) -> type[CheckpointAdapter]:
        """The adapter's class; importing it loads torch."""
        module, name = self.adapter.split(":")
        found: type[CheckpointAdapter] = getattr(importlib.import_module(f"vstream.models.{module}"), name)
        return found


FAMILIES = (
    Family("llava_onevision", "LlavaOnevisionForConditionalGeneration", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
           "llava_onevision:LlavaOnevisionAdapter"),
    Family("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl:QwenVlAdapter"),
    Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen/Qwen2.5-VL-7B-Instruct",
           "qwen2_5_vl:Qwen25VlAdapter"),
    Family("qwen3_vl", "Qwen3VLForConditionalGeneration", "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl:Qwen3VlAdapter"),
    Family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "Qwen/Qwen3-VL-30B-A3B-Instruct",
           "qwen3_vl:Qwen3VlAdapter"),
    Family("smolvlm", "SmolVLMForConditionalGeneration", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
           "smolvlm:SmolVLMAdapter"),
    Family("idefics3", "Idefics3ForConditionalGeneration", "HuggingFaceTB/SmolVLM-Instruct",
           "idefics3:Idefics3Adapter"),
    Family("llava_next_video", "LlavaNextVideoForConditionalGeneration", "llava-hf/LLaVA-NeXT-Video-7B-hf",
           "llava_next_video:LlavaNextVideoAdapter"),
    Family("internvl", "InternVLForConditionalGeneration", "OpenGVLab/InternVL3-8B-hf", "internvl:InternVLAdapter"),
)  # fmt: skip


def family_of(checkpoint: Checkpoint) -> Family:
    """Who serves a checkpoint.

    Raises:
        ValueError: if nobody does; it says which families are served.
    """
    config = checkpoint.config
    kind = config.get("model_type")
    found = next((family for family in FAMILIES if family.model_type == kind), None)
    if found is None:
        served = ", ".join(family.model_type for family in FAMILIES)
        raise ValueError(
            f"{checkpoint.name!r} is a model of type {kind!r}{_why_not(config)}, which is not served; served are "
            f"{served}: choose one of these, such as {FAMILIES[0].example}"
        )
    return found


def _why_not(config: dict[str, object]) -> str:
    """What is told of an unserved checkpoint beside its type."""
    if "auto_map" in config:
        return " with model code of its own (auto_map), which is never run, whatever --trust-remote-code says"
    if not any(isinstance(value, dict) and "vision" in name for name, value in config.items()):
        return " without a vision part"
    return ""
