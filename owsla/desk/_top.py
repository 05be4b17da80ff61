"""The question `top`: the devices that talk most at the moment, and the slowest.

Theory of operation. A *pass* visits all connections, in slices, and remembers their counters in arrays: 68 bytes for each
connection, with its id. The next pass compares. In every pass the connections are in the order in which they connected,
so that a walk over both lists finds the same connection in each. Passes run only while somebody asks: the first two with
`FIRST_INTERVAL` between them, the others with `INTERVAL`, and none `LASTING` seconds after the last question, when the arrays
are dropped. A question is answered from the last comparison, or waits for the first one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..device.connections import Connection
from ..device.reordering import ReorderLimits
from ..device.slow_devices import SlowDevices
from ..interfaces import Clock
from ..routing import ID_LENGTH, Registry
from ._paging import Selection, read_limit
from ._rows import Rows
from ._slices import CHUNK, Slices
from ._types import JSON, Args, NamedAnswers

INTERVAL: Final = 2.0
"""Seconds from one pass to the next."""

FIRST_INTERVAL: Final = 1.0
"""Seconds from the first pass to the second. A parent waits two seconds for the answer of a worker."""

LASTING: Final = 10.0
"""Seconds after the last question after which passes stop."""

MOST: Final = 100
"""Maximum number of devices in each of the lists."""

SHOWN: Final = 10
"""Number of devices in each of the lists, if the question does not say."""


class _Growth(NamedTuple):
    """Growth of the counters of a connection from one pass to the next."""

    lines_in: int
    lines_out: int
    bytes_in: int
    bytes_out: int


class _Pass:
    """Counters of all connections at one time."""

    __slots__ = ("bytes_in", "bytes_out", "ids", "lines_in", "lines_out", "time")

    def __init__(self, time: float) -> None:
        self.time = time
        self.ids = bytearray()
        """Connection ids, one after the other: they are compared at once, and are no work for the garbage collector."""
        self.lines_in, self.lines_out, self.bytes_in, self.bytes_out = (array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self.lines_in)

    def add(self, connections: list[Connection]) -> None:
        """Read the counters of the next connections."""
        self.ids += b"".join([connection.connection_id for connection in connections])
        self.lines_in.extend([connection.lines_in for connection in connections])
        self.lines_out.extend([connection.lines_out for connection in connections])
        self.bytes_in.extend([connection.bytes_in for connection in connections])
        self.bytes_out.extend([connection.bytes_out for connection in connections])

    def find(self, connection_id: bytes, at: int) -> int:
        """Return the place of a connection, from a place on; the number of connections if it is not there.

        A loop over 100,000 connections that have ended would hold the reactor up for 35 ms; this takes one. The hyphens of an
        id are at fixed places, so it is never found across two others.
        """
        found = self.ids.find(connection_id, ID_LENGTH * at)
        return len(self) if found < 0 else found // ID_LENGTH

    def has(self, at: int, ids: bytearray) -> bool:
        """Return whether the connections from a place on have these ids."""
        return self.ids[ID_LENGTH * at : ID_LENGTH * at + len(ids)] == ids

    def grown(self, at: int, before: _Pass, there: int, count: int) -> list[int]:
        """Return the places of the connections that have other counters than in the pass before, of `count` of them from a
        place on.
        """
        here, elsewhere = slice(at, at + count), slice(there, there + count)
        changed: set[int] = set()
        for now, then in (
            (self.lines_in[here], before.lines_in[elsewhere]),
            (self.lines_out[here], before.lines_out[elsewhere]),
            (self.bytes_in[here], before.bytes_in[elsewhere]),
            (self.bytes_out[here], before.bytes_out[elsewhere]),
        ):
            if now != then:
                changed.update([at + number for number in range(count) if now[number] != then[number]])
        return sorted(changed)

    def total(self, at: int) -> _Growth:
        """Return the growth of the counters of a connection that is not in the pass before."""
        return _Growth(self.lines_in[at], self.lines_out[at], self.bytes_in[at], self.bytes_out[at])

    def growth(self, at: int, before: _Pass, there: int) -> _Growth:
        """Return the growth of the counters of a connection since the pass before."""
        return _Growth(
            self.lines_in[at] - before.lines_in[there],
            self.lines_out[at] - before.lines_out[there],
            self.bytes_in[at] - before.bytes_in[there],
            self.bytes_out[at] - before.bytes_out[there],
        )


class _Talker(NamedTuple):
    """A connection with what its counters have grown by."""

    connection: Connection
    growth: _Growth


class _Comparison(NamedTuple):
    """Result of a pass, after the one before."""

    interval: float
    """Seconds between the passes."""
    talkers: list[_Talker]
    slowest: list[Connection]


class TopDevices:
    """Answers the question `top` for one node."""

    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        registry: Registry[Connection],
        slow: SlowDevices,
        reordering: ReorderLimits,
        rows: Rows,
        slices: Slices,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._slow = slow
        self._reordering = reordering
        self._rows = rows
        self._slices = slices
        self._asked = float("-inf")
        self._running = False
        self._last: _Pass | None = None
        self._comparison: _Comparison | None = None
        self._waiting: list[Deferred[None]] = []

    def answer(self, args: Args) -> Deferred[JSON]:
        """Return `interval` (ms), `talkers` (rows with `lines_in_rate` and so on, each per second) and `slowest` (rows).

        `talkers` are the connections with most lines in the interval, and among equals most bytes, both ways together.
        `slowest` are those whose socket takes no more, or that hold messages, those with most messages first. Raise
        `BadArgument`.
        """
        limit = check_top(args)
        self._asked = self._clock.seconds()
        if not self._running:
            self._running = True
            self._begin()
        ready: Deferred[None] = Deferred(self._cancelled)
        self._waiting.append(ready)
        if self._comparison is not None:
            self._fire()
        return ready.addCallback(lambda _: self._answer(limit))

    def _cancelled(self, waiting: Deferred[None]) -> None:
        self._waiting.remove(waiting)

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _answer(self, limit: int) -> JSON:
        comparison = self._comparison
        assert comparison is not None
        self._rows.adjust()
        interval = comparison.interval
        talkers: list[JSON] = []
        for connection, growth in comparison.talkers:
            if connection.transport is not None and len(talkers) < limit:
                rates = {f"{name}_rate": round(grown / interval, 1) for name, grown in growth._asdict().items()}
                talkers.append({**self._rows.row(connection), **rates})
        slowest = [each for each in comparison.slowest if each.transport is not None and (each.slow or each.held)]
        slowest.sort(key=lambda each: each.waiting + each.held, reverse=True)
        return {
            "interval": round(1000 * interval),
            "talkers": talkers,
            "slowest": [self._rows.row(connection) for connection in slowest[:limit]],
        }

    # -- passes ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._clock.seconds() - self._asked >= LASTING:
            self._running = False
            self._last = self._comparison = None
            return
        self._slices.run(self._steps()).addCallbacks(self._ended, self._failed)

    def _ended(self, _: None) -> None:
        if self._comparison is not None:
            self._fire()
        assert self._last is not None
        interval = INTERVAL if self._comparison is not None else FIRST_INTERVAL
        self._clock.callLater(max(0.0, self._last.time + interval - self._clock.seconds()), self._begin)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("Comparing the counters of connections failed", failure)
        self._running = False
        self._last = self._comparison = None
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(failure)

    def _steps(self) -> Iterator[None]:
        before, present = self._last, _Pass(self._clock.seconds())
        talkers: Selection[_Talker] = Selection(MOST, descending=True)
        at = 0  # place of the connection in the pass before
        for connections in self._registry.walk(CHUNK):
            first = len(present)
            present.add(connections)
            if before is not None:
                at = self._compare(connections, first, present, before, at, talkers)
            yield
        slowest: Selection[Connection] = Selection(MOST, descending=True)
        for number, connection in enumerate({*self._slow.connections(), *self._reordering.connections()}):
            slowest.offer((connection.waiting + connection.held, number), connection)
            if number % CHUNK == 0:
                yield
        self._last = present
        if before is not None:
            self._comparison = _Comparison(
                max(0.001, present.time - before.time),
                [talker for _, talker in talkers.take()],
                [connection for _, connection in slowest.take()],
            )

    def _compare(
        self, connections: list[Connection], first: int, present: _Pass, before: _Pass, at: int, talkers: Selection[_Talker]
    ) -> int:
        """Offer the connections that are in this pass from the place `first` on, and behind the place `at` of the pass before.
        Return the place there behind the last one.

        Connections that are closed were in the pass before only. New ones are behind all others, in this pass only.
        """
        if before.has(at, present.ids[ID_LENGTH * first :]):
            for here in present.grown(first, before, at, len(connections)):
                growth = present.growth(here, before, at + here - first)
                talkers.offer(_place(growth, here), _Talker(connections[here - first], growth))
            return at + len(connections)
        for here, connection in enumerate(connections, first):
            at = before.find(connection.connection_id, at)
            growth = present.growth(here, before, at) if at < len(before) else present.total(here)
            at = min(at + 1, len(before))
            if any(growth):
                talkers.offer(_place(growth, here), _Talker(connection, growth))
        return at


def _place(growth: _Growth, number: int) -> tuple[int, int, int]:
    return growth.lines_in + growth.lines_out, growth.bytes_in + growth.bytes_out, number


def check_top(args: Args) -> int:
    """Return the argument `limit`. Raise `BadArgument` if it cannot be used."""
    return read_limit(args, SHOWN, MOST)


def merge_top(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the lists of several workers."""
    limit = check_top(args)

    def merged(name: str) -> list[JSON]:
        return [{**row, "worker": worker} for worker, answer in answers for row in answer[name]]

    return {
        "interval": max((answer["interval"] for _, answer in answers), default=0),
        "talkers": sorted(merged("talkers"), key=_talk, reverse=True)[:limit],
        "slowest": sorted(merged("slowest"), key=lambda row: row["waiting"] + row["held"], reverse=True)[:limit],
    }


def _talk(row: JSON) -> Any:
    return row["lines_in_rate"] + row["lines_out_rate"], row["bytes_in_rate"] + row["bytes_out_rate"]
