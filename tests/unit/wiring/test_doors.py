"""Configuration and parts of a node with several doors."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import tempfile
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.settings import Door, Settings
from owsla.config.sources import load_settings
from owsla.errors import ConfigError
from owsla.interfaces import FIRST_DOOR
from owsla.runtime.files import Files
from owsla.runtime.sockets import bind
from owsla.tls.development import development_certificates
from owsla.wiring import configuration as module
from owsla.wiring.base import make_base
from owsla.wiring.configuration import Configuration, configure
from owsla.wiring.devices import Devices, make_devices
from owsla.wiring.publishing import make_publishing

from ..device._sockets import Loop

CONNECTIONS = 100


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.made = development_certificates(self.folder / "made", "localhost")
        self.ca = self.folder / "made" / "ca.pem"

    def settings(self, *doors: str, **options: object) -> Settings:
        argv = ["--interface=127.0.0.1", "--port=0", *(f"--listen={door}" for door in doors)]
        return dataclasses.replace(load_settings(argv, {}, certificates="left"), **options)  # type: ignore[arg-type]

    def configure(self, settings: Settings, previous: Configuration | None = None) -> Configuration:
        return configure((), settings, Files(self.folder), previous=previous)

    def own(self, settings: Settings, name: str, **options: object) -> Settings:
        """Return settings with other options of one door."""
        doors = tuple(
            Door(door.name, dataclasses.replace(door.settings, **options)) if door.name == name else door  # type: ignore[arg-type]
            for door in settings.listen
        )
        return dataclasses.replace(settings, listen=doors)


class ConfigurationTests(Base):
    def test_shared_material(self) -> None:
        """Doors with the same files have the same TLS material. A door without TLS has none."""
        settings = self.settings("tls:0:name=a", f"tls:0:name=b:client-ca={self.ca}", "tcp:0:name=c")
        with mock.patch.object(module, "development_certificates", wraps=development_certificates):
            made = self.configure(settings)
        self.assertEqual(list(made.device_tls), [FIRST_DOOR, "a", "b"])
        self.assertIs(made.device_tls["a"], made.device_tls[FIRST_DOOR])
        self.assertIsNot(made.device_tls["b"], made.device_tls[FIRST_DOOR])
        self.assertEqual(made.device_tls["b"].client_certificate, "require")

    def test_again(self) -> None:
        """A reload uses the material of each door again, if its files are the same."""
        settings = self.settings(f"tls:0:name=b:client-ca={self.ca}")
        before = self.configure(settings)
        after = self.configure(self.own(settings, "b", client_cert="optional"), before)
        self.assertIs(after.device_tls[FIRST_DOOR], before.device_tls[FIRST_DOOR])
        self.assertEqual(after.device_tls["b"].client_certificate, "optional")

    def test_development_authority(self) -> None:
        """Devices need the development authority if any door with TLS has no certificate of its own."""
        own = {"cert": (self.made.cert,), "key": (self.made.key,)}
        doors = self.settings("tls:0:name=a", "tcp:0:name=b", **own)
        for settings, developing in ((doors, True), (self.own(doors, "a", **own), False)):
            self.assertEqual(self.configure(settings).development_authority is not None, developing)

    def test_fault(self) -> None:
        """The error of a file names the door, unless it is that of the top-level options."""
        (self.folder / "bad.pem").write_text("nothing")
        settings = self.settings("tls:0:name=a")
        error = self.assertRaises(ConfigError, self.configure, self.own(settings, "a", client_ca=Path("bad.pem")))
        self.assertTrue(str(error).startswith("--listen a: bad.pem"), error)
        error = self.assertRaises(ConfigError, self.configure, self.settings(client_ca=Path("bad.pem")))
        self.assertTrue(str(error).startswith("bad.pem"), error)


class DevicesTests(Base):
    def devices(self, settings: Settings, max_connections: int = CONNECTIONS) -> Devices:
        configuration = self.configure(settings)
        base = make_base(Loop(), configuration, None)
        sockets: dict[str, socket.socket] = {}
        for door in settings.doors:
            sockets[door.name] = bind(0, "127.0.0.1")
            self.addCleanup(sockets[door.name].close)
        return make_devices(base, make_publishing(base), sockets, configuration, max_connections)

    def test_ports(self) -> None:
        """Each door has a port, whose name is that of its child in the supervision tree; the first one is `port`."""
        devices = self.devices(self.settings("tls:0:name=a", "tcp:0:name=b"))
        self.assertEqual([port.name for port in devices.ports], ["port", "port a", "port b"])
        self.assertIs(devices.first.port, devices.ports[0])
        self.assertIsNone(devices.doors["b"].tls)

    def test_limits(self) -> None:
        """The limit of a door is its own, within that of the process. Without one it is that of the process."""
        doors = ("tls:0:name=a:max-connections=5", "tls:0:name=b:max-connections=5000", "tls:0:name=c")
        devices = self.devices(self.settings(*doors))
        limits = [door.admission.max_connections for door in devices.doors.values()]
        self.assertEqual(limits, [CONNECTIONS, 5, CONNECTIONS, CONNECTIONS])

    def test_configure(self) -> None:
        """Each door follows its own settings, and the limits of the process those of the top level."""
        settings = self.settings("tls:0:name=a:max-connections=5:handshake-timeout=3")
        devices = self.devices(settings)
        a, first = devices.doors["a"], devices.first
        self.assertEqual((a.port._settings.handshake_timeout, first.port._settings.handshake_timeout), (3.0, 15.0))
        changed = self.own(settings, "a", max_connections=7, handshake_timeout=4.0, max_rate=9.0, max_per_address=2)
        devices.configure(dataclasses.replace(changed, max_connections=20, max_handshakes=3))
        self.assertEqual((devices.admission.max_connections, devices.admission.max_handshakes), (20, 3))
        self.assertEqual((first.admission.max_connections, a.admission.max_connections), (20, 7))
        self.assertEqual((a.port._settings.handshake_timeout, first.port._settings.handshake_timeout), (4.0, 15.0))
        self.assertEqual((a.port._settings.door, first.port._settings.door), ("a", FIRST_DOOR))
        self.assertEqual((a.factory.settings.max_rate, first.factory.settings.max_rate), (9.0, None))
        self.assertEqual((a.port._sources.limits.connections, first.port._sources.limits.connections), (2, None))

    def test_use(self) -> None:
        """Each door uses the TLS material of its own."""
        settings = self.settings(f"tls:0:name=a:client-ca={self.ca}", "tcp:0:name=b")
        devices = self.devices(settings)
        changed = self.configure(self.own(settings, "a", client_cert="optional"))
        devices.use(changed)
        for name in (FIRST_DOOR, "a"):
            tls = devices.doors[name].tls
            assert tls is not None
            self.assertIs(tls.current, changed.device_tls[name])

    def test_body_fault(self) -> None:
        """A message without a connection here is faulty if no door could send it."""
        devices = self.devices(self.settings("tcp:0:name=a:framing=length\\:2:max-line=10"))
        self.assertIsNone(devices.body_fault(b"with a\nnewline"[:9]))
        self.assertIsNone(devices.body_fault(b"a line that is longer than ten bytes"))
        self.assertIsNotNone(devices.body_fault(b"a newline\nin more than ten bytes"))
