"""Tests of messages to all nodes: the role that publishes them, and the binding of the own queue."""

from __future__ import annotations

import json
from typing import Any

from owsla.amqp import wire
from owsla.broker import message_properties
from owsla.broker.binding import CHANNEL as BINDING_CHANNEL
from owsla.broker.binding import CHECK_INTERVAL, BindingState, unbind
from owsla.broker.broadcast import CHANNEL, CONNECTION_ATTEMPTS, STUCK, BroadcastRole
from owsla.broker.group_messages import ATTEMPTS, EXPIRY_INTERVAL
from owsla.broker.notices import QUESTION_PATIENCE, UNCONFIRMED_NOTICES
from owsla.events import BrokerWarning, Event
from owsla.letter import BAD, Letter

from .fakes import BrokerTestCase, Publish, Result, Server, Source

EXCHANGE = "to_device.all"
OWN = "to_device.01234567"
REFUSED = (403, "ACCESS_REFUSED - access to exchange 'to_device.all' refused for user 'me'")
MISSING = (404, "NOT_FOUND - no exchange 'to_device.all' in vhost '/there'")
OTHER_TYPE = (406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'to_device.all' in vhost '/there': received")
NOT_DURABLE = (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'to_device.all' in vhost '/there'")


class Base(BrokerTestCase):
    """A role on one connection, and its binding on another: that of the consumers."""

    def setUp(self) -> None:
        self.server = Server(heartbeat=1000)
        self.clock = self.server.clock
        self.consumers = Server(self.clock, heartbeat=1000).ready()
        self.events: list[Event] = []
        self.states: list[str] = []
        self.recorded: list[tuple[int, str]] = []
        self.source = Source()
        self.wall = 1_000_000.0
        self.role = BroadcastRole(
            self.clock,
            self.events.append,
            exchange=EXCHANGE,
            own_queue=lambda: OWN,
            question_lifetime=lambda: 1.5,
            claim_lifetime=120.0,
            record=self.record,
            now=lambda: self.wall,
        )
        self.role.watch(self.states.append)

    def record(self, letter: Letter, reason: str) -> None:
        self.recorded.append((letter.tag, reason))

    def bind(self) -> None:
        result = Result(self.role.binding.begin(self.consumers.client, OWN))
        self.settle()
        assert result.done
        assert result.failure is None

    def connect(self) -> None:
        if self.server.client.transport is not None:
            self.server = Server(self.clock, heartbeat=1000)
        self.server.client.watcher = self.role
        self.server.ready()
        result = Result(self.role.up(self.server.client))
        self.settle()
        assert result.done
        assert result.failure is None

    def confirm_probe(self) -> None:
        (probe,) = self.take()
        self.server.ack(probe.channel, probe.tag)
        self.settle()

    def come_up(self) -> None:
        self.bind()
        self.connect()
        self.confirm_probe()

    def settle(self) -> None:
        for _ in range(3):
            self.consumers.settle()
            if self.server.client.transport is not None:
                self.server.settle()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.settle()

    def take(self) -> list[Publish]:
        self.settle()
        return self.server.take()

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, BrokerWarning)]


class BindingTests(Base):
    @property
    def binding(self) -> Any:
        return self.role.binding

    def count(self, name: str) -> int:
        return len(self.consumers.called(name))

    def test_bound(self) -> None:
        """The exchange is a durable fanout exchange, and the own queue is bound to it."""
        self.bind()
        (declared,) = self.consumers.called("exchange.declare")
        self.assertEqual((declared["exchange"], declared["type"], declared["durable"]), (EXCHANGE, "fanout", True))
        (bound,) = self.consumers.called("queue.bind")
        self.assertEqual((bound["queue"], bound["exchange"], bound["routing_key"]), (OWN, EXCHANGE, ""))
        self.assertIs(self.binding.state, BindingState.BOUND)

    def test_bound_again(self) -> None:
        """The queue is bound again every few seconds, on the same channel, so that a lost binding comes back."""
        self.bind()
        opened = self.count("channel.open")
        self.pass_time(CHECK_INTERVAL + 0.1)
        self.assertEqual((self.count("queue.bind"), self.count("channel.open")), (2, opened))
        self.assertEqual(self.count("exchange.declare"), 1)

    def test_exchange_deleted(self) -> None:
        """An exchange that was deleted is declared again when the queue is bound again, or when a message misses it."""
        self.bind()
        self.consumers.refusals[f"bind {OWN}", False] = MISSING
        self.pass_time(CHECK_INTERVAL + 0.1)
        self.assertIs(self.binding.state, BindingState.AWAY)
        self.consumers.refusals.clear()
        self.pass_time(2.5)
        self.assertIs(self.binding.state, BindingState.BOUND)
        declared = self.count("exchange.declare")
        self.binding.check()
        self.settle()
        self.assertEqual(self.count("exchange.declare"), declared + 1)
        self.assertEqual(self.warnings(), [])

    def test_no_permission(self) -> None:
        """Without permission to declare or to bind there is one warning. It is tried again, and works when permitted."""
        for what in ((EXCHANGE, False), (f"bind {OWN}", False)):
            self.events.clear()
            self.consumers.refusals = {what: REFUSED, (EXCHANGE, True): MISSING}
            self.bind()
            self.assertIs(self.binding.state, BindingState.REFUSED)
            self.pass_time(30)
            self.assertEqual(len(self.warnings()), 1, what)
            self.assertIn(REFUSED[1], self.warnings()[0])
            self.consumers.refusals.clear()
            self.pass_time(60)
            self.assertIs(self.binding.state, BindingState.BOUND)
            self.come_up()  # which ends the warning
            self.server.drop()
            self.role.down()

    def test_permission_taken_away(self) -> None:
        """A node that is bound stays so when the permission to bind is taken away."""
        self.bind()
        self.consumers.refusals[f"bind {OWN}", False] = REFUSED
        self.pass_time(3 * CHECK_INTERVAL)
        self.assertEqual((self.binding.state, self.warnings()), (BindingState.BOUND, []))
        self.assertEqual(self.count("exchange.declare"), 1)

    def test_as_it_is(self) -> None:
        """An exchange that others declared is used as it is, with a warning."""
        for refusal in (REFUSED, NOT_DURABLE):
            self.consumers.refusals[EXCHANGE, False] = refusal
            self.bind()
            self.assertIs(self.binding.state, BindingState.BOUND)
            self.assertEqual(len(self.warnings()), 1)
            self.assertIn("is used as it is", self.warnings()[0])
            self.binding.end()
            self.events.clear()

    def test_another_type(self) -> None:
        """An exchange of another type is not used."""
        self.consumers.refusals[EXCHANGE, False] = OTHER_TYPE
        self.bind()
        self.assertIs(self.binding.state, BindingState.REFUSED)
        self.assertEqual(self.count("queue.bind"), 0)
        self.assertEqual(len(self.warnings()), 1)

    def test_the_connection_goes_on(self) -> None:
        """A refusal closes no connection."""
        self.consumers.refusals = {(EXCHANGE, False): REFUSED, (EXCHANGE, True): MISSING}
        self.bind()
        self.assertEqual((self.consumers.lost, self.consumers.transport.ended), ([], False))

    def test_removed(self) -> None:
        """A stop unbinds the queue, which is not bound again."""
        self.bind()
        removed = Result(self.binding.remove())
        self.settle()
        self.assertTrue(removed.done)
        (unbound,) = self.consumers.called("queue.unbind")
        self.assertEqual((unbound["queue"], unbound["exchange"]), (OWN, EXCHANGE))
        self.pass_time(CHECK_INTERVAL + 0.1)
        self.assertEqual((self.count("queue.bind"), self.clock.getDelayedCalls()[1:]), (1, []))

    def test_never_bound(self) -> None:
        """A stop of a node that could not bind unbinds nothing."""
        self.consumers.refusals[EXCHANGE, False] = OTHER_TYPE
        self.bind()
        removed = Result(self.binding.remove())
        self.settle()
        self.assertTrue(removed.done)
        self.assertEqual(self.count("queue.unbind"), 0)

    def test_unbind_refused(self) -> None:
        """A refusal to unbind is ignored."""
        self.consumers.silent.add("queue.unbind")
        removed = Result(unbind(self.consumers.client, BINDING_CHANNEL, OWN, EXCHANGE))
        self.settle()
        self.consumers.close_channel(BINDING_CHANNEL, *REFUSED)
        self.settle()
        self.assertTrue(removed.done)
        self.assertIsNone(removed.failure)


class NoticeTests(Base):
    def test_tried_first(self) -> None:
        """A channel is tried with a claim about no device; the role is up when the broker confirms it."""
        self.bind()
        self.connect()
        self.assertEqual((self.role.state, self.role.ask(["a"]), self.role.dropped), ("away", False, 1))
        (probe,) = self.take()
        self.assertEqual((probe.headers, probe.body), ({"owsla_notice": "here"}, b"[]"))
        self.server.ack(CHANNEL, 1)
        self.assertEqual((self.role.state, self.states), ("up", ["up"]))

    def test_a_question(self) -> None:
        """A question has the device in a header, or several in the body. It names the queue for answers, and expires."""
        self.come_up()
        published = []
        for ids in (["sensor 7"], ["a", "b\0"], ["\ud800"]):
            self.assertTrue(self.role.ask(ids))
            published += self.take()
            self.server.ack(CHANNEL, published[-1].tag)
        one, two, odd = published
        self.assertEqual((one.method["exchange"], one.queue, one.method["mandatory"]), (EXCHANGE, "", True))
        self.assertEqual((one.headers, one.body), ({"owsla_notice": "who-has", "device_id": "sensor 7"}, b""))
        properties = one.properties
        self.assertEqual(
            (properties["user_id"], properties["reply_to"], properties["expiration"], properties["delivery_mode"]),
            ("me", OWN, "1500", 1),
        )
        self.assertEqual((two.headers, json.loads(two.body)), ({"owsla_notice": "who-has"}, ["a", "b\0"]))
        self.assertEqual(json.loads(odd.body), ["\ud800"])

    def test_questions_wait_for_each_other(self) -> None:
        """The next question goes when the broker has confirmed the last one, or has not for half a second."""
        self.come_up()
        self.assertTrue(self.role.ask(["a"]))
        self.assertFalse(self.role.ask(["b"]))
        self.assertEqual(self.role.dropped, 0)
        (first,) = self.take()
        self.server.ack(CHANNEL, first.tag)
        self.assertTrue(self.role.ask(["b"]))
        self.assertFalse(self.role.ask(["c"]))
        self.pass_time(QUESTION_PATIENCE)
        self.assertTrue(self.role.ask(["c"]))
        self.role.down()
        self.connect()
        self.confirm_probe()
        self.assertTrue(self.role.ask(["d"]))

    def test_claims_and_answers(self) -> None:
        """Claims go to all nodes and live longer. An answer goes to the queue of one node."""
        self.come_up()
        self.assertTrue(self.role.claim(b"[1]"))
        self.assertTrue(self.role.answer("to_device.89abcdef", b"\x03abc", b"[2]"))
        claim, answer = self.take()
        self.assertEqual((claim.method["exchange"], claim.headers, claim.body), (EXCHANGE, {"owsla_notice": "here"}, b"[1]"))
        self.assertEqual(claim.properties["expiration"], "120000")
        self.assertEqual((answer.method["exchange"], answer.queue, answer.body), ("", "to_device.89abcdef", b"[2]"))
        self.assertEqual((answer.headers, answer.properties["correlation_id"]), ({"owsla_notice": "has"}, "abc"))

    def test_lists_of_nodes(self) -> None:
        """A list of the nodes goes to all nodes. One that cannot go is dropped, and is not counted."""
        self.assertFalse(self.role.list_nodes(b"{}"))
        self.assertEqual(self.role.dropped, 0)
        self.come_up()
        self.assertTrue(self.role.list_nodes(b'{"89abcdef":"here"}'))
        (listed,) = self.take()
        self.assertEqual((listed.method["exchange"], listed.headers), (EXCHANGE, {"owsla_notice": "nodes"}))
        self.assertEqual((listed.body, listed.properties["expiration"]), (b'{"89abcdef":"here"}', "30000"))

    def test_an_answer_to_a_node_that_is_gone(self) -> None:
        """An answer that is returned says nothing about the exchange."""
        self.come_up()
        self.role.answer("to_device.89abcdef", None, b"[2]")
        (answer,) = self.take()
        declared = len(self.consumers.called("exchange.declare"))
        self.server.give_back(answer)
        self.settle()
        self.assertEqual((self.role.state, len(self.consumers.called("exchange.declare"))), ("up", declared))

    def test_a_question_that_is_returned(self) -> None:
        """A question that no queue gets tells that the own queue is not bound: it is bound again at once."""
        self.come_up()
        self.role.ask(["a"])
        (question,) = self.take()
        self.server.give_back(question)
        self.settle()
        self.assertEqual(len(self.consumers.called("queue.bind")), 2)
        self.assertEqual((self.role.state, self.states), ("up", ["up", "away", "up"]))

    def test_no_permission_to_publish(self) -> None:
        """There is one warning, and the connection stays. The role tries again, and is up when that is permitted."""
        self.bind()
        self.connect()
        for _ in range(4):
            if self.take():
                self.server.close_channel(CHANNEL, *REFUSED)
            self.assertEqual(self.role.state, "refused")
            self.pass_time(2)
        self.assertEqual((len(self.warnings()), self.server.lost, self.states), (1, [], ["refused"]))
        self.assertIn(REFUSED[1], self.warnings()[0])
        self.pass_time(60)
        self.server.ack(CHANNEL, 1)
        self.assertEqual(self.states, ["refused", "up"])

    def test_the_exchange_is_deleted(self) -> None:
        """The exchange is declared again within the turn, and the channel opened again."""
        self.come_up()
        self.role.ask(["a"])
        self.take()
        self.server.close_channel(CHANNEL, *MISSING)
        self.settle()
        self.assertEqual(len(self.consumers.called("exchange.declare")), 2)
        self.confirm_probe()
        self.assertEqual((self.states, self.warnings()), (["up", "away", "up"], []))

    def test_the_user(self) -> None:
        """The broker may know the user by another name, and tells it in its refusal."""
        self.bind()
        self.connect()
        self.take()
        text = "PRECONDITION_FAILED - user_id property set to 'me' but authenticated user was 'CN=owsla'"
        self.server.close_channel(CHANNEL, 406, text)
        (probe,) = self.take()
        self.assertEqual(probe.properties["user_id"], "CN=owsla")
        self.assertEqual(self.warnings(), [])

    def test_blocked(self) -> None:
        """While the broker reads nothing, nothing goes."""
        self.come_up()
        self.server.send(0, "connection.blocked", reason="memory")
        self.assertEqual((self.role.ask(["a"]), self.role.claim(b"[]")), (False, False))
        self.server.send(0, "connection.unblocked")
        self.assertEqual(self.states, ["up", "blocked", "up"])

    def test_too_many_unconfirmed(self) -> None:
        """Past a number of unconfirmed notices none go, until the broker has confirmed some."""
        self.come_up()
        for _ in range(UNCONFIRMED_NOTICES):
            self.assertTrue(self.role.claim(b"[]"))
        self.assertEqual((self.role.claim(b"[]"), self.role.state), (False, "blocked"))
        self.server.ack(CHANNEL, 2)
        self.assertEqual(self.states, ["up", "blocked", "up"])

    def test_never_confirmed(self) -> None:
        """Notices that the broker never confirms, since the queue of one node has no majority, do not stop all others."""
        self.come_up()
        for _ in range(UNCONFIRMED_NOTICES):
            self.role.claim(b"[]")
        self.take()
        self.pass_time(STUCK + 0.1)
        self.confirm_probe()
        self.assertEqual(self.states, ["up", "blocked", "away", "up"])

    def test_refused_by_a_queue(self) -> None:
        """A negative acknowledgement comes from the queue of one node; the others have the question."""
        self.come_up()
        self.role.ask(["a"])
        self.take()
        self.server.nack(CHANNEL, 2)
        self.assertEqual((self.role.state, self.warnings()), ("up", []))

    def test_the_own_queue_is_away(self) -> None:
        """Without its own queue the node hears no answers."""
        self.come_up()
        self.role.binding.end()
        self.assertEqual(self.role.state, "away")
        self.bind()
        self.assertEqual(self.states, ["up", "away", "up"])

    def test_lost(self) -> None:
        """After a loss of the connection the role comes up again."""
        self.come_up()
        self.role.ask(["a"])
        self.server.drop()
        self.role.down()
        self.assertEqual(self.role.state, "away")
        self.connect()
        self.confirm_probe()
        self.assertEqual(self.states, ["up", "away", "up"])


    def test_no_connection(self) -> None:
        """A broker that allows no connection for the role refuses it. Until that is certain, messages wait."""
        self.bind()
        for attempt in range(CONNECTION_ATTEMPTS):
            self.assertEqual(self.role.state, "away", attempt)
            self.role.not_connected()
        self.assertEqual(self.states, ["refused"])
        self.connect()
        self.confirm_probe()
        self.assertEqual(self.states, ["refused", "away", "up"])


class GroupTests(Base):
    def letter(self, tag: int = 1, **more: Any) -> Letter:
        return self.source.letter(tag, None, headers={"owsla_to": "all"}, **more)

    def test_published(self) -> None:
        """The message keeps its body and headers, gets its number, and is acknowledged when it has arrived."""
        self.come_up()
        self.role.spread(self.letter(1, user_id="backend", body=b"hello"), "some-group")
        (publish,) = self.take()
        self.assertEqual((publish.method["exchange"], publish.body), (EXCHANGE, b"hello"))
        self.assertEqual(
            publish.headers, {"owsla_to": "all", "owsla_user_id": "backend", "owsla_group": "some-group"}
        )
        self.assertEqual(publish.properties["user_id"], "me")
        self.assertEqual((self.source.finished, self.role.unconfirmed), ([], 1))
        self.server.ack(CHANNEL, publish.tag)
        self.assertEqual((self.source.finished, self.role.waiting), ([1], 0))

    def test_message_that_was_delivered_before(self) -> None:
        """It says whether its message was delivered before: another node may have published that with another number."""
        letter = self.letter()
        letter.identity = b"some"
        self.come_up()
        self.role.spread(letter, "group")
        (publish,) = self.take()
        self.assertIs(publish.headers["owsla_redelivered"], True)

    def test_one_at_a_time(self) -> None:
        """The next one goes when the one before has arrived."""
        self.come_up()
        for tag in (1, 2):
            self.role.spread(self.letter(tag), f"group-{tag}")
        (publish,) = self.take()
        self.server.ack(CHANNEL, publish.tag)
        (publish,) = self.take()
        self.assertEqual(publish.headers["owsla_group"], "group-2")

    def test_refused_by_a_queue_again_and_again(self) -> None:
        """If the queue of a node refuses a message again and again, it is recorded, and the next one goes."""
        self.come_up()
        self.role.spread(self.letter(1), "one")
        self.role.spread(self.letter(2), "two")
        for _ in range(ATTEMPTS):
            self.pass_time(3)
            (publish,) = self.take()
            self.assertEqual((publish.headers["owsla_group"], self.recorded), ("one", []))
            self.server.nack(CHANNEL, publish.tag)
        self.assertEqual(self.recorded, [(1, "refused")])
        self.pass_time(3)
        (publish,) = self.take()
        self.assertEqual(publish.headers["owsla_group"], "two")

    def test_published_again(self) -> None:
        """It is published again, with the same number, after a refusal, a return, a lost channel and a lost connection."""
        self.role.spread(self.letter(), "group")
        self.come_up()
        (first,) = self.take()
        self.server.nack(CHANNEL, first.tag)
        self.pass_time(1)
        (second,) = self.take()
        self.server.give_back(second)
        self.pass_time(1)
        (third,) = self.take()
        self.server.close_channel(CHANNEL, *MISSING)
        self.confirm_probe()
        (fourth,) = self.take()
        self.server.drop()
        self.role.down()
        self.connect()
        self.confirm_probe()
        (fifth,) = self.take()
        self.assertEqual({one.headers["owsla_group"] for one in (first, second, third, fourth, fifth)}, {"group"})
        self.assertEqual(self.source.finished, [])
        self.server.ack(CHANNEL, fifth.tag)
        self.assertEqual((self.source.finished, self.recorded), ([1], []))

    def test_expired(self) -> None:
        """A message that expires before it has arrived is recorded, with or without a broker. An odd expiry is for others."""
        deadline = self.clock.seconds() + 0.5
        for tag, more in ((1, {"expires_at": self.wall - 1}), (2, {"deadline": deadline}), (3, {"expires_at": BAD})):
            letter = self.letter(tag)
            for name, value in more.items():
                setattr(letter, name, value)
            self.role.spread(letter, f"group-{tag}")
        self.assertEqual(self.recorded, [(1, "expired")])
        self.pass_time(EXPIRY_INTERVAL + 0.1)
        self.assertEqual((self.recorded, self.role.waiting), ([(1, "expired"), (2, "expired")], 1))

    def test_expired_behind_others(self) -> None:
        """A message that expires behind one that waits is recorded, too. The one that is on its way stays."""
        for tag, seconds in ((1, 0.4), (2, 0.5), (3, 60.0), (4, 0.5)):
            letter = self.letter(tag)
            letter.deadline = self.clock.seconds() + seconds
            self.role.spread(letter, f"group-{tag}")
        self.come_up()
        self.take()
        self.pass_time(EXPIRY_INTERVAL + 0.1)
        self.assertEqual((self.recorded, self.role.waiting), ([(2, "expired"), (4, "expired")], 2))

    def test_the_time_that_is_left(self) -> None:
        """The expiration goes on to count from where it was."""
        self.come_up()
        letter = self.letter(1, expiration="5000")
        letter.deadline = self.clock.seconds() + 3
        self.role.spread(letter, "group")
        (publish,) = self.take()
        self.assertEqual(publish.headers["owsla_expiration"], "3000")
        self.assertNotIn("expiration", publish.properties)

    def test_a_message_that_closes_the_channel(self) -> None:
        """A message over which the broker closes the channel again and again is recorded; the others go."""
        self.come_up()
        for tag in (1, 2):
            self.role.spread(self.letter(tag), f"group-{tag}")
        for attempt in range(ATTEMPTS):
            if attempt:
                self.pass_time(10)
                self.confirm_probe()
            (publish,) = self.take()
            self.assertEqual(publish.headers["owsla_group"], "group-1")
            self.server.close_channel(CHANNEL, 406, "PRECONDITION_FAILED - message size too large")
        self.assertEqual(self.recorded, [(1, "refused")])
        self.pass_time(10)
        self.confirm_probe()
        (publish,) = self.take()
        self.assertEqual(publish.headers["owsla_group"], "group-2")

    def test_delivered_again(self) -> None:
        """A message of a consumer that has ended is dropped: the broker delivers it again."""
        self.role.spread(self.letter(), "group")
        self.source.open = False
        self.come_up()
        self.assertEqual((self.take(), self.role.waiting, self.source.finished), ([], 0, []))

    def test_large_headers(self) -> None:
        """Headers that do not fit into a frame are left out, except for those that Owsla reads."""
        self.come_up()
        letter = self.source.letter(1, None, headers={"owsla_to": "all", "x": "x" * 200_000})
        self.role.spread(letter, "group")
        (publish,) = self.take()
        self.assertEqual(publish.headers["owsla_group"], "group")
        self.assertIn(message_properties.NOTE_HEADER, publish.headers)
        self.assertLess(len(publish.header), 4096)

    def test_unreadable(self) -> None:
        """A message whose properties cannot be read is recorded."""
        self.come_up()
        self.role.spread(self.source.letter(1, None, header=wire.header_payload(4, b"\xff\xff\xff")), "group")
        self.assertEqual(self.recorded, [(1, "refused")])
