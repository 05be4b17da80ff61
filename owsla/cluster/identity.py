"""This node among the others: its name, and who has to hear when that changes.

The name itself is in `ConnectionIds`. A node changes it only where somebody else has its queue, or the broker cannot reach
that: then it is a new node, with no connections yet, and the connections of the old one are closed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..broker.queues import Queue
from ..routing import ConnectionIds
from .registrar import Registrar


class NodeIdentity:
    """What the consumers of the node's own queue find out, brought to those whom it concerns."""

    def __init__(
        self,
        ids: ConnectionIds,
        registrar: Registrar,
        *,
        queue: Callable[[bytes], Queue],
        announce: Callable[[], None],
        renamed: Callable[[str, str], None],
    ) -> None:
        """`queue` makes a node's queue of its name. `announce` tells back ends again who is connected; `renamed` is told of the
        name before and of the reason, when the new one holds.
        """
        self._ids = ids
        self._registrar = registrar
        self._queue = queue
        self._announce = announce
        self._renamed = renamed
        self._other = b""

    def queue(self) -> Queue:
        """The node's own queue."""
        return self._queue(self._ids.node)

    def other(self) -> Queue:
        """The queue of another name, that this node might take."""
        self._other = self._ids.other()
        return self._queue(self._other)

    def rename(self, reason: str) -> None:
        """The last `other` name is this node's from now on."""
        before = self._ids.node.decode()
        self._ids.node = self._other
        self._registrar.moved(before)
        self._renamed(before, reason)

    def here(self, *, missed: bool) -> None:
        """The own queue is consumed. `missed`: others may have taken this node for dead meanwhile."""
        self._registrar.here()
        if missed:
            self._announce()

    def away(self) -> None:
        """The own queue is not consumed now, and this node does not say that it is here until it is."""
        self._registrar.away()

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Send this to the own queue."""
        self._registrar.probe(queue, text, arrived)

    def lost(self) -> None:
        """Back ends were told that this node is lost, and it is not."""
        self._announce()
