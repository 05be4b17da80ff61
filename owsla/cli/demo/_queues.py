"""The removal of the demo's queues from a RabbitMQ of the user."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from txamqp.client import Closed

from ...broker.client import BaseHandler, BrokerClient, BrokerError, channel_refusal
from ...broker.queues import PRECONDITION_FAILED, broadcast_exchange
from ...config.sources import load_settings
from ...runtime.end_of_turn import EndOfTurn
from .._running import Session, run
from ._plan import PREFIX

CHANNEL: Final = 1

TIMEOUT: Final = 5.0
"""Seconds for the broker."""


class RemoveQueues:
    """The `Role` that deletes the queues and the exchange, unless another demo uses them."""

    name = "demo"

    def __init__(self, reactor: Any, turn: EndOfTurn, session: Session, *, node: str) -> None:
        self._session = session
        self._node = node
        reactor.callLater(TIMEOUT, session.finish, 1, "the queues of the demo could not be deleted")

    async def up(self, client: BrokerClient) -> None:
        to_device = f"{PREFIX}to_device"
        own = [f"{to_device}.{self._node}"] if self._node else []
        used = [to_device, f"{PREFIX}from_device"]
        stay: dict[str, str] = {}  # queues or exchanges that stay, and why
        for queue in own + used:
            refusal = await _delete(client, "queue", queue, if_unused=queue in used)
            if refusal is not None and refusal.code == PRECONDITION_FAILED:
                self._session.finish(0, f"the other queues of the demo stay at the broker, since another program uses {queue}")
                return
            if refusal is not None:
                stay[queue] = str(refusal)
        for kind, name in (
            ("queue", f"{to_device}.nodes"),
            ("queue", f"{to_device}.undeliverable"),
            ("exchange", broadcast_exchange(to_device)),
        ):
            refusal = await _delete(client, kind, name)
            if refusal is not None:
                stay[name] = str(refusal)
        if stay:
            self._session.finish(0, f"{', '.join(stay)} stay at the broker: {next(iter(stay.values()))}")
        else:
            self._session.finish(0)

    def down(self) -> None: ...

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...


async def _delete(client: BrokerClient, kind: str, name: str, *, if_unused: bool = False) -> BrokerError | None:
    """Delete a queue or an exchange. Return the refusal of the broker, if it refuses."""
    try:
        channel = client.channels.get(CHANNEL)
        if channel is None or channel.closed:
            channel = await client.open_channel(CHANNEL, BaseHandler())
        if kind == "queue":
            await channel.queue_delete(queue=name, if_unused=if_unused)
        else:
            await channel.exchange_delete(exchange=name)
    except Closed as closed:
        return channel_refusal(closed)
    return None


def main(url: str, password_file: str, node: str) -> int:
    """Delete the queues at a broker. Return the exit status."""
    settings = load_settings([f"--broker={url}", f"--broker-password-file={password_file}"], {})
    return run("demo", settings, partial(RemoveQueues, node=node), patient=False)
