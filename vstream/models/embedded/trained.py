"""What training added to the language model: products of thin matrices (LoRA, Hu et al. 2021), shipped in the package.

They are added to the weights once, when the model is loaded, so that nothing else knows of them. How they were made,
and what they can do, is in `MODEL_CARD.md` beside this file.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

WEIGHTS = "lora.safetensors"
SHA256 = "6008382ca3d9b5893dc9d667c2a329651040a7a8fc69eda2fc6a8e5be0d58837"
SCALE = 2.0  # of every product, as in training


def trained_bytes() -> bytes:
    """The shipped file.

    Raises:
        RuntimeError: it is not the one that this version was released with.
    """
    content = resources.files(__package__).joinpath(WEIGHTS).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{WEIGHTS} of the embedded model has sha256 {found}, expected {SHA256}; install vstream anew"
        )
    return content


def merge(decoder: Any, content: bytes) -> None:
    """Adds each product `SCALE * up @ down` to the decoder's weight of that name."""
    weights = load(content)
    for name in sorted(name.removesuffix(".up") for name in weights if name.endswith(".up")):
        weight: nn.Parameter = decoder.get_parameter(name)
        up, down = weights[f"{name}.up"].float(), weights[f"{name}.down"].float()
        with torch.no_grad():
            weight.add_((SCALE * up @ down).to(weight))
