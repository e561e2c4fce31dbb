"""RandomLlama: a tiny Llama with random weights behind the adapter protocol, for tests of everything around a model.

It needs no files. Its text is bytes, its pictures are averaged patches, its answers mean nothing, but its keys, values
and logits depend on every token as a real model's do. It knows nothing of memory or sessions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from vstream.choices import choices_text
from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Exchange, Question
from vstream.models.spans import plain_span, question_of, timestamped
from vstream.types import Frame, TokenSpan

EOS = 256  # bytes are 0..255
SYSTEM = "You watch a video.\n"
STATISTICS = 6  # of a patch: mean and spread of red, green and blue


class RandomLlama(Adapter):
    """The tiny model.

    Args:
        seed: of all weights.
        layers, hidden, heads, kv_heads, head_dim: the decoder's shape L, E, H, K, D.
        max_positions: trained length.
        dtype: float32 or float64.
        device: where it computes.
        tokens_per_frame: P, for pictures.
        rope: transformers' `rope_parameters`, None for plain rotary positions.
    """

    name = "random"
    image_side = 64

    def __init__(
        self,
        *,
        seed: int = 0,
        layers: int = 3,
        hidden: int = 64,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        max_positions: int = 4096,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tokens_per_frame: int = 4,
        rope: dict[str, Any] | None = None,
    ) -> None:
        if tokens_per_frame < 1:
            raise ValueError(f"tokens_per_frame must be >= 1, got {tokens_per_frame}")
        config = LlamaConfig(
            vocab_size=EOS + 1, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
            max_position_embeddings=max_positions, rope_parameters=rope, initializer_range=0.3,
            bos_token_id=None, eos_token_id=EOS, tie_word_embeddings=False,
        )  # fmt: skip
        super().__init__()
        self.tokens_per_frame = tokens_per_frame
        self.max_positions = max_positions
        self.min_frame_tokens = len("[0:00]\n") + tokens_per_frame
        self.max_frame_tokens = len("[9999:59]\n") + tokens_per_frame
        self.eos_ids = frozenset({EOS})
        language, self.projection = _random_weights(config, seed, dtype, torch.device(device))
        self.decoder, self.head = language.model, language.lm_head
        self.fingerprint = _fingerprint(config, seed, dtype, tokens_per_frame)

    def sink(self) -> TokenSpan:
        """The bytes of a short system prompt."""
        return self._text_span(SYSTEM, TokenKind.MARKER)

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Features [T, P, E]: of pictures by a random projection of patch colours; [P, E] images are the features."""
        return torch.stack([self._features(torch.from_numpy(frame.image)) for frame in frames])

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """`[m:ss]`, the frame's tokens and a newline, for each frame."""
        return timestamped(frames, features, self._text_span)

    def question(self, text: str, *, choices: Sequence[str] = (), earlier: Sequence[Exchange] = ()) -> Question:
        """The question's bytes between two markers, and earlier ones with their answers alike."""
        before = "".join(f"\nQ: {one.question}\nA: {one.answer}" for one in earlier) + "\nQ: "
        parts = (self._text_span(part, TokenKind.MARKER) for part in (before, text, f"{choices_text(choices)}\nA: "))
        return question_of(*parts)

    def text(self, token_ids: Sequence[int]) -> str:
        """The bytes as text; bytes that are no UTF-8 become replacement characters."""
        return bytes(token for token in token_ids if token < EOS).decode(errors="replace")

    def token_ids(self, text: str) -> list[int]:
        """The text's bytes."""
        return list(text.encode())

    def _features(self, image: Tensor) -> Tensor:
        """[P, E] of a picture [H, W, 3], or the features [P, E] themselves."""
        if image.ndim == 2:
            if image.shape[1] != self.config.hidden_size:
                raise ValueError(f"features must be [tokens, {self.config.hidden_size}], got {list(image.shape)}")
            return image.to(self.device, self.dtype)
        colours = image.to(self.device, torch.float64).movedim(-1, 0) / 255  # [3, H, W]
        means = F.adaptive_avg_pool2d(colours, (1, self.tokens_per_frame))[:, 0]  # [3, P]
        squares = F.adaptive_avg_pool2d(colours**2, (1, self.tokens_per_frame))[:, 0]
        spread = (squares - means**2).clamp(min=0).sqrt()
        return torch.cat([means, spread]).T.to(self.dtype) @ self.projection  # [P, 6] @ [6, E]

    def _text_span(self, text: str, kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(self.token_ids(text), dtype=torch.long)), kind)


def load(*, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0) -> RandomLlama:
    """The model as the registry loads it."""
    return RandomLlama(seed=seed, device=device, dtype=dtype or torch.float32)


def _random_weights(
    config: LlamaConfig, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[LlamaForCausalLM, Tensor]:
    """The language model and the projection [6, E]; the program's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language: Any = LlamaForCausalLM(config)
        projection = torch.randn(STATISTICS, config.hidden_size)
    return language.eval().requires_grad_(False).to(device, dtype), projection.to(device, dtype)


def _fingerprint(config: LlamaConfig, seed: int, dtype: torch.dtype, tokens_per_frame: int) -> str:
    shape = {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
    keywords = f"{json.dumps(shape, sort_keys=True, default=str)} seed {seed}, {dtype}, {tokens_per_frame} tokens"
    return hashlib.sha256(keywords.encode()).hexdigest()[:16]
