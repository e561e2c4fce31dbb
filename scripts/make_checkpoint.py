#!/usr/bin/env python3
"""Writes a tiny random checkpoint of a model family, in the layout that the hub has it, for tests.

    .venv/bin/python scripts/make_checkpoint.py llava_onevision FOLDER --seed 1

The tokenizer is SmolLM2's, from the installed embedded model, with the family's own special tokens. The chat template
is written from the family's documentation, not copied from a repository. Weights are random, and spread widely enough
that every token matters: such a model says nothing sensible, but what it says depends on every frame. What a family
has in its files is in `recipes/`, a module by `model_type`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recipes import Recipe
from torch import nn

from vstream.models.embedded import fetch
from vstream.models.embedded.convert import LANGUAGE
from vstream.models.families import FAMILIES as SERVED
from vstream.models.loading import quiet_transformers

FAMILIES = tuple(family.model_type for family in SERVED)
_MATRIX_GAIN = 1.5  # of a matrix's outputs over its inputs
_ROUND = 64  # vocabularies are padded to such a number, as the hub's are


def make_checkpoint(family: str, folder: Path, *, seed: int = 0, tokenizer_file: Path | None = None) -> Path:
    """Fills `folder`, which need not exist, with a checkpoint of about 15 to 30 MB in float32.

    Args:
        family: one of `FAMILIES`.
        folder: what lies in it under the same names is replaced.
        seed: of the weights.
        tokenizer_file: a `tokenizer.json` other than SmolLM2's.

    Raises:
        ValueError: for an unknown family.
        FileNotFoundError: if the embedded model, whose tokenizer is needed, is not installed.
    """
    recipe = recipe_of(family)
    with quiet_transformers():
        tokenizer = write_small_files(recipe, folder, tokenizer_file)
        _save_model(recipe, tokenizer, folder, seed)
    return folder


def recipe_of(family: str) -> Recipe:
    """What a family has in its files.

    Raises:
        ValueError: for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"there is no recipe for {family!r}; choose from {', '.join(FAMILIES)}")
    found: Recipe = importlib.import_module(f"recipes.{family}").recipe()
    return found


def write_small_files(recipe: Recipe, folder: Path, tokenizer_file: Path | None = None) -> Any:
    """Everything but the model and its configuration; the tokenizer is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in recipe.files.items():
        _write_json(folder / name, content)
    return _save_tokenizer(recipe, folder, tokenizer_file)


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The stock model, small, for a tokenizer with the family's special tokens."""
    return recipe.model(tokenizer.convert_tokens_to_ids, -(-len(tokenizer) // _ROUND) * _ROUND)


def _save_tokenizer(recipe: Recipe, folder: Path, tokenizer_file: Path | None) -> Any:
    """SmolLM2's tokens, or another's, and the family's; the chat template goes where the family has it."""
    from transformers import PreTrainedTokenizerFast

    file = tokenizer_file or fetch.embedded_dir() / LANGUAGE / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError("the tokenizer is the embedded model's; run `vstream models add embedded` first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=recipe.end, pad_token=recipe.pad,
        additional_special_tokens=list(recipe.special),
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    if recipe.template_file.endswith(".jinja"):
        (folder / recipe.template_file).write_text(recipe.template)
    else:
        _write_json(folder / recipe.template_file, {"chat_template": recipe.template})
    return tokenizer


def _save_model(recipe: Recipe, tokenizer: Any, folder: Path, seed: int) -> None:
    from transformers import GenerationConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(recipe, tokenizer)
        spread_weights(model)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Draws every matrix anew, so that what goes through it grows a little, and small biases; norms stay."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim >= 2:
                inputs = weight[0].numel() if weight.shape[0] > 1 else weight.shape[-1]
                weight.normal_(std=_MATRIX_GAIN / inputs**0.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args()
    try:
        make_checkpoint(options.family, options.folder, seed=options.seed)
    except FileNotFoundError as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
