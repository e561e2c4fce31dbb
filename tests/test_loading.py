"""How checkpoints are loaded: options, quantisation, flash attention, memory, and what the hub says."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file

from vstream.engine import Engine
from vstream.models import load_adapter, room
from vstream.models.checkpoint import Checkpoint
from vstream.models.families import FAMILIES, family_of
from vstream.models.hub import find_checkpoint
from vstream.models.llava_onevision import LlavaOnevisionAdapter
from vstream.models.loading import load_model
from vstream.models.options import LoadOptions
from vstream.models.placement import attention, check_one_place, torch_dtype
from vstream.models.room import check_room, free_bytes, needed_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(model: str | Path, **options: Any) -> str:
    """The one sentence with which a model is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_adapter(str(model), **{"device": "cpu", **options})
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32, float64, bfloat16, float16, got 'int8'"),
        ({"dtype": torch.int8}, "dtype must be one of auto, .* got 'int8'"),
        ({"device_map": "balanced"}, "device_map must be one of nothing, auto, got 'balanced'"),
        ({"quantize": "int3"}, "quantize must be one of nothing, bitsandbytes-8bit, .* got 'int3'"),
        ({"max_pixels": 0}, "max_pixels must be a whole number >= 1, or None, got 0"),
        ({"max_pixels": 2.5}, "max_pixels must be a whole number"),
        ({"revision": ""}, "revision is empty; leave it out"),
        ({"system": "  "}, "system is empty; leave it out"),
        ({"precision": "float32"}, "no loading option 'precision'; there are device, dtype, "),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LoadOptions.of(None, given)


def test_options_are_given_whole_or_one_by_one() -> None:
    assert LoadOptions.of(None, {"dtype": torch.bfloat16, "device": torch.device("cpu")}) == LoadOptions(
        dtype="bfloat16", device="cpu"
    )
    assert LoadOptions.of(None, {"dtype": None}) == LoadOptions()
    with pytest.raises(ValueError, match="give options or single ones, not both"):
        LoadOptions.of(LoadOptions(), {"seed": 1})
    with Engine.load("random", LoadOptions(seed=3, dtype="float64")) as engine:
        assert engine.adapter.fingerprint == load_adapter("random", seed=3, dtype=torch.float64).fingerprint


@pytest.mark.parametrize(
    "option", [{"quantize": "torchao-int8"}, {"max_pixels": 9}, {"revision": "x"}, {"trust_remote_code": True}]
)
def test_options_of_checkpoints_are_no_options_of_built_in_models(option: dict[str, Any]) -> None:
    assert f"{next(iter(option))} is an option of checkpoints, but 'random' is built in" in refusal("random", **option)


def test_types_are_the_checkpoints_own_on_a_gpu_alone() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    own: dict[str, Any] = {"text_config": {"dtype": "bfloat16"}}
    assert torch_dtype("auto", gpu, own) == torch.bfloat16
    assert torch_dtype("auto", gpu, {"torch_dtype": "float16", **own}) == torch.float16
    assert torch_dtype("auto", gpu, {}) == torch_dtype("auto", cpu, own) == torch.float32
    assert torch_dtype("float64", gpu, own) == torch.float64


def test_a_type_by_name_is_the_type(folder: Path) -> None:
    by_name = load_adapter(str(folder), device="cpu", dtype="bfloat16")
    assert by_name.dtype == torch.bfloat16
    assert by_name.fingerprint == load_adapter(str(folder), device="cpu", dtype=torch.bfloat16).fingerprint


def test_frames_of_one_size_have_no_most_pixels(folder: Path) -> None:
    assert "is of type 'llava_onevision', whose frames have one size" in refusal(folder, max_pixels=10_000)


# --- quantisation, attention, devices -----------------------------------------------------------------------------


class Stopped(Exception):
    """Where the weights would be read."""


@contextmanager
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What `from_pretrained` would be told."""
    from transformers import LlavaOnevisionForConditionalGeneration

    found: dict[str, Any] = {}

    def from_pretrained(folder: Path, **keywords: Any) -> None:
        found.update(keywords)
        raise Stopped

    monkeypatch.setattr(LlavaOnevisionForConditionalGeneration, "from_pretrained", from_pretrained)
    yield found


def keywords_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """What `from_pretrained` is told for options; weights are not read."""
    from transformers import LlavaOnevisionForConditionalGeneration

    given = LoadOptions.of(None, {"device": "cpu", **options})
    with told(monkeypatch) as found, pytest.raises(ValueError, match="Stopped"):
        load_model(LlavaOnevisionForConditionalGeneration, Checkpoint(folder, "tiny"), given)
    return found


@pytest.fixture
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vstream.models.quantizing.find_spec", lambda name: name)


@pytest.mark.usefixtures("all_packages")
def test_quantisation_reaches_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eight = keywords_of(folder, monkeypatch, quantize="bitsandbytes-8bit")
    assert eight["quantization_config"].load_in_8bit
    assert eight["device_map"] == {"": torch.device("cpu")}, "such weights cannot be moved later"
    four = keywords_of(folder, monkeypatch, quantize="bitsandbytes-4bit", dtype="bfloat16")["quantization_config"]
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)
    assert "quantization_config" not in keywords_of(folder, monkeypatch)


@pytest.mark.usefixtures("all_packages")
def test_a_checkpoints_own_quantisation_is_left_to_transformers(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(own / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    given = keywords_of(own, monkeypatch)
    assert "quantization_config" not in given
    assert given["device_map"] == {"": torch.device("cpu")}
    assert "the checkpoint is quantised already (bitsandbytes); leave it out" in refusal(own, quantize="torchao-int8")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"quantize": "bitsandbytes-8bit"}, "needs accelerate and bitsandbytes, .* `pip install accelerate bitsandb"),
        ({"quantize": "torchao-int8"}, "quantize='torchao-int8' needs torchao, which this Python lacks"),
        ({"device_map": "auto"}, "device_map='auto' needs accelerate, .* run `pip install accelerate`"),
    ],
)
def test_missing_packages_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr("vstream.models.quantizing.find_spec", lambda name: None)
    assert re.search(sentence, refusal(folder, **option))


def test_missing_packages_of_a_quantised_checkpoint_are_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vstream.models.quantizing.find_spec", lambda name: None)
    edit(own / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "which is quantised (bitsandbytes), needs accelerate and bitsandbytes" in refusal(own)


def test_flash_attention_is_for_the_vision_tower_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"vision_config": {}, "text_config": {}}
    gpu, cpu, half = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
    assert attention(config, gpu, half) == "sdpa", "the package is not here"
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    found = attention(config, gpu, half)
    assert found == {"": "sdpa", "text_config": "sdpa", "vision_config": "flash_attention_2"}
    assert attention(config, cpu, half) == attention(config, gpu, torch.float32) == "sdpa"


def test_attention_by_part_reaches_the_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with flash attention, which cannot run here: eager stands for it."""
    by_part = {"": "sdpa", "text_config": "sdpa", "vision_config": "eager"}
    monkeypatch.setattr("vstream.models.placement.attention", lambda *given: by_part)
    model: Any = LlavaOnevisionAdapter(Checkpoint(folder, "tiny")).model
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_a_model_that_is_spread_is_refused() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")])
    with pytest.raises(ValueError, match="has spread it over cpu and disk, but all its weights must be in one place"):
        check_one_place(model, "large")
    check_one_place(model[0], "small")


# --- memory -------------------------------------------------------------------------------------------------------


def test_needed_bytes_are_those_of_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    numbers = sum(weight.numel() for weight in weights.values())
    assert needed_bytes(folder, torch.float32) == 4 * numbers
    assert needed_bytes(folder, torch.bfloat16) == 2 * numbers
    eighth, fourth = (needed_bytes(folder, torch.bfloat16, f"bitsandbytes-{bits}bit") for bits in (8, 4))
    assert numbers < eighth < 2 * numbers
    assert fourth < eighth


def test_too_little_memory_is_told_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = needed_bytes(folder, torch.float32)
    monkeypatch.setattr(room, "GIB", 1 << 10)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed)
    check_room(folder, "tiny", device=torch.device("cpu"), dtype=torch.float32)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed - 1024)
    with told(monkeypatch) as found:
        sentence = refusal(folder)
    assert not found, "no weight is read"
    kib = needed / 1024
    assert f"need {kib:.2f} GiB on cpu in float32, but {kib - 1:.2f} GiB are free; free some, or" in sentence
    check_room(folder, "tiny", device=torch.device("cpu"), dtype=torch.bfloat16)


def test_free_memory_is_this_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert 1 << 20 < free < 1 << 50
    for name, text in {"memory.max": "5000\n", "memory.current": "4000\n", "memory.stat": "anon 9\nfile 700\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 1700, "a container's limit, pages of files not counted"
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_bytes(torch.device("cpu")) or 0) > 5000


# --- damaged files ------------------------------------------------------------------------------------------------


def weights_of(header: str) -> bytes:
    """A safetensors file with this header and no numbers."""
    return len(header).to_bytes(8, "little") + header.encode()


@pytest.mark.parametrize("header", ['{"a": 5}', '{"a": {"dtype": "F32"}}', "[" * 100_000])
def test_damaged_headers_of_weights_are_told_in_a_sentence(own: Path, header: str) -> None:
    (own / "model.safetensors").write_bytes(weights_of(header))
    sentence = refusal(own)
    assert sentence.startswith(f"the weights in {own} cannot be read (")
    assert sentence.endswith("; fetch the checkpoint again")


@pytest.mark.parametrize("index", ['{"weight_map": []}', '{"weight_map": {"a": 5}}'])
def test_a_damaged_index_is_told_in_a_sentence(own: Path, index: str) -> None:
    (own / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json must name a file for each weight; fetch the checkpoint again" in refusal(own)


def test_a_folder_in_place_of_weights_is_no_weights(own: Path) -> None:
    (own / "model.safetensors").unlink()
    (own / "model.safetensors").mkdir()
    assert "is not whole: it has no safetensors, or not all" in refusal(own)


def test_json_of_endless_depth_is_no_json(own: Path) -> None:
    (own / "config.json").write_text("[" * 100_000)
    assert f"{own / 'config.json'} is not JSON" in refusal(own)


def test_a_file_is_no_checkpoint(own: Path) -> None:
    file = own / "model.safetensors"
    assert refusal(file).startswith(f"{file} is a file; give the folder of a checkpoint")


def test_what_a_library_announces_is_told_with_it(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    edit(own / "config.json", text_config={**config["text_config"], "hidden_size": "big"})
    assert re.search(r"field 'hidden_size': .*big.*; fetch the checkpoint again", refusal(own))


def test_a_template_without_system_prompts_is_told_in_a_sentence(own: Path) -> None:
    template = json.loads((own / "chat_template.json").read_text())["chat_template"]
    users = "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}" + template
    raises = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template
    for one in (users, raises):
        (own / "chat_template.json").write_text(json.dumps({"chat_template": one}))
        load_adapter(str(own), device="cpu")
        assert "takes no system prompt; leave it out" in refusal(own, system="Be brief.")


# --- families -----------------------------------------------------------------------------------------------------


def test_every_family_names_a_class_of_transformers_and_an_adapter() -> None:
    import transformers

    for family in FAMILIES:
        model_class = getattr(transformers, family.class_name)
        assert model_class.config_class.model_type == family.model_type
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", family.example)
        assert family.adapter_class().__module__ == f"vstream.models.{family.adapter.split(':')[0]}"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "llama"}, "of type 'llama' without a vision part, which is not served; served are llava_onev"),
        ({"model_type": "mllama", "vision_config": {}}, "of type 'mllama', which is not served; served are .* such as"),
        ({"model_type": "internvl_chat", "auto_map": {}}, "model code of its own .auto_map., which is never run"),
    ],
)
def test_unserved_checkpoints_are_told_what_is_served(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        family_of(Checkpoint(tmp_path, "other"))


# --- the hub ------------------------------------------------------------------------------------------------------


URL = "/{repo_id}/resolve/{revision}/{filename}"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, and notes what was asked for."""

    files: dict[str, bytes]
    refused: tuple[int, str] | None
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(None)

    def log_message(self, *message: Any) -> None:
        """Says nothing."""

    def _answer(self, body: bytes | None) -> None:
        self.asked.append(self.path)
        if self.refused:
            self._send(self.refused[0], b"{}", {"X-Error-Code": self.refused[1], "X-Error-Message": "refused"})
        elif "/tree/" in self.path:
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                       for name, data in self.files.items()]  # fmt: skip
            self._send(200, json.dumps(entries).encode(), {})
        elif "/resolve/" in self.path:
            data = self.files[self.path.rsplit("/", 1)[1]]
            self._send(
                200,
                data if body is None else b"",
                {"ETag": f'"{zlib.crc32(data):08x}"', "Content-Length": str(len(data))},
            )
        else:
            info = {"id": "someone/model", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in self.files]}
            self._send(200, json.dumps(info).encode(), {})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": "a" * 40, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, and an empty cache."""
    handler = type("OneHub", (Hub,), {"files": {}, "refused": None, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", here + URL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "name", "sentence"),
    [
        (403, "GatedRepo", "'someone/model' is gated: accept its terms on the hub, log in with `hf auth login`"),
        (
            401,
            "RepoNotFound",
            "the hub has no repository 'someone/model', or it is private: check the name or `hf",
        ),
        (404, "RepoNotFound", "the hub has no repository 'someone/model', or it is private"),
        (404, "RevisionNotFound", "'someone/model' has no revision 'v9'; give a branch, tag or commit it has"),
        (500, "", "cannot be fetched .*; run `hf download someone/model --revision v9` where there is a network"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(hub: type[Hub], code: int, name: str, sentence: str) -> None:
    hub.refused = (code, name)
    assert re.search(sentence, refusal("someone/model", revision="v9"))
    assert hub.asked


def test_offline_asks_nobody_and_says_what_to_download(hub: type[Hub]) -> None:
    sentence = refusal("someone/model", local_files_only=True)
    assert "'someone/model' is not whole in the hub's cache, and nothing may be fetched (--offline)" in sentence
    assert "run `hf download someone/model` first" in sentence
    assert hub.asked == []


def test_a_hub_out_of_reach_is_told_with_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = refusal("someone/model")
    assert "is no folder, is not in the hub's cache, and cannot be fetched" in sentence
    assert "run `hf download someone/model` where there is a network" in sentence


@pytest.mark.slow
def test_a_repository_is_fetched_and_an_unserved_one_not(hub: type[Hub], folder: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"pickled"}
    adapter = load_adapter("someone/model", device="cpu")
    assert adapter.name == "someone/model"
    assert adapter.fingerprint == load_adapter(str(folder), device="cpu").fingerprint
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    asked = len(hub.asked)
    assert find_checkpoint("someone/model", LoadOptions(local_files_only=True))
    assert len(hub.asked) == asked, "the cache has it"


def test_weights_of_an_unserved_repository_are_not_fetched(hub: type[Hub]) -> None:
    hub.files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"many"}
    assert "is a model of type 'llama' without a vision part, which is not served" in refusal("someone/model")
    assert not any("safetensors" in path for path in hub.asked)


def test_a_revision_belongs_to_a_repository(folder: Path) -> None:
    assert "revision='v9' is one of a repository, but" in refusal(folder, revision="v9")


def test_looking_for_options_and_families_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys, vstream.models.families, vstream.models.options, vstream.models.hub; "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
