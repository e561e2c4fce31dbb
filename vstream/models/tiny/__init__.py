"""`tiny`: a LLaVA-OneVision of 2.9 million parameters, trained from nothing on the synthetic world, shipped here.

It is the ruler for memory: it sees and answers in milliseconds, and knows of nothing but the world (`app/lab`). How it
was made and how often it is right is in `MODEL_CARD.md`, beside its checkpoint.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from vstream.models.checkpoint import Checkpoint
from vstream.models.llava_onevision import LlavaOnevisionAdapter

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
SHA256 = "2047ffadaa23b7356fc924da06b8c2d600f1edf7840c0bc8c46be60932a369d4"
SETTINGS = MappingProxyType({"window_tokens": 96, "retrieve_tokens": 144, "gist_tokens": 0, "policy": "embedding"})
"""16 frames of window, 24 brought back. With a larger window "when" far back is more often answered with its minute."""


def load(*, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0) -> LlavaOnevisionAdapter:
    """The shipped checkpoint; it has nothing random, so `seed` changes nothing.

    Raises:
        RuntimeError: if its weights are not those that this version was released with.
    """
    folder = Path(str(resources.files(__package__)))
    found = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{WEIGHTS} of `tiny` has sha256 {found}, expected {SHA256}; install vstream anew")
    adapter = LlavaOnevisionAdapter(Checkpoint(folder, "tiny"), device=device, dtype=dtype)
    adapter.settings = MappingProxyType({**adapter.settings, **SETTINGS})
    return adapter
