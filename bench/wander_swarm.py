"""Devices of `bench.wander` in a process of their own: they connect to one node or another, and note every line that they read.

All have a client certificate. A device moves in one of three ways:

- *roams*: it connects again while its earlier connection is open, as behind a new address of its modem, and reads the earlier
one
  until the node closes it. So nothing that was written to either is missing.
- *leaves*: it closes its sending side, and reads until the node closes. So nothing that was written is missing either.
- *drops*: it resets its connection. What the node has just written is lost.

Commands and answers are lines of JSON, as in `bench.swarm`. `wander` goes on until the command `stop`, and answers then.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from .child import Child
from .reload_swarm import Commands
from .swarm import RECORD

MOVES: Final = ("roams", "leaves", "drops")
WEIGHTS: Final = (6, 2, 2)

ELSEWHERE: Final = 0.9
"""Probability that a device connects to another node than before."""

AWAY: Final = 0.3
"""Probability that a device that left or dropped is away for seconds, longer than nodes ask for it, before it connects."""

PATIENCE: Final = 30.0
"""Seconds for a handshake."""

_RESET: Final = struct.pack("ii", 1, 0)


class WanderingSwarm(Child):
    """Devices in a child process."""

    def __init__(self, ports: list[int], certificates: Path, seed: int) -> None:
        super().__init__("bench.wander_swarm", ",".join(map(str, ports)), str(certificates), str(seed))


class Session:
    """One connection of a device, as the device saw it."""

    __slots__ = ("begun", "device", "ended", "fd", "how", "left", "node", "number", "ready", "rest", "sock")

    def __init__(self, device: WanderingDevice, number: int, node: int, sock: ssl.SSLSocket) -> None:
        self.device = device
        self.number = number
        self.node = node
        self.sock = sock
        self.fd = sock.fileno()
        self.begun = time.monotonic()
        self.ready = 0.0
        """Time at which the handshake was complete, or 0."""
        self.left = 0.0
        """Time at which the device closed its sending side or reset the connection, or at which it roamed; or 0."""
        self.ended = 0.0
        self.how = ""
        """One of `MOVES`, or the reason why the connection ended without one; empty while the device uses it."""
        self.rest = b""

    def record(self) -> dict[str, Any]:
        names = ("number", "node", "begun", "ready", "left", "ended", "how")
        return {"device": self.device.name, **{name: getattr(self, name) for name in names}}


class WanderingDevice:
    """Device with its certificate. `current` is its newest connection."""

    __slots__ = ("context", "current", "due", "index", "name", "node", "sessions")

    def __init__(self, index: int, name: str, certificate: Path, node: int) -> None:
        self.index = index
        self.name = name
        self.due = 0.0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.load_cert_chain(certificate)
        self.node = node
        self.sessions = 0
        self.current: Session | None = None


class Wanderers:
    """All devices, and their commands."""

    def __init__(self, ports: list[int], certificates: Path, seed: int, commands: Commands) -> None:
        self._ports = ports
        self._rng = random.Random(f"{seed}/devices")
        self._commands = commands
        self._epoll = select.epoll()
        self._open: dict[int, Session] = {}
        self._due: list[tuple[float, int]] = []
        """Heap of the times at which something is due, and the devices. Those before `device.due` are void."""
        self._stay = self._until = 0.0
        self._devices = [
            WanderingDevice(number, path.stem, path, number % len(ports))
            for number, path in enumerate(sorted(certificates.glob("*.pem")))
        ]
        self._sessions: list[Session] = []
        self._received: list[tuple[int, str, int, float]] = []
        self._strange: list[str] = []

    def connect(self) -> dict[str, Any]:
        """Connect all devices, evenly to the nodes, and wait until they are connected."""
        waiting = list(range(len(self._devices)))
        while waiting or any(not session.ready for session in self._open.values()):
            while waiting and sum(not session.ready for session in self._open.values()) < 32:
                self._connect(self._devices[waiting.pop()])
            self._serve(0.01)
        return {"connected": len(self._open)}

    def wander(self, stay: float, seconds: float) -> dict[str, Any]:
        """Move each device after `stay` seconds on average, for `seconds`. Then read on, until the command `stop`."""
        self._stay = stay
        self._until = time.monotonic() + seconds
        for device in self._devices:
            self._set_due(device, self._rng.expovariate(1 / stay))
        self._epoll.register(0, select.EPOLLIN)
        stopped = False
        while not stopped:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                due, index = heapq.heappop(self._due)
                device = self._devices[index]
                if due == device.due:  # otherwise another time was set since
                    self._turn(device, now)
            stopped = self._serve(min(0.1, max(0.0, self._due[0][0] - now)) if self._due else 0.1)
        self._epoll.unregister(0)
        return {
            "sessions": [session.record() for session in self._sessions],
            "received": self._received,
            "strange": self._strange,
        }

    # -- moves -------------------------------------------------------------------------------------------------------------

    def _set_due(self, device: WanderingDevice, wait: float) -> None:
        device.due = time.monotonic() + wait
        heapq.heappush(self._due, (device.due, device.index))

    def _turn(self, device: WanderingDevice, now: float) -> None:
        """Connect a device that is away, or move one that is connected."""
        wait = self._rng.expovariate(1 / self._stay)
        if device.current is None:
            self._connect(device)
        elif now < self._until and device.current.ready:
            wait = self._move(device, device.current, now) or wait
        self._set_due(device, wait)

    def _move(self, device: WanderingDevice, session: Session, now: float) -> float | None:
        """Move a device. Return the seconds until it connects again, or `None` if it has done so."""
        session.how = self._rng.choices(MOVES, WEIGHTS)[0]
        session.left = now
        if self._rng.random() < ELSEWHERE:
            device.node = (device.node + self._rng.randrange(1, len(self._ports))) % len(self._ports)
        if session.how == "roams":
            self._connect(device)
            return None
        device.current = None
        if session.how == "drops":
            session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._end(session)
        else:
            try:
                socket.socket.shutdown(session.sock, socket.SHUT_WR)  # that of SSLSocket forgets the TLS connection
            except OSError:  # the node has reset the connection, which the next read shows
                pass
        return self._rng.uniform(1, 5) if self._rng.random() < AWAY else self._rng.uniform(0, 0.3)

    def _connect(self, device: WanderingDevice) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((f"127.0.6.{1 + self._rng.randrange(8)}", 0))  # closed connections keep their ports for a minute
        sock.connect(("127.0.0.1", self._ports[device.node]))
        sock.setblocking(False)
        secure = device.context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")
        session = Session(device, device.sessions, device.node, secure)
        device.sessions += 1
        device.current = session
        self._sessions.append(session)
        self._open[session.fd] = session
        self._epoll.register(session.fd, select.EPOLLIN | select.EPOLLOUT)
        self._advance(session)

    def _end(self, session: Session) -> None:
        session.ended = time.monotonic()
        del self._open[session.fd]
        self._epoll.unregister(session.fd)
        session.sock.close()

    def _lost(self, session: Session, why: str) -> None:
        """Note the end of a connection. A device that used it connects again."""
        self._end(session)
        if session.rest:
            self._strange.append(f"{session.device.name}: an incomplete line: {session.rest!r}")
        device = session.device
        if device.current is session:
            session.how = why
            device.current = None
            self._set_due(device, self._rng.uniform(0, 1))

    # -- sockets -----------------------------------------------------------------------------------------------------------

    def _serve(self, timeout: float) -> bool:
        """Serve the sockets that are ready, those of earlier connections first. Return whether the command `stop` came.

        A line on an earlier connection was written before one on a later connection, if both are in the kernel now and nodes
        keep the order.
        """
        ready = [fd for fd, _ in self._epoll.poll(timeout, 4096)]
        stopped = False
        if 0 in ready:
            ready.remove(0)
            command = self._commands.next()
            stopped = command is None or command["do"] == "stop"
        for session in sorted((self._open[fd] for fd in ready), key=lambda each: each.number):
            if session.ready:
                self._read(session)
            else:
                self._advance(session)
        return stopped

    def _advance(self, session: Session) -> None:
        """Continue a handshake. Say hello after it, which tells the back end the connection id."""
        try:
            session.sock.do_handshake()
            session.sock.send(f"hello {session.device.name} {session.number}\n".encode())
        except ssl.SSLWantReadError:
            self._epoll.modify(session.fd, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._epoll.modify(session.fd, select.EPOLLOUT)
        except OSError as error:
            self._lost(session, f"failed: {error}")
        else:
            session.ready = time.monotonic()
            self._epoll.modify(session.fd, select.EPOLLIN)

    def _read(self, session: Session) -> None:
        """Read everything that has arrived."""
        why = "closed"
        try:
            while data := session.sock.recv(RECORD):
                self._lines(session, data)
        except ssl.SSLWantReadError:
            return
        except OSError as error:
            why = f"failed: {error}"
        self._lost(session, why)

    def _lines(self, session: Session, data: bytes) -> None:
        now = time.monotonic()
        *lines, session.rest = (session.rest + data).split(b"\r\n")
        for line in lines:
            words = line.decode().split(" ")
            if words[1] != session.device.name:
                self._strange.append(f"{session.device.name} received {line!r}")
            else:
                self._received.append((int(words[0]), words[1], session.number, now))


def main() -> None:
    """Execute commands until the input ends."""
    commands = Commands()
    ports = [int(port) for port in sys.argv[1].split(",")]
    devices = Wanderers(ports, Path(sys.argv[2]), int(sys.argv[3]), commands)
    while (command := commands.next()) is not None:
        do = command.pop("do")
        if do == "stop":
            continue  # it came after the end
        begun = time.process_time()
        answer = getattr(devices, do)(**command)
        answer["cpu"] = time.process_time() - begun
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
