"""Weights that are rounded while they are loaded: what transformers is told, and the packages it takes.

It knows nothing of devices, families or of where checkpoints come from.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

_PACKAGES = {"bitsandbytes": ("accelerate", "bitsandbytes"), "torchao": ("torchao",)}
BYTES_OF_A_WEIGHT = {"bitsandbytes-8bit": 1.0, "bitsandbytes-4bit": 0.5, "torchao-int8": 1.0}
"""Of a number in a matrix of a linear layer; the scales come on top."""


def quantization_config(quantize: str, own: dict[str, Any] | None, dtype: torch.dtype) -> Any:
    """transformers' configuration of a quantisation.

    Args:
        quantize: one of `LoadOptions`.
        own: what the checkpoint's `config.json` says of its own quantisation.
        dtype: what is computed in.

    Raises:
        ValueError: if a package is missing, or the checkpoint is quantised already.
    """
    if own is not None:
        raise ValueError(
            f"quantize={quantize!r} is of no use: the checkpoint is quantised already ({own.get('quant_method')}); "
            "leave it out"
        )
    library, _, bits = quantize.partition("-")
    need(_PACKAGES[library], f"quantize={quantize!r}")
    if library == "torchao":
        return _torchao_config()
    config: Any = importlib.import_module("transformers").BitsAndBytesConfig
    if bits == "8bit":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def need_packages_of(own: dict[str, Any], name: str) -> None:
    """Raises `ValueError` if packages are missing that a checkpoint's own quantisation takes."""
    method = str(own.get("quant_method"))
    need(_PACKAGES.get(method, ("accelerate",)), f"{name}, which is quantised ({method}),")


def missing(packages: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def need(packages: Iterable[str], what: str) -> None:
    """Raises `ValueError` if some packages are not installed."""
    if lacking := missing(packages):
        names = " and ".join(lacking)
        raise ValueError(f"{what} needs {names}, which this Python lacks; run `pip install {' '.join(lacking)}`")


def _torchao_config() -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
