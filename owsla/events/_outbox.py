"""A handler with a bounded queue, for writers that block (files, databases) and therefore run in their own thread.

Theory of operation. The reactor's thread only appends to the queue. The writer's thread takes a batch every `LINGER` seconds
and writes it. If the writer raises `Trouble` (a full disk, a lost database), the thread keeps the batch and retries with
back-off. Events that do not fit into the queue meanwhile are dropped and counted. Any other exception is a defect: the handler
fails, and its supervisor restarts it. Results return to the reactor's thread with `callFromThread`; `_batch`, `_trouble` and
`_attempts` belong to the writer's thread, and everything else to the reactor's. The reactor's thread reads the length of
`_batch` for statistics, and replaces it only after the writer's thread has failed.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock
from ._manager import EventManager, Fail, HandlerStats
from ._types import Event, EventsDropped

LIMIT: Final = 20_000
"""Limit on queued events: some 5 MB, or 20 s of a thousand reconnecting devices per second."""

BATCH: Final = 500
"""Events per batch. Transactions of more than some hundred rows gain little in a database."""

LINGER: Final = 0.2
"""Seconds to collect events before they are written, so that the thread wakes up five times per second and not a thousand
times."""

FIRST_WAIT: Final = 0.5
"""Seconds from the first failed attempt to the next; doubled after each further one, as for connections to the broker."""

LONGEST_WAIT: Final = 30.0
"""Limit of the seconds between attempts."""

STOP_WITHIN: Final = 3.0
"""Seconds to write the queued events at a stop; less than the 5 s that a supervisor allows for the stop of a worker."""


class Record(NamedTuple):
    """An event with its node, number and time."""

    node: str
    """Node of the event."""
    number: int
    """Number among the events of this node for this handler. A missing number is a dropped event."""
    time: float
    """Time of the event in seconds since the epoch."""
    event: Event


class Trouble(Exception):
    """A temporary fault outside of Owsla: the batch is retried. The text is one line."""


class Writer(Protocol):
    """The interface of writers. All methods run in the writer's thread, except `reopen`."""

    def write(self, batch: Sequence[Record]) -> int:
        """Store all events, or raise `Trouble` and store none. Return the number of events that can never be stored."""

    def reopen(self) -> None:
        """Reopen files at the next `write`. May be called from the reactor's thread."""

    def close(self) -> None:
        """Release all resources."""


class Spool:
    """Bounded queue between one thread that only puts and one that only takes."""

    __slots__ = ("_items", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # append and popleft of a deque are atomic, so no lock is needed.
        self._items: deque[Record] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, record: Record) -> bool:
        """Append a record. Return `False` if the queue is full."""
        if len(self._items) >= self.limit:
            return False
        self._items.append(record)
        return True

    def take(self, most: int) -> list[Record]:
        """Take up to `most` of the oldest records, without waiting."""
        items = self._items
        return [items.popleft() for _ in range(min(most, len(items)))]


@dataclass(frozen=True, slots=True)
class OutboxSizes:
    """Sizes and times of an outbox."""

    limit: int = LIMIT
    batch: int = BATCH
    linger: float = LINGER
    """Seconds to collect events before they are written."""


DEFAULT_SIZES: Final = OutboxSizes()


class Outbox:
    """Event handler that passes events in batches to a writer in another thread."""

    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        manager: EventManager,
        writer: Writer,
        stats: HandlerStats,
        *,
        in_reactor: Callable[..., Any],
        sizes: OutboxSizes = DEFAULT_SIZES,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`in_reactor(f, ...)` calls `f` in the reactor's thread (`callFromThread`)."""
        self._clock = clock
        self._manager = manager
        self._writer = writer
        self._stats = stats
        self._in_reactor = in_reactor
        self._batch_size = sizes.batch
        self._linger = sizes.linger
        self._random = random
        self._spool = Spool(sizes.limit)
        self._unreported = 0
        self._fail: Fail | None = None
        self._thread: threading.Thread | None = None
        self._finished: Deferred[None] | None = None
        self._over = False
        # Used by the writer's thread only
        self._batch: list[Record] = []
        self._trouble: str | None = None
        self._attempts = 0
        # Used by both threads
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def __len__(self) -> int:
        return len(self._spool) + len(self._batch)

    # -- in the reactor's thread -----------------------------------------------------------------------------------------

    def handle(self, event: Event, node: str, when: float) -> None:
        """Queue an event, or count it as dropped if the queue is full."""
        stats = self._stats
        if not self._spool.put(Record(node, stats.count(node), when, event)):
            stats.dropped += 1
            self._unreported += 1
            return
        if not self._wake.is_set():  # `is_set` takes no lock, `set` does
            self._wake.set()

    def start(self, fail: Fail) -> None:
        """Start the writer's thread. `fail` is called with an unexpected exception of the writer."""
        self._fail = fail
        # A daemon thread: a write that hangs must not prevent the process from exiting.
        self._thread = threading.Thread(target=self._run, name=f"owsla events {self._stats.name}", daemon=True)
        self._thread.start()

    def stop(self) -> Deferred[None]:
        """Write the queued events, in one attempt, and close the writer.

        The Deferred fires when that is done, or after `STOP_WITHIN`.
        """
        if self._thread is None or self._over:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._finished = finished
        self._stopping.set()
        self._wake.set()
        time_limit = self._clock.callLater(STOP_WITHIN, self._finish)

        def done(result: None) -> None:
            if time_limit.active():
                time_limit.cancel()

        finished.addCallback(done)
        return finished

    def reopen(self) -> None:
        """Reopen the files of the writer before its next write."""
        self._writer.reopen()

    def _finish(self) -> None:
        """Complete the stop: the thread has ended, or the time limit is over."""
        self._over = True
        finished, self._finished = self._finished, None
        if finished is None:
            return
        rest = len(self)
        if rest:
            self._stats.dropped += rest
            self._log.warn("{handler}: stopped with {rest} events not written", handler=self._stats.name, rest=rest)
        finished.callback(None)

    def _writer_failed(self, failure: Failure) -> None:
        """Handle an unexpected exception of the writer."""
        self._stats.dropped += len(self)
        self._batch = []
        if self._fail is not None:
            self._fail(failure)

    def _report_trouble(self, trouble: str) -> None:
        self._log.warn("{handler}: {trouble}; trying again", handler=self._stats.name, trouble=trouble)

    def _recovered(self) -> None:
        self._log.info("{handler}: working again", handler=self._stats.name)

    def _written(self, count: int, unfit: int) -> None:
        self._stats.handled += count - unfit
        self._stats.dropped += unfit
        self._unreported += unfit
        # Not while the queue is full, in which case the report would be dropped, too.
        if self._unreported and len(self._spool) < self._spool.limit:
            unreported, self._unreported = self._unreported, 0
            self._manager.emit(EventsDropped(self._stats.name, unreported))

    # -- in the writer's thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.wait()
                self._stopping.wait(self._linger)
                # Cleared before the queue is emptied: an event that is queued during the write sets it again.
                self._wake.clear()
                self._write_all()
            # With a trouble, `_write_all` has made the last attempt already.
            if self._trouble is None:
                self._write_all()
        except Exception:
            self._in_reactor(self._writer_failed, Failure())
        finally:
            try:
                self._writer.close()
            except Exception:
                self._in_reactor(self._log.failure, "Closing {handler} failed", Failure(), handler=self._stats.name)
            self._in_reactor(self._finish)

    def _write_all(self) -> None:
        """Write batches until the queue is empty. A stop ends the back-off; if the next attempt fails, it is the last."""
        while (wait := self.work()) is not None:
            if wait and self._stopping.wait(wait) and self.work() != 0.0:
                return

    def work(self) -> float | None:
        """Write a batch. Return the seconds to wait before the next call: 0 after a success, the back-off after a `Trouble`.

        Return `None` if there is nothing to write.
        """
        if not self._batch:
            self._batch = self._spool.take(self._batch_size)
            if not self._batch:
                return None
        try:
            unfit = self._writer.write(self._batch)
        except Trouble as trouble:
            text = str(trouble)
            if text != self._trouble:
                self._trouble = text
                self._in_reactor(self._report_trouble, text)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(self._attempts, 32))
            self._attempts += 1
            return float(wait * (0.5 + self._random() / 2))
        if self._trouble is not None:
            self._trouble = None
            self._in_reactor(self._recovered)
        self._attempts = 0
        count, self._batch = len(self._batch), []
        self._in_reactor(self._written, count, unfit)
        return 0.0
