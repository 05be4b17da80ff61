"""A device's connection with a dialect between its lines and the back ends.

Without a dialect there is none of this: `Endpoint` is used as it is. Here every line and every message goes through the
dialect, which may be anybody's code: what it raises ends its own connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.python.failure import Failure

from ..dialects import Conversation, Dialect, Factory, Refused
from ..events import DeviceIdentified, DialectFailed, LoginFailed
from ..letter import DeliverySource, Letter
from ..supervision import explain
from .admission import source_of
from .hub import TICK, Hub
from .marks import Marks
from .protocol import _WAITING, Endpoint

KEPT: Final = 65536
"""Bytes of lines that are kept while nothing is published, or the one line of full length: more than a device has to say in the
second or so that a login takes."""

LINE_COST: Final = 64
"""Bytes that a line which is kept costs beside its own."""

LONGEST_DEVICE_ID: Final = 255
"""Bytes. It goes with every line."""


class SpokenEndpoint(Endpoint):
    """A connected device, and its dialect's `Conversation` with it."""

    __slots__ = (
        "_answers",
        "_answers_size",
        "_dialect",
        "_failure",
        "_held_back",
        "_kept",
        "_kept_size",
        "_make",
        "_marks",
        "_name",
        "_of_device",
        "_over",
        "_patience",
        "_received",
        "_speaking",
    )

    def __init__(self, make: Factory, dialect: str, hub: Hub, connection_id: bytes, device_id: str | None) -> None:
        """`dialect` is its name, for people."""
        super().__init__(hub, connection_id, device_id)
        self._make = make
        self._name = dialect
        self._dialect: Dialect | None = None
        self._failure: Failure | None = None
        self._over = False  # the dialect is through with this connection
        self._received = 0
        self._marks = Marks() if hub.device_ack is not None else None
        self._held_back = False
        self._kept: deque[tuple[bytes, float]] = deque()  # each with when it was received, in seconds since the epoch
        self._kept_size = 0
        self._speaking = False  # the dialect is at work with a line that was read: what it publishes must go somewhere
        self._answers: list[bytes] = []  # wait for the socket
        self._answers_size = 0
        self._patience = 0.0
        self._of_device = False  # the time-out that is set waits while the device is not read

    # -- from the device -------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        super().connectionMade()
        try:
            self._dialect = self._make(self)
            self._dialect.connected()
        except Exception:
            self.fail(Failure())

    def lineReceived(self, line: bytes) -> None:
        if self._over or self._dialect is None:
            return
        self._received += 1
        self._speaking = True
        try:
            self._dialect.line(line)
        except Exception:
            self.fail(Failure())
            return
        finally:
            self._speaking = False
        marks = self._marks
        if marks is not None:
            marks.add(self.seq + len(self._kept), self._safe)
            self._tell_later()

    @property
    def lines_in(self) -> int:
        return self._received

    def confirmed(self, seq: int) -> None:
        super().confirmed(seq)
        if self._marks is not None:
            self._marks.confirm(self._safe)

    def _tell_later(self) -> None:
        marks = self._marks
        if marks is not None and marks.safe > self._told and not self._telling and not self._held_back:
            self._telling = True
            self.hub.turn.devices(self._tell_soon)

    def _tell(self) -> None:
        marks = self._marks
        # While publication is held the dialect has not decided about these lines: a login's answer goes before its
        # acknowledgement, and a denied one gets none.
        if self._held_back or marks is None or self.hub.device_ack is None:
            return
        if marks.safe > self._told and self._direct:
            self._told = marks.safe
            self.transport.write(self.hub.device_ack(marks.safe - 1))
            self._check_congestion()

    # -- to the device ---------------------------------------------------------------------------------------------------

    def send(
        self, source: DeliverySource, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None
    ) -> None:
        self.post(Letter(source, tag, header, body, connection_id, seq))

    def _say(self, letter: Letter) -> bool:
        assert self._dialect is not None
        try:
            lines = self._dialect.outgoing(letter.body)
            if not isinstance(lines, Refused):
                lines = tuple(lines)
                for line in lines:
                    self._check(line)
        except Exception:
            self.fail(Failure())
            self._settle(letter, "connection-closed")
            return False
        if isinstance(lines, Refused):
            self._settle(letter, "refused-by-dialect")
            return False
        if lines and self._closing:
            self._settle(letter, "connection-closed")
            return False
        for line in lines:
            self._write(line)
        return True

    def _check(self, line: bytes) -> None:
        """`ValueError`, if it is not a line."""
        framing = self.hub.framing
        if len(line) > framing.max_line:
            raise ValueError(f"a line to the device is {len(line)} bytes long, more than {framing.max_line}")
        if framing.forbidden.search(line):
            raise ValueError("there is a delimiter in a line to the device")

    def writable(self) -> None:
        super().writable()
        answers, self._answers = self._answers, []
        self._answers_size = 0
        for line in answers:
            self.answer(line)

    # -- what the dialect may do -----------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        return str(self.transport.peer) if self.transport is not None else ""

    @property
    def source(self) -> str:
        return source_of(self.transport.getPeer().host) if self.transport is not None else ""

    @property
    def closed(self) -> bool:
        return self._over or bool(self._closing)

    def publish(self, line: bytes) -> None:
        if self._over:
            return
        received = self._read_at if self._speaking else 0.0
        if self._held_back or self._kept or not (self._speaking or (self.hub.sink.accepting and not self._in_line)):
            self._keep(line, received or self.hub.now())
        else:
            self.hub.sink.publish(self, line, received)

    def _keep(self, line: bytes, received: float) -> None:
        self._kept.append((line, received))
        self._kept_size += len(line) + LINE_COST
        if self._kept_size > max(KEPT, self.hub.framing.max_line + LINE_COST):
            self.hang_up(f"more than {KEPT} bytes of lines that could not be published yet")
        elif not self._held_back:
            self._wait()

    def _publish_kept(self, at_once: bool = False) -> None:
        """Publish what was kept, as far as it is taken; `at_once`: all of it, since the connection ends."""
        if self._held_back or self._over:
            return
        sink = self.hub.sink
        while self._kept and (at_once or sink.accepting):
            if not sink.spare:
                self._discard(len(self._kept))
                self._kept.clear()
                break
            line, received = self._kept.popleft()
            self._kept_size -= len(line) + LINE_COST
            sink.publish(self, line, received)
        if self._kept:
            self._wait()

    def answer(self, line: bytes) -> None:
        if self.closed:
            return
        self._check(line)
        if self._direct:
            self._write(line)
            return
        self._answers.append(line)
        self._answers_size += len(line) + LINE_COST
        if self._answers_size > self.hub.write_buffer:
            self.close_slow(f"more than {self.hub.write_buffer} bytes wait for it")

    def hold(self) -> None:
        self._held_back = True

    def release(self) -> None:
        self._held_back = False
        self._publish_kept()
        self._tell_later()

    def identify(self, device_id: str) -> None:
        if self._over:
            return
        if not device_id or not device_id.isprintable() or len(device_id.encode()) > LONGEST_DEVICE_ID:
            raise ValueError(f"a device id is 1 to {LONGEST_DEVICE_ID} bytes of printable text")
        if self.seq:
            raise RuntimeError("a line was published already, without this device id")
        if device_id == self.device_id:
            return
        hub = self.hub
        hub.unidentified(self)
        self.device_id = device_id
        self.template = hub.sink.open(self.connection_id, device_id)
        hub.emit(DeviceIdentified(self.connection_id.decode(), device_id))
        if not self._closing:
            hub.identified(self, self.peer)  # or it would close a newer connection of its device

    def login_failed(self, claimed_id: str | None, reason: str, unreported: int = 0) -> None:
        if not self.closed:
            connection_id = self.connection_id.decode()
            self.hub.emit(LoginFailed(connection_id, self.device_id, claimed_id, self.peer, reason, unreported))

    def set_timeout(self, seconds: float, *, of_device: bool = False) -> None:
        if self.closed:
            return
        # Not before the next tick: one that is due at once, set again and again, would keep this tick for ever.
        self._patience = max(seconds, TICK)
        self._of_device = of_device
        self.hub.timers.set(self, self.hub.clock.seconds() + self._patience)

    def clear_timeout(self) -> None:
        self._of_device = False
        self.hub.timers.clear(self)

    def timed_out(self) -> None:
        """The time that the dialect asked for is over."""
        if self.closed or self._dialect is None:
            return
        if self._of_device:
            if self._paused & _WAITING:
                return  # it begins anew with reading
            self._of_device = False
        try:
            self._dialect.timed_out()
        except Exception:
            self.fail(Failure())

    def hang_up(self, reason: str) -> None:
        if not self._over:
            self._over = self.deaf = True
            self.close(reason)

    def reject(self, reason: str) -> None:
        self._kept.clear()
        self._kept_size = 0
        self._over = True
        super().reject(reason)

    def fail(self, failure: Failure) -> None:
        if not self._over:
            self._over = self.deaf = True
            self._failure = failure
            self.hub.emit(DialectFailed(self.connection_id.decode(), self.device_id, self._name, explain(failure)))
            self.close("its dialect failed")

    # -- reading, and the end --------------------------------------------------------------------------------------------

    def _unpause(self, reason: int) -> None:
        waited = self._paused & _WAITING
        super()._unpause(reason)
        if waited and self._of_device and not self._paused & _WAITING:
            self.set_timeout(self._patience, of_device=True)

    def resume(self) -> None:
        self._publish_kept(at_once=self._uses_spare)
        super().resume()
        if self._kept and not self.closed:
            self._publish_kept()  # it has begun to wait anew, if it must

    def drain(self) -> None:
        self._publish_kept(at_once=self.acknowledges)
        super().drain()

    def _leave(self, reason: str, outcome: str = "connection-closed") -> None:
        if self._answers:
            self._out = (self._out or []) + self._answers
            self._answers = []
        super()._leave(reason, outcome)

    def connectionLost(self, reason: Failure) -> None:
        self._publish_kept(at_once=True)
        super().connectionLost(reason)
        self._over = True
        self.hub.timers.clear(self)
        self._kept.clear()
        self._answers = []
        dialect, self._dialect = self._dialect, None
        if dialect is not None and self._failure is None:
            try:
                dialect.disconnected(self._closing)
            except Exception:
                self._failure = Failure()
                self.hub.emit(DialectFailed(self.connection_id.decode(), self.device_id, self._name, explain(self._failure)))
        if self._failure is not None:
            self.hub.failed(self, self._failure)
            self._failure = None


def speaking(make: Factory, dialect: str) -> Callable[[Hub, bytes, str | None], Endpoint]:
    """What makes the endpoints of a listener whose devices speak a dialect; `dialect` is its name, for people."""

    def endpoint(hub: Hub, connection_id: bytes, device_id: str | None) -> Endpoint:
        return SpokenEndpoint(make, dialect, hub, connection_id, device_id)

    return endpoint


def _is_a_conversation(endpoint: SpokenEndpoint) -> Conversation:
    return endpoint
