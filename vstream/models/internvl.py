"""InternVLAdapter: stock InternVL checkpoints of transformers' own class, a picture a frame behind `Frame [m:ss]: `.

The family's text before a video's picture is `Frame1: `, with the frame's number. Of a stream the number says nothing,
so the time stands in its place, in the form that our families have it; the word, the colon and the marks around the
picture stay as the model knows them. This module knows nothing of memory or sessions, or of where checkpoints are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vstream.models.chat import Turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.pictures import prepare
from vstream.models.spans import timestamp
from vstream.types import Frame

FRAMES_AT_ONCE = 8


class InternVLAdapter(CheckpointAdapter):
    """An `InternVLForConditionalGeneration` whose text model has full attention: Qwen2, Qwen3, Llama.

    There are no tiles: as in the model's own videos, a frame is one picture, four patches of it one token.
    """

    prompt_version = 1
    frame_marks = ("<img>", "</img>\n")

    def time_text(self, seconds: float) -> str:
        """`Frame [m:ss]: `."""
        return f"Frame {timestamp(seconds)}: "

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Visual tokens [T, P, E]."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self._features(batch) for batch in batches])

    def _features(self, frames: Sequence[Frame]) -> Tensor:
        pixels = prepare(frames, self.pictures).to(self.device, self.dtype)  # [T, 3, H, W]
        shown: Tensor = self.model.get_image_features(pixels).pooler_output  # [T, P, E]
        assert shown.shape[:2] == (len(frames), self.tokens_per_frame), f"{len(frames)} frames gave {list(shown.shape)}"
        return shown

    def _read_turn(self, checkpoint: Checkpoint, config: Any) -> Turn:
        """The template has a newline behind the video, which is the one behind the last frame."""
        turn = super()._read_turn(checkpoint, config)
        return replace(turn, before_question=turn.before_question.removeprefix("\n"))

    def _count_tokens(self, config: Any) -> int:
        height, width = config.vision_config.image_size
        rows, columns = height // config.vision_config.patch_size[0], width // config.vision_config.patch_size[1]
        if (self.pictures.height, self.pictures.width) != (height, width):
            raise ValueError(
                f"the processor of {self.name!r} makes pictures of {self.pictures.height} x {self.pictures.width}, but "
                f"its vision tower takes {height} x {width}; fetch the checkpoint again"
            )
        merged = rows * config.downsample_ratio
        if rows != columns or merged != int(merged):
            raise ValueError(
                f"{self.name!r} has {rows} x {columns} patches, which must be square and divisible by "
                f"{1 / config.downsample_ratio:g}; fetch the checkpoint again"
            )
        return int(merged) ** 2
