"""Tests of reloads: certificates, authorities and settings change in a running gateway, all or nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.ssl import Certificate

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.owsla import Owsla
from ._support.waiting import PATIENCE, reactor_test, until
from .test_http import http_port, metrics
from .test_workers import pids, processes

WORKERS = pytest.mark.parametrize("workers", [1, 2])


class ServerFiles:
    """Files of `--cert` and `--key`, with certificates of one authority to put into them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.cert = folder / "server.pem"
        self.key = folder / "server.key"
        self.authority = Authority(folder / "authority")
        self._issued: dict[str, tuple[Path, Path]] = {}
        self.renew("first")

    def issue(self, name: str) -> int:
        """Issue a certificate. Return its serial number."""
        self._issued[name] = self.authority.issue(name)
        return int(Certificate.loadPEM(self._issued[name][0].read_bytes()).serialNumber())

    def put_certificate(self, name: str) -> None:
        _replace(self.cert, self._issued[name][0].read_bytes())

    def put_key(self, name: str) -> None:
        _replace(self.key, self._issued[name][1].read_bytes())

    def renew(self, name: str) -> int:
        """Issue a certificate, and put both files in place. Return its serial number."""
        serial = self.issue(name)
        self.put_certificate(name)
        self.put_key(name)
        return serial

    @property
    def options(self) -> dict[str, Any]:
        return {"cert": self.cert, "key": self.key}


@pytest.fixture
def server(tmp_path: Path) -> ServerFiles:
    """Return files of a server certificate."""
    return ServerFiles(tmp_path / "server")


def _replace(path: Path, content: bytes) -> None:
    """Replace a file at once, as tools do that renew certificates."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.rename(path)


def hang_up(owsla: Owsla) -> int:
    """Send SIGHUP. Return the place in the output from where its effect is to be looked for."""
    mark = owsla.mark()
    os.kill(owsla.pid, signal.SIGHUP)
    return mark


async def reload(owsla: Owsla) -> None:
    """Send SIGHUP, and wait until the configuration is reloaded."""
    await owsla.wait_for_line("Configuration reloaded", start=hang_up(owsla))


async def gateway_with(lab: Lab, broker: EmbeddedBrokerProcess, workers: int = 1, **options: Any) -> Gateway:
    """Start a gateway with its own watch switched off, unless a test wants it."""
    options = {"watch": "off"} | options
    if workers == 1:
        return await lab.gateway(broker.url, **options)
    gateway = await lab.gateway(broker.url, workers=workers, **options)
    await processes(gateway.owsla, workers)
    return gateway


def serial_of(device: Device) -> int:
    """Return the serial number of the certificate that a device was shown."""
    return int(device.transport.getPeerCertificate().get_serial_number())


async def shown(lab: Lab, where: Gateway | Owsla, server: ServerFiles, **options: Any) -> int:
    """Connect a device, which verifies the certificate. Return the serial number of that."""
    device = await lab.device(where, ca=server.authority.ca, **options)
    serial = serial_of(device)
    await device.close()
    return serial


@WORKERS
@reactor_test
async def test_a_renewed_certificate(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles, workers: int) -> None:
    """After SIGHUP new devices are shown the renewed certificate, by every worker, and a connected device notices nothing."""
    gateway = await gateway_with(lab, embedded, workers, **server.options)
    device = await lab.device(gateway, ca=server.authority.ca)
    renewed = server.renew("second")
    assert await shown(lab, gateway, server) != renewed, "nothing changes before the signal"
    mark = hang_up(gateway.owsla)
    line = await gateway.owsla.wait_for_line("Configuration reloaded: .*", start=mark)
    assert line[0] == "Configuration reloaded: cert, key"
    assert {await shown(lab, gateway, server) for _ in range(4 * workers)} == {renewed}
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Device disconnected.*failed", start=mark)


@WORKERS
@reactor_test
async def test_another_client_authority(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path, workers: int) -> None:
    """After SIGHUP devices of the new authority are accepted and those of the old one refused; connected ones stay."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    pems = {}
    for name, authority in (("of-old", old), ("of-new", new)):
        certificate, key = authority.issue(name)
        pems[name] = tmp_path / f"{name}.pem"
        pems[name].write_bytes(certificate.read_bytes() + key.read_bytes())
    client_ca = tmp_path / "client-ca.pem"
    _replace(client_ca, old.ca.read_bytes())
    gateway = await gateway_with(lab, embedded, workers, client_ca=client_ca)
    connected = await lab.device(gateway, certificate=pems["of-old"])

    async def refused(name: str) -> None:
        mark = gateway.owsla.mark()
        device = await lab.device(gateway, certificate=pems[name])  # TLS 1.3: it hears of the refusal after its own part
        await device.closed()
        await gateway.owsla.wait_for_line("Handshake failed.*its authority is not trusted", start=mark)

    await refused("of-new")
    _replace(client_ca, new.ca.read_bytes())
    await reload(gateway.owsla)
    for _ in range(2 * workers):
        await gateway.round_trip(await lab.device(gateway, certificate=pems["of-new"]))
        await refused("of-old")
    await gateway.round_trip(connected)


@WORKERS
@reactor_test
async def test_half_a_pair(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles, workers: int) -> None:
    """A certificate without its key changes nothing, and says so once. The pair is loaded as soon as it is complete, without
    another signal.
    """
    gateway = await gateway_with(lab, embedded, workers, **server.options)
    first = await shown(lab, gateway, server)
    second = server.issue("second")
    server.put_certificate("second")
    mark = hang_up(gateway.owsla)
    line = await gateway.owsla.wait_for_line("Reload failed, and nothing was changed: .*", start=mark)
    assert line[0].endswith(f"{server.key}: this is not the private key of the certificate in {server.cert}")
    assert {await shown(lab, gateway, server) for _ in range(2 * workers)} == {first}
    mark = gateway.owsla.mark()
    server.put_key("second")
    await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
    assert {await shown(lab, gateway, server) for _ in range(2 * workers)} == {second}
    assert len(gateway.owsla.lines("Reload failed")) == 1


@reactor_test
async def test_faults_of_files(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles, tmp_path: Path) -> None:
    """A typing error, a missing file and a damaged one are one line each, change nothing, and show in the metrics."""
    config = tmp_path / "owsla.toml"
    config.write_text("idle-timeout = '1h'\n")
    gateway = await gateway_with(lab, embedded, config=config, http="127.0.0.1:0", **server.options)
    port = await http_port(gateway.owsla)
    device = await lab.device(gateway, ca=server.authority.ca)

    async def successful() -> float:
        return (await metrics(port))["owsla_config_last_reload_successful"]

    assert await successful() == 1
    good = server.cert.read_bytes()
    config.write_text("idle-timeout = 1h\n")
    mark = hang_up(gateway.owsla)
    await gateway.owsla.wait_for_line(f"Reload failed, and nothing was changed: {config}: .*line 1", start=mark)
    assert await successful() == 0
    config.write_text("idle-timeoutt = '1h'\n")
    mark = hang_up(gateway.owsla)
    await gateway.owsla.wait_for_line(f"Reload failed.*{config}: idle-timeoutt: no such option", start=mark)
    config.write_text("idle-timeout = '1h'\n")
    server.cert.unlink()
    mark = hang_up(gateway.owsla)
    await gateway.owsla.wait_for_line(f"Reload failed.*{server.cert}: no such file or directory", start=mark)
    _replace(server.cert, good[:-40])
    mark = hang_up(gateway.owsla)
    await gateway.owsla.wait_for_line(f"Reload failed.*{server.cert}: this file ends in the middle", start=mark)
    mark = gateway.owsla.mark()
    _replace(server.cert, good)
    await gateway.owsla.wait_for_line("Configuration reloaded", start=mark)
    assert await successful() == 1
    await gateway.round_trip(device)


@WORKERS
@reactor_test
async def test_a_symlink_that_is_swapped(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path, workers: int) -> None:
    """Kubernetes swaps a symbolic link to a folder, and sends no signal: the watch notices it."""
    volume = tmp_path / "volume"
    volume.mkdir()
    server = ServerFiles(tmp_path / "issued")

    def publish(version: str) -> None:
        (volume / version).mkdir()
        (volume / version / "tls.crt").write_bytes(server.cert.read_bytes())
        (volume / version / "tls.key").write_bytes(server.key.read_bytes())
        (volume / "..data_tmp").symlink_to(version)
        (volume / "..data_tmp").rename(volume / "..data")

    publish("..2026_1")
    for name in ("tls.crt", "tls.key"):
        (volume / name).symlink_to(f"..data/{name}")
    gateway = await gateway_with(
        lab, embedded, workers, cert=volume / "tls.crt", key=volume / "tls.key", watch="200ms"
    )
    device = await lab.device(gateway, ca=server.authority.ca)
    renewed = server.renew("second")
    mark = gateway.owsla.mark()
    publish("..2026_2")
    await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
    assert {await shown(lab, gateway, server) for _ in range(2 * workers)} == {renewed}
    await gateway.round_trip(device)


@reactor_test
async def test_a_worker_dies_while_a_file_is_faulty(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles) -> None:
    """A worker that is started again while a file is half-written starts with what was loaded last: also after a reload."""
    gateway = await gateway_with(lab, embedded, 2, **server.options)
    second = server.renew("second")
    await reload(gateway.owsla)
    _replace(server.cert, b"-----BEGIN CERTIFICATE-----\nhalf")
    mark = gateway.owsla.mark()
    os.kill(pids(gateway.owsla)["worker-1"], signal.SIGKILL)
    await processes(gateway.owsla, 1, start=mark)
    assert {await shown(lab, gateway, server) for _ in range(8)} == {second}
    assert not gateway.owsla.lines("damaged|in the middle", start=mark)


@reactor_test
async def test_a_worker_hangs_during_a_reload(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles) -> None:
    """While one worker does not answer, no worker changes; when it goes on, all of them do."""
    gateway = await gateway_with(lab, embedded, 2, **server.options)
    first = await shown(lab, gateway, server)
    second = server.renew("second")
    stopped = pids(gateway.owsla)["worker-2"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        mark = hang_up(gateway.owsla)
        assert {await shown(lab, gateway, server) for _ in range(4)} == {first}
    finally:
        os.kill(stopped, signal.SIGCONT)
    await gateway.owsla.wait_for_line("Configuration reloaded", start=mark)
    assert {await shown(lab, gateway, server) for _ in range(8)} == {second}


@reactor_test
async def test_the_embedded_broker_cannot_come(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """With workers, a reload that would change from a broker to the embedded one is refused: a worker that starts later would
    have no broker.
    """
    config = tmp_path / "owsla.toml"
    config.write_text(f"broker = '{embedded.url}'\nfrom-device = 'from_kept'\nto-device = 'to_kept'\n")
    owsla = lab.new_owsla(config=config, workers=2, watch="off")
    await owsla.start()
    await processes(owsla, 2)
    config.write_text("from-device = 'from_kept'\nto-device = 'to_kept'\n")
    mark = hang_up(owsla)
    await owsla.wait_for_line("Reload failed.*a change from or to the embedded broker takes a restart", start=mark)
    os.kill(pids(owsla)["worker-1"], signal.SIGKILL)
    await processes(owsla, 1, start=mark)
    assert not owsla.lines("internal error|Traceback", start=mark)


@reactor_test
async def test_a_pipe_in_the_place_of_a_file(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles) -> None:
    """A pipe that nobody writes to holds up neither the devices, nor later reloads, nor the end of the process."""
    gateway = await gateway_with(lab, embedded, **server.options)
    device = await lab.device(gateway, ca=server.authority.ca)
    server.cert.unlink()
    os.mkfifo(server.cert)
    mark = hang_up(gateway.owsla)
    await gateway.owsla.wait_for_line(f"Reload failed.*{server.cert}: not a regular file", start=mark)
    await gateway.round_trip(device)
    mark = gateway.owsla.mark()
    second = server.renew("second")
    await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
    assert await shown(lab, gateway, server) == second
    assert await gateway.owsla.terminate() == 0


@reactor_test
async def test_settings_from_a_pipe(lab: Lab, embedded: EmbeddedBrokerProcess, server: ServerFiles, tmp_path: Path) -> None:
    """Settings that a shell passes through a pipe can be read once. A reload keeps them, and reloads the other files."""
    pipe = tmp_path / "settings"
    os.mkfifo(pipe)
    owsla = lab.new_owsla(broker=embedded.url, config=pipe, watch="off", from_device="from_pipe", to_device="to_pipe")
    owsla.launch()
    descriptor = await until(lambda: _opened(pipe), 3 * PATIENCE, "the process opens the pipe")
    os.write(descriptor, f"cert = '{server.cert}'\nkey = '{server.key}'\n".encode())
    os.close(descriptor)
    await owsla.listening()
    second = server.renew("second")
    await reload(owsla)
    assert await shown(lab, owsla, server) == second


def _opened(pipe: Path) -> int:
    """Return a descriptor for writing to a pipe that has a reader, or else 0."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


@reactor_test
async def test_relative_names_in_another_folder(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """Relative names stay relative to the folder of the start, though `twistd --rundir` changes the working folder."""
    server = ServerFiles(tmp_path / "owsla-0" / "server")
    (tmp_path / "elsewhere").mkdir()
    owsla = lab.new_owsla(
        broker=embedded.url,
        twistd_options=[f"--rundir={tmp_path / 'elsewhere'}"],
        watch="off",
        cert="server/server.pem",
        key="server/server.key",
        from_device="from_rundir",
        to_device="to_rundir",
    )
    await owsla.start()
    second = server.renew("second")
    await reload(owsla)
    assert await shown(lab, owsla, server) == second
