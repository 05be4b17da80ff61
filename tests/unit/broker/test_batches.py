"""Tests of device lines in batches: when they are published, and that a batch is answered as its lines would be."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from owsla.broker.client import BrokerError
from owsla.events import BrokerWarning, LinesAccepted, LinesRefused
from owsla.routing_key import shard

from .fakes import BrokerTestCase
from .test_lines import DELAY, LINES, TOO_LARGE, Device, Lab, ProducerMachine, lines, lines_of


def elements(body: bytes) -> list[list[Any]]:
    """Decode the body of a batch with somebody else's decoder."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    return list(unpacker)


def sizes(lab: Lab) -> list[int]:
    """Take the published messages, and return the number of lines of each."""
    return [len(lines_of(one)) for one in lab.server.take()]


class BatchTests(BrokerTestCase):
    def lab(self, batch: int = 4, **more: Any) -> Lab:
        """Return a lab that is connected, and whose first batch was just published, so that the next one waits."""
        lab = Lab(batch=batch, **{"messages": 100, **more})
        lab.connect()
        return lab

    def waiting(self, batch: int = 4, **more: Any) -> tuple[Lab, Device]:
        lab = self.lab(batch, **more)
        device = lab.device()
        lab.publish(device, b"first")
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])
        return lab, device

    def test_message(self) -> None:
        """A batch is one message: its header counts the lines, and its body has an array for each."""
        lab = self.lab()
        a, b = lab.device("a"), lab.device("b")
        lab.publish(a, b"one")
        lab.now += 0.25
        lab.publish(b, b"")
        lab.publish(a, b"\xff\x00")
        lab.server.settle()
        (one,) = lab.server.take()
        self.assertEqual(
            one.properties,
            {
                "content_type": "application/x-msgpack",
                "headers": {"owsla_batch": 3},
                "delivery_mode": 2,
                "reply_to": "to_device.0123abcd",
                "timestamp": 1000,
                "app_id": "owsla",
            },
        )
        self.assertEqual(
            elements(one.body),
            [["a", 0, 1_000_000, None, b"one"], ["b", 0, 1_000_250, None, b""], ["a", 1, 1_000_250, None, b"\xff\x00"]],
        )

    def test_single_line_does_not_wait(self) -> None:
        """A line leaves at the end of its turn when no batch was published within the delay."""
        lab, device = self.waiting()
        lab.clock.advance(DELAY)
        lab.publish(device, b"second")
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])

    def test_delay(self) -> None:
        """Lines that come within the delay of the last batch travel together, the delay after it."""
        lab, device = self.waiting(batch=100)
        lab.clock.advance(DELAY / 2)
        lab.publish(device, b"x", b"y")
        lab.clock.advance(DELAY / 4)
        lab.publish(device, b"z")
        lab.server.settle()
        self.assertEqual(sizes(lab), [])
        lab.clock.advance(DELAY / 4)
        lab.server.settle()
        self.assertEqual(sizes(lab), [3])

    def test_full(self) -> None:
        """A full batch does not wait."""
        lab, device = self.waiting()
        lab.publish(device, *[b"x"] * 9)
        lab.server.settle()
        self.assertEqual(sizes(lab), [4, 4])
        lab.clock.advance(DELAY)
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])

    def test_after_a_full_batch(self) -> None:
        """A line does not wait because of a batch that was full before its time had come."""
        lab, device = self.waiting()
        lab.clock.advance(DELAY / 2)
        lab.publish(device, *[b"x"] * 4)
        lab.clock.advance(DELAY / 2)
        lab.server.settle()
        self.assertEqual(sizes(lab), [4])
        lab.publish(device, b"y")
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])

    def test_room(self) -> None:
        """A batch is within one frame. A line beyond that is a batch of its own, in several frames."""
        lab, device = self.waiting(batch=100)
        lab.server.ack(LINES, 1)
        lab.lose()
        lab.connect(tune=(0, 4096, 0))
        lab.publish(device, *[b"x" * 1000] * 5, b"y" * 9000, b"z")
        lab.clock.advance(DELAY)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual([len(lines_of(one)) for one in taken], [4, 1, 1, 1])
        self.assertEqual(elements(taken[2].body)[0][4], b"y" * 9000)

    def test_window(self) -> None:
        """Lines in an open batch count as unconfirmed. A full window publishes them at once: no line may follow."""
        lab, device = self.waiting(batch=100, messages=6)
        lab.publish(device, *[b"x"] * 4)
        self.assertEqual(lab.producer.unconfirmed, 5)
        self.assertTrue(lab.producer.accepting)
        lab.publish(device, b"x")
        self.assertFalse(lab.producer.accepting)
        lab.server.settle()
        self.assertEqual(sizes(lab), [5])

    def test_share(self) -> None:
        """A connection that waits for its lines to be settled does not wait for the delay."""
        lab, device = self.waiting(batch=100)
        lab.publish(device, b"x", b"y")
        lab.producer.wait(device, lab.producer.position(0))
        lab.server.settle()
        self.assertEqual(sizes(lab), [2])

    def test_confirmed(self) -> None:
        """A confirm is one of each line of the batch."""
        lab, a = self.waiting()
        b = lab.device("b")
        lab.publish(a, b"x", b"y")
        lab.publish(b, b"z")
        self.assertFalse(lab.producer.settled(b))
        lab.clock.advance(DELAY)
        lab.server.settle()
        lab.server.ack(LINES, 2)
        self.assertEqual((a.safe, b.safe), ([1, 2], [0]))
        self.assertTrue(lab.producer.settled(b))
        self.assertFalse(lab.producer.settled(a))
        lab.server.ack(LINES, 1)
        self.assertTrue(lab.producer.settled(a))
        self.assertEqual((lab.window.confirmed_lines, lab.window.confirmed_messages), (4, 2))
        self.assertEqual((lab.window.messages, lab.window.size), (0, 0))

    def test_refused(self) -> None:
        """A refused batch is published again as a whole, before later lines."""
        lab, device = self.waiting()
        lab.server.ack(LINES, 1)
        lab.publish(device, b"x", b"y")
        lab.clock.advance(DELAY)
        lab.server.settle()
        lab.server.take()
        lab.server.nack(LINES, 2)
        self.assertFalse(lab.producer.accepting)
        refused = lab.events[-1]
        assert isinstance(refused, LinesRefused)
        self.assertEqual((refused.lines, lab.window.refused_lines), (2, 2))
        lab.publish(device, b"z")
        lab.clock.advance(DELAY)
        lab.server.settle()
        self.assertEqual((lab.taken(), lab.window.refused_lines), ([], 3))
        lab.clock.advance(0.2)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual(lines(taken), [("a", 1), ("a", 2), ("a", 3)])
        lab.server.ack(LINES, taken[-1].tag, True)
        self.assertEqual(device.safe, [0, 1, 2, 3])
        self.assertTrue(lab.producer.accepting)
        self.assertIsInstance(lab.events[-1], LinesAccepted)

    def test_returned(self) -> None:
        """A batch that the broker returns and confirms was not safe: it is published again."""
        lab, device = self.waiting(routing_key="fixed")
        lab.publish(device, b"x", b"y")
        lab.clock.advance(DELAY)
        lab.server.settle()
        (one,) = lab.server.take()
        lab.server.ack(LINES, 1)
        lab.server.give_back(one)
        self.assertEqual(device.safe, [0])
        lab.clock.advance(0.2)
        lab.server.settle()
        self.assertEqual(lab.taken(), [("a", 1), ("a", 2)])

    def test_returned_by_somebody_else(self) -> None:
        """A returned message that is no batch of Owsla ends the connection, as one that is no line does."""
        lab, device = self.waiting(routing_key="fixed")
        lab.publish(device, b"x")
        lab.clock.advance(DELAY)
        lab.server.settle()
        (one,) = lab.server.take()
        for body in (b"", b"\x95", b"\x95\xd9", b"hello, world", b"\x95\xd9\x24too short"):
            header = one.header[:4] + len(body).to_bytes(8) + one.header[12:]
            lab.server.give_back(one._replace(header=header, body=body), ack=False)
            self.assertIn("did not publish", str(lab.server.lost[0]))
            lab.producer.down()
            lab.connect()

    def test_keys(self) -> None:
        """Lines with the same routing key travel together, and others apart."""
        lab = self.lab(batch=100, routing_key="lines.{shard:2}")
        devices = [lab.device(name) for name in "abcdef"]
        for device in devices:
            lab.publish(device, b"x", b"y")
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual(len(taken), 2)
        for one in taken:
            for name, _ in lines_of(one):
                self.assertEqual(one.queue, f"lines.{shard(name.encode(), 2)}")
        self.assertEqual(len(lines(taken)), 12)

    def test_one_timer(self) -> None:
        """The open batches of all keys wait for the same time."""
        lab = self.lab(batch=100, routing_key="{connection_id}")
        devices = [lab.device(name) for name in "abcdef"]
        lab.publish(devices[0], b"x")
        lab.server.settle()
        before = len(lab.clock.getDelayedCalls())
        for device in devices:
            lab.publish(device, b"x")
        self.assertEqual(len(lab.clock.getDelayedCalls()), before + 1)

    def test_full_queue_of_a_key(self) -> None:
        """A refusal pauses the connections of its routing key, also those whose first line comes later, and no others."""
        lab = self.lab(batch=100, routing_key="lines.{shard:2}")
        same = [lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 0]
        other = next(lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 1)
        for device in (*same[:2], other):
            lab.publish(device, b"x")
        lab.server.settle()
        for one in lab.server.take():
            (lab.server.nack if one.queue == "lines.0" else lab.server.ack)(LINES, one.tag)
        self.assertEqual([device.stalled for device in (*same[:3], other)], [1, 1, 0, 0])
        lab.publish(same[2], b"late")
        lab.publish(other, b"y")
        lab.clock.advance(DELAY)
        lab.server.settle()
        self.assertEqual([device.stalled for device in (*same[:3], other)], [1, 1, 1, 0])
        (one,) = lab.server.take()
        self.assertEqual(one.queue, "lines.1")
        lab.clock.advance(0.2)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual([number for _, number in lines(taken)], [0, 0, 0])
        lab.server.ack(LINES, taken[-1].tag, True)
        lab.clock.advance(0)
        self.assertEqual([device.resumed for device in (*same[:3], other)], [1, 1, 1, 0])

    def test_batch_between_a_republished_one_and_its_confirm(self) -> None:
        """Connections are read again with the first confirm of a refused batch of their key, also if another batch of the key,
        as of a device that leaves, comes before that.
        """
        for routing_key in (None, "lines.{shard:1}"):
            lab = self.lab(batch=100, routing_key=routing_key)
            first, second = lab.device("a"), lab.device("b")
            lab.publish(first, b"x")
            lab.server.settle()
            lab.server.nack(LINES, lab.server.take()[0].tag)
            if routing_key is None:
                lab.producer.wait(first)
            lab.clock.advance(0.2)
            lab.server.settle()
            published = lab.server.take()
            lab.publish(second, b"y")
            lab.clock.advance(DELAY)
            lab.server.settle()
            lab.server.ack(LINES, published[0].tag)
            lab.clock.advance(0)
            self.assertEqual((first.resumed, lab.producer.accepting), (1, True))
            self.assertEqual(lines(published) + lab.taken(), [("a", 0), ("b", 0)])

    def test_route_without_a_queue(self) -> None:
        """A connection without lines does not wait for a key that is refused: with its identity it may get another one."""
        lab = self.lab(batch=100, messages=2, routing_key="lines.{shard:2}")
        first, late, *_ = [lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 0]
        other = next(lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 1)
        for device in (first, other):
            lab.publish(device, b"x")
        lab.server.settle()
        self.assertFalse(lab.producer.accepting)
        lab.producer.wait(late)
        for one in lab.server.take():
            (lab.server.nack if one.queue == "lines.0" else lab.server.ack)(LINES, one.tag)
        lab.clock.advance(0)
        self.assertEqual((first.stalled, first.resumed, late.resumed), (1, 0, 1))
        lab.producer.wait(late)
        lab.clock.advance(0)
        self.assertEqual((first.resumed, late.resumed), (0, 2))

    def test_share_behind_a_refused_key(self) -> None:
        """A connection gets its next share when lines before it, which waited in an open batch, join the refused ones of their
        key.
        """
        lab = self.lab(batch=100, routing_key="lines.{shard:2}")
        first, late, *_ = [lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 0]
        other = next(lab.device(name) for name in "abcdefgh" if shard(name.encode(), 2) == 1)
        lab.publish(first, b"x")
        lab.server.settle()
        lab.server.nack(LINES, lab.server.take()[0].tag)
        lab.publish(late, b"y")
        lab.producer.wait(other, lab.producer.position(0))
        self.assertEqual(other.resumed, 0)
        lab.server.settle()
        self.assertEqual((lab.server.take(), late.stalled, other.resumed), ([], 1, 1))

    def test_trace(self) -> None:
        """A line that begins a trace is a batch of its own with the trace context, in order."""
        lab, device = self.waiting(batch=100)
        lab.publish(device, b"x")
        lab.producer.trace(1.0)
        lab.publish(device, b"y")
        lab.producer.trace(0)
        lab.publish(device, b"z")
        lab.clock.advance(DELAY)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual([lines_of(one) for one in taken], [[("a", 1)], [("a", 2)], [("a", 3)]])
        self.assertEqual([one.headers.get("traceparent") for one in taken], [None, lab.producer.traceparent(device), None])
        self.assertIsNotNone(lab.producer.traceparent(device))
        self.assertEqual(lab.producer.traced_lines, 1)

    def test_trace_of_a_line_at_the_limit(self) -> None:
        """A traced line whose batch is within the size limit of the broker is published again with its trace context."""
        lab, device = self.waiting(batch=100)
        lab.producer.trace(1.0)
        lab.publish(device, b"x" * 300)
        lab.server.settle()
        (one,) = lab.server.take()
        lab.server.close_channel(LINES, 406, TOO_LARGE % (1000, len(one.body)))
        lab.producer.down()
        lab.connect()
        again = lab.server.take()[-1]
        self.assertEqual((lines_of(again), again.headers["traceparent"]), ([("a", 1)], lab.producer.traceparent(device)))

    def test_another_delay(self) -> None:
        """With another delay, lines that wait already leave at once."""
        lab, device = self.waiting()
        lab.publish(device, b"x")
        lab.producer.pace(1.0)
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])
        lab.publish(device, b"y")
        lab.clock.advance(0.99)
        lab.server.settle()
        self.assertEqual(sizes(lab), [])
        lab.clock.advance(0.01)
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])

    def test_stop(self) -> None:
        """When the node stops, no line waits for others, also after a reload with another delay."""
        lab, device = self.waiting()
        lab.publish(device, b"x")
        lab.producer.stop_waiting()
        lab.server.settle()
        self.assertEqual(sizes(lab), [1])
        for _ in range(2):
            lab.publish(device, b"y")
            lab.server.settle()
            self.assertEqual(sizes(lab), [1])
            lab.producer.pace(1.0)

    def test_reconnect(self) -> None:
        """After a lost connection, batches are published again in order, before the lines that came meanwhile."""
        lab, device = self.waiting()
        lab.publish(device, b"x", b"y")
        lab.clock.advance(DELAY)
        lab.server.settle()
        lab.lose()
        lab.publish(device, b"z")
        lab.clock.advance(DELAY)
        lab.connect(tune=(0, 4096, 0))
        self.assertEqual(lab.taken(), [("a", 0), ("a", 1), ("a", 2), ("a", 3)])
        self.assertEqual(lab.window.size, sum(len(entry.packed) for entry in lab.window._entries if entry))
        lab.server.ack(LINES, 3, True)
        self.assertEqual((device.safe, lab.window.messages, lab.window.size), ([0, 1, 2, 3], 0, 0))

    def test_lines_of_a_read(self) -> None:
        """Lines that were read together come into the same batches as they would one by one."""
        bodies = [b"x" * size for size in (1, 300, 0, 1, 70_000, 5, 1)] + [b"y" * 200] * 3
        labs = self.lab(), self.lab()
        device, other = (lab.device() for lab in labs)
        labs[0].publish(device, *bodies)
        self.assertEqual(labs[1].publish_together(other, *bodies), len(bodies))
        self.assertEqual(labs[1].publish_together(other, *bodies[-3:]), 3)
        labs[0].publish(device, *bodies[-3:])
        for lab in labs:
            lab.server.settle()
        before, after = (lab.server.take() for lab in labs)
        self.assertEqual([len(lines_of(one)) for one in after], [4, 4, 4, 1])
        self.assertEqual(after, before)
        self.assertEqual(labs[1].window.size, labs[0].window.size)

    def test_read_beyond_the_room(self) -> None:
        """Lines that were read together, more than the room of a batch, come into several. No batch is empty."""
        lab, device = self.waiting(batch=100)
        lab.server.ack(LINES, 1)
        lab.lose()
        lab.connect(tune=(0, 4096, 0))
        lab.publish_together(device, b"y" * 9000, *[b"x" * 200] * 20)
        lab.clock.advance(DELAY)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual([len(lines_of(one)) for one in taken], [1, 18, 2])
        self.assertEqual(lines(taken), [("a", number) for number in range(1, 22)])

    def test_exactly_the_room(self) -> None:
        """A batch may fill its frame to the last byte, and no further, however its lines were read."""
        for publish in (Lab.publish, Lab.publish_together):
            for excess, expected in ((0, [3]), (1, [2, 1])):
                lab, device = self.waiting(batch=100)
                lab.server.ack(LINES, 1)
                room = 131072 - 8
                lab.publish(device, b"x" * 65_000, b"x" * 2000)
                last = room - lab.window.size - (lab.window.size - 67_000) // 2 + excess
                publish(lab, device, b"x" * last)
                lab.clock.advance(DELAY)
                lab.server.settle()
                taken = lab.server.take()
                self.assertEqual([len(lines_of(one)) for one in taken], expected)
                if not excess:
                    self.assertEqual(len(taken[0].body), room)

    def test_settled_while_counted(self) -> None:
        """Once somebody has asked whether lines are settled, later ones count, too, however they were read."""
        lab, device = self.waiting(batch=100)
        lab.server.ack(LINES, 1)
        self.assertTrue(lab.producer.settled(device))
        tag = 2
        for publish in (Lab.publish, Lab.publish_together):
            publish(lab, device, b"x", b"y")
            self.assertFalse(lab.producer.settled(device))
            lab.clock.advance(DELAY)
            lab.server.settle()
            self.assertFalse(lab.producer.settled(device))
            lab.server.ack(LINES, tag)
            self.assertTrue(lab.producer.settled(device))
            tag += 1

    def test_followed(self) -> None:
        """The time up to the confirm is measured for one line at a time, with its wait for others."""
        for publish in (Lab.publish, Lab.publish_together):
            lab, device = self.waiting(batch=100)
            publish(lab, device, b"not followed", b"not followed")
            lab.clock.advance(DELAY)
            lab.server.settle()
            lab.server.ack(LINES, 1)
            self.assertEqual((lab.waits, lab.producer.unconfirmed_since), ([0.0], None))
            publish(lab, device, b"followed", b"followed")
            lab.now += 2
            lab.server.ack(LINES, 2)
            self.assertEqual(lab.waits, [0.0])
            lab.clock.advance(DELAY)
            lab.server.settle()
            lab.server.ack(LINES, 3)
            self.assertEqual(lab.waits, [0.0, 2.0])

    def test_trace_of_a_read(self) -> None:
        """Of lines that were read together each may begin a trace."""
        lab, device = self.waiting(batch=100)
        lab.producer.trace(1.0)
        self.assertEqual(lab.publish_together(device, b"x", b"y"), 2)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual([lines_of(one) for one in taken], [[("a", 1)], [("a", 2)]])
        self.assertEqual(len({one.headers["traceparent"] for one in taken}), 2)

    def test_read_fills_the_window(self) -> None:
        """Of lines that were read together those are taken that fill the window. They are published at once."""
        lab, device = self.waiting(batch=100, messages=6)
        self.assertEqual(lab.publish_together(device, *[b"x"] * 9), 5)
        self.assertFalse(lab.producer.accepting)
        lab.server.settle()
        self.assertEqual(sizes(lab), [5])
        lab, device = self.waiting(batch=100, size=1000)
        self.assertLess(lab.publish_together(device, *[b"x" * 100] * 9), 9)
        self.assertFalse(lab.producer.accepting)

    def test_smaller_messages(self) -> None:
        """A batch above the size limit of the broker is cut, and no line is lost or out of order."""
        lab, device = self.waiting(batch=100)
        lab.server.ack(LINES, 1)
        lab.publish(device, *[b"x" * 300] * 7)
        lab.clock.advance(DELAY)
        lab.server.settle()
        (one,) = lab.server.take()
        lab.publish(device, b"later")
        lab.server.close_channel(LINES, 406, TOO_LARGE % (len(one.body), 1000))
        lab.producer.down()
        lab.connect()
        lab.clock.advance(DELAY)
        lab.server.settle()
        taken = lab.server.take()
        self.assertEqual(lines(taken), [("a", number) for number in range(1, 9)])
        self.assertLessEqual(max(len(one.body) for one in taken), 1000)
        self.assertEqual([len(lines_of(one)) for one in taken], [3, 3, 1, 1])
        lab.server.ack(LINES, taken[-1].tag, True)
        self.assertEqual(device.safe, list(range(9)))
        self.assertEqual((lab.window.messages, lab.window.size), (0, 0))
        self.assertEqual(device.closed, [])

    def test_smaller_messages_out_of_order(self) -> None:
        """The batches that another one was cut into are published again in order when one of them is refused."""
        lab, device = self.waiting(batch=100)
        lab.server.ack(LINES, 1)
        lab.publish(device, *[b"x" * 300] * 7)
        lab.clock.advance(DELAY)
        lab.server.settle()
        lab.publish(device, b"later")
        lab.server.close_channel(LINES, 406, TOO_LARGE % (2500, 1000))
        lab.producer.down()
        lab.connect()
        self.assertEqual([lines_of(one)[0] for one in lab.server.take()], [("a", 1), ("a", 4), ("a", 7), ("a", 8)])
        lab.server.nack(LINES, 2)
        lab.publish(device, b"last")
        lab.clock.advance(0.2)
        lab.server.settle()
        self.assertEqual(lab.taken(), [("a", number) for number in range(1, 10)])

    def test_smaller_messages_with_an_open_batch(self) -> None:
        """A batch that is open when the broker turns out to accept smaller messages only is cut, too."""
        for size, expected in ((300, [3, 3, 1]), (3000, [])):
            lab, device = self.waiting(batch=100)
            lab.server.ack(LINES, 1)
            lab.publish(device, *[b"x" * size] * 7)
            lab.server.close_channel(LINES, 406, TOO_LARGE % (2500, 1000))
            lab.producer.down()
            lab.connect()
            lab.clock.advance(DELAY)
            lab.server.settle()
            self.assertEqual(sizes(lab), expected)
            self.assertEqual((lab.producer.unconfirmed, lab.window.given_up_lines), (sum(expected), 7 - sum(expected)))

    def test_too_large_alone(self) -> None:
        """A line that exceeds the limit of the broker alone is given up, and its connection closed. Others are published."""
        lab, device = self.waiting(batch=100)
        other = lab.device("b")
        lab.server.ack(LINES, 1)
        lab.publish(other, b"y")
        lab.publish(device, b"x" * 3000)
        lab.publish(other, b"z")
        lab.clock.advance(DELAY)
        lab.server.settle()
        (one,) = lab.server.take()
        lab.server.close_channel(LINES, 406, TOO_LARGE % (len(one.body), 2000))
        self.assertIsInstance(lab.server.lost[0], BrokerError)
        lab.producer.down()
        lab.connect()
        self.assertEqual(lab.taken(), [("b", 0), ("b", 1)])
        (reason,) = device.closed
        self.assertRegex(reason, r"^a line that makes a batch of 30\d\d bytes, and the limit of the broker is 2000$")
        self.assertEqual(other.closed, [])
        self.assertEqual(lab.window.given_up_lines, 1)
        self.assertTrue(any(isinstance(event, BrokerWarning) and "max_message_size" in str(event) for event in lab.events))
        self.assertEqual(lab.publish_together(other, b"w", b"x" * 3000, b"y"), 1)
        self.assertEqual((len(other.closed), other.seq), (1, 3))


class BatchMachine(ProducerMachine):
    """The same books with batches of up to three lines."""

    batch = 3

    @rule(limit=st.sampled_from([60, 150]))
    def smaller(self, limit: int) -> None:
        """The broker turns out to accept smaller messages only: each line fits."""
        if self.lab.server.client.transport is None:
            return
        self.pending = []
        self.lab.server.close_channel(LINES, 406, TOO_LARGE % (1000, limit))
        self.lab.server.lost.clear()
        self.lab.producer.down()
        self.lab.connect()
        self.arrive()


class BatchKeyMachine(BatchMachine):
    """The same with a key for each device."""

    routing_key = "{connection_id}"


class SharedKeyMachine(BatchMachine):
    """The same with keys that devices may share, and that stall separately."""

    routing_key = "lines.{shard:1}"


class BooksTests(BrokerTestCase):
    def test_the_books_balance(self) -> None:
        """For any refusals, returns, size limits and lost connections: every acknowledged line is in the queue, acknowledged
        once, in order if none was refused; in the end every line is safe and devices are read.
        """
        for machine in (BatchMachine, BatchKeyMachine, SharedKeyMachine):
            run_state_machine_as_test(machine, settings=settings(deadline=None, max_examples=30, stateful_step_count=20))
