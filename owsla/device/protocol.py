"""One device's connection: its lines to the sink, and the messages for it to its socket.

This only connects decisions to the world: framing and ordering are pure and elsewhere, and what all connections have in common
is in the `Hub`, so that a connection is small.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from twisted.python.failure import Failure

from ..events import DeviceDisconnected, LineTooLong
from ..letter import DeliverySource, Letter
from .hub import Hub
from .ordering import Arrival, Ordering
from .transport import EXPECTED, explain

_WAITING: Final = 1
"""Reading is paused until the sink takes lines again."""
_RATED: Final = 2
"""Reading is paused since the device talks too fast."""
_DRAINING: Final = 4
"""Reading is over: the connection is closed when everything before is confirmed."""

CHUNK: Final = 65536
"""Bytes written in one turn after which it is seen whether the socket takes them, before more are acknowledged."""

ALERT: Final = 31
"""Bytes of a TLS record with close_notify, at most (TLS 1.2, AES-GCM). So few unread bytes may be a goodbye and no line."""


class Endpoint:
    """A connected device. It exists from the completed handshake on.

    It is no `LineReceiver`, of which nothing was left in use: with that went the dictionary of its attributes, 1.3 KB more a
    connection than these slots.
    """

    __slots__ = (
        "_allowed_at",
        "_closing",
        "_departing",
        "_direct",
        "_flushing",
        "_in_line",
        "_long",
        "_mark",
        "_ordering",
        "_out",
        "_out_size",
        "_paused",
        "_position",
        "_queue",
        "_queued",
        "_read_at",
        "_rest",
        "_safe",
        "_safe_ahead",
        "_spared",
        "_telling",
        "_told",
        "_unpublishable",
        "connection_id",
        "deaf",
        "device_id",
        "expected",
        "hub",
        "idle_mark",
        "idle_since",
        "lines_out",
        "opened",
        "seq",
        "template",
        "transport",
    )

    def __init__(self, hub: Hub, connection_id: bytes, device_id: str | None) -> None:
        self.hub = hub
        self.transport: Any = None
        """A `TLSTransport`; `None` before it is connected, and when the connection is closed."""
        self.connection_id = connection_id
        self.device_id = device_id
        self.template = hub.sink.open(connection_id, device_id)
        self.seq = 0
        """The number of the next line from the device: so many were published."""
        self.lines_out = 0
        self.opened = hub.clock.seconds()
        self.idle_mark = 0
        """`lines` when the idle check last looked, and since when that has been so: `idle_since`."""
        self.idle_since = self.opened
        self.deaf = False
        """Whether what the device still says is ignored."""
        self._rest = b""
        self._read_at = 0.0  # when the lines that are dealt with were read, in seconds since the epoch; 0: just now
        self._long: bytearray | None = None
        # Its share of the window: at which number it is used up, and the sink's position when it was given.
        self._mark = hub.sink.share
        self._position = 0
        self._departing = False  # its device has closed: nobody will send again what it sent before
        self._unpublishable = False  # the sink can publish none of its lines
        self._spared = False  # its share is one of the room that the sink keeps for those while the broker takes nothing
        self._paused = 0  # why nothing is read: _WAITING, _RATED, _DRAINING
        self._in_line = False  # for the sink to call resume
        self._allowed_at = 0.0  # with a rate limit: when all lines so far would have been due
        self._closing = ""
        # Towards the device
        self.expected = 0
        self._ordering: Ordering[Letter] | None = None
        self._direct = True  # what is next may be written at once
        self._out: list[bytes] | None = None  # lines that wait for the end of the turn
        self._out_size = 0
        self._flushing = False
        self._queue: deque[Letter] | None = None
        self._queued = 0
        # Acknowledgements to the device
        self._safe = 0
        self._safe_ahead: set[int] | None = None
        self._told = 0
        self._telling = False

    # -- from the device -------------------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The handshake is complete."""
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        if not self.hub.sink.accepting:
            # What it says would only wait here; and devices that come and go in an outage would fill the memory with it.
            self._wait()

    def dataReceived(self, data: bytes) -> None:
        hub = self.hub
        if self.deaf:
            return
        hub.bytes_in += len(data)
        if self._long is not None:
            whole = self._lengthen(data)
            if whole is None:
                return
            data = whole
        elif self._rest:
            data = self._rest + data
        if (not hub.sink.accepting or self.seq >= self._mark) and not self._has_share():
            self._keep_rest(data)
            return
        most = self._mark - self.seq
        lines, rest = hub.split(data, most)
        limit = hub.framing.max_line
        for index, line in enumerate(lines):
            if len(line) > limit:
                self._rest = b""
                self.lineLengthExceeded(line)
                return
            self.lineReceived(line)
            if self._unpublishable:
                return
            if not hub.sink.accepting and index + 1 < len(lines) and not self._uses_spare:
                # The rest was read already: it is published in its turn, and read from the wire no more till then. It is put
                # together with the full ending, or a line that itself ends with \\r would lose that when it is split again.
                self._keep_rest(b"".join([each + hub.ending for each in lines[index + 1 :]]) + rest)
                lines = lines[: index + 1]
                break
        else:
            self._rest = rest
            if len(data) - len(rest) > hub.sink.line_size:
                self._mark -= (len(data) - len(rest)) // hub.sink.line_size
            if len(lines) >= most and hub.framing.delimiter in rest:
                self._keep_rest(rest)
            elif len(rest) > hub.long:
                self._check_rest(rest)
        if hub.max_rate is not None and lines:
            self._slow_down(len(lines), hub.max_rate)

    def _keep_rest(self, data: bytes) -> None:
        """Keep what was read until the sink takes lines again, and when it was read: that is the lines' timestamp."""
        self._rest = data
        self._read_at = self._read_at or self.hub.now()
        self._wait()

    def _has_share(self) -> bool:
        """Whether it may publish now: its share of the window is not used up, or it can have the next one."""
        sink = self.hub.sink
        if self.seq < self._mark and self._uses_spare:
            return sink.spare > 0
        if not sink.accepting:
            return False
        if self.seq >= self._mark:
            position = sink.position(self._position)
            if position < 0:
                return False
            self._position = position
            self._mark = self.seq + sink.share
        return True

    @property
    def _uses_spare(self) -> bool:
        """Whether its lines go to the room that the sink keeps for devices that left while the broker takes nothing."""
        return self._spared and not self.hub.sink.serves(self)

    def _slow_down(self, lines: int, rate: float) -> None:
        """Read no more until these lines are paid for; a second's worth is on credit."""
        if self._closing or self._departing:
            return  # it has not much more to say
        now = self.hub.clock.seconds()
        self._allowed_at = max(self._allowed_at, now) + lines / rate
        if self._allowed_at > now + 1.0 and not self._paused & _RATED:
            self._pause(_RATED)
            self.hub.rated(self, self._allowed_at - 1.0)

    def unrate(self) -> None:
        """The lines so far are paid for."""
        self._unpause(_RATED)

    def lineReceived(self, line: bytes) -> None:
        self.hub.sink.publish(self, line, self._read_at)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._rest = b""
        self._long = None
        self.deaf = True
        longest = self.hub.framing.max_line
        self.hub.emit(LineTooLong(self.connection_id.decode(), self.device_id, longest))
        self.close(f"a line longer than {longest} bytes")

    def _check_rest(self, rest: bytes) -> None:
        framing = self.hub.framing
        if len(rest) > framing.max_line + framing.slack:
            self.lineLengthExceeded(rest)
        else:
            # Joining and splitting it anew with each piece that comes would cost the square of its length.
            self._long = bytearray(rest)
            self._rest = b""

    def _lengthen(self, data: bytes) -> bytes | None:
        """Add to a long unfinished line; all of it, once it is finished."""
        long = self._long
        assert long is not None
        framing = self.hub.framing
        start = max(0, len(long) - len(framing.delimiter) + 1)
        long += data
        if long.find(framing.delimiter, start) < 0:
            if len(long) > framing.max_line + framing.slack:
                self.lineLengthExceeded(b"")
            return None
        self._long = None
        return bytes(long)

    def _pause(self, reason: int) -> None:
        if not self._paused:
            self.transport.pauseProducing()
            self.hub.paused(self)
        self._paused |= reason

    def _unpause(self, reason: int) -> None:
        if not self._paused:
            return
        self._paused &= ~reason
        if not self._paused:
            self.hub.unpaused(self)
            # A connection that closes is read to its end in any case: what is left in the socket would keep it open.
            if self.transport is not None and (self._closing or not self.deaf):
                self.transport.resumeProducing()

    def _wait(self) -> None:
        """Read nothing until the sink takes lines again; it calls `resume` then."""
        self._pause(_WAITING)
        if not self._in_line:
            self._in_line = True
            self.hub.sink.wait(self, self._position if self.seq >= self._mark else 0)

    def stall(self) -> None:
        if not self.deaf:
            self._wait()

    def resume(self) -> None:
        self._in_line = False
        if self.deaf or not self._paused & _WAITING:
            return
        data, self._rest = self._rest, b""
        if data:
            self.hub.bytes_in -= len(data)  # it was counted when it was read
            self.dataReceived(data)
        if not self._in_line:
            self._read_at = 0.0
            self._unpause(_WAITING)

    def peerClosed(self) -> bool:
        """Read what the device sent before it closed or reset the connection, which nobody will send again.

        While the broker takes nothing it would wait in vain: it has a share of what the window can spare. Otherwise it keeps
        its place in the line, or devices that come and go would have all of the window. `False` if it is not read now.
        """
        if self.deaf:
            return False
        self._departing = True
        sink = self.hub.sink
        if sink.serves(self):
            if self._in_line:
                return False
        elif not self._spared:
            self._spared = True
            self._mark = self.seq + sink.spare
        if not self._has_share():
            return False
        if self._in_line:
            sink.leave(self)
        self._unpause(_RATED)
        self.resume()
        return not self._paused

    @property
    def in_line(self) -> bool:
        """Whether it is read again in its turn: it waits for a broker that takes lines."""
        return self._in_line and self.hub.sink.serves(self)

    @property
    def unread(self) -> int:
        """Bytes that the device has sent, that were not read, and that nobody will send again; those of TLS included."""
        if not self._paused or self.deaf or self.hub.device_ack is not None:
            return 0
        unread: int = self.transport.unread
        return unread if unread > ALERT else 0

    def _publish_rest(self) -> None:
        """Publish the lines that were read and not published yet, now or never. One that is too long ends them, as always."""
        if not self._paused & _WAITING:
            return
        lines, rest = self.hub.split(self._rest)
        self._rest = rest
        sink = self.hub.sink
        for index, line in enumerate(lines):
            if len(line) > self.hub.framing.max_line:
                self.lineLengthExceeded(line)
                return
            if not sink.spare or (self._spared and not sink.accepting and self.seq >= self._mark):
                self._discard(len(lines) - index)
                return
            self.lineReceived(line)
            if self._unpublishable:
                return
        self._read_at = 0.0

    def _discard(self, lines: int) -> None:
        """Count lines that are thrown away, unless the device sends them again."""
        if self.hub.device_ack is None:
            self.hub.discarded(lines, 0)

    @property
    def lines_in(self) -> int:
        """Lines from the device so far."""
        return self.seq

    @property
    def lines(self) -> int:
        """Lines so far, in either direction."""
        return self.lines_in + self.lines_out

    # -- what the broker has ---------------------------------------------------------------------------------------------

    def confirmed(self, seq: int) -> None:
        """The broker has the line of this number; the device is told of those without a hole before them."""
        if seq == self._safe:
            self._safe += 1
            ahead = self._safe_ahead
            if ahead:
                while self._safe in ahead:
                    ahead.remove(self._safe)
                    self._safe += 1
            if not self._telling:
                self._telling = True
                self.hub.turn.devices(self._tell_soon)
        elif seq > self._safe:
            if self._safe_ahead is None:
                self._safe_ahead = set()
            self._safe_ahead.add(seq)

    def _tell_soon(self) -> None:
        self._telling = False
        try:
            self._tell()
        except Exception:
            self.failed(Failure())

    def _tell(self) -> None:
        # One is enough for all before it, so there is none to queue behind a socket that takes nothing.
        if self._safe > self._told and self._direct and self.hub.device_ack is not None:
            self._told = self._safe
            self.transport.write(self.hub.device_ack(self._safe - 1))
            self._check_congestion()

    # -- to the device ---------------------------------------------------------------------------------------------------

    def send(
        self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None
    ) -> None:
        """Hand over a plain message: at once if it is its turn and the device is not behind."""
        if self._direct and (seq is None or (seq == self.expected and self._ordering is None)):
            if seq is not None:
                self.expected += 1
            else:
                source.written(header, body)
            self._write(body)
            source.done(tag)
        else:
            self.post(Letter(source, tag, header, body, connection_id, seq))

    def post(self, letter: Letter) -> None:
        """Hand over a message in its turn."""
        seq = letter.seq
        if self._closing:
            if seq is not None and self._was_written(seq):
                self.hub.duplicate(letter)
            else:
                self.hub.record(letter, letter.fault or "connection-closed")
            return
        if seq is None:
            self._hand_over(letter)
            return
        ordering = self._ordering
        if ordering is None:
            if seq == self.expected:
                self.expected += 1
                self._hand_over(letter)
                return
            ordering = self._ordering = Ordering(self.expected)
        arrival = ordering.arrive(seq, letter, self.hub.gap_clock())
        if arrival is Arrival.NEXT:
            self._hand_over(letter)
            if ordering.held:
                self._take(ordering)
        elif arrival is Arrival.HELD:
            self.hub.hold(self, letter)
            self.hub.check_held(self, letter.source)
        elif arrival is Arrival.DUPLICATE:
            self.hub.duplicate(letter)
        else:
            self.hub.record(letter, "late")

    @property
    def numbers(self) -> int | Ordering[Letter]:
        """The numbers given out so far: the next one, where none was skipped, or what orders them."""
        return self.expected if self._ordering is None else self._ordering

    def _was_written(self, seq: int) -> bool:
        return seq < self.expected if self._ordering is None else self._ordering.written(seq)

    def _take(self, ordering: Ordering[Letter]) -> None:
        """Hand over those held whose turn has come."""
        ready = ordering.take()
        if ready:
            self.hub.release(self, ready)
            for letter in ready:
                self._hand_over(letter)

    @property
    def missed_since(self) -> float | None:
        """When the number that is next was first missed, by the hub's gap clock."""
        return self._ordering.missed_since if self._ordering is not None else None

    @property
    def backlog(self) -> bool:
        """Whether something is still to be written to the device, or told."""
        return self._queue is not None or self._flushing or self._telling

    @property
    def holding(self) -> int:
        """How many messages wait here for one before them."""
        return self._ordering.held if self._ordering is not None else 0

    def skip(self) -> None:
        """Wait no longer for what is missing."""
        ordering = self._ordering
        if ordering is not None and ordering.held:
            missing = ordering.skip()
            self.hub.skipped(self, missing)
            self._take(ordering)

    def forget(self, source: DeliverySource) -> None:
        """A consumer is gone; what it brought and waits here comes again."""
        if self._ordering is not None:
            self.hub.release(self, self._ordering.forget(lambda letter: letter.source is source))
        if self._queue and any(letter.source is source for letter in self._queue):
            self._forget_queued(self._queue, source)

    def _forget_queued(self, queue: deque[Letter], source: DeliverySource) -> None:
        """Their numbers were given out already: go back to the first of them, and hold those behind it again."""
        first = min((letter.seq for letter in queue if letter.source is source and letter.seq is not None), default=None)
        stay: deque[Letter] = deque()
        behind: list[tuple[int, Letter]] = []
        for letter in queue:
            if letter.source is source:
                continue
            if first is not None and letter.seq is not None and letter.seq > first:
                behind.append((letter.seq, letter))
            else:
                stay.append(letter)
        self.hub.unqueue(self, queue)
        self._queue = stay
        self._queued = sum(map(_weight, stay))
        for letter in stay:
            self.hub.queue(self, letter)
        if first is not None:
            if self._ordering is None:
                self._ordering = Ordering(self.expected)
            self._ordering.rewind(first, behind, self.hub.gap_clock())
            for _, letter in behind:
                self.hub.hold(self, letter)

    def _hand_over(self, letter: Letter) -> None:
        """It is its turn: write it, or let it wait until the device has taken what was written before."""
        if self._closing:
            self._settle(letter, letter.fault or "connection-closed")
            return
        if self._queue is not None:
            self._queue.append(letter)
            self._queued += _weight(letter)
            self.hub.queue(self, letter)
            if self._queued > self.hub.write_buffer:
                self.close_slow(f"more than {self.hub.write_buffer} bytes wait for it")
            return
        fault = letter.fault
        if fault is None and self.hub.expired(letter):
            fault = "expired"
        if fault is not None:
            self._settle(letter, fault)
            return
        if (letter.body or not letter.close) and not self._say(letter):
            return
        if letter.seq is None:
            letter.source.written(letter.header, letter.body)
        letter.source.done(letter.tag)
        if letter.reply_to is not None:
            self.hub.report(letter, "delivered")
        if letter.close:
            self.close("closed by the back end")

    def _settle(self, letter: Letter, reason: str) -> None:
        """Put on record a message whose number was given out. A copy is a duplicate, so this record must not be dropped."""
        letter.settled = letter.seq is not None
        self.hub.record(letter, reason)

    def _say(self, letter: Letter) -> bool:
        """Write what it says. Whether that was done; if not, its fate is on record."""
        self._write(letter.body)
        return True

    def _write(self, line: bytes) -> None:
        self.lines_out += 1
        if self._out is None:
            self._out = [line]
        else:
            self._out.append(line)
        self._out_size += len(line)
        if not self._flushing:
            self._flushing = True
            self.hub.turn.devices(self._flush)
        elif self._out_size >= CHUNK:
            # Much in one turn: what the socket takes is known only by trying; what it does not take waits unacknowledged.
            self._flush_now()

    def _flush(self) -> None:
        self._flushing = False
        try:
            self._flush_now()
        except Exception:
            self.failed(Failure())

    def _flush_now(self) -> None:
        out = self._out
        if out is not None:
            ending = self.hub.ending
            out.append(b"")
            self._out = None
            self.hub.bytes_out += self._out_size
            self._out_size = 0
            self.transport.write(ending.join(out))
            self._check_congestion()

    def _check_congestion(self) -> None:
        if self._direct and self.transport.congested:
            self._direct = False
            self._queue = deque()
            self.hub.congested(self)

    def taking(self) -> None:
        """The socket has taken some of what waits for it."""
        if self._queue is not None:
            self.hub.congested(self)

    def writable(self) -> None:
        """The socket has taken everything: those that waited go next."""
        queue, self._queue = self._queue, None
        self._queued = 0
        if queue is None:
            return
        self._direct = True
        self.hub.relieved(self)
        self.hub.unqueue(self, queue)
        self._tell()
        for letter in queue:
            self._hand_over(letter)

    # -- the end ---------------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return bool(self._closing)

    def close(self, reason: str) -> None:
        """Close the connection after what was written; `reason` is for people."""
        if not self._closing:
            self._leave(reason)
            self.transport.loseConnection()

    def reject(self, reason: str) -> None:
        """Close the connection, none of whose lines can be published: read no more of them."""
        self._unpublishable = self.deaf = True
        self._rest = b""
        self._long = None
        self.close(reason)

    def failed(self, failure: Failure) -> None:
        """An error of ours in dealing with it: it is closed at once, and its supervisor hears of it."""
        if self.transport is not None:
            self.transport.abortConnection(failure)
        else:
            self.hub.failed(self, failure)  # a confirm that comes late, say: its end has been told of already

    def stop(self) -> None:
        """Its supervisor stops."""
        self.close("the gateway stops")

    def idle(self, reason: str) -> None:
        """Close the connection, since nothing was said for too long."""
        if self._in_line or self._paused:
            self.idle_since = self.hub.clock.seconds()  # it is not read, and has its time anew when it is
        elif not self._closing:
            self._leave(reason)
            self.transport.idleOverdue()

    def _leave(self, reason: str, outcome: str = "connection-closed") -> None:
        """Hand over and write nothing from now on. `outcome`: why what waits for the socket is undeliverable."""
        self._flush_now()
        self._closing = reason
        # What it says until it hears of our goodbye is published. If it waits for acknowledgements it sends that again instead.
        self.deaf = self.deaf or self.hub.device_ack is not None
        self._unpause(_RATED)
        self._direct = False
        self._give_up(outcome)

    @property
    def acknowledges(self) -> bool:
        """Whether its device is told which lines are safe, the last of them before the connection is closed."""
        return self.hub.device_ack is not None

    def drain(self) -> None:
        """Prepare to close: what waits for a missing number waits no longer.

        A device that is told what is safe is read no more, and what was read is published: it sends again what it was not told
        of. Any other device is read until it has closed its side, and its lines have their turn like all others.
        """
        if self.transport is not None and not self._closing:
            if self.hub.device_ack is not None:
                self._pause(_DRAINING)
                self.transport.drain()
                self._publish_rest()
                self.deaf = True
            while self.holding:
                self.skip()

    def close_slow(self, why: str) -> None:
        """The device does not take what is written: close it, and put on record what waits.

        What was written counts as delivered. So it is not thrown away with a reset: the device has some time to take it.
        """
        if not self._closing:
            self.hub.slow(self, why)
            self._leave(f"too slow: {why}", "slow-device")
            self.transport.loseConnection()

    def _give_up(self, reason: str) -> None:
        """Put on record what was not handed over."""
        queue, self._queue = self._queue, None
        if queue is not None:
            self.hub.relieved(self)
            self.hub.unqueue(self, queue)
            for letter in queue:
                self._settle(letter, letter.fault or reason)
        if self._ordering is not None and self._ordering.held:
            held = self._ordering.clear()
            self.hub.release(self, held)
            for letter in held:
                self.hub.record(letter, letter.fault or "connection-closed")

    def connectionLost(self, reason: Failure) -> None:
        failure = None if reason.check(*EXPECTED) else reason
        try:
            self._wind_up(explain(reason))
        except Exception:
            failure = Failure()
        # Whatever went wrong, nobody may go on counting on it.
        self.hub.closed(self, failure)
        self.transport = None

    def _wind_up(self, reason: str) -> None:
        hub = self.hub
        # The device is gone, and the lines that it had finished are ours.
        self._publish_rest()
        hub.discarded(0, self.unread)
        unterminated = len(self._rest) + (len(self._long) if self._long is not None else 0)
        self._rest = b""
        self._long = None
        self._closing = self._closing or reason
        self._direct = False
        self._out = None
        self._give_up("connection-closed")
        if self._paused:
            self._paused = 0
            hub.unpaused(self)
        if self._in_line:
            hub.sink.leave(self)
        hub.emit(
            DeviceDisconnected(
                self.connection_id.decode(),
                self.device_id,
                self.transport.peer,
                self._closing,
                self.lines_in,
                self.lines_out,
                hub.clock.seconds() - self.opened,
                unterminated,
            )
        )


def _weight(letter: Letter) -> int:
    """How many bytes of the write buffer a waiting message takes."""
    return 0 if letter.fault is not None else len(letter.body)
