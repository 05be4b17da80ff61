"""The clean-ups of all dead nodes: how many run at once, on which channels, and what is announced of the nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final, Protocol

from txamqp.client import Closed

from ..broker.client import BrokerClient, BrokerError, as_failure
from ..events import Event, NodeLost
from ..interfaces import Clock
from .cleanup import Cleanup, Receiver
from .members import Members

FIRST_CHANNEL: Final = 4
"""The first of the channels for clean-ups. Each clean-up has two."""

LIMIT: Final = 50
"""Clean-ups at a time, at most; fewer where `channel_max` of the broker allows fewer channels."""

RETRY_AFTER: Final = 10.0
"""Seconds after which a clean-up that the broker refused is tried again."""

NOT_IMPLEMENTED: Final = 540
"""Reply code with which RabbitMQ ends the connection over a conditional deletion of a quorum queue, which it does not have."""


class NodeAnnouncer(Protocol):
    """The presence role, as far as it announces nodes."""

    def node_lost(self, node: str) -> None:
        """Announce to back ends that a node is lost."""

    def has_announced(self, node: str) -> bool:
        """Return whether the broker has confirmed that announcement."""


class CleanupOwner(Protocol):
    """The register, as the clean-ups see it."""

    members: Members

    def node_queue(self, node: str) -> str:
        """Return the name of the queue of a node."""

    @property
    def exchange(self) -> str:
        """Name of the exchange to which the queues of the nodes are bound."""

    def acknowledge(self, tags: list[int]) -> None:
        """Acknowledge notices."""

    def schedule(self) -> None:
        """Inspect the members again."""

    def warn(self, text: str) -> None:
        """Warn the operator."""


class Cleanups:
    """Runs a `Cleanup` for each dead node, between `begin` and `end`."""

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        owner: CleanupOwner,
        left_behind: Receiver,
        presence: NodeAnnouncer | None,
    ) -> None:
        """`presence` is told of lost nodes, where back ends are."""
        self._clock = clock
        self._emit = emit
        self._owner = owner
        self._left_behind = left_behind
        self._presence = presence
        self._client: BrokerClient | None = None
        self._dead: deque[str] = deque()
        self._running: dict[int, Cleanup] = {}  # by the first channel of each
        self._unannounced: list[str] = []  # cleaned up; the announcement of the loss is not confirmed yet
        self._plain = False  # the queues of nodes are quorum queues

    def begin(self, client: BrokerClient) -> None:
        """Run clean-ups on this connection from now on."""
        self._client = client

    def end(self) -> None:
        """Abandon all clean-ups: the next registrar begins them again."""
        self._client = None
        self._dead.clear()
        self._unannounced.clear()
        for cleanup in self._running.values():
            cleanup.abandon()
        # A new dictionary: a clean-up that still runs recognises by it that its channel was given up.
        self._running = {}

    def add(self, node: str) -> None:
        """Clean up after a dead node, when `start` is called."""
        self._dead.append(node)

    def start(self) -> None:
        """Start as many clean-ups as there are channels for."""
        client = self._client
        if client is None:
            return
        limit = max(1, min(LIMIT, (client.channel_max - FIRST_CHANNEL + 1) // 2))
        while self._dead and len(self._running) < limit:
            node = self._dead.popleft()
            channel = next(number for number in count(FIRST_CHANNEL, 2) if number not in self._running)
            cleanup = self._running[channel] = Cleanup(
                client,
                channel,
                self._owner.node_queue(node),
                self._owner.exchange,
                self._clock,
                self._left_behind,
                partial(self._announce, node),
                self._owner.warn,
            )
            client.run(self._run(cleanup, node, channel))

    async def _run(self, cleanup: Cleanup, node: str, channel: int) -> None:
        """Empty and delete the queue of a dead node."""
        running = self._running
        refused: BrokerError | None = None
        gone = False
        try:
            gone = await cleanup.run(plain=self._plain)
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if isinstance(reason, BrokerError) and reason.code == NOT_IMPLEMENTED:
                self._plain = True
            if running is not self._running:
                return
            if not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            refused = reason
        if running is self._running:
            await cleanup.end()
        if running is not self._running:
            return
        del self._running[channel]
        self._finished(node, gone, refused)
        self._owner.schedule()
        self.start()

    def _finished(self, node: str, gone: bool, refused: BrokerError | None) -> None:
        members = self._owner.members
        queue = self._owner.node_queue(node)
        if gone:
            self._left_behind.lost(queue)
            self._unannounced.append(node)
            self.remove_announced()
        elif refused is not None:
            self._owner.warn(f"the queue {queue} of a node that is gone cannot be emptied: {refused}; trying again")
            self._owner.acknowledge(members.cleanup_stopped(node, self._clock.seconds() + RETRY_AFTER))
        else:
            self._owner.acknowledge(members.cleanup_stopped(node))

    def _announce(self, node: str, messages: int) -> None:
        """Announce that a node is lost, unless it stopped in order."""
        members = self._owner.members
        if members.must_announce(node):
            members.announced(node)
            self._emit(NodeLost(node, messages))
            if self._presence is not None:
                self._presence.node_lost(node)

    def remove_announced(self) -> None:
        """Remove the members whose queue is deleted and whose loss back ends were told of.

        Their notices are acknowledged only now: if this node dies before, the next registrar announces the loss.
        """
        for node in list(self._unannounced):
            if self._presence is None or self._presence.has_announced(node):
                self._unannounced.remove(node)
                self._owner.acknowledge(self._owner.members.cleaned_up(node))
