"""The devices of one process: non-blocking sockets with OpenSSL on them, and an epoll loop of its own.

No reactor: what a line costs here is taken from what the measurement is of. A device is a socket, an OpenSSL object with its
Python one, and a few numbers.

    connecting ─▶ handshaking ─▶ up ─▶ closing ─▶ gone
"""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL

from ...errors import ConfigError
from . import _tls
from ._books import Book, Pace, Tally
from ._histogram import Histogram
from ._lines import LineTemplate, ack_pattern
from ._plan import Plan

SEND_BUFFER: Final = 8192
"""Bytes of a flood that wait in a socket, as the system counts them; some 70 lines."""
RECORD: Final = 16384
"""Bytes read at once: the most that a TLS record holds (RFC 8446, 5.1), so that none of it is left in OpenSSL's buffer."""
LONGEST: Final = 1 << 20
"""Bytes without a delimiter, after which it is not lines that the other side speaks."""
BURST: Final = 64
"""Lines said before the loop looks at what came: some 2 ms of work, so that answers are not timed late."""
DIALS: Final = 32
"""Connections begun before the loop looks at the others."""
HOPELESS: Final = 8
"""So many failures without one success are a mistake of the person's, or a gateway that is not there: the parent is told."""
TICKET: Final = 1.0
"""Seconds that a storm waits for a session ticket before it closes."""
GOODBYE: Final = 5.0
"""Seconds that the gateway has to answer a close."""
HURRY: Final = 2.0
"""Seconds to wait for answers when somebody has pressed Ctrl-C."""
PROGRESS: Final = 0.25
"""Seconds between two reports to the parent."""

SWEEP: Final = 50_000_000
"""Nanoseconds between two looks at what takes too long."""

_RESET: Final = struct.pack("ii", 1, 0)
_BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of Linux's in.h: the port is chosen at connect(), when it is known towards whom it must be free."""
_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000

CONNECTING, HANDSHAKING, UP, CLOSING, GONE = range(5)

clock = time.monotonic_ns


class Hopeless(Exception):
    """No connection can succeed, whatever the gateway does; the text says why in one line."""


class Device:
    """One connection."""

    __slots__ = ("acked", "began", "book", "fd", "index", "pending", "queued", "rest", "resumed", "sock", "state", "tls")

    def __init__(self, index: int, sock: socket.socket, book: Book, began: int) -> None:
        self.index = index
        self.sock = sock
        self.fd = sock.fileno()
        self.tls: SSL.Connection | None = None
        self.state = CONNECTING
        self.book = book
        self.began = began
        self.acked = 0
        self.rest = b""
        self.pending = b""
        self.queued = False
        self.resumed: bool | None = None
        """Whether the session was; `None` where none was offered."""


class Deadlines:
    """Devices that must have left a state within a time that is the same for all."""

    __slots__ = ("_state", "_time", "_waiting")

    def __init__(self, state: int, seconds: float) -> None:
        self._state = state
        self._time = int(seconds * _SECOND)
        self._waiting: deque[tuple[int, Device]] = deque()

    def add(self, device: Device, now: int) -> None:
        self._waiting.append((now + self._time, device))

    def expired(self, now: int) -> list[Device]:
        late = []
        waiting = self._waiting
        while waiting and (waiting[0][1].state > self._state or waiting[0][0] <= now):
            device = waiting.popleft()[1]
            if device.state <= self._state:
                late.append(device)
        return late


class Counts:
    """What has happened so far."""

    __slots__ = ("acked", "bytes", "dropped", "failed", "reasons", "resumed", "said", "tally", "up", "written")

    def __init__(self) -> None:
        self.up = 0
        """Connections whose handshake was completed."""
        self.resumed = 0
        self.failed = 0
        self.dropped = 0
        """Connections that ended without us having ended them."""
        self.reasons: Counter[str] = Counter()
        self.said = 0
        self.written = 0
        """Lines that went to the system as a whole."""
        self.bytes = 0
        """Of these lines, with delimiters, inside TLS."""
        self.acked = 0
        self.tally = Tally()

    def dump(self) -> dict[str, Any]:
        tally = self.tally
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in ("tally", "reasons")},
            **{name: getattr(tally, name) for name in tally.__slots__},
            "reasons": dict(self.reasons),
        }


class Devices:
    """All devices of one process."""

    def __init__(
        self, plan: Plan, progress: Callable[[dict[str, Any]], None], hopeless: Callable[[dict[str, Any]], None]
    ) -> None:
        """`progress` and `hopeless` take the counts so far. `ConfigError` where a file is not what it should be."""
        self._plan = plan
        self._progress = progress
        self._hopeless = hopeless
        self._enough = min(HOPELESS, plan.connections or HOPELESS)
        self._verdict = _tls.Verdict()
        self._pairs = _tls.Pairs(plan.cert, plan.key)
        self._context = _tls.context(plan.ca, plan.insecure, self._pairs.one, self._verdict, resume=plan.resume)
        self._identity = _tls.Identity(plan.server_name)
        self._hello = self._identity.hello
        self._family, self._address = _place(plan)
        self._sessions: dict[int, SSL.Session] = {}

        template = LineTemplate(plan.line, plan.size)
        self._line = template.line
        self._timed = "time" in template.fields
        self._answer = template.pattern().search if plan.mode == "echo" else None
        self._named = "device" in template.fields
        self._ack = ack_pattern(plan.device_ack).fullmatch if plan.device_ack is not None else None

        self.counts = Counts()
        self.connect_times = Histogram()
        self.latency = Histogram()
        """From when a line was due to its answer."""
        self.service = Histogram() if plan.rate else self.latency  # without a schedule a line is due when it is written
        """From when a line was written to its answer."""
        self.lateness = Histogram()
        """From when a line was due until it was written, where nothing but this process was the reason."""
        self.held = 0
        """Lines that were written late because every connection had lines to be answered, or a socket that took no more."""
        self.lost = 0

        # The first descriptor of all, so that `select` may be asked for it however many there will be.
        self._epoll = select.epoll()
        self._devices: dict[int, Device] = {}
        self._begun = 0
        self._flying = 0
        self._ready: deque[Device] = deque()
        self._stormy = plan.mode == "storm"
        self._scheduled = bool(plan.rate)
        self._limits = (
            Deadlines(HANDSHAKING, plan.connect_timeout),
            Deadlines(UP, TICKET),
            Deadlines(CLOSING, GOODBYE),
        )
        self._ticketless = 0
        self._held_to = 0
        self._swept = 0
        self._reported = 0
        self.stopped = False
        self._alone = False
        self._asked = b""
        self._epoll.register(0, select.EPOLLIN)

    # -- what the parent says ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        data = os.read(0, 4096)
        self._asked += data
        if not data or b"stop\n" in self._asked:
            # The parent is gone, or wants an end.
            self.stopped = True
            self._alone = not data
            self._epoll.unregister(0)

    def _told(self, word: bytes) -> bool:
        return word in self._asked

    # -- the loop ------------------------------------------------------------------------------------------------------------

    def _turn(self, timeout: float) -> int:
        """Wait so many seconds for something, and serve it. The time after."""
        ready = True
        if 0 < timeout < 0.005:
            # epoll counts in milliseconds, and rounds up: as much as an answer takes.
            ready = bool(select.select([self._epoll], (), (), timeout)[0])
            timeout = 0
        for fd, events in self._epoll.poll(timeout, 256) if ready else ():
            device = self._devices.get(fd)
            if device is None:
                if fd == 0 and not self.stopped:
                    self._listen()
            elif device.state == UP:
                if events & select.EPOLLOUT:
                    self._write_on(device)
                if events & ~select.EPOLLOUT and device.state == UP:
                    self._hear(device)
            elif device.state == CLOSING:
                self._say_goodbye(device)
            else:
                self._shake(device)
        now = clock()
        if now > self._swept:
            self._swept = now + SWEEP
            self._sweep(now)
        return now

    def _sweep(self, now: int) -> None:
        """End what took too long, and say how far we are."""
        connecting, ticketing, closing = self._limits
        for device in connecting.expired(now):
            self._fail(device, "no handshake in time" if device.state == HANDSHAKING else "no connection in time")
        for device in ticketing.expired(now):
            # A gateway that gives out no tickets is not waited for again and again.
            self._ticketless += not self._sessions
            self._close(device)
        for device in closing.expired(now):
            self._reset(device)
        if now > self._reported:
            self._reported = now + int(PROGRESS * _SECOND)
            self._progress(self.counts.dump())

    # -- connecting ----------------------------------------------------------------------------------------------------------

    def _dial(self, now: int) -> None:
        plan = self._plan
        index = plan.first + self._begun
        self._begun += 1
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise Hopeless(f"a socket: {_tls.failure(error)}; 'ulimit -n' and --processes") from None
        device = Device(index, sock, Book(self.counts.tally), now)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if plan.mode == "flood":
                # The system's own buffer grows to megabytes for each connection: for seconds more lines than any gateway
                # takes would be written, and what that costs is missed elsewhere.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if plan.sources:
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                sock.bind((plan.sources[index % len(plan.sources)], 0))
            number = sock.connect_ex(self._address)
        except OSError as error:
            number = error.errno or errno.EIO
        self._flying += 1
        if number not in (0, errno.EINPROGRESS):
            self._fail(device, _refusal(number))
            return
        self._devices[device.fd] = device
        self._epoll.register(device.fd, select.EPOLLIN | select.EPOLLOUT)
        self._limits[0].add(device, now)

    def _shake(self, device: Device) -> None:
        if device.state == CONNECTING:
            number = device.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._fail(device, _refusal(number))
                return
            device.state = HANDSHAKING
            try:
                device.tls = self._new_tls(device)
            except (ConfigError, SSL.Error) as error:
                raise Hopeless(str(error)) from None
            # It says something once, and then listens.
            self._epoll.modify(device.fd, select.EPOLLIN)
        tls = device.tls
        assert tls is not None
        verdict = self._verdict
        verdict.asked, verdict.problem = False, None
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            # TLS 1.2 verifies one flight before the end.
            if verdict.asked and device.resumed:
                device.resumed = False
            return
        except SSL.WantWriteError:
            self._epoll.modify(device.fd, select.EPOLLIN | select.EPOLLOUT)
            return
        except (SSL.Error, OSError) as error:
            self._fail(device, verdict.problem or _tls.failure(error))
            return
        if verdict.asked and device.resumed:
            device.resumed = False
        if not self._plan.insecure and not device.resumed:
            problem = self._identity.wrong(tls.get_peer_certificate(as_cryptography=True))
            if problem:
                self._fail(device, problem)
                return
        self._connected(device)

    def _new_tls(self, device: Device) -> SSL.Connection:
        tls = SSL.Connection(self._context, device.sock)
        tls.set_connect_state()
        if self._hello:
            tls.set_tlsext_host_name(self._hello)
        number = 0
        if self._pairs.many:
            number, cert, key = self._pairs.of(device.index)
            certificate, private = _tls.load_pair(cert, key)
            tls.use_certificate(certificate)
            tls.use_privatekey(private)
        if self._plan.resume:
            session = self._sessions.get(number)
            if session is not None:
                tls.set_session(session)
                device.resumed = True  # until a certificate shows that it was not
        return tls

    def _connected(self, device: Device) -> None:
        now = clock()
        counts = self.counts
        counts.up += 1
        counts.resumed += device.resumed is True
        self.connect_times.add((now - device.began) // 1000)
        self._flying -= 1
        device.state = UP
        if not self._stormy:
            self._free(device)
        elif self._plan.resume and self._ticketless < HOPELESS:
            self._limits[1].add(device, now)
        else:
            self._close(device)
        if self._plan.resume and device.state == UP and not self._modern(device):
            self._ticket(device)  # it came within the handshake

    @staticmethod
    def _modern(device: Device) -> bool:
        assert device.tls is not None
        return device.tls.get_protocol_version_name() == "TLSv1.3"

    def _fail(self, device: Device, reason: str) -> None:
        counts = self.counts
        counts.failed += 1
        counts.reasons[reason] += 1
        self._flying -= 1
        self._forget(device)
        if not counts.up and counts.failed == self._enough:
            # It goes on: where other processes have connections, these are failures among successes.
            self._hopeless(counts.dump())

    def connect(self) -> float:
        """Open all connections, or in a storm, open and close them until the time is over. How long it took, in seconds."""
        plan = self._plan
        most = plan.connections
        rate = plan.connect_rate
        began = now = clock()
        end = began + int(plan.seconds * _SECOND) if self._stormy else None
        while not self.stopped and (end is None or now < end):
            due = most if most or not self._stormy else self._begun + DIALS
            if rate:
                due = min(due if most else self._begun + DIALS, int((now - began) / _SECOND * rate) + 1)
            dials = min(DIALS, due - self._begun, plan.connecting - (len(self._devices) if self._stormy else self._flying))
            for _ in range(dials):
                self._dial(clock())
            if self._begun >= most and not self._flying and (not self._stormy or (most and not self._devices)):
                break
            more = (not most and self._stormy) or self._begun < most
            wait = 0.05
            if more and dials == DIALS:
                wait = 0
            elif more and rate:
                wait = min(wait, max(0.0002, self._begun / rate - (clock() - began) / _SECOND))
            now = self._turn(wait)
        while self._stormy and self._flying and not self.stopped:
            # The time is over; those under way come to their end, which is no later than their timeout.
            self._turn(0.05)
        # What is up stays: looking through all of it for garbage would hold everything up for as long as it takes.
        gc.collect()
        gc.freeze()
        return (clock() - began) / _SECOND

    def wait(self) -> None:
        """Serve the connections until the other processes have theirs."""
        while not self._told(b"go\n") and not self.stopped:
            self._turn(0.1)

    # -- talking -------------------------------------------------------------------------------------------------------------

    def _free(self, device: Device) -> None:
        """The device may say something, if it may."""
        if device.queued or device.pending or device.state != UP:
            return
        limit = self._plan.in_flight
        if limit:
            waiting = len(device.book.waiting) if self._answer else device.book.said - device.acked
            if waiting >= limit:
                return
        device.queued = True
        self._ready.append(device)

    def _say(self, device: Device, due: int | None) -> None:
        book = device.book
        line = self._line(book.said, device.index, time.time_ns() // _MS if self._timed else 0) + b"\n"
        now = clock()
        if due is None:
            due = now
        if self._answer:
            book.say(due, now)
        else:
            book.said += 1
        counts = self.counts
        counts.said += 1
        if counts.said <= self._held_to:
            self.held += 1
        elif self._scheduled:
            self.lateness.add((now - due) // 1000)
        try:
            assert device.tls is not None
            sent = device.tls.send(line)
        except (SSL.WantWriteError, SSL.WantReadError):
            sent = 0
        except (SSL.Error, OSError) as error:
            self._drop(device, _tls.failure(error))
            return
        if sent == len(line):
            counts.written += 1
            counts.bytes += sent
            self._free(device)
        else:
            device.pending = line[sent:]
            counts.bytes += sent
            self._epoll.modify(device.fd, select.EPOLLIN | select.EPOLLOUT)

    def _write_on(self, device: Device) -> None:
        if device.pending:
            assert device.tls is not None
            try:
                sent = device.tls.send(device.pending)
            except (SSL.WantWriteError, SSL.WantReadError):
                return
            except (SSL.Error, OSError) as error:
                self._drop(device, _tls.failure(error))
                return
            self.counts.bytes += sent
            device.pending = device.pending[sent:]
            if device.pending:
                return
            self.counts.written += 1
        self._epoll.modify(device.fd, select.EPOLLIN)
        self._free(device)

    def _hear(self, device: Device) -> None:
        assert device.tls is not None
        try:
            data = device.tls.recv(RECORD)
        except (SSL.WantReadError, SSL.WantWriteError):
            # A ticket, most likely.
            self._ticket(device)
            return
        except (SSL.Error, OSError) as error:
            self._drop(device, _tls.failure(error))
            return
        if self._stormy:
            self._ticket(device)
            return
        lines = (device.rest + data).split(b"\n")
        rest = lines.pop()
        if len(rest) > LONGEST:
            self._drop(device, "what it sends has no end of line")
            return
        device.rest = rest
        now = clock()
        for line in lines:
            if self._ack is not None and (match := self._ack(line.rstrip(b"\r"))) is not None:
                acked = int(match[1]) + 1
                if device.acked < acked <= device.book.said:
                    self.counts.acked += acked - device.acked
                    device.acked = acked
                else:
                    self.counts.tally.strange += 1
            elif self._answer is None:
                pass  # nobody asked what it means
            elif (match := self._answer(line)) is None or (self._named and int(match["device"]) != device.index):
                self.counts.tally.strange += 1
            elif (times := device.book.hear(int(match["n"]))) is not None:
                self.latency.add((now - times[0]) // 1000)
                if self._scheduled:
                    self.service.add((now - times[1]) // 1000)
        self._free(device)

    def _ticket(self, device: Device) -> None:
        """The gateway said something that is no line: a session to resume, where that is wanted."""
        if not self._plan.resume:
            return
        assert device.tls is not None
        number = self._pairs.of(device.index)[0] if self._pairs.many else 0
        session = device.tls.get_session()
        if session is not None:
            self._sessions[number] = session
        if self._stormy:
            self._close(device)

    def talk(self) -> float:
        """Say lines for the time that was asked for. How long that took, in seconds."""
        plan = self._plan
        start = now = clock()
        end = start + int(plan.seconds * _SECOND)
        pace = Pace(start, plan.rate, plan.seconds) if plan.rate else None
        tick = int(plan.tick * _SECOND)
        ready = self._ready
        while now < end and not self.stopped and self._devices:
            due = BURST if pace is None else min(BURST, pace.due(now))
            while due > 0 and ready:
                device = ready.popleft()
                device.queued = False
                if device.state != UP:
                    continue
                if pace is None:
                    self._say(device, None)
                else:
                    when = pace.next
                    pace.said += 1
                    self._say(device, when)
                due -= 1
            if pace is None:
                timeout = 0 if ready else 0.05
            elif due > 0:
                # Nobody may say them: from here on it is not us who are late.
                self._held_to = self.counts.said + pace.due(clock())
                timeout = 0.05
            else:
                wake = pace.next if pace.said < pace.total else end
                if tick:
                    wake = start - (start - wake) // tick * tick
                timeout = max(0.0, (min(wake, end) - clock()) / _SECOND)
            now = self._turn(min(timeout, PROGRESS))
        return (clock() - start) / _SECOND

    def settle(self) -> None:
        """Wait for what is under way: lines that are not written, answered, or acknowledged."""
        if self._stormy or self._plan.mode == "hold":
            return
        grace = self._plan.grace if not self.stopped else min(self._plan.grace, HURRY)
        end = clock() + int(grace * _SECOND)
        devices = [device for device in self._devices.values() if self._owed(device)]
        while devices and not self._alone and clock() < end:
            self._turn(0.05)
            devices = [device for device in devices if self._owed(device)]
        self.lost += sum(len(device.book.waiting) for device in self._devices.values())

    def _owed(self, device: Device) -> bool:
        return device.state == UP and bool(
            device.pending or device.book.waiting or (self._ack is not None and device.acked < device.book.said)
        )

    # -- the end -------------------------------------------------------------------------------------------------------------

    def _drop(self, device: Device, reason: str) -> None:
        """An open connection has ended, and not by us."""
        if self._stormy:
            self._forget(device)
            return
        self.counts.dropped += 1
        self.counts.reasons[reason] += 1
        self.lost += len(device.book.waiting)
        self._forget(device)

    def _close(self, device: Device) -> None:
        """Say goodbye, and let the gateway close: then the port that waits in TIME_WAIT is not one of ours."""
        device.state = CLOSING
        self._limits[2].add(device, clock())
        try:
            assert device.tls is not None
            device.tls.shutdown()
        except (SSL.Error, OSError):
            self._reset(device)

    def _say_goodbye(self, device: Device) -> None:
        assert device.tls is not None
        try:
            device.tls.recv(RECORD)
        except SSL.WantReadError:
            pass
        except (SSL.ZeroReturnError, SSL.SysCallError):
            # It has closed its side of TLS; its FIN is there, or comes with it, and its TIME_WAIT is not ours.
            self._forget(device)
        except (SSL.Error, OSError):
            self._reset(device)

    def _reset(self, device: Device) -> None:
        try:
            device.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # it is gone already
        self._forget(device)

    def _forget(self, device: Device) -> None:
        device.state = GONE
        self._devices.pop(device.fd, None)
        device.sock.close()
        device.tls = None

    def close(self) -> None:
        """Close all connections, a few thousand at a time."""
        open_ones = list(self._devices.values())
        for number, device in enumerate(open_ones):
            if device.state == UP:
                self._close(device)
            elif device.state < UP:
                self._reset(device)
            if number % 256 == 0:
                self._turn(0)
        while self._devices:
            self._turn(0.05)


def _place(plan: Plan) -> tuple[int, Any]:
    """Where to connect to: of several addresses the first at which something answers. `Hopeless`."""
    family = 0
    if plan.sources:
        family = socket.AF_INET6 if ":" in plan.sources[0] else socket.AF_INET
    try:
        found = socket.getaddrinfo(plan.host, plan.port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Hopeless(f"{plan.host}: {_tls.failure(error)}") from None
    if len(found) > 1:
        # "localhost" is ::1 as well, and the gateway may listen on one of them only.
        for kind, _, _, _, address in found:
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.settimeout(plan.connect_timeout)
                if not probe.connect_ex(address):
                    return kind, address
    return found[0][0], found[0][4]


def _refusal(number: int) -> str:
    if number == errno.EADDRNOTAVAIL:
        return "no local address or port is left; more addresses with --source"
    return os.strerror(number).lower()
