"""Models of published sizes with random weights, made where they compute; for `gpu_check.py`.

A folder gets a family's small files and a configuration of those sizes, and no weights: the stock class is built from
it on the device itself, so that nothing is written or copied. It knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import build_model, recipe_of, write_small_files
from torch import Tensor

from vstream.models.checkpoint import Checkpoint
from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.families import family_of
from vstream.models.loading import quiet_transformers
from vstream.models.options import LoadOptions
from vstream.models.placement import attention, torch_device, torch_dtype
from vstream.types import Frame

TEXT_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_window_layers": 28, "tie_word_embeddings": False,
}  # fmt: skip
_DERIVED = ("layer_types", "head_dim")  # a configuration works them out of the others


@dataclass(frozen=True)
class Shape:
    """The sizes of a published checkpoint.

    Attributes:
        name: whose sizes they are.
        family: of `make_checkpoint.FAMILIES`, whose tiny configuration they go over.
        text, vision: what is other than in the tiny one.
        pictures: of the processor, likewise.
        picture: height and width of the frames that are pushed.
    """

    name: str
    family: str
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    picture: tuple[int, int] = (64, 64)


def tiny(shape: Shape) -> Shape:
    """The same family as small as in tests, for a CPU."""
    return Shape(f"{shape.name}, tiny", shape.family)


SHAPES = (
    Shape(
        "Qwen2.5-VL-7B", "qwen2_5_vl", picture=(360, 640),
        text={**TEXT_7B, "max_position_embeddings": 128000,
              "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        vision={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        pictures={"min_pixels": 128 * 28**2, "max_pixels": 768 * 28**2},
    ),
    Shape(
        "LLaVA-OneVision-7B", "llava_onevision", picture=(384, 384),
        text={**TEXT_7B, "max_position_embeddings": 32768,
              "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        vision={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
                "image_size": 384, "patch_size": 14},
        pictures={"size": {"height": 384, "width": 384}},
    ),
)  # fmt: skip


class OnTheDevice(CheckpointAdapter):
    """Mixed in before a family's class: weights are drawn where they are wanted, and the vision tower may rest.

    Attributes:
        kept: features [G, P, W] of groups seen before, which `encode` goes round; None asks the vision tower.
    """

    kept: Tensor | None = None

    def _load_model(self, model_class: Any, checkpoint: Checkpoint) -> Any:
        """As the stock class draws them for training, on the device and in its type, so that buffers are right too."""
        device = torch_device(self.options.device)
        dtype = torch_dtype(self.options.dtype, device, checkpoint.config)
        config = model_class.config_class.from_pretrained(checkpoint.folder)
        torch.manual_seed(self.options.seed)
        with quiet_transformers(), torch.device(device):
            how = attention(checkpoint.config, device, dtype)
            model = model_class._from_config(config, dtype=dtype, attn_implementation=how)
        return model.eval().requires_grad_(False)

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """The vision tower's features, or the next ones of those that it gave before."""
        if self.kept is None:
            return super().encode(frames)
        groups = -(-len(frames) // self.group_frames)
        first = int(frames[0].pts_seconds) // self.group_frames
        return self.kept[torch.arange(first, first + groups, device=self.kept.device) % len(self.kept)]


def write_shape(shape: Shape, folder: Path, tokenizer_file: Path | None) -> Checkpoint:
    """Fills a folder with a family's small files and a configuration of these sizes."""
    recipe = recipe_of(shape.family)
    with quiet_transformers():
        tokenizer = write_small_files(recipe, folder, tokenizer_file)
        config = build_model(recipe, tokenizer).config.to_dict()
    for part, sizes in (("text_config", shape.text), ("vision_config", shape.vision)):
        derived = _DERIVED if sizes else ()
        config[part] = {**{key: value for key, value in config[part].items() if key not in derived}, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    for name in recipe.files if shape.pictures else ():
        settings = json.loads((folder / name).read_text())
        settings |= {key: value for key, value in shape.pictures.items() if key in settings}
        (folder / name).write_text(json.dumps(settings))
    return Checkpoint(folder, shape.name)


def build(shape: Shape, folder: Path, options: LoadOptions, tokenizer_file: Path | None) -> OnTheDevice:
    """A model of these sizes behind its family's adapter; it never ends an answer by itself."""
    checkpoint = write_shape(shape, folder, tokenizer_file)
    family = family_of(checkpoint).adapter_class()
    kind: Any = type(f"Random{family.__name__}", (OnTheDevice, family), {})
    adapter: OnTheDevice = kind(checkpoint, options)
    adapter.eos_ids = frozenset()
    return adapter


def pictures(shape: Shape, count: int) -> Tensor:
    """So many different pictures [S, H, W, 3] uint8; a stream goes round them."""
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape.picture, 3), dtype=torch.uint8, generator=noise)


def frames(shape: Shape, count: int) -> list[Frame]:
    """So many different frames, one a second."""
    return [Frame(float(second), image.numpy()) for second, image in enumerate(pictures(shape, count))]
