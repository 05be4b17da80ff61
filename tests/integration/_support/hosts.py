"""Several hosts on this machine: network namespaces with addresses of their own, and what runs in them.

                        the tests
                    (root namespace)
           front a /       |         \\ front b
        ┌─────────┐  ┌─────┴──────┐  ┌─────────┐
        │ gateway │  │   broker   │  │ gateway │
        │    a    ├──┤  (switch)  ├──┤    b    │
        └─────────┘  └────────────┘  └─────────┘

Devices reach a gateway over its front cable. Gateways reach the broker through the switch, in the namespace of the broker.
The cable of a gateway to the switch can be cut so that packets vanish: no reset, no refusal, and the link stays up.

A namespace here has no name. It exists while a process is in it, and the kernel removes its cables with it: so nothing is left
behind, also when the tests are killed. (The namespace of a host that was cut off then stays for a minute or two, in which the
kernel tries to close its connections.) Names and addresses in the namespace of the tests are new ones each time.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import shutil
import struct
import subprocess
from collections import deque
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from .device import Device
from .lab import Gateway, Lab
from .owsla import Owsla, twistd
from .process import ChildProcess, accepts
from .rabbitmq import BOOT, PRELOAD, Epmd, RabbitMQ, _script
from .rabbitmqctl import RabbitMQCtl
from .waiting import current_reactor, until

#: Reserved for tests of networks (RFC 2544): machines do not use these addresses themselves.
_RANGE: Final = IPv4Network("198.18.0.0/15")

_TUN: Final = "/dev/net/tun"

#: Address of the switch.
LAN: Final = "lan"

_TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


class Unavailable(Exception):
    """Error with the reason why there are no namespaces here. `missing` is true if installing a package would help."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def check() -> None:
    """Raise `Unavailable` if network namespaces, or cables between them, cannot be created."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise Unavailable(f"network namespaces need {tool} ({package})", missing=True)
    # The namespace ends with the command. Root in a container may lack the permission, and a kernel may lack a device type.
    script = "ip link add end1 type veth peer name end2 && ip link add lan type bridge && ip link set end1 master lan"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode != 0:
        raise Unavailable(f"network namespaces cannot be made here: {tried.stderr.strip()}")


def _run(*command: str) -> str:
    """Run a short command."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Here:
    """The namespace of the tests themselves."""

    def command(self, *argv: str) -> list[str]:
        """Return the command that runs this one in the namespace, as the same process."""
        return list(argv)

    def ip(self, *argv: str) -> str:
        """Run `ip` in this namespace."""
        return _run(*self.command("ip", *argv))

    def lay(self, name: str, other: Host, other_name: str) -> None:
        """Lay a cable to another host. The names are those of its ends."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", other_name, "netns", str(other.pid))

    def introduce(self, device: str, other: Host, other_device: str, address: str) -> None:
        """Set a permanent ARP entry for another host.

        When that host is cut off, TCP must time out; without the entry, the address would be reported as unreachable.
        """
        found = json.loads(other.ip("-json", "link", "show", "dev", other_device))
        self.ip("neigh", "replace", address, "lladdr", found[0]["address"], "dev", device, "nud", "permanent")


class Host(Here):
    """A network namespace. `name` appears in messages only."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._keeper: ChildProcess | None = None

    async def start(self) -> None:
        """Create the namespace."""
        script = "ip link set lo up && echo ready && exec sleep infinity"
        self._keeper = ChildProcess(["unshare", "--net", "sh", "-c", script], output=self._folder / f"{self.name}.log")
        await self._keeper.wait_for_line("ready")

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    @property
    def pid(self) -> int:
        """Return the process that keeps the namespace, until the last process in it has ended, too."""
        assert self._keeper is not None, f"{self.name} is not started"
        return self._keeper.pid

    def close(self) -> None:
        """Release the namespace."""
        if self._keeper is not None:
            self._keeper.kill()


class GatewayHost(Host):
    """Host for an Owsla: one cable to devices, one to the switch of the broker."""

    def __init__(self, name: str, folder: Path, address: str, back: str, network: Network) -> None:
        """Set the `address` for devices, and the address `back` towards the broker."""
        super().__init__(name, folder)
        self.address = address
        self._back = back
        self._port = f"port-{name}"  # the end of the cable at the switch
        self._network = network
        self._rough: RoughCable | None = None

    def connect(self) -> None:
        """Lay the cable to the switch."""
        self.lay("back", self._network.broker, self._port)
        self._plug_in()

    def roughen(self, rng: random.Random, *, delay: float, loss: float) -> RoughCable:
        """Lay another cable to the switch, with `delay` seconds for each packet, and this probability of loss."""
        cable = self._rough = RoughCable(rng, delay, loss)
        self.ip("link", "delete", "back")
        for end, host, name in zip(cable.ends, (self, self._network.broker), ("back", self._port), strict=True):
            Here().ip("link", "set", end.name, "netns", str(host.pid), "name", name)
        self._plug_in()
        return cable

    def _plug_in(self) -> None:
        broker = self._network.broker
        self.ip("address", "add", f"{self._back}/25", "dev", "back")
        self.ip("link", "set", "back", "up")
        broker.ip("link", "set", self._port, "up")
        self.mend()
        self.introduce("back", broker, LAN, self._network.broker_address)
        broker.introduce(LAN, self, "back", self._back)

    def cut(self) -> None:
        """Drop every packet between this host and the broker, without an error to either side."""
        self._network.broker.ip("link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Let packets pass again."""
        self._network.broker.ip("link", "set", self._port, "master", LAN)

    def go_dark(self) -> None:
        """Drop packets from and to devices, too, as in a power failure."""
        self.cut()
        self.ip("link", "set", "front", "down")

    def restore(self) -> None:
        """Restore the initial state."""
        if self._rough is not None:
            self._rough.close()
            self._rough = None
            self.connect()
        self.mend()
        self.ip("link", "set", "front", "up")


class Network:
    """Network of a host for the broker, and two for gateways. `broker_address` is the address of the broker for them and for
    the tests.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._name = f"owsla-{secrets.token_hex(3)}"
        self._plan = _unused()
        self._cables: list[str] = []
        self.broker_address = str(self._plan[1])
        self.broker = Host("broker", folder)
        self.a = GatewayHost("a", folder, str(self._plan[130]), str(self._plan[3]), self)
        self.b = GatewayHost("b", folder, str(self._plan[134]), str(self._plan[4]), self)

    async def start(self) -> None:
        """Create the namespaces, and lay the cables."""
        broker, plan = self.broker, self._plan
        await broker.start()
        # Forward at once, rather than after half a minute of loop detection.
        broker.ip("link", "add", LAN, "type", "bridge", "forward_delay", "0")
        broker.ip("address", "add", f"{self.broker_address}/25", "dev", LAN)
        # A fixed Ethernet address: otherwise the bridge uses that of one of its cables.
        broker.ip("link", "set", LAN, "address", "02:00:00:00:00:01", "up")
        self._lay_to("s", broker, "port-tests", f"{plan[2]}/25")
        broker.ip("link", "set", "port-tests", "master", LAN, "up")
        for host, front in ((self.a, plan[129]), (self.b, plan[133])):
            await host.start()
            host.connect()
            self._lay_to(host.name, host, "front", f"{front}/30")
            host.ip("address", "add", f"{host.address}/30", "dev", "front")
            host.ip("link", "set", "front", "up")

    def _lay_to(self, name: str, host: Host, end: str, address: str) -> None:
        """Lay a cable from the tests to a host. `name` is one letter: link names have at most 15."""
        here, name = Here(), f"{self._name}-{name}"
        here.lay(name, host, end)
        self._cables.append(name)
        here.ip("address", "add", address, "dev", name)
        here.ip("link", "set", name, "up")

    def close(self) -> None:
        """Release all namespaces. The processes in them must be stopped before."""
        while self._cables:
            Here().ip("link", "delete", self._cables.pop())
        for host in (self.a, self.b, self.broker):
            host.close()


def _unused() -> list[IPv4Address]:
    """Return a network of 256 addresses that this machine does not use."""
    known = [
        IPv4Interface(f"{address['local']}/{address['prefixlen']}").network
        for link in json.loads(Here().ip("-json", "-4", "address", "show"))
        for address in link["addr_info"]
    ]
    free = [network for network in _RANGE.subnets(new_prefix=24) if not any(network.overlaps(one) for one in known)]
    return list(secrets.choice(free))


# -- A cable that is no good -------------------------------------------------------------------------------------------

#: linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000


def check_rough() -> None:
    """Raise `Unavailable` if cables with delay and loss cannot be created."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        raise Unavailable(f"cables with delay and loss need {_TUN}: {error.strerror}") from None


class RoughCable:
    """Cable that delays each packet, and loses some. (The netem module is not in every kernel.)

    Its ends are TUN/TAP devices: this process reads the packets of each, and writes them to the other one. They are removed
    when it is closed.
    """

    def __init__(self, rng: random.Random, delay: float, loss: float) -> None:
        self._rng = rng
        self._delay = delay
        self._loss = loss
        self.passed = 0
        self.lost = 0
        self._under_way: deque[tuple[float, End, bytes]] = deque()
        self._arrival: Any = None
        self.ends = (End(self), End(self))
        for end in self.ends:
            current_reactor().addReader(end)

    def take(self, end: End, packet: bytes) -> None:
        """Take a packet that was sent at this end."""
        if self._rng.random() < self._loss:
            self.lost += 1
            return
        near, far = self.ends
        self._under_way.append((current_reactor().seconds() + self._delay, far if end is near else near, packet))
        if self._arrival is None:
            self._arrival = current_reactor().callLater(self._delay, self._arrive)

    def _arrive(self) -> None:
        self._arrival = None
        reactor = current_reactor()
        while self._under_way and self._under_way[0][0] <= reactor.seconds():
            _, end, packet = self._under_way.popleft()
            self.passed += 1
            end.give(packet)
        if self._under_way:
            self._arrival = reactor.callLater(max(0.0, self._under_way[0][0] - reactor.seconds()), self._arrive)

    def close(self) -> None:
        """Remove the cable."""
        if self._arrival is not None:
            self._arrival.cancel()
        for end in self.ends:
            end.close()


@implementer(IReadDescriptor)
class End:
    """One end: a network device, to be moved to a namespace."""

    def __init__(self, cable: RoughCable) -> None:
        self._cable = cable
        self._file = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", b"owsla%d", _IFF_TAP | _IFF_NO_PI)  # the kernel inserts a number
        self.name = fcntl.ioctl(self._file, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()

    def fileno(self) -> int:
        return self._file

    def doRead(self) -> None:
        for _ in range(100):
            try:
                packet = os.read(self._file, 65536)
            except BlockingIOError:
                return
            self._cable.take(self, packet)

    def give(self, packet: bytes) -> None:
        """Write a packet from the other end."""
        try:
            os.write(self._file, packet)
        except OSError:
            pass  # the device is down, or full: the packet is lost

    def connectionLost(self, reason: Failure) -> None:
        """Ignore the end of the reactor: the owner closes the device."""

    def logPrefix(self) -> str:
        return self.name

    def close(self) -> None:
        """Remove the device: it ends with its file."""
        current_reactor().removeReader(self)
        os.close(self._file)


# -- What runs there ---------------------------------------------------------------------------------------------------


class HostOwsla(Owsla):
    """Owsla on a host of its own, which devices reach at the address of the host."""

    def __init__(self, host: GatewayHost, folder: Path, certs_dir: Path, **options: Any) -> None:
        super().__init__(folder, certs_dir, **({"interface": host.address} | options))
        self.host = host

    def launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._starts += 1
        self._process = ChildProcess(
            self.host.command(*twistd(), *self._argv),
            output=self.folder / f"output.{self._starts}",
            errors=self.folder / f"errors.{self._starts}",
            env=self._env,
            cwd=self.folder,
        )


class _HostEpmd(Epmd):
    def __init__(self, host: Host, address: str, folder: Path) -> None:
        super().__init__(folder)
        self._host = host
        self._address = address

    async def start(self) -> None:
        if self._process is None or self._process.poll() is not None:
            epmd = shutil.which("epmd")
            assert epmd is not None
            # It listens on loopback, which always exists, and where the tests can see it.
            env = {**os.environ, **self.env, "ERL_EPMD_ADDRESS": self._address}
            self._process = ChildProcess(
                self._host.command(epmd, "-port", str(self.port)), output=self.folder / "epmd.log", env=env
            )
            await until(lambda: accepts(self.port, self._address), what="epmd")


class HostRabbitMQ(RabbitMQ):
    """RabbitMQ on a host of its own."""

    def __init__(self, host: Host, address: str, folder: Path) -> None:
        # By default RabbitMQ accepts guest from its own host only.
        super().__init__(folder, config="loopback_users = none\n", epmd=_HostEpmd(host, address, folder))
        self._own_epmd = True
        self._namespace = host
        self.host = address
        self._env["RABBITMQ_NODE_IP_ADDRESS"] = address
        self._ctl = RabbitMQCtl(folder, self.node, self._env, through=host.command)

    async def start(self) -> None:
        await self._epmd.start()
        self._starts += 1
        log = self.folder / f"server.{self._starts}.log"
        script = _script("rabbitmq-server")
        assert script is not None
        self._beam = ChildProcess(self._namespace.command(script), output=log, env=self._env | PRELOAD)
        await self._beam.wait_for_line("Server startup complete", BOOT)

    def mark(self) -> int:
        """Return the present position in the log, for `wait_for_line`."""
        assert self._beam is not None
        return len(self._beam.output())

    async def wait_for_line(self, pattern: str, timeout: float, *, start: int) -> None:
        """Wait for a matching line of the log."""
        assert self._beam is not None
        await self._beam.wait_for_line(pattern, timeout, start=start)


class HostLab(Lab):
    """Lab with Owslas on hosts, and devices that connect to them."""

    def owsla_on(self, host: GatewayHost, **options: Any) -> HostOwsla:
        """Return an Owsla on a host, not started."""
        owsla = HostOwsla(host, self.folder / f"owsla-{len(self._owslas)}", self.certs_dir, **options)
        self._owslas.append(owsla)
        return owsla

    async def device(self, where: Gateway | Owsla, **options: Any) -> Device:
        return await super().device(where, **(self._address(where) | options))

    def waiting_device(self, where: Gateway | Owsla, **options: Any) -> Device:
        return super().waiting_device(where, **(self._address(where) | options))

    @staticmethod
    def _address(where: Gateway | Owsla) -> dict[str, str]:
        owsla = where.owsla if isinstance(where, Gateway) else where
        return {"host": owsla.host.address} if isinstance(owsla, HostOwsla) else {}
