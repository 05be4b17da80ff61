"""The lab: starts everything that a test needs, and ends it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .backend import Backend, Message
from .device import Device, Plain
from .owsla import Option, Owsla
from .proxy import Proxy
from .waiting import PATIENCE
from .wire import FakeBroker, WireClient


class Broker(Protocol):
    """Common interface of the embedded broker and RabbitMQ."""

    host: str
    port: int

    @property
    def url(self) -> str: ...

    async def start(self) -> None: ...

    async def kill(self) -> None: ...

    async def close(self) -> None: ...


class Gateway:
    """Owsla between devices and a back end, on queues that no other test uses."""

    def __init__(self, lab: Lab, owsla: Owsla, broker_url: str, from_device: str, to_device: str) -> None:
        self.lab = lab
        self.owsla = owsla
        self.broker_url = broker_url
        self.from_device = from_device
        self.to_device = to_device
        self.undeliverable = f"{to_device}.undeliverable"
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        assert self._backend is not None, "this gateway has no back end"
        return self._backend

    async def connect_backend(self) -> Backend:
        """Connect a back end: again, after an outage of the broker."""
        if self._backend is not None:
            await self._backend.close()
        self._backend = await self.lab.backend(self.broker_url, self.from_device, self.undeliverable)
        return self._backend

    async def message(self, timeout: float = PATIENCE) -> Message:
        """Take the message of the next line."""
        return await self.backend.get(self.from_device, timeout)

    async def messages(self, count: int, timeout: float = PATIENCE) -> list[Message]:
        """Take the messages of the next `count` lines."""
        return await self.backend.inbox[self.from_device].take(count, timeout)

    async def refused(self, timeout: float = PATIENCE) -> Message:
        """Take the next undeliverable message."""
        return await self.backend.get(self.undeliverable, timeout)

    async def send(self, connection_id: object, body: bytes, **properties: Any) -> None:
        """Publish a line for a device on to_device."""
        await self.backend.publish(self.to_device, body, {"connection_id": connection_id}, **properties)

    async def introduce(self, device: Device | Plain) -> str:
        """Let a device send a line. Return the connection id in its message."""
        greeting = secrets.token_hex(8).encode()
        device.send_line(greeting)
        found = await self.backend.inbox[self.from_device].find(lambda message: message.body == greeting)
        return found.connection_id

    async def round_trip(self, device: Device | Plain) -> None:
        """Check that a line of a device arrives, and that the answer reaches it, both unchanged."""
        connection_id = await self.introduce(device)
        answer = secrets.token_hex(8).encode()
        await self.send(connection_id, answer)
        assert await device.line() == answer


class Lab:
    """Owner of everything that a test starts. It ends all, in reverse order, also after a failure."""

    def __init__(self, folder: Path, certs_dir: Path, options: Mapping[str, Option] | None = None) -> None:
        """`options` are those of each Owsla that has none of its own with the same name."""
        self.folder = folder
        self.certs_dir = certs_dir
        self._options = dict(options or {})
        self._owslas: list[Owsla] = []
        self._ends: list[Callable[[], Awaitable[None]]] = []

    def new_owsla(self, **options: Any) -> Owsla:
        """Return an Owsla that is not started. `env` and `argv` are as for `Owsla`, the rest are its options."""
        folder, certs_dir = self.folder / f"owsla-{len(self._owslas)}", options.pop("certs_dir", self.certs_dir)
        owsla = Owsla(folder, certs_dir, **{**self._options, **options})
        self._owslas.append(owsla)
        return owsla

    async def gateway(self, broker_url: str, *, backend: bool = True, **options: Option) -> Gateway:
        """Start an Owsla on a broker, with its own queue names, and a back end."""
        name = secrets.token_hex(4)
        options = {"from_device": f"from_{name}", "to_device": f"to_{name}", "broker": broker_url} | options
        owsla = self.new_owsla(**options)
        gateway = Gateway(self, owsla, broker_url, str(options["from_device"]), str(options["to_device"]))
        await owsla.start()
        if backend:
            await gateway.connect_backend()
        return gateway

    async def device(self, where: Gateway | Owsla, **options: Any) -> Device:
        """Connect a device; to the first door, unless `port` is that of another one."""
        owsla = where.owsla if isinstance(where, Gateway) else where
        device = Device(options.pop("port", owsla.port), options.pop("ca", owsla.ca), **options)
        self._ends.append(device.close)
        return await device.connect()

    def waiting_device(self, where: Gateway | Owsla, **options: Any) -> Device:
        """Return a device that is not connected yet. `port` is as for `device`."""
        owsla = where.owsla if isinstance(where, Gateway) else where
        device = Device(options.pop("port", owsla.port), options.pop("ca", owsla.ca), **options)
        self._ends.append(device.close)
        return device

    async def device_at(self, port: int, ca: Path, **options: Any) -> Device:
        """Connect a device to a port: another door, or a load balancer."""
        device = Device(port, ca, **options)
        self._ends.append(device.close)
        return await device.connect()

    def ends(self, end: Callable[[], Awaitable[None]]) -> None:
        """Have `end` called at the end of the test."""
        self._ends.append(end)

    async def plain(self, port: int, **options: Any) -> Plain:
        """Open a TCP connection without TLS."""
        plain = Plain(port, **options)
        self._ends.append(plain.close)
        return await plain.connect()

    async def backend(self, url: str, *queues: str) -> Backend:
        """Connect a back end."""
        backend = Backend(url, queues)
        self._ends.append(backend.close)
        return await backend.start()

    async def wire(self, port: int, **options: Any) -> WireClient:
        """Connect an AMQP client at byte level."""
        wire = WireClient(port, **options)
        self._ends.append(wire.close)
        return await wire.connect()

    async def proxy(self, target: int, certificate: tuple[Path, Path] | None = None) -> Proxy:
        """Start a proxy in front of a port. With a certificate it speaks TLS."""
        proxy = Proxy(target, certificate)
        self._ends.append(proxy.close)
        return await proxy.start()

    async def fake_broker(self, instead: dict[str, bytes] | None = None) -> FakeBroker:
        """Start a broker that sends invalid answers."""
        fake = FakeBroker(instead)
        self._ends.append(fake.close)
        return await fake.start()

    async def close(self) -> None:
        """End everything, and then check the output of each Owsla."""
        problems: list[BaseException] = []
        while self._ends:
            try:
                await self._ends.pop()()
            except Exception as error:  # the rest must be ended too
                problems.append(error)
        for owsla in self._owslas:
            owsla.kill()
        for owsla in self._owslas:
            owsla.assert_tidy()
        if problems:
            raise problems[0]
