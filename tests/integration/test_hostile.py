"""Tests of invalid bytes from devices and from the broker: the connection ends, and Owsla continues."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL
from pamqp import commands

from ._support.certificates import Authority
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.waiting import block_on, pause, reactor_test, until
from ._support.wire import (
    BODY,
    HEADER,
    METHOD,
    content_header,
    field_table,
    long_string,
    method,
    raw_frame,
    short_string,
)

# -- From devices ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_gateway(broker: Broker, module_lab: Lab) -> Gateway:
    """Return one Owsla for all tests of invalid bytes: it must survive all of them."""
    return block_on(module_lab.gateway(broker.url, handshake_timeout="2s", max_line=1000))


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Iterator[Gateway]:
    """Return the shared gateway with empty inboxes."""
    for inbox in shared_gateway.backend.inbox.values():
        inbox.clear()
    yield shared_gateway
    assert shared_gateway.owsla.process.poll() is None, shared_gateway.owsla.output()
    shared_gateway.owsla.assert_tidy()


_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

_NONSENSE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "line": b"hello, is this the device port?\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "random": bytes((17 * number * number + number) % 256 for number in range(100_000)),
    "sslv2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
    "hello-of-nothing": b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    "hello-too-long": b"\x16\x03\x01\xff\xff" + b"\x01\x00\xff\xff" + bytes(70_000),
    "alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "application-data-first": b"\x17\x03\x03\x00\x10" + bytes(16),
    "half-hello": _CLIENT_HELLO,
    "one-byte": b"\x16",
    "amqp": b"AMQP\x00\x00\x09\x01",
}


@pytest.mark.parametrize("kind", list(_NONSENSE))
@reactor_test
async def test_nonsense_at_the_device_port(gateway: Gateway, lab: Lab, kind: str) -> None:
    """A connection that does not speak TLS ends within --handshake-timeout, with a line in the log."""
    start = gateway.owsla.mark()
    plain = await lab.plain(gateway.owsla.port)
    peer = f"127.0.0.1:{plain.local_port}"
    plain.send_raw(_NONSENSE[kind])
    await plain.closed(10)
    await gateway.owsla.wait_for_line(f"Handshake failed: {peer}", start=start)
    await gateway.round_trip(await lab.device(gateway))


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 8883\r\n" + _CLIENT_HELLO, "a PROXY protocol header"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), "a PROXY protocol header .version 2."),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "an HTTP request"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH client's greeting"),
    ],
)
@reactor_test
async def test_other_protocols_are_named(gateway: Gateway, lab: Lab, sent: bytes, name: str) -> None:
    """The log names other protocols than TLS, such as the PROXY header of a load balancer."""
    start = gateway.owsla.mark()
    plain = await lab.plain(gateway.owsla.port)
    peer = f"127.0.0.1:{plain.local_port}"
    plain.send_raw(sent)
    await plain.closed(10)
    await gateway.owsla.wait_for_line(f"Handshake failed: {peer}: TLS: {name} instead of a ClientHello", start=start)


@reactor_test
async def test_a_device_without_tls(gateway: Gateway, lab: Lab) -> None:
    """The log says that a device which sends lines at once does not speak TLS."""
    start = gateway.owsla.mark()
    plain = await lab.plain(gateway.owsla.port)
    peer = f"127.0.0.1:{plain.local_port}"
    plain.send_raw(b"HELLO door-7\n")
    await plain.closed(10)
    reason = r"TLS: the device does not speak TLS \(wrong version number\)"
    await gateway.owsla.wait_for_line(f"Handshake failed: {peer}: {reason}", start=start)


@reactor_test
async def test_a_device_that_distrusts_the_gateway(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    """The log says that a device refuses the certificate of the gateway."""
    stranger = Authority(tmp_path / "stranger")
    device = lab.waiting_device(gateway, ca=stranger.ca)
    with pytest.raises(SSL.Error):
        await device.connect()
    reason = "TLS: the device refuses the certificate of the gateway .*alert unknown ca"
    await gateway.owsla.wait_for_line(f"Handshake failed: .*: {reason}")


@pytest.mark.parametrize("sent", [b"", b"\x16", _CLIENT_HELLO], ids=["nothing", "a-byte", "half-hello"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
@reactor_test
async def test_leaving_during_the_handshake(gateway: Gateway, lab: Lab, sent: bytes, reset: bool) -> None:
    """A client that leaves during its handshake is an ordinary event."""
    plain = await lab.plain(gateway.owsla.port)
    if sent:
        plain.send_raw(sent)
        await pause(0.05)
    if reset:
        plain.abort()
    else:
        await plain.close()
    await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_device_that_resets(gateway: Gateway, lab: Lab) -> None:
    """A device that closes without close_notify leaves its lines and nothing else."""
    device = await lab.device(gateway)
    device.send_line(b"before")
    message = await gateway.message()
    device.abort()
    await device.closed()
    await gateway.send(message.connection_id, b"too late")
    assert (await gateway.refused()).body == b"too late"
    await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_garbage_inside_tls(gateway: Gateway, lab: Lab) -> None:
    """Bytes without an end of line close the connection beyond --max-line. Any bytes are valid within a line."""
    device = await lab.device(gateway)
    garbage = bytes(byte for byte in range(256) if byte != 10) * 3
    device.send_line(garbage)
    assert (await gateway.message()).body == garbage
    device.send_raw(garbage * 10)
    await device.closed()


@reactor_test
async def test_broken_record_inside_tls(gateway: Gateway, lab: Lab) -> None:
    """A connection with an invalid TLS record ends. The lines before it are published."""
    proxy = await lab.proxy(gateway.owsla.port)
    device = Device(proxy.port, gateway.owsla.ca)
    await device.connect()
    device.send_line(b"before")
    assert (await gateway.message()).body == b"before"
    (client_side,) = [side for side in proxy.sides if side not in proxy.servers]
    client_side.forward(b"\x17\x03\x03\x00\x20" + bytes(32))
    await device.closed()
    await gateway.round_trip(await lab.device(gateway))


# -- From a broker that isn't one --------------------------------------------------------------------------------------

_START = commands.Connection.Start(server_properties={"product": "hostile"})
_OPEN_OK = method(commands.Connection.OpenOk(), 0)
_DELIVER = method(commands.Basic.Deliver("tag", 1, False, "", "to_device"))
_CONSUME_OK = method(commands.Basic.ConsumeOk("tag"))
_HEADERS = field_table({"connection_id": (b"S", long_string(b"x"))})


def _table_with(fields: bytes) -> bytes:
    """Return a Connection.Start with these bytes as server properties."""
    arguments = b"\x00\x09" + long_string(fields) + long_string(b"PLAIN") + long_string(b"en_US")
    return raw_frame(METHOD, 0, struct.pack(">HH", 10, 10) + arguments)


def _nested(depth: int, kind: bytes = b"F") -> bytes:
    """Return a field with tables, or arrays, nested in one another."""
    name = short_string("a") if kind == b"F" else b""
    packed = b""
    for _ in range(depth):
        packed = name + kind + long_string(packed)
    return packed if kind == b"F" else short_string("a") + packed


#: Case → method of the client, and the bytes of the answer to it.
_LIES: dict[str, tuple[str, bytes]] = {
    "garbage": ("ProtocolHeader", b"\x00\xff" * 500),
    "http": ("ProtocolHeader", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "ssh": ("ProtocolHeader", b"SSH-2.0-OpenSSH_9.2\r\n"),
    "other-version": ("ProtocolHeader", b"AMQP\x00\x01\x00\x00"),
    "wrong-frame-end": ("ProtocolHeader", method(_START, 0)[:-1] + b"\x00"),
    "frame-of-4-gigabytes": ("ProtocolHeader", b"\x01\x00\x00\xff\xff\xff\xffx"),
    "unknown-frame-type": ("ProtocolHeader", raw_frame(77, 0, b"x")),
    "empty-method-frame": ("ProtocolHeader", raw_frame(METHOD, 0, b"")),
    "half-a-method": ("ProtocolHeader", raw_frame(METHOD, 0, b"\x00\x0a\x00")),
    "truncated-start": ("ProtocolHeader", raw_frame(METHOD, 0, b"\x00\x0a\x00\x0a\x00\x09\x00\x00\xff\xff")),
    "table-of-unknown-type": ("ProtocolHeader", _table_with(short_string("a") + b"?")),
    "table-value-cut-off": ("ProtocolHeader", _table_with(short_string("a") + b"S\x00\x00\xff\xffx")),
    "table-nested-deep": ("ProtocolHeader", _table_with(_nested(400))),
    "array-nested-deep": ("ProtocolHeader", _table_with(_nested(400, b"A"))),
    "table-key-not-utf8": ("ProtocolHeader", _table_with(b"\x02\xff\xfet\x01")),
    "heartbeat-first": ("ProtocolHeader", raw_frame(8, 0, b"")),
    "unknown-method": ("Connection.StartOk", raw_frame(METHOD, 0, struct.pack(">HH", 99, 99))),
    "method-of-the-client": ("Connection.StartOk", method(commands.Connection.Open(virtual_host="/"), 0)),
    "tune-to-nothing": ("Connection.StartOk", method(commands.Connection.Tune(1, 1, 1), 0)),
    "close-at-once": ("Connection.StartOk", method(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), 0)),
    "no-access": ("Connection.Open", method(commands.Connection.Close(530, "NOT_ALLOWED \xff\n", 10, 40), 0)),
    "answer-on-a-channel-never-opened": ("Channel.Open", method(commands.Channel.OpenOk(), 999)),
    "delivery-before-consume": ("Confirm.Select", _DELIVER + raw_frame(HEADER, 1, content_header(1, {}))),
    "body-before-header": ("Basic.Consume", _CONSUME_OK + _DELIVER + raw_frame(BODY, 1, b"x")),
    "body-alone": ("Basic.Consume", _CONSUME_OK + raw_frame(BODY, 1, b"x")),
    "header-alone": ("Basic.Consume", _CONSUME_OK + raw_frame(HEADER, 1, content_header(1, {"headers": _HEADERS}))),
    "header-of-another-class": (
        "Basic.Consume",
        _CONSUME_OK + _DELIVER + raw_frame(HEADER, 1, b"\x00\x0a" + content_header(1, {})[2:]) + raw_frame(BODY, 1, b"x"),
    ),
    "header-of-nothing": ("Basic.Consume", _CONSUME_OK + _DELIVER + raw_frame(HEADER, 1, b"") + raw_frame(BODY, 1, b"x")),
    "more-body-than-announced": (
        "Basic.Consume",
        _CONSUME_OK + _DELIVER + raw_frame(HEADER, 1, content_header(1, {})) + raw_frame(BODY, 1, b"x" * 100),
    ),
    "header-cut-off": (
        "Basic.Consume",
        _CONSUME_OK
        + _DELIVER
        + raw_frame(HEADER, 1, content_header(1, {"headers": _HEADERS})[:-3])
        + raw_frame(BODY, 1, b"x"),
    ),
    "property-flags-without-end": (
        "Basic.Consume",
        _CONSUME_OK
        + _DELIVER
        + raw_frame(HEADER, 1, struct.pack(">HHQ", 60, 0, 1) + b"\xff" * 9)
        + raw_frame(BODY, 1, b"x"),
    ),
    "header-table-nested-deep": (
        "Basic.Consume",
        _CONSUME_OK
        + _DELIVER
        + raw_frame(HEADER, 1, content_header(1, {"headers": long_string(_nested(5000))}))
        + raw_frame(BODY, 1, b"x"),
    ),
    "consume-ok-twice": ("Basic.Consume", _CONSUME_OK * 2),
    "body-of-16-exabytes": (
        "Basic.Consume",
        _CONSUME_OK + _DELIVER + raw_frame(HEADER, 1, content_header((1 << 64) - 1, {})) + raw_frame(BODY, 1, b"x"),
    ),
    "ack-of-nothing": ("Basic.Consume", _CONSUME_OK + method(commands.Basic.Ack(10**9, True))),
    "return-of-nothing": (
        "Basic.Consume",
        _CONSUME_OK
        + method(commands.Basic.Return(312, "NO_ROUTE", "", "x"))
        + raw_frame(HEADER, 1, content_header(1, {}))
        + raw_frame(BODY, 1, b"x"),
    ),
    "channel-closed": (
        "Queue.Declare",
        method(commands.Channel.Close(404, "NOT_FOUND - \xff\n\x1b[2J", 50, 10)),
    ),
    "silence-cut": ("Connection.Open", _OPEN_OK[:5]),
}  # fmt: skip

#: Cases after which Owsla may stay connected, but must work.
_TOLERATED = {
    "ack-of-nothing",
    "body-of-16-exabytes",
    "consume-ok-twice",
    "delivery-before-consume",
    "header-cut-off",
    "header-of-another-class",
    "header-table-nested-deep",
    "heartbeat-first",
    "property-flags-without-end",
    "return-of-nothing",
    "silence-cut",
    "table-key-not-utf8",
}


@pytest.mark.parametrize("lie", list(_LIES))
@reactor_test
async def test_nonsense_from_the_broker(lab: Lab, lie: str) -> None:
    """The connection to a broker that sends invalid bytes is closed, with one line in the log, and retried. No exception is
    unhandled.
    """
    where, answer = _LIES[lie]
    fake = await lab.fake_broker({where: answer})
    owsla = lab.new_owsla(broker=fake.url)
    owsla.launch()
    if lie in _TOLERATED:
        await until(lambda: where in fake.asked, 20, lambda: owsla.output())
        await pause(0.5)
    else:
        await until(lambda: fake.closed > 0, 20, lambda: owsla.output())
        await owsla.wait_for_line("Broker (unavailable|lost)")
        count = fake.connections
        await until(lambda: fake.connections > count, 20, lambda: owsla.output())
    assert owsla.process.poll() is None, owsla.output()
    owsla.assert_tidy()
    assert "\x1b[2J" not in owsla.output(), "control characters of a broker's reached the log"


_INTERRUPTIONS = {
    "garbage": b"\x00\xff" * 500,
    "wrong-frame-end": raw_frame(METHOD, 0, b"\x00\x0a\x00\x32", b"\x00"),
    "unknown-frame-type": raw_frame(77, 1, b"x"),
    "unknown-method": raw_frame(METHOD, 1, struct.pack(">HH", 99, 99) + b"x"),
    "delivery-to-nobody": method(commands.Basic.Deliver("nobody", 1, False, "", "to_device"))
    + raw_frame(HEADER, 1, content_header(1, {}))
    + raw_frame(BODY, 1, b"x"),
    "frame-of-4-gigabytes": b"\x03\x00\x01\xff\xff\xff\xffx",
    "close": method(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0),
    "return-of-nothing": method(commands.Basic.Return(312, "NO_ROUTE", "", "x"))
    + raw_frame(HEADER, 1, content_header(1, {}))
    + raw_frame(BODY, 1, b"x"),
    "channel-close": method(commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80)),
}


@pytest.mark.parametrize("kind", list(_INTERRUPTIONS))
@reactor_test
async def test_nonsense_in_the_middle(broker: Broker, lab: Lab, kind: str) -> None:
    """Invalid bytes on an established connection end it. Devices stay connected, and lines pass in both directions again soon.
    """
    proxy = await lab.proxy(broker.port)
    name = secrets.token_hex(4)
    options = {"from_device": f"from_{name}", "to_device": f"to_{name}", "events": ["console", "amqp"]}
    owsla = lab.new_owsla(broker=proxy.url, **options)
    await owsla.start()
    gateway = Gateway(lab, owsla, broker.url, f"from_{name}", f"to_{name}")
    await gateway.connect_backend()
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    start = owsla.mark()
    proxy.inject(_INTERRUPTIONS[kind])
    if kind != "delivery-to-nobody":  # one may be on its way when a channel is closed
        await owsla.wait_for_line(r"(?i)\bbroker\b", start=start)
    device.send_line(b"are you still there?")
    message = await gateway.backend.inbox[gateway.from_device].find(lambda message: message.body == b"are you still there?", 30)
    assert message.connection_id == connection_id
    await gateway.send(connection_id, b"yes")
    assert await device.line(30) == b"yes"
    assert "an internal error" not in owsla.output()
