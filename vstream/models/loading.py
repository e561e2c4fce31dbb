"""Loading stock transformers models from a folder: quietly, with every weight found, and without code from elsewhere.

It knows nothing of families, tokens or the hub.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


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
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ValueError(f"the {part} in {folder} cannot be read ({reason}); fetch the checkpoint again") from error


def load_model(model_class: Any, folder: Path, *, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    """A model in evaluation mode, without gradients, with sdpa attention.

    Args:
        model_class: a transformers class.
        folder: a checkpoint with safetensors.
        device: where it computes.
        dtype: None for the checkpoint's own on a GPU, float32 on a CPU (where 16 bits are slow).

    Raises:
        ValueError: if weights cannot be read, have other shapes, or are missing, which would be random then.
    """
    device = torch.device(device)
    with quiet_transformers(), readable("weights", folder):
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype or ("auto" if device.type == "cuda" else torch.float32),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    wrong = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"of the weights in {folder}, {len(wrong)} are missing or have another shape ({wrong[0]} ...); fetch the "
            "checkpoint again"
        )
    return model.eval().requires_grad_(False).to(device)


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer, from its own files alone."""
    from transformers import AutoTokenizer

    with quiet_transformers(), readable("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """All token ids that end an answer, by the model's generation configuration and by its tokenizer."""
    found = model.generation_config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
