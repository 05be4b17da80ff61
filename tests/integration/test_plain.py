"""Tests of doors without TLS: plain TCP, a unix socket, and a load balancer in front that sends PROXY protocol headers."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.threads import deferToThread

from owsla.device.proxy_header import write_v1, write_v2

from ._support.certificates import Authority
from ._support.device import Plain
from ._support.lab import Broker, Gateway, Lab
from ._support.owsla import Option
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until

DEVICE = ("192.0.2.7", 4321)
PROXY = ("127.0.0.1", 8883)

DEVICE_ACK = "ACK {seq}"


class Door:
    """A kind of door without TLS: the options for it, and how a device connects."""

    def __init__(self, name: str, lab: Lab) -> None:
        self.name = name
        self._lab = lab
        self.path = lab.folder / "door" if name.startswith("unix") else None
        self.header = {"v1": write_v1(DEVICE, PROXY), "v2": write_v2(DEVICE, PROXY, checksum=True)}.get(name[-2:], b"")
        self.peer = rf"{DEVICE[0]}:{DEVICE[1]}" if self.header else f"unix:{self.path}" if self.path else r"127\.0\.0\.1:\d+"
        self.options: dict[str, Any] = {"tls": "no"}
        if self.path is not None:
            self.options |= {"port": f"unix:{self.path}", "interface": None}
        if self.header:
            self.options["proxy_protocol"] = "unix" if self.path is not None else "127.0.0.0/8"

    async def gateway(self, broker_url: str, **options: Option) -> Gateway:
        """Start an Owsla with this door."""
        return await self._lab.gateway(broker_url, **(self.options | options))

    async def device(self, gateway: Gateway) -> Plain:
        """Connect a device."""
        return await self._lab.plain(gateway.owsla.port, path=self.path, header=self.header, delimiter=b"\r\n")

    def socket(self, gateway: Gateway) -> socket.socket:
        """Connect a blocking socket."""
        if self.path is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self.path))
        else:
            sock = socket.create_connection(("127.0.0.1", gateway.owsla.port))
        sock.settimeout(15)
        sock.sendall(self.header)
        return sock


@pytest.fixture(params=["tcp", "unix", "tcp-v2"])
def door(request: pytest.FixtureRequest, lab: Lab) -> Door:
    """Return each kind of door that differs in how bytes are read and written."""
    return Door(request.param, lab)


@pytest.fixture(params=["tcp", "unix", "tcp-v1", "tcp-v2", "unix-v2"])
def any_door(request: pytest.FixtureRequest, lab: Lab) -> Door:
    """Return each kind of door."""
    return Door(request.param, lab)


@reactor_test
async def test_there_and_back(any_door: Door, broker: Broker) -> None:
    """Lines and messages go both ways. The log names the kind of the connection, and the address of the device."""
    door = any_door
    gateway = await door.gateway(broker.url)
    device = await door.device(gateway)
    device.send_line(b"a line", b"another")
    first, second = await gateway.messages(2)
    assert [(each.body, each.seq) for each in (first, second)] == [(b"a line", 0), (b"another", 1)]
    await gateway.send(first.connection_id, b"an answer")
    assert await device.line() == b"an answer"
    kind = "unix socket" if door.name == "unix" else "TCP"
    await gateway.owsla.wait_for_line(f"Device connected: {first.connection_id} from {door.peer}, {kind}")
    await device.close()
    await gateway.owsla.wait_for_line(f"Device disconnected: {first.connection_id} from {door.peer}, closed by the device")


@reactor_test
async def test_device_ack(door: Door, embedded: Broker) -> None:
    """A device gets acknowledgements for its lines."""
    gateway = await door.gateway(embedded.url, device_ack=DEVICE_ACK)
    device = await door.device(gateway)
    device.send_line(*[b"%d" % number for number in range(1000)])
    await until(lambda: b"ACK 999" in device.lines.clear(), what="the last acknowledgement")
    assert [message.body for message in await gateway.messages(1000)] == [b"%d" % number for number in range(1000)]


@reactor_test
async def test_login(door: Door, embedded: Broker, tmp_path: Path) -> None:
    """A device logs in by a dialect, which answers it."""
    devices = tmp_path / "devices"
    devices.write_text("d1:s3cret\n")
    gateway = await door.gateway(embedded.url, dialect="login", login_checker=f"file:{devices}", login_timeout="2s")
    device = await door.device(gateway)
    device.send_line(b"HELLO d1 s3cret", b"a line")
    assert await device.line() == b"WELCOME d1"
    message = await gateway.message()
    assert (message.body, message.headers["device_id"]) == (b"a line", "d1")
    wrong = await door.device(gateway)
    wrong.send_line(b"HELLO d1 guess", b"a line")
    await wrong.closed()
    silent = await door.device(gateway)
    await silent.closed()


@reactor_test
async def test_burst(door: Door, embedded: Broker) -> None:
    """100 KB in one write arrive in order, and so do 100 KB to the device."""
    gateway = await door.gateway(embedded.url)
    device = await door.device(gateway)
    lines = [b"%05d" % number * 20 for number in range(1000)]
    device.send_line(*lines)
    messages = await gateway.messages(len(lines))
    assert [message.body for message in messages] == lines
    for line in lines:
        await gateway.send(messages[0].connection_id, line)
    assert sorted(await device.lines.take(len(lines))) == lines


@reactor_test
async def test_slow_device(door: Door, embedded: Broker) -> None:
    """A device that reads nothing holds up no other, and gets its messages in order when it reads."""
    gateway = await door.gateway(embedded.url, write_buffer=10_000_000, prefetch=20_000, write_timeout="60s")
    slow, quick = await door.device(gateway), await door.device(gateway)
    connection_id = await gateway.introduce(slow)
    slow.pause()
    bodies = [b"%06d" % number * 1500 for number in range(400)]
    for seq, body in enumerate(bodies):
        headers = {"connection_id": connection_id, "to_device_seq": seq}
        await gateway.backend.publish(gateway.to_device, body, headers)
    await gateway.round_trip(quick)
    assert await gateway.backend.count(gateway.to_device) == 0
    slow.resume()
    assert await slow.lines.take(len(bodies)) == bodies


@reactor_test
async def test_closed_as_slow(door: Door, embedded: Broker) -> None:
    """A device that takes nothing for --write-timeout is closed, and the messages that waited for it are recorded."""
    gateway = await door.gateway(embedded.url, write_timeout="1s", write_buffer=10_000_000, prefetch=20_000)
    slow = await door.device(gateway)
    connection_id = await gateway.introduce(slow)
    slow.pause()
    for number in range(400):
        await gateway.send(connection_id, b"%06d" % number * 1500)
    refused = await gateway.refused()
    assert refused.headers["owsla_reason"] == "slow-device"
    slow.abort()


@reactor_test
@pytest.mark.parametrize("acknowledges", [False, True])
async def test_drain(door: Door, rabbitmq: RabbitMQ, acknowledges: bool) -> None:
    """A stop publishes all that devices have sent. With acknowledgements a device knows how many of its lines are safe."""
    gateway = await door.gateway(rabbitmq.url, drain_spread=0, device_ack=DEVICE_ACK if acknowledges else None, window=100)
    device = await door.device(gateway)
    lines = [b"%d" % number for number in range(5000)]
    device.send_line(*lines)
    await gateway.owsla.wait_for_line("Device connected")
    gateway.owsla.process.signal(signal.SIGTERM)
    ended = await device.closed()
    assert ended.check(ConnectionDone), ended
    assert await gateway.owsla.exited(30) == 0
    await gateway.backend.publish(gateway.from_device, b"all there is")
    bodies = []
    while (body := (await gateway.message()).body) != b"all there is":
        bodies.append(body)
    assert bodies == lines[: len(bodies)]
    if acknowledges:
        acknowledged = [int(line.split()[1]) for line in device.lines.clear()]
        assert len(bodies) == max(acknowledged, default=-1) + 1
    else:
        assert len(bodies) == len(lines)


@reactor_test
async def test_idle(door: Door, embedded: Broker) -> None:
    """A device without a line for --idle-timeout is closed, in order."""
    gateway = await door.gateway(embedded.url, idle_timeout="1s")
    device = await door.device(gateway)
    await gateway.introduce(device)
    ended = await device.closed()
    assert ended.check(ConnectionDone), ended
    await gateway.owsla.wait_for_line("Device disconnected: .*, no line for 1 s")


@reactor_test
async def test_gone_while_paused(door: Door, rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A device that sends lines during an outage of the broker and leaves, in order or by a reset, is noticed at once. Its
    lines are published after the outage.
    """
    proxy = await lab.proxy(rabbitmq.port)
    gateway = await door.gateway(rabbitmq.url, broker=proxy.url)
    one, two = door.socket(gateway), door.socket(gateway)
    for number, sock in enumerate((one, two)):
        sock.sendall(b"before %d\n" % number)
        assert (await gateway.message()).body == b"before %d" % number
    await proxy.refuse()
    proxy.cut()
    await gateway.owsla.wait_for_line("Broker lost")
    one.sendall(b"during 0\n")
    one.close()
    two.sendall(b"during 1\n")
    if door.path is None:
        two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    two.close()
    await until(lambda: len(gateway.owsla.lines("Device disconnected")) == 2, what="the ends")
    await proxy.start()
    during: set[bytes] = set()
    while len(during) < 2:  # the lines before may be published again
        body = (await gateway.message()).body
        during |= {body} if body.startswith(b"during") else set()
    assert during == {b"during 0", b"during 1"}


@reactor_test
async def test_half_close(door: Door, embedded: Broker) -> None:
    """A device that closes its side after its lines has left. Its lines are published, and it sees an orderly end."""
    gateway = await door.gateway(embedded.url)
    with door.socket(gateway) as sock:
        sock.sendall(b"one\ntwo\n")
        sock.shutdown(socket.SHUT_WR)
        assert [message.body for message in await gateway.messages(2)] == [b"one", b"two"]
        assert sock.recv(100) == b""
    await gateway.owsla.wait_for_line("Device disconnected: .*, closed by the device; 2 lines in")


@reactor_test
async def test_reset(lab: Lab, embedded: Broker) -> None:
    """Lines before a reset are published, also if a message is written to the device just after it."""
    door = Door("tcp", lab)
    gateway = await door.gateway(embedded.url)
    sock = door.socket(gateway)
    sock.sendall(b"one\n")
    connection_id = (await gateway.message()).connection_id
    gateway.owsla.process.signal(signal.SIGSTOP)
    try:
        sock.sendall(b"two\nthree\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await gateway.send(connection_id, b"too late")
        await pause(0.2)
    finally:
        gateway.owsla.process.signal(signal.SIGCONT)
    assert [message.body for message in await gateway.messages(2)] == [b"two", b"three"]
    await gateway.owsla.wait_for_line("Device disconnected: .*, lost; 3 lines in")


@reactor_test
async def test_line_too_long(door: Door, embedded: Broker) -> None:
    """A line longer than --max-line closes the connection, and nothing of it is published."""
    gateway = await door.gateway(embedded.url, max_line=100)
    device = await door.device(gateway)
    device.send_line(b"x" * 100, b"y" * 101, b"z")
    await device.closed()
    assert (await gateway.message()).body == b"x" * 100
    await gateway.owsla.wait_for_line("Line too long: .* sent a line of more than 100 bytes")
    await gateway.round_trip(await door.device(gateway))


@reactor_test
async def test_device_that_listens(door: Door, embedded: Broker) -> None:
    """A device that sends nothing is connected after a second, so that a back end may speak first."""
    gateway = await door.gateway(embedded.url)
    device = await door.device(gateway)
    connected = await gateway.owsla.wait_for_line(r"Device connected: (\S+) from")
    await gateway.send(connected[1], b"hello")
    assert await device.line() == b"hello"


@reactor_test
async def test_others_at_the_wrong_door(door: Door, embedded: Broker) -> None:
    """A TLS device, an HTTP client and an SSH client at this door are named in the log, and closed."""
    gateway = await door.gateway(embedded.url)
    context = ssl.create_default_context()
    with door.socket(gateway) as sock:
        await _fails_in_thread(lambda: context.wrap_socket(sock, server_hostname="localhost"))
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"):
        with door.socket(gateway) as sock:
            sock.sendall(data)
            assert sock.recv(100) == b""
    for name in ("a TLS ClientHello", "an HTTP request", "an SSH client's greeting"):
        await gateway.owsla.wait_for_line(f"Handshake failed: {door.peer}: {name}, and this port is without TLS")
    assert not gateway.owsla.lines("Device connected")


def _fails_in_thread(call: Callable[[], Any]) -> Awaitable[None]:
    """Run a call that must fail with an SSL error in another thread."""
    def fails() -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            call()

    return deferToThread(fails)


@reactor_test
async def test_health_checks(door: Door, embedded: Broker) -> None:
    """A health check that connects and closes is no device. Behind the PROXY protocol it makes no event at all."""
    gateway = await door.gateway(embedded.url)
    mark = gateway.owsla.mark()
    for header in (write_v2(None, PROXY), b"") if door.header else (b"",):
        for _ in range(3):
            check = await Plain(gateway.owsla.port, path=door.path, header=header).connect()
            await check.close()
    await gateway.round_trip(await door.device(gateway))
    await gateway.owsla.wait_for_line("Device connected", start=mark)
    assert len(gateway.owsla.lines("Device connected", start=mark)) == 1
    failed = gateway.owsla.lines("Handshake failed", start=mark)
    assert len(failed) == (0 if door.header else 3), failed
    assert all(line.endswith("closed before it said anything") for line in failed)


@reactor_test
async def test_wrong_headers(lab: Lab, embedded: Broker) -> None:
    """On a door with the PROXY protocol a missing or malformed header is named; on one without it, a header is."""
    door = Door("tcp-v2", lab)
    gateway = await door.gateway(embedded.url)
    for data, reason in (
        (b"hello\n", r"no PROXY protocol header, but b'hello\\n'"),
        (b"PROXY TCP4 1.2.3 4 5 6\r\n", "malformed"),
        (write_v2(DEVICE, PROXY, checksum=True)[:-1] + b"?", "a PROXY protocol header with a wrong checksum"),
        (b"\x16\x03\x01\x02\x00\x01", "a ClientHello without a PROXY protocol header before it"),
    ):
        device = await lab.plain(gateway.owsla.port)
        device.send_raw(data)
        await device.closed()
        await gateway.owsla.wait_for_line(f"Handshake failed: .*: .*{reason}")
    other = await Door("tcp", lab).gateway(embedded.url)
    device = await lab.plain(other.owsla.port, header=door.header)
    await device.closed()
    expected = r"a PROXY protocol header .*, which this door does not expect \(--proxy-protocol\)"
    await other.owsla.wait_for_line(f"Handshake failed: .*: {expected}")


@reactor_test
async def test_header_in_front_of_tls(lab: Lab, embedded: Broker, tmp_path: Path) -> None:
    """On a door with TLS the header comes before the handshake, also in pieces and in one packet with the ClientHello."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    gateway = await lab.gateway(embedded.url, proxy_protocol="127.0.0.0/8", cert=certificate, key=key)
    def talk(header: bytes, pieces: int) -> None:
        context = ssl.create_default_context(cafile=str(authority.ca))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", gateway.owsla.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(15)
            first = header
            done = False
            while not done:
                try:
                    tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                data = first + outgoing.read()
                first = b""
                size = pieces or len(data) or 1
                for at in range(0, len(data), size):
                    sock.sendall(data[at : at + size])
                if not done:
                    incoming.write(sock.recv(65536))
            tls.write(b"%d\n" % pieces)
            sock.sendall(outgoing.read())
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass  # until the gateway has closed the connection, and so has read the line

    for number, (header, pieces) in enumerate(((write_v1(DEVICE, PROXY), 0), (write_v2(DEVICE, PROXY), 1))):
        await deferToThread(talk, header, pieces)
        assert (await gateway.message()).body == b"%d" % pieces
        connected = r"Device connected: \S+ from 192\.0\.2\.7:4321, TLSv1"
        await until(lambda: len(gateway.owsla.lines(connected)) == number + 1, what="the event")  # noqa: B023


@reactor_test
async def test_untrusted_senders(lab: Lab, embedded: Broker) -> None:
    """Connections of other peers than the trusted ones are closed, and said so once a minute."""
    gateway = await lab.gateway(embedded.url, tls="no", proxy_protocol="127.0.0.2/32")
    for _ in range(5):
        device = await lab.plain(gateway.owsla.port)
        ended = await device.closed()
        assert ended.check(ConnectionLost)
    await gateway.owsla.wait_for_line(r"Proxy untrusted: \d connections? refused .*; the last one from 127\.0\.0\.1")
    trusted = await lab.plain(gateway.owsla.port, source="127.0.0.2", header=write_v1(DEVICE, PROXY), delimiter=b"\r\n")
    await gateway.round_trip(trusted)
    assert len(gateway.owsla.lines("Proxy untrusted")) == 1


@reactor_test
async def test_limit_for_the_address_of_the_device(lab: Lab, embedded: Broker) -> None:
    """Behind a load balancer --max-per-address counts the address in the header."""
    gateway = await lab.gateway(embedded.url, tls="no", proxy_protocol="127.0.0.1/32", max_per_address=2)

    async def device(host: str) -> Plain:
        return await lab.plain(gateway.owsla.port, header=write_v2((host, 1), PROXY), delimiter=b"\r\n")

    for host in ("192.0.2.7", "192.0.2.8", "192.0.2.7"):
        await gateway.round_trip(await device(host))
    await (await device("192.0.2.7")).closed()
    await gateway.round_trip(await device("192.0.2.9"))
    await gateway.owsla.wait_for_line(r"192\.0\.2\.7")


@reactor_test
async def test_identity_by_the_header(lab: Lab, embedded: Broker) -> None:
    """With --proxy-identity the proxy tells who the device is."""
    gateway = await lab.gateway(embedded.url, tls="no", proxy_protocol="127.0.0.1/32", proxy_identity="cn")
    for name in ("sensor 7", None):
        header = write_v2(DEVICE, PROXY, common_name=name, tls_version="TLSv1.3")
        device = await lab.plain(gateway.owsla.port, header=header, delimiter=b"\r\n")
        device.send_line(b"a line")
        assert (await gateway.message()).headers.get("device_id") == name


@reactor_test
async def test_said_in_the_log(lab: Lab, embedded: Broker) -> None:
    """Plain TCP that other hosts can reach is said in the log; that of the loopback interface is not."""
    for interface, warnings in (("127.0.0.1", 0), ("0.0.0.0", 1)):
        gateway = await lab.gateway(embedded.url, backend=False, tls="no", interface=interface)
        text = r"plain TCP on port \d+ \(all IPv4 interfaces\): the network can read and change what devices send and get"
        await gateway.owsla.wait_for_line("Node started")
        assert len(gateway.owsla.lines(text)) == warnings, gateway.owsla.output()
        assert re.search(rf"Listening for devices on port {gateway.owsla.port} \(TCP, ", gateway.owsla.output())
