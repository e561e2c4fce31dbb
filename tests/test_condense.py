"""Condensing, against cases worked out by hand and a plain loop."""

import math
from dataclasses import replace

import pytest
import torch
from blocks import raw
from hypothesis import given, settings
from hypothesis import strategies as st

from vstream.memory.block import Block, BlockMeta, TokenKind
from vstream.memory.condense import condense, digest, halve, pool
from vstream.memory.levels import DETAIL, DIGEST, GIST

TIME, SEEN, MARK = TokenKind.TIMESTAMP, TokenKind.VISION, TokenKind.MARKER


def condensed(*blocks, vision=2):
    return condense(blocks, block_id=99, level=GIST, max_vision_tokens=vision)


def block_of(frames, *, block_id=1, weight=None, start=0.0, dtype=torch.float64, axes=1, picture=b""):
    """A block [1, 2, 1, N, 2] of frames [[(kind, key, value), ...], ...], one second apart."""
    tokens = [(start + i, *token) for i, frame in enumerate(frames) for token in frame]
    pairs = [[key for _, _, key, _ in tokens], [value for _, _, _, value in tokens]]
    kv, count = torch.tensor(pairs, dtype=dtype)[None, :, None], len(tokens)
    meta = BlockMeta(
        id=block_id,
        level=DETAIL,
        start_seconds=start,
        end_seconds=start + len(frames) - 1,
        epoch_seconds=1.7e9,
        weight=float(len(frames) if weight is None else weight),
        kinds=torch.tensor([kind for _, kind, _, _ in tokens], dtype=torch.uint8),
        seconds=torch.tensor([seconds for seconds, *_ in tokens], dtype=torch.float64),
        positions=3 * torch.arange(count).expand(axes, count).clone(),
        advance=torch.full((axes,), 3 * count),
        start=torch.full((axes,), 100 + block_id),
        picture_seconds=start if picture else float("nan"),
    )
    return Block(meta, kv, kv[:, 0].mean(dim=2).half(), picture)


def random_block(seed, *, frames=3, vision=4, dtype=torch.float32, **keywords):
    random = torch.Generator().manual_seed(seed)

    def token(kind):
        return kind, *torch.randn((2, 2), generator=random, dtype=torch.float64).tolist()

    kinds = [TIME, TIME, *[SEEN] * vision, MARK]
    return block_of([[token(kind) for kind in kinds] for _ in range(frames)], dtype=dtype, **keywords)


def of_kind(block, kind):
    """Keys and values [2, N, 2] of a block's tokens of one kind."""
    return block.kv[0, :, 0, block.meta.kinds == kind]


THREE_FRAMES = [
    [(TIME, (9, 9), (90, 90)), (SEEN, (8, 0), (1, 1)), (SEEN, (8, 1), (2, 2)), (MARK, (5, 5), (50, 50))],
    [(TIME, (8, 8), (80, 80)), (SEEN, (1, 0), (3, 5)), (SEEN, (0, 1), (4, 4)), (MARK, (7, 7), (70, 70))],
    [(TIME, (6, 6), (60, 60)), (SEEN, (0, 8), (8, 9)), (SEEN, (1, 8), (4, 1)), (MARK, (4, 4), (40, 40))],
]


def test_a_hand_made_block():
    """The middle frame is typical; the first frame's tokens join its first one, the last frame's its second."""
    merged = condensed(block_of(THREE_FRAMES))
    assert merged.meta.kinds.tolist() == [TIME, SEEN, SEEN, MARK]
    assert merged.meta.seconds.tolist() == [1.0] * 4
    keys, values = merged.kv[0, :, 0]
    expected_keys = [[8, 8], [(8 + 8 + 1) / 3, 1 / 3], [1 / 3, (1 + 8 + 8) / 3], [7, 7]]
    expected_values = [[80, 80], [(1 + 2 + 3) / 3, (1 + 2 + 5) / 3], [(4 + 8 + 4) / 3, (4 + 9 + 1) / 3], [70, 70]]
    assert torch.allclose(keys, torch.tensor(expected_keys, dtype=torch.float64), rtol=1e-15)
    assert torch.allclose(values, torch.tensor(expected_values, dtype=torch.float64), rtol=1e-15)


def test_heavier_blocks_count_for_more():
    """A block's weight is shared by its vision tokens: 6 frames on 2 tokens, 1 frame on 1 token."""
    heavy = block_of([[(SEEN, (1, 0), (1, 0)), (SEEN, (3, 0), (3, 0))]], weight=6)
    light = block_of([[(SEEN, (10, 0), (10, 4))]], block_id=2, weight=1, start=5.0)
    merged = condensed(heavy, light, vision=1)
    assert merged.kv[0, 0, 0].tolist() == [[(3 * 1 + 3 * 3 + 10) / 7, 0.0]]
    assert merged.kv[0, 1, 0].tolist() == [[(3 * 1 + 3 * 3 + 10) / 7, 4 / 7]]
    assert merged.meta.weight == 7


def test_the_order_of_weights_decides_who_is_kept():
    first, second = (
        block_of(THREE_FRAMES, weight=1, dtype=torch.float32),
        random_block(3, block_id=2, weight=2, start=10.0, picture=b"jpeg"),
    )
    merged = condensed(first, second)
    assert merged.meta.seconds.min() >= 10.0
    assert merged.picture == b"jpeg"
    assert merged.meta.picture_seconds == 10.0
    assert merged.meta.start.tolist() == second.meta.start.tolist()
    even = condensed(first, random_block(3, block_id=2, weight=1, start=10.0))
    assert even.meta.seconds.max() < 10.0, "of equal weights the earlier is kept"
    assert even.picture == b""


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=3),
    vision=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_what_is_kept_of_random_blocks(shapes, vision, dtype):
    blocks = [
        random_block(i, frames=frames, vision=count, weight=weight, block_id=i, start=10.0 * i, dtype=dtype)
        for i, (frames, count, weight) in enumerate(shapes)
    ]
    merged = condensed(*blocks, vision=vision)
    keeper = max(blocks, key=lambda block: block.meta.weight)
    kept = keeper.meta.seconds == merged.meta.seconds[0]
    for kind in (TIME, MARK):
        assert raw(of_kind(merged, kind)) == raw(keeper.kv[0, :, 0, kept & (keeper.meta.kinds == kind)])
    per_frame = int((kept & (keeper.meta.kinds == SEEN)).sum())
    assert of_kind(merged, SEEN).shape[1] == min(vision, per_frame)
    assert merged.meta.kinds.tolist() == [TIME, TIME, *[SEEN] * min(vision, per_frame), MARK]
    assert merged.kv.dtype == dtype
    assert len(set(merged.meta.seconds.tolist())) == 1
    assert merged.meta.weight == sum(weight for *_, weight in shapes)
    assert merged.meta.start_seconds == 0.0
    assert merged.meta.end_seconds == max(block.meta.end_seconds for block in blocks)
    assert (merged.meta.id, merged.meta.level) == (99, GIST)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), vision=st.integers(1, 4), weights=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_prototypes_are_weighted_means_of_their_nearest(seed, vision, weights):
    """Against a loop in double precision; and so, with one prototype, the mean over all frames."""
    blocks = [random_block(seed + 1000 * i, dtype=torch.float64, weight=w, block_id=i) for i, w in enumerate(weights)]
    merged = condensed(*blocks, vision=vision)
    keeper = max(blocks, key=lambda block: block.meta.weight)
    kept = torch.nonzero((keeper.meta.seconds == merged.meta.seconds[0]) & (keeper.meta.kinds == SEEN))[:, 0]
    seeds = [keeper.kv[0, :, 0, part].mean(dim=1) for part in torch.tensor_split(kept, vision)]  # each [2, D]
    sums, totals = [torch.zeros(2, 2, dtype=torch.float64) for _ in seeds], [0.0] * vision
    for block in blocks:
        tokens = of_kind(block, SEEN)
        for token in tokens.unbind(dim=1):
            close = [float(torch.cosine_similarity(token[0], seed_key[0], dim=0)) for seed_key in seeds]
            nearest = close.index(max(close))
            sums[nearest] += token * block.meta.weight / tokens.shape[1]
            totals[nearest] += block.meta.weight / tokens.shape[1]
    expected = [total / weight if weight else own for total, weight, own in zip(sums, totals, seeds, strict=True)]
    assert torch.allclose(of_kind(merged, SEEN), torch.stack(expected, dim=1), rtol=1e-12, atol=1e-12)


def test_float64_is_not_rounded_to_single():
    tiny = 1e-12
    merged = condensed(block_of([[(SEEN, (1 + tiny, 0), (1, 1)), (SEEN, (1 + 3 * tiny, 0), (1, 1))]]), vision=1)
    assert float(merged.kv[0, 0, 0, 0, 0]) - 1 == pytest.approx(2 * tiny, rel=1e-3)


def test_the_representative_is_the_mean_by_weight():
    blocks = [random_block(i, block_id=i, weight=w) for i, w in enumerate((1, 5, 2))]
    expected = sum(block.representative.double() * block.meta.weight for block in blocks) / 8
    assert torch.allclose(condensed(*blocks).representative.double(), expected, atol=2e-3)
    equal = sum(block.representative.double() for block in blocks) / 3
    assert not torch.allclose(equal, expected, atol=2e-3), "weights must matter here"


def test_condensing_one_block_keeps_its_representative():
    block = random_block(0)
    assert raw(condensed(block).representative) == raw(block.representative)


@pytest.mark.parametrize("axes", [1, 3])
def test_positions_are_laid_out_like_text(axes):
    merged = condensed(random_block(0, axes=axes))
    count = merged.meta.num_tokens
    assert merged.meta.positions.tolist() == [list(range(count))] * axes
    assert merged.meta.advance.tolist() == [count] * axes


def test_a_block_of_one_token_stays_as_it_is():
    block = block_of([[(SEEN, (0.1, 0.7), (0.3, 0.9))]], dtype=torch.float32)
    merged = condensed(block, vision=4)
    assert raw(merged.kv) == raw(block.kv)
    assert merged.meta.kinds.tolist() == [SEEN]
    assert merged.picture == b""


def test_zero_keys_do_no_harm():
    merged = condensed(block_of([[(SEEN, (0, 0), (1, 2)), (SEEN, (0, 0), (3, 4))]]))
    assert torch.isfinite(merged.kv).all()
    assert torch.isfinite(merged.representative).all()


def test_repeated_merging_keeps_the_mean():
    """However often neighbours merge, one prototype stays the mean over all frames that were ever seen."""
    blocks = [random_block(i, dtype=torch.float64, block_id=i, frames=1 + i % 3) for i in range(12)]
    tokens = [(of_kind(block, SEEN).mean(dim=1), block.meta.weight) for block in blocks]
    merged = blocks[0]
    for block in blocks[1:]:
        merged = condensed(merged, block, vision=1)
    expected = sum(mean * weight for mean, weight in tokens) / sum(weight for _, weight in tokens)
    assert torch.allclose(of_kind(merged, SEEN)[:, 0], expected, rtol=1e-12)
    assert merged.meta.weight == sum(weight for _, weight in tokens)


def test_a_block_without_vision_is_refused():
    with pytest.raises(AssertionError, match="without vision tokens"):
        condensed(block_of([[(TIME, (1, 1), (1, 1))]]))


# Digests ------------------------------------------------------------------------------------------------------------


def digested(block, share=0.25):
    return digest(block, block_id=99, level=DIGEST, keep_tokens=math.ceil(share * block.meta.num_tokens))


def test_a_hand_made_digest():
    """Five tokens of eleven: the loudest value with its frame's text, then the loud one that is furthest from it, with
    its own; the others go."""
    frames = [
        [(TIME, (9, 9), (9, 9)), (SEEN, (4, 0), (9, 0)), (SEEN, (4, 1), (1, 0)), (MARK, (5, 5), (5, 5))],
        [(TIME, (8, 8), (8, 8)), (SEEN, (4, 0), (2, 0)), (MARK, (7, 7), (7, 7))],
        [(TIME, (6, 6), (6, 6)), (SEEN, (0, 4), (4, 3)), (SEEN, (0, 5), (1, 1)), (SEEN, (0, 3), (1, 2))],
    ]
    made = digested(block_of(frames), share=0.45)
    assert made.meta.kinds.tolist() == [TIME, SEEN, MARK, TIME, SEEN]
    assert made.meta.seconds.tolist() == [0.0, 0.0, 0.0, 2.0, 2.0]
    keys, values = made.kv[0, :, 0]
    expected_keys = torch.tensor([[9, 9], [4, 0], [5, 5], [6, 6], [0, 4]], dtype=torch.float64)
    expected_values = torch.tensor([[9, 9], [9, 0], [5, 5], [6, 6], [4, 3]], dtype=torch.float64)
    assert torch.allclose(keys, expected_keys, rtol=1e-12)
    assert torch.allclose(values, expected_values, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), frames=st.integers(1, 4), vision=st.integers(1, 6),
    share=st.sampled_from([0.05, 0.25, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), axes=st.sampled_from([1, 3]),
)  # fmt: skip
def test_what_a_digest_keeps(seed, frames, vision, share, dtype, axes):
    block = random_block(seed, frames=frames, vision=vision, dtype=dtype, axes=axes, picture=b"jpeg", weight=7)
    made = digested(block, share)
    count, budget = of_kind(made, SEEN).shape[1], -int(-share * block.meta.num_tokens // 1)
    assert count >= 1
    assert made.meta.num_tokens <= max(budget, 4), "one frame with one vision token is the least"
    assert made.meta.num_tokens >= min(budget - 3, 4), "a frame more would have fitted"
    assert made.meta.seconds.tolist() == sorted(made.meta.seconds.tolist())
    kept_frames = set(made.meta.seconds[made.meta.kinds == SEEN].tolist())
    for kind in (TIME, MARK):
        stays = torch.tensor([one in kept_frames for one in block.meta.seconds.tolist()]) & (block.meta.kinds == kind)
        assert raw(of_kind(made, kind)) == raw(block.kv[0, :, 0, stays])
    assert (made.meta.id, made.meta.level, made.meta.weight, made.picture) == (99, DIGEST, 7.0, b"jpeg")
    assert (made.meta.start_seconds, made.meta.end_seconds) == (block.meta.start_seconds, block.meta.end_seconds)
    assert raw(made.representative) == raw(block.representative)
    assert made.meta.advance.tolist() == [made.meta.num_tokens] * axes
    assert made.kv.dtype == dtype
    was = {raw(one) for one in of_kind(block, SEEN).unbind(1)}
    assert {raw(one) for one in of_kind(made, SEEN).unbind(1)} <= was, "tokens stay as they are"
    assert share < 1.0 or count == frames * vision


def test_of_what_stays_the_same_the_beginning_is_kept():
    """It enters in the second frame, and is a little louder in the third."""
    empty, thing = (SEEN, (5, 0), (1, 0)), [(SEEN, (0, 5), (2 + 0.1 * i, 0)) for i in range(2)]
    made = digested(block_of([[empty], [thing[0]], [thing[1]]]), share=1 / 3)
    assert made.meta.seconds.tolist() == [1.0]


FRAME_LENGTH = 7  # two tokens of a time, a grid of 3 x 4, a mark


def grid_block():
    """A block of three frames whose vision tokens are grids on three axes."""
    block = random_block(3, frames=3, vision=12, axes=3)
    row, column = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    grid = 2 + torch.stack([torch.zeros_like(row), row, column])
    frame = torch.cat([torch.tensor([0, 1]).repeat(3, 1), grid, torch.full((3, 1), 6)], dim=1)
    positions = torch.cat([frame + index * FRAME_LENGTH for index in range(3)], dim=1)
    meta = replace(block.meta, positions=positions, advance=torch.full((3,), 3 * FRAME_LENGTH))
    return Block(meta, block.kv, block.representative, block.picture)


@pytest.mark.parametrize(("share", "keeps_grids"), [(1.0, True), (0.8, True), (0.6, True), (0.3, False), (0.1, False)])
def test_what_stays_of_grids_is_laid_out_the_shorter_way(share, keeps_grids):
    made = digested(grid_block(), share)
    length, count = FRAME_LENGTH * len(made.meta.seconds.unique()), made.meta.num_tokens
    assert (length < count) == keeps_grids
    assert made.meta.advance.tolist() == [length if keeps_grids else count] * 3
    assert keeps_grids or made.meta.positions.tolist() == [list(range(count))] * 3


def test_what_stays_of_a_grid_keeps_its_place_in_it():
    block = grid_block()
    block.kv[:, 0, :, :15] = block.kv[:, 0, :, 30:]  # the first frame is like the newest, and says little: it goes
    block.kv[:, 1, :, :15] *= 1e-6
    made = halve(block, block_id=99, level=DIGEST)
    assert made.meta.seconds.unique().tolist() == [1.0, 2.0]
    values = [tuple(value) for value in block.kv[0, 1, 0].tolist()]
    place = block.meta.positions - FRAME_LENGTH  # the first frame's are gone
    for token, value in enumerate(made.kv[0, 1, 0].tolist()):
        assert made.meta.positions[:, token].tolist() == place[:, values.index(tuple(value))].tolist()
    assert made.meta.advance.tolist() == [2 * FRAME_LENGTH] * 3


def test_a_digest_spares_what_stands_alone():
    """Of eight like tokens and one that differs, though it is less loud, the one that differs is kept."""
    alike = [(SEEN, (5, 0.01 * i), (2, 0)) for i in range(8)]
    block = block_of([[*alike, (SEEN, (0, 5), (1, 0))]])
    made = digested(block)
    assert of_kind(made, SEEN)[0, -1].tolist() == pytest.approx([0, 5])


def test_where_text_is_most_of_a_block_few_frames_are_kept_well():
    """Four frames of five text tokens and two vision tokens each: nine tokens are one frame, not four halves."""
    frame = [(TIME, (1, 1), (1, 1))] * 5
    frames = [[*frame, (SEEN, (5, i), (2, 0)), (SEEN, (i, 5), (2, 0))] for i in range(4)]
    made = digested(block_of(frames), share=9 / 28)
    assert made.meta.kinds.tolist() == [TIME] * 5 + [SEEN] * 2
    assert len(set(made.meta.seconds.tolist())) == 1


def test_a_digest_is_condensed_like_any_block():
    made = condensed(digested(random_block(1, frames=4, vision=4), share=0.9))
    assert made.meta.kinds.tolist() == [TIME, TIME, SEEN, SEEN, MARK]
    assert len(set(made.meta.seconds.tolist())) == 1


def test_a_digest_needs_vision_too():
    with pytest.raises(AssertionError, match="without vision tokens"):
        digested(block_of([[(TIME, (1, 1), (1, 1))]]))


def vision_kv(block, frame=None):
    """Keys and values [N, L, 2, K, D] of a block's vision tokens, of one frame or all."""
    wanted = block.meta.kinds == SEEN
    if frame is not None:
        wanted &= block.meta.seconds == frame
    return block.kv[:, :, :, wanted].movedim(3, 0)


@pytest.mark.parametrize(("share", "left"), [(0.0, 1), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_pooling_averages_runs_of_each_frame(share, left):
    block = random_block(3, frames=3, vision=4, picture=b"jpeg")
    pooled = pool(block, block_id=7, level=DIGEST, keep_share=share)
    for frame in (0.0, 1.0, 2.0):
        expected = vision_kv(block, frame).reshape(left, 4 // left, *block.kv[:, :, :, 0].shape).mean(dim=1)
        assert torch.allclose(vision_kv(pooled, frame), expected, atol=1e-6)
    assert pooled.meta.kinds.tolist() == [TIME, TIME, *[SEEN] * left, MARK] * 3
    assert raw(of_kind(pooled, TIME)) == raw(of_kind(block, TIME))
    assert (pooled.meta.weight, pooled.picture, pooled.meta.level) == (block.meta.weight, b"jpeg", DIGEST)


def halved_by_loops(block):
    """Which vision tokens (by number among them) InfiniPot's two rules keep."""
    kv, seconds = vision_kv(block), block.meta.seconds[block.meta.kinds == SEEN].tolist()
    frames = sorted(set(seconds))
    newest = [i for i, second in enumerate(seconds) if second >= frames[-max(1, len(frames) // 4)]]
    keys, count = [one[:, 0].flatten() for one in kv], max(1, len(seconds) // 2)

    def alike(i):
        return max(float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in newest)

    old = sorted((i for i in range(len(seconds)) if i not in newest), key=alike)[: count // 2]
    rest = sorted((i for i in range(len(seconds)) if i not in old), key=lambda i: -float(kv[i][:, 1].norm()))
    return sorted(old + rest[: count - len(old)])


@pytest.mark.parametrize("seed", range(6))
def test_halving_keeps_what_is_new_and_what_is_long(seed):
    block = random_block(seed, frames=4, vision=3, dtype=torch.float64)
    half = halve(block, block_id=7, level=GIST)
    assert raw(vision_kv(half)) == raw(vision_kv(block)[halved_by_loops(block)])
    assert half.meta.weight == block.meta.weight
    framed = set(half.meta.seconds[half.meta.kinds == SEEN].tolist())
    assert set(half.meta.seconds.tolist()) == framed, "text of a frame without a vision token stays"


def test_halving_ends_at_one_token():
    block, sizes = random_block(1, frames=4, vision=3), []
    for _ in range(5):
        block = halve(block, block_id=7, level=GIST)
        sizes.append(int((block.meta.kinds == SEEN).sum()))
    assert sizes == [6, 3, 1, 1, 1]
