"""Loading stock transformers models from a folder: quietly, with every weight found, and without code from elsewhere.

It knows nothing of families, tokens or the hub.
"""

from __future__ import annotations

import contextlib
import importlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vstream.models.checkpoint import Checkpoint
from vstream.models.options import LoadOptions
from vstream.models.placement import check_one_place, placed, torch_device, torch_dtype
from vstream.models.room import check_room


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and only errors from transformers, as long as it lasts."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def readable(part: str, folder: Path) -> Iterator[None]:
    """Says in one sentence which part of a checkpoint cannot be read, whatever a library raises over it."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"the {part} in {folder} need a package that is missing ({_reason(error)})") from error
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the {part} in {folder} do not fit; quantize them or choose a smaller model") from error
    except Exception as error:
        raise ValueError(
            f"the {part} in {folder} cannot be read ({_reason(error)}); fetch the checkpoint again"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what a library says, with the next one where that only announces it."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    told = f"{first} {more[0]}" if more and first.rstrip().endswith(":") else first
    return textwrap.shorten(told, 160, placeholder=" ...").rstrip(" ,:")


def load_model(model_class: Any, checkpoint: Checkpoint, options: LoadOptions) -> Any:
    """A model in evaluation mode, without gradients; its decoder's attention is sdpa.

    Args:
        model_class: a transformers class.
        checkpoint: with safetensors.
        options: where it goes, and how.

    Raises:
        ValueError: if memory or a package is missing; if weights cannot be read, have other shapes, or are missing,
            which would be random then.
    """
    folder, config = checkpoint.folder, checkpoint.config
    device = torch_device(options.device)
    dtype = torch_dtype(options.dtype, device, config)
    keywords = placed(options, config, device, dtype, checkpoint.name)
    if options.device_map is None:
        check_room(folder, checkpoint.name, device=device, dtype=dtype, quantize=options.quantize)
    with quiet_transformers(), readable("weights", folder):
        model, report = model_class.from_pretrained(
            folder,
            **keywords,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_whole(report, folder)
    check_one_place(model, checkpoint.name)
    model = model.eval().requires_grad_(False)
    return model if "device_map" in keywords else model.to(device)


def _check_whole(report: dict[str, Any], folder: Path) -> None:
    wrong = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"of the weights in {folder}, {len(wrong)} are missing or have another shape ({wrong[0]} ...); fetch the "
            "checkpoint again"
        )


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's tokenizer, from its own files alone; code among them runs only if it is trusted."""
    from transformers import AutoTokenizer

    with quiet_transformers(), readable("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """All token ids that end an answer, by the model's generation configuration and by its tokenizer."""
    found = model.generation_config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
