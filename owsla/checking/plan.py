"""The queues that a gateway will use, as its settings name them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..broker import presence, queues
from ..broker.queues import Queue
from ..cluster.register import register_queue
from ..config.settings import Settings


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """A queue that Owsla will declare."""

    queue: Queue
    shown: str
    """Name of the queue, for people."""
    consumed: bool = False
    """True if Owsla consumes it."""
    needed: tuple[str, ...] = ()
    """Arguments without which Owsla cannot use the queue."""
    when_missing: str = "Owsla declares it at its start"


def planned_queues(settings: Settings, node: str) -> Sequence[QueuePlan]:
    """Return the queues of a gateway. `node` stands for the name of a node, which is another one at every start."""
    to_device = settings.to_device
    own = dict(settings.node_queue_arguments)
    plans = [
        QueuePlan(Queue(to_device, dict(settings.to_device_arguments)), to_device, consumed=True),
        QueuePlan(
            queues.node_queue(to_device, node.encode(), own),
            f"{to_device}.<node>",
            consumed=True,
            when_missing="each process of Owsla declares one, with a name of its own",
        ),
        QueuePlan(register_queue(to_device, own), f"{to_device}.nodes", consumed=True, needed=("x-single-active-consumer",)),
        _plan(
            queues.undeliverable_queue(to_device, settings.undeliverable_limit, dict(settings.undeliverable_arguments))
        ),
    ]
    doors = [door.settings for door in settings.doors if door.settings.publish_exchange is None]
    lines = {own.from_device: _plan(Queue(own.from_device, dict(own.from_device_arguments))) for own in doors}
    plans = [*lines.values(), *plans]
    if any(spec.kind == "amqp" for spec in settings.events):
        plans.append(_plan(Queue(presence.QUEUE)))
    return plans


def _plan(queue: Queue) -> QueuePlan:
    return QueuePlan(queue, queue.name)
