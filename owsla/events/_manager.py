"""The event manager: one place to report to, any number of handlers, which may come and go.

Most events happen here and now. A parent of workers is sent theirs, too, and hands them on with the node they are of and the
time at which they happened; so handlers are always told both.

Reporting is on the path of every connection that comes or goes, so it is a look into a dictionary and a call for each handler
that wants this type of event. A handler that has work to do keeps the event and does it later: see `_mailbox` and `_outbox`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol, runtime_checkable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._types import Event, HandlerFailed

Fail = Callable[[Failure], None]
"""Says that a handler failed, by a defect of our own."""


class Handler(Protocol):
    """Who is told of events.

    It may have an attribute `wants`, a collection of event types: then it is told of no others. What it raises removes it.
    """

    def handle(self, event: Event, node: str, when: float) -> None:
        """Something happened on this node, at `when` in seconds since the epoch.

        Called in the reactor's thread, while the cause of the event waits: to be quick.
        """


@runtime_checkable
class Running(Protocol):
    """A handler with a life: a thread, a timer, an open file."""

    def start(self, fail: Fail) -> None:
        """It is about to be told of events. `fail` takes what goes wrong outside of `handle`; from any thread."""

    def stop(self) -> Deferred[None] | None:
        """It is told of no more events: do what is still to be done, within a bound."""


@runtime_checkable
class Reopens(Protocol):
    """A handler that holds a file which somebody may have moved."""

    def reopen(self) -> None:
        """Open it again by its name."""


class HandlerStats:
    """A handler's numbers. They outlive its restarts."""

    __slots__ = ("_numbers", "dropped", "failures", "handled", "name", "number")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        """Events that were meant for it so far, of all nodes."""
        self._numbers: dict[str, int] = {}
        self.handled = 0
        """Events it is done with."""
        self.dropped = 0
        """Events it never saw, or could not keep."""
        self.failures = 0
        """How often it raised an exception."""

    def count(self, node: str) -> int:
        """One more event of this node is meant for it: its number, counted for each node from 1. One that is missing in
        between was dropped.
        """
        self.number += 1
        number = self._numbers[node] = self._numbers.get(node, 0) + 1
        return number


class _Installed:
    __slots__ = ("fail", "handle", "handler", "stats", "wants")

    def __init__(self, handler: Handler, stats: HandlerStats, fail: Fail | None) -> None:
        self.handler = handler
        self.handle = handler.handle
        self.stats = stats
        self.fail = fail
        wants: Collection[type[Event]] | None = getattr(handler, "wants", None)
        self.wants = None if wants is None else tuple(wants)


class EventManager:
    """Hands each event to every handler that wants it. One that raises is removed, reported, and hurts nobody else."""

    _log = Logger()

    def __init__(self, node: Callable[[], str], *, now: Callable[[], float] = time.time) -> None:
        """`node()` is whose events are reported here without saying whose they are; it may be another one later on. `now()` is
        in seconds since the epoch.
        """
        self._node = node
        self._now = now
        self._installed: list[_Installed] = []
        self._routes: dict[type[Event], tuple[_Installed, ...]] = {}
        self._stats: dict[str, HandlerStats] = {}

    def add(self, handler: Handler, name: str | None = None, fail: Fail | None = None) -> None:
        """Tell it of events from now on. `name` is what it is called in reports; `fail` is told when it raised, and is removed.

        `ValueError` if it is there already.
        """
        if any(installed.handler is handler for installed in self._installed):
            raise ValueError(f"this handler is installed already: {handler!r}")
        self._installed.append(_Installed(handler, self.stats(name or type(handler).__name__.lower()), fail))
        self._routes.clear()

    def remove(self, handler: Handler) -> None:
        """Tell it of no more events. One that is not installed (any more) is left alone."""
        self._installed = [installed for installed in self._installed if installed.handler is not handler]
        self._routes.clear()

    @property
    def node(self) -> str:
        """The node that is meant where none is named."""
        return self._node()

    def emit(self, event: Event, node: str | None = None, when: float | None = None) -> None:
        """Report that something happened: here and now, or on the node and at the time that are given. In the reactor's thread
        only.
        """
        routes = self._routes.get(event.__class__)
        if routes is None:
            routes = self._route(event.__class__)
        if not routes:
            return
        if node is None:
            node = self._node()
        if when is None:
            when = self._now()
        for installed in routes:
            try:
                installed.handle(event, node, when)
            except Exception:
                self._failed(installed, Failure())

    def reopen(self) -> None:
        """Have the handlers open their files again (SIGHUP, for logrotate)."""
        for installed in list(self._installed):
            if isinstance(installed.handler, Reopens):
                try:
                    installed.handler.reopen()
                except Exception:
                    self._failed(installed, Failure())

    def stats(self, name: str) -> HandlerStats:
        """The numbers of the handler of this name, over all its lives."""
        stats = self._stats.get(name)
        if stats is None:
            stats = self._stats[name] = HandlerStats(name)
        return stats

    @property
    def drops(self) -> dict[str, int]:
        """How many events each handler has missed, by its name; also for those that are not installed now."""
        return {name: stats.dropped for name, stats in self._stats.items()}

    def _route(self, kind: type[Event]) -> tuple[_Installed, ...]:
        routes = tuple(
            installed for installed in self._installed if installed.wants is None or issubclass(kind, installed.wants)
        )
        self._routes[kind] = routes
        return routes

    def _failed(self, installed: _Installed, failure: Failure) -> None:
        if installed not in self._installed:
            return  # the report of another's failure was one event too many for it; that is told already
        self.remove(installed.handler)
        self.report_failure(installed.stats, failure)
        if installed.fail is not None:
            installed.fail(failure)
        else:
            self._log.failure("The event handler {handler} failed", failure, handler=installed.stats.name)

    def report_failure(self, stats: HandlerStats, failure: Failure) -> None:
        """Count a handler's failure, and emit it. Logging it is the part of whoever is told of it, such as a supervisor."""
        stats.failures += 1
        error = failure.value
        text = " ".join(str(error).split())
        self.emit(HandlerFailed(stats.name, f"{type(error).__name__}: {text}" if text else type(error).__name__))
