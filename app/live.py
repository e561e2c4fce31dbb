"""The live view: on a terminal, shows every source while it is watched, and takes questions at any time.

What is drawn is made in `view.py`; this module puts it above a prompt, four times a second. Finished answers and
sentences go above it, into the terminal's own scrollback. It knows nothing of models.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from vstream.app.alerts.standing import since_seconds
from vstream.app.desk import Asked, Desk
from vstream.app.looks import Lookout
from vstream.app.news import News
from vstream.app.questions import Scheduled
from vstream.app.terminal import TerminalScreen
from vstream.app.typed import HELP, Cancel, Command, Question, parse_typed
from vstream.app.view import STYLES, GoingOn, OpenAnswer, hint_line, live_lines

if TYPE_CHECKING:
    from vstream.app.output import PictureFolder

REFRESH_SECONDS = 0.25
BELOW_LINES = 2
"""The prompt and the hint below it."""


class LiveScreen(TerminalScreen):
    """Shows a run on a terminal, and takes what a person types."""

    def __init__(self, pictures: PictureFolder, *, stay: bool) -> None:
        """`pictures` is where the evidence goes; `stay` keeps the prompt when all sources are over."""
        super().__init__(pictures, stay=stay)

    def run(self, desk: Desk) -> Literal["over", "left"]:
        """Watches until all is over and answered and nothing is being typed, or until a person leaves."""
        with patch_stdout(raw=True), Lookout(desk.watched) as lookout:
            return asyncio.run(_LiveRun(self, desk, lookout, self._stay).run())


class _LiveRun:
    """One run: the application, and what it does when something is typed or time passes."""

    def __init__(self, screen: LiveScreen, desk: Desk, lookout: Lookout, stay: bool) -> None:
        self._screen, self._desk, self._lookout, self._stay = screen, desk, lookout, stay
        self._news, self._began = News(desk.watched), time.perf_counter()
        self._input = Buffer(history=InMemoryHistory(), accept_handler=self._accept, multiline=False)
        self._app: Application[Literal["over", "left"]] = Application(
            layout=self._layout(),
            key_bindings=self._keys(),
            style=Style.from_dict(STYLES),
            input=_Input(sys.stdin),
            output=_output(),
            refresh_interval=REFRESH_SECONDS,
            erase_when_done=True,
        )

    async def run(self) -> Literal["over", "left"]:
        attending: list[asyncio.Task[None]] = []

        def begin() -> None:
            attending.append(asyncio.create_task(self._attend()))
            attending[0].add_done_callback(self._attended)

        with _signals_between_steps():
            ending = await self._app.run_async(begin, handle_sigint=False)  # signals are the command's own
        if attending[0].done():
            attending[0].result()  # raises what it ended by, if it did not end well
        attending[0].cancel()
        return ending

    def _attended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and self._app.is_running and not self._app.is_done:
            self._app.exit(result="over")

    async def _attend(self) -> None:
        """Shows what has happened, until there is nothing left to wait for."""
        while self._desk.watching or not self._desk.answered or self._stay or self._input.text:
            await asyncio.sleep(REFRESH_SECONDS / 2)
            self._tell(self._desk.catch_up())
            for asked in self._desk.take(lambda one: one.answer.done):
                self._show(asked)
            if self._desk.alerts:
                self._screen.show_events(self._desk.alerts)
            self._tell(self._news.sentences())
            if all(one.session.failure for one in self._desk.watched):
                return

    def _show(self, asked: Asked) -> None:
        error = self._desk.told_error(asked)
        if error:
            self._screen.tell(error)
        elif asked.answer.error is None:
            self._screen.show_finished(asked)

    def _tell(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._screen.tell(sentence)

    # What is typed --------------------------------------------------------------------------------------------------

    def _accept(self, buffer: Buffer) -> bool:
        """A line was typed; False empties the prompt."""
        line = " ".join(buffer.text.split())
        if line:
            try:
                self._do(parse_typed(line))
            except (ValueError, RuntimeError) as error:
                self._screen.tell(str(error))
        return False

    def _do(self, typed: Question | Cancel | Command) -> None:
        if isinstance(typed, Question):
            self._desk.ask_of(Scheduled(typed.text, "now"), typed.about)
        elif isinstance(typed, Cancel):
            self._screen.tell(self._desk.cancel(typed.number))
        elif typed.name == "quit":
            self._app.exit(result="left")
        elif typed.name == "help":
            self._screen.print(HELP)
        else:
            self._screen.print_status(self._desk, time.perf_counter() - self._began)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            signal.raise_signal(signal.SIGINT)  # as if the terminal were not in raw mode

        @keys.add("c-d")
        def _(event: KeyPressEvent) -> None:
            if self._input.text:
                self._input.delete()
            else:
                event.app.exit(result="left")

        @keys.add("c-l")
        def _(event: KeyPressEvent) -> None:
            event.app.renderer.clear()

        return keys

    # What is drawn --------------------------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        prompt = BufferControl(self._input, input_processors=[BeforeInput("> ", style="class:prompt")])
        return Layout(
            HSplit(
                [
                    Window(FormattedTextControl(self._above), dont_extend_height=True),
                    Window(prompt, height=1),
                    Window(FormattedTextControl(self._below), height=1),
                ]
            ),
            focused_element=prompt,
        )

    def _above(self) -> StyleAndTextTuples:
        size = self._app.output.get_size()
        width, rows = max(8, size.columns - 1), max(1, size.rows - BELOW_LINES - 1)
        lines = live_lines(
            self._lookout.looks(), [_shown(one) for one in self._desk.open if _is_shown(one)], width, rows,
            self._going_on(),
        )  # fmt: skip
        parts: StyleAndTextTuples = [part for line in lines for part in (*line, ("", "\n"))]
        return parts[:-1]

    def _going_on(self) -> list[GoingOn]:
        alerts = self._desk.alerts.alerts if self._desk.alerts else []
        return [GoingOn(one.label, alert.text, since_seconds(alert)) for one, alert in alerts]

    def _below(self) -> StyleAndTextTuples:
        waiting = sum(not _is_shown(one) for one in self._desk.open)
        return [*hint_line(waiting, self._app.output.get_size().columns - 1)]


@contextmanager
def _signals_between_steps() -> Iterator[None]:
    """The command's own handlers, called by the loop: what they raise can then never break off a clean-up half-way."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    raised = False

    def call(number: signal.Signals) -> None:
        nonlocal raised
        raised = True
        before[number](number, None)

    for number in before:
        loop.add_signal_handler(number, call, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if raised else handler)  # a second signal ends the process


class _Input(Vt100Input):
    """Keys; they stay keys while an answer is printed: in cooked mode a Ctrl-D then would end all input."""

    def cooked_mode(self) -> AbstractContextManager[None]:
        return nullcontext()


def _output() -> Vt100_Output:
    """The terminal; it is not asked where its cursor is, as not every one answers."""
    assert sys.__stdout__ is not None, "there is a terminal"
    return Vt100_Output(sys.__stdout__, _size, term=os.environ.get("TERM"), enable_cpr=False)


def _size() -> Size:
    assert sys.__stdout__ is not None, "there is a terminal"
    columns, rows = os.get_terminal_size(sys.__stdout__.fileno())
    return Size(rows=rows or 24, columns=columns or 80)  # some terminals do not tell


def _is_shown(asked: Asked) -> bool:
    """Whether an answer is more than scheduled."""
    return asked.now or asked.begun or asked.answer.place > 0


def _shown(asked: Asked) -> OpenAnswer:
    answer = asked.answer
    return OpenAnswer(
        asked.number, asked.watched.label, answer.question, answer.place, answer.text_so_far, answer.num_tokens
    )
