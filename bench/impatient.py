"""Impatient devices: more than can be served before they give up and connect again at once.

    python -m bench.impatient --output impatient.md

The gateway is `twistd -n owsla` with the embedded broker and a certificate whose key makes handshakes slow. All devices are in
this process. The events of the gateway tell how many handshakes it began for peers that were gone.
"""

from __future__ import annotations

import heapq
import json
import resource
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from .harness import Gateway, arguments, circumstances, command_line, publish, table

SOURCES = 32
"""Number of source addresses in 127.0.4.0/24. A closed connection keeps its port for a minute (TIME-WAIT)."""


def certificate(folder: Path, bits: int) -> tuple[Path, Path]:
    """Create a self-signed server certificate with an RSA key of this size, and return the files of both."""
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=10)).sign(key, hashes.SHA256())
    )  # fmt: skip
    files = folder / "server.pem", folder / "server.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class Crowd:
    """Devices that connect, and after `patience` seconds give up and connect again. Connected devices stay."""

    def __init__(self, port: int, devices: int, patience: float) -> None:
        self._address = ("127.0.0.1", port)
        self._patience = patience
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._epoll = select.epoll()
        self._trying: dict[int, SSL.Connection] = {}
        self._deadlines: list[tuple[float, int, SSL.Connection]] = []
        self._connected: list[SSL.Connection] = []
        self.attempts = 0
        self.devices = devices

    @property
    def connected(self) -> int:
        return len(self._connected)

    def run(self, seconds: float) -> list[int]:
        """Connect all devices, for at most `seconds`, and return the number of connected devices after each second."""
        begin = time.monotonic()
        connected_by_second: list[int] = []
        for _ in range(self.devices):
            self._connect()
        while self.connected < self.devices and time.monotonic() - begin < seconds:
            while self._deadlines and self._deadlines[0][0] <= time.monotonic():
                _, fd, sock = heapq.heappop(self._deadlines)
                if self._trying.get(fd) is sock:
                    self._give_up(fd)
            for fd, _ in self._epoll.poll(0.01, 1000):
                self._continue_handshake(fd)
            while len(connected_by_second) < int(time.monotonic() - begin):
                connected_by_second.append(self.connected)
        self.seconds = time.monotonic() - begin
        return [*connected_by_second, self.connected]

    def _connect(self) -> None:
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        plain.bind((f"127.0.4.{1 + self.attempts % SOURCES}", 0))
        plain.connect_ex(self._address)
        sock = SSL.Connection(self._context, plain)
        sock.set_connect_state()
        self.attempts += 1
        self._trying[sock.fileno()] = sock
        heapq.heappush(self._deadlines, (time.monotonic() + self._patience, sock.fileno(), sock))
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _give_up(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._trying.pop(fd).close()
        self._connect()

    def _continue_handshake(self, fd: int) -> None:
        sock = self._trying.get(fd)
        if sock is None:
            return
        try:
            sock.do_handshake()
        except SSL.WantReadError:
            self._epoll.modify(fd, select.EPOLLIN)
        except SSL.WantWriteError:
            self._epoll.modify(fd, select.EPOLLOUT)
        except SSL.Error:
            self._give_up(fd)
        else:
            # In TLS 1.3 the server may still refuse after this. Its events count the handshakes that it completed.
            self._epoll.unregister(fd)
            self._connected.append(self._trying.pop(fd))

    def close(self) -> None:
        for sock in (*self._connected, *self._trying.values()):
            sock.close()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds (default: 2)")
    parser.add_argument("--bits", type=int, default=4096, help="size of the server's RSA key (default: 4096)")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest duration (default: 60)")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
        cert, key = certificate(Path(folder), args.bits)
        events = Path(folder) / "events.json"
        options = ("--cert", str(cert), "--key", str(key), "--events", f"json:{events}", "--events", "console")
        with Gateway("embedded", *options) as gateway:
            crowd = Crowd(gateway.port, args.devices, args.patience)
            before = gateway.cpu()
            connected_by_second = crowd.run(args.seconds)
            spent = gateway.cpu() - before
            crowd.close()
        outcomes: Counter[str] = Counter()
        for line in events.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "device-connected":
                outcomes["completed"] += 1
            elif event["event"] == "handshake-failed":
                outcomes[event["reason"]] += 1
    all_connected = connected_by_second[-1] == args.devices
    rows = [
        ("all connected after", f"{crowd.seconds:.1f} s" if all_connected else f"not within {args.seconds:g} s"),
        ("connected after each second", " ".join(map(str, connected_by_second[:20]))),
        ("attempts of devices", crowd.attempts),
        ("handshakes completed by the gateway", outcomes.pop("completed", 0)),
        *((f"connections that failed: {reason}", count) for reason, count in outcomes.most_common()),
        ("CPU of the gateway", f"{spent:.1f} s"),
    ]
    publish(
        f"# Impatient devices\n\n{circumstances()}\n\n    {command_line()}\n\n{args.devices} devices, each of which gives up "
        f"after {args.patience:g} s and connects again at once; an RSA key of {args.bits} bits.\n\n" + table(("", ""), rows),
        args.output,
    )
    sys.exit(not all_connected)


if __name__ == "__main__":
    main()
