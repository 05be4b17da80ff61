"""The embedded broker compared with RabbitMQ: the same clients and cases get the same answers."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import pika.exceptions
import pytest
from pamqp import commands
from pika.adapters.blocking_connection import BlockingChannel
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher

from owsla.amqp import methods
from owsla.embedded import EmbeddedBroker

from ._support import wire
from ._support.lab import Broker
from ._support.process import ChildProcess
from ._support.waiting import block_on, current_reactor, reactor_test, until, within

Case = Callable[[BlockingChannel, str], None]


def refused(code: int, act: Callable[[], object], text: str = "") -> None:
    """Check that the broker closes the channel or the connection because of `act`, with this code and text."""
    with pytest.raises((pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)) as error:
        act()
    assert error.value.reply_code == code
    if text:
        assert error.value.reply_text == text


def get(channel: BlockingChannel, queue: str, auto_ack: bool = True) -> tuple[Any, Any, bytes | None]:
    found: tuple[Any, Any, bytes | None] = channel.basic_get(queue, auto_ack)
    return found


def is_3(channel: BlockingChannel) -> bool:
    """Return whether the broker is RabbitMQ 3, as the embedded broker says it is. RabbitMQ 4 differs in a few answers."""
    version: str = channel.connection._impl.server_properties["version"]
    return version.startswith("3.")


def pump(channel: BlockingChannel, done: Callable[[], bool]) -> None:
    """Let pika process events until `done`, for at most 10 seconds."""
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        channel.connection.process_data_events(0.02)


def round_trip(channel: BlockingChannel, name: str) -> None:
    """Bodies of any size and properties of any type are delivered as they were published."""
    channel.queue_declare(name, durable=True)
    headers = {"int": -(2**40), "text": "é", "bytes": b"\xff\x00", "list": [1, {"a": True}], "none": None}
    for body in (b"", b"x", bytes(range(256)) * 2000):
        channel.basic_publish("", name, body, pika.BasicProperties(headers=headers, delivery_mode=2, reply_to="r"))
        _, properties, found = get(channel, name)
        assert found == body
        assert properties.headers == headers
        assert (properties.delivery_mode, properties.reply_to) == (2, "r")


def confirms_and_returns(channel: BlockingChannel, name: str) -> None:
    """A mandatory publish to a missing queue is returned; a publish that a full queue refuses gets a nack."""
    channel.confirm_delivery()
    channel.queue_declare(name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.basic_publish("", name, b"1", mandatory=True)
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", name, b"2", mandatory=True)
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", name + ".none", b"3", mandatory=True)
    assert get(channel, name)[2] == b"1"


def redelivery_order(channel: BlockingChannel, name: str) -> None:
    """Requeued messages keep their position."""
    channel.queue_declare(name)
    for number in range(4):
        channel.basic_publish("", name, b"%d" % number)
    taken = [get(channel, name, auto_ack=False)[0].delivery_tag for _ in range(3)]
    channel.basic_ack(taken[1])
    channel.basic_nack(taken[2], requeue=True)
    channel.basic_reject(taken[0], requeue=True)
    found = [get(channel, name) for _ in range(3)]
    assert [(body, method.redelivered) for method, _, body in found] == [(b"0", True), (b"2", True), (b"3", False)]


def exchanges(channel: BlockingChannel, name: str) -> None:
    """Direct, fanout and topic exchanges route, through one another too."""
    channel.queue_declare(name)
    for kind in ("direct", "fanout", "topic"):
        channel.exchange_declare(f"{name}.{kind}", kind, auto_delete=True)
    channel.queue_bind(name, f"{name}.topic", "a.*")
    channel.exchange_bind(f"{name}.topic", f"{name}.direct", "a.b")
    channel.exchange_bind(f"{name}.topic", f"{name}.fanout", "")
    channel.queue_bind(name, "amq.topic", f"{name}.#")
    for exchange, key in [("direct", "a.b"), ("direct", "a.c"), ("fanout", "a.c"), ("fanout", "b"), ("topic", "a")]:
        channel.basic_publish(f"{name}.{exchange}", key, key.encode())
    channel.basic_publish("amq.topic", f"{name}.x.y", b"predeclared")
    assert [get(channel, name)[2] for _ in range(4)] == [b"a.b", b"a.c", b"predeclared", None]


def time_and_length(channel: BlockingChannel, name: str) -> None:
    """Messages expire, a full queue drops its head, and both are dead-lettered with their reason."""
    channel.queue_declare(name + ".dead")
    channel.queue_declare(
        name,
        arguments={
            "x-max-length": 2,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": name + ".dead",
        },
    )
    for number in range(3):
        channel.basic_publish("", name, b"%d" % number, pika.BasicProperties(expiration="200"))
    pump(channel, lambda: channel.queue_declare(name + ".dead", passive=True).method.message_count == 3)
    found = [get(channel, name + ".dead") for _ in range(3)]
    assert [(body, properties.headers["x-death"][0]["reason"]) for _, properties, body in found] == [
        (b"0", "maxlen"),
        (b"1", "expired"),
        (b"2", "expired"),
    ]
    channel.queue_delete(name + ".dead")


def single_active_consumer(channel: BlockingChannel, name: str) -> None:
    """A single active consumer is served; the next one begins with the unacknowledged messages of the first."""
    channel.queue_declare(name, arguments={"x-single-active-consumer": True})
    got: list[tuple[str, bytes]] = []
    second = channel.connection.channel()
    for which, tag in ((channel, "first"), (second, "second")):
        which.basic_consume(name, lambda c, m, p, body: got.append((m.consumer_tag, body)), consumer_tag=tag)
    second.basic_publish("", name, b"1")
    second.basic_publish("", name, b"2")
    pump(channel, lambda: len(got) == 2)
    assert got == [("first", b"1"), ("first", b"2")]
    channel.close()
    pump(second, lambda: len(got) == 4)
    assert got[2:] == [("second", b"1"), ("second", b"2")]


def cancelled_consumer(channel: BlockingChannel, name: str) -> None:
    """A consumer whose queue is deleted is notified."""
    channel.queue_declare(name)
    cancelled: list[Any] = []
    channel.add_on_cancel_callback(cancelled.append)
    channel.basic_consume(name, lambda *args: None, consumer_tag="t")
    channel.connection.channel().queue_delete(name)
    pump(channel, lambda: bool(cancelled))
    assert len(cancelled) == 1


def refusals(channel: BlockingChannel, name: str) -> None:
    """Refusals have the codes and texts of RabbitMQ."""
    connection = channel.connection
    channel.queue_declare(name, durable=True)
    on = connection.channel
    where = f"queue '{name}' in vhost '/'"
    refused(404, lambda: on().queue_declare("none", passive=True), "NOT_FOUND - no queue 'none' in vhost '/'")
    refused(404, lambda: on().basic_consume("none", print), "NOT_FOUND - no queue 'none' in vhost '/'")
    refused(404, lambda: on().exchange_declare("none", passive=True), "NOT_FOUND - no exchange 'none' in vhost '/'")
    refused(
        406,
        lambda: on().queue_declare(name),
        f"PRECONDITION_FAILED - inequivalent arg 'durable' for {where}: received 'false' but current is 'true'",
    )
    refused(
        406,
        lambda: on().queue_declare(name, durable=True, arguments={"x-max-length": 1}),
        f"PRECONDITION_FAILED - inequivalent arg 'x-max-length' for {where}: "
        "received the value '1' of type 'signedint' but current is none",
    )
    refused(405, lambda: on().queue_declare(name, durable=True, exclusive=True))
    refused(403, lambda: on().queue_declare("amq.x"))
    refused(403, lambda: on().queue_bind(name, "", "k"), "ACCESS_REFUSED - operation not permitted on the default exchange")
    channel.basic_publish("", name, b"1")
    refused(406, lambda: on().queue_delete(name, if_empty=True), f"PRECONDITION_FAILED - {where} not empty")
    channel.basic_consume(name, lambda *args: None, exclusive=True)
    refused(406, lambda: on().queue_delete(name, if_unused=True), f"PRECONDITION_FAILED - {where} in use")
    refused(403, lambda: on().basic_consume(name, print), f"ACCESS_REFUSED - {where} in exclusive use")
    for properties, text in [
        (pika.BasicProperties(expiration="x"), "PRECONDITION_FAILED - invalid expiration 'x': no_integer"),
        (
            pika.BasicProperties(user_id="x"),
            "PRECONDITION_FAILED - user_id property set to 'x' but authenticated user was 'guest'",
        ),
    ]:
        other = on()
        other.basic_publish("", name, b"", properties)
        refused(406, lambda other=other: other.queue_declare(name, passive=True), text)  # type: ignore[misc]
    other = on()
    other.basic_ack(7)
    refused(406, lambda: other.queue_declare(name, passive=True), "PRECONDITION_FAILED - unknown delivery tag 7")
    other = on()
    other.basic_publish("", name, b"", pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"))
    refused(
        406,
        lambda: other.queue_declare(name, passive=True),
        "PRECONDITION_FAILED - fast reply consumer does not exist",
    )
    for arguments, text in [
        ({"x-max-priority": 256}, f"invalid arg 'x-max-priority' for {where}: {{max_value_exceeded,256}}"),
        ({"x-max-priority": -1}, f"invalid arg 'x-max-priority' for {where}: {{value_negative,-1}}"),
    ]:
        refused(
            406,
            lambda arguments=arguments: on().queue_declare(name + ".none", arguments=arguments),  # type: ignore[misc]
            "PRECONDITION_FAILED - " + text.replace(name, name + ".none"),
        )
    channel.queue_delete(name)
    refused(540, lambda: channel.basic_qos(prefetch_size=1), "NOT_IMPLEMENTED - prefetch_size!=0 (1)")


def priorities(channel: BlockingChannel, name: str) -> None:
    """With x-max-priority higher priorities are first; requeued messages keep their position; a full queue drops its head."""
    channel.confirm_delivery()
    channel.queue_declare(name, arguments={"x-max-priority": 5, "x-max-length": 5})
    for priority in (None, 9, 5, 3, 7, 0):
        channel.basic_publish("", name, str(priority).encode(), pika.BasicProperties(priority=priority))
    taken = [get(channel, name, auto_ack=False) for _ in range(2)]
    assert [body for _, _, body in taken] == [b"5", b"7"]
    channel.basic_nack(taken[0][0].delivery_tag, requeue=True)
    found = [get(channel, name) for _ in range(5)]
    assert [body for _, _, body in found] == [b"5", b"3", b"None", b"0", None]


def quorum_queues(channel: BlockingChannel, name: str) -> None:
    """Properties and arguments that a queue type does not support are refused."""
    on = channel.connection.channel
    quorum = {"x-queue-type": "quorum"}
    refused(
        406,
        lambda: on().queue_declare(name, arguments=quorum),
        f"PRECONDITION_FAILED - invalid property 'non-durable' for queue '{name}' in vhost '/'",
    )
    refused(
        406,
        lambda: on().queue_declare(name, exclusive=True, auto_delete=True, arguments=quorum),
        f"PRECONDITION_FAILED - invalid property 'auto-delete' for queue '{name}' in vhost '/'",
    )
    for kind, arg in (("quorum", "x-max-priority"), ("classic", "x-delivery-limit")):
        arguments = {"x-queue-type": kind, arg: 3}
        refused(
            406,
            lambda arguments=arguments: on().queue_declare(name, durable=True, arguments=arguments),  # type: ignore[misc]
            f"PRECONDITION_FAILED - invalid arg '{arg}' for queue '{name}' in vhost '/' of queue type rabbit_{kind}_queue",
        )


def quorum_returns(channel: BlockingChannel, name: str) -> None:
    """A quorum queue counts returns. A rejected message goes behind the others, or, with a limit, to the head."""

    def take(on: BlockingChannel, queue: str) -> tuple[bytes | None, int | None, bool]:
        """Return the next message when there is one: a quorum queue of RabbitMQ requeues with a delay."""
        found: list[tuple[Any, Any, bytes | None]] = []

        def look() -> bool:
            found.append(get(on, queue, auto_ack=False))
            return found[-1][2] is not None

        pump(channel, look)
        method, properties, body = found[-1]
        # RabbitMQ 4 has the header only from the first return on.
        return body, (properties.headers or {}).get("x-delivery-count", 0), method.redelivered

    def counted(on: BlockingChannel, queue: str, bodies: int) -> None:
        """Wait until this many messages are ready."""
        pump(on, lambda: on.queue_declare(queue, passive=True).method.message_count == bodies)

    channel.confirm_delivery()
    quorum = {"x-queue-type": "quorum"}
    unlimited = {} if is_3(channel) else {"x-delivery-limit": -1}
    channel.queue_declare(name, durable=True, arguments={**quorum, **unlimited})
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", name, body)
    assert take(channel, name) == (b"1", 0, False)
    channel.basic_reject(1, requeue=True)
    counted(channel, name, 3)
    other = channel.connection.channel()
    assert [take(other, name) for _ in range(2)] == [(b"2", 0, False), (b"3", 0, False)]
    other.close()
    counted(channel, name, 3)
    assert [take(channel, name) for _ in range(3)] == [(b"2", 1, True), (b"3", 1, True), (b"1", 1, True)]
    limited, dead = f"{name}.limited", f"{name}.dead"
    channel.queue_declare(dead)
    arguments = {"x-delivery-limit": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    channel.queue_declare(limited, durable=True, arguments={**quorum, **arguments})
    channel.basic_publish("", limited, b"1")
    channel.basic_publish("", limited, b"2")
    other = channel.connection.channel()
    assert take(other, limited) == (b"1", 0, False)
    other.basic_reject(1, requeue=True)
    counted(channel, limited, 2)
    assert take(other, limited) == (b"1", 1, True)
    other.close()
    pump(channel, lambda: channel.queue_declare(dead, passive=True).method.message_count == 1)
    _, properties, given_up = get(channel, dead)
    assert (given_up, properties.headers["x-death"][0]["reason"]) == (b"1", "delivery_limit")
    for queue in (limited, dead):
        channel.queue_delete(queue)


def refused_publishes_dead_lettered(channel: BlockingChannel, name: str) -> None:
    """With reject-publish-dlx, a message that a full queue refuses gets a nack and is dead-lettered."""
    channel.confirm_delivery()
    channel.queue_declare(name + ".dead")
    arguments = {
        "x-max-length": 1,
        "x-overflow": "reject-publish-dlx",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name + ".dead",
    }
    channel.queue_declare(name, arguments=arguments)
    channel.basic_publish("", name, b"1")
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", name, b"2")
    _, properties, body = get(channel, name + ".dead")
    assert (body, properties.headers["x-first-death-reason"]) == (b"2", "maxlen")
    channel.queue_delete(name + ".dead")


def transactions(channel: BlockingChannel, name: str) -> None:
    """Publishes and acknowledgements take effect with a commit, and not with a rollback or a close."""
    on = channel.connection.channel

    def count() -> int:
        return int(on().queue_declare(name, passive=True).method.message_count)

    channel.queue_declare(name, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    channel.tx_select()
    returned: list[int] = []
    channel.add_on_return_callback(lambda c, method, p, b: returned.append(method.reply_code))
    channel.basic_publish("", name, b"1")
    channel.basic_publish("", name + ".none", b"x", mandatory=True)
    channel.queue_declare(name, passive=True)
    assert (count(), returned) == (0, [])
    channel.tx_commit()
    pump(channel, lambda: bool(returned))
    assert (count(), returned) == (1, [312])
    channel.basic_publish("", name, b"2")
    tag = get(channel, name, auto_ack=False)[0].delivery_tag
    channel.basic_ack(tag)
    channel.tx_rollback()
    channel.basic_nack(tag, requeue=True)
    assert count() == 0
    channel.tx_commit()
    pump(channel, lambda: count() == 1)
    channel.basic_ack(get(channel, name, auto_ack=False)[0].delivery_tag)
    channel.close()
    channel = on()
    pump(channel, lambda: count() == 1)
    channel.tx_select()
    channel.basic_publish("", name, b"2")
    channel.basic_publish("", name, b"3")
    refused(406, channel.tx_commit, "PRECONDITION_FAILED - partial tx completion")
    refused(406, on().tx_commit, "PRECONDITION_FAILED - channel is not transactional")
    refused(406, on().tx_rollback, "PRECONDITION_FAILED - channel is not transactional")
    for first, second, text in [
        ("tx_select", "confirm_delivery", "cannot switch from tx to confirm mode"),
        ("confirm_delivery", "tx_select", "cannot switch from confirm to tx mode"),
    ]:
        other = on()
        getattr(other, first)()
        refused(406, getattr(other, second), f"PRECONDITION_FAILED - {text}")
    other = on()
    other.tx_select()
    other.basic_publish(name + ".none", "", b"")
    refused(404, lambda: other.queue_declare(name, passive=True), f"NOT_FOUND - no exchange '{name}.none' in vhost '/'")


def direct_reply_to(channel: BlockingChannel, name: str) -> None:
    """Replies go to the channel that asked, by a generated name, and nowhere after it has cancelled."""
    pseudo = "amq.rabbitmq.reply-to"
    on = channel.connection.channel
    channel.queue_declare(name)
    got: list[tuple[Any, bytes]] = []
    tag = channel.basic_consume(pseudo, lambda c, method, p, body: got.append((method, body)), auto_ack=True)
    channel.basic_publish("", name, b"question", pika.BasicProperties(reply_to=pseudo, correlation_id="1"))
    _, properties, _ = get(on(), name)
    assert properties.reply_to.startswith(pseudo + ".")
    assert properties.correlation_id == "1"
    other = pika.BlockingConnection(channel.connection._impl.params)
    answering = other.channel()
    assert answering.queue_declare(properties.reply_to, passive=True).method.consumer_count == 1
    answering.confirm_delivery()
    answering.basic_publish("", properties.reply_to, b"answer")
    answering.basic_publish("", name + ".none", b"copy", pika.BasicProperties(headers={"CC": [properties.reply_to]}))
    pump(channel, lambda: len(got) == 2)
    assert [body for _, body in got] == [b"answer", b"copy"]
    assert (got[0][0].routing_key, got[0][0].exchange, got[0][0].consumer_tag) == (properties.reply_to, "", tag)
    refused(406, lambda: on().basic_consume(pseudo, print), "PRECONDITION_FAILED - reply consumer cannot acknowledge")
    refused(404, lambda: on().basic_get(properties.reply_to))
    refused(404, lambda: on().queue_declare(pseudo + ".x"))
    channel.basic_cancel(tag)
    answering.basic_publish("", properties.reply_to, b"late")
    refused(404, lambda: answering.queue_declare(properties.reply_to, passive=True))
    other.close()
    twice = on()
    twice.basic_consume(pseudo, print, auto_ack=True)
    refused(406, lambda: twice.basic_consume(pseudo, print, auto_ack=True), "PRECONDITION_FAILED - reply consumer already set")


def headers_exchange(channel: BlockingChannel, name: str) -> None:
    """All or any headers of a binding have to match, in type and value."""
    channel.queue_declare(name)
    channel.exchange_declare(name, "headers", auto_delete=True)
    one = {"a": 1, "b": "x"}
    for arguments, headers, expected in [
        (one, one, True),
        (one, {"a": 1}, False),
        (one, {**one, "c": 1}, True),
        (one, {"a": "1", "b": "x"}, False),
        ({"x-match": "any", **one}, {"b": "x"}, True),
        ({"x-match": "any", **one}, {"a": 2}, False),
        ({"x-match": "any"}, {"a": 1}, False),
        ({"x-a": 1}, {}, True),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"a": None}, {"a": 5}, True),
        ({"a": None}, {}, False),
        ({"a": True}, {"a": 1}, False),
        ({}, None, True),
    ]:
        channel.queue_bind(name, name, "", arguments)
        # A second binding keeps the exchange.
        channel.queue_bind(name, name, "", {"never": "never"})
        channel.basic_publish(name, "any key", b"", pika.BasicProperties(headers=headers))
        assert (get(channel, name)[2] is not None) is expected, (arguments, headers)
        channel.queue_unbind(name, name, "", arguments)
    channel.queue_bind(name, "amq.match", "", {name: 1})
    channel.basic_publish("amq.match", "", b"", pika.BasicProperties(headers={name: 1}))
    assert get(channel, name)[2] is not None
    refused(
        406,
        lambda: channel.connection.channel().queue_bind(name, name, "", {"x-match": "none"}),
        'PRECONDITION_FAILED - Invalid x-match field value <<"none">>; expected all, any, all-with-x, or any-with-x',
    )


def shared_prefetch(channel: BlockingChannel, name: str) -> None:
    """The prefetch of a channel is shared: no queue of its consumers takes all of it."""
    queues = [f"{name}.{which}" for which in "abc"]
    for queue in queues:
        channel.queue_declare(queue)
        for _ in range(20):
            channel.basic_publish("", queue, queue[-1:].encode())
    channel.basic_qos(prefetch_count=2, global_qos=True)
    got: list[bytes] = []

    def take(on: BlockingChannel, method: Any, properties: Any, body: bytes) -> None:
        got.append(body)
        on.basic_ack(method.delivery_tag)

    for queue in queues:
        channel.basic_consume(queue, take)
    pump(channel, lambda: len(got) == 60)
    assert len(got) == 60
    assert set(got[:30]) == {b"a", b"b", b"c"}
    for queue in queues:
        channel.queue_delete(queue)


def odd_values(channel: BlockingChannel, name: str) -> None:
    """Unusual types, times and delivery modes are accepted and refused as by RabbitMQ."""
    on = channel.connection.channel
    channel.confirm_delivery()
    channel.queue_declare(name)
    channel.queue_declare(name, arguments={"x-queue-type": "classic"})
    for expiration in ("4294967296", "315360000000", "+5000"):
        channel.basic_publish("", name, b"", pika.BasicProperties(expiration=expiration))
        assert get(channel, name)[2] == b""
    odd = [
        (
            pika.BasicProperties(expiration="315360000001"),
            "invalid expiration '315360000001': {value_too_large,315360000001}",
        ),
    ]
    if is_3(channel):
        odd.append((pika.BasicProperties(delivery_mode=3), "invalid message: {delivery_mode_unknown,3}"))
    for properties, text in odd:
        other = on()
        other.basic_publish("", name, b"", properties)
        refused(406, lambda other=other: other.queue_declare(name), "PRECONDITION_FAILED - " + text)  # type: ignore[misc]
    where = f"queue '{name}.none' in vhost '/'"
    cases = [
        ({"x-message-ttl": 315360000001}, f"invalid arg 'x-message-ttl' for {where}: {{value_too_large,315360000001}}"),
        ({"x-max-length": b"\xff"}, f"invalid arg 'x-max-length' for {where}: \"expected integer, got binary\""),
    ]
    if is_3(channel):
        fault = f"invalid arg 'x-queue-mode' for {where}: \"unsupported queue mode 'fast'\""
        cases.append(({"x-queue-mode": "fast"}, fault))
    for arguments, text in cases:
        refused(
            406,
            lambda arguments=arguments: on().queue_declare(name + ".none", arguments=arguments),  # type: ignore[misc]
            "PRECONDITION_FAILED - " + text,
        )
    other = on()
    other.basic_publish("amq.rabbitmq.trace", "", b"")
    refused(
        403,
        lambda: other.queue_declare(name),
        "ACCESS_REFUSED - cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'",
    )
    assert channel.connection._impl.server_properties["product"] == "RabbitMQ"


def exclusive_queue(channel: BlockingChannel, name: str) -> None:
    """An exclusive queue is locked for other connections, and deleted with its own."""
    other = pika.BlockingConnection(channel.connection._impl.params)
    other.channel().queue_declare(name, exclusive=True)
    refused(405, lambda: channel.connection.channel().basic_get(name))
    other.close()
    assert channel.queue_declare(name).method.message_count == 0


CASES: list[Case] = [
    round_trip,
    confirms_and_returns,
    redelivery_order,
    exchanges,
    time_and_length,
    single_active_consumer,
    cancelled_consumer,
    refusals,
    priorities,
    quorum_queues,
    quorum_returns,
    refused_publishes_dead_lettered,
    transactions,
    direct_reply_to,
    headers_exchange,
    shared_prefetch,
    odd_values,
    exclusive_queue,
]


def run(case: Case, url: str) -> None:
    parameters = pika.URLParameters(url)
    parameters.blocked_connection_timeout = 20
    connection = pika.BlockingConnection(parameters)
    name = f"{case.__name__}-{uuid4().hex[:8]}"
    try:
        case(connection.channel(), name)
        if connection.is_open:
            connection.channel().queue_delete(name)
    finally:
        if connection.is_open:
            connection.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@reactor_test
async def test_like_rabbitmq(broker: Broker, case: Case) -> None:
    """Both brokers give the answers of a case; its docstring states the required behaviour."""
    await within(deferToThread(run, case, broker.url), 30)


@reactor_test
async def test_refused_logins(broker: Broker) -> None:
    """A wrong password is refused with 403, a wrong virtual host with 530."""

    def attempt(**options: Any) -> str:
        parameters = pika.URLParameters(broker.url)
        for name, value in options.items():
            setattr(parameters, name, value)
        with pytest.raises(pika.exceptions.AMQPConnectionError) as error:
            pika.BlockingConnection(parameters)
        return repr(error.value)

    assert "403" in await deferToThread(attempt, credentials=pika.PlainCredentials("guest", "wrong"))
    assert "530" in await deferToThread(attempt, virtual_host="none")


@pytest.fixture
def wire_client(broker: Broker) -> Iterator[wire.WireClient]:
    """Create a client for raw bytes, which is not connected yet."""
    client = wire.WireClient(broker.port, broker.host)
    yield client
    block_on(client.close())


@reactor_test
async def test_protocol_header_of_0_9(wire_client: wire.WireClient) -> None:
    """A client may begin with the protocol header of 0-9, as txAMQP does by default."""
    await wire_client.connect(b"AMQP\x01\x01\x00\x09")


@reactor_test
async def test_line_ends_in_names(wire_client: wire.WireClient) -> None:
    """Line ends are removed from declared names."""
    await wire_client.connect()
    name = f"name-{uuid4().hex[:8]}"
    for declared in (f"{name}\r\n", name):
        wire_client.send(wire.raw_frame(wire.METHOD, 1, methods.encode_method("queue.declare", queue=declared)))
        assert (await wire_client.expect(commands.Queue.DeclareOk))[1:] == name.encode() + bytes(8)
    wire_client.send(wire.raw_frame(wire.METHOD, 1, methods.encode_method("queue.delete", queue=f"\n{name}")))
    await wire_client.expect(commands.Queue.DeleteOk)


@reactor_test
async def test_method_of_a_refused_publish(wire_client: wire.WireClient) -> None:
    """channel.close names basic.publish or basic.ack as the refused method."""
    await wire_client.connect()
    publish = wire.method(commands.Basic.Publish(exchange="none")) + wire.raw_frame(wire.HEADER, 1, wire.content_header(0, {}))
    for refused_frames, numbers in [(publish, (60, 40)), (wire.method(commands.Basic.Ack(7)), (60, 80))]:
        wire_client.send(refused_frames)
        assert struct.unpack(">HH", (await wire_client.expect(commands.Channel.Close))[-4:]) == numbers
        wire_client.send(wire.method(commands.Channel.CloseOk()) + wire.method(commands.Channel.Open()))
        await wire_client.expect(commands.Channel.OpenOk)


@reactor_test
async def test_body_frames_as_large_as_the_limit(broker: Broker) -> None:
    """A body of frame_max bytes may arrive in one frame: some clients forget the overhead of a frame."""
    client = wire.WireClient(broker.port, broker.host, frame_max=4096)
    queue = f"frames-{uuid4().hex[:8]}"
    try:
        await client.connect()
        client.send(wire.method(commands.Queue.Declare(queue=queue, exclusive=True)))
        await client.expect(commands.Queue.DeclareOk)
        await client.publish(queue, b"x" * 4096, {})
        assert (await client.get(queue))[1] == b"x" * 4096
    finally:
        await client.close()


@reactor_test
async def test_writing_after_close(broker: Broker) -> None:
    """A client that still writes when its connection is closed reads close-ok, and may write until it closes the socket."""

    def session() -> None:
        with socket.create_connection((broker.host, broker.port), 10) as sock:
            start_ok = commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US")
            tune_ok = commands.Connection.TuneOk(10, 131072, 0)
            methods = [start_ok, tune_ok, commands.Connection.Open("/"), commands.Connection.Close(200, "", 0, 0)]
            more = wire.raw_frame(wire.HEARTBEAT, 0, b"") * 100_000
            sock.sendall(wire.PROTOCOL_HEADER + b"".join(wire.method(each, 0) for each in methods) + more)
            received = b""
            while wire.method(commands.Connection.CloseOk(), 0) not in received:
                received += sock.recv(65536)
            sock.sendall(more)
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # neither an end nor a reset
                sock.recv(1)

    await within(deferToThread(session), 30)


@reactor_test
async def test_amqp_tools(broker: Broker) -> None:
    """The command-line tools of librabbitmq work."""
    if shutil.which("amqp-publish") is None:
        pytest.skip("amqp-tools are not installed")
    queue = f"tools-{uuid4().hex[:8]}"

    def tool(name: str, *arguments: str, stdin: str = "") -> str:
        return subprocess.run(
            [f"amqp-{name}", "-u", broker.url, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout

    def session() -> None:
        assert tool("declare-queue", "-q", queue).strip() == queue
        tool("publish", "-r", queue, "-l", stdin="".join(f"{number}\n" for number in range(5000)))
        assert tool("get", "-q", queue) == "0\n"
        assert tool("consume", "-q", queue, "-c", "10", "-p", "5", "cat").split() == [str(n) for n in range(1, 11)]
        assert tool("delete-queue", "-q", queue).strip() == "4989"

    await deferToThread(session)


@reactor_test
async def test_service() -> None:
    """The broker listens on a bound socket and logs its URL; a stop closes connections with 320; it can start again."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    service = EmbeddedBroker(current_reactor(), sock)
    lines: list[str] = []
    observer: Any = lambda event: lines.append(formatEvent(event))  # noqa: E731
    globalLogPublisher.addObserver(observer)
    service.startService()
    globalLogPublisher.removeObserver(observer)
    assert [line for line in lines if line.startswith("Embedded")] == [
        "Embedded broker started: in memory, for trying out only (nothing survives a restart). "
        f"Back ends connect to amqp://guest:guest@127.0.0.1:{port}/%2f"
    ]
    assert service.port == port
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2f"
    connection = await deferToThread(pika.BlockingConnection, pika.URLParameters(url))
    await deferToThread(connection.channel)

    def closed() -> int:
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as error:
            connection.process_data_events(10)
        return int(error.value.reply_code)

    waiting = deferToThread(closed)
    await service.stopService()
    assert await waiting == 320
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    service.startService()
    assert service.port == port
    await deferToThread(run, round_trip, url)
    await service.stopService()


@reactor_test
async def test_memory_is_bounded() -> None:
    """A publisher above the memory limit is blocked, not disconnected, and continues when a consumer has made room."""
    limit = 1 << 20
    service = EmbeddedBroker(current_reactor(), port=0, memory_limit=limit)
    service.startService()
    url = f"amqp://guest:guest@127.0.0.1:{service.port}/%2f"
    peak = 0

    def publish() -> int:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        told: list[Any] = []
        connection.add_on_connection_blocked_callback(lambda c, m: told.append(m))
        channel = connection.channel()
        channel.queue_declare("q")
        for _ in range(4000):
            channel.basic_publish("", "q", b"x" * 10_000)
        channel.queue_declare("q", passive=True)
        connection.process_data_events(0)
        connection.close()
        return len(told)

    def consume() -> int:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.queue_declare("q")
        channel.basic_qos(prefetch_count=50)
        count = 0
        nonlocal peak
        for method, _, _ in channel.consume("q", inactivity_timeout=10):
            if method is None:
                break
            channel.basic_ack(method.delivery_tag)
            count += 1
            peak = max(peak, service.broker.memory.used)
            if count == 4000:
                break
        connection.close()
        return count

    try:
        publishing = deferToThread(publish)
        await until(lambda: service.broker.memory.alarm, what="the memory limit")
        assert await within(deferToThread(consume), 60) == 4000
        assert await within(publishing) > 0
        assert peak < limit + 20_000
    finally:
        await service.stopService()


def documented_back_end(url: str) -> None:
    """Answer lines like the back end in docs/backends.md, until none has arrived for 3 seconds."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=200)
    for line, properties, body in channel.consume("from_device", inactivity_timeout=3):
        if line is None:
            break
        answer = pika.BasicProperties(headers=properties.headers)
        channel.basic_publish("", properties.reply_to, b"you said: " + body, answer)
        channel.basic_ack(line.delivery_tag)
    connection.close()


@pytest.mark.parametrize("which", ["pika", "echo"])
@reactor_test
async def test_back_ends_at_the_memory_limit(which: str, tmp_path: Path) -> None:
    """At the memory limit a back end that answers and then acknowledges continues, and frees memory for others."""
    service = EmbeddedBroker(current_reactor(), port=0, memory_limit=1 << 20)
    service.startService()
    url = f"amqp://guest:guest@127.0.0.1:{service.port}/%2f"
    count = 3000

    def flood() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.queue_declare("from_device", durable=True)
        channel.queue_declare("to_device.node", durable=True)
        for number in range(count):
            headers = {"connection_id": "01234567-89ab-8cde-8f01-23456789abcd", "from_device_seq": number}
            properties = pika.BasicProperties(headers=headers, reply_to="to_device.node")
            channel.basic_publish("", "from_device", b"x" * 1000, properties)
        channel.queue_declare("from_device", passive=True)
        connection.close()

    def drain() -> int:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        found: list[int] = []
        for answer, properties, _ in channel.consume("to_device.node", auto_ack=True, inactivity_timeout=20):
            if answer is None:
                break
            found.append(properties.headers["from_device_seq" if which == "pika" else "to_device_seq"])
            if len(found) == count:
                break
        connection.close()
        return len(set(found))

    echo: ChildProcess | None = None
    try:
        flooding = deferToThread(flood)
        await until(lambda: service.broker.memory.alarm, what="the memory limit")
        if which == "pika":
            answering = deferToThread(documented_back_end, url)
        else:
            command = [str(Path(sys.executable).with_name("owsla")), "echo", "--broker", url]
            echo = ChildProcess(command, output=tmp_path / "echo", cwd=tmp_path)
        await until(lambda: len(service.broker.queues["to_device.node"].ready) > 0, what="an answer")
        assert await within(deferToThread(drain), 60) == count
        await within(flooding)
        if which == "pika":
            await within(answering, 20)
    finally:
        if echo is not None:
            echo.kill()
        await service.stopService()
