"""Tests of the body of a batch: it is MessagePack as others read it, and is taken apart again as it was put together."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.broker.batch_packing import BatchPacker, first_line, packed_body, split_elements
from owsla.broker.packing import LineTooLarge
from owsla.routing_key import KeyTooLong, RoutingKey

ID = b"0123abcd-0000-8000-8000-000000000001"


def packer(**more: Any) -> BatchPacker:
    arguments = {
        "channel": 1,
        "exchange": "",
        "routing_key": "from_device",
        "delivery_mode": 2,
        "reply_to": b"to_device.0123abcd",
        "frame_max": 131072,
        **more,
    }
    return BatchPacker(most=100, **arguments)


LINES = st.one_of(st.binary(max_size=300), st.sampled_from([255, 256, 65535, 65536, 200_000]).map(bytes))
SEQS = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**32, 2**53, 2**63]))
DEVICES = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
ELEMENTS = st.tuples(SEQS, LINES, st.integers(0, 2**45), DEVICES)


class ElementTests(SynchronousTestCase):
    @given(st.lists(ELEMENTS, min_size=1, max_size=5))
    def test_body(self, wanted: list[tuple[int, bytes, int, str | None]]) -> None:
        """The `msgpack` package reads the elements that were written, and they can be taken apart again."""
        packing = packer()
        written = [
            packing.element(packing.template(ID, device), seq, line, ms / 1000) for seq, line, ms, device in wanted
        ]
        body = b"".join(written)
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(body)
        read = list(unpacker)
        self.assertEqual(
            [(id.encode(), seq, device, line) for id, seq, _, device, line in read],
            [(ID, seq, device, line) for seq, line, _, device in wanted],
        )
        for (_, _, ms, _), element in zip(wanted, read, strict=True):
            self.assertLessEqual(abs(element[2] - ms), 1, "a float has the time to the millisecond")
        self.assertEqual(split_elements(body), written)
        self.assertEqual(first_line(body), (ID, wanted[0][0]))

    @given(st.lists(LINES, min_size=1, max_size=20), SEQS, DEVICES)
    def test_several(self, lines: list[bytes], seq: int, device: str | None) -> None:
        """The elements of several lines are those of each line."""
        packing = packer()
        template = packing.template(ID, device)
        each = [packing.element(template, number, line, 7.5) for number, line in enumerate(lines, seq)]
        self.assertEqual(packing.elements(template, seq, lines, 7.5), each)

    def test_time(self) -> None:
        """The time is that of each line, in whole milliseconds since the epoch."""
        packing = packer()
        template = packing.template(ID, None)
        for received, ms in ((1.0005, 1000), (1.0015, 1001), (1.0, 1000), (0.0, 0), (1795974820.459, 1795974820459)):
            self.assertEqual(msgpack.unpackb(packing.element(template, 0, b"", received))[2], ms)

    def test_longest_device_id(self) -> None:
        """A device id has up to 255 bytes."""
        for device in ("x" * 31, "x" * 32, "x" * 255, "ü" * 127):
            packing = packer()
            element = packing.element(packing.template(ID, device), 0, b"x", 0.0)
            self.assertEqual(msgpack.unpackb(element)[3], device)

    def test_limit(self) -> None:
        """An element above the size limit of the broker is an error that says what the line needs."""
        packing = packer()
        template = packing.template(ID, None)
        packing.largest(200)
        packing.element(template, 0, b"x" * 100, 0.0)
        error = self.assertRaises(LineTooLarge, packing.element, template, 0, b"x" * 190, 0.0)
        self.assertRegex(str(error), r"a line of 190 bytes makes a batch of 2\d\d, and the limit of the broker is 200")

    def test_not_a_batch(self) -> None:
        """The first line of something else is an error, also of a body that ends early."""
        whole = packer().element(packer().template(ID, None), 7, b"x", 0.0)
        self.assertEqual(first_line(whole), (ID, 7))
        for body in (b"", b"\x94" + whole[1:], *(whole[:size] for size in range(44))):
            self.assertRaises(ValueError, first_line, body)


class MessageTests(SynchronousTestCase):
    def pack(self, packing: BatchPacker, *lines: bytes, traceparent: str | None = None) -> bytes:
        template = packing.template(ID, "door-8")
        batch = template.route.open(1234)
        for seq, line in enumerate(lines):
            batch.add(None, seq, packing.element(template, seq, line, 1234.5))
        template.route.close()
        return packing.pack(template.route, batch, traceparent)

    def parse(self, packed: bytes) -> tuple[list[tuple[int, int]], dict[str, Any], int]:
        frames = []
        properties: dict[str, Any] = {}
        size = -1
        while packed:
            kind, channel, length = packed[0], int.from_bytes(packed[1:3]), int.from_bytes(packed[3:7])
            payload, packed = packed[7 : 7 + length], packed[8 + length :]
            frames.append((kind, channel))
            if kind == wire.FRAME_HEADER:
                size = int.from_bytes(payload[4:12])
                properties = wire.decode_properties(payload, 12)
        return frames, properties, size

    def test_headers(self) -> None:
        """A batch has the headers of lines that its lines share, in front of their number; and those of a trace."""
        traceparent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
        packed = self.pack(packer(door="meters"), b"one", b"two", traceparent=traceparent)
        frames, properties, size = self.parse(packed)
        self.assertEqual(frames, [(1, 1), (2, 1), (3, 1)])
        self.assertEqual(properties["headers"], {"traceparent": traceparent, "door": "meters", "owsla_batch": 2})
        self.assertEqual(properties["timestamp"], 1234)
        self.assertEqual(size, len(packed_body(packed)))

    def test_large(self) -> None:
        """A body above the size of a frame takes several."""
        packed = self.pack(packer(frame_max=4096), b"x" * 10_000)
        self.assertEqual([kind for kind, _ in self.parse(packed)[0]], [1, 2, 3, 3, 3])
        self.assertEqual(msgpack.unpackb(packed_body(packed))[4], b"x" * 10_000)

    def test_reply_to(self) -> None:
        """Replies go to the queue of the node, also after that has changed."""
        packing = packer()
        packing.answer_to(b"to_device.99999999")
        self.assertEqual(self.parse(self.pack(packing, b"x"))[1]["reply_to"], "to_device.99999999")


class RouteTests(SynchronousTestCase):
    def test_one(self) -> None:
        """All connections share the route to a queue, or of a fixed key."""
        for key in ("from_device", RoutingKey("fixed")):
            packing = packer(routing_key=key)
            self.assertTrue(packing.one_route)
            self.assertIs(packing.template(ID, None).route, packing.template(b"x" * 36, "y").route)

    def test_keys(self) -> None:
        """Connections share a route if they have the same routing key. A route goes with its last connection."""
        packing = packer(exchange="lines", routing_key=RoutingKey("{device_id}"))
        one, same, other = packing.template(ID, "a"), packing.template(b"x" * 36, "a"), packing.template(ID, "b")
        self.assertIs(one.route, same.route)
        self.assertIsNot(one.route, other.route)
        self.assertEqual(len(packing._routes), 2)
        del one, same
        self.assertEqual(len(packing._routes), 1)

    def test_long_key(self) -> None:
        """A routing key that is too long is an error of this connection."""
        packing = packer(exchange="lines", routing_key=RoutingKey("{device_id}"))
        self.assertRaises(KeyTooLong, packing.template, ID, "x" * 256)
