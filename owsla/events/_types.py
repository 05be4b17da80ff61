"""The events: one frozen class per kind.

`str(event)` is one line for people. It contains neither lines of devices nor message bodies.

`traceparent` is the trace context of the last line of the connection that began a trace (--trace-lines), or `None`. It is not
in the line for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..interfaces import FIRST_DOOR
from ..log import pluralize


@dataclass(frozen=True, slots=True)
class Event:
    """Base class of events. Handlers get the time and the node of an event separately."""

    name: ClassVar[str] = "event"
    """Name for machines, in lower case with dashes."""
    warning: ClassVar[bool] = False
    """True if an operator should look into it."""

    def fields(self) -> Mapping[str, Any]:
        """Return the fields by name: text, numbers, and tuples of them, ready for `json.dumps`."""
        names: tuple[str, ...] = self.__match_args__
        return {name: getattr(self, name) for name in names}


class _OfConnection(Protocol):
    """The interface of events about a connection."""

    @property
    def connection_id(self) -> str | None: ...

    @property
    def device_id(self) -> str | None: ...


def _connection(event: _OfConnection) -> str:
    """Return the name of a connection for people: its id, and the id of an identified device."""
    return f"{event.connection_id} (device {event.device_id})" if event.device_id is not None else f"{event.connection_id}"


def _recipient(event: Undeliverable | UndeliverableLost) -> str:
    """Return the recipient of a message for people, to be appended to a text: connection, device or selector, or nothing."""
    if event.connection_id:
        return f", {_connection(event)}"
    if event.device_id:
        return f", device {event.device_id}"
    return f", owsla_to '{event.selector}'" if event.selector is not None else ""


def _at(door: str) -> str:
    """Return the name of a door for people, to be appended to a text. The first door has none: most nodes have no other."""
    return "" if door == FIRST_DOOR else f" (door {door})"


def _by(operator: str | None) -> str:
    """Return the operator who requested an action, to be appended to a text; nothing if nobody did."""
    return "" if operator is None else f" (requested by {operator})"


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """A door was opened."""

    name: ClassVar[str] = "listening"
    address: str
    """Address of the interface for people, or `unix:PATH`."""
    port: int
    """Number of the port; 0 for a unix socket."""
    tls: bool = True
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        if self.address.startswith("unix:"):
            return f"Listening for devices on {self.address} ({'TLS' if self.tls else 'no TLS'}){_at(self.door)}"
        return f"Listening for devices on port {self.port} ({'TLS' if self.tls else 'TCP'}, {self.address}){_at(self.door)}"


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """A node started to accept devices. An earlier node at the same place (host, address, port, worker) has ended."""

    name: ClassVar[str] = "node-started"
    host: str
    address: str
    port: int
    worker: int
    """Number of the worker; 0 without --workers."""
    pid: int

    def __str__(self) -> str:
        worker = f"worker {self.worker}, " if self.worker else ""
        place = f"port {self.port}" if self.port else self.address
        return f"Node started: {worker}process {self.pid} on {self.host}, {place}"


@dataclass(frozen=True, slots=True)
class NodeStopped(Event):
    """A node completed an orderly shutdown and has no devices."""

    name: ClassVar[str] = "node-stopped"
    devices: int
    """Devices connected at the start of the shutdown."""

    def __str__(self) -> str:
        return f"Node stopped: {pluralize(self.devices, 'device')} connected at the start of the shutdown"


@dataclass(frozen=True, slots=True)
class DeviceConnected(Event):
    """A device completed its TLS handshake, or opened a connection without TLS."""

    name: ClassVar[str] = "device-connected"
    connection_id: str
    device_id: str | None
    peer: str
    tls: str
    """Version of TLS; empty without TLS."""
    door: str = FIRST_DOOR
    since: int | None = None
    """Time at which the device was identified, in milliseconds since the epoch: of two connections of a device, on whichever
    nodes, the one with the greater value is the newer. `None` without a device id."""

    def __str__(self) -> str:
        transport = self.tls or ("unix socket" if self.peer.startswith("unix:") else "TCP")
        return f"Device connected: {_connection(self)} from {self.peer}{_at(self.door)}, {transport}"


@dataclass(frozen=True, slots=True)
class DeviceDisconnected(Event):
    """The connection of a device ended."""

    name: ClassVar[str] = "device-disconnected"
    connection_id: str
    device_id: str | None
    peer: str
    reason: str
    lines_in: int
    lines_out: int
    seconds: float
    unterminated: int
    """Bytes of an incomplete last line, which were not published."""
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        rest = f", {self.unterminated} bytes of an unterminated line dropped" if self.unterminated else ""
        return (
            f"Device disconnected: {_connection(self)} from {self.peer}{_at(self.door)}, {self.reason}; "
            f"{pluralize(self.lines_in, 'line')} in, {self.lines_out} out, {self.seconds:.1f} s{rest}"
        )


@dataclass(frozen=True, slots=True)
class HandshakeFailed(Event):
    """A connection ended before its TLS handshake was complete, or without TLS before it was open."""

    name: ClassVar[str] = "handshake-failed"
    peer: str
    reason: str
    subject: str | None = None
    """Subject of the device's certificate, if that or one of its authorities was refused."""
    serial: str | None = None
    """Serial number of that certificate, in hexadecimal."""
    door: str = FIRST_DOOR
    claimed_id: str | None = None
    """Device id in that certificate, which anybody can claim; of a device that was denied its own."""

    def __str__(self) -> str:
        subject = "" if self.subject is None else f"subject {self.subject}, "
        certificate = "" if self.serial is None else f" ({subject}serial {self.serial})"
        claimed = self.claimed_id
        shown = claimed is None or claimed in f"{self.subject} {self.reason}"
        device = "" if shown else f", claims to be device {claimed}"
        return f"Handshake failed: {self.peer}{_at(self.door)}: {self.reason}{certificate}{device}"


@dataclass(frozen=True, slots=True)
class SilentEvicted(Event):
    """Silent connections were closed to make room for others. Reported periodically, as a number."""

    name: ClassVar[str] = "silent-evicted"
    warning: ClassVar[bool] = True
    connections: int
    limit: int
    door: str = FIRST_DOOR
    """Door at which new connections needed the room."""
    address: str = ""
    """Address of the last one; empty if it is not known."""

    def __str__(self) -> str:
        last = f"; the last one from {self.address}" if self.address else ""
        return (
            f"Silent connections evicted{_at(self.door)}: {self.connections}, the oldest of those that had sent nothing "
            f"(the limit is {self.limit}, less near --max-connections){last}"
        )


@dataclass(frozen=True, slots=True)
class TurnedAway(Event):
    """Connections were refused because of --max-per-address. Reported periodically, as a number."""

    name: ClassVar[str] = "turned-away"
    warning: ClassVar[bool] = True
    connections: int
    limit: int
    address: str
    """Address of the last refused connection."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        plural = "s" * (self.connections != 1)
        return (
            f"Turned away{_at(self.door)}: {self.connections} connection{plural} from addresses at the limit of "
            f"{self.limit} (--max-per-address); the last one from {self.address}"
        )


@dataclass(frozen=True, slots=True)
class ConnectRateExceeded(Event):
    """Connections were refused because of --max-connect-rate. Reported periodically, as a number."""

    name: ClassVar[str] = "connect-rate-exceeded"
    warning: ClassVar[bool] = True
    connections: int
    limit: float
    address: str
    """Address of the last refused connection."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return (
            f"Connect rate exceeded{_at(self.door)}: {pluralize(self.connections, 'connection')} refused from addresses "
            f"with more than {self.limit:g} new ones a second (--max-connect-rate); the last one from {self.address}"
        )


@dataclass(frozen=True, slots=True)
class AddressDenied(Event):
    """Connections were refused because their address is in the list of --deny. Reported periodically, as a number."""

    name: ClassVar[str] = "address-denied"
    connections: int
    address: str
    """Address of the last refused connection."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return (
            f"Address denied{_at(self.door)}: {pluralize(self.connections, 'connection')} refused from addresses "
            f"in the list of --deny; the last one from {self.address}"
        )


@dataclass(frozen=True, slots=True)
class ProxyUntrusted(Event):
    """Connections were refused because their peer is not trusted by --proxy-protocol. Reported periodically, as a number."""

    name: ClassVar[str] = "proxy-untrusted"
    warning: ClassVar[bool] = True
    connections: int
    address: str
    """Address of the last refused connection, or `a unix socket`."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return (
            f"Proxy untrusted{_at(self.door)}: {pluralize(self.connections, 'connection')} refused from peers "
            f"that --proxy-protocol does not trust; the last one from {self.address}"
        )


@dataclass(frozen=True, slots=True)
class LineTooLong(Event):
    """A device sent a line longer than --max-line. Its connection was closed, and no part of the line published."""

    name: ClassVar[str] = "line-too-long"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    limit: int
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        connection = f"{_connection(self)}{_at(self.door)}"
        return f"Line too long: {connection} sent a line of more than {self.limit} bytes (--max-line); closed"


@dataclass(frozen=True, slots=True)
class LinesSkipped(Event):
    """A device sent lines longer than --max-line, which were skipped (--on-long skip). At most one event a minute for a
    connection, with the number of lines since the one before.
    """

    name: ClassVar[str] = "lines-skipped"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    limit: int
    lines: int
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        return (
            f"Lines skipped: {_connection(self)}{_at(self.door)} sent {pluralize(self.lines, 'line')} of more than "
            f"{self.limit} bytes (--max-line); not published"
        )


@dataclass(frozen=True, slots=True)
class BadFrame(Event):
    """A device sent a frame that is malformed in the --framing of its door. Its connection was closed, and no part of the frame
    published.
    """

    name: ClassVar[str] = "bad-frame"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    why: str
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        return f"Bad frame: {_connection(self)}{_at(self.door)}: {self.why} (--framing); closed"


@dataclass(frozen=True, slots=True)
class GapSkipped(Event):
    """Numbered messages to a device did not arrive in time and were skipped."""

    name: ClassVar[str] = "gap-skipped"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    first: int
    last: int
    traceparent: str | None = None

    def __str__(self) -> str:
        numbers = f"number {self.first}" if self.first == self.last else f"numbers {self.first} to {self.last}"
        return f"Gap skipped: {_connection(self)} continues without {numbers}"


@dataclass(frozen=True, slots=True)
class FannedOut(Event):
    """A message for many devices was handed over to those of this node, or has expired. Nothing is reported for one device."""

    name: ClassVar[str] = "fanned-out"
    selector: str
    devices: int
    """Devices that it was handed over to."""
    missed: int
    """Devices that it was not handed over to."""
    seconds: float
    """Time that it took."""
    expired: bool
    """True if it expired before all devices had it."""
    close: bool
    """True if the connections of these devices were closed after it (`owsla_close`)."""

    def __str__(self) -> str:
        expired = ", and then it expired" if self.expired else ""
        close = "; it closes their connections" if self.close else ""
        return (
            f"Message for many devices ({self.selector}): handed over to {self.devices}, {self.missed} missed, "
            f"in {self.seconds:.1f} s{expired}{close}"
        )


@dataclass(frozen=True, slots=True)
class SlowDevice(Event):
    """A device does not read its messages. Its connection was closed."""

    name: ClassVar[str] = "slow-device"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    why: str
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        return f"Slow device: {_connection(self)}{_at(self.door)}: {self.why}; closed"


@dataclass(frozen=True, slots=True)
class Full(Event):
    """A limit on connections was reached. Further connections wait in the accept queue of the kernel."""

    name: ClassVar[str] = "full"
    warning: ClassVar[bool] = True
    connections: int
    what: str
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        waiting = "further devices wait to be accepted"
        return f"Not accepting connections{_at(self.door)}: {self.what} ({self.connections}); {waiting}"


@dataclass(frozen=True, slots=True)
class Undeliverable(Event):
    """A message could not be delivered and was recorded in the undeliverable queue."""

    name: ClassVar[str] = "undeliverable"
    reason: str
    connection_id: str | None
    device_id: str | None
    """Null if the connection has no identity or is no longer known."""
    selector: str | None = None
    """`owsla_to` of a message for many devices."""
    traceparent: str | None = None
    """That of the message."""

    def __str__(self) -> str:
        return f"Undeliverable: {self.reason}{_recipient(self)}"


@dataclass(frozen=True, slots=True)
class UndeliverableLost(Event):
    """A message could be neither delivered nor recorded, because the undeliverable queue refused it."""

    name: ClassVar[str] = "undeliverable-lost"
    warning: ClassVar[bool] = True
    reason: str
    connection_id: str | None
    device_id: str | None
    why: str
    selector: str | None = None
    """As in `Undeliverable`."""
    traceparent: str | None = None
    """That of the message."""

    def __str__(self) -> str:
        return f"Undeliverable and not recorded ({self.why}): {self.reason}{_recipient(self)}"


@dataclass(frozen=True, slots=True)
class BrokerConnected(Event):
    """All connections to the broker are established and the queues declared."""

    name: ClassVar[str] = "broker-connected"
    broker: str

    def __str__(self) -> str:
        return f"Broker connected: {self.broker}"


@dataclass(frozen=True, slots=True)
class BrokerLost(Event):
    """A connection to the broker was lost."""

    name: ClassVar[str] = "broker-lost"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker lost: {self.broker}: {self.reason}; devices stay connected; trying again"


@dataclass(frozen=True, slots=True)
class BrokerUnavailable(Event):
    """An attempt to connect to the broker, or to declare the queues, failed."""

    name: ClassVar[str] = "broker-unavailable"
    warning: ClassVar[bool] = True
    broker: str
    reason: str

    def __str__(self) -> str:
        return f"Broker unavailable: {self.broker}: {self.reason}; trying again"


@dataclass(frozen=True, slots=True)
class BrokerBlocked(Event):
    """The broker blocked its publishers, because it is short of memory or disk space."""

    name: ClassVar[str] = "broker-blocked"
    warning: ClassVar[bool] = True
    reason: str

    def __str__(self) -> str:
        return f"Broker blocked: {self.reason}; reading from devices is paused"


@dataclass(frozen=True, slots=True)
class BrokerUnblocked(Event):
    """The broker unblocked its publishers."""

    name: ClassVar[str] = "broker-unblocked"

    def __str__(self) -> str:
        return "Broker unblocked"


@dataclass(frozen=True, slots=True)
class BrokerWarning(Event):
    """A condition of the broker that works, but not as configured."""

    name: ClassVar[str] = "broker-warning"
    warning: ClassVar[bool] = True
    text: str

    def __str__(self) -> str:
        return f"Broker: {self.text}"


@dataclass(frozen=True, slots=True)
class LinesRefused(Event):
    """The broker refused or returned lines of devices. They are republished until it accepts them."""

    name: ClassVar[str] = "lines-refused"
    warning: ClassVar[bool] = True
    lines: int
    """Lines refused at once; 0 if no line can be published, as to an exchange that does not exist."""
    reason: str
    door: str = FIRST_DOOR
    """Door whose devices are not read."""

    def __str__(self) -> str:
        refused = f"refused {pluralize(self.lines, 'line')}" if self.lines else "refuses lines"
        return f"Broker {refused}{_at(self.door)}: {self.reason}; devices whose lines go there are not read, retrying"


@dataclass(frozen=True, slots=True)
class LinesAccepted(Event):
    """The broker confirmed all lines that it had refused."""

    name: ClassVar[str] = "lines-accepted"
    where: str
    """The queue or exchange."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return f"Broker accepts lines again{_at(self.door)}: {self.where}"


@dataclass(frozen=True, slots=True)
class DeviceReplaced(Event):
    """A device connected a second time, and its previous connection is closed."""

    name: ClassVar[str] = "device-replaced"
    connection_id: str
    """Id of the previous connection."""
    device_id: str
    by: str
    """Id of the new connection."""
    door: str = FIRST_DOOR
    """Door of the new connection. The previous one may have come in at another."""
    traceparent: str | None = None

    def __str__(self) -> str:
        return f"Device replaced: {self.connection_id} of device {self.device_id} is replaced by {self.by}{_at(self.door)}"


@dataclass(frozen=True, slots=True)
class DeviceContested(Event):
    """Connections with the same device id replace each other repeatedly. Reported at most once a minute."""

    name: ClassVar[str] = "device-contested"
    warning: ClassVar[bool] = True
    device_id: str
    replacements: int
    """Number since the last such event."""
    peers: tuple[str, ...]
    """Addresses of the last two connections."""

    def __str__(self) -> str:
        return (
            f"Device contested: {self.device_id} was replaced {self.replacements} times in a row, last by "
            f"{' and '.join(self.peers)}; if these are two devices, one of them needs another identity"
        )


@dataclass(frozen=True, slots=True)
class DeviceHeldOff(Event):
    """A device connected more often within a minute than --max-flaps allows. Its connections are closed for a while."""

    name: ClassVar[str] = "device-held-off"
    warning: ClassVar[bool] = True
    device_id: str
    connections: int
    """Number within the minute, with the one that was refused."""
    seconds: float
    peer: str
    """Address of that connection."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return (
            f"Device held off{_at(self.door)}: {self.device_id} connected {self.connections} times within a minute "
            f"(--max-flaps), last from {self.peer}; its new connections are closed for {self.seconds:g} s"
        )


@dataclass(frozen=True, slots=True)
class DuplicatesDropped(Event):
    """Messages were dropped because their numbers had been sent before. Reported periodically, as a number."""

    name: ClassVar[str] = "duplicates-dropped"
    messages: int
    """Number since the last such event."""

    def __str__(self) -> str:
        return f"Duplicates dropped: {pluralize(self.messages, 'message')} had been sent before"


@dataclass(frozen=True, slots=True)
class CertificateExpiring(Event):
    """A certificate expires soon or has expired."""

    name: ClassVar[str] = "certificate-expiring"
    warning: ClassVar[bool] = True
    certificate: str
    """File of the certificate."""
    not_after: str
    """Time of expiry: ISO 8601, UTC."""
    days: float
    """Days until expiry; negative afterwards."""

    def __str__(self) -> str:
        if self.days < 0:
            return f"Certificate expired: {self.certificate} expired at {self.not_after}; peers that verify it refuse it"
        return f"Certificate expiring: {self.certificate} expires in {self.days:.0f} days, at {self.not_after}"


@dataclass(frozen=True, slots=True)
class CrlUnusable(Event):
    """A revocation list has expired, or an authority of --client-ca has none. Reported once for each list."""

    name: ClassVar[str] = "crl-unusable"
    warning: ClassVar[bool] = True
    crl: str
    """File of the lists."""
    authority: str
    """Name of the authority in the form of RFC 4514."""
    reason: str
    policy: str
    """Value of --crl-policy."""

    def __str__(self) -> str:
        effect = "refused" if self.policy == "hard" else "accepted, except those that a list names"
        return (
            f"Revocation list unusable: {self.crl}: {self.authority}: {self.reason}; "
            f"devices of this authority are {effect} (--crl-policy {self.policy})"
        )


@dataclass(frozen=True, slots=True)
class OcspResponseUnusable(Event):
    """An OCSP response is not sent to devices. Reported once for each response."""

    name: ClassVar[str] = "ocsp-response-unusable"
    warning: ClassVar[bool] = True
    response: str
    """File of the response."""
    reason: str

    def __str__(self) -> str:
        return f"OCSP response unusable: {self.response}: {self.reason}; devices do not get it"


@dataclass(frozen=True, slots=True)
class ConfigurationReloaded(Event):
    """The settings and the files that they name were read again, and apply now."""

    name: ClassVar[str] = "reloaded"
    changed: tuple[str, ...]
    """Options whose value, or whose file, has changed and applies now."""
    rolling_restart: tuple[str, ...]
    """Options whose value has changed and applies to new workers only."""
    restart: tuple[str, ...]
    """Options whose value has changed and takes a restart of the process."""
    by: str | None = None
    """Operator who requested it over the control interface; `None` for a signal, or a file that has changed."""

    def __str__(self) -> str:
        rolling = f"; takes a rolling restart: {', '.join(self.rolling_restart)}" if self.rolling_restart else ""
        restart = f"; takes a restart: {', '.join(self.restart)}" if self.restart else ""
        changed = ", ".join(self.changed) or "nothing has changed"
        return f"Configuration reloaded{_by(self.by)}: {changed}{rolling}{restart}"


@dataclass(frozen=True, slots=True)
class ReloadFailed(Event):
    """The settings, or the files that they name, could not be read again. The previous ones stay in force, all of them."""

    name: ClassVar[str] = "reload-failed"
    warning: ClassVar[bool] = True
    reason: str
    by: str | None = None
    """As in `ConfigurationReloaded`."""

    def __str__(self) -> str:
        return f"Reload failed, and nothing was changed{_by(self.by)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ChildRestarted(Event):
    """A supervised part of this process failed and is restarted."""

    name: ClassVar[str] = "child-restarted"
    warning: ClassVar[bool] = True
    path: str
    """Path in the supervision tree."""
    reason: str
    restarts: int
    """Number of restarts, including this one."""
    delay: float
    """Seconds until the restart."""
    siblings: tuple[str, ...]
    """Siblings that are restarted with it."""

    def __str__(self) -> str:
        after = f" in {self.delay:.1f} s" if self.delay else ""
        others = f", and with it {', '.join(self.siblings)}" if self.siblings else ""
        return f"Restarting {self.path}{after}{others} (restart {self.restarts}): {self.reason}"


@dataclass(frozen=True, slots=True)
class SupervisorGaveUp(Event):
    """A supervised part of this process failed too often, so its supervisor gave up."""

    name: ClassVar[str] = "supervisor-gave-up"
    warning: ClassVar[bool] = True
    path: str
    """Path of the supervisor in the tree."""
    child: str
    """Child that failed last."""
    failures: int
    """Failures of all children within the period."""
    period: float
    """Length of the period in seconds."""
    reason: str
    """Reason of the last failure."""

    def __str__(self) -> str:
        return (
            f"{self.path} gave up: {self.failures} failures within {self.period:g} s, "
            f"the last one of {self.child}: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """An event handler raised an exception and was removed. Its supervisor installs it again."""

    name: ClassVar[str] = "handler-failed"
    warning: ClassVar[bool] = True
    handler: str
    reason: str

    def __str__(self) -> str:
        return f"Event handler {self.handler} failed and was removed: {self.reason}"


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """An event handler missed events, because it was too slow or unable to work for too long."""

    name: ClassVar[str] = "events-dropped"
    warning: ClassVar[bool] = True
    handler: str
    events: int

    def __str__(self) -> str:
        return f"Events dropped: {self.handler} has missed {self.events}"


@dataclass(frozen=True, slots=True)
class NodeLost(Event):
    """Another node died. The messages in its queue are recorded as undeliverable; those to devices by name are sent again."""

    name: ClassVar[str] = "node-lost"
    warning: ClassVar[bool] = True
    lost: str
    """Name of the dead node."""
    messages: int
    """Number of messages that were in its queue."""

    def __str__(self) -> str:
        return (
            f"Node lost: {self.lost}; messages in its queue: {self.messages} (those for its connections are recorded as "
            "undeliverable, those for devices by name sent again)"
        )


@dataclass(frozen=True, slots=True)
class NodeRenamed(Event):
    """This node changed its name. Its connections, whose ids contain the old name, are closed one after another."""

    name: ClassVar[str] = "node-renamed"
    warning: ClassVar[bool] = True
    before: str
    now: str
    connections: int
    """Connections to be closed."""
    reason: str

    def __str__(self) -> str:
        return f"Node renamed: {self.before} is now {self.now}: {self.reason}; closing {self.connections} connections"


@dataclass(frozen=True, slots=True)
class DeviceIdentified(Event):
    """A device identified itself to its dialect, possibly with another id than that of its certificate."""

    name: ClassVar[str] = "device-identified"
    connection_id: str
    device_id: str
    since: int | None = None
    """As in `DeviceConnected`. `None` if the connection was being closed."""

    def __str__(self) -> str:
        return f"Device identified: {self.connection_id} is device {self.device_id}"


@dataclass(frozen=True, slots=True)
class LoginFailed(Event):
    """A device failed to prove its claimed identity. Its connection is closed."""

    name: ClassVar[str] = "login-failed"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    """Id that the device has proved by its certificate."""
    claimed_id: str | None
    """Unproved device id of the login."""
    peer: str
    reason: str
    unreported: int
    """Earlier failed logins without an event."""
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        claimed = f" as device {self.claimed_id}" if self.claimed_id is not None else ""
        more = f" (and {self.unreported} more that were refused unchecked)" if self.unreported else ""
        return f"Login failed: {_connection(self)} from {self.peer}{_at(self.door)}{claimed}: {self.reason}{more}"


@dataclass(frozen=True, slots=True)
class DialectFailed(Event):
    """A dialect raised an exception. Only its own connection is closed."""

    name: ClassVar[str] = "dialect-failed"
    warning: ClassVar[bool] = True
    connection_id: str
    device_id: str | None
    dialect: str
    reason: str
    door: str = FIRST_DOOR
    traceparent: str | None = None

    def __str__(self) -> str:
        return f"Dialect {self.dialect} failed: {_connection(self)}{_at(self.door)} is closed: {self.reason}"


@dataclass(frozen=True, slots=True)
class DeviceKicked(Event):
    """An operator closed the connection of a device over the control interface."""

    name: ClassVar[str] = "device-kicked"
    connection_id: str
    device_id: str | None
    by: str
    """Operator: `user NAME (uid N)` on the control socket, `token from ADDRESS` over TCP."""
    door: str = FIRST_DOOR

    def __str__(self) -> str:
        return f"Device kicked: {_connection(self)}{_at(self.door)} is closed{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class TraceStarted(Event):
    """An operator started a trace of a device over the control interface."""

    name: ClassVar[str] = "trace-started"
    target: str
    """Connection id, device id or address."""
    by: str
    """As in `DeviceKicked`."""
    seconds: float
    """Time after which the trace ends at the latest."""
    bodies: bool
    """True if the trace contains the bodies of lines."""

    def __str__(self) -> str:
        bodies = "with" if self.bodies else "without"
        return f"Trace started: {self.target}, for {self.seconds:g} s, {bodies} bodies{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class TraceEnded(Event):
    """A trace of a device ended."""

    name: ClassVar[str] = "trace-ended"
    target: str
    """As in `TraceStarted`."""
    by: str
    """Operator who started it."""
    records: int
    """Records that were taken."""
    dropped: int
    """Records that did not fit into the memory of the trace before they were read."""
    reason: str

    def __str__(self) -> str:
        dropped = f" ({self.dropped} dropped)" if self.dropped else ""
        return f"Trace ended: {self.target}, {self.reason}; {pluralize(self.records, 'record')}{dropped}{_by(self.by)}"


@dataclass(frozen=True, slots=True)
class DrainRequested(Event):
    """An operator requested an orderly stop over the control interface."""

    name: ClassVar[str] = "drain-requested"
    by: str
    """As in `DeviceKicked`."""

    def __str__(self) -> str:
        return f"Orderly stop begins{_by(self.by)}"
