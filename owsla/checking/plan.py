"""The queues that a gateway will use, as its settings name them, and what a check looks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..broker.promises import GatewayQueue, Use
from ..broker.queues import Queue
from ..cluster.gateway_queues import gateway_queues
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
    use: Use = Use.LINES


def planned_queues(settings: Settings, node: str) -> Sequence[QueuePlan]:
    """Return the queues of a gateway. `node` stands for the name of a node, which is another one at every start."""
    return [_plan(found, settings.to_device) for found in gateway_queues(settings, node.encode())]


def _plan(found: GatewayQueue, to_device: str) -> QueuePlan:
    queue, use = found.queue, found.use
    if use is Use.NODE:
        missing = "each process of Owsla declares one, with a name of its own"
        return QueuePlan(queue, f"{to_device}.<node>", consumed=True, when_missing=missing, use=use)
    needed = ("x-single-active-consumer",) if use is Use.REGISTER else ()
    return QueuePlan(queue, queue.name, consumed=use in (Use.MESSAGES, Use.REGISTER), needed=needed, use=use)
