"""A bounded queue before a writer that blocks, in a thread of its own: files and databases.

The reactor's thread only appends to the queue. The other one takes a batch now and then, writes it, and while that cannot be
done (a full disk, a lost database) keeps the batch and tries again with back-off; what does not fit meanwhile is dropped and
counted.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock
from ._manager import EventManager, Fail, HandlerStats
from ._types import Event, EventsDropped

LIMIT: Final = 20_000
"""Events that wait for a writer at most: some 5 MB, and 20 s of a stampede of a thousand devices a second."""

BATCH: Final = 500
"""Events written at a time: past some hundred rows a transaction a database gains little."""

LINGER: Final = 0.2
"""Seconds in which events gather before they are written, so that a thread wakes five times a second and not a thousand."""

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0
"""Seconds between attempts, doubling from the first: those of the connections to the broker."""

STOP_WITHIN: Final = 3.0
"""Seconds for what is queued to be written at the end; less than the 5 s that a supervisor gives a worker."""


class Record(NamedTuple):
    """An event, with what only the one who is told of it knows."""

    node: str
    """Where it happened."""
    number: int
    """Counts the events of that node that were meant for this handler. One that is missing was dropped."""
    time: float
    """When it happened, in seconds since the epoch."""
    event: Event


class Trouble(Exception):
    """A writer cannot do its work for now, for a reason outside: the batch is to be tried again. The text is one line."""


class Writer(Protocol):
    """Keeps events somewhere. Everything but its making happens in one thread, which is not the reactor's."""

    def write(self, batch: Sequence[Record]) -> int:
        """Keep all of these, or raise `Trouble` and keep none. Returns how many could not be kept for what is in them."""

    def reopen(self) -> None:
        """The next `write` opens anew what this holds open. May be called from the reactor's thread."""

    def close(self) -> None:
        """Let go of everything."""


class Spool:
    """A queue of bounded length between two threads, one of which only puts, and the other only takes."""

    __slots__ = ("_items", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Appending to a deque and taking from it are atomic, so there is no lock on the way of an event.
        self._items: deque[Record] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, record: Record) -> bool:
        """Add to the end, or return `False`: it is full."""
        if len(self._items) >= self.limit:
            return False
        self._items.append(record)
        return True

    def take(self, most: int) -> list[Record]:
        """Take the oldest, at most so many; it does not wait for them."""
        items = self._items
        return [items.popleft() for _ in range(min(most, len(items)))]


class Outbox:
    """Hands events to a writer, in batches, in another thread."""

    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        manager: EventManager,
        writer: Writer,
        stats: HandlerStats,
        *,
        in_reactor: Callable[..., Any],
        limit: int = LIMIT,
        batch: int = BATCH,
        linger: float = LINGER,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`in_reactor(f, …)` calls `f` in the reactor's thread (`callFromThread`)."""
        self._clock = clock
        self._manager = manager
        self._writer = writer
        self._stats = stats
        self._in_reactor = in_reactor
        self._batch_size = batch
        self._linger = linger
        self._random = random
        self._spool = Spool(limit)
        self._missed = 0
        self._fail: Fail | None = None
        self._thread: threading.Thread | None = None
        self._finished: Deferred[None] | None = None
        self._over = False
        # Of the writing thread
        self._batch: list[Record] = []
        self._trouble: str | None = None
        self._attempts = 0
        # Of both
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def __len__(self) -> int:
        return len(self._spool) + len(self._batch)

    # -- in the reactor's thread -----------------------------------------------------------------------------------------

    def handle(self, event: Event, node: str, when: float) -> None:
        stats = self._stats
        if not self._spool.put(Record(node, stats.count(node), when, event)):
            stats.dropped += 1
            self._missed += 1
            return
        if not self._wake.is_set():
            self._wake.set()

    def start(self, fail: Fail) -> None:
        """Start the thread."""
        self._fail = fail
        # A daemon: a write that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"owsla events {self._stats.name}", daemon=True)
        self._thread.start()

    def stop(self) -> Deferred[None]:
        """Write what is queued, once, and close. Fires when that is done, or takes too long."""
        if self._thread is None or self._over:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._finished = finished
        self._stopping.set()
        self._wake.set()
        patience = self._clock.callLater(STOP_WITHIN, self._finish)

        def done(result: None) -> None:
            if patience.active():
                patience.cancel()

        finished.addCallback(done)
        return finished

    def reopen(self) -> None:
        """Before the next write."""
        self._writer.reopen()

    def _finish(self) -> None:
        """The thread is done, or as good as."""
        self._over = True
        finished, self._finished = self._finished, None
        if finished is None:
            return
        rest = len(self)
        if rest:
            self._stats.dropped += rest
            self._log.warn("{handler}: stopped with {rest} events not written", handler=self._stats.name, rest=rest)
        finished.callback(None)

    def _broken(self, failure: Failure) -> None:
        """The writer raised what it should not have."""
        self._stats.dropped += len(self)
        self._batch = []
        if self._fail is not None:
            self._fail(failure)

    def _said(self, trouble: str) -> None:
        self._log.warn("{handler}: {trouble}; trying again", handler=self._stats.name, trouble=trouble)

    def _recovered(self) -> None:
        self._log.info("{handler}: working again", handler=self._stats.name)

    def _written(self, count: int, unfit: int) -> None:
        self._stats.handled += count - unfit
        self._stats.dropped += unfit
        missed, self._missed = self._missed + unfit, 0
        if missed:
            self._manager.emit(EventsDropped(self._stats.name, missed))

    # -- in the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.wait()
                self._stopping.wait(self._linger)
                self._wake.clear()
                self._write_all()
            if self._trouble is None:
                self._write_all()
        except Exception:
            self._in_reactor(self._broken, Failure())
        finally:
            try:
                self._writer.close()
            except Exception:
                self._in_reactor(self._log.failure, "Closing {handler} failed", Failure(), handler=self._stats.name)
            self._in_reactor(self._finish)

    def _write_all(self) -> None:
        while (wait := self.work()) is not None:
            if wait and self._stopping.wait(wait) and self.work() != 0.0:
                return  # that was the last attempt

    def work(self) -> float | None:
        """Write a batch. Returns the seconds to wait before the next one, or `None` where there is nothing more to write."""
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
                self._in_reactor(self._said, text)
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
