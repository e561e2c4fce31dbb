"""A checkpoint folder in the hub's own layout: its JSON files, its chat template, its fingerprint.

Importing it loads neither torch nor transformers. It knows nothing of what the files mean to a model, or
of where they come from.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
_TEXTS = (".json", ".jinja", ".txt", ".model")
_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors.

    Attributes:
        folder: where it is.
        name: what the user calls it: a repository's name, or the folder's full path.
    """

    folder: Path
    name: str

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return self.json(CONFIG)

    @property
    def is_whole(self) -> bool:
        """Whether all weights are there, by the index if there is one."""
        there = (self.folder / CONFIG).is_file() and any(path.is_file() for path in self.folder.glob(WEIGHTS))
        return there and all((self.folder / one).is_file() for one in self._shards())

    def _shards(self) -> set[str]:
        """The files that the index names, none where there is no index."""
        shards = self.json(INDEX).get("weight_map", {})
        if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
            raise ValueError(f"{self.folder / INDEX} must name a file for each weight; fetch the checkpoint again")
        return set(shards.values())

    def check_parts(self, *parts: str) -> None:
        """Raises `ValueError` for a configuration without one of these parts: transformers would take a default one."""
        for part in parts:
            if not isinstance(self.config.get(part), dict):
                raise ValueError(f"{self.folder / CONFIG} has no {part}; fetch the checkpoint again")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's object, empty where there is no such file.

        Raises:
            ValueError: if it is no JSON object.
        """
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}); fetch the checkpoint again") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} must be a JSON object, not {type(found).__name__}; fetch the checkpoint again")
        return found

    def picture_config(self) -> dict[str, Any]:
        """How frames are prepared, or else single pictures: the first that is there, in transformers' own order."""
        processor = self.json("processor_config.json")
        found = (
            processor.get("video_processor") or self.json("video_preprocessor_config.json")
            or processor.get("image_processor") or self.json("preprocessor_config.json")
        )  # fmt: skip
        if not found:
            raise ValueError(f"{self.folder} has no preprocessor_config.json; fetch the whole checkpoint")
        return dict(found)

    def chat_template(self) -> str | None:
        """The processor's template, which knows of videos; None leaves it to the tokenizer's own."""
        jinja = self.folder / "chat_template.jinja"
        if jinja.is_file():
            return jinja.read_text()
        found = self.json("chat_template.json") or self.json("processor_config.json")
        return found.get("chat_template")

    def fingerprint(self, *more: object) -> str:
        """16 hexadecimal digits that change with the folder's content and with `more`.

        Small files, and weights of up to 64 MiB in all, are hashed whole. Of larger weights the headers (names, shapes,
        places), the sizes and 4 KiB of every tensor are: enough to tell any training apart, and read in a moment.
        """
        digest = hashlib.sha256(repr(more).encode())
        weights = sorted(self.folder.glob(WEIGHTS))
        whole = sum(path.stat().st_size for path in weights) <= _WHOLE_BYTES
        for path in sorted(path for path in self.folder.iterdir() if path.suffix in _TEXTS):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
        for path in weights:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if whole else _samples(path))
        return digest.hexdigest()[:16]


def _samples(path: Path) -> bytes:
    """The header of a safetensors file and the start of every tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
        taken = [header]
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                file.seek(8 + length + start)
                taken.append(file.read(min(_SAMPLE_BYTES, stop - start)))
    return b"".join(taken)
