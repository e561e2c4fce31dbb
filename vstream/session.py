"""Session: one stream being watched, remembered and asked about.

`step` reads as the pipeline. It, or the engine's `advance` and `settle`, is called from one thread; `ask`, `status`
and `close` may be called from any. This module knows nothing of web pages or argument parsing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from vstream.answer import Answer, MemoryReport
from vstream.answering import Answerer
from vstream.batch import DecodeBatch, RunningAnswer
from vstream.choices import check_choices
from vstream.ingest import Ingest
from vstream.lookout import Budget, Lookout
from vstream.memory.block import Tier
from vstream.memory.reader import BlockGoneError
from vstream.memory_reader import MemoryReader
from vstream.models.base import Exchange
from vstream.questions import Pending, QuestionQueue
from vstream.remembered import Remembered
from vstream.sampling import Counters
from vstream.standing import Alert, AlertOptions
from vstream.stopwatch import Stopwatch
from vstream.stream_memory import StreamMemory
from vstream.turns import Turns
from vstream.types import Clip, Frame, format_seconds

if TYPE_CHECKING:
    from vstream.config import Config, DecodeOptions
    from vstream.memory.columns import Rows
    from vstream.models.base import Adapter, Question
    from vstream.reduction import VisionTokens
    from vstream.sources import Source

NOTHING_SEEN = "Nothing has been seen yet."
HALF = "the question or an option holds half of a character (a lone surrogate); ask without it"


@dataclass(frozen=True)
class Status:
    """A session at a glance.

    Attributes:
        clock_seconds: time of the newest decoded frame, None before the first.
        last_seconds: time of the newest committed frame, None before the first.
        lag_seconds: how far that is behind the clock, and the most it was when a clip had been committed.
        frames: what became of the frames.
        vision: what became of the vision tokens of those encoded.
        blocks: level name to number of blocks.
        moved: how many blocks were demoted and merged so far.
        memory: bytes by tier.
        running, waiting: answers.
        ended: the source is over and all of it is committed.
    """

    clock_seconds: float | None
    last_seconds: float | None
    lag_seconds: float
    max_lag_seconds: float
    frames: Counters
    vision: VisionTokens
    blocks: dict[str, int]
    moved: dict[str, int]
    memory: MemoryReport
    running: int
    waiting: int
    ended: bool


class Reservation(NamedTuple):
    """What an answer may take of the answers' budget, from the beginning of its prefill to its last token."""

    answer: Answer
    num_bytes: int


class Prefill(NamedTuple):
    """A question that is being prefilled."""

    pending: Pending
    pieces: Generator[None, None, RunningAnswer]


class Session:
    """One stream, its memory, and the questions about it.

    Attributes:
        failure: what ended it, None while all is well.
        watching: time spent on encoding clips and remembering them.
        prefilling: time spent on questions, until their first token is due.
        looking: time spent on standing questions.
    """

    def __init__(
        self,
        adapter: Adapter,
        source: Source | None,
        config: Config,
        *,
        folder: Path | None = None,
        wake: Callable[[], None] = lambda: None,
        batch: DecodeBatch | None = None,
    ) -> None:
        """Opens or resumes a memory and gets ready to watch; `start` lets frames in.

        Args:
            adapter: the model.
            source: what to watch, None to ask a memory only. It is closed with the session.
            config: all settings.
            folder: where the memory is kept; None keeps it while the session lasts.
            wake: called when there may be work.
            batch: decodes its answers together with others'; its owner then calls `advance`, `decode` and `settle`.
                None gives the session one of its own, for `step`.

        Raises:
            ValueError: if the budgets cannot hold a clip, or the folder is not a memory of this model and source.
        """
        self.adapter, self.source, self.config = adapter, source, config
        self.failure: Exception | None = None
        self.watching, self.prefilling, self.looking = Stopwatch(), Stopwatch(), Stopwatch()
        self._wake = wake
        self._alone = Turns()  # the memory and the running answers; held for a whole step, and before the model's
        self._questions = QuestionQueue()
        self._batch = DecodeBatch(adapter) if batch is None else batch
        self._running: list[Reservation] = []
        self._prefill: Prefill | None = None
        self._prefilled_since_clip = False
        self._max_lag_seconds = 0.0
        self._closed = False
        with adapter.alone, torch.inference_mode():
            if config.dialogue:
                adapter.question("?", earlier=[Exchange("?", "!")])  # refuses a model that has no earlier turns
            self.memory = _open_memory(adapter, config, source, folder)
        try:
            self.ingest = self._make_ingest(source) if source else None
        except BaseException:
            self.memory.close()
            raise
        self._answerer = Answerer(self.memory, config)
        budget = Budget(config.alert_share) if self._is_paced else None
        self._lookout = Lookout(self.memory, self._answerer, budget=budget)

    def start(self) -> None:
        """Lets frames in, on a thread of their own."""
        if self.ingest:
            self.ingest.start()

    # The worker's side ----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One small piece of work, then a few tokens for every running answer: all there is to do, without threads.

        Returns:
            Whether there was anything to do.
        """
        advanced = self.advance()
        decoded = self._batch.decode(self.config.decode_steps)
        self.settle()
        return advanced or decoded

    def advance(self) -> bool:
        """A piece of a question's prefill, else a look of a standing question, else a clip; whether there was any.

        A question that is due comes before the clips after it, and its own stream stands still until it is prefilled:
        what it selects must not change meanwhile. On a live stream a clip that waits comes between two questions.
        A clip is looked at before the next one is taken, unless the stream would fall behind.
        """
        with self._alone, self.adapter.alone, torch.inference_mode():
            if self._closed:
                return False
            self._questions.drop_cancelled()
            if self._prefill is None and not self._owes_clip():
                pending, must_wait = self._take_due_question()
                if pending is not None:
                    self._reserve(pending)
                    with self.prefilling:
                        self._begin_answer(pending)
                    return True
                if must_wait:
                    return False
            if self._prefill is not None:
                with self.prefilling:
                    self._prefill_piece(self._prefill)
                return True
            if self._looked():
                return True
            clip = self.ingest.take_clip() if self.ingest else None
            if clip is not None:
                with self.watching:
                    self._watch(clip)
                self._prefilled_since_clip = False
            elif self.ingest and self.ingest.drained:
                self._lookout.finish()
            return clip is not None

    def _looked(self) -> bool:
        """Looks at the newest clip for one standing question, if one is due and the stream leaves time for it."""
        if self._is_paced and self.ingest and self.ingest.peek_clip() is not None:
            self._lookout.skip()
        with self.looking:
            return self._lookout.look()

    def settle(self) -> None:
        """Lets answers go that are over, which gives their budget back; they join the dialogue. Tells of events."""
        if any(running.answer.done for running in self._running):
            with self._alone:
                self._settle()
        self._lookout.tell()

    def _settle(self) -> None:
        over = [running for running in self._running if running.answer.done]  # the worker may end more meanwhile
        self._running = [running for running in self._running if running not in over]
        if over and not self._closed:
            self.memory.add_turns([running.answer for running in over])

    def fail(self, error: Exception) -> None:
        """Ends the session because of an error: every open answer gets it. What was committed stays."""
        self.failure = self.failure or error
        self.close()

    def _watch(self, clip: Clip) -> None:
        """Encodes a clip, keeps it in window and memory, and acknowledges it."""
        assert self.ingest is not None
        assert isinstance(self.memory, StreamMemory), "who only reads watches nothing"
        source = self.ingest.source
        self.memory.note_gaps(source.gaps, source.num_gaps, clip.end_seconds)
        looked = self.memory.look(clip.frames)
        skipped = len(clip.frames) - len(looked.frames)
        self.memory.watch(clip, looked, self.ingest.counters_if_committed(clip, skipped=skipped))
        self.ingest.commit(clip, skipped=skipped)
        self._lookout.expect(clip, self._clip_seconds(clip))
        self._max_lag_seconds = max(self._max_lag_seconds, self.lag_seconds)

    def _clip_seconds(self, clip: Clip) -> float:
        """How much of the stream a clip stands for."""
        return len(clip.frames) / self.config.fps if self.config.fps else clip.end_seconds - clip.start_seconds

    @property
    def _is_paced(self) -> bool:
        """Whether the stream does not wait for who watches it."""
        return self.source is not None and (self.source.is_live or self.config.realtime)

    def _owes_clip(self) -> bool:
        """Whether a live stream's clip waits since a question came before it."""
        live = self.ingest is not None and self.ingest.source.is_live
        return self._prefilled_since_clip and live and self.ingest is not None and self.ingest.peek_clip() is not None

    def _reserve(self, pending: Pending) -> None:
        """Takes its part of the answers' budget, until the answer is over."""
        needed = self._answerer.num_bytes(pending.question, pending.options)
        self._running.append(Reservation(pending.answer, needed))

    def _begin_answer(self, pending: Pending) -> None:
        """Takes the snapshot; what is wrong with a question is that answer's error alone."""
        answer = pending.answer
        self.memory.refresh()
        answer.frames, answer.memory, answer.vision = self._counters(), self._memory_report(), self.memory.vision
        try:
            at_seconds = self._checked_time(pending.at_seconds)
            frames = self._open_frames(at_seconds)
            view = self.memory.view(at_seconds)
        except ValueError as error:
            answer.fail(error)
            return
        answer.asked_at_seconds = at_seconds
        if view.end_seconds is None and not frames:
            answer.add(NOTHING_SEEN, num_tokens=0)
            answer.finish("nothing-seen")
            return
        question = self._answerer.in_dialogue(answer, pending.question, at_seconds)
        pieces = self._answerer.start(answer, question, pending.options, view, frames)
        self._prefill = Prefill(pending, pieces)

    def _prefill_piece(self, prefill: Prefill) -> None:
        """One piece further; the last one makes it a running answer."""
        answer = prefill.pending.answer
        try:
            if not answer.cancelled:
                next(prefill.pieces)
                return
            answer.finish("cancelled")
        except StopIteration as prefilled:
            self._batch.add(prefilled.value)
            self._prefilled_since_clip = True
        except BlockGoneError:  # another process writes this memory: begin again with what it holds now
            self._prefill = None
            self._begin_answer(prefill.pending)
            return
        except Exception as error:
            answer.fail(error)
            raise
        self._prefill = None

    # Asking ---------------------------------------------------------------------------------------------------------

    def ask(
        self,
        question: str,
        *,
        at: float | Literal["now", "end"] | None = None,
        choices: Sequence[str] = (),
        options: DecodeOptions | None = None,
    ) -> Answer:
        """Asks, and returns at once; the answer fills while the watching goes on.

        Args:
            question: plain text.
            at: the stream time in seconds at which it is asked: no later frame is seen. "now" is the newest frame
                decoded, "end" the end of the source. Unless given: "now" on a live or paced source, else "end". A time
                that has passed is answered from what memory still holds of it, or refused.
            choices: options to choose from. They stand behind the question and are no part of what is searched for; the
                answer's `choice` is the one it names.
            options: how to generate, the configuration's unless given.

        Raises:
            ValueError: if the question or an option is empty, too long or no Unicode, or the time is not one.
            RuntimeError: if the session has ended.
        """
        options = options or self.config.decode
        choices = check_choices(choices)
        tokens = self._checked_question(question, choices, options)
        at_seconds, now = self._resolve(at)
        answer = Answer(question, None if math.isinf(at_seconds) else at_seconds, wake=self._wake, choices=choices)
        if not self._questions.add(Pending(answer, tokens, options, at_seconds, now)):
            raise RuntimeError(f"the session has ended{f' ({self.failure})' if self.failure else ''}")
        self._wake()
        return answer

    def alert(self, text: str, options: AlertOptions | None = None) -> Alert:
        """A standing question: looked for in every clip from the next one on, until it is cancelled.

        Args:
            text: a condition ("a cat appears") or a question of yes or no ("is there a cat?").
            options: how it is judged.

        Raises:
            ValueError: if it is empty or too long, or the session watches nothing.
            RuntimeError: if the session has ended.
        """
        if not isinstance(self.memory, StreamMemory):
            raise ValueError("a standing question needs a stream to watch; give a source, not a memory alone")
        options = options or AlertOptions()
        if options.uses_memory and self.config.positions == "original":
            raise ValueError("uses_memory needs positions='contiguous', got 'original'")
        question = self._checked_length(text, self._lookout.question)
        if self._closed:
            raise RuntimeError(f"the session has ended{f' ({self.failure})' if self.failure else ''}")
        return self._lookout.add(text, question, options, self._wake)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The standing questions that are not cancelled, oldest first."""
        return self._lookout.alerts

    def _checked_question(self, text: str, choices: Sequence[str], options: DecodeOptions) -> Question:
        if any(_is_half(letter) for one in choices for letter in one):
            raise ValueError(HALF)
        if options.max_tokens > self.config.max_answer_tokens:
            limit = self.config.max_answer_tokens
            raise ValueError(f"max_tokens is {options.max_tokens}, but this session allows at most {limit}")
        question = self._checked_length(text, partial(self.adapter.question, choices=choices))
        needed = self._answerer.num_bytes(question, options)
        if needed > self.config.answer_bytes:
            raise ValueError(f"the answer needs {needed} bytes, but answer_bytes is {self.config.answer_bytes}")
        return question

    def _checked_length(self, text: str, made: Callable[[str], Question]) -> Question:
        if not text.strip():
            raise ValueError("the question is empty; ask something about the video")
        if any(_is_half(letter) for letter in text):
            raise ValueError(HALF)
        with torch.inference_mode():
            question, limit = made(text), self.config.max_question_tokens
        if len(question.span) > limit:
            raise ValueError(f"the question has {len(question.span)} tokens, but at most {limit} fit; shorten it")
        return question

    def _resolve(self, at: float | str | None) -> tuple[float, bool]:
        """A stream time in seconds (inf: the end), and whether it is the present."""
        live = self._is_paced
        at = ("now" if live else "end") if at is None else at
        if at == "end":
            return math.inf, False
        if at == "now":
            return self._newest_seconds(), True
        if isinstance(at, str) or not 0 <= at < math.inf:
            raise ValueError(f"at must be a stream time in seconds >= 0, 'now' or 'end', got {at!r}")
        return float(at), False

    def seconds_at(self, wall_seconds: float) -> float:
        """Stream time of a Unix time: what happened at 15:00 is asked `at` this one.

        Raises:
            ValueError: if the stream has no wall clock, or was not yet watched then.
            RuntimeError: if the session has ended.
        """
        with self._alone:
            if self._closed:
                raise RuntimeError("the session is closed")
            self._refresh()
            return self.memory.seconds_at(wall_seconds)

    def _take_due_question(self) -> tuple[Pending | None, bool]:
        """The first question whose time has come, if the answers' budget has room for it.

        Where it has none, and frames are never lost by waiting, the stream must wait for it too (the second value):
        an answer sees the same whether or not it had to queue. A live stream goes on.
        """
        taken, num_waiting = self._questions.take_due(
            self.ingest, self._last_seconds(), self.config.clip_frames, self._has_room
        )
        if taken is not None and not taken.now:
            taken.answer.mark_received()
        live = self.source is not None and self.source.is_live
        return taken, num_waiting > 0 and not live

    def _has_room(self, pending: Pending) -> bool:
        if self.config.dialogue and self._running:  # whose answers are part of what is asked
            return False
        return (
            self._answer_bytes() + self._answerer.num_bytes(pending.question, pending.options)
            <= self.config.answer_bytes
        )

    def _answer_bytes(self) -> int:
        """Bytes that running answers hold; an answer that is over holds none."""
        return sum(running.num_bytes for running in self._running if not running.answer.done)

    def _checked_time(self, at_seconds: float) -> float:
        """A stream time that exists: the newest for inf."""
        newest = self._newest_seconds()
        if math.isinf(at_seconds):
            return newest
        over = self.ingest is None or self.ingest.ended
        end = max(newest, (self.source.duration_seconds if self.source else None) or 0.0)
        end = math.ceil(end)
        if over and at_seconds > end:
            if self.config.past_end == "end":
                return newest
            asked = format_seconds(at_seconds)
            raise ValueError(f"the question is asked at {asked}, but the video ends at {format_seconds(end)}")
        return at_seconds

    def _open_frames(self, until_seconds: float) -> tuple[Frame, ...]:
        """Frames received but not yet encoded: an answer sees them without changing what is remembered."""
        if self.ingest is None:
            return ()
        clip = self.ingest.peek_clip()
        frames: Sequence[Frame] = clip.frames if clip else self.ingest.open_frames()
        return tuple(frame for frame in frames if frame.pts_seconds <= until_seconds)

    # Looking at it, and closing -------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The session at this moment; waits for the step that is under way."""
        with self._alone:
            return Status(
                clock_seconds=self.ingest.clock_seconds if self.ingest else None,
                last_seconds=self.memory.last_seconds,
                lag_seconds=self.lag_seconds,
                max_lag_seconds=self._max_lag_seconds,
                frames=self._counters(),
                vision=self.memory.vision,
                blocks=self.memory.num_blocks(),
                moved=dict(self.memory.moved),
                memory=self._memory_report(),
                running=sum(not running.answer.done for running in self._running),
                waiting=len(self._questions),
                ended=self.ingest is None or (self.ingest.drained and not self._lookout.is_due),
            )

    def rows(self) -> Rows:
        """Every block but the sink, in time order, as `vstream.memory.columns.COLUMNS`; none once it is closed."""
        with self._alone:
            if self._closed:
                return self.memory.rows()[:0]
            self._refresh()
            return self.memory.rows()

    def picture_near(self, seconds: float) -> tuple[bytes, float] | None:
        """The kept picture nearest to a stream time, as JPEG, and its own time; None where there is none."""
        with self._alone:
            if self._closed:
                return None
            self._refresh()
            return self.memory.picture_near(seconds)

    def _refresh(self) -> None:
        """Takes what another process has committed; not while a question is prefilled, whose view must not change."""
        if self._prefill is None:
            self.memory.refresh()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or has failed."""
        return self._closed

    def close(self) -> None:
        """Stops watching, cancels open answers and lets the memory go; what was committed stays. Idempotent.

        Frames of a live source that wait are encoded first: they would not come again.
        """
        try:
            if self.ingest:
                self.ingest.stop()
        finally:
            with self._alone, self.adapter.alone, torch.inference_mode():
                if not self._closed:
                    self._flush()
                    self._end_alerts()
                    self._end_answers()
                    self.memory.close()
                    self._wake()  # the batch lets go of its answers
            self._lookout.tell()

    def _flush(self) -> None:
        """Keeps answers that are over, and encodes what waits of a live source; if that fails, it is why it ends."""
        try:
            if self.failure is None:
                self._settle()
                if self.ingest and self.ingest.source.is_live:
                    while clip := self.ingest.take_clip(flush=True):
                        self._watch(clip)
        except Exception as error:
            self.failure = error

    def _end_alerts(self) -> None:
        """What goes on is over if the stream is; else a resumed one may go on with it."""
        self._lookout.skip()
        if self.ingest and self.ingest.drained:
            self._lookout.finish()

    def _end_answers(self) -> None:
        self._closed = True
        waiting = [pending.answer for pending in self._questions.close()]
        running, self._running = [running.answer for running in self._running], []
        self._prefill = None
        for answer in running + waiting:
            answer.place = 0
            if self.failure:
                answer.fail(self.failure)
            else:
                answer.finish("cancelled")

    def _make_ingest(self, source: Source) -> Ingest:
        config, memory = self.config, self.memory
        if memory.last_seconds is not None:
            source.resume_after(memory.last_seconds, memory.last_wall_seconds)
        return Ingest(
            source,
            fps=config.fps,
            clip_frames=config.clip_frames,
            max_queue_frames=config.max_queue_frames,
            policy=config.queue_policy,
            realtime=config.realtime,
            on_change=self._wake,
            resume_after_seconds=memory.last_seconds,
            base=memory.counters,
            scene_cut=config.scene_cut,
        )

    def _last_seconds(self) -> float:
        return -1.0 if self.memory.last_seconds is None else self.memory.last_seconds

    def _newest_seconds(self) -> float:
        clock = self.ingest.clock_seconds if self.ingest else None
        return max(clock or 0.0, self._last_seconds(), 0.0)

    @property
    def num_open_frames(self) -> int:
        """Frames encoded for questions between two clips, besides their clip's own turn."""
        return self._answerer.num_open_frames

    @property
    def lag_seconds(self) -> float:
        """How far the newest committed frame is behind the newest decoded one."""
        clock = self.ingest.clock_seconds if self.ingest else None
        return 0.0 if clock is None else max(0.0, clock - max(self._last_seconds(), 0.0))

    def _counters(self) -> Counters:
        return self.ingest.counters() if self.ingest else self.memory.counters

    def _memory_report(self) -> MemoryReport:
        tiers, hot = self.memory.store.tier_bytes(), self.memory.cache.num_bytes
        return MemoryReport(
            blocks=sum(self.memory.num_blocks().values()),
            device_bytes=tiers[Tier.DEVICE] + hot + self._answer_bytes(),
            host_bytes=tiers[Tier.HOST],
            disk_bytes=tiers[Tier.DISK],
        )


def _open_memory(adapter: Adapter, config: Config, source: Source | None, folder: Path | None) -> Remembered:
    """The memory of a source, new or resumed; without a source, a kept one that is only read."""
    if source is None:
        assert folder is not None, "there is a source, or a memory, or both"
        return MemoryReader(adapter, config, folder)
    return StreamMemory(adapter, config, source_name=source.name, source_fingerprint=source.fingerprint, folder=folder)


def _is_half(letter: str) -> bool:
    """Whether a character is half of one: a surrogate, which no tokenizer takes."""
    return "\ud800" <= letter <= "\udfff"
