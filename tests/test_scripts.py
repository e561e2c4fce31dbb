"""The repository itself: scripts, the sample's questions, the one-way order of imports, and what importing costs."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vstream.app.questions import read_questions

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "memory", "vstream", "app", "scripts")
BASH_SCRIPTS = (Path("scripts/demo"), Path("scripts/test"), Path("scripts/lib.sh"), Path(".ci/run"))


def run_python(code: str) -> None:
    """Runs code in a fresh Python whose current folder is the repository's root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=str)
def test_bash_scripts_parse_and_say_what_they_do(script: Path) -> None:
    path = ROOT / script
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    first = 1 if lines[0].startswith("#!") else 0
    assert re.fullmatch(r"# [A-Z].{30,}\.", lines[first]), lines[first]
    if first:
        assert lines[0] == "#!/usr/bin/env bash"
        assert "set -euo pipefail" in lines[2]
        assert path.stat().st_mode & stat.S_IXUSR, f"{script} cannot be executed"


def test_code_names_no_address_and_nothing_names_this_machine() -> None:
    """Where packages come from is the machine's business."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    addresses = re.compile(r"https?://|--(extra-)?index-url")
    for name in tracked.stdout.splitlines():
        if not (ROOT / name).is_file() or name.endswith((".mp4", ".jpg", ".png", ".safetensors")):
            continue
        text = (ROOT / name).read_text()
        assert f"{Path.home()}/" not in text, f"{name} names a folder of this machine"
        if not name.startswith(("tests/", "samples/", "LICENSE")) and not name.endswith(".md"):
            found = addresses.search(text)
            assert not found, f"{name} names {found[0]}"


def bash(command: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """Runs a command after sourcing the set-up functions, with its own PATH and a .venv elsewhere."""
    script = f'set -euo pipefail; source "$0"; {command}'
    environment = {"PATH": path, "HOME": os.environ.get("HOME", "/")}
    arguments = ["bash", "-c", script, ROOT / "scripts" / "lib.sh"]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd="/")


def fake_pythons(folder: Path, body: str) -> str:
    """A PATH on which every Python is a shell script."""
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_setup_says_which_python_is_missing(tmp_path: Path) -> None:
    old = fake_pythons(tmp_path, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    done = bash("find_python", old)
    assert (done.returncode, done.stdout) == (1, "")
    assert "needs Python 3.11 or newer, but this is Python 3.9.2" in done.stderr
    assert "apt-get install python3.11 python3.11-venv" in done.stderr


def test_setup_says_that_venv_is_missing(tmp_path: Path) -> None:
    no_venv = fake_pythons(tmp_path, 'case "$2" in *ensurepip*) exit 1;; *print*) echo python3.11;; esac')
    done = bash(f"VENV={tmp_path}/venv; make_venv", no_venv)
    assert done.returncode == 1
    assert "apt-get install python3.11-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_setup_takes_a_newer_python_where_python3_is_old(tmp_path: Path) -> None:
    path = fake_pythons(tmp_path, "exit 1")
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 0\n")
    assert bash("find_python", path).stdout == "python3.12\n"


def test_setup_is_quick_when_all_is_there(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    python.chmod(0o755)
    for _ in range(2):
        done = bash(f"VENV={tmp_path}; install_vstream test")
        assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    installs = [call for call in calls if " install " in call]
    assert len(installs) == 2, calls
    assert "torch" in installs[0]
    assert installs[1].endswith(f"--editable {ROOT}[test]")


# The sample -------------------------------------------------------------------------------------------------------


def test_the_demo_asks_while_the_sample_lasts() -> None:
    scenes = json.loads((ROOT / "samples" / "sample.json").read_text())["scenes"]
    questions = read_questions(ROOT / "samples" / "questions.jsonl")
    times = [question.at for question in questions if question.at != "end"]
    assert len(questions) == 10
    assert times == sorted(times)
    assert len(set(times)) > 5
    assert max(times) < scenes[-1]["end_seconds"] < 120


# Imports ----------------------------------------------------------------------------------------------------------


def folder_of(module: str) -> str | None:
    """The folder that a module of ours is in, None for others; top-level `kernels`, `memory`, `app` are nobody's."""
    parts = module.split(".")
    if parts[0] != "vstream":
        return "forbidden" if parts[0] in FOLDERS else None
    return parts[1] if len(parts) > 1 and parts[1] in ("kernels", "memory", "app") else "vstream"


def imported_modules(source: str) -> Iterator[str]:
    """Every module that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(folder: str, source: str) -> list[str]:
    """The imports that go against kernels <- memory <- vstream <- app <- scripts."""
    allowed = (None, *FOLDERS[: FOLDERS.index(folder) + 1])
    return [module for module in imported_modules(source) if folder_of(module) not in allowed]


def python_files(folder: str) -> list[Path]:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_one_way(folder: str) -> None:
    files = python_files(folder)
    assert files
    wrong = {str(path): found for path in files if (found := wrong_imports(folder, path.read_text()))}
    assert not wrong


def test_a_wrong_import_is_noticed() -> None:
    inside = "def f():\n    from vstream.memory.store import BlockStore\n"
    assert wrong_imports("kernels", inside) == ["vstream.memory.store.BlockStore"]
    assert wrong_imports("memory", inside) == []
    assert wrong_imports("memory", "from vstream import session") == ["vstream.session"]
    assert wrong_imports("vstream", "import vstream.app.cli") == ["vstream.app.cli"]
    assert wrong_imports("app", "import kernels") == ["kernels"]
    assert wrong_imports("kernels", "import torch\nimport vstream.kernels.reference") == []


@pytest.mark.slow
def test_kernels_and_memory_import_with_torch_alone() -> None:
    run_python(
        "import importlib, pkgutil, sys, vstream.kernels, vstream.memory\n"
        "for package in (vstream.kernels, vstream.memory):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if '.triton_' not in module.name:\n"  # imported by who chooses them alone
        "            importlib.import_module(module.name)\n"
        "assert 'vstream.memory.store' in sys.modules\n"
        "heavy = {'transformers', 'av', 'lmdb', 'PIL', 'rich', 'typer', 'gradio', 'faiss', 'triton'}\n"
        "heavy &= sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.slow
def test_transformers_works_beside_a_folder_named_kernels() -> None:
    run_python(
        "import transformers, transformers.integrations.hub_kernels\n"
        "config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,\n"
        "    num_attention_heads=2, num_key_value_heads=1)\n"
        "transformers.LlamaForCausalLM(config)\n"
    )


# Tests ------------------------------------------------------------------------------------------------------------


def test_no_file_of_tests_is_empty_of_tests() -> None:
    files = sorted((ROOT / "tests").glob("test_*.py"))
    assert Path(__file__) in files
    for path in files:
        names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in names), f"{path} has no test"
