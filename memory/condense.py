"""Condensing: fewer tokens that stand for the same frames. Knows nothing of budgets or of where bytes lie.

`digest` keeps a share of a block's vision tokens where they are in time, `condense` makes one short frame of blocks,
`pool` averages the tokens of each frame, `halve` keeps half of the tokens as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vstream.memory.block import Block, BlockMeta, TokenKind

ALIKE_TO_ITSELF = 2.0  # above every cosine


def condense(blocks: Sequence[Block], *, block_id: int, level: int, max_vision_tokens: int) -> Block:
    """One block that stands for all of `blocks`, with at most `max_vision_tokens` vision tokens.

    The heaviest block's most typical frame is kept with its timestamp and markers; its vision tokens become prototypes,
    and every other vision token is averaged, by the frames it stands for, into the prototype nearest to it. Text tokens
    of other frames go. Weights add up and the time range covers all.

    Args:
        blocks: one or more, in time order, with the same number of rotary axes, each with vision tokens.
    """
    assert all(_has_vision(block) for block in blocks), "a block without vision tokens"
    keeper = max(blocks, key=lambda block: block.meta.weight)
    frame = _typical_frame(keeper)
    order = torch.nonzero(keeper.meta.seconds == frame)[:, 0]
    kinds = keeper.meta.kinds[order]
    groups = _vision_groups(order[kinds == TokenKind.VISION], max_vision_tokens)
    seeds = torch.stack([_wide(keeper.kv[:, :, :, group]).mean(dim=3) for group in groups], dim=3)
    prototypes = _absorb(seeds, blocks)

    kept_kv, kept_kinds, group_of = [], [], {int(group[0]): i for i, group in enumerate(groups)}
    for token, kind in zip(order.tolist(), kinds.tolist(), strict=True):
        if kind != TokenKind.VISION:
            kept_kv.append(keeper.kv[:, :, :, token])
            kept_kinds.append(kind)
        elif token in group_of:
            kept_kv.append(prototypes[:, :, :, group_of[token]].to(keeper.kv.dtype))
            kept_kinds.append(kind)
    kv = torch.stack(kept_kv, dim=3)
    seconds = torch.full((len(kept_kinds),), frame, dtype=torch.float64)
    kinds = torch.tensor(kept_kinds, dtype=torch.uint8)
    meta = _merged_meta([block.meta for block in blocks], keeper.meta, block_id, level, seconds, kinds)
    return Block(meta, kv, _mean_representative(blocks), keeper.picture)


def digest(block: Block, *, block_id: int, level: int, keep_tokens: int) -> Block:
    """A block with at most `keep_tokens` of its tokens, text included, at least one vision token, in their order.

    Those are kept that say much and that others do not say: one after the other, the vision token is taken whose
    value's norm times its novelty is greatest for its price (value norm and redundancy as in InfiniPot-V, chosen one by
    one as in k-centre clustering). Novel is what is far from all kept so far, and from all of earlier frames: of what
    stays the same its beginning is kept, which says when it came. The first token of a frame has the price of the
    frame's timestamp and markers too, which stay with it: where they are most of the tokens, few frames are kept well
    rather than many badly. The others go: averaged into the nearest kept they blur it.
    Weight, times, representative and picture stay.

    Args:
        block: with vision tokens.
    """
    assert _has_vision(block), "a block without vision tokens"
    kinds = block.meta.kinds
    vision = torch.nonzero(kinds == TokenKind.VISION)[:, 0]
    frames, frame_of = torch.unique(block.meta.seconds, return_inverse=True)
    num_text = torch.bincount(frame_of[kinds != TokenKind.VISION], minlength=len(frames))
    seen = _wide(block.kv[:, :, :, vision])
    chosen = _salient(seen, frame_of[vision], num_text, keep_tokens)
    return _with_vision(block, vision[chosen], seen[:, :, :, chosen], block_id=block_id, level=level)


def pool(block: Block, *, block_id: int, level: int, keep_share: float) -> Block:
    """A block whose frames have `keep_share` of their vision tokens each, at least one: means of runs of neighbours.

    Timestamps, markers, weight, times, representative and picture stay. With one token a frame it is VideoScan's
    carrier token.

    Args:
        block: with vision tokens.
    """
    vision = torch.nonzero(block.meta.kinds == TokenKind.VISION)[:, 0]
    frames = torch.unique(block.meta.seconds[vision])
    of_frames = (vision[block.meta.seconds[vision] == seconds] for seconds in frames)
    groups = [group for tokens in of_frames for group in _vision_groups(tokens, max(1, int(keep_share * len(tokens))))]
    means = torch.stack([_wide(block.kv[:, :, :, group]).mean(dim=3) for group in groups], dim=3)
    return _with_vision(block, torch.stack([group[0] for group in groups]), means, block_id=block_id, level=level)


def halve(block: Block, *, block_id: int, level: int) -> Block:
    """A block with half of its vision tokens as they are, at least one; the others go.

    Of the half, one half are those least like the newest quarter of the frames (temporal redundancy: the greatest
    cosine with any of its keys; there the same patch, which a block halved before may no longer have), the rest those
    whose values are longest (InfiniPot-V, arXiv 2506.15745).

    Args:
        block: with vision tokens.
    """
    vision = torch.nonzero(block.meta.kinds == TokenKind.VISION)[:, 0]
    count = max(1, len(vision) // 2)
    seen, seconds = _wide(block.kv[:, :, :, vision]), block.meta.seconds[vision]
    frames = torch.unique(seconds)
    newest = seconds >= frames[-max(1, len(frames) // 4)]
    keys = _flat_keys(seen)
    alike = (keys @ keys[newest.to(keys.device)].T).amax(dim=1).cpu()
    alike[newest] = ALIKE_TO_ITSELF
    norms = seen[:, 1].square().sum(dim=(0, 1, 3)).cpu()
    fresh = alike.argsort(stable=True)[: count // 2]
    fresh = fresh[alike[fresh] < ALIKE_TO_ITSELF]
    norms[fresh] = -1.0
    chosen = torch.cat([fresh, norms.argsort(descending=True, stable=True)[: count - len(fresh)]]).sort().values
    return _with_vision(block, vision[chosen], seen[:, :, :, chosen], block_id=block_id, level=level)


def _with_vision(block: Block, kept: Tensor, kv: Tensor, *, block_id: int, level: int) -> Block:
    """The block with vision tokens `kv` [L, 2, K, P, D] at the places `kept` [P] alone, and their frames' text."""
    assert _has_vision(block), "a block without vision tokens"
    stays = (block.meta.kinds != TokenKind.VISION) & torch.isin(block.meta.seconds, block.meta.seconds[kept])
    stays[kept] = True
    whole = block.kv[:, :, :, stays].clone()
    whole[:, :, :, block.meta.kinds[stays] == TokenKind.VISION] = kv.to(whole.dtype)
    meta = _merged_meta([block.meta], block.meta, block_id, level, block.meta.seconds[stays], block.meta.kinds[stays])
    positions, advance = _closed_frames(block.meta, stays)
    if int(advance.max()) < meta.num_tokens:
        meta = replace(meta, positions=positions, advance=advance)
    return Block(meta, whole, block.representative, block.picture)


def _closed_frames(meta: BlockMeta, stays: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [A, n] of the tokens that stay [N] and their advance [A]: frames as they were, without those that went.

    On several axes, a frame's grid takes fewer positions than tokens, and so it keeps its shape.
    """
    frames, frame_of = torch.unique(meta.seconds, return_inverse=True)
    firsts = torch.searchsorted(frame_of, torch.arange(len(frames)))
    begins = torch.cat([meta.positions[:, firsts], meta.advance[:, None]], dim=1)  # [A, F + 1]
    lengths = begins.diff(dim=1) * torch.isin(torch.arange(len(frames)), frame_of[stays])
    shifts = lengths.cumsum(dim=1) - lengths - begins[:, :-1]
    return (meta.positions + shifts[:, frame_of])[:, stays], lengths.sum(dim=1)


def _has_vision(block: Block) -> bool:
    return bool((block.meta.kinds == TokenKind.VISION).any())


def _salient(seen: Tensor, frame_of: Tensor, num_text: Tensor, budget: int) -> Tensor:
    """Indices, rising, of the tokens of `seen` [L, 2, K, N, D] that say most beside each other for their price.

    Args:
        seen: vision tokens.
        frame_of: [N], number of each one's frame.
        num_text: by frame, the text tokens that come with its first vision token.
        budget: tokens in all; one is chosen whatever its price.
    """
    norms = seen[:, 1].square().sum(dim=(0, 1, 3)).sqrt().clamp_min(1e-12)
    keys = _flat_keys(seen - seen.mean(dim=3, keepdim=True))  # what all have in common tells none apart
    frame_of, num_text = frame_of.to(norms.device), num_text.to(norms.device)
    apart = (1 - keys @ keys.T).clamp_min(0.0)
    earlier = frame_of[None, :] < frame_of[:, None]
    fresh = apart.masked_fill(~earlier, 2.0).amin(dim=1)
    chosen, far = list[int](), torch.full_like(norms, 2.0)
    while True:
        prices = 1 + num_text[frame_of]
        gains = norms * (far * torch.minimum(far, fresh)).sqrt() / prices
        if chosen:
            gains[prices > budget] = -1.0
            gains[chosen] = -1.0
        best = int(gains.argmax())
        if gains[best] < 0:
            return torch.tensor(sorted(chosen))
        chosen.append(best)
        budget -= int(prices[best])
        num_text[frame_of[best]] = 0
        far = torch.minimum(far, apart[best])


def _typical_frame(block: Block) -> float:
    """Time of the frame whose vision keys are nearest to the block's mean."""
    vision = block.meta.kinds == TokenKind.VISION
    frames = torch.unique(block.meta.seconds[vision]).tolist()
    keys = _wide(block.kv[:, 0])  # [L, K, N, D]
    mean = keys[:, :, vision].mean(dim=2).flatten()
    means = [keys[:, :, vision & (block.meta.seconds == s)].mean(dim=2).flatten() for s in frames]
    closeness = torch.stack([torch.cosine_similarity(key, mean, dim=0) for key in means])
    return float(frames[int(closeness.argmax())])


def _vision_groups(tokens: Tensor, at_most: int) -> list[Tensor]:
    """Token indices split into at most so many runs of neighbours."""
    return list(torch.tensor_split(tokens, min(at_most, len(tokens))))


def _absorb(seeds: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Averages every vision token of `blocks` into the nearest of `seeds` [L, 2, K, P, D]."""
    tokens = torch.cat([_wide(block.kv[:, :, :, block.meta.kinds == TokenKind.VISION]) for block in blocks], dim=3)
    weights = torch.cat([_token_weights(block.meta) for block in blocks]).to(tokens)
    nearest = (_flat_keys(tokens) @ _flat_keys(seeds).T).argmax(dim=1)
    share = torch.nn.functional.one_hot(nearest, seeds.shape[3]) * weights[:, None]  # [N, P]
    total = share.sum(dim=0)
    means = torch.einsum("lckng,np->lckpg", tokens, share) / total.clamp_min(1e-9)[:, None]
    return torch.where((total > 0)[:, None], means, seeds)


def _wide(kv: Tensor) -> Tensor:
    """The same in float32 or better, so that means are not rounded on the way."""
    return kv.to(torch.promote_types(kv.dtype, torch.float32))


def _flat_keys(kv: Tensor) -> Tensor:
    """Unit vectors [N, L*K*D] of the keys in `kv` [L, 2, K, N, D]."""
    return normalize(kv[:, 0].permute(2, 0, 1, 3).flatten(1), dim=1)


def _token_weights(meta: BlockMeta) -> Tensor:
    """How many frames each vision token of a block stands for."""
    count = int((meta.kinds == TokenKind.VISION).sum())
    return torch.full((count,), meta.weight / count, dtype=torch.float64)


def _mean_representative(blocks: Sequence[Block]) -> Tensor:
    """Mean of the blocks' representatives, by weight."""
    weights = torch.tensor([block.meta.weight for block in blocks])
    stacked = torch.stack([block.representative.float() for block in blocks])
    return torch.einsum("b,blkd->lkd", (weights / weights.sum()).to(stacked.device), stacked).half()


def _merged_meta(
    metas: Sequence[BlockMeta], keeper: BlockMeta, block_id: int, level: int, seconds: Tensor, kinds: Tensor
) -> BlockMeta:
    """Metadata of a condensed block, laid out like text: one position a token on every axis."""
    count, axes = len(kinds), keeper.advance.shape[0]
    return BlockMeta(
        id=block_id,
        level=level,
        start_seconds=min(meta.start_seconds for meta in metas),
        end_seconds=max(meta.end_seconds for meta in metas),
        epoch_seconds=keeper.epoch_seconds,
        weight=sum(meta.weight for meta in metas),
        kinds=kinds.clone(),
        seconds=seconds.clone(),
        positions=torch.arange(count).expand(axes, count).clone(),
        advance=torch.full((axes,), count),
        start=keeper.start,
        picture_seconds=keeper.picture_seconds,
    )
