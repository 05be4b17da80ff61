"""Full TLS 1.3 handshakes per CPU second: Owsla, and other servers that do nothing else.

    python -m bench.handshakes --runs 5 --output handshakes.md

Devices connect with X25519 to a server with a P-256 certificate, complete the handshake, and close the connection in order.
CPU is all that the server uses for that, read from /proc. The servers take turns:

- Owsla with its embedded broker, which has nothing to do meanwhile;
- a loop with epoll and pyOpenSSL (`bench.bare`) with the TLS context of Owsla: the minimum of a server in Python;
- HAProxy with one thread, if it is installed: a frontend for HTTP, which waits for a request that never comes;
- a server in Go (`beside/handshakes.go`) that discards what it reads, if there is a Go compiler;
- those of `--beside NAME=COMMAND`: a shell command that serves TLS on {port} with {cert} and {key}.

A handshake is a lower bound of what a gateway does for a device that connects: Owsla also identifies and registers it, and
reports two events.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from owsla.runtime.openssl import DEFAULTS
from owsla.tls.development import development_certificates

from . import proc
from .c_program import MeasurementError
from .child import ROOT
from .harness import arguments, circumstances, command_line, free_port, median, publish, table
from .systems import DEVICES, SwarmCommand, end_group

OWSLA = "Owsla"

HAPROXY = """\
global
    nbthread 1
    maxconn 1000
defaults
    mode http
    timeout client 30s
    timeout http-request 30s
frontend devices
    bind 127.0.0.1:{port} ssl crt {pem}
"""


@dataclass(frozen=True)
class Server:
    """TLS server under measurement."""

    name: str
    command: str
    """Shell command with the placeholders {port}, {cert}, {key} and {folder}."""
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True)
class Spent:
    """CPU time of one run, in microseconds per handshake."""

    total: float
    kernel: float


class RunningServer:
    """Running server. As a context manager, it ends with the block."""

    def __init__(self, server: Server, cert: Path, key: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        folder = Path(self._folder.name)
        self.port = free_port()
        (folder / "both.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        (folder / "haproxy.cfg").write_text(HAPROXY.format(port=self.port, pem=folder / "both.pem"))
        command = server.command
        for word, value in (("port", self.port), ("cert", cert), ("key", key), ("folder", folder)):
            command = command.replace(f"{{{word}}}", shlex.quote(str(value)))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OWSLA_")}
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, shell=True, env=environment | dict(server.environment), cwd=folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.pid = self._process.pid
        try:
            self._held = self._connect(30)
        except BaseException:
            self._end()
            raise

    def _connect(self, patience: float) -> ssl.SSLSocket:
        """Return a connection, which is held during the measurement, as a gateway has always some."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        end = time.monotonic() + patience
        while time.monotonic() < end and self._process.poll() is None:
            try:
                return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=5))
            except OSError:
                time.sleep(0.1)
        raise MeasurementError(f"it did not start: {self._log.read_text(errors='replace').strip()[-200:]}")

    @property
    def sends_tickets(self) -> bool:
        """True if the server has sent a session ticket on the held connection."""
        self._held.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            self._held.recv(1)
        return self._held.session is not None and self._held.session.has_ticket

    def kernel(self) -> float:
        """Return the system time of the processes in seconds, to 10 ms each."""
        tick = os.sysconf("SC_CLK_TCK")
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in proc.tree(self.pid)]
        return sum(int(fields[12]) + int(fields[14]) for fields in stats) / tick

    def storm(self, ca: Path, openssl: Path, count: int) -> Spent:
        """Make `count` handshakes, and return the CPU of the server per handshake."""
        before, kernel = proc.cpu(self.pid), self.kernel()
        options = ("--mode", "storm", "--connections", str(count), "--connecting", "16", "--seconds", "600")
        with SwarmCommand(self.port, ca, openssl, *options) as swarm:
            done = swarm.summary(300)["connections"]
        if done["connected"] != count:
            raise MeasurementError(f"{done['connected']} of {count} devices connected: {done['reasons']}")
        time.sleep(0.3)  # the server sees the end of the last connection a moment later
        return Spent((proc.cpu(self.pid) - before) / count * 1e6, (self.kernel() - kernel) / count * 1e6)

    def _end(self) -> None:
        end_group(self._process, 20)
        self._folder.cleanup()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        self._end()


def owsla(name: str = OWSLA, python: str = sys.executable) -> Server:
    """Return Owsla with its defaults, run by an interpreter."""
    # `twistd` would send session tickets at its first start, without the `dropin.cache` of its plugins (owsla.runtime.openssl).
    command = f"exec {shlex.quote(str(Path(python).with_name('twistd-owsla')))} --port {{port}} --cert {{cert}} "
    command += "--key {key} --interface 127.0.0.1 --drain-spread 0s --idle-timeout off"
    return Server(name, command, {"OWSLA_BROKER": "embedded", "OWSLA_EMBEDDED_PORT": str(free_port())})


def bare() -> Server:
    """Return the minimum of a server with pyOpenSSL."""
    command = f"cd {shlex.quote(str(ROOT))} && exec {shlex.quote(sys.executable)} -m bench.bare {{cert}} {{key}} {{port}}"
    return Server("pyOpenSSL alone", command, {"OPENSSL_CONF": str(DEFAULTS)})


def haproxy() -> Server | None:
    """Return HAProxy, with the tickets of its OpenSSL turned off; `None` if it is not installed."""
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return None
    words = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout.split()
    command = f"exec {shlex.quote(program)} -db -f {{folder}}/haproxy.cfg"
    return Server("HAProxy", command, {"OPENSSL_CONF": str(DEFAULTS)}, words[2])


def go_server(folder: Path) -> Server | None:
    """Build the server in Go; return `None` without a compiler."""
    compiler = shutil.which("go")
    if compiler is None:
        return None
    program = folder / "handshakes"
    source = Path(__file__).parent / "beside" / "handshakes.go"
    environment = os.environ | {"GOCACHE": str(folder / "cache"), "GO111MODULE": "off"}
    subprocess.run([compiler, "build", "-o", str(program), str(source)], env=environment, check=True)
    version = subprocess.run([compiler, "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return Server("Go, crypto/tls", f"exec {shlex.quote(str(program))} {{port}} {{cert}} {{key}}", version=version)


def measure(servers: Sequence[Server], runs: int, count: int, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    made = development_certificates(folder, "localhost")
    openssl = folder / "devices.cnf"
    openssl.write_text(DEVICES.format(groups="X25519"))
    spent: dict[str, list[Spent]] = {server.name: [] for server in servers}
    tickets = {}
    with contextlib.ExitStack() as stack:
        running = {server.name: stack.enter_context(RunningServer(server, made.cert, made.key)) for server in servers}
        for name, each in running.items():
            tickets[name] = each.sends_tickets
            each.storm(made.ca, openssl, max(100, count // 4))  # warms up
        for run in range(runs):
            print(f"run {run + 1} of {runs}", file=sys.stderr)
            for name in list(spent) if run % 2 else list(spent)[::-1]:
                spent[name].append(running[name].storm(made.ca, openssl, count))
    for server in servers:
        totals = [one.total for one in spent[server.name]]
        ratio = statistics.median(ours.total / other for ours, other in zip(spent[OWSLA], totals, strict=True))
        yield [
            f"{server.name} {server.version}".strip(),
            f"{1e6 / median(totals):.0f}",
            f"{1e6 / max(totals):.0f} to {1e6 / min(totals):.0f}",
            f"{ratio:.2f}",
            f"{median(totals):.0f}",
            f"{median(one.kernel for one in spent[server.name]):.0f}",
            "yes" if tickets[server.name] else "no",
        ]


def main() -> None:
    parser = arguments("Measure full TLS 1.3 handshakes per CPU second.")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: %(default)s)")
    parser.add_argument("--handshakes", type=int, default=3000, help="handshakes in each (default: %(default)s)")
    parser.add_argument("--beside", metavar="NAME=COMMAND", action="append", default=[], help="another server; repeatable")
    parser.add_argument("--python", metavar="NAME=PATH", action="append", default=[], help="Owsla with another Python, too")
    options = parser.parse_args()
    for pair in options.beside + options.python:
        if "=" not in pair:
            parser.error(f"{pair!r} has no =")
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as temporary:
        folder = Path(temporary)
        known = [owsla(), *(owsla(*pair.split("=", 1)) for pair in options.python), bare(), haproxy(), go_server(folder)]
        servers = [server for server in known if server is not None]
        servers += [Server(*pair.split("=", 1)) for pair in options.beside]
        rows = list(measure(servers, options.runs, options.handshakes, folder))
    head = (
        "",
        "handshakes per CPU second",
        "minimum and maximum",
        "ratio to Owsla",
        "CPU each, µs",
        "of that in the kernel",
        "tickets",
    )
    text = "\n\n".join([
        "# Handshakes",
        f"{circumstances('embedded')}. Medians of {options.runs} alternating runs of {options.handshakes} handshakes: full, "
        "TLS 1.3, P-256, X25519. The ratio is the median of the ratios of the runs: above 1, the server needs less CPU.",
        f"    {command_line()}",
        table(head, rows),
    ])  # fmt: skip
    publish(text, options.output)


if __name__ == "__main__":
    main()
