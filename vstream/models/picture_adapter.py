"""PictureAdapter: families of checkpoints whose frames are pictures of one size, with one number of tokens each.

A family says how many tokens that is, and gets them from the stock model. This module knows nothing of memory or
sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.pictures import PictureSpec, prepare
from vstream.types import Frame

_FRAMES_AT_ONCE = 8


class PictureAdapter(CheckpointAdapter):
    """A stock model that takes squares.

    Attributes:
        pictures: how a picture is prepared.
        tokens_per_frame: visual tokens P of a frame.
    """

    @abstractmethod
    def _count_tokens(self, config: Any) -> int:
        """P, from the model's configuration and `pictures`; `ValueError` where they do not belong together."""

    @abstractmethod
    def _look(self, pixels: Tensor) -> Tensor:
        """Visual tokens [T, P, E], or all in one row, of prepared pictures [T, 3, H, W]."""

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Visual tokens [T, P, E]; the vision tower sees a few frames at once."""
        batches = (frames[start : start + _FRAMES_AT_ONCE] for start in range(0, len(frames), _FRAMES_AT_ONCE))
        return torch.cat([self._encode_batch(batch) for batch in batches])

    def _encode_batch(self, frames: Sequence[Frame]) -> Tensor:
        tokens = self._look(prepare(frames, self.pictures).to(self.device, self.dtype))
        shape = (len(frames), self.tokens_per_frame)
        assert tokens.shape[:-1].numel() == shape[0] * shape[1], f"got tokens {list(tokens.shape)}, expected {shape}"
        return tokens.reshape(*shape, -1)

    def _read_pictures(self, settings: Mapping[str, Any], config: Any) -> None:
        self.pictures = PictureSpec.from_config(settings)
        self.tokens_per_frame = self._count_tokens(config)

    def _check_side(self, side: Any) -> None:
        """Refuses a processor whose pictures are not squares of the vision tower's side, in pixels."""
        if (self.pictures.height, self.pictures.width) != (side, side):
            raise ValueError(
                f"the processor of {self.name!r} makes pictures of {self.pictures.height} x {self.pictures.width}, but "
                f"its vision tower takes {side} x {side}; fetch the checkpoint again"
            )

    def _vision_tokens(self) -> tuple[int, int]:
        return self.tokens_per_frame, self.tokens_per_frame

    def _image_side(self) -> int:
        return 2 * max(self.pictures.height, self.pictures.width)  # even the short side is seldom enlarged
