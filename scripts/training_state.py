"""Checkpoints of a training run: a folder of safetensors files below 16 MB, there whole or not at all.

Small files come back from machines that return no large ones. It knows nothing of what is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

MOST_BYTES = "15MB"
COUNTERS = "counters.json"


def save_state(folder: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
    """Replaces what the folder held; a run that is killed meanwhile goes on from one of the two."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left_over in (new, old) if folder.is_dir() else (new,):
        shutil.rmtree(left_over, ignore_errors=True)
    new.mkdir(parents=True)
    save_torch_state_dict({name: one.detach().cpu() for name, one in tensors.items()}, new, max_shard_size=MOST_BYTES)
    (new / COUNTERS).write_text(json.dumps(counters))
    if folder.is_dir():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors by name and counters, None where nothing was saved."""
    found = folder if folder.is_dir() else folder.with_name(f"{folder.name}.old")
    if not found.is_dir():
        return None
    tensors = {name: one for path in sorted(found.glob("*.safetensors")) for name, one in load_file(path).items()}
    return tensors, json.loads((found / COUNTERS).read_text())
