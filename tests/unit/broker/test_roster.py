"""This node's notice in the register, and the registrar's work, on the wire."""

from __future__ import annotations

from owsla.amqp import wire
from owsla.amqp.methods import encode_method
from owsla.boundaries import Letter
from owsla.broker.roll import GONE, HERE, LEFT, Notice
from owsla.broker.roster import AT_ONCE, BURIAL, LEAVING, REGISTER, Roster, register_queue
from owsla.events import BrokerWarning, Event, NodeLost

from .fakes import BrokerTestCase, Result, Server, deliver, message

ME, A = "0123abcd", "aaaaaaaa"
NODES, QUEUE = "to_device.nodes", f"to_device.{A}"
GRACE = 10.0


class Presence:
    def __init__(self) -> None:
        self.lost: list[str] = []
        self.has = True

    def node_lost(self, node: str) -> None:
        self.lost.append(node)

    def told(self, node: str) -> bool:
        return self.has


class Courier:
    def __init__(self) -> None:
        self.records: list[Letter] = []
        self.dead: list[str] = []

    def record(self, letter: Letter, reason: str) -> None:
        assert reason == "unknown-connection"
        self.records.append(letter)

    def lost(self, queue: str) -> None:
        self.dead.append(queue)

    def confirm(self) -> None:
        records, self.records = self.records, []
        for letter in records:
            letter.source.done(letter.tag)


class Base(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server(heartbeat=60_000)
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.node = ME
        self.presence, self.courier = Presence(), Courier()
        self.roster = Roster(
            self.clock,
            self.events.append,
            node=lambda: self.node.encode(),
            to_device="to_device",
            register=register_queue("to_device", {}),
            node_grace=GRACE,
            courier=self.courier,
            presence=self.presence,
            now=lambda: 1000.0,
        )

    def connect(self) -> None:
        if self.server.client.transport is not None:
            found, refusals = self.server.found, self.server.refusals
            self.server = Server(self.clock, heartbeat=60_000)
            self.server.found, self.server.refusals = found, refusals
        self.server.ready()
        up = Result(self.roster.up(self.server.client))
        self.server.settle()
        assert up.done
        assert up.failure is None, up.failure

    def lose(self) -> None:
        self.server.drop()
        self.roster.down()

    def said(self) -> list[tuple[str, Notice | None]]:
        return [(one.queue, Notice.read(one.body)) for one in self.server.take()]

    def hear(self, tag: int, node: str, state: str = HERE) -> None:
        body = Notice(node, state).pack()
        self.server.raw(deliver(REGISTER, tag, message(body), body))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.server.settle()

    def acks(self, channel: int = REGISTER) -> list[int]:
        """Which deliveries are acknowledged by now."""
        tags: list[int] = []
        for number, name, fields in self.server.calls:
            if name == "basic.ack" and number == channel:
                tag = fields["delivery_tag"]
                tags += [one for one in range(1, tag) if one not in tags] if fields["multiple"] else []
                tags.append(tag)
        return sorted(tags)

    def put(self, queue: str = QUEUE, messages: int = 0, consumers: int = 0) -> None:
        self.server.found[queue] = messages, consumers

    def gets(self) -> int:
        """How many messages were asked for."""
        return len(self.server.called("basic.get"))

    def answer(self, *messages: bytes, asked: int = AT_ONCE) -> None:
        """Answer what was asked for with these messages, and that there are no more."""
        data = b""
        for tag, body in enumerate(messages, 1):
            method = encode_method("basic.get-ok", delivery_tag=tag, routing_key=QUEUE)
            header = message(body, {"connection_id": f"{A}-x", "n": tag})
            data += wire.frame(1, BURIAL, method) + wire.content_frames(BURIAL, header, body, 131072)
        data += wire.frame(1, BURIAL, encode_method("basic.get-empty")) * (asked - len(messages))
        self.server.raw(data)


class NoticeTests(Base):
    def test_the_register(self) -> None:
        """The register is durable and has a single active consumer; its kind is that of the nodes' own queues."""
        self.connect()
        (declared,) = self.server.called("queue.declare")
        self.assertEqual((declared["queue"], declared["durable"]), (NODES, True))
        self.assertEqual(declared["arguments"], {"x-single-active-consumer": True})
        arguments = register_queue("to_device", {"x-queue-type": "quorum", "x-max-length": 5}).arguments
        self.assertEqual(arguments, {"x-single-active-consumer": True, "x-queue-type": "quorum"})

    def test_here(self) -> None:
        """This node's notice is published, persistent and mandatory, when its queue is consumed: and after each reconnect."""
        self.connect()
        self.assertEqual(self.said(), [])
        self.roster.here()
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.method["mandatory"], one.properties["delivery_mode"]), (NODES, True, 2))
        self.assertEqual(Notice.read(one.body), Notice(ME, HERE))
        self.server.ack(REGISTER, 1)
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_away(self) -> None:
        """A node whose queue is not consumed does not say that it is here, also when this connection is back first."""
        self.connect()
        self.roster.here()
        self.server.take()
        self.server.ack(REGISTER, 1)
        self.lose()
        self.roster.away()
        self.connect()
        self.assertEqual(self.said(), [])
        self.lose()
        self.roster.here()
        self.roster.away()
        self.connect()
        self.assertEqual(self.said(), [])
        self.roster.here()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_before_the_broker(self) -> None:
        """What there is to say before there is a connection is said when there is one, and again if it was not confirmed."""
        self.roster.gone(A)
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(A, GONE))])
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(A, GONE))])
        self.server.ack(REGISTER, 1)
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [])

    def test_left(self) -> None:
        """A goodbye is waited for; after it this node says no more that it is here."""
        self.connect()
        self.roster.here()
        self.roster.leave()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE)), (NODES, Notice(ME, LEFT))])
        self.assertEqual(self.roster.unconfirmed, 1)
        self.server.ack(REGISTER, 2, True)
        self.assertEqual(self.roster.unconfirmed, 0)
        self.roster.here()
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [])

    def test_the_registrar_leaves(self) -> None:
        """A registrar knows whether it is alone, and strikes itself off when its queue is gone."""
        self.connect()
        self.roster.here()
        self.assertEqual((self.roster.listed, self.roster.alone), (False, False))
        self.hear(1, ME)
        self.assertEqual((self.roster.listed, self.roster.alone), (True, True))
        self.hear(2, A)
        self.assertEqual((self.roster.listed, self.roster.alone), (True, False))
        self.roster.leave()
        self.server.take()
        self.server.ack(REGISTER, 2, True)
        self.hear(3, ME, LEFT)
        self.server.refusals[f"to_device.{ME}", True] = (404, "NOT_FOUND - no queue")
        self.pass_time(0.2)
        self.assertEqual((self.roster.listed, self.roster.alone, self.acks()), (False, False, [1, 3]))

    def test_the_register_is_gone(self) -> None:
        """A notice that is returned means that the register was deleted: it is declared again, and everything said again."""
        self.connect()
        self.roster.here()
        self.roster.gone(A)
        one, two = self.server.take()
        self.server.give_back(one)
        self.server.give_back(two)
        self.pass_time(1)
        self.assertEqual({said for _, said in self.said()}, {Notice(ME, HERE), Notice(A, GONE)})
        self.assertEqual(len(self.server.called("basic.consume")), 2)
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])

    def test_cancelled(self) -> None:
        """So does a consumer that is cancelled."""
        self.connect()
        self.roster.here()
        self.server.take()
        self.server.send(REGISTER, "basic.cancel", consumer_tag="owsla-roster", nowait=True)
        self.pass_time(1)
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_may_not_be_used(self) -> None:
        """A register that may not be used is a warning, once, and tried again; devices do not wait for it."""
        for passive in (True, False):
            self.server.refusals[NODES, passive] = (403, "ACCESS_REFUSED - no")
        self.connect()
        self.pass_time(20)
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])
        self.assertEqual(self.server.lost, [])
        self.server.refusals.clear()
        self.roster.here()
        self.pass_time(40)
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_refused(self) -> None:
        """A notice that the queue refuses is published again, and if it never took anything on new channels, for a while."""
        self.connect()
        self.roster.here()
        tried: list[bool] = []
        for _ in range(9):
            opened = len(self.server.called("confirm.select"))
            for one in self.server.take():
                self.server.nack(REGISTER, one.tag)
            self.pass_time(30)
            self.assertEqual({one.queue for one in self.server.published}, {NODES})
            tried.append(len(self.server.called("confirm.select")) > opened)
        self.assertEqual([number for number, new in enumerate(tried, 1) if new], [3, 4, 5, 6, 7])

    def test_a_probe(self) -> None:
        """What this node says to itself goes to its own queue, for no connection; it is told when it is in there."""
        arrived: list[bool] = []
        self.connect()
        self.roster.probe(f"to_device.{ME}", "probe 7", lambda: arrived.append(True))
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.headers), (f"to_device.{ME}", {"owsla_notice": "probe 7"}))
        self.assertEqual(arrived, [])
        self.server.ack(REGISTER, 1)
        self.assertEqual(arrived, [True])

    def test_no_timers_left(self) -> None:
        """When the connection is lost nothing is left to do."""
        self.connect()
        self.hear(1, A)
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_odd_notices(self) -> None:
        """What no node has put into the register is dropped, with a warning."""
        self.connect()
        self.server.raw(deliver(REGISTER, 1, message(b"x"), b"x"))
        self.assertEqual(self.acks(), [1])
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])


class RegistrarTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.put(consumers=1)
        self.hear(1, A)

    def die(self) -> None:
        self.put(messages=0)
        self.pass_time(GRACE + 4.2)

    def test_alive(self) -> None:
        """A node whose queue has a consumer is left alone."""
        self.pass_time(60)
        self.assertEqual((self.gets(), self.acks(), self.events), (0, [], []))

    def test_dead(self) -> None:
        """A dead node's queue is emptied, each message on record before it is acknowledged; then it is deleted, if nobody uses
        it and nothing is in it; then back ends are told; then its notice is done with.
        """
        self.die()
        self.assertEqual(self.gets(), AT_ONCE)
        self.answer(b"one", b"two")
        self.assertEqual([one.body for one in self.courier.records], [b"one", b"two"])
        self.assertEqual({one.connection_id for one in self.courier.records}, {b"aaaaaaaa-x"})
        self.assertEqual(wire.decode_properties(self.courier.records[1].header, 12)["headers"]["n"], 2)
        self.pass_time(30)
        self.assertEqual((self.acks(BURIAL), self.server.called("queue.delete")), ([], []))
        self.presence.has = False
        self.courier.confirm()
        self.server.settle()
        self.assertEqual(self.acks(BURIAL), [1, 2])
        (deleted,) = self.server.called("queue.delete")
        self.assertEqual((deleted["queue"], deleted["if_unused"], deleted["if_empty"]), (QUEUE, True, True))
        self.assertEqual((self.presence.lost, self.events), ([A], [NodeLost(A, 2)]))
        self.assertEqual((self.courier.dead, self.acks()), ([QUEUE], []))
        self.presence.has = True
        self.pass_time(3)
        self.assertEqual(self.acks(), [1])

    def test_a_long_queue(self) -> None:
        """A long queue is emptied so many at a time."""
        self.die()
        self.answer(*[b"x"] * AT_ONCE)
        self.assertEqual((self.gets(), len(self.courier.records)), (AT_ONCE, AT_ONCE))
        self.courier.confirm()
        self.server.settle()
        self.assertEqual(self.gets(), 2 * AT_ONCE)

    def test_only_the_notice_is_left(self) -> None:
        """Where a registrar died in the middle, and the queue is gone already, the next one only says that the node is lost."""
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - no queue")
        self.die()
        self.assertEqual((self.gets(), self.presence.lost, self.acks()), (0, [A], [1]))

    def test_back_in_time(self) -> None:
        """A node that is back when its queue is to be deleted keeps it, and nobody hears that it is lost."""
        self.die()
        self.put(consumers=1)
        self.answer(b"one")
        self.courier.confirm()
        self.pass_time(30)
        self.assertEqual((self.server.called("queue.delete"), self.presence.lost, self.acks()), ([], [], []))

    def test_back_in_the_last_moment(self) -> None:
        """The broker refuses to delete a queue that somebody consumes."""
        self.server.silent.add("queue.delete")
        self.die()
        self.answer()
        self.assertEqual(len(self.server.called("queue.delete")), 1)
        self.put(consumers=1)
        self.server.close_channel(BURIAL, 406, "PRECONDITION_FAILED - queue in use")
        self.pass_time(30)
        self.assertEqual((self.presence.lost, self.acks(), self.server.lost), ([], [], []))

    def test_back_later(self) -> None:
        """A node that comes back after it was said to be lost is told so, on its own queue."""
        self.die()
        self.answer()
        self.server.take()
        self.hear(2, A)
        self.put(consumers=1)
        self.pass_time(3)
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.headers), (QUEUE, {"owsla_notice": "lost"}))
        self.assertEqual(self.acks(), [1])

    def test_said_to_be_gone(self) -> None:
        """A node whose process is known to be dead is buried at once."""
        self.put()
        self.hear(2, A, GONE)
        self.pass_time(0.2)
        self.assertEqual(self.gets(), AT_ONCE)

    def test_a_queue_that_cannot_be_read(self) -> None:
        """What the broker refuses is a warning, and tried again after another grace."""
        self.die()
        self.server.close_channel(BURIAL, 403, "ACCESS_REFUSED - no")
        self.assertIn("cannot be emptied", str(self.events[0]))
        self.pass_time(GRACE + 4.2)
        self.assertEqual((self.gets(), self.acks()), (2 * AT_ONCE, []))

    def test_a_broker_node_that_is_down(self) -> None:
        """A queue on a broker node that is down may have a consumer tomorrow: nobody is dead for that."""
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - home node 'a@b' of durable queue is down or inaccessible")
        self.pass_time(60)
        self.assertEqual((self.presence.lost, self.acks()), ([], []))

    def test_lost_in_the_middle(self) -> None:
        """When the registrar loses its connection in the middle of a burial, what is recorded later is acknowledged nowhere."""
        self.die()
        self.answer(b"one")
        self.lose()
        self.connect()
        self.courier.confirm()
        self.server.settle()
        self.assertEqual(self.server.called("basic.ack"), [])
        self.assertEqual((self.server.lost, self.presence.lost), ([], []))

    def test_the_register_goes_in_the_middle(self) -> None:
        """The same when it begins again with new channels on the same connection."""
        self.die()
        self.answer(b"one")
        self.server.send(REGISTER, "basic.cancel", consumer_tag="owsla-roster", nowait=True)
        self.pass_time(1)
        self.courier.confirm()
        self.server.settle()
        self.assertEqual((self.acks(BURIAL), self.server.lost), ([], []))

    def test_a_quorum_queue(self) -> None:
        """A queue that has no basic.get is emptied by consuming it, and deleted without conditions."""
        self.die()
        self.server.close_channel(BURIAL, 405, "RESOURCE_LOCKED - basic.get operations are not supported")
        self.put(messages=1, consumers=1)
        self.server.raw(deliver(BURIAL, 1, message(b"one", {"connection_id": "x"}), b"one"))
        self.courier.confirm()
        self.put(messages=0, consumers=1)
        self.server.settle()
        self.clock.advance(0.1)
        self.put(messages=0, consumers=1)
        self.pass_time(0.1)
        self.put(messages=0, consumers=0)
        self.pass_time(1)
        self.assertEqual(self.acks(BURIAL), [1])
        (deleted,) = self.server.called("queue.delete")
        self.assertEqual((deleted["if_unused"], deleted["if_empty"]), (False, False))
        self.assertEqual(self.presence.lost, [A])

    def test_a_quorum_queue_that_counts_us_late(self) -> None:
        """Our own consumer may be counted for a while after it has left, and is not taken for the node; one that stays is."""
        for back in (False, True):
            self.setUp()
            self.die()
            self.put(messages=0, consumers=1)
            self.server.close_channel(BURIAL, 405, "RESOURCE_LOCKED - basic.get operations are not supported")
            self.pass_time(LEAVING - 1)
            self.assertEqual((self.server.called("queue.delete"), self.presence.lost), ([], []))
            if not back:
                self.put(messages=0, consumers=0)
            self.pass_time(3)
            self.assertEqual(len(self.server.called("queue.delete")), 0 if back else 1)
            self.assertEqual(self.presence.lost, [] if back else [A])
