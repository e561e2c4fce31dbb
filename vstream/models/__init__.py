"""The registry of models: names that users give, and how each is loaded.

Importing it loads neither torch nor any model. A new model is one line in `_MODELS`, a new family of checkpoints one in
`_FAMILIES`, and one file each.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from vstream.models.checkpoint import Checkpoint, find_checkpoint
from vstream.models.embedded import fetch

if TYPE_CHECKING:
    import torch

    from vstream.models.base import Adapter

SCORES = "scores.json"


@dataclass(frozen=True)
class ModelInfo:
    """What a user is told of a model.

    Attributes:
        name: what `load_adapter` takes.
        description: one line.
        licence: of the weights.
        size_bytes: on disk, once installed.
        installed: whether it can be loaded now.
        score: what it gets right, and in which test; empty if nobody measured.
    """

    name: str
    description: str
    licence: str
    size_bytes: int
    installed: bool
    score: str = ""


@dataclass(frozen=True)
class _Model:
    description: str
    licence: str
    size_bytes: int
    module: str  # has load(*, device, dtype, seed) -> Adapter
    is_installed: Callable[[], bool]


_MODELS = {
    "embedded": _Model(
        "SmolLM2-135M trained to read what EfficientNet-Lite0 names; needs no model hub",
        "Apache-2.0; names MIT and WordNet", 291_000_000, "vstream.models.embedded.adapter",
        lambda: fetch.embedded_dir().is_dir(),
    ),
    "tiny": _Model(
        "a LLaVA-OneVision of 2.9 million parameters, trained on the synthetic world: the ruler for memory",
        "Apache-2.0", 5_900_000, "vstream.models.tiny", lambda: True,
    ),
    "random": _Model(
        "a tiny Llama with random weights, for tests", "Apache-2.0", 0, "vstream.models.random", lambda: True
    ),
}  # fmt: skip

_FAMILIES = {  # by `model_type` in config.json; a module has load(checkpoint, *, device, dtype, seed) -> Adapter
    "llava_onevision": "vstream.models.llava_onevision",
    "qwen2_vl": "vstream.models.qwen2_vl",
    "qwen2_5_vl": "vstream.models.qwen2_5_vl",
    "qwen3_vl": "vstream.models.qwen3_vl",
    "smolvlm": "vstream.models.smolvlm",  # SmolVLM2
    "idefics3": "vstream.models.idefics3",  # SmolVLM, too
}


def list_models() -> list[ModelInfo]:
    """All models that `load_adapter` knows."""
    return [
        ModelInfo(name, model.description, model.licence, model.size_bytes, model.is_installed(), _score(name))
        for name, model in _MODELS.items()
    ]


def _score(name: str) -> str:
    """What the evaluation script wrote of a model into `scores.json`."""
    scores = json.loads(resources.files(__package__).joinpath(SCORES).read_text("utf-8"))
    if name not in scores:
        return ""
    one = scores[name]
    return f"{one['right']:.2f} ({one['low']:.2f} to {one['high']:.2f}) of {one['questions']} {one['of']}"


def load_adapter(model: str, *, device: str = "auto", dtype: torch.dtype | None = None, seed: int = 0) -> Adapter:
    """The model of this name, ready to use.

    Args:
        model: a name from `list_models`, the folder of a checkpoint, or a repository's name on the hub ("owner/model"),
            which is taken from the hub's cache where it is there.
        device: where it computes: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        dtype: what it computes in; None: what suits the model and device.
        seed: of weights that are random.

    Raises:
        ValueError: there is no model of this name, no such device, or the checkpoint cannot be served.
        FileNotFoundError: the model is not installed, or cannot be fetched.
    """
    if model in _MODELS:
        loader = importlib.import_module(_MODELS[model].module)
        adapter: Adapter = loader.load(device=_device(device), dtype=dtype, seed=seed)
        return adapter
    checkpoint = find_checkpoint(model)
    if checkpoint is None:
        raise ValueError(
            f"there is no model {model!r}; choose from {', '.join(_MODELS)}, or give the folder of a checkpoint or its "
            "name on the hub (owner/model)"
        )
    loader = importlib.import_module(_family(checkpoint))
    adapter = loader.load(checkpoint, device=_device(device), dtype=dtype, seed=seed)
    return adapter


def _family(checkpoint: Checkpoint) -> str:
    """The module that serves a checkpoint."""
    kind = checkpoint.config.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(
            f"{checkpoint.name!r} is a model of type {kind!r}, which is not served; served are {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind]


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    known = name == "cpu" or (kind == "cuda" and (not index or index.isdecimal()))
    gpus = torch.cuda.device_count()
    if not known or (kind == "cuda" and int(index or 0) >= gpus):
        raise ValueError(f"there is no device {name!r} here; choose auto, cpu, cuda or cuda:N ({gpus} GPUs are here)")
    return torch.device(name)
