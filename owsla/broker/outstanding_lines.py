"""The number of unconfirmed lines of each connection. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..interfaces import LineSource


class OutstandingLines(Counter[LineSource]):
    """Unconfirmed lines by connection, without connections that have none.

    A publisher counts them only once somebody has asked, that is while a node drains: counting takes time for each line.
    """

    def settle(self, lines: Iterable[tuple[LineSource, object]]) -> None:
        """Count these lines no longer: they were confirmed, or given up. The first item of each is its connection."""
        for source, _ in lines:
            self[source] -= 1
            if not self[source]:
                del self[source]  # a Counter keeps zeros, and with them connections that have ended
