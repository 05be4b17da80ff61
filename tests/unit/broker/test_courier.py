"""The courier: records, forwards and reports, and the messages they are made of."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from owsla.amqp import wire
from owsla.broker import courier, publisher
from owsla.broker import queues as topology
from owsla.broker.absent_nodes import AbsentNodes
from owsla.broker.courier import LONGEST_SELECTOR, PUBLISH_CHANNEL, CourierRole, NodeQueues
from owsla.broker.refusals import RefusalHistory
from owsla.events import Event, Undeliverable, UndeliverableLost
from owsla.letter import Hop, Letter, Reached, Trace

from .fakes import BrokerTestCase, Publish, Result, Server, Source, message

RECORDS = "to_device.undeliverable"
ELSEWHERE = b"89abcdef"
FORWARDS = "to_device.89abcdef"
GRACE = 10.0
TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1")


class Base(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server(heartbeat=1000)
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.source = Source()
        self.devices: dict[bytes, str] = {}
        self.courier = self.make()

    def make(self) -> CourierRole:
        return CourierRole(
            self.clock,
            self.events.append,
            undeliverable=topology.undeliverable_queue("to_device", 1000),
            to_device="to_device",
            node=lambda: b"0123abcd",
            device=self.devices.get,
            node_grace=GRACE,
            held_limit=3,
        )

    def connect(self) -> None:
        if self.server.client.transport is not None:
            self.server = Server(self.clock, heartbeat=1000)
        self.server.ready()
        up = Result(self.courier.up(self.server.client))
        self.server.settle()
        assert up.done
        assert up.failure is None

    def lose(self) -> None:
        self.server.drop()
        self.courier.down()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.settle()

    def taken(self) -> list[Publish]:
        return self.server.take()

    def bodies(self) -> list[bytes]:
        return [one.body for one in self.server.take()]

    def letters(self, *tags: int, **more: Any) -> list[Letter]:
        return [self.source.letter(tag, body=b"%d" % tag, **more) for tag in tags]

    def looks(self, act: Callable[[], None]) -> int:
        """Return how many lines of the courier and its publisher run in `act`, as a measure of its cost."""
        count = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in (courier.__file__, publisher.__file__):
                return None
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(before)
        return count

    def refuse(self) -> bool:
        """Refuse all that was published, and wait for the next attempt. Return whether it is on another connection."""
        for one in self.taken():
            self.server.nack(PUBLISH_CHANNEL, one.tag)
        self.pass_time(10)
        if not self.server.lost:
            return False
        self.courier.down()
        self.connect()
        return True


class SettingUpTests(Base):
    def test_the_undeliverable_queue(self) -> None:
        """The undeliverable queue is declared durable and bounded before anything is published; confirms are on."""
        self.connect()
        (declared,) = self.server.called("queue.declare")
        self.assertEqual((declared["queue"], declared["durable"]), (RECORDS, True))
        self.assertEqual(declared["arguments"], {"x-max-length": 1000, "x-overflow": "reject-publish"})
        self.assertEqual(len(self.server.called("confirm.select")), 1)


class RecordTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_recorded(self) -> None:
        """A record is the original message with a reason and the node; the original is acknowledged once it is confirmed."""
        letter = self.source.letter(7, body=b"\xff", headers={"connection_id": "x", "n": 1}, message_id="m", expiration="5")
        self.courier.record(letter, "late")
        (one,) = self.taken()
        self.assertEqual((one.queue, one.body, one.method["exchange"], one.method["mandatory"]), (RECORDS, b"\xff", "", True))
        self.assertEqual(
            one.properties,
            {
                "headers": {
                    "connection_id": "x",
                    "n": 1,
                    "owsla_expiration": "5",
                    "owsla_reason": "late",
                    "owsla_node": "0123abcd",
                },
                "message_id": "m",
            },
        )
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([], 1))
        self.server.ack(PUBLISH_CHANNEL, one.tag)
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([7], 0))
        self.assertEqual(self.events, [Undeliverable("late", "some-id", None)])
        self.assertEqual(self.courier.recorded, {"late": 1})

    def test_selector(self) -> None:
        """The event of a message for many devices has its selector, shortened, without what could forge a line of the log."""
        long = f"{'x' * LONGEST_SELECTOR}… (5000 characters)"
        for selector, shown in (("doors", "doors"), ("a\nb", "a\\nb"), ("", ""), ("x" * 5000, long)):
            self.courier.record(self.source.letter(7, connection_id=None, selector=selector), "bad-selector")
            self.assertEqual(self.events[-1], Undeliverable("bad-selector", None, None, shown))

    def test_device(self) -> None:
        """Both events name the device if its connection was open when the message was recorded."""
        self.connect()
        self.devices[b"some-id"] = "d1"
        self.courier.record(self.source.letter(7, connection_id=b"some-id"), "late")
        self.courier.record(self.source.letter(8, connection_id=b"some-id"), "late")
        first, second = self.taken()
        self.devices.clear()
        self.server.ack(PUBLISH_CHANNEL, first.tag)
        self.server.nack(PUBLISH_CHANNEL, second.tag)
        self.assertEqual(self.events[:2], [Undeliverable("late", "some-id", "d1")] * 2)
        lost = self.events[-1]
        assert isinstance(lost, UndeliverableLost)
        self.assertEqual((lost.connection_id, lost.device_id), ("some-id", "d1"))

    def test_trace(self) -> None:
        """The trace context of a message stays on its record, and the events have its traceparent, also if nobody has read it
        before.
        """
        headers = {"connection_id": "some-id", "traceparent": TRACE.traceparent, "tracestate": "a=1"}
        for tag in (7, 8):
            self.courier.record(self.source.letter(tag, headers=headers), "late")
        first, second = self.taken()
        self.assertEqual(first.headers, {**headers, "owsla_reason": "late", "owsla_node": "0123abcd"})
        self.server.ack(PUBLISH_CHANNEL, first.tag)
        self.server.nack(PUBLISH_CHANNEL, second.tag)
        undeliverable, _, lost = self.events
        self.assertEqual(undeliverable, Undeliverable("late", "some-id", None, traceparent=TRACE.traceparent))
        assert isinstance(lost, UndeliverableLost)
        self.assertEqual(lost.traceparent, TRACE.traceparent)

    def test_trace_of_minimal_properties(self) -> None:
        """A record without the properties of its message has the trace context all the same."""
        letter = self.source.letter(7, b"x", header=wire.header_payload(4, b"\x00\x02"))
        letter.trace = TRACE
        self.courier.record(letter, "bad-connection-id")
        (one,) = self.taken()
        self.assertEqual((one.headers["traceparent"], one.headers["tracestate"]), (TRACE.traceparent, "a=1"))

    def test_hostile_trace(self) -> None:
        """A traceparent of any size and type harms nothing: the message is recorded, reported and named in an event as if there
        was none.
        """
        for value in ("0" * 200_000, b"\xff" * 200_000, "00-\0\r\n\x1b[2J", 7, [TRACE.traceparent], {"a": 1}, None, True):
            headers = {"connection_id": "some-id", "traceparent": value, "tracestate": value}
            letter = self.source.letter(7, headers=headers, reply_to=b"back-end")
            self.courier.record(letter, "late")
            record, report = self.taken()
            self.assertEqual((record.body, record.headers["owsla_reason"]), (b"body", "late"))
            self.assertEqual(report.headers, {"connection_id": "some-id", "owsla_report": "late"})
            self.assertEqual(self.events[-1], Undeliverable("late", "some-id", None))

    def test_confirmed_together(self) -> None:
        """A confirm of several messages is of all up to its tag, and with tag 0 of all."""
        for letter in self.letters(1, 2, 3, 4, 5):
            self.courier.record(letter, "late")
        self.taken()
        self.server.ack(PUBLISH_CHANNEL, 2)
        self.server.ack(PUBLISH_CHANNEL, 3, True)
        self.assertEqual(self.source.finished, [2, 1, 3])
        self.server.ack(PUBLISH_CHANNEL, 0, True)
        self.assertEqual(self.source.finished, [2, 1, 3, 4, 5])

    def test_properties_that_cannot_be_read(self) -> None:
        """A message with unreadable properties is recorded with its body, its connection id if there is one, and the reason."""
        for connection_id, headers in ((b"x", {"connection_id": "x"}), (None, {})):
            self.courier.record(
                self.source.letter(7, connection_id, b"body", header=wire.header_payload(4, b"\x00\x02")), "bad-connection-id"
            )
            (one,) = self.taken()
            self.assertEqual(one.body, b"body")
            self.assertEqual(one.headers, {**headers, "owsla_reason": "bad-connection-id", "owsla_node": "0123abcd"})

    def test_properties_larger_than_a_frame(self) -> None:
        """A message whose headers exceed a frame is recorded, and forwarded, with the headers that Owsla reads; frames keep to
        the negotiated size.
        """
        headers = {"x-death": ["x" * 1000] * 200, "connection_id": "some-id", "to_device_seq": 7}
        for frame_max in (131072, 4096):
            self.lose()
            self.server = Server(self.clock, heartbeat=1000, tune=(0, frame_max, 0))
            self.server.ready()
            Result(self.courier.up(self.server.client))
            self.server.settle()
            self.courier.record(self.source.letter(1, body=b"body", headers=headers, message_id="m"), "late")
            self.courier.forward(self.source.letter(2, body=b"body", headers=headers, message_id="m"), ELSEWHERE)
            for one, more in zip(self.taken(), ({"owsla_reason": "late", "owsla_node": "0123abcd"}, {}), strict=True):
                self.assertLessEqual(len(one.header) + 8, frame_max)
                note = one.headers.pop("owsla_note")
                self.assertIn("do not fit", note)
                self.assertEqual((one.body, one.properties["message_id"]), (b"body", "m"))
                self.assertEqual(
                    {name: value for name, value in one.headers.items() if name != "owsla_note"},
                    {"connection_id": "some-id", "to_device_seq": 7, **more},
                )
            self.server.ack(PUBLISH_CHANNEL, 2, True)
            self.assertEqual(self.source.finished[-2:], [1, 2])

    def test_properties_that_were_not_kept(self) -> None:
        """A message whose properties were too large to be kept is recorded with a note."""
        header = message(b"body")[: wire.BARE_HEADER]
        self.courier.record(self.source.letter(7, None, b"body", header=header), "bad-connection-id")
        (one,) = self.taken()
        self.assertEqual(one.body, b"body")
        self.assertIn("too large", one.headers["owsla_note"])

    def test_a_channel_that_takes_nothing(self) -> None:
        """A refusal is not believed on a channel on which the queue accepted nothing: others are tried."""
        self.courier.record(self.source.letter(7), "late")
        first = RefusalHistory.FIRST
        self.assertEqual([self.refuse() for _ in range(first + 1)], [False] * (first - 1) + [True, True])
        self.assertEqual(self.source.finished, [])
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.assertEqual((self.source.finished, len(self.events)), ([7], 1))

    def test_full_on_every_channel(self) -> None:
        """A refusal is believed after several channels, and then at once, until the queue accepts something."""
        self.courier.record(self.source.letter(7), "late")
        for _ in range(RefusalHistory.LAST):
            self.assertEqual(self.source.finished, [])
            self.refuse()
        self.courier.record(self.source.letter(8), "late")
        self.refuse()
        self.assertEqual(self.source.finished, [7, 8])
        self.assertEqual([type(event) for event in self.events[-2:]], [UndeliverableLost] * 2)
        self.courier.record(self.source.letter(9), "late")
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.courier.down()
        self.connect()
        self.courier.record(self.source.letter(10), "late")
        self.refuse()
        self.assertEqual(self.source.finished, [7, 8, 9])

    def test_full_while_others_take(self) -> None:
        """Messages that other queues accept do not change when the refusal of a queue is believed."""
        self.courier.record(self.source.letter(7), "late")
        for number in range(RefusalHistory.LAST):
            self.assertEqual(self.source.finished, list(range(100, 100 + number)))
            self.courier.forward(self.source.letter(100 + number), ELSEWHERE)
            for one in self.taken():
                (self.server.ack if one.queue == FORWARDS else self.server.nack)(PUBLISH_CHANNEL, one.tag)
            self.pass_time(10)
            if self.server.lost:
                self.courier.down()
                self.connect()
        self.refuse()
        self.assertEqual(self.source.finished[-1], 7)
        self.assertIsInstance(self.events[-1], UndeliverableLost)

    def test_odd_ids(self) -> None:
        """A made-up connection id is escaped and bounded in events."""
        self.courier.record(self.source.letter(6, b"a\n\xff\x1b[2J" + b"x" * 100_000), "bad-connection-id")
        event = self.events[-1]
        assert isinstance(event, Undeliverable)
        assert event.connection_id is not None
        self.assertTrue(event.connection_id.startswith("a\\n\\xff\\x1b[2Jx"), event.connection_id)
        self.assertLess(len(event.connection_id), 200)

    def test_the_queue_is_full(self) -> None:
        """A refused record is given up: the original is acknowledged, and one event says what was lost and why."""
        self.courier.record(self.source.letter(6), "late")
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.courier.record(self.source.letter(7), "late")
        self.server.nack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.assertEqual(self.source.finished, [6, 7])
        lost = self.events[-1]
        assert isinstance(lost, UndeliverableLost)
        self.assertEqual((lost.reason, lost.connection_id), ("late", "some-id"))
        self.assertIn(RECORDS, lost.why)
        self.pass_time(60)
        self.assertEqual(self.taken(), [])

    def test_the_queue_is_gone(self) -> None:
        """A returned record is published again after its queue was declared again."""
        self.courier.record(self.source.letter(7, body=b"body"), "late")
        (one,) = self.taken()
        self.server.give_back(one)
        self.assertEqual(self.source.finished, [])
        self.pass_time(0.2)
        self.assertEqual(len(self.server.called("queue.declare")), 2)
        (again,) = self.taken()
        self.assertEqual((again.body, again.headers), (one.body, one.headers))
        self.server.ack(PUBLISH_CHANNEL, again.tag)
        self.assertEqual((self.source.finished, len(self.events)), ([7], 1))

    def test_the_queue_cannot_be_declared(self) -> None:
        """If the queue cannot be declared again the connection is dropped, and nothing is lost."""
        self.courier.record(self.source.letter(7, body=b"body"), "late")
        (one,) = self.taken()
        self.server.refusals[RECORDS, False] = (404, "NOT_FOUND - home node is down")
        self.server.give_back(one)
        self.pass_time(0.2)
        self.assertIn("home node is down", str(self.server.lost[0]))
        self.courier.down()
        self.connect()
        self.assertEqual(self.bodies(), [b"body"])


class ReportTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_a_report(self) -> None:
        """A report goes to `reply_to`, with the correlation id unchanged; nothing waits for it."""
        self.courier.report(self.source.letter(7, b"id", reply_to=b"answers", correlation_id=b"\x02\xff!"), "delivered")
        (one,) = self.taken()
        self.assertEqual((one.queue, one.body), ("answers", b""))
        self.assertEqual(wire.split_properties(one.header, 12)["correlation_id"], b"\x02\xff!")
        self.assertEqual(one.headers, {"connection_id": "id", "owsla_report": "delivered"})
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.assertEqual((self.source.finished, self.events, self.courier.unconfirmed), ([], [], 0))

    def test_by_name(self) -> None:
        """The report and the event of a message by name have the device id; in the event, one that no device has is escaped."""
        for connection_id, device_id, shown in ((b"id", "dör", "dör"), (None, "d\x00", "d\\x00"), (None, "\udcff", "\\udcff")):
            letter = self.source.letter(7, connection_id, reply_to=b"answers")
            letter.to_device_id = device_id
            self.courier.record(letter, "unknown-device")
            _, report = self.taken()
            self.assertEqual(report.headers["connection_id"], (connection_id or b"").decode())
            self.assertEqual(
                report.headers["device_id"], device_id.encode("utf-8", "surrogateescape").decode(errors="backslashreplace")
            )
            event = self.events.pop()
            assert isinstance(event, Undeliverable)
            self.assertEqual(event.device_id, shown)

    def test_trace(self) -> None:
        """A report has the trace context of its message."""
        for tracestate, headers in (("a=1", {"tracestate": "a=1"}), (None, {})):
            letter = self.source.letter(7, b"id", reply_to=b"answers")
            letter.trace = Trace(TRACE.traceparent, tracestate)
            self.courier.report(letter, "delivered")
            (one,) = self.taken()
            expected = {"connection_id": "id", "owsla_report": "delivered", "traceparent": TRACE.traceparent}
            self.assertEqual(one.headers, expected | headers)

    def test_nobody_asked(self) -> None:
        """Without `reply_to` no report is sent."""
        self.courier.report(self.source.letter(7), "delivered")
        self.assertEqual(self.taken(), [])

    def test_not_to_our_own_queues(self) -> None:
        """No report is sent to a queue that Owsla consumes: it could be taken for a message."""
        for queue in (b"to_device", b"to_device.89abcdef"):
            self.courier.report(self.source.letter(7, reply_to=queue), "delivered")
        self.assertEqual(self.taken(), [])

    def test_other_queues(self) -> None:
        """A queue name that only resembles one of Owsla is used, and may be any bytes."""
        for queue in (b"to_device2", b"xto_device", b"to_device.replies", b"\xff\xfe"):
            self.courier.report(self.source.letter(7, reply_to=queue), "delivered")
            (one,) = self.taken()
            self.assertEqual(one.queue.encode("utf-8", "surrogateescape"), queue)

    def test_a_record_is_reported(self) -> None:
        """A record is reported with its reason, where a report was asked for."""
        self.courier.record(self.source.letter(7, reply_to=b"answers"), "expired")
        record, report = self.taken()
        self.assertEqual((record.queue, report.queue), (RECORDS, "answers"))
        self.assertEqual(report.headers["owsla_report"], "expired")

    def test_dropped(self) -> None:
        """A returned or refused report is counted, and not sent again."""
        for tag in (1, 2):
            self.courier.report(self.source.letter(tag, reply_to=b"gone"), "delivered")
        first, second = self.taken()
        self.server.give_back(first)
        self.server.nack(PUBLISH_CHANNEL, second.tag)
        self.pass_time(60)
        self.assertEqual((self.courier.reports_dropped, self.taken(), self.events), (2, [], []))

    def test_direct_reply_to(self) -> None:
        """A report goes to a valid name of direct reply-to; an invalid one would close the connection."""
        process = base64.b64encode(b"\x83\x58v\0\x0freply@123456789" + bytes(12)).decode()
        for name, sent in (
            (f"{process}.a2V5", True),
            (base64.b64encode(b"\x83gw\x05r@\0e\x31" + bytes(9)).decode() + ".a2V5", True),
            (f"{process[:-4]}.a2V5", False),
            (f"{process}AAAA.a2V5", False),
            ("g1gAAAA=.a2V5", False),
            (process, False),
            (f"{process}.", False),
            (f"{process}.a.b", False),
            (f"!{process}.a2V5", False),
            ("nonsense", False),
            ("bm90IGEgcHJvY2Vzcw==.a2V5", False),
            ("\udcff.a2V5", False),
            ("", False),
        ):
            dropped = self.courier.reports_dropped
            queue = f"amq.rabbitmq.reply-to.{name}"
            self.courier.report(self.source.letter(7, reply_to=queue.encode("utf-8", "surrogateescape")), "delivered")
            self.assertEqual([one.queue for one in self.taken()], [queue] if sent else [])
            self.assertEqual(self.courier.reports_dropped - dropped, not sent)

    def test_direct_replies_that_close_the_connection(self) -> None:
        """When the connection closes over a direct reply, all of them are dropped, and further ones for a while; no record or
        forward changes.
        """
        process = base64.b64encode(b"\x83\x58v\0\x0freply@123456789" + bytes(12))
        direct = [b"amq.rabbitmq.reply-to.%b.%d" % (process, number) for number in range(5)]
        for number in range(3):
            self.courier.report(self.source.letter(number, reply_to=direct[number]), "delivered")
        for letter in self.letters(4, 5):
            self.courier.record(letter, "late")
        self.courier.report(self.source.letter(6, reply_to=b"answers"), "delivered")
        self.assertEqual(len(self.taken()), 6)
        self.server.send(0, "connection.close", reply_code=541, reply_text="INTERNAL_ERROR")
        self.courier.down()
        self.courier.report(self.source.letter(7, reply_to=direct[3]), "delivered")
        self.connect()
        self.assertEqual([(one.queue, one.body) for one in self.taken()], [(RECORDS, b"4"), (RECORDS, b"5"), ("answers", b"")])
        self.assertEqual(self.courier.reports_dropped, 4)
        self.server.ack(PUBLISH_CHANNEL, 3, True)
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([4, 5], 0))
        self.pass_time(1)
        self.courier.report(self.source.letter(8, reply_to=direct[4]), "delivered")
        self.assertEqual(len(self.taken()), 1, "they are sent again")

    def test_direct_replies_are_returned(self) -> None:
        """A returned direct reply does not count as dropped: RabbitMQ returns those that it has delivered."""
        process = base64.b64encode(b"\x83X" + b"w\x06rabbit" + bytes(12)).decode()
        self.courier.report(self.source.letter(1, reply_to=f"amq.rabbitmq.reply-to.{process}.a2V5".encode()), "delivered")
        (sent,) = self.taken()
        self.server.give_back(sent)
        self.server.ack(PUBLISH_CHANNEL, sent.tag, False)
        self.assertEqual((self.courier.reports_dropped, self.courier.unconfirmed), (0, 0))

    def test_too_many(self) -> None:
        """Reports past the limit are dropped and counted while the broker does not answer; records are not."""
        self.patch(courier, "REPORTS_WAITING", 4)
        ask = self.source.letter(7, reply_to=b"answers")
        for _ in range(2):
            self.courier.report(ask, "delivered")
        self.lose()
        for _ in range(3):
            self.courier.report(ask, "delivered")
        self.courier.record(ask, "late")
        self.assertEqual((self.courier.unconfirmed, self.courier.reports_dropped), (5, 2))
        self.connect()
        self.assertEqual([one.queue for one in self.taken()], ["answers"] * 4 + [RECORDS])
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.server.nack(PUBLISH_CHANNEL, 2)
        self.courier.report(ask, "delivered")
        self.courier.report(ask, "delivered")
        self.courier.report(ask, "delivered")
        self.assertEqual((len(self.taken()), self.courier.reports_dropped), (2, 4), "one was refused")
        self.server.ack(PUBLISH_CHANNEL, 0, True)
        self.assertEqual(self.source.finished, [7])
        for _ in range(5):
            self.courier.report(ask, "delivered")
        self.assertEqual((len(self.taken()), self.courier.reports_dropped), (4, 5))

    def test_one_that_closes_the_channel(self) -> None:
        """A report that is given up makes room for another."""
        self.patch(courier, "REPORTS_WAITING", 1)
        self.courier.report(self.source.letter(7, reply_to=b"answers"), "delivered")
        for _ in range(2):
            self.server.close_channel(PUBLISH_CHANNEL)
            self.courier.down()
            self.connect()
        self.assertEqual((self.courier.reports_dropped, self.courier.unconfirmed), (1, 0))
        self.courier.report(self.source.letter(8, reply_to=b"answers"), "delivered")
        self.assertEqual((self.courier.reports_dropped, self.courier.unconfirmed), (1, 1))

    def test_each_answer_costs_the_same(self) -> None:
        """The cost of a confirm or a return does not grow with the number of unconfirmed messages: of many that are returned
        together, each costs the same.
        """

        def confirms() -> None:
            for tag in range(1, 11):
                self.courier._publisher.confirmed(tag, True)

        def returns() -> None:
            for one in sent[10:] + records:
                self.courier._publisher.returned("NO_ROUTE", one.queue, one.header, one.body)

        costs: list[tuple[int, int]] = []
        for many in (100, 2000):
            for tag in range(many):
                self.courier.report(self.source.letter(tag, reply_to=b"gone"), "delivered")
            for tag in range(many):
                self.courier.record(self.source.letter(tag, body=b"%d" % tag), "late")
            published = self.taken()
            sent, records = published[:many], published[many:]
            costs.append((self.looks(confirms), round(self.looks(returns) / (2 * many - 10))))
            self.lose()
            self.courier = self.make()
            self.connect()
        self.assertEqual(costs[0], costs[1])


class GroupTests(Base):
    """Messages for many devices."""

    def test_report(self) -> None:
        """A report names the node, and the numbers of devices that it has handed the message over to, and missed."""
        self.connect()
        letter = self.source.letter(7, connection_id=None, reply_to=b"answers", selector="all")
        letter.reached = Reached(3, 1)
        self.courier.report(letter, "fanned-out")
        (report,) = self.taken()
        self.assertEqual(
            report.headers,
            {
                "connection_id": "",
                "owsla_report": "fanned-out",
                "owsla_node": "0123abcd",
                "owsla_devices": 3,
                "owsla_missed": 1,
            },
        )

    def test_record(self) -> None:
        """A record has the numbers, too, if the message had begun to be handed over; also with minimal properties."""
        self.connect()
        letters = [self.source.letter(tag, connection_id=None, headers={"owsla_to": "all"}, selector="all") for tag in (7, 8)]
        letters[0].reached = Reached(3, 1)
        for letter in letters:
            self.courier.record(letter, "expired")
        begun, not_begun = self.taken()
        common = {"owsla_to": "all", "owsla_reason": "expired", "owsla_node": "0123abcd"}
        self.assertEqual(begun.headers, {**common, "owsla_devices": 3, "owsla_missed": 1})
        self.assertEqual(not_begun.headers, common)


class ForwardTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_forwarded(self) -> None:
        """A forward is the original message without properties that the broker acts on; the original is acknowledged once it is
        confirmed.
        """
        letter = self.source.letter(7, body=b"body", headers={"a": 1, "CC": ["x"]}, expiration="5", reply_to=b"answers")
        self.courier.forward(letter, ELSEWHERE)
        (one,) = self.taken()
        self.assertEqual((one.queue, one.body), (FORWARDS, b"body"))
        self.assertEqual(one.properties, {"headers": {"a": 1, "owsla_cc": ["x"], "owsla_expiration": "5"}})
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.assertEqual((self.source.finished, self.events), ([7], []))

    def test_what_is_left_of_its_time(self) -> None:
        """A forward expires when the original would, also if it was held."""
        letter = self.source.letter(7, headers={}, expiration="5000")
        letter.deadline = self.server.clock.seconds() + 4
        self.courier.forward(letter, ELSEWHERE)
        left = []
        for _ in range(2):
            (one,) = self.taken()
            self.assertNotIn("expiration", one.properties)
            left.append(int(one.headers["owsla_expiration"]))
            self.server.give_back(one)
            self.pass_time(1)
        self.assertEqual(left[0], 4000)
        self.assertLess(left[1], 4000)
        self.taken()
        letter.deadline = self.server.clock.seconds() - 1
        self.courier.forward(letter, ELSEWHERE)
        self.assertEqual(self.taken()[-1].headers["owsla_expiration"], "0")

    def test_delivered_again(self) -> None:
        """A forward says whether its message was delivered before."""
        letter = self.source.letter(7, headers={"a": 1})
        letter.identity = b"some"
        self.courier.forward(letter, ELSEWHERE)
        (one,) = self.taken()
        self.assertEqual(one.headers, {"a": 1, "owsla_redelivered": True})

    def test_handed_over_before(self) -> None:
        """A message that was handed over before is acknowledged and reported as delivered, and not recorded."""
        letter = self.source.letter(7, reply_to=b"answers")
        letter.handed_over = True
        self.courier.record(letter, "unknown-connection")
        (report,) = self.taken()
        self.assertEqual((report.queue, report.headers["owsla_report"]), ("answers", "delivered"))
        self.assertEqual((self.source.finished, self.courier.recorded, self.events), ([7], {}, []))

    def test_unreadable(self) -> None:
        """A message with unreadable properties is recorded instead of forwarded."""
        self.courier.forward(self.source.letter(7, body=b"body", header=wire.header_payload(4, b"\0\x02")), ELSEWHERE)
        (one,) = self.taken()
        self.assertEqual((one.queue, one.headers["owsla_reason"]), (RECORDS, "bad-connection-id"))

    def test_a_node_that_is_gone(self) -> None:
        """A forward that is returned for the whole grace of a node is recorded as `unknown-connection`."""
        self.courier.forward(self.source.letter(7, body=b"body", reply_to=b"answers"), ELSEWHERE)
        waited = 0.0
        records: list[Publish] = []
        while not records:
            for one in self.taken():
                if one.queue == FORWARDS:
                    self.server.give_back(one)
                else:
                    records.append(one)
            self.assertEqual(self.source.finished, [])
            if not records:
                self.pass_time(0.25)
                waited += 0.25
        self.assertTrue(GRACE <= waited <= GRACE + 1, waited)
        self.assertEqual(records[0].headers["owsla_reason"], "unknown-connection")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, records[-1].tag, True)
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([7], 0))
        # The next one for that node does not wait again.
        self.courier.forward(self.source.letter(8), ELSEWHERE)
        (one,) = self.taken()
        self.server.give_back(one)
        self.assertEqual([one.queue for one in self.taken()], [RECORDS])

    def test_a_node_that_is_known_to_be_dead(self) -> None:
        """A returned forward to a dead node is recorded at once, unless the node is back."""
        for back in (False, True):
            self.courier.lost(FORWARDS)
            self.courier.forward(self.source.letter(7), ELSEWHERE)
            (one,) = self.taken()
            if back:
                self.server.ack(PUBLISH_CHANNEL, one.tag)
                self.assertEqual(self.source.finished[-1:], [7])
            else:
                self.server.give_back(one)
                (record,) = self.taken()
                self.assertEqual((record.queue, record.headers["owsla_reason"]), (RECORDS, "unknown-connection"))
                self.server.ack(PUBLISH_CHANNEL, record.tag)
        self.courier.forward(self.source.letter(8), ELSEWHERE)
        self.server.give_back(self.taken()[0])
        self.assertEqual(self.taken(), [], "it is waited for like any other")

    def test_a_fault_is_the_reason(self) -> None:
        """A message with a fault of its own is recorded with that reason if its node is gone."""
        self.courier.lost(FORWARDS)
        letter = self.source.letter(7)
        letter.fault = "too-long"
        self.courier.forward(letter, ELSEWHERE)
        self.server.give_back(self.taken()[0])
        (record,) = self.taken()
        self.assertEqual(record.headers["owsla_reason"], "too-long")

    def test_a_node_that_comes_back(self) -> None:
        """A returned forward is held and published again, and arrives when the node is back."""
        self.courier.forward(self.source.letter(7), ELSEWHERE)
        self.server.give_back(self.taken()[0])
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([], 1))
        self.pass_time(1)
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([7], 0))
        self.pass_time(100)
        self.courier.forward(self.source.letter(8), ELSEWHERE)
        self.server.give_back(self.taken()[0])
        self.assertEqual(self.events, [], "its absence begins anew")

    def test_too_many_are_held(self) -> None:
        """Past the limit of held forwards the oldest is recorded."""
        for letter in self.letters(1, 2, 3, 4):
            self.courier.forward(letter, ELSEWHERE)
        for one in self.taken():
            self.server.give_back(one)
        (record,) = self.taken()
        self.assertEqual((record.queue, record.body), (RECORDS, b"1"))

    def test_a_full_queue(self) -> None:
        """A refused forward is published again until the queue of the node accepts it."""
        self.courier.forward(self.source.letter(7), ELSEWHERE)
        self.taken()
        self.server.nack(PUBLISH_CHANNEL, 1)
        self.pass_time(0.2)
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.assertEqual((self.source.finished, self.events), ([7], []))

    def test_a_channel_that_takes_nothing(self) -> None:
        """A forward to a queue that accepted nothing is tried on other channels, and never given up."""
        self.courier.forward(self.source.letter(7), ELSEWHERE)
        tried = [self.refuse() for _ in range(13)]
        self.assertEqual([number for number, new in enumerate(tried, 1) if new], [3, 4, 5, 6, 7, 12])
        self.server.ack(PUBLISH_CHANNEL, self.taken()[0].tag)
        self.assertEqual((self.source.finished, self.events), ([7], []))

    def test_returns_are_told_apart(self) -> None:
        """A return is matched with the equal message, even among several for one queue."""
        self.courier.forward(self.source.letter(1, body=b"same", headers={"n": 1}), ELSEWHERE)
        self.courier.forward(self.source.letter(2, body=b"same", headers={"n": 2}), ELSEWHERE)
        _, two = self.taken()
        self.server.give_back(two, ack=False)
        self.server.ack(PUBLISH_CHANNEL, 2, True)
        self.assertEqual(self.source.finished, [1])
        self.pass_time(1)
        (again,) = self.taken()
        self.assertEqual(again.headers, {"n": 2})


class PlainForwardTests(Base):
    """Forwards of plain messages, as they were delivered."""

    ID = ELSEWHERE + b"-1111-8222-9333-444444444444"

    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def forward(self, *tags: int, **properties: Any) -> list[Publish]:
        for tag in tags:
            headers = {"connection_id": self.ID.decode(), "n": tag, **properties.pop("headers", {})}
            body = b"%d" % tag
            self.courier.forward_plain(self.source, tag, self.ID, None, message(body, headers, **properties), body)
        return self.taken()

    def test_forwarded(self) -> None:
        """A plain message is forwarded byte for byte, and acknowledged once the forward is confirmed."""
        (one,) = self.forward(7, message_id="m", delivery_mode=2, headers={"traceparent": TRACE.traceparent})
        self.assertEqual((one.queue, one.body, one.method["mandatory"]), (FORWARDS, b"7", True))
        headers = {"connection_id": self.ID.decode(), "n": 7, "traceparent": TRACE.traceparent}
        self.assertEqual(one.header, message(b"7", headers, message_id="m", delivery_mode=2))
        self.assertEqual((self.source.finished, self.courier.unconfirmed), ([], 1))
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.assertEqual((self.source.finished, self.courier.unconfirmed, self.events), ([7], 0, []))

    def test_confirmed_together(self) -> None:
        """A confirm covers plain forwards, records and reports alike."""
        self.forward(1, 2)
        self.courier.record(self.letters(3)[0], "late")
        self.courier.report(self.source.letter(9, reply_to=b"answers"), "delivered")
        self.forward(4)
        self.server.ack(PUBLISH_CHANNEL, 5, True)
        self.assertEqual((sorted(self.source.finished), self.courier.unconfirmed), ([1, 2, 3, 4], 0))

    def test_user(self) -> None:
        """A message with the name of a user is forwarded without it: RabbitMQ would compare it with the login of the node."""
        (one,) = self.forward(7, user_id="backend")
        self.assertNotIn("user_id", one.properties)
        self.assertEqual(one.headers["owsla_user_id"], "backend")

    def test_large_headers(self) -> None:
        """A message whose headers exceed a frame is forwarded with those that Owsla reads."""
        (one,) = self.forward(7, headers={"x": "x" * 200_000})
        self.assertEqual((one.headers["connection_id"], one.body), (self.ID.decode(), b"7"))
        self.assertIn("do not fit", one.headers["owsla_note"])

    def test_unknown_properties(self) -> None:
        """A message with unknown properties is recorded, and not published as it is: the broker would close the channel."""
        header = message(b"7", {"connection_id": self.ID.decode()})
        odd = header[:13] + bytes([header[13] | 1]) + header[14:]
        self.courier.forward_plain(self.source, 7, self.ID, None, odd, b"7")
        (one,) = self.taken()
        self.assertEqual((one.queue, one.headers["owsla_reason"]), (RECORDS, "bad-connection-id"))

    def test_a_node_that_is_gone(self) -> None:
        """A returned forward is held for the grace of its node, and then recorded with its headers and its connection."""
        (one,) = self.forward(7)
        self.server.give_back(one)
        self.assertEqual((self.taken(), self.source.finished, self.courier.unconfirmed), ([], [], 1))
        self.courier.lost(FORWARDS)
        self.pass_time(1)
        (again,) = self.taken()
        self.assertEqual((again.queue, again.header), (FORWARDS, one.header))
        self.server.give_back(again)
        (record,) = self.taken()
        self.assertEqual((record.queue, record.body), (RECORDS, b"7"))
        expected = {**one.headers, "owsla_reason": "unknown-connection", "owsla_node": "0123abcd"}
        self.assertEqual(record.headers, expected)
        self.assertEqual(self.events, [Undeliverable("unknown-connection", self.ID.decode(), None)])

    def test_a_node_that_was_dead(self) -> None:
        """A plain forward that is accepted tells that the node is back: the next one that is returned is held."""
        self.courier.lost(FORWARDS)
        self.server.ack(PUBLISH_CHANNEL, self.forward(7)[0].tag)
        self.server.give_back(self.forward(8)[0])
        self.assertEqual((self.taken(), self.source.finished, self.events), ([], [7], []))

    def test_a_dead_node(self) -> None:
        """Thousands of returns among accepted forwards to other nodes meet the right messages, and each costs the same."""
        other = b"01234567" + self.ID[8:]
        costs = []
        for many in (100, 2000):
            for tag in range(many):
                node = self.ID if tag % 2 else other
                header = message(b"x", {"connection_id": node.decode(), "n": tag})
                self.courier.forward_plain(self.source, tag, node, None, header, b"x")
            published = self.taken()
            returned = [one for one in published if one.queue == FORWARDS]

            def returns(returned: list[Publish] = returned) -> None:
                for one in returned:
                    self.courier._publisher.returned("NO_ROUTE", one.queue, one.header, one.body)

            costs.append(round(self.looks(returns) / many))
            self.server.ack(PUBLISH_CHANNEL, published[-1].tag, True)
            self.assertEqual(self.source.finished, list(range(0, many, 2)))
            self.source.finished.clear()
            self.lose()
            self.courier = self.make()
            self.connect()
        self.assertEqual(costs[0], costs[1])

    def test_a_full_queue(self) -> None:
        """A refused forward is published again, before later ones, which wait meanwhile."""
        first = self.forward(1, 2)
        self.server.nack(PUBLISH_CHANNEL, 2, True)
        self.assertEqual(self.forward(3), [], "it waits")
        self.pass_time(0.2)
        again = self.taken()
        self.assertEqual([one.body for one in again], [b"1", b"2", b"3"])
        self.assertEqual([one.header for one in again[:2]], [one.header for one in first])
        self.server.ack(PUBLISH_CHANNEL, again[-1].tag, True)
        self.assertEqual((self.source.finished, self.events), ([1, 2, 3], []))
        self.assertEqual([one.body for one in self.forward(4)], [b"4"])

    def test_a_lost_connection(self) -> None:
        """Unconfirmed forwards are published again on the next connection, in order and before new ones, unless their consumer
        has ended.
        """
        self.forward(1, 2, 3)
        self.server.ack(PUBLISH_CHANNEL, 2)
        self.lose()
        self.assertEqual(self.forward(4), [])
        self.connect()
        again = self.taken()
        self.assertEqual([one.body for one in again], [b"1", b"3", b"4"])
        self.server.ack(PUBLISH_CHANNEL, 3, True)
        self.assertEqual(self.source.finished, [2, 1, 3, 4])
        self.forward(5)
        self.lose()
        self.source.open = False
        self.connect()
        self.assertEqual(self.taken(), [])

    def test_between_channel_and_connection(self) -> None:
        """Messages that come after the end of the channel, and before that of its connection, wait for the next connection. An
        error would end the consumer that delivered them.
        """
        for code in (320, 404, 406):
            self.server.close_channel(PUBLISH_CHANNEL, code, "no")
            self.assertEqual(self.forward(code), [])
            self.courier.record(self.source.letter(code + 1, body=b"%d" % (code + 1)), "late")
            self.courier.report(self.source.letter(9, reply_to=b"answers"), "delivered")
            self.assertEqual(self.taken(), [])
            self.courier.down()
            self.connect()
            again = self.taken()
            self.assertEqual([one.body for one in again], [b"%d" % code, b"%d" % (code + 1), b""])
            self.server.ack(PUBLISH_CHANNEL, 3, True)
        self.assertEqual(sorted(self.source.finished), [320, 321, 404, 405, 406, 407])

    def test_a_channel_error(self) -> None:
        """When the channel is closed over a message, plain forwards are suspects like all others: the culprit is recorded."""
        self.forward(1, 2, 3)
        self.server.close_channel(PUBLISH_CHANNEL, 406, "PRECONDITION_FAILED - no")
        self.courier.down()
        self.connect()
        (alone,) = self.taken()
        self.server.ack(PUBLISH_CHANNEL, alone.tag)
        (culprit,) = self.taken()
        self.server.close_channel(PUBLISH_CHANNEL, 406, "PRECONDITION_FAILED - no")
        self.courier.down()
        self.connect()
        (record,) = self.taken()
        self.assertEqual((culprit.body, record.queue, record.body), (b"2", RECORDS, b"2"))
        self.assertEqual(record.headers["connection_id"], self.ID.decode())
        self.server.ack(PUBLISH_CHANNEL, record.tag)
        self.assertEqual(self.forward(4)[0].body, b"3")

    def test_delay_after_a_success(self) -> None:
        """After a confirm, the delay of the next refused forward is the shortest one again."""
        self.forward(1)
        self.server.nack(PUBLISH_CHANNEL, 1)
        self.pass_time(0.2)
        self.assertEqual(len(self.taken()), 1)
        self.forward(2)
        self.server.ack(PUBLISH_CHANNEL, 3)
        self.server.nack(PUBLISH_CHANNEL, 2)
        self.pass_time(0.2)
        self.assertEqual([one.body for one in self.taken()], [b"1"])

    def test_beside_a_suspect(self) -> None:
        """A plain message waits while the last suspect is on its way: that must be alone, or the culprit would not be known."""
        self.forward(1)
        self.server.close_channel(PUBLISH_CHANNEL, 406, "PRECONDITION_FAILED - no")
        self.courier.down()
        self.connect()
        (suspect,) = self.taken()
        self.assertEqual(self.forward(2), [])
        self.server.ack(PUBLISH_CHANNEL, suspect.tag)
        self.assertEqual([one.body for one in self.taken()], [b"2"])

    def test_many_nodes(self) -> None:
        """Made-up ids do not fill the memory."""
        queues = NodeQueues("to_device")
        for number in range(3000):
            self.assertEqual(queues[b"%08x" % number], f"to_device.{number:08x}")
        self.assertLessEqual(len(queues), courier.NODES_KEPT)


class BooksMachine(RuleBasedStateMachine):
    """A broker that answers forwards, records and reports in any way that RabbitMQ may, and the books of all messages."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Base()
        self.case.setUp()
        self.case.connect()
        self.tag = 0
        self.open: list[Publish] = []
        self.arrived: dict[int, list[str]] = {}

    def published(self) -> list[Publish]:
        self.open += self.case.taken()
        return self.open

    @rule(nodes=st.lists(st.sampled_from([b"89abcdef", b"01234567", b"76543210"]), min_size=1, max_size=6))
    def forward(self, nodes: list[bytes]) -> None:
        for node in nodes:
            self.tag += 1
            connection_id, body = node + b"-1111-8222-9333-444444444444", b"%d" % self.tag
            header = message(body, {"connection_id": connection_id.decode()})
            self.case.courier.forward_plain(self.case.source, self.tag, connection_id, None, header, body)

    @rule(report=st.booleans())
    def record(self, report: bool) -> None:
        self.tag += 1
        reply_to = b"answers" if report else None
        self.case.courier.record(self.case.source.letter(self.tag, body=b"%d" % self.tag, reply_to=reply_to), "late")

    @rule(data=st.data(), multiple=st.booleans(), refuse=st.booleans())
    def answer(self, data: st.DataObject, multiple: bool, refuse: bool) -> None:
        """Confirm or refuse one message, or all up to it."""
        waiting = self.published()
        if waiting:
            one = data.draw(st.sampled_from(waiting))
            for answered in [other for other in waiting if other is one or (multiple and other.tag < one.tag)]:
                waiting.remove(answered)
                if not refuse and answered.body:
                    self.arrived.setdefault(int(answered.body), []).append(answered.queue)
            (self.case.server.nack if refuse else self.case.server.ack)(PUBLISH_CHANNEL, one.tag, multiple)

    @rule(queue=st.sampled_from([FORWARDS, "to_device.01234567", RECORDS, "answers"]))
    def no_queue(self, queue: str) -> None:
        """Return all messages to a queue, and confirm all."""
        waiting, self.open = self.published(), []
        for one in waiting:
            if one.queue == queue:
                self.case.server.give_back(one, ack=False)
            elif one.body:
                self.arrived.setdefault(int(one.body), []).append(one.queue)
        if waiting:
            self.case.server.ack(PUBLISH_CHANNEL, waiting[-1].tag, True)

    @rule(code=st.sampled_from([0, 404, 541]))
    def lost(self, code: int) -> None:
        """End the connection."""
        self.published()
        self.open = []
        if code:
            self.case.server.close_channel(PUBLISH_CHANNEL, code, "no")
            self.case.courier.down()
        else:
            self.case.lose()
        self.case.connect()

    @rule(seconds=st.sampled_from([0.3, 11.0]))
    def wait(self, seconds: float) -> None:
        self.case.pass_time(seconds)
        if self.case.server.lost:  # another channel is tried
            self.open = []
            self.case.courier.down()
            self.case.connect()

    @invariant()
    def each_once(self) -> None:
        """No message is acknowledged twice, or before it has arrived, or before its record was given up."""
        finished = self.case.source.finished
        assert len(finished) == len(set(finished))
        lost = sum(isinstance(event, UndeliverableLost) for event in self.case.events)
        assert len(set(finished) - set(self.arrived)) <= lost

    def teardown(self) -> None:
        """Accept everything: each message arrives at its node or on record, and is acknowledged."""
        for _ in range(100):
            waiting, self.open = self.published(), []
            if not waiting and not self.case.courier.unconfirmed:
                break
            for one in waiting:
                if one.body:
                    self.arrived.setdefault(int(one.body), []).append(one.queue)
                self.case.server.ack(PUBLISH_CHANNEL, one.tag)
            self.wait(0.5)
        assert self.case.courier.unconfirmed == 0
        assert sorted(self.case.source.finished) == list(range(1, self.tag + 1))
        self.each_once()


class BooksTests(BrokerTestCase):
    def test_books(self) -> None:
        """Whatever the broker answers, and however often connections end, each message arrives at its node or on record, and is
        acknowledged once.
        """
        run_state_machine_as_test(BooksMachine, settings=settings(deadline=None, max_examples=40, stateful_step_count=25))


class AbsentNodesTests(BrokerTestCase):
    def test_grace(self) -> None:
        """A node counts as lost after its grace, and has the whole grace again once its queue was there."""
        absent = AbsentNodes(10)
        self.assertEqual([absent.is_lost("a", now) for now in (0, 9.9, 10, 11)], [False, False, True, True])
        absent.present("a")
        self.assertFalse(absent.is_lost("a", 20))
        self.assertFalse(absent.is_lost("b", 100))
        absent.lost("c", 100)
        self.assertTrue(absent.is_lost("c", 100))

    def test_memory(self) -> None:
        """Made-up ids do not fill the memory."""
        absent = AbsentNodes(10)
        for number in range(5000):
            absent.is_lost(str(number), 0)
        self.assertLessEqual(len(absent._since), 1000)


class ReconnectTests(Base):
    def test_before_the_broker(self) -> None:
        """Requests without a connection wait, and are published in order."""
        for letter in self.letters(1, 2):
            self.courier.record(letter, "late")
        self.connect()
        self.assertEqual(self.bodies(), [b"1", b"2"])

    def test_sent_again(self) -> None:
        """Unconfirmed messages are published again on the next connection, in order and before new ones."""
        self.connect()
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        self.taken()
        self.server.ack(PUBLISH_CHANNEL, 2)
        self.lose()
        self.courier.record(self.letters(4)[0], "late")
        self.connect()
        self.courier.record(self.letters(5)[0], "late")
        self.assertEqual(self.bodies(), [b"1", b"3", b"4", b"5"])
        self.server.ack(PUBLISH_CHANNEL, 4, True)
        self.assertEqual(self.source.finished, [2, 1, 3, 4, 5])

    def test_the_consumer_is_gone_too(self) -> None:
        """Messages of a closed consumer are dropped, since they are delivered again; settled ones are kept."""
        self.connect()
        letters = self.letters(1, 2, 3)
        letters[1].settled = True
        for letter in letters:
            self.courier.record(letter, "late")
        self.courier.report(self.source.letter(9, reply_to=b"answers"), "delivered")
        self.taken()
        self.lose()
        self.source.open = False
        self.connect()
        self.assertEqual([(one.queue, one.body) for one in self.taken()], [(RECORDS, b"2"), ("answers", b"")])

    def test_lost_while_it_waits_to_try_again(self) -> None:
        """A connection that is lost during a retry loses no message."""
        self.connect()
        self.courier.record(self.letters(1)[0], "late")
        self.server.give_back(self.taken()[0])
        self.lose()
        self.connect()
        self.assertEqual(self.bodies(), [b"1"])
        self.courier.record(self.letters(2)[0], "late")
        self.assertEqual(self.bodies(), [b"2"])

    def test_held_over_a_loss(self) -> None:
        """Held forwards survive a lost connection."""
        self.connect()
        self.courier.forward(self.letters(1)[0], ELSEWHERE)
        self.server.give_back(self.taken()[0])
        self.lose()
        self.pass_time(1)
        self.connect()
        self.assertEqual(self.bodies(), [b"1"])


class ChannelErrorTests(Base):
    """The broker closes the channel over a message, and does not say over which."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.poison = b"2"
        self.books: dict[bytes, list[dict[str, Any]]] = {}
        self.connections = 0

    def serve(self) -> None:
        """Accept everything, but close the channel over the culprit as long as it has its own properties."""
        while True:
            published = self.taken()
            if not published:
                return
            for one in published:
                if one.body == self.poison and "n" in one.headers:
                    self.server.close_channel(PUBLISH_CHANNEL, 406, "PRECONDITION_FAILED - user_id")
                    self.courier.down()
                    self.connections += 1
                    self.assertLess(self.connections, 10)
                    self.connect()
                    break
                self.books.setdefault(one.body, []).append(one.headers)
                self.server.ack(PUBLISH_CHANNEL, one.tag)

    def test_the_culprit_is_recorded_alone(self) -> None:
        """The culprit is found by publishing one message at a time, and recorded with its body and connection id alone."""
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        self.serve()
        said = {"owsla_reason": "late", "owsla_node": "0123abcd"}
        self.assertEqual(self.books[b"2"], [{"connection_id": "some-id", **said}])
        self.assertEqual(self.books[b"3"], [{"n": 3, **said}])
        self.assertEqual(self.books[b"1"][-1], {"n": 1, **said})
        self.assertEqual(sorted(self.source.finished), [1, 2, 3])
        self.assertEqual(self.courier.unconfirmed, 0)
        for letter in self.letters(4, 5):
            self.courier.record(letter, "late")
        self.assertEqual(self.bodies(), [b"4", b"5"], "and then all at once again")

    def again(self, code: int, *, channel: bool = True) -> list[bytes]:
        """Close the channel or the connection with this code, and connect again. Return what is published then."""
        if channel:
            self.server.close_channel(PUBLISH_CHANNEL, code, "no")
        else:
            self.server.send(0, "connection.close", reply_code=code, reply_text="no")
        self.courier.down()
        self.connect()
        return self.bodies()

    def test_codes_that_are_no_fault_of_a_message(self) -> None:
        """A channel that is closed over permissions or a queue costs no message its properties: all are published again in
        order.
        """
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        self.courier.forward(self.letters(4)[0], ELSEWHERE)
        self.courier.report(self.source.letter(9, reply_to=b"answers"), "delivered")
        self.taken()
        for code in (403, 404, 405, 504, 506) * 3:
            self.assertEqual(self.again(code), [b"1", b"2", b"3", b"4", b""])
        self.lose()
        self.connect()
        self.serve()
        self.assertEqual(self.connections, 2, "the culprit is still found")
        self.assertEqual([self.books[body][0].get("n") for body in (b"1", b"3", b"4")], [1, 3, 4])
        self.assertEqual((sorted(self.source.finished), self.courier.reports_dropped), ([1, 2, 3, 4], 0))

    def test_one_alone_and_no_permission(self) -> None:
        """The same holds for a message that is published alone."""
        self.courier.record(self.letters(1)[0], "late")
        for _ in range(10):
            self.assertEqual(self.again(403), [b"1"])
        self.lose()
        self.connect()
        self.courier.record(self.letters(3)[0], "late")
        self.serve()
        self.assertEqual(self.books[b"3"][0]["n"], 3)
        self.assertEqual(self.source.finished, [1, 3])
        self.assertEqual([event for event in self.events if not isinstance(event, Undeliverable)], [])

    def test_the_broker_crashes(self) -> None:
        """After an internal error messages are published one at a time, and none loses its properties."""
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        self.taken()
        order = [self.again(541, channel=False)[0] for _ in range(12)]
        self.assertEqual(order, [b"1", b"2", b"3"] * 4)
        self.lose()
        self.connect()
        self.serve()
        self.assertEqual(sorted(self.source.finished), [1, 2, 3])
        self.assertEqual([event for event in self.events if not isinstance(event, Undeliverable)], [])

    def test_the_broker_crashes_over_one(self) -> None:
        """A message over which the broker crashes repeatedly is recorded with minimal properties, behind the others."""
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        for _ in range(20):
            for one in self.taken():
                if one.body == b"2" and "n" in one.headers:
                    self.connections += 1
                    self.server.send(0, "connection.close", reply_code=541, reply_text="no")
                    self.courier.down()
                    self.connect()
                    break
                self.books.setdefault(one.body, []).append(one.headers)
                self.server.ack(PUBLISH_CHANNEL, one.tag)
        self.assertEqual(self.connections, 1 + courier.CRASHES)
        self.assertEqual(self.source.finished, [1, 3, 2])
        self.assertNotIn("n", self.books[b"2"][0])

    def test_a_forward(self) -> None:
        """A forward that closes the channel is recorded as refused."""
        self.courier.forward(self.letters(2)[0], ELSEWHERE)
        self.serve()
        self.assertEqual(self.books[b"2"], [{"connection_id": "some-id", "owsla_reason": "refused", "owsla_node": "0123abcd"}])
        self.assertEqual(self.source.finished, [2])

    def test_a_forward_and_no_room(self) -> None:
        """A forward whose minimal record is refused is given up like any other record."""
        self.courier.forward(self.letters(2)[0], ELSEWHERE)
        for _ in range(2):
            self.taken()
            self.server.close_channel(PUBLISH_CHANNEL)
            self.courier.down()
            self.connect()
        (record,) = self.taken()
        self.assertEqual(record.queue, RECORDS)
        self.server.nack(PUBLISH_CHANNEL, record.tag)
        for _ in range(RefusalHistory.LAST):
            self.pass_time(10)
            self.refuse()
        self.assertEqual(self.source.finished, [2])
        self.assertIsInstance(self.events[-1], UndeliverableLost)
        self.assertEqual(self.courier.unconfirmed, 0)

    def test_a_forward_and_no_queue(self) -> None:
        """A returned minimal record waits for its queue, and is published unchanged."""
        self.courier.forward(self.letters(2)[0], ELSEWHERE)
        for _ in range(2):
            self.taken()
            self.server.close_channel(PUBLISH_CHANNEL)
            self.courier.down()
            self.connect()
        (record,) = self.taken()
        self.server.give_back(record)
        self.pass_time(0.2)
        (again,) = self.taken()
        self.assertEqual((again.queue, again.headers), (RECORDS, record.headers))

    def test_what_comes_meanwhile(self) -> None:
        """Requests during an isolation wait, and are published unchanged."""
        for letter in self.letters(1, 2):
            self.courier.record(letter, "late")
        self.taken()
        self.server.close_channel(PUBLISH_CHANNEL)
        self.courier.down()
        self.courier.record(self.letters(3)[0], "late")
        self.connect()
        self.courier.record(self.letters(4)[0], "late")
        first = self.taken()
        self.assertEqual([one.body for one in first], [b"1"], "one at a time")
        self.server.ack(PUBLISH_CHANNEL, first[0].tag)
        self.poison = b""
        self.serve()
        self.assertEqual(list(self.books), [b"2", b"3", b"4"])
        self.assertEqual(self.source.finished, [1, 2, 3, 4])

    def test_the_order_is_kept(self) -> None:
        """Unconfirmed messages are published again before those that wait."""
        for letter in self.letters(1, 2, 3):
            self.courier.record(letter, "late")
        self.taken()
        self.server.close_channel(PUBLISH_CHANNEL)
        self.courier.down()
        self.connect()
        self.assertEqual(self.bodies(), [b"1"])
        self.lose()
        self.connect()
        self.poison = b""
        self.serve()
        self.assertEqual(list(self.books), [b"1", b"2", b"3"])

    def test_given_up(self) -> None:
        """A message that closes the channel with minimal properties is given up, with an event; a report at the first time."""
        self.courier.record(self.letters(2)[0], "late")
        self.courier.report(self.source.letter(9, reply_to=b"answers"), "delivered")
        for _ in range(6):
            if not self.taken():
                break
            self.server.close_channel(PUBLISH_CHANNEL, 406, "PRECONDITION_FAILED - no")
            self.courier.down()
            self.connect()
        self.assertEqual((self.source.finished, self.courier.unconfirmed, self.courier.reports_dropped), ([2], 0, 1))
        lost = [event for event in self.events if isinstance(event, UndeliverableLost)]
        self.assertEqual(len(lost), 1)
        self.assertIn("PRECONDITION_FAILED - no", lost[0].why)
        self.courier.record(self.letters(3)[0], "late")
        self.assertEqual(self.bodies(), [b"3"])

    def test_the_suspects_are_gone(self) -> None:
        """Suspects of a closed consumer are dropped, and later messages are published."""
        for letter in self.letters(1, 2):
            self.courier.record(letter, "late")
        self.taken()
        self.server.close_channel(PUBLISH_CHANNEL)
        self.courier.down()
        self.source.open = False
        self.connect()
        self.assertEqual(self.bodies(), [])
        self.source.open = True
        for letter in self.letters(3, 4):
            self.courier.record(letter, "late")
        self.assertEqual(self.bodies(), [b"3", b"4"])

    def test_a_large_body(self) -> None:
        """A body of several frames is relayed whole."""
        body = b"x" * 300_000
        self.courier.record(self.source.letter(1, body=body, header=message(body, {})), "too-long")
        self.assertEqual(self.bodies(), [body])


class ByNameTests(Base):
    """Messages to devices, between nodes."""

    def setUp(self) -> None:
        super().setUp()
        self.back: list[tuple[int, bytes]] = []
        self.fences: list[str] = []
        self.courier.take_back_with(lambda letter, node: self.back.append((letter.tag, node)), self.fences.append)
        self.connect()

    def letter(self, tag: int, hop: Hop | None = None, **more: Any) -> Letter:
        letter = self.source.letter(tag, None, **{"headers": {"device_id": "d", **more.pop("headers", {})}, **more})
        letter.to_device_id = letter.device_id = "d"
        letter.hop = hop
        return letter

    def test_forwarded(self) -> None:
        """The forward names the node that asked, how often it came back, and not the connection that was found."""
        letter = self.letter(1, user_id="backend")
        letter.connection_id = b"89abcdef-0000-8000-8000-000000000001"
        letter.deadline = self.clock.seconds() + 2
        self.courier.forward_by_name(letter, ELSEWHERE)
        (one,) = self.taken()
        self.assertEqual((one.queue, one.body), (FORWARDS, b"body"))
        self.assertEqual(
            one.headers,
            {
                "device_id": "d",
                "owsla_user_id": "backend",
                "owsla_expiration": "2000",
                "owsla_from_node": "0123abcd",
                "owsla_returns": 0,
            },
        )
        self.server.ack(PUBLISH_CHANNEL, one.tag)
        self.assertEqual((self.source.finished, self.back), ([1], []))

    def test_forwarded_again(self) -> None:
        """A message that came back goes with the number of times, and without the node that returned it."""
        headers = {"owsla_from_node": "0123abcd", "owsla_returns": 1, "owsla_returned_by": "89abcdef"}
        self.courier.forward_by_name(self.letter(1, Hop(b"0123abcd", 2), headers=headers), ELSEWHERE)
        (one,) = self.taken()
        self.assertEqual(one.headers, {"device_id": "d", "owsla_from_node": "0123abcd", "owsla_returns": 2})

    def test_returned(self) -> None:
        """The way back goes to the node that asked, and names this one, or a dead node whose queue this one empties."""
        self.courier.return_to_asker(self.letter(1, Hop(ELSEWHERE, 1)))
        self.courier.return_to_asker(self.letter(2, Hop(ELSEWHERE, 0, b"00000000")))
        one, two = self.taken()
        self.assertEqual({one.queue, two.queue}, {FORWARDS})
        expected = {"device_id": "d", "owsla_from_node": "89abcdef", "owsla_returns": 1, "owsla_returned_by": "0123abcd"}
        self.assertEqual(one.headers, expected)
        self.assertEqual(two.headers, expected | {"owsla_returns": 0, "owsla_returned_by": "00000000"})

    def test_no_queue(self) -> None:
        """A message whose node has no queue is not held: it is taken back at once, both ways. Not if its consumer has ended."""
        self.courier.forward_by_name(self.letter(1), ELSEWHERE)
        self.courier.return_to_asker(self.letter(2, Hop(ELSEWHERE, 0)))
        for one in self.taken():
            self.server.give_back(one)
        self.assertEqual(self.back, [(1, ELSEWHERE), (2, ELSEWHERE)])
        self.courier.forward_by_name(self.letter(3), ELSEWHERE)
        (one,) = self.taken()
        self.source.open = False
        self.server.give_back(one)
        self.assertEqual((len(self.back), self.courier.unconfirmed, self.source.finished), (2, 0, []))

    def test_nobody_takes_it_back(self) -> None:
        """Without anybody who takes it back, the message is recorded."""
        self.courier = self.make()
        self.server = Server(self.clock, heartbeat=1000)
        self.connect()
        self.courier.forward_by_name(self.letter(1), ELSEWHERE)
        (one,) = self.taken()
        self.server.give_back(one)
        (record,) = self.taken()
        self.assertEqual((record.queue, record.headers["owsla_reason"]), (RECORDS, "unknown-device"))

    def test_recorded(self) -> None:
        """A record has none of the headers between nodes; its event and its report have the device."""
        headers = {"owsla_from_node": "89abcdef", "owsla_returns": 1, "owsla_returned_by": "89abcdef", "owsla_group": "g"}
        letter = self.letter(1, Hop(ELSEWHERE, 1), headers=headers, reply_to=b"reports", correlation_id=b"\x01c")
        self.courier.record(letter, "unknown-device")
        record, report = self.taken()
        self.assertEqual(record.headers, {"device_id": "d", "owsla_reason": "unknown-device", "owsla_node": "0123abcd"})
        self.assertEqual(report.headers, {"connection_id": "", "device_id": "d", "owsla_report": "unknown-device"})
        self.assertEqual(self.events, [Undeliverable("unknown-device", None, "d")])

    def test_fences(self) -> None:
        """A fence goes behind the forwards, on the same channel, and proves its user. It goes back in the same way."""
        self.courier.forward_by_name(self.letter(1), ELSEWHERE)
        self.courier.fence(ELSEWHERE, "7")
        self.courier.fenced(ELSEWHERE, "8")
        forward, fence, fenced = self.taken()
        self.assertEqual([forward.tag, fence.tag, fenced.tag], [1, 2, 3])
        self.assertEqual((fence.queue, fenced.queue), (FORWARDS, FORWARDS))
        self.assertEqual((fence.headers, fenced.headers), ({"owsla_notice": "fence 7"}, {"owsla_notice": "fenced 8"}))
        self.assertEqual((fence.properties["user_id"], fence.properties["reply_to"]), ("me", "to_device.0123abcd"))
        for one in (forward, fence, fenced):
            self.server.give_back(one)
        self.assertEqual((self.courier.unconfirmed, self.courier.reports_dropped), (0, 0))
        self.assertEqual(self.fences, ["7"], "a fence without a queue is back: so is what went before it")

    def test_the_user(self) -> None:
        """The broker may know the user by another name: the messages go again, on a new connection, and none is to blame."""
        self.courier.forward_by_name(self.letter(1), ELSEWHERE)
        self.courier.fence(ELSEWHERE, "7")
        self.taken()
        text = "PRECONDITION_FAILED - user_id property set to 'me' but authenticated user was 'CN=owsla'"
        self.server.close_channel(PUBLISH_CHANNEL, 406, text)
        self.assertEqual(self.server.client.username, "CN=owsla")
        self.courier.down()
        self.connect()
        self.assertEqual([one.tag for one in self.taken()], [1, 2])

    def test_large_answers(self) -> None:
        """Answers count by their size: those to a back end may be large, and wait while the broker is blocked."""
        self.patch(courier, "REPORTS_WAITING", 100)
        for _ in range(3):
            self.courier.answer(b"replies", None, bytes(60_000))
        self.assertEqual(self.courier.reports_dropped, 1)
        self.server.ack(PUBLISH_CHANNEL, 0, True)
        for _ in range(3):
            self.courier.answer(b"replies", None, bytes(60_000))
        self.assertEqual(self.courier.reports_dropped, 2)

    def test_answers(self) -> None:
        """An answer to a back end goes to its queue, as a report does, but not to a queue of Owsla."""
        self.courier.answer(b"replies", b"\x01c", b"[1]")
        self.courier.answer(b"to_device", b"\x01c", b"[1]")
        self.courier.answer(b"amq.rabbitmq.reply-to.nonsense", None, b"[1]")
        (one,) = self.taken()
        self.assertEqual((one.queue, one.body, one.headers), ("replies", b"[1]", {"owsla_notice": "has"}))
        self.assertEqual((one.properties["correlation_id"], one.properties["content_type"]), ("c", "application/json"))
        self.assertEqual(self.courier.reports_dropped, 1)
        self.server.give_back(one)
        self.assertEqual(self.courier.reports_dropped, 2)
