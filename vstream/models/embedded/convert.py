"""Turns the published weight files into what the adapter loads: safetensors, tokenizer files, class names.

It knows the published formats (GGUF, a PyTorch checkpoint, JSON) and nothing of where the files come from. The GGUF is
read with the `gguf` package: transformers reads it too (to the same bits), but needs `accelerate` for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vstream.models.embedded import efficientnet
from vstream.models.loading import quiet_transformers

LANGUAGE, VISION, CLASSES = "language", "vision.safetensors", "classes.json"

_LAYER_PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def convert_language(gguf: Path, folder: Path) -> None:
    """Writes config, bfloat16 weights and tokenizer of a Llama GGUF file into `folder`."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    reader = GGUFReader(gguf)
    with quiet_transformers():
        config = _language_config(reader)
        config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    save_file(_language_weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})


def _language_config(reader: Any) -> Any:
    from transformers import LlamaConfig

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    return LlamaConfig(
        hidden_size=field("llama.embedding_length"), intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"), num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"), vocab_size=field("llama.vocab_size"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=field("llama.context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        bos_token_id=field("tokenizer.ggml.bos_token_id"), eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"), architectures=["LlamaForCausalLM"],
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors), dtype="bfloat16",
    )  # fmt: skip


def _language_weights(reader: Any, config: Any) -> dict[str, Tensor]:
    """The model's tensors under transformers' names; tied embeddings are stored once."""
    from gguf.quants import dequantize

    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if ".attn_q." in tensor.name:
            weight = _halves(weight, config.num_attention_heads)
        if ".attn_k." in tensor.name:
            weight = _halves(weight, config.num_key_value_heads)
        weights[_language_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    return weights


def _language_name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{_LAYER_PARTS[part]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight"}[name]  # fmt: skip


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection [heads * D, E]: GGUF's rotary pairs (0, 1).. become transformers' (0, D/2).."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def convert_vision(checkpoint: Path, target: Path) -> None:
    """Writes the classifier's tensors under our names."""
    published = torch.load(checkpoint, map_location="cpu", weights_only=True)
    renamed = efficientnet.rename_weights(published)
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, target)


def convert_classes(label_to_names: Path, target: Path) -> None:
    """Writes the list of the 1000 class names: the first synonym of each."""
    labels = json.loads(label_to_names.read_text())
    names = [labels[str(index)].split(",")[0].strip() for index in range(efficientnet.NUM_CLASSES)]
    target.write_text(json.dumps(names, indent=1) + "\n")
