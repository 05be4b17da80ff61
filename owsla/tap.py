"""The system, top to bottom: what there is, and who knows whom.

    twistd owsla --port 8883
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from twisted.application.service import Service
from twisted.logger import Logger

from . import http
from .broker import topology
from .broker.connection import BrokerConnection, Role
from .broker.consumer import Consumers
from .broker.courier import Courier
from .broker.health import BrokerHealth
from .broker.packing import LinePacker
from .broker.producer import LINES, Producer
from .broker.protocol import FRAME_MAX
from .broker.tls import verifier
from .broker.window import Window
from .config import BrokerAddress, ConfigError, Options, Settings, exit_with
from .device.admission import Admission
from .device.conversation import speaking
from .device.endpoint import Endpoint
from .device.expiry import ExpiryWatch
from .device.framing import Framing
from .device.hangup import HangupWatch
from .device.hub import Hub
from .device.limits import allowed_connections, raise_open_files_limit
from .device.listener import Listener, claim
from .device.tls import certificates_in, development_certificates, device_identity, server_context
from .device.transport import CLOSING_TIMEOUT, TLSTransport
from .embedded import EmbeddedBroker
from .events import DeviceConnected, DuplicatesWatch, EventManager, handlers_from, supervision_event
from .events.amqp import PresenceRole
from .gateway import Gateway
from .process import fail, take_signals
from .routing import ConnectionIds, Registry, Router
from .supervision import AnyService, ChildSpec, DynamicSupervisor, Supervisor
from .turn import Turn

_log = Logger(namespace="owsla")


def makeService(options: Options) -> Service:
    """The service of `twistd owsla`. A user's error ends the process with one line."""
    from twisted.internet import reactor

    try:
        return gateway(reactor, options.settings)
    except ConfigError as error:
        exit_with(error)


def gateway(reactor: Any, settings: Settings) -> Gateway:
    """A whole node. `ConfigError` says what of the settings, or of the machine, is in the way."""
    open_files = raise_open_files_limit()
    max_connections, warning = allowed_connections(settings.max_connections, open_files)
    if warning is not None:
        _log.warn("{warning}", warning=warning)

    cert, key = _server_certificate(settings)
    context = server_context(cert, key, client_ca=settings.client_ca, client_cert=settings.client_cert)
    not_after = certificates_in(cert)[0].not_valid_after_utc
    device_socket = claim(settings.port, settings.interface)
    http_socket = http.claim(settings.http[1], settings.http[0]) if settings.http is not None else None
    embedded, addresses = _embedded_broker(reactor, settings)

    turn = Turn(reactor)
    events = EventManager()
    counts, latency = http.EventCounts(), http.Histogram()
    events.add(counts)
    ids = ConnectionIds()
    registry: Registry[Endpoint] = Registry()
    framing = Framing(settings.delimiter, settings.max_line)
    own_queue = topology.node_queue(settings.to_device, ids.node)

    # The broker's side
    window = Window(settings.window, settings.window_bytes)
    producer = Producer(
        reactor,
        events.emit,
        queue=topology.Queue(settings.from_device),
        packer=LinePacker(
            channel=LINES,
            exchange="",
            routing_key=settings.from_device,
            seq_header=settings.seq_header,
            delivery_mode=settings.delivery_mode,
            reply_to=own_queue.name.encode(),
            frame_max=FRAME_MAX,
        ),
        window=window,
        seq_header=settings.seq_header,
        frame_max=FRAME_MAX,
        acknowledge=settings.device_ack is not None,
        observe=latency.observe if http_socket is not None else None,
    )
    courier = Courier(
        reactor,
        events.emit,
        undeliverable=topology.undeliverable_queue(settings.to_device, settings.undeliverable_limit),
        to_device=settings.to_device,
        node=ids.node,
        node_grace=settings.node_grace,
        held_limit=settings.consumers * settings.prefetch // 4,
    )

    # What the connections of devices have in common
    endpoints: DynamicSupervisor[Endpoint] = DynamicSupervisor(reactor, name="endpoints", shutdown=CLOSING_TIMEOUT)
    hangups = HangupWatch(reactor)
    hub = Hub(
        reactor,
        turn,
        events.emit,
        framing=framing,
        sink=producer,
        registry=registry,
        courier=courier,
        endpoints=endpoints,
        now=time.time,
        gap_timeout=settings.gap_timeout,
        reorder_limit=settings.reorder_limit,
        write_buffer=settings.write_buffer,
        write_timeout=settings.write_timeout,
        max_rate=settings.max_rate,
        device_ack=_acknowledgement(settings.device_ack, framing),
        hangups=hangups,
        replace=settings.on_duplicate == "replace",
    )

    # From the broker to the devices
    router = Router(
        ids.node,
        registry.find,
        courier,
        max_line=settings.max_line,
        forbidden=framing.forbidden,
        now=time.time,
        forget=hub.forget,
    )
    consumers = Consumers(
        reactor,
        turn,
        events.emit,
        router,
        shared=topology.Queue(settings.to_device),
        own=own_queue,
        count=settings.consumers,
        prefetch=settings.prefetch,
        now=time.time,
        flowing=hub.flowing,
    )

    # From devices
    admission: Admission[TLSTransport] = Admission(max_connections, settings.max_handshakes)
    listener = Listener(
        reactor,
        device_socket,
        context,
        hub,
        ids,
        registry,
        admission,
        events.emit,
        hangups,
        endpoints,
        handshake_timeout=settings.handshake_timeout,
        idle_timeout=settings.idle_timeout,
        identify=(
            partial(device_identity, kind=settings.device_id) if settings.client_ca is not None else lambda connection: None
        ),
        fail=partial(fail, reactor),
        make=_speaking(settings),
    )

    expiry = ExpiryWatch(reactor, events.emit, certificate=cert, not_after=not_after, now=time.time)

    # Who is told of what happens
    node = ids.node.decode()
    presence = None
    if any(spec.kind == "amqp" for spec in settings.events):
        presence = PresenceRole(reactor, events.emit, node=node, live=lambda: map(_connected, registry))
    told = handlers_from(settings.events, reactor, events, node=node, presence=presence)
    handlers = [
        *(ChildSpec(handler.id, handler.start) for handler in told),
        ChildSpec("duplicates", lambda: DuplicatesWatch(reactor, events.emit, lambda: hub.duplicates)),
    ]

    # What connects them
    roles: list[Role] = [courier, *([presence] if presence is not None else []), producer, consumers]
    health = BrokerHealth([role.name for role in roles], events.emit, listener.open)
    trust = verifier(certificates_in(settings.broker_ca) if settings.broker_ca is not None else None)
    connections = [
        BrokerConnection(
            reactor,
            turn,
            addresses,
            role,
            health,
            heartbeat=settings.heartbeat,
            connection_name=f"owsla {node} {role.name} ({socket.gethostname()})",
            tls=trust,
        )
        for role in roles
    ]

    # The tree. What is made above outlives a restart: it is the same service that starts again. Events and HTTP are the first,
    # and so stop last: while devices are closed one after another HTTP says that this node is not ready any more.
    readings = http.Readings(
        node=node,
        admission=admission,
        listener=listener,
        hub=hub,
        producer=producer,
        window=window,
        courier=courier,
        health=health,
        draining=lambda: service.draining,
        tree=lambda: service.tree(),
        events=counts,
        event_drops=lambda: events.drops,
        latency=latency,
        certificate_expires=not_after.timestamp,
    )
    root = Supervisor(
        reactor,
        [
            ChildSpec("events", lambda: Supervisor(reactor, handlers), type="supervisor"),
            *([_child("http", http.HttpService(reactor, http_socket, readings))] if http_socket is not None else []),
            *([_child("embedded", embedded)] if embedded is not None else []),
            ChildSpec(
                "broker",
                lambda: Supervisor(reactor, [_child(link.role.name, link) for link in connections]),
                type="supervisor",
            ),
            ChildSpec(
                "listener",
                lambda: Supervisor(
                    reactor,
                    [_child("endpoints", endpoints, type="supervisor"), _child("port", listener)],
                    strategy="rest_for_one",
                ),
                type="supervisor",
            ),
            _child("certificate", expiry),
        ],
        name="owsla",
        on_event=lambda report: events.emit(supervision_event(report)),
        on_give_up=lambda gave_up: service.give_up(str(gave_up)),
    )
    service = Gateway(
        reactor,
        listener=listener,
        registry=registry,
        producer=producer,
        parcels=[courier, *([presence] if presence is not None else [])],
        consumers=consumers,
        connections=connections,
        root=root,
        fail=partial(fail, reactor),
        drain_timeout=settings.drain_timeout,
        drain_spread=settings.drain_spread,
    )
    take_signals(reactor, hurry=service.hurry, reopen=events.reopen)
    return service


def _connected(endpoint: Endpoint) -> DeviceConnected:
    """What was told when it connected."""
    transport = endpoint.transport
    return DeviceConnected(
        endpoint.connection_id.decode(), endpoint.device_id, transport.peer, transport.tls.get_protocol_version_name()
    )


def _child(name: str, service: AnyService, type: Literal["worker", "supervisor"] = "worker") -> ChildSpec:
    """A service that can be started again after it was stopped."""
    return ChildSpec(name, lambda: service, type=type)


def _server_certificate(settings: Settings) -> tuple[Path, Path]:
    """What devices are shown, and its key."""
    if settings.cert is not None and settings.key is not None:
        return settings.cert, settings.key
    made = development_certificates(settings.certs_dir, socket.gethostname())
    _log.info("Development certificate in use; devices should trust {ca}", ca=str(made.ca.resolve()))
    return made.cert, made.key


def _embedded_broker(reactor: Any, settings: Settings) -> tuple[EmbeddedBroker | None, list[BrokerAddress]]:
    """The embedded broker, where no other is given, and where to connect."""
    if settings.brokers:
        return None, list(settings.brokers)
    try:
        sock = claim(settings.embedded_port, "127.0.0.1", "--embedded-port")
    except ConfigError as error:
        raise ConfigError(
            f"{error}: a broker may already be running there (use it with --broker amqp://guest:guest@127.0.0.1), "
            "or choose another port with --embedded-port"
        ) from None
    broker = EmbeddedBroker(reactor, sock, memory_limit=settings.embedded_memory)
    return broker, [BrokerAddress("127.0.0.1", sock.getsockname()[1])]


def _speaking(settings: Settings) -> Callable[[Hub, bytes, str | None], Endpoint]:
    """Makes the endpoint of a connection: one with a dialect only where there is one."""
    dialect = settings.dialect
    if dialect is None:
        return Endpoint
    try:
        return speaking(dialect.configured(settings), dialect.__name__)
    except ConfigError as error:
        raise ConfigError(f"--dialect: {error}") from None


def _acknowledgement(template: str | None, framing: Framing) -> Callable[[int], bytes] | None:
    """Makes what tells a device that its lines up to a number are safe."""
    if template is None:
        return None
    before, after = template.encode().split(b"{seq}", 1)
    ending = after + framing.ending
    return lambda seq: b"%b%d%b" % (before, seq, ending)



