"""Real processes around one memory folder: one that watches into it, and any number that ask it.

They are told what to do, and say what came of it, in JSON over a pipe, one message each. test_readers.py starts, stops
and kills them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streams import small_config

from vstream.memory.reader import ReadStore
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.sources.base import Source

CLIP_SECONDS = 2  # a frame a second, two frames a clip
SMALL_BYTES = 5 << 19  # about 60 blocks: overflow begins after 100 s of stream
QUESTIONS = ("what is seen?", "and when was it first?")


class EndlessSource(Source):
    """Frames one second apart, as `feature_frames` gives them, for ever."""

    def _pictures(self) -> Iterator[tuple[float, int]]:
        number = 0
        while True:
            yield float(number), number
            number += 1

    def _image(self, picture: int, max_side: int) -> Any:
        return np.random.default_rng((0, picture)).standard_normal((4, 64)).astype(np.float32)


def open_writer(folder: Path, disk_bytes: int = SMALL_BYTES) -> Session:
    """A session that watches the endless source into a folder."""
    source = EndlessSource("endless", max_side=64)
    return Session(RandomLlama(), source, small_config(disk_bytes=disk_bytes, host_bytes=0), folder=folder)


def open_reader(folder: Path) -> Session:
    """A session that asks a folder, with no cache to hide what is gone."""
    return Session(RandomLlama(), None, small_config(host_bytes=0), folder=folder)


def watch_until(session: Session, end_seconds: float) -> float:
    """Watches clip by clip; the time of the newest committed frame."""
    assert session.ingest is not None
    while (session.memory.last_seconds or 0) < end_seconds:
        if not session.step():
            session.ingest.pump(1)
    return session.memory.last_seconds or 0.0


def asked(session: Session, question: str, **keywords: Any) -> dict[str, Any]:
    """An answer as JSON has it, evidence pictures left out."""
    answer = session.ask(question, **keywords)
    while session.step():
        pass
    evidence = [[one.start_seconds, one.end_seconds, one.score, one.level, one.block_id] for one in answer.evidence]
    return {"text": answer.text(0), "snapshot": answer.snapshot_seconds, "evidence": evidence}


def write(folder: str, disk_bytes: int, pipe: Connection) -> None:
    """Watches as told: {"until": seconds of stream} or {"for": seconds}, and says how far it has come."""
    torch.set_num_threads(1)
    session = open_writer(Path(folder), disk_bytes)
    _say(pipe, {"last": session.memory.last_seconds})
    while True:
        told = json.loads(pipe.recv_bytes())
        if "until" in told:
            last = watch_until(session, told["until"])
        deadline = time.monotonic() + told.get("for", 0)
        while time.monotonic() < deadline:
            last = watch_until(session, (session.memory.last_seconds or 0.0) + CLIP_SECONDS)
        moved = dict(session.memory.moved)
        _say(pipe, {"last": last, "moved": moved, "file_bytes": os.stat(Path(folder) / "data.mdb").st_size})


def read(folder: str, pipe: Connection) -> None:
    """Does as told: {"ask": question}, {"for": seconds} of asking, {"hold": true} a snapshot for ever."""
    torch.set_num_threads(1)
    session = open_reader(Path(folder))
    _say(pipe, {"snapshot": session.memory.last_seconds})
    while True:
        told = json.loads(pipe.recv_bytes())
        if "ask" in told:
            _say(pipe, asked(session, told["ask"]))
        elif "hold" in told:
            store = session.memory.store
            assert isinstance(store, ReadStore)
            with store._disk_tier.snapshot():
                _say(pipe, {"commits": store._disk_tier.num_commits})
                time.sleep(600)
        else:
            deadline, number = time.monotonic() + told["for"], 0
            while time.monotonic() < deadline:
                _say(pipe, asked(session, QUESTIONS[number % 2]))
                number += 1
            _say(pipe, {"asked": number})


def read_in_vain(folder: str, pipe: Connection) -> None:
    """Takes a place in LMDB's table of readers; to be killed in it."""
    from vstream.memory.disk import DiskTier

    tier = DiskTier.open_readonly(Path(folder))
    with tier.snapshot():
        _say(pipe, {"commits": tier.num_commits})
        time.sleep(600)


def _say(pipe: Connection, what: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(what).encode())
