"""Tiny LLaVA-OneVision checkpoints with random weights, in the layout that the hub has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolLM3Config,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from recipes import square_pictures
from recipes.llava_onevision import TEMPLATE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TEXT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # a tokenizer's own
PICTURES = square_pictures(64)
_TEXT = {
    "qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig, "smollm3": SmolLM3Config,
}  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 256 tokens and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("1", "2"), ("t", "h")]
    vocab = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return tokenizer


def word_tokenizer() -> Tokenizer:
    """A tokenizer of a few words, for which a newline is nothing."""
    words = ["[UNK]", "[", "]", ":", "what", "is", "shown", "user", "assistant", *map(str, range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write_checkpoint(
    folder: Path, *, text: str = "qwen2", seed: int = 0, tokenizer: Tokenizer | None = None, shards: bool = False,
    side: int = 64, **text_config: Any,
) -> Path:  # fmt: skip
    """Makes a checkpoint of 3 decoder layers, for pictures of so many pixels."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or byte_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL, chat_template=TEXT_TEMPLATE,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEXT_TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PICTURES, "size": {"height": side, "width": side}}))
    (folder / "processor_config.json").write_text(json.dumps({"num_image_tokens": 16, "video_token": "<video>"}))
    model = random_model(wrapped, text, seed, side, text_config)
    model.generation_config = GenerationConfig(eos_token_id=[wrapped.convert_tokens_to_ids("<|endoftext|>")])
    model.save_pretrained(folder, max_shard_size="50KB" if shards else "1GB")
    return folder


def random_model(tokenizer: Any, text: str, seed: int, side: int, text_config: dict[str, Any]) -> Any:
    """The stock class with weights spread widely enough that every token matters."""
    shape = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "bos_token_id": None, "pad_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
    }  # fmt: skip
    if text == "qwen2":
        del shape["head_dim"]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=side,
            patch_size=16, vision_use_head=False,
        ),
        text_config=_TEXT[text](**{**shape, **text_config}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaOnevisionForConditionalGeneration(config).eval()
