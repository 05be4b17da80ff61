"""What the parts of Owsla know of each other. Types only, no logic.

`owsla.device` and `owsla.broker` do not import each other. What one needs of the other is said here, and `owsla.tap` introduces
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.python.failure import Failure

from .letter import DeliverySource, Letter


class DelayedCall(Protocol):
    """A call that the clock is to make."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The time, and calls to be made later: a reactor, or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any) -> Any:
        """Call a function later. Return a `DelayedCall`; Twisted's `IDelayedCall` is no protocol, so mypy cannot check that."""


class Reactor(Clock, Protocol):
    """A reactor that watches file descriptors (`twisted.internet.interfaces.IReactorFDSet`)."""

    def addReader(self, reader: Any) -> None: ...

    def removeReader(self, reader: Any) -> None: ...

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...


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
