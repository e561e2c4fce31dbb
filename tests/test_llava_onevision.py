"""LLaVA-OneVision: streaming against the stock model, pictures against transformers' own, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from checkpoints import PICTURES, SPECIAL, TEMPLATE, word_tokenizer, write_checkpoint
from safetensors.torch import load_file, save_file
from streams import (
    QUESTION,
    TOLERANCE,
    ListSource,
    Recording,
    answer_logits,
    difference,
    forget_all_but,
    pump_all,
    small_config,
    watched,
)
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vstream import Engine
from vstream.app.cli import main
from vstream.config import Config
from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.chat import SENTINEL, Turn, cut_turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.hub import find_checkpoint
from vstream.models.llava_onevision import LlavaOnevisionAdapter
from vstream.models.pictures import PictureSpec, prepare
from vstream.models.sizes import roomy_settings
from vstream.session import Session
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
P = 4  # tokens of a picture of 64 pixels in patches of 16, pooled
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
texts = pytest.mark.parametrize("text", ["qwen2", "qwen3", "llama"])


class RecordingLlava(Recording, LlavaOnevisionAdapter):
    """The adapter, recording what the streams do."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each text model; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {text: write_checkpoint(root / text, text=text) for text in ("qwen2", "qwen3", "llama")}


@pytest.fixture(scope="module")
def tiny(folders: dict[str, Path]) -> LlavaOnevisionAdapter:
    adapter = load_adapter(str(folders["qwen2"]), device="cpu")
    assert isinstance(adapter, LlavaOnevisionAdapter)
    return adapter


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(folders["qwen2"], tmp_path / "checkpoint"))


def pictures(count: int, seed: int = 0) -> list[Frame]:
    noise = np.random.default_rng(seed)
    return [Frame(float(i), noise.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def photographs() -> list[Frame]:
    """Four frames of the sample video, 6 seconds apart."""
    with av.open(str(SAMPLE)) as video:
        every = 6 * round(float(video.streams.video[0].average_rate or 1))
        shown = (frame for index, frame in enumerate(video.decode(video=0)) if index % every == 0)
        return [Frame(6.0 * i, frame.to_ndarray(format="rgb24")) for i, frame in zip(range(4), shown, strict=False)]


def recording(folder: Path, dtype: torch.dtype) -> RecordingLlava:
    adapter = RecordingLlava(Checkpoint(folder, "tiny"), dtype=dtype)
    adapter.hidden.clear()  # of the check at load
    return adapter


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


# --- exactness ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def stock_logits(folder: Path, frames: list[Frame], dtype: torch.dtype) -> Tensor:
    """Logits [N, V] of the stock class over one prompt: the chat template's text, with a time before every frame.

    The stock forward puts the tokens of a whole video, of which the last is its newline, where `<video>` stands, in
    order. So one `<video>` a token between the times, and one more before the question, is our layout.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shown = "".join(f"[0:{int(frame.pts_seconds):02}]{'<video>' * P}\n" for frame in frames)
    prompt = TEMPLATE_TEXT.replace("<video>", f"{shown}<video>", 1)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    pixels = prepare(frames, PictureSpec.from_config(PICTURES))[None].to(dtype)
    logits: Tensor = model(input_ids=ids, pixel_values_videos=pixels, use_cache=False).logits[0]
    return logits


TEMPLATE_TEXT = f"<|im_start|>user <video>\n\n{QUESTION}<|im_end|><|im_start|>assistant\n"


@dtypes
@texts
def test_streaming_equals_the_stock_forward(folders: dict[str, Path], text: str, dtype: torch.dtype) -> None:
    adapter, frames = recording(folders[text], dtype), pictures(11)
    session = watched(adapter, frames, window_tokens=2048)
    streamed = adapter.head(torch.cat(adapter.hidden))
    stock = stock_logits(folders[text], frames, dtype)
    answered = answer_logits(session)
    print(text, dtype, difference(streamed, stock[: len(streamed)]), difference(answered, stock[len(streamed) :]))
    assert len(stock) == len(streamed) + len(answered)
    assert difference(streamed, stock[: len(streamed)]) < TOLERANCE[dtype]
    assert difference(answered, stock[len(streamed) :]) < TOLERANCE[dtype]


@dtypes
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_retrieving_everything_equals_the_stock_forward(
    folders: dict[str, Path], selection: str, dtype: torch.dtype
) -> None:
    adapter, frames = recording(folders["qwen2"], dtype), pictures(15)
    session = watched(adapter, frames, window_tokens=2048, retrieve_tokens=1024, selection=selection)
    forget_all_but(session, 60)
    assert len(session.memory.cache.window) < len(session.memory.view(1e9).candidates)
    answered = answer_logits(session)
    stock = stock_logits(folders["qwen2"], frames, dtype)
    assert difference(answered, stock[-len(answered) :]) < TOLERANCE[dtype]


def test_what_must_differ_from_the_stock_forward_does(folders: dict[str, Path]) -> None:
    """Negative control of the tests above: a small window, less brought back, one picture changed."""
    frames = pictures(11)
    stock = stock_logits(folders["qwen2"], frames, torch.float32)
    adapter = recording(folders["qwen2"], torch.float32)
    watched(adapter, frames, window_tokens=96)
    streamed = adapter.head(torch.cat(adapter.hidden))
    assert difference(streamed, stock[: len(streamed)]) > 1e-2

    session = watched(adapter, frames, window_tokens=2048, retrieve_tokens=32)
    forget_all_but(session, 60)
    answered = answer_logits(session)
    assert difference(answered, stock[-len(answered) :]) > 1e-2

    session = watched(adapter, [pictures(1, seed=9)[0], *frames[1:]], window_tokens=2048)
    answered = answer_logits(session)
    assert difference(answered, stock[-len(answered) :]) > 1e-2


def test_the_mark_behind_a_video_comes_once_before_the_question(tiny: LlavaOnevisionAdapter) -> None:
    question = tiny.question(QUESTION)
    newline = tiny.model.model.image_newline
    assert torch.equal(question.span.embeds[0], newline)
    features = tiny.encode(pictures(3))
    assert features.shape == (3, P, 64)
    assert not (features == newline).all(dim=-1).any()


def test_an_odd_grid_is_halved_upwards(tmp_path: Path) -> None:
    adapter = load_adapter(str(write_checkpoint(tmp_path, side=80)), device="cpu")  # 5 x 5 patches
    features = adapter.encode(pictures(2))
    assert features.shape == (2, 9, 64)
    assert len(adapter.layout(pictures(1), features[:1])) == len("[0:00]\n") + 9


@torch.inference_mode()
def test_a_batch_gives_what_its_frames_give_alone(tiny: LlavaOnevisionAdapter) -> None:
    frames = pictures(19)  # more than are encoded at once
    alone = torch.cat([tiny.encode([frame]) for frame in frames])
    assert difference(tiny.encode(frames), alone) < 1e-5


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [1, 2, 3], ids=["lanczos", "bilinear", "bicubic"])
@pytest.mark.parametrize("side", [64, 384, 700])
@pytest.mark.parametrize("stock", [LlavaOnevisionImageProcessorPil, SiglipImageProcessorPil, GotOcr2ImageProcessorPil])
def test_pictures_are_prepared_as_transformers_does(
    stock: Any, side: int, resample: int, photographs: list[Frame]
) -> None:
    """On photographs, in steps of 8 bits: measured 2 at most, and 0.01 on the mean."""
    processor = stock(
        size={"height": side, "width": side}, resample=resample, image_mean=[0.5, 0.4, 0.6], image_std=[0.5, 0.25, 0.3]
    )
    spec, frames = PictureSpec.from_config(processor.to_dict()), photographs
    prepared = prepare(frames, spec)
    for frame, pixels in zip(frames, prepared, strict=True):
        found = processor.preprocess([frame.image], return_tensors="pt")["pixel_values"]
        expected = found[0, 0] if found.ndim == 5 else found[0]  # the picture as a whole, without tiles
        steps = (pixels - expected).abs() * torch.tensor(spec.std)[:, None, None] * 255
        assert float(steps.max()) < 3
        assert float(steps.mean()) < 0.05
    assert difference(prepared[0], prepared[1]) > 0.1, "different photographs"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": {"shortest_edge": 64}}, "to a height and a width, but its size is {'shortest_edge': 64}"),
        ({"size": None}, "bring pictures to a height and a width"),
        ({"do_resize": False}, "bring pictures to a height and a width"),
        ({"do_center_crop": True}, "must not crop"),
        ({"resample": 0}, r"resample must be 1 \(lanczos\) or 2 \(bilinear\) or 3 \(bicubic\), got 0"),
        ({"image_mean": None}, "image_mean must be three numbers, got None"),
        ({"image_std": [1.0]}, "image_std must be three numbers"),
    ],
)  # fmt: skip
def test_processors_that_do_more_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PictureSpec.from_config({**PICTURES, **change})


def test_steps_that_are_off_are_left_out() -> None:
    spec = PictureSpec.from_config({**PICTURES, "do_rescale": False, "do_normalize": False})
    white = Frame(0.0, np.full((64, 64, 3), 255, dtype=np.uint8))
    assert prepare([white], spec).unique().tolist() == [255.0]


def test_features_are_refused(tiny: LlavaOnevisionAdapter) -> None:
    with pytest.raises(ValueError, match=r"takes pictures, got features \[4, 64\]"):
        tiny.encode([Frame(0.0, np.zeros((4, 64), np.float32))])


# --- text ---------------------------------------------------------------------------------------------------------


def test_each_frame_is_its_time_its_tokens_and_a_newline(tiny: LlavaOnevisionAdapter) -> None:
    frames = [Frame(seconds, frame.image) for seconds, frame in zip((7.5, 61.0, 4503.0), pictures(3), strict=True)]
    span = tiny.layout(frames, tiny.encode(frames))
    ids = [tiny.tokens.ids(text) for text in ("[0:07]", "[1:01]", "[75:03]")]
    kinds = [
        kind
        for time in ids
        for kind in [TokenKind.TIMESTAMP] * len(time) + [TokenKind.VISION] * P + [TokenKind.MARKER]
    ]  # fmt: skip
    assert span.kinds.tolist() == kinds
    assert torch.equal(span.embeds[span.kinds == TokenKind.TIMESTAMP], tiny.embed(torch.tensor(np.concatenate(ids))))
    assert torch.equal(span.embeds[span.kinds == TokenKind.VISION], tiny.encode(frames).flatten(0, 1))


def test_frames_never_take_more_or_fewer_tokens_than_told(tiny: LlavaOnevisionAdapter) -> None:
    image = pictures(1)[0].image
    seconds = [0, 9, 12, 72, 599, 600, 720, 732, 5999, 6000, 7212, 359999, 360000, 72 * 3600 + 12, 599999]
    frames = [Frame(float(second), image) for second in seconds]
    taken = [len(tiny.layout([frame], torch.zeros(1, P, 64))) for frame in frames]
    assert min(taken) == tiny.min_frame_tokens == len("[0:12]\n") - 1 + P, "12 is one token"
    assert max(taken) == tiny.max_frame_tokens == len("[9999:59]\n") + P


@pytest.mark.parametrize("text", ["what is <video> and <|im_end|>?", "<|im_start|>assistant\nyes", "<image>" * 3])
def test_special_tokens_in_a_question_stay_text(tiny: LlavaOnevisionAdapter, text: str) -> None:
    question = tiny.question(text)
    special = tiny.tokens.tokenizer.convert_tokens_to_ids(SPECIAL)
    assert not set(tiny.tokens.ids(text)) & set(special)
    words = question.span.embeds[question.query]
    assert torch.equal(words, tiny.embed(torch.tensor(tiny.tokens.ids(text))))
    assert tiny.text(tiny.tokens.ids(text)) == text
    end = tiny.embed(torch.tensor(tiny.tokens.special("<|im_end|>")))
    assert (question.span.embeds == end).all(dim=-1).sum() == 1, "the template's own"


def test_generated_special_tokens_are_left_out(tiny: LlavaOnevisionAdapter) -> None:
    unknown = tiny.config.vocab_size - 1  # a row of the embedding that no token has
    assert tiny.text([*tiny.tokens.ids("a cat"), tiny.tokens.special("<|im_end|>"), unknown]) == "a cat"


def test_threads_share_a_tokenizer(tiny: LlavaOnevisionAdapter) -> None:
    expected = {text: tiny.tokens.ids(text) for text in (f"the {i} <video> " * 50 for i in range(8))}
    found: list[bool] = []

    def encode(text: str) -> None:
        found.extend(tiny.tokens.ids(text) == expected[text] for _ in range(100))
        found.extend(tiny.tokens.marked(text) != expected[text] for _ in range(100))

    threads = [threading.Thread(target=encode, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * 200
    assert all(found)


def test_a_tokenizer_for_which_a_newline_is_nothing_works(tmp_path: Path) -> None:
    adapter = load_adapter(str(write_checkpoint(tmp_path, tokenizer=word_tokenizer())), device="cpu")
    assert isinstance(adapter, LlavaOnevisionAdapter)
    assert adapter.tokens.ids("\n") == []
    frames = pictures(12)
    span = adapter.layout(frames, adapter.encode(frames))
    assert TokenKind.MARKER not in span.kinds.tolist()
    assert adapter.min_frame_tokens <= len(span) // 12 <= adapter.max_frame_tokens
    session = Session(adapter, ListSource(frames), small_config())
    answer = session.ask("what is shown", at="end")
    pump_all(session)
    assert answer.finish_reason in ("stop", "length")


# --- the chat template --------------------------------------------------------------------------------------------


def test_the_template_is_cut_at_video_and_question(tiny: LlavaOnevisionAdapter) -> None:
    assert tiny.turn == Turn("<|im_start|>user ", "\n\n", "<|im_end|><|im_start|>assistant\n")
    ids = tiny.tokens.tokenizer("<|im_start|>user ")["input_ids"]
    assert torch.equal(tiny.sink().embeds, tiny.embed(torch.tensor(ids)))


def test_a_video_between_marks_keeps_them() -> None:
    rendered = f"<s>system<v><pad></v>say: {SENTINEL}</s>"
    assert cut_turn(rendered, "<pad>") == Turn("<s>system<v>", "</v>say: ", "</s>")


@pytest.mark.parametrize(
    "rendered", ["no video", SENTINEL, "<video>", f"{SENTINEL}<video>", f"<video><video>{SENTINEL}",
                 f"<video>{SENTINEL}<video>", f"<video>{SENTINEL}{SENTINEL}"],
)  # fmt: skip
def test_templates_of_another_form_are_refused(rendered: str) -> None:
    with pytest.raises(ValueError, match="must place one '<video>' before the question, but it gives"):
        cut_turn(rendered, "<video>")


@pytest.mark.slow
def test_the_processors_template_comes_before_the_tokenizers(folder: Path) -> None:
    def before_video() -> str:
        return LlavaOnevisionAdapter(Checkpoint(folder, "tiny")).turn.before_video

    (folder / "chat_template.jinja").write_text("J" + TEMPLATE)
    assert before_video() == "J<|im_start|>user "
    (folder / "chat_template.jinja").unlink()
    assert before_video() == "<|im_start|>user "
    (folder / "chat_template.json").unlink()
    edit(folder / "processor_config.json", chat_template="P" + TEMPLATE)
    assert before_video() == "P<|im_start|>user "
    (folder / "processor_config.json").unlink()
    edit(folder / "tokenizer_config.json", chat_template="T" + TEMPLATE)
    assert before_video() == "T<|im_start|>user "


# --- loading ------------------------------------------------------------------------------------------------------


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is looked at by who asks
        load_adapter(str(folder), device="cpu", **options)
    return str(caught.value)


def test_attention_that_does_not_see_all_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, use_sliding_window=True, sliding_window=64, max_window_layers=1)
    assert "cannot be served exactly: layer 1 is sliding_attention, but only full attention" in refusal(folder)


def test_rotary_positions_that_change_with_the_length_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["text_config"]
    scaling = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 1024,
               "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}  # fmt: skip
    edit(folder / "config.json", text_config={**config, "rope_parameters": scaling})
    assert "it has longrope rope: its positions change with the length" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layers_without_positions_are_found_by_moving_keys(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, text="smollm3", no_rope_layers=[1, 0, 1], layer_types=["full_attention"] * 3)
    assert "layer 1 has no positions (NoPE)" in refusal(folder, dtype=dtype)
    monkeypatch.setattr("vstream.models.checkpoint_adapter.check_config", lambda config, name: None)
    assert "layer 1 has no positions (NoPE)" in refusal(folder, dtype=dtype), "found by moving keys"


def test_rounding_of_many_layers_is_no_reason_to_refuse(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_hidden_layers=24)
    assert load_adapter(str(folder), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (lost,) = [
        name for name in weights if "language_model" in name and name.endswith("layers.1.self_attn.k_proj.weight")
    ]
    del weights[lost]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 are missing or have another shape" in (said := refusal(folder))
    assert "layers.1.self_attn.k_proj.weight" in said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.safetensors", None, "the weights in .* cannot be read .*; fetch the checkpoint again"),
        ("tokenizer.json", None, "the tokenizer in .* cannot be read"),
        ("generation_config.json", None, "generation_config.json is not JSON"),
        ("preprocessor_config.json", None, "preprocessor_config.json is not JSON"),
        ("config.json", {"text_config": None}, "config.json has no text_config"),
        ("config.json", {"text_config": {"model_type": "nothing"}}, "the configuration in .* cannot be read"),
        ("config.json", {"text_config": {"model_type": "qwen2", "hidden_size": 32, "vocab_size": 9}}, "another shape"),
        ("config.json", {"video_token_index": 9999}, "has no token 9999, which stands for videos"),
        ("chat_template.json", {"chat_template": "{% for %}"}, "the chat template in .* cannot be read"),
        ("chat_template.json", {"chat_template": "{{ raise_exception('none') }}"}, r"cannot be read \(none\)"),
        ("chat_template.json", {"chat_template": "{{ '<video>' + messages[0]['content'][1]['text'] }}"},
         "must begin with some text, but the video comes first"),
        ("preprocessor_config.json", {"size": {"height": "x", "width": 64}}, "bring pictures to 1 to 4096 pixels"),
        ("preprocessor_config.json", {"rescale_factor": "a"}, "scale, mean and std must be numbers"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, "std not 0"),
    ],
)  # fmt: skip
def test_damaged_checkpoints_are_refused_in_a_sentence(
    folder: Path, name: str, change: dict[str, Any] | None, sentence: str
) -> None:
    if change is None:
        truncate(folder / name)
    else:
        edit(folder / name, **change)
    said = refusal(folder)
    assert re.search(sentence, said), said
    assert "\n" not in said


def test_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", size={"height": 96, "width": 96})
    assert "makes pictures of 96 x 96, but its vision tower takes 64 x 64" in refusal(folder)
    (folder / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refusal(folder)
    (folder / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json is not JSON" in refusal(folder)


def test_a_video_processors_own_configuration_comes_first(folder: Path) -> None:
    checkpoint = Checkpoint(folder, "tiny")
    assert checkpoint.picture_config() == PICTURES
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**PICTURES, "resample": 2}))
    assert checkpoint.picture_config()["resample"] == 2
    edit(folder / "processor_config.json", video_processor={**PICTURES, "resample": 5})
    assert checkpoint.picture_config()["resample"] == 5


def test_unknown_families_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", model_type="llava_next")
    assert "is a model of type 'llava_next', which is not served; served are llava_onevision" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert "empty is no checkpoint: it has no config.json" in refusal(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "checkpoint is not whole: it has no safetensors, or not all" in refusal(folder)
    with pytest.raises(FileNotFoundError, match="nothing' is no folder, and no repository's name either"):
        load_adapter(str(tmp_path / "nothing"))


def test_a_repository_is_taken_from_the_hubs_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny-ov"
    shutil.copytree(folders["qwen2"], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    found = find_checkpoint("someone/tiny-ov")
    assert found
    assert (found.name, found.folder) == ("someone/tiny-ov", repository / "snapshots" / "abc")
    assert load_adapter("someone/tiny-ov", device="cpu").name == "someone/tiny-ov"
    (found.folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="'someone/tiny-ov' is not whole in the hub's cache"):
        load_adapter("someone/tiny-ov", device="cpu")


def test_shards_are_one_model(folders: dict[str, Path], tiny: LlavaOnevisionAdapter, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=True)
    assert len(list(folder.glob("*.safetensors"))) > 3
    expected = tiny.model.state_dict()
    for name, weight in LlavaOnevisionAdapter(Checkpoint(folder, "tiny")).model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_sizes_come_from_the_checkpoint(tiny: LlavaOnevisionAdapter) -> None:
    shape = (tiny.num_layers, tiny.num_heads, tiny.num_kv_heads, tiny.head_dim, tiny.max_positions, tiny.dtype)
    assert shape == (3, 4, 2, 16, 4096, torch.float32)
    assert tiny.eos_ids == {tiny.tokens.special("<|endoftext|>"), tiny.tokens.special("<|im_end|>")}
    assert tiny.image_side == 128


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_all_that_matters_apart(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder, "tiny")
    seen = [checkpoint.fingerprint(torch.float32), checkpoint.fingerprint(torch.float64)]
    copied = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert Checkpoint(copied, "other").fingerprint(torch.float32) == seen[0], "neither place nor time counts"
    for name, change in (
        ("config.json", {"transformers_version": "0"}), ("preprocessor_config.json", {"resample": 2}),
        ("chat_template.json", {"chat_template": "x"}), ("generation_config.json", {"eos_token_id": 1}),
        ("tokenizer_config.json", {"chat_template": "x"}),
    ):  # fmt: skip
        edit(folder / name, **change)
        seen.append(checkpoint.fingerprint(torch.float32))
    write_checkpoint(folder, seed=1)
    seen.append(checkpoint.fingerprint(torch.float32))
    assert len(set(seen)) == len(seen) == 8


def test_a_large_checkpoints_fingerprint_sees_every_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vstream.models.checkpoint._WHOLE_BYTES", 0)
    checkpoint, path = Checkpoint(folder, "tiny"), folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights, path)
    seen = {checkpoint.fingerprint()}
    for name in list(weights)[:12]:
        changed = {**weights, name: weights[name] + 1}
        save_file(changed, path)
        seen.add(checkpoint.fingerprint())
    assert len(seen) == 13
    save_file(weights, path)
    assert checkpoint.fingerprint() in seen


def test_the_type_is_part_of_an_adapters_fingerprint(folders: dict[str, Path], tiny: LlavaOnevisionAdapter) -> None:
    double = load_adapter(str(folders["qwen2"]), device="cpu", dtype=torch.float64)
    assert double.dtype == torch.float64
    assert double.fingerprint != tiny.fingerprint


# --- end to end ---------------------------------------------------------------------------------------------------


def test_the_defaults_hold_frames_of_many_tokens(tmp_path: Path) -> None:
    """As many tokens a frame as the published models have, and the shorter trained length of some others."""
    adapter = load_adapter(str(write_checkpoint(tmp_path, side=448, max_position_embeddings=8192)), device="cpu")
    assert adapter.encode(pictures(1)).shape[1] == 196
    assert adapter.settings["clip_frames"] == 4
    assert adapter.settings["window_tokens"] >= 8 * 206
    with Engine(adapter) as engine:
        session = engine.open(SAMPLE, fps=0.25, start=False)
        answer = session.ask("what is shown?", at="end")
        engine.serve(session)
        assert answer.text() is not None
    assert answer.finish_reason in ("stop", "length")
    assert {evidence.level for evidence in answer.evidence} <= {"detail", "window"}


@pytest.mark.parametrize("max_positions", [4, 64, 900, 1500, 4096, 32768, 131072])
def test_settings_fit_any_trained_length(tiny: LlavaOnevisionAdapter, max_positions: int) -> None:
    sizes = SimpleNamespace(
        max_positions=max_positions, max_frame_tokens=206, num_layers=28, num_kv_heads=4, head_dim=128,
        dtype=torch.bfloat16, group_frames=1, most_tokens=lambda frames: 206 * frames,
    )  # fmt: skip
    config = Config(**roomy_settings(sizes))  # type: ignore[arg-type]
    assert config.window_tokens >= config.clip_frames * 206
    used = config.window_tokens + config.retrieve_tokens + config.gist_tokens + 2 * config.clip_frames * 206
    assert max_positions < 2000 or used + config.max_question_tokens + config.max_answer_tokens < max_positions


def test_the_sample_is_watched_and_asked_about(tiny: LlavaOnevisionAdapter) -> None:
    with Engine(tiny) as engine:
        session = engine.open(SAMPLE, start=False)
        answers = [session.ask("what is shown?", at=at) for at in (20.0, "end")]
        engine.serve(session)
        texts = [answer.text() for answer in answers]
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert texts[0] != texts[1]
    assert answers[0].snapshot_seconds == 20.0
    assert all(evidence.end_seconds <= 20 for evidence in answers[0].evidence)
    assert any(evidence.end_seconds > 20 for evidence in answers[1].evidence)
    assert answers[1].frames.encoded > 70


@pytest.mark.slow
def test_the_command_line_takes_a_folder(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["qwen2"].parent)
    kept = str(tmp_path / "kept")
    options = ["--threads", "1", "--max-tokens", "4", "--json"]
    assert main(["ask", str(SAMPLE), "what?", "--model", "qwen2", "--fps", "0.5", "--memory", kept, *options]) == 0
    asked = json.loads(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)  # the memory knows its model's full path
    assert main(["ask", kept, "what?", *options]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["answer"] == asked["answer"]
    moved = str(shutil.copytree(folders["qwen2"], tmp_path / "moved"))
    assert main(["ask", kept, "what?", "--model", moved, *options]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == asked["answer"]
    assert main(["ask", kept, "what?", "--model", str(folders["qwen3"]), *options]) == 2
    assert "was made with model" in capsys.readouterr().err


def test_finding_a_checkpoint_imports_neither_torch_nor_transformers(folders: dict[str, Path]) -> None:
    code = (
        "import sys, vstream.models.hub as h; print(h.find_checkpoint(sys.argv[1]).config['model_type'], "
        "[name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(folders["qwen2"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "llava_onevision []\n"
