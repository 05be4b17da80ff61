"""`owsla send`: sends lines to a device or to many, and reports their outcome."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..broker.client import BaseHandler, BrokerClient
from ..interfaces import DelayedCall
from ..runtime.end_of_turn import EndOfTurn
from ._output import Output
from ._running import Session
from ._text import printable

LINES: Final = 1

WINDOW: Final = 32
"""Maximum number of unconfirmed lines: half of the 64 that a gateway holds for a device while it puts them in order."""

CHUNK: Final = 65536
"""Bytes of standard input read at once."""

AFTER_EXPIRY: Final = 1.0
"""Seconds for which nodes may still report after the expiry of a line for many devices."""


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of `owsla send`. Times are seconds."""

    queue: str
    address: Mapping[str, str]
    """Header that says which device, or which devices, get the line."""
    text: bytes | None
    """The line, or `None` for the lines of standard input."""
    seq: int | None = None
    """Number of the first line, or `None` for lines without numbers."""
    close: bool = False
    """Whether the gateway closes the connection of the device after the last line."""
    expires: float | None = None
    """Time after which a line is not delivered any longer, or `None` for no limit."""
    report: bool = False
    """Whether to wait for delivery reports and print them."""
    timeout: float = 10.0
    """Maximum time between two events: the connection, confirms, delivery reports."""

    @property
    def many(self) -> bool:
        """True if the line is for many devices: each node reports then."""
        return "owsla_to" in self.address


def properties(
    address: Mapping[str, str],
    *,
    seq: int | None = None,
    close: bool = False,
    expires_at: int | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
) -> bytes:
    """Return the encoded properties of a message with this address. `expires_at` is in milliseconds since the epoch."""
    headers: dict[str, Any] = dict(address)
    if seq is not None:
        headers["to_device_seq"] = seq
    if expires_at is not None:
        headers["expires_at"] = expires_at
    if close:
        headers["owsla_close"] = True
    return wire.encode_properties(
        {"headers": headers, "delivery_mode": 2, "reply_to": reply_to, "correlation_id": correlation_id}
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A delivery report."""

    correlation_id: str
    outcome: str
    headers: Mapping[str, Any]
    """All headers."""

    @property
    def reached(self) -> int:
        """Number of devices to which one node has handed over a line for many."""
        devices = self.headers.get("owsla_devices", 0)
        return devices if isinstance(devices, int) else 0

    @property
    def text(self) -> str:
        """The outcome; of a message to a device also its connection, and of one to many devices the node and its counts."""
        headers = self.headers
        if "owsla_node" in headers:
            node, devices, missed = (_shown(headers.get(name)) for name in ("owsla_node", "owsla_devices", "owsla_missed"))
            counts = f": {devices} handed over, {missed} missed" if "owsla_devices" in headers else ""
            return f"{self.outcome} on node {node}{counts}"
        if "device_id" in headers and headers.get("connection_id"):
            return f"{self.outcome} {_shown(headers['connection_id'])}"
        return self.outcome


def _shown(value: Any) -> str:
    return printable(str(value).encode("utf-8", "surrogateescape"))


def read_report(header: bytes) -> Report | None:
    """Return the delivery report with this content header, or `None` for another message."""
    try:
        found = wire.decode_properties(header, wire.BARE_HEADER)
    except WireError:
        return None
    headers = found.get("headers", {})
    outcome = headers.get("owsla_report")
    return None if outcome is None else Report(str(found.get("correlation_id", "")), str(outcome), headers)


def lines_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Iterate over the lines of an input, without their ends (`\\n` or `\\r\\n`). The last line may have no end."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


class Send(BaseHandler):
    """The `Role` of `owsla send`, and the handler of its only channel: publishes each line once, and ends."""

    name = "send"

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        options: SendOptions,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._options = options
        self._now = now
        self._client: BrokerClient | None = None
        self._reply_to: str | None = None
        self._next = 1
        self._unconfirmed: set[int] = set()
        self._unreported: set[int] = set()
        self._reported = 0
        self._reached = 0
        self._failed = 0
        self._expiry = 0.0  # of the last line, in seconds since the epoch
        self._unwritten = 0
        self._input_read = False
        # The thread that reads standard input waits for it.
        self._room = threading.Semaphore(1 if options.report else WINDOW)
        self._output = Output(reactor, lambda why: session.finish(1, why)) if options.report else None
        self._timeout: DelayedCall | None = None
        self._wait("no connection to the broker")

    # -- the connection ----------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        channel = await client.open_channel(LINES, self)
        await channel.confirm_select()
        if self._options.report:
            # Exclusive: the broker deletes it with this connection.
            declared = await channel.queue_declare(queue="", exclusive=True, auto_delete=True)
            self._reply_to = str(declared.queue)
            await channel.basic_consume(queue=self._reply_to, no_ack=True, exclusive=True)
        self._client = client
        self._settled()
        if self._options.text is None:
            threading.Thread(target=self._read, name="input", daemon=True).start()
        else:
            self._input_read = True
            self._publish(self._options.text, close=self._options.close)

    def down(self) -> None:
        self._client = None

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...

    def closed(self, reason: Failure) -> None:
        if self._client is not None and not self._client.closed:
            self._session.finish(1, str(reason.value))

    # -- standard input ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read lines while there is room for them. This runs in a thread, since reading a file or a terminal blocks.

        It reads from the descriptor. The thread would still hold the lock of `sys.stdin` when the process ends, and Python
        would abort at exit.
        """
        try:
            for line in lines_of(iter(lambda: os.read(0, CHUNK), b"")):
                self._room.acquire()
                self._reactor.callFromThread(self._publish, line)
        except OSError as error:
            why = f"standard input: {(error.strerror or str(error)).lower()}"
            self._reactor.callFromThread(self._session.finish, 1, why)
            return
        self._room.acquire()
        self._reactor.callFromThread(self._input_ended)

    def _input_ended(self) -> None:
        self._input_read = True
        if self._options.close:
            self._publish(b"", close=True)
        else:
            self._settled()

    # -- sending -----------------------------------------------------------------------------------------------------------

    def _publish(self, line: bytes, close: bool = False) -> None:
        client = self._client
        if client is None:
            return  # the session has ended
        options = self._options
        number = self._next
        self._next += 1
        if options.expires is not None:
            self._expiry = self._now() + options.expires
        header = properties(
            options.address,
            seq=None if options.seq is None else options.seq + number - 1,
            close=close,
            expires_at=None if options.expires is None else int(self._expiry * 1000),
            reply_to=self._reply_to,
            correlation_id=str(number) if options.report else None,
        )
        self._unconfirmed.add(number)
        if options.report:
            self._unreported.add(number)
        publish = encode_method("basic.publish", routing_key=options.queue, mandatory=True)
        client.write(
            wire.frame(wire.FRAME_METHOD, LINES, publish)
            + wire.content_frames(LINES, wire.header_payload(len(line), header), line, client.frame_max)
        )
        self._wait("the broker has not confirmed the line")

    def confirmed(self, tag: int, multiple: bool) -> None:
        taken = {number for number in self._unconfirmed if number <= tag} if multiple else {tag}
        self._unconfirmed -= taken
        if not self._options.report:
            for _ in taken:
                self._room.release()
        elif not self._unconfirmed and self._options.many:
            self._wait_for_nodes()
        elif not self._unconfirmed:
            self._wait("there is no delivery report: is the gateway running, and its --node-grace over?")
        self._settled()

    def refused(self, tag: int, multiple: bool) -> None:
        self._session.finish(1, f"the broker refuses the line: is the queue {self._options.queue} full?")

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        self._session.finish(1, f"there is no queue {self._options.queue}: is the gateway running, on this broker?")

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a delivery report."""
        report = read_report(header)
        number = next(
            (number for number in self._unreported if report is not None and report.correlation_id == str(number)), None
        )
        if report is None or number is None:
            return
        if not self._options.many or report.outcome.startswith("bad-") or report.outcome == "refused":
            self._unreported.remove(number)  # no other report will come
        elif not self._unconfirmed:
            self._wait_for_nodes()
        if report.outcome not in ("delivered", "fanned-out"):
            self._failed += 1
        self._reported += 1
        self._reached += report.reached
        assert self._output is not None
        self._unwritten += 1
        self._output.write(report.text.encode("utf-8", "backslashreplace") + b"\n", self._written)

    def _written(self) -> None:
        self._unwritten -= 1
        self._room.release()
        self._settled()

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _settled(self) -> None:
        """End if everything is done; while more lines may come from standard input, just stop the timeout."""
        if self._unconfirmed or self._unreported or self._unwritten:
            return
        self._cancel_timeout()
        if not self._input_read:
            return
        if self._failed:
            self._session.finish(1)
        elif self._options.report and self._options.many and not self._reached:
            self._session.finish(1, "no device was reached: none that is connected is selected by --to")
        else:
            self._session.finish(0)

    def _wait(self, what: str) -> None:
        """End with an error if nothing happens within `--timeout`."""
        self._cancel_timeout()
        seconds = self._options.timeout
        self._timeout = self._reactor.callLater(seconds, lambda: self._session.finish(1, f"{what} (waited {seconds:g} s)"))

    def _wait_for_nodes(self) -> None:
        """Wait for the report of one more node. Each has reported when the line has expired."""
        self._cancel_timeout()
        seconds = min(self._options.timeout, self._expiry - self._now() + AFTER_EXPIRY)
        self._timeout = self._reactor.callLater(max(0.0, seconds), self._nodes_reported)

    def _nodes_reported(self) -> None:
        if not self._reported:
            self._session.finish(1, "there is no delivery report: is the gateway running, on this broker?")
        self._unreported.clear()
        self._settled()

    def _cancel_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
