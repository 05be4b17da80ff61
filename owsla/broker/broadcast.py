"""Messages to all nodes, on the fanout exchange `<to-device>.all`: questions, claims, and messages for many devices.

Theory of operation
===================

The own queue of each node is bound to the exchange (`binding`). This role publishes, on a connection of its own: questions must
not wait behind the records of the courier, and a refusal must not close the channel on which undeliverable messages are
recorded.

There are two kinds of message:

- *notices*: questions, answers, claims, and lists of nodes. A notice that cannot go now is dropped: a question is asked again,
  claims are stated again when the role is up again, and so are lists.
- *group messages*, each made of a message that a consumer holds. Each is kept and published again until the broker has
  confirmed it, and then its message is acknowledged. They go one at a time, so that a message over which the broker closes the
  channel is known.

States, in the order in which they are decided:

    away      there is no connection, the own queue is not bound, or the channel has not been tried
    refused   the broker does not let this node bind, publish to the exchange, or have one more connection
    blocked   the broker reads no messages (an alarm), or too many notices are unconfirmed
    up        notices go

AMQP has no query for permissions. So each channel is tried with a claim about no device, which other nodes ignore: the broker
confirms it, or closes the channel with 403.

A node without permission serves its devices as before. It tries again after a delay, on a new channel, since RabbitMQ remembers
permissions for each channel.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from twisted.logger import Logger

from ..amqp import wire
from ..amqp.wire import WireError
from ..events import BrokerWarning, Event
from ..interfaces import Clock, DelayedCall
from ..letter import Letter
from . import headers as delivery
from . import message_properties
from . import queues as topology
from .binding import Binding, BindingState
from .client import BrokerClient, BrokerError
from .courier import MESSAGE_FAULTS
from .group_messages import GroupMessage, GroupMessages
from .notices import Notice, UnconfirmedNotices
from .publisher import Publisher

CHANNEL: Final = 1

STUCK: Final = 10.0
"""Seconds without a confirm, at the limit, after which unconfirmed notices are given up. A quorum queue that has lost its
majority confirms nothing, and the other nodes have the notices."""

CONNECTION_ATTEMPTS: Final = 5
"""Attempts to connect after which the broker counts as not allowing it: some 3 seconds. Messages by name wait until then."""

LIST_LIFETIME: Final = 30.0
"""Seconds after which the broker drops a list of nodes. The registrar publishes one every 20 seconds."""

BroadcastState: TypeAlias = Literal["up", "away", "blocked", "refused"]


class BroadcastRole:
    """The role that publishes to all nodes."""

    name = "broadcast"
    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        exchange: str,
        own_queue: Callable[[], str],
        question_lifetime: Callable[[], float],
        claim_lifetime: float,
        record: Callable[[Letter, str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`own_queue()` returns the name of the node's own queue, to which questions are answered. Lifetimes are in seconds.
        `record` records a group message as undeliverable; `now()` returns the time since the epoch.
        """
        self._clock = clock
        self._emit = emit
        self._exchange = exchange
        self._own_queue = own_queue
        self._question_lifetime = question_lifetime
        self._claim_lifetime = claim_lifetime
        self._publisher: Publisher[Notice | GroupMessage] = Publisher(clock, CHANNEL, self, longest_delay=60.0)
        self._client: BrokerClient | None = None
        self._opening = False
        self._open = False  # the channel takes messages
        self._tried = False  # the broker has confirmed a message on this channel
        self._refused = False  # the broker refused a message to the exchange, and has confirmed none since
        self._alarm = False
        self._failed_attempts = 0  # to connect, since there was a connection
        self._warned: str | None = None
        self._troubled = False  # a warning says that devices cannot be addressed by name
        self._notices = UnconfirmedNotices()
        self._confirms = 0  # number of confirms so far
        self._stuck_call: DelayedCall | None = None
        self._groups = GroupMessages(clock, publish=self._publish_group, record=record, now=now)
        self._watchers: list[Callable[[BroadcastState], None]] = []
        self._last_state: BroadcastState = "away"
        self.binding = Binding(clock, exchange, changed=self._binding_changed, warn=self._warn)
        """Binding of the own queue, for the consumers of this node."""
        self.dropped = 0
        """Number of notices that could not go."""

    # -- requests --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> BroadcastState:
        """State of the role: see the theory of operation."""
        if self._client is None:
            return "refused" if self._failed_attempts >= CONNECTION_ATTEMPTS else "away"
        if self._refused or self.binding.state is BindingState.REFUSED:
            return "refused"
        if self._alarm or self._notices.full:
            return "blocked"
        return "up" if self._tried and self.binding.state is BindingState.BOUND else "away"

    def watch(self, changed: Callable[[BroadcastState], None]) -> None:
        """Call `changed` with the new state after each change of it, from now on."""
        self._watchers.append(changed)

    def ask(self, device_ids: Sequence[str]) -> bool:
        """Ask all nodes which of them has these devices. Return `False` if the question cannot go now: the exchange does not
        take it, or the last question has not arrived yet.
        """
        if not self._notices.may_ask(self._clock.seconds()):
            return False
        headers: dict[str, str] = {delivery.NOTICE: delivery.WHO_HAS}
        body = b""
        if len(device_ids) == 1 and device_ids[0].isprintable():
            headers["device_id"] = device_ids[0]
        else:
            body = json.dumps(list(device_ids)).encode()
        return self._notify(Notice(headers, body, self._question_lifetime(), reply_to=self._own_queue()))

    def claim(self, claims: bytes) -> bool:
        """State to all nodes which devices this node has: a JSON array. Return whether the claims have gone."""
        return self._notify(Notice({delivery.NOTICE: delivery.HERE}, claims, self._claim_lifetime))

    def list_nodes(self, nodes: bytes) -> bool:
        """Tell all nodes which nodes the register has: a JSON object. Return whether the list has gone."""
        return self.state == "up" and self._notify(Notice({delivery.NOTICE: delivery.NODES}, nodes, LIST_LIFETIME))

    def answer(self, queue: str, correlation_id: bytes | None, claims: bytes) -> bool:
        """Answer the question of another node, on its own queue. Return whether the answer has gone.

        `correlation_id` is that of the question, as encoded in its content header.
        """
        headers = {delivery.NOTICE: delivery.HAS}
        return self._notify(
            Notice(headers, claims, self._question_lifetime(), queue=queue, correlation_id=correlation_id)
        )

    def spread(self, letter: Letter, group_id: str) -> None:
        """Publish a message for many devices to all nodes, and acknowledge it when it has arrived there.

        It is recorded as `expired` if that happens before it could be published.
        """
        self._groups.add(letter, group_id)
        self._publish_group()
        self._groups.watch_expiry()

    @property
    def unconfirmed(self) -> int:
        """Number of group messages that are about to arrive. A stop waits for them, but not for a channel."""
        return len(self._groups) if self._tried else 0

    @property
    def waiting(self) -> int:
        """Number of group messages that have not arrived yet."""
        return len(self._groups)

    # -- notices ---------------------------------------------------------------------------------------------------------

    def _notify(self, notice: Notice) -> bool:
        """Publish a notice to the exchange, or to the queue of a node. Return `False` if it cannot go now."""
        client = self._client
        if client is None or self.state != "up":
            self.dropped += 1
            return False
        self._publish_notice(client, notice)
        if self._notices.full:
            self._watch_stuck()
            self._state_changed()
        return True

    def _publish_notice(self, client: BrokerClient, notice: Notice) -> None:
        properties = notice.properties(client.username)
        notice.size = len(properties) + len(notice.body)
        self._notices.add(notice)
        self._publisher.publish(notice, notice.queue, properties, notice.body, "" if notice.queue else self._exchange)

    def _watch_stuck(self) -> None:
        if self._stuck_call is None:
            self._stuck_call = self._clock.callLater(STUCK, self._look_for_stuck, self._confirms)

    def _look_for_stuck(self, confirms: int) -> None:
        """Give up the unconfirmed notices if the broker has confirmed none for a while, and reads what is published."""
        self._stuck_call = None
        if not self._notices.full:
            return
        if self._confirms == confirms and not self._alarm:
            self._open_again()
        else:
            self._watch_stuck()

    # -- group messages --------------------------------------------------------------------------------------------------

    def _publish_group(self) -> None:
        """Publish the first group message that is still wanted, unless one is on its way."""
        client = self._client
        while (first := self._groups.to_publish()) is not None:
            if client is None or not self._tried or self._publisher.retry.pending:
                return
            self._publish_first(client, first)

    def _publish_first(self, client: BrokerClient, first: GroupMessage) -> None:
        try:
            properties = self._group_properties(client, first)
        except WireError:
            self._groups.refuse()
            return
        self._groups.published()
        self._publisher.publish(first, "", properties, first.letter.body, self._exchange)

    def _group_properties(self, client: BrokerClient, message: GroupMessage) -> bytes:
        extra: dict[str, str | bool] = {message_properties.GROUP_HEADER: message.group_id}
        if message.letter.identity is not None:
            extra[message_properties.REDELIVERED_HEADER] = True  # another node may have published it, too
        deadline = message.letter.deadline
        if deadline is not None:
            left = max(0, round((deadline - self._clock.seconds()) * 1000))
            extra[message_properties.EXPIRATION_HEADER] = str(left)
        properties = message_properties.relayed(message.letter.header[12:], extra)
        if len(properties) > client.frame_max - wire.FRAME_OVERHEAD - 12 - 256:  # with the user, of 255 bytes at most
            properties = message_properties.reduced(properties)
        user = wire.short_string(client.username)
        return wire.join_properties({**wire.split_properties(properties), "user_id": user})

    # -- the connection --------------------------------------------------------------------------------------------------

    def not_connected(self) -> None:
        """Note that an attempt to connect has failed, and all other connections are there: the broker allows no further one."""
        self._failed_attempts += 1
        self._state_changed()

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        self._failed_attempts = 0
        self._alarm = False
        if self.binding.state is BindingState.BOUND:
            await self._open_channel(client)
        self._state_changed()

    def _binding_changed(self) -> None:
        """Open the channel when the own queue is bound: there is an exchange then."""
        refusal = self.binding.refusal
        if refusal is not None:
            self._warn_refused(refusal)
        if not self._open and not self._publisher.retry.pending:
            self._open_again()
        self._state_changed()

    async def _open_channel(self, client: BrokerClient) -> None:
        """Open the channel, and try it."""
        self._opening = True
        try:
            await client.end_channel(CHANNEL)
            await self._publisher.open(client)
        finally:
            self._opening = False
        if client is self._client:
            self._open = True
            self._publish_notice(client, Notice({delivery.NOTICE: delivery.HERE}, b"[]", self._question_lifetime()))

    def _open_again(self) -> None:
        """Open a new channel, if there is a connection and the own queue is bound."""
        client = self._client
        if client is not None and self.binding.state is BindingState.BOUND and not self._opening:
            self._give_up_channel()
            client.run(self._open_channel(client))
        self._state_changed()

    def down(self) -> None:
        self._client = None
        self._alarm = False
        self._give_up_channel()
        if self._stuck_call is not None:
            self._stuck_call.cancel()
            self._stuck_call = None
        self._state_changed()

    def _give_up_channel(self) -> None:
        """Give up the channel, and the notices that are on their way."""
        self._open = self._tried = False
        self._publisher.withdraw()
        self._groups.unanswered()
        self._notices.clear()

    def blocked(self, reason: str) -> None:
        self._alarm = True
        self._state_changed()

    def unblocked(self) -> None:
        self._alarm = False
        self._state_changed()

    def _state_changed(self) -> None:
        state = self.state
        if state != self._last_state:
            self._last_state = state
            for changed in self._watchers:
                changed(state)

    # -- answers of the broker -------------------------------------------------------------------------------------------

    def messages_confirmed(
        self, accepted: list[Notice | GroupMessage], unroutable: list[Notice | GroupMessage]
    ) -> None:
        """Acknowledge group messages. No queue is bound to the exchange, not even our own, if a message to it was returned."""
        self._confirms += 1
        missing = False
        for message in unroutable:
            if isinstance(message, GroupMessage):
                self._groups.unanswered()
                self._publisher.retry.schedule()
                missing = True
            else:
                self._notices.remove(message)
                missing = missing or not message.queue
        for message in accepted:
            if isinstance(message, GroupMessage):
                self._groups.arrived()
            else:
                self._notices.remove(message)
        self._accepted()
        if missing:
            self.binding.check()
        self._state_changed()

    def _accepted(self) -> None:
        """Note that the exchange takes messages."""
        self._tried = True
        self._refused = False
        self._publisher.retry.reset_delay()
        if self._troubled:
            self._troubled = False
            self._warned = None
            self._log.info("Devices can be addressed by name: the exchange {exchange} works", exchange=self._exchange)
        self._publish_group()

    def messages_refused(self, messages: list[Notice | GroupMessage]) -> None:
        """Handle a negative acknowledgement: the queue of a node is full, or has no leader. The others have the message."""
        self._confirms += 1
        for message in messages:
            if isinstance(message, GroupMessage):
                self._groups.unanswered()
                self._groups.blame()
                self._publisher.retry.schedule()
            else:
                self._notices.remove(message)
        self._accepted()
        self._state_changed()

    def channel_closed(self, reason: BaseException) -> None:
        client = self._client
        published, code = self._groups.on_its_way, reason.code if isinstance(reason, BrokerError) else 0
        learned = client is not None and client.learn_user(reason)
        self._give_up_channel()
        if published and code in MESSAGE_FAULTS and not learned:
            self._groups.blame()
        if client is None or client.closed:
            return
        if learned:
            self._open_again()
        elif code == topology.NOT_FOUND:
            self.binding.check()  # it declares the exchange, and the channel is opened again
        elif code == topology.ACCESS_REFUSED:
            self._refused = True
            self._warn_refused(reason)
            self._publisher.retry.schedule(new_channel=True)
        else:
            self._warn_refused(reason)
            self._publisher.retry.schedule(new_channel=True)
        self._state_changed()

    def retry_due(self, new_channel: bool) -> None:
        self._publisher.retry.done()
        if new_channel:
            self._open_again()
        else:
            self._publish_group()

    # -- warnings --------------------------------------------------------------------------------------------------------

    def _warn_refused(self, reason: BaseException) -> None:
        self._troubled = True
        self._warn(f"devices can be addressed by name (device_id, owsla_to) on their own node only: {reason}; trying again")

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))
