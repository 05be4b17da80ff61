"""What a user can set: frozen, typed settings, read from defaults, a TOML file, the environment and the command line.

One table, :data:`OPTIONS`, says everything about an option: its name, default, how its text is read and what the help
says. All sources go through the same readers. The later of these wins, option by option::

    defaults  <  the file of --config or OWSLA_CONFIG  <  OWSLA_… in the environment  <  the command line

Nothing else in Owsla knows TOML, the environment or the command line.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO

from twisted.python import usage

from owsla import __version__
from owsla._argv import password_spans, scrub_command_line
from owsla.config.addresses import BrokerAddress
from owsla.errors import ConfigError
from owsla.runtime.files import read_file
from owsla.runtime.process import remove_own_pid_file

if TYPE_CHECKING:
    from twisted.cred.checkers import ICredentialsChecker

    from owsla.dialects import Dialect
    from owsla.events import HandlerSpec
    from owsla.routing_key import RoutingKey


# -- The settings ------------------------------------------------------------------------------------------------------

ClientCertificate = Literal["require", "optional"]
Identity = Literal["cn", "san-dns", "san-uri", "fingerprint"]
Duplicates = Literal["keep", "replace"]
SequenceType = Literal["int64", "int32"]
QueueArgument = tuple[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set, checked. The help texts of :data:`OPTIONS` say what each means; times are seconds."""

    port: int
    interface: str  # "" is all
    workers: int
    cert: Path | None  # None, like key: the development pair in certs_dir
    key: Path | None
    certs_dir: Path
    client_ca: Path | None
    client_cert: ClientCertificate
    device_id: Identity
    brokers: tuple[BrokerAddress, ...]  # empty: the embedded broker
    broker_password_file: Path | None  # already read: its password is in brokers
    broker_ca: Path | None
    heartbeat: int
    embedded_port: int
    embedded_memory: int
    from_device: str  # not used with publish_exchange
    from_device_arguments: tuple[QueueArgument, ...]
    publish_exchange: str | None  # None: the default exchange, with from_device as the routing key
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
    max_connections: int | None  # None: from the open-files limit
    max_handshakes: int
    max_per_address: int | None
    handshake_timeout: float
    idle_timeout: float  # 0 is off
    max_line: int
    max_rate: float | None
    linger: float  # seconds
    delimiter: bytes
    device_ack: str | None
    dialect: type[Dialect] | None  # None: lines pass as they are
    login_checker: ICredentialsChecker | None
    login_timeout: float
    on_duplicate: Duplicates
    gap_timeout: float
    reorder_limit: int
    write_buffer: int
    write_timeout: float
    undeliverable_limit: int
    drain_timeout: float
    drain_spread: float | None  # None: by the number of devices
    node_grace: float
    events: tuple[HandlerSpec, ...]
    http: tuple[str, int] | None  # address ("" is all) and port


# -- Readers: text to value, or a ConfigError that goes on from "--option: " --------------------------------------------

_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)?", re.ASCII | re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

_LONGEST = 30 * 24 * 3600.0  # Nothing waits longer than a month; more is a slip of the unit.
_LARGEST_COUNT = 10_000_000

_Reader = Callable[[str], object]


def _number(low: int, high: int, what: str = "number") -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            raise ConfigError(f"{text!r} is not a {what} ({low} to {high})")
        return int(text)

    return read


def _size(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a size (a number of bytes, 64KiB, 16MiB, 1GiB)")
        size = int(match[1]) * _BYTES[(match[2] or "B").lower()]
        if not low <= size <= high:
            raise ConfigError(f"{text!r} is not between {_size_text(low)} and {_size_text(high)}")
        return size

    return read


def _size_text(size: int) -> str:
    for unit, factor in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} byte" + "s" * (size != 1)


def _duration(*, zero: bool, longest: float = _LONGEST) -> Callable[[str], float]:
    def read(text: str) -> float:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a time (2, 0.5, 500ms, 30s, 30m, 1h)")
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
        if not zero and seconds == 0:
            raise ConfigError(f"{text!r} must be more than 0")
        if seconds > longest:
            raise ConfigError(f"{text!r} is longer than {longest:.0f} seconds")
        return seconds

    return read


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _number(1, 256)(text)


def _heartbeat(text: str) -> int:
    seconds = _duration(zero=True)(text)
    if seconds != int(seconds) or not 1 <= seconds <= 3600:
        raise ConfigError(f"{text!r} is not a whole number of seconds (1 to 3600)")
    return int(seconds)


def _rate(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or float(text) == 0:
        raise ConfigError(f"{text!r} is not a number of lines a second (more than 0)")
    return float(text)


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ConfigError(f"{text!r} is not {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read


def _or(word: str, value: object, reader: _Reader) -> _Reader:
    """``word`` (the default, as the help shows it) or what ``reader`` reads, so that a file's setting can be undone."""
    return lambda text: value if text == word else reader(text)


def _interface(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address of this machine, nor 'all'") from None


def _http(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise ConfigError(f"{text!r}: an IPv6 address is written in brackets, as in [::1]:9100")
    number = _number(0, 65535, "port number")(port)
    if not colon:
        return "127.0.0.1", number
    return ("" if address == "all" else _interface(address)), number


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError(f"{text!r} is not a file name")
    return Path(text)


def _readable(text: str) -> Path:
    path = _path(text)
    read_file(path)
    return path


def _short_string(text: str, what: str, limit: int) -> str:
    try:
        encoded = text.encode()
    except UnicodeError:
        raise ConfigError(f"{text!r} is not UTF-8") from None
    if not 1 <= len(encoded) <= limit:
        raise ConfigError(f"{what} is 1 to {limit} bytes of UTF-8, not {len(encoded)}")
    return text


def _queue(text: str) -> str:
    # An AMQP short string is at most 255 bytes; the names of further queues are made by adding to this one.
    _short_string(text, "a queue's name", 255 - len(UNDELIVERABLE_SUFFIX))
    if text.startswith("amq."):
        raise ConfigError(f"{text!r}: names that begin with amq. are the broker's own")
    return text


def _header(text: str) -> str:
    if text in ("connection_id", "device_id"):
        raise ConfigError(f"{text!r} is the name of another header")
    return _short_string(text, "a header's name", 255)


def _exchange(text: str) -> str:
    return _short_string(text, "an exchange's name", 255)


_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)


def _argument(text: str) -> QueueArgument:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r} is not NAME=VALUE, as in x-queue-type=quorum")
    _short_string(name, "an argument's name", 255)
    if value in ("true", "false"):
        return name, value == "true"
    if _INTEGER.fullmatch(value):
        if len(value) > 18:
            raise ConfigError(f"{name}: {value} is not a 64-bit number")
        return name, int(value)
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    try:
        value.encode()
    except UnicodeError:
        raise ConfigError(f"{value!r} is not UTF-8") from None
    return name, value


_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([rnt0\\])|(.?))", re.DOTALL)
_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_LONGEST_DELIMITER = 16


def _delimiter(text: str) -> bytes:
    result = b""
    position = 0
    for match in _ESCAPE.finditer(text):
        result += os.fsencode(text[position : match.start()])
        if match[1]:
            result += bytes.fromhex(match[1])
        elif match[2]:
            result += _ESCAPES[match[2]]
        else:
            raise ConfigError(rf"{match[0]!r} is not one of the escapes \n, \r, \t, \0, \\ and \xHH")
        position = match.end()
    result += os.fsencode(text[position:])
    if not 1 <= len(result) <= _LONGEST_DELIMITER:
        raise ConfigError(f"a delimiter is 1 to {_LONGEST_DELIMITER} bytes, not {len(result)}")
    return result


def _template(text: str) -> str:
    try:
        text.encode()
    except UnicodeError:
        raise ConfigError(f"{text!r} is not UTF-8") from None
    if "{seq}" not in text:
        raise ConfigError(f"{text!r} has no {{seq}} in it, as in 'ACK {{seq}}'")
    return text


# Imported where they are used: they read the settings, and there is no need for them without one.


def _routing_key(text: str) -> RoutingKey:
    from owsla.routing_key import RoutingKey

    return RoutingKey(text)


def _events(text: str) -> HandlerSpec:
    from owsla.events import handler_spec

    return handler_spec(text)


def _dialect(text: str) -> type[Dialect]:
    from owsla.dialects import find_dialect

    return find_dialect(text)


def _checker(text: str) -> ICredentialsChecker:
    from owsla.dialects.login import checker

    return checker(text)


def _broker(text: str) -> BrokerAddress | None:
    """None stands for the embedded broker."""
    return None if text == "embedded" else BrokerAddress.parse(text)


# -- The table ---------------------------------------------------------------------------------------------------------

UNDELIVERABLE_SUFFIX = ".undeliverable"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name and default as a user writes them, how its text is read, what the help says.

    ``default`` is None where there is nothing to read, and ``shown`` then is what the help says instead. The value of a
    ``secret`` option is never quoted in a message.
    """

    group: str
    name: str
    metavar: str
    default: str | None
    read: _Reader
    help: str
    shown: str = ""
    repeatable: bool = False
    secret: bool = False
    setting: str = ""

    @property
    def field(self) -> str:
        """The name of the field of :class:`Settings`."""
        return self.setting or self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return "OWSLA_" + self.name.replace("-", "_").upper()

    @property
    def default_text(self) -> str:
        """The default as the help shows it."""
        return self.shown or self.default or "none"


_LISTEN, _TLS, _BROKER = "Where devices connect", "Certificates", "The broker"
_MESSAGES, _LINES, _CONNECTIONS = "Messages", "Lines", "Connections"
_ORDER, _STOP, _WATCH = "Order and delivery", "Stopping", "Watching it"

# The upper bound of a line: RabbitMQ 4 refuses messages above 16 MiB unless told otherwise (max_message_size).
_LONGEST_LINE = 16 * _MIB

OPTIONS: tuple[Option, ...] = (
    Option(
        "General", "config", "FILE", None, _path,
        "A TOML file with any of these options by their names, as in max-line = 1000. The environment and the command "
        "line override it.",
    ),
    Option(_LISTEN, "port", "PORT", "8883", _number(0, 65535, "port number"), "TCP port for devices; 0 takes any free one."),
    Option(
        _LISTEN, "interface", "ADDRESS", "all", _or("all", "", _interface),
        "IP address to listen on; all is every IPv4 and IPv6 address, :: every IPv6 address only, and 0.0.0.0 every IPv4 "
        "address only.",
    ),
    Option(
        _LISTEN, "workers", "COUNT", "1", _workers,
        "Processes that share the port, 1 to 256; auto is one for each core. Limits of connections and messages are for each.",
    ),
    Option(
        _TLS, "cert", "FILE", None, _readable,
        "PEM file with the server's certificate first, then those up to its authority. Needs --key.",
        shown="a development certificate in --certs-dir",
    ),
    Option(
        _TLS, "key", "FILE", None, _readable, "PEM file with the certificate's private key, not encrypted. Needs --cert.",
        shown="a development key in --certs-dir",
    ),
    Option(
        _TLS, "certs-dir", "FOLDER", "certs", _path,
        "Where the development authority and certificate are made, once, when there is no --cert.",
    ),
    Option(
        _TLS, "client-ca", "FILE", "off", _or("off", None, _readable),
        "PEM file with the authorities that sign devices' certificates; devices are then asked for one.",
    ),
    Option(
        _TLS, "client-cert", "WORD", "require", _choice("require", "optional"),
        "With --client-ca: require turns away devices without a certificate, optional lets them in without an identity.",
    ),
    Option(
        _TLS, "device-id", "WORD", "cn", _choice("cn", "san-dns", "san-uri", "fingerprint"),
        "What of a device's certificate is its identity: cn, san-dns, san-uri (the first of them) or fingerprint "
        "(SHA-256, hex).",
    ),
    Option(
        _BROKER, "broker", "URL", "embedded", _broker,
        "amqp://user:password@host:port/vhost or amqps://..., user, password and vhost percent-encoded; several hosts of "
        "a cluster: give it again. embedded starts one in memory, for trying out.",
        repeatable=True, secret=True, setting="brokers",
    ),
    Option(
        _BROKER, "broker-password-file", "FILE", None, _path,
        "File whose only line is the broker's password; it replaces the one in every --broker.",
    ),
    Option(
        _BROKER, "broker-ca", "FILE", "system", _or("system", None, _readable),
        "PEM file with the authorities to trust for amqps://; system is the system's own.",
    ),
    Option(
        _BROKER, "heartbeat", "TIME", "30s", _heartbeat,
        "Heartbeat asked of the broker, 1s to 1h: its silence is noticed within one and a half times that.",
    ),
    Option(
        _BROKER, "embedded-port", "PORT", "5672", _number(0, 65535, "port number"),
        "Port of the embedded broker, on 127.0.0.1 only; 0 takes any free one.",
    ),
    Option(
        _BROKER, "embedded-memory", "SIZE", "512MiB", _size(_MIB, 1024 * _GIB),
        "Messages the embedded broker holds before it blocks publishers, in bytes.",
    ),
    Option(_MESSAGES, "from-device", "QUEUE", "from_device", _queue, "Queue of lines from devices."),
    Option(
        _MESSAGES, "publish-exchange", "NAME", "off", _or("off", None, _exchange),
        "Exchange to publish lines from devices to, which has to be there, instead of the queue --from-device.",
    ),
    Option(
        _MESSAGES, "routing-key", "TEMPLATE", "{connection_id}", _routing_key,
        "With --publish-exchange: the routing key of a connection's lines, with {connection_id}, {device_id} (the connection's "
        "id where a device has none), {node} and {shard:N}, a hash of the device from 0 to N-1.",
    ),
    Option(
        _MESSAGES, "to-device", "QUEUE", "to_device", _queue,
        f"Queue of lines to devices; what can't be delivered goes to QUEUE{UNDELIVERABLE_SUFFIX}.",
    ),
    Option(
        _MESSAGES, "from-device-argument", "NAME=VALUE", None, _argument,
        "Argument to declare the from-device queue with, such as x-queue-type=quorum; a number, true, false or text.",
        repeatable=True, setting="from_device_arguments",
    ),
    Option(
        _MESSAGES, "to-device-argument", "NAME=VALUE", None, _argument, "The same for the to-device queue.",
        repeatable=True, setting="to_device_arguments",
    ),
    Option(
        _MESSAGES, "undeliverable-argument", "NAME=VALUE", None, _argument,
        f"The same for the queue QUEUE{UNDELIVERABLE_SUFFIX}.",
        repeatable=True, setting="undeliverable_arguments",
    ),
    Option(
        _MESSAGES, "node-queue-argument", "NAME=VALUE", None, _argument,
        "The same for the queue that each node has of its own.",
        repeatable=True, setting="node_queue_arguments",
    ),
    Option(
        _MESSAGES, "seq-header", "NAME", "from_device_seq", _header,
        "Header that counts the lines of a connection from 0.",
    ),
    Option(
        _MESSAGES, "seq-type", "WORD", "int64", _choice("int64", "int32"),
        "Type of that header: int64 is AMQP's l; int32 is its I, for client libraries that cannot read l in a table. A number "
        "past 2147483647 is an l all the same.",
    ),
    Option(
        _MESSAGES, "delivery-mode", "1|2", "2", _number(1, 2, "delivery mode"),
        "2: lines are written to the broker's disk; 1: they may be lost when the broker restarts.",
    ),
    Option(_MESSAGES, "consumers", "COUNT", "8", _number(1, 64), "Consumers of the to-device queue, 1 to 64."),
    Option(
        _MESSAGES, "prefetch", "COUNT", "500", _number(1, 65535),
        "Messages each consumer takes before it has acknowledged any, 1 to 65535.",
    ),
    Option(
        _MESSAGES, "window", "COUNT", "10000", _number(1, _LARGEST_COUNT),
        "Lines published and not yet confirmed by the broker, at most; then devices wait.",
    ),
    Option(_MESSAGES, "window-bytes", "SIZE", "16MiB", _size(_KIB, 64 * _GIB), "The same limit in bytes."),
    Option(
        _MESSAGES, "undeliverable-limit", "COUNT", "100000", _number(1, 1_000_000_000),
        "Messages kept in the undeliverable queue, at most.",
    ),
    Option(
        _LINES, "max-line", "SIZE", "16384", _size(1, _LONGEST_LINE),
        "Longest line in bytes without its delimiter, both ways; a device that sends a longer one is disconnected.",
    ),
    Option(
        _LINES, "delimiter", "TEXT", r"\n", _delimiter,
        r"What ends a line: 1 to 16 bytes, with the escapes \n, \r, \t, \0, \\ and \xHH. With \n a \r before it is "
        r"stripped, and devices are sent \r\n; any other is used as it is, both ways.",
    ),
    Option(
        _LINES, "device-ack", "TEXT", "off", _or("off", None, _template),
        "Line that tells a device which of its lines are safe in the broker, as in 'ACK {seq}': all up to {seq}, which "
        "counts from 0.",
    ),
    Option(
        _LINES, "max-rate", "NUMBER", "off", _or("off", None, _rate),
        "Lines a second that one connection may send; a faster one is read more slowly.",
    ),
    Option(
        _LINES, "linger", "TIME", "2ms", _duration(zero=True, longest=1.0),
        "While more than some 3,000 lines a second come to a process they wait for each other, about this long at most, to be "
        "read and published together, which saves CPU here and in the broker; 0: never.",
    ),
    Option(
        _LINES, "dialect", "NAME", "lines", _or("lines", None, _dialect),
        "What devices speak: lines passes everything through; login and turnstile come with Owsla; others by their name as "
        "a plugin, or as package.module:Name.",
    ),
    Option(
        _LINES, "login-checker", "KIND:WHERE", "off", _or("off", None, _checker),
        "Who may log in with the login dialect: file:PATH, with a line id:token for each device, or another kind of "
        "Twisted's checkers.",
        secret=True,
    ),
    Option(
        _LINES, "login-timeout", "TIME", "10s", _duration(zero=False),
        "Time a device has for its login with the login dialect.",
    ),
    Option(
        _CONNECTIONS, "max-connections", "COUNT", "auto", _or("auto", None, _number(1, _LARGEST_COUNT)),
        "Devices connected at a time; more wait to be accepted. auto is what the limit on open files allows.",
    ),
    Option(
        _CONNECTIONS, "max-handshakes", "COUNT", "512", _number(1, _LARGEST_COUNT),
        "TLS handshakes under way at a time. Connections that have said nothing are not among them: there may be four times "
        "as many, or half of --max-connections; then the oldest is closed.",
    ),
    Option(
        _CONNECTIONS, "max-per-address", "COUNT", "off", _or("off", None, _number(1, _LARGEST_COUNT)),
        "Connections at a time from one IPv4 address, or one IPv6 network (/64); one more is closed at once. Devices behind "
        "one NAT share an address.",
    ),
    Option(
        _CONNECTIONS, "handshake-timeout", "TIME", "15s", _duration(zero=False),
        "Time a device has for its TLS handshake.",
    ),
    Option(
        _CONNECTIONS, "idle-timeout", "TIME", "30m", _or("off", 0.0, _duration(zero=True)),
        "A connection without a line in either direction for this long is closed; 0 or off: never.",
    ),
    Option(
        _CONNECTIONS, "on-duplicate", "WORD", "keep", _choice("keep", "replace"),
        "When a device that has an identity connects to a node a second time: keep both connections, or replace the first.",
    ),
    Option(
        _CONNECTIONS, "write-buffer", "SIZE", "64KiB", _size(1, _GIB),
        "Bytes that wait for a device that reads slowly, at most; then it is disconnected.",
    ),
    Option(
        _CONNECTIONS, "write-timeout", "TIME", "30s", _duration(zero=False),
        "Time that lines wait for a device that doesn't read; then it is disconnected.",
    ),
    Option(
        _ORDER, "gap-timeout", "TIME", "2s", _duration(zero=True),
        "How long a missing to_device_seq is waited for before it is skipped.",
    ),
    Option(
        _ORDER, "reorder-limit", "COUNT", "64", _number(1, 65535),
        "Messages held per device while one before them is missing, at most.",
    ),
    Option(
        _ORDER, "node-grace", "TIME", "10s", _duration(zero=True),
        "How long a node may be without the broker before it counts as dead, and what is for its devices as undeliverable.",
    ),
    Option(
        _STOP, "drain-timeout", "TIME", "30s", _duration(zero=True),
        "After SIGTERM: time for everything under way to be finished, at most.",
    ),
    Option(
        _STOP, "drain-spread", "TIME", "auto", _or("auto", None, _duration(zero=True)),
        "After SIGTERM: devices are disconnected over this time rather than in one instant. auto: 50ms for each, 10s at most.",
    ),
    Option(
        _WATCH, "events", "HANDLER", "console", _events,
        "Who is told of events, such as devices that come and go: console (the log), json:FILE, database:URL (sqlite:///PATH "
        "or postgresql://...), amqp (presence, to the queue connection_events).",
        repeatable=True, secret=True,
    ),
    Option(
        _WATCH, "http", "[ADDRESS:]PORT", "off", _or("off", None, _http),
        "Serve metrics (/metrics), health (/healthz, /readyz) and the supervision tree (/tree) over HTTP; on 127.0.0.1 "
        "unless an address is given, or all.",
    ),
)  # fmt: skip

_BY_NAME = {option.name: option for option in OPTIONS}
_BY_VARIABLE = {option.variable: option for option in OPTIONS}

_NODES_OWN = "Owsla's own to set: a node comes back to its queue, and is its only consumer"
_ARGUMENTS: Mapping[str, tuple[Mapping[str, str], bool]] = {
    "from-device-argument": ({}, False),
    "to-device-argument": ({}, True),
    "undeliverable-argument": ({"x-max-length": "what --undeliverable-limit sets"}, False),
    "node-queue-argument": ({"x-expires": _NODES_OWN, "x-single-active-consumer": _NODES_OWN}, True),
}
"""For each option with arguments of a queue: those that are not the user's, and why; whether Owsla consumes the queue."""


# -- From the sources to the settings ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """The texts given for an option, and where."""

    texts: tuple[str, ...]
    origin: str


def _write_warning(message: str) -> None:
    sys.stderr.write(f"owsla: {_one_line(message)}\n")


def load_settings(
    argv: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    warn: Callable[[str], None] = _write_warning,
) -> Settings:
    """Read all sources. ConfigError says in one sentence what can't be used and where it came from.

    An ``OWSLA_…`` variable that is no option only calls ``warn``, since others may use the environment too.
    """
    pairs, rest = _split(argv)
    if rest:
        raise ConfigError(f"{_hidden(rest[0])}: there are only options here, such as --port {_BY_NAME['port'].default}")
    command_line: dict[str, _Given] = {}
    for flag, text in pairs:
        option = _BY_NAME[flag.removeprefix("--")]
        before = command_line[option.name].texts if option.repeatable and option.name in command_line else ()
        command_line[option.name] = _Given((*before, text), flag)
    environment, strangers = _from_environment(environ)
    given = {**environment, **command_line}
    if "config" in given:
        given = {**_from_file(given["config"]), **given}
    settings = _checked(given)
    for variable in strangers:
        warn(f"{variable}: no option has this name, ignored{_closest(variable, _BY_VARIABLE)}")
    return settings


def _split(argv: Sequence[str], flags: Sequence[str] = ()) -> tuple[list[tuple[str, str]], list[str]]:
    """The options of ``argv`` with their texts, those of ``flags`` without, and what is no option.

    Not getopt, nor argparse: these names are for good, so --wind may not mean --window until there is a --winder.
    """
    pairs: list[tuple[str, str]] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            rest += arguments
        elif not argument.startswith("-") or argument == "-":
            rest.append(argument)
        elif not argument.startswith("--"):
            raise ConfigError(f"{argument[:2]}: no such option")  # the rest of it may be anything
        else:
            flag, equals, text = argument.partition("=")
            name = flag.removeprefix("--")
            if name in flags:
                if equals:
                    raise ConfigError(f"{flag}: takes no value")
            elif name not in _BY_NAME:
                shown = flag if _hidden(flag) == repr(flag) else "a URL"
                raise ConfigError(f"{shown}: {_unknown(name, (*_BY_NAME, *flags))}")
            elif not equals:
                given = next(arguments, None)
                if given is None:
                    raise ConfigError(f"{flag}: a value is missing")
                text = given
            pairs.append((flag, text))
    return pairs, rest


def _unknown(name: str, names: Sequence[str]) -> str:
    """What is to be said of an option that is none of these. No abbreviation is taken, but each is worth a hint."""
    hint = _closest(name, names, "--")
    longer = [known for known in names if name and known.startswith(name)]
    if not hint and longer:
        if len(longer) > 1:
            return "more than one option begins like this"
        hint = f"; did you mean --{longer[0]}?"
    return f"no such option{hint}"


def _closest(name: str, names: Iterable[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def _hidden(text: str) -> str:
    """``text`` for a message, unless a password could be in it."""
    return "a URL" if "@" in text or "://" in text else repr(text)


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, _Given], list[str]]:
    """What the environment gives, and the names of variables that look like ours and are not."""
    given = {}
    strangers = []
    for variable in sorted(environ):
        if not variable.startswith("OWSLA_"):
            continue
        option = _BY_VARIABLE.get(variable)
        text = environ[variable]
        if option is None:
            strangers.append(variable)
        elif text:  # An empty one is how compose files and unit files write "not set".
            given[option.name] = _Given(_parts(text, option) if option.repeatable else (text,), variable)
    return given, strangers


def _parts(text: str, option: Option) -> tuple[str, ...]:
    """What is separated by commas in a variable."""
    parts = tuple(part.strip() for part in text.split(","))
    if option.name == "broker":
        return parts  # in a URL %2c is an escape anyway, as any other
    return tuple(_COMMA.sub(",", part) for part in parts)


_COMMA = re.compile("%2c", re.IGNORECASE)


def _from_file(config: _Given) -> dict[str, _Given]:
    try:
        path = _path(config.texts[0])
        content = read_file(path)
    except ConfigError as error:
        raise ConfigError(f"{config.origin}: {error}") from None
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except ValueError as error:  # TOMLDecodeError, and int()'s own for thousands of digits
        raise ConfigError(f"{path}: {error}") from None
    given = {}
    for key, value in document.items():
        option = _BY_NAME.get(key)
        if option is None or key == "config":
            names = [name for name in _BY_NAME if name != "config"]
            raise ConfigError(f"{path}: {key}: no such option{_closest(key, names)}")
        origin = f"{path}: {key}"
        values = value if isinstance(value, list) and option.repeatable else [value]
        if not values:
            raise ConfigError(f"{origin}: the array is empty")
        given[key] = _Given(tuple(_toml_text(item, origin, option) for item in values), origin)
    return given


def _toml_text(value: object, origin: str, option: Option) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = {dict: "a table", list: "an array", bool: "a boolean"}.get(type(value), "a date or time")
    raise ConfigError(f"{origin}: {kind} can't be the value of this option")


def _checked(given: Mapping[str, _Given]) -> Settings:
    """The settings from all that was given: each value by itself first, then how they go together."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name == "config":
            continue
        default = _Given(() if option.default is None else (option.default,), f"--{option.name}")
        source = given.get(option.name, default)
        try:
            read = [option.read(text) for text in source.texts]
        except ConfigError as error:
            raise ConfigError(f"{source.origin}: {error}") from None
        values[option.field] = tuple(read) if option.repeatable else (read[-1] if read else None)
    _check_brokers(values, given)
    _check_events(values, given)
    _check_arguments(values, given)
    settings = Settings(**values)
    _check_together(settings, given)
    _check_certificates(settings)
    return settings


def _check_events(values: dict[str, Any], given: Mapping[str, _Given]) -> None:
    from owsla.events import check_handlers

    try:
        check_handlers(values["events"])
    except ConfigError as error:
        raise ConfigError(f"{given['events'].origin}: {error}") from None


def _check_brokers(values: dict[str, Any], given: Mapping[str, _Given]) -> None:
    brokers: tuple[BrokerAddress | None, ...] = values["brokers"]
    addresses = tuple(address for address in brokers if address is not None)
    if addresses and len(addresses) < len(brokers):
        raise ConfigError(f"{given['broker'].origin}: either embedded or URLs, not both")
    path: Path | None = values["broker_password_file"]
    if path is not None:
        origin = given["broker-password-file"].origin
        if not addresses:
            raise ConfigError(f"{origin}: the embedded broker needs no password; give --broker too")
        try:
            password = read_file(path).decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{origin}: {path}: not UTF-8") from None
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None
        password = password.removesuffix("\n").removesuffix("\r")
        if not password or "\n" in password:
            raise ConfigError(f"{origin}: {path}: there must be one line in it, the password")
        addresses = tuple(replace(address, password=password) for address in addresses)
    if values["broker_ca"] is not None and not any(address.tls for address in addresses):
        raise ConfigError(f"{given['broker-ca'].origin}: no --broker is amqps://")
    values["brokers"] = addresses


def _check_together(settings: Settings, given: Mapping[str, _Given]) -> None:
    def refuse(names: Sequence[str], why: str) -> NoReturn:
        # Of options that don't go together the message names one that somebody set.
        origin = next((given[name].origin for name in names if name in given), f"--{names[0]}")
        raise ConfigError(f"{origin}: {why}")

    if (settings.cert is None) != (settings.key is None):
        missing = "--key" if settings.key is None else "--cert"
        refuse(("cert", "key"), f"{missing} must be given too")
    if "client-cert" in given and settings.client_ca is None:
        refuse(("client-cert",), "only has a meaning with --client-ca")
    undeliverable = settings.to_device + UNDELIVERABLE_SUFFIX
    if settings.publish_exchange is None:
        if "routing-key" in given:
            refuse(("routing-key",), "only has a meaning with --publish-exchange")
    else:
        for name in ("from-device", "from-device-argument"):
            if name in given:
                refuse((name,), "has no meaning with --publish-exchange: lines go there, not to a queue")
    if settings.publish_exchange is None and settings.from_device in (settings.to_device, undeliverable):
        both = f"from-device and to-device can't both use the queue {settings.from_device!r}"
        refuse(("from-device", "to-device"), both)
    if settings.max_line > settings.window_bytes:
        sizes = f"max-line ({settings.max_line} bytes) is more than window-bytes ({settings.window_bytes} bytes)"
        refuse(("max-line", "window-bytes"), sizes)
    if settings.dialect is None:
        no_login = "only has a meaning with a --dialect that logs devices in"
        if settings.login_checker is not None:
            refuse(("login-checker",), no_login)
        if "login-timeout" in given:
            refuse(("login-timeout",), no_login)
    ports = [("port", settings.interface, settings.port)]
    if settings.http is not None:
        ports.append(("http", *settings.http))
    if not settings.brokers:
        ports.append(("embedded-port", "127.0.0.1", settings.embedded_port))
    for (one, address, port), (other, another, same) in combinations(ports, 2):
        if port == same != 0 and _overlap(address, another):
            refuse((other, one), f"--{one} and --{other} can't both use port {port}")
    if settings.device_ack is not None:
        why_not = _acknowledgement_fault(settings.device_ack, settings.delimiter)
        if why_not:
            refuse(("device-ack", "delimiter"), why_not)


def _overlap(one: str, other: str) -> bool:
    """Whether two sockets on these addresses (empty: all) would be in each other's way on the same port."""
    if not one or not other or one == other:
        return True
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def _acknowledgement_fault(template: str, delimiter: bytes) -> str:
    """Why lines made from ``template`` could be torn by ``delimiter``; empty when they can't."""
    if delimiter == b"\n":
        return "there is a line's end in the template" if "\n" in template or "\r" in template else ""
    if any(byte in b"0123456789" for byte in delimiter):
        return "a delimiter with digits in it can't be told from {seq}"
    line = template.replace("{seq}", "0").encode()
    # With the delimiter added, since the end of one and the beginning of the other may be a delimiter too.
    return "" if (line + delimiter).index(delimiter) == len(line) else "the delimiter is in the template"


def _check_arguments(values: Mapping[str, Any], given: Mapping[str, _Given]) -> None:
    for name, (owned, consumed) in _ARGUMENTS.items():
        seen: set[str] = set()
        arguments: tuple[QueueArgument, ...] = values[_BY_NAME[name].field]
        for argument, value in arguments:
            if argument in seen:
                raise ConfigError(f"{given[name].origin}: {argument} is given twice")
            if argument in owned:
                raise ConfigError(f"{given[name].origin}: {argument} is {owned[argument]}")
            if consumed and (argument, value) == ("x-queue-type", "stream"):
                raise ConfigError(f"{given[name].origin}: a message that was taken from a stream stays there; use another type")
            seen.add(argument)


def _check_certificates(settings: Settings) -> None:
    # Here, so that this module doesn't need TLS to be read, and tls can use ConfigError.
    from owsla.tls.certificates import certificates_in, check_server_files

    if settings.cert is not None and settings.key is not None:
        check_server_files(settings.cert, settings.key)
    for path in (settings.client_ca, settings.broker_ca):
        if path is not None:
            certificates_in(path)


# -- twistd ------------------------------------------------------------------------------------------------------------


def _one_line(message: str) -> str:
    return " ".join(message.splitlines())


def exit_with(error: ConfigError, stream: TextIO | None = None) -> NoReturn:
    """Say what can't be used in one line on standard error, and end with status 1."""
    (sys.stderr if stream is None else stream).write(f"owsla: {_one_line(str(error))}\n")
    raise SystemExit(1)


class Options(usage.Options):
    """``twistd owsla``'s options; after :meth:`parseOptions`, ``settings`` is what makeService builds from.

    A user's error is one line on standard error and exit status 1. Twistd would print the whole help for a UsageError,
    with the error somewhere below it, so none is raised.
    """

    synopsis = "[options]"
    longdesc = (
        "Each option can also be set in the environment (OWSLA_MAX_LINE for --max-line; those that can be repeated "
        "separated by commas) and in the file of --config. The command line overrides the environment, and the "
        "environment the file. Times: 500ms, 30s, 30m, 1h; a bare number is seconds. Sizes: 64KiB, 16MiB; a bare number "
        "is bytes. A password in --broker is hidden from the process list once Owsla has started; one in "
        "--broker-password-file or OWSLA_BROKER is never in it."
    )
    # For the shell's completion, which reads this attribute; parseOptions doesn't.
    optParameters = [[option.name, None, None, option.help] for option in OPTIONS]

    settings: Settings
    arguments: Sequence[str]
    """What `settings` were read from, besides the environment: for worker processes, which read them again."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read ``options`` (or the process's arguments) and all other sources into ``settings``."""
        arguments = sys.argv[1:] if options is None else list(options)
        if "--_shell-completion" in arguments[-2:-1]:
            super().parseOptions(arguments)
            return
        hidden = scrub_command_line()
        try:
            pairs, _ = _split(arguments, ("help", "version", "check"))
            flags = [flag for flag, _ in pairs]
            if "--help" in flags:
                self.opt_help()
            if "--version" in flags:
                self.opt_version()
            if "--check" in flags:
                self.settings = load_settings([argument for argument in arguments if argument != "--check"])
                self._check()
            self.arguments = arguments
            self.settings = load_settings(arguments)
        except ConfigError as error:
            exit_with(error)
        if self.parent is not None and self.parent.get("pidfile"):
            remove_own_pid_file(self.parent["pidfile"])
        for option, instead in (("--broker", "--broker-password-file"), ("--events", "OWSLA_EVENTS")):
            if not hidden and any(flag == option and password_spans(os.fsencode(text)) for flag, text in pairs):
                _write_warning(f"{option}: its password can't be hidden from the process list here; use {instead}")

    def opt_version(self) -> NoReturn:
        """Say which Owsla this is."""
        print(f"owsla {__version__}")
        raise SystemExit(0)

    def _check(self) -> NoReturn:
        """Say that everything the settings name can be used, and exit. `ConfigError` if a dialect cannot use its own."""
        dialect = self.settings.dialect
        if dialect is not None:
            try:
                dialect.configured(self.settings)
            except ConfigError as error:
                raise ConfigError(f"--dialect: {error}") from None
        print("owsla: the settings, and the files that they name, can be used")
        raise SystemExit(0)

    def getUsage(self, width: int | None = None) -> str:
        """The help, grouped by subject; twistd's own would put 40 options in one list."""
        if not width:
            columns = os.environ.get("COLUMNS", "")
            width = int(columns) if columns.isdigit() else 80
        width = max(width, 60)
        lines = textwrap.wrap(self.longdesc, width)
        group = ""
        for option in OPTIONS:
            if option.group != group:
                group = option.group
                lines += ["", f"{group}:"]
            lines += _help_lines(f"--{option.name} {option.metavar}", _help_text(option), width)
            if option.name == "config":
                lines += _help_lines("--help", "Show this and exit.", width)
                lines += _help_lines("--version", "Show the version and exit.", width)
                lines += _help_lines(
                    "--check",
                    "Check the settings and the files that they name, change nothing, and exit: with 0, or with 1 and a line "
                    "that says what cannot be used.",
                    width,
                )
        return "\n".join(lines) + "\n"


def _help_text(option: Option) -> str:
    return f"{option.help} [{option.default_text}]"


def _help_lines(left: str, text: str, width: int) -> list[str]:
    indent = " " * 30
    wrapped = textwrap.wrap(text, width - len(indent), break_on_hyphens=False)
    left = f"  {left}"
    if len(left) <= len(indent) - 2:
        return [left.ljust(len(indent)) + wrapped[0], *(indent + line for line in wrapped[1:])]
    return [left, *(indent + line for line in wrapped)]
