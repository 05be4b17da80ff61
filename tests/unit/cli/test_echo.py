"""The lines that `owsla echo` reads, and its answers, on a channel that the tests drive."""

from __future__ import annotations

from typing import Any, cast

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp
from owsla.broker.batch_packing import BatchPacker, packed_body
from owsla.broker.client import BrokerClient
from owsla.broker.headers import read, trace
from owsla.broker.packing import LinePacker
from owsla.cli._echo import UNCONFIRMED, Answerer, Line, answer_properties, read_line, read_lines
from owsla.cli._running import Session
from owsla.letter import Trace
from owsla.runtime.end_of_turn import EndOfTurn

CID = b"01234567-89ab-8cde-8f01-23456789abcd"
NODE = b"to_device.01234567"
TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1")


def header(**properties: Any) -> bytes:
    """Return the payload of a content header with these properties."""
    return wire.header_payload(3, wire.encode_properties(properties))


def line(seq: int | None = 0, reply_to: bytes | None = NODE, connection_id: bytes | None = CID) -> bytes:
    """Return the content header of a line from a device."""
    headers: dict[str, Any] = {}
    if connection_id is not None:
        headers["connection_id"] = connection_id.decode()
    if seq is not None:
        headers["from_device_seq"] = seq
    return header(headers=headers, delivery_mode=2, reply_to=reply_to, timestamp=Timestamp(1), app_id="owsla")


def batch(*lines: tuple[int, bytes], device_id: str | None = None) -> bytes:
    """Return the body of a batch with lines of one connection, each its number and its bytes."""
    return b"".join(msgpack.packb((CID.decode(), seq, 1_763_805_600_000, device_id, text)) for seq, text in lines)


def batch_header(reply_to: bytes | None = NODE, **headers: Any) -> bytes:
    """Return the content header of a batch."""
    return header(headers={"owsla_batch": 1, **headers}, reply_to=reply_to, content_type="application/x-msgpack")


class ReadLineTests(SynchronousTestCase):
    """Content headers of lines."""

    def test_as_the_gateway_packs_it(self) -> None:
        """The header of a line is read as the gateway packs it."""
        packer = LinePacker(
            channel=1, exchange="", routing_key="q", seq_header="nr", delivery_mode=2, reply_to=NODE, frame_max=4096
        )
        packed = packer.pack(packer.template(CID, "pump"), 7, b"abc", 1)
        after_method = int.from_bytes(packed[3:7]) + wire.FRAME_OVERHEAD
        start = after_method + 7
        payload = packed[start : start + int.from_bytes(packed[after_method + 3 : start])]
        self.assertEqual(read_line(payload, "nr"), Line(CID.decode(), 7, NODE.decode()))

    def test_batch_as_the_gateway_packs_it(self) -> None:
        """The lines of a batch are read as the gateway packs them, also those that are longer than a frame."""
        packer = BatchPacker(
            channel=1, exchange="", routing_key="q", delivery_mode=2, reply_to=NODE, frame_max=4096, door="meters", most=9
        )
        template = packer.template(CID, "pump 1")
        lines = [(7, b""), (2**32, b"\xff\xfe"), (2**40, b"\x00" * 16384)]
        batch = template.route.open(1_763_805_600)
        for seq, text in lines:
            batch.add(None, seq, packer.element(template, seq, text, 1_763_805_600.5))
        packed = packer.pack(template.route, batch)
        after_method = int.from_bytes(packed[3:7]) + wire.FRAME_OVERHEAD
        start = after_method + 7
        payload = packed[start : start + int.from_bytes(packed[after_method + 3 : start])]
        expected = [(Line(CID.decode(), seq, NODE.decode()), text) for seq, text in lines]
        self.assertEqual(read_lines(payload, packed_body(packed), "nr"), expected)

    def test_trace(self) -> None:
        """The trace context of a line is read if it is valid."""
        for headers, expected in (
            ({"traceparent": TRACE.traceparent, "tracestate": "a=1"}, TRACE),
            ({"traceparent": TRACE.traceparent}, Trace(TRACE.traceparent)),
            ({"traceparent": TRACE.traceparent + "\r\n", "tracestate": "a=1"}, None),
            ({"traceparent": 7}, None),
        ):
            read = read_line(header(headers={"connection_id": "c", **headers}), "seq")
            self.assertEqual(read, Line("c", None, "", expected))

    def test_other_messages(self) -> None:
        """A message without a connection id is not a line."""
        self.assertIsNone(read_line(header(), "seq"))
        self.assertIsNone(read_line(header(headers={"connection_id": 5, "seq": 1}, reply_to="q"), "seq"))

    def test_missing_and_malformed(self) -> None:
        """A missing reply_to is empty; a missing or malformed number is `None`."""
        self.assertEqual(read_line(header(headers={"connection_id": "c"}), "seq"), Line("c", None, ""))
        for number in ("x", True, -1, 1 << 63):
            line = read_line(header(headers={"connection_id": "c", "seq": number}), "seq")
            self.assertEqual(line, Line("c", None, ""))

    def test_batch(self) -> None:
        """Each line of a batch has its connection and number, and the reply_to and the trace of the batch."""
        read = read_lines(batch_header(traceparent=TRACE.traceparent), batch((7, b"a"), (8, b"\xff")), "nr")
        trace = Trace(TRACE.traceparent)
        self.assertEqual(
            read, [(Line(CID.decode(), seq, NODE.decode(), trace), text) for seq, text in ((7, b"a"), (8, b"\xff"))]
        )

    @given(st.binary(max_size=80))
    def test_malformed_batch(self, data: bytes) -> None:
        """A batch that cannot be decoded raises `ValueError` with the reason."""
        with self.assertRaisesRegex(ValueError, "^a batch that cannot be decoded: byte [0-9]+: "):
            read_lines(batch_header(), batch((1, b"a")) + b"\xc1" + data, "nr")

    @given(st.binary(max_size=80))
    def test_nonsense(self, data: bytes) -> None:
        """A malformed header raises nothing."""
        for payload in (data, header(headers={"connection_id": "c"})[:18] + data, line()[: len(data)] + data):
            read_line(payload, "from_device_seq")


def answer_header(connection_id: bytes, seq: int | None, size: int) -> bytes:
    """Return the content header of an answer."""
    return wire.header_payload(size, wire.encode_properties(answer_properties(connection_id.decode(), seq)))


class AnswerTests(SynchronousTestCase):
    """Properties of answers."""

    def test_as_the_gateway_reads_them(self) -> None:
        """The gateway finds the connection and the number, and nothing else that it needs, also in a trace."""
        traced = wire.header_payload(3, wire.encode_properties(answer_properties(CID.decode(), 7, TRACE)))
        self.assertEqual((read(traced), trace(traced)), ((CID, 7, False), TRACE))
        self.assertEqual(read(answer_header(CID, 7, 3)), (CID, 7, False))
        self.assertEqual(read(answer_header(CID, None, 3)), (CID, None, False))

    def test_is_persistent(self) -> None:
        """An answer survives a restart of the broker, as a line does."""
        self.assertEqual(answer_properties("c", 7)["delivery_mode"], 2)


class FakeClient:
    """A connection that keeps everything written to it."""

    frame_max = 131072
    closed = False

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any], bytes]] = []
        self.acks: list[tuple[int, bool]] = []
        self.aborted: list[BaseException] = []

    def write(self, data: bytes) -> None:
        frames: list[Any] = []
        while data:
            consumed, _, frame = pamqp_frame.unmarshal(data)
            frames.append(frame)
            data = data[consumed:]
        method, head, *bodies = frames
        assert method.mandatory
        assert method.exchange == ""
        self.published.append((method.routing_key, head.properties.headers, b"".join(body.value for body in bodies)))

    def ack(self, channel: int, tag: int, multiple: bool) -> None:
        self.acks.append((tag, multiple))

    def abort(self, reason: BaseException) -> None:
        self.aborted.append(reason)

    async def open_channel(self, number: int, handler: Any) -> Any:
        class Channel:
            async def queue_declare(self, **arguments: Any) -> None: ...

        return Channel()

    async def end_channel(self, number: int) -> None: ...


class AnswererTests(SynchronousTestCase):
    """Answers, from the line to its acknowledgement."""

    def setUp(self) -> None:
        clock: Any = Clock()  # the names of its parameters differ from those of the protocol
        self.clock = clock
        self.client = FakeClient()
        self.said: list[str] = []
        session = Session(self.clock, "echo", patient=True)
        self.patch(session, "log", self.said.append)
        self.answerer = Answerer(
            self.clock,
            EndOfTurn(self.clock),
            session,
            cast(BrokerClient, self.client),
            to_device="to_device",
            seq_header="from_device_seq",
            prefix=b"> ",
        )

    def turn(self) -> None:
        self.clock.advance(0)

    def test_to_reply_to(self) -> None:
        """An answer goes to the reply_to of the line, with its connection, number and bytes."""
        self.answerer.deliver(1, False, line(5), b"\xff")
        headers = {"connection_id": CID.decode(), "to_device_seq": 5}
        self.assertEqual(self.client.published, [(NODE.decode(), headers, b"> \xff")])

    def test_in_the_trace(self) -> None:
        """An answer carries the trace context of its line, also when it is published again."""
        traced = {"connection_id": "c", "traceparent": TRACE.traceparent, "tracestate": TRACE.tracestate}
        self.answerer.deliver(1, False, header(headers=traced, reply_to=NODE), b"x")
        self.answerer.refused(1, False)
        self.clock.advance(10)
        self.assertEqual(self.client.published, [(NODE.decode(), traced, b"> x")] * 2)

    def test_to_to_device(self) -> None:
        """A line without reply_to is answered on to_device, and one without a number without a number."""
        self.answerer.deliver(1, False, line(None, None), b"")
        self.assertEqual(self.client.published, [("to_device", {"connection_id": CID.decode()}, b"> ")])

    def test_acknowledged_when_confirmed(self) -> None:
        """Lines are acknowledged when their answers are confirmed, those of one reactor turn with one frame."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(tag), b"x")
        self.turn()
        self.assertEqual(self.client.acks, [])
        self.answerer.confirmed(2, True)
        self.answerer.confirmed(3, False)
        self.turn()
        self.assertEqual(self.client.acks, [(3, True)])

    def test_confirmed_out_of_order(self) -> None:
        """Confirms may come in any order; a line whose answer is confirmed early is acknowledged alone."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(tag), b"x")
        self.answerer.confirmed(2, False)
        self.turn()
        self.answerer.confirmed(3, True)
        self.turn()
        self.assertEqual(self.client.acks, [(2, False), (3, True)])

    def test_redelivered(self) -> None:
        """A redelivered line is answered again with the same number, so that the gateway sends one of the answers."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.deliver(2, True, line(5), b"x")
        self.assertEqual(self.client.published[0], self.client.published[1])

    def test_returned(self) -> None:
        """An answer to the missing queue of a node goes to to_device, and only its confirm there acknowledges the line."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.deliver(2, False, line(6), b"y")
        self.answerer.returned("NO_ROUTE", NODE.decode(), answer_header(CID, 5, 3), b"> x")
        self.answerer.confirmed(2, True)
        self.turn()
        self.assertEqual(self.client.acks, [(2, False)])
        self.assertEqual([queue for queue, _, _ in self.client.published], [NODE.decode(), NODE.decode(), "to_device"])
        self.assertEqual(self.client.published[2][1:], self.client.published[0][1:])
        self.answerer.confirmed(3, False)
        self.turn()
        self.assertEqual(self.client.acks[1:], [(1, True)])

    def test_batch(self) -> None:
        """Each line of a batch is answered, and the batch is acknowledged once, when the last answer is confirmed."""
        self.answerer.deliver(1, False, batch_header(), batch(*((seq, b"%d" % seq) for seq in range(3))))
        self.answerer.deliver(2, False, line(3), b"3")
        expected = [(NODE.decode(), {"connection_id": CID.decode(), "to_device_seq": seq}, b"> %d" % seq) for seq in range(4)]
        self.assertEqual(self.client.published, expected)
        for tag in (3, 1):
            self.answerer.confirmed(tag, False)
            self.turn()
        self.assertEqual(self.client.acks, [])
        self.answerer.confirmed(4, True)
        self.turn()
        self.assertEqual(self.client.acks, [(2, True)])

    def test_batch_in_part_returned(self) -> None:
        """Of a batch the returned and refused answers are published again, and the batch waits for their confirms."""
        self.answerer.deliver(1, False, batch_header(), batch((5, b"x"), (6, b"y"), (7, b"z")))
        self.answerer.returned("NO_ROUTE", NODE.decode(), answer_header(CID, 6, 3), b"> y")
        self.answerer.confirmed(2, True)
        self.answerer.refused(3, False)
        self.clock.advance(10)
        again = [(queue, body) for queue, _, body in self.client.published[3:]]
        self.assertEqual(again, [("to_device", b"> y"), (NODE.decode(), b"> z")])
        self.answerer.confirmed(4, False)
        self.turn()
        self.assertEqual(self.client.acks, [])
        self.answerer.confirmed(5, False)
        self.turn()
        self.assertEqual(self.client.acks, [(1, True)])

    def test_many_batches(self) -> None:
        """While many answers are unconfirmed, further messages wait, in their order."""
        size = UNCONFIRMED // 2 + 1
        for tag in range(4):
            self.answerer.deliver(tag + 1, False, batch_header(), batch(*((tag * size + each, b"x") for each in range(size))))
        self.answerer.deliver(5, False, line(4 * size), b"x")
        numbers = [headers["to_device_seq"] for _, headers, _ in self.client.published]
        self.assertEqual(numbers, list(range(2 * size)))
        self.answerer.confirmed(size, True)
        self.assertEqual(len(self.client.published), 3 * size)
        self.answerer.confirmed(3 * size, True)
        self.answerer.confirmed(4 * size + 1, True)
        self.turn()
        numbers = [headers["to_device_seq"] for _, headers, _ in self.client.published]
        self.assertEqual((numbers, self.client.acks), (list(range(4 * size + 1)), [(5, True)]))

    def test_malformed_batch(self) -> None:
        """A batch that cannot be decoded is dropped with one line that has the reason, and the next one is answered."""
        self.answerer.deliver(1, False, batch_header(), batch((5, b"x")) + b"\xc1")
        self.answerer.deliver(2, False, batch_header(), b"")
        self.answerer.deliver(3, False, batch_header(), batch((5, b"x")))
        self.answerer.confirmed(1, False)
        self.turn()
        self.assertEqual((len(self.client.published), self.client.acks), (1, [(3, True)]))
        end = len(batch((5, b"x")))
        kind = "a byte that MessagePack does not use"
        self.assertEqual(
            self.said,
            [
                f"dropped a batch that cannot be decoded: byte {end}: an array is expected, not {kind}",
                "dropped a batch that cannot be decoded: byte 0: there is no line",
            ],
        )

    def test_returned_without_a_number(self) -> None:
        """Of answers with equal headers, as many are published again as were returned."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(None), b"x")
        for _ in range(2):
            self.answerer.returned("NO_ROUTE", NODE.decode(), answer_header(CID, None, 3), b"> x")
        self.answerer.confirmed(3, True)
        self.assertEqual([queue for queue, _, _ in self.client.published[3:]], ["to_device", "to_device"])

    def test_no_to_device(self) -> None:
        """If to_device is missing too, it is declared and the answer is published again, after a wait."""
        self.answerer.deliver(1, False, line(5, None), b"x")
        self.answerer.returned("NO_ROUTE", "to_device", answer_header(CID, 5, 3), b"> x")
        self.answerer.confirmed(1, False)
        self.turn()
        self.assertEqual((self.client.acks, len(self.client.published)), ([], 1))
        self.assertEqual(len(self.said), 1)
        self.clock.advance(10)
        self.assertEqual(self.client.published[1], self.client.published[0])
        self.answerer.confirmed(2, False)
        self.turn()
        self.assertEqual(self.client.acks, [(1, True)])

    def test_refused(self) -> None:
        """An answer that the broker refuses is published again after a wait."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.refused(1, False)
        self.turn()
        self.assertEqual(self.client.acks, [])
        self.clock.advance(10)
        self.assertEqual(self.client.published[1], self.client.published[0])

    def test_stop(self) -> None:
        """After the end of the connection no timer is left."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.refused(1, False)
        self.answerer.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_other_messages(self) -> None:
        """Messages without a connection id are dropped with a message, so that they block nothing."""
        self.answerer.deliver(1, False, line(0, NODE, None), b"x")
        self.answerer.deliver(2, False, header(headers={"connection_id": "c"})[:20], b"x")
        self.turn()
        self.assertEqual((self.client.published, self.client.acks, len(self.said)), ([], [(2, True)], 2))

    def test_channel_ends(self) -> None:
        """The end of the channel or of the consumer aborts the connection, once, so that it is opened again."""
        self.answerer.cancelled("owsla echo")
        self.answerer.closed(Failure(RuntimeError("404")))
        self.assertEqual([str(reason) for reason in self.client.aborted][1:], ["404"])
        self.client.closed = True
        self.answerer.closed(Failure(RuntimeError("again")))
        self.assertEqual(len(self.client.aborted), 2)
