"""The registry, and the tiny random model behind the adapter protocol."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vstream.memory.block import TokenKind
from vstream.models import embedded, list_models, load_adapter
from vstream.models.base import Adapter
from vstream.models.random import RandomLlama
from vstream.models.spans import at_seconds, join_spans, plain_span
from vstream.types import Frame, TokenSpan


def pictures(count: int, seed: int = 0, height: int = 30, width: int = 41) -> list[Frame]:
    noise = np.random.default_rng(seed)
    return [Frame(float(i), noise.integers(0, 256, (height, width, 3), dtype=np.uint8)) for i in range(count)]


def logits(adapter: Adapter, span: TokenSpan) -> torch.Tensor:
    with torch.inference_mode():
        return adapter.head(adapter.forward(span.embeds, span.positions, None))


@pytest.fixture(scope="module")
def tiny() -> RandomLlama:
    return RandomLlama()


def test_the_registry_names_every_model_with_its_licence():
    models = {model.name: model for model in list_models()}
    assert set(models) == {"embedded", "tiny", "random"}
    assert models["random"].installed
    assert "Apache-2.0" in models["embedded"].licence
    card = (Path(str(embedded.__file__)).parent / "MODEL_CARD.md").read_text()
    score, low, high = re.findall(r"0\.\d\d", models["embedded"].score)
    assert f"| all | {score} | {low} to {high} |" in card
    assert models["embedded"].size_bytes > 100e6


def test_a_model_is_listed_as_installed_only_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("VSTREAM_CACHE", str(tmp_path))
    assert not {model.name: model.installed for model in list_models()}["embedded"]
    with pytest.raises(FileNotFoundError, match="run `vstream models add embedded`"):
        load_adapter("embedded", device="cpu")


def test_an_unknown_model_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"no model 'qwen'; choose from embedded, tiny, random, or give the folder of"):
        load_adapter("qwen")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "cpu:x"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ValueError, match=f"no device '{device}' here; choose auto, cpu, cuda or cuda:N"):
        load_adapter("random", device=device)


def test_listing_models_imports_neither_torch_nor_transformers():
    code = (
        "import sys, json, vstream.models as m; m.list_models(); m.list_families(); "
        "print(json.dumps([n for n in ('torch', 'transformers', 'av') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_seed_and_type_reach_the_random_model():
    one, same, other = (load_adapter("random", device="cpu", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert load_adapter("random", device="cpu", dtype=torch.float64).dtype == torch.float64


def test_making_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    RandomLlama(seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_the_adapter_tells_the_shape_of_its_decoder():
    adapter = RandomLlama(layers=2, hidden=48, heads=6, kv_heads=3, head_dim=8, max_positions=100)
    shape = (adapter.num_layers, adapter.num_heads, adapter.num_kv_heads, adapter.head_dim, adapter.max_positions)
    assert shape == (2, 6, 3, 8, 100)
    assert adapter.encode(pictures(2)).shape == (2, 4, 48)


def test_each_frame_is_its_time_its_tokens_and_a_newline(tiny):
    frames = [Frame(float(s), picture.image) for s, picture in zip((7, 61.5, 4503), pictures(3), strict=True)]
    span = tiny.layout(frames, tiny.encode(frames))
    texts = ["[0:07]", "[1:01]", "[75:03]"]
    expected = [
        (kind, frame.pts_seconds)
        for frame, text in zip(frames, texts, strict=True)
        for kind in [TokenKind.TIMESTAMP] * len(text) + [TokenKind.VISION] * 4 + [TokenKind.MARKER]
    ]
    assert list(zip(span.kinds.tolist(), span.seconds.tolist(), strict=True)) == expected
    assert span.positions.tolist() == [list(range(len(span)))]
    assert span.advance.tolist() == [len(span)]
    times = span.embeds[span.kinds == TokenKind.TIMESTAMP]
    assert torch.equal(times, tiny.embed(torch.tensor(list("".join(texts).encode()))))


def test_a_layout_is_its_frames_layouts_one_after_the_other(tiny):
    frames = pictures(3)
    features = tiny.encode(frames)
    alone = [tiny.layout(frames[i : i + 1], features[i : i + 1]).embeds for i in range(3)]
    assert torch.equal(tiny.layout(frames, features).embeds, torch.cat(alone))


def test_pictures_of_any_size_give_features_that_depend_on_what_they_show(tiny):
    dark, bright = (Frame(0.0, np.full((17, 90, 3), value, dtype=np.uint8)) for value in (10, 200))
    features = tiny.encode([dark, bright])
    assert features.shape == (2, tiny.tokens_per_frame, 64)
    assert not torch.allclose(features[0], features[1])
    left_bright = np.full((20, 40, 3), 10, dtype=np.uint8)
    left_bright[:, :20] = 200
    halves = tiny.encode([Frame(0.0, left_bright)])[0]
    assert torch.allclose(halves[0], features[1, 0], atol=1e-5)
    assert torch.allclose(halves[-1], features[0, -1], atol=1e-5)


def test_floating_point_images_are_the_features(tiny):
    given = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    frames = [Frame(float(i), image) for i, image in enumerate(given)]
    features = tiny.encode(frames)
    assert np.array_equal(features.numpy(), given)
    assert (tiny.layout(frames, features).kinds == TokenKind.VISION).sum() == 6


def test_features_of_another_width_are_refused(tiny):
    with pytest.raises(ValueError, match=r"features must be \[tokens, 64\], got \[3, 65\]"):
        tiny.encode([Frame(0.0, np.zeros((3, 65), dtype=np.float32))])


def test_a_frame_without_tokens_is_refused():
    with pytest.raises(ValueError, match="tokens_per_frame must be >= 1, got 0"):
        RandomLlama(tokens_per_frame=0)


def test_the_sink_belongs_to_no_frame(tiny):
    sink = tiny.sink()
    assert len(sink) > 0
    assert bool((sink.kinds == TokenKind.MARKER).all())
    assert bool(sink.seconds.isnan().all())


@pytest.mark.parametrize("text", ["What is shown?", "Où est le chat? 猫"])
def test_the_query_is_the_questions_own_words(tiny, text):
    question = tiny.question(text)
    assert question.query.dtype == torch.bool
    assert not question.query.all()
    assert torch.equal(question.span.embeds[question.query], tiny.embed(torch.tensor(list(text.encode()))))


def test_generated_bytes_become_text_without_the_end_token(tiny):
    assert tiny.text([*"über".encode(), 256]) == "über"
    assert tiny.text([0xC3]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "rope",
    [
        None,
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 512, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 10000.0},
    ],
)  # fmt: skip
def test_every_kind_of_rotary_positions_works_and_matters(rope):
    adapter = RandomLlama(rope=rope, dtype=torch.float64)
    span = join_spans([adapter.sink(), adapter.layout(pictures(3), adapter.encode(pictures(3)))])
    straight = logits(adapter, span)
    cos, sin = adapter.rotary(span.positions)
    assert cos.shape == sin.shape == (1, len(span), adapter.head_dim)
    with torch.inference_mode():
        turned = adapter.head(adapter.forward(span.embeds, span.positions * 2, None))
    assert straight.isfinite().all()
    assert (straight - turned).abs().max() > 1e-3


def test_logits_depend_on_every_earlier_token_and_on_no_later_one(tiny):
    span = tiny.layout(pictures(4), tiny.encode(pictures(4)))
    changed = span.embeds.clone()
    middle = len(span) // 2
    changed[middle] += 1
    other = TokenSpan(changed, span.kinds, span.seconds, span.positions, span.advance)
    difference = (logits(tiny, span) - logits(tiny, other)).abs().amax(-1)
    assert difference[:middle].max() == 0
    assert difference[middle:].min() > 1e-4


def test_greedy_decoding_gives_various_tokens(tiny):
    span = join_spans([tiny.sink(), tiny.layout(pictures(3), tiny.encode(pictures(3)))])
    likeliest = logits(tiny, span).argmax(-1)
    assert len(set(likeliest.tolist())) > len(span) // 4


def test_the_same_model_computes_the_same_in_float32_and_float64():
    single, double = RandomLlama(), RandomLlama(dtype=torch.float64)
    spans = [adapter.layout(pictures(3), adapter.encode(pictures(3))) for adapter in (single, double)]
    assert torch.allclose(logits(single, spans[0]).double(), logits(double, spans[1]), atol=1e-3)
    assert single.fingerprint != double.fingerprint


def test_fingerprints_tell_models_apart():
    made = [
        RandomLlama(), RandomLlama(layers=2), RandomLlama(seed=1), RandomLlama(tokens_per_frame=5),
        RandomLlama(max_positions=512), RandomLlama(rope={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    ]  # fmt: skip
    assert len({adapter.fingerprint for adapter in made}) == len(made)


def test_spans_join_and_take_a_time():
    one = at_seconds(plain_span(torch.ones(2, 3), TokenKind.VISION), 4.5)
    both = join_spans([one, plain_span(torch.zeros(1, 3), TokenKind.MARKER)])
    assert both.positions.tolist() == [[0, 1, 2]]
    assert both.kinds.tolist() == [TokenKind.VISION, TokenKind.VISION, TokenKind.MARKER]
    assert both.seconds[:2].tolist() == [4.5, 4.5]
    assert both.seconds[2].isnan()
