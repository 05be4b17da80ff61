"""The question `top`: the devices that talk most at the moment, and the slowest.

Theory of operation. A *pass* visits all connections, in slices, and remembers their counters in an array: 40 bytes for each
connection, with its reference. The next pass compares. In every pass the connections are in the order in which they connected,
so that a walk over both lists finds the same connection in each. Passes run only while somebody asks: the first two with
`FIRST_INTERVAL` between them, the others with `INTERVAL`, and none `LASTING` seconds after the last question, when the array is
dropped. A question is answered from the last comparison, or waits for the first one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..device.connections import Connection
from ..interfaces import Clock
from ._paging import Selection, read_limit
from ._rows import Rows
from ._slices import Slices, chunks
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


class _Counters(NamedTuple):
    """Counters of a connection, or what they have grown by."""

    lines_in: int
    lines_out: int
    bytes_in: int
    bytes_out: int


class _Pass:
    """Counters of all connections at one time."""

    def __init__(self, connections: list[Connection], time: float) -> None:
        self.time = time
        self.connections = connections
        self.counters = array("q")

    def add(self, counters: _Counters) -> None:
        """Add the counters of the next connection."""
        self.counters.extend(counters)

    def __getitem__(self, index: int) -> _Counters:
        return _Counters(*self.counters[4 * index : 4 * index + 4])


class _Talker(NamedTuple):
    """A connection with what its counters have grown by."""

    connection: Connection
    growth: _Counters


class _Comparison(NamedTuple):
    """Result of a pass, after the one before."""

    interval: float
    """Seconds between the passes."""
    talkers: list[_Talker]
    slowest: list[Connection]


class TopDevices:
    """Answers the question `top` for one node."""

    _log = Logger()

    def __init__(self, clock: Clock, connections: Iterable[Connection], rows: Rows, slices: Slices) -> None:
        """`connections` yields the connections that are open at the time, each time, in the order in which they connected."""
        self._clock = clock
        self._connections = connections
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
        slowest = [each for each in comparison.slowest if each.transport is not None and _is_slow(each)]
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
        before = self._last
        present = _Pass(list(self._connections), self._clock.seconds())
        talkers: Selection[_Talker] = Selection(MOST, descending=True)
        slowest: Selection[Connection] = Selection(MOST, descending=True)
        at = 0  # place of the connection in the pass before
        number = 0
        for chunk in chunks(present.connections):
            for connection in chunk:
                number += 1
                counters = _Counters(connection.lines_in, connection.lines_out, connection.bytes_in, connection.bytes_out)
                present.add(counters)
                if _is_slow(connection):
                    slowest.offer((connection.waiting + connection.held, number), connection)
                if before is None:
                    continue
                # Connections that are closed were in the pass before only, and new ones, behind all others, in this one only.
                while at < len(before.connections) and before.connections[at] is not connection:
                    at += 1
                growth = counters if at == len(before.connections) else _growth(counters, before[at])
                if growth != _NOTHING:
                    lines, size = growth.lines_in + growth.lines_out, growth.bytes_in + growth.bytes_out
                    talkers.offer((lines, size, number), _Talker(connection, growth))
            yield
        self._last = present
        if before is not None:
            interval = max(0.001, present.time - before.time)
            self._comparison = _Comparison(
                interval, [talker for _, talker in talkers.take()], [connection for _, connection in slowest.take()]
            )


_NOTHING: Final = _Counters(0, 0, 0, 0)


def _growth(now: _Counters, before: _Counters) -> _Counters:
    # Bytes that are read again after they have waited are subtracted for a moment.
    return _Counters(*(max(0, after - earlier) for after, earlier in zip(now, before, strict=True)))


def _is_slow(connection: Connection) -> bool:
    return connection.slow or bool(connection.held)


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
