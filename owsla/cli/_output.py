"""Standard output that can block or end.

`owsla tail | less` stops reading after a screen. A blocked write must delay neither heartbeats nor Ctrl-C. A terminal cannot be
made non-blocking, since the shell shares it and would get non-blocking reads. So a thread writes.
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
    """A file descriptor written to by a thread. Callbacks run in the reactor thread."""

    def __init__(self, reactor: Any, gone: Callable[[str], None], fd: int = 1) -> None:
        """Start the thread.

        `gone` is called, perhaps more than once, when nothing can be written any longer: with the reason, or "" if the reader
        has closed the pipe.
        """
        self._reactor = reactor
        self._gone = gone
        self._fd = fd
        self._queue: SimpleQueue[tuple[bytes, Callable[[], None]]] = SimpleQueue()
        # A daemon thread, so that a blocked write does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            reactor.addReader(_Pipe(reactor, fd, gone))

    def write(self, data: bytes, then: Callable[[], None]) -> None:
        """Write all of `data`, then call `then`."""
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
    """The writing end of a pipe, watched for the close of the reading end, the only event that makes it readable."""

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
