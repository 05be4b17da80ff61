"""Signals and the end of standard output, which end the demo, and the wait of its parent for them."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ends:
    """The signals, and the end of standard output, within a `with` statement.

    Signals are noted and raise nothing, so that neither a folder that is being made nor a process that is being started is
    forgotten.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._read, self._write = -1, -1
        self._signals = 0
        self._output_ended = False

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in ENDING:
            # Ignored by nohup(1), or by a shell for a process in the background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        # A handler, for a byte in the pipe when a child ends.
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    @property
    def signals(self) -> int:
        """Return the number of signals so far that end the demo."""
        return self._signals

    @property
    def come(self) -> bool:
        """Return whether the demo shall end."""
        return self._signals > 0 or self._output_ended

    def wake(self) -> None:
        """End the wait. Called from any thread."""
        try:
            os.write(self._write, b"\0")
        except (BlockingIOError, OSError):
            pass  # it is being woken up already, or has ended

    def wait(self, seconds: float, *, watch_output: bool = True) -> None:
        """Wait for a signal, the end of a child or of standard output, or a call of `wake`; at most some seconds.

        The reader of a pipe that has gone is an error condition (POLLERR), and so is a terminal that was closed (POLLHUP).
        """
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        if watch_output:
            poll.register(1, 0)
        deadline = time.monotonic() + seconds
        # Python continues a `poll` after a signal; the pipe has a byte then.
        for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if descriptor == 1:
                self._output_ended = True
            else:
                self._drain()

    def _drain(self) -> None:
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass


def _nothing(number: int, frame: FrameType | None) -> None: ...
