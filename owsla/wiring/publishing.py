"""Roles towards RabbitMQ that publish: lines of devices, messages to other queues, announcements to back ends."""

from __future__ import annotations

from dataclasses import dataclass

from .. import http
from ..broker import queues
from ..broker.client import FRAME_MAX
from ..broker.courier import CourierRole
from ..broker.lines import LINES, LinePublisher
from ..broker.packing import LinePacker
from ..broker.presence import PresenceRole
from ..broker.window import Window
from ..config.settings import Settings
from ..device.connections import Connection
from ..events import DeviceConnected
from .base import Base


@dataclass(frozen=True, slots=True)
class Publishing:
    """Roles that publish."""

    window: Window
    packer: LinePacker
    lines: LinePublisher
    courier: CourierRole
    presence: PresenceRole | None
    """Announcer of connections to back ends; `None` without `--events amqp`."""
    latency: http.Histogram
    """Seconds from publishing a line to its confirm; filled only where HTTP is on."""


def make_publishing(base: Base) -> Publishing:
    """Make the roles that publish."""
    settings = base.settings
    latency = http.Histogram()
    window = Window(settings.window, settings.window_bytes)
    packer = LinePacker(
        channel=LINES,
        exchange=settings.publish_exchange or "",
        routing_key=settings.from_device if settings.publish_exchange is None else settings.routing_key,
        seq_header=settings.seq_header,
        delivery_mode=settings.delivery_mode,
        reply_to=base.node_queue(base.node()).name.encode(),
        frame_max=FRAME_MAX,
        narrow=settings.seq_type == "int32",
    )
    lines = LinePublisher(
        base.reactor,
        base.emit,
        queue=(
            queues.Queue(settings.from_device, dict(settings.from_device_arguments))
            if settings.publish_exchange is None
            else queues.Exchange(settings.publish_exchange)
        ),
        packer=packer,
        window=window,
        acknowledge=acknowledges(settings),
        observe=latency.observe if settings.http is not None else None,
    )
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
    presence = None
    if any(spec.kind == "amqp" for spec in settings.events):
        presence = PresenceRole(
            base.reactor,
            base.emit,
            node=base.node_name,
            live=lambda: map(_connected, base.registry),
            several_doors=len(settings.doors) > 1,
        )
    return Publishing(window, packer, lines, courier, presence, latency)


def acknowledges(settings: Settings) -> bool:
    """Return whether the devices of a door are told which of their lines are safe."""
    return any(door.settings.device_ack is not None for door in settings.doors)


def _connected(endpoint: Connection) -> DeviceConnected:
    """Return the event of a connection that is open, as it was when the device connected."""
    transport = endpoint.transport
    return DeviceConnected(
        endpoint.connection_id.decode(), endpoint.device_id, transport.peer, transport.tls_version, endpoint.factory.door
    )


def _device_of(endpoint: Connection | None) -> str | None:
    return None if endpoint is None else endpoint.device_id
