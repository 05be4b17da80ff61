"""The announcer: publishes the notices of this node to the register, and messages to the queues of nodes.

A message waits until the channel accepts it. Each has a key: a newer message replaces one with the same key that still waits.
What the broker refuses, or had not confirmed at the end of the channel, waits again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ..amqp import wire
from ..broker import headers as delivery
from ..broker.client import BrokerClient, ChannelHandler
from ..broker.packing import APP_ID
from ..broker.publisher import Publisher
from ..interfaces import Clock, DelayedCall
from .members import RENEW_INTERVAL
from .notices import FIRST, GONE, HERE, LEFT, RENEWED, Notice

_NOTICE_PROPERTIES: Final[Mapping[str, Any]] = {"content_type": "application/json"}


class Presence(enum.Enum):
    """The state of this node in its cluster."""

    AWAY = enum.auto()
    """The node does not consume its own queue, and does not announce itself."""
    HERE = enum.auto()
    """The node consumes its own queue, and renews its notice."""
    LEFT = enum.auto()
    """The node stops in order. This state is final."""


class AnnouncerOwner(Protocol):
    """The registrar, as its announcer sees it."""

    def announced(self) -> None:
        """Note that the register has the notice of this node."""

    def message_accepted(self) -> None:
        """Note that a message was accepted, and none waits that was refused."""

    def message_refused(self) -> None:
        """Note that the broker refused a message."""

    def register_missing(self) -> None:
        """Begin again: the register was deleted."""

    def channel_closed(self, reason: BaseException) -> None:
        """Begin again: the channel was closed."""

    def new_channel(self) -> None:
        """Begin again with a new channel now."""


class NodeLists(Protocol):
    """The broadcast role, as far as it passes lists of nodes on."""

    @property
    def state(self) -> str:
        """State of the role: lists go while it is `up`."""

    def list_nodes(self, nodes: bytes) -> bool:
        """Tell all nodes which nodes the register has. Return whether the list has gone."""


class _Message:
    """A message of the announcer."""

    __slots__ = ("arrived", "body", "key", "properties", "queue")

    def __init__(
        self, key: str, queue: str, properties: Mapping[str, Any], body: bytes, arrived: Callable[[], None] | None = None
    ) -> None:
        self.key = key
        self.queue = queue
        self.properties = properties
        self.body = body
        self.arrived = arrived


class Announcer:
    """Publishes on the channel of the register, between `begin` and `end`."""

    def __init__(
        self,
        clock: Clock,
        channel: int,
        *,
        node: Callable[[], str],
        register: str,
        owner: AnnouncerOwner,
        lists: NodeLists,
    ) -> None:
        """`node()` returns the name of this node, and `register` is the name of the register's queue."""
        self._clock = clock
        self._node = node
        self._register = register
        self._owner = owner
        self._lists = lists
        self._presence = Presence.AWAY
        self._client: BrokerClient | None = None
        self._waiting: dict[str, _Message] = {}
        self._renew_call: DelayedCall | None = None
        self.publisher: Publisher[_Message] = Publisher(clock, channel, self, longest_delay=30.0)

    # -- the state of this node ------------------------------------------------------------------------------------------

    def here(self) -> None:
        """Announce this node, from now on and after each reconnect."""
        if self._presence is not Presence.LEFT:
            self._presence = Presence.HERE
            self._announce_here()

    def _announce_here(self, origin: str = FIRST) -> None:
        """Publish the notice of this node, and schedule its renewal."""
        self._cancel_renewal()
        if self._presence is Presence.HERE and self._client is not None:
            key = _key(HERE, self._node())
            # While the broker is blocked renewals would pile up in the socket.
            if origin == FIRST or not self._is_published(key):
                self.publish_notice(Notice(self._node(), HERE, origin))
            self._renew_call = self._clock.callLater(RENEW_INTERVAL, self._announce_here, RENEWED)

    def _cancel_renewal(self) -> None:
        if self._renew_call is not None and self._renew_call.active():
            self._renew_call.cancel()
        self._renew_call = None

    def away(self) -> None:
        """Renew the notice no longer. A new one would announce a node that is not complete; the register keeps the last one."""
        if self._presence is Presence.HERE:
            self._presence = Presence.AWAY
        self._waiting.pop(_key(HERE, self._node()), None)

    def leave(self) -> None:
        """Announce that this node stops in order, and that back ends were told of the end of all its connections."""
        self._waiting.pop(_key(HERE, self._node()), None)
        self._presence = Presence.LEFT
        self.publish_notice(Notice(self._node(), LEFT))

    def renamed(self, before: str) -> None:
        """Announce that this node has left the name `before`. The end of each of its connections is announced by itself."""
        if self._presence is Presence.HERE:
            self._presence = Presence.AWAY
        self._waiting.pop(_key(HERE, before), None)
        self.publish_notice(Notice(before, LEFT))

    def gone(self, node: str, served: bool) -> None:
        """Announce that the process of another node is dead. `served`: back ends may know of connections of that node."""
        self.publish_notice(Notice(node, GONE if served else LEFT))

    @property
    def goodbye_unconfirmed(self) -> bool:
        """Return whether the notice of `leave` has not arrived, though there is a channel for it."""
        if self._presence is not Presence.LEFT or self._client is None:
            return False
        key = _key(LEFT, self._node())
        return key in self._waiting or self._is_published(key)

    # -- publishing ------------------------------------------------------------------------------------------------------

    def publish_notice(self, notice: Notice) -> None:
        """Publish a notice to the register."""
        self._send(_Message(_key(notice.state, notice.node), self._register, _NOTICE_PROPERTIES, notice.pack()))

    def publish_to_node(self, key: str, queue: str, text: str, arrived: Callable[[], None] | None = None) -> None:
        """Publish a message to the queue of a node. `arrived` is called when the broker has confirmed it."""
        self._send(_Message(key, queue, {"headers": {delivery.NOTICE: text}}, b"", arrived))

    @property
    def can_list(self) -> bool:
        """Return whether lists of nodes can go to all nodes now, and can come from them."""
        return self._lists.state == "up"

    def list_nodes(self, nodes: bytes) -> bool:
        """Tell all nodes which nodes the register has. Return whether the list has gone."""
        return self._lists.list_nodes(nodes)

    def _send(self, message: _Message) -> None:
        self._waiting.pop(message.key, None)
        self._waiting[message.key] = message
        self._publish()

    def _publish(self) -> None:
        client = self._client
        if client is None or self.publisher.retry.pending:
            return
        for message in self._waiting.values():
            # RabbitMQ accepts only the user name of the login: so a notice proves which user has written it.
            properties = {**message.properties, "user_id": client.username, "delivery_mode": 2, "app_id": APP_ID}
            self.publisher.publish(message, message.queue, wire.encode_properties(properties), message.body)
        self._waiting.clear()

    def _is_published(self, key: str) -> bool:
        return any(message.key == key for message in self.publisher.messages)

    # -- the channel -----------------------------------------------------------------------------------------------------

    async def open(self, client: BrokerClient, handler: ChannelHandler) -> Any:
        """Open the channel with confirms, and return it. `handler` passes answers of the broker on to `publisher`."""
        return await self.publisher.open(client, handler)

    def begin(self, client: BrokerClient) -> None:
        """Publish from now on: first the messages that wait, and the notice of this node if it is here."""
        self._client = client
        self._announce_here()
        self._publish()

    def end(self) -> None:
        """Give up the channel. Unconfirmed messages wait again."""
        self._client = None
        self._cancel_renewal()
        for message in self.publisher.withdraw():
            self._put_back(message)

    def _put_back(self, message: _Message) -> None:
        """Let a message wait again, unless it announces this node and that is no longer true."""
        if self._presence is Presence.HERE or message.key != _key(HERE, self._node()):
            self._waiting.setdefault(message.key, message)

    def messages_confirmed(self, accepted: list[_Message], unroutable: list[_Message]) -> None:
        retry = self.publisher.retry
        for message in accepted:
            retry.refusals.accepted(message.queue)
            if not self._waiting:  # otherwise another queue may refuse, and go on refusing
                retry.reset_delay()
                self._owner.message_accepted()
            if message.arrived is not None:
                message.arrived()
            if message.key == _key(HERE, self._node()):
                self._owner.announced()
        # A message to the queue of a node is dropped when that queue does not exist.
        missing = [message for message in unroutable if message.queue == self._register]
        for message in missing:
            self._waiting.setdefault(message.key, message)
        if missing:
            self._owner.register_missing()

    def messages_refused(self, messages: list[_Message]) -> None:
        for message in messages:
            self._put_back(message)
            self.publisher.retry.refusals.refused(message.queue)
        self._owner.message_refused()
        self.publisher.retry.schedule()

    def channel_closed(self, reason: BaseException) -> None:
        self._owner.channel_closed(reason)

    def retry_due(self, new_channel: bool) -> None:
        self.publisher.retry.done()
        if new_channel:
            self._owner.new_channel()
        elif self._client is not None:
            self._client.run(self._publish_again())

    async def _publish_again(self) -> None:
        self._publish()


def _key(state: str, node: str) -> str:
    return f"{state} {node}"
