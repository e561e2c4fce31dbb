#!/usr/bin/env python3
"""Measures what watching and answering cost, on the embedded model and on a tiny random one; the last line is JSON.

Streams are synthetic: one frame a second, its features given (class embeddings for the embedded model), made one at a
time. Vision is timed once, apart. Full mode takes 1 minute to 24 hours of stream with the random model, up to 1 hour
with the embedded one (24 hours of it would take an hour of computing), about 10 minutes in all; `--quick` takes 1 and 5
minutes of stream, and under a minute. The machine may be shared, so whatever is compared is run in turns (A B B A ..)
on the same threads, as a ratio per round: median, and its 95 % interval by bootstrap.

The baselines do the same model work, and nothing else:

- watching: a transformers `DynamicCache` with the same sink and window, fed the same clips and trimmed by
  concatenation. It makes no blocks, keeps no memory, never un-rotates or rebases a key, has no queue and no questions:
  when positions run out it starts over with them, which costs nothing and would spoil its answers.
- answering: transformers' loop over a `DynamicCache` that holds every token of the stream. Its keys and values are
  random: decoding takes as long whatever they are, and prefilling an hour would take many minutes.

"Floor" is what the hardware allows: the time of the model's matrix products alone (no attention, norms or Python), or
what follows from the settings. This script knows nothing of how the package works inside, but for `memory.retriever`,
which it wraps to time the selection.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vstream.config import MIB, Config, DecodeOptions
from vstream.engine import Engine
from vstream.memory.block import Tier
from vstream.models.base import Adapter
from vstream.models.embedded.adapter import EmbeddedAdapter, embedded_dir
from vstream.models.embedded.naming import Named
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.sources.base import Source
from vstream.types import Frame

MINUTE, HOUR = 60, 3600
FILLED = MINUTE  # seconds of stream that fill window and retrieval with the settings of both models
FOR_EVER = 10**7  # frames that a source could give
SCENES, SCENE_FRAMES = 1000, 7
PICTURE = (252, 448, 3)
QUESTIONS = (
    "What was shown before the cat?", "Was there a cup of coffee?", "Which animal was seen first?",
    "What is on the table now?", "When did the rocket start?", "How many people were there?",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is measured, for one model.

    Attributes:
        lengths: of stream, in seconds, rising; the first fills window and retrieval.
        rounds, round_clips: of watching in turns with the baseline, at most, up to each length.
        questions: for each percentile.
        answers, answer_tokens: of decoding in turns with a full cache of each length up to an hour.
        lag_seconds, lag_fps, lag_questions: of the paced stream.
        host_mib: budget of the memory; small enough to be full for the last half of the longest stream.
        disk_mib: budget on disk, 0 for none.
    """

    lengths: tuple[int, ...]
    rounds: int
    round_clips: int
    questions: int
    answers: int
    answer_tokens: int
    lag_seconds: float
    lag_fps: float
    lag_questions: int
    host_mib: int
    disk_mib: int = 0


PLANS = {
    ("random", False): Plan((MINUTE, HOUR, 24 * HOUR), 30, 20, 40, 10, 64, 60, 1, 20, 256),
    ("embedded", False): Plan((MINUTE, 10 * MINUTE, HOUR), 20, 4, 20, 5, 24, 60, 1, 20, 256),
    ("random", True): Plan((MINUTE, 5 * MINUTE), 10, 5, 8, 4, 24, 2, 8, 8, 4),
    ("embedded", True): Plan((MINUTE, 5 * MINUTE), 6, 2, 8, 2, 6, 5, 4, 4, 64),
}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        model, stream: what was run, and how much of it had been seen.
        name, unit, value: what was measured.
        low, high: 95 % interval, where there is one.
        floor: what is physically possible, in the same unit.
        at_most, at_least: the aim, if there is one for this length.
    """

    model: str
    stream: str
    name: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


# Streams and models ---------------------------------------------------------------------------------------------------


class SyntheticSource(Source):
    """Endless scenes of a few frames, whose pictures are features [P, E] from a table [S, P, E], or real ones.

    Real ones [S, H, W, 3] are of uint8.
    """

    def __init__(self, table: Tensor, fps: float = 1.0, frames: int = FOR_EVER) -> None:
        """So many frames at this rate."""
        super().__init__("synthetic", max_side=64)
        table = table if table.dtype == torch.uint8 else table.float()
        self._table, self._fps, self._frames_in_all = table.cpu().numpy(), fps, frames

    def _pictures(self) -> Iterator[tuple[float, int]]:
        for index in range(self._frames_in_all):
            if self._interrupted.is_set():
                return
            yield index / self._fps, index

    def image(self, number: int) -> Any:
        """Features [P, E] of a frame, or its picture [H, W, 3]."""
        return self._table[number // SCENE_FRAMES * 37 % len(self._table)]

    def _image(self, picture: int, max_side: int) -> Any:
        return self.image(picture)


class FeatureAdapter(EmbeddedAdapter):
    """The embedded model without its eyes: frames are features [7, E] already."""

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """The features as they are, [T, 7, E]."""
        features = torch.stack([torch.from_numpy(frame.image) for frame in frames])
        return features.to(self.device, self.dtype)


def load(model: str) -> tuple[Adapter, Tensor]:
    """A model that never stops by itself, and its table of features [S, P, E]."""
    adapter: RandomLlama | FeatureAdapter
    if model == "random":
        adapter = RandomLlama()
        table = torch.randn(SCENES, adapter.tokens_per_frame, adapter.config.hidden_size)
    else:
        adapter = FeatureAdapter(embedded_dir())
        table = adapter.features_of([Named(row) for row in adapter.names.rows])
    adapter.eos_ids = frozenset()
    return adapter, table


class Baseline:
    """The bare model with a plain `DynamicCache` of the same sink and window; see the top of this file.

    Attributes:
        next_frame: number of the frame that it sees next.
    """

    def __init__(self, adapter: Adapter, table: Tensor, config: Config) -> None:
        """Runs the sink."""
        self._adapter, self._config = adapter, config
        self._source = SyntheticSource(table)
        self.next_frame = 0
        self._cache = DynamicCache(config=adapter.config)
        self._clips: list[int] = []  # tokens of the clips in the window
        self._sink_tokens = self._position = len(adapter.sink())
        adapter.forward(adapter.sink().embeds, adapter.sink().positions, self._cache)

    def watch(self, clips: int) -> None:
        """Runs so many clips through the model."""
        for _ in range(clips):
            numbers = range(self.next_frame, self.next_frame + self._config.clip_frames)
            frames = [Frame(float(number), self._source.image(number)) for number in numbers]
            self.next_frame = numbers.stop
            span = self._adapter.layout(frames, self._adapter.encode(frames))
            if self._position + len(span) > self._adapter.max_positions:
                self._position = self._sink_tokens
            self._adapter.forward(span.embeds, self._position + span.positions, self._cache)
            self._position += len(span)
            self._trim(len(span))

    @property
    def num_tokens(self) -> int:
        """Tokens in its cache."""
        return int(self._cache.get_seq_length())

    def keys(self, layer: int) -> Tensor:
        """A layer's keys [1, K, N, D], where they were encoded."""
        found: Tensor = self._cache.layers[layer].keys
        return found

    def _trim(self, new_tokens: int) -> None:
        """Lets the oldest clips go until the window fits."""
        self._clips.append(new_tokens)
        excess = 0
        while sum(self._clips) > self._config.window_tokens:
            excess += self._clips.pop(0)
        for layer in self._cache.layers if excess else ():
            keep = (layer.keys, layer.values)
            layer.keys, layer.values = (_without(part, self._sink_tokens, excess) for part in keep)


def _without(part: Tensor, start: int, count: int) -> Tensor:
    """[1, K, N, D] less some tokens."""
    return torch.cat([part[:, :, :start], part[:, :, start + count :]], dim=2)


class TimedRetriever:
    """A session's retriever, with the time that `select` takes for one question; all else is as it was.

    Attributes:
        seconds: spent in `select` since it was last set to 0.
    """

    def __init__(self, session: Session) -> None:
        """Takes the place of the session's retriever."""
        self._retriever = session.memory.retriever
        self.seconds = 0.0
        session.memory.retriever = self  # type: ignore[assignment]

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """The retriever's, timed."""
        start = time.perf_counter()
        selection = self._retriever.select(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return selection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)


# Measuring ------------------------------------------------------------------------------------------------------------


class Bench:
    """One model's figures, in the order in which they are taken."""

    def __init__(self, model: str, plan: Plan, seed: int) -> None:
        """Loads the model and opens two streams of it: one stays as long as it needs to fill, one grows."""
        torch.manual_seed(seed)
        self.model, self.plan, self.figures = model, plan, list[Figure]()
        self.adapter, self._table = load(model)
        self._engine = Engine(self.adapter)
        self._short, self._long = self._open(), self._open()
        self._timers = {session: TimedRetriever(session) for session in (self._short, self._long)}
        with torch.inference_mode():
            self._baseline = Baseline(self.adapter, self._table, self._long.config)
            self._baseline.watch(FILLED // self._long.config.clip_frames)
        self._seen = 0  # seconds of the long stream
        self._products: dict[tuple[int, bool], float] = {}  # seconds
        self._memory_at: list[tuple[float, float]] = []  # hours of it, anonymous MB

    def run(self) -> None:
        """Everything, shortest stream first."""
        self._vision()
        self._watch(self._short, FILLED)
        for length in self.plan.lengths:
            self._watch_up_to(length)
            self._tier_bytes()
            if length > FILLED:
                self._ttft()
            print(f"{self.model}: {span_text(length)} of stream watched", file=sys.stderr)
        self._memory_slope()
        for length in self.plan.lengths:
            if length <= HOUR:
                self._against_full_cache(length)
        self._lag()
        self._engine.close()

    def _add(self, name: str, unit: str, *values: float, seconds: float | None = None, **more: Any) -> None:
        """A figure: value, low and high, at so many seconds of stream (unless given, what the long one has seen)."""
        stream = span_text(self._seen if seconds is None else seconds)
        self.figures.append(Figure(self.model, stream, name, unit, *values, **more))

    def _open(self) -> Session:
        settings = {**self.adapter.settings, "host_bytes": self.plan.host_mib * MIB}
        config = Config(**settings, disk_bytes=self.plan.disk_mib * MIB)
        return self._engine.open(SyntheticSource(self._table), config=config, start=False)

    def _watch(self, session: Session, seconds: int) -> None:
        """So many more frames, one a second."""
        assert session.ingest is not None
        for _ in range(seconds // session.config.clip_frames):
            session.ingest.pump(session.config.clip_frames)
            while session.step():
                pass

    def _grow(self, length: int) -> None:
        """Watches the long stream up to a length, and how much memory the process takes."""
        while self._seen < length:
            step = max(self._long.config.clip_frames, self.plan.lengths[-1] // 400)
            self._watch(self._long, min(step, length - self._seen))
            self._seen = self._long.status().frames.encoded  # one a second
            self._memory_at.append((self._seen / HOUR, anonymous_mb()))

    def _vision(self) -> None:
        if not isinstance(self.adapter, FeatureAdapter):
            return
        rng = np.random.default_rng(0)
        frames = [Frame(float(i), rng.integers(0, 255, PICTURE, dtype=np.uint8)) for i in range(4)]
        with torch.inference_mode():
            times = timed(lambda: EmbeddedAdapter.encode(self.adapter, frames), rounds=3)  # type: ignore[arg-type]
        self._add("vision, apart", "ms/frame", statistics.median(times) / len(frames) * 1e3)

    def _watch_up_to(self, length: int) -> None:
        """Watches up to a length, the last of it in turns with the baseline, whose window is full."""
        frames = self._long.config.clip_frames
        rounds = min(self.plan.rounds, (length - self._seen) // frames - 1)
        clips = min(self.plan.round_clips, (length - self._seen) // frames // (rounds + 1))
        self._grow(length - (rounds + 1) * clips * frames)
        self._baseline.next_frame = self._seen  # the very same frames

        def ours() -> None:
            self._watch(self._long, clips * frames)

        def bare() -> None:
            with torch.inference_mode():
                self._baseline.watch(clips)

        mine, theirs = in_turns(ours, bare, rounds)
        self._seen = self._long.status().frames.encoded
        floor = frames / self._matmul_seconds(round(self._frame_tokens() * frames), head=False)
        self._add("watching", "frames/s", *median_interval(clips * frames / mine), floor=floor)
        over = median_interval((mine / theirs - 1) * 100)
        self._add("overhead over the bare model", "%", *over, floor=0.0, at_most=10.0)

    def _frame_tokens(self) -> float:
        """Tokens of a frame, in the window."""
        metas = [placed.meta for placed in self._long.memory.cache.window]
        return sum(meta.num_tokens for meta in metas) / sum(meta.weight for meta in metas)

    def _ttft(self) -> None:
        """Questions to the long stream in turns with the one that is just long enough."""
        found: dict[Session, list[tuple[float, float]]] = {self._short: [], self._long: []}
        for session in found:
            self._ask(session, 0)  # warms up
        gc.collect()
        for number in range(self.plan.questions):
            for session, times in found.items():
                times.append(self._ask(session, number))
        ttft, selection = (np.array(column) * 1e3 for column in zip(*found[self._long], strict=True))
        floor = self._matmul_seconds(len(self.adapter.question(QUESTIONS[0]).span), head=True) * 1e3
        self._add("time to first token, p50", "ms", *median_interval(ttft), floor=floor)
        self._add("time to first token, p99", "ms", float(np.percentile(ttft, 99)), floor=floor)
        self._add("of it selection, p50", "ms", *median_interval(selection))
        ratio = ttft / (np.array(found[self._short])[:, 0] * 1e3)
        self._add("time to first token / just filled", "x", *median_interval(ratio), floor=1.0, at_most=1.2)

    def _ask(self, session: Session, number: int) -> tuple[float, float]:
        """Time to the first token and, of it, to select, in seconds."""
        timer = self._timers[session]
        timer.seconds = 0.0
        text, options = QUESTIONS[number % len(QUESTIONS)], DecodeOptions(max_tokens=2)
        answer = session.ask(text, at="now", options=options)
        while not answer.done:
            session.step()
        assert answer.ttft_seconds is not None, f"no answer to {text!r}: {answer.error}"
        return answer.ttft_seconds, timer.seconds

    def _tier_bytes(self) -> None:
        found = self._long.memory.store.tier_bytes()
        for tier in Tier:
            budget = self._long.memory.store.budgets[tier] / 1e6
            self._add(f"memory on {tier.name.lower()}", "MB", found[tier] / 1e6, at_most=budget or None)
        self._add("memory per hour of stream", "MB/h", sum(found.values()) / 1e6 / (self._seen / HOUR))

    def _memory_slope(self) -> None:
        """How the process grows over the last half of the long stream, by least squares."""
        hours, found = (np.array(column) for column in zip(*self._memory_at, strict=True))
        late = hours >= hours[-1] / 2
        slope, upper = slope_and_bound(hours[late], found[late])
        self._add("anonymous memory of the process", "MB", float(found[-1]))
        aim = 1.0 if self._seen >= HOUR else None  # less is all noise, scaled up
        self._add("its growth, upper 95 % bound", "MB/h", upper, slope, upper, at_most=aim)

    def _against_full_cache(self, length: int) -> None:
        """Decoding at the end of the long stream, in turns with transformers over all tokens of a stream."""
        tokens = round(self._frame_tokens() * length)
        count = max(4, self.plan.answer_tokens * 4000 // max(tokens, 4000))  # long ones are slow, and steady
        with torch.inference_mode():
            full = full_cache(self.adapter, tokens)
            turns = [
                (self._decode_speed(), full_cache_speed(self.adapter, full, tokens, count))
                for _ in range(self.plan.answers)
            ]
        mine, theirs = (np.array(column) for column in zip(*turns, strict=True))
        floor = 1 / self._matmul_seconds(1, head=True)
        self._add("answering, ours", "tokens/s", *median_interval(mine), seconds=length, floor=floor)
        self._add("answering, full cache", "tokens/s", *median_interval(theirs), seconds=length, floor=floor)
        aim = {MINUTE: 1.0, HOUR: 5.0}.get(length)
        self._add("answering, ours / full cache", "x", *median_interval(mine / theirs), seconds=length, at_least=aim)

    def _decode_speed(self) -> float:
        answer = self._long.ask(QUESTIONS[0], at="now", options=DecodeOptions(max_tokens=self.plan.answer_tokens))
        while not answer.done:
            self._long.step()
        assert answer.tokens_per_second, f"{answer} was not decoded"
        return answer.tokens_per_second

    def _lag(self) -> None:
        """A stream at its own pace, read and served by threads, with questions all along."""
        plan, settings = self.plan, self.adapter.settings
        config = Config(**settings, fps=plan.lag_fps, realtime=True, queue_policy="drop-oldest", host_bytes=64 * MIB)
        source = SyntheticSource(self._table, plan.lag_fps, frames=int(plan.lag_seconds * plan.lag_fps) + 1)
        session = self._engine.open(source, config=config)
        lags, answers, start = list[float](), [], time.perf_counter()
        while (now := time.perf_counter() - start) < plan.lag_seconds:
            if now >= (len(answers) + 0.5) * plan.lag_seconds / plan.lag_questions:
                text = QUESTIONS[len(answers) % len(QUESTIONS)]
                answers.append(session.ask(text, at="now", options=DecodeOptions(max_tokens=16)))
            lags.append(session.lag_seconds)
            time.sleep(0.02)
        for answer in answers:
            answer.text(timeout_seconds=60)
        seconds, wait = plan.lag_seconds, config.clip_frames / plan.lag_fps  # until a clip is full, whatever follows
        for part, value in (("p50", np.percentile(lags, 50)), ("p99", np.percentile(lags, 99)), ("max", max(lags))):
            name = f"lag under questions, {part}"
            self._add(name, "s", float(value), seconds=seconds, floor=wait, at_most=2 * wait)
        ttft = [answer.ttft_seconds for answer in answers]
        self._add("time to first token under way, p50", "ms", float(np.median(ttft)) * 1e3, seconds=seconds)
        dropped = float(session.status().frames.dropped)
        self._add("frames dropped", "", dropped, seconds=seconds, floor=0.0, at_most=0.0)
        session.close()

    def _matmul_seconds(self, rows: int, *, head: bool) -> float:
        """Time of the decoder's matrix products for so many tokens; with the head's for one. Measured once."""
        if (rows, head) in self._products:
            return self._products[rows, head]
        layers = [m for m in self.adapter.decoder.modules() if isinstance(m, torch.nn.Linear)]
        inputs = {layer.in_features: torch.randn(rows, layer.in_features, dtype=self.adapter.dtype) for layer in layers}

        def once() -> None:
            for layer in layers:
                layer(inputs[layer.in_features])
            if head:
                self.adapter.head(inputs[self.adapter.config.hidden_size][:1])

        with torch.inference_mode():
            self._products[rows, head] = min(timed(once, rounds=8))
        return self._products[rows, head]


def full_cache(adapter: Adapter, tokens: int) -> Any:
    """A transformers cache that holds so many tokens, random ones."""
    cache = DynamicCache(config=adapter.config)
    size = (1, adapter.num_kv_heads, tokens, adapter.head_dim)
    for layer in range(adapter.num_layers):
        keys, values = (torch.randn(size, dtype=adapter.dtype, device=adapter.device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def full_cache_speed(adapter: Adapter, cache: Any, tokens: int, count: int) -> float:
    """Tokens per second of greedy decoding; the cache is left as it was."""
    token, took = torch.zeros(1, dtype=torch.int64), 0.0
    for index in range(count + 1):
        start = time.perf_counter()
        position = torch.full((adapter.num_axes, 1), (tokens + index) % adapter.max_positions)
        hidden = adapter.forward(adapter.embed(token), position, cache)
        token = adapter.head(hidden[-1]).argmax()[None]
        took += (time.perf_counter() - start) * (index > 0)  # the first one warms up
    cache.crop(-(count + 1))
    return count / took


def timed(work: Callable[[], object], rounds: int, warmup: int = 1) -> list[float]:
    """Seconds of each round, after some to warm up."""
    found = []
    for _ in range(rounds + warmup):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found[warmup:]


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[Any, Any]:
    """Seconds of both, [rounds] each, taken in turns (A B B A ..) after one round of each to warm up."""
    first()
    second()
    gc.collect()
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for which in (0, 1) if index % 2 else (1, 0):
            times[which].extend(timed((first, second)[which], rounds=1, warmup=0))
    return np.array(times[0]), np.array(times[1])


def median_interval(values: Any, samples: int = 2000) -> tuple[float, float, float]:
    """Median, and its 95 % interval by bootstrap."""
    values = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).choice(values, (samples, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def slope_and_bound(x: Any, y: Any) -> tuple[float, float]:
    """Least-squares slope and its upper 95 % bound, errors taken to be independent."""
    dx = x - x.mean()
    slope = float((dx * y).sum() / (dx**2).sum())
    rest = y - y.mean() - slope * dx
    error = float(np.sqrt((rest**2).sum() / max(1, len(x) - 2) / (dx**2).sum()))
    return slope, slope + 1.645 * error


def anonymous_mb() -> float:
    """Anonymous resident memory of this process, in MB: what is not backed by a file."""
    with open("/proc/self/smaps_rollup") as counts:  # exact; the counters in `status` lag behind
        return next(int(line.split()[1]) * 1024 / 1e6 for line in counts if line.startswith("Anonymous:"))


# Showing --------------------------------------------------------------------------------------------------------------


def span_text(seconds: float) -> str:
    """A length of stream, as people say it."""
    for size, name in ((HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def show(figures: Sequence[Figure]) -> None:
    """Prints the table."""
    table = Table("model", "stream", "figure", "unit")
    for column in ("value", "95 % interval", "floor", "aim", "met"):
        table.add_column(column, justify="right")
    for one in figures:
        interval = "" if one.low is None else f"{one.low:.3g} .. {one.high if one.high is not None else one.value:.3g}"
        aim = "" if one.met is None else f"<= {one.at_most:.4g}" if one.at_most is not None else f">= {one.at_least:g}"
        floor = "" if one.floor is None else f"{one.floor:.3g}"
        met = {None: "", True: "yes", False: "NO"}[one.met]
        table.add_row(one.model, one.stream, one.name, one.unit, f"{one.value:.4g}", interval, floor, aim, met)
    Console(width=140, file=sys.stdout).print(table)


def main() -> None:
    """Runs the models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--model", choices=("random", "embedded"), help="only this one")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all that is measured (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start, figures = time.perf_counter(), list[Figure]()
    for model in [options.model] if options.model else ["random", "embedded"]:
        bench = Bench(model, PLANS[model, options.quick], seed=0)
        bench.run()
        figures += bench.figures
    show(figures)
    report = [{**asdict(figure), "met": figure.met} for figure in figures]
    took = time.perf_counter() - start
    print(json.dumps({"quick": options.quick, "threads": options.threads, "seconds": took, "figures": report}))


if __name__ == "__main__":
    main()
