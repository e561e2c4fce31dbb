"""Finding a checkpoint: a folder, or a repository in the hub's cache or on the hub.

Importing it loads neither torch nor transformers, and the hub's own package only for a repository. It knows nothing of
what a checkpoint holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vstream.models.checkpoint import CONFIG, WEIGHTS, Checkpoint
from vstream.models.options import LoadOptions

_KEPT = (WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")  # *.model: a sentencepiece vocabulary; nothing pickled
_CODE = "*.py"

Check = Callable[[Checkpoint], object]
"""Raises for a checkpoint that will not do."""


def find_checkpoint(
    model: str, options: LoadOptions | None = None, *, check: Check = lambda found: None
) -> Checkpoint | None:
    """The checkpoint that a user names: a folder, or a repository in the hub's cache or on the hub; None for neither.

    Args:
        model: as the user names it.
        options: which revision, and whether anything may be fetched.
        check: asked as soon as there is a `config.json`, before anything else is fetched.

    Raises:
        ValueError: if the folder is no checkpoint, or it is a file.
        FileNotFoundError: if the repository is not here and cannot be fetched.
    """
    options = options or LoadOptions()
    if not model:
        return None
    folder = Path(os.path.expanduser(model))
    if os.path.isfile(folder):
        raise ValueError(f"{model} is a file; give the folder of a checkpoint, with its {CONFIG} and safetensors")
    if os.path.isdir(folder):  # False for names that no folder can have
        return _in_folder(folder, model, options)
    return _in_repository(model, options, check) if "/" in model else None


def _in_folder(folder: Path, model: str, options: LoadOptions) -> Checkpoint:
    if options.revision is not None:
        raise ValueError(f"revision={options.revision!r} is one of a repository, but {model} is a folder; leave it out")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{model} is no checkpoint: it has no {CONFIG}")
    checkpoint = Checkpoint(folder, str(folder.resolve()))
    if not checkpoint.is_whole:
        raise ValueError(f"{model} is not whole: it has no safetensors, or not all; fetch the checkpoint again")
    return checkpoint


def _in_repository(repository: str, options: LoadOptions, check: Check) -> Checkpoint:
    """What is in the hub's cache; else what is fetched, its configuration first."""
    cached = _cached(repository, options)
    if cached is None or not cached.is_whole:
        if options.local_files_only:
            raise FileNotFoundError(
                f"{repository!r} is not whole in the hub's cache, and nothing may be fetched (--offline); "
                f"{_download(repository, options)} first"
            )
        cached = _fetched(repository, options, (CONFIG,))
        check(cached)
        cached = _fetched(repository, options, _kept(options))
    if not cached.is_whole:  # when the hub cannot be reached, what there is
        raise FileNotFoundError(
            f"{repository!r} is not whole in the hub's cache, and cannot be fetched; {_download(repository, options)} "
            "where there is a network"
        )
    return cached


def _cached(repository: str, options: LoadOptions) -> Checkpoint | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            repository, revision=options.revision, allow_patterns=_kept(options), local_files_only=True
        )
    except FileNotFoundError:
        return None
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{repository!r} is no folder, and no repository's name either; write owner/model"
        ) from error
    return Checkpoint(Path(folder), repository)


def _fetched(repository: str, options: LoadOptions, kept: Sequence[str]) -> Checkpoint:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, revision=options.revision, allow_patterns=list(kept))
    except OSError as error:
        _refuse(repository, options, error)
    return Checkpoint(Path(folder), repository)


def _refuse(repository: str, options: LoadOptions, error: OSError) -> NoReturn:
    """Says in one sentence why a repository could not be fetched, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        sentence = f"{repository!r} is gated: accept its terms on the hub, log in with `hf auth login`, and try again"
    elif isinstance(error, errors.RepositoryNotFoundError):
        sentence = f"the hub has no repository {repository!r}, or it is private: check the name or `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        sentence = f"{repository!r} has no revision {options.revision or 'main'!r}; give a branch, tag or commit it has"
    else:
        reason = str(error).strip().splitlines()[0]
        sentence = (
            f"{repository!r} is no folder, is not in the hub's cache, and cannot be fetched ({reason}); "
            f"{_download(repository, options)} where there is a network, or give a checkpoint's folder"
        )
    raise FileNotFoundError(sentence) from error


def _download(repository: str, options: LoadOptions) -> str:
    """What to run to have the repository."""
    revision = f" --revision {options.revision}" if options.revision else ""
    return f"run `hf download {repository}{revision}`"


def _kept(options: LoadOptions) -> list[str]:
    """What of a repository is fetched: its code only for those who trust it."""
    return [*_KEPT, _CODE] if options.trust_remote_code else list(_KEPT)
