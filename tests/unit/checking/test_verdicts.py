"""Tests of the verdicts on a broker. The texts of refusals are those of RabbitMQ 3.10.8 and 4.0.5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.client import BrokerError
from owsla.broker.queue_state import QueueState
from owsla.broker.queues import Queue
from owsla.checking.findings import Finding
from owsla.checking.plan import QueuePlan
from owsla.checking.verdicts import QueueAnswers, judge_broadcast, judge_permissions, judge_publishing, judge_queue


def refusal(code: int, text: str) -> BrokerError:
    return BrokerError(code, text, scope="channel")


def different(name: str, received: str) -> BrokerError:
    """Return the refusal of a declaration of a queue that exists with other arguments."""
    return refusal(406, f"PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'q' in vhost '/': received {received}")


def invalid(name: str, why: str = ': "expected integer, got longstr"') -> BrokerError:
    return refusal(406, f"PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/'{why}")


NO_QUEUE = refusal(404, "NOT_FOUND - no queue 'q' in vhost '/'")
NO_ACCESS = refusal(403, "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'me'")
ACCEPTABLE = invalid("x-max-age", " of queue type rabbit_classic_queue")


def answers(
    state: QueueState | BrokerError = NO_QUEUE,
    declared: Sequence[BrokerError] = (),
    consumed: BrokerError | None = None,
    *,
    name: str = "q",
    arguments: dict[str, Any] | None = None,
    reads: bool = False,
    needed: tuple[str, ...] = (),
) -> QueueAnswers:
    plan = QueuePlan(Queue(name, arguments or {}), name, consumed=reads, needed=needed)
    return QueueAnswers(plan, state, declared, consumed)


def texts(findings: Iterable[Finding]) -> list[str]:
    """Return findings without the padding of the columns."""
    return [" ".join(str(finding).split()) for finding in findings]


class PermissionTests(SynchronousTestCase):
    def test_complete(self) -> None:
        """All permissions are there: a line for each kind, with the queues that need it."""
        queues = [
            answers(QueueState(1, 0), name="a"),
            answers(NO_QUEUE, [ACCEPTABLE], NO_QUEUE, name="b", reads=True),
            answers(QueueState(0, 1), consumed=invalid("x-priority"), name="c", reads=True),
        ]
        self.assertEqual(texts(judge_permissions(queues)), ["ok permission configure a, b, c", "ok permission read b, c"])

    def test_missing(self) -> None:
        """A queue that exists is used without permission to configure it. One that does not cannot be declared."""
        queues = [
            answers(QueueState(1, 0), [NO_ACCESS], name="a"),
            answers(NO_QUEUE, [NO_ACCESS], NO_ACCESS, name="b", reads=True),
            answers(NO_QUEUE, [NO_ACCESS], NO_QUEUE, name="c", reads=True),
        ]
        self.assertEqual(
            texts(judge_permissions(queues)),
            [
                "FAIL permission no permission to configure, and not there either: b, c",
                "warn permission no permission to configure, so used as found: a",
                "FAIL permission no permission to read: b",
            ],
        )

    def test_publishing(self) -> None:
        """Any refusal of a message but 406 is a fault; a missing exchange and an internal one have texts of their own."""
        expiration = refusal(406, "PRECONDITION_FAILED - invalid expiration 'never': no_integer")
        default = refusal(403, "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'me'")
        internal = refusal(403, "ACCESS_REFUSED - cannot publish to internal exchange 'lines' in vhost '/'")
        no_exchange = refusal(404, "NOT_FOUND - no exchange 'lines' in vhost '/'")
        for exchange, answer, found, text in (
            ("", expiration, None, "ok permission write to amq.default"),
            ("", None, None, "ok permission write to amq.default"),
            ("", default, None, "FAIL permission no permission to write: amq.default"),
            ("lines", expiration, None, "ok permission write to lines"),
            ("lines", internal, None, "FAIL exchange lines: it is internal, so nobody can publish to it"),
            ("lines", None, no_exchange, "FAIL exchange lines: it does not exist, and Owsla does not declare it"),
            ("lines", no_exchange, None, "FAIL exchange lines: NOT_FOUND - no exchange 'lines' in vhost '/' (404)"),
        ):
            self.assertEqual(texts(judge_publishing(exchange, answer, found)), [text])


class BroadcastTests(SynchronousTestCase):
    def test_verdicts(self) -> None:
        """Everything that is missing is named in one warning: a node serves its own devices without it."""
        invalid_argument = refusal(406, "PRECONDITION_FAILED - invalid type 'longstr' for arg 'alternate-exchange'")
        other_type = refusal(406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/'")
        no_exchange = refusal(404, "NOT_FOUND - no exchange 'x' in vhost '/'")
        no_read = refusal(403, "ACCESS_REFUSED - read access to exchange 'x' in vhost '/' refused for user 'me'")
        no_write = refusal(403, "ACCESS_REFUSED - write access to exchange 'x' in vhost '/' refused for user 'me'")
        no_queue_write = refusal(403, "ACCESS_REFUSED - write access to queue 'q' in vhost '/' refused for user 'me'")
        alone = "so devices of other nodes are not found by their names"
        for declared, bound, published, text in (
            (invalid_argument, NO_QUEUE, no_exchange, "ok permission configure, read, write x"),
            (invalid_argument, NO_QUEUE, None, "ok permission configure, read x"),
            (other_type, NO_QUEUE, None, f"warn exchange x: it is not a fanout exchange; {alone}"),
            (invalid_argument, NO_QUEUE, no_write, f"warn permission no permission to write: x; {alone}"),
            (NO_ACCESS, no_read, no_write, f"warn permission no permission to configure, read, write: x; {alone}"),
            (invalid_argument, no_queue_write, None, f"warn permission no permission to write: the queues of nodes; {alone}"),
            (
                NO_ACCESS,
                no_queue_write,
                no_write,
                f"warn permission no permission to configure, write: x; write: the queues of nodes; {alone}",
            ),
        ):
            self.assertEqual(texts(judge_broadcast("x", declared, bound, published)), [text])


class QueueTests(SynchronousTestCase):
    def test_missing(self) -> None:
        """A queue that does not exist is declared at the start, unless the broker refuses an argument of the settings."""
        for acceptable in (ACCEPTABLE, invalid("x-max-priority", " of queue type rabbit_stream_queue")):
            self.assertEqual(
                texts(judge_queue(answers(NO_QUEUE, [acceptable]))),
                ["ok queue q: does not exist yet; Owsla declares it at its start"],
            )
        (found,) = texts(judge_queue(answers(NO_QUEUE, [invalid("x-overflow", ": invalid_overflow")])))
        self.assertTrue(found.startswith("FAIL queue q: the broker would refuse its declaration: PRECONDITION_FAILED"), found)

    def test_missing_permission(self) -> None:
        """Without permission to declare it there is nothing more to say about a queue that does not exist."""
        self.assertEqual(texts(judge_queue(answers(NO_QUEUE, [NO_ACCESS]))), [])

    def test_equal(self) -> None:
        """A queue with the arguments of the settings."""
        self.assertEqual(
            texts(judge_queue(answers(QueueState(1, 2)))),
            ["ok queue q: exists with these arguments; 1 message ready, 2 consumers"],
        )

    def test_no_comparison(self) -> None:
        """Arguments cannot be compared without permission to configure the queue."""
        self.assertEqual(
            texts(judge_queue(answers(QueueState(0, 1), [NO_ACCESS]))),
            ["ok queue q: 0 messages ready, 1 consumer; its arguments cannot be compared without permission to configure it"],
        )

    def test_stream_without_comparison(self) -> None:
        """Without permission to configure it, a stream that Owsla consumes is known by the refusal of a consumer."""
        refused = invalid("x-priority", " in vhost '/' of queue type rabbit_stream_queue")
        (found,) = texts(judge_queue(answers(QueueState(0, 1), [NO_ACCESS], reads=True, consumed=refused)))
        self.assertEqual(found, "FAIL queue q: it is a stream; Owsla cannot use such a queue")

    def test_different(self) -> None:
        """Each difference is a warning, in any of RabbitMQ's ways to say it."""
        for received, there in (
            ("the value '7' of type 'signedint' but current is none", "not set"),
            ("none but current is the value '5' of type 'signedint'", "5"),
            ("'7' but current is '5'", "5"),
        ):
            refusals = [different("x-max-length", received)]
            self.assertEqual(
                texts(judge_queue(answers(QueueState(0, 0), refusals, arguments={"x-max-length": 7}))),
                [f"warn queue q: x-max-length is {there} there, and 7 in the settings of Owsla; the queue is used as it is"],
            )

    def test_unusable(self) -> None:
        """A stream that Owsla consumes, and an argument that it needs, are faults."""
        for received in ("'classic' but current is 'stream'", "none but current is the value 'stream' of type 'longstr'"):
            stream = [different("x-queue-type", received)]
            (found,) = texts(judge_queue(answers(QueueState(0, 0), stream, reads=True)))
            self.assertTrue(found.startswith("FAIL queue q: x-queue-type is stream there"), found)
            (found,) = texts(judge_queue(answers(QueueState(0, 0), stream)))
            self.assertTrue(found.startswith("warn queue q: x-queue-type is stream there"), found)
        single = different("x-single-active-consumer", "the value 'true' of type 'bool' but current is none")
        arguments = {"x-single-active-consumer": True}
        (found,) = texts(judge_queue(answers(QueueState(0, 0), [single], arguments=arguments, needed=tuple(arguments))))
        self.assertEqual(
            found,
            "FAIL queue q: x-single-active-consumer is not set there, and true in the settings of Owsla; "
            "Owsla cannot use such a queue",
        )

    def test_unreachable(self) -> None:
        """A queue whose broker node is down, or that belongs to another connection, is a fault with RabbitMQ's reason."""
        for error in (
            refusal(404, "NOT_FOUND - home node 'rabbit@two' of durable queue 'q' in vhost '/' is down or inaccessible"),
            refusal(405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'"),
        ):
            self.assertEqual(texts(judge_queue(answers(error, [error]))), [f"FAIL queue q: {error}"])
