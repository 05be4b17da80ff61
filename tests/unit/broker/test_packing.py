"""Tests of packed lines, read by pamqp: the message of the contract, header by header."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.broker.packing import LinePacker, LineTooLarge, Unroutable, body_size, refit
from owsla.routing_key import KeyTooLong, RoutingKey

LINES = st.binary(max_size=20) | st.integers(0, 200).map(lambda size: bytes(range(size)))
ID = b"0123abcd-0000-8000-8000-000000000001"


def packer(
    frame_max: int = 4096,
    seq_header: str = "from_device_seq",
    delivery_mode: int = 2,
    exchange: str = "",
    routing_key: str | RoutingKey = "from_device",
    narrow: bool = False,
) -> LinePacker:
    return LinePacker(
        channel=3,
        exchange=exchange,
        routing_key=routing_key,
        seq_header=seq_header,
        delivery_mode=delivery_mode,
        reply_to=b"to_device.0123abcd",
        frame_max=frame_max,
        narrow=narrow,
    )


def frames(data: bytes) -> list[tuple[int, int, Any]]:
    """Return (bytes, channel, frame of pamqp) for each frame."""
    found = []
    while data:
        size, channel, frame = pamqp_frame.unmarshal(data)
        found.append((size, channel, frame))
        data = data[size:]
    return found


class Message:
    """Packed line as pamqp reads it."""

    def __init__(self, data: bytes) -> None:
        self.sizes = [size for size, _, _ in frames(data)]
        self.channels = {channel for _, channel, _ in frames(data)}
        method, header, *parts = (frame for _, _, frame in frames(data))
        assert isinstance(method, commands.Basic.Publish)
        assert isinstance(header, ContentHeader)
        self.method = method
        self.header = header
        self.properties = header.properties
        self.bodies: list[bytes] = []
        for part in parts:
            assert isinstance(part, ContentBody)
            self.bodies.append(part.value or b"")
        self.body = b"".join(self.bodies)


class PackTests(SynchronousTestCase):
    def test_another_queue_for_answers(self) -> None:
        """After a change of the node name, lines ask for answers on the new queue at once, also on existing connections. A name
        of another length would not fit packed templates.
        """
        one = packer()
        template = one.template(ID, None)
        self.assertEqual(Message(one.pack(template, 0, b"a", 5)).properties.reply_to, "to_device.0123abcd")
        one.answer_to(b"to_device.89abcdef")
        message = Message(one.pack(template, 1, b"b", 5))
        self.assertEqual((message.properties.reply_to, message.properties.delivery_mode), ("to_device.89abcdef", 2))
        with self.assertRaises(ValueError):
            one.answer_to(b"to_device.89abcdef0")

    def test_the_contracts_message(self) -> None:
        """A line is one mandatory publish with exactly the headers and properties of the contract, with their types."""
        one = packer()
        data = one.pack(one.template(ID, None), 7, b"\xff hello", 1_700_000_000)
        message = Message(data)
        self.assertEqual(message.channels, {3})
        self.assertEqual((message.method.exchange, message.method.routing_key), ("", "from_device"))
        self.assertEqual((message.method.mandatory, message.method.immediate), (True, False))
        self.assertEqual((message.header.class_id, message.header.weight), (60, 0))
        self.assertEqual(
            {name: value for name, value in message.properties if value not in (None, "")},
            {
                "headers": {"connection_id": ID.decode(), "from_device_seq": 7},
                "delivery_mode": 2,
                "timestamp": datetime.fromtimestamp(1_700_000_000, UTC),
                "reply_to": "to_device.0123abcd",
                "app_id": "owsla",
            },
        )
        self.assertEqual(message.body, b"\xff hello")

    def headers_on_the_wire(self, data: bytes) -> list[tuple[bytes, bytes]]:
        offset = 8 + int.from_bytes(data[3:7])
        size = int.from_bytes(data[offset + 3 : offset + 7])
        return wire.split_table(wire.split_properties(data[offset + 7 : offset + 7 + size], 12)["headers"])

    def test_narrow_numbers(self) -> None:
        """For clients that cannot read `l`, a number is a 32-bit integer if it fits, and a 64-bit one otherwise. All else is
        unchanged.
        """
        for exchange in ("", "lines"):
            key = RoutingKey("{connection_id}") if exchange else "from_device"
            one, wide = (packer(exchange=exchange, routing_key=key, narrow=narrow) for narrow in (True, False))
            template = one.template(ID, "d")
            for seq, value in (
                (0, b"I" + bytes(4)),
                (2**31 - 1, b"I\x7f\xff\xff\xff"),
                (2**31, b"l" + (2**31).to_bytes(8)),
                (2**62, b"l" + (2**62).to_bytes(8)),
                (5, b"I" + (5).to_bytes(4)),
            ):
                for line in (b"", b"x", b"x" * 10_000):
                    data = one.pack(template, seq, line, 7)
                    self.assertEqual(self.headers_on_the_wire(data)[-1], (b"from_device_seq", value))
                    message, other = Message(data), Message(wide.pack(wide.template(ID, "d"), seq, line, 7))
                    self.assertEqual(dict(message.properties), dict(other.properties))
                    self.assertEqual((message.body, body_size(data)), (line, len(line)))

    def test_field_types(self) -> None:
        """Ids are long strings, the number is a 64-bit integer (`l`)."""
        one = packer(seq_header="n")
        data = one.pack(one.template(ID, "gerät"), 7, b"x", 0)
        self.assertEqual(
            self.headers_on_the_wire(data),
            [
                (b"connection_id", b"S" + wire.long_string(ID)),
                (b"device_id", b"S" + wire.long_string("gerät")),
                (b"n", b"l" + (7).to_bytes(8)),
            ],
        )

    def test_traced(self) -> None:
        """A line with a traceparent is the same message with one more header, whatever its size, its number and its route.
        Lines after it do not have the header.
        """
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for narrow in (True, False):
            for key in ("from_device", RoutingKey("{connection_id}")):
                one = packer(routing_key=key, narrow=narrow)
                template = one.template(ID, "d")
                for seq in (0, 2**31 - 1, 2**31):
                    for line in (b"", b"x", b"x" * 10_000):
                        plain = one.pack(template, seq, line, 7)
                        traced = one.pack_traced(template, seq, line, 7, traceparent)
                        self.assertEqual(one.pack(template, seq, line, 7), plain)
                        header, *others = self.headers_on_the_wire(traced)
                        self.assertEqual(header, (b"traceparent", b"S" + wire.long_string(traceparent)))
                        self.assertEqual(others, self.headers_on_the_wire(plain))
                        message, other = Message(traced), Message(plain)
                        found: dict[str, Any] = dict(message.properties)
                        self.assertEqual(found["headers"].pop("traceparent"), traceparent)
                        self.assertEqual(found, dict(other.properties))
                        self.assertEqual((message.body, body_size(traced)), (line, len(line)))
                        self.assertEqual(message.method.routing_key, other.method.routing_key)
                        self.assertEqual(Message(refit(traced, 4096)).body, line)

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(0, (1 << 63) - 1),
        LINES,
        st.integers(0, (1 << 32) - 1),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        st.integers(20, 120),
    )
    def test_any_line(self, seq: int, line: bytes, second: int, device_id: str | None, frame_max: int) -> None:
        """A line of any length has the same bytes in pamqp, in the minimum number of body frames."""
        one = packer(frame_max, delivery_mode=1)
        message = Message(one.pack(one.template(ID, device_id), seq, line, second))
        headers: dict[str, Any] = {"connection_id": ID.decode(), "from_device_seq": seq}
        if device_id is not None:
            headers["device_id"] = device_id
        self.assertEqual(message.properties.headers, headers)
        self.assertEqual(message.properties.timestamp, datetime.fromtimestamp(second, UTC))
        self.assertEqual(message.properties.delivery_mode, 1)
        self.assertEqual((message.header.body_size, message.body), (len(line), line))
        self.assertEqual(len(message.bodies), -(-len(line) // (frame_max - 8)))
        self.assertTrue(all(size <= frame_max for size in message.sizes[2:]))

    def test_an_empty_line(self) -> None:
        """An empty line is a message without a body frame."""
        one = packer()
        message = Message(one.pack(one.template(ID, None), 0, b"", 5))
        self.assertEqual((message.header.body_size, message.bodies), (0, []))

    def test_the_largest_body_of_one_frame(self) -> None:
        """The largest body of one frame has one frame, and a byte more needs two."""
        one = packer(108)
        template = one.template(ID, None)
        self.assertEqual([len(part) for part in Message(one.pack(template, 0, b"x" * 100, 5)).bodies], [100])
        self.assertEqual([len(part) for part in Message(one.pack(template, 0, b"x" * 101, 5)).bodies], [100, 1])

    def test_routing_keys(self) -> None:
        """With a template each connection has its own routing key, on the configured exchange."""
        one = packer(exchange="lines", routing_key=RoutingKey("{node}.{device_id}"))
        self.assertFalse(one.one_route)
        for device_id, key in (("door-7", "0123abcd.door-7"), (None, f"0123abcd.{ID.decode()}")):
            message = Message(one.pack(one.template(ID, device_id), 0, b"x", 5))
            self.assertEqual((message.method.exchange, message.method.routing_key), ("lines", key))
            self.assertTrue(message.method.mandatory)
        fixed = packer(exchange="lines", routing_key=RoutingKey("all"))
        message = Message(fixed.pack(fixed.template(ID, "door-7"), 0, b"x", 5))
        self.assertEqual((message.method.exchange, message.method.routing_key, fixed.one_route), ("lines", "all", True))

    def test_a_name_is_no_template(self) -> None:
        """The name of a queue is used literally, with braces."""
        one = packer(routing_key="{node}")
        message = Message(one.pack(one.template(ID, None), 0, b"x", 5))
        self.assertEqual((message.method.routing_key, one.one_route), ("{node}", True))

    def test_unroutable(self) -> None:
        """A routing key that is too long has no template. Packing with its placeholder raises that error."""
        one = packer(exchange="lines", routing_key=RoutingKey("{device_id}"))
        error = self.assertRaises(KeyTooLong, one.template, ID, "x" * 256)
        for line in (b"", b"x", b"x" * 9000):
            self.assertIs(self.assertRaises(KeyTooLong, one.pack, Unroutable(error), 0, line, 5), error)

    def test_connections_do_not_mix(self) -> None:
        """Lines of several connections, in several seconds, each have their own headers and time."""
        one = packer()
        templates = [one.template(b"%d" % number, None) for number in range(3)]
        for number, second in ((0, 1), (1, 1), (2, 2), (0, 2), (1, 1)):
            message = Message(one.pack(templates[number], number, b"x", second))
            self.assertEqual((message.properties.headers or {})["connection_id"], str(number))
            self.assertEqual(message.properties.timestamp, datetime.fromtimestamp(second, UTC))

    def test_limit(self) -> None:
        """After `limit` frames have the size of the broker, also for existing templates."""
        one = packer(4096)
        template = one.template(ID, None)
        one.limit(58)
        self.assertEqual([len(part) for part in Message(one.pack(template, 0, b"x" * 120, 5)).bodies], [50, 50, 20])
        one.limit(4096)
        self.assertEqual(len(Message(one.pack(template, 0, b"x" * 120, 5)).bodies), 1)

    def test_largest(self) -> None:
        """A line above the maximum of the broker is not packed, for one frame or several, and for any later frame size. A line
        of exactly the maximum is.
        """
        for largest in (10, 4088, 4089, 10000):
            for frame_max in (4096, 131072):
                pack = packer()
                template = pack.template(ID, None)
                pack.largest(largest)
                pack.limit(frame_max)
                message = Message(pack.pack(template, 0, b"x" * largest, 0))
                self.assertEqual(message.body, b"x" * largest)
                self.assertLessEqual(max(message.sizes), frame_max)
                error = self.assertRaises(LineTooLarge, pack.pack, template, 1, b"x" * (largest + 1), 0)
                self.assertIn(f"a line of {largest + 1} bytes", str(error))

    def test_body_size(self) -> None:
        """A packed line knows the length of its body."""
        for size in (0, 1, 4088, 10000):
            pack = packer(exchange="x" * 99)
            self.assertEqual(body_size(pack.pack(pack.template(ID, "door"), 0, b"x" * size, 0)), size)

    def test_shared(self) -> None:
        """Device ids of the same length share their common part, unless each has its own routing key."""
        one = packer()
        first, second, longer = one.template(ID, "d1"), one.template(ID[::-1], "d2"), one.template(ID, "d10")
        self.assertIs(first.before_size, second.before_size)
        self.assertNotEqual(first.before_size, longer.before_size)
        keyed = packer(exchange="lines", routing_key=RoutingKey("{device_id}"))
        self.assertNotEqual(keyed.template(ID, "d1").before_size, keyed.template(ID, "d2").before_size)


class RefitTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=60)
    @given(LINES, st.integers(20, 120), st.integers(20, 120))
    @example(b"x" * 200, 120, 20)
    @example(b"x" * 200, 20, 120)
    def test_refit(self, line: bytes, before: int, after: int) -> None:
        """A line packed again for smaller frames is the same message in smaller body frames."""
        one = packer(before)
        data = one.pack(one.template(ID, None), 1, line, 5)
        again = refit(data, after)
        first, second = Message(data), Message(again)
        self.assertEqual(second.body, line)
        self.assertEqual(second.channels, {3})
        self.assertTrue(all(size <= after for size in second.sizes[2:]))
        self.assertEqual(again[: sum(second.sizes[:2])], data[: sum(first.sizes[:2])])
        if after >= before:
            self.assertEqual(again, data)
