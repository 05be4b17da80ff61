"""A swarm of simulated devices in a process of its own: plain sockets, `ssl` and epoll, as light as Python makes it.

It takes commands as lines of JSON on its standard input, and answers each with one on its standard output. `Swarm` is the
other end of that. Every answer says what the swarm itself spent (`cpu`, in seconds), so that one can see whether it was the
swarm that could do no more.

A device's line is `<device> <number> <nanoseconds> ....`: who, which of its lines, and the monotonic clock when it was sent.
The back end echoes lines, so that an answer says how long the way there and back took.
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
"""Bytes read at once: what a TLS record can hold."""


class Swarm(Child):
    """A swarm in a child process."""

    def __init__(self, port: int, line: int = 50) -> None:
        super().__init__("bench.swarm", str(port), str(line))


class Device:
    """One connection."""

    __slots__ = ("acked", "fd", "got", "index", "pending", "rest", "sent", "sock", "writing")

    def __init__(self, index: int, sock: ssl.SSLSocket) -> None:
        self.index = index
        self.sock = sock
        self.fd = sock.fileno()
        self.sent = 0
        self.got = 0
        self.acked = -1
        self.rest = b""
        self.pending: list[bytes] = []
        self.writing = False


class Devices:
    """All connections of one swarm."""

    def __init__(self, port: int, line: int) -> None:
        self.address = ("127.0.0.1", port)
        self.line = line
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE  # a measurement of the other side: nothing is gained by checking here
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.epoll = select.epoll()
        self.devices: list[Device] = []
        self.by_fd: dict[int, Device] = {}
        self.delays: list[float] = []
        self.answers = 0
        self.acks = 0
        self.lost = 0
        self.commands = b""

    # -- connecting --------------------------------------------------------------------------------------------------------

    def _dial(self) -> ssl.SSLSocket:
        sock = socket.socket()
        # What a device has written and the gateway has not read waits in buffers of the system's: keep ours small.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sock.connect(self.address)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")

    def _handshakes(
        self, more: Callable[[int], bool], concurrency: int, done: Callable[[ssl.SSLSocket], None], rate: float | None = None
    ) -> tuple[int, int]:
        """Shake hands while `more(how many were begun)`, so many at once: (complete, failed)."""
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
        """Open so many connections, and keep them."""
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

    def storm(self, seconds: float, concurrency: int = 64, rate: float | None = None, say: int = 0) -> dict[str, Any]:
        """Full handshakes, one after the other, for a while; each device says so many lines and is gone without a goodbye."""
        end = time.monotonic() + seconds
        lines = b"".join(b"storm %d\n" % number for number in range(say))

        def leave(sock: ssl.SSLSocket) -> None:
            if lines:
                sock.send(lines)
            sock.close()

        complete, failed = self._handshakes(lambda begun: time.monotonic() < end, concurrency, leave, rate)
        return {"handshakes": complete, "failed": failed}

    # -- talking -----------------------------------------------------------------------------------------------------------

    def _say(self, device: Device, lines: int = 1) -> bool:
        """Send so many lines in one record; `False` where the socket takes no more for now."""
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
            self._gone(device)
        return True

    def _unblock(self, device: Device) -> None:
        """The socket takes data again: give it what waits (OpenSSL wants the same bytes once more)."""
        waiting, device.pending = device.pending, []
        for index, text in enumerate(waiting):
            if not self._send(device, text):
                device.pending += waiting[index + 1 :]
                return
        if device.writing and device.fd in self.by_fd:
            device.writing = False
            self.epoll.modify(device.fd, select.EPOLLIN)

    def _gone(self, device: Device) -> None:
        if self.by_fd.pop(device.fd, None) is not None:
            self.lost += 1
            self.epoll.unregister(device.fd)
            device.sock.close()

    def _hear(self, device: Device) -> int:
        """Read what came; how many answers were in it."""
        try:
            data = device.sock.recv(RECORD)
            while device.sock.pending():
                data += device.sock.recv(RECORD)
        except ssl.SSLWantReadError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._gone(device)
            return 0
        now = time.monotonic_ns()
        lines = (device.rest + data).split(b"\n")
        device.rest = lines.pop()
        answers = 0
        for line in lines:
            if line.startswith(b"ACK"):
                self.acks += 1
                device.acked = int(line[4:])
            else:
                answers += 1
                self.delays.append((now - int(line.split(b" ", 3)[2])) / 1e6)
        device.got += answers
        self.answers += answers
        return answers

    def _begin(self) -> None:
        self.delays.clear()
        self.answers = self.acks = 0

    def _turn(self, timeout: float) -> list[Device]:
        """Serve what is ready; those that had an answer."""
        answered = []
        for fd, events in self.epoll.poll(timeout, 1024):
            device = self.by_fd.get(fd)
            if device is None:
                continue
            if events & ~select.EPOLLOUT and self._hear(device):
                answered.append(device)
            if events & select.EPOLLOUT and device.fd in self.by_fd:
                self._unblock(device)
        return answered

    def pace(self, rate: float, seconds: float, answers: bool = False) -> dict[str, Any]:
        """Lines at a fixed rate over all devices, evenly in time and each from another device; waits for all the answers."""
        self._begin()
        start = time.monotonic()
        total = int(rate * seconds)
        said = 0
        devices = self.devices
        while said < total:
            due = min(total, int((time.monotonic() - start) * rate) + 1)
            while said < due:
                self._say(devices[said % len(devices)])
                said += 1
            self._turn(max(0.0, start + said / rate - time.monotonic()))
        talked = time.monotonic() - start
        patience = time.monotonic() + 10
        while answers and self.answers < said and time.monotonic() < patience:
            self._turn(0.05)
        return {"lines": said, "seconds": talked, "answers": self.answers, "acks": self.acks, "delays": self.delays}

    def trips(self, seconds: float, each: int = 1) -> dict[str, Any]:
        """Each device sends a line when its last one was answered, with `each` lines under way at a time: round trips."""
        self._begin()
        start = time.monotonic()
        for device in self.devices:
            for _ in range(each):
                self._say(device)
        while time.monotonic() < start + seconds:
            before = self.answers
            for device in self._turn(0.05):
                for _ in range(min(each, each - (device.sent - device.got))):
                    self._say(device)
            if before == self.answers and not self.by_fd:
                break
        elapsed = time.monotonic() - start
        answered, delays = self.answers, list(self.delays)
        patience = time.monotonic() + 10
        while self.by_fd and any(d.got < d.sent for d in self.by_fd.values()) and time.monotonic() < patience:
            self._turn(0.05)
        return {"answers": answered, "seconds": elapsed, "delays": delays}

    def say(self, lines: int, answers: bool = False) -> dict[str, Any]:
        """Each device says so many lines, one after the other."""
        self._begin()
        for _ in range(lines):
            for device in self.devices:
                self._say(device)
            self._turn(0)
        patience = time.monotonic() + 20
        while time.monotonic() < patience and (
            any(device.pending for device in self.devices) or (answers and self.answers < lines * len(self.devices))
        ):
            self._turn(0.05)
        return {"lines": lines * len(self.devices), "answers": self.answers}

    def flood(self, seconds: float, each: int = 1) -> dict[str, Any]:
        """Every device talks as fast as it may, `each` lines to a record, until the time is over or another command comes.

        What was begun is sent to its end, however long the gateway does not read: `sent` are whole lines.
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
                self._say(device, each)
            for fd, events in self.epoll.poll(0 if free else 0.05, 1024):
                if fd == 0:
                    stopped = True
                    continue
                device = self.by_fd[fd]
                if events & ~select.EPOLLOUT:
                    self._hear(device)
                if events & select.EPOLLOUT and device.fd in self.by_fd:
                    self._unblock(device)
        self.epoll.unregister(0)
        talked = time.monotonic() - start
        while any(device.pending for device in self.by_fd.values()):
            self._turn(0.05)
        sent = [device.sent for device in self.devices]
        return {"lines": sum(sent) - before, "seconds": talked, "sent": sent, "acks": self.acks, "lost": self.lost}

    def listen(self, seconds: float) -> dict[str, Any]:
        """Say nothing for a while; what each device was told is safe (`ACK n`), as the highest n, or -1."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn(0.05)
        return {"acked": [device.acked for device in self.devices], "lost": self.lost}


def main() -> None:
    """Take commands until the input ends."""
    devices = Devices(int(sys.argv[1]), int(sys.argv[2]))
    buffer = b""
    while data := os.read(0, 65536):  # unbuffered, since epoll watches it too
        *commands, buffer = (buffer + data).split(b"\n")
        for command in commands:
            arguments = json.loads(command)
            do = arguments.pop("do")
            if do == "stop":
                continue  # it ended a flood, and that was all
            began = time.process_time()
            answer = getattr(devices, do)(**arguments)
            answer["cpu"] = time.process_time() - began
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
