"""Routes whose lines the broker refuses while it accepts the lines of others. Pure.

If connections have their own routing keys, a key without a queue, or with a full queue, does not concern the other connections.
A *route* is what is refused together: a connection, or with batches a routing key, which several connections may have.
States of a route: *flowing*; *stalled*, from its first refused line; flowing again when a republished line is confirmed.
The connections of a stalled route are not read. Invariant: a route in `_refused` has refused lines that are not republished
yet, so a confirm of an earlier line does not resume its connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

REASONS_REPORTED: Final = 100
"""Limit on reasons that are reported individually. Each connection may have its own; the first ones are enough for
diagnosis."""

R = TypeVar("R")
S = TypeVar("S")


class Stalls(Generic[R, S]):
    """The stalled routes, with reasons, and their connections that wait."""

    __slots__ = ("_refused", "_reported", "_routes", "_stalled", "_waiting")

    def __init__(self) -> None:
        self._stalled: dict[R, str] = {}  # the stalled routes, with the reason of each
        self._refused: set[R] = set()  # routes with refused lines that are not republished yet
        self._waiting: dict[R, dict[S, None]] = {}  # registered connections by route, in order
        self._routes: dict[S, R] = {}  # the route under which each of them is registered
        self._reported: dict[str, int] = {}  # stalled routes by reason

    def __contains__(self, route: R) -> bool:
        return route in self._stalled

    def __len__(self) -> int:
        return len(self._stalled)

    def holds(self, route: R) -> bool:
        """Return whether a route has refused lines that are not republished yet."""
        return route in self._refused

    def refuse(self, route: R, reason: str) -> tuple[bool, bool]:
        """Note a refused line. Return whether the route stalls with it, and whether to report the reason.

        A reason is reported once, until all routes that stalled for it are flowing again.
        """
        self._refused.add(route)
        if route in self._stalled:
            return False, False
        self._stalled[route] = reason
        reported = reason in self._reported
        if reported:
            self._reported[reason] += 1
        elif len(self._reported) < REASONS_REPORTED:
            self._reported[reason] = 1
            return True, True
        return True, False

    def wait(self, route: R, source: S) -> None:
        """Register a connection of a stalled route for `safe` and `clear`."""
        self.leave(source)
        self._waiting.setdefault(route, {})[source] = None
        self._routes[source] = route

    def waits(self, source: S) -> bool:
        """Return whether a connection is registered."""
        return source in self._routes

    def leave(self, source: S) -> None:
        """Remove the registration of a connection."""
        route = self._routes.pop(source, None)
        if route is not None:
            waiting = self._waiting[route]
            del waiting[source]
            if not waiting:
                del self._waiting[route]

    def _take(self, route: R) -> Iterable[S]:
        """Remove the registrations of a route, and return its connections in their order."""
        sources = self._waiting.pop(route, {})
        for source in sources:
            del self._routes[source]
        return sources

    def published_again(self) -> None:
        """Note that all refused lines have been republished."""
        self._refused.clear()

    def safe(self, routes: Iterable[R]) -> list[S]:
        """Note that lines of these routes are confirmed. Return the registered connections that resume."""
        resumed: list[S] = []
        for route in routes:
            if route in self._stalled and route not in self._refused:
                self._forget(self._stalled.pop(route))
                resumed += self._take(route)
        return resumed

    def _forget(self, reason: str) -> None:
        if reason in self._reported:
            self._reported[reason] -= 1
            if not self._reported[reason]:
                del self._reported[reason]

    def clear(self) -> list[S]:
        """Reset for a new channel, on which all lines are republished. Return the registered connections in the order of
        stalling."""
        resumed = [source for route in self._stalled for source in self._take(route)]
        self._stalled.clear()
        self._refused.clear()
        self._waiting.clear()
        self._routes.clear()
        self._reported.clear()
        return resumed
