"""Socket activation and notifications, with stand-ins for systemd, with systemd-socket-activate, and with systemd itself."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from owsla.tls.development import development_certificates

from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.owsla import Owsla, twistd
from ._support.process import free_port
from ._support.systemd import NotifySocket, Systemd
from ._support.waiting import block_on, pause, reactor_test, until
from .test_workers import processes

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    """Return the notify socket of a service manager."""
    sock = NotifySocket(tmp_path / "manager")
    yield sock
    sock.close()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """Return a socket that listens, as those of a socket unit do."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(4096)
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def notified(lab: Lab, manager: NotifySocket, broker_url: str, **options: object) -> Owsla:
    """Return an Owsla with a service manager, and a watchdog that expects a report every second."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    return lab.new_owsla(env=env, broker=broker_url, from_device="from_systemd", to_device="to_systemd", **options)


# -- notifications -----------------------------------------------------------------------------------------------------------


@WORKERS
@reactor_test
async def test_notifications(workers: int, lab: Lab, manager: NotifySocket, embedded: EmbeddedBrokerProcess) -> None:
    """systemd is told READY when devices can connect, RELOADING and READY at a reload, and STOPPING at a stop."""
    owsla = notified(lab, manager, embedded.url, workers=workers, drain_timeout=7)
    owsla.launch()
    await manager.wait_for("READY=1", timeout=30)
    await owsla.listening()
    device = await lab.device(owsla)
    where = "1 door" if workers == 1 else "1 door and 2 of 2 workers"
    await manager.wait_for(f"STATUS=Ready: 1 device on {where}, 0 lines unconfirmed")

    before = time.monotonic_ns() // 1000
    start = manager.mark()
    os.kill(owsla.pid, signal.SIGHUP)
    reloading = await manager.wait_for("RELOADING=1 ", start)
    match = re.fullmatch(r"RELOADING=1 MONOTONIC_USEC=(\d+)", reloading)
    assert match, reloading
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000
    await manager.wait_for("READY=1", start)
    assert device.is_open

    start = manager.mark()
    assert await owsla.terminate() == 0
    assert "STOPPING=1 EXTEND_TIMEOUT_USEC=37000000" in manager.told()[start:]
    assert manager.states() == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert any(one.startswith("STATUS=Stopping: ") for one in manager.told()[start:])


@reactor_test
async def test_environment_of_workers(lab: Lab, manager: NotifySocket, embedded: EmbeddedBrokerProcess) -> None:
    """Workers have none of the variables: their parent reports for them."""
    owsla = notified(lab, manager, embedded.url, workers=2)
    await owsla.start()
    for pid in (await processes(owsla, 2)).values():
        names = {line.split("=")[0] for line in Path(f"/proc/{pid}/environ").read_text().split("\0")}
        assert "PATH" in names
        assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}


@WORKERS
@reactor_test
async def test_waits_for_broker(workers: int, lab: Lab, manager: NotifySocket, tmp_path: Path) -> None:
    """Without a broker the status says so, and the time for the start is extended. READY comes with the broker."""
    broker = EmbeddedBrokerProcess(tmp_path / "broker")
    broker.port = free_port()
    owsla = notified(lab, manager, broker.url, workers=workers)
    owsla.launch()
    await manager.wait_for("EXTEND_TIMEOUT_USEC=60000000", timeout=30)
    await manager.wait_for("STATUS=Waiting for the broker: the door is closed", timeout=30)
    assert manager.states() == []
    await broker.start()
    try:
        await manager.wait_for("READY=1", timeout=30)
        await owsla.listening()
        await lab.device(owsla)
        await broker.kill()
        await manager.wait_for("STATUS=Not ready: 1 device on 1 door", timeout=30)
        assert manager.states() == ["READY=1"]
    finally:
        await broker.close()


@reactor_test
async def test_reload_while_starting(lab: Lab, manager: NotifySocket) -> None:
    """A reload before the doors are open is not reported, because the READY=1 after it would end the start."""
    owsla = notified(lab, manager, f"amqp://guest:guest@127.0.0.1:{free_port()}/%2f")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable", timeout=30)  # by then the reactor runs, and the signal is handled
    os.kill(owsla.pid, signal.SIGHUP)
    await owsla.wait_for_line("Configuration reloaded")
    assert await owsla.terminate() == 0
    assert manager.states() == ["STOPPING=1"]


@WORKERS
@reactor_test
async def test_watchdog(workers: int, lab: Lab, manager: NotifySocket, embedded: EmbeddedBrokerProcess) -> None:
    """The watchdog is told twice in its time as long as the reactor runs, and no longer."""
    owsla = notified(lab, manager, embedded.url, workers=workers)
    await owsla.start()
    for _ in range(4):
        start = manager.mark()
        await manager.wait_for("WATCHDOG=1", start, timeout=5)
    os.kill(owsla.pid, signal.SIGSTOP)
    await until(lambda: "\nState:\tT" in Path(f"/proc/{owsla.pid}/status").read_text())
    start = manager.mark()
    await pause(1.5)
    assert manager.told()[start:] == []
    os.kill(owsla.pid, signal.SIGCONT)
    await manager.wait_for("WATCHDOG=1", start)
    assert await owsla.terminate() == 0


# -- passed sockets ----------------------------------------------------------------------------------------------------------


@WORKERS
@reactor_test
async def test_passed_socket(
    workers: int, lab: Lab, listening: socket.socket, embedded: EmbeddedBrokerProcess
) -> None:
    """A device that connects before the start waits in the queue of the passed socket, and is served."""
    development_certificates(lab.certs_dir, socket.gethostname())
    owsla = lab.new_owsla(broker=embedded.url, sockets={"default": listening}, workers=workers, port=free_port())
    owsla.port = port_of(listening)
    device = lab.waiting_device(owsla)
    device.begin(timeout=60)
    owsla.launch()
    await owsla.listening()
    assert owsla.port == port_of(listening)
    await until(lambda: device.is_ready)
    assert await owsla.terminate() == 0


@WORKERS
@reactor_test
async def test_passed_doors(
    workers: int, lab: Lab, listening: socket.socket, embedded: EmbeddedBrokerProcess, tmp_path: Path
) -> None:
    """Each door has the socket of its name. A unix socket of systemd is still there after a stop, and its queue as well."""
    path = tmp_path / "local"
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_UNIX) as device:
        local.bind(str(path))
        local.listen()
        owsla = lab.new_owsla(
            broker=embedded.url,
            sockets={"local.socket": local, "default": listening},
            workers=workers,
            listen=["systemd:local:tls=no"],
        )
        await owsla.start()
        assert owsla.port == port_of(listening)
        await lab.device(owsla)
        device.connect(str(path))
        device.sendall(b"line\n")
        await owsla.wait_for_line(r"Device connected: .* \(door local\)")
        assert await owsla.terminate() == 0
        with socket.socket(socket.AF_UNIX) as next_device:
            next_device.connect(str(path))
            next_device.sendall(b"line\n")
            await owsla.start()
            await owsla.wait_for_line(r"Device connected: .* \(door local\)")
            assert await owsla.terminate() == 0


@reactor_test
async def test_door_without_socket(lab: Lab, listening: socket.socket) -> None:
    """A door without a port for which no socket is passed is one line."""
    owsla = lab.new_owsla(sockets={"default": listening}, listen=["systemd:meters"])
    owsla.launch()
    assert await owsla.exited() == 1
    assert "--listen meters: it has no port, and systemd passes no socket of this name" in owsla.errors()


@reactor_test
async def test_unknown_name(lab: Lab, listening: socket.socket) -> None:
    """A socket with a name that no door has is one line, with both names."""
    owsla = lab.new_owsla(sockets={"metres": listening})
    owsla.launch()
    assert await owsla.exited() == 1
    (line,) = [line for line in owsla.errors().splitlines() if "systemd" in line]
    assert "a socket with the name 'metres', and no door has that name: the doors are 'default'" in line


@reactor_test
async def test_datagram_socket(lab: Lab) -> None:
    """A datagram socket is one line."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        owsla = lab.new_owsla(sockets={"default": sock})
        owsla.launch()
        assert await owsla.exited() == 1
    assert "descriptor 3 from systemd (default) is not a stream socket: use ListenStream=" in owsla.errors()


class Arrivals:
    """Devices that connect one after another, with the faults of those that did not complete a handshake."""

    def __init__(self, lab: Lab, port: int, ca: Path) -> None:
        self._lab = lab
        self._port = port
        self._ca = ca
        self._stopped = False
        self.faults: list[str] = []
        self.begun = 0
        self.secured = 0

    def start(self) -> None:
        """Have a device connect every 30 ms, until the end of the test at the latest."""
        self.end = Deferred.fromCoroutine(self._run())
        self._lab.ends(self._end)

    async def _run(self) -> None:
        while not self._stopped:
            self.begun += 1
            device = Device(self._port, self._ca)
            connecting = Deferred.fromCoroutine(device.connect(timeout=60))
            connecting.addCallbacks(self._connected, self._failed)
            await pause(0.03)

    def _connected(self, device: Device) -> None:
        self.secured += 1
        device.transport.loseConnection()

    def _failed(self, failure: object) -> None:
        self.faults.append(f"{time.time():.3f}: {failure}")

    async def _end(self) -> None:
        """Let no more devices come."""
        self._stopped = True
        await self.end

    async def stop(self) -> None:
        """Let no more devices come, and wait for the handshakes of the last ones."""
        await self._end()
        await until(lambda: self.secured + len(self.faults) == self.begun, 30, lambda: f"{self.secured} of {self.begun}")


@WORKERS
@reactor_test
async def test_restart_refuses_no_connect(
    workers: int, lab: Lab, listening: socket.socket, embedded: EmbeddedBrokerProcess
) -> None:
    """While a gateway with a passed socket restarts, no connect is refused, and none ends before its handshake."""
    owsla = lab.new_owsla(broker=embedded.url, sockets={"default": listening}, workers=workers)
    await owsla.start()
    staying = [await lab.device(owsla) for _ in range(5)]
    arrivals = Arrivals(lab, owsla.port, owsla.ca)
    arrivals.start()
    await until(lambda: arrivals.secured >= 20)
    for _ in range(2):
        assert await owsla.terminate() == 0
        before = arrivals.secured
        await owsla.start()
        await until(lambda: arrivals.secured >= before + 20)  # noqa: B023
    await arrivals.stop()
    assert arrivals.faults == []
    assert not any(device.is_open for device in staying)
    assert await owsla.terminate() == 0


@pytest.mark.parametrize("named", [True, False])
@reactor_test
async def test_socket_activate(named: bool, lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """With systemd-socket-activate the first device starts the gateway, which serves it."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd is not installed")
    development_certificates(lab.certs_dir, socket.gethostname())
    port = free_port()
    name = ["--fdname=default"] if named else []
    owsla = lab.new_owsla(broker=embedded.url, through=[activate, f"--listen=127.0.0.1:{port}", *name])
    owsla.port = port
    owsla.launch()
    await until(lambda: "Listening on" in owsla.output())
    device = lab.waiting_device(owsla)
    device.begin(timeout=60)
    await owsla.listening()
    assert owsla.port == port
    await until(lambda: device.is_ready)
    assert await owsla.terminate() == 0


# -- systemd itself, and the units of packaging/systemd and docs/systemd.md --------------------------------------------------

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "systemd.md"
SHIPPED = _ROOT / "packaging" / "systemd"

NOT_FOR_USERS = re.compile(
    r"(User|UMask|(State|Logs|Working)Directory\w*|NoNewPrivileges|Protect\w+|Private\w+|Restrict(AddressFamilies|Namespaces"
    r"|Realtime|SUIDSGID)|RemoveIPC|DevicePolicy|LockPersonality|SystemCall\w+|CapabilityBoundingSet|LimitNOFILE|ExecStartPre)"
    r"=.*\n"
)
"""Lines of the unit that the manager of a user's services cannot follow, and those that depend on this machine. The tests of
the Debian package have the whole unit."""


def documented_units() -> dict[str, str]:
    """Return the unit files and drop-ins of the page, by name: each is an ini block after the path of its file."""
    path = r"`(?:/etc/systemd/system|packaging/systemd)/(\S+)`[^`]*(?:`[^`\n]+`[^`]*)*?```ini\n(.*?) *```"
    found = re.findall(path, PAGE.read_text(), re.DOTALL)
    return {name: re.sub("^ +", "", text, flags=re.MULTILINE) for name, text in found}


def test_shipped_units() -> None:
    """The page has the shipped files as they are."""
    units = documented_units()
    for path in SHIPPED.iterdir():
        assert units[path.name] == path.read_text(), path.name


def test_documented_units(tmp_path: Path) -> None:
    """systemd finds no fault in the documented units."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    units = documented_units()
    del units["owsla.sysusers"]
    assert set(units) == {
        "owsla.service",
        "owsla.service.d/reload.conf",
        "owsla.service.d/sockets.conf",
        "owsla.socket",
        "owsla-meters.socket",
    }
    if _version(analyze) < 253:
        del units["owsla.service.d/reload.conf"]
    for name, text in units.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("=twistd-owsla", f"={twistd()[0]}"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in units if not name.endswith(".conf"))],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exposure() -> None:
    """systemd rates the confinement of the unit as the page says, or better."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None or _version(analyze) < 250:
        pytest.skip("systemd 250 or newer is not installed")
    documented = re.search(r"`systemd-analyze security` rates the unit (\d+\.\d) of 10", PAGE.read_text())
    assert documented
    command = [analyze, "security", "--offline=true", "--no-pager", str(SHIPPED / "owsla.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rated = re.search(r"Overall exposure level for owsla.service: (\d+\.\d)", done.stdout)
    assert rated, done.stdout + done.stderr
    assert float(rated[1]) <= float(documented[1]), done.stdout


def _version(analyze: str) -> int:
    """Return the version of systemd."""
    return int(subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])


class Service:
    """The shipped and documented units, in a systemd of its own, with the settings of a test."""

    def __init__(self, systemd: Systemd, folder: Path, ports: tuple[int, int], settings: str) -> None:
        self.systemd = systemd
        self._output = folder / "output"
        config = folder / "owsla.toml"
        config.write_text(settings)
        units = documented_units()
        service = NOT_FOR_USERS.sub("", units["owsla.service"])
        service = service.replace("=twistd-owsla", f"={shlex.join(twistd())} -n --pidfile= owsla")
        service = service.replace("/etc/owsla/owsla.toml", str(config))
        systemd.write("owsla.service", service.replace("WatchdogSec=30", "WatchdogSec=3"))
        here = f"[Service]\nWorkingDirectory={folder}\nStandardOutput=append:{self._output}\nStandardError=inherit\n"
        systemd.write("owsla.service.d/test.conf", f"{here}TimeoutAbortSec=1\n")
        systemd.write("owsla.service.d/sockets.conf", units["owsla.service.d/sockets.conf"])
        for name, port in zip(("owsla.socket", "owsla-meters.socket"), ports, strict=True):
            systemd.write(name, re.sub(r"ListenStream=.*", f"ListenStream=127.0.0.1:{port}", units[name]))

    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def state(self) -> str:
        return self.systemd.show("owsla.service", "SubState")

    @property
    def status(self) -> str:
        """Return what Owsla has reported as its status."""
        return self.systemd.show("owsla.service", "StatusText")

    @property
    def pid(self) -> str:
        """Return the process id of Owsla, in the namespace of systemd."""
        return self.systemd.show("owsla.service", "MainPID")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """Return a systemd of its own, which is not started."""
    missing = Systemd.missing()
    if missing:
        pytest.skip(missing)
    one = Systemd(tmp_path / "systemd")
    yield one
    block_on(one.close())


@WORKERS
@reactor_test
async def test_real_systemd(workers: int, systemd: Systemd, lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """With systemd and the documented units: socket activation, states, a reload, a watchdog, and a restart that refuses no
    connect.
    """
    certificates = development_certificates(lab.certs_dir, socket.gethostname())
    port, meters = free_port(), free_port()
    settings = f'broker = ["{embedded.url}"]\ncerts-dir = "{lab.certs_dir}"\nworkers = {workers}\n'
    doors = '[[listen]]\nname = "meters"\ntls = false\ndevice-ack = "ACK {seq}"\n'
    service = Service(systemd, tmp_path, (port, meters), settings + doors)
    await systemd.start()
    systemd.systemctl("start", "owsla.socket", "owsla-meters.socket")
    assert service.state == "dead"
    arrivals = Arrivals(lab, port, certificates.ca)
    arrivals.start()
    await until(lambda: arrivals.secured > 0, 60, lambda: service.output() + systemd.status())
    await until(lambda: service.state == "running", 30, systemd.status)
    await until(lambda: re.match(r"Ready: \d+ devices? on 2 doors", service.status), 30, lambda: service.status)

    systemd.systemctl("reload", "owsla")
    await until(lambda: "Configuration reloaded" in service.output())
    await until(lambda: service.state == "running")

    first = service.pid
    systemd.systemctl("restart", "owsla")  # returns when it is ready
    assert service.state == "running"
    second = service.pid
    assert second != first
    before = arrivals.secured
    await until(lambda: arrivals.secured >= before + 20)
    await arrivals.stop()
    assert arrivals.faults == []
    meter = await lab.plain(meters)
    meter.send_raw(b"line\n")
    assert (await meter.line()).rstrip() == b"ACK 0"  # with so many arrivals, the log leaves out some that connect

    systemd.systemctl("kill", "--kill-whom=main", "--signal=SIGSTOP", "owsla")
    await until(lambda: service.state == "running" and service.pid not in ("0", second), 60, systemd.status)
    assert systemd.show("owsla.service", "NRestarts") == "1"
    systemd.systemctl("stop", "owsla.socket", "owsla-meters.socket", "owsla")
    assert service.state == "dead"
    assert systemd.show("owsla.service", "Result") == "success"
