"""What the parts of Owsla know of each other. Types only, no logic.

`owsla.device` and `owsla.broker` do not import each other. What one needs of the other is said here, and `owsla.tap` introduces
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from twisted.python.failure import Failure

BAD: Final = -1
"""A `to_device_seq` that is not a number: not 0, 1, 2 …"""


class DelayedCall(Protocol):
    """A call that the clock is to make."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The time, and calls to be made later: a reactor, or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> DelayedCall: ...


class Reactor(Clock, Protocol):
    """A reactor that watches file descriptors (`twisted.internet.interfaces.IReactorFDSet`)."""

    def addReader(self, reader: Any) -> None: ...

    def removeReader(self, reader: Any) -> None: ...

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...


class DeliverySource(Protocol):
    """The consumer that a message came from."""

    open: bool
    """Whether its channel is: if not, what it brought and is not acknowledged comes again."""
    prefetch: int
    """How many messages of it may be unacknowledged at once."""
    own: bool
    """Whether it consumes a node's own queue: where the messages come to that were sent straight to a node, or sent on."""

    def done(self, tag: int) -> None:
        """The message with this delivery tag was handed over, or its fate is on record: acknowledge it."""

    def written(self, header: bytes, body: bytes) -> None:
        """Note a message without a number that was handed over: its acknowledgement may be lost, and then it comes again."""


class Letter:
    """A message of a back end's that could not be handed over the moment it came, or that asks for more than that."""

    __slots__ = (
        "body",
        "close",
        "connection_id",
        "correlation_id",
        "deadline",
        "device_id",
        "expires_at",
        "fault",
        "handed_over",
        "header",
        "identity",
        "reply_to",
        "seq",
        "settled",
        "source",
        "tag",
    )

    def __init__(
        self,
        source: DeliverySource,
        tag: int,
        header: bytes,
        body: bytes,
        connection_id: bytes | None,
        seq: int | None,
        *,
        close: bool = False,
        expires_at: float | None = None,
        deadline: float | None = None,
        reply_to: bytes | None = None,
        correlation_id: bytes | None = None,
    ) -> None:
        self.source = source
        self.tag = tag
        """Its delivery tag, by which `source` acknowledges it."""
        self.header = header
        """The payload of its content header frame."""
        self.body = body
        self.connection_id = connection_id
        self.seq = seq
        """Its `to_device_seq`, if it has one."""
        self.close = close
        """Whether to close the connection after it."""
        self.expires_at = expires_at
        """When it is no longer to be sent, in seconds since the epoch; `BAD`: that cannot be read."""
        self.deadline = deadline
        """The same in seconds of the reactor's clock, which nobody sets: for a time that is counted from its arrival."""
        self.reply_to = reply_to
        """The queue that wants a delivery report."""
        self.correlation_id = correlation_id
        """The property as it stands on the wire."""
        self.device_id: str | None = None
        """The device of its connection, where the courier knew it when the message's fate was decided."""
        self.fault: str | None = None
        """Why it is not to be sent, known before it is its turn."""
        self.identity: bytes | None = None
        """What identifies it among messages without a number, where it may have been delivered before."""
        self.handed_over = False
        """Whether it is known to have been handed over when it was delivered before."""
        self.settled = False
        """Whether its number is used up: a copy that comes after its consumer's death is dropped as a duplicate of it."""


class Router(Protocol):
    """Who knows where a message belongs, as a consumer sees it."""

    def route(
        self,
        source: DeliverySource,
        tag: int,
        connection_id: bytes | None,
        seq: int | None,
        header: bytes,
        body: bytes,
    ) -> None:
        """Bring a plain message to its connection, or put its fate on record."""

    def route_letter(self, letter: Letter) -> None:
        """The same for one that asks for more."""

    def refuse(self, letter: Letter, reason: str) -> None:
        """Put on record that a message cannot be delivered."""

    @property
    def forget(self) -> Callable[[DeliverySource, Iterable[bytes]], None]:
        """To be called when a consumer is gone: what it brought and is still held comes again. So may messages that were handed
        over; those without a number are known by what identifies them.
        """


class Courier(Protocol):
    """Who brings messages to other queues, as the router sees it. It acknowledges what it records and forwards."""

    def record(self, letter: Letter, reason: str) -> None:
        """Bring it to the undeliverable queue."""

    def forward(self, letter: Letter, node: bytes) -> None:
        """Bring it to another node's queue."""

    def report(self, letter: Letter, outcome: str) -> None:
        """Send the delivery report that it asked for."""


class LineSink(Protocol):
    """Where the lines of devices go, as a connection sees it."""

    accepting: bool
    """Whether it takes lines now. It is `False` while it has too many that are not confirmed, or no broker to give them to."""
    share: int
    """How many lines a connection may publish before it asks for its next share (`position`)."""
    line_size: int
    """Bytes that count as one line: so many for each line that the sink keeps would reach its limit of bytes as well."""

    @property
    def spare(self) -> int:
        """How many lines of a connection whose device has left it would keep now, though it is not `accepting`; 0: none."""

    def serves(self, source: LineSource) -> bool:
        """Return whether the broker takes and confirms lines of this connection: one that waits will have its turn."""

    def open(self, connection_id: bytes, device_id: str | None) -> Any:
        """Prepare for the lines of a connection; the result goes with each of them."""

    def publish(self, source: LineSource, line: bytes, received: float = 0.0) -> None:
        """Take a line. It is taken even when not `accepting`: the caller has read it and must put it somewhere.

        `received` is when it was read from the device, in seconds since the epoch; 0: now.
        """

    def position(self, since: int) -> int:
        """Return the present position, if all lines that had been published at the position `since` are settled; or else -1."""

    def wait(self, source: LineSource, since: int = 0) -> None:
        """Call `source.resume()` when accepting again, and when what had been published at the position `since` is settled."""

    def leave(self, source: LineSource) -> None:
        """It waits no longer: its connection is gone."""


class LineSource(Protocol):
    """A device's connection, as the publishing side sees it."""

    connection_id: bytes
    template: Any
    """What `LineSink.open` gave."""
    seq: int
    """The number of its next line; the publishing side counts it up."""

    def stall(self) -> None:
        """Lines of this connection are not taken for now, though others' may be: read nothing, and `LineSink.wait`."""

    def resume(self) -> None:
        """Lines are taken again: give what waits, and read on."""

    def confirmed(self, seq: int) -> None:
        """The broker has the line of this number. Called where devices are told what is safe (`--device-ack`)."""

    def reject(self, reason: str) -> None:
        """Close the connection. Its lines cannot be published, now or ever; `reason` is for people."""

    def failed(self, failure: Failure) -> None:
        """An error of ours in dealing with this connection: it costs this one only."""
