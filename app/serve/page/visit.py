"""What one open page shows and does: acts on the hub, and makes the HTML of every part. Knows nothing of Gradio."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from vstream.app.serve.errors import told
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import MAX_TITLE, UnknownStreamError, title_of, without_folders
from vstream.app.serve.page.alerts import standing_questions
from vstream.app.serve.page.chat import conversation
from vstream.app.serve.page.gauges import gauges, overlay
from vstream.app.serve.page.html import data, notice
from vstream.app.serve.page.map import lanes_of, memory_map
from vstream.app.serve.page.parts import chat_head, shelf, top
from vstream.app.serve.stream import Stream, Turn
from vstream.standing import AlertOptions

SAMPLE = "sample"
SETTLE_SECONDS = 3.0
"""So long after its last change a part is sent again, in case two messages crossed."""
KEPT_NOTES = 32
"""Questions of which a page is told whether they were taken: as many as it may have sent before it hears of one."""
MAX_VISITS = 1000
"""Open pages. An open one says every second, or at least every minute, that it is there."""
What = Mapping[str, str]
"""What a button carries: names and texts, from a browser."""


class Panels(NamedTuple):
    """HTML of all that changes on the page; None where it is as it was."""

    state: str | None
    top: str | None
    overlay: str | None
    gauges: str | None
    map: str | None
    alerts: str | None
    head: str | None
    log: str | None
    shelf: str | None
    notice: str | None


class Visits:
    """Which page shows what, by the page's own session; of too many the one is forgotten that was quiet longest."""

    def __init__(self, most: int = MAX_VISITS) -> None:
        self._most = most
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, session: str, visit: Visit) -> None:
        """Remembers a page that was just opened."""
        with self._lock:
            self._visits[session] = visit
            if len(self._visits) > self._most:
                self._visits.popitem(last=False)

    def find(self, session: str) -> Visit | None:
        """What a page shows; None before it is loaded, and when it is forgotten."""
        with self._lock:
            if session in self._visits:
                self._visits.move_to_end(session)
            return self._visits.get(session)

    def found(self, session: str) -> Visit:
        """The same, for a page that is loaded. Raises `LookupError`."""
        visit = self.find(session)
        if visit is None:
            raise LookupError("this page was forgotten; load it again")
        return visit


class Visit:
    """One open page: which stream it shows, and what it was told last.

    Attributes:
        stream_id: of the stream that is shown, "" for the beginning.
    """

    def __init__(self, hub: Hub, stream_id: str = "") -> None:
        """Shows a stream if it is open, else the beginning."""
        self._hub = hub
        self.stream_id = stream_id
        self._notice, self._note, self._busy, self._acts = "", "", "", 0
        self._taken: deque[str] = deque(maxlen=KEPT_NOTES)
        self._refused: deque[str] = deque(maxlen=KEPT_NOTES)
        self._sent: dict[str, tuple[str, float]] = {}
        if self.stream is None:
            self.stream_id = ""

    @property
    def stream(self) -> Stream | None:
        """The stream that is shown; None for the beginning, or when it was closed elsewhere."""
        return next((stream for stream in self._hub.streams() if stream.id == self.stream_id), None)

    def act(self, what: What) -> Iterator[Panels]:
        """Does what a button says; the page before what takes long, and after it. Errors are told on the page."""
        self._acts += 1
        self._notice = self._note = ""
        if what.get("do") in SLOW:
            self._busy = SLOW[what["do"]]
            yield self.panels()
        try:
            ACTS[what.get("do", "")](self, what)
        except (ValueError, RuntimeError, LookupError, OSError) as error:
            self._notice = sentence(error)
        self._busy = ""
        self._acts += 1
        yield self.panels(with_shelf=True)

    def ask(self, what: What) -> Turn | None:
        """Asks about a stream; None where that will not do. The page is told which, by the note that it gave along."""
        self._notice = self._note = ""
        try:
            turn = self._hub.stream(what.get("stream", "")).ask(what.get("question", ""))
        except (ValueError, RuntimeError, LookupError) as error:
            self._notice = sentence(error)
            self._refused.append(what.get("note", ""))
            return None
        self._taken.append(what.get("note", ""))
        return turn

    # What buttons do

    def _open(self, what: What) -> None:
        source = what.get("source", "")
        stream = self._hub.open(
            source,
            title="Sample" if source == SAMPLE else None,
            model=what.get("model") or None,
            preset=what.get("preset") or None,
            kept=bool(what.get("kept")),
            realtime=source == SAMPLE or what.get("pace") == "play",
        )
        self._begin({"stream": stream.id})

    def _begin(self, what: What) -> None:
        """Shows a stream that was just opened; of several with one name the later ones get a number."""
        stream = self._hub.stream(what["stream"])
        title = stream.card.title
        others = {one.card.title for one in self._hub.streams() if one.id != stream.id}
        if title in others:
            number = next(number for number in count(2) if f"{title} {number}" not in others)
            self._hub.rename(stream.id, title_of(f"{title[: MAX_TITLE - 5]} {number}"))
        self.stream_id = stream.id

    def _show(self, what: What) -> None:
        self.stream_id = self._hub.stream(what["stream"]).id

    def _home(self, what: What) -> None:
        self.stream_id = ""

    def _close(self, what: What) -> None:
        self._hub.close_stream(what["stream"])
        self.stream_id = ""

    def _keep(self, what: What) -> None:
        self._hub.keep(what["stream"])

    def _keep_and_close(self, what: What) -> None:
        self._keep(what)
        self._close(what)

    def _resume(self, what: What) -> None:
        stream = self._hub.resume(what["memory"])
        self.stream_id, self._note = stream.id, without_folders(stream.note)

    def _rename(self, what: What) -> None:
        self._hub.rename(what["memory"], what.get("title", ""))

    def _delete(self, what: What) -> None:
        self._hub.delete(what["memory"])

    def _heard(self, what: What) -> None:
        """The sentence about what went wrong was read; `act` has taken it away."""

    def _stop(self, what: What) -> None:
        self._hub.stream(what["stream"]).turn(int(what["turn"])).answer.cancel()

    def _tell(self, what: What) -> None:
        self._hub.stream(what["stream"]).alerts.add(what.get("text", ""), AlertOptions())

    def _untell(self, what: What) -> None:
        with suppress(LookupError):  # somebody else was quicker
            self._hub.stream(what["stream"]).alerts.remove(what["alert"])

    # What is shown

    def panels(self, *, with_shelf: bool = False) -> Panels:
        """The page as it stands."""
        stream = self.stream
        streams = self._hub.streams()
        look = stream.look() if stream else None
        turns = stream.turns if stream else ()
        return Panels(
            state=self._state(stream, streams),
            top=top(streams, stream.id if stream else ""),
            overlay=overlay(stream, look) if stream and look else "",
            gauges=gauges(look, [turn.answer for turn in turns if turn.asked_at is not None]) if look else "",
            map=self._map(stream) if stream else "",
            alerts=standing_questions(stream) if stream else "",
            head=chat_head(stream) if stream else "",
            log=conversation(stream) if stream else "",
            shelf=self._shelf(streams) if with_shelf else None,
            notice=self.told(),
        )

    def told(self) -> str:
        """What is said above the question, and which questions were taken or refused."""
        notes = {"taken": " ".join(self._taken), "refused": " ".join(self._refused)}
        text = (self._notice or self._note) if self.stream_id else ""
        return notice(text, trouble=bool(self._notice), **notes)

    def news(self) -> Panels:
        """Those panels that have changed within the last seconds."""
        if self.stream_id and self.stream is None:
            self.stream_id, self._notice = "", "The stream that was shown here was closed elsewhere."
            self._acts += 1
            return self.panels(with_shelf=True)
        return Panels(**{name: self._fresh(name, html) for name, html in self.panels()._asdict().items()})

    def _fresh(self, name: str, html: str | None) -> str | None:
        before, changed = self._sent.get(name, (None, 0.0))
        if html is not None and html != before:
            changed = time.monotonic()
            self._sent[name] = html, changed
        return html if time.monotonic() - changed < SETTLE_SECONDS else None

    def _state(self, stream: Stream | None, streams: list[Stream]) -> str:
        values = {
            "view": "watch" if stream else "home",
            "stream": stream.id if stream else "",
            "file": "1" if stream and stream.file else "",
            "poster": _poster(stream) if stream else "",
            "over": "1" if stream and stream.state in OVER else "",
            "streams": " ".join(one.id for one in streams),
            "busy": self._busy,
            "told": "" if stream else self._notice,
            "acts": self._acts,
        }
        return f'<div id="state"{data(values)}></div>'

    def _map(self, stream: Stream) -> str:
        answers = [turn.answer for turn in stream.turns if turn.answer.recalled]
        clock = stream.look().clock_seconds or 0.0
        return memory_map(lanes_of(stream.session.rows()), answers[-1].recalled if answers else (), clock)

    def _shelf(self, streams: list[Stream]) -> str:
        return shelf(self._hub.memories(), frozenset(stream.id for stream in streams))


def _poster(stream: Stream) -> str:
    """The time of the newest picture, where no newer one comes or none has come since the opening; else ""."""
    seconds = stream.look().clock_seconds
    is_live = stream.state not in OVER and stream.view.age_seconds is not None
    return "" if seconds is None or is_live else f"{seconds:.3f}"


OVER = ("over", "memory", "failed", "closed")
"""States in which nothing new is seen."""
SLOW = {
    "open": "Opening it; the first time a model is loaded this takes a moment…",
    "resume": "Opening the memory…",
}
ACTS = {
    "open": Visit._open,
    "begin": Visit._begin,
    "show": Visit._show,
    "home": Visit._home,
    "close": Visit._close,
    "keep": Visit._keep,
    "keep-close": Visit._keep_and_close,
    "resume": Visit._resume,
    "rename": Visit._rename,
    "delete": Visit._delete,
    "heard": Visit._heard,
    "stop": Visit._stop,
    "tell": Visit._tell,
    "untell": Visit._untell,
}


def sentence(error: Exception) -> str:
    """An error as people read it: one sentence, beginning with a capital."""
    text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    if isinstance(error, UnknownStreamError):
        text = "this stream or memory is no longer there; it was closed or deleted elsewhere"
    elif isinstance(error, OSError):
        text = str(told(error))
    text = without_folders(text)
    return text[:1].upper() + text[1:] if text else type(error).__name__
