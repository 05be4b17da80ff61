"""Nodes on the same queues, to which devices log in, and a back end that addresses the devices by name."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
from twisted.internet.defer import Deferred, gatherResults

from .backend import Backend, Message
from .device import Device
from .lab import Lab
from .owsla import Option, Owsla
from .waiting import PATIENCE, pause, until

LONGEST = "x" * 255

TOKEN = "t"

#: Seconds within which every part has noticed a fault, also on a busy machine.
NOTICED = 30


@dataclass
class NamedDevice:
    """Connection of a device that has logged in."""

    name: str
    device: Device
    connection_id: str

    @property
    def node(self) -> str:
        return self.connection_id[:8]

    async def lines(self, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """Take the next lines."""
        return await self.device.lines.take(count, timeout)


class Site:
    """Nodes on the same queues, to which devices log in, and a back end that sends to devices by name."""

    def __init__(self, lab: Lab, broker_url: str, folder: Path, **options: Option) -> None:
        suffix = secrets.token_hex(4)
        self.from_device, self.to_device = f"from_{suffix}", f"to_{suffix}"
        self.undeliverable, self.reports = f"{self.to_device}.undeliverable", f"reports_{suffix}"
        self._lab = lab
        self.broker_url = broker_url
        names = [f"d{number}" for number in range(100)] + [LONGEST]
        self._names = iter(names)
        tokens = folder / f"devices-{suffix}"
        tokens.write_text("".join(f"{name}:{TOKEN}\n" for name in names))
        self.options: dict[str, Any] = {
            "broker": broker_url,
            "from_device": self.from_device,
            "to_device": self.to_device,
            "dialect": "login",
            "login_checker": f"file:{tokens}",
            "drain_spread": "0s",
            **options,
        }
        self.nodes: list[Owsla] = []
        self._backend: Backend | None = None
        self._found: dict[str, dict[bytes, list[Message]]] = {}

    # -- nodes ---------------------------------------------------------------------------------------------------------------

    async def start(self, *more: Mapping[str, Option]) -> None:
        """Start a gateway for each of these sets of further options, all at once after the first."""
        first, *others = [self._lab.new_owsla(**(self.options | dict(options))) for options in more]
        await first.start()
        await gatherResults([Deferred.fromCoroutine(owsla.start()) for owsla in others])
        self.nodes = [first, *others]
        for owsla, options in zip(self.nodes, more, strict=True):
            workers = int(str(options.get("workers") or 0))
            await until(lambda: len(owsla.lines(r"worker-\d#info\] Listening")) == workers, NOTICED, "workers")  # noqa: B023

    async def stop(self) -> None:
        """Stop all nodes in order."""
        for owsla in self.nodes:
            owsla.process.signal(signal.SIGTERM)
        for owsla in self.nodes:
            assert await owsla.exited(45) == 0, owsla.output()

    # -- devices -------------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """Return the id of a device that was never connected."""
        return next(self._names)

    async def log_in(self, lab: Lab, owsla: Owsla, name: str, **options: Any) -> NamedDevice:
        """Connect a device and log in."""
        device = await lab.device(owsla, **options)
        greeting = secrets.token_hex(8).encode()
        device.send_line(f"HELLO {name} {TOKEN}".encode(), greeting)
        assert await device.line() == b"WELCOME " + name.encode()
        message = await self.backend.inbox[self.from_device].find(lambda message: message.body == greeting)
        assert message.headers["device_id"] == name
        return NamedDevice(name, device, message.connection_id)

    # -- the back end --------------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        assert self._backend is not None
        return self._backend

    async def connect(self, lab: Lab) -> None:
        """Connect a back end that finds its queues empty."""
        queues = self.from_device, self.undeliverable, self.reports
        first = await lab.backend(self.broker_url)
        await first.call(lambda channel: channel.queue_declare(self.reports, durable=True))
        for queue in queues:
            await first.call(lambda channel: channel.queue_purge(queue))  # noqa: B023
        await first.close()
        await self.reconnect(lab)

    async def reconnect(self, lab: Lab) -> None:
        """Connect a back end, in place of an earlier one."""
        if self._backend is not None:
            await self._backend.close()
        self._backend = await lab.backend(self.broker_url, self.from_device, self.undeliverable, self.reports)
        self._found = {queue: {} for queue in (self.undeliverable, self.reports)}

    async def send(self, name: object, body: bytes, more: Mapping[str, Any] | None = None, **properties: Any) -> None:
        """Publish a message for a device, by its name. The body is its correlation id."""
        headers = {"device_id": name, **(more or {})}
        await self.backend.publish(self.to_device, body, headers, correlation_id=body.decode(), delivery_mode=2, **properties)

    async def send_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish many messages at once, in one transaction."""

        def publish(channel: Any) -> None:
            own = channel.connection.channel()
            own.tx_select()
            for name, body in messages:
                properties = pika.BasicProperties(headers={"device_id": name}, delivery_mode=2)
                own.basic_publish("", self.to_device, body, properties)
            own.tx_commit()
            own.close()

        await self.backend.call(publish, 60)

    async def record(self, body: bytes, timeout: float = PATIENCE) -> Message:
        """Return the undeliverable message with this body."""
        return await self._take(self.undeliverable, body, timeout)

    async def report(self, body: bytes, timeout: float = PATIENCE) -> tuple[str, str]:
        """Return the report of a message: its word, and the connection id."""
        headers = (await self._take(self.reports, body, timeout)).headers
        return headers["owsla_report"], headers.get("connection_id", "")

    async def _take(self, queue: str, body: bytes, timeout: float) -> Message:
        found = self._found[queue]
        while not found.get(body):
            message = await self.backend.get(queue, timeout)
            key = message.body if queue == self.undeliverable else message.properties.correlation_id.encode()
            found.setdefault(key, []).append(message)
        return found[body].pop(0)

    def left(self, queue: str) -> list[bytes]:
        """Return the messages of a queue that no test has asked for, by their keys."""
        messages = [message for found in self._found[queue].values() for message in found]
        return [message.body or message.properties.correlation_id for message in messages + self.backend.inbox[queue].clear()]

    def nothing_else_on_record(self) -> None:
        """Check that everything on record was expected."""
        assert not self.left(self.undeliverable)

    async def empty(self) -> None:
        """Wait until no message is ready in the queue of messages to devices."""
        for _ in range(500):
            if not await self.backend.count(self.to_device):
                return
            await pause(0.02)
        raise AssertionError(f"{self.to_device} is not empty")
