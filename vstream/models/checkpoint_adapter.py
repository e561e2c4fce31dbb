"""CheckpointAdapter: what families of vision-language checkpoints share: loading, chat template, timestamps, sizes.

A family is a subclass that names transformers' class and turns pictures into tokens. This module knows nothing of
memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from torch import Tensor

from vstream.choices import choices_text
from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Exchange, Question
from vstream.models.chat import Between, Turn, cut_between, cut_turn, render_turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.exact import check_config, check_moving, check_rotary
from vstream.models.families import family_of
from vstream.models.loading import end_tokens, load_model, load_tokenizer, readable
from vstream.models.options import LoadOptions
from vstream.models.sizes import roomy_settings
from vstream.models.spans import framed, join_spans, plain_span, question_of, timestamp
from vstream.models.tokens import Tokens, timestamp_tokens
from vstream.types import Frame, TokenSpan


class CheckpointAdapter(Adapter):
    """A stock model, asked through its checkpoint's own chat template.

    Attributes:
        model: the stock model.
        tokens: the checkpoint's tokenizer.
        turn: its chat template, cut.
        options: how it was loaded.
        takes_max_pixels: whether the family reads `options.max_pixels`.
        prompt_version: of the family; rises when any text or picture step changes, so that memories made with another
            one are refused.
        video_marks: the family's own text before the first frame and behind the last.
        frame_marks: its text right before a frame's visual tokens and right behind them.
    """

    prompt_version: int
    takes_max_pixels: ClassVar[bool] = False
    parts: tuple[str, ...] = ("text_config", "vision_config")
    video_marks: tuple[str, str] = ("", "")
    frame_marks: tuple[str, str] = ("", "\n")

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
        self.name, self._folder = checkpoint.name, checkpoint.folder
        checkpoint.check_parts(*self.parts)
        checkpoint.json("generation_config.json")  # transformers would go on without its end tokens
        model_class = self._model_class()
        with readable("configuration", checkpoint.folder):
            config = model_class.config_class.from_pretrained(checkpoint.folder, local_files_only=True)
        check_config(config.get_text_config(), self.name)
        self._read_pictures(checkpoint.picture_config(), config)
        self.tokens = Tokens(load_tokenizer(checkpoint.folder, trust_remote_code=self.options.trust_remote_code))
        self.turn = self._read_turn(checkpoint, config)
        self.model = self._load_model(model_class, checkpoint)
        self.decoder, self.head = self.model.get_decoder(), self.model.get_output_embeddings()
        check_rotary(self.decoder, self.name)
        self._set_sizes()
        self.fingerprint = checkpoint.fingerprint(self.prompt_version, self.dtype, *self.options.changes())
        check_moving(self, quantized=bool(getattr(self.model, "is_quantized", False)))

    def _model_class(self) -> Any:
        """transformers' class for the checkpoint: the one that the registry names."""
        return getattr(importlib.import_module("transformers"), self._family.class_name)

    def _load_model(self, model_class: Any, checkpoint: Checkpoint) -> Any:
        """The stock model with the checkpoint's weights, where and as `options` say."""
        return load_model(model_class, checkpoint, self.options)

    @abstractmethod
    def _read_pictures(self, settings: Mapping[str, Any], config: Any) -> None:
        """How pictures are prepared, by the processor's settings and the model's configuration.

        Raises:
            ValueError: where they do not belong together.
        """

    @abstractmethod
    def _vision_tokens(self) -> tuple[int, int]:
        """The fewest and the most visual tokens of a group of frames."""

    @abstractmethod
    def _image_side(self) -> int:
        """Longest side of a picture, in pixels, that is worth decoding."""

    def _end_of_video(self) -> TokenSpan:
        """What the model itself, not its text, puts once behind all frames; nothing unless the family does."""
        return self._marker("")

    def time_text(self, seconds: float) -> str:
        """A frame's time as the model reads it: `[m:ss]`, unless the family has a form of its own."""
        return timestamp(seconds)

    def sink(self) -> TokenSpan:
        """What the chat template has before the video, and the family before the first frame."""
        return self._marker(self.turn.before_video + self.video_marks[0])

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """The time and the frame's tokens between the family's marks, for each frame."""
        marks = self._marker(self.frame_marks[0]), self._marker(self.frame_marks[1])
        return framed(frames, features, self._time_span, marks)

    def question(self, text: str, *, choices: Sequence[str] = (), earlier: Sequence[Exchange] = ()) -> Question:
        """The end of the video, then the rest of the chat template around the questions."""
        parts = [(self.video_marks[1] + self.turn.before_question, True)]
        for one in earlier:
            parts += [(one.question, False), (self._between.before_answer, True)]
            parts += [(one.answer, False), (self._between.before_next, True)]
        around = len(parts)
        parts += [(text, False), (choices_text(choices), False), (self.turn.after_question, True)]
        spans = [self._span(ids, TokenKind.MARKER) for ids in self.tokens.joined(parts)]
        before, after = [self._end_of_video(), *spans[:around]], spans[around + 1 :]
        return question_of(join_spans(before), spans[around], join_spans(after))

    @cached_property
    def _between(self) -> Between:
        """What the template has between turns; most models are never asked for it."""
        with readable("chat template", self._folder):
            rendered = self._render(again=True)
        return cut_between(rendered, self.turn, self.name)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def token_ids(self, text: str) -> list[int]:
        """The tokens of plain text."""
        return self.tokens.ids(text)

    def _time_span(self, seconds: float) -> TokenSpan:
        return self._span(self.tokens.ids(self.time_text(seconds)), TokenKind.TIMESTAMP)

    def _marker(self, text: str) -> TokenSpan:
        """The tokens of a template's text, special ones meant."""
        return self._span(self.tokens.marked(text), TokenKind.MARKER)

    def _check_options(self, checkpoint: Checkpoint) -> None:
        if self.options.max_pixels is not None and not self.takes_max_pixels:
            raise ValueError(
                f"max_pixels is an option of families whose frames keep their shape, but {checkpoint.name!r} is of "
                f"type {self._family.model_type!r}, whose frames have one size; leave it out"
            )

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids, dtype=torch.long)), kind, self.num_axes)

    def _chat_template(self, checkpoint: Checkpoint) -> str | None:
        """The template, None for the tokenizer's own."""
        return checkpoint.chat_template()

    def _read_turn(self, checkpoint: Checkpoint, config: Any) -> Turn:
        """The template cut at a video; at an image, where it knows of images alone."""
        render = partial(render_turn, self.tokens.tokenizer, self._chat_template(checkpoint))
        shown, placeholder, rendered = self._shown(checkpoint, config, render)
        self._render = partial(render, shown, system=self.options.system)
        turn = cut_turn(rendered, placeholder)
        return turn if self.options.system is None else self._with_system(placeholder)

    def _shown(self, checkpoint: Checkpoint, config: Any, render: Callable[[str], str]) -> tuple[str, str, str]:
        """What the template can show, "video" or else "image", what stands for it there, and the whole turn with it."""
        found = []
        for shown in ("video", "image"):
            placeholder = self._placeholder(config, shown)
            with readable("chat template", checkpoint.folder):
                found.append((shown, placeholder, render(shown)))
            if placeholder in found[-1][2]:
                return found[-1]
        return found[0]

    def _with_system(self, placeholder: str) -> Turn:
        """The template with the user's own system prompt."""
        system = str(self.options.system)
        if placeholder in system:
            raise ValueError(
                f"the system prompt must not hold {placeholder!r}, which stands for the video; leave that out"
            )
        try:
            turn = cut_turn(self._render(), placeholder)
        except TemplateError:
            turn = None
        if turn is None or system.strip() not in turn.before_video:
            raise ValueError(f"the chat template of {self.name!r} takes no system prompt; leave it out")
        return turn

    def _placeholder(self, config: Any, shown: str) -> str:
        """What stands for a video or an image in the template: its token, or `<video>` where that is no token."""
        token_id = getattr(config, f"{shown}_token_id", None)
        token: str | None = f"<{shown}>"
        if token_id is not None:
            token = self.tokens.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            raise ValueError(f"the tokenizer of {self.name!r} has no token {token_id}, which stands for {shown}s")
        return token

    def _set_sizes(self) -> None:
        if not len(self.sink()):
            raise ValueError(f"the chat template of {self.name!r} must begin with some text, but the video comes first")
        times, vision = timestamp_tokens(self.tokens, self.time_text), self._vision_tokens()
        around = sum(len(self.tokens.marked(mark)) for mark in self.frame_marks)
        self.min_frame_tokens, self.max_frame_tokens = (
            time + around + grid for time, grid in zip(times, vision, strict=True)
        )
        self.max_positions = int(self.config.max_position_embeddings)
        self.image_side = self._image_side()
        self.eos_ids = end_tokens(self.model, self.tokens.tokenizer)
        self.settings = MappingProxyType(roomy_settings(self))
