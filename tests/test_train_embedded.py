"""The training script: what its loss sees, that it goes on as if never stopped, that its release is what it trained."""

import random
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vstream.app.lab.world import World
from vstream.models.embedded import fetch, trained
from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.embedded.looking import place_word

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import train_embedded
from embedded_questions import Asked
from embedded_worlds import frame_of
from train_embedded import HalfLinear, Lora, Packer, Run, answer_loss

pytestmark = pytest.mark.usefixtures("embedded_folder")


def new_adapter() -> EmbeddedAdapter:
    """The model before training."""
    return EmbeddedAdapter(fetch.embedded_dir(), trained=False)


@pytest.fixture(scope="module")
def adapter(embedded_folder: Path) -> EmbeddedAdapter:
    return new_adapter()


def new_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of short streams and without chat, whose answers would take minutes to make."""
    folder.mkdir(exist_ok=True)
    (folder / "chat.json").write_text("{}")
    monkeypatch.setattr(train_embedded, "CHAT_SHARE", 0.0)
    monkeypatch.setattr(train_embedded, "QUESTIONS", 2)
    return Run(folder, new_adapter())


ASKED = [Asked("now", "What is shown now?", "It shows a cat."), Asked("is", "Is there a cup?", "No, I saw no cup.")]


def test_packed_questions_are_answered_as_if_each_were_alone(adapter):
    packer = Packer(adapter)
    stream = torch.cat([adapter.sink().embeds, adapter.embed(torch.tensor(adapter.tokens.ids("[0:01] cat lion\n")))])
    together = answer_loss(adapter, packer.pack(stream, ASKED))[0]
    alone = [answer_loss(adapter, packer.pack(stream, [asked])) for asked in ASKED]
    weights = [len(right) ** 0.5 for _, right in alone]
    expected = sum(loss * weight for (loss, _), weight in zip(alone, weights, strict=True)) / sum(weights)
    assert together.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_is_on_answers_alone(adapter):
    packed = Packer(adapter).pack(adapter.sink().embeds, ASKED)
    ids = packed.targets[packed.targets != -100].tolist()
    assert adapter.tokens.tokenizer.decode(ids) == "It shows a cat.<|im_end|>No, I saw no cup.<|im_end|>"
    assert [int(own.sum()) for own in packed.answers_of()] == [len(adapter.tokens.ids(one.answer)) + 1 for one in ASKED]


@pytest.mark.slow
@pytest.mark.parametrize("source", [0, 1], ids=["natural", "world"])
def test_stories_know_which_frames_get_a_line(adapter, tmp_path, monkeypatch, source):
    """The times that answers give are those that the model can read: where the adapter writes a line."""
    run = new_run(tmp_path, monkeypatch)
    with torch.inference_mode():
        story = run.sources[source][1](random.Random(3), 15)
    monkeypatch.setattr(run.packer, "_blurred", lambda lines, rng: lines[:0])
    lines = run.packer.stream(story, random.Random(0))[len(adapter.sink()) :]
    table = adapter.decoder.get_input_embeddings().weight
    text = adapter.text(torch.cdist(lines, table).argmin(-1).tolist())
    written = [f"{frame.second // 60}:{frame.second % 60:02}" for frame in story.frames if frame.has_line]
    assert re.findall(r"\[(\d+:\d\d)\]", text) == written
    assert len(written) < len(story.frames)


def test_things_of_the_world_are_seen_where_they_are(adapter):
    """Where the adapter says that something is agrees with the world's truth in most pictures."""
    world = World(5, 60, scene_seconds=(4, 8), crowd=0)
    seconds = [second for second in range(0, 60, 3) if len(world.at(second)) == 1]
    with torch.inference_mode():
        places = [adapter.describe([frame_of(world, second)])[0].place for second in seconds]
    truth = [world.at(second)[0] for second in seconds]
    right = [place == place_word(shown.x, shown.y) for place, shown in zip(places, truth, strict=True)]
    assert sum(right) >= 0.5 * len(right)  # one in five by luck


def test_bfloat16_products_are_near_and_pass_gradients_on():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    half, x = HalfLinear(linear), torch.randn(5, 64, requires_grad=True)
    wanted = torch.autograd.grad(linear(x).square().sum(), x)[0]
    found = torch.autograd.grad(half(x).square().sum(), x)[0]
    assert torch.allclose(half(x), linear(x), atol=0.03)
    assert torch.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > 0.999
    assert not half.weight.requires_grad


def test_a_new_pair_changes_nothing():
    linear, x = nn.Linear(8, 6, bias=False), torch.randn(3, 8)
    assert torch.equal(Lora(linear, 2)(x), linear(x))


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    whole, stopped = new_run(tmp_path / "whole", monkeypatch), new_run(tmp_path / "stopped", monkeypatch)
    for _ in range(3):
        whole.train_step(1e-3)
    stopped.train_step(1e-3)
    stopped.save()
    again = new_run(tmp_path / "stopped", monkeypatch)
    assert again.step == 1
    for _ in range(2):
        again.train_step(1e-3)
    for (name, one), (_, other) in zip(whole.named_weights(), again.named_weights(), strict=True):
        assert torch.equal(one, other), name
    assert whole.tokens == again.tokens


@pytest.mark.slow
def test_the_release_is_the_trained_model(tmp_path, monkeypatch):
    """What the package loads answers as the model in training does, to what bfloat16 rounds away."""
    monkeypatch.setattr(train_embedded, "WARM_UP_STEPS", 1)
    run = new_run(tmp_path, monkeypatch)
    for _ in range(4):
        run.train_step(1e-3)
    run.release()
    content = (tmp_path / "lora.safetensors").read_bytes()
    assert len(content) < 4e6
    merged = new_adapter()
    packed, _ = run.example(100)
    with torch.inference_mode():
        before = answer_loss(merged, packed)[0]
    trained.merge(merged.decoder, content)
    with torch.inference_mode():
        expected, found = answer_loss(run.adapter, packed)[0], answer_loss(merged, packed)[0]
    assert abs(before - expected) > 0.05
    assert found.item() == pytest.approx(expected.item(), abs=0.02)
