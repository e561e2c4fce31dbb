"""CheckpointAdapter: what families of vision-language checkpoints share: loading, chat template, timestamps, sizes.

A family is a subclass that names transformers' class and turns pictures into tokens. This module knows nothing of
memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Question
from vstream.models.chat import Turn, cut_turn, render_turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.exact import check_config, check_moving, check_rotary
from vstream.models.families import family_of
from vstream.models.loading import end_tokens, load_model, load_tokenizer, readable
from vstream.models.options import LoadOptions
from vstream.models.pictures import PictureSpec
from vstream.models.sizes import roomy_settings
from vstream.models.spans import join_spans, plain_span, question_of, timestamped
from vstream.models.tokens import Tokens, timestamp_tokens
from vstream.types import Frame, TokenSpan


class CheckpointAdapter(Adapter):
    """A stock model, asked through its checkpoint's own chat template.

    Attributes:
        model: the stock model.
        pictures: how a picture is prepared, where all have one size.
        tokens: the checkpoint's tokenizer.
        turn: its chat template, cut.
        tokens_per_frame: visual tokens P of a frame, where all have the same.
        options: how it was loaded.
        takes_max_pixels: whether the family reads `options.max_pixels`.
        prompt_version: of the family; rises when any text or picture step changes, so that memories made with another
            one are refused.
    """

    prompt_version: int
    takes_max_pixels: ClassVar[bool] = False
    parts: tuple[str, ...] = ("text_config", "vision_config")

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions | None = None, **single: Any) -> None:
        """Loads a checkpoint; what its small files tell is checked before its weights are read.

        Args:
            checkpoint: the folder, whole.
            options: how; or give single ones by name (`device`, `dtype`, ...), the device is "cpu" then unless given.

        Raises:
            ValueError: for a checkpoint that cannot be served exactly, or is not whole, and for options that it cannot
                follow.
        """
        super().__init__()
        self.options = LoadOptions.of(options, single if options else {"device": "cpu", **single})
        self._family = family_of(checkpoint)
        self._check_options(checkpoint)
        self.name = checkpoint.name
        checkpoint.check_parts(*self.parts)
        model_class = self._model_class()
        with readable("configuration", checkpoint.folder):
            config = model_class.config_class.from_pretrained(checkpoint.folder, local_files_only=True)
        check_config(config.get_text_config(), self.name)
        self._read_pictures(checkpoint.picture_config(), config)
        self.tokens = Tokens(load_tokenizer(checkpoint.folder, trust_remote_code=self.options.trust_remote_code))
        self.turn = self._read_turn(checkpoint, config.video_token_id)
        self.model = load_model(model_class, checkpoint, self.options)
        self.decoder, self.head = self.model.get_decoder(), self.model.get_output_embeddings()
        check_rotary(self.decoder, self.name)
        self._set_sizes()
        self.fingerprint = checkpoint.fingerprint(self.prompt_version, self.dtype, *self.options.changes())
        check_moving(self, quantized=bool(getattr(self.model, "is_quantized", False)))

    def _model_class(self) -> Any:
        """transformers' class for the checkpoint: the one that the registry names."""
        return getattr(importlib.import_module("transformers"), self._family.class_name)

    def _read_pictures(self, settings: Mapping[str, Any], config: Any) -> None:
        """How pictures are prepared, by the processor's settings and the model's configuration.

        Raises:
            ValueError: where they do not belong together.
        """
        self.pictures = PictureSpec.from_config(settings)
        self.tokens_per_frame = self._count_tokens(config)

    def _count_tokens(self, config: Any) -> int:
        """P, from the model's configuration and `pictures`; `ValueError` where they do not belong together."""
        raise NotImplementedError("a family whose pictures have one size counts its tokens")

    def _frame_tokens(self) -> tuple[int, int]:
        """The fewest and the most tokens of a group of frames, with the text around them."""
        fewest, most = timestamp_tokens(self.tokens)
        return fewest + self.tokens_per_frame, most + self.tokens_per_frame

    def _image_side(self) -> int:
        """Longest side of a picture that is worth decoding: even the short side is seldom enlarged."""
        return 2 * max(self.pictures.height, self.pictures.width)

    def _end_of_video(self) -> TokenSpan:
        """What the model itself puts once behind all frames; nothing unless the family does."""
        return self._span([], TokenKind.MARKER)

    def sink(self) -> TokenSpan:
        """What the chat template has before the video."""
        return self._span(self.tokens.marked(self.turn.before_video), TokenKind.MARKER)

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """`[m:ss]`, the frame's tokens and a newline, for each frame."""
        return timestamped(frames, features, lambda text, kind: self._span(self.tokens.ids(text), kind))

    def question(self, text: str) -> Question:
        """The end of the video, then the rest of the chat template around the question."""
        before = self._span(self.tokens.marked(self.turn.before_question), TokenKind.MARKER)
        words = self._span(self.tokens.ids(text), TokenKind.MARKER)
        after = self._span(self.tokens.marked(self.turn.after_question), TokenKind.MARKER)
        return question_of(join_spans([self._end_of_video(), before]), words, after)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def _check_options(self, checkpoint: Checkpoint) -> None:
        if self.options.max_pixels is not None and not self.takes_max_pixels:
            raise ValueError(
                f"max_pixels is an option of families whose frames keep their shape, but {checkpoint.name!r} is of "
                f"type {self._family.model_type!r}, whose frames have one size; leave it out"
            )

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids, dtype=torch.long)), kind, self.num_axes)

    def _read_turn(self, checkpoint: Checkpoint, video_token_id: int) -> Turn:
        tokenizer = self.tokens.tokenizer
        with readable("chat template", checkpoint.folder):
            rendered = render_turn(tokenizer, checkpoint.chat_template())
        placeholder = tokenizer.convert_ids_to_tokens(video_token_id)
        if placeholder is None:
            raise ValueError(f"the tokenizer of {self.name!r} has no token {video_token_id}, which stands for videos")
        return cut_turn(rendered, placeholder)

    def _set_sizes(self) -> None:
        if not len(self.sink()):
            raise ValueError(f"the chat template of {self.name!r} must begin with some text, but the video comes first")
        self.min_frame_tokens, self.max_frame_tokens = self._frame_tokens()
        self.max_positions = int(self.config.max_position_embeddings)
        self.image_side = self._image_side()
        self.eos_ids = end_tokens(self.model, self.tokens.tokenizer)
        self.settings = MappingProxyType(roomy_settings(self))
