"""A terminal for tests: the installed command on a pseudo-terminal, what it shows, and keys to press."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

VSTREAM = Path(sys.executable).with_name("vstream")
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[^\[]")


class Terminal:
    """Runs `vstream ARGUMENTS` on a terminal of `columns` x `rows`; a context manager that leaves no process behind."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self._screen, self._terminal = pty.openpty()
        self.resize(columns, rows)
        self._before = termios.tcgetattr(self._terminal)
        environment = os.environ | {"TERM": "xterm-256color"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self._shown = b""
        self.process = subprocess.Popen(
            [VSTREAM, *arguments],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)
        os.close(self._screen)

    def resize(self, columns: int, rows: int) -> None:
        """Another size, as when a person drags the window."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        """Presses keys; "\\r" is Enter."""
        os.write(self._screen, text.encode())

    @property
    def text(self) -> str:
        """All that was ever shown, without colours and movements."""
        return ESCAPES.sub("", self.raw)

    @property
    def raw(self) -> str:
        """All that was ever written."""
        return self._shown.decode(errors="replace")

    def wait_for(self, pattern: str, *, seconds: float = 60.0, after: int = 0) -> re.Match[str]:
        """Waits until a pattern is shown behind the first `after` characters of `text`."""
        deadline = time.monotonic() + seconds
        while (found := re.compile(pattern).search(self.text, after)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.text[after:]!r}"
            assert self._read(0.1) or self.process.poll() is None, (
                f"it ended without {pattern!r}: {self.text[after:]!r}"
            )
        return found

    def ends(self, *, seconds: float = 60.0) -> int:
        """Waits for the end; the exit code. The terminal is then as it was."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self._read(0.1)
            assert time.monotonic() < deadline, f"it does not end: {self.text!r}"
        while self._read(0.1):
            pass
        assert termios.tcgetattr(self._terminal) == self._before, "the terminal's settings were not restored"
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self._screen], [], [], seconds)[0]:
            return False
        self._shown += os.read(self._screen, 65536)
        return True
