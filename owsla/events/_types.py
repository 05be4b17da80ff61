"""Events: one small frozen class for each thing that may happen.

`str(event)` is one line for a person. It holds no line of a device's and no message's body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..log import pluralize


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. When, and on which node, is noted by who is told of it."""

    name: ClassVar[str] = "event"
    """The event's name for machines, in lower case with dashes."""
    warning: ClassVar[bool] = False
    """Whether somebody should have a look."""

    def fields(self) -> Mapping[str, Any]:
        """What it holds, by name: text, numbers, and tuples of them, ready for `json.dumps`."""
        names: tuple[str, ...] = self.__match_args__
        return {name: getattr(self, name) for name in names}


class _OfConnection(Protocol):
    """An event about a connection."""

    @property
    def connection_id(self) -> str | None: ...

    @property
    def device_id(self) -> str | None: ...


def _connection(event: _OfConnection) -> str:
    """Name a connection for people: its id, and the device's where the device has proved one."""
    return f"{event.connection_id} (device {event.device_id})" if event.device_id is not None else f"{event.connection_id}"


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The device port is open."""

    name: ClassVar[str] = "listening"
    address: str
    port: int

    def __str__(self) -> str:
        return f"Listening for devices on port {self.port} (TLS, {self.address})"


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """A node takes devices, under the name that the event has as its node. Whichever node was in its place before is gone."""

    name: ClassVar[str] = "node-started"
    host: str
    address: str
    port: int
    worker: int
    """The worker's number; 0 without --workers. With host, address and port this is the node's place."""
    pid: int

    def __str__(self) -> str:
        worker = f"worker {self.worker}, " if self.worker else ""
        return f"Node started: {worker}process {self.pid} on {self.host}, port {self.port}"


@dataclass(frozen=True, slots=True)
class NodeStopped(Event):
    """A node has stopped in order, and has no devices any more."""

    name: ClassVar[str] = "node-stopped"
    devices: int
    """Devices that were connected when the stop began."""

    def __str__(self) -> str:
        return f"Node stopped: {pluralize(self.devices, 'device')} connected when the stop began"


@dataclass(frozen=True, slots=True)
class DeviceConnected(Event):
    """A device has completed its TLS handshake."""

    name: ClassVar[str] = "device-connected"
    connection_id: str
    device_id: str | None
    peer: str
    tls: str

    def __str__(self) -> str:
        return f"Device connected: {_connection(self)} from {self.peer}, {self.tls}"


@dataclass(frozen=True, slots=True)
class DeviceDisconnected(Event):
    """A device's connection is gone."""

    name: ClassVar[str] = "device-disconnected"
    connection_id: str
    device_id: str | None
    peer: str
    reason: str
    lines_in: int
    lines_out: int
    seconds: float
    unterminated: int
    """Bytes of a line that was never finished; they were not published."""

    def __str__(self) -> str:
        rest = f", {self.unterminated} bytes of an unterminated line dropped" if self.unterminated else ""
        return (
            f"Device disconnected: {_connection(self)} from {self.peer}, {self.reason}; "
            f"{pluralize(self.lines_in, 'line')} in, {self.lines_out} out, {self.seconds:.1f} s{rest}"
        )


@dataclass(frozen=True, slots=True)
class HandshakeFailed(Event):
    """A connection was closed before its TLS handshake was complete."""

    name: ClassVar[str] = "handshake-failed"
    peer: str
    reason: str
    subject: str | None = None
    """Of the certificate that was refused."""
    serial: str | None = None
    """Of the same, in hexadecimal."""

    def __str__(self) -> str:
        subject = "" if self.subject is None else f"subject {self.subject}, "
        certificate = "" if self.serial is None else f" ({subject}serial {self.serial})"
        return f"Handshake failed: {self.peer}: {self.reason}{certificate}"


@dataclass(frozen=True, slots=True)
class SilentEvicted(Event):
    """Connections that had said nothing were closed to make way for others. Told now and then, as a number."""

    name: ClassVar[str] = "silent-evicted"
    warning: ClassVar[bool] = True
    connections: int
    limit: int

    def __str__(self) -> str:
        return (
            f"Silent connections evicted: {self.connections}, each the oldest of those that had said nothing "
            f"({self.limit} at a time may, fewer where --max-connections is near)"
        )


@dataclass(frozen=True, slots=True)
class TurnedAway(Event):
    """Connections were closed at once, since there were too many from their address. Told now and then, as a number."""

    name: ClassVar[str] = "turned-away"
    warning: ClassVar[bool] = True
    connections: int
    limit: int
    address: str
    """That of the last one."""

    def __str__(self) -> str:
        plural = "s" * (self.connections != 1)
        return (
            f"Turned away: {self.connections} connection{plural} from addresses that have as many as may be "
            f"({self.limit}, --max-per-address); the last one from {self.address}"
        )


@dataclass(frozen=True, slots=True)
class LineTooLong(Event):
    """A device sent a line longer than allowed; its connection is closed, and nothing of the line is published."""

    name: ClassVar[str] = "line-too-long"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    limit: int

    def __str__(self) -> str:
        return f"Line too long: {_connection(self)} sent more than {self.limit} bytes without a delimiter; closed"


@dataclass(frozen=True, slots=True)
class GapSkipped(Event):
    """Numbered messages to a device did not come in time, and it goes on without them."""

    name: ClassVar[str] = "gap-skipped"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    first: int
    last: int

    def __str__(self) -> str:
        numbers = f"number {self.first}" if self.first == self.last else f"numbers {self.first} to {self.last}"
        return f"Gap skipped: {_connection(self)} goes on without {numbers}"


@dataclass(frozen=True, slots=True)
class SlowDevice(Event):
    """A device does not take what is written to it, and its connection is closed."""

    name: ClassVar[str] = "slow-device"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    why: str

    def __str__(self) -> str:
        return f"Slow device: {_connection(self)}: {self.why}; closed"


@dataclass(frozen=True, slots=True)
class Full(Event):
    """As many devices as may be are connected; more wait in the system's queue."""

    name: ClassVar[str] = "full"
    warning: ClassVar[bool] = True
    connections: int
    what: str

    def __str__(self) -> str:
        return f"Not accepting for now: {self.what} ({self.connections}); further devices wait to be accepted"


@dataclass(frozen=True, slots=True)
class Undeliverable(Event):
    """A message of a back end's could not be delivered, and is on record in the undeliverable queue."""

    name: ClassVar[str] = "undeliverable"
    reason: str
    connection_id: str | None
    device_id: str | None
    """Null where the connection has no identity, or is not known any more."""

    def __str__(self) -> str:
        return f"Undeliverable: {self.reason}" + (f", {_connection(self)}" if self.connection_id else "")


@dataclass(frozen=True, slots=True)
class UndeliverableLost(Event):
    """A message could not be delivered, nor recorded: the undeliverable queue refuses more."""

    name: ClassVar[str] = "undeliverable-lost"
    warning: ClassVar[bool] = True
    reason: str
    connection_id: str | None
    device_id: str | None
    why: str

    def __str__(self) -> str:
        return f"Undeliverable and not recorded ({self.why}): {self.reason}" + (
            f", {_connection(self)}" if self.connection_id else ""
        )


@dataclass(frozen=True, slots=True)
class BrokerConnected(Event):
    """All connections to the broker are up, and the queues are there."""

    name: ClassVar[str] = "broker-connected"
    broker: str

    def __str__(self) -> str:
        return f"Broker connected: {self.broker}"


@dataclass(frozen=True, slots=True)
class BrokerLost(Event):
    """A connection to the broker ended."""

    name: ClassVar[str] = "broker-lost"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker lost: {self.broker}: {self.reason}; devices stay connected, trying again"


@dataclass(frozen=True, slots=True)
class BrokerUnavailable(Event):
    """An attempt to connect to the broker, or to set things up on it, failed."""

    name: ClassVar[str] = "broker-unavailable"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker unavailable: {self.broker}: {self.reason}; trying again"


@dataclass(frozen=True, slots=True)
class BrokerBlocked(Event):
    """The broker has run out of memory or disk, and takes nothing."""

    name: ClassVar[str] = "broker-blocked"
    warning: ClassVar[bool] = True
    reason: str

    def __str__(self) -> str:
        return f"Broker blocked: {self.reason}; devices wait"


@dataclass(frozen=True, slots=True)
class BrokerUnblocked(Event):
    """The broker takes messages again."""

    name: ClassVar[str] = "broker-unblocked"

    def __str__(self) -> str:
        return "Broker unblocked"


@dataclass(frozen=True, slots=True)
class BrokerWarning(Event):
    """Something about the broker's side that works, but not as expected."""

    name: ClassVar[str] = "broker-warning"
    warning: ClassVar[bool] = True
    text: str

    def __str__(self) -> str:
        return f"Broker: {self.text}"


@dataclass(frozen=True, slots=True)
class LinesRefused(Event):
    """The broker refused or returned lines of devices; they are published again until it takes them."""

    name: ClassVar[str] = "lines-refused"
    warning: ClassVar[bool] = True
    lines: int
    reason: str

    def __str__(self) -> str:
        return f"Broker refused {pluralize(self.lines, 'line')}: {self.reason}; devices wait, publishing again"


@dataclass(frozen=True, slots=True)
class LinesAccepted(Event):
    """The broker has confirmed lines that it had refused, and none is refused any more."""

    name: ClassVar[str] = "lines-accepted"
    where: str
    """The queue or the exchange."""

    def __str__(self) -> str:
        return f"Broker takes lines again: {self.where}"


@dataclass(frozen=True, slots=True)
class DeviceReplaced(Event):
    """A device connected a second time, and its earlier connection is closed for that."""

    name: ClassVar[str] = "device-replaced"
    connection_id: str
    """The earlier one."""
    device_id: str
    by: str
    """The id of the new one."""

    def __str__(self) -> str:
        return f"Device replaced: {self.connection_id} of device {self.device_id} gives way to {self.by}"


@dataclass(frozen=True, slots=True)
class DeviceContested(Event):
    """Several connections replace each other as one device, again and again. Told once a minute while that lasts."""

    name: ClassVar[str] = "device-contested"
    warning: ClassVar[bool] = True
    device_id: str
    replacements: int
    """Since this was last told."""
    peers: tuple[str, ...]
    """The addresses of the last two connections."""

    def __str__(self) -> str:
        return (
            f"Device contested: {self.device_id} was replaced {self.replacements} times in a row, the last ones are "
            f"{' and '.join(self.peers)}; if these are two devices, one of them needs an identity of its own"
        )


@dataclass(frozen=True, slots=True)
class DuplicatesDropped(Event):
    """Numbered messages came that were sent to their devices before. Told now and then, as a number."""

    name: ClassVar[str] = "duplicates-dropped"
    messages: int
    """Since this was last told."""

    def __str__(self) -> str:
        return f"Duplicates dropped: {pluralize(self.messages, 'message')} had been sent before"


@dataclass(frozen=True, slots=True)
class CertificateExpiring(Event):
    """A certificate ends soon, or has ended."""

    name: ClassVar[str] = "certificate-expiring"
    warning: ClassVar[bool] = True
    certificate: str
    """The file it is in."""
    not_after: str
    """When it ends: ISO 8601, UTC."""
    days: float
    """Until then; less than 0 afterwards."""

    def __str__(self) -> str:
        if self.days < 0:
            return f"Certificate expired: {self.certificate} ended at {self.not_after}; devices that check it stay away"
        return f"Certificate expiring: {self.certificate} ends in {self.days:.0f} days, at {self.not_after}"


@dataclass(frozen=True, slots=True)
class ChildRestarted(Event):
    """A part of this process failed, and is started again."""

    name: ClassVar[str] = "child-restarted"
    warning: ClassVar[bool] = True
    path: str
    """Its place in the supervision tree."""
    reason: str
    restarts: int
    """How often it was restarted, this time included."""
    delay: float
    """Seconds until it is started."""
    siblings: tuple[str, ...]
    """Those that are restarted with it."""

    def __str__(self) -> str:
        after = f" in {self.delay:.1f} s" if self.delay else ""
        others = f", and with it {', '.join(self.siblings)}" if self.siblings else ""
        return f"Restarting {self.path}{after}{others} (restart {self.restarts}): {self.reason}"


@dataclass(frozen=True, slots=True)
class SupervisorGaveUp(Event):
    """A part of this process failed too often, and its supervisor fails with it."""

    name: ClassVar[str] = "supervisor-gave-up"
    warning: ClassVar[bool] = True
    path: str
    """The supervisor's place in the tree."""
    child: str
    """Who failed last."""
    failures: int
    """Of all its children, within the period."""
    period: float
    """In seconds."""
    reason: str
    """Why the child failed the last time."""

    def __str__(self) -> str:
        return (
            f"{self.path} gave up: {self.failures} failures within {self.period:g} s, "
            f"the last one of {self.child}: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """An event handler raised an exception. It was removed; its supervisor installs it again."""

    name: ClassVar[str] = "handler-failed"
    warning: ClassVar[bool] = True
    handler: str
    reason: str

    def __str__(self) -> str:
        return f"Event handler {self.handler} failed, and is removed: {self.reason}"


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """An event handler was too slow, or could not do its work for too long: it has not seen these events."""

    name: ClassVar[str] = "events-dropped"
    warning: ClassVar[bool] = True
    handler: str
    events: int

    def __str__(self) -> str:
        return f"Events dropped: {self.handler} has missed {self.events}"


@dataclass(frozen=True, slots=True)
class NodeLost(Event):
    """Another node is dead, and its connections with it. What was in its queue is on record as undeliverable."""

    name: ClassVar[str] = "node-lost"
    warning: ClassVar[bool] = True
    lost: str
    """Its name."""
    messages: int
    """Of its queue, that are on record now."""

    def __str__(self) -> str:
        return f"Node lost: {self.lost}; {self.messages} messages for its connections are on record as undeliverable"


@dataclass(frozen=True, slots=True)
class NodeRenamed(Event):
    """This node has taken another name. Its connections, whose ids name the old one, are closed one after another."""

    name: ClassVar[str] = "node-renamed"
    warning: ClassVar[bool] = True
    before: str
    now: str
    connections: int
    """That are to be closed."""
    reason: str

    def __str__(self) -> str:
        return f"Node renamed: {self.before} is {self.now} now: {self.reason}; {self.connections} connections are closed for it"


@dataclass(frozen=True, slots=True)
class DeviceIdentified(Event):
    """A device has said who it is, to its dialect; or somebody else than its certificate says."""

    name: ClassVar[str] = "device-identified"
    connection_id: str
    device_id: str

    def __str__(self) -> str:
        return f"Device identified: {self.connection_id} is device {self.device_id}"


@dataclass(frozen=True, slots=True)
class LoginFailed(Event):
    """A device could not prove who it says it is. Its connection is closed."""

    name: ClassVar[str] = "login-failed"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    """The identity that the device has proved otherwise, by its certificate."""
    claimed_id: str | None
    """The device id that it tried to log in with. Nobody has proved it."""
    peer: str
    reason: str
    unreported: int
    """Failed logins before this one that have no event of their own."""

    def __str__(self) -> str:
        claimed = f" as device {self.claimed_id}" if self.claimed_id is not None else ""
        more = f" (and {self.unreported} more that were refused unchecked)" if self.unreported else ""
        return f"Login failed: {_connection(self)} from {self.peer}{claimed}: {self.reason}{more}"


@dataclass(frozen=True, slots=True)
class DialectFailed(Event):
    """A dialect raised an exception. Its connection is closed, and no other."""

    name: ClassVar[str] = "dialect-failed"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    dialect: str
    reason: str

    def __str__(self) -> str:
        return f"Dialect {self.dialect} failed: {_connection(self)} is closed: {self.reason}"
