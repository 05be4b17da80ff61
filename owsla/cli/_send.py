"""`owsla send`: sends lines to a device, and says what became of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..broker.client import BaseHandler, BrokerProtocol
from ..interfaces import DelayedCall
from ..runtime.end_of_turn import Turn
from ._output import Output
from ._running import Session

LINES: Final = 1

WINDOW: Final = 32
"""Lines of standard input that are sent and not confirmed, at most: half of what a gateway holds for a device (64) while it
puts numbered lines in order."""


def properties(
    connection_id: bytes,
    *,
    seq: int | None = None,
    close: bool = False,
    expires_at: int | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
) -> bytes:
    """The properties of a message to a device, flags first. `expires_at` in milliseconds since the epoch."""
    headers: dict[str, Any] = {"connection_id": connection_id.decode()}
    if seq is not None:
        headers["to_device_seq"] = seq
    if expires_at is not None:
        headers["expires_at"] = expires_at
    if close:
        headers["owsla_close"] = True
    return wire.encode_properties(
        {"headers": headers, "delivery_mode": 2, "reply_to": reply_to, "correlation_id": correlation_id}
    )


def read_report(header: bytes) -> tuple[str, str] | None:
    """(correlation id, outcome) from a delivery report's content header; `None` where it is none."""
    try:
        found = wire.decode_properties(header, 12)
    except WireError:
        return None
    outcome = found.get("headers", {}).get("owsla_report")
    return None if outcome is None else (str(found.get("correlation_id", "")), str(outcome))


def lines_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of some input, without their ends (`\\n`, or `\\r\\n`); the last may have none."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


class Send(BaseHandler):
    """Sends the lines it is given, each once, and ends. A `Role`, and the handler of its one channel."""

    name = "send"

    def __init__(
        self,
        reactor: Any,
        turn: Turn,
        session: Session,
        *,
        queue: str,
        connection_id: bytes,
        text: bytes | None,
        seq: int | None = None,
        close: bool = False,
        expires: float | None = None,
        report: bool = False,
        timeout: float = 10.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`text`: the line; `None`: those of standard input. Times in seconds."""
        self._reactor = reactor
        self._session = session
        self._queue = queue
        self._connection_id = connection_id
        self._text = text
        self._seq = seq
        self._close = close
        self._expires = expires
        self._report = report
        self._timeout = timeout
        self._now = now
        self._client: BrokerProtocol | None = None
        self._reply_to: str | None = None
        self._next = 1
        self._unconfirmed: set[int] = set()
        self._unreported: set[int] = set()
        self._failed = 0
        self._unwritten = 0
        self._ended = False  # no more lines come
        self._room = threading.Semaphore(1 if report else WINDOW)
        self._output = Output(reactor, lambda why: session.finish(1, why)) if report else None
        self._waiting: DelayedCall | None = None
        self._wait("connecting to the broker")

    # -- the connection ----------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerProtocol) -> None:
        channel = await client.open_channel(LINES, self)
        await channel.confirm_select()
        if self._report:
            # Exclusive: it goes with this connection.
            declared = await channel.queue_declare(queue="", exclusive=True, auto_delete=True)
            self._reply_to = str(declared.queue)
            await channel.basic_consume(queue=self._reply_to, no_ack=True, exclusive=True)
        self._client = client
        self._settled()
        if self._text is None:
            threading.Thread(target=self._read, name="input", daemon=True).start()
        else:
            self._ended = True
            self._publish(self._text, close=self._close)

    def down(self) -> None:
        self._client = None

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...

    def closed(self, reason: Failure) -> None:
        if self._client is not None and not self._client.closed:
            self._session.finish(1, str(reason.value))

    # -- standard input ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read lines as there is room for them; in a thread, since standard input may be a file, a terminal, anything.

        From the descriptor: Python's own buffer would still be locked by this thread when the process ends.
        """
        try:
            for line in lines_of(iter(lambda: os.read(0, 65536), b"")):
                self._room.acquire()
                self._reactor.callFromThread(self._publish, line)
        except OSError as error:
            why = f"standard input: {(error.strerror or str(error)).lower()}"
            self._reactor.callFromThread(self._session.finish, 1, why)
            return
        self._room.acquire()
        self._reactor.callFromThread(self._input_ended)

    def _input_ended(self) -> None:
        self._ended = True
        if self._close:
            self._publish(b"", close=True)
        else:
            self._settled()

    # -- sending -----------------------------------------------------------------------------------------------------------

    def _publish(self, line: bytes, close: bool = False) -> None:
        client = self._client
        if client is None:
            return  # the session has ended
        number = self._next
        self._next += 1
        header = properties(
            self._connection_id,
            seq=None if self._seq is None else self._seq + number - 1,
            close=close,
            expires_at=None if self._expires is None else int((self._now() + self._expires) * 1000),
            reply_to=self._reply_to,
            correlation_id=str(number) if self._report else None,
        )
        self._unconfirmed.add(number)
        if self._report:
            self._unreported.add(number)
        publish = encode_method("basic.publish", routing_key=self._queue, mandatory=True)
        client.write(
            wire.frame(wire.FRAME_METHOD, LINES, publish)
            + wire.content_frames(LINES, wire.header_payload(len(line), header), line, client.frame_max)
        )
        self._wait("the broker has not confirmed it")

    def confirmed(self, tag: int, multiple: bool) -> None:
        taken = {number for number in self._unconfirmed if number <= tag} if multiple else {tag}
        self._unconfirmed -= taken
        if not self._report:
            for _ in taken:
                self._room.release()
        elif not self._unconfirmed:
            self._wait("there is no delivery report: is the gateway running, and its --node-grace over?")
        self._settled()

    def refused(self, tag: int, multiple: bool) -> None:
        self._session.finish(1, f"the broker refuses it: is {self._queue} full?")

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        self._session.finish(1, f"there is no queue {self._queue}: is the gateway running, on this broker?")

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """A delivery report."""
        report = read_report(header)
        number = next((number for number in self._unreported if report is not None and report[0] == str(number)), None)
        if report is None or number is None:
            return
        self._unreported.remove(number)
        if report[1] != "delivered":
            self._failed += 1
        assert self._output is not None
        self._unwritten += 1
        self._output.write(report[1].encode() + b"\n", self._written)

    def _written(self) -> None:
        self._unwritten -= 1
        self._room.release()
        self._settled()

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _settled(self) -> None:
        """End if everything is done; otherwise wait for what is not."""
        if self._unconfirmed or self._unreported or self._unwritten:
            return
        if self._waiting is not None and self._waiting.active():
            self._waiting.cancel()
        if self._ended:
            self._session.finish(1 if self._failed else 0)

    def _wait(self, what: str) -> None:
        """Give up, saying this, if nothing happens for so long."""
        if self._waiting is not None and self._waiting.active():
            self._waiting.cancel()
        self._waiting = self._reactor.callLater(
            self._timeout, lambda: self._session.finish(1, f"{what} (waited {self._timeout:g} s)")
        )
