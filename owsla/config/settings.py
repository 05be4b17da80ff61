"""The settings of a process: frozen, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, Literal, TypeAlias

from twisted.cred.checkers import ICredentialsChecker

from owsla.config.addresses import BrokerAddress, ManagementAddress
from owsla.config.framings import FramingSpec
from owsla.dialects import Dialect
from owsla.events import HandlerSpec
from owsla.interfaces import FIRST_DOOR
from owsla.log import LogFormat
from owsla.routing_key import RoutingKey
from owsla.runtime.cpus import Cpus

ClientCertificate = Literal["require", "optional"]
CrlPolicy = Literal["hard", "soft"]
Identity = Literal["cn", "san-dns", "san-uri", "fingerprint"]
Duplicates = Literal["keep", "replace"]
SequenceType = Literal["int64", "int32"]
OnLong = Literal["close", "skip"]
ProxySender: TypeAlias = IPv4Network | IPv6Network | Literal["unix"]
"""Peers that are trusted to send a PROXY protocol header: those of a network, or all of a unix socket."""
DEFAULT_CONTROL: Final = Path("owsla.sock")
"""Path of the control socket, relative to the working folder at the start."""
QueueArgument = tuple[str, str | int | bool]
"""Name and value of an argument of queue.declare."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked values of all options. The help texts of `OPTIONS` describe them. Times are in seconds, sizes in bytes."""

    watch: float  # 0: off
    port: int | Path | None  # a path: of a unix socket; None: a socket that systemd passes
    interface: str  # empty: all interfaces
    socket_mode: int  # permissions of a unix socket
    listen: tuple[Door, ...]  # the doors besides the first
    tls: bool
    proxy_protocol: tuple[ProxySender, ...]  # empty: no header is expected
    proxy_identity: bool
    workers: int | Cpus  # CPUs: auto
    cert: tuple[Path, ...]  # empty: the development certificate in `certs_dir`
    key: tuple[Path, ...]  # of each certificate, in the same order
    certs_dir: Path
    client_ca: Path | None
    client_cert: ClientCertificate
    client_crl: Path | None
    crl_policy: CrlPolicy
    ocsp_response: tuple[Path, ...]
    device_id: Identity
    brokers: tuple[BrokerAddress, ...]  # empty: the embedded broker
    broker_password_file: Path | None  # already read: the password is in `brokers`
    broker_ca: Path | None
    broker_cert: Path | None
    broker_key: Path | None
    broker_management: ManagementAddress | None
    heartbeat: int
    embedded_port: int
    embedded_memory: int
    from_device: str  # not used with `publish_exchange`
    from_device_arguments: tuple[QueueArgument, ...]
    publish_exchange: str | None  # None: the default exchange, with the routing key `from_device`
    routing_key: RoutingKey
    to_device: str
    to_device_arguments: tuple[QueueArgument, ...]
    undeliverable_arguments: tuple[QueueArgument, ...]
    node_queue_arguments: tuple[QueueArgument, ...]
    seq_header: str
    seq_type: SequenceType
    delivery_mode: Literal[1, 2]
    consumers: int
    prefetch: int
    window: int
    window_bytes: int
    max_connections: int | None  # None: derived from the limit on open files
    max_handshakes: int
    max_per_address: int | None
    max_connect_rate: float | None
    max_flaps: int | None
    deny: Path | None
    handshake_timeout: float
    idle_timeout: float  # 0: off
    framing: FramingSpec
    max_line: int
    on_long: OnLong
    max_rate: float | None
    linger: float
    batch: int  # lines in a message at most; 1: a message for each line
    batch_delay: float
    delimiter: bytes
    device_ack: str | None
    dialect: type[Dialect] | None  # None: lines are published as they are
    login_checker: ICredentialsChecker | None
    login_timeout: float
    on_duplicate: Duplicates
    device_timeout: float
    fanout_rate: float  # devices a second
    gap_timeout: float
    reorder_limit: int
    write_buffer: int
    write_timeout: float
    undeliverable_limit: int
    drain_timeout: float
    drain_spread: float | None  # None: depends on the number of devices
    node_grace: float
    trace_lines: float  # share of the lines; 0: off
    events: tuple[HandlerSpec, ...]
    log_format: LogFormat
    http: tuple[str, int] | None  # address (empty: all) and port
    http_token_file: Path | None
    http_read_token_file: Path | None
    control: Path | Literal["off"] | None  # None: `DEFAULT_CONTROL`, if it can be had

    @property
    def worker_count(self) -> int:
        """Number of worker processes. With 1 the process itself does their work."""
        return self.workers.workers if isinstance(self.workers, Cpus) else self.workers

    @property
    def doors(self) -> tuple[Door, ...]:
        """All doors, the one that the top-level options describe first."""
        return (Door(FIRST_DOOR, self), *self.listen)


@dataclass(frozen=True, slots=True)
class Door:
    """A place where devices come in: a port, a unix socket, or a socket that systemd passes."""

    name: str
    settings: Settings
    """Settings of the door. Options that it does not set have the values of the first door. Those that no door can set are for
    the process: ask its settings for them."""
