"""Bounded queue in front of log observers that may block, with a thread of its own.

    reactor (and other threads) ── __call__ ── deque ── thread ── observers ── pipe, file, syslog

Only the thread calls the observers. While one of them blocks, events wait, up to `LIMIT`; further events are lost. When an
observer raises, the event is lost too, and the thread goes on with the next one.

Lost lines are counted, and a line of the log reports them in their place: before the next event that enters the queue or, if no
event waits, as soon as a line could be written again. If a report cannot be written, its count is added to the next report.
After a failed write the thread waits for the next event and does not try a report alone, because it would spin on a full disk.
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

from ._text import ESCAPED, FIELDS, TRACEBACK, message_of, parts_of, pluralize

LIMIT: Final = 4 << 20
"""Limit of the waiting events in characters, with `OVERHEAD` for each event: some 8,000 lines."""

OVERHEAD: Final = 400
"""Characters that a waiting event counts in addition to its text: its dictionary takes some hundred bytes."""

FLUSH_TIMEOUT: Final = 2.0
"""Seconds to wait at the end of the process for the waiting events to be written."""

_LOST: Final = "lost"
"""Key of a report of lost lines, for their number."""

Observer = Callable[[LogEvent], None]
"""Type of an `ILogObserver`."""


class Lossy(Protocol):
    """Log observer that counts the lines that it loses."""

    @property
    def lost(self) -> int:
        """Number of lines lost."""


@implementer(ILogObserver)
class LogQueue:
    """Log observer that passes events to others in its own thread. It never blocks and never raises."""

    def __init__(
        self, observers: Sequence[Observer] = (), *, keep_failures: bool = False, held: bool = False, limit: int = LIMIT
    ) -> None:
        """`keep_failures`: pass on `Failure` objects, instead of tracebacks in the text, for observers that are not Owsla's.

        `held`: let events wait until `start`, in a process that forks before.
        """
        self._observers = list(observers)
        self._limit = limit
        self._keep_failures = keep_failures
        self._held = held
        self._changed = threading.Condition()
        """Condition that guards all attributes below and is notified when the queue changes."""
        self._waiting: deque[tuple[int, LogEvent]] = deque()
        self._size = 0
        self._writing = False
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._unreported = 0
        self._loss_reason = ""
        self._write_succeeded = True
        self._exit_status = 1

    @property
    def lost(self) -> int:
        """Number of lines lost."""
        return self._lost

    def add(self, observer: Observer) -> None:
        """Add an observer of all further events."""
        self._observers.append(observer)

    def __call__(self, event: LogEvent) -> None:
        event = self._formatted(event)
        size = len(event["log_text"]) + (len(str(event[FIELDS])) if FIELDS in event else 0) + OVERHEAD
        with self._changed:
            if self._size + size > self._limit:
                self._lose("it is not read, or written too slowly")
                return
            if self._unreported:
                self._waiting.append((OVERHEAD, self._loss_report()))
                self._size += OVERHEAD
            self._waiting.append((size, event))
            self._size += size
            if self._thread is None and not self._held:
                self._start()
            self._changed.notify_all()

    def start(self) -> None:
        """Begin to write: the process does not fork any more."""
        with self._changed:
            self._held = False
            if self._waiting and self._thread is None:
                self._start()

    def _start(self) -> None:
        # A daemon thread: a write that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="owsla log", daemon=True)
        self._thread.start()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until all events are written, at most `timeout` seconds. Return whether all were written in time."""
        # An observer that flushes would wait for its own return.
        if threading.current_thread() is self._thread:
            return False
        self.start()
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def note_clean_stop(self) -> None:
        """Note that the reactor stopped normally, so that `flush_or_exit` ends the process with status 0."""
        self._exit_status = 0

    def flush_or_exit(self) -> None:
        """Flush, as the last handler of `atexit`. If that takes too long, end the process at once, with status 0 after a clean
        stop and 1 otherwise.

        At its exit the interpreter may wait for a lock that the thread holds in a write that hangs. `atexit` does not know the
        exit status of the interpreter, so `note_clean_stop` sets it.
        """
        if not self.flush():
            os._exit(self._exit_status)

    def _formatted(self, event: LogEvent) -> LogEvent:
        """Return an event with its text formatted now: the values in it may change before it is written."""
        formatted = {**event, "log_format": "{log_text}", ESCAPED: True}
        formatted.pop("log_flattened", None)
        if self._keep_failures:
            formatted["log_text"] = message_of(event)
            return formatted
        text, trace = parts_of(event)
        formatted["log_text"] = f"{text}\n{trace}".strip("\n") if trace else text
        if trace:
            formatted[TRACEBACK] = trace
        formatted.pop("log_failure", None)
        return formatted

    def _lose(self, reason: str, lines: int = 1) -> None:
        self._lost += lines
        self._unreported += lines
        self._loss_reason = reason

    def _loss_report(self) -> dict[str, Any]:
        lines, self._unreported = self._unreported, 0
        return {
            "log_level": LogLevel.warn,
            "log_namespace": "owsla",
            "log_time": time.time(),
            "log_format": "{log_text}",
            ESCAPED: True,
            "log_text": f"The log has lost {pluralize(lines, 'line')} here: {self._loss_reason}",
            _LOST: lines,
        }

    # -- in the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not (self._unreported and self._write_succeeded):
                    self._changed.wait()
                size, event = self._waiting.popleft() if self._waiting else (0, self._loss_report())
                self._writing = True
            error = self._write(event)
            with self._changed:
                self._size -= size
                self._writing = False
                self._write_succeeded = not error
                if error and _LOST in event:
                    self._unreported += event[_LOST]  # counted as lost already
                elif error:
                    self._lose(error)
                if not self._waiting:
                    self._changed.notify_all()

    def _write(self, event: LogEvent) -> str:
        """Pass an event to all observers. Return the last of their errors, or an empty text."""
        text = ""
        for observer in self._observers:
            try:
                observer(dict(event))
            except OSError as error:
                text = (error.strerror or str(error)).lower()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
        return text
