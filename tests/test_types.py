"""The values that flow through vstream check themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vstream.memory.block import BlockMeta, prefix_until
from vstream.models.random import RandomLlama
from vstream.types import Clip, Frame, Gap, TokenSpan, format_seconds, moments_in, parse_seconds

RED = np.full((4, 6, 3), (255, 0, 0), dtype=np.uint8)

# Times ----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_a_shown_time_can_be_given_back(seconds):
    assert parse_seconds(format_seconds(seconds)) == seconds


@given(st.floats(0, 1e7))
def test_a_shown_time_is_cut_to_whole_seconds(seconds):
    assert parse_seconds(format_seconds(seconds)) == int(seconds)


@given(st.floats(0, 1e12))
def test_plain_seconds_are_taken_as_they_are(seconds):
    assert parse_seconds(repr(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "moments"),
    [
        ("What was shown at 1:15?", (75,)),
        ("between 01:00 and 1:02:03, what moved?", (60, 3723)),
        ("[0:07] or 120:59", (7, 7259)),
        ("nothing at 1:75, 1:2, 1:02:03:04 or 12", ()),
    ],
)
def test_a_question_names_moments(text, moments):
    assert moments_in(text) == moments


@given(st.integers(0, 99), st.integers(0, 59), st.floats(0, 59.999))
def test_hours_minutes_and_seconds_add_up(hours, minutes, seconds):
    assert parse_seconds(f"{hours}:{minutes}:{seconds!r}") == pytest.approx(3600 * hours + 60 * minutes + seconds)
    assert parse_seconds(f"{minutes}:{seconds!r}") == pytest.approx(60 * minutes + seconds)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (59.99, "00:59"), (75.3, "01:15"), (3600, "1:00:00"), (360_061, "100:01:01")]
)
def test_times_are_shown_like_this(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90.5", 90.5), (" 1:30 ", 90), ("90:00", 5400), ("1:02:03.25", 3723.25)]
)
def test_times_are_read_like_this(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "-1", "nan", "inf", "1e999", "1:60", "1:-1", "1:60:00", "1.5:30", "1:2:3:4", "inf:30", "nan:30",
     "1:nan", "1:inf:30", "1:2.5:3", "-1:30"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a time; give seconds \(90\.5\), MM:SS or HH:MM:SS") as refused:
        parse_seconds(text)
    assert repr(text) in str(refused.value)


# Frames and clips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), -float("inf")])
def test_a_frame_has_a_time(seconds):
    with pytest.raises(ValueError, match=f"pts_seconds must be a finite number >= 0, got {seconds}"):
        Frame(seconds, RED)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (RED.astype(np.int16), r"\[4, 6, 3\] int16"),
        (RED.astype(np.float32), r"\[4, 6, 3\] float32"),
        (RED[..., 0], r"\[4, 6\] uint8"),
        (np.zeros((4, 6, 4), np.uint8), r"\[4, 6, 4\] uint8"),
        (np.zeros((3, 4, 6), np.uint8), r"\[3, 4, 6\] uint8"),
        (np.zeros((0, 6, 3), np.uint8), r"\[0, 6, 3\] uint8"),
        (np.zeros((4, 0), np.float32), r"\[4, 0\] float32"),
        (np.zeros(5, np.float32), r"\[5\] float32"),
    ],
)
def test_a_frame_has_a_picture_or_features(image, got):
    with pytest.raises(ValueError, match=r"must be \[height, width, 3\] uint8 or \[tokens, embedding\].*got " + got):
        Frame(0.0, image)


@pytest.mark.parametrize("image", [RED, np.zeros((1, 1, 3), np.uint8), np.zeros((4, 8), np.float16), np.zeros((1, 1))])
def test_pictures_and_features_are_taken(image):
    frame = Frame(1.25, image)
    assert frame.image is image
    assert repr(frame) == f"Frame(1.250 s, {list(image.shape)} {image.dtype})", "shapes are shown, not pixels"


def test_a_clip_spans_its_frames():
    clip = Clip([Frame(seconds, RED, 1.7e9) for seconds in (1.5, 2.0, 4.25)])
    assert (clip.start_seconds, clip.end_seconds, clip.epoch_seconds) == (1.5, 4.25, 1.7e9)
    assert repr(clip) == "Clip(3 frames, 1.500..4.250 s)"


@pytest.mark.parametrize("times", [[1.0, 1.0], [2.0, 1.0], [0.0, 2.0, 1.0]])
def test_frame_times_rise(times):
    with pytest.raises(AssertionError, match="frame times must rise"):
        Clip([Frame(seconds, RED) for seconds in times])


def test_a_clip_is_never_empty():
    with pytest.raises(AssertionError, match="at least one frame"):
        Clip([])


def test_a_clip_has_one_wall_clock():
    assert Clip([Frame(1.0, RED), Frame(2.0, RED)]).epoch_seconds is None
    for epochs in [(1.7e9, 1.8e9), (None, 1.7e9)]:
        with pytest.raises(AssertionError, match="a clip has one wall clock"):
            Clip([Frame(float(k), RED, epoch) for k, epoch in enumerate(epochs)])


def test_a_gap_is_stored_as_json_and_read_back():
    gap = Gap(1.25, 7.5, "connection refused")
    assert Gap.from_plain(json.loads(json.dumps(gap.to_plain()))) == gap
    assert repr(gap) == "Gap(1.250..7.500 s, connection refused)"


@pytest.mark.parametrize("times", [(2.0, 2.0), (3.0, 2.0), (-1.0, 2.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_gap_lies_between_two_times(times):
    with pytest.raises(ValueError, match=f"a gap lies between two finite times >= 0, got {times[0]} and {times[1]}"):
        Gap(*times, "stalled")


@pytest.mark.parametrize(
    "plain", [{}, {"start_seconds": 1, "end_seconds": 2}, {"start_seconds": 1, "end_seconds": 2, "reason": 3}]
)
def test_what_is_no_stored_gap_is_refused(plain):
    with pytest.raises(ValueError, match="a stored gap has start_seconds, end_seconds and a reason, got"):
        Gap.from_plain(plain)


# Token spans ----------------------------------------------------------------------------------------------------------


def span_of(tokens=3, axes=1):
    return TokenSpan(
        embeds=torch.zeros(tokens, 8),
        kinds=torch.zeros(tokens, dtype=torch.uint8),
        seconds=torch.zeros(tokens, dtype=torch.float64),
        positions=torch.arange(tokens).expand(axes, tokens),
        advance=torch.full((axes,), tokens),
    )


@pytest.mark.parametrize("axes", [1, 3])
def test_a_span_is_as_long_as_its_embeddings(axes):
    assert len(span_of(5, axes)) == 5
    assert repr(span_of(5, axes)) == "TokenSpan(5 tokens)"


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("kinds", torch.zeros(2, dtype=torch.uint8), r"3 tokens, kinds \[2\]"),
        ("kinds", torch.zeros(3, 1, dtype=torch.uint8), r"3 tokens, kinds \[3, 1\]"),
        ("seconds", torch.zeros(4, dtype=torch.float64), r"3 tokens, seconds \[4\]"),
        ("positions", torch.arange(3), r"3 tokens, positions \[3\]"),
        ("positions", torch.zeros(1, 2, dtype=torch.int64), r"3 tokens, positions \[1, 2\]"),
        ("advance", torch.zeros(2, dtype=torch.int64), r"3 tokens, positions \[1, 3\]"),
        ("embeds", torch.zeros(4, 8), r"4 tokens, kinds \[3\]"),
    ],
)
def test_the_parts_of_a_span_must_fit(field, value, match):
    with pytest.raises(AssertionError, match=match):
        replace(span_of(), **{field: value})


# A block's prefix -----------------------------------------------------------------------------------------------------


def meta_of_frames(count, level=0):
    """Metadata of a detail block of frames at 10, 11, 12 ... s, as an adapter lays them out."""
    adapter = RandomLlama()
    frames = [Frame(10.0 + i, RED) for i in range(count)]
    span = adapter.layout(frames, adapter.encode(frames))
    return BlockMeta(
        id=7,
        level=level,
        start_seconds=10.0,
        end_seconds=9.0 + count,
        epoch_seconds=None,
        weight=float(count),
        kinds=span.kinds,
        seconds=span.seconds,
        positions=span.positions,
        advance=span.advance,
        start=torch.tensor([50]),
    )


def test_a_prefix_is_what_was_there_by_then():
    whole = meta_of_frames(4)
    for until, frames in [(10.0, 1), (10.9, 1), (11.0, 2), (12.5, 3)]:
        part, alone = prefix_until(whole, until), meta_of_frames(frames)
        assert (part.start_seconds, part.end_seconds, part.weight) == (10.0, 9.0 + frames, frames)
        for name in ("kinds", "seconds", "positions", "advance"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        assert (part.id, part.level, part.start.tolist()) == (7, 0, [50])


@pytest.mark.parametrize("until", [13.0, 99.0, float("inf")])
def test_the_whole_block_is_its_own_prefix(until):
    whole = meta_of_frames(4)
    part = prefix_until(whole, until)
    assert torch.equal(part.positions, whole.positions)
    assert torch.equal(part.advance, whole.advance)
    assert (part.end_seconds, part.weight) == (13.0, 4)


def test_no_prefix_before_the_first_frame():
    with pytest.raises(AssertionError, match=r"has no frame up to 9\.9 s"):
        prefix_until(meta_of_frames(2), 9.9)


def test_condensed_blocks_have_no_prefix():
    with pytest.raises(AssertionError, match="only detail blocks have prefixes"):
        prefix_until(meta_of_frames(2, level=2), 10.0)
