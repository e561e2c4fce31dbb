"""A checkpoint folder in the hub's own layout: its JSON files, its chat template, its fingerprint, and where it is.

Importing it loads neither torch nor transformers. It knows nothing of what the files mean to a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
WEIGHTS = "*.safetensors"
_KEPT = (WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")  # *.model: a sentencepiece vocabulary; nothing pickled
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
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
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


def find_checkpoint(model: str) -> Checkpoint | None:
    """The checkpoint that a user names: a folder, or a repository in the hub's cache or on the hub; None for neither.

    Raises:
        ValueError: if the folder is no checkpoint.
        FileNotFoundError: if the repository is not here and cannot be fetched.
    """
    folder = Path(os.path.expanduser(model))
    if os.path.isdir(folder):  # False for names that no folder can have
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{model} is no checkpoint: it has no {CONFIG}")
        if not _is_whole(folder):
            raise ValueError(f"{model} is not whole: it has no safetensors, or not all; fetch the checkpoint again")
        return Checkpoint(folder, str(folder.resolve()))
    return Checkpoint(_fetched(model), model) if "/" in model else None


def _fetched(repository: str) -> Path:
    """The repository's folder in the hub's cache, filled where need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        cached = Path(snapshot_download(repository, local_files_only=True))
        if _is_whole(cached):
            return cached
    except (FileNotFoundError, HFValidationError):
        pass
    try:
        fetched = Path(snapshot_download(repository, allow_patterns=list(_KEPT)))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{repository!r} is no folder, is not in the hub's cache, and cannot be fetched ({reason})"
        ) from error
    if not _is_whole(fetched):  # when the hub cannot be reached, what there is
        raise FileNotFoundError(f"{repository!r} is not whole in the hub's cache, and cannot be fetched")
    return fetched


def _is_whole(folder: Path) -> bool:
    """Whether config and all weights that the index names are there."""
    index = Checkpoint(folder, folder.name).json("model.safetensors.index.json")
    shards = set(index.get("weight_map", {}).values())
    return (folder / CONFIG).is_file() and any(folder.glob(WEIGHTS)) and all((folder / one).is_file() for one in shards)
