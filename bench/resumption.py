"""What TLS session resumption would save a gateway, and what it would cost: handshakes, memory, and the luck with workers.

    python -m bench.resumption --output resumption.md

Gateways with and without session tickets serve the same devices in turn: real `twistd -n owsla`s with the embedded broker.
Owsla gives out no tickets that anybody can use; a `sitecustomize` that takes the effect out of OP_NO_TICKET makes the others.
A device is Python's `ssl`. One that resumes does so with the one ticket that it got at the beginning, which OpenSSL allows.
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
"""Devices that shake hands at a time."""

PATCH = """\
try:
    from OpenSSL import SSL
except ImportError:  # Python is at home here, too, where there is no pyOpenSSL
    pass
else:
    SSL.OP_NO_TICKET = 0
"""

VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}


@dataclass(frozen=True)
class Case:
    """What devices do, and with whom."""

    version: str
    certificate: bool
    """Whether a device has a certificate, and has to have it."""
    tickets: bool
    """Whether the gateway gives out tickets that are good for something."""
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


class Pair:
    """A device's certificate, which is its own authority, and its key, in one PEM file."""

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


class Devices:
    """Devices of one kind, towards one gateway."""

    def __init__(self, port: int, version: str, pair: Path | None) -> None:
        self._port = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE  # a measurement of the other side
        self.context.minimum_version = self.context.maximum_version = VERSIONS[version]
        if pair is not None:
            self.context.load_cert_chain(pair)

    def connect(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        """One device, with its handshake done."""
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(sock, session=session)

    def session(self) -> ssl.SSLSession:
        """A session that can be resumed, if the gateway does that."""
        with self.connect() as device:
            # In TLS 1.3 tickets come behind the handshake, and nothing else would come.
            device.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                device.recv(1)
            assert device.session is not None
            return device.session

    def storm(self, count: int, session: ssl.SSLSession | None) -> int:
        """So many handshakes, a few at a time; how many were resumed."""
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
    """Processes that are started meanwhile give out tickets."""
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
    """A gateway that does or does not give out tickets, and asks for certificates of this authority."""
    if ca is not None:
        options = (*options, "--client-ca", str(ca), "--client-cert", "require")
    # An event a handshake, on the terminal, is no part of it.
    if not tickets:
        return Gateway("embedded", *options)
    with with_tickets():
        return Gateway("embedded", *options)


def handshakes(pair: Pair, runs: int, count: int) -> dict[Case, list[float]]:
    """CPU µs of the gateway's a handshake, each case in turn, so many times."""
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
                devices = Devices(server.port, case.version, pair.path if case.certificate else None)
                session = devices.session() if case.resumes else None
                before = server.cpu()
                resumed = devices.storm(count, session)
                # The last ones' ends are seen a moment later: by all cases in the same way.
                time.sleep(0.1)
                if run:  # the first one warms up
                    spent[case].append((server.cpu() - before) / count * 1e6)
                if resumed != (count if case.resumes else 0):
                    raise SystemExit(f"{case}: {resumed} of {count} were resumed")
    return spent


def memory(pair: Pair, case: Case, connections: int) -> float:
    """KB that each of so many idle connections adds."""
    with gateway(case.tickets, pair.ca if case.certificate else None) as server:
        devices = Devices(server.port, case.version, pair.path if case.certificate else None)
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
    """The share of handshakes that are resumed where so many workers take them in turn."""
    with gateway(True, None, "--workers", str(workers)) as server:
        devices = Devices(server.port, "1.3", None)
        session = devices.session()
        held: list[ssl.SSLSocket] = []
        try:
            # Held, for it is by their number that workers leave devices to each other.
            held = [devices.connect(session) for _ in range(count)]
            return sum(bool(device.session_reused) for device in held) / count
        finally:
            for device in held:
                device.close()


def saved(spent: dict[Case, list[float]], case: Case) -> str:
    """By how much a case differs from the handshakes of now: the median of the ratios of neighbouring runs."""
    now = spent[Case(case.version, case.certificate, False, False)]
    ratio = statistics.median(one / other for one, other in zip(spent[case], now, strict=True))
    return f"{(ratio - 1) * 100:+.0f} %" if case.tickets else ""


def main() -> None:
    parser = arguments("Measure what TLS session resumption would save, and cost.")
    parser.add_argument("--runs", type=int, default=7, help="of each case, alternating (default: %(default)s)")
    parser.add_argument("--handshakes", type=int, default=500, help="of a run of a case (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=1000, help="held, for their memory (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="to try one ticket on (default: 1 2 4)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        pair = Pair(Path(folder))
        spent = handshakes(pair, options.runs, options.handshakes)
        rows = []
        for case in CASES:
            row = [f"TLS {case.version}", "yes" if case.certificate else "no", case.name]
            row += [f"{median(spent[case]):.0f}", f"{min(spent[case]):.0f} to {max(spent[case]):.0f}", saved(spent, case)]
            row.append(f"{memory(pair, case, options.connections):.1f}" if options.connections else "")
            rows.append(row)
        hits = [(workers, f"{hit_rate(workers, 200) * 100:.0f} %") for workers in options.workers]
    head = ("", "client certificate", "handshake", "CPU, µs", "least and most", "against now", "memory a connection, KB")
    text = "\n\n".join(
        [
            "# Session resumption",
            f"{circumstances('embedded')}. "
            f"Medians of {options.runs} alternating runs of {options.handshakes} handshakes, P-256. "
            "CPU is of all that a gateway does for a device that connects and goes; "
            f"memory is of {options.connections} idle connections, measured once.",
            f"    {command_line()}",
            table(head, rows),
            "How many of 200 devices could resume a session, where each worker has its own keys for tickets:",
            table(("workers", "resumed"), hits),
        ]
    )
    publish(text, options.output)


if __name__ == "__main__":
    main()
