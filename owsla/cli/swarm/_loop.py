"""The epoll loop of one process.

It is not the reactor of Twisted: CPU used here is missing where the measurement is, on the same machine.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final

from ._device import Device
from ._parent_input import ParentInput

SWEEP: Final = 50_000_000
"""Nanoseconds between two calls of `sweep`."""

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT


class EventLoop:
    """Devices by file descriptor, and the parent."""

    def __init__(self, parent: ParentInput, ready: Callable[[Device, int], None], sweep: Callable[[int], None]) -> None:
        """Call `ready` with a device and its epoll events, and `sweep` with the time every 50 ms."""
        self._parent = parent
        self._ready = ready
        self._sweep = sweep
        self._swept = 0
        # Created before any connection, so its descriptor is below 1024, the limit of `select`.
        self._epoll = select.epoll()
        self._epoll.register(parent.fd, READ)
        self.devices: dict[int, Device] = {}
        """Open connections by file descriptor."""

    def add(self, device: Device) -> None:
        """Watch a device for both reading and writing."""
        self.devices[device.fd] = device
        self._epoll.register(device.fd, READ | WRITE)

    def watch(self, device: Device, events: int) -> None:
        """Change what a device is watched for."""
        self._epoll.modify(device.fd, events)

    def forget(self, device: Device) -> None:
        """Remove a device whose socket is about to be closed, which takes it out of epoll."""
        self.devices.pop(device.fd, None)

    def run_once(self, timeout: float) -> int:
        """Wait for events, at most `timeout` seconds, and handle them. Return the time after that."""
        ready = True
        if 0 < timeout < 0.005:
            # epoll rounds the timeout up to milliseconds, which is as long as an answer takes. `select` has microseconds.
            ready = bool(select.select([self._epoll], (), (), timeout)[0])
            timeout = 0
        for fd, events in self._epoll.poll(timeout, 256) if ready else ():
            device = self.devices.get(fd)
            if device is not None:
                self._ready(device, events)
            elif fd == self._parent.fd and not self._parent.stopped:
                self._parent.read()
                if self._parent.stopped:
                    self._epoll.unregister(fd)
        now = time.monotonic_ns()
        if now > self._swept:
            self._swept = now + SWEEP
            self._sweep(now)
        return now
