"""The queues that a gateway uses, as its settings name them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..broker import presence, queues
from ..broker.promises import GatewayQueue, Use
from ..broker.queues import Queue
from ..config.settings import Settings
from .register import register_queue


def gateway_queues(settings: Settings, node: bytes) -> Sequence[GatewayQueue]:
    """Return the queues of a gateway, each once. `node` is the name of a node."""
    to_device, own = settings.to_device, dict(settings.node_queue_arguments)
    doors = [door.settings for door in settings.doors if door.settings.publish_exchange is None]
    lines = {door.from_device: Queue(door.from_device, dict(door.from_device_arguments)) for door in doors}
    records = queues.undeliverable_queue(to_device, settings.undeliverable_limit, dict(settings.undeliverable_arguments))
    found = [
        *(GatewayQueue(Use.LINES, queue) for queue in lines.values()),
        GatewayQueue(Use.MESSAGES, Queue(to_device, dict(settings.to_device_arguments), consumed=True)),
        GatewayQueue(Use.NODE, queues.node_queue(to_device, node, own)),
        GatewayQueue(Use.REGISTER, register_queue(to_device, own)),
        GatewayQueue(Use.RECORDS, records),
    ]
    if any(spec.kind == "amqp" for spec in settings.events):
        found.append(GatewayQueue(Use.PRESENCE, Queue(presence.QUEUE)))
    return found
