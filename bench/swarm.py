"""Swarm of simulated devices in a process of its own: sockets, `ssl` and epoll, with as little overhead as Python allows.

It reads commands as lines of JSON from its standard input, and writes an answer to each to its standard output. `Swarm` is the
other end. Each answer has the CPU time of the swarm (`cpu`, in seconds), which shows whether the swarm itself was the limit.

A line of a device is `<device> <number> <nanoseconds> ....`: the device, the number of the line, and the monotonic clock when
it was sent. The back end echoes lines, so that an answer shows the time of the round trip.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from .child import Child

RECORD: Final = 16384
"""Bytes to read at once: the payload of a TLS record."""


class Swarm(Child):
    """Swarm in a child process."""

    def __init__(self, port: int, line: int = 50) -> None:
        super().__init__("bench.swarm", str(port), str(line))


class Device:
    """Connection of a simulated device."""

    __slots__ = ("fd", "got", "index", "pending", "rest", "sent", "sock", "writing")

    def __init__(self, index: int, sock: ssl.SSLSocket) -> None:
        self.index = index
        self.sock = sock
        self.fd = sock.fileno()
        self.sent = 0
        self.got = 0
        self.rest = b""
        self.pending: list[bytes] = []
        self.writing = False


class DeviceSwarm:
    """All connections of a swarm, and its commands."""

    def __init__(self, port: int, line: int) -> None:
        self.address = ("127.0.0.1", port)
        self.line = line
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE  # the server is measured, not the verification by the client
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.epoll = select.epoll()
        self.devices: list[Device] = []
        self.by_fd: dict[int, Device] = {}
        self.delays: list[float] = []
        self.answers = 0
        self.acks = 0
        self.lost = 0

    # -- connecting --------------------------------------------------------------------------------------------------------

    def _dial(self) -> ssl.SSLSocket:
        sock = socket.socket()
        # Lines that the gateway has not read wait in kernel buffers: keep ours small.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sock.connect(self.address)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")

    def _handshakes(
        self, more: Callable[[int], bool], concurrency: int, done: Callable[[ssl.SSLSocket], None], rate: float | None = None
    ) -> tuple[int, int]:
        """Make handshakes while `more(number begun)`, up to `concurrency` at a time; return (completed, failed)."""
        epoll = select.epoll()
        flying: dict[int, ssl.SSLSocket] = {}
        begun = complete = failed = 0
        start = time.monotonic()
        while True:
            while len(flying) < concurrency and more(begun) and (rate is None or begun < (time.monotonic() - start) * rate):
                sock = self._dial()
                begun += 1
                flying[sock.fileno()] = sock
                epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLONESHOT)
            if not flying and not more(begun):
                break
            for fd, _ in epoll.poll(0.05 if rate is None else 0.005):
                sock = flying[fd]
                try:
                    sock.do_handshake()
                except ssl.SSLWantReadError:
                    epoll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
                except ssl.SSLWantWriteError:
                    epoll.modify(fd, select.EPOLLOUT | select.EPOLLONESHOT)
                except OSError:
                    failed += 1
                    del flying[fd]
                    sock.close()
                else:
                    complete += 1
                    del flying[fd]
                    epoll.unregister(fd)
                    done(sock)
        epoll.close()
        return complete, failed

    def connect(self, count: int, concurrency: int = 64) -> dict[str, Any]:
        """Open `count` connections and keep them."""
        complete, failed = self._handshakes(lambda begun: begun < count, concurrency, self._keep)
        return {"connected": complete, "failed": failed}

    def _keep(self, sock: ssl.SSLSocket) -> None:
        device = Device(len(self.devices), sock)
        self.devices.append(device)
        self.by_fd[device.fd] = device
        self.epoll.register(device.fd, select.EPOLLIN)

    def disconnect(self) -> dict[str, Any]:
        """Close all connections."""
        for device in self.devices:
            device.sock.close()
        self.devices, self.by_fd = [], {}
        self.epoll.close()
        self.epoll = select.epoll()
        return {}

    def storm(self, seconds: float, concurrency: int = 64, rate: float | None = None, lines: int = 0) -> dict[str, Any]:
        """Make full handshakes for a while; each device sends `lines` lines and disconnects without close_notify."""
        end = time.monotonic() + seconds
        text = b"".join(b"storm %d\n" % number for number in range(lines))

        def leave(sock: ssl.SSLSocket) -> None:
            if text:
                sock.send(text)
            sock.close()

        complete, failed = self._handshakes(lambda begun: time.monotonic() < end, concurrency, leave, rate)
        return {"handshakes": complete, "failed": failed}

    # -- lines -------------------------------------------------------------------------------------------------------------

    def _send_lines(self, device: Device, lines: int = 1) -> bool:
        """Send lines in one record. Return `False` if the socket accepts no more for now."""
        now = time.monotonic_ns()
        width = self.line - 1
        text = b"".join(
            (b"%d %d %d " % (device.index, number, now)).ljust(width, b".") + b"\n"
            for number in range(device.sent, device.sent + lines)
        )
        device.sent += lines
        if device.pending:
            device.pending.append(text)
            return False
        return self._send(device, text)

    def _send(self, device: Device, text: bytes) -> bool:
        try:
            device.sock.send(text)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            device.pending.append(text)
            if not device.writing:
                device.writing = True
                self.epoll.modify(device.fd, select.EPOLLIN | select.EPOLLOUT)
            return False
        except OSError:
            self._lost(device)
        return True

    def _unblock(self, device: Device) -> None:
        """Send the waiting lines, since the socket accepts data again. (OpenSSL requires the same bytes in the retry.)"""
        waiting, device.pending = device.pending, []
        for index, text in enumerate(waiting):
            if not self._send(device, text):
                device.pending += waiting[index + 1 :]
                return
        if device.writing and device.fd in self.by_fd:
            device.writing = False
            self.epoll.modify(device.fd, select.EPOLLIN)

    def _lost(self, device: Device) -> None:
        if self.by_fd.pop(device.fd, None) is not None:
            self.lost += 1
            self.epoll.unregister(device.fd)
            device.sock.close()

    def _receive(self, device: Device) -> int:
        """Read from a device and return the number of answers."""
        try:
            data = device.sock.recv(RECORD)
            while device.sock.pending():
                data += device.sock.recv(RECORD)
        except ssl.SSLWantReadError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._lost(device)
            return 0
        now = time.monotonic_ns()
        lines = (device.rest + data).split(b"\n")
        device.rest = lines.pop()
        answers = 0
        for line in lines:
            if line.startswith(b"ACK"):
                self.acks += 1
            else:
                answers += 1
                self.delays.append((now - int(line.split(b" ", 3)[2])) / 1e6)
        device.got += answers
        self.answers += answers
        return answers

    def _begin(self) -> None:
        self.delays.clear()
        self.answers = self.acks = 0

    def _poll(self, timeout: float) -> list[Device]:
        """Serve the ready sockets, and return the devices that got an answer."""
        answered = []
        for fd, events in self.epoll.poll(timeout, 1024):
            device = self.by_fd.get(fd)
            if device is None:
                continue
            if events & ~select.EPOLLOUT and self._receive(device):
                answered.append(device)
            if events & select.EPOLLOUT and device.fd in self.by_fd:
                self._unblock(device)
        return answered

    def pace(self, rate: float, seconds: float, answers: bool = False) -> dict[str, Any]:
        """Send lines at a fixed rate, evenly in time and from the devices in turn, and wait for the answers, if any."""
        self._begin()
        start = time.monotonic()
        total = int(rate * seconds)
        sent = 0
        devices = self.devices
        while sent < total:
            due = min(total, int((time.monotonic() - start) * rate) + 1)
            while sent < due:
                self._send_lines(devices[sent % len(devices)])
                sent += 1
            self._poll(max(0.0, start + sent / rate - time.monotonic()))
        elapsed = time.monotonic() - start
        patience = time.monotonic() + 10
        while answers and self.answers < sent and time.monotonic() < patience:
            self._poll(0.05)
        return {"lines": sent, "seconds": elapsed, "answers": self.answers, "acks": self.acks, "delays": self.delays}

    def trips(self, seconds: float, each: int = 1) -> dict[str, Any]:
        """Make round trips: each device has `each` lines in flight, and sends a line for each answer."""
        self._begin()
        start = time.monotonic()
        for device in self.devices:
            for _ in range(each):
                self._send_lines(device)
        while time.monotonic() < start + seconds:
            before = self.answers
            for device in self._poll(0.05):
                for _ in range(min(each, each - (device.sent - device.got))):
                    self._send_lines(device)
            if before == self.answers and not self.by_fd:
                break
        elapsed = time.monotonic() - start
        answered, delays = self.answers, list(self.delays)
        patience = time.monotonic() + 10
        while self.by_fd and any(d.got < d.sent for d in self.by_fd.values()) and time.monotonic() < patience:
            self._poll(0.05)
        return {"answers": answered, "seconds": elapsed, "delays": delays}

    def send_lines(self, lines: int, answers: bool = False) -> dict[str, Any]:
        """Send `lines` lines from each device, one after the other."""
        self._begin()
        for _ in range(lines):
            for device in self.devices:
                self._send_lines(device)
            self._poll(0)
        patience = time.monotonic() + 20
        while time.monotonic() < patience and (
            any(device.pending for device in self.devices) or (answers and self.answers < lines * len(self.devices))
        ):
            self._poll(0.05)
        return {"lines": lines * len(self.devices), "answers": self.answers}

    def flood(self, seconds: float, each: int = 1) -> dict[str, Any]:
        """Send lines from all devices at full speed, `each` lines per record, until the time is over or another command
        arrives.

        Lines that were begun are sent completely, however long the gateway does not read: `sent` counts whole lines.
        """
        self._begin()
        start = time.monotonic()
        end = start + seconds
        before = sum(device.sent for device in self.devices)
        self.epoll.register(0, select.EPOLLIN)
        stopped = False
        while not stopped and time.monotonic() < end:
            free = [device for device in self.by_fd.values() if not device.pending]
            for device in free:
                self._send_lines(device, each)
            for fd, events in self.epoll.poll(0 if free else 0.05, 1024):
                if fd == 0:
                    stopped = True
                    continue
                device = self.by_fd[fd]
                if events & ~select.EPOLLOUT:
                    self._receive(device)
                if events & select.EPOLLOUT and device.fd in self.by_fd:
                    self._unblock(device)
        self.epoll.unregister(0)
        elapsed = time.monotonic() - start
        while any(device.pending for device in self.by_fd.values()):
            self._poll(0.05)
        sent = [device.sent for device in self.devices]
        return {"lines": sum(sent) - before, "seconds": elapsed, "sent": sent, "acks": self.acks, "lost": self.lost}


def main() -> None:
    """Execute commands until the input ends."""
    devices = DeviceSwarm(int(sys.argv[1]), int(sys.argv[2]))
    buffer = b""
    while data := os.read(0, 65536):  # unbuffered, since epoll watches it too
        *commands, buffer = (buffer + data).split(b"\n")
        for command in commands:
            arguments = json.loads(command)
            do = arguments.pop("do")
            if do == "stop":
                continue  # it has ended a flood already
            began = time.process_time()
            answer = getattr(devices, do)(**arguments)
            answer["cpu"] = time.process_time() - began
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
