"""The registry of models: names that users give, and how each is loaded.

Importing it loads neither torch nor any model. A new model is one line in `_MODELS` and one file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vstream.models.embedded import fetch

if TYPE_CHECKING:
    import torch

    from vstream.models.base import Adapter


@dataclass(frozen=True)
class ModelInfo:
    """What a user is told of a model.

    Attributes:
        name: what `load_adapter` takes.
        description: one line.
        licence: of the weights.
        size_bytes: on disk, once installed.
        installed: whether it can be loaded now.
    """

    name: str
    description: str
    licence: str
    size_bytes: int
    installed: bool


@dataclass(frozen=True)
class _Model:
    description: str
    licence: str
    size_bytes: int
    module: str  # has load(*, device, dtype, seed) -> Adapter
    is_installed: Callable[[], bool]


_MODELS = {
    "embedded": _Model(
        "SmolLM2-135M reading EfficientNet-Lite0, for a first try without a model hub", "Apache-2.0; class names MIT",
        291_000_000, "vstream.models.embedded.adapter", lambda: fetch.embedded_dir().is_dir(),
    ),
    "random": _Model(
        "a tiny Llama with random weights, for tests", "Apache-2.0", 0, "vstream.models.random", lambda: True
    ),
}  # fmt: skip


def list_models() -> list[ModelInfo]:
    """All models that `load_adapter` knows."""
    return [
        ModelInfo(name, model.description, model.licence, model.size_bytes, model.is_installed())
        for name, model in _MODELS.items()
    ]


def load_adapter(model: str, *, device: str = "auto", dtype: torch.dtype | None = None, seed: int = 0) -> Adapter:
    """The model of this name, ready to use.

    Args:
        model: a name from `list_models`.
        device: where it computes: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        dtype: what it computes in; None: what suits the model and device.
        seed: of weights that are random.

    Raises:
        ValueError: there is no model of this name, or no such device.
        FileNotFoundError: the model is not installed.
    """
    if model not in _MODELS:
        known = ", ".join(_MODELS)
        raise ValueError(f"there is no model {model!r}; choose from {known} (Hugging Face families will come later)")
    loader = importlib.import_module(_MODELS[model].module)
    adapter: Adapter = loader.load(device=_device(device), dtype=dtype, seed=seed)
    return adapter


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
