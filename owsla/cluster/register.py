"""The register of a cluster, as the node consumes it that is the registrar: holds notices, and inspects the members."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..amqp import wire
from ..amqp.wire import WireError
from ..broker import headers as delivery
from ..broker import queues as topology
from ..broker.acks import AckTracker
from ..broker.client import BrokerClient, BrokerError
from ..broker.queue_state import inspect_queue
from ..events import Event
from ..interfaces import Clock, DelayedCall
from .announcer import Announcer
from .cleanup import Receiver
from .cleanups import Cleanups, NodeAnnouncer
from .known_nodes import KnownNodes
from .members import Decision, Members, QueueCondition
from .notices import HERE, KEPT, Notice, pack_list, read_list

REGISTER_CHANNEL: Final = 1
"""The channel that publishes notices, and consumes them."""
INSPECT_CHANNEL: Final = 3
"""The channel on which queues are inspected."""

INSPECTIONS: Final = 5
"""Number of inspections of a node within its grace."""

SHORTEST_INTERVAL: Final = 0.2
LONGEST_INTERVAL: Final = 2.0
"""Seconds between two inspections of a node."""

SLOW_REFUSAL: Final = 5.0
"""Seconds after which a refusal to inspect a queue counts as slow. With Khepri (RabbitMQ 4.0) a classic queue on a broker node
that is down is refused after 70 seconds, and all other nodes wait for that."""

REST: Final = 300.0
"""Seconds for which a queue is not inspected again after a slow refusal."""

HANDOVER: Final = 1.0
"""Seconds within which a new registrar gets the notices that the last one held."""

RECALL_AFTER: Final = 5.0
"""Seconds after which a new registrar publishes notices again that it did not get. By then all nodes that lost their
connections or their consumers, too, have registered again."""

UNANSWERED: Final = 120.0
"""Seconds without a list of the registrar, six of which are due, after which the operator is warned."""


def register_queue(to_device: str, arguments: Mapping[str, Any]) -> topology.Queue:
    """Return the register of nodes: `<to-device>.nodes`. It is replicated if the queues of nodes are, whose `arguments` these
    are.
    """
    kind = {name: value for name, value in arguments.items() if name.startswith(("x-queue-type", "x-quorum-"))}
    return topology.Queue(f"{to_device}.nodes", {"x-single-active-consumer": True, **kind}, own=True, consumed=True)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The settings of a cluster."""

    to_device: str
    """Name of the queue of messages to devices; the names of all other queues begin with it."""
    register: topology.Queue
    node_grace: float
    """Seconds without a consumer after which a node is dead."""
    users: Collection[str]
    """Names that nodes log in with. Notices of other users are dropped."""


class Register:
    """The consumer of the register, between `begin` and `end`.

    Every round it inspects the queues of all members and acts on the decisions of `Members`. It belongs to one channel at a
    time: what a round finds out after the end of its channel is dropped, since the notices belong to another registrar then.
    """

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        settings: ClusterSettings,
        *,
        node: Callable[[], str],
        announcer: Announcer,
        left_behind: Receiver,
        presence: NodeAnnouncer | None,
        warn: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._node = node
        self._announcer = announcer
        self.warn = warn
        interval = min(LONGEST_INTERVAL, max(SHORTEST_INTERVAL, settings.node_grace / INSPECTIONS))
        self.members = Members(node, settings.node_grace, interval)
        self._cleanups = Cleanups(clock, emit, self, left_behind, presence)
        self._client: BrokerClient | None = None
        self._ready = False  # the channel consumes the register
        self._acks = AckTracker()
        self._round_call: DelayedCall | None = None
        self._inspecting = False
        self._active_since: float | None = None  # when the first notice came to this node
        self._told_of_drops = False  # the operator knows that the register loses notices
        self._known = KnownNodes()
        self._resting: dict[str, float] = {}  # nodes, and until when their queues are not inspected
        self._deleted = False  # the register was deleted: the operator knows why notices are missing
        self._unanswered_since: float | None = None  # the first confirmed notice since a registrar was heard of
        self._told_of_silence = False

    # -- the channel -----------------------------------------------------------------------------------------------------

    def prepare(self, client: BrokerClient, not_before: float) -> None:
        """Begin with a new channel of this connection. No node is dead before the time `not_before`."""
        self._client = client
        self._forget(not_before)

    def begin(self) -> None:
        """Inspect members from now on: the channel consumes the register."""
        assert self._client is not None
        self._ready = True
        self._cleanups.begin(self._client)
        self.schedule()

    def end(self) -> None:
        """Give up the channel. The broker delivers its notices to the next registrar."""
        self._client = None
        self._ready = self._inspecting = False
        if self._round_call is not None and self._round_call.active():
            self._round_call.cancel()
        self._round_call = None
        self._active_since = None
        self._known.remember(self.members.states(), self._clock.seconds())
        self._cleanups.end()
        self._forget(0.0)

    def _forget(self, not_before: float) -> None:
        self.members.begin(not_before)
        self._acks = AckTracker()
        self._resting.clear()

    # -- the nodes of the register, while another node is the registrar --------------------------------------------------

    def learn(self, nodes: bytes) -> None:
        """Remember the nodes that the registrar lists. The registrar itself knows better."""
        self._unanswered_since = None
        if self._active_since is None:
            self._deleted = False  # there is a register again
            self._known.remember(read_list(nodes), self._clock.seconds())

    def deleted(self) -> None:
        """Note that the register was deleted, and its notices with it."""
        self._deleted = True

    def confirmed(self) -> None:
        """Note that the broker has confirmed the notice of this node. Warn if no registrar is heard of for long."""
        now = self._clock.seconds()
        if self._active_since is not None or not self._announcer.can_list:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= UNANSWERED and not self._told_of_silence:
            self._told_of_silence = True
            self.warn(
                f"no node says that it reads {self._settings.register.name}: unless a node of an earlier version does, another "
                "program takes the notices, and lost nodes are not announced; end that program (rabbitmqctl list_consumers)"
            )

    # -- notices ---------------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a message of the register."""
        notice = Notice.read(body)
        user = _user(header)
        if notice is None or user not in self._settings.users:
            what = "is not a notice of a node" if notice is None else f"was written by {user or 'nobody'}, and not by a node"
            self.warn(f"a message on {self._settings.register.name} {what}; it is dropped")
            self.acknowledge([tag])
            return
        now = self._clock.seconds()
        self._active_since = now if self._active_since is None else self._active_since
        self._unanswered_since = None
        # Notices that another registrar held come first. After a restart of the broker they are not always marked as
        # redelivered.
        fresh = not redelivered and now - self._active_since > HANDOVER
        if fresh and self.members.has_vanished(notice):
            self._warn_of_drops()
        self.acknowledge(self.members.heard(tag, notice, now, redelivered))
        if notice.state != HERE and self._round_call is not None and self._round_call.active():
            self._round_call.cancel()  # the next round is due sooner
            self._round_call = None
        self.schedule()

    def _warn_of_drops(self) -> None:
        if not self._told_of_drops:
            self._told_of_drops = True
            self.warn(
                f"notices vanish from {self._settings.register.name}, and are published again: make sure that no policy with a "
                "message-ttl, a max-length or a delivery-limit applies to it (rabbitmqctl list_policies), and that no other "
                "program takes them"
            )

    def acknowledge(self, tags: list[int]) -> None:
        for tag in tags:
            self._acks.done(tag)
        if self._client is None or not tags:
            return
        top, alone = self._acks.take()
        if top:
            self._client.ack(REGISTER_CHANNEL, top, True)
        for tag in alone:
            self._client.ack(REGISTER_CHANNEL, tag, False)

    # -- rounds of inspection --------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        if self._round_call is None and not self._inspecting and self._ready and len(self.members):
            self._round_call = self._clock.callLater(self.members.interval(self._clock.seconds()), self._round)

    def _round(self) -> None:
        self._round_call = None
        client = self._client
        if client is not None:
            self._inspecting = True
            client.run(self._inspect_all(client, self._acks))

    async def _inspect_all(self, client: BrokerClient, acks: AckTracker) -> None:
        """Inspect each member once. `acks` stands for the channel: its notices belong to it."""
        for node in self.members.to_inspect():
            condition = await self._inspect(client, node)
            if acks is not self._acks or client is not self._client:
                return
            decision, tags = self.members.inspected(node, condition, self._clock.seconds())
            self.acknowledge(tags)
            if decision is Decision.CLEAN_UP:
                self._cleanups.add(node)
                self.members.cleanup_begun(node)
        self._cleanups.remove_announced()
        await self._recall(client, acks)
        if acks is not self._acks or client is not self._client:
            return
        self._list_members()
        for notice in self.members.take_stale(self._clock.seconds()):
            self._announcer.publish_notice(notice)
        for node in self.members.take_returned():
            key = f"{delivery.LOST_NOTICE} {node}"
            self._announcer.publish_to_node(key, self.node_queue(node), delivery.LOST_NOTICE)
        self._inspecting = False
        self.schedule()
        self._cleanups.start()

    async def _recall(self, client: BrokerClient, acks: AckTracker) -> None:
        """Publish the notices of nodes again that the last registrar had, and that the broker did not pass on."""
        since = self._active_since
        if since is None or self._clock.seconds() - since < RECALL_AFTER:
            return
        for node, state in self._known.missing(self.members.states(), self._node()).items():
            condition = await self._inspect(client, node)
            if acks is not self._acks or client is not self._client:
                return
            if condition is QueueCondition.UNKNOWN:
                continue
            self._known.forget(node)
            if condition is not QueueCondition.MISSING and node not in self.members:
                self.members.recall(node)
                self._announcer.publish_notice(Notice(node, state, KEPT))
                if not self._deleted:
                    self._warn_of_drops()
        self._deleted = False

    def _list_members(self) -> None:
        """List the members to all nodes, if that is due. Those nodes remember others that are still missing here."""
        members, now = self.members.states(), self._clock.seconds()
        if self._known.is_due(members, now) and self._announcer.list_nodes(pack_list(members)):
            self._known.listed(members, now)

    def node_queue(self, node: str) -> str:
        return f"{self._settings.to_device}.{node}"

    @property
    def exchange(self) -> str:
        return topology.broadcast_exchange(self._settings.to_device)

    async def _inspect(self, client: BrokerClient, node: str) -> QueueCondition:
        queue, began = self.node_queue(node), self._clock.seconds()
        if began < self._resting.get(node, 0.0):
            return QueueCondition.UNKNOWN
        self._resting.pop(node, None)
        try:
            found = await inspect_queue(client, INSPECT_CHANNEL, queue)
        except BrokerError as error:
            now = self._clock.seconds()
            if now - began >= SLOW_REFUSAL:
                self._resting[node] = now + REST
            self.warn(f"the queue {queue} cannot be inspected: {error}")
            return QueueCondition.UNKNOWN
        if found is None:
            return QueueCondition.MISSING
        return QueueCondition.CONSUMED if found.consumers else QueueCondition.IDLE


def _user(header: bytes) -> str | None:
    """Return the user who has published a message, as the broker has verified it."""
    try:
        user = wire.decode_properties(header, 12).get("user_id")
    except WireError:
        return None
    return user if isinstance(user, str) else None
