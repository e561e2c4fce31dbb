"""Idefics3Adapter: stock checkpoints of Idefics3 and of the first SmolVLM, which is one of them.

They were made for pictures. Frames are shown in the words of SmolVLM2, their successor of the same form: the text
`Frame from MM:SS:`, the marks around a frame's tokens and the line before all frames are what its processor in
transformers writes for videos. Its line also tells how many frames there are and how long the video is, which nobody
knows of a stream: these two are left out. This module knows nothing of memory or sessions, or of where checkpoints
come from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vstream.models.picture_adapter import PictureAdapter


class Idefics3Adapter(PictureAdapter):
    """An `Idefics3ForConditionalGeneration` whose text model has full attention, as Llama has.

    There are no tiles: a frame is one picture, which the text calls global.
    """

    prompt_version = 1
    video_marks = ("You are provided the following series of frames from a video.\n", "\n\n")
    frame_marks = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")

    def time_text(self, seconds: float) -> str:
        """`Frame from MM:SS:` on a new line; minutes go on beyond 99."""
        return f"\nFrame from {int(seconds) // 60:02}:{int(seconds) % 60:02}:"

    def _look(self, pixels: Tensor) -> Tensor:
        """The model drops pictures that are all zero, as padding; such a one gets the smallest number instead."""
        empty = (pixels == 0).flatten(1).all(dim=1)
        pixels[empty] = torch.finfo(pixels.dtype).tiny
        return torch.cat(list(self.model.get_image_features(pixels[None]).pooler_output))

    def _count_tokens(self, config: Any) -> int:
        side, patch, scale = config.vision_config.image_size, config.vision_config.patch_size, config.scale_factor
        self._check_side(side)
        if side // patch % scale:
            raise ValueError(
                f"{self.name!r} has {side // patch} patches a side, which scale_factor {scale} must divide; fetch the "
                "checkpoint again"
            )
        return int((side // patch // scale) ** 2)
