"""QwenVlAdapter: stock Qwen2-VL checkpoints, and what Qwen2.5-VL and Qwen3-VL share with them.

Two consecutive frames become one grid of tokens, as in the families' own videos, and every grid is a short video of its
own behind its time as text: `[m:ss]`, vision start, the grid, vision end. So the model is told when a grid was seen,
wherever it is placed, and Qwen3-VL is asked as it was trained. The families' rules for positions give the same for it:
text counts one a token on all three axes (time, rows, columns); a grid of h x w tokens has its beginning as time,
beginning + row and beginning + column; what follows goes on max(h, w) further, the largest of these plus one. Steps in
time between the grids of one video (2 a second in Qwen2.5-VL) do not occur. This module knows nothing of memory or
sessions, or of where checkpoints come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.chat import Turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.checkpoint_adapter import CheckpointAdapter
from vstream.models.patches import PatchSpec
from vstream.models.spans import at_seconds, join_spans, plain_span
from vstream.types import Frame, TokenSpan

GROUPS_AT_ONCE = 4


class QwenVlAdapter(CheckpointAdapter):
    """A `Qwen2VLForConditionalGeneration`.

    A group is two consecutive frames of a clip; where there is only one, it counts twice, as a last frame does in the
    families' own videos. Its time is the mean of the two, Qwen3-VL's rule. All pictures of a clip are brought to the
    size of its first.

    Attributes:
        patches: how pictures are cut.
    """

    prompt_version = 1
    frame_marks = ("<|vision_start|>", "<|vision_end|>")
    parts: tuple[str, ...] = ("vision_config",)  # the hub's have what belongs to the text beside all else
    num_axes = 3
    takes_max_pixels = True
    volume = False  # whether the processor's sizes are of whole videos

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """Features [G, P, E] of G groups, all of the first frame's grid."""
        rows, columns = self._grid(frames)
        step = GROUPS_AT_ONCE * self.group_frames
        batches = (frames[start : start + step] for start in range(0, len(frames), step))
        return torch.cat([self._features(batch, rows, columns) for batch in batches])

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """Time, vision start, the grid and vision end, for each group with features [G, P, W]."""
        rows, columns = self._grid(frames)
        starts = range(0, len(frames), self.group_frames)
        groups = [frames[start : start + self.group_frames] for start in starts]
        return join_spans(
            [self._group(group, tokens, rows, columns) for group, tokens in zip(groups, features, strict=True)]
        )

    def _group(self, frames: Sequence[Frame], tokens: Tensor, rows: int, columns: int) -> TokenSpan:
        """The span of a group with tokens [P, W]: nobody sees it before its last frame."""
        mean_seconds = (frames[0].pts_seconds + frames[-1].pts_seconds) / 2
        start, end = (self._marker(mark) for mark in self.frame_marks)
        parts = [self._time_span(mean_seconds), start, grid_span(tokens, rows, columns), end]
        return at_seconds(join_spans(parts), frames[-1].pts_seconds)

    def _features(self, frames: Sequence[Frame], rows: int, columns: int) -> Tensor:
        """[G, P, W] of a batch."""
        patches = self.patches.patches(frames, rows, columns).to(self.device, self.dtype)
        groups, merge = -(-len(frames) // self.group_frames), self.patches.merge
        grids = torch.tensor([[1, rows * merge, columns * merge]] * groups, device=self.device)
        return self._tokens(self.model.get_video_features(patches, grids))

    def _tokens(self, seen: Any) -> Tensor:
        """[G, P, W] of what the vision tower gives."""
        return torch.stack(list(seen.pooler_output))

    def _grid(self, frames: Sequence[Frame]) -> tuple[int, int]:
        """Rows and columns of tokens."""
        image = frames[0].image
        if image.ndim != 3:
            raise ValueError(f"this model takes pictures, got features {list(image.shape)}")
        return self.patches.grid(image.shape[0], image.shape[1])

    def _read_pictures(self, settings: Mapping[str, Any], config: Any) -> None:
        self.patches = PatchSpec.from_config(settings, max_pixels=self.options.max_pixels, volume=self.volume)
        vision = config.vision_config
        found = (self.patches.patch, self.patches.merge, self.patches.frames)
        wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        if found != wanted:
            raise ValueError(
                f"the processor of {self.name!r} makes patches, merges and groups of {found}, but its vision tower "
                f"takes {wanted}; fetch the checkpoint again"
            )
        self.group_frames = self.patches.frames

    def _read_turn(self, checkpoint: Checkpoint, config: Any) -> Turn:
        """Without the marks around the video, which every group has."""
        turn, (start, end) = super()._read_turn(checkpoint, config), self.frame_marks
        before, after = turn.before_video.removesuffix(start), turn.before_question.removeprefix(end)
        return replace(turn, before_video=before, before_question=after)

    def _vision_tokens(self) -> tuple[int, int]:
        return self.patches.tokens

    def _image_side(self) -> int:
        return int(2 * self.patches.max_pixels**0.5)  # a picture four times as wide as high loses nothing


def grid_span(tokens: Tensor, rows: int, columns: int) -> TokenSpan:
    """Vision tokens [rows * columns, W] on three axes: time stands still, rows and columns count."""
    assert len(tokens) == rows * columns, f"{len(tokens)} tokens in a grid of {rows} x {columns}"
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    positions = torch.stack([torch.zeros_like(row), row, column])
    advance = torch.full((3,), max(rows, columns))
    return replace(plain_span(tokens, TokenKind.VISION, axes=3), positions=positions, advance=advance)
