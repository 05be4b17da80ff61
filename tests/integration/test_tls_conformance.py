"""TLS by the book: records, alerts and goodbyes, as a device meets them that does not go by the book itself.

The transport is Owsla's own, so it is shown here that nothing was given up for that. A `Peer` is a device whose handshake is
OpenSSL's and whose records are sealed here: with any content, cut and put together in any way. `openssl s_client` is the second
opinion. What is promised to a device's lines by all of this: those that were said are published, once each, and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from ._support.certificates import Authority
from ._support.device import Device
from ._support.embedded import EmbeddedBrokerProcess
from ._support.journal import events_in
from ._support.lab import Gateway, Lab
from ._support.process import free_port
from ._support.waiting import PATIENCE, block_on, pause, reactor_test, until

CCS, ALERT, HANDSHAKE, DATA, HEARTBEAT = range(20, 25)
"""Content types of records (RFC 8446, 5.1; RFC 6520)."""

RECORD: Final = 16384

CLOSE_NOTIFY: Final = b"\x01\x00"
USER_CANCELED: Final = b"\x01\x5a"
KEY_UPDATE: Final = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_BOTH: Final = b"\x18\x00\x00\x01\x01"
"""Asks the other side for new keys, too."""

UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, HANDSHAKE_FAILURE = 10, 20, 22, 40
BAD_CERTIFICATE, UNSUPPORTED_CERTIFICATE, CERTIFICATE_EXPIRED, UNKNOWN_CA, DECRYPT_ERROR = 42, 43, 45, 48, 51
ILLEGAL_PARAMETER, DECODE_ERROR, PROTOCOL_VERSION, INAPPROPRIATE_FALLBACK = 47, 50, 70, 86
NO_RENEGOTIATION, CERTIFICATE_REQUIRED = 100, 116

VERSIONS: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
both_versions = pytest.mark.parametrize("version", list(VERSIONS))


# -- A device that seals its own records -------------------------------------------------------------------------------


def plain_record(kind: int, content: bytes, version: int = 0x0303) -> bytes:
    """A record without protection, or the outside of one with it."""
    return struct.pack(">BHH", kind, version, len(content)) + content


class Sealer13:
    """Protects a client's records in TLS 1.3 with TLS_AES_128_GCM_SHA256 (RFC 8446, 5.2 and 7.3)."""

    def __init__(self, secret: bytes) -> None:
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(self._expand(b"key", 16))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")
        self._sequence = 0

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack(">HB", length, len(label)) + label + b"\x00"
        return HKDFExpand(hashes.SHA256(), length, info).derive(self._secret)

    def record(self, kind: int, content: bytes, padding: int = 0) -> bytes:
        """A record of this kind inside, in which anything may be."""
        inner = content + bytes([kind]) + bytes(padding)
        header = struct.pack(">BHH", DATA, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return header + self._aead.encrypt(nonce, inner, header)

    def update(self, message: bytes = KEY_UPDATE) -> bytes:
        """A KeyUpdate; what is sealed from now on is under the new key."""
        record = self.record(HANDSHAKE, message)
        self._use(self._expand(b"traffic upd", 32))
        return record


class Sealer12:
    """Protects a client's records in TLS 1.2 with AES-128-GCM and SHA-256 (RFC 5246, 6.3; RFC 5288)."""

    def __init__(self, tls: SSL.Connection) -> None:
        master, client, server = tls.master_key(), tls.client_random(), tls.server_random()
        assert master is not None
        assert client is not None
        assert server is not None
        keys = self._expand(master, b"key expansion" + server + client, 40)
        self._aead = AESGCM(keys[:16])
        self._salt = keys[32:36]
        self._sequence = 1  # the first one was Finished

    @staticmethod
    def _expand(secret: bytes, seed: bytes, length: int) -> bytes:
        def digest(data: bytes) -> bytes:
            mac = hmac.HMAC(secret, hashes.SHA256())
            mac.update(data)
            return mac.finalize()

        result, chain = b"", seed
        while len(result) < length:
            chain = digest(chain)
            result += digest(chain + seed)
        return result[:length]

    def record(self, kind: int, content: bytes) -> bytes:
        """A record of this kind, in which anything may be."""
        explicit = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        bound = explicit + struct.pack(">BHH", kind, 0x0303, len(content))
        return plain_record(kind, explicit + self._aead.encrypt(self._salt + explicit, content, bound))


def queues(port: int, peer: int) -> tuple[int, int]:
    """Bytes that wait in the socket of this port to this peer, on 127.0.0.1: to be read there, and to be taken by the peer.

    The system is asked for the one socket (sock_diag(7)); in /proc/net/tcp would be all of the machine's.
    """
    address = socket.inet_aton("127.0.0.1") + bytes(12)
    sockid = struct.pack(">HH", port, peer) + address * 2 + struct.pack("=I2I", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + sockid
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as diagnosis:  # NETLINK_SOCK_DIAG
        diagnosis.settimeout(PATIENCE)
        diagnosis.sendto(struct.pack("=IHHII", 16 + len(request), 20, 1, 0, 0) + request, (0, 0))
        answer = diagnosis.recv(8192)
    if struct.unpack_from("=H", answer, 4)[0] != 20:
        return 0, 0  # it is closed
    reading, writing = struct.unpack_from("=II", answer, 16 + 4 + 48 + 4)
    return reading, writing


class End(NamedTuple):
    """How a connection ended, as the device saw it."""

    alerts: list[tuple[str, int]]
    """The level and the number of each alert that came."""
    goodbye: bool
    """Whether close_notify came."""
    tcp: str
    """How TCP ended: `fin` or `reset`."""


class Peer:
    """A device, byte by byte. Its calls block, with a deadline: what it talks to is another process."""

    def __init__(
        self,
        port: int,
        version: str = "1.3",
        *,
        certificate: Path | None = None,
        protocols: Sequence[bytes] = (),
        window: int = 0,
    ) -> None:
        """`protocols` are offered by ALPN; `window` is the size of its receive buffer, where it is to be small."""
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        if window:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.version = version
        self.alerts: list[tuple[str, int]] = []
        self.states: set[bytes] = set()
        self._port = port
        self._secret = b""
        self._received = b""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(VERSIONS[version])
        context.set_max_proto_version(VERSIONS[version])
        context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
        context.set_keylog_callback(self._keys)
        context.set_info_callback(self._info)
        if protocols:
            context.set_alpn_protos(list(protocols))
        if certificate is not None:
            context.use_certificate_file(str(certificate))
            context.use_privatekey_file(str(certificate))
        context.set_cipher_list(b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.seal: Any = None  # either Sealer; mypy would have it asked which at each turn

    def _keys(self, _: SSL.Connection, line: bytes) -> None:
        name, _random, secret = line.split()
        if name == b"CLIENT_TRAFFIC_SECRET_0":
            self._secret = bytes.fromhex(secret.decode())

    def _info(self, tls: SSL.Connection, where: int, code: int) -> None:
        self.states.add(tls.get_state_string())
        if where == SSL.SSL_CB_READ_ALERT:
            self.alerts.append(("fatal" if code >> 8 == 2 else "warning", code & 255))

    # -- the handshake -------------------------------------------------------------------------------------------------

    def flight(self) -> bytes:
        """What OpenSSL has to send now."""
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            pass
        try:
            return self.tls.bio_read(1 << 18)
        except SSL.WantReadError:
            return b""

    def last_flight(self, hello: Sequence[bytes] = ()) -> bytes:
        """Shake hands up to the last flight, which is returned and not sent; the hello in these pieces, if any."""
        first = self.flight()
        for piece in hello or [first]:
            self.sock.sendall(piece)
        while not (flight := self.flight()):
            self._hear()
        self.seal = Sealer13(self._secret) if self.version == "1.3" else Sealer12(self.tls)
        return flight

    def shake(self, hello: Sequence[bytes] = ()) -> Peer:
        """Shake hands."""
        self.sock.sendall(self.last_flight(hello))
        return self.finish()

    def finish(self) -> Peer:
        """Wait for the end of the handshake."""
        while True:
            try:
                self.tls.do_handshake()
                return self
            except SSL.WantReadError:
                self._hear()

    # -- both directions -----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.tls.bio_write(data)

    def say(self, *lines: bytes) -> None:
        """Say each line in a record of its own."""
        for line in lines:
            self.sock.sendall(self.seal.record(DATA, line + b"\n"))

    def line(self) -> bytes:
        """The next line from the gateway."""
        while b"\r\n" not in self._received:
            try:
                self._received += self.tls.recv(RECORD)
            except SSL.WantReadError:
                self._hear()
        line, self._received = self._received.split(b"\r\n", 1)
        return line

    def goodbye(self) -> None:
        """Wait for close_notify."""
        while True:
            try:
                assert not self.tls.recv(RECORD)
            except SSL.ZeroReturnError:
                return
            except SSL.WantReadError:
                self._hear()

    def end(self) -> End:
        """Read to the end of the connection."""
        goodbye = failed = False
        while True:
            try:
                while not (goodbye or failed):
                    self.tls.recv(RECORD)
            except SSL.ZeroReturnError:
                goodbye = True
            except SSL.WantReadError:
                pass
            except SSL.Error:
                failed = True
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return End(self.alerts, goodbye, "reset")
            if not data:
                return End(self.alerts, goodbye, "fin")
            assert not goodbye, "something came behind close_notify"
            self.tls.bio_write(data)

    def taken(self) -> None:
        """Wait until the gateway has taken what was sent out of its socket."""
        self._wait(lambda: queues(self._port, self.local_port)[0] == 0, "what was sent to be read")

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"still waiting for {what}"

    @property
    def local_port(self) -> int:
        """The port at this end, by which a log line can be told."""
        port: int = self.sock.getsockname()[1]
        return port

    def close(self) -> None:
        self.sock.close()


# -- A gateway, and one who is not to notice ---------------------------------------------------------------------------

Connect = Callable[..., Peer]


_JOURNALS: Final[dict[int, Path]] = {}
"""By port, the file that a gateway writes its events to: more of them than its log would tell."""


def journaled(lab: Lab, embedded: EmbeddedBrokerProcess, **options: Any) -> Gateway:
    """A gateway that writes all of its events to a file."""
    journal = lab.folder / f"events-{secrets.token_hex(4)}.json"
    gateway = block_on(lab.gateway(embedded.url, events=["console", f"json:{journal}"], **options))
    _JOURNALS[gateway.owsla.port] = journal
    return gateway


def told_so_far(gateway: Gateway) -> int:
    """Return the number of events so far, for `told`."""
    return len(events_in(_JOURNALS[gateway.owsla.port]))


async def told(gateway: Gateway, event: str, *, start: int = 0, **about: str) -> dict[str, Any]:
    """Wait for an event of this name, about this, behind the first `start` events.

    An address needs `start`: it may have been that of an earlier test's device, too.
    """

    def found() -> dict[str, Any] | None:
        events = events_in(_JOURNALS[gateway.owsla.port])[start:]
        return next((one for one in events if one["event"] == event and about.items() <= one.items()), None)

    one = await until(found, what=f"{event} of {about}")
    assert one is not None
    return one


@pytest.fixture(scope="module")
def shared(embedded: EmbeddedBrokerProcess, module_lab: Lab) -> tuple[Gateway, Device]:
    """One Owsla for most of the module, and a device that is connected all the time."""
    gateway = journaled(module_lab, embedded, write_buffer=16_000_000)
    return gateway, block_on(module_lab.device(gateway))


@pytest.fixture
def gateway(shared: tuple[Gateway, Device]) -> Iterator[Gateway]:
    """The shared Owsla; whatever a test does to its connection costs no other."""
    gateway, witness = shared
    for inbox in gateway.backend.inbox.values():
        inbox.clear()
    yield gateway
    block_on(gateway.round_trip(witness))
    gateway.owsla.assert_tidy()


@pytest.fixture
def connect(gateway: Gateway) -> Iterator[Connect]:
    """Connects devices, `connect(version, ...)`, their handshake still to come; they are gone with the test."""
    peers: list[Peer] = []

    def one(version: str = "1.3", **options: Any) -> Peer:
        peers.append(Peer(gateway.owsla.port, version, **options))
        return peers[-1]

    yield one
    for peer in peers:
        peer.close()


async def introduce(gateway: Gateway, peer: Peer) -> str:
    """Have it say something, and return its connection id."""
    greeting = secrets.token_hex(8).encode()
    peer.say(greeting)
    return (await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == greeting)).connection_id


async def round_trip(gateway: Gateway, peer: Peer) -> None:
    """A line of its is published, and one for it arrives."""
    connection_id = await introduce(gateway, peer)
    await gateway.send(connection_id, b"answer")
    assert peer.line() == b"answer"


async def obituary(gateway: Gateway, connection_id: str) -> tuple[str, int]:
    """Why a connection ended, as the gateway told it, and how many lines it had said."""
    end = await told(gateway, "device-disconnected", connection_id=connection_id)
    return end["reason"], end["lines_in"]


# -- What is not agreed to ---------------------------------------------------------------------------------------------

_ECDSA_AES = 0xC02B
_ALL_SIGNATURES: Final = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601)


def _vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content


def _numbers(numbers: Sequence[int]) -> bytes:
    return b"".join(struct.pack(">H", number) for number in numbers)


def client_hello(
    suites: Sequence[int] = (_ECDSA_AES, 0xC02F),
    *,
    version: int = 0x0303,
    versions: Sequence[int] = (),
    groups: Sequence[int] = (23, 29),
    signatures: Sequence[int] = _ALL_SIGNATURES,
    compressions: bytes = b"\x00",
) -> bytes:
    """A ClientHello message; with `versions` one of TLS 1.3, which has no key share yet."""
    extensions = {10: _vector(2, _numbers(groups)), 11: b"\x01\x00", 13: _vector(2, _numbers(signatures))}
    if versions:
        extensions |= {43: _vector(1, _numbers(versions)), 45: b"\x01\x01", 51: b"\x00\x00"}
    packed = b"".join(struct.pack(">H", number) + _vector(2, content) for number, content in extensions.items())
    if version == 0x0300:
        packed = b""  # SSL 3 knows none
    body = struct.pack(">H", version) + secrets.token_bytes(32) + _vector(1, b"") + _vector(2, _numbers(suites))
    body += _vector(1, compressions) + (_vector(2, packed) if packed else b"")
    return b"\x01" + _vector(3, body)


_REFUSED: dict[str, tuple[bytes, int]] = {
    "ssl-3": (client_hello((0x000A, 0x0005, 0x002F), version=0x0300), PROTOCOL_VERSION),
    "tls-1.0": (client_hello((0xC009, 0xC013, 0x002F), version=0x0301), PROTOCOL_VERSION),
    "tls-1.1": (client_hello((0xC009, 0xC013, 0x002F), version=0x0302), PROTOCOL_VERSION),
    "tls-1.1-by-extension": (client_hello(versions=(0x0302, 0x0301)), PROTOCOL_VERSION),
    "fallback": (client_hello((_ECDSA_AES, 0xC02F, 0x5600)), INAPPROPRIATE_FALLBACK),
    "null": (client_hello((0xC006, 0xC010, 0x003B, 0x0002, 0x0001)), HANDSHAKE_FAILURE),
    "null-1.3": (client_hello((0xC0B4, 0xC0B5), versions=(0x0304,)), HANDSHAKE_FAILURE),
    "anonymous": (client_hello((0xC018, 0xC019, 0x00A6, 0x006C, 0x0034)), HANDSHAKE_FAILURE),
    "rc4": (client_hello((0xC007, 0xC011, 0x0005, 0x0004)), HANDSHAKE_FAILURE),
    "3des": (client_hello((0xC008, 0xC012, 0x0016, 0x000A)), HANDSHAKE_FAILURE),
    "export": (client_hello((0x0003, 0x0006, 0x0008, 0x0014)), HANDSHAKE_FAILURE),
    "rsa-key-exchange": (client_hello((0x009C, 0x009D, 0x003C, 0x002F, 0x0035)), HANDSHAKE_FAILURE),
    "psk-of-nobody": (client_hello((0x00A8, 0xC037, 0xCCAB)), HANDSHAKE_FAILURE),
    "sha-1-signatures": (client_hello(signatures=(0x0203, 0x0201)), HANDSHAKE_FAILURE),
    "no-group": (client_hello(groups=(16,), versions=(0x0304,), suites=(0x1301,)), HANDSHAKE_FAILURE),
    "finite-fields": (client_hello(groups=(256, 257), versions=(0x0304,), suites=(0x1301,)), HANDSHAKE_FAILURE),
    "only-compressed": (client_hello(compressions=b"\x01"), ILLEGAL_PARAMETER),
    "compressed-1.3": (client_hello((0x1301,), versions=(0x0304,), compressions=b"\x01\x00"), ILLEGAL_PARAMETER),
}


def first_answer(port: int, sent: bytes) -> tuple[int, bytes]:
    """The kind and the content of the first record that is the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(sent)
        answer = sock.makefile("rb")
        kind, _, length = struct.unpack(">BHH", answer.read(5))
        return kind, answer.read(length)


@pytest.fixture(scope="module")
def by_key(shared: tuple[Gateway, Device], embedded: EmbeddedBrokerProcess, module_lab: Lab) -> dict[str, Gateway]:
    """An Owsla with a certificate of either kind: with an ECDSA one nobody could agree on RSA's key exchange."""
    cert, key = Authority(module_lab.folder / "rsa", "rsa").issue("server")
    return {"ecdsa": shared[0], "rsa": block_on(module_lab.gateway(embedded.url, backend=False, cert=cert, key=key))}


@pytest.mark.parametrize("key", ["ecdsa", "rsa"])
@pytest.mark.parametrize("case", list(_REFUSED))
@reactor_test
async def test_refused(gateway: Gateway, by_key: dict[str, Gateway], case: str, key: str) -> None:
    """Old versions and weak suites are refused, by the alert that says so."""
    hello, alert = _REFUSED[case]
    version = min(0x0301, int.from_bytes(hello[4:6], "big"))
    assert first_answer(by_key[key].owsla.port, plain_record(HANDSHAKE, hello, version)) == (ALERT, bytes([2, alert]))


@pytest.mark.parametrize("key", ["ecdsa", "rsa"])
@reactor_test
async def test_agreed(gateway: Gateway, by_key: dict[str, Gateway], key: str) -> None:
    """The same hello with good offers is answered, and a device that offers compression has none: refusing it all is no art."""
    for hello, suites in (
        (client_hello(compressions=b"\x01\x00"), {0xC02B, 0xC02F}),
        (client_hello((0x1302,), versions=(0x0304,)), {0x1302}),  # a HelloRetryRequest, since it has no key share
    ):
        kind, content = first_answer(by_key[key].owsla.port, plain_record(HANDSHAKE, hello, 0x0301))
        assert (kind, content[0]) == (HANDSHAKE, 2)
        where = 39 + content[38]
        suite, compression = struct.unpack_from(">HB", content, where)
        assert suite in suites
        assert compression == 0


@reactor_test
async def test_http(gateway: Gateway) -> None:
    """A browser at the wrong port is not left waiting."""
    with socket.create_connection(("127.0.0.1", gateway.owsla.port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heard = b""
        try:
            while data := sock.recv(1000):
                heard += data
        except ConnectionResetError:
            pass
        assert b"HTTP" not in heard


# -- How a handshake may arrive ----------------------------------------------------------------------------------------


def _in_records(hello: bytes, size: int) -> list[bytes]:
    content = hello[5:]
    return [plain_record(HANDSHAKE, content[start : start + size], 0x0301) for start in range(0, len(content), size)]


_PIECES: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda hello: [hello],
    "byte-by-byte": lambda hello: [hello[at : at + 1] for at in range(len(hello))],
    "header-first": lambda hello: [hello[:5], hello[5:]],
    "all-but-one": lambda hello: [hello[:-1], hello[-1:]],
    "in-two-records": lambda hello: _in_records(hello, 100),
    "in-records-of-1-byte": lambda hello: _in_records(hello, 1),
    "in-records-of-1-byte-at-once": lambda hello: [b"".join(_in_records(hello, 1))],
}


@both_versions
@pytest.mark.parametrize("pieces", list(_PIECES))
@reactor_test
async def test_hello_in_pieces(gateway: Gateway, connect: Connect, pieces: str, version: str) -> None:
    """A ClientHello may be cut into segments and into records as one likes."""
    peer = connect(version)
    await round_trip(gateway, peer.shake(_PIECES[pieces](peer.flight())))


@both_versions
@pytest.mark.parametrize("size", [3_000, 4_200, 12_000])
@reactor_test
async def test_long_hello(gateway: Gateway, connect: Connect, size: int, version: str) -> None:
    """A hello may be longer than what is waited for before the handshake begins; what ALPN offers is no matter."""
    peer = connect(version, protocols=[b"x" * 199] * (size // 200))
    hello = peer.flight()
    assert len(hello) > size
    await round_trip(gateway, peer.shake([hello[:2000], hello[2000:4101], hello[4101:]]))


@both_versions
@reactor_test
async def test_data_behind_finished(gateway: Gateway, connect: Connect, version: str) -> None:
    """Lines in one segment with the end of the handshake are heard, though nothing comes behind them."""
    peer = connect(version)
    flight = peer.last_flight()
    # In TLS 1.2 a device that does not wait for the gateway's Finished is one with False Start (RFC 7918).
    lines = _lines(6)
    peer.sock.sendall(flight + b"".join(peer.seal.record(DATA, line + b"\n") for line in lines))
    assert [message.body for message in await gateway.messages(6)] == lines
    await round_trip(gateway, peer.finish())


# -- Records of any shape ----------------------------------------------------------------------------------------------

Segments = list[bytes]


def _lines(count: int, size: int = 0) -> list[bytes]:
    return [(b"line %d " % number).ljust(size, b".") for number in range(count)]


def _shape(peer: Peer, shape: str) -> tuple[list[bytes], Segments]:
    """What it says, and the segments that this is sent in."""

    def data(content: bytes) -> bytes:
        record: bytes = peer.seal.record(DATA, content)
        return record

    full = [line + b"\n" for line in _lines(8, RECORD // 8 - 1)]
    match shape:
        case "one-line-in-many-records":
            return [b"word" * 25], [b"".join(data(bytes([byte])) for byte in b"word" * 25 + b"\n")]
        case "many-lines-in-one-record":
            return _lines(1000), [data(b"".join(line + b"\n" for line in _lines(1000)))]
        case "several-records-in-one-segment":
            return _lines(200), [b"".join(data(line + b"\n") for line in _lines(200))]
        case "two-records-in-one-segment":
            return _lines(2), [b"".join(data(line + b"\n") for line in _lines(2))]
        case "full-records-back-to-back":
            return [line[:-1] for line in full] * 64, [b"".join(data(b"".join(full)) for _ in range(64))]
        case "the-longest-line":
            return [b"x" * RECORD], [data(b"x" * RECORD) + data(b"\n")]
        case "byte-by-byte":
            both = data(b"one\n") + data(b"two\n")
            return [b"one", b"two"], [both[at : at + 1] for at in range(len(both))]
        case "cut-in-the-header":
            first, second = data(b"one\n"), data(b"two\n")
            return [b"one", b"two"], [first + second[:3], second[3:]]
        case "cut-in-the-content":
            first, second = data(b"one\n"), data(b"two\n")
            return [b"one", b"two"], [first + second[:9], second[9:]]
        case "cut-behind-many":
            records = [data(line + b"\n") for line in _lines(50)]
            return _lines(50), [b"".join(records)[:-1], b"".join(records)[-1:]]
        case "empty-records":
            return [b"one", b"two"], [data(b"one\n"), *(data(b"") for _ in range(32)), data(b"two\n")]
        case "empty-records-at-once":
            empty = b"".join(data(b"") for _ in range(32))
            return [b"one", b"two"], [empty + data(b"one\n") + b"".join(data(b"") for _ in range(32)) + data(b"two\n")]
        case "empty-records-between-all":
            return _lines(300), [b"".join(data(b"") + data(line + b"\n") for line in _lines(300))]
        case "empty-record-last":
            return [b"one"], [data(b"one\n") + data(b"")]
        case "user-canceled":
            return [b"one"], [peer.seal.record(ALERT, USER_CANCELED) + data(b"one\n")]
        case "padded":
            return [b"one", b"two"], [peer.seal.record(DATA, b"one\n", RECORD - 4) + peer.seal.record(DATA, b"two\n", 1)]
        case "only-padding":
            return [b"one"], [peer.seal.record(DATA, b"", RECORD) + data(b"one\n")]
        case "key-update":
            return [b"one", b"two"], [data(b"one\n") + peer.seal.update() + data(b"two\n")]
        case "key-update-in-a-line":
            return [b"one"], [data(b"o") + peer.seal.update() + data(b"n") + peer.seal.update(KEY_UPDATE_BOTH) + data(b"e\n")]
        case "key-updates-at-once":
            return [b"one"], [b"".join(peer.seal.update() for _ in range(20)) + data(b"one\n")]
        case "key-update-last":
            return [b"one"], [data(b"one\n") + peer.seal.update(KEY_UPDATE_BOTH)]
        case "key-update-in-two-records":
            record: bytes = peer.seal.record(HANDSHAKE, KEY_UPDATE[:3])
            segments = [record + _update_rest(peer.seal), data(b"one\n")]
            return [b"one"], segments
    raise ValueError(shape)


def _update_rest(seal: Sealer13) -> bytes:
    """The rest of a KeyUpdate that was begun, and then the new key."""
    return seal.update(KEY_UPDATE[3:])


_SHAPES_13 = (
    "padded",
    "only-padding",
    "key-update",
    "key-update-in-a-line",
    "key-updates-at-once",
    "key-update-last",
    "key-update-in-two-records",
)
_SHAPES = (
    "one-line-in-many-records",
    "many-lines-in-one-record",
    "several-records-in-one-segment",
    "two-records-in-one-segment",
    "full-records-back-to-back",
    "the-longest-line",
    "byte-by-byte",
    "cut-in-the-header",
    "cut-in-the-content",
    "cut-behind-many",
    "empty-records",
    "empty-records-at-once",
    "empty-records-between-all",
    "empty-record-last",
    "user-canceled",
)


@pytest.mark.parametrize(
    ("version", "shape"), [*((v, shape) for v in VERSIONS for shape in _SHAPES), *(("1.3", shape) for shape in _SHAPES_13)]
)
@reactor_test
async def test_shape(gateway: Gateway, connect: Connect, version: str, shape: str) -> None:
    """Lines are heard as soon as their last byte is there, in whatever records they come."""
    peer = connect(version).shake()
    await introduce(gateway, peer)
    lines, segments = _shape(peer, shape)
    for segment in segments:
        peer.sock.sendall(segment)
        peer.taken()
    assert [message.body for message in await gateway.messages(len(lines))] == lines
    await round_trip(gateway, peer)


# -- What breaks the protocol ------------------------------------------------------------------------------------------


def _forged(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


_HELLO_AGAIN = client_hello()

_Breach = Callable[[Any], bytes]

_BREACHES: dict[str, tuple[_Breach, dict[str, int]]] = {
    "bad-mac": (lambda seal: _forged(seal.record(DATA, b"forged\n")), {"1.2": BAD_RECORD_MAC, "1.3": BAD_RECORD_MAC}),
    "replayed": (lambda seal: seal.record(DATA, b"once\n")[:0] + _twice(seal), {"1.2": BAD_RECORD_MAC, "1.3": BAD_RECORD_MAC}),
    "left-out": (lambda seal: seal.record(DATA, b"left out\n")[:0], {"1.2": BAD_RECORD_MAC, "1.3": BAD_RECORD_MAC}),
    "shorter-than-its-mac": (lambda _: plain_record(DATA, b"short"), {"1.2": BAD_RECORD_MAC, "1.3": BAD_RECORD_MAC}),
    # The limit is 2^14 + 256 in TLS 1.3 and 2^14 + 2048 in 1.2.
    "record-too-long": (lambda _: plain_record(DATA, bytes(RECORD + 2049)), {"1.2": RECORD_OVERFLOW, "1.3": RECORD_OVERFLOW}),
    "record-too-long-1.3": (lambda _: plain_record(DATA, bytes(RECORD + 257)), {"1.3": RECORD_OVERFLOW}),
    "content-too-long": (lambda seal: seal.record(DATA, b"x" * (RECORD + 1)), {"1.2": RECORD_OVERFLOW, "1.3": RECORD_OVERFLOW}),
    "empty-records-for-ever": (
        lambda seal: b"".join(seal.record(DATA, b"") for _ in range(40)),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "no-content-type": (lambda seal: seal.record(0, b"", 10), {"1.3": UNEXPECTED_MESSAGE}),
    "unknown-content-type": (lambda seal: seal.record(99, b"x"), {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE}),
    "heartbeat": (
        lambda seal: seal.record(HEARTBEAT, b"\x01\x40\x00x"),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "another-hello": (lambda seal: seal.record(HANDSHAKE, client_hello()), {"1.3": UNEXPECTED_MESSAGE}),
    "another-finished": (
        lambda seal: seal.record(HANDSHAKE, b"\x14\x00\x00\x20" + bytes(32)),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "ticket": (
        lambda seal: seal.record(HANDSHAKE, b"\x04\x00\x00\x05" + bytes(5)),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "certificate": (
        lambda seal: seal.record(HANDSHAKE, b"\x0b\x00\x00\x04" + bytes(4)),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "change-cipher-spec": (lambda _: plain_record(CCS, b"\x01"), {"1.2": BAD_RECORD_MAC, "1.3": UNEXPECTED_MESSAGE}),
    "key-update-in-1.2": (lambda seal: seal.record(HANDSHAKE, KEY_UPDATE), {"1.2": UNEXPECTED_MESSAGE}),
    "key-update-of-2": (lambda seal: seal.record(HANDSHAKE, b"\x18\x00\x00\x01\x02"), {"1.3": ILLEGAL_PARAMETER}),
    # RFC 8446 would have decode_error; this is OpenSSL's word for a message of the wrong length.
    "key-update-too-long": (lambda seal: seal.record(HANDSHAKE, b"\x18\x00\x00\x02\x00\x00"), {"1.3": ILLEGAL_PARAMETER}),
    "two-key-updates-in-a-record": (lambda seal: seal.record(HANDSHAKE, KEY_UPDATE * 2), {"1.3": UNEXPECTED_MESSAGE}),
    "data-in-a-message": (
        lambda seal: seal.record(HANDSHAKE, b"\x18\x00") + seal.record(DATA, b"x\n"),
        {"1.3": UNEXPECTED_MESSAGE},
    ),
    "warnings-for-ever": (
        lambda seal: b"".join(seal.record(ALERT, USER_CANCELED) for _ in range(10)),
        {"1.2": UNEXPECTED_MESSAGE, "1.3": UNEXPECTED_MESSAGE},
    ),
    "goodbye-in-the-clear": (lambda _: plain_record(ALERT, CLOSE_NOTIFY), {"1.2": BAD_RECORD_MAC, "1.3": UNEXPECTED_MESSAGE}),
    "line-in-the-clear": (
        lambda _: plain_record(DATA, b"a line that is in the clear\n"),
        {"1.2": BAD_RECORD_MAC, "1.3": BAD_RECORD_MAC},
    ),
    "http": (lambda _: b"GET / HTTP/1.1\r\n\r\n", {"1.2": PROTOCOL_VERSION, "1.3": UNEXPECTED_MESSAGE}),
    "another-version": (lambda _: plain_record(DATA, bytes(32), 0x0203), {"1.2": PROTOCOL_VERSION, "1.3": DECODE_ERROR}),
}


def _twice(seal: Any) -> bytes:
    """A record twice: the second time its number is not that of its place."""
    record: bytes = seal.record(DATA, b"")
    return record + record


@pytest.mark.parametrize(
    ("version", "breach"), [(version, name) for name, (_, alerts) in _BREACHES.items() for version in alerts]
)
@reactor_test
async def test_breach(gateway: Gateway, connect: Connect, breach: str, version: str) -> None:
    """Who breaks the protocol is told how, loses the connection, and nothing that came behind is taken for a line."""
    make, alerts = _BREACHES[breach]
    peer = connect(version).shake()
    connection_id = await introduce(gateway, peer)
    peer.sock.sendall(make(peer.seal) + peer.seal.record(DATA, b"behind\n"))
    end = peer.end()
    assert end.alerts == [("fatal", alerts[version])]
    assert not end.goodbye
    reason, lines = await obituary(gateway, connection_id)
    assert reason.startswith("TLS: ")
    assert lines == 1, "something that was not said became a line"


# -- Another handshake, other keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 5])
@reactor_test
async def test_no_renegotiation(gateway: Gateway, connect: Connect, times: int) -> None:
    """A device that asks for another handshake in TLS 1.2 is told that there is none; its connection goes on, as it may."""
    peer = connect("1.2").shake()
    await introduce(gateway, peer)
    # What a record is can be read in TLS 1.2. OpenSSL's client gives up at the first alert, and is asked only for that.
    stream = peer.sock.makefile("rb")
    records: list[bytes] = []

    def take() -> None:
        header = stream.read(5)
        records.append(header + stream.read(int.from_bytes(header[3:])))

    for _ in range(times):
        peer.sock.sendall(peer.seal.record(HANDSHAKE, client_hello()))
        take()  # two at once would end the connection
    peer.say(b"behind")
    message = await gateway.message()
    assert message.body == b"behind"
    await gateway.send(message.connection_id, b"answer")
    take()
    assert [record[0] for record in records] == [*[ALERT] * times, DATA]
    peer.tls.bio_write(b"".join(records))
    with pytest.raises(SSL.Error, match="no renegotiation"):
        peer.tls.recv(RECORD)
    assert peer.alerts == [("warning", NO_RENEGOTIATION)]


_LONGEST_HELLO: Final = b"\x01\x02\x01\x40" + bytes(0x020140)
"""A ClientHello of the 131,396 bytes that OpenSSL takes at most."""

#: What holds no data, and takes OpenSSL long to read: the version, and the segments of it.
_FLOODS: dict[str, tuple[str, Callable[[Any], Iterator[bytes]]]] = {
    "key-updates": ("1.3", lambda seal: (seal.update() for _ in range(50_000))),
    "key-updates-for-both": ("1.3", lambda seal: (seal.update(KEY_UPDATE_BOTH) for _ in range(50_000))),
    "renegotiations": ("1.2", lambda seal: (seal.record(HANDSHAKE, client_hello()) for _ in range(20_000))),
    "renegotiation-in-records-of-1-byte": (
        "1.2",
        lambda seal: (seal.record(HANDSHAKE, _LONGEST_HELLO[at : at + 1]) for at in range(len(_LONGEST_HELLO))),
    ),
}


@pytest.mark.parametrize("flood", list(_FLOODS))
@reactor_test
async def test_flood_without_data(gateway: Gateway, connect: Connect, flood: str) -> None:
    """A device that floods its connection with messages of TLS's own, and says nothing, is closed for it. It is not read to the
    end of what it sends first: others are served.
    """
    version, make = _FLOODS[flood]
    peer = connect(version).shake()
    connection_id = await introduce(gateway, peer)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    segments = make(peer.seal)
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while segment := b"".join(itertools.islice(segments, 100)):
            peer.sock.sendall(segment)
            sent += len(segment)
        pytest.fail(f"all {sent} bytes were read")
    reason, lines = await obituary(gateway, connection_id)
    assert re.match("TLS: (more than 32 key updates or renegotiations within 1 s|renegotiation asked for in several)", reason)
    assert lines == 1
    await round_trip(gateway, connect(version).shake())


@reactor_test
async def test_renegotiation_that_is_never_whole(gateway: Gateway, connect: Connect) -> None:
    """In TLS 1.2 the rest of a ClientHello is not waited for: it could be long, in records of a byte."""
    peer = connect("1.2").shake()
    connection_id = await introduce(gateway, peer)
    peer.sock.sendall(peer.seal.record(HANDSHAKE, _LONGEST_HELLO[:20]))
    assert (await obituary(gateway, connection_id))[0] == "TLS: renegotiation asked for in several records"


@reactor_test
async def test_key_update_is_answered(gateway: Gateway, connect: Connect) -> None:
    """The gateway has new keys too when it is asked for them, and only then."""
    peer = connect("1.3").shake()
    for update, answered in ((KEY_UPDATE, False), (KEY_UPDATE_BOTH, True)):
        peer.sock.sendall(peer.seal.update(update))
        await round_trip(gateway, peer)
        assert any(b"key update" in state for state in peer.states) == answered


@reactor_test
async def test_key_update_while_nothing_moves(gateway: Gateway, connect: Connect) -> None:
    """A device that reads nothing can still talk and change keys; what it was sent is whole when it reads again."""
    peer = connect("1.3", window=4096).shake()
    connection_id = await introduce(gateway, peer)
    lines = _lines(300, RECORD)
    for line in lines:
        await gateway.send(connection_id, line)
    await until(lambda: queues(gateway.owsla.port, peer.local_port)[1], what="bytes that wait for the device")
    peer.sock.sendall(peer.seal.update(KEY_UPDATE_BOTH) + peer.seal.record(DATA, b"still here\n"))
    assert (await gateway.message()).body == b"still here"
    assert [peer.line() for _ in lines] == lines
    await round_trip(gateway, peer)
    assert any(b"key update" in state for state in peer.states)


# -- Ends --------------------------------------------------------------------------------------------------------------

#: What is sent last, in a segment of its own; the lines that are heard of it; whether it is taken for an end in order.
_ENDS: dict[str, tuple[_Breach, bool, list[bytes], bool]] = {
    "goodbye": (lambda seal: seal.record(ALERT, CLOSE_NOTIFY), False, [], True),
    "goodbye-and-fin": (lambda seal: seal.record(ALERT, CLOSE_NOTIFY), True, [], True),
    "line-and-goodbye": (
        lambda seal: seal.record(DATA, b"last\n") + seal.record(ALERT, CLOSE_NOTIFY), False, [b"last"], True,
    ),
    "lines-goodbye-and-fin": (
        lambda seal: b"".join(seal.record(DATA, b"last\n") for _ in range(20)) + seal.record(ALERT, CLOSE_NOTIFY),
        True, [b"last"] * 20, True,
    ),
    "half-a-line-and-goodbye": (lambda seal: seal.record(DATA, b"la") + seal.record(ALERT, CLOSE_NOTIFY), False, [], True),
    "line-behind-the-goodbye": (
        lambda seal: seal.record(ALERT, CLOSE_NOTIFY) + seal.record(DATA, b"too late\n"), False, [], True,
    ),
    "canceled-and-goodbye": (
        lambda seal: seal.record(ALERT, USER_CANCELED) + seal.record(ALERT, CLOSE_NOTIFY), False, [], True,
    ),
    "fin": (lambda seal: b"", True, [], False),
    "line-and-fin": (lambda seal: seal.record(DATA, b"last\n"), True, [b"last"], False),
    "lines-and-fin": (
        lambda seal: b"".join(seal.record(DATA, b"last\n") for _ in range(20)), True, [b"last"] * 20, False,
    ),
    "half-a-line-and-fin": (lambda seal: seal.record(DATA, b"la"), True, [], False),
    "half-a-record-and-fin": (lambda seal: seal.record(DATA, b"last\n")[:-1], True, [], False),
    "half-a-goodbye-and-fin": (lambda seal: seal.record(ALERT, CLOSE_NOTIFY)[:-1], True, [], False),
    "fatal-alert": (lambda seal: seal.record(ALERT, b"\x02\x50") + seal.record(DATA, b"late\n"), False, [], False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "case"),
    [(version, case) for case in _ENDS for version in VERSIONS],
)
@reactor_test
async def test_end(gateway: Gateway, connect: Connect, case: str, version: str) -> None:
    """A goodbye is answered with one. An end without is none: it may be somebody else's, who cut the connection short."""
    make, fin, lines, orderly = _ENDS[case]
    peer = connect(version).shake()
    connection_id = await introduce(gateway, peer)
    peer.sock.sendall(make(peer.seal))
    if fin:
        peer.sock.shutdown(socket.SHUT_WR)
    end = peer.end()
    assert end.goodbye == orderly
    if orderly:
        assert end.alerts == [("warning", 0)]
    assert [message.body for message in await gateway.messages(len(lines))] == lines
    reason, heard = await obituary(gateway, connection_id)
    assert heard == 1 + len(lines)
    assert (reason == "closed by the device") == orderly


@both_versions
@reactor_test
async def test_our_end(gateway: Gateway, connect: Connect, version: str) -> None:
    """The last line, the goodbye and the end of the stream arrive, in order, at a device that goes on talking; and what it says
    until its own end is heard.
    """
    peer = connect(version).shake()
    connection_id = await introduce(gateway, peer)
    headers = {"connection_id": connection_id, "owsla_close": True}
    await gateway.backend.publish(gateway.to_device, b"farewell", headers)
    assert peer.line() == b"farewell"
    peer.goodbye()
    for line in _lines(20):
        peer.say(line)  # which fails after a reset
        peer.taken()
    end = peer.end()
    assert (end.goodbye, end.tcp) == (True, "fin")
    peer.close()
    assert await obituary(gateway, connection_id) == ("closed by the back end", 1 + 20)


# -- Nothing is waited for busily --------------------------------------------------------------------------------------

_IDLE: dict[str, _Breach] = {
    "half-a-header": lambda seal: seal.record(DATA, b"x\n")[:3],
    "half-a-record": lambda seal: seal.record(DATA, b"x\n")[:9],
    "a-record-and-a-half": lambda seal: seal.record(DATA, b"x\n") + seal.record(DATA, b"x\n")[:9],
    "empty-record": lambda seal: seal.record(DATA, b""),
    "half-a-message": lambda seal: seal.record(HANDSHAKE, b"\x18\x00"),
}


@both_versions
@pytest.mark.parametrize("case", list(_IDLE))
@reactor_test
async def test_no_spin(gateway: Gateway, connect: Connect, case: str, version: str) -> None:
    """What has begun and is not complete costs no CPU."""
    peer = connect(version).shake()
    await introduce(gateway, peer)
    peer.sock.sendall(_IDLE[case](peer.seal))
    peer.taken()
    before, began = _ran(gateway.owsla.pid), time.monotonic()
    await pause(0.2)
    ran, elapsed = _ran(gateway.owsla.pid) - before, time.monotonic() - began
    assert ran < max(0.1, 0.3 * elapsed)  # a pause is longer on a busy machine, and Owsla has something to do each second


def _ran(pid: int) -> float:
    """Seconds in which a process ran, or would have, had there been a CPU for it: so that a busy machine hides nothing."""
    running, waiting, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return (int(running) + int(waiting)) / 1e9


# -- Devices' certificates ---------------------------------------------------------------------------------------------


def _device_certificate(
    path: Path,
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey],
    *,
    begin: int = -1,
    days: int = 2,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ca: bool = False,
) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    """A certificate with its key in a file; its name and its key. It begins to be valid so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1()) if not ca else issuer[1]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    valid = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begin)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if ca else issuer[0])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid)
        .not_valid_after(valid + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    pem = serialization.Encoding.PEM
    path.write_bytes(
        builder.sign(issuer[1], hashes.SHA256()).public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return name, key


@pytest.fixture(scope="module")
def device_certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, `ca.pem`, and device certificates, good ones and others."""
    folder = tmp_path_factory.mktemp("devices")
    nobody = x509.Name([])

    def authority(name: str) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        return _device_certificate(folder / name, (nobody, ec.generate_private_key(ec.SECP256R1())), ca=True)

    ours, theirs = authority("ca.pem"), authority("stranger-ca.pem")
    _device_certificate(folder / "good.pem", ours)
    _device_certificate(folder / "stranger.pem", theirs)
    _device_certificate(folder / "pretender.pem", (ours[0], theirs[1]))
    _device_certificate(folder / "expired.pem", ours, begin=-3)
    _device_certificate(folder / "not-yet.pem", ours, begin=1)
    _device_certificate(folder / "server.pem", ours, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    return folder


@pytest.fixture(scope="module")
def strict(embedded: EmbeddedBrokerProcess, module_lab: Lab, device_certificates: Path) -> dict[str, Gateway]:
    """An Owsla with each of the ways to ask for certificates."""
    ca = device_certificates / "ca.pem"
    return {word: journaled(module_lab, embedded, client_ca=ca, client_cert=word) for word in ("require", "optional")}


#: The alert where a certificate is required and where it is optional, in TLS 1.2 and 1.3 the same but for the first.
_TURNED_AWAY: dict[str, dict[str, int]] = {
    "none": {"1.2": HANDSHAKE_FAILURE, "1.3": CERTIFICATE_REQUIRED},
    "stranger": {"1.2": UNKNOWN_CA, "1.3": UNKNOWN_CA},
    "pretender": {"1.2": DECRYPT_ERROR, "1.3": DECRYPT_ERROR},
    "expired": {"1.2": CERTIFICATE_EXPIRED, "1.3": CERTIFICATE_EXPIRED},
    "not-yet": {"1.2": BAD_CERTIFICATE, "1.3": BAD_CERTIFICATE},
    "server": {"1.2": UNSUPPORTED_CERTIFICATE, "1.3": UNSUPPORTED_CERTIFICATE},
}

_WHY: dict[str, str] = {
    "none": "did not return a certificate",
    "stranger": "the device's certificate is refused: its authority is not trusted",
    "pretender": "the device's certificate is refused: its authority is not trusted",
    "expired": "the device's certificate is refused: it has expired",
    "not-yet": "the device's certificate is refused: it is not valid yet",
    "server": "the device's certificate is refused: invalid purpose",
}
"""What the operator is told."""


@both_versions
@pytest.mark.parametrize("word", ["require", "optional"])
@pytest.mark.parametrize("name", ["good", *_TURNED_AWAY])
@reactor_test
async def test_client_certificate(
    strict: dict[str, Gateway], device_certificates: Path, name: str, word: str, version: str
) -> None:
    """Who has no good certificate is told what is wrong, also where it says its lines at once; none of them is published."""
    gateway = strict[word]
    certificate = None if name == "none" else device_certificates / f"{name}.pem"
    mark, before = gateway.owsla.mark(), told_so_far(gateway)
    peer = Peer(gateway.owsla.port, version, certificate=certificate)
    try:
        flight = peer.last_flight()
        peer.sock.sendall(flight + peer.seal.record(DATA, b"at once\n"))
        if name == "good" or (name, word) == ("none", "optional"):
            message = await gateway.message()
            assert message.body == b"at once"
            assert message.headers.get("device_id") == ("good" if name == "good" else None)
            await round_trip(gateway, peer.finish())
        else:
            assert peer.end()[:2] == ([("fatal", _TURNED_AWAY[name][version])], False)
            failed = await told(gateway, "handshake-failed", start=before, peer=f"127.0.0.1:{peer.local_port}")
            assert _WHY[name] in failed["reason"]
            assert not gateway.owsla.lines("Device connected", start=mark)
    finally:
        peer.close()


# -- A second opinion: openssl s_client --------------------------------------------------------------------------------


class SClient:
    """`openssl s_client`, in a `with` block. Lines that begin with one of `BKQRk` are commands to it."""

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl is installed")
        self._path = folder / f"s_client-{secrets.token_hex(4)}"
        with self._path.open("wb") as output:
            self._process = subprocess.Popen(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )

    def say(self, line: str) -> None:
        """Say a line, or a command, as if it was typed. A command must be alone: s_client reads all that there is, and looks at
        the first byte.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def output(self) -> str:
        return self._path.read_text("utf-8", "replace")

    async def shows(self, pattern: str, times: int = 1) -> str:
        """Wait until its output has this so many times; all of it."""
        found = re.compile(pattern)
        await until(
            lambda: len(found.findall(self.output())) >= times,
            what=lambda: f"{pattern!r} in the output of s_client:\n{self.output()}",
        )
        return self.output()

    async def ended(self) -> str:
        """Wait until it has ended by itself; its output."""
        await until(lambda: self._process.poll() is not None, what="the end of s_client")
        return self.output()

    def __enter__(self) -> SClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


async def talk(gateway: Gateway, client: SClient) -> str:
    """A line there and one back; the connection id."""
    said, answer = (f"line {secrets.token_hex(4)}" for _ in range(2))
    client.say(said)
    message = await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == said.encode())
    await gateway.send(message.connection_id, answer.encode())
    await client.shows(answer)
    return message.connection_id


@reactor_test
async def test_s_client_renegotiates(gateway: Gateway, tmp_path: Path) -> None:
    """OpenSSL's own client, which takes no for an end, is told no."""
    with SClient(tmp_path, gateway.owsla.port, "-tls1_2", "-msg") as client:
        connection_id = await talk(gateway, client)
        client.say("R")
        output = await client.ended()
    assert "<<< TLS 1.2, Alert [length 0002], warning no_renegotiation" in output
    assert (await obituary(gateway, connection_id))[1] == 1


@reactor_test
async def test_s_client_updates_keys(gateway: Gateway, tmp_path: Path) -> None:
    """Keys change in both directions, again and again, and lines go on."""
    with SClient(tmp_path, gateway.owsla.port, "-tls1_3", "-msg") as client:
        await talk(gateway, client)
        for count in range(1, 4):
            client.say("k")  # its own
            await client.shows(">>> TLS 1.3, Handshake .*KeyUpdate", 2 * count - 1)
            await talk(gateway, client)
            client.say("K")  # and the gateway's
            await client.shows(">>> TLS 1.3, Handshake .*KeyUpdate", 2 * count)
            await talk(gateway, client)
            output = await client.shows("<<< TLS 1.3, Handshake .*KeyUpdate", count)
        assert output.count("<<< TLS 1.3, Handshake [length 0005], KeyUpdate") == 3


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@reactor_test
async def test_s_client_small_records(gateway: Gateway, tmp_path: Path, version: str) -> None:
    """A device that has room for records of 512 bytes only (RFC 6066, 4) gets no longer ones, in the handshake and later."""
    trace = tmp_path / "trace"
    options = ("-maxfraglen", "512", "-msg", "-msgfile", str(trace))
    with SClient(tmp_path, gateway.owsla.port, version, *options) as client:
        connection_id = await talk(gateway, client)
        long = secrets.token_hex(RECORD // 2)
        await gateway.send(connection_id, long.encode())
        await client.shows(long)
        await talk(gateway, client)
    heard = re.findall(r"<<< [^\n]*RecordHeader[^\n]*\n +(?:[0-9a-f]{2} ){3}([0-9a-f]{2}) ([0-9a-f]{2})", trace.read_text())
    lengths = [int(high + low, 16) for high, low in heard]
    assert len(lengths) > RECORD // 512
    assert 512 < max(lengths) <= 512 + 24  # a nonce and a MAC, or a type and a MAC


_HARMLESS: dict[str, tuple[list[str], str]] = {
    "unknown-name": (["-servername", "nobody.example"], ""),
    "no-name": (["-noservername"], ""),
    "alpn": (["-alpn", "h2,http/1.1"], "No ALPN negotiated"),
    "later-authentication": (["-enable_pha"], ""),
    "stapling": (["-status"], "OCSP responses?: no (OCSP )?responses? (sent|received)"),
    "another-group-first": (["-groups", "ffdhe8192:P-256"], "HelloRetryRequest|(Server|Peer) Temp Key: ECDH"),
    "middlebox": (["-no_middlebox"], ""),
    "compression": (["-comp"], "Compression: NONE"),
    "padded-records": (["-record_padding", "4096"], ""),
    "split-sends": (["-split_send_frag", "512", "-max_send_frag", "512"], ""),
}


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("case", list(_HARMLESS))
@reactor_test
async def test_s_client_offers(gateway: Gateway, tmp_path: Path, case: str, version: str) -> None:
    """What a device offers and nobody takes up does no harm; nothing is asked of it that it might offer."""
    options, shown = _HARMLESS[case]
    with SClient(tmp_path, gateway.owsla.port, version, *options, "-msg") as client:
        await talk(gateway, client)
        output = await client.shows(shown)
    assert "CertificateRequest" not in output


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@reactor_test
async def test_s_client_resumes_nothing(gateway: Gateway, tmp_path: Path, version: str) -> None:
    """Each handshake is a full one, whatever a device has kept of the last."""
    session = tmp_path / "session"
    with SClient(tmp_path, gateway.owsla.port, version, "-sess_out", str(session)) as client:
        await talk(gateway, client)
        client.say("Q")
        await client.ended()
    assert not session.exists()  # it was given nothing to come back with


@pytest.mark.parametrize("workers", [1, 2])
@reactor_test
async def test_no_tickets(lab: Lab, embedded: EmbeddedBrokerProcess, workers: int) -> None:
    """A gateway that is started as a program sends no session tickets, nor do its workers."""
    owsla = lab.new_owsla(broker=embedded.url, workers=workers, idle_timeout="1s", program=True)
    await owsla.start()
    context = ssl.create_default_context(cafile=owsla.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with (
        socket.create_connection(("127.0.0.1", owsla.port), PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as device,
    ):
        assert device.recv(1) == b""  # Owsla has closed the connection, and all that it sent before was read
        assert device.session is not None
        assert not device.session.has_ticket


@reactor_test
async def test_s_client_early_data(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    """Lines that are said before the handshake (0-RTT), by which they could be replayed, are no lines."""
    cert, key = Authority(tmp_path / "elsewhere").issue("server")
    session, early = tmp_path / "session", tmp_path / "early"
    early.write_bytes(b"early\n" * 100)
    port = free_port()
    server = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(cert), "-key", str(key), "-early_data"]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as elsewhere:
        try:
            assert elsewhere.stdout is not None
            while b"ACCEPT" not in elsewhere.stdout.readline():
                pass
            with SClient(tmp_path, port, "-tls1_3", "-sess_out", str(session)) as client:
                await until(session.exists, what="a ticket")
                client.say("Q")
                assert "Max Early Data: 16384" in await client.ended()
        finally:
            elsewhere.kill()
    with SClient(tmp_path, gateway.owsla.port, "-tls1_3", "-sess_in", str(session), "-early_data", str(early)) as client:
        connection_id = await talk(gateway, client)
        client.say("Q")
        assert "Early data was rejected" in await client.ended()
    assert (await obituary(gateway, connection_id))[1] == 1
