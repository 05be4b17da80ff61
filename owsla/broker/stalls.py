"""Connections whose lines the broker refuses while it accepts the lines of others. Pure.

If each connection has its own routing key, a key without a queue, or with a full queue, does not concern the other connections.
States of a connection: *flowing*; *stalled*, from its first refused line; flowing again when a republished line is confirmed.
A stalled connection is not read. Invariant: a connection in `_refused` has refused lines that are not republished yet, so a
confirm of an earlier line does not resume it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

REASONS_REPORTED: Final = 100
"""Limit on reasons that are reported individually. Each connection may have its own; the first ones are enough for
diagnosis."""

S = TypeVar("S")


class Stalls(Generic[S]):
    """The stalled connections, with reasons."""

    __slots__ = ("_refused", "_reported", "_waiting", "stalled")

    def __init__(self) -> None:
        self.stalled: dict[S, str] = {}
        """The stalled connections, with the reason of each."""
        self._refused: set[S] = set()  # connections with refused lines that are not republished yet
        self._waiting: set[S] = set()
        self._reported: dict[str, int] = {}  # stalled connections by reason

    def __contains__(self, source: S) -> bool:
        return source in self.stalled

    def __len__(self) -> int:
        return len(self.stalled)

    def refuse(self, source: S, reason: str) -> tuple[bool, bool]:
        """Note a refused line. Return whether the connection stalls with it, and whether to report the reason.

        A reason is reported once, until all connections that stalled for it are flowing again.
        """
        self._refused.add(source)
        if source in self.stalled:
            return False, False
        self.stalled[source] = reason
        reported = reason in self._reported
        if reported:
            self._reported[reason] += 1
        elif len(self._reported) < REASONS_REPORTED:
            self._reported[reason] = 1
            return True, True
        return True, False

    def wait(self, source: S) -> None:
        """Register a stalled connection for `safe` and `clear`."""
        self._waiting.add(source)

    def leave(self, source: S) -> None:
        """Remove the registration of a connection."""
        self._waiting.discard(source)

    def published_again(self) -> None:
        """Note that all refused lines have been republished."""
        self._refused.clear()

    def safe(self, sources: Iterable[S]) -> list[S]:
        """Note that lines of these connections are confirmed. Return the registered ones that resume."""
        resumed: list[S] = []
        for source in sources:
            if source in self.stalled and source not in self._refused:
                self._forget(self.stalled.pop(source))
                if source in self._waiting:
                    self._waiting.remove(source)
                    resumed.append(source)
        return resumed

    def _forget(self, reason: str) -> None:
        if reason in self._reported:
            self._reported[reason] -= 1
            if not self._reported[reason]:
                del self._reported[reason]

    def clear(self) -> list[S]:
        """Reset for a new channel, on which all lines are republished. Return the registered connections in the order of
        stalling."""
        resumed = [source for source in self.stalled if source in self._waiting]
        self.stalled.clear()
        self._refused.clear()
        self._waiting.clear()
        self._reported.clear()
        return resumed
