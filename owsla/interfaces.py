"""Protocols between the parts of Owsla, and the names that they share. Types only, no logic.

`owsla.device` and `owsla.broker` do not import each other. Each declares here what it needs of the other, and `owsla.wiring`
connects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from twisted.python.failure import Failure

from .letter import DeliverySource, Letter

FIRST_DOOR: Final = "default"
"""Name of the door that the top-level options describe. Most nodes have no other."""


class DelayedCall(Protocol):
    """Call that a clock will make."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Source of the time and of delayed calls: a reactor, or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any) -> Any:
        """Call a function later. Return a `DelayedCall`; Twisted's `IDelayedCall` is no protocol, so mypy cannot check that."""


class Reactor(Clock, Protocol):
    """Reactor that watches file descriptors (`twisted.internet.interfaces.IReactorFDSet`)."""

    def addReader(self, reader: Any) -> None: ...

    def removeReader(self, reader: Any) -> None: ...

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...


class MessageSink(Protocol):
    """Destination of messages of back ends, as a consumer sees it. The counterpart of `LineSink`."""

    def route(
        self,
        source: DeliverySource,
        tag: int,
        connection_id: bytes | None,
        seq: int | None,
        header: bytes,
        body: bytes,
    ) -> None:
        """Deliver a plain message to its connection, forward it, or record it as undeliverable."""

    def route_letter(self, letter: Letter) -> None:
        """Deliver a message that has more properties than a plain one."""

    def refuse(self, letter: Letter, reason: str) -> None:
        """Record a message as undeliverable."""

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        """Note that a consumer has ended: RabbitMQ delivers again what it delivered and is still held. `handed_over` identifies
        messages without a number that were handed over, and may be delivered again, too.
        """


class Courier(Protocol):
    """Publisher of messages to other queues, as the router sees it. It acknowledges what it records and forwards."""

    def record(self, letter: Letter, reason: str) -> None:
        """Publish the message to the undeliverable queue."""

    def forward(self, letter: Letter, node: bytes) -> None:
        """Publish the message to the queue of another node."""

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        """Publish a plain message without a fault to the queue of the node of its connection id, which is canonical."""

    def report(self, letter: Letter, outcome: str) -> None:
        """Publish the delivery report that the message asks for."""


class LetterRoute(Protocol):
    """Route of messages that name no connection, as the router sees it."""

    def route(self, letter: Letter) -> None:
        """Deliver a message, forward it, let it wait, or record it."""

    def forget(self, source: DeliverySource) -> None:
        """Forget the messages that wait of a consumer that has ended: RabbitMQ delivers them again."""


class LineSink(Protocol):
    """Destination of the lines of devices, as a connection sees it."""

    accepting: bool
    """True while lines are welcome. False while too many lines are unconfirmed, or no broker takes them."""
    share: int
    """Number of lines that a connection may publish before it asks for its next share (`position`)."""
    line_size: int
    """Bytes that count as one line. A window full of lines of this size reaches its limits of lines and of bytes together."""

    @property
    def spare(self) -> int:
        """Number of lines, of a connection that its device has left, that may be published now although not `accepting`."""

    def serves(self, source: LineSource) -> bool:
        """Return whether the broker confirms lines of this connection, so that waiting for the window makes sense."""

    def open(self, connection_id: bytes, device_id: str | None) -> Any:
        """Return a template for the lines of a connection (`LineSource.template`)."""

    def traceparent(self, source: LineSource) -> str | None:
        """Return the traceparent of the last line of a connection that had one, or `None`."""

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        """Publish a line. The line is taken even while not `accepting`: its caller has read it and has no place for it.

        `received` is the time at which it was read from the device, in seconds since the epoch; 0 means now.
        """

    def publish_lines(self, source: LineSource, lines: Sequence[bytes], received: float = 0.0) -> int:
        """Publish lines of one read in order, as `publish` does. Stop behind a line with which `accepting` becomes false, or
        with which the connection is rejected. Return the number of lines that were taken, at least one.
        """

    def position(self, since: int) -> int:
        """Return the present position if all lines published up to the position `since` are settled or refused, or else -1."""

    def wait(self, source: LineSource, since: int = 0) -> None:
        """Call `source.resume()` once accepting again, and once all lines published up to the position `since` are settled."""

    def leave(self, source: LineSource) -> None:
        """Cancel `wait` for a connection that has ended."""


class LineSource(Protocol):
    """Connection of a device, as the publishing side sees it."""

    connection_id: bytes
    template: Any
    """Template that `LineSink.open` returned."""
    seq: int
    """Number of the next line. The publishing side increments it."""

    def stall(self) -> None:
        """Stop reading and call `LineSink.wait`: lines of this connection are not accepted, although others may be."""

    def resume(self) -> None:
        """Publish waiting lines and resume reading: lines are accepted again."""

    def confirmed(self, seq: int) -> None:
        """Note that the broker has confirmed the line of this number. Called with `--device-ack` only."""

    def reject(self, reason: str) -> None:
        """Close the connection because its lines can never be published; `reason` is for people."""

    def failed(self, failure: Failure) -> None:
        """Close this connection after an internal error, so that it costs no other connection."""
