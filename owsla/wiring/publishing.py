"""Roles towards RabbitMQ that publish: lines of devices, messages to other queues and to all nodes, announcements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .. import http
from ..broker import queues
from ..broker.batch_pacing import BatchPacing
from ..broker.batch_packing import BatchPacker
from ..broker.batch_window import BatchWindow
from ..broker.batches import BatchPublisher
from ..broker.broadcast import BroadcastRole
from ..broker.client import FRAME_MAX
from ..broker.courier import CourierRole
from ..broker.door_lines import DoorLines, line_channel
from ..broker.door_publisher import DoorPublisher, PublisherOptions
from ..broker.lines import LinePublisher
from ..broker.packing import LinePacker, MessageArguments
from ..broker.presence import PresenceRole
from ..broker.window import Window
from ..config.settings import Door
from ..device.connections import Connection
from ..events import DeviceConnected
from ..runtime.precise_clock import PreciseClock
from .base import Base

CLAIM_LIFETIME: Final = 60.0
"""Seconds for which the claims of a node wait in the queue of another one that is away for a moment, besides the heartbeats."""

CLAIM_HEARTBEATS: Final = 3
"""Heartbeat intervals after which RabbitMQ has closed the dead connection of a node (`consuming.GHOST_HEARTBEATS`)."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """Roles that publish."""

    lines: DoorLines
    courier: CourierRole
    broadcast: BroadcastRole
    presence: PresenceRole | None
    """Announcer of connections to back ends; `None` without `--events amqp`."""
    latency: Mapping[str, http.Histogram]
    """Seconds from publishing a line to its confirm, by door; filled only where --http or --control shows it."""


def make_publishing(base: Base) -> Publishing:
    """Make the roles that publish."""
    settings = base.settings
    latency = {door.name: http.Histogram() for door in settings.doors}
    lines = DoorLines(base.reactor)
    for number, door in enumerate(settings.doors):
        lines.add(door.name, _make_publisher(base, lines, latency[door.name], number, door))
    courier = CourierRole(
        base.reactor,
        base.emit,
        undeliverable=queues.undeliverable_queue(
            settings.to_device, settings.undeliverable_limit, dict(settings.undeliverable_arguments)
        ),
        to_device=settings.to_device,
        node=base.node,
        device=lambda connection_id: _device_of(base.registry.find(connection_id)),
        node_grace=settings.node_grace,
        held_limit=settings.consumers * settings.prefetch // 4,
    )
    broadcast = BroadcastRole(
        base.reactor,
        base.emit,
        exchange=queues.broadcast_exchange(settings.to_device),
        own_queue=lambda: base.node_queue(base.node()).name,
        question_lifetime=lambda: base.settings.device_timeout,
        claim_lifetime=CLAIM_LIFETIME + CLAIM_HEARTBEATS * settings.heartbeat,
        record=courier.record,
    )
    presence = None
    if any(spec.kind == "amqp" for spec in settings.events):
        presence = PresenceRole(
            base.reactor,
            base.emit,
            node=base.node_name,
            live=lambda: map(_connected, base.registry),
            several_doors=len(settings.doors) > 1,
        )
    return Publishing(lines, courier, broadcast, presence, latency)


def _make_publisher(base: Base, lines: DoorLines, latency: http.Histogram, number: int, door: Door) -> DoorPublisher:
    """Make the publisher of the lines of a door. Lines name the door where there are several."""
    settings, own = base.settings, door.settings
    queue = (
        queues.Queue(own.from_device, dict(own.from_device_arguments))
        if own.publish_exchange is None
        else queues.Exchange(own.publish_exchange)
    )
    message = MessageArguments(
        channel=line_channel(number),
        exchange=own.publish_exchange or "",
        routing_key=own.from_device if own.publish_exchange is None else own.routing_key,
        delivery_mode=settings.delivery_mode,
        reply_to=base.node_queue(base.node()).name.encode(),
        frame_max=FRAME_MAX,
        door=door.name if len(settings.doors) > 1 else None,
    )
    options = PublisherOptions(
        door=door.name,
        acknowledge=own.device_ack is not None,
        observe=latency.observe if settings.http is not None or settings.control != "off" else None,
        failed=lines.channel_failed,
    )
    publisher: DoorPublisher
    if own.batch > 1:
        publisher = BatchPublisher(
            base.reactor,
            base.emit,
            queue=queue,
            packer=BatchPacker(most=own.batch, **message),
            window=BatchWindow(settings.window, settings.window_bytes),
            pacing=BatchPacing(PreciseClock(base.reactor), base.end_of_turn, own.batch_delay),
            options=options,
        )
    else:
        packer = LinePacker(seq_header=settings.seq_header, narrow=settings.seq_type == "int32", **message)
        window = Window(settings.window, settings.window_bytes)
        publisher = LinePublisher(base.reactor, base.emit, queue=queue, packer=packer, window=window, options=options)
    publisher.trace(settings.trace_lines)
    return publisher


def _connected(endpoint: Connection) -> DeviceConnected:
    """Return the event of a connection that is open, as it was when the device connected."""
    transport = endpoint.transport
    return DeviceConnected(
        endpoint.connection_id.decode(),
        endpoint.device_id,
        transport.peer,
        transport.tls_version,
        endpoint.factory.door,
        endpoint.since or None,
    )


def _device_of(endpoint: Connection | None) -> str | None:
    return None if endpoint is None else endpoint.device_id
