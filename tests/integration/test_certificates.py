"""Tests of certificates in a running gateway: the choice among several, revocation lists, and OCSP responses.

The `openssl` command makes certificates, lists and responses, as operators do.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import reactor_test, until
from .test_http import http_port, metrics
from .test_reload import gateway_with, hang_up, reload
from .test_tls_conformance import SClient, talk

WORKERS = pytest.mark.parametrize("workers", [1, 2])

CONFIGURATION = """
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
rand_serial = yes
crlnumber = crlnumber
default_md = sha256
default_days = 2
default_crl_days = 1
policy = any
unique_subject = no
crl_extensions = list
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[device]
basicConstraints = critical, CA:FALSE
[list]
authorityKeyIdentifier = keyid
"""

EXPIRED = ("-crl_lastupdate", "20250101000000Z", "-crl_nextupdate", "20250102000000Z")


class CommandLineAuthority:
    """Authority in a folder, with the files of `openssl ca`."""

    def __init__(self, folder: Path, name: str, issuer: CommandLineAuthority | None = None) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl is installed")
        folder.mkdir(parents=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        (folder / "openssl.cnf").write_text(CONFIGURATION)
        (folder / "index.txt").touch()
        (folder / "crlnumber").write_text("01\n")
        if issuer is None:
            self._request(name, "ca.key", "-x509", "-days", "2", "-extensions", "authority", "-out", "ca.pem")
        else:
            self._request(name, "ca.key", "-out", "ca.csr")
            issuer.sign(folder / "ca.csr", self.ca, "authority")

    def run(self, *arguments: str | Path) -> None:
        """Run an `openssl` command in the folder."""
        done = subprocess.run(["openssl", *map(str, arguments)], cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def _request(self, name: str, key: str, *more: str) -> None:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        self.run("req", "-config", "openssl.cnf", "-subj", f"/CN={name}", *curve, "-keyout", key, *more)

    def sign(self, request: Path, certificate: Path, kind: str, *options: str) -> None:
        self._ca("-in", request, "-out", certificate, "-notext", "-extensions", kind, *options)

    def _ca(self, *arguments: str | Path) -> None:
        self.run("ca", "-batch", "-config", "openssl.cnf", *arguments)

    def device(self, name: str, *options: str) -> Path:
        """Return a file with a device's certificate and its key. `options` are further ones of `openssl ca`."""
        self._request(name, f"{name}.key", "-out", f"{name}.csr")
        self.sign(self.folder / f"{name}.csr", self.folder / f"{name}.crt", "device", *options)
        both = self.folder / f"{name}.pem"
        both.write_bytes((self.folder / f"{name}.crt").read_bytes() + (self.folder / f"{name}.key").read_bytes())
        return both

    def revoke(self, certificate: Path) -> None:
        self._ca("-revoke", certificate)

    def crl(self, *options: str) -> bytes:
        """Return the present revocation list."""
        self._ca("-gencrl", "-out", "crl.pem", *options)
        return (self.folder / "crl.pem").read_bytes()

    def ocsp_response(self, certificate: Path) -> bytes:
        """Return a response for a certificate of this authority, as its responder would send it."""
        self.run("ocsp", "-issuer", "ca.pem", "-cert", certificate, "-no_nonce", "-reqout", "request.der")
        signer = ("-index", "index.txt", "-CA", "ca.pem", "-rsigner", "ca.pem", "-rkey", "ca.key")
        self.run("ocsp", *signer, "-reqin", "request.der", "-respout", "response.der", "-ndays", "1")
        return (self.folder / "response.der").read_bytes()


class DeviceAuthorities:
    """A root and an intermediate authority of devices, and the files of `--client-ca` and `--client-crl`."""

    def __init__(self, folder: Path) -> None:
        self.root = CommandLineAuthority(folder / "root", "root")
        self.middle = CommandLineAuthority(folder / "middle", "middle", self.root)
        self.client_ca = folder / "client-ca.pem"
        self.client_ca.write_bytes(self.root.ca.read_bytes() + self.middle.ca.read_bytes())
        self.client_crl = folder / "crl.pem"
        self.publish()

    def publish(self, *options: str) -> None:
        """Write the present lists of both authorities."""
        self.client_crl.write_bytes(self.root.crl(*options) + self.middle.crl(*options))

    @property
    def options(self) -> dict[str, Any]:
        return {"client_ca": self.client_ca, "client_crl": self.client_crl}


@pytest.fixture
def devices(tmp_path: Path) -> DeviceAuthorities:
    """Return authorities of devices, with empty lists."""
    return DeviceAuthorities(tmp_path / "devices")


async def refused(lab: Lab, gateway: Gateway, certificate: Path, reason: str) -> None:
    """Check that a device with this certificate is refused, and why."""
    mark = gateway.owsla.mark()
    device = await lab.device(gateway, certificate=certificate)  # in TLS 1.3 it hears of the refusal after its own part
    await device.closed()
    await gateway.owsla.wait_for_line(f"Handshake failed.*certificate is refused: {reason}", start=mark)


@WORKERS
@reactor_test
async def test_revoked(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities, workers: int) -> None:
    """A device whose certificate, or whose authority, is revoked is closed when the list comes, and refused from then on."""
    certificates = {name: devices.root.device(name) for name in ("good", "stolen")} | {"deep": devices.middle.device("deep")}
    gateway = await gateway_with(lab, embedded, workers, **devices.options)
    connected: dict[str, list[Device]] = {name: [] for name in certificates}
    for _ in range(2 * workers):
        for name, certificate in certificates.items():
            device = await lab.device(gateway, certificate=certificate)
            await gateway.round_trip(device)
            connected[name].append(device)

    async def closed(name: str, mark: int) -> None:
        for device in connected[name]:
            await device.closed()
        pattern = rf"Device disconnected: \S+ \(device {name}\) from \S+, certificate revoked;"
        await until(lambda: len(gateway.owsla.lines(pattern, start=mark)) == len(connected[name]), what=pattern)

    devices.root.revoke(devices.root.folder / "stolen.crt")
    devices.publish()
    mark = gateway.owsla.mark()
    await reload(gateway.owsla)
    await closed("stolen", mark)
    await refused(lab, gateway, certificates["stolen"], "it has been revoked")
    devices.root.revoke(devices.middle.ca)
    devices.publish()
    mark = gateway.owsla.mark()
    await reload(gateway.owsla)
    await closed("deep", mark)
    await refused(lab, gateway, certificates["deep"], "it has been revoked")
    for device in connected["good"]:
        await gateway.round_trip(device)
    await gateway.round_trip(await lab.device(gateway, certificate=certificates["good"]))


@reactor_test
async def test_authority_removed(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities, tmp_path: Path) -> None:
    """A device whose authority is removed from `--client-ca` stays connected, until a list revokes its certificate."""
    gateway = await gateway_with(lab, embedded, **devices.options)
    device = await lab.device(gateway, certificate=devices.root.device("old"))
    await gateway.round_trip(device)
    other = DeviceAuthorities(tmp_path / "others")
    devices.client_ca.write_bytes(other.client_ca.read_bytes())
    devices.client_crl.write_bytes(other.client_crl.read_bytes())
    await reload(gateway.owsla)
    await gateway.round_trip(device)
    devices.root.revoke(devices.root.folder / "old.crt")
    devices.client_crl.write_bytes(other.client_crl.read_bytes() + devices.root.crl())
    mark = gateway.owsla.mark()
    await reload(gateway.owsla)
    await device.closed()
    await gateway.owsla.wait_for_line(r"Device disconnected.*\(device old\).*certificate revoked", start=mark)


@reactor_test
async def test_list_that_ends(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities) -> None:
    """With an expired list devices are refused, which is said once and shows in a metric; a new list ends that."""
    certificate = devices.root.device("device")
    devices.publish(*EXPIRED)
    gateway = await gateway_with(lab, embedded, http="127.0.0.1:0", **devices.options)
    for name in ("root", "middle"):
        pattern = f"Revocation list unusable: {devices.client_crl}: CN={name}: the list expired at 2025-01-02T00:00:00Z;"
        await gateway.owsla.wait_for_line(pattern)
    await refused(lab, gateway, certificate, "the revocation list of its authority has expired")
    port = await http_port(gateway.owsla)
    assert (await metrics(port))["owsla_crl_expiry_timestamp_seconds"] == 1735776000
    devices.publish()
    await reload(gateway.owsla)
    await gateway.round_trip(await lab.device(gateway, certificate=certificate))
    assert (await metrics(port))["owsla_crl_expiry_timestamp_seconds"] > 1735776000
    assert len(gateway.owsla.lines("Revocation list unusable")) == 2


@reactor_test
async def test_soft(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities) -> None:
    """With `--crl-policy soft` an expired or missing list keeps out those devices only that a list names."""
    certificate, stolen, deep = devices.root.device("device"), devices.root.device("stolen"), devices.middle.device("deep")
    devices.root.revoke(devices.root.folder / "stolen.crt")
    devices.client_crl.write_bytes(devices.root.crl(*EXPIRED))
    gateway = await gateway_with(lab, embedded, crl_policy="soft", **devices.options)
    await gateway.owsla.wait_for_line("CN=middle: there is no list of this authority; devices of this authority are accepted")
    for each in (certificate, deep):
        await gateway.round_trip(await lab.device(gateway, certificate=each))
    await refused(lab, gateway, stolen, "it has been revoked")


@reactor_test
async def test_damaged_list(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities) -> None:
    """Half a list changes nothing, and is named; revoked devices are still refused."""
    stolen = devices.root.device("stolen")
    devices.root.revoke(devices.root.folder / "stolen.crt")
    devices.publish()
    gateway = await gateway_with(lab, embedded, **devices.options)
    devices.client_crl.write_bytes(devices.client_crl.read_bytes()[:-60])
    mark = hang_up(gateway.owsla)
    reason = "this file ends in the middle of a certificate revocation list"
    await gateway.owsla.wait_for_line(f"Reload failed.*{devices.client_crl}: {reason}", start=mark)
    await refused(lab, gateway, stolen, "it has been revoked")


@reactor_test
async def test_several_certificates(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device gets the certificate for its server name and for what it knows of signatures, and can talk."""
    def names(*texts: str) -> list[x509.GeneralName]:
        return [*map(x509.DNSName, texts), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]

    rsa, ecdsa = Authority(tmp_path / "rsa", "rsa"), Authority(tmp_path / "ecdsa")
    pairs = [
        rsa.issue("first", hosts=names("one.example")),
        ecdsa.issue("second", hosts=names("one.example")),
        ecdsa.issue("third", hosts=names("*.example.com")),
        ecdsa.issue("fourth", hosts=names("a.example.com")),
    ]
    certs, keys = [str(cert) for cert, _ in pairs], [str(key) for _, key in pairs]
    gateway = await gateway_with(lab, embedded, cert=certs, key=keys)
    rsa_only = ("-sigalgs", "RSA-PSS+SHA256:RSA+SHA256")
    for arguments, name in (
        (["-servername", "one.example"], "second"),
        (["-servername", "one.example", *rsa_only], "first"),
        (["-noservername", *rsa_only], "first"),
        (["-noservername"], "second"),
        (["-servername", "elsewhere.example"], "second"),
        (["-servername", "A.Example.com"], "fourth"),
        (["-servername", "b.example.com"], "third"),
    ):
        for version in ("-tls1_2", "-tls1_3"):
            with SClient(tmp_path, gateway.owsla.port, version, *arguments) as client:
                await talk(gateway, client)
                found = re.search(r"subject=CN ?= ?(\w+)", client.output())
                assert found is not None
                assert found[1] == name, (arguments, version)


@reactor_test
async def test_stapling(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device that asks for it gets the OCSP response, and the renewed one after a reload; an expired one is not sent."""
    authority = CommandLineAuthority(tmp_path / "authority", "authority")
    authority.device("server")
    certificate = authority.folder / "server.crt"
    response = tmp_path / "response.der"
    response.write_bytes(authority.ocsp_response(certificate))
    gateway = await gateway_with(
        lab, embedded, cert=[str(certificate)], key=[str(authority.folder / "server.key")], ocsp_response=[str(response)],
        http="127.0.0.1:0",
    )  # fmt: skip

    async def status(*arguments: str) -> str:
        with SClient(tmp_path, gateway.owsla.port, "-status", "-CAfile", str(authority.ca), *arguments) as client:
            await talk(gateway, client)
            return client.output()

    for version in ("-tls1_2", "-tls1_3"):
        output = await status(version)
        assert "OCSP Response Status: successful" in output
        assert "Cert Status: good" in output
    port = await http_port(gateway.owsla)
    before = (await metrics(port))["owsla_ocsp_response_expiry_timestamp_seconds"]
    assert before > 0
    authority.revoke(certificate)
    response.write_bytes(authority.ocsp_response(certificate))
    await reload(gateway.owsla)
    assert "OCSP response: no response sent" in await status()
    assert "owsla_ocsp_response_expiry_timestamp_seconds" not in await metrics(port)
