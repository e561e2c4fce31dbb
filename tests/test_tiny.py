"""`tiny`: its checkpoint, what it answers, and that it is trained on what the engine shows it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from streams import Recording
from torch import Tensor

from vstream import Engine
from vstream.app.lab.exam import Examiner
from vstream.app.lab.render import draw
from vstream.app.lab.world import World, plant
from vstream.models import list_models, load_adapter, tiny
from vstream.models.checkpoint import Checkpoint
from vstream.models.llava_onevision import LlavaOnevisionAdapter
from vstream.models.pictures import prepare
from vstream.types import Frame

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import eval_tiny
import tiny_streams
import train_tiny
from tiny_model import make_tokenizer
from tiny_net import Tiny
from tiny_streams import BLOCK, Collator, Stream
from train_tiny import Run

FOLDER = Path(str(tiny.__file__)).parent
SECONDS = 12
CARD = (FOLDER / "MODEL_CARD.md").read_text


class RecordingTiny(Recording, LlavaOnevisionAdapter):
    """The shipped model; keeps every token's embedding that it reads, too."""

    def __init__(self) -> None:
        self.embeds: list[Tensor] = []
        super().__init__(Checkpoint(FOLDER, "tiny"), device="cpu")
        for seen in (self.embeds, self.hidden, self.positions):
            seen.clear()  # loading tried it out

    def forward(self, embeds, positions, cache, **kwargs):
        self.embeds.append(embeds)
        return super().forward(embeds, positions, cache, **kwargs)


@pytest.fixture(scope="module")
def adapter():
    return load_adapter("tiny", device="cpu")


@pytest.fixture(scope="module")
def collator() -> Collator:
    return Collator(make_tokenizer())


def world_and_questions(count: int) -> tuple[World, list]:
    world = World(77, 3600 + SECONDS, start_seconds=3600)
    return world, Examiner(world).ask(3600 + SECONDS - 1, count)


# The checkpoint -------------------------------------------------------------------------------------------------------


def test_it_is_a_stock_class_and_small(adapter):
    from transformers import LlavaOnevisionForConditionalGeneration

    assert type(adapter.model) is LlavaOnevisionForConditionalGeneration
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 10e6
    assert not [name for name, weight in adapter.model.named_parameters() if not weight.isfinite().all()]


@pytest.mark.slow
def test_it_loads_without_a_network():
    code = "import vstream.models as m; print(m.load_adapter('tiny', device='cpu').fingerprint)"
    nowhere = {**os.environ, "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "127.0.0.1:9", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=nowhere)
    assert re.fullmatch(r"[0-9a-f]{16}\n", done.stdout)


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "tiny")
    weights = tmp_path / "tiny" / tiny.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(tiny.resources, "files", lambda package: tmp_path / "tiny")
    with pytest.raises(RuntimeError, match=r"model.safetensors of `tiny` has sha256 \w{64}, expected .*; install"):
        load_adapter("tiny", device="cpu")


def test_the_list_of_models_the_card_and_the_script_give_one_score():
    scores = json.loads(eval_tiny.SCORES.read_text())["tiny"]
    (listed,) = [model for model in list_models() if model.name == "tiny"]
    assert listed.score.startswith(f"{scores['right']:.2f} ({scores['low']:.2f} to {scores['high']:.2f}) of ")
    cell = eval_tiny.cell({**scores, "exact_match": scores["right"]})
    assert f"| all | {cell} |" in CARD()
    assert listed.size_bytes == pytest.approx(sum(p.stat().st_size for p in FOLDER.glob("*.*")), rel=0.1)


# What it is trained on is what the engine shows it --------------------------------------------------------------------


class AllSeen(random.Random):
    """Chance by which no frame is hidden from another, and pictures are as large as the engine's."""

    def random(self):
        return 1.0

    def choice(self, among):
        return among[-1]


def read_as_trained(model: RecordingTiny, collator: Collator, stream: Stream) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, positions, mask and token ids of a stream as training lays it out, on the shipped weights."""
    ids, targets, positions, mask = collator.row(stream, AllSeen(), jumps=False)
    table = model.model.get_input_embeddings().weight
    ids = torch.tensor(ids)
    embeds = table[ids.clamp(min=0)].clone()
    frames = [Frame(float(second), draw(stream.world, second, side=96)) for second in stream.seconds]
    embeds[ids == -1] = model.encode(frames).flatten(0, 1)
    embeds[ids == -2] = model.model.model.image_newline
    return embeds, torch.tensor(positions), mask, torch.tensor(targets)


@torch.inference_mode()
def test_training_shows_what_the_engine_shows(collator):
    """Same tokens at the same positions, and so the same logits, for a question at the end of a stream."""
    model = RecordingTiny()
    world, (question, *_) = world_and_questions(1)
    with Engine(model) as engine, closing(eval_tiny.watched(engine, world)) as session:
        eval_tiny.answer(session, question)
    stream = Stream(world, list(range(3600, 3600 + SECONDS)), [question])
    embeds, positions, mask, targets = read_as_trained(model, collator, stream)
    count = int((targets != -100).nonzero()[0]) + 1  # up to where the answer begins
    shown, places = torch.cat(model.embeds)[:count], torch.cat(model.positions, dim=1)[0, :count]
    assert torch.equal(places, positions[:count])
    assert torch.allclose(shown, embeds[:count], atol=1e-5)
    whole = model.decoder(
        inputs_embeds=embeds[None], position_ids=positions[None], attention_mask=mask[None, None], use_cache=False
    ).last_hidden_state[0, count - 1]
    read = torch.cat(model.hidden)[count - 1]
    assert torch.allclose(model.head(read), model.head(whole), atol=1e-3)


def test_questions_in_a_batch_do_not_see_each_other(collator):
    """Logits of a question's answer are the same alone and beside others."""
    torch.manual_seed(0)
    model = Tiny(make_tokenizer()).eval()
    world, asked = world_and_questions(3)
    seconds = list(range(3600, 3600 + SECONDS))

    @torch.no_grad()
    def logits(questions):
        rng = random.Random(3)  # the same frames are hidden
        batch = collator.batch([Stream(world, seconds, questions)], rng, jumps=False)
        return model.read(batch, model.symbols(batch).flatten(0, 1))[0]

    together = logits(asked)
    assert torch.allclose(together, torch.cat([logits([one]) for one in asked]), atol=1e-4)
    assert not torch.allclose(together, together.roll(1, 0), atol=1e-2)


def test_pictures_are_prepared_as_the_adapter_does(adapter):
    world, _ = world_and_questions(1)
    drawn = tiny_streams.picture(world, 3601, AllSeen())
    frame = Frame(3601.0, draw(world, 3601, side=96))
    assert (prepare([frame], adapter.pictures)[0] - drawn).abs().mean() < 0.02


def test_blocks_with_gaps_are_whole_and_hold_the_needles():
    stream = tiny_streams.gapped_stream(random.Random(4), 32, 12)
    blocks = {second // BLOCK for second in stream.seconds}
    assert len(stream.seconds) == BLOCK * len(blocks)
    assert stream.seconds == sorted(stream.seconds)
    assert stream.seconds[-1] - stream.seconds[0] > len(stream.seconds)
    for question in stream.asked:
        assert all(second in stream.seconds for start, end in question.evidence for second in range(start, end))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_of_faded_blocks_is_some_quarters_with_their_time(collator, seed):
    """No question sees the others; the window, and what frames see of each other, stay whole."""
    stream, rng = tiny_streams.gapped_stream(random.Random(seed), 40, 6), random.Random(seed)
    rows = {}
    for stream.faded in (False, True):
        rng.seed(seed)
        rows[stream.faded] = collator.row(stream, rng, jumps=True)
    ids, whole, faded = rows[True][0], rows[False][3], rows[True][3]
    first = ids.index(-2)
    assert torch.equal(faded[:first], whole[:first])
    recent = 6 * (len(stream.seconds) - sum(map(len, stream.blocks)))
    assert torch.equal(faded[first:, first - recent :], whole[first:, first - recent :])
    seen, before = faded[first], whole[first]
    assert 0.2 < int(seen[: first - recent].sum()) / int(before[: first - recent].sum()) < 0.8
    places = [i for i in range(first - recent) if ids[i] == -1]
    for start in range(0, len(places), 4):
        quarters, time = places[start : start + 4], range(places[start] - 2, places[start])
        assert all(bool(seen[i]) == bool(seen[quarters].any()) for i in time)


def test_rounding_is_off_unless_asked_for_and_lets_gradients_through(collator):
    torch.manual_seed(0)
    model, rng = Tiny(make_tokenizer()), random.Random(1)
    batch = collator.batch([tiny_streams.gapped_stream(rng, 24, 4)], rng, jumps=True)
    plain, rounded, again = (
        model.read(batch, model.symbols(batch).flatten(0, 1), rounded=one)[0] for one in (False, True, False)
    )
    assert torch.equal(plain, again)
    assert 1e-4 < float((plain - rounded).detach().norm() / plain.detach().norm()) < 0.3
    rounded.sum().backward()
    layer = model.stock.model.language_model.layers[0].self_attn
    assert all(float(one.weight.grad.abs().sum()) > 0 for one in (layer.v_proj, layer.k_proj))


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Steps of a few frames."""
    monkeypatch.setattr(train_tiny, "PICTURES", 4)
    monkeypatch.setattr(train_tiny, "TOKENS", {"symbols": 100, "joint": 100})
    monkeypatch.setattr(train_tiny, "QUESTIONS", 3)


def weights(run: Run) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in run.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["symbols", "sight"])
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, small, phase):
    whole, stopped = Run(phase, tmp_path / "whole"), Run(phase, tmp_path / "stopped")
    before = weights(whole)
    for _ in range(2):
        whole.train_step()
    stopped.train_step()
    stopped.save()
    again = Run(phase, tmp_path / "stopped")
    assert again.step == 1
    again.train_step()
    for name, one in weights(whole).items():
        assert torch.equal(one, again.model.state_dict()[name]), name
    changed = {name for name, one in weights(whole).items() if not torch.equal(one, before[name])}
    assert changed
    assert all(train_tiny.is_visual(name) == (phase == "sight") for name in changed)


@pytest.mark.slow
def test_the_joint_phase_begins_with_the_other_two_and_its_export_is_served(tmp_path, small):
    parts = {phase: Run(phase, tmp_path) for phase in ("symbols", "sight")}
    for part in parts.values():
        part.train_step()
        part.save()
    joint = Run("joint", tmp_path)
    for name, one in weights(joint).items():
        expected = parts["sight" if train_tiny.is_visual(name) else "symbols"].model.state_dict()[name]
        assert torch.equal(one, expected), name
    joint.train_step()
    joint.save()
    train_tiny.export(tmp_path, tmp_path / "out")
    served = load_adapter(str(tmp_path / "out"), device="cpu")
    words = joint.model.words().detach()
    assert torch.allclose(served.model.get_input_embeddings().weight, words, atol=0.01)
    assert served.head.weight is served.model.get_input_embeddings().weight


# What it can do -------------------------------------------------------------------------------------------------------


def test_it_answers_what_a_short_stream_showed(adapter):
    needles = plant(5, [604, 612], seconds=4)
    world = World(8, 620, needles, start_seconds=600)
    one, other = (needle.thing for needle in needles)
    with Engine(adapter) as engine, closing(eval_tiny.watched(engine, world)) as session:
        texts = {
            f"what colour was the {one.kind}?": one.colour,
            f"when did the {other.name} appear?": "10:12",
            f"was there a {one.name}?": "yes",
            "what was there at 10:05?": one.name,
        }
        found = {}
        for text in texts:
            asked = session.ask(text, at="end")
            while not asked.done:
                session.step()
            found[text] = asked.text()
    assert found == texts


@pytest.mark.slow
def test_quick_scores_are_near_those_of_the_card():
    found = eval_tiny.evaluate_tiny(quick=True)
    assert found["exact_match"] > LEAST["window"]
    assert found["oracle"]["exact_match"] > LEAST["oracle"]
    assert found["blind"]["exact_match"] < found["oracle"]["exact_match"] - 0.2


LEAST = {"window": 0.93, "oracle": 0.65}
