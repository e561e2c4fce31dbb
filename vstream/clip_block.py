"""From a clip's fresh keys and values to a block of memory. Knows nothing of where blocks are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vstream.memory.block import Block, BlockMeta, Extra
from vstream.memory.levels import DETAIL, SINK
from vstream.memory.policies import seen_keys
from vstream.picture import jpeg_of

if TYPE_CHECKING:
    from torch import Tensor

    from vstream.types import Clip, Frame, TokenSpan


def typical_frame(frames: Sequence[Frame], features: Tensor) -> Frame:
    """The frame whose features, of [G, P, W], are nearest to the mean: the one to show as evidence; a group's last."""
    flat, per_group = features.float().flatten(1), -(-len(frames) // len(features))
    nearest = int((flat - flat.mean(dim=0)).square().sum(dim=1).argmin())
    return frames[: (nearest + 1) * per_group][-1]


def representative_of(kv: Tensor, kinds: Tensor) -> Tensor:
    """Mean un-rotated key [L, K, D] float16 of the vision tokens in kv [L, 2, K, N, D], of all if there are none."""
    return seen_keys(kv, kinds).float().mean(dim=2).half()


def described(extra: Extra, kv: Tensor, kinds: Tensor, embeds: Tensor | None = None) -> Tensor:
    """What a policy keeps of tokens, [A, H, D] float16: kv [L, 2, K, N, D], and a span's embeds where they are known.

    Zero, which says nothing, where it cannot be told from them.
    """
    if embeds is not None:
        embeds = embeds[:, : extra.size[-1]]  # of a policy that reads them, D is E; more may stand behind
    found = extra.describe(kv[: extra.size[0]], kinds, embeds=embeds)
    return torch.zeros(extra.size, dtype=torch.float16, device=kv.device) if found is None else found


def make_block(
    block_id: int,
    span: TokenSpan,
    kv: Tensor,
    start: Tensor,
    clip: Clip | None,
    frame: Frame | None,
    extra: Extra | None = None,
    codec: str = "none",
) -> Block:
    """A block of freshly prefilled tokens, to be stored with a codec: of a clip, or (without one) the sink.

    `extra` says what a retrieval policy keeps of it.
    """
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
    kept = described(extra, kv, span.kinds, span.embeds) if extra else None
    return Block(meta, kv, representative_of(kv, span.kinds), jpeg_of(frame) if frame else b"", kept)
