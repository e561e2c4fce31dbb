"""What `vstream info` and `vstream models` tell: versions and devices, or what a memory folder holds.

This module knows nothing of terminals: it returns JSON values.
"""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstream.memory.block import BlockMeta

PACKAGES = (
    "vstream",
    "torch",
    "transformers",
    "av",
    "decord",
    "lmdb",
    "numpy",
    "pillow",
    "typer",
    "rich",
    "prompt_toolkit",
)


def machine_info() -> dict[str, Any]:
    """Versions, devices and the models that are installed."""
    from vstream.models.embedded.fetch import embedded_dir

    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "devices": _devices(),
        "models": [model["name"] for model in models_info() if model["installed"]],
        "models_folder": str(embedded_dir().parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [{"name": "cpu", "cores": os.cpu_count(), "memory_bytes": _ram_bytes()}]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(
            {"name": f"cuda:{index} {gpu.name}", "cores": gpu.multi_processor_count, "memory_bytes": gpu.total_memory}
        )
    return devices


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def models_info() -> list[dict[str, Any]]:
    """Every model that can be chosen."""
    from vstream.models import list_models

    return [asdict(model) for model in list_models()]


def models_listing() -> dict[str, list[dict[str, Any]]]:
    """Families of checkpoints that are served, and profiles: models that can be chosen by name."""
    from vstream.models import list_families

    return {"families": [dict(family) for family in list_families()], "profiles": models_info()}


def memory_info(folder: Path) -> dict[str, Any]:
    """What a memory folder holds; it may be in use or on a read-only disk.

    Raises:
        ValueError: if it holds no memory, or half of one.
    """
    from vstream.memory.disk import DiskTier
    from vstream.memory.folder import FORMAT_VERSION

    with DiskTier.open_readonly(folder) as disk:
        metas = [stored.meta for stored in disk.blocks()]
        state = json.loads(disk.state) if disk.state else {}
        return {
            "folder": str(folder),
            "format_version": FORMAT_VERSION,
            "created": disk.created,
            "identity": dict(disk.identity),
            "source": state.get("source"),
            "file_bytes": disk.file_bytes,
            "last_seconds": state.get("last_seconds"),
            "frames": state.get("counters"),
            "vision_tokens": state.get("vision_tokens"),
            "num_gaps": state.get("num_gaps", 0),
            "gaps": state.get("gaps", []),
            "levels": _levels(metas),
            "dialogue": [_turn(turn) for turn in state.get("dialogue", [])],
        }


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A question and its answer; where it looked is for `memory_spans`."""
    return {name: value for name, value in turn.items() if name not in ("evidence", "choices")}


@dataclass(frozen=True)
class Span:
    """A block on the stream's clock.

    Attributes:
        level: its level's name.
        start_seconds, end_seconds: its first and last frame.
        used: whether it was evidence for the last answer.
    """

    level: str
    start_seconds: float
    end_seconds: float
    used: bool


def memory_spans(folder: Path) -> list[Span]:
    """Every block of a memory folder, in the order of their ids.

    Raises:
        ValueError: if it holds no memory, or half of one.
    """
    from vstream.memory.disk import DiskTier
    from vstream.memory.levels import LEVEL_NAMES, SINK

    with DiskTier.open_readonly(folder) as disk, disk.snapshot():
        metas = [stored.meta for stored in disk.blocks()]
        turns = (json.loads(disk.state) if disk.state else {}).get("dialogue", [])
    used = {(kept[0], kept[1]) for kept in (turns[-1].get("evidence", []) if turns else [])}
    return [
        Span(LEVEL_NAMES[one.level], one.start_seconds, one.end_seconds, (one.start_seconds, one.end_seconds) in used)
        for one in metas
        if one.level != SINK
    ]


def _levels(metas: list[BlockMeta]) -> list[dict[str, Any]]:
    """Blocks, tokens, frames, codecs and time range of every level."""
    from vstream.memory.levels import LEVEL_NAMES, SINK

    by_level: dict[int, list[BlockMeta]] = defaultdict(list)
    for meta in metas:
        by_level[meta.level].append(meta)
    return [
        {
            "level": LEVEL_NAMES[level],
            "blocks": len(found),
            "tokens": sum(meta.num_tokens for meta in found),
            "frames": round(sum(meta.weight for meta in found)),
            "codec": ", ".join(sorted({meta.codec for meta in found})),
            "start_seconds": min(meta.start_seconds for meta in found),
            "end_seconds": max(meta.end_seconds for meta in found),
        }
        for level, found in sorted(by_level.items())
        if level != SINK
    ]
