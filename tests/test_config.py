"""Settings are checked where they are made, each with a sentence that names the value and what is allowed."""

from dataclasses import FrozenInstanceError, fields

import pytest

from vstream.config import Config, DecodeOptions

NAN, INF = float("nan"), float("inf")


def refused(kind, name, value, allowed):
    with pytest.raises(ValueError, match="must be") as caught:
        kind(**{name: value})
    assert str(caught.value) == f"{name} must be {allowed}, got {value!r}"


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("max_tokens", [0, -1], "a whole number >= 1"),
        ("temperature", [-0.1, NAN, INF], "a number >= 0"),
        ("top_p", [0, -0.5, 1.01, NAN], "a number in (0, 1]"),
        ("stop", [("",), ("END", "")], "a tuple of strings that are not empty"),
    ],
)
def test_decode_options_are_checked(name, values, allowed):
    for value in values:
        refused(DecodeOptions, name, value, allowed)


COUNTS = [
    "clip_frames",
    "decode_steps",
    "window_tokens",
    "max_queue_frames",
    "max_question_tokens",
    "max_answer_tokens",
    "dialogue_tokens",
]
BUDGETS = [
    "retrieve_tokens",
    "retrieve_neighbours",
    "gist_tokens",
    "answer_bytes",
    "device_bytes",
    "host_bytes",
    "disk_bytes",
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(name, value):
    refused(Config, name, value, "a whole number >= 1")


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_are_not_negative(name):
    refused(Config, name, -1, "a whole number >= 0")
    assert getattr(Config(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("fps", [0, -1, NAN, INF, 1e4], "a number > 0 and <= 1000"),
        ("alert_share", [0, -0.1, 1.5, NAN, INF], "a number > 0 and <= 1"),
        ("gist_share", [0, 1, -0.1, 1.5, NAN], "a number in (0, 1)"),
        ("digest_share", [-0.1, 0.875, 1, NAN], "a number >= 0 and less than 1 - gist_share"),
        ("gist_vision_tokens", [0, 65], "a whole number from 1 to 64"),
        ("selection", ["all", ""], "one of shared, per-layer"),
        ("positions", ["relative"], "one of contiguous, original"),
        ("queue_policy", ["drop"], "one of block, drop-oldest"),
        ("skip_duplicates", [-0.1, 255, NAN], "a number >= 0 and < 255, or None"),
        ("drop_similarity", [-1.1, 1, NAN], "a number >= -1 and < 1, or None"),
        ("scene_cut", [0, 255, -3, NAN], "a number > 0 and < 255, or None"),
        ("detail_codec", ["int2", None], "one of none, int8, int4"),
        ("digest_codec", ["int16"], "one of none, int8, int4"),
        ("gist_codec", [""], "one of none, int8, int4"),
    ],
)
def test_settings_are_checked(name, values, allowed):
    for value in values:
        refused(Config, name, value, allowed)


def test_a_queue_holds_a_clip():
    with pytest.raises(ValueError, match=r"max_queue_frames must be at least clip_frames \(8\), got 7"):
        Config(clip_frames=8, max_queue_frames=7)
    assert Config(clip_frames=8, max_queue_frames=8).max_queue_frames == 8


def test_edges_are_taken():
    options = DecodeOptions(max_tokens=1, temperature=0, top_p=1, stop=("END",))
    assert Config(fps=None, gist_vision_tokens=64, gist_share=0.999, digest_share=0, decode=options).decode is options
    assert DecodeOptions(temperature=1e9, top_p=1e-9, stop=()).stop == ()


def test_every_number_is_checked():
    """A new number without a check, or a check without a test above, fails here."""
    numbers = {
        f.name for f in fields(Config) if isinstance(f.default, (int, float)) and not isinstance(f.default, bool)
    }
    assert numbers == {*COUNTS, *BUDGETS, "fps", "alert_share", "digest_share", "gist_share", "gist_vision_tokens"}
    unchecked = [name for name in sorted(numbers) if not _refuses(Config, name, -1)]
    assert unchecked == []
    assert [f.name for f in fields(DecodeOptions)] == ["max_tokens", "temperature", "top_p", "seed", "stop"]


def _refuses(kind, name, value):
    try:
        kind(**{name: value})
    except ValueError:
        return True
    return False


def test_settings_are_keywords_and_stay_as_they_are():
    with pytest.raises(TypeError, match="positional"):
        DecodeOptions(5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Config(window=5)
    with pytest.raises(FrozenInstanceError):
        Config().fps = 2.0


def test_defaults_are_greedy_and_deterministic():
    assert (Config().decode.temperature, Config().decode.seed) == (0.0, 0)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (DecodeOptions, "max_tokens", 1.5),
        (DecodeOptions, "seed", 1 << 70),
        (DecodeOptions, "stop", "END"),
        (Config, "clip_frames", 1.5),
        (Config, "host_bytes", 1e9),
        (Config, "gist_vision_tokens", 2.5),
    ],
)
def test_numbers_are_whole_and_stops_are_several(kind, name, value):
    assert _refuses(kind, name, value)
