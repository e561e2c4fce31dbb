"""The values that flow through vstream: frames, clips, gaps and token spans.

This module knows nothing of models, memory or threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

THUMBNAIL_SIDE = 16


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture at its own presentation time on the stream's clock.

    Attributes:
        pts_seconds: seconds since the stream's start, never negative.
        image: [height, width, 3] uint8 RGB, upright. A program that already has features may put
            [tokens, embedding] floating point here, for adapters that accept it.
        epoch_seconds: wall-clock (Unix) time of the stream's zero, as it was known when the frame was taken; None where
            unknown. The frame's own wall-clock time is `epoch_seconds + pts_seconds`.
    """

    pts_seconds: float
    image: npt.NDArray[np.uint8] | npt.NDArray[np.floating]
    epoch_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.pts_seconds < float("inf"):
            raise ValueError(f"pts_seconds must be a finite number >= 0, got {self.pts_seconds}")
        rgb = self.image.dtype == np.uint8 and self.image.ndim == 3 and self.image.shape[2] == 3
        features = self.image.ndim == 2 and np.issubdtype(self.image.dtype, np.floating)
        if not (rgb or features) or 0 in self.image.shape:
            raise ValueError(
                f"a frame's image must be [height, width, 3] uint8 or [tokens, embedding] floating point, "
                f"got {list(self.image.shape)} {self.image.dtype}"
            )
        if features and not np.abs(self.image).max() <= np.finfo(np.float32).max:
            raise ValueError(f"features must be finite in float32, but those at {self.pts_seconds} s are not")

    @cached_property
    def thumbnail(self) -> npt.NDArray[np.float32] | None:
        """The picture's mean colours on a grid, [16, 16, 3] from 0 to 255; None for features."""
        if self.image.ndim != 3:
            return None
        from PIL import Image

        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        return np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.BOX), dtype=np.float32)

    def __repr__(self) -> str:
        return f"Frame({self.pts_seconds:.3f} s, {list(self.image.shape)} {self.image.dtype})"


@dataclass(frozen=True, eq=False)
class Clip:
    """Consecutive frames that are encoded together and become one block.

    Attributes:
        frames: at least one, in rising `pts_seconds`, all of one `epoch_seconds`.
    """

    frames: Sequence[Frame]

    def __post_init__(self) -> None:
        times = [frame.pts_seconds for frame in self.frames]
        assert times, "a clip has at least one frame"
        assert all(a < b for a, b in pairwise(times)), f"frame times must rise, got {times}"
        epochs = {frame.epoch_seconds for frame in self.frames}
        assert len(epochs) == 1, f"a clip has one wall clock, got {sorted(map(str, epochs))}"

    @property
    def epoch_seconds(self) -> float | None:
        """Wall-clock (Unix) time of the stream's zero, None where unknown."""
        return self.frames[0].epoch_seconds

    @property
    def start_seconds(self) -> float:
        """Time of the first frame."""
        return self.frames[0].pts_seconds

    @property
    def end_seconds(self) -> float:
        """Time of the last frame."""
        return self.frames[-1].pts_seconds

    def __repr__(self) -> str:
        return f"Clip({len(self.frames)} frames, {self.start_seconds:.3f}..{self.end_seconds:.3f} s)"


@dataclass(frozen=True)
class Gap:
    """A stretch of stream time in which a live source was not seen.

    Attributes:
        start_seconds: time of the last frame before it.
        end_seconds: time of the first frame after it.
        reason: one phrase for people, without credentials: "stalled", "connection refused", "not watching" ...

    Raises:
        ValueError: if the times are not finite, or do not rise from 0.
    """

    start_seconds: float
    end_seconds: float
    reason: str

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < self.end_seconds < float("inf"):
            raise ValueError(
                f"a gap lies between two finite times >= 0, got {self.start_seconds} and {self.end_seconds}"
            )

    def to_plain(self) -> dict[str, Any]:
        """Numbers and text under the attributes' names, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The gap that `to_plain` wrote. Raises `ValueError` for anything else."""
        if set(plain) != {"start_seconds", "end_seconds", "reason"} or not isinstance(plain["reason"], str):
            raise ValueError(f"a stored gap has start_seconds, end_seconds and a reason, got {dict(plain)}")
        return cls(float(plain["start_seconds"]), float(plain["end_seconds"]), plain["reason"])

    def __repr__(self) -> str:
        return f"Gap({self.start_seconds:.3f}..{self.end_seconds:.3f} s, {self.reason})"


@dataclass(frozen=True, eq=False)
class TokenSpan:
    """Tokens ready for the decoder, with all that memory must know about them.

    Positions are relative to where the span will be placed; a span that follows starts at `+ advance`.

    Attributes:
        embeds: [N, E] input embeddings; [N, W] where a family adds more in later layers, which stands behind them.
        kinds: [N] uint8, values of `vstream.memory.block.TokenKind`.
        seconds: [N] float64, time of the frame the token belongs to (NaN for none).
        positions: [A, N] int64 relative positions, one row per rotary axis (A = 1 for plain RoPE).
        advance: [A] int64.
    """

    embeds: Tensor
    kinds: Tensor
    seconds: Tensor
    positions: Tensor
    advance: Tensor

    def __post_init__(self) -> None:
        n = self.embeds.shape[0]
        assert self.kinds.shape == (n,), f"{n} tokens, kinds {list(self.kinds.shape)}"
        assert self.seconds.shape == (n,), f"{n} tokens, seconds {list(self.seconds.shape)}"
        assert self.positions.shape == (len(self.advance), n), f"{n} tokens, positions {list(self.positions.shape)}"

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def __repr__(self) -> str:
        return f"TokenSpan({len(self)} tokens)"


def format_seconds(seconds: float) -> str:
    """Seconds as [H:]MM:SS, the way times are shown to people, e.g. 75.3 -> '01:15'."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def parse_seconds(text: str) -> float:
    """A time given by a person: seconds ('90', '90.5'), 'MM:SS' or 'HH:MM:SS[.fff]'.

    Raises:
        ValueError: if `text` is none of these.
    """
    parts = text.strip().split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    in_range = all(0 <= value < 60 for value in values[1:]) and all(value.is_integer() for value in values[:-1])
    if not 1 <= len(values) <= 3 or not 0 <= values[0] < float("inf") or not in_range:
        raise ValueError(f"{text!r} is not a time; give seconds (90.5), MM:SS or HH:MM:SS")
    total = 0.0
    for value in values:
        total = total * 60 + value
    return total


def moments_in(text: str) -> tuple[float, ...]:
    """The stream times in seconds that a text names as MM:SS or HH:MM:SS: "what was there at 1:15?" -> (75.0,)."""
    return tuple(parse_seconds(found) for found in re.findall(r"(?<![\d:])\d+(?::[0-5]\d){1,2}(?![\d:])", text))
