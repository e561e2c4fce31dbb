"""Which sources the server opens for those who ask over the network, and how.

Everybody may open the sample, uploads and synthetic cameras; folders, hosts and this machine's cameras only where
whoever started the server said so (`--allow`). What is refused is refused in one sentence, which does not tell whether
there is such a file. This module knows nothing of HTTP, models or memory.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vstream.app.serve.hosts import AllowedHost, Resolver, allowed_host, connect, resolved, why_never
from vstream.app.serve.synthetic import check_graph
from vstream.app.serve.uploads import SCHEME, upload_path
from vstream.sources import CameraSource, Source, open_source
from vstream.sources.camera_address import CameraAddress, camera_address
from vstream.sources.relay import relayed

SAMPLE = "sample"
MAX_TEXT = 4096
SYSTEM_FOLDERS = tuple(map(Path, ("/dev", "/proc", "/sys")))
"""Never allowed: what lies there is no recording."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class SourceRefused(ValueError):
    """A source that this server does not open; its text is one sentence, without credentials."""


@dataclass(frozen=True)
class Opened:
    """A source that was allowed.

    Attributes:
        source: open, to be closed by whoever has it.
        file: the recorded file, which a browser may play and seek; None for cameras and folders of pictures.
        given: what opens the same again, safe to show: it lacks a camera's credentials.
    """

    source: Source
    file: Path | None
    given: str


def sample_file() -> Path | None:
    """The sample video beside the code, in a checkout as in an installed package; None where it was left out."""
    path = Path(__file__).resolve().parents[2] / "samples" / "sample.mp4"
    return path if path.is_file() else None


class SourcePolicy:
    """What may be opened.

    Attributes:
        folders: files and folders of pictures below these, resolved; the folder of uploads is the last.
        hosts: RTSP cameras on these.
        cameras: this machine's cameras, by their names.
        sample: the sample video, None where there is none.
    """

    def __init__(
        self,
        allow: Sequence[str],
        uploads: Path | None = None,
        *,
        sample: Path | None = None,
        resolver: Resolver = resolved,
    ) -> None:
        """Reads what was given with `--allow`.

        Args:
            allow: folders, hosts (a name, an address or a network, with a port or without) and cameras of this machine.
            uploads: where uploads are kept, None without uploads.
            sample: the sample video; `sample_file` if None.
            resolver: looks names up; for tests.

        Raises:
            ValueError: for what is no folder, host or camera, or never allowed.
        """
        self.sample = sample or sample_file()
        self._resolver = resolver
        self.hosts: list[AllowedHost] = []
        self.cameras: list[str] = []
        self.folders: list[Path] = []
        for text in allow:
            self._allow(text)
        self._shown = [str(folder) for folder in self.folders] + [host.text for host in self.hosts] + self.cameras
        self._uploads = None if uploads is None else Path(uploads).resolve()
        if self._uploads is not None:
            self.folders.append(self._uploads)

    def _allow(self, text: str) -> None:
        camera = camera_address(text) if text.startswith(("webcam:", "/dev/")) else None
        if camera:
            self.cameras.append(camera.name)
        elif text and Path(text).expanduser().is_dir():
            self.folders.append(_allowed_folder(text))
        elif host := allowed_host(text):
            self.hosts.append(host)
        else:
            raise ValueError(
                f"--allow takes a folder that exists, a host (camera.lan, 192.168.1.20, 192.168.1.0/24, with :PORT or "
                f"without) or a camera of this machine (webcam:0), got {_without_credentials(text)!r}"
            )

    def describe(self) -> str:
        """What may be opened, for people: "the sample, uploads, synthetic cameras and /videos"."""
        uploads = ["uploads"] * bool(self._uploads)
        known = ["the sample"] * bool(self.sample) + [*uploads, "synthetic cameras", *self._shown]
        return " and ".join(filter(None, [", ".join(known[:-1]), known[-1]]))

    def open(self, text: str, *, max_side: int) -> Opened:
        """Opens what a person named, if it is allowed.

        Args:
            text: "sample", upload:NAME, a file or a folder (relative ones are also looked for in the allowed folders),
                an RTSP address, webcam:0, or lavfi: with a plain graph.
            max_side: longest side of the frames, in pixels.

        Raises:
            SourceRefused: for what is not allowed.
            ValueError: for what is allowed, but malformed or no video.
            FileNotFoundError: if there is no such file in an allowed folder.
        """
        text = text.strip()
        if not text or len(text) > MAX_TEXT or not text.isprintable():
            raise SourceRefused(f"a source is a text of 1 to {MAX_TEXT} printable characters; {self._instead('DIR')}")
        if text == SAMPLE:
            return self._open_sample(max_side)
        if text.startswith("lavfi:"):
            return self._open_synthetic(text, max_side)
        if text.startswith(SCHEME):
            return self._open_upload(text, max_side)
        address = camera_address(text)
        if address:
            return self._open_camera(address, max_side)
        scheme = _SCHEME.match(text)
        if scheme:
            raise SourceRefused(f"{scheme[1]}:// is not opened by this server; {self._instead('DIR|HOST')}")
        return self._open_path(text, max_side)

    def _instead(self, allow: str) -> str:
        return f"this server opens {self.describe()}, and more when it is started with --allow {allow}"

    def _open_sample(self, max_side: int) -> Opened:
        if self.sample is None:
            raise SourceRefused(f"the sample video is not installed with this server; {self._instead('DIR')}")
        return Opened(open_source(self.sample, max_side=max_side), self.sample, SAMPLE)

    def _open_synthetic(self, text: str, max_side: int) -> Opened:
        try:
            check_graph(text.removeprefix("lavfi:"))
        except ValueError as error:
            raise SourceRefused(str(error)) from None
        return Opened(open_source(text, max_side=max_side), None, text)

    def _open_camera(self, address: CameraAddress, max_side: int) -> Opened:
        if address.format is not None:
            if address.name not in self.cameras:
                raise SourceRefused(f"the camera {address.name} is not allowed here; {self._instead('webcam:0')}")
            return Opened(CameraSource(address, max_side=max_side), None, address.name)
        host, port, tls = address.endpoint
        special = why_never(host)
        if special:
            raise SourceRefused(
                f"{special} addresses like {host} are never connected to; give the camera's own address"
            )
        if not any(allowed.allows(host, port) for allowed in self.hosts):
            raise SourceRefused(f"the camera {address.name} is not allowed here; {self._instead(host)}")
        reach = partial(connect, host, port, tls=tls, resolver=self._resolver)
        return Opened(CameraSource(relayed(address, reach), max_side=max_side), None, address.name)

    def _open_upload(self, text: str, max_side: int) -> Opened:
        if self._uploads is None:
            raise SourceRefused(f"this server takes no uploads; {self._instead('DIR')}")
        path = upload_path(self._uploads, text)
        if not path.is_file() or path.is_symlink():
            raise FileNotFoundError(f"there is no upload {text.removeprefix(SCHEME)}; it may have made room for others")
        return replace(self._open_path(str(path), max_side), given=SCHEME + path.name)

    def _open_path(self, text: str, max_side: int) -> Opened:
        path = self._allowed_path(text)
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise SourceRefused(f"{text} is neither a file nor a folder; give a video file or a folder of pictures")
            source = open_source(path, max_side=max_side, trusted=False)
        except PermissionError:
            raise SourceRefused(
                f"{text} may not be read by this server; change its permissions or give another"
            ) from None
        return Opened(source, path if stat.S_ISREG(mode) else None, str(path))

    def _allowed_path(self, text: str) -> Path:
        """The resolved path of what lies in an allowed folder."""
        paths = [_resolved(base / text) for base in (Path.cwd(), *self.folders)]
        inside = [path for path in paths if path and self._is_allowed(path)]
        if not inside:
            raise SourceRefused(
                f"{text!r} is not in a folder that this server may read; {self._instead(_folder_of(text))}"
            )
        path = next((path for path in inside if os.path.lexists(path)), None)
        if path is None:
            raise FileNotFoundError(f"there is no file {text}")
        return path

    def _is_allowed(self, path: Path) -> bool:
        return any(map(path.is_relative_to, self.folders)) and not any(map(path.is_relative_to, SYSTEM_FOLDERS))


def _allowed_folder(text: str) -> Path:
    folder = Path(text).expanduser().resolve()
    if any(map(folder.is_relative_to, SYSTEM_FOLDERS)):
        raise ValueError(f"--allow {text}: nothing in {', '.join(map(str, SYSTEM_FOLDERS))} is a recording")
    return folder


def _resolved(path: Path) -> Path | None:
    """A path without links; None where a link on the way may not be read."""
    try:
        return Path(os.path.realpath(path))
    except OSError:
        return None


def _folder_of(text: str) -> str:
    """The folder that would have to be allowed, as far as its name tells."""
    path = Path(text)
    return str(path.parent if path.suffix else path)


def _without_credentials(text: str) -> str:
    return re.sub(r"//.*@", "//", text)[:200]
