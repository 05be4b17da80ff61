"""Tests of who may connect: the list of `--deny`, `--max-connect-rate` and `--max-flaps`."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.process import free_port
from ._support.waiting import pause, reactor_test, until
from .test_stampede import hello, metrics

WORKERS = pytest.mark.parametrize("workers", [1, 2], ids=["one process", "workers"])


class DenyFile:
    """The file of `--deny`, and the gateway that reads it."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.path = folder / "deny"
        self.gateway: Gateway | None = None
        self.write(*lines)

    def write(self, *lines: str) -> None:
        self.path.write_text("".join(f"{line}\n" for line in lines))

    async def reload(self, *lines: str) -> str:
        """Write another list and have it read. Return what the process says about it."""
        assert self.gateway is not None
        owsla = self.gateway.owsla
        self.write(*lines)
        mark = owsla.mark()
        owsla.process.signal(signal.SIGHUP)
        match = await owsla.wait_for_line(
            "(Configuration reloaded|Reload failed, and nothing was changed): (.*)", 30, start=mark
        )
        return match[2]


class Fleet:
    """Devices with certificates of one authority."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "fleet")
        self.ca = self.authority.ca

    def certificate(self, name: str) -> Path:
        """Return a file with the certificate of a device and its key."""
        certificate, key = self.authority.issue(name)
        both = self.authority.folder / f"{name}.both"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return both


def serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


async def start(lab: Lab, broker: EmbeddedBrokerProcess, denied: DenyFile, workers: int = 1, **options: object) -> Gateway:
    more: dict[str, object] = {"watch": "off", **options}
    if workers > 1:
        more["workers"] = workers
    gateway = await lab.gateway(broker.url, deny=denied.path, **more)  # type: ignore[arg-type]
    denied.gateway = gateway
    return gateway


async def turned_away(lab: Lab, gateway: Gateway, source: str) -> None:
    """Check that a connection is closed before it has had any answer."""
    plain = await lab.plain(gateway.owsla.port, source=source)
    plain.send_raw(hello())
    await plain.closed()
    assert plain.protocol.received == 0


async def refused(lab: Lab, gateway: Gateway, certificate: Path, reason: str) -> re.Match[str]:
    """Check that a device with this certificate is refused. Return the line of the log that says why."""
    mark = gateway.owsla.mark()
    device = await lab.device(gateway, certificate=certificate)  # in TLS 1.3 it hears of the refusal after its own part
    await device.closed()
    return await gateway.owsla.wait_for_line(f"Handshake failed: .*{reason}.*", start=mark)


async def all_closed(gateway: Gateway, devices: Sequence[Device], mark: int) -> None:
    """Check that these devices are closed as denied."""
    for device in devices:
        await device.closed()
    pattern = "Device disconnected: .*, denied;"
    await until(lambda: len(gateway.owsla.lines(pattern, start=mark)) == len(devices), what=pattern)


@reactor_test
async def test_addresses(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A connection from a denied address or network is closed before its handshake, with one line of the log a minute."""
    denied = DenyFile(tmp_path, "address 127.0.4.0/24 # a network", "address ::ffff:127.0.5.1", "address ::/0")
    http = free_port()
    gateway = await start(lab, embedded, denied, http=http)
    device = await lab.device(gateway, source="127.0.5.2")
    for source in ("127.0.4.1", "127.0.4.255", "127.0.5.1"):
        await turned_away(lab, gateway, source)
    await gateway.round_trip(device)
    await gateway.owsla.wait_for_line(r"Address denied: .* in the list of --deny; the last one from 127\.0\.(4|5)\.\d+$")
    await pause(2)
    assert len(gateway.owsla.lines("Address denied")) == 1
    assert not gateway.owsla.lines("Handshake failed")
    sample = await metrics(http)
    assert sample["owsla_handshakes_total default failed"] == 0
    assert (sample["owsla_address_denied_total default"], sample["owsla_deny_entries"]) == (3, 3)
    await gateway.owsla.terminate()
    assert len(gateway.owsla.lines("Address denied: ")) <= 2  # what came after the first line is told at the end


@WORKERS
@reactor_test
async def test_reload(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path, workers: int) -> None:
    """Devices that a new list denies, by id, certificate or address, are closed in all workers, and refused from then on."""
    fleet = Fleet(tmp_path)
    certificates = {name: fleet.certificate(name) for name in ("good", "stolen", "lost")}
    denied = DenyFile(tmp_path)
    gateway = await start(lab, embedded, denied, workers, client_ca=fleet.ca)
    connected: dict[str, list[Device]] = {name: [] for name in (*certificates, "elsewhere")}
    for _ in range(2 * workers):
        for name, certificate in certificates.items():
            connected[name].append(await lab.device(gateway, certificate=certificate))
        connected["elsewhere"].append(await lab.device(gateway, certificate=certificates["good"], source="127.0.4.1"))
    for devices in connected.values():
        for device in devices:
            await gateway.round_trip(device)
    number = f"{serial(certificates['lost']):040X}"  # as OpenSSL prints it, which may begin with a zero
    mark = gateway.owsla.mark()
    lines = ('device "stolen"', f"serial 00:{':'.join(re.findall('..', number))}", "address 127.0.4.0/30 # all of them")
    assert await denied.reload(*lines) == "deny"
    await all_closed(gateway, [*connected["stolen"], *connected["lost"], *connected["elsewhere"]], mark)
    match = await refused(lab, gateway, certificates["stolen"], "the device is denied: stolen")
    assert "CN=stolen" in match.string
    match = await refused(lab, gateway, certificates["lost"], "certificate is refused: its serial number is denied")
    assert number.lstrip('0') in match.string
    await turned_away(lab, gateway, "127.0.4.1")
    for device in connected["good"]:
        await gateway.round_trip(device)
    assert await denied.reload("# nobody") == "deny"
    for name in ("stolen", "lost"):
        await gateway.round_trip(await lab.device(gateway, certificate=certificates[name], source="127.0.4.1"))


@reactor_test
async def test_login(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A device that a dialect identifies is denied by its id: when it logs in, and when a new list comes."""
    logins = tmp_path / "devices"
    logins.write_text("d1:t\nd2:t\n")
    denied = DenyFile(tmp_path, "device d1")
    gateway = await start(lab, embedded, denied, dialect="login", login_checker=f"file:{logins}")
    first, second = [await lab.device(gateway) for _ in range(2)]
    first.send_line(b"HELLO d1 t", b"a line of d1")
    assert await first.line() == b"DENIED"
    await first.closed()
    await gateway.owsla.wait_for_line("Login failed: .* as device d1: the device is denied: d1")
    await gateway.owsla.wait_for_line("Device disconnected: .*, the device is denied: d1;")
    second.send_line(b"HELLO d2 t")
    assert await second.line() == b"WELCOME d2"
    await gateway.round_trip(second)  # and nothing of the other device arrived before
    mark = gateway.owsla.mark()
    await denied.reload("device d2")
    await all_closed(gateway, [second], mark)
    first = await lab.device(gateway)
    first.send_line(b"HELLO d1 t")
    assert await first.line() == b"WELCOME d1"


@reactor_test
async def test_own_dialect(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A dialect that knows nothing of the list is closed, too, and that is no failure of the dialect."""
    (tmp_path / "naming.py").write_text(
        "from owsla.dialects import Dialect\n"
        "class Naming(Dialect):\n"
        "    def line(self, line):\n"
        "        if self.conversation.device_id is None:\n"
        "            self.conversation.identify(line.decode())\n"
        "        self.conversation.publish(line)\n"
    )
    denied = DenyFile(tmp_path, "device d1")
    gateway = await start(lab, embedded, denied, dialect="naming:Naming", env={"PYTHONPATH": str(tmp_path)})
    first, second = [await lab.device(gateway) for _ in range(2)]
    first.send_line(b"d1", b"a line of d1")
    await first.closed()
    second.send_line(b"d2")
    assert (await gateway.message()).body == b"d2"
    await gateway.owsla.wait_for_line("Login failed: .*: the device is denied: d1")
    assert not gateway.owsla.lines("Dialect .* failed")


@reactor_test
async def test_ends(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """An entry is void from its end on, without a reload."""
    end = time.time() + 8
    text = datetime.fromtimestamp(end, UTC).isoformat()
    denied = DenyFile(tmp_path, f"address 127.0.4.1 until {text}", "address 127.0.4.2 until 2020-01-01T00:00:00Z")
    gateway = await start(lab, embedded, denied)
    await gateway.round_trip(await lab.device(gateway, source="127.0.4.2"))
    if time.time() < end - 1:
        await turned_away(lab, gateway, "127.0.4.1")
    await until(lambda: time.time() > end, 10)
    await gateway.round_trip(await lab.device(gateway, source="127.0.4.1"))


@WORKERS
@reactor_test
async def test_fault(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path, workers: int) -> None:
    """A typing error changes nothing, and is one line with the file and the number of the line. The watch sees the mend."""
    denied = DenyFile(tmp_path, "address 127.0.4.1")
    gateway = await start(lab, embedded, denied, workers, watch="1s")
    await turned_away(lab, gateway, "127.0.4.1")
    said = await denied.reload("address 127.0.4.2", "adress 127.0.4.3")
    assert said.startswith(f"{denied.path}: line 2: 'adress' is none of address, serial, device"), said
    for _ in range(2 * workers):
        await turned_away(lab, gateway, "127.0.4.1")
        await gateway.round_trip(await lab.device(gateway, source="127.0.4.2"))
    mark = gateway.owsla.mark()
    denied.write("address 127.0.4.2", "address 127.0.4.3")
    await gateway.owsla.wait_for_line("Configuration reloaded: deny", 30, start=mark)
    await turned_away(lab, gateway, "127.0.4.2")
    await gateway.round_trip(await lab.device(gateway, source="127.0.4.1"))


@reactor_test
async def test_start(lab: Lab, tmp_path: Path) -> None:
    """A start with a faulty or missing list fails, with one line that says where the fault is."""
    denied = DenyFile(tmp_path, "device")
    for path, reason in (
        (denied.path, f"{denied.path}: line 1: after device its value is missing"),
        (tmp_path / "nowhere", f"--deny: {tmp_path / 'nowhere'}: no such file or directory"),
    ):
        owsla = lab.new_owsla(deny=path)
        owsla.launch()
        assert await owsla.exited() == 1
        assert owsla.errors() == f"owsla: {reason}\n"


# -- Rates -------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_connect_rate(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """With --max-connect-rate an address that opens more connections than that is turned away, and no other one is."""
    config = tmp_path / "owsla.toml"
    config.write_text("max-connect-rate = 2.5\n")
    gateway = await lab.gateway(embedded.url, config=config, watch="off")
    open_ones = [await lab.device(gateway, source="127.0.4.1") for _ in range(5)]
    for _ in range(3):
        await turned_away(lab, gateway, "127.0.4.1")
        await gateway.round_trip(await lab.device(gateway, source="127.0.4.2"))
    await pause(1.0)
    open_ones.append(await lab.device(gateway, source="127.0.4.1"))
    for device in open_ones:
        await gateway.round_trip(device)
    await gateway.owsla.wait_for_line(
        r"Connect rate exceeded: .* more than 2\.5 new ones a second \(--max-connect-rate\); the last one from 127\.0\.4\.1$"
    )
    assert not gateway.owsla.lines("Handshake failed|Turned away")
    config.write_text("max-connect-rate = 1000\n")
    mark = gateway.owsla.mark()
    gateway.owsla.process.signal(signal.SIGHUP)
    await gateway.owsla.wait_for_line("Configuration reloaded: max-connect-rate", 30, start=mark)
    for _ in range(10):
        await gateway.round_trip(await lab.device(gateway, source="127.0.4.1"))


@pytest.mark.parametrize("on_duplicate", ["keep", "replace"])
@reactor_test
async def test_flaps(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path, on_duplicate: str) -> None:
    """With --max-flaps a device that connects too often is held off, with one event. Its open connection stays."""
    fleet = Fleet(tmp_path)
    flapping, other = fleet.certificate("flapping"), fleet.certificate("other")
    events = tmp_path / "events.json"
    gateway = await lab.gateway(
        embedded.url, client_ca=fleet.ca, max_flaps=3, on_duplicate=on_duplicate, events=["console", f"json:{events}"]
    )
    for _ in range(3):
        last = await lab.device(gateway, certificate=flapping)
        await gateway.round_trip(last)
    for _ in range(4):
        device = await lab.device(gateway, certificate=flapping)
        await device.closed()
    await gateway.round_trip(last)
    for _ in range(3):
        await gateway.round_trip(await lab.device(gateway, certificate=other))
    line = await gateway.owsla.wait_for_line("Device held off: (.*)")
    assert re.match(r"flapping connected 4 times within a minute \(--max-flaps\), last from 127\.0\.0\.1:\d+; ", line[1])
    assert len(gateway.owsla.lines("Device held off")) == 1
    assert not gateway.owsla.lines("Handshake failed")
    assert len(gateway.owsla.lines("Device connected: .*flapping")) == 3
    await until(lambda: events.exists() and events.read_text().count('"device-held-off"') == 1)
    await last.close()
    device = await lab.device(gateway, certificate=flapping)
    await device.closed()


@reactor_test
async def test_flaps_of_logins(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A device that a dialect identifies is held off, too. Logins that fail do not count: nobody else can have it held off."""
    logins = tmp_path / "devices"
    logins.write_text("d1:t\nd2:t\n")
    gateway = await lab.gateway(embedded.url, dialect="login", login_checker=f"file:{logins}", max_flaps=2)

    async def log_in(name: str, token: str = "t") -> bytes:
        device = await lab.device(gateway)
        device.send_line(f"HELLO {name} {token}".encode())
        answer = await device.line()
        if answer == b"DENIED":
            await device.closed()
        return answer

    for _ in range(4):
        assert await log_in("d1", "wrong") == b"DENIED"
    mark = gateway.owsla.mark()
    answers = [await log_in("d1") for _ in range(5)]
    assert answers == [b"WELCOME d1"] * 2 + [b"DENIED"] * 3
    assert await log_in("d2") == b"WELCOME d2"
    assert len(gateway.owsla.lines("Device held off: d1 connected 3 times")) == 1
    assert not gateway.owsla.lines("Login failed", start=mark)


@reactor_test
async def test_no_flaps(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path) -> None:
    """A restart of Owsla, after which all devices come back at once, holds none of them off."""
    fleet = Fleet(tmp_path)
    certificates = [fleet.certificate(f"device-{number}") for number in range(5)]
    port = free_port()
    gateway = await lab.gateway(embedded.url, client_ca=fleet.ca, max_flaps=2, port=port)
    for _ in range(3):
        devices = [await lab.device(gateway, certificate=certificate) for certificate in certificates]
        for device in devices:
            await gateway.round_trip(device)
        assert await gateway.owsla.terminate() == 0
        for device in devices:
            await device.closed()
        assert not gateway.owsla.lines("Device held off")
        await gateway.owsla.start()
