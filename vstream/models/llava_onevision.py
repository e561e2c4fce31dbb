"""LlavaOnevisionAdapter: stock LLaVA-OneVision checkpoints, read as one picture a frame behind the text `[m:ss]`.

Pictures go through the model's own video path: vision tower, projector, bilinear pooling. It knows nothing of memory
or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Question
from vstream.models.chat import read_turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.exact import check_config, check_moving, check_rotary
from vstream.models.loading import load_model, load_tokenizer
from vstream.models.pictures import PictureSpec, prepare
from vstream.models.sizes import roomy_settings
from vstream.models.spans import join_spans, plain_span, question_of, timestamped
from vstream.models.tokens import Tokens, timestamp_tokens
from vstream.types import Frame, TokenSpan

PROMPT_VERSION = 1  # rises when any text or picture step below changes: memories made with another one are refused
FRAMES_AT_ONCE = 8


class LlavaOnevisionAdapter(Adapter):
    """A `LlavaOnevisionForConditionalGeneration` with a text model of full attention: Qwen2, Qwen3, Llama.

    Attributes:
        model: the stock model.
        pictures: how a picture is prepared.
        tokens: the checkpoint's tokenizer.
        turn: its chat template, cut.
        tokens_per_frame: P, of the pooled grid.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        """Loads a checkpoint.

        Args:
            checkpoint: the folder, whole.
            device: where it computes.
            dtype: None for the checkpoint's own on a GPU, float32 on a CPU.

        Raises:
            ValueError: for a checkpoint that cannot be served exactly, or is not whole.
        """
        super().__init__()
        from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

        self.name = checkpoint.name
        config: Any = LlavaOnevisionConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        check_config(config.text_config, self.name)
        self.pictures = PictureSpec.from_config(checkpoint.picture_config())
        self.tokens_per_frame = _tokens_per_frame(config, self.pictures)
        self.tokens = Tokens(load_tokenizer(checkpoint.folder))
        placeholder = self.tokens.tokenizer.convert_ids_to_tokens(config.video_token_id)
        self.turn = read_turn(self.tokens.tokenizer, checkpoint.chat_template(), placeholder)
        stock = LlavaOnevisionForConditionalGeneration
        self.model: Any = load_model(stock, checkpoint.folder, device=device, dtype=dtype)
        self.decoder, self.head = self.model.get_decoder(), self.model.get_output_embeddings()
        check_rotary(self.decoder, self.name)
        self._set_sizes()
        self.fingerprint = checkpoint.fingerprint(PROMPT_VERSION, self.dtype)
        check_moving(self)

    def sink(self) -> TokenSpan:
        """What the chat template has before the video."""
        return self._span(self.tokens.marked(self.turn.before_video), TokenKind.MARKER)

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Pooled visual tokens [T, P, E]."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self._features(batch) for batch in batches])

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """`[m:ss]`, the frame's tokens and a newline, for each frame."""
        return timestamped(frames, features, lambda text, kind: self._span(self.tokens.ids(text), kind))

    def question(self, text: str) -> Question:
        """The model's own mark for the end of a video, then the rest of the chat template around the question."""
        end_of_video = plain_span(self.model.model.image_newline[None], TokenKind.MARKER)
        parts = (self.tokens.marked(self.turn.before_question), self.tokens.ids(text),
                 self.tokens.marked(self.turn.after_question))  # fmt: skip
        before, words, after = (self._span(ids, TokenKind.MARKER) for ids in parts)
        return question_of(join_spans([end_of_video, before]), words, after)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def _features(self, frames: Sequence[Frame]) -> Tensor:
        """[T, P, E] of a batch, without the one token that the model puts behind a whole video."""
        pixels = prepare(frames, self.pictures).to(self.device, self.dtype)  # [T, 3, H, W]
        pooled: Tensor = self.model.get_video_features(pixels[None]).pooler_output[0, :-1]  # [T * P, E]
        return pooled.view(len(frames), self.tokens_per_frame, -1)

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids, dtype=torch.long)), kind)

    def _set_sizes(self) -> None:
        fewest, most = timestamp_tokens(self.tokens)
        self.min_frame_tokens = fewest + self.tokens_per_frame
        self.max_frame_tokens = most + self.tokens_per_frame
        self.max_positions = int(self.config.max_position_embeddings)
        self.image_side = 2 * max(self.pictures.height, self.pictures.width)  # the short side of most is no shorter
        self.eos_ids = _eos_ids(self.model, self.tokens.tokenizer)
        self.settings = MappingProxyType(roomy_settings(self))
        if not len(self.sink()):
            raise ValueError(f"the chat template of {self.name!r} must begin with some text, but the video comes first")


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0
) -> LlavaOnevisionAdapter:
    """The checkpoint as the registry loads it; it has nothing random, so `seed` changes nothing."""
    return LlavaOnevisionAdapter(checkpoint, device=device, dtype=dtype)


def _tokens_per_frame(config: Any, pictures: PictureSpec) -> int:
    """P: the grid of patches, halved in both directions."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    if (pictures.height, pictures.width) != (side, side):
        raise ValueError(
            f"the processor makes pictures of {pictures.height} x {pictures.width}, but the vision tower takes "
            f"{side} x {side}; the checkpoint's files do not belong together"
        )
    return int(math.ceil(side // patch / 2) ** 2)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All that end an answer, by the generation's configuration and by the tokenizer."""
    found = model.generation_config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
