"""The protocol of a device connection: lines to the sink, and messages to the device.

Theory of operation
===================

A `DeviceProtocol` connects pure decisions (`framing`, `ordering`) to a transport. All that concerns several connections is in
the collaborators of its `DeviceFactory`, so that a connection is small.

**From the device.** `dataReceived` splits what one read brought, and gives the lines to the sink, which numbers them: a single
line by `lineReceived` (`LineSink.publish`), several by `linesReceived` (`LineSink.publish_lines`). With a dialect or a trace
each line goes through `lineReceived`. Three things bound what is read:

- The sink accepts lines or not (`LineSink.accepting`): it does not while its window is full or the broker is away.
- The connection has a share of the window. It ends at line number `_share_end`. The next share is given when the lines of the
  previous one are settled (`LineSink.position`), so that one device that sends without a break cannot fill the window.
- With a rate limit a device has to wait for `_rate_due`.

In each case reading is paused, for one or more of the reasons in `_paused`. Bytes that were read and cannot be published yet
wait in `_buffer`; `_received_at` keeps the time at which they were read. The sink calls `resume`, in the order in which
connections called `LineSink.wait`.

`Framing.split` returns the payloads of the complete frames. What follows them is an incomplete frame, or a malformed one, which
`Framing.unfinished` tells apart (`_check_unfinished`). A small incomplete frame waits in `_buffer` for the rest of it, and a
large one in `_unfinished`, or it is skipped there.

**A device that leaves** while its reading is paused has sent bytes that nobody will send again. `peerClosed` reads them, with
what the sink can spare (`LineSink.spare`), unless the connection is in the queue of a sink that works.

**To the device.** Messages are numbered or not. `Ordering` is created when the first one arrives out of order; until then a
counter (`expected`) does. Lines of one reactor turn are joined and written at its end (`EndOfTurn.devices`), before the broker
gets the acknowledgements for them (`EndOfTurn.broker`). The protocol is a push producer of its transport: when the socket takes
no more, the transport calls `pauseProducing`, and messages wait in `_waiting`, unacknowledged, until `resumeProducing`.

**Invariants.**

- A message is acknowledged only after its line was written, or its fate is on record.
- The collaborators count every message exactly while it waits (`ReorderLimits.hold`, `SlowDevices.queue`).
- `_paused` is not zero exactly while the transport is paused and `PausedReading` counts the connection.
- After `_begin_close` nothing is written. After `connectionLost` no collaborator knows the connection.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from twisted.internet.interfaces import IHandshakeListener, IPushProducer, ISSLTransport
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ..events import BadFrame, DeviceDisconnected, LineTooLong
from ..letter import DeliverySource, Letter
from ..tls.refusal import HandshakeRefused
from .connections import LINES_SENT, RECEIVED, SENT
from .factory import DeviceFactory
from .framing import MalformedFrame, Unfinished
from .interfaces import IDeviceTransport, IHangupListener
from .ordering import Arrival, Ordering
from .socket_transport import explain, is_expected
from .stock_transport import StockTransport
from .tls_transport import ALERT

WAIT_FOR_SINK: Final = 1
"""Reading is paused until the sink accepts lines again."""
WAIT_FOR_RATE: Final = 2
"""Reading is paused since the device exceeds the rate limit."""
DRAINING: Final = 4
"""Reading has ended: the connection is closed when everything before is confirmed."""

CHUNK: Final = 65536
"""Bytes written in one reactor turn after which they are flushed, to learn whether the socket takes them before more messages
are acknowledged."""


@implementer(IPushProducer, IHandshakeListener, IHangupListener)
class DeviceProtocol(LineReceiver):
    """A connected device.

    All attributes are slots, those that `LineReceiver` and its bases set on an instance included. So no instance has a
    dictionary, which would cost some 1.3 KB of memory for each connection.

    As in `twisted.web.http.HTTPChannel`, the methods of `IPushProducer` concern what this protocol writes: its transport is the
    consumer.
    """

    __slots__ = (
        "_ack_scheduled",
        "_acknowledged",
        "_awaiting_sink",
        "_buffer",
        "_can_write",
        "_closing",
        "_confirmed",
        "_confirmed_ahead",
        "_device_ack",
        "_flush_scheduled",
        "_idle_lines",
        "_idle_since",
        "_on_spare",
        "_ordering",
        "_outgoing",
        "_outgoing_size",
        "_paused",
        "_peer_gone",
        "_rate_due",
        "_received_at",
        "_share_end",
        "_share_position",
        "_unfinished",
        "_unpublishable",
        "_waiting",
        "_waiting_size",
        "bytes_in",
        "bytes_out",
        "connected",
        "connection_id",
        "device_id",
        "discarding",
        "expected",
        "factory",
        "identified",
        "last_in",
        "last_out",
        "lines_out",
        "opened",
        "seq",
        "since",
        "template",
        "transport",
    )

    factory: DeviceFactory
    transport: Any

    def __init__(self, factory: DeviceFactory, connection_id: bytes) -> None:
        self.factory = factory
        self.connected = 0
        self.transport = None
        self.connection_id = connection_id
        self.device_id: str | None = None
        self.template: Any = None
        """Result of `LineSink.open`."""
        self.seq = 0
        """Number of the next line from the device."""
        self.lines_out = 0
        """Number of lines written to the device."""
        self.bytes_in = 0
        """Number of bytes read from the device, delimiters included."""
        self.bytes_out = 0
        """Number of bytes of lines written to the device, without delimiters."""
        self.last_in: float | None = None
        """Time of the last line from the device, by the time of its reactor turn, in seconds since the epoch."""
        self.last_out: float | None = None
        """The same of the last line to the device."""
        self.opened: float | None = None
        """Time at which the handshake was complete."""
        self.since = 0
        """Time at which the device was identified, by the hybrid clock of `claims`, in milliseconds since the epoch."""
        self.identified = 0.0
        """The same time by the clock of the reactor, in seconds."""
        self.discarding = False
        """True while everything that the device sends is discarded."""
        self._idle_lines = 0  # number of lines at the last idle check,
        self._idle_since = 0.0  # and the time since which it has not changed
        # From the device
        self._buffer = b""
        self._received_at = 0.0  # time at which `_buffer` was read, in seconds since the epoch; 0: just now
        self._unfinished: Unfinished | None = None  # a large frame whose end has not arrived
        self._share_end = factory.sink.share
        self._share_position = 0
        self._peer_gone = False  # the device has closed: nobody will send again what it sent before
        self._unpublishable = False  # the sink cannot publish any of its lines
        self._on_spare = False  # the share is of the room for devices that left while the broker is away
        self._paused = 0
        self._awaiting_sink = False  # the sink will call `resume`
        self._rate_due = 0.0  # with a rate limit: time at which all lines so far would have been due
        self._closing = ""
        # To the device
        self.expected = 0
        """Sequence number of the next message to the device, while `_ordering` is `None`."""
        self._ordering: Ordering[Letter] | None = None
        self._can_write = True
        self._outgoing: list[bytes] | None = None  # lines to be written at the end of the reactor turn
        self._outgoing_size = 0
        self._flush_scheduled = False
        self._waiting: deque[Letter] | None = None  # messages that wait for the socket
        self._waiting_size = 0
        # Acknowledgements to the device
        self._device_ack = factory.settings.device_ack  # fixed, since the device knows the protocol that it connected with
        self._confirmed = 0  # number of lines, from the first, that are confirmed without a gap
        self._confirmed_ahead: set[int] | None = None
        self._acknowledged = 0
        self._ack_scheduled = False

    # -- LineReceiver: from the device -----------------------------------------------------------------------------------

    @property
    def delimiter(self) -> bytes:  # type: ignore[override]
        """Delimiter of lines from the device; empty in other framings."""
        return self.factory.framing.delimiter

    @property
    def MAX_LENGTH(self) -> int:  # type: ignore[override]
        """Maximum length of a line in bytes."""
        return self.factory.framing.max_line

    @property
    def paused(self) -> bool:  # type: ignore[override]
        """True while the device is not read."""
        return bool(self._paused)

    def makeConnection(self, transport: Any) -> None:
        """Connect to a `TLSTransport`, or to any other transport, through an adapter."""
        self.connected = 1
        self.transport = transport if IDeviceTransport.providedBy(transport) else StockTransport(transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """Begin at once on a transport without TLS. With TLS the transport calls `handshakeCompleted` later."""
        if not ISSLTransport.providedBy(self.transport):
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """Register the connection, whose device is identified now. Raise `HandshakeRefused` if it is refused."""
        factory = self.factory
        self.device_id = factory.device_id(self.transport)
        refusal = factory.refusal(self.device_id, self.transport)
        if refusal is not None:
            raise HandshakeRefused(refusal)
        self.template = factory.sink.open(self.connection_id, self.device_id)
        self.opened = self._idle_since = factory.clock.seconds()
        factory.connected(self)
        self.transport.registerProducer(self, True)
        if not factory.sink.accepting:
            # Lines would only wait here, and devices that come and go during an outage would fill the memory with them.
            self._wait_for_sink()

    def dataReceived(self, data: bytes) -> None:
        """Split the bytes of one read into lines, and publish these.

        `LineReceiver.dataReceived` is overridden. For each line it searches for a delimiter again and copies the rest of its
        buffer, so a read of many lines would cost time proportional to the square of their number. It would also publish all
        lines of a read, where this method stops at the end of the share of the window.
        """
        factory = self.factory
        if self.discarding:
            return
        size = len(data)
        factory.traffic[RECEIVED] += size
        self.bytes_in += size
        if self._unfinished is not None:
            whole = self._continue_frame(self._unfinished, data)
            if whole is None:
                return
            data = whole
        elif self._buffer:
            data = self._buffer + data
        sink = factory.sink
        if (not sink.accepting or self.seq >= self._share_end) and not self._has_share():
            self._keep_buffer(data)
            return
        framing = factory.framing
        limit = self._share_end - self.seq
        lines, rest = framing.split(data, limit)
        taken = len(lines)
        if self._on_spare or (len(data) > framing.max_line and lines and max(map(len, lines)) > framing.max_line):
            taken = self._receive_each(lines)
        elif taken == 1:
            self.lineReceived(lines[0])
        elif taken:
            taken = self.linesReceived(lines)
        if taken < 0 or self._unpublishable:
            return
        if taken < len(lines):
            # The remaining lines were read already. They are published in their turn, and nothing more is read till then.
            self._keep_buffer(framing.encode(lines[taken:]) + rest)
        else:
            self._buffer = rest
            used = len(data) - len(rest)
            if used > sink.line_size:
                self._share_end -= used // sink.line_size
            if taken >= limit and framing.complete(rest):
                self._keep_buffer(rest)
            elif len(rest) > framing.check_beyond:
                self._check_unfinished(rest)
        if taken:
            self.last_in = self._received_at or factory.turn.now
            if factory.settings.max_rate is not None:
                self._limit_rate(taken, factory.settings.max_rate)

    def linesReceived(self, lines: list[bytes]) -> int:
        """Publish several lines of one read, none of which is too long. Return the number of lines that the sink has taken."""
        return self.factory.sink.publish_lines(self, lines, self._received_at)

    def _receive_each(self, lines: list[bytes]) -> int:
        """Publish lines one by one with `lineReceived`, and skip those that are too long.

        Return the number of lines up to which that was done: all, unless the sink accepts no more. It is -1 if the connection
        closes for a line.
        """
        sink, max_line = self.factory.sink, self.factory.framing.max_line
        for done, line in enumerate(lines, 1):
            if len(line) > max_line:
                if self._skip_or_close():
                    continue
                return -1
            self.lineReceived(line)
            if self._unpublishable:
                return -1
            if not sink.accepting and done < len(lines) and not self._uses_spare:
                return done
        return len(lines)

    def lineReceived(self, line: bytes) -> None:
        """Publish a line."""
        self.factory.sink.publish(self, line, self._received_at)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Close the connection, and discard what follows."""
        max_line = self.factory.framing.max_line
        self._discard_input()
        connection_id = self.connection_id.decode()
        self.factory.emit(LineTooLong(connection_id, self.device_id, max_line, self.factory.door, self.traceparent))
        self.close(f"a line longer than {max_line} bytes")

    def frameMalformed(self, fault: str) -> None:
        """Close the connection, and discard what follows: where the next frame begins is unknown."""
        self._discard_input()
        connection_id = self.connection_id.decode()
        self.factory.emit(BadFrame(connection_id, self.device_id, fault, self.factory.door, self.traceparent))
        self.close(f"a malformed frame: {fault}")

    def _discard_input(self) -> None:
        self._buffer = b""
        self._unfinished = None
        self.discarding = True

    def _skip_or_close(self) -> bool:
        """Handle a line that is too long: skip it and return `True`, or close the connection and return `False`."""
        factory = self.factory
        if not factory.settings.skip_long:
            self.lineLengthExceeded(b"")
            return False
        factory.skipped.add(self, factory.framing.max_line, factory.door)
        return True

    def _keep_buffer(self, data: bytes) -> None:
        """Keep bytes until the sink accepts lines again. The time of reading becomes the timestamp of their lines."""
        self._buffer = data
        self._received_at = self._received_at or self.factory.now()
        self._wait_for_sink()

    def _has_share(self) -> bool:
        """Return whether a line may be published now, and take the next share of the window if there is one."""
        sink = self.factory.sink
        if self.seq < self._share_end and self._uses_spare:
            return sink.spare > 0
        if not sink.accepting:
            return False
        if self.seq >= self._share_end:
            position = sink.position(self._share_position)
            if position < 0:
                return False
            self._share_position = position
            self._share_end = self.seq + sink.share
        return True

    @property
    def _uses_spare(self) -> bool:
        """True if lines go to the room that the sink keeps for devices that left while the broker is away."""
        return self._on_spare and not self.factory.sink.serves(self)

    def _limit_rate(self, lines: int, rate: float) -> None:
        """Pause reading until the lines conform to the rate limit. One second of lines may come as a burst."""
        if self._closing or self._peer_gone:
            return  # little more will come
        now = self.factory.clock.seconds()
        self._rate_due = max(self._rate_due, now) + lines / rate
        if self._rate_due > now + 1.0 and not self._paused & WAIT_FOR_RATE:
            self._pause(WAIT_FOR_RATE)
            self.factory.reading.rate_limited(self, self._rate_due - 1.0)

    def rate_allowed(self) -> None:
        """Resume reading: the lines so far conform to the rate limit."""
        self._unpause(WAIT_FOR_RATE)

    def rate_changed(self) -> None:
        """Resume reading under another rate limit. The lines so far count as the burst of one second."""
        self._rate_due = min(self._rate_due, self.factory.clock.seconds() + 1.0)
        self._unpause(WAIT_FOR_RATE)

    def _check_unfinished(self, rest: bytes) -> None:
        """Collect an incomplete frame that is large, skip one that is too long, or close the connection of a malformed one."""
        try:
            unfinished = self.factory.framing.unfinished(rest)
        except MalformedFrame as error:
            self.frameMalformed(str(error))
            return
        if unfinished is not None and (not unfinished.skipping or self._skip_or_close()):
            self._buffer = b""
            self._unfinished = unfinished

    def _continue_frame(self, unfinished: Unfinished, data: bytes) -> bytes | None:
        """Add to a large frame. Return what is to be split once its end has arrived, or else `None`."""
        skipped = unfinished.skipping
        try:
            whole = unfinished.feed(data, self.factory.framing.max_line)
        except MalformedFrame as error:
            self.frameMalformed(str(error))
            return None
        if whole is not None:
            self._unfinished = None
        if unfinished.skipping and not skipped and not self._skip_or_close():
            return None
        return whole

    # -- pausing of reading ----------------------------------------------------------------------------------------------

    def _pause(self, reason: int) -> None:
        if not self._paused:
            self.transport.pauseProducing()
            self.factory.reading.paused(self)
        self._paused |= reason

    def _unpause(self, reason: int) -> None:
        if not self._paused:
            return
        self._paused &= ~reason
        if not self._paused:
            self.factory.reading.resumed(self)
            # A closing connection is read to its end in any case: what is left in the socket would keep it open.
            if self.transport is not None and (self._closing or not self.discarding):
                self.transport.resumeProducing()

    def _wait_for_sink(self) -> None:
        self._pause(WAIT_FOR_SINK)
        if not self._awaiting_sink:
            self._awaiting_sink = True
            self.factory.sink.wait(self, self._share_position if self.seq >= self._share_end else 0)

    def stall(self) -> None:
        """Pause reading until the sink calls `resume`. The sink calls this if it cannot publish for this device only.

        Lines of a connection that has ended may be refused, too. Nothing is read of that.
        """
        if self.transport is not None and not self.discarding:
            self._wait_for_sink()

    def resume(self) -> None:
        """Publish what was read, and read on. The sink calls this in the turn of this connection."""
        self._awaiting_sink = False
        if self.discarding or not self._paused & WAIT_FOR_SINK:
            return
        data, self._buffer = self._buffer, b""
        if data:
            self.factory.traffic[RECEIVED] -= len(data)  # it was counted when it was read
            self.bytes_in -= len(data)
            self.dataReceived(data)
        if not self._awaiting_sink:
            self._received_at = 0.0
            self._unpause(WAIT_FOR_SINK)

    @property
    def pauses(self) -> tuple[str, ...]:
        """Reasons for which the device is not read now.

        - `broker`: lines of the connection cannot be published now, or its turn has not come since.
        - `share`: its share of the window is unconfirmed.
        - `rate`: it exceeds the rate limit.
        - `draining`: it is not read any more.
        """
        paused = self._paused
        if not paused:
            return ()
        reasons = []
        if paused & WAIT_FOR_SINK:
            sink = self.factory.sink
            share = sink.accepting and self.seq >= self._share_end and sink.serves(self)
            reasons.append("share" if share else "broker")
        if paused & WAIT_FOR_RATE:
            reasons.append("rate")
        if paused & DRAINING:
            reasons.append("draining")
        return tuple(reasons)

    @property
    def unpublished(self) -> int:
        """Number of bytes that were read and not published yet, those of an incomplete frame included."""
        return len(self._buffer) + (self._unfinished.size if self._unfinished is not None else 0)

    # -- IHangupListener -------------------------------------------------------------------------------------------------

    def peerClosed(self) -> bool:
        """Read what the device sent before it closed or reset the connection. Return whether it is read now.

        Nobody will send these bytes again. While the broker is away, waiting would be in vain: the connection gets a share of
        what the sink can spare. Otherwise it keeps its place in the queue of the sink, or devices that come and go would use
        the whole window.
        """
        if self.discarding:
            return False
        self._peer_gone = True
        sink = self.factory.sink
        if sink.serves(self):
            if self._awaiting_sink:
                return False
        elif not self._on_spare:
            self._on_spare = True
            self._share_end = self.seq + sink.spare
        if not self._has_share():
            return False
        if self._awaiting_sink:
            sink.leave(self)
        self._unpause(WAIT_FOR_RATE)
        self.resume()
        return not self._paused

    @property
    def awaiting_turn(self) -> bool:
        """True while the connection is in the queue of a sink that publishes: it will be read in its turn."""
        return self._awaiting_sink and self.factory.sink.serves(self)

    @property
    def unread(self) -> int:
        """Number of bytes that the device sent, that were not read, and that nobody will send again, TLS records included."""
        if not self._paused or self.discarding or self.acknowledges:
            return 0
        unread: int = self.transport.unread
        return unread if unread > ALERT or self.transport.getHandle() is None else 0

    def _publish_buffered(self) -> None:
        """Publish the lines that were read and not published yet, since the connection ends. Stop at one that is too long."""
        if not self._paused & WAIT_FOR_SINK:
            return
        factory = self.factory
        lines, rest = factory.framing.split(self._buffer)
        self._buffer = rest
        sink = factory.sink
        for index, line in enumerate(lines):
            if len(line) > factory.framing.max_line:
                if self._skip_or_close():
                    continue
                return
            if not sink.spare or (self._on_spare and not sink.accepting and self.seq >= self._share_end):
                self._discard(len(lines) - index)
                return
            self.lineReceived(line)
            if self._unpublishable:
                return
        self._received_at = 0.0

    def _discard(self, lines: int) -> None:
        """Count lines that are lost, unless the device sends them again."""
        if not self.acknowledges:
            self.factory.discards.add(lines, 0)

    # -- idle check ------------------------------------------------------------------------------------------------------

    @property
    def traceparent(self) -> str | None:
        """Traceparent of the last line that had one, or `None`."""
        return self.factory.sink.traceparent(self)

    @property
    def lines_in(self) -> int:
        """Number of lines from the device."""
        return self.seq

    def check_idle(self, now: float, not_before: float, timeout: float) -> None:
        """Close the connection if there was no line in either direction for `timeout` seconds, counted from `not_before`."""
        lines = self.lines_in + self.lines_out
        if lines != self._idle_lines:
            self._idle_lines = lines
            self._idle_since = now
        elif now - max(self._idle_since, not_before) < timeout:
            return
        elif self._awaiting_sink or self._paused:
            self._idle_since = now  # it is not read, and has its whole time once it is
        elif not self._closing:
            self._begin_close(f"no line for {timeout:g} s")
            self.transport.idleOverdue()

    @property
    def held_back(self) -> bool:
        """True while a dialect holds back the lines of the device."""
        return False

    # -- acknowledgements to the device ------------------------------------------------------------------------------------

    @property
    def acknowledges(self) -> bool:
        """True if the device is told which of its lines are safe (`--device-ack`)."""
        return self._device_ack is not None

    @property
    def unconfirmed(self) -> int | None:
        """Number of published lines that the broker has not confirmed; `None` without `--device-ack`, when nobody counts."""
        return None if self._device_ack is None else self.seq - self._confirmed

    def confirmed(self, seq: int) -> None:
        """Note that the broker has confirmed a line. The device is told of the lines without a gap before them."""
        if self._device_ack is None:
            return  # other connections are acknowledged: --device-ack was changed
        if seq == self._confirmed:
            self._confirmed += 1
            ahead = self._confirmed_ahead
            if ahead:
                while self._confirmed in ahead:
                    ahead.remove(self._confirmed)
                    self._confirmed += 1
            if not self._ack_scheduled:
                self._ack_scheduled = True
                self.factory.turn.call_first(self._acknowledge_soon)
        elif seq > self._confirmed:
            if self._confirmed_ahead is None:
                self._confirmed_ahead = set()
            self._confirmed_ahead.add(seq)

    def _acknowledge_soon(self) -> None:
        self._ack_scheduled = False
        try:
            self._acknowledge()
        except Exception:
            self.failed(Failure())

    def _acknowledge(self) -> None:
        # One acknowledgement covers all lines before it, so none has to wait for a socket that takes nothing.
        device_ack = self._device_ack
        if self._confirmed > self._acknowledged and self._can_write and device_ack is not None:
            self._acknowledged = self._confirmed
            self.transport.write(device_ack(self._confirmed - 1))

    # -- to the device ---------------------------------------------------------------------------------------------------

    def send(self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None:
        """Write a plain message at once if it is next and the socket takes it; otherwise treat it as a `Letter`."""
        framing = self.factory.framing
        if (
            self._can_write
            and (seq is None or (seq == self.expected and self._ordering is None))
            and len(body) <= framing.max_body
            and (framing.unfit is None or not framing.unfit(body))
        ):
            if seq is not None:
                self.expected += 1
            else:
                source.written(header, body)
            self.sendLine(body)
            source.done(tag)
        else:
            letter = Letter(source, tag, header, body, connection_id, seq)
            letter.fault = framing.fault(body)
            self.post(letter)

    def body_fault(self, body: bytes) -> str | None:
        """Return the reason for which a message with this body cannot be written to the device; `None` if it can."""
        return self.factory.framing.fault(body)

    def post(self, letter: Letter) -> None:
        """Write a message in the order of its sequence number."""
        seq = letter.seq
        if self._closing:
            if seq is not None and self._was_written(seq):
                self.factory.deliveries.duplicate(letter)
            else:
                self.factory.courier.record(letter, letter.fault or "connection-closed")
            return
        if seq is None:
            self._deliver(letter)
            return
        ordering = self._ordering
        if ordering is None:
            if seq == self.expected:
                self.expected += 1
                self._deliver(letter)
                return
            ordering = self._ordering = Ordering(self.expected)
        arrival = ordering.arrive(seq, letter, self.factory.reordering.clock())
        if arrival is Arrival.NEXT:
            self._deliver(letter)
            if ordering.held:
                self._deliver_ready(ordering)
        elif arrival is Arrival.HELD:
            self.factory.reordering.hold(self, letter)
            self.factory.reordering.enforce(self, letter.source)
        elif arrival is Arrival.DUPLICATE:
            self.factory.deliveries.duplicate(letter)
        else:
            self.factory.courier.record(letter, "late")

    def _was_written(self, seq: int) -> bool:
        return seq < self.expected if self._ordering is None else self._ordering.written(seq)

    def _deliver_ready(self, ordering: Ordering[Letter]) -> None:
        """Deliver the held messages whose predecessors are delivered."""
        ready = ordering.take()
        if ready:
            self.factory.reordering.release(self, ready)
            for letter in ready:
                self._deliver(letter)

    @property
    def missing_since(self) -> float | None:
        """Time at which the next sequence number was first missed, by the gap clock."""
        return self._ordering.missed_since if self._ordering is not None else None

    @property
    def backlog(self) -> bool:
        """True while something still has to be written to the device."""
        return self._waiting is not None or self._flush_scheduled or self._ack_scheduled

    @property
    def held(self) -> int:
        """Number of messages that wait for a missing sequence number."""
        return self._ordering.held if self._ordering is not None else 0

    @property
    def missing(self) -> int | None:
        """Missing sequence number for which messages wait, or `None`."""
        ordering = self._ordering
        return ordering.expected if ordering is not None and ordering.held else None

    @property
    def slow(self) -> bool:
        """True while the socket takes no more, so that messages wait for it."""
        return self._waiting is not None

    @property
    def waiting(self) -> int:
        """Number of messages that wait for the socket."""
        return len(self._waiting) if self._waiting is not None else 0

    @property
    def waiting_bytes(self) -> int:
        """Size in bytes of the messages that wait for the socket."""
        return self._waiting_size

    def skip_gap(self) -> None:
        """Stop waiting for the missing sequence numbers, and deliver the messages after them."""
        ordering = self._ordering
        if ordering is not None and ordering.held:
            missing = ordering.skip()
            self.factory.reordering.skipped(self, missing)
            self._deliver_ready(ordering)

    def forget(self, source: DeliverySource) -> None:
        """Drop the waiting messages of a consumer that ended. The broker delivers them again."""
        if self._ordering is not None:
            self.factory.reordering.release(self, self._ordering.forget(lambda letter: letter.source is source))
        if self._waiting and any(letter.source is source for letter in self._waiting):
            self._forget_waiting(self._waiting, source)

    def _forget_waiting(self, waiting: deque[Letter], source: DeliverySource) -> None:
        """Drop messages that wait for the socket. Their sequence numbers were used already.

        The order goes back to the first of these numbers, and the messages of other consumers behind it are held again.
        """
        first = min((letter.seq for letter in waiting if letter.source is source and letter.seq is not None), default=None)
        stay: deque[Letter] = deque()
        behind: list[tuple[int, Letter]] = []
        for letter in waiting:
            if letter.source is source:
                continue
            if first is not None and letter.seq is not None and letter.seq > first:
                behind.append((letter.seq, letter))
            else:
                stay.append(letter)
        slow, reordering = self.factory.slow, self.factory.reordering
        slow.unqueue(self, waiting)
        self._waiting = stay
        self._waiting_size = sum(map(_size, stay))
        for letter in stay:
            slow.queue(self, letter)
        if first is not None:
            if self._ordering is None:
                self._ordering = Ordering(self.expected)
            self._ordering.rewind(first, behind, reordering.clock())
            for _, letter in behind:
                reordering.hold(self, letter)

    def _deliver(self, letter: Letter) -> None:
        """Write a message whose turn it is, or have it wait for the socket."""
        factory = self.factory
        if self._closing:
            self._record(letter, letter.fault or "connection-closed")
            return
        if self._waiting is not None:
            self._waiting.append(letter)
            self._waiting_size += _size(letter)
            factory.slow.queue(self, letter)
            if self._waiting_size > factory.settings.write_buffer:
                self.close_slow(f"more than {factory.settings.write_buffer} bytes wait for it")
            return
        fault = letter.fault
        if fault is None and factory.deliveries.expired(letter):
            fault = "expired"
        if fault is not None:
            self._record(letter, fault)
            return
        if (letter.body or not letter.close) and not self._write_body(letter):
            return
        if letter.seq is None:
            letter.source.written(letter.header, letter.body)
        letter.source.done(letter.tag)
        if letter.reply_to is not None:
            factory.courier.report(letter, "delivered")
        if letter.close:
            self.close("closed by the back end")

    def _record(self, letter: Letter, reason: str) -> None:
        """Record a message whose sequence number is used. A later copy is a duplicate, so this record must not be dropped."""
        letter.settled = letter.seq is not None
        self.factory.courier.record(letter, reason)

    def _write_body(self, letter: Letter) -> bool:
        """Write the body of a message. Return `False` if it was not written and its fate is on record."""
        self.sendLine(letter.body)
        return True

    def sendLine(self, line: bytes) -> None:
        """Write a line at the end of the reactor turn, together with the others of this turn."""
        if self._outgoing is None:
            self._outgoing = [line]
        else:
            self._outgoing.append(line)
        self._outgoing_size += len(line)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.factory.turn.call_first(self._flush_soon)
        elif self._outgoing_size >= CHUNK:
            # Only a write shows what the socket takes, and what it does not take has to wait unacknowledged.
            self._flush()

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        try:
            self._flush()
        except Exception:
            self.failed(Failure())

    def _flush(self) -> None:
        outgoing = self._outgoing
        if outgoing is not None:
            factory = self.factory
            lines, size = len(outgoing), self._outgoing_size
            self._outgoing = None
            self._outgoing_size = 0
            self.lines_out += lines
            self.bytes_out += size
            self.last_out = factory.turn.now
            traffic = factory.traffic
            traffic[LINES_SENT] += lines
            traffic[SENT] += size
            self.transport.write(factory.framing.encode(outgoing))

    # -- IPushProducer: the transport is the consumer ----------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Have messages wait, since the socket takes no more."""
        if self._can_write:
            self._can_write = False
            self._waiting = deque()
            self.factory.slow.paused(self)

    def resumeProducing(self) -> None:
        """Write the messages that waited: the socket has taken everything."""
        waiting, self._waiting = self._waiting, None
        self._waiting_size = 0
        if waiting is None:
            return
        self._can_write = True
        self.factory.slow.resumed(self)
        self.factory.slow.unqueue(self, waiting)
        self._acknowledge()
        for letter in waiting:
            self._deliver(letter)

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows, and settles what waits."""

    # -- the end ---------------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """True once the connection is closed or closes."""
        return bool(self._closing)

    @property
    def close_reason(self) -> str | None:
        """Reason for which the connection closes or was closed, or `None`."""
        return self._closing or None

    def claim(self, since: int, identified: float) -> None:
        """Note when the device was identified, for the order of its connections."""
        self.since = since
        self.identified = identified

    def close(self, reason: str) -> None:
        """Close the connection after what was written. `reason` is for events and the log."""
        if not self._closing:
            self._begin_close(reason)
            self.transport.loseConnection()

    def reject(self, reason: str) -> None:
        """Close the connection, none of whose lines can be published, and discard what follows."""
        self._unpublishable = True
        self._discard_input()
        self.close(reason)

    def failed(self, failure: Failure) -> None:
        """Abort the connection after an exception of our own code, which its supervisor counts."""
        if self.transport is not None:
            self.transport.abortConnection(failure)
        else:
            self.factory.connections.failed(self, failure)  # a late confirm, for example

    def stop(self) -> None:
        """Close the connection, since its supervisor stops."""
        self.close("the gateway stops")

    def _begin_close(self, reason: str, outcome: str = "connection-closed") -> None:
        """Write what is outgoing, and nothing after. `outcome` is the reason for which waiting messages are undeliverable."""
        self._flush()
        self.transport.unregisterProducer()  # a transport with a producer would wait for it before it closes
        self._closing = reason
        # Lines that arrive before the device sees the close are published. A device that waits for acknowledgements sends them
        # again instead.
        self.discarding = self.discarding or self.acknowledges
        self._unpause(WAIT_FOR_RATE)
        self._can_write = False
        self._settle_waiting(outcome)

    def drain(self) -> None:
        """Prepare to close: skip gaps, and stop reading if the device knows which of its lines are safe.

        A device with acknowledgements sends again what was not acknowledged. Any other device is read until it has closed its
        side, and its lines have their turn like all others.
        """
        if self.transport is None or self._closing:
            return
        if self.acknowledges:
            self._pause(DRAINING)
            self.transport.drain()
            self._publish_buffered()
            self.discarding = True
        while self.held:
            self.skip_gap()

    def close_slow(self, why: str) -> None:
        """Close the connection of a device that does not take what is written, and record the messages that wait.

        What was written counts as delivered. So it is not discarded by a reset: the device has some time to take it.
        """
        if not self._closing:
            self.factory.slow.closed_as_slow(self, why)
            self._begin_close(f"too slow: {why}", "slow-device")
            self.transport.loseConnection()

    def _settle_waiting(self, reason: str) -> None:
        """Record the messages that were not written."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.factory.slow.resumed(self)
            self.factory.slow.unqueue(self, waiting)
            for letter in waiting:
                self._record(letter, letter.fault or reason)
        if self._ordering is not None and self._ordering.held:
            held = self._ordering.clear()
            self.factory.reordering.release(self, held)
            for letter in held:
                self.factory.courier.record(letter, letter.fault or "connection-closed")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Settle everything of the connection, and remove it."""
        transport, self.connected = self.transport, 0
        if self.opened is None:
            self.transport = None
            return  # the handshake was not completed, so nobody knows the connection
        reason = transport.lossReason(reason)
        failure = None if is_expected(reason) else reason
        # If a step fails, the others are done all the same: a message that is still held, for example, would be written later.
        try:
            self._publish_rest()
        except Exception:
            failure = Failure()
        self._closing = self._closing or explain(reason)
        for step in (self._settle_messages, self._leave_collaborators, self._report_end):
            try:
                step()
            except Exception:
                failure = Failure()
        # Whatever failed, nothing is written any more, and no collaborator may keep the connection.
        self._can_write = False
        self._outgoing = None
        self.factory.closed(self, self.expected if self._ordering is None else self._ordering, failure)
        self.transport = None

    def _publish_rest(self) -> None:
        """Publish the lines that were complete: the device is gone, so now or never."""
        if self._paused:
            self._publish_buffered()
            self.factory.discards.add(0, self.unread)

    def _settle_messages(self) -> None:
        if self._waiting is not None or self._ordering is not None:
            self._settle_waiting("connection-closed")

    def _leave_collaborators(self) -> None:
        factory = self.factory
        if self._paused:
            self._paused = 0
            factory.reading.resumed(self)
        if self._awaiting_sink:
            factory.sink.leave(self)
        factory.skipped.closed(self)

    def _report_end(self) -> None:
        factory = self.factory
        unterminated = 0
        if self._buffer or self._unfinished is not None:
            unterminated = self.unpublished
            self._buffer = b""
            self._unfinished = None
        assert self.opened is not None
        factory.emit(
            DeviceDisconnected(
                self.connection_id.decode(),
                self.device_id,
                self.transport.peer,
                self._closing,
                self.lines_in,
                self.lines_out,
                factory.clock.seconds() - self.opened,
                unterminated,
                factory.door,
                self.traceparent,
            )
        )


def _size(letter: Letter) -> int:
    """Return the bytes of the write buffer that a waiting message takes."""
    return 0 if letter.fault is not None else len(letter.body)
