"""SmolVLMAdapter: stock SmolVLM2 checkpoints, each frame one picture behind the text `Frame from MM:SS:`.

That text, the marks around a frame's tokens and the line before all frames are what transformers' processor writes for
videos. Its line also tells how many frames there are and how long the video is, which nobody knows of a stream: these
two are left out. This module knows nothing of memory or sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.pictures import prepare
from vstream.types import Frame

FRAMES_AT_ONCE = 8


class SmolVLMAdapter(CheckpointAdapter):
    """A `SmolVLMForConditionalGeneration` whose text model has full attention, as Llama has.

    There are no tiles: as in the model's own videos, a frame is one picture, which the text calls global.
    """

    prompt_version = 1
    video_marks = ("You are provided the following series of frames from a video.\n", "\n\n")
    frame_marks = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")

    def time_text(self, seconds: float) -> str:
        """`Frame from MM:SS:` on a new line; minutes go on beyond 99."""
        return f"\nFrame from {int(seconds) // 60:02}:{int(seconds) % 60:02}:"

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Visual tokens [T, P, E], neighbouring patches in one."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self._features(batch) for batch in batches])

    def _features(self, frames: Sequence[Frame]) -> Tensor:
        """[T, P, E] of a batch. The model drops pictures that are all zero, so none may have a zero in it."""
        pixels = prepare(frames, self.pictures).to(self.device, self.dtype)  # [T, 3, H, W]
        pixels.masked_fill_(pixels == 0, torch.finfo(self.dtype).tiny)
        shown = torch.cat(list(self.model.get_image_features(pixels[None]).pooler_output))
        count = len(frames) * self.tokens_per_frame
        assert shown.shape[:-1].numel() == count, f"{len(frames)} frames gave {list(shown.shape)}, expected {count}"
        return shown.reshape(len(frames), self.tokens_per_frame, -1)

    def _count_tokens(self, config: Any) -> int:
        side, patch, scale = config.vision_config.image_size, config.vision_config.patch_size, config.scale_factor
        if (self.pictures.height, self.pictures.width) != (side, side):
            raise ValueError(
                f"the processor of {self.name!r} makes pictures of {self.pictures.height} x {self.pictures.width}, but "
                f"its vision tower takes {side} x {side}; fetch the checkpoint again"
            )
        if side // patch % scale:
            raise ValueError(
                f"{self.name!r} has {side // patch} patches a side, which scale_factor {scale} must divide"
            )
        return int((side // patch // scale) ** 2)
