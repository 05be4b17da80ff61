"""Tests of repeats: a message that was written to a device is recognized when it is delivered again."""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.ordering import Ordering
from owsla.device.repeats import (
    CONNECTIONS_REMEMBERED,
    MESSAGES_REMEMBERED,
    RANGES_REMEMBERED,
    REMEMBERED_FOR,
    ClosedConnections,
    HandedOver,
)
from owsla.events import DeviceDisconnected
from owsla.letter import Letter

from ._fakes import Source, World


class ClosedConnectionsTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        """A number below the next one was written. For an unknown connection no number was."""
        closed = ClosedConnections()
        closed.add(b"a", 2, 0.0)
        self.assertEqual([closed.written(b"a", seq, 0.0) for seq in range(4)], [True, True, False, False])
        self.assertFalse(closed.written(b"b", 0, 0.0))

    def test_skipped(self) -> None:
        """A skipped number was not written."""
        ordering: Ordering[str] = Ordering()
        for seq in (0, 3):
            ordering.arrive(seq, "", 0.0)
        ordering.skip()
        ordering.take()
        closed = ClosedConnections()
        closed.add(b"a", ordering, 0.0)
        self.assertEqual([closed.written(b"a", seq, 0.0) for seq in range(5)], [True, False, False, True, False])

    def test_many_skipped(self) -> None:
        """However many numbers were skipped or held, a connection uses little memory. A forgotten number counts as not written.
        """
        ordering: Ordering[str] = Ordering()
        for seq in range(1, 200):
            ordering.arrive(seq, "", 0.0)
        ordering.skip()
        ordering.take()
        for seq in range(201, 8001, 2):  # the even ones never arrive
            ordering.arrive(seq, "", 0.0)
            ordering.skip()
            ordering.take()
        closed = ClosedConnections()
        closed.add(b"a", ordering, 0.0)
        kept = [getattr(ordering, name) for name in Ordering.__slots__]
        self.assertLess(sum(sys.getsizeof(each) for each in (ordering, *kept)), 600)
        written = [seq for seq in range(8002) if closed.written(b"a", seq, 0.0)]
        self.assertEqual(written, list(range(7999 - 2 * RANGES_REMEMBERED, 8000, 2)))

    def test_nothing_to_know(self) -> None:
        """A connection without numbered messages uses no memory."""
        closed = ClosedConnections()
        closed.add(b"a", 0, 0.0)
        self.assertEqual(len(closed), 0)

    def test_forgotten(self) -> None:
        """A connection is forgotten after some time, and the oldest one when there are many."""
        closed = ClosedConnections()
        closed.add(b"a", 1, 0.0)
        closed.add(b"b", 1, 5.0)
        self.assertTrue(closed.written(b"a", 0, REMEMBERED_FOR - 1))
        self.assertFalse(closed.written(b"a", 0, REMEMBERED_FOR))
        self.assertTrue(closed.written(b"b", 0, REMEMBERED_FOR))
        for number in range(CONNECTIONS_REMEMBERED):
            closed.add(b"%d" % number, 1, REMEMBERED_FOR)
        self.assertEqual((len(closed), closed.written(b"b", 0, REMEMBERED_FOR)), (CONNECTIONS_REMEMBERED, False))


class HandedOverTests(SynchronousTestCase):
    def test_each_once(self) -> None:
        """Each copy is recognized once."""
        handed_over = HandedOver()
        handed_over.add([b"a", b"b", b"a"], 0.0)
        self.assertEqual([handed_over.take(b"a", 1.0) for _ in range(3)], [True, True, False])
        self.assertEqual([handed_over.take(each, 1.0) for each in (b"b", b"b", b"c")], [True, False, False])
        self.assertEqual(len(handed_over), 0)

    def test_forgotten(self) -> None:
        """An entry is forgotten after some time, and the oldest one when there are many."""
        handed_over = HandedOver()
        handed_over.add([b"a"], 0.0)
        self.assertFalse(handed_over.take(b"a", REMEMBERED_FOR))
        handed_over.add([b"a"], 0.0)
        handed_over.add((b"%d" % number for number in range(MESSAGES_REMEMBERED)), 0.0)
        self.assertEqual((len(handed_over), handed_over.take(b"a", 0.0)), (MESSAGES_REMEMBERED, False))


class EndpointTests(SynchronousTestCase):
    """A connection that closes, and messages for it that are delivered again."""

    def letter(self, source: Source, connection_id: bytes, body: bytes, seq: int | None) -> Letter:
        return Letter(source, source.next(), b"header", body, connection_id, seq, reply_to=b"q")

    def test_after_the_end(self) -> None:
        """After the end of a connection, a written message is a duplicate. A message that was waiting is not."""
        world = World()
        source, again = Source(), Source()
        endpoint, wire = world.connect()
        for seq in (0, 1):
            world.send(endpoint, source, b"%d" % seq, seq)
        wire.room = 0
        world.turns()
        world.send(endpoint, source, b"4", 4)
        world.end(endpoint)
        self.assertEqual(world.courier.reasons, [(b"4", "connection-closed")])
        repeated: dict[int | None, bool] = {}
        for number in (0, 1, 2, 4, None):
            letter = self.letter(again, endpoint.connection_id, b"x", number)
            repeated[number] = world.factory.deliveries.repeated(letter)
        self.assertEqual(repeated, {0: True, 1: True, 2: False, 4: False, None: False})
        self.assertEqual([outcome for _, outcome in world.courier.reports], ["duplicate"] * 2)
        self.assertEqual((again.acked, world.totals.duplicates), ([1, 2], 2))

    def test_while_it_closes(self) -> None:
        """The same holds while the connection is closing."""
        world = World()
        source = Source()
        endpoint, _ = world.connect()
        world.send(endpoint, source, b"0", 0)
        endpoint.close("enough")
        for seq in (0, 1):
            world.send(endpoint, source, b"again", seq)
        self.assertEqual(world.courier.reasons, [(b"again", "connection-closed")])
        self.assertEqual((world.totals.duplicates, source.outstanding), (1, 0))

    def test_what_is_on_record_stays_so(self) -> None:
        """The record of a message that has used its number is not dropped with its consumer: its copy would be a duplicate."""
        world = World()
        source = Source()
        endpoint, _ = world.connect(room=0)
        world.send(endpoint, source, b"0", 0)
        world.turns()
        world.send(endpoint, source, b"1", 1)
        world.send(endpoint, source, b"3", 3)
        world.end(endpoint)
        self.assertEqual([(letter.seq, letter.settled) for letter, _ in world.courier.records], [(1, True), (3, False)])
        self.assertTrue(world.factory.deliveries.repeated(self.letter(Source(), endpoint.connection_id, b"1", 1)))
        self.assertEqual(len(world.of_type(DeviceDisconnected)), 1)

    def test_without_a_number(self) -> None:
        """Each written message without a number is remembered, and no other one."""
        world = World()
        source = Source()
        endpoint, wire = world.connect()
        world.send(endpoint, source, b"plain")
        world.send(endpoint, source, b"numbered", 0)
        world.post(endpoint, source, b"asks", None, reply_to=b"q")
        world.post(endpoint, source, b"bad", None, fault="too-long")
        wire.room = 0
        world.turns()
        world.send(endpoint, source, b"waits")
        world.end(endpoint)
        self.assertEqual(source.bodies, [b"plain", b"asks"])

    def test_recall(self) -> None:
        """Messages of a lost consumer are recognized."""
        world = World()
        world.factory.deliveries.forget(Source(), [b"a"])
        self.assertEqual([world.factory.deliveries.recall(b"a"), world.factory.deliveries.recall(b"a")], [True, False])

    def test_no_time_passes_in_an_outage(self) -> None:
        """Entries do not age in an outage: no message can be delivered again before its end."""
        world = World()
        endpoint, _ = world.connect()
        world.send(endpoint, Source(), b"0", 0)
        world.end(endpoint)
        world.factory.reordering.flowing(False)
        world.factory.deliveries.forget(Source(), [b"a"])
        world.clock.advance(10 * REMEMBERED_FOR)
        world.factory.reordering.flowing(True)
        self.assertTrue(world.factory.deliveries.recall(b"a"))
        self.assertTrue(world.factory.deliveries.repeated(self.letter(Source(), endpoint.connection_id, b"0", 0)))
