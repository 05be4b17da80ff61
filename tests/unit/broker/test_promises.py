"""Tests of rules of queues that break a promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.promises import SHORTEST_CONSUMER_TIMEOUT, Policy, QueueRules, Use, broken_promises, retention
from owsla.broker.queues import NODE_QUEUE_EXPIRES, node_queue, undeliverable_queue
from owsla.cluster.register import register_queue

QUORUM = {"x-queue-type": "quorum"}
UNDELIVERABLE = {"dead-letter-exchange": "", "dead-letter-routing-key": "to_device.undeliverable"}


def broken(
    use: Use,
    arguments: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    *,
    rabbitmq: tuple[int, int] = (4, 0),
    name: str = "q",
    unseen: bool = False,
) -> list[str]:
    """Return what is found about a queue; with `unseen`, where policies cannot be seen."""
    policies = None if unseen else Policy(policy or {}, "blanket")
    return list(broken_promises(QueueRules(name, use, {"x-queue-type": "classic", **(arguments or {})}, policies), rabbitmq))


def keys(*args: Any, **more: Any) -> list[str]:
    """Return the rules that are found, as `key=value`."""
    found = [line.split(": ")[1] for line in broken(*args, **more)]
    return [rule.split("sets ")[-1].split("argument ")[-1] for rule in found]


class BrokenPromisesTests(SynchronousTestCase):
    def test_own_declarations(self) -> None:
        """The queues as Owsla declares them keep all promises."""
        node = node_queue("q", b"0123abcd").arguments
        for use, arguments in (
            (Use.LINES, {}),
            (Use.MESSAGES, {}),
            (Use.NODE, node),
            (Use.NODE, {**node, **QUORUM, "x-delivery-limit": -1}),
            (Use.REGISTER, register_queue("q", {}).arguments),
            (Use.RECORDS, undeliverable_queue("q", 7).arguments),
            (Use.PRESENCE, {}),
        ):
            self.assertEqual(broken(use, arguments), [])
            self.assertEqual(broken(use, arguments, unseen=True), [])

    def test_harmless_policies(self) -> None:
        """What drops nothing is no fault: copies, places of queues, dead letters, a length that refuses messages."""
        for use in Use:
            policy = {"max-length": 5, "overflow": "reject-publish", "queue-leader-locator": "balanced", **UNDELIVERABLE}
            self.assertEqual(broken(use, policy=policy), [])

    def test_blanket_policy(self) -> None:
        """Each rule that drops messages is named, for every use of a queue."""
        for use in Use:
            self.assertEqual(
                keys(use, policy={"message-ttl": 1000, "max-length": 5, "max-length-bytes": 6, "expires": 7}),
                ["message-ttl=1000", "max-length=5", "max-length-bytes=6", "expires=7"],
            )
            self.assertEqual(keys(use, QUORUM, {"delivery-limit": 3}), ["delivery-limit=3"])

    def test_text(self) -> None:
        """A line names queue, policy, key, promise and remedy."""
        self.assertEqual(
            broken(Use.MESSAGES, policy={"message-ttl": 1000}, name="to_device"),
            [
                "to_device: policy 'blanket' sets message-ttl=1000: after that time RabbitMQ drops a message for a device, "
                "which is then neither delivered nor recorded; remedy: a policy of higher priority for this queue without it"
            ],
        )
        policy = Policy({"max-length": 5}, "blanket", "theirs")
        (line,) = broken_promises(QueueRules("q", Use.LINES, {}, policy), (4, 0))
        self.assertIn("policy 'blanket' or operator policy 'theirs' sets max-length=5", line)
        self.assertIn('a policy of higher priority for this queue without it, or with "overflow": "reject-publish"', line)
        (line,) = broken(Use.LINES, {"x-max-length": 5})
        self.assertIn("q: its argument x-max-length=5: when the queue is full, RabbitMQ drops an acknowledged line", line)
        self.assertIn('declare it without this argument, or a policy with "overflow": "reject-publish"', line)

    def test_dead_letters(self) -> None:
        """Messages that go elsewhere are not lost; notices are, and so are messages that come back to their own queue."""
        rules = {"message-ttl": 1000, "max-length": 5, "delivery-limit": 3}
        for use in set(Use) - {Use.REGISTER}:
            self.assertEqual(broken(use, QUORUM, {**rules, **UNDELIVERABLE}), [])
            self.assertEqual(broken(use, QUORUM, {**rules, "dead-letter-exchange": "dead"}), [])
            self.assertEqual(len(broken(use, QUORUM, {**rules, "dead-letter-exchange": ""})), 3)
            self.assertEqual(len(broken(use, QUORUM, {**rules, **UNDELIVERABLE}, name="to_device.undeliverable")), 3)
        self.assertEqual(len(broken(Use.REGISTER, QUORUM, {**rules, **UNDELIVERABLE})), 3)
        expired = keys(Use.MESSAGES, policy={"expires": 5, **UNDELIVERABLE})
        self.assertEqual(expired, ["expires=5"])  # the expiry of a queue has no dead letters

    def test_arguments_and_policies(self) -> None:
        """Of two numbers the lower one is in force, and of two texts that of the argument."""
        self.assertEqual(keys(Use.LINES, {"x-message-ttl": 5}, {"message-ttl": 4}), ["message-ttl=4"])
        self.assertEqual(keys(Use.LINES, {"x-message-ttl": 4}, {"message-ttl": 5}), ["x-message-ttl=4"])
        reject, drop = {"overflow": "reject-publish"}, {"overflow": "drop-head"}
        self.assertEqual(keys(Use.LINES, {"x-overflow": "drop-head"}, {"max-length": 5, **reject}), ["max-length=5"])
        self.assertEqual(broken(Use.LINES, {"x-overflow": "reject-publish"}, {"max-length": 5, **drop}), [])
        self.assertEqual(broken(Use.LINES, policy={"message-ttl": True, "max-length": "5"}), [])

    def test_expiry_of_a_node_queue(self) -> None:
        """The queue of a node may expire, but not sooner than Owsla wants it to."""
        own = {"x-expires": NODE_QUEUE_EXPIRES}
        self.assertEqual(broken(Use.NODE, own, {"expires": NODE_QUEUE_EXPIRES + 1}), [])
        self.assertEqual(keys(Use.NODE, own, {"expires": 60_000}), ["expires=60000"])

    def test_default_delivery_limit(self) -> None:
        """Without any limit RabbitMQ 4 has one of its own. Back ends decide about the queues that they alone consume."""
        for use in Use:
            ours = use not in (Use.LINES, Use.PRESENCE)
            self.assertEqual(len(broken(use, QUORUM)), ours)
            self.assertEqual(broken(use, QUORUM, rabbitmq=(3, 13)), [])
            self.assertEqual(broken(use, QUORUM, {"delivery-limit": -1}), [])
            self.assertEqual(broken(use, {**QUORUM, "x-delivery-limit": -1}), [])
        (line,) = broken(Use.MESSAGES, QUORUM)
        self.assertNotIn("AMQP", line)
        (line,) = broken(Use.MESSAGES, QUORUM, unseen=True)
        self.assertIn("a delivery-limit of 20 by default, unless a policy says otherwise, which AMQP does not show", line)

    def test_delivery_limits(self) -> None:
        """A limit counts for quorum queues only. RabbitMQ 4 takes -1 for no limit, but not against another limit; RabbitMQ 3
        drops a message at its first return.
        """
        self.assertEqual(broken(Use.MESSAGES, {"x-delivery-limit": 5}), [])
        for argument, policy, found in (
            (5, 7, "x-delivery-limit=5"),
            (7, 5, "delivery-limit=5"),
            (-1, 5, "delivery-limit=5"),
            (5, -1, "x-delivery-limit=5"),
        ):
            arguments = {**QUORUM, "x-delivery-limit": argument}
            self.assertEqual(keys(Use.MESSAGES, arguments, {"delivery-limit": policy}), [found])
        (line,) = broken(Use.MESSAGES, {**QUORUM, "x-delivery-limit": -1}, rabbitmq=(3, 10))
        self.assertIn("before 4.0 RabbitMQ drops at its first return a message", line)
        (line,) = broken(Use.MESSAGES, QUORUM, {"delivery-limit": 5})
        self.assertIn('without it, or with "delivery-limit": -1, or with dead letters', line)
        (line,) = broken(Use.MESSAGES, QUORUM, {"delivery-limit": 5}, rabbitmq=(3, 10))
        self.assertNotIn("-1", line)

    def test_consumer_timeout(self) -> None:
        """A consumer time-out below what Owsla holds is a fault of the queues that it consumes."""
        for use in Use:
            consumed = use in (Use.MESSAGES, Use.NODE, Use.REGISTER)
            self.assertEqual(len(broken(use, {"x-consumer-timeout": SHORTEST_CONSUMER_TIMEOUT - 1})), consumed)
            self.assertEqual(broken(use, policy={"consumer-timeout": SHORTEST_CONSUMER_TIMEOUT}), [])

    def test_streams(self) -> None:
        """A stream keeps messages for as long as its operator said: that is what it is for. It ignores all other rules."""
        stream = {"x-queue-type": "stream", "x-max-length-bytes": 5, "x-max-age": "1h"}
        others = {"message-ttl": 5, "max-length": 5, "overflow": "drop-head", "expires": 5, "delivery-limit": 5}
        self.assertEqual(broken(Use.LINES, stream, policy=others), [])

    def test_retention(self) -> None:
        """The limits of a stream are its age and its size, from its arguments and from policies."""

        def limits(arguments: dict[str, Any], policy: Policy | None = None) -> list[str]:
            return retention(QueueRules("lines", Use.LINES, {"x-queue-type": "stream", **arguments}, policy))

        self.assertEqual(limits({"x-stream-max-segment-size-bytes": 5}, Policy({"message-ttl": 5})), [])
        self.assertEqual(
            limits({"x-max-age": "7D"}, Policy({"max-age": "1h", "max-length-bytes": 9}, "short")),
            [
                "its argument x-max-age=7D",
                "policy 'short' sets max-age=1h",
                "policy 'short' sets max-length-bytes=9",
            ],
        )
