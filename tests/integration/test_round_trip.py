"""Tests of lines from devices to a back end and back: the contract of both brokers, from outside.

The device uses the TLS of Twisted, the back end pika. Where a client library would hide a detail, the test reads the bytes.
"""

from __future__ import annotations

import secrets
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.ssl import TLSVersion

from ._support.certificates import Authority
from ._support.device import Device
from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, pause, reactor_test
from ._support.wire import field_table, long_string, read_table

#: Default of --max-line.
MAX_LINE = 16384


@pytest.fixture(scope="module")
def shared_gateway(broker: Broker, module_lab: Lab) -> Gateway:
    """Return one Owsla with default options for most of the module."""
    return block_on(module_lab.gateway(broker.url))


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Iterator[Gateway]:
    """Return the shared gateway with empty inboxes."""
    for inbox in shared_gateway.backend.inbox.values():
        inbox.clear()
    yield shared_gateway
    shared_gateway.owsla.assert_tidy()


# -- There and back ----------------------------------------------------------------------------------------------------


@reactor_test
async def test_there_and_back(gateway: Gateway, lab: Lab) -> None:
    """A line of a device is a message on from_device. A message on to_device is a line to its device, ended by CR LF."""
    device = await lab.device(gateway)
    device.send_line(b"a line")
    message = await gateway.message()
    assert message.body == b"a line"
    await gateway.send(message.connection_id, b"an answer")
    assert await device.line() == b"an answer"
    assert device.protocol.received == len(b"an answer\r\n")


@reactor_test
async def test_answer_by_reply_to(gateway: Gateway, lab: Lab) -> None:
    """An answer published as mandatory to the queue in reply_to reaches the device too."""
    device = await lab.device(gateway)
    device.send_line(b"a line")
    message = await gateway.message()
    headers = {"connection_id": message.connection_id}
    await gateway.backend.publish(message.properties.reply_to, b"an answer", headers, mandatory=True)
    assert await device.line() == b"an answer"


@reactor_test
async def test_many_answers(gateway: Gateway, lab: Lab) -> None:
    """Each of many messages reaches the device, exactly once while nothing fails."""
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    wanted = [b"answer %d" % number for number in range(500)]
    for body in wanted:
        await gateway.send(connection_id, body)
    assert sorted(await device.lines.take(len(wanted))) == sorted(wanted)
    await gateway.round_trip(device)  # and no others


@reactor_test
async def test_devices_are_told_apart(gateway: Gateway, lab: Lab) -> None:
    """A line carries the connection id of its own device, and a message for one device reaches no other."""
    devices = [await lab.device(gateway) for _ in range(8)]
    for round_ in range(20):
        for number, device in enumerate(devices):
            device.send_line(b"%d %d" % (number, round_))
    heard: dict[int, set[str]] = {number: set() for number in range(len(devices))}
    for message in await gateway.messages(20 * len(devices)):
        heard[int(message.body.split()[0])].add(message.connection_id)
    assert all(len(ids) == 1 for ids in heard.values())
    ids = {number: found.pop() for number, found in heard.items()}
    assert len(set(ids.values())) == len(devices)
    for round_ in range(20):
        for number, connection_id in ids.items():
            await gateway.send(connection_id, b"%d %d" % (number, round_))
    for number, device in enumerate(devices):
        lines = await device.lines.take(20)
        assert sorted(lines) == sorted(b"%d %d" % (number, round_) for round_ in range(20))


@reactor_test
async def test_nothing_is_left_unacknowledged(broker: Broker, lab: Lab) -> None:
    """A message delivered to its device is acknowledged: it is not redelivered after Owsla is killed."""
    gateway = await lab.gateway(broker.url)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for number in range(30):
        await gateway.send(connection_id, b"%d" % number)
    await device.lines.take(30)
    await gateway.round_trip(device)
    gateway.owsla.kill()
    # The device may have the last message before the broker has its acknowledgement.
    assert await gateway.backend.count(gateway.to_device) <= 1
    assert await gateway.backend.count(gateway.from_device) == 0


# -- The message that a line becomes -----------------------------------------------------------------------------------


@reactor_test
async def test_message_as_bytes(broker: Broker, lab: Lab) -> None:
    """The message of a line has exactly the parts of the contract, each with the AMQP type of the contract."""
    gateway = await lab.gateway(broker.url, backend=False)
    wire = await lab.wire(broker.port)
    device = await lab.device(gateway)
    before = int(time.time())
    device.send_line(b"\xff\x00 not text \xce")
    properties, body = await wire.get(gateway.from_device)
    assert body == b"\xff\x00 not text \xce"
    headers = read_table(properties.pop("headers"))
    kind, value = headers.pop("connection_id")
    connection_id = value[4:].decode()
    assert (kind, value) == (b"S", long_string(str(uuid.UUID(connection_id)).encode()))
    assert headers.pop("from_device_seq") == (b"l", struct.pack(">q", 0))
    assert headers == {}
    (timestamp,) = struct.unpack(">Q", properties.pop("timestamp"))
    assert before <= timestamp <= time.time()
    reply_to = f"{gateway.to_device}.{connection_id[:8]}".encode()
    assert properties == {
        "delivery_mode": b"\x02",
        "reply_to": bytes([len(reply_to)]) + reply_to,
        "app_id": b"\x05owsla",
    }


@reactor_test
async def test_published_to_the_default_exchange(gateway: Gateway, lab: Lab) -> None:
    """from_device and to_device match a plain durable declaration of a back end."""
    await gateway.backend.call(lambda channel: channel.queue_declare(gateway.from_device, durable=True))
    await gateway.backend.call(lambda channel: channel.queue_declare(gateway.to_device, durable=True))
    device = await lab.device(gateway)
    await gateway.round_trip(device)


@reactor_test
async def test_connection_id(gateway: Gateway, lab: Lab) -> None:
    """A connection id is a UUID of version 8 in canonical text. Its first 8 digits are those of the node, the rest differ."""
    ids = [await gateway.introduce(await lab.device(gateway)) for _ in range(5)]
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert parsed.variant == uuid.RFC_4122
        assert text[14] == "8"
    assert len({text[:8] for text in ids}) == 1
    assert len({text[9:13] for text in ids}) > 1
    assert len({text[24:] for text in ids}) == len(ids)


@reactor_test
async def test_queues_as_rabbitmq_has_them(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """All queues are durable. from_device and to_device have no arguments; the other queues have those of the contract."""
    gateway = await lab.gateway(rabbitmq.url)
    message_id = await gateway.introduce(await lab.device(gateway))
    listed = await rabbitmq.ctl("list_queues", "name", "durable", "auto_delete", "owner_pid", "arguments")
    queues = {line.split("\t")[0]: line.split("\t")[1:] for line in listed.splitlines()}
    durable = ["true", "false", ""]
    for queue in (gateway.from_device, gateway.to_device):
        *rest, arguments = queues[queue]
        assert rest == durable
        assert arguments in ("[]", '[{"x-queue-type","classic"}]'), "RabbitMQ 4 shows the type that it has chosen itself"
    *rest, arguments = queues[gateway.undeliverable]
    assert rest == durable
    assert '{"x-max-length",100000}' in arguments
    assert '{"x-overflow","reject-publish"}' in arguments
    *rest, arguments = queues[f"{gateway.to_device}.{message_id[:8]}"]
    assert rest == durable  # in particular not exclusive: the queue outlives the AMQP connection
    assert '{"x-single-active-consumer",true}' in arguments
    expires = int(arguments.split('{"x-expires",')[1].split("}")[0])
    assert expires > 60_000, "the node's queue must outlive an ordinary outage"


@reactor_test
async def test_names_are_options(broker: Broker, lab: Lab) -> None:
    """--seq-header names the header with the number of a line, --seq-type its type, and --delivery-mode the delivery mode."""
    gateway = await lab.gateway(broker.url, seq_header="line-number", seq_type="int32", delivery_mode=1)
    device = await lab.device(gateway)
    device.send_line(b"one", b"two")
    messages = await gateway.messages(2)
    assert [message.headers["line-number"] for message in messages] == [0, 1]
    assert [message.properties.delivery_mode for message in messages] == [1, 1]
    assert "from_device_seq" not in messages[0].headers


# -- Lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" ", id="space"),
        pytest.param(b"\x00", id="nul"),
        pytest.param("zażółć".encode(), id="utf-8"),
        pytest.param(b"\xff\xfe\x80", id="not-utf-8"),
        pytest.param(bytes(byte for byte in range(256) if byte not in b"\r\n"), id="every-byte"),
        pytest.param(b"a\rb", id="cr-inside"),
        pytest.param(b"\ra", id="cr-first"),
        pytest.param(b"\xce" * 8, id="frame-end"),
        pytest.param(b"x" * (MAX_LINE - 1), id="nearly-longest"),
        pytest.param(b"x" * MAX_LINE, id="longest"),
    ],
)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@reactor_test
async def test_line_bytes(gateway: Gateway, lab: Lab, body: bytes, ending: bytes) -> None:
    """The bytes of a line arrive unchanged, without LF or CR LF."""
    device = await lab.device(gateway)
    device.send_raw(body + ending)
    message = await gateway.message()
    assert message.body == body
    await gateway.round_trip(device)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="nul"),
        pytest.param(bytes(byte for byte in range(256) if byte not in b"\r\n"), id="every-byte"),
        pytest.param(b"x" * MAX_LINE, id="longest"),
    ],
)
@reactor_test
async def test_answer_bytes(gateway: Gateway, lab: Lab, body: bytes) -> None:
    """The bytes of a body reach the device unchanged, followed by CR LF."""
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await gateway.send(connection_id, body)
    assert await device.line() == body
    await gateway.round_trip(device)


@reactor_test
async def test_many_lines_in_one_record(gateway: Gateway, lab: Lab) -> None:
    """Lines that arrive together are separate messages, numbered from 0, in order."""
    device = await lab.device(gateway)
    lines = [b"line %d" % number for number in range(1000)]
    device.send_line(*lines)
    messages = await gateway.messages(len(lines))
    assert [message.body for message in messages] == lines
    assert [message.seq for message in messages] == list(range(len(lines)))


@reactor_test
async def test_a_line_in_many_records(gateway: Gateway, lab: Lab) -> None:
    """Lines that arrive byte by byte are whole, wherever they were cut, also between CR and LF."""
    device = await lab.device(gateway)
    for byte in b"first\r\nsecond\n\r\nthird\r\n":
        device.send_raw(bytes([byte]))
        await pause(0)  # Twisted merges the writes of one reactor turn into one record
    messages = await gateway.messages(4)
    assert [message.body for message in messages] == [b"first", b"second", b"", b"third"]
    assert [message.seq for message in messages] == [0, 1, 2, 3]


@reactor_test
async def test_unterminated_rest(broker: Broker, lab: Lab) -> None:
    """Bytes without an end of line before the close are not published, but reported."""
    gateway = await lab.gateway(broker.url)  # a gateway of its own: beyond 20 events of a kind in a second the log only counts
    device = await lab.device(gateway)
    device.send_raw(b"whole\nrest")
    message = await gateway.message()
    assert message.body == b"whole"
    await device.close()
    line = await gateway.owsla.wait_for_line("Device disconnected: " + message.connection_id)
    assert "4 bytes of an unterminated line" in line.string
    await gateway.round_trip(await lab.device(gateway))  # takes the next message, which is not the rest


@pytest.mark.parametrize("tail", [pytest.param(b"\nlater\n", id="terminated"), pytest.param(b"x" * 100_000, id="endless")])
@reactor_test
async def test_too_long_line(gateway: Gateway, lab: Lab, tail: bytes) -> None:
    """A line longer than --max-line closes the connection and emits an event. No part of it is published."""
    device = await lab.device(gateway)
    start = gateway.owsla.mark()
    device.send_line(b"before")
    message = await gateway.message()
    device.send_raw(b"x" * (MAX_LINE + 1) + tail)
    await device.closed()
    line = await gateway.owsla.wait_for_line("Line too long", start=start)
    assert message.connection_id in line.string
    await gateway.round_trip(await lab.device(gateway))
    assert not gateway.backend.inbox[gateway.from_device].clear()


@reactor_test
async def test_lines_before_a_too_long_one_count(gateway: Gateway, lab: Lab) -> None:
    """Complete lines in one write with a line that is too long are published."""
    device = await lab.device(gateway)
    device.send_raw(b"one\ntwo\n" + b"x" * (2 * MAX_LINE) + b"\nthree\n")
    messages = await gateway.messages(2)
    assert [message.body for message in messages] == [b"one", b"two"]
    await device.closed()
    await gateway.round_trip(await lab.device(gateway))


@reactor_test
async def test_custom_delimiter(broker: Broker, lab: Lab) -> None:
    """A configured delimiter is used unchanged in both directions. CR and LF are then ordinary bytes."""
    gateway = await lab.gateway(broker.url, delimiter=";;")
    device = await lab.device(gateway, delimiter=b";;")
    device.send_raw(b"one\r\n;;two;three;;\r;;")
    messages = await gateway.messages(3)
    assert [message.body for message in messages] == [b"one\r\n", b"two;three", b"\r"]
    await gateway.send(messages[0].connection_id, b"an\r\nanswer")
    assert await device.line() == b"an\r\nanswer"
    assert device.protocol.received == len(b"an\r\nanswer;;")


@reactor_test
async def test_bodies_of_many_frames(broker: Broker, lab: Lab) -> None:
    """Lines and answers much longer than an AMQP frame arrive whole, in both directions."""
    gateway = await lab.gateway(broker.url, max_line=1_000_000, write_buffer=4_000_000)
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for size in (131_064, 131_065, 262_128, 1_000_000):  # sizes around one frame, two frames, and the limit
        line = secrets.token_hex(size // 2 + 1)[:size].encode()
        device.send_line(line)
        assert (await gateway.message()).body == line
        await gateway.send(connection_id, line)
        assert await device.line() == line


# -- TLS and time ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ecdsa", "rsa"])
def tls_gateway(request: pytest.FixtureRequest, broker: Broker, module_lab: Lab) -> tuple[Gateway, Path]:
    """Return an Owsla with an ECDSA or an RSA certificate, and the CA to trust."""
    authority = Authority(module_lab.folder / f"authority-{request.param}-{secrets.token_hex(4)}", request.param)
    cert, key = authority.issue("server")
    return block_on(module_lab.gateway(broker.url, cert=cert, key=key)), authority.ca


@pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@reactor_test
async def test_tls(tls_gateway: tuple[Gateway, Path], lab: Lab, version: TLSVersion) -> None:
    """TLS 1.2 and 1.3 work, with ECDSA and with RSA certificates."""
    gateway, ca = tls_gateway
    device = await lab.device(gateway, ca=ca, tls=version)
    assert device.tls_version == {TLSVersion.TLSv1_2: "TLSv1.2", TLSVersion.TLSv1_3: "TLSv1.3"}[version]
    await gateway.round_trip(device)


@pytest.fixture(scope="module")
def hasty_gateway(broker: Broker, module_lab: Lab) -> Gateway:
    """Return an Owsla with short timeouts."""
    return block_on(module_lab.gateway(broker.url, handshake_timeout="1s", idle_timeout="2s"))


@reactor_test
async def test_handshake_timeout(hasty_gateway: Gateway, lab: Lab) -> None:
    """A connection that has not completed its handshake within --handshake-timeout is closed."""
    began = time.monotonic()
    half = await lab.plain(hasty_gateway.owsla.port)
    half.send_raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the first bytes of a ClientHello
    await half.closed()
    assert 0.9 <= time.monotonic() - began <= 9  # by default it would take 15 s


@reactor_test
async def test_idle_timeout(hasty_gateway: Gateway, lab: Lab) -> None:
    """A connection without a line in either direction for --idle-timeout is closed. A line in either direction keeps it open.
    """
    silent = await lab.device(hasty_gateway)
    talker = await lab.device(hasty_gateway)
    listener = await lab.device(hasty_gateway)
    connection_id = await hasty_gateway.introduce(listener)
    began = time.monotonic()
    while time.monotonic() - began < 5:
        talker.send_line(b"still here")
        await hasty_gateway.send(connection_id, b"are you?")
        assert await listener.line() == b"are you?"
        await pause(0.4)
    assert silent.protocol.lost is not None
    assert talker.is_open
    assert listener.is_open
    for device in (talker, listener):
        await device.closed(10)


@reactor_test
async def test_bytes_without_a_line_are_idle(hasty_gateway: Gateway, lab: Lab) -> None:
    """A device that sends bytes but never a complete line is idle."""
    device = await lab.device(hasty_gateway)
    began = time.monotonic()
    while device.is_open and time.monotonic() - began < 10:
        device.send_raw(b"x")
        await pause(0.2)
    assert not device.is_open


# -- What back ends write in headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param(b"S", bytes, id="long-string"),
        pytest.param(b"x", bytes, id="byte-array"),
        pytest.param(b"S", bytes.upper, id="upper-case"),
    ],
)
@reactor_test
async def test_connection_id_types(gateway: Gateway, lab: Lab, broker: Broker, kind: bytes, change: Any) -> None:
    """connection_id may be a long string or a byte array, in lower or upper case."""
    device = await lab.device(gateway)
    connection_id = change((await gateway.introduce(device)).encode())
    wire = await lab.wire(broker.port)
    headers = field_table({"connection_id": (kind, long_string(connection_id))})
    await wire.publish(gateway.to_device, b"found", {"headers": headers})
    assert await device.line() == b"found"


def _integers() -> list[Any]:
    codes = {"b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "d": "d", "f": "f", "T": "Q"}
    found = [pytest.param(code.encode(), ">" + pack, id=code) for code, pack in codes.items()]
    return [*found, pytest.param(b"S", "", id="text"), pytest.param(b"x", "", id="byte-array")]


@pytest.mark.parametrize(("kind", "pack"), _integers())
@reactor_test
async def test_to_device_seq_types(gateway: Gateway, lab: Lab, broker: Broker, kind: bytes, pack: str) -> None:
    """to_device_seq may be an integer of any AMQP width, a double, a timestamp, or decimal text."""
    device = await lab.device(gateway)
    connection_id = (await gateway.introduce(device)).encode()
    wire = await lab.wire(broker.port)
    for number in range(3):
        value = struct.pack(pack, number) if pack else long_string(b"%d" % number)
        headers = field_table({"connection_id": (b"S", long_string(connection_id)), "to_device_seq": (kind, value)})
        await wire.publish(gateway.to_device, b"%d" % number, {"headers": headers})
        assert await device.line() == b"%d" % number
    assert not gateway.backend.inbox[gateway.undeliverable].clear()


@reactor_test
async def test_every_field_type_passes(gateway: Gateway, lab: Lab, broker: Broker) -> None:
    """Headers that Owsla does not use may have any type of RabbitMQ's grammar: the message is delivered."""
    device = await lab.device(gateway)
    connection_id = (await gateway.introduce(device)).encode()
    table = field_table({"in": (b"S", long_string(b"side"))})
    array = b"I\x00\x00\x00\x01" + b"S" + long_string(b"two") + b"V"
    fields = {
        "t": (b"t", b"\x01"), "b": (b"b", b"\xff"), "B": (b"B", b"\xff"), "s": (b"s", b"\xff\xff"),
        "u": (b"u", b"\xff\xff"), "I": (b"I", b"\xff" * 4), "i": (b"i", b"\xff" * 4), "l": (b"l", b"\xff" * 8),
        "f": (b"f", struct.pack(">f", 1.5)), "d": (b"d", struct.pack(">d", 1.5)), "D": (b"D", b"\x02\x00\x00\x00\x07"),
        "S": (b"S", long_string(b"\xff")), "A": (b"A", long_string(array)), "T": (b"T", bytes(8)), "F": (b"F", table),
        "V": (b"V", b""), "x": (b"x", long_string(b"\xff")), "zażółć": (b"S", long_string("zażółć".encode())),
        "connection_id": (b"S", long_string(connection_id)),
    }  # fmt: skip
    wire = await lab.wire(broker.port)
    await wire.publish(gateway.to_device, b"odd", {"headers": field_table(fields)})
    assert await device.line() == b"odd"


# -- What can't be delivered -------------------------------------------------------------------------------------------


@reactor_test
async def test_no_connection_id(gateway: Gateway, lab: Lab) -> None:
    """A message without connection_id goes to the queue of undeliverable messages, also if it had no headers."""
    node = (await gateway.introduce(await lab.device(gateway)))[:8]
    await gateway.backend.publish(gateway.to_device, b"for whom?", {"other": "header"})
    message = await gateway.refused()
    assert message.body == b"for whom?"
    assert message.headers == {"other": "header", "owsla_reason": "no-connection-id", "owsla_node": node}
    await gateway.backend.publish(gateway.to_device, b"nothing at all", None)
    message = await gateway.refused()
    assert message.body == b"nothing at all"
    assert message.headers == {"owsla_reason": "no-connection-id", "owsla_node": node}


@pytest.mark.parametrize(
    "connection_id",
    [
        pytest.param("not a uuid", id="text"),
        pytest.param("", id="empty"),
        pytest.param(7, id="integer"),
        pytest.param(None, id="void"),
        pytest.param(b"\xff\x00", id="bytes"),
        pytest.param({"a": "table"}, id="table"),
        pytest.param("0" * 36, id="no-dashes"),
        pytest.param("x" * 5000, id="long"),
    ],
)
@reactor_test
async def test_bad_connection_id(gateway: Gateway, lab: Lab, connection_id: object) -> None:
    """An invalid connection_id goes to the queue of undeliverable messages unchanged."""
    await gateway.send(connection_id, b"for whom?")
    message = await gateway.refused()
    assert message.body == b"for whom?"
    assert message.headers["owsla_reason"] == "bad-connection-id"
    assert message.headers["connection_id"] == connection_id


@reactor_test
async def test_unknown_connection(broker: Broker, lab: Lab) -> None:
    """A message for a closed connection of this node goes unchanged to the queue of undeliverable messages."""
    gateway = await lab.gateway(broker.url)  # a gateway of its own: beyond 20 events of a kind in a second the log only counts
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    await device.close()
    await gateway.owsla.wait_for_line("Device disconnected: " + connection_id)
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "gzip",
        "correlation_id": "correlation",
        "message_id": "message",
        "type": "type",
        "app_id": "back end",
        "priority": 3,
        "delivery_mode": 2,
        "timestamp": 1_700_000_000,
    }
    headers = {"connection_id": connection_id, "number": 1 << 40, "list": [1, "two", None], "nested": {"a": True}}
    await gateway.backend.publish(gateway.to_device, b"\xffgone", headers, **properties)
    message = await gateway.refused()
    assert message.body == b"\xffgone"
    assert message.headers == headers | {"owsla_reason": "unknown-connection", "owsla_node": connection_id[:8]}
    assert {name: getattr(message.properties, name) for name in properties} == properties


@reactor_test
async def test_unknown_node(broker: Broker, lab: Lab) -> None:
    """A message for an unknown node goes to the queue of undeliverable messages, at the latest some time after --node-grace."""
    gateway = await lab.gateway(broker.url, node_grace="1s")
    connection_id = "00000000-0000-8000-8000-000000000000"
    await gateway.send(connection_id, b"for whom?")
    message = await gateway.refused(20)
    assert message.body == b"for whom?"
    assert message.headers["owsla_reason"] == "unknown-connection"
    assert message.headers["connection_id"] == connection_id


@reactor_test
async def test_what_rabbitmq_acts_on_moves_to_headers(gateway: Gateway, lab: Lab) -> None:
    """user_id, expiration and CC of an undeliverable message are moved to headers, which RabbitMQ does not interpret."""
    copies = f"copies_{secrets.token_hex(4)}"
    await gateway.backend.call(lambda channel: channel.queue_declare(copies, exclusive=True))
    headers = {"connection_id": "nobody's", "CC": [copies]}
    await gateway.backend.publish(gateway.to_device, b"all three", headers, user_id="guest", expiration="60000")
    message = await gateway.refused()
    assert message.body == b"all three"
    assert message.properties.user_id is None
    assert message.properties.expiration is None
    assert "CC" not in message.headers
    assert message.headers["owsla_user_id"] == "guest"
    assert message.headers["owsla_expiration"] == "60000"
    assert message.headers["owsla_cc"] == [copies]
    assert await gateway.backend.count(copies) <= 1, "the copies were delivered again"


@reactor_test
async def test_undeliverable_stops_nothing(gateway: Gateway, lab: Lab) -> None:
    """Undeliverable messages between others do not affect the others."""
    device = await lab.device(gateway)
    connection_id = await gateway.introduce(device)
    for number in range(100):
        await gateway.send("nobody's", b"lost %d" % number)
        await gateway.send(connection_id, b"%d" % number)
    assert sorted(await device.lines.take(100)) == sorted(b"%d" % number for number in range(100))
    refused = await gateway.backend.inbox[gateway.undeliverable].take(100)
    assert sorted(message.body for message in refused) == sorted(b"lost %d" % number for number in range(100))


@reactor_test
async def test_client_that_asks_for_the_certificate_of_the_name(gateway: Gateway, lab: Lab) -> None:
    """The development certificate is valid for localhost, 127.0.0.1 and ::1 by name or address, and for no other name."""
    for name in ("localhost", "127.0.0.1"):
        await gateway.round_trip(await lab.device(gateway, server_name=name))
    stranger: Device = lab.waiting_device(gateway, server_name="elsewhere.example")
    with pytest.raises(Exception, match=r"(?i)certificate|VerificationError|mismatch"):
        await stranger.connect()
