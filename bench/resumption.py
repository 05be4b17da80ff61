"""Savings and costs of TLS session resumption: handshakes, memory, and the hit rate with several workers.

    python -m bench.resumption --output resumption.md

Gateways with and without session tickets serve the same devices in turn: `twistd-owsla` with the embedded broker. Owsla
issues no tickets. For the comparison, a `sitecustomize` module disables OP_NO_TICKET, and imports OpenSSL before Owsla does:
so it has no configuration (`owsla.runtime.openssl`), and sends tickets in TLS 1.3. Devices use the `ssl` module of Python. A
device that resumes uses the ticket of its first connection each time, which OpenSSL allows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .harness import Gateway, arguments, circumstances, command_line, median, publish, settled, table

THREADS = 8
"""Number of handshakes at a time."""

PATCH = """\
try:
    from OpenSSL import SSL
except ImportError:  # another Python without pyOpenSSL, started with this path
    pass
else:
    SSL.OP_NO_TICKET = 0
"""

VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}


@dataclass(frozen=True)
class Case:
    """Kind of handshake that is measured."""

    version: str
    certificate: bool
    """True if the gateway requires a client certificate."""
    tickets: bool
    """True if the gateway issues usable tickets."""
    resumes: bool

    @property
    def name(self) -> str:
        return "resumed" if self.resumes else "full, tickets" if self.tickets else "full, as now"


CASES = [
    Case(version, certificate, tickets, resumes)
    for version in VERSIONS
    for certificate in (False, True)
    for tickets, resumes in ((False, False), (True, False), (True, True))
]


class DeviceCertificate:
    """Certificate and key of a device in one PEM file, with the certificate of its authority."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "device.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device-1")])
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device CA")])
        self.ca = folder / "device-ca.pem"
        root = self._sign(authority, authority_key, authority, authority_key, ca=True)
        self.ca.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        pem = self._sign(name, key, authority, authority_key, ca=False).public_bytes(serialization.Encoding.PEM)
        pem += key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.path.write_bytes(pem)

    @staticmethod
    def _sign(
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )


class TLSClients:
    """Devices of one kind, which connect to one gateway."""

    def __init__(self, port: int, version: str, pair: Path | None) -> None:
        self._port = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE  # the server is measured, not the verification by the client
        self.context.minimum_version = self.context.maximum_version = VERSIONS[version]
        if pair is not None:
            self.context.load_cert_chain(pair)

    def connect(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        """Connect a device and complete its handshake."""
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, session=session)

    def session(self) -> ssl.SSLSession:
        """Connect a device and return its session, which can be resumed if the gateway issues tickets."""
        with self.connect() as device:
            # In TLS 1.3 tickets arrive after the handshake: a read processes them, and times out since there is no data.
            device.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                device.recv(1)
            assert device.session is not None
            return device.session

    def storm(self, count: int, session: ssl.SSLSession | None) -> int:
        """Make `count` handshakes, `THREADS` at a time, and return how many were resumed."""
        left = iter(range(count))
        resumed: list[int] = []
        failed: list[BaseException] = []

        def shake() -> None:
            own = 0
            try:
                for _ in left:
                    with self.connect(session) as device:
                        own += bool(device.session_reused)
            except (OSError, ValueError) as error:
                failed.append(error)
            resumed.append(own)

        threads = [threading.Thread(target=shake) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise SystemExit(f"a device could not connect: {failed[0]}")
        return sum(resumed)


@contextlib.contextmanager
def with_tickets() -> Iterator[None]:
    """Make gateways that are started in this context issue usable tickets."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        (Path(folder) / "sitecustomize.py").write_text(PATCH)
        os.environ["PYTHONPATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


def gateway(tickets: bool, ca: Path | None, *options: str) -> Gateway:
    """Start a gateway with or without tickets, which requires client certificates of the authority `ca`, if given."""
    if ca is not None:
        options = (*options, "--client-ca", str(ca), "--client-cert", "require")
    if not tickets:
        return Gateway("embedded", *options)
    with with_tickets():
        return Gateway("embedded", *options)


def handshakes(pair: DeviceCertificate, runs: int, count: int) -> dict[Case, list[float]]:
    """Measure the CPU of the gateway per handshake in microseconds, each case in turn, `runs` times."""
    spent: dict[Case, list[float]] = {case: [] for case in CASES}
    with contextlib.ExitStack() as stack:
        gateways = {
            (tickets, certificate): stack.enter_context(gateway(tickets, pair.ca if certificate else None))
            for tickets in (False, True)
            for certificate in (False, True)
        }
        for run in range(runs + 1):
            print(f"run {run} of {runs}", file=sys.stderr)
            for case in CASES if run % 2 else CASES[::-1]:
                server = gateways[case.tickets, case.certificate]
                devices = TLSClients(server.port, case.version, pair.path if case.certificate else None)
                session = devices.session() if case.resumes else None
                before = server.cpu()
                resumed = devices.storm(count, session)
                # The gateway sees the end of the last connections a moment later, in all cases alike.
                time.sleep(0.1)
                if run:  # the first run warms up
                    spent[case].append((server.cpu() - before) / count * 1e6)
                if resumed != (count if case.resumes else 0):
                    raise SystemExit(f"{case}: {resumed} of {count} were resumed")
    return spent


def memory(pair: DeviceCertificate, case: Case, connections: int) -> float:
    """Measure the memory in KB that an idle connection adds."""
    with gateway(case.tickets, pair.ca if case.certificate else None) as server:
        devices = TLSClients(server.port, case.version, pair.path if case.certificate else None)
        session = devices.session() if case.resumes else None
        for device in [devices.connect(session) for _ in range(100)]:
            device.close()
        empty = settled(server)
        held = [devices.connect(session) for _ in range(connections)]
        each = (settled(server) - empty) / connections
        for device in held:
            device.close()
        return each


def hit_rate(workers: int, count: int) -> float:
    """Measure the share of handshakes that are resumed with several workers."""
    with gateway(True, None, "--workers", str(workers)) as server:
        devices = TLSClients(server.port, "1.3", None)
        session = devices.session()
        held: list[ssl.SSLSocket] = []
        try:
            # Connections are held, since workers share new ones by the number that each has.
            held = [devices.connect(session) for _ in range(count)]
            return sum(bool(device.session_reused) for device in held) / count
        finally:
            for device in held:
                device.close()


def saved(spent: dict[Case, list[float]], case: Case) -> str:
    """Compare a case with today's handshakes: the median of the ratios of neighbouring runs."""
    now = spent[Case(case.version, case.certificate, False, False)]
    ratio = statistics.median(one / other for one, other in zip(spent[case], now, strict=True))
    return f"{(ratio - 1) * 100:+.0f} %" if case.tickets else ""


def main() -> None:
    parser = arguments("Measure the savings and costs of TLS session resumption.")
    parser.add_argument("--runs", type=int, default=7, help="alternating runs of each case (default: %(default)s)")
    parser.add_argument("--handshakes", type=int, default=500, help="handshakes in a run of a case (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=1000, help="connections for memory (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 2, 4], help="numbers of workers for the hit rate (default: 1 2 4)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        pair = DeviceCertificate(Path(folder))
        spent = handshakes(pair, options.runs, options.handshakes)
        rows = []
        for case in CASES:
            row = [f"TLS {case.version}", "yes" if case.certificate else "no", case.name]
            row += [f"{median(spent[case]):.0f}", f"{min(spent[case]):.0f} to {max(spent[case]):.0f}", saved(spent, case)]
            row.append(f"{memory(pair, case, options.connections):.1f}" if options.connections else "")
            rows.append(row)
        hits = [(workers, f"{hit_rate(workers, 200) * 100:.0f} %") for workers in options.workers]
    head = ("", "client certificate", "handshake", "CPU, µs", "minimum and maximum", "against now", "memory per connection, KB")
    text = "\n\n".join(
        [
            "# Session resumption",
            f"{circumstances('embedded')}. "
            f"Medians of {options.runs} alternating runs of {options.handshakes} handshakes, P-256. "
            "CPU includes everything that a gateway does for a device that connects and disconnects; "
            f"memory is that of {options.connections} idle connections, measured once.",
            f"    {command_line()}",
            table(head, rows),
            "Share of 200 devices that could resume a session, if each worker has its own ticket keys:",
            table(("workers", "resumed"), hits),
        ]
    )
    publish(text, options.output)


if __name__ == "__main__":
    main()
