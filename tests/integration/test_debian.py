"""The Debian package, built, and installed in a machine of its own with systemd: every step that an operator takes.

The machine has the files of this one, or those of the folder OWSLA_DEBIAN_ROOT (packaging/debian/check).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from owsla import __version__
from tests import is_required, variable

from ._support.certificates import Authority
from ._support.machine import Machine
from ._support.waiting import block_on, reactor_test, until

_ROOT: Final = Path(__file__).parents[2]
_REQUIRED: Final = is_required("DEBIAN")
_FILES: Final = Path(variable("DEBIAN_ROOT") or "/")
_BUILT: Final = variable("DEBIAN_PACKAGE")

_SETTINGS: Final = """
device-ack = "ACK {seq}"
http = 9100
events = ["console", "json:/var/log/owsla/events.json"]
[[listen]]
name = "certified"
port = 8884
client-ca = "/etc/owsla/devices.pem"
"""

_DIALECT: Final = """
from owsla.dialects import Dialect

class Mine(Dialect):
    def line(self, line):
        self.conversation.answer(b"mine")
"""

_DEVICE: Final = """
import socket, ssl, sys
certs, port, certificate = "/var/lib/owsla/certs/", int(sys.argv[1]), sys.argv[2:]
context = ssl.create_default_context(cafile=certs + "ca.pem")
if certificate:
    context.load_cert_chain(*certificate)
device = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="localhost")
device.sendall(b"line\\n")
print(device.makefile().readline().strip())
"""


def _unavailable(reason: str) -> None:
    if _REQUIRED and os.geteuid() == 0:
        pytest.fail(f"OWSLA_REQUIRE_DEBIAN=1, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package as `1.deb`, and with its next revision, whose settings differ, as `2.deb`."""
    reason = Machine.missing(_FILES)
    if reason:
        _unavailable(reason)
    folder = tmp_path_factory.mktemp("packages")
    first = folder / "1.deb"
    if _BUILT:
        shutil.copyfile(_BUILT, first)
    else:
        if not (shutil.which("dh") and shutil.which("dpkg-buildpackage")):
            _unavailable("debhelper is not installed")
        command = [str(_ROOT / "packaging/debian/build"), str(folder / "built")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        next((folder / "built").glob("*.deb")).rename(first)
    files = folder / "files"
    subprocess.run(["dpkg-deb", "-R", first, files], check=True)
    control = (files / "DEBIAN/control").read_text()
    changed, count = re.subn(r"^(Version: .*)-1~", r"\1-2~", control, flags=re.MULTILINE)
    assert count == 1, control
    (files / "DEBIAN/control").write_text(changed)
    with (files / "etc/owsla/owsla.toml").open("a") as settings:
        settings.write("# New in this revision.\n")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", files, folder / "2.deb"], check=True, capture_output=True)
    shutil.rmtree(files)
    Authority(folder / "devices").issue("door-7")
    return folder


@pytest.fixture
def machine(tmp_path: Path, packages: Path) -> Iterator[Machine]:
    """Return a machine that is not started."""
    one = Machine(_FILES, tmp_path / "machine", packages)
    yield one
    block_on(one.close())


def _stat(machine: Machine, *paths: str) -> list[str]:
    return machine.run(f"stat -c '%n %a %U:%G' {' '.join(paths)}").splitlines()


def _line(machine: Machine, *arguments: str) -> str:
    """Connect a device that sends a line. Return the acknowledgement."""
    return machine.run(f"/usr/lib/owsla/bin/python - {' '.join(arguments)} <<'END'\n{_DEVICE}\nEND").strip()


def _show(machine: Machine, name: str) -> str:
    return machine.run(f"systemctl show --value -p {name} owsla.service").strip()


def _installed(machine: Machine, *, policy: str = "") -> str:
    return machine.run(f"{policy} dpkg -i --force-confold /srv/packages/1.deb 2>&1")


async def _running(machine: Machine) -> None:
    """Wait until the gateway serves devices."""
    await until(
        lambda: _show(machine, "ActiveState") == "active", 60,
        lambda: machine.run("systemctl status owsla.service || true; journalctl -u owsla --no-pager | tail -50"),
    )  # fmt: skip


async def _configured(machine: Machine) -> None:
    """Install the package, give it settings, and start it."""
    _installed(machine)
    machine.run(f"cat >>/etc/owsla/owsla.toml <<'END'\n{_SETTINGS}\nEND")
    machine.run("install -g owsla-secrets -m 640 /srv/packages/devices/ca.pem /etc/owsla/devices.pem")
    machine.run("systemctl enable --now owsla 2>&1")
    await _running(machine)


def test_lintian(packages: Path) -> None:
    """lintian finds neither errors nor warnings."""
    if shutil.which("lintian") is None:
        _unavailable("lintian is not installed")
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(packages / "1.deb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@reactor_test
async def test_installation(machine: Machine) -> None:
    """An installation makes the user and the folders, and starts nothing. Commands work, also as the user of the gateway."""
    await machine.start()
    assert "Owsla is installed, and not started: edit /etc/owsla/owsla.toml" in _installed(machine)
    assert machine.run("id -Gn owsla").split() == ["owsla", "owsla-secrets"]
    assert _stat(machine, "/etc/owsla", "/etc/owsla/owsla.toml", "/var/lib/owsla", "/var/log/owsla") == [
        "/etc/owsla 750 root:owsla-secrets",
        "/etc/owsla/owsla.toml 640 root:owsla-secrets",
        "/var/lib/owsla 750 owsla:owsla",
        "/var/log/owsla 750 owsla:owsla",
    ]
    assert (_show(machine, "UnitFileState"), _show(machine, "ActiveState")) == ("disabled", "inactive")
    assert machine.run("owsla --version").strip() == f"owsla {__version__}"
    check = machine.run("cd /var/lib/owsla && runuser -u owsla -- twistd-owsla --check --config /etc/owsla/owsla.toml")
    assert check.startswith("ok    settings      can be used\n")
    assert machine.run("systemd-analyze verify --man=no owsla.service owsla.socket 2>&1 | grep owsla || true") == ""


@reactor_test
async def test_service(machine: Machine) -> None:
    """The service runs as its unit says: devices with and without certificates, reload, events, control socket, stop."""
    await machine.start()
    await _configured(machine)
    assert _line(machine, "8883") == "ACK 0"
    assert _line(machine, "8884", "/srv/packages/devices/door-7.pem", "/srv/packages/devices/door-7.key") == "ACK 0"
    await until(lambda: "device-connected" in machine.run("cat /var/log/owsla/events.json || true"))
    assert _stat(machine, "/var/log/owsla/events.json", "/var/lib/owsla/owsla.sock") == [
        "/var/log/owsla/events.json 640 owsla:owsla",
        "/var/lib/owsla/owsla.sock 600 owsla:owsla",
    ]
    assert "DEVICE" in machine.run("owsla devices --control /var/lib/owsla/owsla.sock")
    machine.run("systemctl reload owsla")
    await until(lambda: "Configuration reloaded" in machine.run("journalctl -u owsla --no-pager"))
    machine.run("logrotate --force /etc/logrotate.d/owsla 2>&1 || test ! -x /usr/sbin/logrotate")
    machine.run("systemctl stop owsla")
    assert _show(machine, "Result") == "success"
    journal = machine.run("journalctl -u owsla --no-pager")
    assert not re.search(r"Traceback|plugin cache|denied|not permitted", journal), journal


@reactor_test
async def test_dialect(machine: Machine) -> None:
    """A dialect outside of the package is found by the drop-in of docs/debian.md."""
    await machine.start()
    _installed(machine)
    (drop_in,) = re.findall(r"```ini\n([^`]*PYTHONPATH=[^`]*)```", (_ROOT / "docs/debian.md").read_text())
    machine.run(f"mkdir -p /usr/local/lib/owsla; cat >/usr/local/lib/owsla/my_dialect.py <<'END'\n{_DIALECT}\nEND")
    folder = "/etc/systemd/system/owsla.service.d"
    machine.run(f"mkdir {folder}; cat >{folder}/python.conf <<'END'\n{drop_in}\nEND")
    machine.run("printf 'dialect = \"my_dialect:Mine\"\\nworkers = 2\\n' >>/etc/owsla/owsla.toml")
    machine.run("systemctl daemon-reload; systemctl start owsla")
    assert _line(machine, "8883") == "mine"


@reactor_test
async def test_upgrade(machine: Machine) -> None:
    """An upgrade keeps changed settings, and restarts the gateway. With a socket of systemd the port stays open."""
    await machine.start()
    await _configured(machine)
    first = _show(machine, "MainPID")
    machine.run("dpkg -i --force-confold /srv/packages/2.deb 2>&1")
    await until(lambda: _show(machine, "MainPID") not in ("0", first))
    await _running(machine)
    assert "device-ack" in machine.run("cat /etc/owsla/owsla.toml")
    assert "New in this revision." in machine.run("cat /etc/owsla/owsla.toml.dpkg-dist")
    assert _stat(machine, "/etc/owsla/owsla.toml") == ["/etc/owsla/owsla.toml 640 root:owsla-secrets"]
    assert _line(machine, "8883") == "ACK 0"

    machine.run("systemctl stop owsla; systemctl start owsla.socket owsla")
    first = _show(machine, "MainPID")
    since = machine.run("systemctl show -p ActiveEnterTimestampMonotonic owsla.socket")
    machine.run("dpkg -i --force-confold /srv/packages/1.deb 2>&1")
    await until(lambda: _show(machine, "MainPID") not in ("0", first))
    assert _line(machine, "8883") == "ACK 0"
    assert machine.run("systemctl show -p ActiveEnterTimestampMonotonic owsla.socket") == since


@reactor_test
async def test_upgrade_without_broker(machine: Machine) -> None:
    """An upgrade does not wait for a broker, and does not start a gateway that does not run."""
    await machine.start()
    _installed(machine)
    machine.run("dpkg -i /srv/packages/2.deb 2>&1")
    assert _show(machine, "ActiveState") == "inactive"
    machine.run("echo 'broker = [\"amqp://127.0.0.1:1/\"]' >>/etc/owsla/owsla.toml")
    machine.run("systemctl start --no-block owsla")
    await until(lambda: _show(machine, "StatusText").startswith("Waiting for the broker"), what=machine.output)
    first = _show(machine, "MainPID")
    machine.run("dpkg -i --force-confold /srv/packages/1.deb 2>&1")
    await until(lambda: _show(machine, "MainPID") not in ("0", first))


@reactor_test
async def test_removal(machine: Machine) -> None:
    """A removal stops the gateway and its socket, and keeps the settings, which the next installation uses. A purge deletes
    what the package and the gateway have made, but the user.
    """
    await machine.start()
    await _configured(machine)
    machine.run("systemctl stop owsla; systemctl start owsla.socket owsla; dpkg -r owsla 2>&1")
    assert machine.try_run("pgrep -u owsla || ss -ltn | grep 8883").stdout == ""
    assert machine.run("ls /usr/lib/owsla 2>/dev/null || echo gone").strip() == "gone"
    assert "device-ack" in machine.run("cat /etc/owsla/owsla.toml")
    assert "ca.pem" in machine.run("ls /var/lib/owsla/certs")
    _installed(machine)
    machine.run("systemctl start owsla")
    assert _line(machine, "8883") == "ACK 0"
    machine.run("dpkg -P owsla 2>&1")
    places = "/etc/owsla/owsla.toml* /var/lib/owsla /var/log/owsla /etc/systemd/system/*/owsla* /usr/lib/owsla"
    assert machine.run(f"ls -d {places} 2>/dev/null || true") == ""
    machine.run("id owsla")


@reactor_test
async def test_without_systemd(machine: Machine) -> None:
    """Where systemd does not run, as in a chroot in which an image is built, all of it works as well."""
    await machine.start(systemd=False)
    _installed(machine)
    machine.run("dpkg -i /srv/packages/2.deb 2>&1")
    assert "ok    settings" in machine.run("cd /var/lib/owsla && runuser -u owsla -- twistd-owsla --check")
    machine.run("dpkg -P owsla 2>&1")
