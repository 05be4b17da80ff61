"""The system, top to bottom: what there is, and who knows whom.

    twistd owsla --port 8883
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from twisted.application.service import Service
from twisted.logger import Logger

from . import http
from .broker import queues as topology
from .broker.client import FRAME_MAX
from .broker.connection import BrokerConnection, Role
from .broker.consumers import Consumers
from .broker.courier import CourierRole
from .broker.health import BrokerHealth
from .broker.lines import LINES, Producer
from .broker.packing import LinePacker
from .broker.presence import PresenceRole
from .broker.window import Window
from .cluster.identity import NodeIdentity
from .cluster.registrar import Registrar, register_queue
from .config.addresses import BrokerAddress
from .config.settings import Settings
from .config.usage import Options, exit_with
from .device.admission import Admission, Sources
from .device.dialect_protocol import speaking
from .device.framing import Framing
from .device.hangup import HangupWatch
from .device.hub import Hub
from .device.port import Listener
from .device.protocol import Endpoint
from .device.transport import CLOSING_TIMEOUT, TLSTransport
from .embedded import EmbeddedBroker
from .errors import ConfigError
from .events import (
    DeviceConnected,
    DuplicatesWatch,
    EventManager,
    NodeRenamed,
    NodeStarted,
    from_wire,
    handlers_from,
    supervision_event,
)
from .log import Lossy, install_log
from .routing import ConnectionIds, Registry, Router
from .runtime.clock import keep_steady
from .runtime.end_of_turn import Turn
from .runtime.memory import Memory
from .runtime.open_files import allowed_connections, capacity, raise_open_files_limit
from .runtime.process import fail, take_signals, take_worker_signals
from .runtime.resolver import resolve_in_daemon_threads
from .runtime.sockets import claim
from .supervision import AnyService, ChildSpec, DynamicSupervisor, Intensity, Supervisor
from .tls.broker import verifier
from .tls.certificates import certificates_in, development_certificates, device_identity, server_context
from .tls.expiry import ExpiryWatch, Shown
from .wiring.shutdown import Gateway
from .workers import EventsToParent, Inherited, Loads, OfNode, Parent, Reports, Start, WorkerProcess, shown_by

_log = Logger(namespace="owsla")

GHOST_HEARTBEATS: Final = 3
"""RabbitMQ looks once a heartbeat whether something came, and gives a connection up at the second look in vain: with the time
before the first one that is three."""

UNREACHABLE: Final = 30.0
"""Seconds, or --node-grace if that is longer, after which a node takes another name if the broker cannot reach its own queue,
which is so while the broker node is down that has it. Much longer than a restart of that."""

FOR_ALL: Final = frozenset({"json", "database"})
"""Event handlers of which one does for all workers: the parent's. Two on one file get in each other's way."""


def makeService(options: Options) -> Service:
    """The service of `twistd owsla`. A user's error ends the process with one line."""
    from twisted.internet import reactor

    keep_steady(reactor)
    resolve_in_daemon_threads(reactor)
    logged = install_log(reactor, options.parent)
    service: Service
    try:
        if options.settings.workers > 1:
            service = parent(reactor, options.settings, options.arguments, logged.log)
        else:
            service = gateway(reactor, options.settings, logged.log)
    except ConfigError as error:
        exit_with(error)
    service.setServiceParent(logged)
    return logged


def parent(reactor: Any, settings: Settings, arguments: Sequence[str], log: Lossy) -> Parent:
    """The parent of `--workers`: processes, each with a node of its own (`gateway`), and what they have in common.

    `arguments` are those that the settings were read from; workers read them again. `ConfigError` as for a gateway.
    """
    cert, _ = _server_certificate(settings)
    shown = Shown(str(cert), certificates_in(cert)[0].not_valid_after_utc.timestamp())
    port = claim(settings.port, settings.interface)
    http_socket = http.claim(settings.http[1], settings.http[0]) if settings.http is not None else None
    embedded, addresses = _embedded_broker(reactor, settings)

    # Files and databases are told of everything. Its own events go to the console, too, where the workers' are in their logs.
    name = ConnectionIds().node.decode()
    events, own = EventManager(lambda: name), EventManager(lambda: name)
    counts = http.EventCounts(own=lambda: name)
    events.add(counts)
    events.add(OfNode(name, own), "own")
    told = [
        *handlers_from([spec for spec in settings.events if spec.kind == "console"], reactor, own),
        *handlers_from([spec for spec in settings.events if spec.kind in FOR_ALL], reactor, events),
    ]
    workers: list[WorkerProcess] = []
    reports = Reports(
        workers=workers,
        emit=lambda when, node, event: events.emit(from_wire(event), node, when),
        refused=lambda why: fail(reactor, why),
    )
    start = Start(
        argv=arguments,
        count=settings.workers,
        broker_port=addresses[0].port if embedded is not None else None,
        port=port,
        loads=Loads.create(settings.workers),
        cwd=os.getcwd(),
        drain_timeout=settings.drain_timeout,
    )
    workers += [WorkerProcess(reactor, number, start, reports) for number in range(1, settings.workers + 1)]
    whole = http.ParentReadings(
        workers=lambda: [worker.process for worker in workers if worker.process is not None],
        draining=lambda: service.draining,
        tree=lambda: service.tree(),
        events=counts,
        event_drops=lambda: events.drops | own.drops,
        log_lost=lambda: log.lost,
    )
    root = Supervisor(
        reactor,
        [
            ChildSpec(
                "events",
                lambda: Supervisor(reactor, [ChildSpec(handler.id, handler.start) for handler in told]),
                type="supervisor",
            ),
            *(
                [_child("http", http.HttpService(reactor, http_socket, http.ParentSource(reactor, whole)))]
                if http_socket
                else []
            ),
            *([_child("embedded", embedded)] if embedded is not None else []),
            # A worker sees to it itself that a stop has an end: each has a --drain-timeout of its own.
            *(_child(f"worker-{worker.number}", worker, shutdown=math.inf) for worker in workers),
            _child(
                "certificate",
                ExpiryWatch(reactor, events.emit, shown=lambda: shown_by(workers, shown), now=time.time),
            ),
        ],
        name="owsla",
        # What ends one worker may end them all at once, and those of two rounds may be a coincidence.
        intensity=Intensity(restarts=max(Intensity().restarts, 2 * settings.workers)),
        on_event=lambda report: events.emit(supervision_event(report)),
        on_give_up=lambda gave_up: service.give_up(str(gave_up)),
    )
    service: Parent = Parent(port=port, workers=workers, root=root, fail=partial(fail, reactor))

    def reopen() -> None:
        events.reopen()
        service.reopen()

    take_signals(
        reactor, hurry=service.hurry, reopen=reopen, replace=service.replace, within=settings.drain_timeout
    )
    return service


def gateway(reactor: Any, settings: Settings, log: Lossy, inherited: Inherited | None = None) -> Gateway:
    """A whole node; `log` is its process's, and `inherited` is what it has from its parent, if it is a worker.

    `ConfigError` says what of the settings, or of the machine, is in the way.
    """
    open_files = raise_open_files_limit()
    max_connections, warning = allowed_connections(settings.max_connections, open_files)
    if warning is not None:
        _log.warn("{warning}", warning=warning)
    _log.info("{capacity}", capacity=capacity(settings.max_connections, max_connections, open_files))

    cert, key = _server_certificate(settings, say=inherited is None)
    context = server_context(cert, key, client_ca=settings.client_ca, client_cert=settings.client_cert)
    shown = Shown(str(cert), certificates_in(cert)[0].not_valid_after_utc.timestamp())
    http_socket = None
    embedded: EmbeddedBroker | None = None
    if inherited is None:
        device_socket = claim(settings.port, settings.interface)
        if settings.http is not None:
            http_socket = http.claim(settings.http[1], settings.http[0])
        embedded, addresses = _embedded_broker(reactor, settings)
    else:
        device_socket = inherited.port
        addresses = [inherited.broker] if inherited.broker is not None else list(settings.brokers)

    turn = Turn(reactor)
    ids = ConnectionIds()
    events = EventManager(lambda: ids.node.decode())
    counts, latency = http.EventCounts(), http.Histogram()
    events.add(counts)
    registry: Registry[Endpoint] = Registry()
    framing = Framing(settings.delimiter, settings.max_line)
    node_arguments = dict(settings.node_queue_arguments)
    node_queue = partial(topology.node_queue, settings.to_device, arguments=node_arguments)

    # The broker's side
    window = Window(settings.window, settings.window_bytes)
    packer = LinePacker(
        channel=LINES,
        exchange=settings.publish_exchange or "",
        routing_key=settings.from_device if settings.publish_exchange is None else settings.routing_key,
        seq_header=settings.seq_header,
        delivery_mode=settings.delivery_mode,
        reply_to=node_queue(ids.node).name.encode(),
        frame_max=FRAME_MAX,
        narrow=settings.seq_type == "int32",
    )
    producer = Producer(
        reactor,
        events.emit,
        queue=(
            topology.Queue(settings.from_device, dict(settings.from_device_arguments))
            if settings.publish_exchange is None
            else topology.Exchange(settings.publish_exchange)
        ),
        packer=packer,
        window=window,
        seq_header=settings.seq_header,
        frame_max=FRAME_MAX,
        acknowledge=settings.device_ack is not None,
        observe=latency.observe if settings.http is not None else None,
    )
    courier = CourierRole(
        reactor,
        events.emit,
        undeliverable=topology.undeliverable_queue(
            settings.to_device, settings.undeliverable_limit, dict(settings.undeliverable_arguments)
        ),
        to_device=settings.to_device,
        node=lambda: ids.node,
        device=lambda connection_id: _device_of(registry.find(connection_id)),
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
        lambda: ids.node,
        registry.find,
        courier,
        hub,
        max_line=settings.max_line,
        forbidden=framing.forbidden,
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
        sources=Sources(settings.max_per_address) if settings.max_per_address is not None else None,
        share=inherited.share if inherited is not None else None,
        make=_speaking(settings),
        memory=Memory(),
        linger=settings.linger,
    )

    # Who is told of what happens
    presence = None
    if any(spec.kind == "amqp" for spec in settings.events):
        presence = PresenceRole(
            reactor, events.emit, node=lambda: ids.node.decode(), live=lambda: map(_connected, registry)
        )
    specs = [spec for spec in settings.events if inherited is None or spec.kind not in FOR_ALL]
    handlers = [
        *(ChildSpec(handler.id, handler.start) for handler in handlers_from(specs, reactor, events, presence=presence)),
        ChildSpec("duplicates", lambda: DuplicatesWatch(reactor, events.emit, lambda: hub.duplicates)),
    ]
    if inherited is not None and len(specs) < len(settings.events):
        events.add(EventsToParent(inherited.link, events.stats("parent")), "parent")

    # This node among the others
    users = frozenset(address.username for address in addresses)
    roster = Registrar(
        reactor,
        events.emit,
        node=lambda: ids.node,
        to_device=settings.to_device,
        register=register_queue(settings.to_device, node_arguments),
        node_grace=settings.node_grace,
        users=users,
        courier=courier,
        presence=presence,
        joined=lambda: open_port(),
    )

    def started() -> None:
        events.emit(
            NodeStarted(
                socket.gethostname(),
                settings.interface or "all interfaces",
                listener.port,
                inherited.link.number if inherited is not None else 0,
                os.getpid(),
            )
        )

    def renamed(before: str, reason: str) -> None:
        packer.answer_to(node_queue(ids.node).name.encode())
        if inherited is not None:
            inherited.link.node(ids.node.decode())
        events.emit(NodeRenamed(before, ids.node.decode(), len(registry), reason))
        started()
        service.let_go(f"this node has another name now: {reason}")

    consumers = Consumers(
        reactor,
        turn,
        events.emit,
        router,
        shared=topology.Queue(settings.to_device, dict(settings.to_device_arguments)),
        place=NodeIdentity(
            ids,
            roster,
            queue=node_queue,
            announce=presence.resync if presence is not None else lambda: None,
            renamed=renamed,
        ),
        users=users,
        count=settings.consumers,
        prefetch=settings.prefetch,
        grace=settings.node_grace,
        ghost=GHOST_HEARTBEATS * settings.heartbeat + 1.0,
        patience=max(UNREACHABLE, settings.node_grace),
        flowing=hub.flowing,
    )

    # What connects them
    roles: list[Role] = [courier, *([presence] if presence is not None else []), roster, producer, consumers]

    def open_port() -> None:
        """Open the port once lines can be confirmed: all connections are up, and the broker is not blocked."""
        if health.ready and roster.joined:
            if listener.open():
                started()
            if inherited is not None:
                inherited.link.ready(settings.drain_timeout, shown)

    health = BrokerHealth([role.name for role in roles], events.emit, open_port)
    trust = verifier(certificates_in(settings.broker_ca) if settings.broker_ca is not None else None)
    connections = [
        BrokerConnection(
            reactor,
            turn,
            addresses,
            role,
            health,
            heartbeat=settings.heartbeat,
            connection_name=partial(_connection_name, ids, role.name),
            tls=trust,
        )
        for role in roles
    ]

    # The tree. What is made above outlives a restart: it is the same service that starts again. Events and HTTP are the first,
    # and so stop last: while devices are closed one after another HTTP says that this node is not ready any more.
    readings = http.Readings(
        node=lambda: ids.node.decode(),
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
        log_lost=lambda: log.lost,
        latency=latency,
        certificate_expires=lambda: shown.not_after,
    )
    services = []
    if http_socket is not None:
        services.append(_child("http", http.HttpService(reactor, http_socket, http.ProcessSource(readings))))
    elif settings.http is not None:
        services.append(_child("beat", http.LatenessProbe(reactor, readings.lateness)))
    if embedded is not None:
        services.append(_child("embedded", embedded))
    watches = []
    if inherited is None:  # else it is the parent's to watch
        expiry = ExpiryWatch(reactor, events.emit, shown=lambda: shown, now=time.time)
        watches.append(_child("certificate", expiry))
    root = Supervisor(
        reactor,
        [
            ChildSpec("events", lambda: Supervisor(reactor, handlers), type="supervisor"),
            *services,
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
            *watches,
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
        losses=hub,
        courier=courier,
        presence=presence,
        consumers=consumers,
        roster=roster,
        connections=connections,
        root=root,
        emit=events.emit,
        fail=partial(fail, reactor),
        drain_timeout=settings.drain_timeout,
        drain_spread=settings.drain_spread,
    )
    if inherited is None:
        take_signals(
            reactor,
            hurry=service.hurry,
            reopen=events.reopen,
            replace=_nothing_to_replace,
            within=settings.drain_timeout,
        )
    else:
        inherited.link.introduce(readings, service, reopen=events.reopen, gone=roster.gone)
        inherited.link.node(ids.node.decode())
        take_worker_signals(reactor, stop=partial(inherited.link.stop, "Got SIGTERM"))
    return service


def _nothing_to_replace() -> None:
    _log.warn("Got SIGUSR2, which replaces workers, and there are none (--workers): nothing is done")


def _connected(endpoint: Endpoint) -> DeviceConnected:
    """What was told when it connected."""
    transport = endpoint.transport
    return DeviceConnected(
        endpoint.connection_id.decode(), endpoint.device_id, transport.peer, transport.tls.get_protocol_version_name()
    )


def _device_of(endpoint: Endpoint | None) -> str | None:
    return None if endpoint is None else endpoint.device_id


def _connection_name(ids: ConnectionIds, role: str) -> str:
    """What the broker shows of a connection."""
    return f"owsla {ids.node.decode()} {role} ({socket.gethostname()})"


def _child(
    name: str, service: AnyService, type: Literal["worker", "supervisor"] = "worker", shutdown: float | None = None
) -> ChildSpec:
    """A service that can be started again after it was stopped."""
    return ChildSpec(name, lambda: service, type=type, shutdown=shutdown)


def _server_certificate(settings: Settings, *, say: bool = True) -> tuple[Path, Path]:
    """What devices are shown, and its key. `say`: where it is one of ours, in which authority devices should trust."""
    if settings.cert is not None and settings.key is not None:
        return settings.cert, settings.key
    made = development_certificates(settings.certs_dir, socket.gethostname())
    if say:
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



