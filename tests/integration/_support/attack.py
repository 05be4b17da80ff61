"""Attack on the device port: silent or invalid connections, at a steady rate, from a few addresses.

The attack is a process of its own, so that it does not slow down the devices of the test: `python attack.py PORT RATE
silent|garbage|both ADDRESS …`
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from .process import ChildProcess
from .waiting import until

#: Ten loopback addresses that nothing else uses.
ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, 11))

_HELD = 6000
"""Maximum number of connections that the attacker keeps open."""

_TICK = 0.01


class Attack:
    """Attack that runs in a `with` block, and is stopped at its end."""

    def __init__(self, folder: Path, port: int, *, rate: int, kind: str = "both", addresses: Sequence[str] = ADDRESSES) -> None:
        """Set the `rate` in connections a second."""
        self._process = ChildProcess(
            [sys.executable, "-m", __name__, str(port), str(rate), kind, *addresses],
            output=folder / "attack",
            cwd=Path(__file__).parents[3],
        )

    @property
    def connections(self) -> int:
        """Return the number of connections made so far."""
        lines = self._process.output().splitlines()
        return int(lines[-1]) if lines else 0

    async def made(self, connections: int, timeout: float = 60) -> None:
        """Wait until this number of connections was made."""
        await until(lambda: self.connections >= connections or not self.goes_on, timeout, f"{connections} connections")
        assert self.goes_on, self._process.output()

    @property
    def goes_on(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()


def _garbage() -> itertools.cycle[bytes]:
    return itertools.cycle(
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            os.urandom(300),
            b"\x16",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            bytes(500),
            b"hello?\n",
        )
    )


def attack(port: int, rate: int, kind: str, addresses: Sequence[str]) -> None:
    """Connect without an end. A connection that the gateway closes is closed here only when it is the oldest."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    garbage = _garbage()
    words = {"silent": itertools.repeat(b""), "garbage": garbage, "both": (w for g in garbage for w in (b"", g))}[kind]
    sources = itertools.cycle(addresses)
    held: deque[socket.socket] = deque()
    greetings: dict[int, tuple[socket.socket, bytes]] = {}
    poll = select.epoll()
    begin = told = time.monotonic()
    made = 0
    while True:
        now = time.monotonic()
        # A delay is not made up for: the machine is busy enough.
        for _ in range(min(int((now - begin) * rate) - made, int(rate * _TICK * 4))):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            sock.bind((next(sources), 0))
            if sock.connect_ex(("127.0.0.1", port)) not in (0, errno.EINPROGRESS):
                sock.close()
                continue
            word = next(words)
            if word:
                greetings[sock.fileno()] = sock, word
                poll.register(sock, select.EPOLLOUT | select.EPOLLONESHOT)
            held.append(sock)
            made += 1
        begin = max(begin, now - made / rate)
        while len(held) > _HELD:
            oldest = held.popleft()
            greetings.pop(oldest.fileno(), None)
            oldest.close()
        for fd, _ in poll.poll(_TICK):
            if fd in greetings:
                sock, word = greetings.pop(fd)
                try:
                    sock.send(word)
                except OSError:
                    pass  # refused
        if now - told > 0.2:
            told = now
            print(made, flush=True)


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
