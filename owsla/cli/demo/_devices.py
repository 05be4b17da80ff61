"""The process of the simulated devices.

`owsla swarm` measures, and all its devices are alike. These are for somebody who watches: each has a name and a manner.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from ._fleet import TOKEN, Fleet, Manner

HOST: Final = "127.0.0.1"

AGAIN: Final = 2.0
"""Seconds until a device connects again."""

STAY: Final = 20.0
"""Seconds for which a device that roams stays connected; and half of them it is away."""

FAULT: Final = 20.0
"""Seconds between two attempts of a device that cannot connect."""

PAGE: Final = 4000
"""Bytes of a page of the printer."""

PAGES: Final = 20
"""Pages that the printer sends before it reads. Half of the answers fit into its socket; the others wait in the gateway, which
would close the connection at 64 KiB (--write-buffer)."""

SEGMENT: Final = 536
"""Maximum size of a segment to the printer. With the one of the loopback interface, 64 KB, the kernel would take megabytes for
it, and it would not be slow for a minute."""

_AT_HOME: Final = (47.37, 8.54)
"""Latitude and longitude where the tracker begins."""

Manners: TypeAlias = dict[Manner, Callable[[str], Awaitable[None]]]


class Devices:
    """All devices of a demo."""

    def __init__(self, fleet: Fleet, port: int, ca: str) -> None:
        self._fleet = fleet
        self._port = port
        self._trusting = ssl.create_default_context(cafile=ca)
        self._distrusting = ssl.create_default_context()

    async def run(self) -> None:
        """Run all devices, until the process ends."""
        manners: Manners = {
            Manner.TALKS: self._talk,
            Manner.WAITS: self._wait,
            Manner.LAGS: self._lag,
            Manner.ROAMS: self._roam,
            Manner.DISTRUSTS: self._distrust,
            Manner.MISTAKES: self._mistake,
        }
        await asyncio.gather(*(self._keep(name, manners[manner]) for name, manner in self._fleet.devices()))

    async def _keep(self, name: str, live: Callable[[str], Awaitable[None]]) -> None:
        """Let a device live again and again. What it cannot do, such as connect, is an event of the gateway."""
        while True:
            try:
                await live(name)
            except (OSError, EOFError):
                pass
            await asyncio.sleep(AGAIN)

    async def _connect(self, name: str, token: str = TOKEN) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and log in. Raise `EOFError` if the gateway refuses the login."""
        reader, writer = await asyncio.open_connection(HOST, self._port, ssl=self._trusting)
        writer.write(f"HELLO {name} {token}\n".encode())
        if not (await reader.readline()).startswith(b"WELCOME"):
            writer.close()
            raise EOFError
        return reader, writer

    async def _talk(self, name: str) -> None:
        reader, writer = await self._connect(name)
        answers = asyncio.create_task(_read(reader))
        kwh = random.uniform(1000, 9000)
        try:
            # Not all at the same moment.
            await asyncio.sleep(random.uniform(0, self._fleet.interval))
            while not answers.done():
                kwh += random.uniform(0, 0.002)
                writer.write(_line(kwh=round(kwh, 3), volt=round(random.gauss(230, 1.5), 1)))
                await writer.drain()
                await asyncio.sleep(self._fleet.interval)
        finally:
            answers.cancel()
            writer.close()

    async def _wait(self, name: str) -> None:
        reader, writer = await self._connect(name)
        try:
            while line := await reader.readline():
                # Its own line comes back from the echo, and must not be answered.
                if line.strip() == b"open":
                    writer.write(b"opened\n")
        finally:
            writer.close()

    async def _roam(self, name: str) -> None:
        reader, writer = await self._connect(name)
        answers = asyncio.create_task(_read(reader))
        latitude, longitude = _AT_HOME
        until = time.monotonic() + STAY
        try:
            while time.monotonic() < until and not answers.done():
                latitude, longitude = latitude + random.gauss(0, 1e-4), longitude + random.gauss(0, 1e-4)
                writer.write(_line(lat=round(latitude, 5), lon=round(longitude, 5)))
                await asyncio.sleep(1)
        finally:
            answers.cancel()
            writer.transport.abort()  # it leaves the network: no close_notify
        await asyncio.sleep(STAY / 2)

    async def _distrust(self, name: str) -> None:
        await asyncio.sleep(random.uniform(0, FAULT))
        try:
            await asyncio.to_thread(self._shake_hands)
        finally:
            await asyncio.sleep(FAULT)

    def _shake_hands(self) -> None:
        # A blocking socket: asyncio would close it without the alert that tells the gateway why.
        with socket.create_connection((HOST, self._port)) as sock:
            self._distrusting.wrap_socket(sock, server_hostname=HOST).close()

    async def _mistake(self, name: str) -> None:
        await asyncio.sleep(random.uniform(0, FAULT))
        try:
            await self._connect(name, "old-token")
        finally:
            await asyncio.sleep(FAULT)

    async def _lag(self, name: str) -> None:
        # A blocking socket in a thread: asyncio would read half a megabyte in advance.
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def live() -> None:
            try:
                self._print_pages(name)
            except OSError:
                pass
            loop.call_soon_threadsafe(done.set_result, None)

        threading.Thread(target=live, name=name, daemon=True).start()
        await done

    def _print_pages(self, name: str) -> None:
        """Send pages at once, and then one for each that was read."""
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
            sock.connect((HOST, self._port))
            with self._trusting.wrap_socket(sock, server_hostname=HOST) as tls:
                tls.sendall(f"HELLO {name} {TOKEN}\n".encode())
                tls.recv(100)
                for page in itertools.count(1):
                    tls.sendall(f"page {page} ".encode().ljust(PAGE, b".") + b"\n")
                    time.sleep(0.2 if page < PAGES else 2.0)
                    left = 0 if page < PAGES else PAGE
                    while left > 0:
                        got = len(tls.recv(left))
                        if not got:
                            return
                        left -= got


async def _read(reader: asyncio.StreamReader) -> None:
    """Read and forget answers, until the connection ends."""
    while await reader.read(65536):
        pass


def _line(**values: float) -> bytes:
    return json.dumps(values).encode() + b"\n"


def main(port: str, ca: str, count: str) -> int:
    """Run the devices of a demo, until the process is killed."""
    asyncio.run(Devices(Fleet(int(count)), int(port), ca).run())
    return 0
