"""Several hosts on this machine: network namespaces with addresses of their own, and what runs in them.

                        the tests
                    (root namespace)
           front a /       |         \\ front b
        ┌─────────┐  ┌─────┴──────┐  ┌─────────┐
        │ gateway │  │   broker   │  │ gateway │
        │    a    ├──┤  (switch)  ├──┤    b    │
        └─────────┘  └────────────┘  └─────────┘

Devices reach a gateway over its front cable, and all reach the broker through the switch, which is in the broker's namespace.
A gateway's cable to it can be cut in such a way that packets vanish: no reset, no refusal, and the link's light stays on.

A namespace here has no name. It is there as long as a process is in it, and the kernel takes its cables with it: so nothing is
left behind, also when the tests are killed. (A host that was cut off then stays for the minute or two in which the kernel tries
to say goodbye.) Names and addresses of what the tests' own namespace sees of it are new ones each time.
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
from .rabbitmq import BOOT, Epmd, RabbitMQ, _script
from .waiting import current_reactor, until

#: Set aside for tests of networks (RFC 2544): no machine's own addresses are in here.
_RANGE: Final = IPv4Network("198.18.0.0/15")

_TUN: Final = "/dev/net/tun"

#: The switch.
LAN: Final = "lan"

_TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


class Unavailable(Exception):
    """There are no namespaces here, and why. `missing`: they could be had, if that were installed."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def check() -> None:
    """Raise `Unavailable` where network namespaces, or cables between them, cannot be made."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise Unavailable(f"network namespaces need {tool} ({package})", missing=True)
    # In a namespace that goes away with the command. A container's root may do neither, or the kernel may lack a kind.
    script = "ip link add end1 type veth peer name end2 && ip link add lan type bridge && ip link set end1 master lan"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode != 0:
        raise Unavailable(f"network namespaces cannot be made here: {tried.stderr.strip()}")


def _run(*command: str) -> str:
    """Run a command that takes no time to speak of."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Here:
    """Where the tests themselves are."""

    def command(self, *argv: str) -> list[str]:
        """Return the command that runs this one in here, as the same process."""
        return list(argv)

    def ip(self, *argv: str) -> str:
        """Run `ip` in here."""
        return _run(*self.command("ip", *argv))

    def lay(self, name: str, other: Host, other_name: str) -> None:
        """Lay a cable to another host; the names are those of its ends."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", other_name, "netns", str(other.pid))

    def introduce(self, device: str, other: Host, other_device: str, address: str) -> None:
        """Say for good which Ethernet address another's IP address has.

        That it does not answer is to show in TCP; it is not to be that nobody has the address.
        """
        found = json.loads(other.ip("-json", "link", "show", "dev", other_device))
        self.ip("neigh", "replace", address, "lladdr", found[0]["address"], "dev", device, "nud", "permanent")


class Host(Here):
    """A network namespace. `name` is for people."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._keeper: ChildProcess | None = None

    async def start(self) -> None:
        """Make the namespace."""
        script = "ip link set lo up && echo ready && exec sleep infinity"
        self._keeper = ChildProcess(["unshare", "--net", "sh", "-c", script], output=self._folder / f"{self.name}.log")
        await self._keeper.wait_for_line("ready")

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    @property
    def pid(self) -> int:
        """The process that keeps the namespace, until the last of those that run in there has ended, too."""
        assert self._keeper is not None, f"{self.name} is not started"
        return self._keeper.pid

    def close(self) -> None:
        """Let go of the namespace."""
        if self._keeper is not None:
            self._keeper.kill()


class GatewayHost(Host):
    """A host for an Owsla: one cable to devices, one to the broker's switch."""

    def __init__(self, name: str, folder: Path, address: str, back: str, network: Network) -> None:
        """`address` is where devices reach it, `back` what it has towards the broker."""
        super().__init__(name, folder)
        self.address = address
        self._back = back
        self._port = f"port-{name}"  # the switch's end of the cable
        self._network = network
        self._rough: RoughCable | None = None

    def connect(self) -> None:
        """Lay the cable to the switch."""
        self.lay("back", self._network.broker, self._port)
        self._plug_in()

    def roughen(self, rng: random.Random, *, delay: float, loss: float) -> RoughCable:
        """Take another cable to the switch, on which packets take `delay` seconds, and each is lost with this chance."""
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
        """From now on every packet between this host and the broker vanishes, and nobody is told."""
        self._network.broker.ip("link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Packets pass again."""
        self._network.broker.ip("link", "set", self._port, "master", LAN)

    def go_dark(self) -> None:
        """Let packets from and to devices vanish, too: as when the power fails, nothing is heard of it any more."""
        self.cut()
        self.ip("link", "set", "front", "down")

    def restore(self) -> None:
        """Make everything as it was at first, whatever it is now."""
        if self._rough is not None:
            self._rough.close()
            self._rough = None
            self.connect()
        self.mend()
        self.ip("link", "set", "front", "up")


class Network:
    """The broker's host, and two for gateways. `broker_address` is the broker's, for them and for the tests."""

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
        """Make the namespaces, and lay the cables."""
        broker, plan = self.broker, self._plan
        await broker.start()
        # It forwards at once, rather than after half a minute of looking for loops.
        broker.ip("link", "add", LAN, "type", "bridge", "forward_delay", "0")
        broker.ip("address", "add", f"{self.broker_address}/25", "dev", LAN)
        # An Ethernet address of its own, or it would be that of whichever cable is in it.
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
        """Lay a cable from the tests to a host. `name` is one letter: names of links have 15 at most."""
        here, name = Here(), f"{self._name}-{name}"
        here.lay(name, host, end)
        self._cables.append(name)
        here.ip("address", "add", address, "dev", name)
        here.ip("link", "set", name, "up")

    def close(self) -> None:
        """Let go of all of it. What runs in there is to be ended before."""
        while self._cables:
            Here().ip("link", "delete", self._cables.pop())
        for host in (self.a, self.b, self.broker):
            host.close()


def _unused() -> list[IPv4Address]:
    """A network of 256 addresses that this machine knows nothing of."""
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
    """Raise `Unavailable` where there can be no rough cables."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        raise Unavailable(f"cables with delay and loss need {_TUN}: {error.strerror}") from None


class RoughCable:
    """A cable on which each packet takes its time, and some are lost. (The kernel's own, netem, is not in every kernel.)

    Its ends are network devices whose packets this process gets, and gives to the other one. They go when it is closed.
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
        """A packet was sent at this end."""
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
        """Take it away."""
        if self._arrival is not None:
            self._arrival.cancel()
        for end in self.ends:
            end.close()


@implementer(IReadDescriptor)
class End:
    """One end: a network device, to be put somewhere."""

    def __init__(self, cable: RoughCable) -> None:
        self._cable = cable
        self._file = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", b"owsla%d", _IFF_TAP | _IFF_NO_PI)  # the kernel puts a number there
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
        """A packet came from the other end."""
        try:
            os.write(self._file, packet)
        except OSError:
            pass  # the device is down, or has no room: so the packet is lost

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for it; who made it closes it."""

    def logPrefix(self) -> str:
        return self.name

    def close(self) -> None:
        """The device goes with the file."""
        current_reactor().removeReader(self)
        os.close(self._file)


# -- What runs there ---------------------------------------------------------------------------------------------------


class HostOwsla(Owsla):
    """An Owsla on a host of its own, which devices reach at the host's address."""

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
            # Beside loopback, which is always there, it listens where the tests can see that it does.
            env = {**os.environ, **self.env, "ERL_EPMD_ADDRESS": self._address}
            self._process = ChildProcess(
                self._host.command(epmd, "-port", str(self.port)), output=self.folder / "epmd.log", env=env
            )
            await until(lambda: accepts(self.port, self._address), what="epmd")


class HostRabbitMQ(RabbitMQ):
    """A RabbitMQ on a host of its own."""

    def __init__(self, host: Host, address: str, folder: Path) -> None:
        # Without a word RabbitMQ lets guest in from its own host only.
        super().__init__(folder, config="loopback_users = none\n", epmd=_HostEpmd(host, address, folder))
        self._own_epmd = True
        self._namespace = host
        self.host = address
        self._env["RABBITMQ_NODE_IP_ADDRESS"] = address

    async def start(self) -> None:
        await self._epmd.start()
        self._starts += 1
        log = self.folder / f"server.{self._starts}.log"
        self._beam = ChildProcess(self._there("rabbitmq-server"), output=log, env=self._env)
        await self._beam.wait_for_line("Server startup complete", BOOT)

    def mark(self) -> int:
        """Return a place in the log, for `wait_for_line`."""
        assert self._beam is not None
        return len(self._beam.output())

    async def wait_for_line(self, pattern: str, timeout: float, *, start: int) -> None:
        """Wait for a line of its log that matches."""
        assert self._beam is not None
        await self._beam.wait_for_line(pattern, timeout, start=start)

    async def ctl(self, *arguments: str, timeout: float = 60) -> str:
        self._commands += 1
        log = self.folder / f"ctl.{self._commands}.log"
        command = ChildProcess(self._there("rabbitmqctl", "--silent", *arguments), output=log, env=self._env)
        try:
            status = await command.wait(timeout)
        finally:
            command.kill()
        assert status == 0, f"rabbitmqctl {' '.join(arguments)}: status {status}\n{command.output()}"
        return command.output()

    def _there(self, name: str, *arguments: str) -> list[str]:
        script = _script(name)
        assert script is not None
        return self._namespace.command(script, *arguments)


class HostLab(Lab):
    """A lab whose Owslas may be on hosts; devices find them there."""

    def owsla_on(self, host: GatewayHost, **options: Any) -> HostOwsla:
        """Make an Owsla on a host that is not started yet."""
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
