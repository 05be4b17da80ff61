"""The connections whose lines the broker does not take, where it takes those of others. Pure.

Where connections have routing keys of their own, one that leads nowhere, or to a full queue, is no matter for the others. A
connection stalls with its first line that is refused, and stays so until one that was published again is safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

REASONS_SAID: Final = 100
"""How many reasons are told at a time, one by one: each connection may have one of its own, and the first tell enough."""

S = TypeVar("S")


class Stalls(Generic[S]):
    """Which connections are stalled, and why."""

    __slots__ = ("_refused", "_said", "_stalled", "_waiting")

    def __init__(self) -> None:
        self._stalled: dict[S, str] = {}
        self._refused: set[S] = set()  # of these nothing was published again yet
        self._waiting: set[S] = set()
        self._said: dict[str, int] = {}  # how many are stalled for it

    def __contains__(self, source: S) -> bool:
        return source in self._stalled

    def __len__(self) -> int:
        return len(self._stalled)

    def refuse(self, source: S, reason: str) -> tuple[bool, bool]:
        """A line of this connection was refused. Whether it stalls with that; and whether the reason is to be told.

        A reason is told once until all connections that stalled for it go on.
        """
        self._refused.add(source)
        if source in self._stalled:
            return False, False
        self._stalled[source] = reason
        told = reason in self._said
        if told:
            self._said[reason] += 1
        elif len(self._said) < REASONS_SAID:
            self._said[reason] = 1
            return True, True
        return True, False

    def wait(self, source: S) -> None:
        """A stalled connection wants to hear when it may go on."""
        self._waiting.add(source)

    def leave(self, source: S) -> None:
        """It does not want to hear of it any more."""
        self._waiting.discard(source)

    def published_again(self) -> None:
        """All lines that were refused are on their way again."""
        self._refused.clear()

    def safe(self, sources: Iterable[S]) -> list[S]:
        """Lines of these are confirmed, and not refused: which of them go on that had stalled, and wait for that."""
        freed: list[S] = []
        for source in sources:
            if source in self._stalled and source not in self._refused:
                self._forget(self._stalled.pop(source))
                if source in self._waiting:
                    self._waiting.remove(source)
                    freed.append(source)
        return freed

    def _forget(self, reason: str) -> None:
        if reason in self._said:
            self._said[reason] -= 1
            if not self._said[reason]:
                del self._said[reason]

    def clear(self) -> list[S]:
        """Everything is published anew, and nobody is stalled: those that wait, in the order in which they stalled."""
        freed = [source for source in self._stalled if source in self._waiting]
        self._stalled.clear()
        self._refused.clear()
        self._waiting.clear()
        self._said.clear()
        return freed
