"""The registrar role: the notices of this node, the register, and clean-ups, on the wire."""

from __future__ import annotations

from owsla.amqp import wire
from owsla.amqp.methods import encode_method
from owsla.broker.own_queue import NodeNotice
from owsla.cluster.cleanup import AT_ONCE, LEAVING, PERSISTENT, SILENCE
from owsla.cluster.cleanups import FIRST_CHANNEL, RETRY_AFTER
from owsla.cluster.known_nodes import CHANGE_INTERVAL, LIST_INTERVAL
from owsla.cluster.members import KEEP_INTERVAL, RENEW_INTERVAL
from owsla.cluster.notices import GONE, HERE, KEPT, LEFT, RENEWED, Notice, pack_list, read_list
from owsla.cluster.register import (
    HANDOVER,
    INSPECT_CHANNEL,
    RECALL_AFTER,
    REGISTER_CHANNEL,
    REST,
    UNANSWERED,
    ClusterSettings,
    register_queue,
)
from owsla.cluster.registrar import REGROUP, TRANSITIONS, Input, Registrar, RegistrarState
from owsla.events import BrokerWarning, Event, NodeLost
from owsla.letter import DeliverySource, Letter

from ..broker.fakes import BrokerTestCase, Result, Server, deliver, message

ME, A, B = "0123abcd", "aaaaaaaa", "bbbbbbbb"
NODES, QUEUE = "to_device.nodes", f"to_device.{A}"
GRACE = 10.0


class Presence:
    def __init__(self) -> None:
        self.lost: list[str] = []
        self.has = True

    def node_lost(self, node: str) -> None:
        self.lost.append(node)

    def has_announced(self, node: str) -> bool:
        return self.has


class Receiver:
    """Receiver of what is in the queues of dead nodes."""

    def __init__(self) -> None:
        self.records: list[Letter] = []
        self.notices: list[str] = []
        self.forgotten: list[DeliverySource] = []
        self.dead: list[str] = []

    def message(self, letter: Letter, node: bytes) -> None:
        assert node.decode() in (A, B)
        self.records.append(letter)

    def notice(self, notice: NodeNotice) -> None:
        self.notices.append(notice.text)

    def forget(self, source: DeliverySource) -> None:
        self.forgotten.append(source)

    def lost(self, queue: str) -> None:
        self.dead.append(queue)

    def confirm(self) -> None:
        records, self.records = self.records, []
        for letter in records:
            letter.source.done(letter.tag)


class Lists:
    """The lists of nodes that were passed on."""

    def __init__(self) -> None:
        self.state = "up"
        self.lists: list[dict[str, str]] = []

    def list_nodes(self, nodes: bytes) -> bool:
        if self.state == "up":
            self.lists.append(read_list(nodes))
        return self.state == "up"


class Base(BrokerTestCase):
    tune = (0, 0, 0)

    def setUp(self) -> None:
        self.server = Server(heartbeat=60_000, tune=self.tune)
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.node = ME
        self.joined: list[bool] = []
        self.presence, self.receiver, self.lists = Presence(), Receiver(), Lists()
        self.registrar = Registrar(
            self.clock,
            self.events.append,
            ClusterSettings("to_device", register_queue("to_device", {}), GRACE, {"me", "us"}),
            node=lambda: self.node.encode(),
            left_behind=self.receiver,
            presence=self.presence,
            joined=lambda: self.joined.append(self.registrar.joined),
            lists=self.lists,
        )

    def connect(self) -> None:
        if self.server.client.transport is not None:
            found, refusals = self.server.found, self.server.refusals
            self.server = Server(self.clock, heartbeat=60_000)
            self.server.found, self.server.refusals = found, refusals
        self.server.ready()
        up = Result(self.registrar.up(self.server.client))
        self.server.settle()
        assert up.done
        assert up.failure is None, up.failure

    def lose(self) -> None:
        self.server.drop()
        self.registrar.down()

    def said(self) -> list[tuple[str, Notice | None]]:
        return [(one.queue, Notice.read(one.body)) for one in self.server.take()]

    def hear(
        self, tag: int, node: str, state: str = HERE, user: str | None = "us", *, redelivered: bool = False, **more: str
    ) -> None:
        body = Notice(node, state, **more).pack()
        self.server.raw(deliver(REGISTER_CHANNEL, tag, message(body, user_id=user), body, redelivered=redelivered))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.server.settle()

    def acks(self, channel: int = REGISTER_CHANNEL) -> list[int]:
        """Return the delivery tags that are acknowledged so far."""
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
        """Return how many messages were requested with basic.get."""
        return len(self.server.called("basic.get"))

    def answer(self, *messages: bytes, first: int = 1, empty: int = 0, channel: int = FIRST_CHANNEL) -> None:
        """Answer requests with these messages, and `empty` requests with basic.get-empty."""
        data = b""
        for tag, body in enumerate(messages, first):
            method = encode_method("basic.get-ok", delivery_tag=tag, routing_key=QUEUE)
            header = message(body, {"connection_id": f"{A}-x", "n": tag})
            data += wire.frame(1, channel, method) + wire.content_frames(channel, header, body, 131072)
        data += wire.frame(1, channel, encode_method("basic.get-empty")) * empty
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
        """The notice of this node is persistent and mandatory, and is published when its queue is consumed and after each
        reconnect.
        """
        self.connect()
        self.assertEqual(self.said(), [])
        self.registrar.here()
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.method["mandatory"], one.properties["delivery_mode"]), (NODES, True, 2))
        self.assertEqual(Notice.read(one.body), Notice(ME, HERE))
        self.server.ack(REGISTER_CHANNEL, 1)
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_joined(self) -> None:
        """A node has joined when the broker has confirmed its notice, and so accepts messages."""
        self.connect()
        self.registrar.gone(A, True)
        self.server.take()
        self.server.ack(REGISTER_CHANNEL, 1)
        self.registrar.here()
        self.assertEqual((self.joined, self.registrar.joined), ([], False))
        self.server.ack(REGISTER_CHANNEL, 2)
        self.assertEqual((self.joined, self.registrar.joined), ([True], True))
        self.lose()
        self.connect()
        self.server.ack(REGISTER_CHANNEL, 1)
        self.assertEqual((self.joined, self.registrar.joined), ([True], True))

    def test_another_user(self) -> None:
        """A notice that is refused because the broker knows our user by another name is published again with that name, at once
        and without a warning. A refusal of that name is trouble like any other.
        """
        refusal = "PRECONDITION_FAILED - user_id property set to '%s' but authenticated user was 'CN=me'"
        self.connect()
        self.registrar.here()
        (one,) = self.server.take()
        self.assertEqual(one.properties["user_id"], "me")
        self.server.close_channel(REGISTER_CHANNEL, 406, refusal % "me")
        (again,) = self.server.take()
        self.assertEqual((again.queue, again.properties["user_id"], again.body), (NODES, "CN=me", one.body))
        self.assertEqual(self.events, [])
        self.server.ack(REGISTER_CHANNEL, again.tag)
        self.assertEqual(self.joined, [True])
        self.server.close_channel(REGISTER_CHANNEL, 406, refusal % "CN=me")
        (event,) = self.events
        self.assertIn("cannot be used", str(event))

    def test_a_register_that_cannot_be_used(self) -> None:
        """Devices do not wait for a register that refuses notices, or cannot be used."""
        self.connect()
        self.registrar.here()
        self.server.nack(REGISTER_CHANNEL, self.server.take()[0].tag)
        self.assertEqual(self.joined, [True])
        self.setUp()
        for passive in (True, False):
            self.server.refusals[NODES, passive] = (403, "ACCESS_REFUSED - no")
        self.connect()
        self.assertEqual(self.joined, [True])

    def test_away(self) -> None:
        """A node whose queue is not consumed does not announce itself, even if this connection is back first."""
        self.connect()
        self.registrar.here()
        self.server.take()
        self.server.ack(REGISTER_CHANNEL, 1)
        self.lose()
        self.registrar.away()
        self.connect()
        self.assertEqual(self.said(), [])
        self.lose()
        self.registrar.here()
        self.registrar.away()
        self.connect()
        self.assertEqual(self.said(), [])
        self.registrar.here()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_before_the_broker(self) -> None:
        """Notices wait for a connection, and are published again if they were not confirmed."""
        self.registrar.gone(A, True)
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(A, GONE))])
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(A, GONE))])
        self.server.ack(REGISTER_CHANNEL, 1)
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [])

    def test_renewed(self) -> None:
        """A node renews its notice as long as its queue is consumed and it has not left."""
        self.connect()
        self.registrar.here()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])
        self.pass_time(3 * RENEW_INTERVAL - 1)
        self.assertEqual(self.said(), [], "a broker that is blocked has not taken the last one")
        for tag in range(1, 4):
            self.server.ack(REGISTER_CHANNEL, tag)
            self.pass_time(RENEW_INTERVAL + 0.1)
            self.assertEqual(self.said(), [(NODES, Notice(ME, HERE, RENEWED))])
        self.server.ack(REGISTER_CHANNEL, 4)
        self.registrar.away()
        self.pass_time(2 * RENEW_INTERVAL)
        self.assertEqual(self.said(), [])
        self.registrar.here()
        self.registrar.leave()
        self.said()
        self.pass_time(2 * RENEW_INTERVAL)
        self.assertEqual(self.said(), [])

    def test_whose(self) -> None:
        """Notices carry the user name of the login, which the broker verifies."""
        self.connect()
        self.registrar.here()
        self.registrar.probe(f"to_device.{ME}", "probe 7", lambda: None)
        self.assertEqual([one.properties["user_id"] for one in self.server.take()], ["me", "me"])

    def test_died_before_it_served(self) -> None:
        """A node whose process died before its port was open is announced as left."""
        self.registrar.gone(A, False)
        self.connect()
        self.assertEqual(self.said(), [(NODES, Notice(A, LEFT))])

    def test_left(self) -> None:
        """A stop waits for the goodbye; after it this node no longer announces itself."""
        self.connect()
        self.registrar.here()
        self.registrar.leave()
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE)), (NODES, Notice(ME, LEFT))])
        self.assertEqual(self.registrar.unconfirmed, 1)
        self.server.ack(REGISTER_CHANNEL, 2, True)
        self.assertEqual(self.registrar.unconfirmed, 0)
        self.registrar.here()
        self.lose()
        self.connect()
        self.assertEqual(self.said(), [])

    def test_left_behind_a_renewal(self) -> None:
        """The notice of this node is not published after its goodbye, even if the broker refused it or the connection ended."""
        for breaks in (False, True):
            self.setUp()
            self.connect()
            self.registrar.here()
            self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])
            self.registrar.leave()
            self.said()
            if breaks:
                self.lose()
                self.connect()
            else:
                self.server.nack(REGISTER_CHANNEL, 1)
                self.server.ack(REGISTER_CHANNEL, 2, False)
                self.pass_time(60)
            self.assertNotIn(HERE, [notice.state for _, notice in self.said() if notice is not None])

    def test_the_registrar_leaves(self) -> None:
        """The registrar knows whether it is alone, and removes itself when its own queue is gone."""
        self.connect()
        self.registrar.here()
        self.assertEqual((self.registrar.listed, self.registrar.alone), (False, False))
        self.hear(1, ME)
        self.assertEqual((self.registrar.listed, self.registrar.alone), (True, True))
        self.hear(2, A)
        self.assertEqual((self.registrar.listed, self.registrar.alone), (True, False))
        self.registrar.leave()
        self.server.take()
        self.server.ack(REGISTER_CHANNEL, 2, True)
        self.hear(3, ME, LEFT)
        self.server.refusals[f"to_device.{ME}", True] = (404, "NOT_FOUND - no queue")
        self.pass_time(0.2)
        self.assertEqual((self.registrar.listed, self.registrar.alone, self.acks()), (False, False, [1, 3]))

    def test_the_register_is_gone(self) -> None:
        """A returned notice means that the register was deleted: it is declared again, and all notices are published again."""
        self.connect()
        self.registrar.here()
        self.registrar.gone(A, True)
        one, two = self.server.take()
        self.server.give_back(one)
        self.server.give_back(two)
        self.pass_time(1)
        self.assertEqual({said for _, said in self.said()}, {Notice(ME, HERE), Notice(A, GONE)})
        self.assertEqual(len(self.server.called("basic.consume")), 2)
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])

    def test_cancelled(self) -> None:
        """A cancelled consumer means that the register was deleted: it is declared again."""
        self.connect()
        self.registrar.here()
        self.server.take()
        self.server.send(REGISTER_CHANNEL, "basic.cancel", consumer_tag="owsla-registrar", nowait=True)
        self.pass_time(1)
        self.assertEqual(self.said(), [(NODES, Notice(ME, HERE))])

    def test_may_not_be_used(self) -> None:
        """A register that cannot be used is reported once and tried again; devices do not wait for it."""
        for passive in (True, False):
            self.server.refusals[NODES, passive] = (403, "ACCESS_REFUSED - no")
        self.connect()
        self.pass_time(20)
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])
        self.assertEqual(self.server.lost, [])
        self.server.refusals.clear()
        self.registrar.here()
        self.pass_time(40)
        self.assertEqual(self.said()[0], (NODES, Notice(ME, HERE)))

    def test_refused(self) -> None:
        """A refused notice is published again; on new channels if the register accepted nothing, for a while."""
        self.connect()
        self.registrar.here()
        tried: list[bool] = []
        for _ in range(9):
            opened = len(self.server.called("confirm.select"))
            for one in self.server.take():
                self.server.nack(REGISTER_CHANNEL, one.tag)
            self.pass_time(30)
            self.assertEqual({one.queue for one in self.server.published}, {NODES})
            tried.append(len(self.server.called("confirm.select")) > opened)
        self.assertEqual([number for number, new in enumerate(tried, 1) if new], [3, 4, 5, 6, 7])

    def test_a_probe(self) -> None:
        """A probe goes to the own queue, for no connection, and its sender is called when it is confirmed."""
        arrived: list[bool] = []
        self.connect()
        self.registrar.probe(f"to_device.{ME}", "probe 7", lambda: arrived.append(True))
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.headers), (f"to_device.{ME}", {"owsla_notice": "probe 7"}))
        self.assertEqual(arrived, [])
        self.server.ack(REGISTER_CHANNEL, 1)
        self.assertEqual(arrived, [True])

    def test_no_timers_left(self) -> None:
        """A lost connection leaves no timer."""
        self.connect()
        self.hear(1, A)
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_odd_notices(self) -> None:
        """A message on the register that is not a notice is dropped with a warning."""
        self.connect()
        self.server.raw(deliver(REGISTER_CHANNEL, 1, message(b"x", user_id="me"), b"x"))
        self.assertEqual(self.acks(), [1])
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])

    def test_forged_notices(self) -> None:
        """A notice of another user is dropped with a warning that names the user."""
        self.connect()
        for tag, (user, state) in enumerate([("backend", HERE), ("backend", LEFT), (None, HERE), ("", GONE)], 1):
            self.hear(tag, A, state, user)
        self.assertEqual(self.acks(), [1, 2, 3, 4])
        self.assertEqual(len([text for text in map(str, self.events) if "backend" in text]), 1)
        self.pass_time(60)
        self.assertEqual((self.presence.lost, self.registrar.listed), ([], False))

    def test_vanished(self) -> None:
        """A register that loses notices is reported once. Notices of another registrar do not count."""

        def warnings() -> int:
            return len([text for text in map(str, self.events) if "vanish" in text])

        self.connect()
        self.hear(1, A, origin=RENEWED, redelivered=True)
        self.hear(2, B, origin=RENEWED)
        self.put(f"to_device.{B}", consumers=1)
        self.put(consumers=1)
        self.pass_time(HANDOVER + 1)
        self.hear(3, B, origin=RENEWED)
        self.hear(4, "cccccccc", origin=RENEWED, redelivered=True)
        self.assertEqual(warnings(), 0)
        for tag, node in enumerate(("dddddddd", "eeeeeeee"), 5):
            self.hear(tag, node, origin=RENEWED)
        self.assertEqual(warnings(), 1)


class RegistrarTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.put(consumers=1)
        self.hear(1, A)

    def die(self, messages: int = 0) -> None:
        """A dead node with messages in its queue."""
        self.put(messages=messages)
        self.pass_time(GRACE + 4.2)

    def deleted(self) -> list[dict[str, object]]:
        return self.server.called("queue.delete")

    def test_alive(self) -> None:
        """A node whose queue has a consumer is not cleaned up."""
        self.pass_time(60)
        self.assertEqual((self.gets(), self.events), (0, []))

    def test_dead(self) -> None:
        """The queue of a dead node is emptied, each message recorded before it is acknowledged; then the loss is announced;
        then, after some seconds without a message, the queue is deleted.
        """
        self.die(2)
        self.assertEqual(self.gets(), 2)
        self.answer(b"one", b"two")
        self.assertEqual([one.body for one in self.receiver.records], [b"one", b"two"])
        self.assertEqual({one.connection_id for one in self.receiver.records}, {b"aaaaaaaa-x"})
        self.assertEqual(wire.decode_properties(self.receiver.records[1].header, 12)["headers"]["n"], 2)
        self.pass_time(30)
        self.assertEqual((self.acks(FIRST_CHANNEL), self.presence.lost), ([], []))
        self.presence.has = False
        self.put()
        self.receiver.confirm()
        self.pass_time(0.1)
        self.assertEqual(self.acks(FIRST_CHANNEL), [1, 2])
        self.assertEqual((self.presence.lost, self.events), ([A], [NodeLost(A, 2)]))
        self.pass_time(SILENCE - 0.5)
        self.assertEqual((self.deleted(), self.receiver.dead), ([], []))
        self.pass_time(1)
        (deleted,) = self.deleted()
        self.assertEqual((deleted["queue"], deleted["if_unused"], deleted["if_empty"]), (QUEUE, True, True))
        before = self.acks()
        self.assertEqual(self.receiver.dead, [QUEUE])
        self.presence.has = True
        self.pass_time(3)
        self.assertEqual(len(self.acks()), len(before) + 1)
        self.assertEqual((self.presence.lost, self.events), ([A], [NodeLost(A, 2)]))

    def test_notices(self) -> None:
        """Notices in the queue of a dead node are given to the receiver, and acknowledged at once."""
        self.die(1)
        header = message(b"", {"owsla_notice": "fence 7"})
        method = encode_method("basic.get-ok", delivery_tag=1, routing_key=QUEUE)
        self.server.raw(wire.frame(1, FIRST_CHANNEL, method) + wire.content_frames(FIRST_CHANNEL, header, b"", 131072))
        self.put()
        self.pass_time(0.1)
        self.assertEqual((self.receiver.notices, self.receiver.records), (["fence 7"], []))
        self.assertEqual(self.acks(FIRST_CHANNEL), [1])

    def test_forgotten(self) -> None:
        """Messages that are not settled are forgotten when the channel ends: the next clean-up finds them in the queue."""
        self.die(1)
        self.answer(b"one")
        (letter,) = self.receiver.records
        self.lose()
        self.assertIn(letter.source, self.receiver.forgotten)

    def test_silence(self) -> None:
        """Messages that come later are recorded and delay the deletion; the operator is warned once."""
        self.die(1)
        for tag in range(1, 40):
            self.put()
            self.answer(b"more", first=tag)
            self.receiver.confirm()
            self.pass_time(SILENCE - 1)
            self.assertEqual(self.presence.lost, [A])
            self.put(messages=1)
            self.pass_time(0.2)
        self.put()
        self.answer(empty=1)
        self.assertEqual((self.deleted(), self.acks(FIRST_CHANNEL)), ([], list(range(1, 40))))
        self.assertGreater(39 * (SILENCE - 1), PERSISTENT)
        self.assertEqual(len([text for text in map(str, self.events) if "still send" in text]), 1)
        self.pass_time(SILENCE + 1)
        self.assertEqual(len(self.deleted()), 1)
        self.assertEqual(self.presence.lost, [A])

    def test_a_stream(self) -> None:
        """The loss of a node is announced even if its queue is never empty."""
        self.die(2)
        self.answer(b"one", b"two")
        self.receiver.confirm()
        self.pass_time(0.5)
        self.assertEqual(self.presence.lost, [A])
        self.assertEqual(self.gets(), 4)

    def test_two_at_a_time(self) -> None:
        """The clean-up of a node does not wait for another one."""
        other = f"to_device.{B}"
        self.put(other)
        self.hear(2, B)
        self.die(1)
        self.assertEqual(self.presence.lost, [B], "the first one's message is not on record yet")
        self.pass_time(SILENCE + 1)
        self.assertEqual([one["queue"] for one in self.deleted()], [other])
        self.answer(b"one")
        self.put()
        self.receiver.confirm()
        self.pass_time(SILENCE + 1)
        self.assertEqual([one["queue"] for one in self.deleted()], [other, QUEUE])
        self.assertEqual(self.server.lost, [])

    def test_many(self) -> None:
        """All dead nodes are cleaned up, however many there are."""
        for tag in range(2, 150):
            self.put(f"to_device.{tag:08x}")
            self.hear(tag, f"{tag:08x}", LEFT)
        self.pass_time(4 * SILENCE)
        self.assertEqual(len(self.deleted()), 148)
        self.assertEqual(self.server.lost, [])

    def test_few_channels(self) -> None:
        """Clean-ups use no channel above the negotiated `channel_max`; all nodes are cleaned up, one after another."""
        for channel_max, used in ((16, 15), (5, 5)):
            self.tune = (channel_max, 0, 0)
            self.setUp()
            for tag in range(2, 22):
                self.put(f"to_device.{tag:08x}")
                self.hear(tag, f"{tag:08x}", LEFT)
            self.pass_time(21 * (SILENCE + 1))
            self.assertEqual(len(self.deleted()), 20)
            self.assertEqual(max(channel for channel, _, _ in self.server.calls), used)
            self.assertEqual(self.server.lost, [])

    def test_a_long_queue(self) -> None:
        """A long queue is emptied in portions, and the loss is announced when that is done."""
        self.die(AT_ONCE + 7)
        self.assertEqual(self.gets(), AT_ONCE)
        self.answer(*[b"x"] * AT_ONCE)
        self.assertEqual((self.gets(), len(self.receiver.records)), (AT_ONCE, AT_ONCE))
        self.put(messages=7)
        self.receiver.confirm()
        self.pass_time(0.3)
        self.assertEqual((self.gets(), self.presence.lost), (AT_ONCE + 7, []))
        self.put()
        self.answer(*[b"x"] * 7, first=AT_ONCE + 1)
        self.receiver.confirm()
        self.pass_time(0.3)
        self.assertEqual(self.presence.lost, [A])

    def test_somebody_else_takes_them(self) -> None:
        """Messages that expire, or that another consumer takes, are not waited for."""
        self.die(3)
        self.put()
        self.answer(b"one", empty=2)
        self.receiver.confirm()
        self.pass_time(0.5)
        self.assertEqual(self.presence.lost, [A])

    def test_only_the_notice_is_left(self) -> None:
        """If the queue is gone already, the next registrar only announces the loss."""
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - no queue")
        self.die()
        self.assertEqual((self.gets(), self.presence.lost), (0, [A]))
        self.assertEqual(self.acks(), [1])

    def test_said_goodbye(self) -> None:
        """A node that left is cleaned up at once, and nothing is announced."""
        self.put(messages=1)
        self.hear(2, A, LEFT)
        self.pass_time(0.3)
        self.put()
        self.answer(b"one")
        self.receiver.confirm()
        self.pass_time(SILENCE + 1)
        self.assertEqual((len(self.deleted()), self.presence.lost, self.events), (1, [], []))
        self.assertEqual(self.acks(), [1, 2])

    def test_back_in_time(self) -> None:
        """A node that is back before its loss was announced keeps its queue, and nothing is announced."""
        self.die(1)
        self.put(consumers=1)
        self.answer(b"one")
        self.presence.lost.clear()
        self.pass_time(30)
        self.assertEqual((self.deleted(), self.presence.lost), ([], []))

    def test_back_while_it_is_silent(self) -> None:
        """A node that is back before its queue is deleted keeps it, and is told that it was announced as lost."""
        self.die()
        self.assertEqual(self.presence.lost, [A])
        self.put(consumers=1)
        self.server.take()
        self.hear(2, A)
        self.pass_time(30)
        (one,) = [one for one in self.server.take() if one.queue == QUEUE]
        self.assertEqual(one.headers, {"owsla_notice": "lost"})
        self.assertEqual(self.deleted(), [])

    def test_back_in_the_last_moment(self) -> None:
        """A queue that has a consumer again is not deleted."""
        self.server.silent.add("queue.delete")
        self.die()
        self.pass_time(SILENCE + 1)
        self.assertEqual(len(self.deleted()), 1)
        self.put(consumers=1)
        self.server.close_channel(FIRST_CHANNEL, 406, "PRECONDITION_FAILED - queue in use")
        self.pass_time(30)
        self.assertEqual((len(self.deleted()), self.server.lost), (1, []))

    def test_a_message_in_the_last_moment(self) -> None:
        """A queue with a message in it is not deleted; the message is recorded."""
        self.server.silent.add("queue.delete")
        self.die()
        self.pass_time(SILENCE + 1)
        self.put(messages=1)
        self.server.close_channel(FIRST_CHANNEL, 406, "PRECONDITION_FAILED - queue not empty")
        self.pass_time(0.5)
        self.assertEqual(self.gets(), 1)

    def test_back_later(self) -> None:
        """A node that comes back after it was announced as lost is told so, on its own queue."""
        self.die()
        self.pass_time(SILENCE + 1)
        self.server.take()
        self.hear(2, A)
        self.put(consumers=1)
        self.pass_time(3)
        (one,) = self.server.take()
        self.assertEqual((one.queue, one.headers), (QUEUE, {"owsla_notice": "lost"}))
        self.assertEqual(self.acks(), [1])

    def test_an_answer_to_nothing(self) -> None:
        """An answer to a basic.get that was not sent ends the connection."""
        self.die()
        for _ in range(AT_ONCE + 1):
            if not self.server.transport.ended:
                self.server.client.dataReceived(wire.frame(wire.FRAME_METHOD, FIRST_CHANNEL, encode_method("basic.get-empty")))
        self.server.settle()
        self.assertEqual([type(error) for error in self.server.lost], [wire.WireError])

    def test_said_to_be_gone(self) -> None:
        """A node whose process is known to be dead is cleaned up at once."""
        self.put(messages=1)
        self.hear(2, A, GONE)
        self.pass_time(0.2)
        self.assertEqual(self.gets(), 1)

    def test_kept(self) -> None:
        """The registrar publishes a notice again that its node no longer renews."""
        self.server.take()
        self.pass_time(KEEP_INTERVAL + 3)
        self.assertEqual(self.said(), [(NODES, Notice(A, HERE, KEPT))])

    def test_a_queue_that_cannot_be_read(self) -> None:
        """A clean-up that the broker refuses is reported and tried again later."""
        self.die(1)
        self.server.close_channel(FIRST_CHANNEL, 403, "ACCESS_REFUSED - no")
        self.assertIn("cannot be emptied", str(self.events[0]))
        self.pass_time(GRACE + RETRY_AFTER + 5)
        self.assertEqual(self.gets(), 2)
        self.assertEqual(self.presence.lost, [])

    def test_a_broker_node_that_is_down(self) -> None:
        """A node whose queue is on a broker node that is down does not count as dead."""
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - home node 'a@b' of durable queue is down or inaccessible")
        self.pass_time(60)
        self.assertEqual((self.presence.lost, self.acks()), ([], []))

    def test_a_slow_refusal(self) -> None:
        """A queue whose inspection is refused after a long time, as with Khepri, is not inspected again for some minutes."""
        self.put(f"to_device.{B}", consumers=1)
        self.hear(2, B)
        refused = 404, "NOT_FOUND - failed to perform operation on queue due to timeout"

        def inspections(queue: str) -> int:
            return len([fields for fields in self.server.called("queue.declare") if fields["queue"] == queue])

        self.server.silent.add("queue.declare")
        self.pass_time(70)
        self.server.silent.clear()
        self.server.close_channel(INSPECT_CHANNEL, *refused)
        before, others = inspections(QUEUE), inspections(f"to_device.{B}")
        self.pass_time(REST - 5)
        self.assertEqual(inspections(QUEUE), before)
        self.assertGreater(inspections(f"to_device.{B}"), others + 100)
        self.assertEqual(self.presence.lost, [])
        self.pass_time(10)
        self.assertGreater(inspections(QUEUE), before)

    def test_lost_in_the_middle(self) -> None:
        """After a lost connection, records of a clean-up acknowledge nothing."""
        self.die(1)
        self.answer(b"one")
        self.lose()
        self.connect()
        self.receiver.confirm()
        self.server.settle()
        self.assertEqual(self.server.called("basic.ack"), [])
        self.assertEqual((self.server.lost, self.presence.lost), ([], []))

    def test_the_register_goes_in_the_middle(self) -> None:
        """The same holds for new channels on the same connection, at any point of the clean-up."""
        for messages in (0, 1):
            self.setUp()
            self.die(messages)
            self.answer(*[b"one"] * messages)
            self.server.send(REGISTER_CHANNEL, "basic.cancel", consumer_tag="owsla-registrar", nowait=True)
            self.pass_time(1)
            self.receiver.confirm()
            self.server.settle()
            self.pass_time(SILENCE + 1)
            self.assertEqual((self.acks(FIRST_CHANNEL), self.server.lost, self.deleted()), ([], [], []))
            self.hear(1, A, redelivered=True)
            self.die()
            self.pass_time(SILENCE + 1)
            self.assertEqual((len(self.deleted()), self.server.lost), (1, []))
            self.assertEqual(self.presence.lost, [A])

    def test_a_quorum_queue(self) -> None:
        """A queue without basic.get is consumed, and deleted without conditions."""
        self.die(1)
        self.put(messages=1, consumers=1)
        self.server.close_channel(FIRST_CHANNEL, 405, "RESOURCE_LOCKED - basic.get operations are not supported")
        self.server.raw(deliver(FIRST_CHANNEL, 1, message(b"one", {"connection_id": "x"}), b"one"))
        looks = len(self.server.called("queue.declare"))
        self.put(messages=5000, consumers=1)
        self.pass_time(1)
        self.assertLess(len(self.server.called("queue.declare")) - looks, 20, "looks that follow each other at once")
        self.put(messages=0, consumers=1)
        self.pass_time(SILENCE + 1)
        self.assertEqual(self.deleted(), [], "it is not on record yet")
        self.receiver.confirm()
        self.pass_time(SILENCE - 1)
        self.server.raw(deliver(FIRST_CHANNEL, 2, message(b"two", {"connection_id": "x"}), b"two"))
        self.receiver.confirm()
        self.pass_time(SILENCE - 1)
        self.assertEqual((self.deleted(), self.presence.lost), ([], [A]))
        self.pass_time(1.5)
        self.assertEqual(len(self.server.called("basic.cancel")), 1)
        self.put(messages=0, consumers=0)
        self.pass_time(1)
        self.assertEqual(self.acks(FIRST_CHANNEL), [1, 2])
        (deleted,) = self.deleted()
        self.assertEqual((deleted["if_unused"], deleted["if_empty"]), (False, False))

    def test_a_quorum_queue_whose_node_is_back(self) -> None:
        """A node that comes back to such a queue waits behind our consumer, which is cancelled."""
        self.die(1)
        self.put(messages=0, consumers=1)
        self.server.close_channel(FIRST_CHANNEL, 405, "RESOURCE_LOCKED - basic.get operations are not supported")
        self.put(messages=0, consumers=2)
        self.pass_time(1)
        self.put(messages=0, consumers=1)
        self.pass_time(30)
        self.assertEqual(self.deleted(), [])
        self.assertIn(FIRST_CHANNEL, [channel for channel, name, _ in self.server.calls if name == "channel.close"])

    def test_a_quorum_queue_that_counts_us_late(self) -> None:
        """Our own cancelled consumer may be counted for a while and is not taken for the node; a consumer that stays is."""
        for back in (False, True):
            self.setUp()
            self.die(1)
            self.put(messages=0, consumers=1)
            self.server.close_channel(FIRST_CHANNEL, 405, "RESOURCE_LOCKED - basic.get operations are not supported")
            self.pass_time(SILENCE + LEAVING - 1)
            self.assertEqual(self.deleted(), [])
            if not back:
                self.put(messages=0, consumers=0)
            self.pass_time(3)
            self.assertEqual(len(self.deleted()), 0 if back else 1)


class KnownNodeTests(Base):
    """Nodes that the registrar knows, though the broker has dropped their notices."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.registrar.here()
        self.said()

    def warnings(self, text: str = "vanish") -> int:
        return len([event for event in map(str, self.events) if text in event])

    def kept(self) -> list[Notice | None]:
        return [notice for _, notice in self.said() if notice is not None and notice.origin == KEPT]

    def learn(self, **nodes: str) -> None:
        self.registrar.learn(pack_list(nodes))

    def test_listed(self) -> None:
        """The registrar lists its members to all nodes: soon after a change, otherwise seldom, and not without other nodes."""
        self.hear(1, ME)
        self.pass_time(60)
        self.assertEqual(self.lists.lists, [])
        self.put(consumers=1)
        self.hear(2, A)
        self.pass_time(RECALL_AFTER)
        self.assertEqual(self.lists.lists, [{ME: HERE, A: HERE}])
        self.hear(3, A, LEFT)
        self.pass_time(CHANGE_INTERVAL)
        self.assertEqual(self.lists.lists[1:], [{ME: HERE, A: LEFT}])
        self.pass_time(LIST_INTERVAL + 4)
        self.assertEqual(len(self.lists.lists), 3)

    def test_listed_when_that_is_possible(self) -> None:
        """A list that cannot go now goes as soon as it can."""
        self.lists.state = "blocked"
        self.put(consumers=1)
        self.hear(1, ME)
        self.hear(2, A)
        self.pass_time(60)
        self.lists.state = "up"
        self.pass_time(3)
        self.assertEqual(self.lists.lists, [{ME: HERE, A: HERE}])

    def test_recalled(self) -> None:
        """A new registrar publishes the notices of listed nodes that it did not get, if their queues exist. It warns, and then
        lists all.
        """
        self.server.refusals["to_device.cccccccc", True] = (404, "NOT_FOUND - no queue")
        self.learn(**{ME: HERE, A: HERE, B: LEFT, "cccccccc": HERE, "dddddddd": HERE})
        for node in (A, B, "dddddddd"):
            self.put(f"to_device.{node}", consumers=1)
        self.hear(1, ME, redelivered=True)
        self.hear(2, "dddddddd", redelivered=True)
        self.pass_time(RECALL_AFTER - 1)
        self.assertEqual(self.kept(), [])
        self.pass_time(4)
        self.assertEqual(self.kept(), [Notice(A, HERE, KEPT), Notice(B, LEFT, KEPT)])
        self.assertEqual(self.warnings(), 1)
        self.hear(3, A, origin=KEPT)
        self.hear(4, B, LEFT, origin=KEPT)
        self.pass_time(CHANGE_INTERVAL + 3)
        self.assertEqual(self.lists.lists[-1], {ME: HERE, A: HERE, B: LEFT, "dddddddd": HERE})
        self.pass_time(20)
        self.assertEqual(self.kept(), [], "once")

    def test_dead(self) -> None:
        """A recalled node that is dead is announced as lost."""
        self.learn(**{ME: HERE, A: HERE})
        self.put()
        self.hear(1, ME, redelivered=True)
        self.pass_time(RECALL_AFTER + 3)
        self.hear(2, A, origin=KEPT)
        self.pass_time(GRACE + 4)
        self.assertEqual(self.presence.lost, [A])

    def test_not_the_registrar(self) -> None:
        """A node that is not the registrar publishes the notices of no other node."""
        self.learn(**{ME: HERE, A: HERE})
        self.put()
        self.pass_time(100)
        self.assertEqual(self.kept(), [])

    def test_an_inspection_without_an_answer(self) -> None:
        """A listed node whose queue cannot be inspected is inspected again in the next round."""
        self.learn(**{ME: HERE, A: HERE})
        self.put(consumers=1)
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - home node 'a@b' of durable queue is down or inaccessible")
        self.hear(1, ME, redelivered=True)
        self.pass_time(RECALL_AFTER + 10)
        self.assertEqual(self.kept(), [])
        self.server.refusals.clear()
        self.pass_time(3)
        self.assertEqual(self.kept(), [Notice(A, HERE, KEPT)])

    def test_a_deleted_register(self) -> None:
        """The registrar knows its members after the register was deleted, and gives no reason but that one."""
        self.put()
        self.hear(1, ME)
        self.hear(2, A)
        self.server.send(REGISTER_CHANNEL, "basic.cancel", consumer_tag="owsla-roster")
        self.pass_time(1)
        self.said()
        self.hear(1, ME)
        self.pass_time(RECALL_AFTER + 3)
        self.assertEqual((self.kept(), self.warnings(), self.warnings("is gone")), ([Notice(A, HERE, KEPT)], 0, 1))

    def test_a_clean_up_that_was_interrupted(self) -> None:
        """A node that was announced as lost, and whose notice vanished before its queue was deleted, is cleaned up after. It is
        not announced again.
        """
        self.put()
        self.hear(1, ME)
        self.hear(2, A)
        self.pass_time(GRACE + 4)
        self.assertEqual(self.presence.lost, [A])
        self.lose()
        self.connect()
        self.said()
        self.hear(1, ME, redelivered=True)
        self.pass_time(RECALL_AFTER + 3)
        self.assertEqual(self.kept(), [Notice(A, HERE, KEPT)])
        self.hear(2, A, origin=KEPT)
        self.pass_time(REGROUP + GRACE + SILENCE + 4)
        self.assertEqual((self.presence.lost, self.acks()[-1:]), ([A], [2]))
        self.assertTrue(self.server.called("queue.delete"))

    def test_nobody_answers(self) -> None:
        """If no registrar is heard of for minutes, the operator is warned once; not while lists cannot come."""

        def confirm(seconds: float) -> int:
            for _ in range(round(seconds / RENEW_INTERVAL)):
                self.pass_time(RENEW_INTERVAL)
                for one in self.server.take():
                    self.server.ack(REGISTER_CHANNEL, one.tag)
            return self.warnings("no node says")

        self.server.ack(REGISTER_CHANNEL, 1)
        self.lists.state = "refused"
        self.assertEqual(confirm(2 * UNANSWERED), 0)
        self.lists.state = "up"
        for _ in range(10):
            self.learn(**{ME: HERE, A: HERE})
            self.assertEqual(confirm(LIST_INTERVAL), 0)
        self.assertEqual(confirm(UNANSWERED - RENEW_INTERVAL), 0)
        self.assertEqual(confirm(2 * UNANSWERED), 1)
        self.hear(1, ME)
        self.assertEqual(confirm(2 * UNANSWERED), 1)


class StateMachineTests(Base):
    def test_the_table(self) -> None:
        """Every state is reached, is left again, and ends with the connection."""
        self.assertEqual(set(TRANSITIONS.values()), set(RegistrarState))
        for state in RegistrarState:
            self.assertIs(TRANSITIONS[state, Input.DISCONNECTED], RegistrarState.DISCONNECTED)
            self.assertTrue([after for (before, _), after in TRANSITIONS.items() if before is state and after is not state])

    def test_an_input_that_is_not_in_the_table(self) -> None:
        """An input that is not in the table raises, and changes nothing."""
        with self.assertRaises(ValueError):
            self.registrar._move(Input.SET_UP)
        self.assertIs(self.registrar._state, RegistrarState.DISCONNECTED)

    def test_trouble_during_the_set_up(self) -> None:
        """A set-up whose consumer is cancelled before it is complete changes nothing: the next one does."""
        self.server.silent.add("basic.consume")
        self.server.ready()
        up = Result(self.registrar.up(self.server.client))
        self.server.settle()
        self.server.send(REGISTER_CHANNEL, "basic.cancel", consumer_tag="owsla-roster")
        self.server.send(REGISTER_CHANNEL, "basic.consume-ok", consumer_tag="owsla-roster")
        self.assertTrue(up.done)
        self.assertIs(self.registrar._state, RegistrarState.WAITING)
        self.server.silent.clear()
        self.pass_time(1)
        self.assertIs(self.registrar._state, RegistrarState.ACTIVE)
        self.assertFalse(self.server.transport.ended)
