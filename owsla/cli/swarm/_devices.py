"""The devices of one process of a swarm.

Theory of operation
-------------------
A device is a non-blocking socket, with OpenSSL on it unless `--plain`, and a few numbers. It passes through these states,
always forward:

    CONNECTING ──▶ HANDSHAKING ──▶ UP ──▶ CLOSING ──▶ GONE

    from           to            when
    CONNECTING     HANDSHAKING   the socket is connected
    HANDSHAKING    UP            the handshake is complete; in a storm CLOSING follows at once, or after the session ticket
    CONNECTING     UP            the same without TLS (`--plain`)
    either         GREETING      in place of UP, with MQTT: until the server has accepted the connection and the subscription
    GREETING       UP            it has
    UP             CLOSING       the swarm has sent close_notify, or without TLS the end of the stream
    CLOSING        GONE          the gateway has closed its side too, or took longer than `CLOSE_TIMEOUT`
    any            GONE          the connection failed (before UP), was dropped by the gateway (UP), or timed out

A device that is UP and may send a line is in the queue `_ready`, at most once (`Device.queued`). It leaves the queue when it
sends, and comes back when the line is written and the limit of lines in flight allows another. So all devices take turns.

A process runs the phases `connect`, `wait`, `send_lines`, `settle` and `close` one after the other. Each calls
`EventLoop.run_once`, so the devices are served in all of them. A storm has the first and the last only.
"""

from __future__ import annotations

import gc
import math
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL

from . import _tls
from ._conversation import Conversation
from ._device import CLOSING, CONNECTING, GONE, GREETING, HANDSHAKING, SECOND, UP, Device, StateDeadlines
from ._dialer import Dialer, connect_error
from ._errors import SwarmError
from ._loop import READ, WRITE, EventLoop
from ._measurements import Measurements
from ._mqtt_conversation import MQTTConversation
from ._parent_input import ParentInput
from ._plan import Plan
from ._proxy import ProxyHeaders
from ._schedule import Schedule

RECORD: Final = 16384
"""Bytes read at once: the maximum of a TLS record (RFC 8446, section 5.1), so no part of one stays in the buffer of OpenSSL."""
WRITES: Final = 64
"""Writes before the loop looks at what was received: about 2 ms of work, so that answers are not timed late."""
DIALS: Final = 32
"""Connections begun before the loop looks at the others."""
FIRST_FAILURES: Final = 8
"""Number of failures without any success after which the parent is told: a mistake in the command, or no gateway there."""
WITHOUT_TICKET: Final = 8
"""Number of connections without a session ticket after which a storm no longer waits for one."""
TICKET_TIMEOUT: Final = 1.0
"""Seconds that a storm waits for a session ticket before it closes a connection."""
CLOSE_TIMEOUT: Final = 5.0
"""Seconds that the gateway has for answering a close."""
SHORT_LIVED: Final = 1.0
"""Seconds: the gateway closes connections without TLS within this time if it expects something else, such as TLS."""
GRACE_AFTER_STOP: Final = 2.0
"""Seconds to wait for answers after Ctrl-C."""
PROGRESS: Final = 0.25
"""Seconds between two reports to the parent."""

_ALERT: Final = re.compile(rb"\x15\x03[\x00-\x04]\x00\x02..", re.DOTALL)
"""A TLS alert (RFC 8446, section 6): the answer of a server that expects TLS."""

_TOO_LATE: Final = {
    CONNECTING: "no connection in time",
    HANDSHAKING: "no handshake in time",
    GREETING: "not accepted in time",
}
"""Reasons for which a device fails that stays in a state."""

_RESET: Final = struct.pack("ii", 1, 0)
"""The `struct linger` with which close() sends a reset."""

clock = time.monotonic_ns

SendCounts = Callable[[dict[str, Any]], None]
"""A function that sends counts to the parent."""


class SimulatedDevices:
    """All devices of one process."""

    def __init__(self, plan: Plan, progress: SendCounts, all_failed: SendCounts) -> None:
        """Prepare the connections. Raise `ConfigError` for a file that cannot be used, and `SwarmError` without an address."""
        self._plan = plan
        self._progress = progress
        self._all_failed = all_failed
        self._storm = plan.mode == "storm"
        self.measured = Measurements(scheduled=bool(plan.rate))
        self._counts = self.measured.counts
        self._tls = None if plan.plain else _tls.TLSClient(plan)
        self._proxy = None if plan.proxy is None else ProxyHeaders(plan.proxy, plan.proxy_cn)
        self._dialer = Dialer(plan, self._counts.answers)
        self._conversation = (MQTTConversation if plan.protocol == "mqtt" else Conversation)(plan, self.measured)
        self._parent = ParentInput()
        self._loop = EventLoop(self._parent, self._on_ready, self._sweep)
        self._ready: deque[Device] = deque()
        self._in_progress = 0
        self._connecting = StateDeadlines(GREETING, plan.connect_timeout)
        self._ticketing = StateDeadlines(UP, TICKET_TIMEOUT)
        self._closing = StateDeadlines(CLOSING, CLOSE_TIMEOUT)
        self._ticketless = 0
        self._heard = False
        self._short_lived = 0
        self._reported = 0

    # -- events ----------------------------------------------------------------------------------------------------------------

    def _on_ready(self, device: Device, events: int) -> None:
        if device.state == UP:
            if events & WRITE:
                self._write_pending(device)
            if events & ~WRITE and device.state == UP:
                self._read(device)
        elif device.state == CLOSING:
            self._read_close(device)
        else:
            self._go_on_connecting(device)

    def _sweep(self, now: int) -> None:
        """End what takes too long, and report progress."""
        for device in self._connecting.expired(now):
            self._fail(device, _TOO_LATE[device.state])
        for device in self._ticketing.expired(now):
            self._ticketless += self._tls is not None and not self._tls.has_session
            self._close(device)
        for device in self._closing.expired(now):
            self._reset(device)
        if now > self._reported:
            self._reported = now + int(PROGRESS * SECOND)
            self._progress(self._counts.dump())

    # -- connecting ------------------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        now = clock()
        device, problem = self._dialer.dial(now)
        self._in_progress += 1
        if problem is not None:
            self._fail(device, problem)
            return
        self._loop.add(device)
        self._connecting.add(device, now)

    def _go_on_connecting(self, device: Device) -> None:
        if device.state == CONNECTING:
            problem = connect_error(device)
            if problem is not None:
                self._fail(device, problem)
                return
            problem = self._send_proxy_header(device)
            if problem is not None:
                self._fail(device, problem)
                return
            self._loop.watch(device, READ)
            if self._tls is None:
                self._greet(device)
                return
            device.state = HANDSHAKING
            # The client writes first and then waits for the server.
            self._tls.start(device)
        if device.state == GREETING:
            self._read_greeting(device)
            return
        assert self._tls is not None
        try:
            self._tls.handshake(device)
        except SSL.WantReadError:
            pass
        except SSL.WantWriteError:
            self._loop.watch(device, READ | WRITE)
        except _tls.HandshakeError as error:
            self._fail(device, str(error))
        else:
            self._greet(device)

    def _greet(self, device: Device) -> None:
        """Send the greeting of the protocol, if it has one."""
        greeting = self._conversation.greeting(device)
        if not greeting:
            self._connected(device)
            return
        device.state = GREETING
        try:
            if device.stream.send(greeting) != len(greeting):
                self._fail(device, "the greeting did not fit into the socket")
        except (SSL.Error, OSError) as error:
            self._fail(device, _tls.failure(error))

    def _read_greeting(self, device: Device) -> None:
        try:
            data = device.stream.recv(RECORD)
            if not data:
                raise SwarmError("closed by the gateway")
            if self._conversation.greeted(device, data):
                self._connected(device, greeted=True)
                if device.state == UP:
                    self._reply(device)
        except (SSL.WantReadError, SSL.WantWriteError, BlockingIOError):
            pass
        except SwarmError as error:
            self._fail(device, str(error))
        except (SSL.Error, OSError) as error:
            self._fail(device, _tls.failure(error))

    def _send_proxy_header(self, device: Device) -> str | None:
        """Send the PROXY protocol header, if there is one. Return why that failed, or `None`."""
        if self._proxy is None:
            return None
        try:
            header = self._proxy.header(device.index, device.sock)
            return None if device.sock.send(header) == len(header) else "the PROXY protocol header did not fit into the socket"
        except OSError as error:
            return _tls.failure(error)

    def _connected(self, device: Device, *, greeted: bool = False) -> None:
        now = clock()
        counts = self._counts
        counts.up += 1
        counts.resumed += device.resumed is True
        self.measured.connect_times.add((now - device.began) // 1000)
        self._in_progress -= 1
        device.state = UP
        if not self._storm:
            self._queue(device)
        elif not self._plan.resume or self._ticketless >= WITHOUT_TICKET:
            self._close(device)
        elif not greeted:
            self._ticketing.add(device, now)
        if self._plan.resume and device.state == UP:
            assert device.tls is not None
            # Before TLS 1.3 the ticket comes within the handshake, and in TLS 1.3 before the answer to a greeting.
            if greeted or device.tls.get_protocol_version_name() != "TLSv1.3":
                self._keep_session(device)

    def _keep_session(self, device: Device) -> None:
        if self._plan.resume:
            assert self._tls is not None
            self._tls.keep_session(device)
            if self._storm:
                self._close(device)

    def _fail(self, device: Device, reason: str) -> None:
        counts = self._counts
        counts.failed += 1
        counts.reasons[reason] += 1
        self._in_progress -= 1
        self._forget(device)
        if not counts.up and counts.failed == min(FIRST_FAILURES, self._plan.connections or FIRST_FAILURES):
            # The process goes on. If another one has connections, these failures are a result; else the parent gives up.
            self._all_failed(counts.dump())

    def connect(self) -> float:
        """Open all connections, or in a storm open and close them until the time is over. Return the seconds it took."""
        plan, dialer, devices = self._plan, self._dialer, self._loop.devices
        total = plan.connections or math.inf
        began = now = clock()
        end = began + int(plan.seconds * SECOND) if self._storm else math.inf
        while not self._parent.stopped and now < end:
            due = total
            if plan.connect_rate:
                due = min(due, int((now - began) / SECOND * plan.connect_rate) + 1)
            room = plan.connecting - (len(devices) if self._storm else self._in_progress)
            dials = int(min(DIALS, due - dialer.begun, room))
            for _ in range(dials):
                self._dial()
            if dialer.begun >= total and not self._in_progress and not (self._storm and devices):
                break
            wait = 0.05
            if dialer.begun < total:
                if dials == DIALS:
                    wait = 0
                elif plan.connect_rate:
                    wait = min(wait, max(0.0002, dialer.begun / plan.connect_rate - (clock() - began) / SECOND))
            now = self._loop.run_once(wait)
        while self._storm and self._in_progress and not self._parent.stopped:
            # The time is over; handshakes in progress end within their timeout.
            self._loop.run_once(0.05)
        # The connections stay. A collection that looks through all of them would stop everything for as long as it takes.
        gc.collect()
        gc.freeze()
        return (clock() - began) / SECOND

    def wait(self) -> None:
        """Serve the connections until the other processes have theirs."""
        while not self._parent.go and not self._parent.stopped:
            self._loop.run_once(0.1)

    # -- lines -----------------------------------------------------------------------------------------------------------------

    def _queue(self, device: Device) -> None:
        """Queue a device for its next line, if it may send one now."""
        if not device.queued and not device.pending and device.state == UP and self._conversation.may_send(device):
            device.queued = True
            self._ready.append(device)

    def _send_lines(self, device: Device, due: int | None, count: int) -> None:
        """Write the next lines of a device together."""
        frames = self._conversation.next_lines(device, due, count)
        sent = self._write(device, frames)
        if sent is None:
            return
        if sent == len(frames):
            self._counts.written += count
            self._queue(device)
        else:
            device.pending = frames[sent:]
            device.unwritten = count
            self._loop.watch(device, READ | WRITE)

    def _write_pending(self, device: Device) -> None:
        if device.pending:
            sent = self._write(device, device.pending)
            if not sent:
                return
            device.pending = device.pending[sent:]
            if device.pending:
                return
            self._counts.written += device.unwritten
        self._loop.watch(device, READ)
        self._queue(device)

    def _write(self, device: Device, data: bytes) -> int | None:
        """Write as much as the socket takes. Return the number of bytes, or `None` if the connection has ended."""
        try:
            sent = device.stream.send(data)
        except (SSL.WantWriteError, SSL.WantReadError, BlockingIOError):
            return 0
        except (SSL.Error, OSError) as error:
            self._drop(device, _tls.failure(error))
            return None
        self._counts.bytes += sent
        return sent

    def _read(self, device: Device) -> None:
        try:
            data = device.stream.recv(RECORD)
        except (SSL.WantReadError, SSL.WantWriteError):
            # A record without data, most likely a session ticket.
            self._keep_session(device)
            return
        except BlockingIOError:
            return
        except (SSL.Error, OSError) as error:
            self._drop(device, _tls.failure(error))
            return
        if not data:
            self._drop(device, "closed by the gateway")
            return
        if device.tls is None and not self._heard and _ALERT.fullmatch(data):
            raise SwarmError(f"{self._plan.target}: the gateway speaks TLS there, which --plain is without")
        self._heard = True
        if self._storm:
            self._keep_session(device)
            return
        problem = self._conversation.received(device, data)
        if problem is not None:
            self._drop(device, problem)
        elif self._reply(device):
            self._queue(device)

    def _reply(self, device: Device) -> bool:
        """Send what the protocol answers to received bytes. Return `False` if the connection has ended."""
        replies = self._conversation.replies(device)
        if not replies:
            return True
        if device.pending:
            device.pending += replies  # after the line that the socket has not taken completely
            return True
        sent = self._write(device, replies)
        if sent is not None and sent < len(replies):
            self._drop(device, "the socket did not take an acknowledgement")
            return False
        return sent is not None

    def send_lines(self) -> float:
        """Send lines for the time of the plan. Return the seconds it took."""
        plan, ready = self._plan, self._ready
        start = now = clock()
        end = start + int(plan.seconds * SECOND)
        burst = plan.burst
        schedule = Schedule(start, plan.rate, plan.seconds, burst) if plan.rate else None
        while now < end and not self._parent.stopped and self._loop.devices:
            due = WRITES * burst if schedule is None else min(WRITES * burst, schedule.due(now))
            while due > 0 and ready:
                device = ready.popleft()
                device.queued = False
                if device.state != UP:
                    continue
                count = min(burst, due)
                self._send_lines(device, None if schedule is None else schedule.take(count), count)
                due -= count
            if schedule is None:
                timeout = 0 if ready else 0.05
            elif due > 0:
                self._conversation.held_back(schedule.due(clock()))
                timeout = 0.05
            else:
                timeout = self._time_to_next(schedule, start, end)
            now = self._loop.run_once(min(timeout, PROGRESS))
        return (clock() - start) / SECOND

    def _time_to_next(self, schedule: Schedule, start: int, end: int) -> float:
        """Return the seconds to the next line that is due, or with `--tick` to the end of its tick."""
        wake = end if schedule.finished else schedule.next
        tick = int(self._plan.tick * SECOND)
        if tick:
            wake = start - (start - wake) // tick * tick
        return max(0.0, (min(wake, end) - clock()) / SECOND)

    def settle(self) -> None:
        """Wait for lines that are not written, answered or acknowledged yet, within the grace time."""
        if self._storm or self._plan.mode == "hold":
            return
        grace = self._plan.grace if not self._parent.stopped else min(self._plan.grace, GRACE_AFTER_STOP)
        end = clock() + int(grace * SECOND)
        unfinished = self._conversation.unfinished
        devices = [device for device in self._loop.devices.values() if unfinished(device)]
        while devices and not self._parent.gone and clock() < end:
            self._loop.run_once(0.05)
            devices = [device for device in devices if unfinished(device)]
        self._counts.lost += sum(len(device.lines.outstanding) for device in self._loop.devices.values())

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def _drop(self, device: Device, reason: str) -> None:
        """Forget a connection that was up and that the gateway has ended."""
        if not self._storm:
            self._counts.dropped += 1
            self._counts.reasons[reason] += 1
            self._counts.lost += len(device.lines.outstanding)
            if device.tls is None and not self._heard:
                self._check_short_lived(device, reason)
        self._forget(device)

    def _check_short_lived(self, device: Device, reason: str) -> None:
        """Raise `SwarmError` if the first connections without TLS were all closed at once: a mistake in the command."""
        self._short_lived += clock() - device.began < SHORT_LIVED * SECOND
        first = min(FIRST_FAILURES, self._plan.connections)
        if self._counts.dropped == self._short_lived == first:
            raise SwarmError(f"{self._plan.target}: {reason}, before it sent anything: is --plain, --proxy or --framing wrong?")

    def _close(self, device: Device) -> None:
        """Send close_notify and let the gateway close first, so that the port is in TIME_WAIT there and not here.

        Without TLS the end of the stream is all that can be sent, and the port is in TIME_WAIT here.
        """
        device.state = CLOSING
        self._closing.add(device, clock())
        farewell = self._conversation.farewell()
        try:
            if farewell:
                device.stream.send(farewell)
            if device.tls is None:
                device.sock.shutdown(socket.SHUT_WR)
            else:
                device.tls.shutdown()
        except (SSL.Error, OSError):
            self._reset(device)

    def _read_close(self, device: Device) -> None:
        try:
            if not device.stream.recv(RECORD):
                self._forget(device)
        except (SSL.WantReadError, BlockingIOError):
            pass
        except (SSL.ZeroReturnError, SSL.SysCallError):
            # The gateway has closed its side of TLS. Its FIN is here, or comes with it, so the TIME_WAIT is on its side.
            self._forget(device)
        except (SSL.Error, OSError):
            self._reset(device)

    def _reset(self, device: Device) -> None:
        try:
            device.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # the connection is gone already
        self._forget(device)

    def _forget(self, device: Device) -> None:
        device.state = GONE
        self._loop.forget(device)
        device.sock.close()
        device.tls = None
        device.stream = device.sock

    def close(self) -> None:
        """Close all connections, and read what was received after every 256 of them."""
        for number, device in enumerate(list(self._loop.devices.values())):
            if device.state == UP:
                self._close(device)
            elif device.state < UP:
                self._reset(device)
            if number % 256 == 0:
                self._loop.run_once(0)
        while self._loop.devices:
            self._loop.run_once(0.05)
