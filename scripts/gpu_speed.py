"""How fast models of published sizes watch and answer, and how fast blocks travel; for `gpu_check.py`.

A stream is synthetic, one frame a second. The vision tower is timed apart, once; from then on its features are used
again. Watching is taken in turns with the bare model over a plain `DynamicCache` of the same sink and window, as
`bench_stream.py` does it. Everything ends when its time is over, so a stream may be shorter than an hour: what is said
of an hour is then extrapolated, and named so. It knows nothing of exactness.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench_stream import HOUR, QUESTIONS, Baseline, SyntheticSource, in_turns, median_interval, slope_and_bound, timed
from gpu_shapes import OnTheDevice, Shape, frames, pictures
from torch import Tensor

from vstream.clip_block import make_block
from vstream.config import Config, DecodeOptions
from vstream.engine import Engine
from vstream.memory.block import BlockShape, TokenKind
from vstream.memory.codec import CODECS
from vstream.memory.store import BlockStore
from vstream.models.spans import plain_span
from vstream.presets import preset_settings
from vstream.session import Session

PRESETS = ("default", "full", "last-frames", "rekv")
PICTURES = 16
TAIL_TOKENS = 4096  # question, answer and an open clip beside what an answer's settings say


class Clock:
    """So many seconds, from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when it is over."""
        return max(0.0, self._end - time.perf_counter())


@dataclass(frozen=True)
class Plan:
    """How much is measured of one model.

    Attributes:
        preset_seconds: of the clock, for each preset.
        rounds, round_clips: of watching in turns with the bare model, at most.
        filled_seconds: of stream before that.
        stream_seconds: of stream in all, at most.
        full_seconds: the same where everything is kept, which takes RAM.
        answers, answer_tokens, answer_seconds: for each preset, the last of the clock, at most one answer more.
    """

    preset_seconds: float
    rounds: int
    round_clips: int
    filled_seconds: int
    stream_seconds: int
    full_seconds: int
    answers: int
    answer_tokens: int
    answer_seconds: float


PLAN = Plan(30, 8, 5, 60, HOUR, 600, 4, 48, 8)
TINY_PLAN = Plan(4, 3, 2, 24, 120, 80, 2, 6, 1)


def settled(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """The same work, with the device's part of it done when it returns."""

    def done() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return done


# Models ---------------------------------------------------------------------------------------------------------------


def vision(adapter: OnTheDevice, shape: Shape) -> dict[str, float]:
    """Frames a second of preparing and looking, and a frame's tokens; the vision tower rests from now on."""
    seen = frames(shape, PICTURES)
    with torch.inference_mode():
        took = timed(settled(adapter.device, lambda: adapter.encode(seen)), rounds=3)
        adapter.kept = adapter.encode(seen)
        tokens = len(adapter.layout(seen, adapter.kept))
    return {"vision_frames_per_second": PICTURES / statistics.median(took), "frame_tokens": tokens / PICTURES}


def preset_row(adapter: OnTheDevice, shape: Shape, preset: str, plan: Plan) -> dict[str, Any]:
    """All figures of one preset; its time may be over before the stream is. It is asked at the end."""
    clock, table = Clock(plan.preset_seconds), pictures(shape, PICTURES)
    if adapter.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(adapter.device)
    seconds = plan.full_seconds if preset == "full" else plan.stream_seconds
    config = Config(**settings_of(adapter, preset, seconds))
    engine = Engine(adapter)
    with closing(engine), closing(engine.open(SyntheticSource(table), config=config, start=False)) as session:
        with torch.inference_mode():
            baseline = Baseline(adapter, table, config)
        stream = Stream(session, baseline, plan)
        stream.watch(plan.filled_seconds)
        watching = stream.in_turns_with_the_bare_model(clock)
        stream.watch_on(seconds, clock)
        taken = stream.bytes_row()
        return {"preset": preset, "ok": True, **watching, **answers(session, plan), **taken, **peak(adapter.device)}


def settings_of(adapter: OnTheDevice, preset: str, seconds: int) -> dict[str, Any]:
    """A preset's settings, with room for answers, and for all of a stream where all of it is kept."""
    settings = preset_settings(preset, adapter, {"fps": 1.0})
    token = 2 * adapter.num_layers * adapter.num_kv_heads * adapter.head_dim * adapter.dtype.itemsize
    shown = sum(settings[name] for name in ("window_tokens", "retrieve_tokens", "gist_tokens"))
    settings["answer_bytes"] = max(settings["answer_bytes"], (shown + adapter.max_frame_tokens + TAIL_TOKENS) * token)
    if preset == "full":
        kept = adapter.most_tokens(seconds + 2 * settings["clip_frames"]) * token * 11 // 10
        settings["host_bytes"] = max(settings["host_bytes"], kept)
    return settings


class Stream:
    """One session as it is watched, and what it takes on the device by stream time."""

    def __init__(self, session: Session, baseline: Baseline, plan: Plan) -> None:
        self._session, self._baseline, self._plan = session, baseline, plan
        self._frames = session.config.clip_frames
        self._device = session.adapter.device
        self._taken: list[tuple[float, int]] = []  # hours of stream, bytes on the device
        self.seconds = 0  # of stream

    def watch(self, seconds: int) -> None:
        """So many more frames, one a second, in whole clips."""
        assert self._session.ingest is not None
        for _ in range(seconds // self._frames):
            self._session.ingest.pump(self._frames)
            while self._session.step():
                pass
        self.seconds = self._session.status().frames.encoded
        self._taken.append((self.seconds / HOUR, device_bytes(self._session)))

    def in_turns_with_the_bare_model(self, clock: Clock) -> dict[str, Any]:
        """Frames a second, ours and the bare model's; the overhead, with its 95 % interval, in percent."""
        clips = self._plan.round_clips
        ours = settled(self._device, lambda: self.watch(clips * self._frames))
        bare = settled(self._device, lambda: self._baseline.watch(clips))
        with torch.inference_mode():
            self._baseline.watch(self._plan.filled_seconds // self._frames)
            round_seconds = timed(ours, 1, 0)[0] + timed(bare, 1, 0)[0]
            rounds = max(2, min(self._plan.rounds, int(clock.left / 3 / round_seconds)))
            mine, theirs = in_turns(ours, bare, rounds)
        over, low, high = median_interval((mine / theirs - 1) * 100)
        return {
            "frames_per_second": clips * self._frames / float(np.median(mine)),
            "bare_frames_per_second": clips * self._frames / float(np.median(theirs)),
            "overhead_percent": over, "overhead_low": low, "overhead_high": high,
        }  # fmt: skip

    def watch_on(self, seconds: int, clock: Clock) -> None:
        """To so many seconds of stream, or until only the time of the answers is left."""
        while self.seconds < seconds and clock.left > self._plan.answer_seconds:
            self.watch(min(10 * self._frames, max(self._frames, seconds - self.seconds)))

    def bytes_row(self) -> dict[str, Any]:
        """Bytes on device and host; what the device's would be at an hour, by their growth over the last half."""
        half = np.array(self._taken[len(self._taken) // 2 :])
        growth = slope_and_bound(half[:, 0], half[:, 1])[0] if len(half) > 2 else 0.0
        hours, taken = self._taken[-1]
        memory = self._session.status().memory
        return {
            "stream_seconds": self.seconds, "device_bytes": taken, "reported_device_bytes": memory.device_bytes,
            "host_bytes": memory.host_bytes, "host_budget_bytes": self._session.config.host_bytes,
            "device_bytes_at_an_hour": round(taken + growth * max(0.0, 1 - hours)), "extrapolated": hours < 1,
        }  # fmt: skip


def device_bytes(session: Session) -> int:
    """What the allocator of a GPU holds, weights included; elsewhere what the session reports."""
    device = session.adapter.device
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return session.status().memory.device_bytes


def peak(device: torch.device) -> dict[str, int]:
    """The most that the allocator of a GPU has held, answers included."""
    return {"device_peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def answers(session: Session, plan: Plan) -> dict[str, Any]:
    """Time to the first token and tokens a second: medians over questions, the first of which warms up."""
    found, clock = [], Clock(plan.answer_seconds)
    for number in range(plan.answers + 1):
        if number > 1 and not clock.left:
            break
        options = DecodeOptions(max_tokens=plan.answer_tokens)
        answer = session.ask(QUESTIONS[number % len(QUESTIONS)], at="now", options=options)
        while not answer.done:
            session.step()
        if answer.error is not None:
            raise answer.error
        found.append((answer.ttft_seconds, answer.tokens_per_second))
    ttft, speed = (statistics.median(column) for column in zip(*found[1:], strict=True))  # type: ignore[type-var]
    return {"ttft_seconds": ttft, "tokens_per_second": speed, "answers": len(found) - 1}


# Blocks ---------------------------------------------------------------------------------------------------------------


def transfer_row(shape: BlockShape, device: torch.device, *, tokens: int, blocks: int, codec: str) -> dict[str, Any]:
    """Bytes of keys and values a second: committed to the host, and gathered from it.

    Args:
        shape: of the blocks.
        device: where they come from and go to.
        tokens, blocks: of a block, and how many of them.
        codec: how they are stored.
    """
    size = (shape.num_layers, 2, shape.num_kv_heads, tokens, shape.head_dim)
    kv = torch.randn(size, device=device, dtype=torch.float32).to(shape.dtype)
    store = BlockStore(
        shape, device=device, device_bytes=0, host_bytes=(blocks + 1) * 2 * kv.nbytes + (1 << 20), disk_bytes=0,
        identity={"model": "none"}, max_block_tokens=tokens,
    )  # fmt: skip
    span = plain_span(torch.zeros(tokens, 1), TokenKind.VISION)
    with closing(store):
        made = [
            make_block(n, span, kv, torch.zeros(1, dtype=torch.int64), None, None, None, codec) for n in range(blocks)
        ]
        commit = [timed(settled(device, lambda one=one: store.commit([one], [], b"{}")), 1, 0)[0] for one in made]
        gather = timed(settled(device, lambda: store.gather(list(range(blocks)))), 3)
    to_host, to_device = (kv.nbytes / min(commit), blocks * kv.nbytes / min(gather))
    return {"codec": codec, "block_bytes": kv.nbytes, "to_host_bytes_per_second": to_host,
            "to_device_bytes_per_second": to_device}  # fmt: skip


def copy_ceiling(num_bytes: int, device: torch.device) -> dict[str, float]:
    """Bytes a second of one plain copy between the device and pinned memory, each way; of pageable memory on a CPU."""
    host = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def best(into: Tensor, source: Tensor) -> float:
        return num_bytes / min(timed(settled(device, lambda: into.copy_(source, non_blocking=True)), 10))

    return {"to_host_bytes_per_second": best(host, there), "to_device_bytes_per_second": best(there, host)}


def transfer(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Every codec's rates, and what one copy reaches; blocks are a clip of a 7B model, or a few tokens."""
    layers, heads, dim, tokens, blocks = (2, 2, 16, 64, 4) if tiny else (28, 4, 128, 800, 16)
    shape = BlockShape(layers, heads, dim, torch.bfloat16)
    rows = [transfer_row(shape, device, tokens=tokens, blocks=blocks, codec=codec) for codec in CODECS]
    return {"ok": True, "blocks": rows, "copy": copy_ceiling(rows[0]["block_bytes"], device)}
