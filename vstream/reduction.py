"""Fewer tokens before prefill: frames that show what the last one showed, patches that show what they showed before.

Both compare within one clip alone, whose first frame is always whole. So a block is understood by itself, and nothing
has to be remembered from one clip to the next. This module knows nothing of memory, sessions or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cosine_similarity

from vstream.changes import largest_change
from vstream.memory.block import TokenKind

if TYPE_CHECKING:
    from torch import Tensor

    from vstream.models.base import Adapter
    from vstream.types import Frame, TokenSpan


@dataclass(frozen=True)
class VisionTokens:
    """How many vision tokens frames were worth.

    Attributes:
        made: by the model, of the frames that were encoded.
        left_out: of these, before they went through the decoder.
    """

    made: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.left_out <= self.made, f"of {self.made} tokens {self.left_out} were left out"

    def __add__(self, other: VisionTokens) -> VisionTokens:
        return VisionTokens(self.made + other.made, self.left_out + other.left_out)

    @property
    def share_left_out(self) -> float:
        """From 0 to 1; 0 where none were made."""
        return self.left_out / self.made if self.made else 0.0


@dataclass(frozen=True, eq=False)
class Looked:
    """What became of the frames of a clip, or of the beginning of one.

    Attributes:
        frames: the T that were encoded, the first among them.
        features: [G, P, W] of these, whole.
        span: the tokens that stay.
        vision: how many there were.
    """

    frames: tuple[Frame, ...]
    features: Tensor
    span: TokenSpan
    vision: VisionTokens


class Reduction:
    """What of a clip is worth encoding, and worth prefilling."""

    def __init__(self, adapter: Adapter, *, skip_duplicates: float | None, drop_similarity: float | None) -> None:
        """See `Config` for both numbers; None leaves that part out.

        Raises:
            ValueError: if the model's frames are not all its patches, in order.
        """
        if drop_similarity is not None and not adapter.keeps_patches:
            raise ValueError(
                f"drop_similarity is not for {adapter.name!r}, which itself leaves out what a frame repeats: unset it"
            )
        self._most_change, self._most_similarity = skip_duplicates, drop_similarity

    def distinct(self, frames: Sequence[Frame]) -> tuple[Frame, ...]:
        """The first frame, and those that differ from the last one taken. Of a clip's beginning: the beginning."""
        if self._most_change is None:
            return tuple(frames)
        taken = [frames[0]]
        for frame in frames[1:]:
            if largest_change(taken[-1], frame) > self._most_change:
                taken.append(frame)
        return tuple(taken)

    def thin(self, features: Tensor, span: TokenSpan) -> TokenSpan:
        """The span of features [G, P, W] without vision tokens that say what is known.

        Tokens that stay have the positions they would have had; timestamps and markers stay.
        """
        if self._most_similarity is None:
            return span
        vision = span.kinds == TokenKind.VISION
        news = new_patches(features, self._most_similarity)  # [G, P]
        assert vision.sum() == news.numel(), f"{int(vision.sum())} vision tokens of features {list(features.shape)}"
        stays = ~vision
        stays[vision] = news.flatten().cpu()
        return replace(
            span,
            embeds=span.embeds[stays.to(span.embeds.device)],
            kinds=span.kinds[stays],
            seconds=span.seconds[stays],
            positions=span.positions[:, stays],
        )


def new_patches(features: Tensor, most_similarity: float) -> Tensor:
    """Which patches [G, P] of features [G, P, W] say something new; a group of frames is a frame here.

    A patch is compared, by cosine, with the same patch of the last frame in which it was new: compared with the frame
    before, as in TimeChat-Online (arXiv 2504.17343), a slow drift would never show. All of the first frame is new.
    """
    known = features[0].float()
    news = [torch.ones(len(known), dtype=torch.bool, device=known.device)]
    for frame in features[1:].float():
        news.append(cosine_similarity(frame, known, dim=-1) <= most_similarity)
        known = torch.where(news[-1][:, None], frame, known)
    return torch.stack(news)


def num_vision(span: TokenSpan) -> int:
    """Vision tokens in a span."""
    return int((span.kinds == TokenKind.VISION).sum())
