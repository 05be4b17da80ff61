"""The protocol of a device connection with a dialect, which translates between its lines and the back ends.

Without a dialect `DeviceProtocol` is used as it is. Here every line and every message goes through the dialect, which may be
code of the user: an exception that it raises closes its own connection only.

Theory of operation
===================

**Numbers.** For one received line a dialect may publish several lines, none, or one later (after a login, for example). So
received lines and published lines are numbered separately: `SettledLines` maps the confirms of published lines to
acknowledgements of received ones.

**Kept lines.** A line that cannot be published yet is kept in `_kept`, in order, up to `KEPT` bytes: while the dialect holds
publication (`hold`), while the sink accepts no lines, and behind other kept lines. A line published during `lineReceived` does
not wait for the sink, since the base class passes on a received line only when it can be published.

**End.** `_over` is set when the connection is hung up, rejected, failed or lost, and is never cleared. The dialect gets no line
and no time-out after that. When the connection is lost, kept lines are published first unless publication is held, since the
device will not send them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.python.failure import Failure

from ..dialects import Conversation, DeviceRefused, Dialect, Factory, Refused
from ..events import DeviceIdentified, DialectFailed, LoginFailed
from ..letter import DeliverySource, Letter
from ..supervision import explain
from .factory import DeviceFactory
from .housekeeping import TICK
from .protocol import WAIT_FOR_SINK, DeviceProtocol
from .settled_lines import SettledLines
from .sources import source_of

KEPT: Final = 65536
"""Maximum size in bytes of the kept lines of a connection, or the size of one line of maximum length if that is more. During
a login, which takes about a second, a device sends less."""

LINE_COST: Final = 64
"""Memory in bytes that a kept line is assumed to take in addition to its own bytes."""

LONGEST_DEVICE_ID: Final = 255
"""Maximum length of a device id in bytes. The id is published with every line."""


class DialectProtocol(DeviceProtocol):
    """Device connection whose lines and messages pass through a dialect; the `Conversation` that the dialect is given."""

    __slots__ = (
        "_answers",
        "_answers_size",
        "_dialect",
        "_failure",
        "_in_line_received",
        "_kept",
        "_kept_size",
        "_make",
        "_name",
        "_over",
        "_publication_held",
        "_received",
        "_settled_lines",
        "_timeout",
        "_timeout_of_device",
    )

    def __init__(self, make: Factory, dialect: str, factory: DeviceFactory, connection_id: bytes) -> None:
        """`dialect` is the name of the dialect for events."""
        super().__init__(factory, connection_id)
        self._make = make
        self._name = dialect
        self._dialect: Dialect | None = None
        self._failure: Failure | None = None
        self._over = False  # the dialect is no longer called
        self._received = 0
        self._settled_lines = SettledLines() if self.acknowledges else None
        self._publication_held = False
        self._kept: deque[tuple[bytes, float]] = deque()  # lines and the times they were received, in seconds since the epoch
        self._kept_size = 0
        self._in_line_received = False  # during a call of the dialect with a line: lines that it publishes are not held back
        self._answers: list[bytes] = []  # lines to the device that wait for the socket
        self._answers_size = 0
        self._timeout = 0.0
        self._timeout_of_device = False  # the time-out stops while the device is not read

    # -- from the device -------------------------------------------------------------------------------------------------

    def handshakeCompleted(self) -> None:
        """Register the connection, and create its dialect."""
        super().handshakeCompleted()
        try:
            self._dialect = self._make(self)
            self._dialect.connected()
        except Exception:
            self.fail(Failure())

    def linesReceived(self, lines: list[bytes]) -> int:
        return self._receive_each(lines)

    def lineReceived(self, line: bytes) -> None:
        if self._over or self._dialect is None:
            return
        self._received += 1
        self._in_line_received = True
        try:
            self._dialect.line(line)
        except Exception:
            self.fail(Failure())
            return
        finally:
            self._in_line_received = False
        lines = self._settled_lines
        if lines is not None:
            lines.add(self.seq + len(self._kept), self._confirmed)
            self._acknowledge_later()

    @property
    def lines_in(self) -> int:
        return self._received

    @property
    def held_back(self) -> bool:
        return self._publication_held

    def confirmed(self, seq: int) -> None:
        super().confirmed(seq)
        if self._settled_lines is not None:
            self._settled_lines.confirm(self._confirmed)

    def _acknowledge_later(self) -> None:
        lines = self._settled_lines
        if lines is not None and lines.settled > self._acknowledged and not self._ack_scheduled and not self._publication_held:
            self._ack_scheduled = True
            self.factory.turn.call_first(self._acknowledge_soon)

    def _acknowledge(self) -> None:
        lines = self._settled_lines
        # While publication is held the dialect has not decided about these lines: the answer to a login is written before its
        # acknowledgement, and a denied login gets none.
        if self._publication_held or lines is None or self._device_ack is None:
            return
        if lines.settled > self._acknowledged and self._can_write:
            self._acknowledged = lines.settled
            self.transport.write(self._device_ack(lines.settled - 1))

    # -- to the device ---------------------------------------------------------------------------------------------------

    def send(self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None:
        letter = Letter(source, tag, header, body, connection_id, seq)
        letter.fault = self.factory.framing.fault(body)
        self.post(letter)

    def _write_body(self, letter: Letter) -> bool:
        assert self._dialect is not None
        try:
            lines = self._dialect.outgoing(letter.body)
            if not isinstance(lines, Refused):
                lines = tuple(lines)
                for line in lines:
                    self._check(line)
        except Exception:
            self.fail(Failure())
            self._record(letter, "connection-closed")
            return False
        if isinstance(lines, Refused):
            self._record(letter, "refused-by-dialect")
            return False
        if lines and self._closing:
            self._record(letter, "connection-closed")
            return False
        for line in lines:
            self.sendLine(line)
        return True

    def _check(self, line: bytes) -> None:
        """Raise `ValueError` unless the bytes form exactly one line to the device."""
        framing = self.factory.framing
        fault = framing.fault(line)
        if fault == "too-long":
            raise ValueError(f"a line to the device is {len(line)} bytes long, more than {framing.max_body}")
        if fault == "delimiter-in-body":
            raise ValueError("a line to the device contains a delimiter")
        if fault is not None:
            raise ValueError(f"a line of {len(line)} bytes to the device does not fit into its framing")

    def resumeProducing(self) -> None:
        super().resumeProducing()
        answers, self._answers = self._answers, []
        self._answers_size = 0
        for line in answers:
            self.answer(line)

    # -- Conversation, for the dialect -----------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        return str(self.transport.peer) if self.transport is not None else ""

    @property
    def source(self) -> str:
        host = None if self.transport is None else self.transport.host
        return "" if host is None else source_of(host)

    @property
    def closed(self) -> bool:
        return self._over or bool(self._closing)

    def publish(self, line: bytes) -> None:
        if self._over:
            return
        received = self._received_at if self._in_line_received else 0.0
        accepting = self._in_line_received or (self.factory.sink.accepting and not self._awaiting_sink)
        if self._publication_held or self._kept or not accepting:
            self._keep(line, received or self.factory.now())
        else:
            self.factory.sink.publish(self, line, received)

    def _keep(self, line: bytes, received: float) -> None:
        self._kept.append((line, received))
        self._kept_size += len(line) + LINE_COST
        if self._kept_size > max(KEPT, self.factory.framing.max_line + LINE_COST):
            self.hang_up(f"more than {KEPT} bytes of lines that could not be published yet")
        elif not self._publication_held:
            self._wait_for_sink()

    def _publish_kept(self, at_once: bool = False) -> None:
        """Publish kept lines while the sink accepts them; with `at_once` all of them, since the connection ends."""
        if self._publication_held or self._over:
            return
        sink = self.factory.sink
        while self._kept and (at_once or sink.accepting):
            if not sink.spare:
                self._discard(len(self._kept))
                self._kept.clear()
                break
            line, received = self._kept.popleft()
            self._kept_size -= len(line) + LINE_COST
            sink.publish(self, line, received)
        if self._kept:
            self._wait_for_sink()

    def answer(self, line: bytes) -> None:
        if self.closed:
            return
        self._check(line)
        if self._can_write:
            self.sendLine(line)
            return
        self._answers.append(line)
        self._answers_size += len(line) + LINE_COST
        if self._answers_size > self.factory.settings.write_buffer:
            self.close_slow(f"more than {self.factory.settings.write_buffer} bytes wait for it")

    def hold(self) -> None:
        self._publication_held = True

    def release(self) -> None:
        self._publication_held = False
        self._publish_kept()
        self._acknowledge_later()

    def identify(self, device_id: str) -> None:
        if self._over:
            return
        if not device_id or not device_id.isprintable() or len(device_id.encode()) > LONGEST_DEVICE_ID:
            raise ValueError(f"a device id is 1 to {LONGEST_DEVICE_ID} bytes of printable text")
        if self.seq:
            raise RuntimeError("a line was published already, without this device id")
        if device_id == self.device_id:
            return
        factory = self.factory
        refusal = factory.refusal(device_id, self.transport)
        if refusal is not None:
            raise DeviceRefused(refusal.reason, reported=refusal.reported)
        factory.devices.remove(self)
        self.device_id = device_id
        self.template = factory.sink.open(self.connection_id, device_id)
        if self._closing:
            factory.emit(DeviceIdentified(self.connection_id.decode(), device_id))
            return  # a closing connection is no address, and must not close a newer one of its device
        factory.devices.add(self, factory.clock.seconds())
        factory.emit(DeviceIdentified(self.connection_id.decode(), device_id, self.since))
        factory.devices.replace_previous(self, self.peer)

    def login_failed(self, claimed_id: str | None, reason: str, unreported: int = 0) -> None:
        if not self.closed:
            self.factory.emit(
                LoginFailed(
                    self.connection_id.decode(),
                    self.device_id,
                    claimed_id,
                    self.peer,
                    reason,
                    unreported,
                    self.factory.door,
                    self.traceparent,
                )
            )

    def set_timeout(self, seconds: float, *, of_device: bool = False) -> None:
        if self.closed:
            return
        # At least one tick: a dialect that keeps setting a time-out that is already due would keep the current tick from
        # ending.
        self._timeout = max(seconds, TICK)
        self._timeout_of_device = of_device
        self.factory.timers.set(self, self.factory.clock.seconds() + self._timeout)

    def clear_timeout(self) -> None:
        self._timeout_of_device = False
        self.factory.timers.clear(self)

    def timed_out(self) -> None:
        """Tell the dialect that its time-out has passed."""
        if self.closed or self._dialect is None:
            return
        if self._timeout_of_device:
            if self._paused & WAIT_FOR_SINK:
                return  # the time-out starts again when reading resumes
            self._timeout_of_device = False
        try:
            self._dialect.timed_out()
        except Exception:
            self.fail(Failure())

    def hang_up(self, reason: str) -> None:
        if not self._over:
            self._over = self.discarding = True
            self.close(reason)

    def reject(self, reason: str) -> None:
        self._kept.clear()
        self._kept_size = 0
        self._over = True
        super().reject(reason)

    def fail(self, failure: Failure) -> None:
        if isinstance(failure.value, DeviceRefused):
            if not failure.value.reported:
                self.login_failed(None, str(failure.value))
            self.hang_up(str(failure.value))
        elif not self._over:
            self._over = self.discarding = True
            self._failure = failure
            self._emit_failure(failure)
            self.close("its dialect failed")

    def _emit_failure(self, failure: Failure) -> None:
        connection_id, door = self.connection_id.decode(), self.factory.door
        why = explain(failure)
        self.factory.emit(DialectFailed(connection_id, self.device_id, self._name, why, door, self.traceparent))

    # -- reading and closing --------------------------------------------------------------------------------------------

    def _unpause(self, reason: int) -> None:
        waited = self._paused & WAIT_FOR_SINK
        super()._unpause(reason)
        if waited and self._timeout_of_device and not self._paused & WAIT_FOR_SINK:
            self.set_timeout(self._timeout, of_device=True)

    def resume(self) -> None:
        self._publish_kept(at_once=self._uses_spare)
        super().resume()
        if self._kept and not self.closed:
            self._publish_kept()  # waits for the sink again if lines are left

    def drain(self) -> None:
        self._publish_kept(at_once=self.acknowledges)
        super().drain()

    def _begin_close(self, reason: str, outcome: str = "connection-closed") -> None:
        if self._answers:
            self._outgoing = (self._outgoing or []) + self._answers
            self._outgoing_size += sum(map(len, self._answers))
            self._answers = []
        super()._begin_close(reason, outcome)

    def _publish_rest(self) -> None:
        try:
            self._publish_kept(at_once=True)
        finally:
            super()._publish_rest()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        self._over = True
        self.factory.timers.clear(self)
        self._kept.clear()
        self._answers = []
        dialect, self._dialect = self._dialect, None
        if dialect is not None and self._failure is None:
            try:
                dialect.disconnected(self._closing)
            except Exception:
                self._failure = Failure()
                self._emit_failure(self._failure)
        if self._failure is not None:
            self.factory.connections.failed(self, self._failure)
            self._failure = None


def speaking(make: Factory, dialect: str) -> Callable[[DeviceFactory, bytes], DialectProtocol]:
    """Return the `protocol` of a `DeviceFactory` whose devices speak a dialect. `dialect` is its name for events."""

    def protocol(factory: DeviceFactory, connection_id: bytes) -> DialectProtocol:
        return DialectProtocol(make, dialect, factory, connection_id)

    return protocol


def _is_a_conversation(protocol: DialectProtocol) -> Conversation:
    return protocol
