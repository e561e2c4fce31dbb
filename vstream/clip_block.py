"""From a clip's fresh keys and values to a block of memory. Knows nothing of where blocks are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstream.memory.block import Block, BlockMeta, TokenKind
from vstream.memory.pyramid import DETAIL, SINK
from vstream.picture import jpeg_of

if TYPE_CHECKING:
    from torch import Tensor

    from vstream.types import Clip, Frame, TokenSpan


def typical_frame(clip: Clip, features: Tensor) -> Frame:
    """The frame whose features [T, P, E] are nearest to the clip's mean: the one to show as evidence."""
    flat = features.float().flatten(1)
    return clip.frames[int((flat - flat.mean(dim=0)).square().sum(dim=1).argmin())]


def representative_of(kv: Tensor, kinds: Tensor) -> Tensor:
    """Mean un-rotated key [L, K, D] float16 of the vision tokens in kv [L, 2, K, N, D], of all if there are none."""
    vision = kinds == TokenKind.VISION
    keys = kv[:, 0][:, :, vision] if vision.any() else kv[:, 0]
    return keys.float().mean(dim=2).half()


def make_block(
    block_id: int,
    span: TokenSpan,
    kv: Tensor,
    start: Tensor,
    clip: Clip | None,
    frame: Frame | None,
    codec: str = "none",
) -> Block:
    """A block of freshly prefilled tokens, to be stored with a codec: of a clip, or (without one) the sink."""
    meta = BlockMeta(
        id=block_id,
        level=DETAIL if clip else SINK,
        start_seconds=clip.start_seconds if clip else 0.0,
        end_seconds=clip.end_seconds if clip else 0.0,
        epoch_seconds=clip.epoch_seconds if clip else None,
        weight=float(len(clip.frames)) if clip else 0.0,
        kinds=span.kinds,
        seconds=span.seconds,
        positions=span.positions,
        advance=span.advance,
        start=start,
        picture_seconds=frame.pts_seconds if frame else float("nan"),
        codec=codec,
    )
    return Block(meta, kv, representative_of(kv, span.kinds), jpeg_of(frame) if frame else b"")
