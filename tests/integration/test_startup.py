"""Tests of the start and the end of Owsla, as the operator sees them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Broker, Gateway, Lab
from ._support.owsla import Option, environment, twistd
from ._support.process import ChildProcess, free_port
from ._support.waiting import pause, reactor_test, until

_ROOT = Path(__file__).resolve().parents[2]


# -- What can't work is said in one line -------------------------------------------------------------------------------


@dataclass
class Place:
    """Ports and files that the cases below need."""

    folder: Path
    taken: int
    cert: Path
    key: Path
    other_key: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return a folder of valid and invalid files, and a port that is in use."""
    folder = tmp_path_factory.mktemp("bad")
    authority = Authority(folder)
    cert, key = authority.issue("server")
    _, other_key = authority.issue("other")
    (folder / "garbage.pem").write_text("not a certificate\n")
    (folder / "bad.toml").write_text("port = [\n")
    (folder / "strange.toml").write_text("prot = 1\n")
    (folder / "empty").write_text("")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", free_port()))
        listening.listen()
        yield Place(folder, listening.getsockname()[1], cert, key, other_key)


_Case = Callable[[Place], tuple[dict[str, Option], str]]

_BAD: dict[str, _Case] = {
    "unknown-option": lambda place: ({"prot": 1}, "prot"),
    "port-not-a-number": lambda place: ({"port": "many"}, "--port.*many"),
    "port-too-high": lambda place: ({"port": 65536}, "--port.*65536"),
    "negative-timeout": lambda place: ({"idle_timeout": "-1"}, "--idle-timeout.*-1"),
    "bad-interface": lambda place: ({"interface": "nowhere"}, "--interface.*nowhere"),
    "not-our-interface": lambda place: ({"interface": "203.0.113.7"}, "203.0.113.7"),
    "bad-delimiter": lambda place: ({"delimiter": ""}, "--delimiter"),
    "port-in-use": lambda place: ({"port": place.taken}, f"{place.taken}.*in use"),
    "embedded-port-in-use": lambda place: (
        {"broker": "embedded", "embedded_port": place.taken},
        f"{place.taken}.*--(broker|embedded-port)",
    ),
    "missing-cert": lambda place: ({"cert": place.folder / "none.pem", "key": place.key}, "none.pem.*[Nn]o such file"),
    "missing-key": lambda place: ({"cert": place.cert, "key": place.folder / "none.key"}, "none.key.*[Nn]o such file"),
    "cert-is-a-folder": lambda place: ({"cert": place.folder, "key": place.key}, f"{place.folder}"),
    "cert-without-key": lambda place: ({"cert": place.cert}, "--key"),
    "cert-is-garbage": lambda place: ({"cert": place.folder / "garbage.pem", "key": place.key}, "garbage.pem"),
    "key-is-garbage": lambda place: ({"cert": place.cert, "key": place.folder / "garbage.pem"}, "garbage.pem"),
    "key-of-another": lambda place: ({"cert": place.cert, "key": place.other_key}, "other.key"),
    "config-missing": lambda place: ({"config": place.folder / "none.toml"}, "none.toml.*[Nn]o such file"),
    "config-not-toml": lambda place: ({"config": place.folder / "bad.toml"}, "bad.toml"),
    "config-unknown-option": lambda place: ({"config": place.folder / "strange.toml"}, "strange.toml.*prot"),
    "broker-not-amqp": lambda place: ({"broker": "http://127.0.0.1"}, "--broker.*amqp"),
    "broker-nonsense": lambda place: ({"broker": "nonsense"}, "--broker.*amqp"),
    "broker-underscore": lambda place: ({"broker": "amqp://rabbit_mq"}, "--broker.*underscore"),
    "broker-port": lambda place: ({"broker": "amqp://127.0.0.1:none"}, "--broker.*port"),
    "password-file-missing": lambda place: (
        {"broker": "amqp://127.0.0.1", "broker_password_file": place.folder / "none"},
        "none.*[Nn]o such file",
    ),
    "password-file-empty": lambda place: (
        {"broker": "amqp://127.0.0.1", "broker_password_file": place.folder / "empty"},
        "empty",
    ),
    "broker-ca-is-garbage": lambda place: (
        {"broker": "amqps://127.0.0.1", "broker_ca": place.folder / "garbage.pem"},
        "garbage.pem",
    ),
    "certs-dir-is-a-file": lambda place: ({"certs_dir": place.folder / "empty"}, "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(_BAD))
@reactor_test
async def test_bad_start(place: Place, lab: Lab, embedded: EmbeddedBrokerProcess, case: str) -> None:
    """An invalid setting is one line on standard error that names it, and exit status 1, never a traceback."""
    options, said = _BAD[case](place)
    owsla = lab.new_owsla(**{"broker": embedded.url, **options})
    owsla.launch()
    assert await owsla.exited(20) == 1
    errors = owsla.errors().splitlines()
    assert len(errors) == 1, owsla.output()
    assert re.search(said, errors[0]), errors[0]
    owsla.assert_tidy()


@reactor_test
async def test_unreadable_key(place: Place, lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A private key that the user of Owsla may not read is one line, too."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    key = tmp_path / "secret.key"
    shutil.copy(place.key, key)
    key.chmod(0)
    owsla = lab.new_owsla(broker=embedded.url, cert=place.cert, key=key)
    owsla.launch()
    assert await owsla.exited(20) == 1
    assert re.fullmatch(r".*secret\.key.*denied.*\n", owsla.errors())


@reactor_test
async def test_second_owsla_on_the_embedded_port(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """If the port of the embedded broker is in use, the line says that another one may be running and what to do."""
    owsla = lab.new_owsla(broker="embedded", embedded_port=embedded.port)
    owsla.launch()
    assert await owsla.exited(20) == 1
    assert re.search("broker.*already", owsla.errors())
    assert "--broker" in owsla.errors()


# -- The first start, on a machine with nothing ------------------------------------------------------------------------


@reactor_test
async def test_bare_start(lab: Lab, tmp_path: Path) -> None:
    """With no options but ports, Owsla creates certificates, logs the CA file to trust and the URL for back ends, and works."""
    certs = tmp_path / "certs"
    port = free_port()
    owsla = lab.new_owsla(certs_dir=certs, embedded_port=port, interface=None, program=True)
    owsla.launch()
    await owsla.listening()
    assert str(certs / "ca.pem") in owsla.output()
    in_memory = owsla.lines("in memory")
    assert in_memory, owsla.output()
    assert str(port) in "\n".join(in_memory)
    gateway = Gateway(lab, owsla, f"amqp://guest:guest@127.0.0.1:{port}/%2f", "from_device", "to_device")
    await gateway.connect_backend()
    for host in ("127.0.0.1", "localhost"):
        await gateway.round_trip(await lab.device(gateway, server_name=host))
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((certs / name).stat().st_mode) == 0o600


@reactor_test
async def test_certificates_are_used_again(lab: Lab, tmp_path: Path, embedded: EmbeddedBrokerProcess) -> None:
    """Development certificates are created once: a second start uses them, so that devices can keep the CA."""
    certs = tmp_path / "certs"
    before: dict[str, bytes] = {}
    for _ in range(2):
        gateway = await lab.gateway(embedded.url, certs_dir=certs)
        now = {path.name: path.read_bytes() for path in certs.iterdir()}
        assert before in ({}, now)
        before = now
        await gateway.round_trip(await lab.device(gateway))
        gateway.owsla.kill()
    assert {"ca.pem", "ca.key", "server.pem", "server.key"} <= before.keys()


@reactor_test
async def test_listens_on_ipv4_and_ipv6(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """Without --interface devices can connect over IPv4 and IPv6."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    gateway = await lab.gateway(embedded.url, interface=None)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as probe:
            assert probe.connect_ex((host, gateway.owsla.port)) == 0, host


@reactor_test
async def test_wildcard_of_one_ip_version(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """`--interface ::` accepts IPv6 only and `0.0.0.0` IPv4 only, and the log says so."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    hosts = {"IPv6": (socket.AF_INET6, "::1"), "IPv4": (socket.AF_INET, "127.0.0.1")}
    for interface, version in (("::", "IPv6"), ("0.0.0.0", "IPv4")):
        gateway = await lab.gateway(embedded.url, interface=interface)
        assert gateway.owsla.lines(f"Listening for devices .*all {version} interfaces"), gateway.owsla.output()
        for its_version, (family, host) in hosts.items():
            with socket.socket(family) as probe:
                assert (probe.connect_ex((host, gateway.owsla.port)) == 0) == (its_version == version), (interface, host)


@reactor_test
async def test_openssl_and_echo(lab: Lab, tmp_path: Path, embedded: EmbeddedBrokerProcess) -> None:
    """The quick start of the README works: `openssl s_client`, `owsla echo`, and a typed line comes back."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command")
    gateway = await lab.gateway(embedded.url, backend=False, from_device="from_device", to_device="to_device")
    echo_command = [str(Path(sys.executable).with_name("owsla")), "echo", f"--broker={embedded.url}"]
    echo = ChildProcess(echo_command, output=tmp_path / "echo", env=environment())
    s_client = [openssl, "s_client", "-quiet", "-verify_return_error", "-CAfile", str(gateway.owsla.ca)]
    typed = ["sh", "-c", '(echo "typed line"; exec sleep 60) | exec "$@"', "sh"]  # it ends with its input
    client = ChildProcess([*typed, *s_client, "-connect", f"localhost:{gateway.owsla.port}"], output=tmp_path / "client")
    try:
        await client.wait_for_line("typed line", 20)
        assert "Traceback" not in echo.output()
    finally:
        client.kill()
        echo.kill()


# -- Ways to start it --------------------------------------------------------------------------------------------------


@reactor_test
async def test_help(tmp_path: Path) -> None:
    """`twistd --help` lists owsla, `twistd owsla --help` its options. Both work outside the checkout."""
    for arguments, wanted in ((["--help"], r"^ +owsla +\S"), (["owsla", "--help"], r"^ +--max-line\b")):
        output = tmp_path / f"help-{len(arguments)}"
        process = ChildProcess([*twistd(), *arguments], output=output, env=environment(), cwd=tmp_path)
        try:
            assert await process.wait() == 0, process.output()
        finally:
            process.kill()
        assert re.search(wanted, process.output(), re.MULTILINE), process.output()


@reactor_test
async def test_tac_file(lab: Lab, broker: Broker, certs_dir: Path, tmp_path: Path) -> None:
    """`twistd -ny tac/owsla.tac` starts the same service, configured by the environment and the file named there."""
    config = tmp_path / "owsla.toml"
    config.write_text('from-device = "from_tac"\nto-device = "to_file"\nport = 1\ninterface = "127.0.0.1"\n')
    env = {
        "OWSLA_CONFIG": str(config),
        "OWSLA_PORT": "0",
        "OWSLA_TO_DEVICE": "to_tac",
        "OWSLA_BROKER": broker.url,
        "OWSLA_CERTS_DIR": str(certs_dir),
    }
    owsla = lab.new_owsla(argv=["--pidfile=", "-ny", str(_ROOT / "tac" / "owsla.tac")], env=env, program=True)
    await owsla.start()
    gateway = Gateway(lab, owsla, broker.url, "from_tac", "to_tac")
    await gateway.connect_backend()
    await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_tac_file_with_a_bad_setting(lab: Lab) -> None:
    """An invalid setting is one line and exit status 1 with the .tac file too."""
    argv = ["--pidfile=", "-ny", str(_ROOT / "tac" / "owsla.tac")]
    owsla = lab.new_owsla(argv=argv, env={"OWSLA_PORT": "many"})
    owsla.launch()
    assert await owsla.exited(20) == 1
    assert re.fullmatch(r".*OWSLA_PORT.*many.*\n", owsla.errors()), owsla.output()
    owsla.assert_tidy()


@reactor_test
async def test_command_line_wins(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """The command line overrides the environment, and the environment overrides the file."""
    config = tmp_path / "owsla.toml"
    config.write_text('max-line = 10\nfrom-device = "file"\nto-device = "to_file"\n')
    env = {"OWSLA_MAX_LINE": "20", "OWSLA_FROM_DEVICE": "from_environment"}
    owsla = lab.new_owsla(broker=embedded.url, config=config, max_line=30, env=env)
    await owsla.start()
    gateway = Gateway(lab, owsla, embedded.url, "from_environment", "to_file")
    await gateway.connect_backend()
    device = await lab.device(gateway)
    device.send_line(b"x" * 30)
    assert (await gateway.message()).body == b"x" * 30
    device.send_line(b"x" * 31)
    await device.closed()


def _catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal (proc(5), SigCgt)."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> number - 1 & 1)


# -- While it starts ---------------------------------------------------------------------------------------------------


async def _reading(fifo: Path) -> int:
    """Wait until a process has opened a named pipe for reading, and return a descriptor to write to it."""

    def open_for_writing() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    descriptor = await until(open_for_writing, 30, "a reader of the pipe")
    assert descriptor is not None
    return descriptor


@reactor_test
async def test_signals_while_it_starts(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """SIGHUP and SIGUSR2 do no harm while a process still reads its settings."""
    fifo = tmp_path / "password"
    os.mkfifo(fifo)
    owsla = lab.new_owsla(broker=embedded.url, broker_password_file=fifo, program=True)
    owsla.launch()
    descriptor = await _reading(fifo)
    owsla.process.signal(signal.SIGHUP)
    owsla.process.signal(signal.SIGUSR2)
    os.write(descriptor, b"guest\n")
    os.close(descriptor)
    await owsla.listening()
    owsla.assert_tidy()


@reactor_test
async def test_pid_file_of_a_killed_container(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A pid file with the process id of the process itself is not taken for another server: in a container it is always 1."""
    fifo, pid_file = tmp_path / "password", tmp_path / "twistd.pid"
    os.mkfifo(fifo)
    options = [f"--broker={embedded.url}", f"--broker-password-file={fifo}", "--port=0", "--interface=127.0.0.1"]
    argv = ["-n", f"--pidfile={pid_file}", "owsla", f"--certs-dir={tmp_path / 'certs'}", *options]
    owsla = lab.new_owsla(argv=argv, program=True)
    owsla.launch()
    descriptor = await _reading(fifo)
    pid_file.write_text(str(owsla.pid))  # left by the previous container
    os.write(descriptor, b"guest\n")
    os.close(descriptor)
    await owsla.listening()
    assert pid_file.read_text() == str(owsla.pid)
    assert await owsla.terminate() == 0
    assert not pid_file.exists()


# -- The end -----------------------------------------------------------------------------------------------------------


@reactor_test
async def test_sigterm(broker: Broker, lab: Lab) -> None:
    """SIGTERM closes the connections of devices, and ends the process with status 0 and without an error in the log."""
    gateway = await lab.gateway(broker.url, drain_spread="100ms", drain_timeout="5s")
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    device.send_line(b"last words")
    assert (await gateway.message()).body == b"last words"
    assert await gateway.owsla.terminate() == 0
    await device.closed()
    gateway.owsla.assert_tidy()


@reactor_test
async def test_sigterm_while_a_name_is_looked_up(lab: Lab, tmp_path: Path) -> None:
    """A name server that does not answer does not delay the end, neither of a single process nor of workers."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "answer = socket.getaddrinfo\n"
        "def getaddrinfo(host, *args, **kwargs):\n"
        "    if host == 'silent.example':\n"
        "        print('looking up', flush=True)\n"
        "        time.sleep(600)\n"
        "    return answer(host, *args, **kwargs)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    for workers in (1, 2):
        owsla = lab.new_owsla(broker="amqp://silent.example", workers=workers, env={"PYTHONPATH": str(tmp_path)})
        owsla.launch()
        await owsla.wait_for_line("looking up", 30)
        await until(partial(_catches, owsla.pid, signal.SIGUSR2), 30, "its own handlers of signals")
        assert await owsla.terminate() == 0, owsla.output()
        assert not owsla.lines("Broker unavailable"), owsla.output()
        owsla.assert_tidy()


@reactor_test
async def test_sigterm_with_the_embedded_broker(lab: Lab) -> None:
    """SIGTERM also ends an Owsla with the embedded broker, whichever clients are connected to it."""
    port = free_port()
    owsla = lab.new_owsla(embedded_port=port, drain_spread="100ms", drain_timeout="5s")
    await owsla.start()
    gateway = Gateway(lab, owsla, f"amqp://guest:guest@127.0.0.1:{port}/%2f", "from_device", "to_device")
    await gateway.connect_backend()
    await gateway.round_trip(await lab.device(gateway))
    assert await owsla.terminate() == 0
    owsla.assert_tidy()


@reactor_test
async def test_sigterm_before_the_broker_is_there(lab: Lab) -> None:
    """SIGTERM ends an Owsla that is still connecting to its broker."""
    owsla = lab.new_owsla(broker=f"amqp://127.0.0.1:{free_port()}", drain_spread="100ms", drain_timeout="5s")
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    assert await owsla.terminate(20) == 0
    owsla.assert_tidy()


# -- Passwords ---------------------------------------------------------------------------------------------------------

_SECRET = "s3cr3t-of-the-tests"


def _in_process_list(pid: int, text: str) -> bool:
    return text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("way", ["file", "environment", "command-line"])
@reactor_test
async def test_password_is_nowhere(embedded: EmbeddedBrokerProcess, lab: Lab, tmp_path: Path, way: str) -> None:
    """A password, right or wrong, appears in no log line and not in the process list, whichever way it was given."""
    url = f"amqp://guest:{_SECRET}@127.0.0.1:{embedded.port}/%2f"
    if way == "file":
        password_file = tmp_path / "password"
        password_file.write_text(_SECRET + "\n")
        url = url.replace(f":{_SECRET}", "")
        owsla = lab.new_owsla(broker=url, broker_password_file=password_file, program=True)
    elif way == "environment":
        owsla = lab.new_owsla(env={"OWSLA_BROKER": url}, program=True)
    else:
        owsla = lab.new_owsla(broker=url, program=True)
    owsla.launch()
    await owsla.wait_for_line("Broker unavailable")
    assert not _in_process_list(owsla.pid, _SECRET)
    assert _SECRET not in owsla.output()


@reactor_test
async def test_password_file(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """The password in --broker-password-file takes precedence."""
    password_file = tmp_path / "password"
    password_file.write_text("guest\n")
    url = f"amqp://guest:wrong@127.0.0.1:{broker.port}/%2f"
    owsla = lab.new_owsla(broker=url, broker_password_file=password_file)
    await owsla.start()


# -- Limits ------------------------------------------------------------------------------------------------------------


@reactor_test
async def test_max_connections(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """At --max-connections no more devices are accepted. They wait, and connect when others leave. None is refused."""
    gateway = await lab.gateway(embedded.url, max_connections=3)
    inside = [await lab.device(gateway) for _ in range(3)]
    for device in inside:
        await gateway.round_trip(device)
    outside = lab.waiting_device(gateway)
    outside.begin(60)
    await gateway.owsla.wait_for_line("Not accepting connections")
    for device in inside:  # connected devices are still served
        await gateway.round_trip(device)
    await pause(1)
    assert not outside.is_ready
    assert outside.is_open
    await inside.pop().close()
    await until(lambda: outside.is_ready, what="the place that has become free")
    for device in (*inside, outside):
        await gateway.round_trip(device)


@reactor_test
async def test_max_connections_many_times(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """With far more devices than --max-connections that come and go, each one gets its turn."""
    gateway = await lab.gateway(embedded.url, max_connections=3)
    waiting = [lab.waiting_device(gateway) for _ in range(20)]
    for device in waiting:
        device.begin(60)
    served = 0
    while served < len(waiting):
        ready = await until(lambda: [device for device in waiting if device.is_ready and device.is_open], 30)
        assert len(ready) <= 3
        for device in ready:
            await gateway.round_trip(device)
            await device.close()
            served += 1


@reactor_test
async def test_max_connections_above_the_limit_on_open_files(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """If --max-connections is above the limit on open files, the log at start-up says which limit to raise."""
    owsla = lab.new_owsla(broker=embedded.url, max_connections=9_000_000)
    owsla.launch()
    line = await owsla.wait_for_line(r"(?i)open.files|nofile")
    assert "9000000" in line.string.replace(",", "").replace(" ", "") or "max-connections" in line.string


@reactor_test
async def test_soft_limit_on_open_files_is_raised(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """The soft limit on open files is raised to the hard one."""
    gateway = await lab.gateway(embedded.url)
    limits = Path(f"/proc/{gateway.owsla.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard


@reactor_test
async def test_silent_sockets_take_no_place(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """Sockets that never begin a handshake use no slot of the handshakes or of the connections."""
    gateway = await lab.gateway(embedded.url, max_handshakes=2, max_connections=4, handshake_timeout="30s")
    silent = [await lab.plain(gateway.owsla.port) for _ in range(10)]
    await pause(0.2)  # time for them to be noticed
    for _ in range(3):
        await gateway.round_trip(await lab.device(gateway))
    assert all(plain.is_open for plain in silent)


@reactor_test
async def test_silent_sockets_are_closed(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """A silent socket is closed.

    That takes longer than --handshake-timeout: the kernel holds such a socket back for some seconds, rounded up to its
    retransmissions (tcp(7), TCP_DEFER_ACCEPT).
    """
    gateway = await lab.gateway(embedded.url, handshake_timeout="1s")
    silent = await lab.plain(gateway.owsla.port)
    await silent.closed(40)


@reactor_test
async def test_socket_options(embedded: EmbeddedBrokerProcess, lab: Lab) -> None:
    """Connections of devices have TCP keepalive, and the accept queue is long."""
    ss = shutil.which("ss")
    if ss is None:
        pytest.skip("no ss command")
    gateway = await lab.gateway(embedded.url)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    looks = 0

    async def look() -> list[str]:
        nonlocal looks
        looks += 1
        process = ChildProcess([ss, "-tnoHa", f"sport = :{gateway.owsla.port}"], output=lab.folder / f"ss-{looks}")
        try:
            await process.wait()
        finally:
            process.kill()
        return process.output().splitlines()

    (listening,) = [line for line in await look() if line.startswith("LISTEN")]
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert int(listening.split()[2]) >= min(1024, somaxconn)
    for _ in range(50):  # the last segment has another timer, until it is acknowledged
        (mine,) = [line for line in await look() if f":{device.local_port} " in line and line.startswith("ESTAB")]
        if "timer:(keepalive" in mine:
            return
        await pause(0.1)
    pytest.fail(f"no keepalive: {mine}")
