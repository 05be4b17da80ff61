"""Standard output that may be slow, or end.

`owsla tail | less` stops reading after a screen. A write that waits for it must hold up neither heartbeats nor Ctrl-C, and
making the terminal non-blocking would do so for the shell as well. So a thread writes.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure


class Output:
    """Writes to a file descriptor in a thread of its own; what is done with is told in the reactor's."""

    def __init__(self, reactor: Any, gone: Callable[[str], None], fd: int = 1) -> None:
        """`gone` is told, perhaps more than once, that nothing can be written any more: why, or "" where the reader left."""
        self._reactor = reactor
        self._gone = gone
        self._fd = fd
        self._queue: SimpleQueue[tuple[bytes, Callable[[], None]]] = SimpleQueue()
        # A daemon, so that one who is stuck in a write does not hold up the end.
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            reactor.addReader(_Pipe(reactor, fd, gone))

    def write(self, data: bytes, then: Callable[[], None]) -> None:
        """Write all of `data`, and then call `then`."""
        self._queue.put((data, then))

    def _run(self) -> None:
        while True:
            data, then = self._queue.get()
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except BrokenPipeError:
                self._reactor.callFromThread(self._gone, "")
                return
            except OSError as error:
                self._reactor.callFromThread(self._gone, f"standard output: {(error.strerror or str(error)).lower()}")
                return
            self._reactor.callFromThread(then)


class _Pipe:
    """Watches the writing end of a pipe, which says one thing only: that nobody reads any more."""

    def __init__(self, reactor: Any, fd: int, gone: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._fd = fd
        self._gone = gone

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "standard output"

    def doRead(self) -> Exception:
        return ConnectionDone()

    def connectionLost(self, reason: Failure) -> None:
        self._reactor.removeReader(self)
        self._gone("")
