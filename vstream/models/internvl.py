"""InternVLAdapter: stock InternVL checkpoints of transformers' own class, a picture a frame behind `Frame [m:ss]: `.

The family's text before a video's picture is `Frame1: `, with the frame's number. Of a stream the number says nothing,
so the time stands in its place, in the form that our families have it; the word, the colon and the marks around the
picture stay as the model knows them. This module knows nothing of memory or sessions, or of where checkpoints are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vstream.models.chat import Turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.picture_adapter import PictureAdapter
from vstream.models.spans import timestamp


class InternVLAdapter(PictureAdapter):
    """An `InternVLForConditionalGeneration` whose text model has full attention: Qwen2, Qwen3, Llama.

    There are no tiles: as in the model's own videos, a frame is one picture, four patches of it one token.
    """

    prompt_version = 1
    frame_marks = ("<img>", "</img>\n")

    def time_text(self, seconds: float) -> str:
        """`Frame [m:ss]: `."""
        return f"Frame {timestamp(seconds)}: "

    def _look(self, pixels: Tensor) -> Tensor:
        shown: Tensor = self.model.get_image_features(pixels).pooler_output  # [T, P, E]
        return shown

    def _read_turn(self, checkpoint: Checkpoint, config: Any) -> Turn:
        """The template has a newline behind the video, which is the one behind the last frame."""
        turn = super()._read_turn(checkpoint, config)
        return replace(turn, before_question=turn.before_question.removeprefix("\n"))

    def _count_tokens(self, config: Any) -> int:
        height, width = config.vision_config.image_size
        rows, columns = height // config.vision_config.patch_size[0], width // config.vision_config.patch_size[1]
        self._check_side(height)
        merged = rows * config.downsample_ratio
        if rows != columns or merged != int(merged):
            raise ValueError(
                f"{self.name!r} has {rows} x {columns} patches, which must be square and divisible by "
                f"{1 / config.downsample_ratio:g}; fetch the checkpoint again"
            )
        return int(merged) ** 2
