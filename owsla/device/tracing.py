"""Records of the lines of single connections, for an operator who traces a device.

Theory of operation
===================

**No cost for others.** A traced connection gets another class: a subclass of its own with `__slots__ = ()`, whose methods
record, and then call those of the connection. Python permits this assignment of `__class__`, since both have the same layout.
So no line is checked for a trace, no connection has an attribute for it, and the path of the lines of others is as short as
before. When its last trace ends, the connection gets its own class back. All that stays is an empty dictionary, which CPython
gives to an object whose class is assigned.

The subclasses are made when they are first needed, once for each class of connections: `TracingProtocol` without a dialect, and
`TracingDialectProtocol` with a dialect, each with the `Tracing` of this node as an attribute of the class. A method that was
looked up before the assignment, such as one that `EndOfTurn` will call, is still that of the former class. The overridden
methods are called by `self` each time, so they are in effect at once, even within a line that is being received.

**Records.** A line from the device is recorded before it is published, so that the answers to it follow. A line for the device
is recorded when it is handed to the transport, in order. It is not while it waits for a number or for the socket: then an event
says so. `Tracing` keeps a `_Recording` for each traced connection: the traces that listen, and the number of the message that
is being written, which `sendLine` does not know.

**Secrets.** A dialect may receive a login with a password. A line that it publishes as it came is shown, since back ends get it
as well. Of any other line the dialect says by `Dialect.redact` which text is shown instead.

**Errors.** Tracing must not cost a line or a connection. The methods of `Tracing` that connections call raise nothing: after an
exception the trace that caused it is removed from the connection, and told so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from ..dialects import REDACTED
from ..letter import DeliverySource, Letter
from .dialect_protocol import DialectProtocol
from .protocol import DeviceProtocol

LONGEST_BODY: Final = 8192
"""Bytes of a body that are recorded. The size in the record is that of the whole body."""


@dataclass(slots=True)
class TraceRecord:
    """Record of a line, an acknowledgement or an event of a traced connection."""

    time: float
    """Seconds since the epoch."""
    kind: str
    """`in` and `out`: a line from the device, and one to it. `ack`: an acknowledgement (`--device-ack`). `event`: a text."""
    connection_id: str | None
    device_id: str | None
    size: int | None = None
    """Bytes of the line or message, without its framing; of an acknowledgement with it."""
    seq: int | None = None
    """Of `in`: the number under which the line is published (`from_device_seq`). Of `out`: that of the message
    (`to_device_seq`). Of `ack`: the number of the last acknowledged line."""
    body: bytes | None = None
    """The first `LONGEST_BODY` bytes of the line, if they are recorded and may be shown."""
    text: str | None = None
    """Text of an event, or instead of a body that is not shown."""
    event: str | None = None
    """Name of an event, as handlers get it."""
    room: int = 0
    """Bytes that the body takes, or will take when the record is complete."""


class TraceListener(Protocol):
    """Receiver of the records of connections."""

    @property
    def bodies(self) -> bool:
        """True to record bodies as well."""

    def record(self, record: TraceRecord) -> None:
        """Take a record. It may be completed until the present call of the connection ends."""

    def left(self, connection: DeviceProtocol, failed: bool) -> None:
        """Note that a connection is not recorded any more: it has ended, or recording it has `failed`."""


class _Recording:
    """State of a traced connection."""

    __slots__ = ("bodies", "line", "listeners", "own", "pending", "seq")

    def __init__(self, own: type[DeviceProtocol]) -> None:
        self.own = own
        """Class of the connection while it is not traced."""
        self.listeners: tuple[TraceListener, ...] = ()
        self.bodies = False
        """True if a listener wants bodies."""
        self.seq: int | None = None
        """Number of the message that is being written."""
        self.line = b""
        """Line that a dialect has been given, during the call."""
        self.pending: TraceRecord | None = None
        """Record of this line."""

    def listen(self, listeners: tuple[TraceListener, ...]) -> None:
        self.listeners = listeners
        self.bodies = any(listener.bodies for listener in listeners)


class Tracing:
    """The traced connections of a node, and the traces that listen to each. Pure but for the class of the connections."""

    _log = Logger(namespace="owsla")

    def __init__(self, now: Callable[[], float]) -> None:
        """`now()` returns the time in seconds since the epoch."""
        self._now = now
        self._classes: dict[type[DeviceProtocol], type[DeviceProtocol]] = {}
        self._recordings: dict[DeviceProtocol, _Recording] = {}

    def __len__(self) -> int:
        """Return the number of traced connections."""
        return len(self._recordings)

    def attach(self, connection: DeviceProtocol, listener: TraceListener) -> None:
        """Record a connection for a listener, unless it does already. Raise `TypeError` if its class cannot be traced."""
        recording = self._recordings.get(connection)
        if recording is None:
            own = type(connection)
            connection.__class__ = self._traced_class(own)
            recording = self._recordings[connection] = _Recording(own)
        if listener not in recording.listeners:
            recording.listen((*recording.listeners, listener))

    def detach(self, connection: DeviceProtocol, listener: TraceListener) -> None:
        """Stop recording a connection for a listener. Without listeners it gets its own class back."""
        recording = self._recordings.get(connection)
        if recording is not None:
            recording.listen(tuple(each for each in recording.listeners if each is not listener))
            if not recording.listeners:
                self._restore(connection)

    def _traced_class(self, own: type[DeviceProtocol]) -> type[DeviceProtocol]:
        traced = self._classes.get(own)
        if traced is None:
            base: type[DeviceProtocol] = TracingDialectProtocol if issubclass(own, DialectProtocol) else TracingProtocol
            traced = type(f"Traced{own.__name__}", (base, own), {"__slots__": (), "tracing": self})
            self._classes[own] = traced
        return traced

    def _restore(self, connection: DeviceProtocol) -> None:
        connection.__class__ = self._recordings.pop(connection).own

    # -- called by traced connections: none of these raises ----------------------------------------------------------------

    def line_in(self, connection: DeviceProtocol, line: bytes, seq: int | None, text: str | None = None) -> None:
        """Record a line from the device. `text` is shown in place of its body."""
        recording = self._recordings.get(connection)
        if recording is not None:
            try:
                record = self._line(connection, recording, "in", line, seq)
                if text is not None:
                    record.text, record.body = text, None
                self._tell(connection, recording, record)
                recording.line, recording.pending = line, record
            except Exception:
                self._failed(connection)

    def published(self, connection: DeviceProtocol, line: bytes, seq: int) -> None:
        """Complete the record of a line for which a dialect publishes a line under a number."""
        recording = self._recordings.get(connection)
        if recording is not None and recording.pending is not None:
            record = recording.pending
            if record.seq is None:
                record.seq = seq
            if line == recording.line:
                record.text = None
                record.body = line[:LONGEST_BODY] if recording.bodies else None

    def line_done(self, connection: DeviceProtocol) -> None:
        """Note that a dialect has handled the line that it was given."""
        recording = self._recordings.get(connection)
        if recording is not None:
            recording.line, recording.pending = b"", None

    def writing(self, connection: DeviceProtocol, seq: int | None) -> int | None:
        """Note the number of the message whose lines follow. Return the one noted before."""
        recording = self._recordings.get(connection)
        if recording is None:
            return None
        before, recording.seq = recording.seq, seq
        return before

    def line_out(self, connection: DeviceProtocol, line: bytes) -> None:
        """Record a line for the device."""
        recording = self._recordings.get(connection)
        if recording is not None:
            try:
                self._tell(connection, recording, self._line(connection, recording, "out", line, recording.seq))
            except Exception:
                self._failed(connection)

    def acknowledged(self, connection: DeviceProtocol, seq: int, size: int) -> None:
        """Record an acknowledgement to the device."""
        self._note(connection, "ack", size, seq, None)

    def event(self, connection: DeviceProtocol, text: str, size: int, seq: int | None) -> None:
        """Record an event that concerns a message."""
        self._note(connection, "event", size, seq, text)

    def lost(self, connection: DeviceProtocol, failed: bool = False) -> None:
        """Forget a connection that has ended, or that cannot be recorded."""
        recording = self._recordings.get(connection)
        if recording is not None:
            self._restore(connection)
            for listener in recording.listeners:
                try:
                    listener.left(connection, failed)
                except Exception:
                    self._log.failure("A trace failed at the end of a connection")

    def _line(self, connection: DeviceProtocol, recording: _Recording, kind: str, line: bytes, seq: int | None) -> TraceRecord:
        record = TraceRecord(self._now(), kind, connection.connection_id.decode(), connection.device_id, len(line), seq)
        if recording.bodies:
            record.body = line[:LONGEST_BODY]
            record.room = len(record.body)
        return record

    def _note(self, connection: DeviceProtocol, kind: str, size: int, seq: int | None, text: str | None) -> None:
        recording = self._recordings.get(connection)
        if recording is not None:
            try:
                connection_id = connection.connection_id.decode()
                record = TraceRecord(self._now(), kind, connection_id, connection.device_id, size, seq, None, text)
                self._tell(connection, recording, record)
            except Exception:
                self._failed(connection)

    def _tell(self, connection: DeviceProtocol, recording: _Recording, record: TraceRecord) -> None:
        for listener in recording.listeners:
            try:
                listener.record(record)
            except Exception:
                self._log.failure("A trace failed, and records {connection} no more", connection=record.connection_id)
                self.detach(connection, listener)
                listener.left(connection, True)

    def _failed(self, connection: DeviceProtocol) -> None:
        """Stop recording a connection after an error of our own."""
        self._log.failure("A connection could not be recorded for a trace")
        self.lost(connection, failed=True)


class TracingProtocol(DeviceProtocol):
    """Base of the classes of traced connections: it records what the connection does, then does it.

    Recording may give the connection its own class back. So each method looks up what it needs of this class before it records:
    `super()` would raise `TypeError` afterwards.
    """

    __slots__ = ()

    tracing: ClassVar[Tracing]

    def linesReceived(self, lines: list[bytes]) -> int:
        return self._receive_each(lines)

    def lineReceived(self, line: bytes) -> None:
        receive = super().lineReceived
        self.tracing.line_in(self, line, self.seq)
        receive(line)

    def send(self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None:
        tracing, send = self.tracing, super().send
        before = tracing.writing(self, seq)
        try:
            send(source, tag, header, body, connection_id, seq)
        finally:
            tracing.writing(self, before)

    def post(self, letter: Letter) -> None:
        tracing, deliveries = self.tracing, self.factory.deliveries
        held, waiting, duplicates = self.held, self.waiting, deliveries.duplicates
        super().post(letter)
        if self.held > held:
            tracing.event(self, f"message {letter.seq} waits for the messages before it", len(letter.body), letter.seq)
        elif self.waiting > waiting:
            tracing.event(self, "the device does not read: a message waits for its socket", len(letter.body), letter.seq)
        elif deliveries.duplicates > duplicates:
            tracing.event(self, f"message {letter.seq} was sent before, and is dropped", len(letter.body), letter.seq)

    def _write_body(self, letter: Letter) -> bool:
        tracing, write = self.tracing, super()._write_body
        before = tracing.writing(self, letter.seq)
        try:
            return write(letter)
        finally:
            tracing.writing(self, before)

    def sendLine(self, line: bytes) -> None:
        send = super().sendLine
        self.tracing.line_out(self, line)
        send(line)

    def _acknowledge(self) -> None:
        tracing, before = self.tracing, self._acknowledged
        super()._acknowledge()
        if self._acknowledged != before and self._device_ack is not None:
            seq = self._acknowledged - 1
            tracing.acknowledged(self, seq, len(self._device_ack(seq)))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        tracing = self.tracing
        try:
            super().connectionLost(reason)
        finally:
            tracing.lost(self)


class TracingDialectProtocol(TracingProtocol, DialectProtocol):
    """Base of the classes of traced connections with a dialect."""

    __slots__ = ()

    def lineReceived(self, line: bytes) -> None:
        tracing, receive = self.tracing, super(TracingProtocol, self).lineReceived
        tracing.line_in(self, line, None, self._redacted(line))
        try:
            receive(line)
        finally:
            tracing.line_done(self)

    def _redacted(self, line: bytes) -> str | None:
        """Return the text that is shown in place of a line, or `None`. The dialect may be code of the user."""
        try:
            return None if self._dialect is None else self._dialect.redact(line)
        except Exception:
            return REDACTED

    def publish(self, line: bytes) -> None:
        if TracingDialectProtocol not in type(self).__mro__:
            self.publish(line)  # the dialect has kept this method, and the trace has ended since
            return
        publish = super().publish
        if not self._over:
            self.tracing.published(self, line, self.seq + len(self._kept))
        publish(line)
