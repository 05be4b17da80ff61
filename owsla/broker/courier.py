"""The courier: records of undeliverable messages, forwards to other nodes, reports and answers.

Theory of operation
===================

The courier publishes on a connection of its own, apart from the lines of devices. These kinds of message go out:

- a *record* on the undeliverable queue, for a message that no device can get;
- a *forward* on the queue of the node that the device is connected to;
- a *forward by name*, of a message to a device, on the queue of the node that said that it has the device; and the way back, if
  that is no longer so, to the node that asked for the device;
- a *report* on the queue that a message named in `reply_to`, and an *answer* to a question of a back end;
- a *fence* on the queue of a node, behind the forwards that went there, and back to the node that sent it.

Nothing waits for reports, answers and fences, and they may be dropped.

The message that a record or a forward is made of is acknowledged to its consumer when the broker has confirmed the record or
the forward. Until then it belongs to the broker, which delivers it again if this process dies.

The hot path is a forward of a plain message (`forward_plain`): it is published as it was delivered, and is a tuple
(`PlainForward`) until it is confirmed. If anything else than a confirm happens to it, it becomes an `OutgoingMessage`.

An outgoing message is in one of three places, in this order of publication:

    waiting ──publish──▶ unconfirmed (in the `Publisher`) ──accepted──▶ done
       ▲                      │
       ├── refused, returned ─┤
       └────── held ◀─────────┘ (a forward whose node is absent, for `FORWARD_AGAIN` at a time)

A forward by name is not held: the device may be elsewhere by now. If there is no queue for it, the function of
`take_back_with` gets its message.

Isolation. If the broker closes the channel over a message, it does not say over which one. All messages that were unconfirmed
are then *suspects*: they go to the front of those that wait and are published one at a time, each confirmed before the next.
The one that is alone on its way when the channel closes again is the culprit. It becomes a record with minimal properties; if
even that closes the channel, it is given up. RabbitMQ also closes a connection with 541 over a crash of its own, which may have
nothing to do with the message: a culprit of 541 goes behind the others, gets minimal properties at its third crash only, and is
never given up.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from txamqp.client import Closed

from ..amqp import wire
from ..amqp.wire import WireError
from ..events import BrokerWarning, Event, Undeliverable, UndeliverableLost
from ..interfaces import Clock, DelayedCall
from ..letter import DeliverySource, Letter, unknown_reason
from ..log import escaped
from . import headers as delivery
from . import message_properties
from . import queues as topology
from .absent_nodes import AbsentNodes
from .client import BrokerClient, BrokerError, as_failure
from .direct_reply import DirectReplies, is_direct
from .packing import APP_ID
from .publisher import Publisher

PUBLISH_CHANNEL: Final = 1
DECLARE_CHANNEL: Final = 2

MESSAGE_FAULTS: Final = frozenset({311, 406, 501, 502, 503, 505})
"""Reply codes with which a broker closes a channel, or a whole connection, over a message itself: its size, its properties, its
encoding. Other codes are about permissions, queues, or the broker: the message has to wait.
"""

INTERNAL_ERROR: Final = 541
"""Reply code with which RabbitMQ closes a connection when it crashes over a message, or for reasons of its own."""

_NONE: Final[Mapping[str, str | int]] = MappingProxyType({})

_NOT_RELAYED: Final = (wire.PROPERTIES["user_id"][0] | ~wire.KNOWN_PROPERTIES) & 0xFF
"""Flags in the second byte of the property flags of messages that cannot be published as they were delivered: they have a
`user_id`, which RabbitMQ would compare with ours, or unknown properties."""

NODES_KEPT: Final = 1000
"""Number of nodes whose queue names are kept. A made-up connection id names a node, too."""

CRASHES: Final = 3
"""Number of crashes of the broker over a message that is sent alone, after which its properties are taken for the cause."""

LONGEST_ID: Final = 100
"""Characters of a connection id in an event. The ids of Owsla have 36; a back end may send anything."""

LONGEST_DEVICE_ID: Final = 255
"""Characters of a device id in an event, as many as that of a device may have."""

LONGEST_SELECTOR: Final = 100
"""Characters of a selector in an event. A back end may send anything."""

FORWARD_AGAIN: Final = 0.5
"""Seconds after which a forward to an absent node is tried again."""

REPORTS_WAITING: Final = 10_000
"""Limit of reports, answers and fences that wait or are unconfirmed. Nothing else bounds them while the broker is blocked,
since no message waits for them. Those past the limit are dropped. A large answer counts more than once (`PER_REPORT`)."""

PER_REPORT: Final = 1000
"""Bytes of a body that count as one more report. The answer to a back end that asks for 500 devices has 80 KB or more."""

FENCE: Final = "fence"
"""Notice that a node sends behind the messages that it forwarded to a node, followed by a token."""

FENCED: Final = "fenced"
"""Notice that answers it, behind the messages that went back, with the same token."""


class NodeQueues(dict[bytes, str]):
    """Names of the queues of nodes, by the names of the nodes."""

    __slots__ = ("_to_device",)

    def __init__(self, to_device: str) -> None:
        super().__init__()
        self._to_device = to_device

    def __missing__(self, node: bytes) -> str:
        if len(self) >= NODES_KEPT:
            self.clear()
        queue = self[node] = f"{self._to_device}.{node.decode()}"
        return queue


class OutgoingMessage:
    """A record, a forward, a report, an answer or a fence."""

    __slots__ = ("body", "crashes", "letter", "minimal", "node", "properties", "queue", "reason", "signed", "token", "weight")

    def __init__(
        self,
        queue: str,
        properties: bytes,
        body: bytes,
        letter: Letter | None,
        reason: str | None,
        *,
        node: bytes | None = None,
        signed: bool = False,
        token: str | None = None,
    ) -> None:
        self.queue = queue
        self.properties = properties
        self.body = body
        self.letter = letter
        """The message to acknowledge when this one has arrived; `None` if nothing waits for it."""
        self.weight = 0 if letter is not None else 1 + len(body) // PER_REPORT
        """Share of `REPORTS_WAITING`; 0 for a message that is never dropped."""
        self.reason = reason
        """The reason of a record; `None` for other messages."""
        self.node = node
        """The node of a forward by name, and of its way back; `None` for other messages."""
        self.signed = signed
        """True if the user of the login is named, so that nodes trust the message."""
        self.token = token
        """The token of a fence that goes to another node; `None` for other messages."""
        self.minimal = False
        """Whether the properties of the message were left out, since the broker closed the channel over them."""
        self.crashes = 0
        """Number of crashes of the broker while this message alone was on its way."""


PlainForward: TypeAlias = tuple[DeliverySource, int, str, bytes, bytes]
"""Forward of a plain message: the consumer that delivered it and its delivery tag there, the queue that it goes to, the payload
of its content header, and its body.
"""


class CourierRole:
    """The role that publishes records, forwards and reports, and acknowledges the messages they are made of."""

    name = "courier"

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        undeliverable: topology.Queue,
        to_device: str,
        node: Callable[[], bytes],
        device: Callable[[bytes], str | None],
        node_grace: float,
        held_limit: int,
    ) -> None:
        """`node()` returns the name of this node; `device()` the device id of a connection that is open here, or `None`.
        A node whose queue is absent may come back within `node_grace` seconds; at most `held_limit` forwards are held for
        such nodes.
        """
        self._clock = clock
        self._emit = emit
        self._undeliverable = undeliverable
        self._queues = NodeQueues(to_device)
        # Queues of Owsla: reports to them would be taken for messages to devices, or be recorded as undeliverable.
        self._is_ours = re.compile(re.escape(to_device.encode()) + rb"(\.([0-9a-f]{8}|nodes|undeliverable))?").fullmatch
        self._node = node
        self._device = device
        self._absent_nodes = AbsentNodes(node_grace)
        self._held_limit = held_limit
        self._held: deque[OutgoingMessage] = deque()
        self._hold_call: DelayedCall | None = None
        self._client: BrokerClient | None = None
        self._publisher: Publisher[OutgoingMessage | PlainForward] = Publisher(clock, PUBLISH_CHANNEL, self, longest_delay=10.0)
        self._waiting: deque[OutgoingMessage] = deque()
        self._suspects = 0  # number of messages, first unconfirmed, then waiting, to be published one at a time
        self._reports = 0  # weight of the reports, answers and fences that wait or are unconfirmed
        self._take_back: Callable[[Letter, bytes], None] = lambda letter, node: self.record(letter, unknown_reason(letter))
        self._take_fence_back: Callable[[str], None] = lambda token: None
        self._direct_replies = DirectReplies()
        self.recorded: dict[str, int] = {}
        """Number of undeliverable messages so far, by reason."""
        self.reports_dropped = 0
        """Number of reports and answers that had no queue to go to, or were too many."""

    # -- requests --------------------------------------------------------------------------------------------------------

    def record(self, letter: Letter, reason: str) -> None:
        """Record a message as undeliverable."""
        if letter.handed_over:
            # A repeat of a message that its device got. A record would contradict the report that was sent then.
            letter.source.done(letter.tag)
            self.report(letter, "delivered")
            return
        self._note(letter, reason)
        self._send(self._record(letter, reason))
        if letter.reply_to is not None:
            self.report(letter, reason)

    def _note(self, letter: Letter, reason: str) -> None:
        self.recorded[reason] = self.recorded.get(reason, 0) + 1
        if letter.to_device_id is not None:
            letter.device_id = escaped(letter.to_device_id, LONGEST_DEVICE_ID)
        elif letter.connection_id is not None:
            letter.device_id = self._device(letter.connection_id)
        if letter.trace is None:
            letter.trace = delivery.trace(letter.header)
        connection_id, selector = _text(letter.connection_id), _selector(letter)
        self._emit(Undeliverable(reason, connection_id, letter.device_id, selector, _traceparent(letter)))

    def forward(self, letter: Letter, node: bytes) -> None:
        """Forward a message to the queue of another node."""
        try:
            properties = self._forward_properties(letter)
        except WireError:
            self.record(letter, letter.fault or "bad-connection-id")
            return
        self._send(OutgoingMessage(self._queues[node], properties, letter.body, letter, None))

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        """Forward a plain message to the queue of the node of its connection, as it was delivered. The hot path."""
        client = self._client
        if (
            client is None
            or self._waiting
            or self._suspects
            or header[13] & _NOT_RELAYED
            or len(header) > client.frame_max - wire.FRAME_OVERHEAD
        ):
            self.forward(Letter(source, tag, header, body, connection_id, seq), connection_id[:8])
            return
        queue = self._queues[connection_id[:8]]
        self._publisher.relay((source, tag, queue, header, body), queue, header, body)

    def take_back_with(self, letter: Callable[[Letter, bytes], None], fence: Callable[[str], None]) -> None:
        """Call `letter(letter, node)` with a message whose forward by name to a node, or way back, found no queue, and `fence`
        with the token of a fence that found none.
        """
        self._take_back = letter
        self._take_fence_back = fence

    def forward_by_name(self, letter: Letter, node: bytes) -> None:
        """Forward a message to a device to the queue of the node that has the device."""
        returns = 0 if letter.hop is None else letter.hop.returns
        self._send_to_node(letter, node, self._node(), returns)

    def return_to_asker(self, letter: Letter) -> None:
        """Send a message to a device back to the queue of the node that asked for the device: it is not here."""
        hop = letter.hop
        assert hop is not None
        self._send_to_node(letter, hop.asker, hop.asker, hop.returns, hop.returned_by or self._node())

    def _send_to_node(
        self, letter: Letter, node: bytes, asker: bytes, returns: int, returned_by: bytes | None = None
    ) -> None:
        between: dict[str, str | int] = {
            message_properties.ASKER_HEADER: asker.decode(),
            message_properties.RETURNS_HEADER: returns,
        }
        if returned_by is not None:
            between[message_properties.RETURNED_BY_HEADER] = returned_by.decode()
        try:
            properties = self._forward_properties(letter, between)
        except WireError:
            self.record(letter, letter.fault or "bad-device-id")
            return
        self._send(OutgoingMessage(self._queues[node], properties, letter.body, letter, None, node=node))

    def _forward_properties(self, letter: Letter, between: Mapping[str, str | int] = _NONE) -> bytes:
        """Return the properties of a forward, with the headers `between` nodes. Its expiration is the time that is left of the
        original one.
        """
        extra: dict[str, str | bool | int] = dict(between)
        if letter.identity is not None:
            extra[message_properties.REDELIVERED_HEADER] = True
        if letter.deadline is not None:
            left = max(0, round((letter.deadline - self._clock.seconds()) * 1000))
            extra[message_properties.EXPIRATION_HEADER] = str(left)
        return message_properties.relayed(letter.header[12:], extra)

    def report(self, letter: Letter, outcome: str) -> None:
        """Send the delivery report that a message asked for, if it asked for one."""
        if letter.reply_to is None or self._is_ours(letter.reply_to):
            return
        extra = self._reached_headers(letter)
        if letter.selector is not None:
            extra["owsla_node"] = self._node().decode()  # each node reports
        properties = message_properties.report(
            letter.connection_id, letter.correlation_id, outcome, APP_ID, letter.to_device_id, letter.trace, extra
        )
        self._reply(letter.reply_to, properties, b"")

    def answer(self, queue: bytes, correlation_id: bytes | None, claims: bytes) -> None:
        """Answer the question of a back end which node has a device. `correlation_id` is that of the question, as encoded in
        its content header.
        """
        if self._is_ours(queue):
            return
        properties = {
            "headers": {delivery.NOTICE: delivery.HAS},
            "content_type": "application/json",
            "delivery_mode": 1,
            "app_id": APP_ID,
        }
        self._reply(queue, message_properties.answer(properties, correlation_id), claims)

    def _reply(self, reply_to: bytes, properties: bytes, body: bytes) -> None:
        queue = reply_to.decode("utf-8", "surrogateescape")
        if is_direct(queue) and not self._direct_replies.allowed(queue, self._clock.seconds()):
            self.reports_dropped += 1
        else:
            self._send_droppable(OutgoingMessage(queue, properties, body, None, None))

    def fence(self, node: bytes, token: str) -> None:
        """Send a fence to the queue of a node, behind the messages that were forwarded there."""
        self._send_fence(node, f"{FENCE} {token}", token)

    def fenced(self, node: bytes, token: str) -> None:
        """Send the fence of a node back to its queue, behind the messages that were returned there."""
        self._send_fence(node, f"{FENCED} {token}")

    def _send_fence(self, node: bytes, text: str, token: str | None = None) -> None:
        properties: dict[str, Any] = {
            "headers": {delivery.NOTICE: text},
            "reply_to": self._queues[self._node()],
            "delivery_mode": 1,
            "app_id": APP_ID,
        }
        encoded = wire.encode_properties(properties)
        self._send_droppable(OutgoingMessage(self._queues[node], encoded, b"", None, None, signed=True, token=token))

    def _send_droppable(self, message: OutgoingMessage) -> None:
        if self._reports >= REPORTS_WAITING:
            self.reports_dropped += 1
            return
        self._reports += message.weight
        self._send(message)

    def lost(self, queue: str) -> None:
        """Note that the node of this queue is dead: forwards to it are not held."""
        self._absent_nodes.lost(queue, self._clock.seconds())

    @property
    def unconfirmed(self) -> int:
        """Number of messages that have not arrived yet."""
        return len(self._publisher) + len(self._waiting) + len(self._held)

    def _record(self, letter: Letter, reason: str) -> OutgoingMessage:
        extra = self._record_headers(letter, reason)
        if len(letter.header) == wire.BARE_HEADER:
            extra[message_properties.NOTE_HEADER] = "its properties are too large: they are left out"
        try:
            properties = message_properties.relayed(letter.header[12:], extra)
        except WireError:
            properties = message_properties.minimal(letter.connection_id, extra, letter.to_device_id, letter.trace)
        return OutgoingMessage(self._undeliverable.name, properties, letter.body, letter, reason)

    def _record_headers(self, letter: Letter, reason: str) -> dict[str, str | int]:
        return {"owsla_reason": reason, "owsla_node": self._node().decode(), **self._reached_headers(letter)}

    @staticmethod
    def _reached_headers(letter: Letter) -> dict[str, str | int]:
        """Return the headers that say how many devices of this node a message for many has reached, if that is known."""
        reached = letter.reached
        return {} if reached is None else {"owsla_devices": reached.devices, "owsla_missed": reached.missed}

    # -- publishing ------------------------------------------------------------------------------------------------------

    def _send(self, message: OutgoingMessage) -> None:
        if self._client is None or self._waiting or self._suspects:
            self._waiting.append(message)
        else:
            self._publish(self._client, message)

    def _publish(self, client: BrokerClient, message: OutgoingMessage) -> None:
        if len(message.properties) > client.frame_max - wire.FRAME_OVERHEAD - 12:
            # RabbitMQ takes a content header of one frame only, and sends larger ones itself.
            message.properties = message_properties.reduced(message.properties)
        properties = message.properties
        if message.signed:
            user = wire.short_string(client.username)
            properties = wire.join_properties({**wire.split_properties(properties), "user_id": user})
        self._publisher.publish(message, message.queue, properties, message.body)

    def _continue(self) -> None:
        """Publish the messages that wait: all of them, or one at a time while there are suspects."""
        client = self._client
        if client is None or self._publisher.retry.pending:
            return
        while self._waiting and not (self._suspects and len(self._publisher)):
            message = self._waiting.popleft()
            letter = message.letter
            if letter is None or letter.source.open or letter.settled:
                self._publish(client, message)
            else:
                # The channel that delivered it is closed. The broker delivers the message again, on another one.
                self._suspects = max(0, self._suspects - 1)
        if not len(self._publisher) and not self._waiting:
            self._suspects = 0

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        await topology.declare(client, DECLARE_CHANNEL, self._undeliverable, self._warn)
        await self._publisher.open(client)
        self._client = client
        self._continue()

    def _warn(self, text: str) -> None:
        self._emit(BrokerWarning(text))

    def down(self) -> None:
        self._client = None
        self._wait_first(self._withdraw())

    def _withdraw(self) -> list[OutgoingMessage]:
        """Give the channel up. Return the messages that were unconfirmed, in order."""
        return [_outgoing(message) for message in self._publisher.withdraw()]

    def _wait_first(self, messages: list[OutgoingMessage]) -> None:
        """Let messages wait before all others, in order."""
        self._waiting.extendleft(reversed(messages))

    def blocked(self, reason: str) -> None:
        """Do nothing: published messages wait in the socket, and are confirmed late."""

    def unblocked(self) -> None: ...

    def channel_closed(self, reason: BaseException) -> None:
        """Find out whether a message is the cause, and begin again with a new connection."""
        code = reason.code if isinstance(reason, BrokerError) else 0
        unconfirmed = self._withdraw()
        # Messages that come before the connection has ended, too, wait for the next one.
        client, self._client = self._client, None
        if client is not None and client.learn_user(reason):
            pass  # a fence had a wrong user; the next connection knows the name
        elif code == INTERNAL_ERROR and any(is_direct(message.queue) for message in unconfirmed):
            unconfirmed = self._drop_direct_replies(unconfirmed)
        elif code in MESSAGE_FAULTS or code == INTERNAL_ERROR:
            unconfirmed = self._isolate(unconfirmed, code, str(reason))
        self._wait_first(unconfirmed)
        if client is not None and not client.closed:
            client.abort(reason)

    def _drop_direct_replies(self, unconfirmed: list[OutgoingMessage]) -> list[OutgoingMessage]:
        """Drop all reports for direct reply-to, one of which may have crashed the broker. Return the other messages."""
        self._direct_replies.failed(self._clock.seconds())
        dropped = [message for message in (*unconfirmed, *self._waiting) if is_direct(message.queue)]
        kept = [message for message in unconfirmed if not is_direct(message.queue)]
        self._waiting = deque(message for message in self._waiting if not is_direct(message.queue))
        self._reports -= sum(message.weight for message in dropped)
        self.reports_dropped += len(dropped)
        self._suspects = min(self._suspects, len(kept) + len(self._waiting))
        return kept

    # -- isolation of a message that closes the channel ------------------------------------------------------------------

    def _isolate(self, unconfirmed: list[OutgoingMessage], code: int, why: str) -> list[OutgoingMessage]:
        """Make all messages suspects, or deal with the culprit if one was alone on its way. Return those to publish first."""
        if self._suspects and len(unconfirmed) == 1:
            (culprit,) = unconfirmed
            if culprit.letter is None or (culprit.minimal and code != INTERNAL_ERROR):
                unconfirmed = []
                self._reports -= culprit.weight
                self._give_up(culprit, why)
            elif code != INTERNAL_ERROR:
                self._make_minimal(culprit, culprit.letter)
            else:
                # It may be the broker's own trouble: let the others go first, and never give this one up for it.
                culprit.crashes += 1
                if culprit.crashes >= CRASHES and not culprit.minimal:
                    self._make_minimal(culprit, culprit.letter)
                unconfirmed = []
                self._waiting.append(culprit)
        self._suspects = len(unconfirmed) + len(self._waiting)
        return unconfirmed

    def _make_minimal(self, message: OutgoingMessage, letter: Letter) -> None:
        """Replace a message by a record with minimal properties, since its own cannot be sent."""
        if message.reason is None:  # a forward, which becomes a record
            message.reason = letter.fault or "refused"
            self._note(letter, message.reason)
        extra = self._record_headers(letter, message.reason)
        message.properties = message_properties.minimal(letter.connection_id, extra, letter.to_device_id, letter.trace)
        message.queue = self._undeliverable.name
        message.minimal = True

    # -- answers of the broker -------------------------------------------------------------------------------------------

    def messages_confirmed(
        self, accepted: list[OutgoingMessage | PlainForward], unroutable: list[OutgoingMessage | PlainForward]
    ) -> None:
        queues: set[str] = set()
        others: list[OutgoingMessage] = []
        for one in accepted:
            if isinstance(one, tuple):
                queues.add(one[2])
                one[0].done(one[1])
            else:
                others.append(one)
        for queue in queues:
            self._queue_accepts(queue, of_node=True)
        if others:
            self._accepted(others)
        if unroutable:
            self._not_accepted(unroutable)
        self._continue()

    def _queue_accepts(self, queue: str, *, of_node: bool) -> None:
        self._publisher.retry.reset_delay()
        self._publisher.retry.refusals.accepted(queue)
        if of_node:
            self._absent_nodes.present(queue)

    def _accepted(self, messages: list[OutgoingMessage]) -> None:
        self._answered(messages)
        for message in messages:
            if message.letter is None:
                continue  # its queue has any name: a record of those that accept messages would grow without bound
            self._queue_accepts(message.queue, of_node=message.reason is None)
            message.letter.source.done(message.letter.tag)

    def _not_accepted(self, unroutable: list[OutgoingMessage | PlainForward]) -> None:
        """Handle messages whose queues do not exist."""
        messages = [_outgoing(message) for message in unroutable]
        self._answered(messages)
        for message in messages:
            if message.letter is None:
                # RabbitMQ also returns those that it has delivered by direct reply-to.
                self.reports_dropped += not (message.signed or is_direct(message.queue))
                if message.token is not None:
                    self._take_fence_back(message.token)
            else:
                self._not_routed(message, message.letter)

    def messages_refused(self, refused: list[OutgoingMessage | PlainForward]) -> None:
        messages = [_outgoing(message) for message in refused]
        self._answered(messages)
        refusals = self._publisher.retry.refusals
        for message in messages:
            forward = message.reason is None
            if message.letter is not None and (forward or not refusals.is_believed(message.queue)):
                refusals.refused(message.queue)
                # Owsla gives the queue of a node no limit, but a policy of the operator may.
                self._retry_later(message)
            else:
                self._give_up(message, f"{message.queue} is full")
        self._continue()

    def _answered(self, messages: list[OutgoingMessage]) -> None:
        self._reports -= sum(message.weight for message in messages)
        self._suspects = max(0, self._suspects - len(messages))

    def _not_routed(self, message: OutgoingMessage, letter: Letter) -> None:
        """Handle a message whose queue does not exist."""
        if message.reason is not None:
            self._retry_later(message)
        elif message.node is not None:
            if letter.source.open:  # otherwise the broker delivers it again
                self._take_back(letter, message.node)
        elif self._absent_nodes.is_lost(message.queue, self._clock.seconds()):
            self.record(letter, letter.fault or "unknown-connection")
        else:
            self._hold(message)

    def _hold(self, forward: OutgoingMessage) -> None:
        """Keep a forward whose node is absent and may come back, and try again."""
        self._held.append(forward)
        if self._hold_call is None:
            self._hold_call = self._clock.callLater(FORWARD_AGAIN, self._forward_again)
        if len(self._held) > self._held_limit:
            letter = self._held.popleft().letter
            if letter is not None:
                self.record(letter, letter.fault or "unknown-connection")

    def _forward_again(self) -> None:
        self._hold_call = None
        try:
            for _ in range(len(self._held)):
                message = self._held.popleft()
                if message.letter is None or message.letter.source.open:
                    if message.letter is not None:
                        message.properties = self._forward_properties(message.letter)
                    self._send(message)
        except Exception as error:
            if self._client is not None:
                self._client.abort(error)

    def _retry_later(self, message: OutgoingMessage) -> None:
        self._waiting.append(message)
        self._publisher.retry.schedule()

    def retry_due(self, new_channel: bool) -> None:
        if self._client is not None:
            self._client.run(self._declare_and_continue(new_channel))

    async def _declare_and_continue(self, new_channel: bool) -> None:
        client = self._client
        if client is None:
            return
        if new_channel:
            client.abort(BrokerError(0, "a queue refuses messages, or this channel does: trying another", scope="channel"))
            return
        try:
            await topology.declare(client, DECLARE_CHANNEL, self._undeliverable, self._warn)
        except (BrokerError, Closed) as error:
            if client is self._client:
                client.abort(as_failure(error).value or error)
            return
        if client is self._client:
            self._publisher.retry.done()
            self._continue()

    def _give_up(self, message: OutgoingMessage, why: str) -> None:
        if message.letter is None:
            self.reports_dropped += 1
            return
        letter = message.letter
        reason, connection_id = message.reason or "refused", _text(letter.connection_id)
        self._emit(
            UndeliverableLost(reason, connection_id, letter.device_id, why, _selector(letter), _traceparent(letter))
        )
        letter.source.done(letter.tag)


def _outgoing(message: OutgoingMessage | PlainForward) -> OutgoingMessage:
    """Return a message with all that may be needed if the broker does not accept it."""
    if isinstance(message, OutgoingMessage):
        return message
    source, tag, queue, header, body = message
    connection_id, seq, _ = delivery.read(header)
    return OutgoingMessage(queue, header[12:], body, Letter(source, tag, header, body, connection_id, seq), None)


def _selector(letter: Letter) -> str | None:
    """Return the selector of a message for many devices, for events."""
    return None if letter.selector is None else escaped(letter.selector, LONGEST_SELECTOR)


def _traceparent(letter: Letter) -> str | None:
    return None if letter.trace is None else letter.trace.traceparent


def _text(connection_id: bytes | None) -> str | None:
    """Return a connection id for an event. It is text of a back end: as large as a frame, and with any characters."""
    return None if connection_id is None else escaped(connection_id.decode("ascii", "backslashreplace"), LONGEST_ID)
