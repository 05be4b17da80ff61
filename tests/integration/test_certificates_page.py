"""Tests of docs/certificates.md: the commands, scripts and files on the page do what the page says.

They are taken from the page and run as they are, except for folders, the group and the names of hosts. Stand-ins replace what
needs a network or root: certbot, lego, systemctl and groupadd.
"""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from ._support import acme
from ._support.certificates import Authority, client_key
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.page import Page
from ._support.process import ChildProcess, free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, reactor_test
from .test_reload import serial_of


class Machine(Page):
    """The machine of the page, with an ACME authority."""

    def __init__(self, root: Path) -> None:
        super().__init__("certificates.md", root)
        self.authority = Authority(root / "authority")
        self._issued = 0
        self._pid = root / "pid"
        for kind in ("ecdsa", "rsa"):
            (root / "acme" / kind).mkdir(parents=True)
        for client in ("certbot", "lego"):
            self.program(client, f'exec {sys.executable} {acme.__file__} {root} {client} "$@"')
        self.program("groupadd", 'test "$*" = "--system owsla-secrets" || test "$*" = "--system $(id -g)"')
        self.program(
            "systemctl",
            f"""case "$*" in
            "reload owsla") kill -HUP "$(cat {self._pid})" ;;
            "try-reload-or-restart owsla") ! test -e {self._pid} || kill -HUP "$(cat {self._pid})" ;;
            *) echo "systemctl $*: not expected" >&2; exit 1 ;;
            esac""",
        )
        self.run("groupadd --system")

    def offer(self, kind: Literal["ecdsa", "rsa"] = "ecdsa", **options: Any) -> int:
        """Issue a certificate that the next run of an ACME client gets for a key of this kind. Return its serial number."""
        self._issued += 1
        cert, key = self.authority.issue(f"issued-{self._issued}", key=client_key(kind), **options)
        for source, name in ((cert, "cert"), (key, "key"), (self.authority.ca, "chain")):
            (self.root / "acme" / kind / f"{name}.pem").write_bytes(source.read_bytes())
        return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number

    def settings(self, *blocks: str) -> Path:
        """Write the configuration file with these blocks of the page. Return its path."""
        path = self.path("/etc/owsla") / "owsla.toml"
        path.write_text("".join(self.block("toml", block) for block in blocks))
        return path

    async def gateway(self, lab: Lab, broker_url: str, **options: Any) -> Gateway:
        """Start the Owsla that `systemctl` reloads."""
        gateway = await lab.gateway(broker_url, **({"watch": "off"} | options))
        self._pid.write_text(str(gateway.owsla.pid))
        return gateway

    async def shown(self, lab: Lab, gateway: Gateway, **options: Any) -> int:
        """Connect a device. Return the serial number of the server certificate."""
        device = await lab.device(gateway, ca=self.authority.ca, **options)
        serial = serial_of(device)
        await device.close()
        return serial


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return the machine of the page."""
    return Machine(tmp_path / "machine")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@reactor_test
async def test_certbot(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine) -> None:
    """certbot's hook hands over the first certificate before Owsla runs, and each renewed one to the running Owsla. New devices
    are shown it, and a connected one notices nothing. Only the group can read the key.
    """
    machine.install_script("/usr/local/sbin/owsla-deploy", "A hook for certbot and for lego")
    first = machine.offer()
    machine.run("certbot certonly --standalone --cert-name gw.example.com")
    config = machine.settings("/etc/owsla/tls/gw.example.com/current/fullchain.pem")
    gateway = await machine.gateway(lab, embedded.url, config=config)
    connected = await lab.device(gateway, ca=machine.authority.ca)
    assert serial_of(connected) == first
    for _ in range(2):
        renewed = machine.offer()
        mark = gateway.owsla.mark()
        machine.run_script("certbot renew --cert-name gw.example.com")
        await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
        assert await machine.shown(lab, gateway) == renewed
    await gateway.round_trip(connected)
    folder = machine.path("/etc/owsla/tls/gw.example.com")
    assert [_mode(folder), _mode(folder / "current")] == [0o750, 0o750]
    assert {_mode(folder / "current" / name) for name in ("fullchain.pem", "privkey.pem")} == {0o640}
    assert len([each for each in folder.iterdir() if not each.is_symlink()]) == 3


@reactor_test
async def test_hook_for_an_existing_certificate(machine: Machine) -> None:
    """The hook is set for a certificate that certbot has already, and run once."""
    machine.install_script("/usr/local/sbin/owsla-deploy", "A hook for certbot and for lego")
    machine.offer()
    machine.run_script("certbot certonly --cert-name gw.example.com -d gw.example.com")
    current = machine.path("/etc/owsla/tls/gw.example.com/current")
    assert not current.exists()
    machine.run("certbot reconfigure")
    first = current.resolve(strict=True)
    machine.offer()
    machine.run_script("certbot renew --cert-name gw.example.com")
    assert current.resolve() != first


@pytest.mark.parametrize("version", [4, 5])
@reactor_test
async def test_lego(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine, version: int) -> None:
    """lego's hooks do the same as certbot's: those of version 4, and the variables of version 5."""
    machine.install_script("/usr/local/sbin/owsla-deploy", "A hook for certbot and for lego")
    run, renew = machine.block("sh", "renew --renew-hook").split("\nlego", 1)
    if version == 5:
        deploy = machine.path("/usr/local/sbin/owsla-deploy")
        machine.program(
            "v5",
            "export LEGO_HOOK_CERT_PATH=$LEGO_CERT_PATH LEGO_HOOK_CERT_KEY_PATH=$LEGO_CERT_KEY_PATH\n"
            f"exec env -u LEGO_CERT_PATH -u LEGO_CERT_KEY_PATH {deploy}",
        )
        run, renew = (command.replace(str(deploy), str(machine.bin / "v5")) for command in (run, renew))
    first = machine.offer()
    machine.run_script(run)
    config = machine.settings("/etc/owsla/tls/gw.example.com/current/fullchain.pem")
    gateway = await machine.gateway(lab, embedded.url, config=config)
    connected = await lab.device(gateway, ca=machine.authority.ca)
    assert serial_of(connected) == first
    renewed = machine.offer()
    mark = gateway.owsla.mark()
    machine.run_script(f"lego{renew}")
    await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
    assert await machine.shown(lab, gateway) == renewed
    await gateway.round_trip(connected)


# -- The broker --------------------------------------------------------------------------------------------------------


class PageBroker:
    """RabbitMQ with the configuration of the page, and a user `owsla`."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.tls_port = free_port()
        page = Page("certificates.md", folder / "machine")
        cert, key = self.authority.issue("broker")
        for name, source in (("clients-ca.pem", self.authority.ca), ("server.pem", cert), ("server.key", key)):
            (page.path("/etc/rabbitmq") / name).write_bytes(source.read_bytes())
        config = page.block("ini", "listeners.ssl.default", {"= 5671": f"= 127.0.0.1:{self.tls_port}"})
        self.node = RabbitMQ(folder / "node", config=config, plugins=["rabbitmq_auth_mechanism_ssl"])

    def connect(self, machine: Machine) -> None:
        """Let `rabbitmqctl` and `rabbitmq-plugins` on a machine work on this broker."""
        self.node.write_ctl(machine.bin / "rabbitmqctl")
        machine.program("rabbitmq-plugins", 'test "$*" = "enable rabbitmq_auth_mechanism_ssl"')

    def url(self, block: str, *, tls: bool) -> str:
        """Return the URL in a block of the page, with the host and port of this broker."""
        return block.replace("rabbit.example", f"localhost:{self.tls_port}" if tls else f"127.0.0.1:{self.node.port}")

    async def permit(self) -> None:
        """Give the user all permissions: each gateway of the tests has queues of its own."""
        await self.node.ctl("set_permissions", "owsla", ".*", ".*", ".*")


@pytest.fixture(scope="module")
def page_broker(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageBroker]:
    """Return a broker with the configuration of the page. The fixture `rabbitmq` decides whether there is one."""
    broker = PageBroker(tmp_path_factory.mktemp("page"))
    try:
        block_on(broker.node.start())
        yield broker
    finally:
        block_on(broker.node.close())


@reactor_test
async def test_password_rotation(lab: Lab, page_broker: PageBroker, machine: Machine) -> None:
    """After the rotation the living connection stays, the old password is refused, and the next login has the new one."""
    page_broker.connect(machine)
    await page_broker.node.ctl("add_user", "owsla", "the first one")
    await page_broker.permit()
    password_file = machine.path("/etc/owsla/broker-password")
    password_file.write_text("the first one\n")
    config = machine.settings("broker-password-file")
    text = config.read_text().replace("amqps://", "amqp://")
    config.write_text(page_broker.url(text, tls=False))
    try:
        gateway = await machine.gateway(lab, page_broker.node.url, broker=None, config=config)
        device = await lab.device(gateway)
        machine.run("change_password owsla")
        assert re.fullmatch("[0-9a-f]{64}\n", password_file.read_text())
        assert _mode(password_file) == 0o640
        await gateway.round_trip(device)
        assert not gateway.owsla.lines("Broker lost")
        await page_broker.node.ctl("authenticate_user", "owsla", password_file.read_text().strip())
        await page_broker.node.ctl("close_all_user_connections", "owsla", "the test cuts it")
        await gateway.owsla.wait_for_line("Broker lost")
        await gateway.round_trip(device)
        assert not gateway.owsla.lines("Broker unavailable")
    finally:
        await page_broker.node.ctl("delete_user", "owsla")


@reactor_test
async def test_token_file(lab: Lab, rabbitmq: RabbitMQ, machine: Machine) -> None:
    """A new token reaches the file in one step and is reloaded; a failed request for one leaves the file as it is."""
    password_file = machine.path("/etc/owsla/broker-password")
    password_file.write_text("guest\n")
    broker = rabbitmq.url.replace("guest:guest", "guest")
    gateway = await machine.gateway(lab, rabbitmq.url, broker=broker, broker_password_file=password_file)
    machine.program("get-token", "exit 1")
    with pytest.raises(AssertionError):
        machine.run("get-token")
    assert password_file.read_text() == "guest\n"
    machine.program("get-token", "echo a.new.token")
    mark = gateway.owsla.mark()
    machine.run("get-token")
    await gateway.owsla.wait_for_line("Configuration reloaded: .*broker-password-file", start=mark)
    assert password_file.read_text() == "a.new.token\n"


@reactor_test
async def test_client_certificate(lab: Lab, page_broker: PageBroker, machine: Machine) -> None:
    """With the page's commands and settings Owsla logs in by its certificate. A renewed one is shown at the next login."""
    page_broker.connect(machine)
    machine.run("clear_password")
    permissions = await page_broker.node.ctl("list_user_permissions", "owsla")
    assert "connection_events" in permissions
    await page_broker.permit()
    machine.install_script("/usr/local/sbin/owsla-deploy", "A hook for certbot and for lego")
    lineage = machine.root / "owsla-client"
    lineage.mkdir()

    def renew() -> None:
        cert, key = page_broker.authority.issue("owsla", hosts=[])
        (lineage / "fullchain.pem").write_bytes(cert.read_bytes())
        (lineage / "privkey.pem").write_bytes(key.read_bytes())
        machine.run_script(str(machine.path("/usr/local/sbin/owsla-deploy")), env={"RENEWED_LINEAGE": str(lineage)})

    renew()
    machine.path("/etc/owsla/broker-ca.pem").write_bytes(page_broker.authority.ca.read_bytes())
    config = machine.settings("broker-cert")
    config.write_text(page_broker.url(config.read_text(), tls=True))
    try:
        gateway = await machine.gateway(lab, page_broker.node.url, broker=None, config=config)
        device = await lab.device(gateway)
        await gateway.round_trip(device)
        assert "owsla" in (await page_broker.node.ctl("list_connections", "user")).split("\n")
        mark = gateway.owsla.mark()
        renew()
        await gateway.owsla.wait_for_line("Configuration reloaded: broker-cert, broker-key", start=mark)
        assert not gateway.owsla.lines("Broker lost")
        await page_broker.node.ctl("close_all_user_connections", "owsla", "the test cuts it")
        await gateway.owsla.wait_for_line("Broker lost")
        await gateway.round_trip(device)
        assert not gateway.owsla.lines("Broker unavailable")
    finally:
        await page_broker.node.ctl("delete_user", "owsla")


# -- Several certificates, OCSP ------------------------------------------------------------------------------------------


@reactor_test
async def test_several_certificates(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine) -> None:
    """With an ECDSA and an RSA certificate each device gets the one that it supports; the check of the page shows it."""
    machine.install_script("/usr/local/sbin/owsla-deploy", "A hook for certbot and for lego")
    ecdsa, rsa = machine.block("sh", "--cert-name gw-rsa").splitlines()
    serials = {"ecdsa": machine.offer("ecdsa"), "rsa": machine.offer("rsa")}
    for command in (ecdsa, rsa):
        machine.run_script(command)
    gateway = await machine.gateway(lab, embedded.url, config=machine.settings("gw-rsa"))
    check = machine.block("sh", "openssl s_client", {"gw.example.com:8883": f"127.0.0.1:{gateway.owsla.port}"})
    assert f"serial={serials['ecdsa']:X}" in machine.run_script(check).replace("serial=0", "serial=")
    only_rsa = check.replace("s_client", "s_client -sigalgs rsa_pss_rsae_sha256")
    assert f"serial={serials['rsa']:X}" in machine.run_script(only_rsa).replace("serial=0", "serial=")


class Responder:
    """OpenSSL's OCSP responder, and a server certificate that names it."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self._machine = machine
        self.port = free_port()
        self._folder = machine.root / "responder"
        self._folder.mkdir()
        place = x509.AuthorityInformationAccess(
            [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(self.url))]
        )
        self.serial = machine.offer(extensions=[place])
        self._index = self._folder / "index.txt"
        self.set_status("V")
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_status(self, status: str) -> None:
        """Set the status of the certificate: V is valid, R is revoked."""
        serial = f"{self.serial:X}"
        serial = serial.zfill(len(serial) + len(serial) % 2)
        revoked = "261101000000Z" if status == "R" else ""
        self._index.write_text(f"{status}\t360101000000Z\t{revoked}\t{serial}\tunknown\t/CN=issued\n")

    async def start(self) -> None:
        """Start the responder: again, after a change of the status."""
        self.end()
        authority = self._machine.authority
        self._process = ChildProcess(
            [
                *("openssl", "ocsp", "-index", str(self._index), "-port", str(self.port), "-nmin", "60"),
                *("-CA", str(authority.ca), "-rsigner", str(authority.ca), "-rkey", str(authority.key_file)),
            ],
            output=self._folder / "log",
        )
        await self._process.wait_for_line("waiting for OCSP client connections")

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()


@reactor_test
async def test_ocsp(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine) -> None:
    """The job fetches a response, and a device gets it. When the responder says "revoked", the response so far stays."""
    for script, text in (("owsla-deploy", "A hook for certbot and for lego"), ("owsla-ocsp", "Fetch the OCSP response")):
        machine.install_script(f"/usr/local/sbin/{script}", text)
    responder = Responder(lab, machine)
    try:
        await responder.start()
        machine.run("certbot certonly --standalone --cert-name gw.example.com")
        job = f"{machine.path('/usr/local/sbin/owsla-ocsp')} gw.example.com"
        machine.run_script(job)
        config = machine.settings("/etc/owsla/tls/gw.example.com/current/fullchain.pem", "ocsp-response")
        gateway = await machine.gateway(lab, embedded.url, config=config)
        shown = f"openssl s_client -connect 127.0.0.1:{gateway.owsla.port} -status </dev/null"
        assert "Cert Status: good" in machine.run_script(shown)
        response = machine.path("/etc/owsla/tls/gw.example.com/ocsp.der")
        content = response.read_bytes()
        responder.set_status("R")
        await responder.start()
        with pytest.raises(AssertionError):
            machine.run_script(job)
        assert response.read_bytes() == content
        assert _mode(response) == 0o640
        responder.set_status("V")
        await responder.start()
        mark = gateway.owsla.mark()
        machine.run_script(job)
        await gateway.owsla.wait_for_line("Configuration reloaded: ocsp-response", start=mark)
    finally:
        responder.end()


# -- Devices -----------------------------------------------------------------------------------------------------------


class DeviceAuthority:
    """An authority for devices, in a folder, by the commands of the page."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self.folder = machine.root / "authorities" / name
        self.folder.mkdir(parents=True)
        (self.folder / "ca.cnf").write_text(machine.block("ini", "default_ca = devices"))
        machine.run("openssl req -x509", cwd=self.folder)

    def issue(self, name: str = "meter-17") -> Path:
        """Issue a certificate. Return a file with it and its key."""
        script = self._machine.block("sh", "-in meter-17.csr").replace("meter-17", name)
        self._machine.run_script(script, cwd=self.folder)
        both = self.folder / f"{name}-both.pem"
        both.write_bytes(b"".join((self.folder / f"{name}.{kind}").read_bytes() for kind in ("pem", "key")))
        return both

    def hand_over(self, text: str) -> None:
        """Run the commands that give files of this authority to Owsla."""
        self._machine.run(text, cwd=self.folder)


@reactor_test
async def test_revoked_device(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine) -> None:
    """With the authority of the page a device connects. When it is revoked its connection is closed, it is refused with the
    reason and by the alert, and another device stays.
    """
    authority = DeviceAuthority(machine, "devices")
    authority.hand_over("install -g owsla-secrets -m 640 ca.pem")
    stolen, other = authority.issue(), authority.issue("meter-18")
    gateway = await machine.gateway(lab, embedded.url, config=machine.settings("client-crl"))
    one, two = await lab.device(gateway, certificate=stolen), await lab.device(gateway, certificate=other)
    await gateway.round_trip(one)
    await gateway.round_trip(two)
    machine.run("-revoke meter-17.pem", cwd=authority.folder)
    mark = gateway.owsla.mark()
    authority.hand_over("640 crl.pem /etc/owsla/devices-crl.pem.new")
    await gateway.owsla.wait_for_line("Device disconnected.*certificate revoked", start=mark)
    await one.closed()
    refused = await lab.device(gateway, certificate=stolen)
    reason = await refused.closed()
    assert "certificate revoked" in str(reason.value)
    await gateway.owsla.wait_for_line("Handshake failed.*it has been revoked.*CN=meter-17", start=mark)
    await gateway.round_trip(two)
    await gateway.round_trip(await lab.device(gateway, certificate=other))


@reactor_test
async def test_another_authority(lab: Lab, embedded: EmbeddedBrokerProcess, machine: Machine) -> None:
    """With both authorities, devices of both connect, and connected ones stay."""
    old = DeviceAuthority(machine, "old")
    old.hand_over("install -g owsla-secrets -m 640 ca.pem")
    gateway = await machine.gateway(lab, embedded.url, config=machine.settings("client-crl"))
    connected = await lab.device(gateway, certificate=old.issue())
    new = DeviceAuthority(machine, "new")
    mark = gateway.owsla.mark()
    machine.run("cat old/ca.pem new/ca.pem", cwd=old.folder.parent)
    await gateway.owsla.wait_for_line("Configuration reloaded: client-ca, client-crl", start=mark)
    for authority in (old, new):
        await gateway.round_trip(await lab.device(gateway, certificate=authority.issue("meter-19")))
    await gateway.round_trip(connected)
