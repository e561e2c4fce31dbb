"""The memory lab: how much of a long stream each way to remember it can still answer, per byte.

Streams of the synthetic world with needles at known ages, watched by one model under every preset and budget, and
asked at their end. It knows nothing of how results are shown (`report.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vstream.app.lab.exam import FOR_NEEDLES, Examiner, Past, Question
from vstream.app.lab.render import Picture, WorldSource, draw
from vstream.app.lab.world import World, plant
from vstream.config import Config
from vstream.presets import preset_settings

if TYPE_CHECKING:
    from vstream.engine import Engine
    from vstream.session import Session

PRESENT = ("now", "count", "digit")
OF_TWO = ("order", "earlier")
NEEDLE_SECONDS = 5
LEAST_AGE = 45  # the window is younger
LONGEST_RECALLED = 30.0  # seconds; a longer block does not count as found
SIDE = 96  # pixels
OF_BLOCKS = 0.9  # of a budget; representatives take the rest


class Recorded(WorldSource):
    """A world of which every picture was drawn before."""

    def __init__(self, world: World, pictures: Sequence[Picture]) -> None:
        """One picture a second."""
        super().__init__(world, side=SIDE)
        self._drawn = pictures

    def _image(self, picture: float, max_side: int) -> Picture:
        return self._drawn[int(picture)]


@dataclass(frozen=True)
class Task:
    """One stream and what is asked at its end.

    Attributes:
        number: which stream.
        asked: questions with their answers and evidence.
        pictures: one a second, 28 kB each, drawn once.
    """

    number: int
    world: World
    asked: tuple[Question, ...]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Trial:
    """One way to remember, at one budget.

    Attributes:
        preset: a name of `vstream.presets`.
        share: of the bytes that everything takes; 1 is no limit.
        settings: of `Config`, on top of the preset's.
    """

    preset: str
    share: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Marked:
    """One answer.

    Attributes:
        preset: how the stream was remembered.
        share: of the bytes of everything, that it was allowed.
        stream: which one.
        type: of the question.
        age_seconds: how long ago the oldest evidence began; 0 for the present.
        right: whether the answer is the one.
        found: whether all evidence is in blocks that were brought back.
        ttft_seconds: to the first token.
    """

    preset: str
    share: float
    stream: int
    type: str
    age_seconds: float
    right: bool
    found: bool
    ttft_seconds: float


@dataclass(frozen=True)
class Outcome:
    """One preset at one budget.

    Attributes:
        num_bytes: mean over streams of what memory took at the end, see `bytes_of`.
        marked: every answer.
    """

    preset: str
    share: float
    num_bytes: float
    marked: tuple[Marked, ...]


def make_task(number: int, seconds: int, *, seed: int, needles: int = 12, present: int = 6) -> Task:
    """A stream of so many seconds with needles at ages from `LEAST_AGE` to nearly all of it, and its questions."""
    rng, world_seed = random.Random(f"lab {seed} {number}"), 3 * 10**9 + 1000 * seed + number
    latest = seconds - LEAST_AGE - NEEDLE_SECONDS
    times = [30 + (latest - 30) * n // (needles - 1) for n in range(needles)]
    things = plant(world_seed, times, seconds=NEEDLE_SECONDS)
    world = World(world_seed, seconds, things)
    examiner, now = Examiner(world, seed=seed), seconds - 1
    single = [one for one in FOR_NEEDLES if one not in OF_TWO]
    asked = [
        question for thing in things for one in single for question in examiner.ask(now, 1, types=(one,), about=[thing])
    ]
    asked += [question for one in OF_TWO for question in examiner.ask(now, needles // 2, types=(one,), about=things)]
    recent = [one for one in Past(world, now).seen if one.start_seconds > now - 20]
    asked += [question for one in PRESENT for question in examiner.ask(now, present // 3, types=(one,), about=recent)]
    rng.shuffle(asked)
    return Task(number, world, tuple(asked), [draw(world, second, side=SIDE) for second in range(seconds)])


def age_of(question: Question) -> float:
    """Seconds since its oldest evidence began, 0 for questions of the present or of what never was."""
    if question.type in PRESENT or not question.evidence:
        return 0.0
    return float(question.at_seconds - min(start for start, _ in question.evidence))


def full_bytes(engine: Engine, task: Task) -> int:
    """Bytes of RAM that keep everything of a stream in detail, with some to spare."""
    adapter = engine.adapter
    token = 2 * adapter.num_layers * adapter.num_kv_heads * adapter.head_dim * adapter.dtype.itemsize
    return int(1.5 * task.world.duration_seconds * adapter.max_frame_tokens * token) + (32 << 20)


def try_preset(engine: Engine, trial: Trial, task: Task, num_bytes: int) -> tuple[list[Marked], int]:
    """Watches a stream and asks everything, with so many bytes of RAM; the answers, and the bytes taken."""
    budget = {"host_bytes": num_bytes, "device_bytes": 0, "disk_bytes": 0, "fps": 1.0}
    chosen = Config(**preset_settings(trial.preset, engine.adapter, {**budget, **trial.settings}))
    with closing(engine.open(Recorded(task.world, task.pictures), config=chosen, start=False)) as session:
        watch_all(session)
        taken = bytes_of(session)
        return [mark(session, question, trial, task.number) for question in task.asked], taken


def watch_all(session: Session) -> None:
    """To the end of the source."""
    assert session.ingest is not None, "a lab stream is watched"
    while not session.ingest.drained:
        session.ingest.pump(session.config.clip_frames)
        session.step()


def bytes_of(session: Session) -> int:
    """What memory keeps on all tiers: blocks with their metadata and pictures, and representatives.

    The hot window is not in it: it is the same for all, with or without memory.
    """
    store = session.memory.store
    return store.used_bytes + len(store) * store.shape.representative_bytes


def mark(session: Session, question: Question, trial: Trial, stream: int) -> Marked:
    """Asks at the end of the stream."""
    retriever = session.memory.retriever
    if hasattr(retriever, "evidence"):
        retriever.evidence = question.evidence
    answer = session.ask(question.text, at="end")
    while not answer.done:
        session.step()
    return Marked(
        preset=trial.preset,
        share=trial.share,
        stream=stream,
        type=question.type,
        age_seconds=age_of(question),
        right=answer.text().strip() == question.answer,
        found=is_found(question, answer.recalled),
        ttft_seconds=answer.ttft_seconds or 0.0,
    )


def is_found(question: Question, recalled: Sequence[tuple[float, float]]) -> bool:
    """Whether each piece of evidence overlaps a short enough block that was brought back."""
    short = [(start, end) for start, end in recalled if end - start <= LONGEST_RECALLED]
    return all(any(start < last and end >= first for start, end in short) for first, last in question.evidence)


def run_lab(
    engine: Engine,
    tasks: Sequence[Task],
    trials: Sequence[Trial],
    told: Callable[[str], None] = lambda line: None,
    common: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """Every trial on every stream.

    Args:
        engine: with the model.
        tasks: the streams.
        trials: what is compared.
        told: hears of progress, and of budgets too small for a preset.
        common: settings that all trials have; with these it is measured what everything takes.
    """
    everything = {task.number: measure_everything(engine, task, common or {}) for task in tasks}
    outcomes = []
    for trial in trials:
        try:
            outcomes.append(_outcome(engine, tasks, trial, everything))
            told(_progress(outcomes[-1]))
        except ValueError as error:  # a budget that does not hold the window
            told(f"{trial.preset} at {trial.share:.0%} does not run: {error}")
    return outcomes


def _outcome(engine: Engine, tasks: Sequence[Task], trial: Trial, everything: Mapping[int, int]) -> Outcome:
    """One trial on every stream."""
    marked, taken = list[Marked](), list[int]()
    for task in tasks:
        limit = trial.share * everything[task.number] * OF_BLOCKS
        room = full_bytes(engine, task) if trial.share >= 1 else int(limit)
        answers, num_bytes = try_preset(engine, trial, task, room)
        marked += answers
        taken.append(num_bytes)
    return Outcome(trial.preset, trial.share, sum(taken) / len(taken), tuple(marked))


def measure_everything(engine: Engine, task: Task, settings: Mapping[str, Any]) -> int:
    """Bytes that `full` takes for a stream."""
    silent = Task(task.number, task.world, (), task.pictures)
    return try_preset(engine, Trial("full", 1.0, settings), silent, full_bytes(engine, task))[1]


def _progress(outcome: Outcome) -> str:
    right, size = sum(one.right for one in outcome.marked), outcome.num_bytes / 2**20
    return f"{outcome.preset} at {outcome.share:.0%}: {right} of {len(outcome.marked)} right, {size:.1f} MiB"
