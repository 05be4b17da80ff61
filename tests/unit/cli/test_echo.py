"""What `owsla echo` reads of a line, and how it answers: on a channel that is played by hand."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp, WireError
from owsla.broker.client import BrokerProtocol
from owsla.broker.headers import read
from owsla.broker.packing import LinePacker
from owsla.cli._echo import Answerer, Line, answer_header, read_line
from owsla.cli._running import Session
from owsla.runtime.end_of_turn import Turn

CID = b"01234567-89ab-8cde-8f01-23456789abcd"
NODE = b"to_device.01234567"


def header(**properties: Any) -> bytes:
    """A content header's payload with these properties."""
    return wire.header_payload(3, wire.encode_properties(properties))


def line(seq: int | None = 0, reply_to: bytes | None = NODE, connection_id: bytes | None = CID) -> bytes:
    """The content header of a device's line."""
    headers: dict[str, Any] = {}
    if connection_id is not None:
        headers["connection_id"] = connection_id.decode()
    if seq is not None:
        headers["from_device_seq"] = seq
    return header(headers=headers, delivery_mode=2, reply_to=reply_to, timestamp=Timestamp(1), app_id="owsla")


class ReadLineTests(SynchronousTestCase):
    """A line's content header."""

    def test_as_the_gateway_packs_it(self) -> None:
        """What the gateway packs is read back."""
        packer = LinePacker(
            channel=1, exchange="", routing_key="q", seq_header="nr", delivery_mode=2, reply_to=NODE, frame_max=4096
        )
        packed = packer.pack(packer.template(CID, "pump"), 7, b"abc", 1)
        after_method = int.from_bytes(packed[3:7]) + wire.FRAME_OVERHEAD
        start = after_method + 7
        payload = packed[start : start + int.from_bytes(packed[after_method + 3 : start])]
        self.assertEqual(read_line(payload, b"nr"), Line(CID, 7, NODE))

    def test_all_properties(self) -> None:
        """Properties before and between those looked for are skipped."""
        full = header(
            content_type="text/plain",
            content_encoding="utf-8",
            headers={"x": [1, {"y": None}], "connection_id": "c", "from_device_seq": 3, "z": 1.5},
            delivery_mode=2,
            priority=1,
            correlation_id="reply_to",
            reply_to="q",
            message_id="m",
        )
        self.assertEqual(read_line(full, b"from_device_seq"), Line(b"c", 3, b"q"))

    def test_nothing_there(self) -> None:
        """What is not there is `None`; so is an empty reply_to, and a number that is none."""
        self.assertEqual(read_line(header(), b"seq"), Line(None, None, None))
        odd = header(headers={"connection_id": 5, "seq": "x"}, reply_to="")
        self.assertEqual(read_line(odd, b"seq"), Line(None, None, None))
        for number in (True, -1, 1 << 63):
            self.assertEqual(read_line(header(headers={"seq": number}), b"seq").seq, None)

    @given(st.binary(max_size=80))
    def test_nonsense(self, data: bytes) -> None:
        """Whatever comes, nothing but `WireError` is raised."""
        for payload in (data, header(headers={"connection_id": "c"})[:18] + data, line()[: len(data)] + data):
            try:
                read_line(payload, b"from_device_seq")
            except WireError:
                pass


class AnswerTests(SynchronousTestCase):
    """An answer's content header."""

    def test_is_what_the_gateway_reads(self) -> None:
        """The gateway finds the connection and the number in it, and nothing that it would have to look at further."""
        self.assertEqual(read(answer_header(CID, 7, 3)), (CID, 7, False))
        self.assertEqual(read(answer_header(CID, None, 3)), (CID, None, False))

    def test_is_persistent(self) -> None:
        """It outlives the broker's restart, as the line did."""
        payload = answer_header(CID, 7, 3)
        self.assertEqual(wire.read_header_payload(payload)[1], 3)
        self.assertEqual(wire.decode_properties(payload, 12)["delivery_mode"], 2)


class FakeClient:
    """A connection of which everything that is written is kept."""

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
    """The life of an answer."""

    def setUp(self) -> None:
        clock: Any = Clock()  # its parameters have other names than the protocol's
        self.clock = clock
        self.client = FakeClient()
        self.said: list[str] = []
        session = Session(self.clock, "echo", patient=True)
        self.patch(session, "say", self.said.append)
        self.answerer = Answerer(
            self.clock,
            Turn(self.clock),
            session,
            cast(BrokerProtocol, self.client),
            to_device="to_device",
            seq_header=b"from_device_seq",
            prefix=b"> ",
        )

    def turn(self) -> None:
        self.clock.advance(0)

    def test_to_reply_to(self) -> None:
        """An answer goes to the queue that the line names, with the line's number, connection and bytes."""
        self.answerer.deliver(1, False, line(5), b"\xff")
        headers = {"connection_id": CID.decode(), "to_device_seq": 5}
        self.assertEqual(self.client.published, [(NODE.decode(), headers, b"> \xff")])

    def test_to_to_device(self) -> None:
        """A line without reply_to is answered on to_device; one without a number has an answer without one."""
        self.answerer.deliver(1, False, line(None, None), b"")
        self.assertEqual(self.client.published, [("to_device", {"connection_id": CID.decode()}, b"> ")])

    def test_acknowledged_when_confirmed(self) -> None:
        """A line is acknowledged when its answer is confirmed, not before; many of a turn with one frame."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(tag), b"x")
        self.turn()
        self.assertEqual(self.client.acks, [])
        self.answerer.confirmed(2, True)
        self.answerer.confirmed(3, False)
        self.turn()
        self.assertEqual(self.client.acks, [(3, True)])

    def test_confirmed_out_of_order(self) -> None:
        """Confirms come in any order; what is confirmed ahead is acknowledged alone."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(tag), b"x")
        self.answerer.confirmed(2, False)
        self.turn()
        self.answerer.confirmed(3, True)
        self.turn()
        self.assertEqual(self.client.acks, [(2, False), (3, True)])

    def test_redelivered(self) -> None:
        """A line that comes again is answered again with the same number: the gateway sends it once."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.deliver(2, True, line(5), b"x")
        self.assertEqual(self.client.published[0], self.client.published[1])

    def test_returned(self) -> None:
        """An answer to a node's queue that is not there goes to to_device, and only its confirm there counts."""
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

    def test_returned_without_a_number(self) -> None:
        """Of answers that look the same, as many count as returned as were returned."""
        for tag in (1, 2, 3):
            self.answerer.deliver(tag, False, line(None), b"x")
        for _ in range(2):
            self.answerer.returned("NO_ROUTE", NODE.decode(), answer_header(CID, None, 3), b"> x")
        self.answerer.confirmed(3, True)
        self.assertEqual([queue for queue, _, _ in self.client.published[3:]], ["to_device", "to_device"])

    def test_no_to_device(self) -> None:
        """Where to_device is not there either, it is declared and the answer published again, after a wait."""
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
        """An answer that the broker refuses is published again after a wait, and then counts."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.refused(1, False)
        self.turn()
        self.assertEqual(self.client.acks, [])
        self.clock.advance(10)
        self.assertEqual(self.client.published[1], self.client.published[0])

    def test_stop(self) -> None:
        """With its connection it leaves no timer behind."""
        self.answerer.deliver(1, False, line(5), b"x")
        self.answerer.refused(1, False)
        self.answerer.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_ours(self) -> None:
        """What has no connection is dropped with a word, so that it holds up nothing."""
        self.answerer.deliver(1, False, line(0, NODE, None), b"x")
        self.answerer.deliver(2, False, header(headers={"connection_id": "c"})[:20], b"x")
        self.turn()
        self.assertEqual((self.client.published, self.client.acks, len(self.said)), ([], [(2, True)], 2))

    def test_channel_ends(self) -> None:
        """A channel or a consumer that ends takes the connection with it, which comes back; once."""
        self.answerer.cancelled("owsla echo")
        self.answerer.closed(Failure(RuntimeError("404")))
        self.assertEqual([str(reason) for reason in self.client.aborted][1:], ["404"])
        self.client.closed = True
        self.answerer.closed(Failure(RuntimeError("again")))
        self.assertEqual(len(self.client.aborted), 2)
