"""Numbers of messages that connections hold, by consumer. Pure.

A consumer gets no more messages than its prefetch before some are acknowledged. The number that connections hold must stay well
below that: otherwise a few connections would delay the messages of all others.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class HeldMessages(Generic[Holder]):
    """Counter of held messages, by consumer and by connection."""

    __slots__ = ("_by_source", "_counts")

    def __init__(self) -> None:
        self._by_source: dict[Any, dict[Holder, int]] = {}
        self._counts: dict[Any, int] = {}  # a message for many may wait for thousands of holders: no sum over them each time

    def add(self, source: Any, holder: Holder) -> None:
        """Count one more message of a consumer."""
        holders = self._by_source.setdefault(source, {})
        holders[holder] = holders.get(holder, 0) + 1
        self._counts[source] = self._counts.get(source, 0) + 1

    def remove(self, source: Any, holder: Holder) -> None:
        """Count one message less."""
        holders = self._by_source[source]
        holders[holder] -= 1
        self._counts[source] -= 1
        if not holders[holder]:
            del holders[holder]
            if not holders:
                del self._by_source[source]
                del self._counts[source]

    def count(self, source: Any) -> int:
        """Return the number of messages of a consumer that are held."""
        return self._counts.get(source, 0)

    def first(self, source: Any) -> Holder:
        """Return the connection that has held messages of a consumer for the longest time. There must be one."""
        return next(iter(self._by_source[source]))

    def greatest(self, source: Any) -> Holder:
        """Return the connection that holds most messages of a consumer. There must be one."""
        holders = self._by_source[source]
        return max(holders, key=holders.__getitem__)

    def sources(self) -> list[Any]:
        """Return the consumers with held messages."""
        return list(self._by_source)

    def holders(self, source: Any) -> list[Holder]:
        """Return the connections that hold messages of a consumer."""
        return list(self._by_source.get(source, ()))
