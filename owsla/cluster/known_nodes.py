"""The nodes that the register has had, for the case that it loses their notices. Pure.

Theory of operation
===================

A notice can vanish when nobody holds it, which is while the registrar changes: a policy drops it (message-ttl, max-length), a
delivery limit does, an operator purges or deletes the queue. A living node renews its notice. A dead node does not, and the
last registrar itself may be dead: nobody would announce that they are lost.

So the registrar lists its members to all nodes, and each node remembers the members. The next registrar inspects the queues of
those for which it has no notice, and publishes a notice for those whose queue exists:

    remembered ──a notice of it is in the register──────────▶ forgotten   (it is watched)
               ├─no queue───────────────────────────────────▶ forgotten   (it was cleaned up after, or has left)
               └─its queue exists────notice published again─▶ forgotten   (it is watched)

That a queue exists is the criterion because only a clean-up, the node itself, or the broker after `FORGET_AFTER` deletes it. So
a list may be old, and a node that is remembered for too long does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..broker.queues import NODE_QUEUE_EXPIRES

CHANGE_INTERVAL: Final = 5.0
"""Seconds between two lists, if the members change. A list for 300 nodes has 5 KB, and goes to 300 queues."""

LIST_INTERVAL: Final = 20.0
"""Seconds between two lists, if the members do not change."""

FORGET_AFTER: Final = NODE_QUEUE_EXPIRES / 1000
"""Seconds after which a node that is no longer listed is forgotten: RabbitMQ has deleted its queue."""


class KnownNodes:
    """The nodes that this node remembers, and the time of the next list."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[str, float]] = {}  # their states, and when they were listed last
        self._last: Mapping[str, str] = {}  # the list that was published last
        self._listed_at: float | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def remember(self, nodes: Mapping[str, str], now: float) -> None:
        """Remember nodes and their states. Forget those that were not remembered again for long."""
        self._nodes.update((node, (state, now)) for node, state in nodes.items())
        for node in [node for node, (_, since) in self._nodes.items() if now - since >= FORGET_AFTER]:
            del self._nodes[node]

    def forget(self, node: str) -> None:
        """Forget a node."""
        self._nodes.pop(node, None)

    def missing(self, members: Mapping[str, str], me: str) -> dict[str, str]:
        """Return the nodes that are not among the members of the register, with their states. Forget all others, and `me`."""
        self._nodes = {node: known for node, known in self._nodes.items() if node not in members and node != me}
        return {node: state for node, (state, _) in self._nodes.items()}

    def is_due(self, members: Mapping[str, str], now: float) -> bool:
        """Return whether the members should be listed to all nodes. A node without others has nobody to tell."""
        if len(members) < 2:
            return False
        interval = LIST_INTERVAL if members == self._last else CHANGE_INTERVAL
        return self._listed_at is None or now - self._listed_at >= interval

    def listed(self, members: Mapping[str, str], now: float) -> None:
        """Note that the members were listed."""
        self._last, self._listed_at = members, now
