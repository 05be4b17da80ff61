"""The event manager: it passes each event to the installed handlers.

Most events occur in this process, now. A parent also passes on the events of its workers, with their node and time. So handlers
always get both.

`emit` runs for every connection that opens or closes. So it costs one dictionary lookup, and one call per handler that wants
this kind of event. A handler with more work to do queues the event: see `_mailbox` and `_outbox`.
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
"""Callback for the failure of a handler, which is a defect of Owsla."""


class Handler(Protocol):
    """The interface of event handlers.

    An optional attribute `wants`, a collection of event types, limits the events it gets. A handler that raises is removed.
    """

    def handle(self, event: Event, node: str, when: float) -> None:
        """Handle an event of this node, at `when` in seconds since the epoch.

        Called in the reactor's thread, so it must be quick.
        """


@runtime_checkable
class Running(Protocol):
    """A handler with resources: a thread, a timer, an open file."""

    def start(self, fail: Fail) -> None:
        """Prepare for events. `fail` reports failures outside of `handle`, from any thread."""

    def stop(self) -> Deferred[None] | None:
        """Finish pending work, within a time limit. No further events follow."""


@runtime_checkable
class Reopens(Protocol):
    """A handler with a file that may be renamed (logrotate)."""

    def reopen(self) -> None:
        """Reopen the file by its name."""


class HandlerStats:
    """Counters of a handler, kept across its restarts."""

    __slots__ = ("_numbers", "dropped", "failures", "handled", "name", "number")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        """Events for the handler, of all nodes."""
        self._numbers: dict[str, int] = {}
        self.handled = 0
        """Events that were handled."""
        self.dropped = 0
        """Events that were dropped or could not be stored."""
        self.failures = 0
        """Exceptions that it raised."""

    def count(self, node: str) -> int:
        """Count an event of a node. Return its number, per node from 1. A missing number is a dropped event."""
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
    """Passes each event to all handlers that want it. A handler that raises is removed and reported; the others are not
    affected."""

    _log = Logger()

    def __init__(self, node: Callable[[], str], *, now: Callable[[], float] = time.time) -> None:
        """`node()` is the present name of this node, for events without a node. `now()` is in seconds since the epoch."""
        self._node = node
        self._now = now
        self._installed: list[_Installed] = []
        self._routes: dict[type[Event], tuple[_Installed, ...]] = {}
        self._stats: dict[str, HandlerStats] = {}

    def add(self, handler: Handler, name: str | None = None, fail: Fail | None = None) -> None:
        """Install a handler. `name` is its name in reports. `fail` is called if it raised and was removed.

        Raise `ValueError` if it is installed already.
        """
        if any(installed.handler is handler for installed in self._installed):
            raise ValueError(f"this handler is installed already: {handler!r}")
        self._installed.append(_Installed(handler, self.stats(name or type(handler).__name__.lower()), fail))
        self._routes.clear()

    def remove(self, handler: Handler) -> None:
        """Remove a handler, if it is installed."""
        self._installed = [installed for installed in self._installed if installed.handler is not handler]
        self._routes.clear()

    @property
    def node(self) -> str:
        """Name of this node."""
        return self._node()

    def emit(self, event: Event, node: str | None = None, when: float | None = None) -> None:
        """Report an event. Defaults are this node and the present time. Call it only in the reactor's thread."""
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
        """Make the handlers reopen their files (SIGHUP, for logrotate)."""
        for installed in list(self._installed):
            if isinstance(installed.handler, Reopens):
                try:
                    installed.handler.reopen()
                except Exception:
                    self._failed(installed, Failure())

    def stats(self, name: str) -> HandlerStats:
        """Return the counters of the handler of this name, kept across restarts."""
        stats = self._stats.get(name)
        if stats is None:
            stats = self._stats[name] = HandlerStats(name)
        return stats

    @property
    def drops(self) -> dict[str, int]:
        """Dropped events by handler, including handlers that are not installed now."""
        return {name: stats.dropped for name, stats in self._stats.items()}

    def _route(self, kind: type[Event]) -> tuple[_Installed, ...]:
        routes = tuple(
            installed for installed in self._installed if installed.wants is None or issubclass(kind, installed.wants)
        )
        self._routes[kind] = routes
        return routes

    def _failed(self, installed: _Installed, failure: Failure) -> None:
        if installed not in self._installed:
            return  # it was removed already, when it failed on the report of another failure
        self.remove(installed.handler)
        self.report_failure(installed.stats, failure)
        if installed.fail is not None:
            installed.fail(failure)
        else:
            self._log.failure("The event handler {handler} failed", failure, handler=installed.stats.name)

    def report_failure(self, stats: HandlerStats, failure: Failure) -> None:
        """Count the failure of a handler and emit it as an event. The supervisor logs it."""
        stats.failures += 1
        error = failure.value
        text = " ".join(str(error).split())
        self.emit(HandlerFailed(stats.name, f"{type(error).__name__}: {text}" if text else type(error).__name__))
