"""Where a thing is and which colour it has, on pictures whose truth is known."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.embedded.efficientnet import LONGEST_SIDE, SIDE, STRIDE, undistorted_size
from vstream.models.embedded.looking import (
    COLOURS,
    PLACES,
    _surest,
    _windows,
    by_shape,
    colour_of,
    colour_word,
    place_word,
    places_of,
)
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_picture_keeps_its_proportions_unless_it_is_very_long(height, width):
    found = undistorted_size(height, width)
    assert min(found) == SIDE
    assert all(side % STRIDE == 0 and side <= LONGEST_SIDE for side in found)
    longer = SIDE * max(height, width) / min(height, width)
    assert max(found) == LONGEST_SIDE or abs(max(found) - longer) <= STRIDE / 2
    assert found == undistorted_size(width, height)[::-1]


def test_windows_are_means_over_squares():
    cells = torch.randn(2, 3, 7, 12, generator=torch.Generator().manual_seed(0))
    windows = _windows(cells)
    assert windows.shape == (6 + 3 * 8, 2, 3)
    assert torch.allclose(windows[1], cells[..., 1:8].mean((2, 3)), atol=1e-6)
    assert torch.allclose(windows[-1], cells[..., 2:, -5:].mean((2, 3)), atol=1e-6)
    assert _windows(cells[..., :4, :4]).shape == (2, 2, 3)


def test_sure_windows_count_most():
    likely = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]])
    weights = 0.81, 0.25
    assert _surest(likely)[0, 0].item() == pytest.approx((0.9 * 0.81 + 0.5 * 0.25) / sum(weights))
    assert _surest(likely).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("pixel", "colour"),
    [
        ((10, 10, 12), "black"), ((250, 250, 250), "white"), ((128, 128, 128), "gray"), ((200, 20, 30), "red"),
        ((255, 140, 0), "orange"), ((240, 220, 40), "yellow"), ((40, 160, 60), "green"), ((40, 80, 200), "blue"),
        ((130, 40, 180), "purple"), ((255, 160, 190), "pink"), ((120, 72, 30), "brown"), ((180, 140, 100), "brown"),
    ],
)  # fmt: skip
def test_colours_have_their_common_names(pixel, colour):
    assert COLOURS[int(colour_of(torch.tensor(pixel) / 255))] == colour


def test_a_colour_is_said_if_it_is_sure():
    shares = torch.zeros(len(COLOURS))
    shares[COLOURS.index("red")], shares[COLOURS.index("blue")] = 0.6, 0.4
    assert colour_word(shares) == "red"
    assert colour_word(shares * torch.tensor(0.8)) == ""


@pytest.mark.parametrize(
    ("centre", "place"),
    [((0.2, 0.5), "left"), ((0.8, 0.6), "right"), ((0.5, 0.2), "top"), ((0.5, 0.9), "bottom"), ((0.4, 0.5), "middle")],
)  # fmt: skip
def test_places(centre, place):
    assert place_word(*centre) == place
    assert place in PLACES


def test_places_are_steadied_within_a_scene():
    """A centre that trembles about the border of the middle does not change its place; one that moves does."""
    centres = torch.tensor([[0.37, 0.5], [0.39, 0.5], [0.37, 0.5], [0.48, 0.5], [0.39, 0.5]])
    assert places_of(centres, [True] * 4) == ["left", "left", "left", "middle", "middle"]
    assert places_of(centres, [False] * 4) == ["left", "middle", "left", "middle", "middle"]


def test_pictures_of_one_shape_are_looked_at_together():
    pictures = [torch.zeros(shape) for shape in ((4, 6, 3),) * 3 + ((6, 4, 3),) + ((4, 6, 3),)]
    assert [batch.shape[:3] for batch in by_shape(pictures, 2)] == [(2, 4, 6), (1, 4, 6), (1, 6, 4), (1, 4, 6)]


@pytest.mark.parametrize(("left", "place"), [(0, "left"), (276, "right"), (138, "middle")])
def test_a_thing_is_where_it_was_put(embedded_model: EmbeddedAdapter, cat: Image.Image, left: int, place: str):
    """A cat on a plain ground, and then the same mirrored."""
    canvas = Image.new("RGB", (448, 252), (90, 130, 90))
    canvas.paste(cat.resize((172, 172)), (left, 40))
    with torch.inference_mode():
        (seen,) = embedded_model.describe([Frame(0.0, np.array(canvas))])
    assert "cat" in seen.chain
    assert seen.place == place
    assert seen.colour in {"brown", "orange"}


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    """The cat of the sample video."""
    with av.open(str(SAMPLE)) as container:
        container.seek(12_000_000)
        picture = next(frame for frame in container.decode(video=0) if frame.time >= 13).to_image()
    side = picture.height
    return picture.crop(((picture.width - side) // 2, 0, (picture.width + side) // 2, side))
