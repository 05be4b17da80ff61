"""Impatient devices: more than can be served before they give up and connect again at once.

    python -m bench.impatient --output impatient.md

The gateway is `twistd-owsla` with the embedded broker and a certificate whose key makes handshakes slow. All devices are in
this process. The events of the gateway tell how many handshakes it began for peers that were gone.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import tempfile
import time
from collections import Counter, deque
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


NOT_BEGUN = ("closed before it said anything", "closed while it waited for its handshake")
"""Reasons of failed connections for which no handshake was begun."""


class Device:
    """Device: its source address, and the handshake that it tries to complete."""

    __slots__ = ("_context", "_host", "_tls", "fd", "hello", "sock")

    def __init__(self, context: SSL.Context, host: str) -> None:
        self._context = context
        self._host = host
        self.sock: socket.socket | None = None
        self.fd = -1
        self.begin_again()

    def begin_again(self) -> None:
        """Create another ClientHello. One that was never answered can be sent again."""
        self._tls = SSL.Connection(self._context, None)
        self._tls.set_connect_state()
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self.hello = self._tls.bio_read(65536)

    def connect(self, address: tuple[str, int]) -> bool:
        """Connect to an address, and return whether the ClientHello is sent already."""
        self.sock = sock = socket.socket()
        self.fd = sock.fileno()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((self._host, 0))
        sock.connect_ex(address)
        return self.send_hello()

    def send_hello(self) -> bool:
        assert self.sock is not None
        try:
            self.sock.send(self.hello)
        except OSError:
            return False
        return True

    def answered(self) -> bool | None:
        """Read the answer of the server. Return whether the handshake is complete, or `None` if the connection is lost."""
        assert self.sock is not None
        try:
            answer = self.sock.recv(65536)
            if not answer:
                return None
            self._tls.bio_write(answer)
            self._tls.do_handshake()
            self.sock.send(self._tls.bio_read(65536))
        except SSL.WantReadError:
            return False
        except (SSL.Error, OSError):
            return None
        # In TLS 1.3 the server may still refuse after this. Its events count the handshakes that it completed.
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Crowd:
    """Devices that connect, and after `patience` seconds give up and connect again. Connected devices stay.

    An attempt costs some 60 µs, a third of what it costs with a ClientHello of its own: the crowd must have time left to read
    the answers, or it would measure itself (`lag`).
    """

    def __init__(self, port: int, devices: int, patience: float) -> None:
        self._address = ("127.0.0.1", port)
        self._patience = patience
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._epoll = select.epoll()
        self._trying: dict[int, Device] = {}
        self._deadlines: deque[tuple[float, socket.socket | None, Device]] = deque()
        self._devices = [Device(context, f"127.0.4.{1 + number % SOURCES}") for number in range(devices)]
        self._connected = 0
        self.attempts = 0
        self.devices = devices
        self.lag = 0.0
        """Longest time in seconds by which a device gave up too late."""

    @property
    def connected(self) -> int:
        return self._connected

    def run(self, seconds: float) -> list[int]:
        """Connect all devices, for at most `seconds`, and return the number of connected devices after each second."""
        begin = time.monotonic()
        connected_by_second: list[int] = []
        for number, device in enumerate(self._devices):
            self._connect(device)
            if number % 64 == 63:
                self._poll(0)
        while self.connected < self.devices and time.monotonic() - begin < seconds:
            self._poll(0.005)
            for _ in range(64):
                if not self._deadlines or self._deadlines[0][0] > (now := time.monotonic()):
                    break
                deadline, sock, device = self._deadlines.popleft()
                if device.sock is sock and self._trying.get(device.fd) is device:
                    self.lag = max(self.lag, now - deadline)
                    self._give_up(device)
            while len(connected_by_second) < int(time.monotonic() - begin):
                connected_by_second.append(self.connected)
        self.seconds = time.monotonic() - begin
        return [*connected_by_second, self.connected]

    def _poll(self, wait: float) -> None:
        for fd, events in self._epoll.poll(wait, 1000):
            device = self._trying.get(fd)
            if device is None:
                continue
            if events & select.EPOLLOUT:
                if device.send_hello():
                    self._epoll.modify(fd, select.EPOLLIN)
                else:
                    self._give_up(device)
                continue
            complete = device.answered()
            if complete:
                self._epoll.unregister(fd)
                del self._trying[fd]
                self._connected += 1
            elif complete is None:
                device.begin_again()
                self._give_up(device)

    def _connect(self, device: Device) -> None:
        self.attempts += 1
        sent = device.connect(self._address)
        self._trying[device.fd] = device
        self._deadlines.append((time.monotonic() + self._patience, device.sock, device))
        self._epoll.register(device.fd, select.EPOLLIN if sent else select.EPOLLOUT)

    def _give_up(self, device: Device) -> None:
        del self._trying[device.fd]
        device.close()
        self._connect(device)

    def close(self) -> None:
        for device in self._devices:
            device.close()


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
            before, crowd_before = gateway.cpu(), time.process_time()
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
    completed = outcomes.pop("completed", 0)
    in_vain = sum(count for reason, count in outcomes.items() if reason not in NOT_BEGUN)
    begun = completed + in_vain
    rows = [
        ("all connected after", f"{crowd.seconds:.1f} s" if all_connected else f"not within {args.seconds:g} s"),
        ("connected after each second", " ".join(map(str, connected_by_second[:40]))),
        ("attempts of devices", crowd.attempts),
        ("handshakes completed by the gateway", completed),
        ("handshakes for nobody", f"{in_vain}, {in_vain / begun:.1%} of those begun" if begun else "none begun"),
        *((f"connections that failed: {reason}", count) for reason, count in outcomes.most_common()),
        ("CPU of the gateway", f"{spent:.1f} s"),
        ("CPU of the devices", f"{time.process_time() - crowd_before:.1f} s"),
        ("latest give-up of a device", f"{1000 * crowd.lag:.0f} ms after its time"),
    ]
    publish(
        f"# Impatient devices\n\n{circumstances()}\n\n    {command_line()}\n\n{args.devices} devices, each of which gives up "
        f"after {args.patience:g} s and connects again at once; an RSA key of {args.bits} bits.\n\n" + table(("", ""), rows),
        args.output,
    )
    sys.exit(not all_connected)


if __name__ == "__main__":
    main()
