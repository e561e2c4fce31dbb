"""A batch: one pass over each video in the order of time, all its questions asked in one session.

Every question is asked before the first frame comes in, at its own stream time, so no frame goes through the memory
twice and none later than a question has a part in its answer. A video is left when its last answer is there. This
module knows nothing of tensors, or of how things look.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream import __version__
from vstream.app.batch.ledger import Ledger, Record, read_records
from vstream.app.batch.marks import is_right, summary_of
from vstream.app.batch.options import AnsweringOptions
from vstream.app.batch.plan import Video, plan
from vstream.app.batch.rows import BadRow, Row
from vstream.app.desk import Watched
from vstream.app.interrupts import Interrupted
from vstream.app.output import PictureFolder, answer_record
from vstream.app.progress import Progress
from vstream.app.sources import Planned
from vstream.app.watching import DEFAULT_MODEL, quieten

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.engine import Engine

INPUT_ERRORS = (ValueError, OSError)
REDRAW_SECONDS = 0.2


@dataclass
class Spent:
    """What a run took.

    Attributes:
        videos: that were watched, some not to their end.
        stream_seconds: of the videos, that were watched.
        frames_encoded: with their clips, each once.
        frames_open: encoded besides, for questions that came between two clips.
        encode_seconds: on clips and on remembering them.
        answer_seconds: on prefilling questions and decoding answers.
        wall_seconds: in all, loading the model left out.
    """

    videos: int = 0
    stream_seconds: float = 0.0
    frames_encoded: int = 0
    frames_open: int = 0
    encode_seconds: float = 0.0
    answer_seconds: float = 0.0
    wall_seconds: float = 0.0


class Watching:
    """One video that is being watched, with the answers that are not written yet."""

    def __init__(self, video: Video, watched: Watched) -> None:
        """Nothing has been asked."""
        self.video, self.watched = video, watched
        self.open: list[tuple[Row, Answer]] = []

    def ask(self, row: Row) -> None:
        """Asks a row's question at its time; raises `ValueError` if it will not do."""
        answer = self.watched.session.ask(row.question, at=row.at, choices=row.choices)
        self.open.append((row, answer))

    def take_done(self) -> list[tuple[Row, Answer]]:
        """The answers that have come since."""
        done = [(row, answer) for row, answer in self.open if answer.done]
        if done:
            self.open = [(row, answer) for row, answer in self.open if not answer.done]
        return done


class Batch:
    """One command's work."""

    def __init__(
        self, rows: Sequence[Row | BadRow], videos: Path, out: Path, options: AnsweringOptions, *,
        asked: object = None, links: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        """Checks all that can be checked before a model is loaded.

        Args:
            rows: what is asked.
            videos: the folder that their videos are below.
            out: where answers go.
            options: how they are answered.
            asked: what the rows are some of, so that a later run may ask others of it; the rows alone unless given.
            links: whether videos may be symbolic links, where their names were found on disk and not in a file.
            more: of the sessions' configuration, see `vstream.config`.

        Raises:
            ValueError: for an option that will not do.
        """
        options.check(out)
        self.rows, self._videos, self._out, self._links = rows, videos, out, links
        self._numbers = {row.number for row in rows}
        self._options = options
        self._settings = session_settings(options, **more)
        options.loading()  # refuses what will not do before torch is loaded
        self._asked = hashlib.sha256(repr(rows if asked is None else asked).encode(errors="replace")).hexdigest()[:16]
        self._pictures = PictureFolder(options.pictures(out))
        self.spent = Spent()
        self.summary: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> int:
        """Answers what has no line yet; 1 if any line tells of an error, else 0.

        Raises:
            ValueError: if the output file or the model will not do.
            OSError: if a line cannot be written.
        """
        options = self._options
        with Ledger(self._out, overwrite=options.overwrite, retry=options.retry) as ledger:
            ledger.agree(vstream=__version__, settings=options.matter(), questions=self._asked)
            try:
                self._answer_all(ledger, progress)
            except Interrupted as interrupt:
                progress.stop()
                have = f"{self._out} has {len(ledger.done & self._numbers)} of {len(self.rows)} rows"
                progress.tell(f"stopped; {have}, and the same command goes on from there")
                return interrupt.exit_code
            progress.stop()
            self.summary = {**summary_of(self._records()), "this_run": asdict(self.spent)}
        return 1 if self.summary["errors"] else 0

    def report(self, scores: Sequence[Mapping[str, str]] = (), notes: Mapping[int, str] | None = None) -> None:
        """Writes the report, if one is wanted, once all is answered.

        Args:
            scores: lines of a table that comes first, each with the same columns.
            notes: what is said of an answer, by row.

        Raises:
            OSError: if it cannot be written.
        """
        if self._options.report is not None:
            from vstream.app.batch.report import write_report

            noted = ({**record, "note": (notes or {}).get(record["row"])} for record in self._records())
            write_report(self._options.report, self.summary, noted, scores)

    def _records(self) -> Iterator[Record]:
        """The lines of what is asked here."""
        return (record for record in read_records(self._out) if record["row"] in self._numbers)

    def _answer_all(self, ledger: Ledger, progress: Progress) -> None:
        left = [row for row in self.rows if row.number not in ledger.done]
        videos, missing = plan([row for row in left if isinstance(row, Row)], self._videos, self._links)
        ledger.write([_error_record(one) for one in (*(row for row in left if isinstance(row, BadRow)), *missing)])
        if not videos:
            return
        ledger.agree_on_videos({video.name: video.mark for video in videos})
        with progress.busy("loading the model"):
            engine = self._load()
        with engine:
            ledger.agree(model=engine.adapter.fingerprint)
            began = time.perf_counter()
            watch = Pass(engine, self._options, self._settings, ledger, self._pictures, progress, self.spent)
            watch(videos, len(self.rows))
            self.spent.wall_seconds = time.perf_counter() - began
            self.spent.answer_seconds += engine.decoding_seconds

    def _load(self) -> Engine:
        quieten()
        import torch

        from vstream.engine import Engine

        torch.set_num_threads(self._options.threads or os.cpu_count() or 1)
        return Engine.load(self._options.model or DEFAULT_MODEL, self._options.loading())


def session_settings(options: AnsweringOptions, **more: Any) -> dict[str, Any]:
    """Settings of every video's session: one token at a time while questions wait, so that batches are large.

    Raises:
        ValueError: for a value that will not do.
    """
    return options.settings(None, decode_steps=1, **more)


class Pass:
    """Watches videos, some at once, and writes their answers as they come."""

    def __init__(
        self, engine: Engine, options: AnsweringOptions, settings: dict[str, Any], ledger: Ledger,
        pictures: PictureFolder, progress: Progress, spent: Spent,
    ) -> None:  # fmt: skip
        """With a loaded model; `spent` is added to."""
        self._engine, self._options, self._settings = engine, options, settings
        self._ledger, self._pictures, self._progress, self._spent = ledger, pictures, progress, spent
        self._news = threading.Event()

    def __call__(self, videos: Sequence[Video], total: int) -> None:
        """Until every question has its line; `total` is that of all rows, for progress."""
        waiting, watching = deque(videos), list[Watching]()
        while waiting or watching:
            while waiting and len(watching) < self._options.at_once:
                watching += self._open(waiting.popleft(), len(videos) - len(waiting))
            self._news.wait(REDRAW_SECONDS)
            self._news.clear()
            watching = [one for one in watching if self._go_on(one)]
            self._progress.count("questions", min(len(self._ledger.done), total), total)

    def _go_on(self, one: Watching) -> bool:
        """Writes the lines of what is done; leaves the video where that was all, and then says False."""
        done = one.take_done()
        if one.open:
            self._progress.update(one.watched)
        else:
            self._close(one)
        if done:
            self._ledger.write([_answer_record(row, answer, self._pictures) for row, answer in done])
        return bool(one.open)

    def _tell(self, answer: Answer) -> None:
        """Called by the engine's thread for every piece of an answer; only the last one is news."""
        if answer.done:
            self._news.set()

    def _open(self, video: Video, number: int) -> list[Watching]:
        """Opens a video and asks everything about it; nothing if it cannot be watched, which its rows then tell."""
        try:
            watched = self._watched(video, number)
        except INPUT_ERRORS as error:
            self._ledger.write([_failed(row, error) for row in video.rows])
            return []
        one = Watching(video, watched)
        for row in video.rows:
            try:
                one.ask(row)
            except ValueError as error:
                self._ledger.write([_failed(row, error)])
        for _, answer in one.open:
            answer.subscribe(partial(self._tell, answer))
        if one.open:
            self._engine.serve(watched.session)
            return [one]
        watched.session.close()
        return []

    def _watched(self, video: Video, number: int) -> Watched:
        """A session on a video; what a data set names is no friend, so it opens nothing but itself."""
        from vstream.sources import open_source

        side = self._engine.adapter.image_side
        source = open_source(video.path, max_side=side, directory_fps=video.fps, trusted=False)
        session = self._engine.open(source, preset=self._options.preset, start=False, **self._settings)
        return Watched(Planned(number, video.name, False, None, None), session, video.name)

    def _close(self, one: Watching) -> None:
        session, spent = one.watched.session, self._spent
        status = session.status()
        session.close()
        self._progress.drop(one.watched)
        spent.videos += 1
        spent.stream_seconds += max(0.0, status.last_seconds or 0.0)
        spent.frames_encoded += status.frames.encoded
        spent.frames_open += session.num_open_frames
        spent.encode_seconds += session.watching.seconds
        spent.answer_seconds += session.prefilling.seconds
        warning = session.source.warning if session.source is not None else None
        if warning:
            self._progress.tell(warning)


def _answer_record(row: Row, answer: Answer, pictures: PictureFolder) -> Record:
    """A line of the output: what a single answer carries, and what the row says."""
    if answer.error is not None:
        return _failed(row, answer.error)
    record = answer_record(answer, pictures, row.video)
    own = {"id": row.id, "row": row.number, "video": row.video, "type": row.type}
    marks = {"options": list(row.choices), "answer_expected": row.expected}
    return {**own, **record, **marks, "right": is_right(record["answer"], row.expected, row.choices)}


def _failed(row: Row, error: Exception) -> Record:
    """A line that says why a row has no answer."""
    sentence = " ".join(str(error).split()) or type(error).__name__
    return {"id": row.id, "row": row.number, "video": row.video, "error": sentence}


def _error_record(bad: BadRow) -> Record:
    return {"id": bad.id, "row": bad.number, "error": bad.error}
