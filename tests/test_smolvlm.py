"""SmolVLM2 and Idefics3: pictures against transformers' own, black frames, the family's words for times."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from family_inputs import Stock
from streams import difference
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import make_checkpoint

from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.idefics3 import Idefics3Adapter
from vstream.models.pictures import PictureSpec, prepare
from vstream.models.smolvlm import SmolVLMAdapter
from vstream.types import Frame

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.mp4"
P = 4
ADAPTERS = {"smolvlm": SmolVLMAdapter, "idefics3": Idefics3Adapter}
STEPS = {
    "do_image_splitting": True, "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.3],
    "max_image_size": {"longest_edge": 64}, "resample": 1, "size": {"longest_edge": 256},
}  # fmt: skip


@pytest.fixture(scope="module", params=ADAPTERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    """A checkpoint under its family's name; not to be changed."""
    return make_checkpoint(request.param, tmp_path_factory.mktemp("smolvlm") / request.param)


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Idefics3Adapter:
    adapter = load_adapter(str(checkpoint), device="cpu")
    assert type(adapter) is ADAPTERS[checkpoint.name]
    return adapter


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """Of a frame of the sample, 360 x 640: whole, and in odd shapes."""
    with av.open(str(SAMPLE)) as video:
        image = next(video.decode(video=0)).to_ndarray(format="rgb24")
    cuts = [(360, 640), (53, 91), (64, 64), (5, 600), (200, 53), (360, 301)]
    return [np.ascontiguousarray(image[-height:, :width]) for height, width in cuts]


@pytest.mark.parametrize("stock", [SmolVLMImageProcessorPil, Idefics3ImageProcessorPil])
@pytest.mark.parametrize("resample", [1, 2, 3], ids=["lanczos", "bilinear", "bicubic"])
@pytest.mark.parametrize(("longest", "side"), [(384, 384), (1456, 364), (100, 64)])
def test_pictures_are_prepared_as_transformers_does(
    stock: Any, resample: int, longest: int, side: int, crops: list[np.ndarray]
) -> None:
    """In steps of 8 bits: none by Lanczos, else measured 2 at most. Of pictures higher than wide, new versions of PIL
    resize columns first and round between, which no earlier one did, nor does torch: measured 3, and 0.3 on the mean.
    """
    processor = stock(
        **{**STEPS, "do_image_splitting": False, "resample": resample, "size": {"longest_edge": longest},
           "max_image_size": {"longest_edge": side}}
    )  # fmt: skip
    spec = PictureSpec.from_config({**processor.to_dict(), "do_image_splitting": True})
    for picture in crops:
        found = torch.as_tensor(processor.preprocess([picture], return_tensors="pt")["pixel_values"])[0, 0]
        steps = (prepare([Frame(0.0, picture)], spec)[0] - found).abs() * torch.tensor(spec.std)[:, None, None] * 255
        most, mean = (0.01, 0.01) if resample == 1 else (8, 0.5) if picture.shape[0] > picture.shape[1] else (3, 0.05)
        assert float(steps.max()) < most
        assert float(steps.mean()) < mean


def test_a_video_has_a_size_of_its_own() -> None:
    assert PictureSpec.from_config(STEPS).longest_edge == 256
    spec = PictureSpec.from_config({**STEPS, "video_sampling": {"fps": 1, "video_size": {"longest_edge": 96}}})
    assert (spec.longest_edge, spec.height, spec.width, spec.mode) == (96, 64, 64, "lanczos")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_image_size": None}, "to a height and a width, but its size is {'longest_edge': 256}"),
        ({"size": {"longest_edge": 256, "shortest_edge": 64}}, "to a height and a width, but its size is"),
        ({"size": {"longest_edge": 8192}}, "bring pictures to 1 to 4096 pixels"),
        ({"size": {"shortest_edge": 64}}, "to a height and a width"),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True}, "to a height and a width"),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 65, "width": 64}},
         "must not cut 65 x 64 pixels out of pictures whose shorter side has 64"),
        ({"do_center_crop": True}, "must not crop"),
    ],
)  # fmt: skip
def test_processors_of_another_form_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PictureSpec.from_config({**STEPS, **change})


@pytest.mark.slow
@torch.inference_mode()
def test_black_frames_do_not_vanish(folder: Path) -> None:
    """Without normalisation a black frame is all zero, which the stock model takes for padding and drops."""
    edit(folder / "preprocessor_config.json", do_normalize=False)
    adapter = load_adapter(str(folder), device="cpu")
    black = np.zeros((50, 70, 3), np.uint8)
    images = [noise((50, 70)), black, noise((50, 70), 1), black]
    features = adapter.encode([Frame(float(i), image) for i, image in enumerate(images)])
    stock = Stock.load(folder, torch.float32)
    alone = torch.cat([stock.pixels([Frame(0.0, image)]) for image in images])
    assert float(alone[1].abs().max()) == 0
    kept = torch.cat([*stock.model.get_image_features(alone[None]).pooler_output])
    assert len(kept.flatten(0, -2)) == 2 * P, "the stock model drops two"
    tower, connector = stock.model.model.vision_model, stock.model.model.connector
    assert difference(features, connector(tower(alone).last_hidden_state)) < 1e-5
    assert difference(features[1], features[0]) > 0.1


@torch.inference_mode()
def test_a_batch_gives_what_its_frames_give_alone(tiny: Idefics3Adapter) -> None:
    frames = [Frame(float(i), noise((40 + i, 60), i)) for i in range(19)]  # more than are encoded at once
    alone = torch.cat([tiny.encode([frame]) for frame in frames])
    assert difference(tiny.encode(frames), alone) < 1e-5


# --- text ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_each_frame_is_its_time_and_its_tokens_between_marks(tiny: Idefics3Adapter) -> None:
    seconds = (7.5, 61.0, 7503.0)
    frames = [Frame(second, noise((50, 70))) for second in seconds]
    span = tiny.layout(frames, tiny.encode(frames))
    times = [tiny.tokens.ids(f"\nFrame from {text}:") for text in ("00:07", "01:01", "125:03")]
    around = [TokenKind.MARKER] * 2 + [TokenKind.VISION] * P + [TokenKind.MARKER]
    assert span.kinds.tolist() == [kind for time in times for kind in [TokenKind.TIMESTAMP] * len(time) + around]
    said = span.embeds[span.kinds == TokenKind.TIMESTAMP]
    assert torch.equal(said, tiny.embed(torch.tensor([token for time in times for token in time])))
    fake, mark = (tiny.tokens.special(token) for token in ("<fake_token_around_image>", "<global-img>"))
    assert torch.equal(span.embeds[span.kinds == TokenKind.MARKER], tiny.embed(torch.tensor([fake, mark, fake] * 3)))


def test_frames_never_take_more_or_fewer_tokens_than_told(tiny: Idefics3Adapter) -> None:
    image = noise((8, 8))
    seconds = [0, 9, 599, 600, 5999, 6000, 359999, 360000, 599999]
    taken = [len(tiny.layout([Frame(float(second), image)], torch.zeros(1, P, 64))) for second in seconds]
    assert min(taken) == tiny.min_frame_tokens
    assert max(taken) == tiny.max_frame_tokens == min(taken) + 2, "9999 minutes have two digits more than 99"


def test_a_template_without_videos_is_cut_at_an_image(tiny: Idefics3Adapter, checkpoint: Path) -> None:
    assert tiny.turn.before_video == {"smolvlm": "<|im_start|>User: ", "idefics3": "<|im_start|>User:"}[checkpoint.name]
    assert tiny.turn.before_question == ""
    assert tiny.turn.after_question == "<end_of_utterance>\nAssistant:"


@pytest.mark.slow
def test_a_template_of_smolvlm2_without_videos_is_the_processors(folder: Path) -> None:
    """Earlier repositories have such a one; transformers' processor puts its own in its place. Idefics3's has none."""
    template = "{% for part in messages[0]['content'] %}{{ part['text'] or 'Mine: <image>' }}{% endfor %}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    adapter = load_adapter(str(folder), device="cpu")
    assert isinstance(adapter, Idefics3Adapter)
    assert adapter.turn.before_video == {"smolvlm": "<|im_start|>User: ", "idefics3": "Mine: "}[folder.name]


def test_a_template_with_neither_is_refused(folder: Path) -> None:
    template = "{# no video #}{{ messages[0]['content'][1]['text'] }}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match="must place one '<video>' before the question, but it gives 'the"):
        load_adapter(str(folder), device="cpu")


# --- what does not belong together --------------------------------------------------------------------------------


def test_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    edit(folder / "config.json", scale_factor=3)
    with pytest.raises(ValueError, match="has 4 patches a side, which scale_factor 3 must divide"):
        load_adapter(str(folder), device="cpu")
    edit(folder / "preprocessor_config.json", max_image_size={"longest_edge": 96})
    with pytest.raises(ValueError, match="makes pictures of 96 x 96, but its vision tower takes 64 x 64"):
        load_adapter(str(folder), device="cpu")


def test_an_image_processors_part_of_a_processor_is_read(folder: Path) -> None:
    """As transformers saves a processor since its fifth version: one file."""
    found = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    edit(folder / "processor_config.json", image_processor={**found, "image_mean": [0.1, 0.2, 0.3]})
    adapter = load_adapter(str(folder), device="cpu")
    assert isinstance(adapter, Idefics3Adapter)
    assert adapter.pictures.mean == (0.1, 0.2, 0.3)
