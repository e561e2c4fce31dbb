"""Codecs: what comes back, how far off it may be, and that it is the same bits whatever is read with it."""

import random
from dataclasses import replace

import pytest
import torch
from blocks import raw
from hypothesis import given, settings
from hypothesis import strategies as st

from vstream.kernels import quantise, turn
from vstream.memory.block import BlockShape, lead_tokens
from vstream.memory.codec import CODECS, WORD_BYTES, Int8, make_codec, make_codecs

LEVELS = {"int8": 255, "int4": 15}
KINDS = ("normal", "zeros", "constant", "outlier", "shifted", "tiny", "huge")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: a thread pool would only wait for other processes' threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shape_of(dim, dtype=torch.float32, heads=2):
    return BlockShape(num_layers=2, num_kv_heads=heads, head_dim=dim, dtype=dtype)


def some_kv(shape, tokens, kind="normal", seed=0):
    """Keys and values [L, 2, K, N, D] of one kind."""
    size = (shape.num_layers, 2, shape.num_kv_heads, tokens, shape.head_dim)
    kv = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        kv.zero_()
    elif kind == "constant":
        kv.fill_(-3.7)
    elif kind == "outlier":
        kv[..., -1] *= 300
    elif kind == "shifted":
        kv += 40 * torch.randn(*size[:3], 1, size[4], generator=torch.Generator().manual_seed(seed + 1))
    elif kind in ("tiny", "huge"):
        kv *= 1e-7 if kind == "tiny" else 3000
    return kv.to(shape.dtype)


def decoded(codec, rows):
    """A whole block's kv from its payload."""
    return codec.decode(rows, torch.zeros(rows.shape[1] - codec.head_rows, dtype=torch.int64))


def bound(kv, base, levels):
    """How far off, at most, each vector [L, 2, K, N] of kv may come back: the step decides.

    A turn keeps lengths, so D numbers that are each off by half a step are off by sqrt(D) / 2 steps together. The
    minimum and the scale are rounded to float16, which moves the two ends of the range by 2**-11 of them.
    """
    offset = torch.stack([base.double(), torch.zeros_like(base, dtype=torch.float64)], dim=1)[:, :, :, None]
    turned = turn(kv.double() - offset)
    low, high = turned.amin(-1), turned.amax(-1)
    ends = (low.abs() + (high - low)) * 2**-10 + levels * 2**-24
    each = (high - low) / levels / 2 * (1 + 2**-10) + ends
    rounding = torch.finfo(kv.dtype).eps * (kv.double().abs().amax(-1) + offset.abs().amax(-1)) + 1e-30
    return (each + rounding) * kv.shape[-1] ** 0.5


def base_of(kv, lead):
    return kv[:, 0, :, :lead].float().mean(dim=2).half()


def off_by(found, kv):
    return (found.double() - kv.double()).norm(dim=-1)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(LEVELS)),
    dim=st.sampled_from([1, 3, 16, 32, 64, 80, 128]),
    tokens=st.integers(1, 21),
    heads=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
)
def test_what_comes_back_is_within_the_step(name, dim, tokens, heads, kind, dtype, seed):
    shape = shape_of(dim, dtype, heads)
    codec, kv, lead = make_codec(name, shape), some_kv(shape, tokens, kind, seed), 1 + seed % tokens
    rows = codec.encode(kv, lead)
    assert rows.shape == (2, codec.num_rows(tokens), codec.row_bytes)
    assert rows.nbytes == codec.num_bytes(tokens)
    found = decoded(codec, rows)
    assert (found.shape, found.dtype) == (kv.shape, dtype)
    assert (off_by(found, kv) <= bound(kv, base_of(kv, lead), LEVELS[name])).all()
    assert raw(codec.encode(kv.clone(), lead)) == raw(rows)
    assert raw(codec.round_trip(kv, lead)) == raw(found)


class WrongScale(Int8):
    """Forgets that the scale is there."""

    def encode(self, kv, lead):
        rows = super().encode(kv, lead)
        scales = rows[:, self.head_rows :, : 4 * self.shape.num_kv_heads]
        scales.copy_((scales.contiguous().view(torch.float16) * 1.02).view(torch.uint8))
        return rows


@pytest.mark.parametrize("kind", ["normal", "outlier", "shifted"])
def test_a_wrong_scale_breaks_the_bound(kind):
    """Negative control: a scale of two percent too much."""
    kv = some_kv(shape_of(64), 12, kind)
    off = off_by(WrongScale(shape_of(64)).round_trip(kv, 4), kv)
    assert (off > bound(kv, base_of(kv, 4), 255)).any()


@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from([1, 3, 16, 64]),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
)
def test_none_keeps_every_bit(dim, tokens, heads, dtype, seed):
    """Numbers that are none, and infinities, too."""
    shape = shape_of(dim, dtype, heads)
    size = some_kv(shape, tokens).shape
    anything = torch.randint(0, 256, (shape.bytes_per_token * tokens,), generator=torch.Generator().manual_seed(seed))
    kv = anything.to(torch.uint8).view(dtype).reshape(size)
    codec = make_codec("none", shape)
    rows = codec.encode(kv, 1)
    assert raw(decoded(codec, rows)) == raw(kv) == raw(codec.round_trip(kv, 1))
    if shape.bytes_per_token // 2 % WORD_BYTES == 0:
        assert rows.nbytes == kv.nbytes


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("dim", [16, 64, 80])
def test_the_bits_do_not_depend_on_what_is_read_with_them(name, dim):
    """Blocks read together, cut, alone or a layer at a time."""
    shape, rng = shape_of(dim), random.Random(dim)
    codec = make_codec(name, shape)
    blocks = [some_kv(shape, rng.randint(1, 40), rng.choice(KINDS), seed) for seed in range(9)]
    payloads = [codec.encode(kv, 1 + kv.shape[3] // 3) for kv in blocks]
    counts = [rng.randint(1, kv.shape[3]) for kv in blocks]
    heads = [rows[:, : codec.head_rows] for rows in payloads]
    tokens = [rows[:, codec.head_rows :][:, :count] for rows, count in zip(payloads, counts, strict=True)]
    together = codec.decode(torch.cat(heads + tokens, dim=1), torch.arange(9).repeat_interleave(torch.tensor(counts)))
    alone = [decoded(codec, rows)[:, :, :, :count] for rows, count in zip(payloads, counts, strict=True)]
    assert raw(together) == raw(torch.cat(alone, dim=3))
    assert raw(together[1:]) == raw(torch.cat([decoded(codec, rows[1:]) for rows in cut(codec, payloads, counts)], 3))


def cut(codec, payloads, counts):
    return [rows[:, : codec.num_rows(count)] for rows, count in zip(payloads, counts, strict=True)]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_what_comes_later_changes_nothing_before(name):
    """A question about the past reads the same bits, whatever was seen later in the same clip."""
    shape = shape_of(64)
    codec, kv, other = make_codec(name, shape), some_kv(shape, 24), some_kv(shape, 24, "outlier", 1)
    other[:, :, :, :6] = kv[:, :, :, :6]
    first = codec.num_rows(6)
    assert raw(codec.encode(kv, 6)[:, :first]) == raw(codec.encode(other, 6)[:, :first])
    if name != "none":
        assert raw(codec.encode(kv, 24)[:, :first]) != raw(codec.encode(other, 24)[:, :first]), "negative control"


@pytest.mark.parametrize("name", sorted(LEVELS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_number_that_is_none_spoils_no_other_token(name, bad):
    shape = shape_of(64)
    codec, kv = make_codec(name, shape), some_kv(shape, 8)
    whole = codec.round_trip(kv, 2)
    kv[1, 0, 1, 5, 3] = bad
    found = codec.round_trip(kv, 2)
    assert found.isfinite().all()
    others = torch.ones_like(kv, dtype=torch.bool)
    others[1, 0, 1, 5] = False
    assert torch.equal(found[others], whole[others])


def test_the_sizes_are_those_of_the_bits():
    """Codes, two float16 numbers per head of keys and of values, and the head of a block."""
    sizes = {name: (codec.row_bytes, codec.head_rows) for name, codec in make_codecs(shape_of(64, heads=3)).items()}
    assert sizes == {"none": (1536, 0), "int8": (384 + 24, 1), "int4": (192 + 24, 2)}


@pytest.mark.parametrize("name", ["int2", "", "INT8"])
def test_an_unknown_codec_is_refused(name):
    with pytest.raises(ValueError, match=f"a codec must be one of none, int8, int4, got '{name}'"):
        make_codec(name, shape_of(64))


def test_a_turn_keeps_lengths_undoes_itself_and_spreads_what_sticks_out():
    for dim in (1, 3, 32, 64, 80, 128):
        vectors = torch.randn(50, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
        turned = turn(vectors)
        assert torch.allclose(turned.norm(dim=1), vectors.norm(dim=1))
        assert torch.allclose(turn(turned), vectors)
    spike = torch.zeros(64)
    spike[17] = 8.0
    assert turn(spike).abs().tolist() == [1.0] * 64


def test_turned_keys_less_the_first_frame_lose_less():
    """What the two steps are good for: channels that stick out, and a part that all keys of a block share."""
    shape = shape_of(64)
    for kind, share in (("outlier", 1 / 2), ("shifted", 1 / 100)):
        kv = some_kv(shape, 32, kind)
        plain = off_by(per_token(kv, 15), kv)[:, 0].square().mean()
        ours = off_by(make_codec("int4", shape).round_trip(kv, 8), kv)[:, 0].square().mean()
        assert ours < plain * share, kind


def per_token(kv, levels):
    """The same without turn and base."""
    low, high = kv.amin(-1, keepdim=True), kv.amax(-1, keepdim=True)
    step = (high - low) / levels
    return ((kv - low) / step).round() * step + low


def test_four_bits_put_a_key_beside_a_value():
    kv = torch.zeros(1, 2, 1, 1, 16)
    kv[0, 0, 0, 0] = turn(torch.arange(16.0))
    kv[0, 1, 0, 0] = turn(15 - torch.arange(16.0))
    row = quantise(kv, torch.zeros(1, 1, 16).half(), 4)[0, 0]
    assert row[:8].view(torch.float16).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert row[8:].tolist() == [code | (15 - code) << 4 for code in range(16)]


@pytest.mark.parametrize(
    ("seconds", "lead"), [([1, 1, 1, 2, 2], 3), ([1], 1), ([1, 2], 1), ([4, 4], 2), ([float("nan")] * 3, 1)]
)
def test_the_lead_is_the_first_frame(seconds, lead):
    assert lead_tokens(torch.tensor(seconds, dtype=torch.float64)) == lead


def test_shapes_of_one_kind_make_one_codec_each():
    assert make_codecs(shape_of(64)).keys() == CODECS.keys()
    wide = replace(shape_of(64), num_kv_heads=4)
    assert make_codec("int4", wide).row_bytes == 4 * (64 + 8)
