"""The adapter protocol: all that vstream asks of a vision-language model.

An adapter turns frames into tokens and questions into tokens, and lends its decoder. It knows nothing of memory,
sessions or threads. A new family is one file with one subclass and one line in `vstream/models/__init__.py`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from vstream.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vstream.types import Frame, TokenSpan


@dataclass(frozen=True, eq=False)
class Question:
    """A question as tokens.

    Attributes:
        span: the whole turn, chat template included, up to where the answer starts.
        query: [N] bool, True on the question's own words: these alone are the retrieval query.
    """

    span: TokenSpan
    query: Tensor


@dataclass(frozen=True)
class Exchange:
    """An earlier question of a dialogue, and its answer."""

    question: str
    answer: str


class Adapter(ABC):
    """One loaded model behind the calls that a session makes.

    Subclasses set the attributes below and write the abstract methods. All methods are called under
    `torch.inference_mode()` and change nothing in the adapter; all but `question` by the one thread that holds `alone`.

    Attributes:
        name: what the user calls the model.
        fingerprint: changes whenever the same input would give other keys and values: a memory folder of another
            fingerprint is refused.
        decoder: the transformers decoder (takes `inputs_embeds`, `position_ids`, `past_key_values`).
        head: hidden states [.., E] to logits [.., vocabulary].
        eos_ids: token ids that end an answer.
        image_side: longest side, in pixels, that pictures should be brought to while decoding.
        max_positions: trained length; no position shown to the model reaches it.
        min_frame_tokens, max_frame_tokens: the fewest tokens of a clip's first group of frames, and the most of any,
            the text around it included.
        group_frames: so many consecutive frames become P tokens together; a clip's last group may have fewer.
        settings: of `Config`, those that suit the model better than the general defaults.
        num_axes: rotary axes A.
        keeps_patches: whether `layout` puts every one of a frame's P tokens into the span, in order.
        alone: held by whoever runs the model: how its attention is done is switched between passes.
    """

    name: str
    fingerprint: str
    decoder: nn.Module
    head: nn.Module
    eos_ids: frozenset[int]
    image_side: int
    max_positions: int
    min_frame_tokens: int
    max_frame_tokens: int
    settings: Mapping[str, Any] = MappingProxyType({})
    group_frames: int = 1
    num_axes: int = 1
    keeps_patches: bool = True

    def __init__(self) -> None:
        """Subclasses load the model, and call this."""
        self.alone = Turns()

    @abstractmethod
    def sink(self) -> TokenSpan:
        """The tokens before the first frame (the system prompt), kept for ever."""

    @abstractmethod
    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Visual features [G, P, W] of the G groups of T frames, that `layout` makes tokens of.

        For most families a group is a frame (`group_frames`), and W is the decoder's E.
        """

    @abstractmethod
    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """The frames' tokens with the text around them (timestamps, markers), from features [G, P, W].

        All tokens of a group have the time of its last frame: nobody sees it before that.
        """

    @abstractmethod
    def question(self, text: str, *, choices: Sequence[str] = (), earlier: Sequence[Exchange] = ()) -> Question:
        """The turn that asks `text`, with options to choose from behind it, and earlier turns before it.

        Raises:
            ValueError: if the model's chat template has no earlier turns.
        """

    @abstractmethod
    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids, special tokens left out."""

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The tokens of plain text, as `text` reads them back; any thread may ask."""

    def most_tokens(self, num_frames: int) -> int:
        """The most that a clip of so many frames takes."""
        return -(-num_frames // self.group_frames) * self.max_frame_tokens

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [.., E] of token ids [..]."""
        table: Any = self.decoder.get_input_embeddings()  # type: ignore[operator]
        found: Tensor = table(token_ids.to(self.device))
        return found

    @property
    def config(self) -> Any:
        """The decoder's transformers configuration."""
        return self.decoder.config

    @property
    def num_layers(self) -> int:
        """Decoder layers L."""
        return int(self.config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        return int(self.config.num_attention_heads)

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads K."""
        return int(self.config.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        """Head dimension D."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.num_heads)

    @property
    def dtype(self) -> torch.dtype:
        """Type of keys and values."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the decoder lives."""
        return next(self.decoder.parameters()).device

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables (cos, sin), each [1, N, D], for positions [A, N]: the model's own, in float32 or better."""
        probe = torch.empty(1, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        rotary_emb: Any = self.decoder.rotary_emb
        cos, sin = rotary_emb(probe, self.position_ids(positions.to(self.device)))
        return cos, sin

    def rotate(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys [B, K, N, D] turned by tables [1, N, D], by the model's own `apply_rotary_pos_emb`."""
        apply = sys.modules[type(self.decoder).__module__].apply_rotary_pos_emb
        rotated: Tensor = apply(keys, keys, cos, sin)[1]
        return rotated

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions [A, N] in the form the decoder takes: [1, N] for one axis, else [A, 1, N]."""
        return positions if self.num_axes == 1 else positions[:, None]

    def forward(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        """Hidden states [N, E] of a span's `embeds` at positions [A, N]; the cache is extended in place."""
        out = self.decoder(
            inputs_embeds=embeds[None],
            position_ids=self.position_ids(positions.to(self.device)),
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def forward_rows(self, embeds: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        """Hidden states [R, E] of one token each of R sequences: embeddings [R, E] at positions [A, R]."""
        positions = positions.to(self.device)
        out = self.decoder(
            inputs_embeds=embeds[:, None],
            position_ids=positions[0][:, None] if self.num_axes == 1 else positions[:, :, None],
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        hidden: Tensor = out.last_hidden_state[:, 0]
        return hidden
