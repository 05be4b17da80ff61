"""Tests of the exchange of all nodes: declared, bound, lost and found again, and refused, on real brokers."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError
from twisted.internet.defer import Deferred

from owsla.broker.binding import CHECK_INTERVAL

from ._support.lab import Broker, Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import block_on, current_reactor, pause, reactor_test, within

#: Beginning of the warning of a node that cannot use the exchange.
_WARNING = "can be addressed by name .* on their own node only"

#: Headers of a question about no device: every node that is bound gets it, and none answers.
_QUESTION = {"owsla_notice": "who-has", "device_id": "nobody"}


class Exchange:
    """The exchange of all nodes of a gateway, as a back end uses it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.name = f"{gateway.to_device}.all"

    async def call(self, function: Callable[[Any], Any]) -> Any:
        """Run a function on a channel of its own, which an error closes."""

        def run(channel: Any) -> Any:
            own = channel.connection.channel()
            try:
                return function(own)
            finally:
                if own.is_open:
                    own.close()

        return await self.gateway.backend.call(run)

    async def ask(self) -> None:
        """Publish a question. Raise pika's UnroutableError if no node is bound."""

        def publish(channel: Any) -> None:
            channel.confirm_delivery()
            channel.basic_publish(self.name, "", b"", _properties(_QUESTION), mandatory=True)

        await self.call(publish)

    async def bound(self) -> bool:
        """Return whether a node is bound."""
        try:
            await self.ask()
        except UnroutableError:
            return False
        return True

    async def until_bound(self) -> None:
        await eventually(self.bound, CHECK_INTERVAL + 5)


async def eventually(condition: Callable[[], Awaitable[bool]], timeout: float) -> None:
    """Wait until a condition on the broker is true."""
    deadline = current_reactor().seconds() + timeout
    while not await condition():
        assert current_reactor().seconds() < deadline, f"still waiting after {timeout} s"
        await pause(0.1)


def exists(channel: Any, queue: str) -> bool:
    """Return whether a queue exists."""
    try:
        channel.queue_declare(queue, passive=True)
    except ChannelClosedByBroker as closed:
        if closed.reply_code != 404:
            raise
        return False
    return True


def _properties(headers: dict[str, Any]) -> Any:
    return pika.BasicProperties(headers=headers, expiration="1000")


@pytest.fixture
def asking() -> Iterator[Callable[[Exchange], None]]:
    """Return a function that keeps asking on an exchange, ten times a second, until the end of the test."""
    going = True
    ends: list[Deferred[None]] = []

    async def ask(exchange: Exchange) -> None:
        while going:
            with suppress(UnroutableError):
                await exchange.ask()
            await pause(0.1)

    yield lambda exchange: ends.append(Deferred.fromCoroutine(ask(exchange)))
    going = False
    for end in ends:
        block_on(within(end))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@reactor_test
async def test_lost_and_found(broker: Broker, lab: Lab, kind: str) -> None:
    """A node is bound before its port opens. It is bound again within seconds if the binding is removed, or the exchange."""
    gateway = await lab.gateway(broker.url, node_queue_argument=[f"x-queue-type={kind}"])
    exchange = Exchange(gateway)
    assert await exchange.bound()
    device = await lab.device(gateway)
    await gateway.introduce(device)
    device.send_line(b"which queue?")
    own = (await gateway.message()).properties.reply_to
    await exchange.call(lambda channel: channel.queue_unbind(own, exchange.name, ""))
    while await exchange.bound():  # the node looks every few seconds, and has just bound it again
        await exchange.call(lambda channel: channel.queue_unbind(own, exchange.name, ""))
    await exchange.until_bound()
    await exchange.call(lambda channel: channel.exchange_delete(exchange.name))
    await pause(CHECK_INTERVAL)
    await exchange.call(lambda channel: channel.exchange_declare(exchange.name, "fanout", durable=True))  # 406 if it differs
    await exchange.until_bound()
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Traceback|WARN|Broker warning")


@reactor_test
async def test_another_type(broker: Broker, lab: Lab) -> None:
    """An exchange of that name and another type is left alone, with one warning. When it is gone, its place is taken."""
    backend = await lab.backend(broker.url)
    to_device = f"to_{secrets.token_hex(4)}"
    await backend.call(lambda channel: channel.exchange_declare(f"{to_device}.all", "direct", durable=True))
    gateway = await lab.gateway(broker.url, to_device=to_device)
    exchange = Exchange(gateway)
    await gateway.owsla.wait_for_line(_WARNING)
    await gateway.round_trip(await lab.device(gateway))
    assert not await exchange.bound()
    await exchange.call(lambda channel: channel.exchange_delete(exchange.name))
    await gateway.owsla.wait_for_line("Devices can be addressed by name")
    assert await exchange.bound()
    assert len(gateway.owsla.lines(_WARNING)) == 1


@pytest.mark.parametrize("missing", ["configure", "write", "read"])
@reactor_test
async def test_no_permission(own_rabbitmq: RabbitMQ, lab: Lab, missing: str) -> None:
    """A user with the permissions that were enough before: the node serves as before, with one warning, which ends when the
    permission is given.
    """
    name = secrets.token_hex(4)
    user, queues = f"user-{name}", f"(from|to)_{name}(\\.[0-9a-f]{{8}}|\\.nodes|\\.undeliverable)?"
    url = f"amqp://{user}:secret@127.0.0.1:{own_rabbitmq.port}/%2f"
    permissions = {
        "configure": f"^({queues}|to_{name}\\.all)$",
        "write": f"^(amq\\.default|to_{name}\\..*)$",
        "read": f"^({queues}|to_{name}\\.all)$",
    }
    before = permissions | {missing: "^amq\\.default$" if missing == "write" else f"^{queues}$"}
    await own_rabbitmq.ctl("add_user", user, "secret")
    await own_rabbitmq.ctl("set_permissions", user, *before.values())
    gateway = await lab.gateway(url, from_device=f"from_{name}", to_device=f"to_{name}", backend=False)
    gateway.broker_url = own_rabbitmq.url
    await gateway.connect_backend()
    await gateway.owsla.wait_for_line(f"{_WARNING}: ACCESS_REFUSED")
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await pause(3)
    assert len(gateway.owsla.lines("[Bb]roker warn|by name|WARN")) == 1
    await own_rabbitmq.ctl("set_permissions", user, *permissions.values())
    await gateway.owsla.wait_for_line("Devices can be addressed by name", timeout=60)
    assert await Exchange(gateway).bound()
    await gateway.round_trip(device)
    assert not gateway.owsla.lines("Broker lost|Traceback")


@reactor_test
async def test_connection_limit(own_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A user that may have as many connections as a node needed before: the node serves, with one warning."""
    user = f"user-{secrets.token_hex(4)}"
    await own_rabbitmq.ctl("add_user", user, "secret")
    await own_rabbitmq.ctl("set_permissions", user, ".*", ".*", ".*")
    await own_rabbitmq.ctl("set_user_limits", user, '{"max-connections": 4}')
    gateway = await lab.gateway(f"amqp://{user}:secret@127.0.0.1:{own_rabbitmq.port}/%2f", backend=False)
    gateway.broker_url = own_rabbitmq.url
    await gateway.connect_backend()
    await gateway.owsla.wait_for_line("no connection for the role broadcast, trying again: .*limit")
    await gateway.round_trip(await lab.device(gateway))
    await pause(1)
    assert len(gateway.owsla.lines("owsla#warn")) == 1
    await own_rabbitmq.ctl("clear_user_limits", user, "all")


@reactor_test
async def test_alarm(own_rabbitmq: RabbitMQ, lab: Lab) -> None:
    """While the broker is short of memory, the node stays bound, also when the exchange is deleted."""
    gateway = await lab.gateway(own_rabbitmq.url)
    exchange = Exchange(gateway)
    device = await lab.device(gateway)
    await gateway.round_trip(device)
    await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        device.send_line(b"blocked")
        await gateway.owsla.wait_for_line("Broker blocked")
        name = f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange.name}">>)'
        await own_rabbitmq.ctl("eval", f'rabbit_exchange:delete({name}, false, <<"test">>).')

        async def is_bound() -> bool:
            return f"{exchange.name}\t" in await own_rabbitmq.ctl("list_bindings", "source_name", "destination_name")

        await eventually(is_bound, CHECK_INTERVAL + 15)
    finally:
        await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    await gateway.owsla.wait_for_line("Broker unblocked")
    assert (await gateway.message()).body == b"blocked"
    await gateway.connect_backend()
    assert await exchange.bound()
    assert not gateway.owsla.lines("Broker lost|Traceback")


@reactor_test
async def test_questions_during_a_stop(broker: Broker, lab: Lab, asking: Callable[[Exchange], None]) -> None:
    """A back end that asks all the time does not keep a node that is alone from deleting its queue at its stop."""
    gateway = await lab.gateway(broker.url, drain_timeout="20s")
    exchange = Exchange(gateway)
    device = await lab.device(gateway)
    await gateway.introduce(device)
    device.send_line(b"which queue?")
    own = (await gateway.message()).properties.reply_to
    asking(exchange)
    await gateway.owsla.terminate()
    assert gateway.owsla.lines("everything confirmed")
    assert not await exchange.call(lambda channel: exists(channel, own))


@reactor_test
async def test_questions_to_a_dead_node(broker: Broker, lab: Lab, asking: Callable[[Exchange], None]) -> None:
    """A back end that asks all the time does not keep the queue of a dead node from being deleted."""
    options: dict[str, Any] = {"node_grace": "1500ms", "heartbeat": "2"}
    gateway = await lab.gateway(broker.url, **options)
    second = lab.new_owsla(broker=broker.url, from_device=gateway.from_device, to_device=gateway.to_device, **options)
    await second.start()
    exchange = Exchange(gateway)
    device = await lab.device(second)
    await gateway.introduce(device)
    device.send_line(b"which queue?")
    own = (await gateway.message()).properties.reply_to
    asking(exchange)
    second.kill()
    await gateway.owsla.wait_for_line("Node lost", timeout=40)


    async def is_gone() -> bool:
        return not await exchange.call(lambda channel: exists(channel, own))

    await eventually(is_gone, 30)
    assert await exchange.bound()
