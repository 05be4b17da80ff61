"""A bounded queue before log observers that may block, in a thread of its own.

    reactor (and other threads) ── __call__ ── deque ── thread ── observers ── pipe, file, syslog

Only the thread calls the observers. When one of them blocks, lines wait, up to `LIMIT`; those past it are lost, and counted.
When one raises, the line is lost and counted, too, and the next one is tried. A line in their place tells of lost lines. It is
put among the lines that wait, if any do; otherwise the thread writes it as soon as a line could be written.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from ._text import ESCAPED, message_of, with_traceback

LIMIT: Final = 4 << 20
"""Characters that wait at most, `OVERHEAD` for each line included: some 8,000 lines."""

OVERHEAD: Final = 400
"""What a waiting event counts besides its text: its dictionary is some hundred bytes."""

FLUSH_TIMEOUT: Final = 2.0
"""Seconds at the end of the process for what waits to be written."""

_LOST: Final = "lost"

Observer = Callable[[LogEvent], None]
"""What Twisted calls `ILogObserver`."""


class Lossy(Protocol):
    """A log observer that counts the lines that it could not keep."""

    @property
    def lost(self) -> int:
        """Lines lost so far."""


@implementer(ILogObserver)
class LogQueue:
    """A log observer that hands events to others in its own thread. It never blocks and never raises."""

    def __init__(self, observers: Sequence[Observer] = (), *, keep_failures: bool = False, limit: int = LIMIT) -> None:
        """`keep_failures`: hand over tracebacks as the objects that they are, for observers that are not Owsla's."""
        self._observers = list(observers)
        self._limit = limit
        self._keep_failures = keep_failures
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, LogEvent]] = deque()
        self._size = 0
        self._writing = False
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._untold = 0
        self._works = True
        self._why = ""
        self._status = 1

    @property
    def lost(self) -> int:
        """Lines lost so far."""
        return self._lost

    def add(self, observer: Observer) -> None:
        """Hand events to this observer, too, from now on."""
        self._observers.append(observer)

    def __call__(self, event: LogEvent) -> None:
        event = self._fixed(event)
        size = len(event["log_text"]) + OVERHEAD
        with self._changed:
            if self._size + size > self._limit:
                self._lose("it is not read, or written too slowly")
                return
            if self._untold:
                self._waiting.append((OVERHEAD, self._report()))
                self._size += OVERHEAD
            self._waiting.append((size, event))
            self._size += size
            if self._thread is None:
                # A daemon: a write that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._run, name="owsla log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until everything is written, for `timeout` seconds at most. Returns whether it is."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def stopped(self) -> None:
        """Note that the process has stopped in order, and ends with status 0."""
        self._status = 0

    def end(self) -> None:
        """Flush; end the process where that takes too long, with status 0 if it has `stopped`, and 1 otherwise. For `atexit`.

        A thread that hangs in a write may hold a lock that the interpreter's own end waits for. What status the interpreter
        would end with is not known to `atexit`.
        """
        if not self.flush():
            os._exit(self._status)

    def _fixed(self, event: LogEvent) -> LogEvent:
        """Return an event whose text is made: what it was made from may change before it is written."""
        text = message_of(event) if self._keep_failures else with_traceback(event)
        fixed = {**event, "log_format": "{log_text}", "log_text": text, ESCAPED: True}
        fixed.pop("log_flattened", None)
        if not self._keep_failures:
            fixed.pop("log_failure", None)
        return fixed

    def _lose(self, why: str, lines: int = 1) -> None:
        self._lost += lines
        self._untold += lines
        self._why = why

    def _report(self) -> dict[str, Any]:
        """The line that says how many lines were lost."""
        lines, self._untold = self._untold, 0
        return {
            "log_level": LogLevel.warn,
            "log_namespace": "owsla",
            "log_time": time.time(),
            "log_format": "{log_text}",
            ESCAPED: True,
            "log_text": f"The log has lost {lines} line{'s' * (lines != 1)} here: {self._why}",
            _LOST: lines,
        }

    # -- in the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not (self._untold and self._works):
                    self._changed.wait()
                size, event = self._waiting.popleft() if self._waiting else (0, self._report())
                self._writing = True
            why = self._write(event)
            with self._changed:
                self._size -= size
                self._writing = False
                self._works = not why
                if why and _LOST in event:
                    self._untold += event[_LOST]
                elif why:
                    self._lose(why)
                if not self._waiting:
                    self._changed.notify_all()

    def _write(self, event: LogEvent) -> str:
        """Have all observers see an event. Returns why one of them could not."""
        why = ""
        for observer in self._observers:
            try:
                observer(dict(event))
            except OSError as error:
                why = (error.strerror or str(error)).lower()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        return why
