"""Who holds how many messages of which consumer. Pure.

A consumer gets no more messages than its prefetch before some are acknowledged. What connections hold, of a consumer's, must
stay well below that, or a few of them would keep everybody's messages waiting.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Holdings(Generic[Holder]):
    """Counts messages held, by consumer and holder."""

    __slots__ = ("_by_source",)

    def __init__(self) -> None:
        self._by_source: dict[Any, dict[Holder, int]] = {}

    def add(self, source: Any, holder: Holder) -> None:
        """One more message of this consumer's is held."""
        holders = self._by_source.setdefault(source, {})
        holders[holder] = holders.get(holder, 0) + 1

    def remove(self, source: Any, holder: Holder) -> None:
        """One less."""
        holders = self._by_source[source]
        holders[holder] -= 1
        if not holders[holder]:
            del holders[holder]
            if not holders:
                del self._by_source[source]

    def count(self, source: Any) -> int:
        """How many of this consumer's messages are held."""
        return sum(self._by_source.get(source, {}).values())

    def greatest(self, source: Any) -> Holder:
        """Who holds most of them; there has to be somebody."""
        holders = self._by_source[source]
        return max(holders, key=holders.__getitem__)

    def sources(self) -> list[Any]:
        """The consumers some of whose messages are held."""
        return list(self._by_source)

    def holders(self, source: Any) -> list[Holder]:
        """All who hold some of them."""
        return list(self._by_source.get(source, ()))
