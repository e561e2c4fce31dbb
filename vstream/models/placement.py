"""What `from_pretrained` is told of device, precision, quantisation and attention.

It knows nothing of families or of where checkpoints come from.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from vstream.models.options import LoadOptions
from vstream.models.quantizing import missing, need, need_packages_of, quantization_config

_FLASH_TYPES = (torch.float16, torch.bfloat16)


def torch_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    known = name == "cpu" or (kind == "cuda" and (not index or index.isdecimal()))
    gpus = torch.cuda.device_count()
    if not known or (kind == "cuda" and int(index or 0) >= gpus):
        raise ValueError(f"there is no device {name!r} here; choose auto, cpu, cuda or cuda:N ({gpus} GPUs are here)")
    return torch.device(name)


def torch_dtype(name: str, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    """The type of this name; "auto" is the one in `config.json` on a GPU, and float32 on a CPU."""
    if name == "auto":
        name = _own_dtype(config) if device.type == "cuda" else "float32"
    found: torch.dtype = getattr(torch, name)
    return found


def placed(
    options: LoadOptions, config: dict[str, Any], device: torch.device, dtype: torch.dtype, name: str
) -> dict[str, Any]:
    """Keywords of `from_pretrained` that say what goes where, and how.

    Args:
        options: as the user gave them.
        config: the checkpoint's `config.json`; what it says of its own quantisation is transformers' business.
        device, dtype: where it computes, and in what.
        name: the checkpoint's.

    Raises:
        ValueError: if a package that this takes is missing, or weights would be quantised twice.
    """
    own = config.get("quantization_config")
    keywords = {"dtype": dtype, "attn_implementation": attention(config, device, dtype)}
    if options.quantize is not None:
        keywords["quantization_config"] = quantization_config(options.quantize, own, dtype)
    elif own is not None:
        need_packages_of(own, name)
    where = _device_map(options, device, quantized=own is not None or options.quantize is not None)
    return keywords if where is None else {**keywords, "device_map": where}


def attention(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> str | dict[str, str]:
    """Flash attention for the vision tower where it can run; the decoder's is ours, which takes the place of sdpa."""
    if device.type == "cuda" and dtype in _FLASH_TYPES and "vision_config" in config and _has_flash_attention():
        return {"": "sdpa", "text_config": "sdpa", "vision_config": "flash_attention_2"}
    return "sdpa"


def check_one_place(model: Any, name: str) -> None:
    """Refuses a model that accelerate has spread: keys and values of all layers are kept together.

    Raises:
        ValueError: naming the places.
    """
    places = sorted({str(weight.device) for weight in model.parameters()})
    if len(places) > 1 or places == ["meta"]:
        told = " and ".join("disk" if place == "meta" else place for place in places)
        raise ValueError(
            f"{name!r} does not fit on one device: device_map='auto' has spread it over {told}, but all its weights "
            "must be in one place; quantize it, or choose a smaller model"
        )


def _has_flash_attention() -> bool:
    return bool(importlib.import_module("transformers.utils").is_flash_attn_2_available())


def _device_map(options: LoadOptions, device: torch.device, *, quantized: bool) -> str | dict[str, torch.device] | None:
    """Straight to the device where accelerate can; None: through RAM, to be moved."""
    if options.device_map is not None:
        need(["accelerate"], f"device_map={options.device_map!r}")
        return options.device_map
    straight = (quantized or device.type == "cuda") and not missing(["accelerate"])
    return {"": device} if straight else None


def _own_dtype(config: dict[str, Any]) -> str:
    """The type that a `config.json` names, for all or for its decoder alone."""
    parts = [config, config.get("text_config") or {}]
    named = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
    return str(named[0]).removeprefix("torch.") if named else "float32"
