#!/usr/bin/env python3
"""Measures what HTTP adds to an answer, and what live views cost those who ask; the last line is JSON.

The sample is watched to its end, then the same questions are asked of the same stream in turns: by `Stream.ask` in the
process, and as a client of the server does, over a socket, with server-sent events, through the gate. The floor is the
first: the same model work without HTTP. A third turn has eight live views of a synthetic camera open meanwhile, which
is watched in all three. Ratios are per round; median, and its 95 % interval by bootstrap. About two minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vstream.app.serve.allowed import SourcePolicy
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import Library
from vstream.app.serve.options import ServeOptions
from vstream.app.serve.page.routes import router as page_routes
from vstream.app.serve.server import build_app
from vstream.app.serve.serving import listen, make_server
from vstream.app.serve.stopping import Stopping
from vstream.app.serve.stream import Stream

QUESTIONS = ("What animal is shown?", "Was there a cat?", "What is shown now?", "What plant is shown?")
CAMERA = "lavfi:testsrc2=size=640x360:rate=10,realtime"
VIEWS = 8


@dataclass(frozen=True)
class Timed:
    """One answer as its asker saw it: seconds to its first text, and to its end."""

    first_seconds: float
    all_seconds: float


def ask_directly(stream: Stream, question: str) -> Timed:
    """In the process."""
    began, first = time.perf_counter(), None
    for _ in stream.ask(question, at="end").answer:
        first = first or time.perf_counter() - began
    return Timed(first or 0.0, time.perf_counter() - began)


def ask_by_http(client: httpx.Client, stream_id: str, question: str) -> Timed:
    """As a program far away does."""
    began, first = time.perf_counter(), None
    body = {"question": question, "at": "end", "stream": True}
    with client.stream("POST", f"/v1/streams/{stream_id}/ask", json=body) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if first is None and line.startswith("event: token"):
                first = time.perf_counter() - began
    return Timed(first or 0.0, time.perf_counter() - began)


@contextmanager
def looked_at(url: str, stream_id: str) -> Iterator[None]:
    """While live views are open."""
    over = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=url) as client, client.stream("GET", f"/v1/streams/{stream_id}/live.mjpg") as reply:
            for _ in reply.iter_bytes(1 << 14):
                if over.is_set():
                    return

    threads = [threading.Thread(target=look, daemon=True) for _ in range(VIEWS)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    yield
    over.set()
    for thread in threads:
        thread.join()


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval."""
    drawn = np.random.default_rng(0).choice(np.array(values), (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return statistics.median(values), float(low), float(high)


def measure(stream: Stream, camera: Stream, url: str, rounds: int) -> dict[str, list[Timed]]:
    """Every way in turns, the order turned round each time."""
    client = httpx.Client(base_url=url, timeout=120)
    ways: dict[str, Callable[[str], Timed]] = {
        "direct": lambda question: ask_directly(stream, question),
        "http": lambda question: ask_by_http(client, stream.id, question),
        "http, 8 live views": lambda question: _while_looked_at(client, url, stream, camera, question),
    }
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            timed = ways[name](QUESTIONS[number % len(QUESTIONS)])
            if number:  # the first round warms up
                found[name].append(timed)
    return found


def _while_looked_at(client: httpx.Client, url: str, stream: Stream, camera: Stream, question: str) -> Timed:
    with looked_at(url, camera.id):
        return ask_by_http(client, stream.id, question)


def report(found: dict[str, list[Timed]]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds, and ratios to the first way of the same round."""
    figures: dict[str, dict[str, list[float]]] = {}
    for name, timed in found.items():
        figures[name] = {}
        for part in ("first_seconds", "all_seconds"):
            own = [asdict(one)[part] for one in timed]
            base = [asdict(one)[part] for one in found["direct"]]
            figures[name][part.replace("seconds", "ms")] = [1000 * one for one in interval(own)]
            figures[name][part.replace("seconds", "ratio")] = list(
                interval([a / b for a, b in zip(own, base, strict=True)])
            )
    return figures


def show(figures: dict[str, dict[str, list[float]]]) -> None:
    """As a table on stderr."""
    table = Table("asked", "first text, ms", "ratio", "whole answer, ms", "ratio")
    for name, one in figures.items():
        cells = [one["first_ms"], one["first_ratio"], one["all_ms"], one["all_ratio"]]
        table.add_row(name, *(f"{value:.4g} ({low:.4g} to {high:.4g})" for value, low, high in cells))
    Console(stderr=True).print(table)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        policy = SourcePolicy([])
        library = Library(Path(folder) / "streams")
        hub = Hub(lambda source, max_side: policy.open(source, max_side=max_side), library, models=(arguments.model,))
        app = build_app(hub, policy=policy)
        app.state.stopping = Stopping()
        app.include_router(page_routes(hub))
        listener = listen(ServeOptions(port=0, questions_per_minute=100_000, requests_per_second=100_000), {})
        server = make_server(app, listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.socket]}, daemon=True)
        thread.start()
        stream, camera = hub.open("sample"), hub.open(CAMERA, fps=0.5)
        stream.ask("What is shown?", at="end").answer.wait()
        figures = report(measure(stream, camera, listener.url, arguments.rounds))
        server.should_exit = True
        thread.join()
        hub.close()
    show(figures)
    print(json.dumps({"model": arguments.model, "rounds": arguments.rounds, **figures}))


if __name__ == "__main__":
    sys.exit(main())
