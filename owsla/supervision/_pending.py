"""Restarts that wait for the end of their delay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..interfaces import Clock
from ._child import Child


class PendingRestart:
    """Group of children that are started together after a delay."""

    __slots__ = ("_call", "children")

    def __init__(self, clock: Clock, delay: float, children: Sequence[Child], due: Callable[[PendingRestart], object]) -> None:
        self.children = children
        self._call = clock.callLater(delay, due, self)

    def cancel(self) -> None:
        """Cancel the restart, unless it is due already."""
        if self._call.active():
            self._call.cancel()


class PendingRestarts:
    """Restarts of one supervisor that wait for the end of their delay."""

    __slots__ = ("_clock", "_due", "_pending")

    def __init__(self, clock: Clock, due: Callable[[PendingRestart], object]) -> None:
        """`due` is called when the delay of a restart is over."""
        self._clock = clock
        self._due = due
        self._pending: list[PendingRestart] = []

    def add(self, children: Sequence[Child], delay: float) -> None:
        """Schedule a restart. It replaces the pending restarts of any of the children.

        With `rest_for_one` and `one_for_all`, a child that fails while a sibling waits takes it along: the group of a child
        contains every smaller group that contains the child, so no other child loses its restart.
        """
        for pending in [each for each in self._pending if any(child in children for child in each.children)]:
            self._pending.remove(pending)
            pending.cancel()
        for child in children:
            child.await_restart()
        self._pending.append(PendingRestart(self._clock, delay, children, self._due))

    def take(self, restart: PendingRestart) -> bool:
        """Remove a restart that is due. Return `False` if it was cancelled or replaced in the meantime."""
        if restart not in self._pending:
            return False
        self._pending.remove(restart)
        return True

    def cancel(self) -> None:
        """Cancel all pending restarts."""
        for pending in self._pending:
            pending.cancel()
        self._pending.clear()
