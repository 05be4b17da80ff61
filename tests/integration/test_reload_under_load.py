"""Reloads under load: certificates and authorities are exchanged while devices are connected, and others connect all the time.

`bench/reload.py` measures the same with more devices.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from ._support.backend import Message
from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import PATIENCE, current_reactor, reactor_test, until
from .test_reload import ServerFiles, _replace, gateway_with, hang_up, serial_of

Kind = Literal["certificate", "authority", "both"]
Manner = Literal["signal", "half", "cut", "other", "watch"]

KINDS: Final[Sequence[Kind]] = ("certificate", "authority", "both")
MANNERS: Final[Sequence[Manner]] = ("signal", "half", "cut", "other", "watch")

SHOWN: Final = 5.0
"""Seconds from the signal until all devices must be shown the new certificate. It takes a tenth of a second, and the limit of
`bench/reload.py` is a second: a test machine is sometimes busy."""

WATCHED: Final = 15.0
"""Seconds for the watch to find a change: it looks every second, and waits for a second without a change."""

LARGE: Final = 1_000_000
"""Bytes of authorities in the file of `--client-ca`, which each TLS context has a copy of. Old contexts that were still
referenced would show in the memory of the process."""


def large_authorities(size: int) -> bytes:
    """Return certificates of authorities with this size together, in PEM format."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), bytes(20_000))
    pem = b""
    for number in count():
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"large {number}")])
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1)).add_extension(padding, critical=False)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        pem += certificate.public_bytes(serialization.Encoding.PEM)
        if len(pem) >= size:
            return pem
    raise AssertionError


class ClientFiles:
    """The file of `--client-ca`, with two authorities of devices: an exchange removes the first, and adds another one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "client-ca.pem"
        self._numbers = count()
        self._large = large_authorities(LARGE)
        self.first, self.second = self._authority(), self._authority()
        self.put(self.content())

    def _authority(self) -> Authority:
        name = f"authority-{next(self._numbers)}"
        return Authority(self.folder / name, name=name)

    def device(self, authority: Authority) -> Path:
        """Return a PEM file with a new device certificate of an authority, and its key."""
        certificate, key = authority.issue(f"device-{next(self._numbers)}")
        both = certificate.with_suffix(".both")
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return both

    def exchange(self) -> None:
        """Take another authority in the place of the first one, without writing the file."""
        self.first, self.second = self.second, self._authority()

    def content(self) -> bytes:
        return self.first.ca.read_bytes() + self._large + self.second.ca.read_bytes()

    def put(self, content: bytes) -> None:
        _replace(self.path, content)


@dataclass(frozen=True, slots=True)
class Visit:
    """A connection that succeeded: when it began and ended, and the serial number of the certificate that it was shown."""

    begin: float
    end: float
    serial: int


class Crowd:
    """Devices that stay connected, and others that connect all the time, send a line and leave after its acknowledgement."""

    def __init__(self, lab: Lab, gateway: Gateway, authority: Path) -> None:
        self._lab = lab
        self._gateway = gateway
        self._authority = authority
        self.certificate: Path | None = None
        """Certificate of the devices that connect from now on."""
        self.staying: list[Device] = []
        self._sent: Counter[int] = Counter()
        self._next = count()
        self.visits: list[Visit] = []
        self.failures: list[str] = []
        self._visiting: set[Deferred[None]] = set()
        self._calls = [LoopingCall(self._send), LoopingCall(self._begin_visit)]
        self.messages: dict[str, list[Message]] = defaultdict(list)
        """Messages behind the broker, by connection id."""
        self._answers: list[tuple[Device, bytes]] = []

    async def connect(self, number: int) -> None:
        """Connect some of the devices that stay."""
        for _ in range(number):
            self.staying.append(await self._lab.device(self._gateway, ca=self._authority, certificate=self.certificate))

    def start(self, lines: float, visits: float) -> None:
        """Begin to send lines and to connect, so often a second."""
        for call, rate in zip(self._calls, (lines, visits), strict=True):
            call.start(1 / rate).addErrback(lambda failure: self.failures.append(str(failure)))

    def _send(self) -> None:
        number = next(self._next) % len(self.staying)
        self.staying[number].send_line(b"%d %d" % (number, self._sent[number]))
        self._sent[number] += 1
        self.collect()

    def _begin_visit(self) -> None:
        visiting = Deferred.fromCoroutine(self._visit())
        self._visiting.add(visiting)
        visiting.addErrback(lambda failure: self.failures.append(failure.getErrorMessage()))
        visiting.addBoth(lambda _: self._visiting.discard(visiting))

    async def _visit(self) -> None:
        begin = current_reactor().seconds()
        device = Device(self._gateway.owsla.port, self._authority, certificate=self.certificate)
        try:
            await device.connect(2 * PATIENCE)
            serial = serial_of(device)
            device.send_line(b"visit")
            assert await device.line(2 * PATIENCE) == b"ACK 0"
            self.visits.append(Visit(begin, current_reactor().seconds(), serial))
        finally:
            await device.close()

    def collect(self) -> None:
        """Take the messages that have arrived behind the broker."""
        for message in self._gateway.backend.inbox[self._gateway.from_device].clear():
            self.messages[message.connection_id].append(message)

    async def answer(self) -> None:
        """Send a message to one of the devices that stay."""
        sender = next((key, found) for key, found in self.messages.items() if found[0].body != b"visit")
        connection_id, found = sender
        number = int(found[0].body.split()[0])
        text = b"answer %d" % len(self._answers)
        await self._gateway.send(connection_id, text)
        self._answers.append((self.staying[number], text))

    async def finish(self) -> None:
        """End the load, and check that no connect failed, no connection was lost, and no line was lost or out of order."""
        for call in self._calls:
            call.stop()
        await until(lambda: not self._visiting, 4 * PATIENCE, "the end of the last visits")
        assert not self.failures
        assert all(device.is_open for device in self.staying)
        total = sum(self._sent.values()) + len(self.visits)

        def arrived() -> bool:
            self.collect()
            return sum(map(len, self.messages.values())) >= total

        await until(arrived, PATIENCE, "the last lines")
        expected: Counter[tuple[bytes, ...]] = Counter([(b"visit",)] * len(self.visits))
        for number in range(len(self.staying)):
            expected[tuple(b"%d %d" % (number, line) for line in range(self._sent[number]))] += 1
        expected.pop((), None)
        assert Counter(tuple(message.body for message in found) for found in self.messages.values()) == expected
        for found in self.messages.values():
            assert [message.seq for message in found] == list(range(len(found)))
        await self._check_received()

    async def _check_received(self) -> None:
        """Check that each device that stays got its acknowledgements and answers."""
        received: dict[Device, list[bytes]] = {device: [] for device in self.staying}

        def complete() -> bool:
            for number, device in enumerate(self.staying):
                received[device] += device.lines.clear()
                if self._sent[number] and b"ACK %d" % (self._sent[number] - 1) not in received[device]:
                    return False
            return True

        await until(complete, PATIENCE, "the last acknowledgements")
        for device in self.staying:
            answers = [line for line in received[device] if line.startswith(b"answer")]
            assert answers == [text for to, text in self._answers if to is device]


class Exchanges:
    """Exchanges of the files of a gateway."""

    def __init__(self, gateway: Gateway, server: ServerFiles, clients: ClientFiles, crowd: Crowd) -> None:
        self._gateway = gateway
        self._server = server
        self._clients = clients
        self._crowd = crowd
        self._numbers = count()
        self._name = "first"
        self._serial = 0

    async def exchange(self, kind: Kind, manner: Manner) -> None:
        """Exchange files, and check that devices that connect are shown the new certificate in time."""
        name, owsla = f"{kind}-{next(self._numbers)}", self._gateway.owsla
        serial = self._server.issue(name) if kind != "authority" else self._serial
        name = name if kind != "authority" else self._name
        if kind != "certificate":
            self._clients.exchange()
        if manner in ("half", "cut", "other"):
            self._put_faulty(kind, manner, name)
            mark = hang_up(owsla)
            await owsla.wait_for_line("Reload failed, and nothing was changed", start=mark)
            await self._visits(self._serial)
        self._server.put_certificate(name)
        self._server.put_key(name)
        self._clients.put(self._clients.content())
        mark = owsla.mark() if manner == "watch" else hang_up(owsla)
        begin = current_reactor().seconds()
        await owsla.wait_for_line("Configuration reloaded", WATCHED if manner == "watch" else SHOWN, start=mark)
        await self._visits(serial)
        if manner != "watch":
            late = [visit for visit in self._crowd.visits if visit.begin > begin + SHOWN and visit.serial != serial]
            assert not late
        self._name, self._serial = name, serial
        self._crowd.certificate = self._clients.device(self._clients.second)

    async def _visits(self, serial: int) -> None:
        """Wait for some devices that connect after now, and check the certificate that they were shown."""
        now, visits = current_reactor().seconds(), self._crowd.visits

        def since() -> list[Visit]:
            return [visit for visit in visits if visit.begin > now]

        await until(lambda: len(since()) >= 4 or self._crowd.failures, 2 * PATIENCE, "visits")
        assert not self._crowd.failures
        if serial:
            assert {visit.serial for visit in since()} == {serial}

    def _put_faulty(self, kind: Kind, manner: Manner, name: str) -> None:
        """Write files that do not fit together, or are incomplete."""
        if kind == "authority":
            self._clients.put(self._clients.content()[: {"half": 100, "cut": -100, "other": LARGE // 2}[manner]])
        elif manner == "half":
            self._server.put_certificate(name)
        elif manner == "cut":
            self._server.put_key(name)
            self._server.put_certificate(name)
            content = self._server.cert.read_bytes()
            self._server.cert.write_bytes(content[: len(content) // 2])
        else:
            self._server.issue("other")
            self._server.put_key("other")
        if kind == "both":
            self._clients.put(self._clients.content())


def resident(pid: int) -> int:
    """Return the memory of a process in bytes: the resident set size."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("workers", "rounds"), [(1, 12), (2, 5)])
@reactor_test
async def test_reloads_under_load(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path, workers: int, rounds: int) -> None:
    """Devices notice nothing while certificates and authorities are exchanged: also half-written, cut off, of somebody else,
    and without a signal. No connect fails, no connection and no line is lost, and memory does not grow.
    """
    server, clients = ServerFiles(tmp_path / "server"), ClientFiles(tmp_path / "clients")
    options: dict[str, Any] = {"client_ca": clients.path, "device_ack": "ACK {seq}", "watch": "1s"}
    gateway = await gateway_with(lab, embedded, workers, **server.options, **options)
    crowd = Crowd(lab, gateway, server.authority.ca)
    crowd.certificate = clients.device(clients.first)
    await crowd.connect(200)
    crowd.certificate = clients.device(clients.second)
    crowd.start(lines=100, visits=50)
    exchanges = Exchanges(gateway, server, clients, crowd)
    memory = []
    for number in range(rounds):
        for kind in KINDS:
            await exchanges.exchange(kind, MANNERS[number % len(MANNERS)])
            await crowd.connect(2)  # connections of each generation stay
        await crowd.answer()
        memory.append(resident(gateway.owsla.pid))
    await crowd.finish()
    if workers == 1:
        # A context that is not freed takes `LARGE` and more. Other memory comes and goes, some megabytes of it.
        grown = min(memory[-4:]) - min(memory[:4])
        assert grown < LARGE * len(KINDS) * (rounds - 4) / 2, memory
