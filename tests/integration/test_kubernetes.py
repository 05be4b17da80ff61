"""The settings and the volume of packaging/kubernetes with a real gateway. A stand-in writes the volume as the kubelet does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import reactor_test
from .test_http import ask, http_port
from .test_reload import serial_of

BASE = Path(__file__).parents[2] / "packaging" / "kubernetes" / "base"

Secret = Mapping[str, bytes]
"""Values by key."""


class Volume:
    """A projected volume as the kubelet writes it: `..data` is a link to a folder that is replaced as a whole."""

    def __init__(self, folder: Path, sources: list[dict[str, Any]]) -> None:
        """`sources` are those of the manifest."""
        self._folder = folder
        self._sources = sources
        self._version = 0
        folder.mkdir(parents=True)

    def write(self, objects: Mapping[str, Secret]) -> None:
        """Write a new version of the ConfigMap and the Secrets with these names, and remove the version before."""
        before = (self._folder / "..data").resolve()
        self._version += 1
        version = self._folder / f"..2026_11_29_15_00_00.{self._version}"
        for source in self._sources:
            kind = source.get("configMap") or source["secret"]
            content = objects[kind["name"]]
            for item in kind.get("items", [{"key": key, "path": key} for key in content]):
                path = version / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content[item["key"]])
                path.chmod(0o440)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")
        if self._version > 1:
            shutil.rmtree(before)
            return
        for entry in version.iterdir():
            (self._folder / entry.name).symlink_to(f"..data/{entry.name}")


class Pod:
    """The volume of the settings, and what it is made of."""

    def __init__(self, folder: Path) -> None:
        deployment = yaml.safe_load((BASE / "deployment.yaml").read_text())
        self.spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
        [self.container] = self.spec["containers"]
        self._authority = Authority(folder / "authority")
        self._folder = folder / "settings"
        self._issued = 0
        [sources] = [each["projected"]["sources"] for each in self.spec["volumes"] if each["name"] == "settings"]
        self._volume = Volume(self._folder, sources)
        settings = (BASE / "owsla.toml").read_text().replace("/etc/owsla/", f"{self._folder}/")
        self._objects: dict[str, dict[str, bytes]] = {
            "owsla": {"owsla.toml": settings.replace('watch = "10s"', 'watch = "200ms"').encode()},
            "owsla-secrets": {"broker-password": b"guest", "http-token": b"0123456789abcdef0123"},
        }
        self.renew()

    @property
    def ca(self) -> Path:
        return self._authority.ca

    def renew(self) -> int:
        """Issue a certificate, as cert-manager does. Return its serial number."""
        self._issued += 1
        cert, key = self._authority.issue(f"issued-{self._issued}")
        self.write("owsla-tls", **{"tls.crt": cert.read_bytes(), "tls.key": key.read_bytes()})
        return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number

    def write(self, name: str, **content: bytes) -> None:
        """Change keys of an object."""
        self._objects[name] = self._objects.get(name, {}) | content
        self._volume.write(self._objects)

    def change_settings(self, before: str, after: str) -> None:
        """Replace a text in the settings."""
        settings = self._objects["owsla"]["owsla.toml"].decode()
        assert before in settings
        self.write("owsla", **{"owsla.toml": settings.replace(before, after).encode()})

    async def start(self, lab: Lab, broker: EmbeddedBrokerProcess) -> Gateway:
        """Start the gateway with the environment of the pod; broker and ports are those of the test."""
        [config] = [each["value"] for each in self.container["env"] if each["name"] == "OWSLA_CONFIG"]
        env: Any = {
            "OWSLA_CONFIG": config.replace("/etc/owsla", str(self._folder)),
            "OWSLA_BROKER": broker.url.replace("guest:guest", "guest"),
        }
        gateway = await lab.gateway("", backend=False, broker=None, env=env, http="127.0.0.1:0")
        gateway.broker_url = broker.url
        await gateway.connect_backend()
        return gateway


@reactor_test
async def test_changes(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A renewed certificate and changed settings are used without a signal, and connected devices stay. A typing error changes
    nothing.
    """
    pod = Pod(tmp_path)
    gateway = await pod.start(lab, embedded)
    connected = await lab.device(gateway, ca=pod.ca)
    mark = gateway.owsla.mark()
    serial = pod.renew()
    await gateway.owsla.wait_for_line("Configuration reloaded: cert, key", start=mark)
    device = await lab.device(gateway, ca=pod.ca)
    assert serial_of(device) == serial
    pod.change_settings("max-connections = 20000", "max-connections = 19000")
    await gateway.owsla.wait_for_line("Configuration reloaded: max-connections", start=mark)
    pod.write("owsla-secrets", **{"broker-password": b"guest\n\n"})
    await gateway.owsla.wait_for_line("Reload failed, and nothing was changed: .*password", start=mark)
    connected.send_line(b"still here")
    assert (await gateway.message()).body == b"still here"
    assert await connected.line() == b"ACK 0"


@reactor_test
async def test_probes(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """The probes succeed while the pod serves devices. SIGTERM ends the gateway with status 0."""
    pod = Pod(tmp_path)
    gateway = await pod.start(lab, embedded)
    port = await http_port(gateway.owsla)
    for probe in ("livenessProbe", "readinessProbe"):
        status, _ = await ask(port, pod.container[probe]["httpGet"]["path"])
        assert status == 200, probe
    await lab.device(gateway, ca=pod.ca)
    assert await gateway.owsla.terminate() == 0
