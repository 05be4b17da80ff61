"""The plan of a demo: its ports and its broker, and from them the command lines of its processes."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...errors import ConfigError, os_reason
from ._fleet import Fleet

HOST: Final = "127.0.0.1"

DEVICE_PORT: Final = 8883
HTTP_PORT: Final = 9100
BROKER_PORT: Final = 5672

NEXT: Final = 100
"""Number of ports that are tried, from the default one on. They are below those that the kernel gives to connections."""

PREFIX: Final = "owsla-demo."
"""Beginning of the names of the queues on a RabbitMQ of the user, which may be in use."""


@dataclass(frozen=True, slots=True)
class OwnBroker:
    """A RabbitMQ of the user."""

    url: str
    """URL without the password."""
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """Options of the command."""

    devices: int
    port: int | None = None
    http_port: int | None = None
    broker: OwnBroker | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of devices, ports and broker of a demo."""

    devices: int
    port: int
    http_port: int
    embedded_port: int
    """Port of the in-memory broker."""
    broker: OwnBroker | None = None
    """RabbitMQ in place of the in-memory broker."""

    @property
    def fleet(self) -> Fleet:
        """Return the devices."""
        return Fleet(self.devices)

    def ports_taken(self) -> bool:
        """Return whether another program listens on one of the ports. Call it while the gateway does not run."""
        return any(_why_busy(port) is not None for port in (self.port, self.http_port, self.embedded_port))

    def files(self, token: str) -> dict[str, str]:
        """Return the content of the files by name, which are for this user only."""
        files = {"token": f"{token}\n", "devices": self.fleet.logins()}
        if self.broker is not None:
            files["broker-password"] = f"{self.broker.password}\n"
        return files

    def gateway(self, folder: Path) -> list[str]:
        """Return the arguments of `twistd`."""
        options = {
            "port": self.port,
            "interface": HOST,
            "http": f"{HOST}:{self.http_port}",
            "http-token-file": folder / "token",
            "control": folder / "owsla.sock",
            "certs-dir": folder / "certs",
            "dialect": "login",
            "login-checker": f"file:{folder / 'devices'}",
            "drain-timeout": "3s",
            "drain-spread": "0s",
        }
        if self.broker is None:
            options["embedded-port"] = self.embedded_port
        else:
            options.update(self._own_broker(folder, "from-device", "to-device"))
        return ["-n", "--pidfile=", "owsla", *(f"--{name}={value}" for name, value in options.items())]

    def echo(self, folder: Path) -> list[str]:
        """Return the arguments of `owsla` for the back end."""
        return ["echo", *self.broker_options(folder, "from-device", "to-device")]

    def broker_options(self, folder: Path, *queues: str) -> list[str]:
        """Return the options of a command for the broker, and for these queues."""
        if self.broker is None:
            return ["--broker", f"amqp://{HOST}:{self.embedded_port}"]
        return [word for name, value in self._own_broker(folder, *queues).items() for word in (f"--{name}", str(value))]

    def _own_broker(self, folder: Path, *queues: str) -> dict[str, str | Path | int]:
        assert self.broker is not None
        return {
            "broker": self.broker.url,
            "broker-password-file": folder / "broker-password",
            **{queue: f"{PREFIX}{queue.replace('-', '_')}" for queue in queues},
        }


def make_request(*, devices: int, port: int | None, http_port: int | None, broker: str | None) -> Request:
    """Return the options of the command. Raise `ConfigError` for the URL of the broker, and for the same port twice."""
    if port is not None and port == http_port:
        raise ConfigError(f"--http-port: {port} is the port for devices")
    return Request(devices, port, http_port, None if broker is None else _own_broker(broker))


def make_plan(request: Request) -> Plan:
    """Return a plan with ports that are free at the moment. Raise `ConfigError` if one that the user asks for is not."""
    asked = {port for port in (request.port, request.http_port) if port is not None}
    port = free_port(DEVICE_PORT, asked) if request.port is None else _asked_port("--port", request.port)
    asked.add(port)
    http_port = free_port(HTTP_PORT, asked) if request.http_port is None else _asked_port("--http-port", request.http_port)
    asked.add(http_port)
    embedded_port = free_port(BROKER_PORT, asked) if request.broker is None else 0
    return Plan(request.devices, port, http_port, embedded_port, request.broker)


def free_port(first: int, taken: set[int]) -> int:
    """Return the first free port from a number on, or any free port if many are in use."""
    for port in range(first, first + NEXT):
        if port not in taken and _why_busy(port) is None:
            return port
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _asked_port(option: str, port: int) -> int:
    reason = _why_busy(port)
    if reason is not None:
        raise ConfigError(f"{option}: {HOST} port {port}: {reason}")
    return port


def _why_busy(port: int) -> str | None:
    """Return why a port cannot be listened on, or `None`."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(1)  # another program may be bound to all addresses with SO_REUSEADDR
        except OSError as error:
            return os_reason(error)
    return None


def _own_broker(url: str) -> OwnBroker:
    from ...config.addresses import BrokerAddress  # with idna, for the option only

    try:
        address = BrokerAddress.parse(url)
    except ConfigError as error:
        raise ConfigError(f"--broker: {error}") from None
    return OwnBroker(str(address), address.password)
