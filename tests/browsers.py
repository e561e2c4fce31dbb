"""A real Chromium for tests of the page, driven by playwright, and a real server in a process of its own.

Chromium is the system's; playwright's own is not downloaded. It reaches nothing but this machine: names do not resolve.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
NO_NAMES = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WEBCAM = "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
START_SECONDS = 60.0


def chromium() -> str | None:
    """The system's Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def require_chromium() -> str:
    """The path of Chromium. Where it is missing, tests fail on CI and are skipped elsewhere."""
    found = chromium()
    if found is None:
        reason = "COULD NOT TEST the page: there is no Chromium, apt-get install chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    return found


def arguments(webcam: Path | None = None) -> list[str]:
    """Chromium's arguments; `webcam` is a Y4M file that it takes for its camera."""
    fake = [*WEBCAM.split(), f"--use-file-for-fake-video-capture={webcam}"] if webcam else []
    return [*QUIET.split(), NO_NAMES, *fake]


@contextlib.contextmanager
def vstream_serve(folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Runs `vstream serve` with its memories in a folder until the block ends; its address."""
    command = [sys.executable, "-c", "import sys; from vstream.app.cli import main; sys.exit(main())", "serve"]
    command += ["--port", str(port), "--memories", str(folder / "memories"), "--threads", "1", *options]
    with (folder / "stderr.txt").open("w") as told, subprocess.Popen(command, stderr=told) as process:
        try:
            yield _address(process, folder / "stderr.txt")
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _address(process: subprocess.Popen[bytes], told: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if found := re.search(r"vstream serves (\S+)", told.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {told.read_text()}")


def write_y4m(path: Path, video: Path, seconds: float, frames: int = 20) -> Path:
    """A fake webcam's file: pictures of a video from some time on, 320x240, 10 a second."""
    import av

    with av.open(str(video)) as container, path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n")
        container.seek(int(seconds * av.time_base))
        for _, frame in zip(range(frames), container.decode(video=0), strict=False):
            planes = frame.reformat(320, 240, "yuv420p").to_ndarray()
            file.write(b"FRAME\n" + planes.tobytes())
    return path
