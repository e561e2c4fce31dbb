"""Whether a checkpoint's weights fit into memory, told before they are read.

What is counted are the numbers in its safetensors' headers. It knows nothing of families or of what they compute.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import torch

from vstream.models.quantizing import BYTES_OF_A_WEIGHT

_FLOATS = ("F64", "F32", "F16", "BF16")
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_NOT_QUANTIZED = re.compile(r"embed|lm_head|norm|bias$")
GIB = 1 << 30


def check_room(
    folder: Path, name: str, *, device: torch.device, dtype: torch.dtype, quantize: str | None = None
) -> None:
    """Refuses weights that cannot fit.

    Raises:
        ValueError: with the bytes that are needed, at least, and those that are free.
    """
    needed, free = needed_bytes(folder, dtype, quantize), free_bytes(device)
    if free is not None and needed > free:
        half = "" if dtype.itemsize == 2 else "dtype='bfloat16', "
        raise ValueError(
            f"the weights of {name!r} need {needed / GIB:.2f} GiB on {device} in {_name(dtype)}, but {free / GIB:.2f} "
            f"GiB are free; free some, or choose {half}quantize='bitsandbytes-4bit' or a smaller model"
        )


def needed_bytes(folder: Path, dtype: torch.dtype, quantize: str | None = None) -> int:
    """What the weights of a checkpoint take at least once they are loaded."""
    tensors = [pair for path in folder.glob("*.safetensors") for pair in _header(path).items()]
    return round(sum(_tensor_bytes(name, one, dtype, quantize) for name, one in tensors if name != "__metadata__"))


def free_bytes(device: torch.device) -> int | None:
    """What is free on a GPU, or of RAM, within a container's limit; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = [found for found in (_free_ram(), _free_of_container()) if found is not None]
    return min(told, default=None)


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors; nothing of one that is damaged: who reads it tells more."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if length <= path.stat().st_size else b""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and _tells_sizes(found) else {}


def _tells_sizes(header: dict[str, Any]) -> bool:
    tensors = [one for name, one in header.items() if name != "__metadata__"]
    return all(isinstance(one, dict) and {"shape", "dtype"} <= one.keys() for one in tensors)


def _tensor_bytes(name: str, tensor: dict[str, Any], dtype: torch.dtype, quantize: str | None) -> float:
    numbers: int = math.prod(tensor["shape"])
    stored: str = tensor["dtype"]
    if stored not in _FLOATS:
        return numbers * _BYTES.get(stored, 1)
    if quantize and len(tensor["shape"]) == 2 and not _NOT_QUANTIZED.search(name):
        return numbers * BYTES_OF_A_WEIGHT[quantize]
    return numbers * dtype.itemsize


def _free_ram() -> int | None:
    if not _MEMINFO.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_of_container() -> int | None:
    """What a container's limit leaves; pages of files count as free."""
    limit = _CGROUP / "memory.max"
    if not limit.is_file() or not limit.read_text().strip().isdecimal():
        return None
    cached = re.search(r"^file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    used = int((_CGROUP / "memory.current").read_text()) - int(cached[1] if cached else 0)
    return int(limit.read_text()) - used


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
