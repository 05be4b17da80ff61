"""Where a message belongs: connection ids, and the connections that this node holds.

A connection id is a UUID of version 8 (RFC 9562, 5.8) whose first 32 bits name the node that holds the connection; 90 of the
others are random. So the id alone says which node's queue a message belongs to: there is no table to share, and none to go
stale. A node is one process, for its lifetime, or until it finds that its name is somebody else's.

    nnnnnnnn-rrrr-8rrr-Vrrr-rrrrrrrrrrrr        n: node, r: random, V: 8, 9, a or b
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from twisted.python.failure import Failure

from .interfaces import Courier
from .letter import BAD, DeliverySource, Letter

_HEX = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_VARIANT = b"89ab"

Connection = TypeVar("Connection")


class ConnectionIds:
    """Makes the connection ids of one node.

    Ids are `bytes`: the canonical text form, 36 ASCII characters in lower case, as it stands in a message's header.
    """

    __slots__ = ("_random", "node")

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        """Name a new node. `random(n)` gives n random bytes."""
        self._random = random
        self.node: bytes = self.other()
        """The node's name: 8 hex digits in lower case. This is where it is kept: whoever needs it asks here each time. When it
        changes, connections keep the ids that they have.
        """

    def other(self) -> bytes:
        """A name that this node might have."""
        return self._random(4).hex().encode()

    def new(self) -> bytes:
        """A new connection id on this node."""
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
    """The node that a connection id names: its first 8 hex digits."""
    return connection_id[:8]


def canonical(connection_id: bytes) -> bytes | None:
    """The canonical form of a UUID in text, whichever case it is in; `None` where it is not a UUID."""
    lower = connection_id.lower()
    return lower if _HEX.match(lower) else None


class Registry(Generic[Connection]):
    """The open connections of this node, by connection id."""

    __slots__ = ("_connections", "find")

    def __init__(self) -> None:
        self._connections: dict[bytes, Connection] = {}
        self.find: Callable[[bytes], Connection | None] = self._connections.get
        """The connection of an id in its canonical form, or `None`."""

    def add(self, connection_id: bytes, connection: Connection) -> None:
        self._connections[connection_id] = connection

    def remove(self, connection_id: bytes) -> None:
        self._connections.pop(connection_id, None)

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))


class Held(Protocol):
    """A connection, as the router sees it."""

    def send(
        self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None
    ) -> None:
        """Hand over a plain message when it is its turn, and acknowledge it."""

    def post(self, letter: Letter) -> None:
        """The same for one that asks for more."""

    def failed(self, failure: Failure) -> None:
        """An error of ours in dealing with it: close it."""


class Deliveries(Protocol):
    """What a node knows of messages beyond a single connection, as the router sees it."""

    def expired(self, letter: Letter) -> bool:
        """Return whether a message is too old to be sent."""

    def repeated(self, letter: Letter) -> bool:
        """Settle a message of a closed connection as a duplicate, if its number was written there. Return whether it was."""

    def recall(self, identity: bytes) -> bool:
        """Return whether a message without a number was handed over before its consumer ended."""

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        """A consumer is gone, and what it brought comes again; `handed_over`: as do these, which had no number."""


class Router:
    """Brings each message to where it belongs: a connection here, another node's queue, or the undeliverable one."""

    __slots__ = ("_courier", "_deliveries", "_find", "_forbidden", "_max_line", "_node", "forget")

    def __init__(
        self,
        node: Callable[[], bytes],
        find: Callable[[bytes], Held | None],
        courier: Courier,
        deliveries: Deliveries,
        *,
        max_line: int,
        forbidden: re.Pattern[bytes],
    ) -> None:
        """`node()` is this node's name; `find` has the connection of an id (`Registry.find`). `max_line` is in bytes;
        `forbidden` matches where a body would be more than one line.
        """
        self._node = node
        self._find = find
        self._courier = courier
        self._max_line = max_line
        self._forbidden = forbidden.search
        self._deliveries = deliveries
        self.forget = deliveries.forget

    def route(
        self, source: DeliverySource, tag: int, connection_id: bytes | None, seq: int | None, header: bytes, body: bytes
    ) -> None:
        held = self._find(connection_id)  # type: ignore[arg-type]
        if held is not None and seq != BAD and len(body) <= self._max_line and not self._forbidden(body):
            try:
                held.send(source, tag, header, body, connection_id, seq)  # type: ignore[arg-type]
            except Exception:
                self._failed(held, Letter(source, tag, header, body, connection_id, seq))
        else:
            self.route_letter(Letter(source, tag, header, body, connection_id, seq))

    def route_letter(self, letter: Letter) -> None:
        if letter.connection_id is None:
            self._courier.record(letter, "no-connection-id")
            return
        held = self._find(letter.connection_id)
        if held is None:
            connection_id = canonical(letter.connection_id)
            if connection_id is None:
                self._courier.record(letter, "bad-connection-id")
                return
            letter.connection_id = connection_id
            held = self._find(connection_id)
        letter.fault = self._fault(letter)
        if letter.identity is not None:
            letter.handed_over = self._deliveries.recall(letter.identity)
        if held is not None and letter.seq != BAD:
            try:
                held.post(letter)  # a fault or not: its number is used up when it is its turn
            except Exception:
                self._failed(held, letter)
        elif letter.source.own or node_of(letter.connection_id) == self._node():
            # What came on this node's own queue was meant for it, or forwarded here: it is not sent round any further.
            if not self._deliveries.repeated(letter):
                self._courier.record(letter, letter.fault or "unknown-connection")
        elif letter.fault is not None and (letter.seq is None or letter.seq == BAD):
            self._courier.record(letter, letter.fault)
        else:
            # A fault or not: only the node of the connection can use up its number, so that those behind it do not wait.
            self._courier.forward(letter, node_of(letter.connection_id))

    def _failed(self, held: Held, letter: Letter) -> None:
        """An error of ours in dealing with one connection is not to cost the others their consumers."""
        held.failed(Failure())
        letter.settled = letter.seq is not None  # its number may have been used up
        self._courier.record(letter, "connection-closed")

    def _fault(self, letter: Letter) -> str | None:
        """What is wrong with a message, whichever connection it is for."""
        if letter.seq == BAD:
            return "bad-seq"
        if len(letter.body) > self._max_line:
            return "too-long"
        if self._forbidden(letter.body):
            return "delimiter-in-body"
        if letter.expires_at == BAD:
            return "bad-expires-at"
        if self._deliveries.expired(letter):
            return "expired"
        return None

    def refuse(self, letter: Letter, reason: str) -> None:
        self._courier.record(letter, reason)
