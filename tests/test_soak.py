"""Everything at once against the real server: in ten minutes its anonymous memory must not grow.

Two streams, one pushed by WebSocket, one a synthetic camera; questions without pause, of which every third is left in
the middle; live views that come and go; frames, memory maps and metrics. Before come ten more, in
which what is bounded fills: budgets, conversations, pools. `VSTREAM_SOAK_SECONDS` says how long each is.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
PIL_Image = pytest.importorskip("PIL.Image")

SOAK_SECONDS = float(os.environ.get("VSTREAM_SOAK_SECONDS", "600"))
MAX_MB_PER_MINUTE = 0.4
CAMERA = "lavfi:testsrc2=size=320x240:rate=10,realtime"

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(2 * SOAK_SECONDS + 120)]


def anonymous_mb(pid: int) -> float:
    """Anonymous resident memory of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as counts:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in counts if line.startswith("Anonymous:"))


def slope_and_bounds(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Least-squares slope and its 95 % interval, from batches, since samples that are neighbours are alike."""
    halves = [np.polyfit(x[i::4], y[i::4], 1)[0] for i in range(4)]
    slope = float(np.polyfit(x, y, 1)[0])
    error = float(np.std(halves, ddof=1))
    return slope, slope - 2 * error, slope + 2 * error


@pytest.fixture
def server(tmp_path: Path):
    command = [sys.executable, "-c", "import sys; from vstream.app.cli import main; sys.exit(main())", "serve"]
    command += ["--port", "0", "--memories", str(tmp_path), "--model", "tiny"]
    command += ["--host-mib", "2", "--disk-mib", "8", "--threads", "1", "--questions-per-minute", "100000"]
    command += ["--requests-per-second", "10000"]
    with (tmp_path / "stderr.txt").open("w+") as told:
        process = subprocess.Popen(command, stderr=told)
        try:
            url, until = None, time.monotonic() + 60
            while url is None and time.monotonic() < until and process.poll() is None:
                time.sleep(0.2)
                found = re.search(r"vstream serves (\S+)", (tmp_path / "stderr.txt").read_text())
                url = found and found[1]
            assert url, (tmp_path / "stderr.txt").read_text()
            yield process, url
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def connections():
    with contextlib.ExitStack() as stack:
        yield stack


class Load:
    """Threads that do one thing again and again until it ends; the first error of any is kept."""

    def __init__(self) -> None:
        self.over, self.errors, self.counts = threading.Event(), [], {}
        self._threads: list[threading.Thread] = []

    def run(self, work: Callable[[int], None], every_seconds: float) -> None:
        self.counts[work.__name__] = 0

        def again() -> None:
            try:
                for number in itertools.count():
                    work(number)
                    self.counts[work.__name__] += 1
                    if self.over.wait(every_seconds):
                        return
            except Exception as error:
                self.errors.append(error)
                self.over.set()

        self._threads.append(threading.Thread(target=again, daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.errors, self.errors


def test_memory_stays_flat_under_load(server, connections: contextlib.ExitStack) -> None:
    from websockets.sync.client import connect

    process, url = server
    http = httpx.Client(base_url=url, timeout=60)

    def opened(**body) -> str:
        reply = http.post("/v1/streams", json=body)
        assert reply.status_code == 201, reply.text
        return reply.json()["id"]

    pushed, camera = opened(source="push"), opened(source=CAMERA)
    socket = connections.enter_context(connect(f"{url.replace('http', 'ws', 1)}/v1/streams/{pushed}/push"))

    def push(number: int) -> None:
        picture = io.BytesIO()
        shade = np.full((240, 320, 3), number * 7 % 255, np.uint8)
        PIL_Image.fromarray(shade).save(picture, "JPEG")
        socket.send(picture.getvalue())
        with contextlib.suppress(TimeoutError):  # what the server tells must be read, or pongs are not seen either
            while True:
                socket.recv(timeout=0)

    def ask(number: int) -> None:
        stream = (pushed, camera)[number % 2]
        body = {"question": "what is there now?", "stream": True, "max_tokens": 24}
        with http.stream("POST", f"/v1/streams/{stream}/ask", json=body) as reply:
            assert reply.status_code == 200, reply.read()
            for count, _ in enumerate(reply.iter_lines()):
                if number % 3 == 0 and count > 3:
                    return  # gone, in the middle of an answer

    def look_on(number: int) -> None:
        with http.stream("GET", f"/v1/streams/{camera}/live.mjpg") as reply:
            assert reply.status_code == 200
            for count, _ in enumerate(reply.iter_bytes(1 << 14)):
                if count > 20:
                    return

    def look_around(number: int) -> None:
        paths = ["/v1/streams", f"/v1/streams/{camera}", f"/v1/streams/{camera}/memory", "/metrics", "/v1/models"]
        for path in [*paths, f"/v1/streams/{camera}/turns", f"/v1/streams/{camera}/frames/{number}.jpg"]:
            assert http.get(path).status_code in (200, 404), path

    time.sleep(8)  # the first clips
    load = Load()
    load.run(push, 0.25)
    load.run(ask, 0.5)
    load.run(look_on, 1.0)
    load.run(look_around, 1.0)
    began, samples = time.monotonic(), []
    while not load.over.wait(2.0) and time.monotonic() - began < 2 * SOAK_SECONDS:
        samples.append((time.monotonic() - began, anonymous_mb(process.pid)))
    load.end()
    warm = np.array([one for one in samples if one[0] > SOAK_SECONDS])
    slope, low, high = slope_and_bounds(warm[:, 0] / 60, warm[:, 1])
    minutes = [mb for seconds, mb in samples if seconds % 60 < 2.1]
    print("each minute: " + " ".join(f"{mb:.1f}" for mb in minutes))
    print(f"{samples[0][1]:.1f} MB at first, {warm[0, 1]:.1f} MB warm, {warm[-1, 1]:.1f} MB at the end; {load.counts}")
    print(f"{slope:.2f} MB a minute ({low:.2f} to {high:.2f})")
    assert min(load.counts.values()) > SOAK_SECONDS / 20
    assert slope < MAX_MB_PER_MINUTE
