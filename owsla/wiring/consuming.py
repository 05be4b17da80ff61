"""Construction of the roles that consume from RabbitMQ, and of a connection to the broker for every role."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..broker import message_properties, queues
from ..broker.client import Credentials
from ..broker.connection import BrokerConnection, ConnectionSettings, Role
from ..broker.consumers import Consumers, ConsumerSettings, OwnQueueParts
from ..broker.door_lines import DoorLines
from ..broker.health import BrokerHealth
from ..broker.inspection import InspectionParts, QueueInspection
from ..broker.logins import BrokerLogins
from ..broker.management import Management
from ..broker.own_queue import OwnQueueSettings
from ..cluster.device_router import DeviceRouter
from ..cluster.gateway_queues import gateway_queues
from ..cluster.identity import NodeIdentity
from ..cluster.left_behind import LeftBehind
from ..cluster.register import ClusterSettings, register_queue
from ..cluster.registrar import Registrar
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..device.groups import Groups
from ..events import BrokerWarning
from ..routing import Handover, Router
from ..tls.broker import BrokerTLS
from .base import Base
from .claims import announce_again
from .configuration import Configuration
from .devices import Devices
from .opening import Opening
from .publishing import Publishing

GHOST_HEARTBEATS: Final = 3
"""Heartbeat intervals after which RabbitMQ has closed a dead connection of this node. It checks once per interval and closes at
the second check without traffic; with the time before the first check that is three.
"""

UNREACHABLE: Final = 30.0
"""Seconds, or `--node-grace` if that is longer, after which a node takes another name if the broker cannot reach the node's own
queue, as while the broker node of that queue is down. A restart of a broker node takes much less.
"""


@dataclass(frozen=True, slots=True)
class Consuming:
    """Roles that consume, and all connections to the broker."""

    registrar: Registrar
    consumers: Consumers
    router: Router
    by_name: DeviceRouter
    groups: Groups
    health: BrokerHealth
    connections: list[BrokerConnection]
    logins: BrokerLogins
    tls: BrokerTLS
    inspection: QueueInspection

    def use(self, configuration: Configuration) -> None:
        """Use the brokers, passwords, authorities and certificates of another configuration: those of a reload."""
        self.tls.use(configuration.broker_tls)
        if configuration.settings.brokers:  # otherwise the embedded broker, which cannot change
            self.logins.use(configuration.settings.brokers, configuration.broker_password_file)


def make_consuming(
    base: Base,
    publishing: Publishing,
    devices: Devices,
    opening: Opening,
    brokers: Sequence[BrokerAddress],
    configuration: Configuration,
) -> Consuming:
    """Make the roles that consume, and a connection to one of the `brokers` for each role."""
    settings, presence = base.settings, publishing.presence
    tls = BrokerTLS(configuration.broker_tls)
    logins = BrokerLogins(
        base.reactor,
        brokers,
        configuration.broker_password_file,
        warn=lambda text: base.emit(BrokerWarning(text)),
        common_name=lambda: tls.common_name,
    )
    router, by_name, groups = _make_routers(base, publishing, devices)
    publishers: list[Role] = [publishing.courier, *([presence] if presence is not None else [])]
    names = [*(role.name for role in publishers), Registrar.name, DoorLines.name, Consumers.name]
    # Devices are served without messages to all nodes, which the broker may refuse: a limit on connections, or permissions.
    optional = {publishing.broadcast.name: publishing.broadcast.not_connected}

    def ready() -> None:
        opening.broker_ready()
        inspection.begin()

    health = BrokerHealth(base.reactor, names, base.emit, ready, optional=optional)
    opening.follow(lambda: health.ready)
    registrar = Registrar(
        base.reactor,
        base.emit,
        ClusterSettings(
            to_device=settings.to_device,
            register=register_queue(settings.to_device, dict(settings.node_queue_arguments)),
            node_grace=settings.node_grace,
            users=logins.users,
        ),
        node=base.node,
        left_behind=LeftBehind(publishing.courier, by_name, node=base.node),
        presence=presence,
        joined=opening.node_joined,
        lists=publishing.broadcast,
    )
    identity = NodeIdentity(
        base.ids,
        registrar,
        queue=base.node_queue,
        announce=partial(announce_again, devices, presence),
        receiving=presence.receiving if presence is not None else lambda now: None,
        renamed=opening.renamed,
    )
    consumers = Consumers(
        base.reactor,
        base.end_of_turn,
        base.emit,
        router,
        own=OwnQueueParts(identity, publishing.broadcast.binding, by_name),
        settings=_consumer_settings(settings, logins),
        flowing=devices.services.reordering.flowing,
    )
    inspection = _make_inspection(base, consumers, logins, tls)
    roles = [*publishers, registrar, publishing.broadcast, publishing.lines, consumers]
    connections = _connections(base, roles, logins, health, tls)
    return Consuming(registrar, consumers, router, by_name, groups, health, connections, logins, tls, inspection)


def _make_inspection(base: Base, consumers: Consumers, logins: BrokerLogins, tls: BrokerTLS) -> QueueInspection:
    async def login() -> Credentials:
        return await logins.credentials(logins.addresses[0])

    parts = InspectionParts(
        queues=lambda: gateway_queues(base.settings, base.node()),
        client=lambda: consumers.client,
        login=login,
        management=lambda address: Management(base.reactor, address, tls),
    )
    return QueueInspection(base.reactor, base.emit, parts, management=base.settings.broker_management)


def _make_routers(base: Base, publishing: Publishing, devices: Devices) -> tuple[Router, DeviceRouter, Groups]:
    """Make the router of all messages to devices, and its routes for those by name and for those to many."""
    handover = Handover(publishing.courier, devices.services.deliveries, devices.body_fault)
    groups = Groups(
        base.reactor,
        base.registry,
        publishing.courier,
        publishing.broadcast,
        handover,
        message_properties.identity,
        base.emit,
        base.settings.fanout_rate,
    )
    by_name = _device_router(base, publishing, devices, handover)
    router = Router(
        base.node, base.registry.find, publishing.courier, handover, by_name=by_name, groups=groups
    )
    return router, by_name, groups


def _consumer_settings(settings: Settings, logins: BrokerLogins) -> ConsumerSettings:
    return ConsumerSettings(
        shared=queues.Queue(settings.to_device, dict(settings.to_device_arguments), consumed=True),
        count=settings.consumers,
        prefetch=settings.prefetch,
        own_queue=OwnQueueSettings(
            users=logins.users,
            grace=settings.node_grace,
            ghost=GHOST_HEARTBEATS * settings.heartbeat + 1.0,
            patience=max(UNREACHABLE, settings.node_grace),
        ),
    )


def _device_router(base: Base, publishing: Publishing, devices: Devices, handover: Handover) -> DeviceRouter:
    """Make the router of messages to devices. The courier gives it those back that found no queue of a node."""
    router = DeviceRouter(
        base.reactor,
        node=base.node,
        to_device=base.settings.to_device,
        devices=devices.services.devices,
        handover=handover,
        courier=publishing.courier,
        broadcast=publishing.broadcast,
        device_timeout=base.settings.device_timeout,
    )
    publishing.courier.take_back_with(router.returned, router.locations.fenced)
    return router


def _connections(
    base: Base, roles: Sequence[Role], logins: BrokerLogins, health: BrokerHealth, tls: BrokerTLS
) -> list[BrokerConnection]:
    settings = base.settings
    return [
        BrokerConnection(
            base.reactor,
            base.end_of_turn,
            logins,
            role,
            health,
            ConnectionSettings(settings.heartbeat, partial(_connection_name, base, role.name), tls),
            may_connect=partial(health.may_connect, role.name),
        )
        for role in roles
    ]


def _connection_name(base: Base, role: str) -> str:
    """Return the name under which RabbitMQ lists a connection."""
    return f"owsla {base.node_name()} {role} ({socket.gethostname()})"
