"""The hub: the models that are loaded, the streams that are open, and the memories on disk.

Any thread may use it. This module knows nothing of HTTP, tokens or pages, nor of which sources are allowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vstream.app.alerts.delivery import Delivery
from vstream.app.output import PictureFolder
from vstream.app.progress import without_credentials
from vstream.app.serve.busy import BusyError
from vstream.app.serve.library import Card, Kept, Library, UnknownStreamError, checked_title, new_id, now_iso, title_of
from vstream.app.serve.stream import Stream
from vstream.app.serve.viewing import LiveView
from vstream.engine import Engine
from vstream.presets import SESSION_PRESETS, check_preset
from vstream.session import Session
from vstream.sources import PushSource, Source

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.models.options import LoadOptions

PUSH = "push"
"""What is given as a source to push frames by HTTP."""
MAX_STREAMS = 8


class OpenAlreadyError(RuntimeError):
    """A memory is a stream already, or is about to be."""


class Opened(Protocol):
    """A source that may be watched.

    Attributes:
        source: open.
        file: the recorded file that it is, where a browser may play it.
    """

    @property
    def source(self) -> Source: ...  # noqa: D102
    @property
    def file(self) -> Path | None: ...  # noqa: D102


Opener = Callable[[str, int], Opened]
"""Opens what a person has given, frames at most so many pixels long; `ValueError` for what is not allowed."""


@dataclass(frozen=True)
class _Pushed:
    source: Source
    file: Path | None = None


class Hub:
    """Opens, resumes and closes streams.

    Attributes:
        models: those that may be chosen, the default first.
        presets: ways to remember that may be chosen.
        on_ask: is told of every question's answer when it is asked, to count it.
    """

    def __init__(
        self,
        opener: Opener,
        library: Library,
        *,
        models: tuple[str, ...],
        loading: LoadOptions | None = None,
        settings: Mapping[str, Any] | None = None,
        preset: str | None = None,
        max_streams: int = MAX_STREAMS,
        delivery: Delivery | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            opener: decides what may be watched, and opens it.
            library: where memories are.
            models: that may be chosen, the default first.
            loading: how the default is loaded.
            settings: of every session, by the names of `Config`.
            preset: of streams that name none.
            max_streams: that may be open at once.
            delivery: takes what standing questions tell further; it is closed with the hub.
        """
        self._delivery = delivery or Delivery(PictureFolder(None))
        self.models, self.presets = models, SESSION_PRESETS
        self.on_ask: Callable[[Answer], None] = lambda answer: None
        self._opener, self._library, self._loading = opener, library, loading
        self._settings, self._preset, self._max_streams = dict(settings or {}), preset, max_streams
        self._engines: dict[str, Engine] = {}
        self._load_lock = threading.Lock()
        self._lock = threading.Lock()  # guards the three below, and that cards of open streams are those on disk
        self._streams: dict[str, Stream] = {}
        self._opening: set[str] = set()
        self._ending: set[str] = set()
        self._stopping = False

    # Models

    def engine(self, model: str | None = None) -> Engine:
        """A model's engine, loaded on first use.

        Raises:
            ValueError: for a model that is not offered, or cannot be served.
            FileNotFoundError: if its files are not on this machine.
        """
        name = model or self.models[0]
        if name not in self.models:
            raise ValueError(f"model must be one of {', '.join(self.models)}, got {name!r}")
        with self._load_lock:
            if name not in self._engines:
                loading = self._loading if name == self.models[0] else None
                self._engines[name] = Engine.load(name, loading)
            return self._engines[name]

    @property
    def ready(self) -> bool:
        """Whether the default model is loaded and questions are taken."""
        return self.models[0] in self._engines and not self._stopping

    # Streams

    def open(
        self,
        source: str,
        *,
        title: str | None = None,
        model: str | None = None,
        preset: str | None = None,
        kept: bool = False,
        realtime: bool = False,
        fps: float | None = None,
        dialogue: bool = False,
    ) -> Stream:
        """Starts watching.

        Args:
            source: a file, a folder of pictures, a camera, or "push".
            title: for people; the source's name unless given.
            model, preset, fps: the server's own unless given.
            kept: whether the memory stays when the stream is closed.
            realtime: a recorded file is watched at its own pace.
            dialogue: questions see earlier ones and their answers.

        Raises:
            ValueError: for what will not do, in one sentence.
            FileNotFoundError: if there is no such source or model.
            BusyError: if as many streams as there may be are open.
        """
        preset = preset or self._preset
        if preset is not None:
            check_preset(preset)
        engine = self.engine(model)
        shown = without_credentials(source)
        with self._opens(new_id()) as stream_id:
            opened = self._open_source(source, engine)
            try:
                card = Card(
                    id=stream_id, title=checked_title(title) if title else title_of(opened.source.name), kept=kept,
                    source=shown,
                    reopens=shown == source and source != PUSH, model=model or self.models[0], preset=preset, fps=fps,
                    realtime=realtime, dialogue=dialogue, created=now_iso(),
                )  # fmt: skip
                self._library.write(card)
                try:
                    return self._watch(engine, card, opened)
                except BaseException:
                    self._library.delete(card.id)
                    raise
            except BaseException:
                opened.source.close()
                raise

    def resume(self, memory_id: str, source: str | None = None) -> Stream:
        """Opens a memory again: its source is watched on where it can be, else the memory is asked alone.

        Args:
            memory_id: of a memory that is not open.
            source: what it is of, where its card cannot say (an address with a password); "" for the memory alone.

        Raises:
            UnknownStreamError: if there is no such memory.
            ValueError: if the memory is damaged, or `source` is not what it is of.
            OpenAlreadyError: if it is open already.
            BusyError: if too many streams are.
        """
        card = self._library.card(memory_id)
        engine = self.engine(card.model)
        with self._opens(card.id):
            given = (card.source if card.reopens else "") if source is None else source
            if not given:
                return self._ask_alone(engine, card, "" if card.source != PUSH else "its frames were pushed")
            try:
                opened = self._open_source(given, engine)
            except (ValueError, OSError) as error:
                if source is not None:
                    raise
                return self._ask_alone(engine, card, str(error))
            try:
                return self._watch(engine, card, opened)
            except BaseException:
                opened.source.close()
                raise

    def stream(self, stream_id: str) -> Stream:
        """An open stream.

        Raises:
            UnknownStreamError: if none of this id is open.
        """
        with self._lock:
            if stream_id not in self._streams:
                raise UnknownStreamError(f"there is no open stream {stream_id!r}")
            return self._streams[stream_id]

    def streams(self) -> list[Stream]:
        """All that are open, in the order they were opened."""
        with self._lock:
            return list(self._streams.values())

    def close_stream(self, stream_id: str) -> None:
        """Ends a stream; its memory stays where it is kept, and goes where it is not.

        Raises:
            UnknownStreamError: if it is not open.
            OpenAlreadyError: if it is being closed already.
        """
        stream = self.stream(stream_id)
        with self._ends(stream_id):
            stream.session.close()
            if stream.card.kept:
                stream.alerts.save()
            else:
                self._delivery.settle()  # it writes into the memory's folder
                self._library.delete(stream_id)

    # Memories

    def memories(self) -> list[Kept]:
        """What is on disk, newest first, those of open streams too."""
        return self._library.memories()

    def rename(self, stream_id: str, title: str) -> None:
        """Gives a stream or a memory another title. Raises `ValueError`, `UnknownStreamError`, `OpenAlreadyError`."""
        self._change(stream_id, title=checked_title(title))

    def keep(self, stream_id: str, kept: bool = True) -> None:
        """Says whether a memory stays when its stream is closed. Raises `UnknownStreamError`, `OpenAlreadyError`."""
        self._change(stream_id, kept=kept)

    def delete(self, memory_id: str) -> None:
        """Removes a memory, and closes its stream.

        Raises:
            UnknownStreamError: if there is no such memory.
            OpenAlreadyError: while it is opened or closed.
            BlockingIOError: if another process has it open.
        """
        self._library.card(memory_id)
        with self._ends(memory_id) as stream:
            if stream is not None:
                stream.session.close()
                self._delivery.settle()  # it writes into the memory's folder
            self._library.delete(memory_id)

    def _change(self, stream_id: str, **changes: Any) -> None:
        with self._lock:
            if stream_id in self._ending:
                raise OpenAlreadyError(f"stream {stream_id} is being closed; try again when it is")
            card = self._library.change(stream_id, **changes)
            if stream_id in self._streams:
                self._streams[stream_id].card = card

    # Ending

    def stop(self) -> None:
        """No more streams or questions are taken; answers go on."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def close(self, timeout_seconds: float = 0.0) -> None:
        """Stops; answers have so long to end, then they are cancelled; what was watched is committed. Idempotent."""
        self.stop()
        until = time.monotonic() + timeout_seconds
        for stream in self.streams():
            for turn in stream.turns:
                turn.answer.wait(max(0.0, until - time.monotonic()))
        with self._load_lock:
            engines = list(self._engines.values())
        streams = self.streams()
        for engine in engines:
            engine.close()
        self._delivery.close()
        for stream in streams:
            stream.alerts.save()

    # Opening

    def _open_source(self, source: str, engine: Engine) -> Opened:
        max_side = engine.adapter.image_side
        return _Pushed(PushSource(max_side=max_side)) if source == PUSH else self._opener(source, max_side)

    @contextmanager
    def _opens(self, stream_id: str) -> Iterator[str]:
        """Holds a place among the open streams while one is opened."""
        with self._lock:
            if self._stopping:
                raise BusyError("the server is stopping; start it again to go on")
            if stream_id in self._opening or stream_id in self._streams:
                raise OpenAlreadyError(f"stream {stream_id} is open already")
            if stream_id in self._ending:
                raise OpenAlreadyError(f"stream {stream_id} is being closed; open it again when it is")
            if len(self._streams) + len(self._opening) >= self._max_streams:
                raise BusyError(f"{self._max_streams} streams are open, which is the most; close one first")
            self._opening.add(stream_id)
        try:
            yield stream_id
        finally:
            with self._lock:
                self._opening.discard(stream_id)

    @contextmanager
    def _ends(self, stream_id: str) -> Iterator[Stream | None]:
        """Takes a stream, if it is open, from those that are; until all is over nobody opens or changes its memory."""
        with self._lock:
            if stream_id in self._opening:
                raise OpenAlreadyError(f"stream {stream_id} is being opened; try again when it is")
            if stream_id in self._ending:
                raise OpenAlreadyError(f"stream {stream_id} is being closed already")
            self._ending.add(stream_id)
            stream = self._streams.pop(stream_id, None)
        try:
            yield stream
        finally:
            with self._lock:
                self._ending.discard(stream_id)

    def _watch(self, engine: Engine, card: Card, opened: Opened) -> Stream:
        view = LiveView()
        opened.source.viewer = view
        live = opened.source.is_live
        session = self._session(
            engine, card, opened.source, queue_policy="drop-oldest" if live else "block", realtime=card.realtime
        )
        return self._take_in(engine, self._stream(card, session, view=view, file=opened.file))

    def _ask_alone(self, engine: Engine, card: Card, why: str) -> Stream:
        session = self._session(engine, card, None)
        note = f"The memory is asked alone; nothing is watched{f': {why}' if why else ''}."
        return self._take_in(engine, self._stream(card, session, view=LiveView(), note=note))

    def _stream(self, card: Card, session: Session, **more: Any) -> Stream:
        """A stream, with the standing questions that were kept with it."""
        stream = Stream(card, session, folder=self._library.folder(card.id), pass_on=self._delivery.put, **more)
        try:
            if session.source is not None:
                stream.note = " ".join([*filter(None, [stream.note]), *stream.alerts.resume()])
        except BaseException:
            session.close()
            raise
        return stream

    def _session(self, engine: Engine, card: Card, source: Source | None, **more: Any) -> Session:
        settings = {**self._settings, "dialogue": card.dialogue, **more}
        if card.fps is not None:
            settings["fps"] = card.fps
        return engine.open(source, memory=self._library.folder(card.id), preset=card.preset, start=False, **settings)

    def _take_in(self, engine: Engine, stream: Stream) -> Stream:
        stream.on_ask = lambda answer: self.on_ask(answer)
        try:
            with self._lock:
                stream.card = self._library.card(stream.id)  # it may have been changed while the stream was opened
                self._streams[stream.id] = stream
        except UnknownStreamError:
            stream.session.close()
            raise
        engine.serve(stream.session)
        return stream
