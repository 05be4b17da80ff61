"""A simulated device, and the time limits of its states."""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from OpenSSL import SSL

from ._answers import AnswerCounts, AnswerMatcher

CONNECTING, HANDSHAKING, GREETING, UP, CLOSING, GONE = range(6)
"""States of a device, in the order in which it passes through them."""

SECOND: Final = 1_000_000_000
"""Nanoseconds in a second, for times of `time.monotonic_ns`."""


class Device:
    """A simulated device and its connection."""

    __slots__ = (
        "acked",
        "began",
        "fd",
        "index",
        "lines",
        "pending",
        "queued",
        "rest",
        "resumed",
        "sock",
        "state",
        "stream",
        "tls",
        "unwritten",
    )

    def __init__(self, index: int, sock: socket.socket, counts: AnswerCounts, began: int) -> None:
        self.index = index
        """Number of the device in the whole swarm."""
        self.sock = sock
        self.fd = sock.fileno()
        self.tls: SSL.Connection | None = None
        self.stream: SSL.Connection | socket.socket = sock
        """Stream to read from and to write to: `tls`, or without TLS the socket."""
        self.state = CONNECTING
        self.lines = AnswerMatcher(counts)
        self.began = began
        """Time at which the connection was begun, in nanoseconds."""
        self.acked = 0
        """Number of lines that the gateway has acknowledged with `--device-ack`."""
        self.rest = b""
        """Bytes received of a frame whose end has not come yet."""
        self.pending = b""
        """Bytes of frames that the socket has not taken yet."""
        self.unwritten = 0
        """Number of lines in these frames and in the part of them that the socket has taken."""
        self.queued = False
        """True while the device is in the queue of devices that may send a line."""
        self.resumed: bool | None = None
        """Whether the TLS session was resumed; `None` if none was offered."""


class StateDeadlines:
    """Devices that must leave a state in time. The time is the same for all, so the queue is in the order of the deadlines."""

    __slots__ = ("_devices", "_state", "_time")

    def __init__(self, state: int, seconds: float) -> None:
        self._state = state
        self._time = int(seconds * SECOND)
        self._devices: deque[tuple[int, Device]] = deque()

    def add(self, device: Device, now: int) -> None:
        """Start the time of a device."""
        self._devices.append((now + self._time, device))

    def expired(self, now: int) -> list[Device]:
        """Remove and return the devices whose time is over and that have not left the state."""
        late = []
        devices = self._devices
        while devices and (devices[0][1].state > self._state or devices[0][0] <= now):
            device = devices.popleft()[1]
            if device.state <= self._state:
                late.append(device)
        return late
