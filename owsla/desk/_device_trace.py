"""A trace in the process that records: the connections that its target names, and the events that concern it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from ..device.connections import Connection
from ..device.identified import IdentifiedDevices
from ..device.protocol import DeviceProtocol
from ..device.sliced_check import SlicedCheck
from ..device.tracing import TraceRecord, Tracing
from ..events import DeviceConnected, DeviceIdentified, Event, EventManager
from ..interfaces import Clock
from ..routing import Registry
from ._trace_buffer import TraceBuffer
from ._trace_target import EVENTS_OF_DEVICES, TraceTarget
from ._traces import TraceCursor, TraceRequest
from ._types import JSON

CONNECTIONS: Final = 64
"""Connections that a trace records in a process at once. All devices may come from the address of one load balancer."""

FORMER: Final = 64
"""Ended connections of a trace whose events are still recorded, such as a message that could not be delivered."""


class NodeTraces:
    """The traces of a node: its connections, and the handler of its events while a trace runs."""

    _log = Logger(namespace="owsla")

    wants = EVENTS_OF_DEVICES

    def __init__(
        self,
        clock: Clock,
        now: Callable[[], float],
        registry: Registry[Connection],
        devices: IdentifiedDevices,
        events: EventManager,
        instance: str,
    ) -> None:
        """`instance` names this process in cursors: it is never used again."""
        self._clock = clock
        self._registry = registry
        self._devices = devices
        self._events = events
        self._traces: list[DeviceTrace] = []
        self.now: Final = now
        self.instance = instance
        self.tracing = Tracing(now)

    def begin(self, request: TraceRequest) -> DeviceTrace:
        """Start to record."""
        trace = DeviceTrace(request, self)
        trace.find(self._registry, self._devices, SlicedCheck(self._clock))
        self._traces.append(trace)
        if len(self._traces) == 1:
            self._events.add(self, "traces")
        return trace

    def stopped(self, trace: DeviceTrace) -> None:
        """Forget a trace that records no more."""
        if trace in self._traces:
            self._traces.remove(trace)
            if not self._traces:
                self._events.remove(self)

    def handle(self, event: Event, node: str, when: float) -> None:
        """Show an event to each trace (`events.Handler`)."""
        connection: Connection | None = None
        if isinstance(event, DeviceConnected | DeviceIdentified):
            connection = self._registry.find(event.connection_id.encode())
        for trace in list(self._traces):
            try:
                if connection is not None:
                    trace.connected(connection)
                trace.event(event, when)
            except Exception:
                self._log.failure("A trace failed, and ends")
                trace.failed()


class DeviceTrace:
    """A trace in the process that records: the connections that it records, and its records (`TraceListener`)."""

    _log = Logger(namespace="owsla")

    def __init__(self, request: TraceRequest, node: NodeTraces) -> None:
        self._request = request
        self._node = node
        self._target = TraceTarget(request.target)
        self._buffer = TraceBuffer(request.bodies)
        self._connections: dict[str, DeviceProtocol] = {}
        self._full = False
        self._former: deque[str] = deque(maxlen=FORMER)
        self._check: SlicedCheck | None = None
        self._over: str | None = None
        self._stopped = False

    @property
    def bodies(self) -> bool:
        return self._request.bodies

    # -- connections -------------------------------------------------------------------------------------------------------

    def find(self, registry: Registry[Connection], devices: IdentifiedDevices, check: SlicedCheck) -> None:
        """Record the open connections of the target. Those of an address are looked for in slices of the reactor's time."""
        target = self._target
        found = [] if target.connection_id is None else [registry.find(target.connection_id)]
        for connection in (*found, *devices.connections_of(target.text)):
            if connection is not None:
                self._attach(connection)
        if target.is_address:
            self._check = check
            check.begin(registry, self._look_at, lambda closed: None)

    def _look_at(self, connection: Connection) -> bool:
        """Record a connection if it is one of the target. Return `False`: it is not closed, whatever happens."""
        try:
            self.connected(connection)
        except Exception:
            self._log.failure("A trace could not look at a connection")
        return False

    def connected(self, connection: Connection) -> None:
        """Record a connection that has been made or identified, if it is one of the target."""
        peer = connection.transport.peer if self._target.is_address and connection.transport is not None else None
        if self._target.is_connection(connection.connection_id.decode(), connection.device_id, peer):
            self._attach(connection)

    def _attach(self, connection: Connection) -> None:
        assert isinstance(connection, DeviceProtocol)
        connection_id = connection.connection_id.decode()
        if connection_id in self._connections or not connection.connected:
            return  # a connection that is identified while it ends would never be seen to leave
        if len(self._connections) < CONNECTIONS:
            self._node.tracing.attach(connection, self)
            self._connections[connection_id] = connection
        elif not self._full:
            self._full = True
            self._note(f"more than {CONNECTIONS} connections are to be traced: the others are left out", None, None)

    def left(self, connection: DeviceProtocol, failed: bool) -> None:
        """Note that a connection is not recorded any more (`TraceListener`)."""
        connection_id = connection.connection_id.decode()
        if self._connections.pop(connection_id, None) is None:
            return
        self._former.append(connection_id)
        if failed:
            text = "this connection is not recorded any more, because of an error in the gateway: see its log"
            self._note(text, connection_id, connection.device_id)
        elif connection.connection_id == self._target.connection_id:
            self._over = "the connection has ended"

    # -- records -----------------------------------------------------------------------------------------------------------

    def record(self, record: TraceRecord) -> None:
        """Take a record (`TraceListener`)."""
        self._buffer.add(record)

    def _note(self, text: str, connection_id: str | None, device_id: str | None) -> None:
        """Add an event of the trace itself."""
        self._buffer.add(TraceRecord(self._node.now(), "event", connection_id, device_id, text=text))

    def event(self, event: Event, when: float) -> None:
        """Record an event if it concerns the target, or one of its connections."""
        connection_id: str | None = getattr(event, "connection_id", None)
        of_connection = connection_id is not None and (connection_id in self._connections or connection_id in self._former)
        if of_connection or self._target.concerns(event):
            device_id: str | None = getattr(event, "device_id", None)
            self._buffer.add(TraceRecord(when, "event", connection_id, device_id, text=str(event), event=event.name))

    def poll(self, after: TraceCursor | None) -> JSON:
        instance = self._node.instance
        records, dropped = self._buffer.take(None if after is None else after.get(instance, (0, 0)))
        return {
            "records": records,
            "dropped": dropped,
            "connections": list(self._connections),
            "next": {instance: self._buffer.position},
            "ended": self._over,
            "more": self._buffer.more,
        }

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            if self._check is not None:
                self._check.stop()
            for connection in self._connections.values():
                self._node.tracing.detach(connection, self)
            self._connections.clear()
            self._node.stopped(self)

    def failed(self) -> None:
        """Stop after an error of our own. Its reader is told."""
        self._over = "an error in the gateway: see its log"
        self.stop()

    def end(self, after: TraceCursor | None, reason: str) -> None:
        """Do nothing: the records end with this object."""
