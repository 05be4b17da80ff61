"""Reloads under load: devices notice nothing while certificates and authorities are exchanged.

    python -m bench.reload --output reload.md

Devices stay connected and make round trips through a back end. Others connect all the time, verify the certificate of the
gateway, send a line and leave after its answer. All have client certificates. Meanwhile the certificate of the gateway, the
file of `--client-ca`, and both are exchanged in turn. Of five exchanges of each

- one is announced by SIGHUP when all files are complete;
- three are announced too early: the certificate is new and the key old, a file ends in the middle, or a file is that of
  somebody else. Such a reload must fail and change nothing. Another SIGHUP follows when all files are complete;
- one is not announced: the watch finds it.

The file of `--client-ca` always has two authorities. An exchange removes the first and adds another one, as when an operator
renews an authority. The devices that connect meanwhile have certificates of the one that stays.

Times of the same length without a reload alternate with those of the reloads, under the same load. `--workers` and `--broker`
are as for the other programs.
"""

from __future__ import annotations

import argparse
import bisect
import os
import re
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from owsla.runtime.open_files import raise_open_files_limit

from .backend import BackEnd
from .harness import BROKER, Gateway, arguments, circumstances, command_line, median, percentile, publish, table
from .reload_swarm import ReloadSwarm

KINDS: Final = ("certificate", "client CA", "both")
"""Files that are exchanged."""

MANNERS: Final = ("signal", "half", "cut", "other", "watch")
"""How the files are exchanged: announced by a signal, too early with one half new, too early with a file that ends in the
middle, too early with a file of somebody else, or not announced."""

LIMIT: Final = 1.0
"""Seconds from the signal until devices must be shown the new certificate."""

PROBE_EVERY: Final = 0.03
"""Seconds between two devices of a new authority that try whether they are accepted."""

QUIET, RELOAD, FAILED, WATCHED = "without a reload", "reload", "failed reload", "reload by the watch"


class Authority:
    """Certificate authority for the gateway or for devices."""

    _numbers = count(1)

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {next(self._numbers)}")])
        self.pem = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))[1]

    def issue(self, name: str) -> Pair:
        """Issue a certificate for a host or a device."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        serial, pem = self._sign(subject, key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Pair(serial, pem, private)

    def crl(self, revoked: list[x509.RevokedCertificate]) -> bytes:
        """Return a revocation list of this authority."""
        now = datetime.now(UTC).replace(tzinfo=None)
        crl = x509.CertificateRevocationListBuilder(self._name, now, now + timedelta(days=1), [], revoked)
        return crl.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> tuple[int, bytes]:
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=10)).add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        return certificate.serial_number, certificate.public_bytes(serialization.Encoding.PEM)


def _revoked() -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(x509.random_serial_number())
    return builder.revocation_date(datetime.now(UTC).replace(tzinfo=None)).build()


@dataclass(frozen=True, slots=True)
class Pair:
    """Certificate with its key."""

    serial: int
    certificate: bytes
    key: bytes


class ServedFiles:
    """Files that the gateway reads."""

    def __init__(self, folder: Path, further: int, revoked: int) -> None:
        """`further` is the number of authorities in the file of `--client-ca` that signed no device of the measurement, and
        `revoked` the number of certificates in the revocation list; without any there is no list.
        """
        self.folder = folder
        self._server = Authority("gateways")
        self._further = b"".join(Authority("further devices").pem for _ in range(further))
        self.trusted = self.write("trusted.pem", self._server.pem)
        self.cert, self.key, self.client_ca = (folder / name for name in ("server.pem", "server.key", "devices.pem"))
        self.client_crl = folder / "devices.crl" if revoked else None
        self._revoked = [_revoked() for _ in range(revoked)]
        self.authorities = [Authority("devices"), Authority("devices")]
        self.pair = self.new_pair()
        self.write("server.pem", self.pair.certificate)
        self.write("server.key", self.pair.key)
        self.write_authorities(self.authorities)

    def write(self, name: str, content: bytes) -> Path:
        """Replace a file at once, as ACME clients and Kubernetes do."""
        path = self.folder / name
        new = self.folder / f".{name}"
        new.write_bytes(content)
        new.replace(path)
        return path

    def new_pair(self) -> Pair:
        """Return another certificate for the gateway."""
        return self._server.issue("localhost")

    def client_ca_of(self, authorities: Iterable[Authority]) -> bytes:
        """Return the content of the file of `--client-ca`."""
        first, second = authorities
        return first.pem + self._further + second.pem

    def write_authorities(self, authorities: Sequence[Authority]) -> None:
        """Write the files of the authorities that sign device certificates."""
        self.write("devices.pem", self.client_ca_of(authorities))
        if self.client_crl is not None:
            first, second = authorities
            self.write("devices.crl", first.crl(self._revoked) + second.crl([]))

    def device(self, authority: Authority) -> Path:
        """Return a file with a new device certificate and its key."""
        pair = authority.issue("device")
        return self.write(f"device-{pair.serial}.pem", pair.certificate + pair.key)


@dataclass(slots=True)
class Window:
    """Time during which round trips and CPU are measured."""

    kind: str
    begin: float
    end: float
    cpu: float
    """CPU time in seconds of the gateway."""
    trips: list[float] = field(default_factory=list)
    """Round trips in ms."""


@dataclass(slots=True)
class Exchange:
    """An exchange of files, and what came of it."""

    kind: str
    manner: str
    begin: float
    """Time of the signal, or without one, of the last file."""
    old: int
    new: int
    """Serial numbers of the certificate before and after, which may be the same."""
    authority: float | None = None
    """Seconds until a device of the new authority was accepted."""


class Measurement:
    """A running gateway with its load."""

    def __init__(
        self, options: argparse.Namespace, files: ServedFiles, gateway: Gateway, swarms: Sequence[ReloadSwarm]
    ) -> None:
        self._options = options
        self._files = files
        self._gateway = gateway
        self._staying, self._arriving = swarms
        self.windows: list[Window] = []
        self.exchanges: list[Exchange] = []
        self.failures = 0
        """Number of reloads that failed, as they must."""
        self.faults: Counter[str] = Counter()
        """Things that must not happen."""
        self.memory: list[float] = []
        """Memory of the gateway in MB: before the first round, and after each."""
        self.cpu_of_reload = 0.0
        self._probing = 0.3
        """Seconds for which the last reload was probed. A window without a reload is probed as long, for the same load."""

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run all rounds. Return the answers of the devices that stayed connected, and of the others."""
        options = self._options
        self._use(self._staying, self._files.authorities[0])
        self._use(self._arriving, self._files.authorities[1])
        done = self._staying.call("connect", count=options.devices)
        if done["failed"]:
            raise SystemExit(f"{done['failed']} devices could not connect")
        self._staying.ask("stay", rate=options.rate)
        self._arriving.ask("arrive", rate=options.arrivals)
        time.sleep(options.warm_up)
        self.memory.append(self._memory())
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for kind in KINDS:
                self._exchange(kind, MANNERS[number % len(MANNERS)])
            self.memory.append(self._memory())
        self._arriving.ask("stop")
        arrived = self._arriving.answer()
        self._staying.ask("stop")
        stayed = self._staying.answer()
        self.cpu_of_reload = self._idle_reloads(10)
        return stayed, arrived

    def _memory(self) -> float:
        samples = []
        for _ in range(5):
            samples.append(self._gateway.pss() / 1024)
            time.sleep(0.2)
        return median(samples)

    def _use(self, swarm: ReloadSwarm, authority: Authority) -> None:
        """Let the devices that connect from now on have certificates of this authority."""
        certificate = self._files.device(authority)
        swarm.ask("use", authorities=str(self._files.trusted), certificate=str(certificate))
        if swarm is self._staying or not self.memory:
            swarm.answer()

    # -- an exchange -------------------------------------------------------------------------------------------------------

    def _exchange(self, kind: str, manner: str) -> None:
        files, old = self._files, self._files.pair
        pair = files.new_pair() if kind != "client CA" else old
        authorities = [files.authorities[1], Authority("devices")] if kind != "certificate" else files.authorities
        newest, oldest = files.device(authorities[1]), files.device(files.authorities[0])

        def probe() -> None:
            begin = time.monotonic()
            while kind != "certificate" and time.monotonic() < begin + self._probing:
                self._accepts(newest)
                time.sleep(PROBE_EVERY)

        self._watch(QUIET, probe)
        if kind != "certificate":
            self._expect("a device of an authority that is not trusted yet was accepted", not self._accepts(newest))
        if manner in ("half", "cut", "other"):
            self._fail(kind, manner, pair, authorities)
            if kind != "certificate":
                self._expect("a failed reload changed the authorities", not self._accepts(newest))
        exchange = Exchange(kind, manner, 0.0, old.serial, pair.serial)

        def reload() -> None:
            self._replace(pair, authorities)
            exchange.begin = time.monotonic()
            if manner != "watch":
                os.kill(self._gateway.pid, signal.SIGHUP)
            if kind != "certificate":
                while not self._accepts(newest):
                    time.sleep(PROBE_EVERY)
                self._probing = exchange.authority = time.monotonic() - exchange.begin
            self._wait_for("Configuration reloaded", mark)

        mark = self._mark()
        self._watch(WATCHED if manner == "watch" else RELOAD, reload)
        if kind != "certificate":
            self._expect("a device of a removed authority was accepted", not self._accepts(oldest))
            self._use(self._arriving, authorities[1])
        files.pair, files.authorities = pair, authorities
        self.exchanges.append(exchange)

    def _fail(self, kind: str, manner: str, pair: Pair, authorities: list[Authority]) -> None:
        """Write incomplete or wrong files, and have them read."""
        files = self._files
        content = files.client_ca_of(authorities)
        if kind == "client CA":
            files.write("devices.pem", content[:-100] if manner == "cut" else content.replace(b"MII", b"AAA"))
        elif manner == "half":
            files.write("server.pem", pair.certificate)
        elif manner == "cut":
            files.write("server.key", pair.key)
            files.write("server.pem", pair.certificate[: len(pair.certificate) // 2])
        else:
            files.write("server.key", files.new_pair().key)
        if kind == "both":
            files.write_authorities(authorities)
        mark = self._mark()

        def reload() -> None:
            os.kill(self._gateway.pid, signal.SIGHUP)
            self._wait_for("Reload failed, and nothing was changed", mark)

        self._watch(FAILED, reload)
        self.failures += 1

    def _replace(self, pair: Pair, authorities: list[Authority]) -> None:
        self._files.write("server.pem", pair.certificate)
        self._files.write("server.key", pair.key)
        self._files.write_authorities(authorities)

    def _watch(self, kind: str, act: Callable[[], None]) -> None:
        """Measure while something is done, for at least the length of a window."""
        cpu, begin = self._gateway.cpu(), time.monotonic()
        act()
        time.sleep(max(0.0, begin + self._options.window - time.monotonic()))
        self.windows.append(Window(kind, begin, time.monotonic(), self._gateway.cpu() - cpu))

    def _accepts(self, certificate: Path) -> bool:
        """Return whether the gateway accepts a device. In TLS 1.2 the handshake ends after the verification."""
        context = ssl.create_default_context(cafile=self._files.trusted)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate)
        try:
            with socket.create_connection(("127.0.0.1", self._gateway.port), timeout=30) as sock:
                context.wrap_socket(sock, server_hostname="localhost").close()
        except (ssl.SSLError, ConnectionError):
            return False
        return True

    def _expect(self, fault: str, fine: bool) -> None:
        if not fine:
            self.faults[fault] += 1

    def _mark(self) -> int:
        return self._gateway.log.stat().st_size

    def _wait_for(self, text: str, mark: int) -> None:
        """Wait for a line of the log of the gateway after a position."""
        patience = time.monotonic() + 60
        while True:
            with self._gateway.log.open("rb") as log:
                log.seek(mark)
                if text.encode() in log.read():
                    return
            if time.monotonic() > patience:
                raise SystemExit(f"no line {text!r}:\n{self._gateway.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def _idle_reloads(self, times: int) -> float:
        """Return the CPU time in seconds of a reload, without other load."""
        time.sleep(2)
        cpu, begin = self._gateway.cpu(), time.monotonic()
        time.sleep(5)
        idle = (self._gateway.cpu() - cpu) / (time.monotonic() - begin)
        cpu, begin = self._gateway.cpu(), time.monotonic()
        for _ in range(times):
            mark = self._mark()
            self._replace(self._files.new_pair(), [self._files.authorities[1], Authority("devices")])
            os.kill(self._gateway.pid, signal.SIGHUP)
            self._wait_for("Configuration reloaded", mark)
        return (self._gateway.cpu() - cpu - idle * (time.monotonic() - begin)) / times


class Results:
    """Results of a measurement, and whether they are as they must be."""

    def __init__(self, run: Measurement, stayed: dict[str, Any], arrived: dict[str, Any], counted: dict[str, Any]) -> None:
        self.run = run
        self.stayed = stayed
        self.arrived = arrived
        self.counted = counted
        self.seconds = {id(exchange): self._seconds(exchange) for exchange in run.exchanges if exchange.old != exchange.new}
        _assign(stayed["trips"], run.windows)

    def _seconds(self, exchange: Exchange) -> float:
        """Return the time from the signal until all devices were shown the new certificate."""
        first, last_old = float("inf"), 0.0
        for begun, shown, _, serial in self.arrived["completed"]:
            number = int(serial, 16)
            if number == exchange.new:
                first = min(first, shown)
            elif number == exchange.old and begun > exchange.begin:
                last_old = max(last_old, begun)
        if first < exchange.begin:
            self.run.faults["a device was shown a certificate before its key was there"] += 1
        return max(first, last_old) - exchange.begin

    @property
    def late(self) -> int:
        """Number of exchanges that took longer than the limit after a signal."""
        signalled = [exchange for exchange in self.run.exchanges if exchange.manner != "watch"]
        times = [self.seconds.get(id(exchange), 0.0) for exchange in signalled]
        times += [exchange.authority for exchange in signalled if exchange.authority is not None]
        return sum(seconds > LIMIT for seconds in times)

    @property
    def good(self) -> bool:
        """Return whether devices noticed nothing."""
        lines = self.stayed["lines"] + len(self.arrived["completed"])
        return not (
            self.arrived["failed"]
            or self.stayed["lost"]
            or self.stayed["answers"] != self.stayed["lines"]
            or (not self.arrived["failed"] and self.counted["contiguous"] != lines)
            or self.counted["wrong"]
            or self.late
            or self.run.faults
        )


def _assign(trips: Iterable[Sequence[float]], windows: list[Window]) -> None:
    """Assign round trips to the windows that they were in, at their end or at their begin."""
    begins = [window.begin for window in windows]
    for sent, delay in trips:
        for at in (sent + delay / 1e3, sent):
            index = bisect.bisect(begins, at) - 1
            if index >= 0 and at < windows[index].end:
                windows[index].trips.append(delay)
                break


def report(results: Results, options: argparse.Namespace, devices: str) -> str:
    """Format the results as Markdown."""
    run, arrived, stayed = results.run, results.arrived, results.stayed
    parts = [
        "# Reloads under load",
        f"{circumstances(options.broker, devices)}. {options.devices} connected devices with {options.rate:g} round trips per "
        f"second together, and {options.arrivals:g} others per second that connect, verify the certificate, send a line and "
        f"leave after its answer; all with client certificates. {options.rounds} rounds, in each of which the certificate, the "
        f"client CA, and both are exchanged; {f'{options.workers} workers' if options.workers else 'one process'}"
        f"{f'; {options.authorities} further authorities in --client-ca' if options.authorities else ''}"
        f"{f'; {options.revoked} certificates in --client-crl' if options.revoked else ''}.",
        f"    {command_line()}",
        "## Devices",
        table(
            ("connects", "failed or refused", "connections lost", "lines sent", "not answered", "out of order or wrong"),
            [
                (
                    len(arrived["completed"]) + len(arrived["failed"]),
                    f"**{len(arrived['failed'])}**",
                    f"**{stayed['lost']}**",
                    stayed["lines"] + len(arrived["completed"]),
                    stayed["lines"] - stayed["answers"],
                    results.counted["gaps"] + results.counted["wrong"],
                )
            ],
        ),
    ]
    reasons = Counter(reason for _, reason in arrived["failed"])
    parts += [f"- {many} connects failed: {reason}" for reason, many in reasons.most_common()]
    parts += [f"- {many} times: {fault}" for fault, many in run.faults.most_common()]
    parts += _report_times(results)
    parts += _report_trips(run)
    marks = sorted({0, 1, *range(5, options.rounds, 5), options.rounds})
    parts += [
        "## Memory and CPU of the gateway",
        table(
            ("after round", *(str(mark) if mark else "none" for mark in marks)),
            [("memory (PSS, MB)", *(f"{run.memory[mark]:.1f}" for mark in marks))],
        ),
        f"CPU of a reload of all files, with {options.devices} connections and no other load: "
        f"{run.cpu_of_reload * 1e3:.0f} ms.",
    ]
    return "\n\n".join(parts)


def _report_times(results: Results) -> list[str]:
    rows = []
    for kind in KINDS:
        of_kind = [exchange for exchange in results.run.exchanges if exchange.kind == kind]
        signalled = [exchange for exchange in of_kind if exchange.manner != "watch"]
        watched = [exchange for exchange in of_kind if exchange.manner == "watch"]
        early = sum(exchange.manner != "signal" for exchange in signalled)
        shown = [[results.seconds[id(each)] for each in some if id(each) in results.seconds] for some in (signalled, watched)]
        accepted = [[each.authority for each in some if each.authority is not None] for some in (signalled, watched)]
        rows.append((kind, len(of_kind), early, _spread(shown[0]), _spread(accepted[0]), _spread(shown[1] or accepted[1])))
    return [
        "## Seconds until an exchange was in effect (median / longest)",
        table(
            (
                "exchanged",
                "times",
                "after a failed reload",
                "new certificate shown",
                "device of the new authority accepted",
                "found by the watch",
            ),
            rows,
        ),
        f"Limit after a signal: {LIMIT:g} s; exceeded {results.late} times. {results.run.failures} reloads were made to fail.",
    ]


def _spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.3f} / {max(seconds):.3f}" if seconds else ""


def _report_trips(run: Measurement) -> list[str]:
    by_kind: dict[str, list[Window]] = defaultdict(list)
    for window in run.windows:
        by_kind[window.kind].append(window)
    rows = []
    quiet = [max(window.trips, default=0.0) for window in by_kind[QUIET]]
    for kind in (QUIET, RELOAD, FAILED, WATCHED):
        windows = by_kind[kind]
        if not windows:
            continue
        trips = [trip for window in windows for trip in window.trips]
        longest = [max(window.trips, default=0.0) for window in windows]
        rows.append(
            (
                kind,
                len(windows),
                len(trips),
                f"{percentile(trips, 0.5):.1f}",
                f"{percentile(trips, 0.99):.1f}",
                f"{percentile(trips, 0.999):.1f}",
                f"{max(trips):.1f}",
                f"{median(longest):.1f}",
                f"{median(longest) / median(quiet):.2f}",
                f"{1e3 * median(window.cpu / (window.end - window.begin) for window in windows):.0f}",
            )
        )
    return [
        "## Round trips of connected devices (ms)",
        table(
            (
                "window",
                "windows",
                "round trips",
                "p50",
                "p99",
                "p99.9",
                "longest",
                "longest of a window (median)",
                "its ratio",
                "CPU of the gateway, ms per second (median)",
            ),
            rows,
        ),
        "A window begins with the signal, and the windows without a reload have the same load and length. Those of the watch "
        "are longer, so that more happens in them.",
    ]


def main() -> None:
    parser = arguments("Exchange certificates and authorities under load.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker, or embedded (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=5000, help="devices that stay connected (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=500, help="their round trips per second (default: %(default)s)")
    parser.add_argument("--arrivals", type=float, default=200, help="other devices per second (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="exchanges of each kind (default: %(default)s)")
    parser.add_argument("--window", type=float, default=1.0, help="seconds of a measurement (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds of load before (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (default: one process without workers)")
    parser.add_argument("--watch", default="1s", help="interval of the watch (default: %(default)s)")
    parser.add_argument(
        "--authorities", type=int, default=0, help="further authorities in the file of --client-ca (default: %(default)s)"
    )
    parser.add_argument("--revoked", type=int, default=0, help="certificates in a revocation list (default: no list)")
    options = parser.parse_args()
    raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        files = ServedFiles(Path(folder), options.authorities, options.revoked)
        settings = ["--cert", str(files.cert), "--key", str(files.key), "--client-ca", str(files.client_ca)]
        settings += ["--watch", options.watch]
        if files.client_crl is not None:
            settings += ["--client-crl", str(files.client_crl)]
        if options.workers:
            settings += ["--workers", str(options.workers)]
        with (
            Gateway(options.broker, *settings) as gateway,
            BackEnd(gateway.broker, gateway.from_device, gateway.to_device) as back_end,
            ReloadSwarm(gateway.port) as staying,
            ReloadSwarm(gateway.port) as arriving,
        ):
            back_end.call("begin", answers="reply_to", numbered=False)
            measurement = Measurement(options, files, gateway, (staying, arriving))
            stayed, arrived = measurement.run()
            counted = back_end.wait_for(stayed["lines"] + len(arrived["completed"]), 30)
            found = re.findall(r"Traceback|Unhandled", gateway.log.read_text())
            measurement.faults.update(f"{text} in the log of the gateway" for text in found)
    results = Results(measurement, stayed, arrived, counted)
    publish(report(results, options, ssl.OPENSSL_VERSION), options.output)
    sys.exit(not results.good)


if __name__ == "__main__":
    main()
