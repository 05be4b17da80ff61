"""Routing of messages: connection ids, and the connections of this node.

A connection id is a UUID of version 8 (RFC 9562, section 5.8). Its first 32 bits name the node that holds the connection, and
90 of the others are random. Thus the id alone determines the node whose queue a message belongs to: nodes share no table that
could become stale. A node is one process, for its lifetime, or until it finds that another process uses its name.

    nnnnnnnn-rrrr-8rrr-Vrrr-rrrrrrrrrrrr        n: node, r: random, V: 8, 9, a or b
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from twisted.python.failure import Failure

from .interfaces import Courier, LetterRoute
from .letter import BAD, DeliverySource, Letter

ID_LENGTH: Final = 36
"""Length in bytes of a connection id in its canonical form."""

_HEX = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_VARIANT = b"89ab"

Connection = TypeVar("Connection")


class ConnectionIds:
    """Generator of the connection ids of one node.

    Ids are `bytes` in the canonical text form, 36 ASCII characters in lower case, as in the header of a message.
    """

    __slots__ = ("_random", "node")

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        """Choose a random name for the node. `random(n)` returns n random bytes."""
        self._random = random
        self.node: bytes = self.other()
        """Name of the node: 8 hex digits in lower case. Other objects read it here each time, because it can change;
        connections then keep their ids.
        """

    def other(self) -> bytes:
        """Return another name that this node could take."""
        return self._random(4).hex().encode()

    def new(self) -> bytes:
        """Return a new connection id."""
        raw = self._random(12)
        digits = raw.hex().encode()
        return b"%b-%b-8%b-%c%b-%b" % (
            self.node,
            digits[0:4],
            digits[4:7],
            _VARIANT[raw[11] & 3],
            digits[7:10],
            digits[10:22],
        )


def node_of(connection_id: bytes) -> bytes:
    """Return the node of a connection id: its first 8 hex digits."""
    return connection_id[:8]


def canonical(connection_id: bytes) -> bytes | None:
    """Return the canonical form of a UUID in text of any case, or `None` if it is not a UUID."""
    lower = connection_id.lower()
    return lower if _HEX.match(lower) else None


class Registry(Generic[Connection]):
    """Open connections of this node, by connection id."""

    __slots__ = ("_connections", "find")

    def __init__(self) -> None:
        self._connections: dict[bytes, Connection] = {}
        self.find: Callable[[bytes], Connection | None] = self._connections.get
        """Function from a connection id in its canonical form to the connection, or to `None`."""

    def add(self, connection_id: bytes, connection: Connection) -> None:
        self._connections[connection_id] = connection

    def remove(self, connection_id: bytes) -> None:
        self._connections.pop(connection_id, None)

    def walk(self, size: int) -> Iterator[list[Connection]]:
        """Yield the connections that are open now in lists of up to `size`, in the order in which they were added.

        The caller may do other work between two lists: a connection that has ended when its list is made is left out.
        """
        # Of ids, since the garbage collector visits the elements of a young list, and takes half as long for bytes.
        ids, find = iter(list(self._connections)), self.find
        while some := list(islice(ids, size)):
            yield [connection for connection in map(find, some) if connection is not None]

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))


class Recipient(Protocol):
    """Connection of a device, as the router sees it."""

    def body_fault(self, body: bytes) -> str | None:
        """Return the reason for which a message with this body cannot be written to the device; `None` if it can."""

    def send(self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None:
        """Write a plain message to the device when its turn has come, and acknowledge it. Record it if its body has a fault."""

    def post(self, letter: Letter) -> None:
        """Write a message that has more properties than a plain one, such as an expiry, and acknowledge it."""

    def failed(self, failure: Failure) -> None:
        """Close this connection after an internal error."""


class DeliveryHistory(Protocol):
    """Record of a node's earlier deliveries, as the router sees it."""

    def expired(self, letter: Letter) -> bool:
        """Return whether a message is too old to be sent."""

    def repeated(self, letter: Letter) -> bool:
        """Acknowledge a message of a closed connection if its number was written there. Return whether that was done."""

    def recall(self, identity: bytes) -> bool:
        """Return whether a message without a number was handed over before its consumer ended."""

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        """Note that a consumer has ended, so that RabbitMQ delivers its unacknowledged messages again. `handed_over` identifies
        the ones without a number.
        """


class Handover:
    """Handover of letters to connections of this node: the checks before it, and the guard against errors of our own."""

    __slots__ = ("_courier", "_deliveries", "body_fault")

    def __init__(self, courier: Courier, deliveries: DeliveryHistory, body_fault: Callable[[bytes], str | None]) -> None:
        self._courier = courier
        self._deliveries = deliveries
        self.body_fault = body_fault
        """Function that returns the reason for which no connection could be sent a message with this body, or `None`."""

    def prepare(self, letter: Letter, recipient: Recipient | None) -> None:
        """Set `fault` and `handed_over` of a letter. `recipient` is its connection, if that is known and of this node."""
        letter.fault = self._fault(letter, self.body_fault if recipient is None else recipient.body_fault)
        if letter.identity is not None and not letter.handed_over:
            letter.handed_over = self._deliveries.recall(letter.identity)

    def deliver(self, letter: Letter, recipient: Recipient) -> None:
        """Give a prepared letter to a connection of this node. Its number, if any, can be read."""
        try:
            # Also with a fault: the connection must use up its number in order, or later messages would wait for that number.
            recipient.post(letter)
        except Exception:
            self.failed(recipient, letter)

    def failed(self, recipient: Recipient, letter: Letter) -> None:
        """Close a connection after an internal error. If the error were raised, it would end the consumer of all
        connections."""
        recipient.failed(Failure())
        letter.settled = letter.seq is not None  # its number may have been used
        self._courier.record(letter, "connection-closed")

    def expired(self, letter: Letter) -> bool:
        """Return whether a message is too old to be sent."""
        return self._deliveries.expired(letter)

    def repeated(self, letter: Letter) -> bool:
        """Acknowledge a message of a closed connection if its number was written there. Return whether that was done."""
        return self._deliveries.repeated(letter)

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        """Drop the waiting messages of a consumer that has ended. `handed_over` identifies messages without a number that may
        be delivered again, too.
        """
        self._deliveries.forget(source, handed_over)

    def _fault(self, letter: Letter, body_fault: Callable[[bytes], str | None]) -> str | None:
        """Return the fault of a message, or `None`. `body_fault` knows what its connection can be sent."""
        if letter.seq == BAD:
            return "bad-seq"
        # A message that only closes the connection has no body to be sent.
        fault = body_fault(letter.body) if letter.body or not letter.close else None
        if fault is not None:
            return fault
        if letter.expires_at == BAD:
            return "bad-expires-at"
        if self.expired(letter):
            return "expired"
        return None


class Router:
    """Router of messages: to a connection of this node, to the queue of another node, or to the undeliverable queue."""

    __slots__ = ("_by_name", "_courier", "_find", "_groups", "_handover", "_node")

    def __init__(
        self,
        node: Callable[[], bytes],
        find: Callable[[bytes], Recipient | None],
        courier: Courier,
        handover: Handover,
        *,
        by_name: LetterRoute,
        groups: LetterRoute,
    ) -> None:
        """`node()` returns this node's name, and `find` the connection of an id (`Registry.find`). `by_name` takes the letters
        to devices, and `groups` those to many.
        """
        self._node = node
        self._find = find
        self._courier = courier
        self._handover = handover
        self._by_name = by_name
        self._groups = groups

    def route(
        self, source: DeliverySource, tag: int, connection_id: bytes | None, seq: int | None, header: bytes, body: bytes
    ) -> None:
        """Route a plain message. The hot path: a message that its connection can take, or another node, needs no `Letter`."""
        # `find` returns `None` for the connection id `None`: the hot path is spared a check.
        recipient = self._find(connection_id)  # type: ignore[arg-type]
        if recipient is not None and seq != BAD:
            try:
                recipient.send(source, tag, header, body, connection_id, seq)  # type: ignore[arg-type]
            except Exception:
                self._handover.failed(recipient, Letter(source, tag, header, body, connection_id, seq))
        elif (
            recipient is None
            and connection_id is not None
            and not source.own
            and _HEX.match(connection_id)
            and connection_id[:8] != self._node()
            and seq != BAD
            and self._handover.body_fault(body) is None
        ):
            self._courier.forward_plain(source, tag, connection_id, seq, header, body)
        else:
            self.route_letter(Letter(source, tag, header, body, connection_id, seq))

    def route_letter(self, letter: Letter) -> None:
        """Route a message with more properties, or one that `route` cannot write."""
        if letter.connection_id is None:
            if letter.to_device_id is not None:
                self._by_name.route(letter)
            elif letter.selector is not None:
                self._groups.route(letter)
            else:
                self._courier.record(letter, "no-connection-id")
            return
        recipient = self._find(letter.connection_id)
        if recipient is None:
            connection_id = canonical(letter.connection_id)
            if connection_id is None:
                self._courier.record(letter, "bad-connection-id")
                return
            letter.connection_id = connection_id
            recipient = self._find(connection_id)
        self._handover.prepare(letter, recipient)
        if recipient is not None and letter.seq != BAD:
            self._handover.deliver(letter, recipient)
        elif letter.source.own or node_of(letter.connection_id) == self._node():
            # A message of the own queue was sent to this node or forwarded to it. Forwarding it again could make a loop.
            if not self._handover.repeated(letter):
                self._courier.record(letter, letter.fault or "unknown-connection")
        elif letter.fault is not None and (letter.seq is None or letter.seq == BAD):
            self._courier.record(letter, letter.fault)
        else:
            # Also with a fault: only the node of the connection can use up its number, for which later messages wait.
            self._courier.forward(letter, node_of(letter.connection_id))

    def refuse(self, letter: Letter, reason: str) -> None:
        """Record a message as undeliverable."""
        self._courier.record(letter, reason)

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        """Forget the messages that wait of a consumer that has ended: RabbitMQ delivers them again. `handed_over` identifies
        messages without a number that were handed over, and may be delivered again, too.
        """
        self._by_name.forget(source)
        self._groups.forget(source)
        self._handover.forget(source, handed_over)
