"""The identity of this node: its name, and what follows when the name changes.

`ConnectionIds` has the name itself. A node changes it only if another process consumes its queue, or if the broker cannot reach
that queue. Then it is a new node without connections, and the connections of the old one are closed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..broker.queues import Queue
from ..routing import ConnectionIds
from .registrar import Registrar


class NodeIdentity:
    """Passes on what the consumers of the own queue of this node find out."""

    def __init__(
        self,
        ids: ConnectionIds,
        registrar: Registrar,
        *,
        queue: Callable[[bytes], Queue],
        announce: Callable[[], None],
        receiving: Callable[[bool], None],
        renamed: Callable[[str, str], None],
    ) -> None:
        """`queue` returns the queue of a node. `announce` announces all connections to back ends again. `receiving` is told
        whether the own queue is consumed. `renamed` is called with the previous name and the reason, when the new name is in
        use.
        """
        self._ids = ids
        self._registrar = registrar
        self._queue = queue
        self._announce = announce
        self._receiving = receiving
        self._renamed = renamed
        self._other = b""

    def queue(self) -> Queue:
        """Return the own queue of this node."""
        return self._queue(self._ids.node)

    def other(self) -> Queue:
        """Return the queue of another name that this node might take."""
        self._other = self._ids.other()
        return self._queue(self._other)

    def rename(self, reason: str) -> None:
        """Take the last name that `other` returned a queue of."""
        before = self._ids.node.decode()
        self._ids.node = self._other
        self._registrar.moved(before)
        self._renamed(before, reason)

    def here(self, *, missed: bool) -> None:
        """Announce that the own queue is consumed. `missed`: other nodes may have taken this one for dead meanwhile."""
        self._registrar.here()
        if missed:
            self._announce()
        self._receiving(True)

    def away(self) -> None:
        """Note that the own queue is not consumed: this node does not announce itself until it is."""
        self._registrar.away()
        self._receiving(False)

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Publish a message to the own queue. `arrived` is called when the broker has confirmed it."""
        self._registrar.probe(queue, text, arrived)

    def listed(self, nodes: bytes) -> None:
        """Learn the nodes of the register, as the registrar lists them."""
        self._registrar.learn(nodes)

    def lost(self) -> None:
        """Announce all connections again: back ends were told that this node is lost, and it is not."""
        self._announce()
