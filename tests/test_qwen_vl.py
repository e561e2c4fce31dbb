"""The Qwen families beside `test_family.py`: their pictures, groups of two frames, options, and a long stream."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import MIB, QUESTION, ListSource, answer_logits, difference, pump_all, recording, small_config, watched
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vstream.batch import DecodeBatch
from vstream.clip_block import typical_frame
from vstream.config import DecodeOptions
from vstream.memory.block import TokenKind
from vstream.models import load_adapter
from vstream.models.patches import PatchSpec
from vstream.models.qwen2_vl import QwenVlAdapter
from vstream.session import Session
from vstream.types import Frame

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from make_checkpoint import make_checkpoint

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROCESSOR = {
    "min_pixels": 4 * 28**2, "max_pixels": 24 * 28**2, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3,
}  # fmt: skip
SHAPES = [(28, 28), (50, 70), (53, 91), (200, 64), (1080, 1920), (300, 299), (7, 9), (14, 1400), (131, 77)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> dict[str, Path]:
    """A checkpoint of each family; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: make_checkpoint(family, root / family) for family in QWEN}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def adapter(request: pytest.FixtureRequest, folders: dict[str, Path]) -> QwenVlAdapter:
    return recording(load(folders[request.param]))  # type: ignore[no-any-return]


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(folders["qwen2_5_vl"], tmp_path / "checkpoint"))


def load(folder: Path, **options: Any) -> QwenVlAdapter:
    torch.set_num_threads(1)
    adapter = load_adapter(str(folder), device="cpu", **options)
    assert isinstance(adapter, QwenVlAdapter)
    return adapter


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def pictures(count: int, size: tuple[int, int] = (50, 70), seed: int = 0) -> list[Frame]:
    """Frames one second apart; frame i depends on the seed and i alone."""
    images = (np.random.default_rng((seed, i)).integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(count))
    return [Frame(float(i), image) for i, image in enumerate(images)]


def smooth(size: tuple[int, int]) -> Frame:
    """A picture without noise, of which 8-bit resizers agree to a level or two."""
    rows, columns = np.meshgrid(*(np.linspace(0, 255, side) for side in size), indexing="ij")
    return Frame(0.0, np.stack([rows, columns, 255 - (rows + columns) / 2], axis=-1).astype(np.uint8))


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_patches_are_those_of_transformers_processor(size: tuple[int, int]) -> None:
    """Of a picture that is shown twice, as the processor of images has it; a level of 255 may be rounded otherwise."""
    frame, spec = smooth(size), PatchSpec.from_config(PROCESSOR)
    theirs = Qwen2VLImageProcessorPil(**PROCESSOR)(frame.image, return_tensors="pt", input_data_format="channels_last")
    rows, columns = spec.grid(*size)
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    ours = spec.patches([frame], rows, columns)
    assert ours.shape == theirs["pixel_values"].shape
    assert difference(ours, theirs["pixel_values"]) < 2.5 / 255 / min(PROCESSOR["image_std"])  # type: ignore[call-overload]
    assert difference(ours, theirs["pixel_values"].flip(0)) > 0.1 or rows * columns == 1, "negative control"


def test_two_frames_lie_beside_each_other_in_a_patch() -> None:
    spec, frames = PatchSpec.from_config(PROCESSOR), pictures(5)
    grid = spec.grid(50, 70)
    groups = spec.patches(frames, *grid).view(3, 4 * grid[0] * grid[1], 3, 2, 14 * 14)
    for index, frame in enumerate([*frames, frames[-1]]):
        alone = spec.patches([frame], *grid).view(-1, 3, 2, 14 * 14)
        assert torch.equal(groups[index // 2, :, :, index % 2], alone[:, :, 0])
    assert not torch.equal(groups[0, :, :, 0], groups[0, :, :, 1])


def test_sizes_of_whole_videos_are_shared_by_the_frames_of_a_group() -> None:
    sizes = {"shortest_edge": 8 * 28**2, "longest_edge": 48 * 28**2}
    videos = {name: value for name, value in PROCESSOR.items() if "pixels" not in name} | {"size": sizes}
    volume, flat = PatchSpec.from_config(videos, volume=True), PatchSpec.from_config(PROCESSOR)
    assert (volume.min_pixels, volume.max_pixels) == (flat.min_pixels, flat.max_pixels)
    assert all(volume.grid(*size) == flat.grid(*size) for size in SHAPES if min(size) >= 28)


@pytest.mark.parametrize("size", [(10, 9000), (9000, 10), (1, 1), (2160, 3840)], ids=str)
def test_every_picture_has_a_grid(size: tuple[int, int]) -> None:
    for volume in (False, True):
        for pixels in (24 * 28**2, 12845056):
            spec = PatchSpec.from_config({**PROCESSOR, "max_pixels": pixels}, volume=volume)
            rows, columns = spec.grid(*size)
            assert min(rows, columns) >= 1
            assert max(rows, columns) <= 4096 // 28
            assert rows * columns <= spec.tokens[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"patch_size": None}, "must name patch_size, merge_size, temporal_patch_size, .* got .None, 2, 2.; fetch"),
     ({"max_pixels": None}, "must name the fewest and the most pixels"),
     ({"max_pixels": None, "size": 5}, "must name the fewest and the most pixels .* size is 5; fetch"),
     ({"image_mean": [0.5]}, "image_mean must be three numbers"),
     ({"max_pixels": 700}, "of which a token takes 784; allow more")],
)  # fmt: skip
def test_processors_that_do_not_say_enough_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PatchSpec.from_config({**PROCESSOR, **changes})


@pytest.mark.slow
def test_max_pixels_lowers_the_tokens_of_a_frame(folders: dict[str, Path]) -> None:
    whole, few = load(folders["qwen2_vl"]), load(folders["qwen2_vl"], max_pixels=6 * 28**2)
    frames = pictures(2, (300, 400))
    with torch.inference_mode():
        assert whole.encode(frames).shape[1] == 20
        assert few.encode(frames).shape[1] == 4
    assert few.max_frame_tokens == whole.max_frame_tokens - 18
    assert few.image_side < whole.image_side
    assert few.fingerprint != whole.fingerprint, "a memory of the one is not the other's"
    for pixels in (700, 25 * 28**2):
        with pytest.raises(
            ValueError, match=rf"max_pixels must be 784 \(one token\) to 18816 for this model, got {pixels}"
        ):
            load(folders["qwen2_vl"], max_pixels=pixels)


def test_a_stream_has_at_most_768_tokens_a_frame_unless_told(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", max_pixels=12845056)
    assert load(folder).patches.tokens == (4, 768)
    assert load(folder, max_pixels=1024 * 28**2).patches.tokens == (4, 1024)


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_hubs_flat_configurations_are_read(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """The families' repositories have what belongs to the text beside all else."""
    flat = Path(shutil.copytree(folders[family], tmp_path / family))
    config = json.loads((flat / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["rope_theta"] = rope["rope_theta"]
    del text["model_type"]
    (flat / "config.json").write_text(json.dumps({**text, **config}))
    frames = pictures(3)
    with torch.inference_mode():
        nested, read = (answer_logits(watched(recording(load(one)), frames)) for one in (folders[family], flat))
    assert torch.equal(nested, read)


def test_a_vision_tower_of_other_patches_is_refused(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", patch_size=7)
    with pytest.raises(ValueError, match=r"merges and groups of \(7, 2, 2\), but its vision tower takes"):
        load(folder)


@pytest.mark.slow
def test_marks_stand_around_each_grid_and_not_around_the_video(adapter: QwenVlAdapter) -> None:
    assert adapter.turn.before_video.endswith("user\n")
    assert adapter.turn.before_question == ""
    frames = pictures(3)
    with torch.inference_mode():
        span = adapter.layout(frames, adapter.encode(frames))
        width = adapter.config.hidden_size
        for mark in adapter.frame_marks:
            embed = adapter.embed(torch.tensor(adapter.tokens.special(mark)))
            assert (span.embeds[:, :width] == embed).all(dim=-1).sum() == 2


# --- groups of two frames -----------------------------------------------------------------------------------------


def test_nobody_sees_a_group_before_its_last_frame(adapter: QwenVlAdapter) -> None:
    frames = pictures(3)
    with torch.inference_mode():
        span = adapter.layout(frames, adapter.encode(frames))
    assert span.seconds.unique().tolist() == [1.0, 2.0]
    assert span.seconds.diff().min() >= 0
    vision = span.kinds == TokenKind.VISION
    assert (span.positions[0] == span.positions[1:]).all(dim=0)[~vision].all(), "text counts alike on all axes"
    assert len(set(span.advance.tolist())) == 1
    assert span.positions.max() < span.advance[0] <= len(span)


def test_later_frames_leave_an_answer_bit_identical(adapter: QwenVlAdapter) -> None:
    """A question between the two frames of a group sees the first of them alone."""
    told, hidden = {}, adapter.hidden  # type: ignore[attr-defined]
    for index in (None, 7, 8, 6):
        frames = pictures(12)
        if index is not None:
            frames[index] = replace(frames[index], image=frames[index].image[::-1].copy())
        session = Session(adapter, ListSource(frames), small_config(clip_frames=4, window_tokens=256))
        hidden.clear()
        answer = session.ask(QUESTION, at=6.5)
        while not answer.done:
            assert session.ingest
            session.ingest.pump(1)
            session.step()
        told[index] = answer.text(), answer.evidence, hidden[-1]
        session.close()
    assert told[7][0] == told[None][0]
    assert torch.equal(told[7][2], told[None][2])
    assert torch.equal(told[8][2], told[None][2])
    assert not torch.equal(told[6][2], told[None][2]), "negative control"


def test_the_past_holds_whole_groups(adapter: QwenVlAdapter) -> None:
    session = watched(adapter, pictures(12), clip_frames=4, window_tokens=256)
    with torch.inference_mode():
        seen = {at: session.memory.view(at).end_seconds for at in (0.5, 1.0, 3.0, 4.5, 5.0, 6.9, 11.0)}
    assert seen == {0.5: None, 1.0: 1.0, 3.0: 3.0, 4.5: 3.0, 5.0: 5.0, 6.9: 5.0, 11.0: 11.0}
    answer = session.ask(QUESTION, at=4.5)
    while session.step():
        pass
    assert answer.snapshot_seconds == 3.0
    assert answer.text() is not None


def test_evidence_shows_the_last_frame_of_the_typical_group() -> None:
    frames, features = pictures(5), torch.tensor([[0.0], [4.0], [5.0]])[..., None]
    assert typical_frame(frames, features) is frames[3]
    assert typical_frame(frames, features.flip(0)) is frames[3]
    assert typical_frame(frames, torch.tensor([[5.0], [4.0], [4.5]])[..., None]) is frames[4]
    assert typical_frame(frames[:1], features[:1]) is frames[0]


def test_pictures_of_another_size_begin_a_clip(adapter: QwenVlAdapter) -> None:
    sizes = [(50, 70), (50, 70), (50, 70), (120, 60), (120, 60), (50, 70)]
    frames = [replace(pictures(1, size, seed)[0], pts_seconds=float(seed)) for seed, size in enumerate(sizes)]
    session = watched(adapter, frames, clip_frames=4, window_tokens=256)
    blocks = sorted((meta.start_seconds, meta.end_seconds) for meta in session.memory.store.metas() if meta.level == 0)
    assert blocks == [(0.0, 2.0), (3.0, 4.0), (5.0, 5.0)]


# --- a long stream ------------------------------------------------------------------------------------------------


def long_session(adapter: QwenVlAdapter, folder: Path | None = None, **settings: Any) -> Session:
    config = {"clip_frames": 4, "window_tokens": 128, "retrieve_tokens": 128, "host_bytes": MIB, **settings}
    return Session(adapter, ListSource(pictures(80)), small_config(**config), folder=folder)


@pytest.mark.parametrize("selection", ["shared", "per-layer"])
def test_a_long_stream_is_condensed_and_answers_from_all_of_it(adapter: QwenVlAdapter, selection: str) -> None:
    session = long_session(adapter, selection=selection)
    pump_all(session)
    moved = session.status().moved
    assert moved, "nothing was condensed"
    answers = [session.ask(QUESTION, options=DecodeOptions(max_tokens=8)) for _ in range(2)]
    pump_all(session)
    assert answers[0].text() == answers[1].text()
    assert min(start for start, _ in answers[0].recalled) < 60.0 <= session.memory.cache.window[0].meta.start_seconds


@pytest.mark.parametrize(
    "settings", [{"policy": "embedding"}, {"drop_similarity": 0.3}, {"skip_duplicates": 20.0}], ids=str
)
def test_settings_that_look_at_features_work(adapter: QwenVlAdapter, settings: dict[str, Any]) -> None:
    session = watched(
        adapter, [*pictures(6), *(replace(f, pts_seconds=f.pts_seconds + 6) for f in pictures(6))], **settings
    )
    answer = session.ask(QUESTION)
    while session.step():
        pass
    assert answer.finish_reason in ("stop", "length")
    assert answer.evidence


def test_answers_in_a_batch_are_those_alone(adapter: QwenVlAdapter) -> None:
    def told(batch: DecodeBatch | None) -> list[str]:
        session = Session(adapter, ListSource(pictures(9)), small_config(), batch=batch)
        answers = [session.ask(text, at=at) for text, at in ((QUESTION, 3.0), ("and now?", 6.0), ("what else?", 8.0))]
        if batch is None:
            pump_all(session)
        else:
            ingest = session.ingest
            assert ingest
            while ingest.pump(4) or not ingest.drained:
                while session.advance():
                    pass
            while len(batch) < len(answers) and session.advance():
                pass
            assert len(batch) == len(answers)
            batch.decode(100)
            session.settle()
        return [answer.text() for answer in answers]

    assert told(DecodeBatch(adapter)) == told(None)


def test_a_resumed_stream_goes_on_with_the_same_bits(adapter: QwenVlAdapter, tmp_path: Path) -> None:
    def logits(folder: Path, cuts: tuple[int, ...]) -> Tensor:
        for count in cuts:
            config = small_config(clip_frames=4, window_tokens=128, disk_bytes=64 * MIB)
            session = Session(adapter, ListSource(pictures(count)), config, folder=folder)
            pump_all(session)
            found = answer_logits(session)
            session.close()
        return found

    assert torch.equal(logits(tmp_path / "cut", (16, 24)), logits(tmp_path / "whole", (24,)))
