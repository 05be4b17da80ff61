"""Devices of `bench.reload` in a process of their own: some that stay connected, or others that come and leave.

All verify the certificate of the gateway and show one of their own. Commands and answers are lines of JSON, as in
`bench.swarm`. `stay` and `arrive` go on until the command `stop`, and answer then.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import sys
import time
from itertools import count
from typing import Any, Final

from .child import Child
from .swarm import RECORD, DeviceSwarm

SOURCES: Final = 8
"""Number of source addresses in 127.0.5.0/24. A closed connection keeps its port for a minute (TIME-WAIT)."""

PATIENCE: Final = 30.0
"""Seconds for a connection to be established, and its line to be answered."""


class ReloadSwarm(Child):
    """Devices in a child process."""

    def __init__(self, port: int) -> None:
        super().__init__("bench.reload_swarm", str(port))


class Commands:
    """Commands on the standard input. They are read unbuffered, since an epoll watches it, too."""

    def __init__(self) -> None:
        self._buffer = b""

    def next(self) -> dict[str, Any] | None:
        """Wait for the next command and return it, or `None` at the end of the input."""
        while b"\n" not in self._buffer:
            data = os.read(0, 65536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        command: dict[str, Any] = json.loads(line)
        return command


class Arrival:
    """Connection of a device that sends a line and leaves after the answer."""

    __slots__ = ("begun", "fd", "received", "serial", "shown", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.begun = time.monotonic()
        self.shown = 0.0
        """Time at which the device had the certificate of the gateway."""
        self.serial = ""
        self.received = b""


class ReloadDevices(DeviceSwarm):
    """Connections of devices with a certificate."""

    def __init__(self, port: int, commands: Commands) -> None:
        super().__init__(port, 50)
        self._commands = commands
        self._stopped = False
        self._flying: dict[int, Arrival] = {}
        self._completed: list[tuple[float, float, float, str]] = []
        self._failed: list[tuple[float, str]] = []

    def use(self, authorities: str, certificate: str) -> dict[str, Any]:
        """Trust the authorities in this file, and show this certificate, from the next connection on."""
        context = ssl.create_default_context(cafile=authorities)
        context.load_cert_chain(certificate)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context = context
        return {}

    def _interrupt(self) -> None:
        """Execute a command that came while devices are busy."""
        command = self._commands.next()
        if command is None or command["do"] == "stop":
            self._stopped = True
        else:
            getattr(self, command.pop("do"))(**command)

    # -- devices that stay -------------------------------------------------------------------------------------------------

    def stay(self, rate: float) -> dict[str, Any]:
        """Send `rate` lines a second, evenly in time and from the devices in turn. Return when each line was sent, and the time
        of its round trip in ms.
        """
        self._begin()
        sent_at: list[float] = []
        self.epoll.register(0, select.EPOLLIN)
        self._stopped = False
        start, sent = time.monotonic(), 0
        while not self._stopped:
            due = int((time.monotonic() - start) * rate) + 1
            for device in (self.devices[number % len(self.devices)] for number in range(sent, due)):
                if device.fd in self.by_fd:
                    self._send_lines(device)
            sent = max(sent, due)
            self._poll(max(0.0, start + sent / rate - time.monotonic()))
            self._note_times(sent_at)
            if select.select([0], [], [], 0)[0]:
                self._interrupt()
        self.epoll.unregister(0)
        patience = time.monotonic() + PATIENCE
        while any(device.got < device.sent for device in self.by_fd.values()) and time.monotonic() < patience:
            self._poll(0.05)
            self._note_times(sent_at)
        lines = sum(device.sent for device in self.devices)
        answers = sum(device.got for device in self.devices)
        return {"trips": list(zip(sent_at, self.delays, strict=True)), "lost": self.lost, "lines": lines, "answers": answers}

    def _note_times(self, sent_at: list[float]) -> None:
        now = time.monotonic()
        sent_at.extend(now - delay / 1e3 for delay in self.delays[len(sent_at) :])

    # -- devices that come and leave ---------------------------------------------------------------------------------------

    def arrive(self, rate: float) -> dict[str, Any]:
        """Let `rate` devices a second connect, send a line, wait for its answer and leave. Return the times and the serial
        number of the certificate for each that succeeded, and the reason for each that did not.
        """
        self._completed, self._failed = [], []
        self._stopped = False
        self.epoll.register(0, select.EPOLLIN)
        start, numbers = time.monotonic(), count(1)
        begun = next(numbers)
        while not self._stopped or self._flying:
            while not self._stopped and start + begun / rate <= time.monotonic():
                self._arrive(begun)
                begun = next(numbers)
            wait = max(0.0, start + begun / rate - time.monotonic()) if not self._stopped else 0.05
            for fd, _ in self.epoll.poll(wait, 256):
                if fd == 0:
                    self._interrupt()
                elif fd in self._flying:
                    self._advance(self._flying[fd])
            self._give_up()
        self.epoll.unregister(0)
        return {"completed": self._completed, "failed": self._failed}

    def _arrive(self, number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((f"127.0.5.{1 + number % SOURCES}", 0))
        sock.connect_ex(self.address)
        arrival = Arrival(sock)
        self._flying[arrival.fd] = arrival
        self.epoll.register(arrival.fd, select.EPOLLOUT)

    def _advance(self, arrival: Arrival) -> None:
        """Take the next steps of a connection whose socket is ready."""
        try:
            if not isinstance(arrival.sock, ssl.SSLSocket):
                error = arrival.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                arrival.sock = self.context.wrap_socket(
                    arrival.sock, do_handshake_on_connect=False, server_hostname="localhost"
                )
            if not arrival.shown:
                arrival.sock.do_handshake()
                arrival.shown = time.monotonic()
                arrival.serial = str((arrival.sock.getpeercert() or {})["serialNumber"])
                arrival.sock.send(b"0 0 %d .\n" % time.monotonic_ns())
                self.epoll.modify(arrival.fd, select.EPOLLIN)
            # In TLS 1.3 the gateway may still refuse a certificate after the handshake: only the answer shows that it did not.
            data = arrival.sock.recv(RECORD)
            if not data:
                raise OSError("closed before the answer")
            arrival.received += data
            if arrival.received.endswith(b"\n"):
                self._completed.append((arrival.begun, arrival.shown, time.monotonic(), arrival.serial))
                self._leave(arrival)
        except ssl.SSLWantReadError:
            self.epoll.modify(arrival.fd, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self.epoll.modify(arrival.fd, select.EPOLLOUT)
        except OSError as error:
            self._failed.append((arrival.begun, str(error)))
            self._leave(arrival)

    def _leave(self, arrival: Arrival) -> None:
        del self._flying[arrival.fd]
        if arrival.sock.fileno() >= 0:
            self.epoll.unregister(arrival.fd)
        arrival.sock.close()

    def _give_up(self) -> None:
        """Give up connections that take too long. They were begun in the order of the dictionary."""
        while self._flying:
            arrival = next(iter(self._flying.values()))
            if time.monotonic() < arrival.begun + PATIENCE:
                return
            self._failed.append((arrival.begun, f"no answer within {PATIENCE:g} s"))
            self._leave(arrival)


def main() -> None:
    """Execute commands until the input ends."""
    commands = Commands()
    devices = ReloadDevices(int(sys.argv[1]), commands)
    while (command := commands.next()) is not None:
        do = command.pop("do")
        if do == "stop":
            continue  # it came after the end
        begun = time.process_time()
        answer = getattr(devices, do)(**command)
        answer["cpu"] = time.process_time() - begun
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
