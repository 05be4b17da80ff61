"""The settings of a process: frozen, typed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twisted.cred.checkers import ICredentialsChecker

from owsla.config.addresses import BrokerAddress
from owsla.dialects import Dialect
from owsla.events import HandlerSpec
from owsla.routing_key import RoutingKey

ClientCertificate = Literal["require", "optional"]
CrlPolicy = Literal["hard", "soft"]
Identity = Literal["cn", "san-dns", "san-uri", "fingerprint"]
Duplicates = Literal["keep", "replace"]
SequenceType = Literal["int64", "int32"]
QueueArgument = tuple[str, str | int | bool]
"""Name and value of an argument of queue.declare."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked values of all options. The help texts of `OPTIONS` describe them. Times are in seconds, sizes in bytes."""

    watch: float  # 0: off
    port: int
    interface: str  # empty: all interfaces
    workers: int
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
    handshake_timeout: float
    idle_timeout: float  # 0: off
    max_line: int
    max_rate: float | None
    linger: float
    delimiter: bytes
    device_ack: str | None
    dialect: type[Dialect] | None  # None: lines are published as they are
    login_checker: ICredentialsChecker | None
    login_timeout: float
    on_duplicate: Duplicates
    gap_timeout: float
    reorder_limit: int
    write_buffer: int
    write_timeout: float
    undeliverable_limit: int
    drain_timeout: float
    drain_spread: float | None  # None: depends on the number of devices
    node_grace: float
    events: tuple[HandlerSpec, ...]
    http: tuple[str, int] | None  # address (empty: all) and port
