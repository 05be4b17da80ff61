"""The whole terminal, for a command that refreshes in place.

The alternate screen leaves what was on the terminal untouched. Whatever ends the command (Ctrl-C, SIGTERM, SIGHUP, an
exception) restores it, and so does a stop by Ctrl-Z, until the command goes on.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ._print import put

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""Switch to the alternate screen, and hide the cursor."""

_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
"""Clear the rest of the line: after its text, so that nothing flickers."""

_END_OF_SCREEN: Final = "\x1b[J"

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """The terminal of standard output, taken over within a `with` statement."""

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._modes: list[Any] | None = None
        self._wakeup = (-1, -1)

    def __enter__(self) -> Self:
        self._wakeup = os.pipe()
        for end in self._wakeup:
            os.set_blocking(end, False)
        # A signal wakes `wait`, which Python would continue otherwise.
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, _end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stop)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, _nothing)
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._give_back()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in self._wakeup:
            os.close(end)

    def show(self, lines: list[str], size: os.terminal_size) -> None:
        """Show lines of printable text in place of those before."""
        fitting = lines[: size.lines]
        put(_HOME + "\n".join(f"{line}{_END_OF_LINE}" for line in fitting) + _END_OF_SCREEN)

    def wait(self, seconds: float) -> bool:
        """Wait, or until the terminal has another size. Return false if the user has typed `q`."""
        deadline = time.monotonic() + seconds
        watched = [self._wakeup[0], *([0] if self._modes is not None else [])]
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left)
            if 0 in ready:
                typed = os.read(0, 64)
                if not typed:
                    watched.remove(0)  # the terminal has gone, or standard input is at its end
                if b"q" in typed or b"Q" in typed:
                    return False
            if self._wakeup[0] in ready and {signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT} & set(self._signals()):
                return True
        return True

    def _signals(self) -> bytes:
        try:
            return os.read(self._wakeup[0], 64)
        except BlockingIOError:
            return b""

    def _take(self) -> None:
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            self._modes = termios.tcgetattr(0)
            tty.setcbreak(0)  # keys arrive at once, and Ctrl-C is still a signal
        put(_ENTER)

    def _give_back(self) -> None:
        if self._modes is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
            self._modes = None
        put(_LEAVE)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back, stop as Ctrl-Z does, and take it again when the shell continues this process."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _nothing(number: int, frame: FrameType | None) -> None: ...


def full_screen() -> bool:
    """Return whether standard output is a terminal that can be refreshed in place."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
