"""The registry of models: names that users give, and how each is loaded.

Importing it loads neither torch nor any model. A new model is one line in `_MODELS`, a new family of checkpoints one in
`families.py`, and one file each.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from vstream.models.embedded import fetch
from vstream.models.families import FAMILIES, family_of
from vstream.models.hub import find_checkpoint
from vstream.models.options import LoadOptions

if TYPE_CHECKING:
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
        "SmolLM2-135M trained to read what EfficientNet-Lite0 names: about 1000 kinds of things, nothing of people or "
        "actions; needs no model hub",
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


def list_models() -> list[ModelInfo]:
    """All models that `load_adapter` knows."""
    return [
        ModelInfo(name, model.description, model.licence, model.size_bytes, model.is_installed(), _score(name))
        for name, model in _MODELS.items()
    ]


def list_families() -> list[dict[str, str]]:
    """The families of checkpoints that `load_adapter` serves: `model_type`, transformers' `class`, an `example`."""
    return [{"model_type": one.model_type, "class": one.class_name, "example": one.example} for one in FAMILIES]


def _score(name: str) -> str:
    """What the evaluation script wrote of a model into `scores.json`."""
    scores = json.loads(resources.files(__package__).joinpath(SCORES).read_text("utf-8"))
    if name not in scores:
        return ""
    one = scores[name]
    return f"{one['right']:.2f} ({one['low']:.2f} to {one['high']:.2f}) of {one['questions']} {one['of']}"


def load_adapter(model: str, options: LoadOptions | None = None, **single: Any) -> Adapter:
    """The model of this name, ready to use.

    Args:
        model: a name from `list_models`, the folder of a checkpoint, or a repository's name on the hub ("owner/model"),
            which is taken from the hub's cache where it is there.
        options: how it is loaded; or give single ones by name, as in `LoadOptions`. `dtype` may be torch's.

    Raises:
        ValueError: there is no model of this name, no such device, or the checkpoint cannot be served.
        FileNotFoundError: the model is not installed, or cannot be fetched.
    """
    options = LoadOptions.of(options, single)
    if model in _MODELS:
        return _load_built_in(model, options)
    checkpoint = find_checkpoint(model, options, check=family_of)
    if checkpoint is None:
        raise ValueError(
            f"there is no model {model!r}; choose from {', '.join(_MODELS)}, or give the folder of a checkpoint or its "
            "name on the hub (owner/model)"
        )
    return family_of(checkpoint).adapter_class()(checkpoint, options)


def _load_built_in(model: str, options: LoadOptions) -> Adapter:
    import torch

    from vstream.models.placement import torch_device

    options.check_plain(model)
    loader = importlib.import_module(_MODELS[model].module)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    adapter: Adapter = loader.load(device=torch_device(options.device), dtype=dtype, seed=options.seed)
    return adapter
