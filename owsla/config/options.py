"""The table of options: name, default, reader and help text of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from owsla.config import readers
from owsla.config.doors import read_door
from owsla.config.framings import read_framing
from owsla.config.readers import LARGEST_COUNT, UNDELIVERABLE_SUFFIX

Reload: TypeAlias = Literal["yes", "new connections", "rolling restart", "restart"]
"""Parts of a process that follow another value of an option when the settings are read again: everything at once (`yes`),
connections that are accepted later (`new connections`), new worker processes (`rolling restart`), or a new process only
(`restart`). Without workers a rolling restart is a restart.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """An option: name and default as a user writes them, reader, and help text.

    If `default` is `None`, no text is read, and the help shows `shown`. Messages do not quote the value of a `secret` option.
    `needs` names options that take a restart and without whose change a change of this one makes no sense.
    """

    group: str
    name: str
    metavar: str
    default: str | None
    read: readers.Reader
    help: str
    shown: str = ""
    repeatable: bool = False
    secret: bool = False
    setting: str = ""
    flag: bool = False
    """True if a TOML file may have `true` or `false` in place of yes and no."""
    reload: Reload = "restart"
    needs: tuple[str, ...] = ()
    door: bool = False
    """True if a door can have a value of its own (`--listen`, `[[listen]]`)."""

    @property
    def restart(self) -> bool:
        """True if a running process does not follow another value."""
        return self.reload in ("rolling restart", "restart")

    @property
    def field(self) -> str:
        """Name of the field of `Settings`."""
        return self.setting or self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return "OWSLA_" + self.name.replace("-", "_").upper()

    @property
    def default_text(self) -> str:
        """Default as the help shows it."""
        return self.shown or self.default or "none"


_LISTEN, _TLS, _BROKER = "Device port", "Certificates", "Broker"
_MESSAGES, _LINES, _CONNECTIONS = "Messages", "Lines", "Connections"
_ORDER, _STOP, _WATCH = "Order and delivery", "Shutdown", "Monitoring"

# The upper bound of a line: RabbitMQ 4 refuses messages above 16 MiB unless told otherwise (max_message_size).
_LONGEST_LINE = 16 * readers.MIB

MOST_IN_BATCH: Final = 10_000
"""Lines in a batch at most. A batch is within one AMQP frame of 128 KiB, so that more than some 2,000 lines never fit."""

OPTIONS: tuple[Option, ...] = (
    Option(
        "General", "config", "FILE", None, readers.path,
        "TOML file with any of these options by name, as in max-line = 1000. The environment and the command line override it.",
    ),
    Option(
        "General", "watch", "TIME", "1m", readers.either("off", 0.0, readers.duration(zero=True)),
        "Interval at which the files of the settings, such as certificates, are checked for changes, which are then applied; 0 "
        "or off: only on SIGHUP, and after a failed reload until one succeeds.",
        reload="yes",
    ),
    Option(
        _LISTEN, "port", "PORT", "8883", readers.port,
        "TCP port for devices; 0 is any free port. unix:PATH is a unix socket.",
        door=True,
    ),
    Option(
        _LISTEN, "interface", "ADDRESS", "all", readers.either("all", "", readers.interface),
        "IP address to listen on; all is every IPv4 and IPv6 address, :: every IPv6 address only, and 0.0.0.0 every IPv4 "
        "address only.",
        door=True,
    ),
    Option(
        _LISTEN, "socket-mode", "MODE", "0660", readers.file_mode,
        "Permissions of a unix socket, in octal digits. To connect takes the permission to write.",
        door=True,
    ),
    Option(
        _LISTEN, "listen", "DOOR", None, read_door,
        "Another door for devices: tls:PORT, tcp:PORT (without TLS), unix:PATH or systemd:NAME, followed by options of its "
        r"own, as in 'tcp:9000:name=meters:framing=length\:2'. A backslash is written before a colon in a value. "
        "Options that it does not set are those of the first door. Repeat the option for several doors.",
        repeatable=True,
    ),
    Option(
        _LISTEN, "tls", "yes|no", "yes", readers.yes_or_no,
        "no: devices connect without TLS, over plain TCP or a unix socket.",
        door=True, flag=True,
    ),
    Option(
        _LISTEN, "proxy-protocol", "NETWORK", None, readers.either("off", None, readers.proxy_sender),
        "Network, as in 10.0.0.0/8, of load balancers that send a PROXY protocol header (version 1 or 2) before anything else; "
        "others are refused. unix: all peers of a unix socket. Repeat the option for several networks.",
        repeatable=True, door=True,
        reload="new connections",
    ),
    Option(
        _LISTEN, "proxy-identity", "WORD", "off", readers.proxy_identity,
        "With --proxy-protocol and without TLS: cn takes the common name of the client certificate that the proxy has verified "
        "as the device id (PP2_TYPE_SSL).",
        door=True,
    ),
    Option(
        _LISTEN, "workers", "COUNT", "1", readers.workers,
        "Processes that share the ports, 1 to 256; auto is one per core that this process may use, by its affinity and the CPU "
        "quota of its control group. Limits on connections and messages are per process.",
    ),
    Option(
        _TLS, "cert", "FILE", None, readers.path,
        "PEM file with the server certificate, followed by intermediate certificates. Needs --key. Repeat both options, in the "
        "same order, for certificates with other key types (RSA, ECDSA) or server names (SNI).",
        shown="a development certificate in --certs-dir", repeatable=True,
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "key", "FILE", None, readers.path, "PEM file with the private key, not encrypted. Needs --cert.",
        shown="a development key in --certs-dir", repeatable=True,
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "certs-dir", "FOLDER", "certs", readers.path,
        "Folder in which the development authority and certificate are created, once, without --cert.",
        reload="new connections",
    ),
    Option(
        _TLS, "client-ca", "FILE", "off", readers.either("off", None, readers.path),
        "PEM file with the authorities that sign device certificates; devices are then asked for a certificate.",
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "client-cert", "WORD", "require", readers.choice("require", "optional"),
        "With --client-ca: require refuses devices without a certificate, optional accepts them without an identity.",
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "device-id", "WORD", "cn", readers.choice("cn", "san-dns", "san-uri", "fingerprint"),
        "Part of the certificate that identifies the device: cn, san-dns, san-uri (the first entry) or fingerprint "
        "(SHA-256, hexadecimal).",
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "client-crl", "FILE", "off", readers.either("off", None, readers.path),
        "PEM file with certificate revocation lists of the authorities in --client-ca and of intermediate ones; devices with a "
        "revoked certificate are refused, and disconnected.",
        door=True,
        reload="yes", needs=("tls",),
    ),
    Option(
        _TLS, "crl-policy", "WORD", "hard", readers.choice("hard", "soft"),
        "With --client-crl, when a list is missing or has expired: hard refuses devices of its authority, soft accepts those "
        "that no list names.",
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _TLS, "ocsp-response", "FILE", None, readers.path,
        "DER file with an OCSP response, sent to devices with the certificate that it is for (OCSP stapling). Repeat the "
        "option for several certificates.",
        repeatable=True,
        door=True,
        reload="new connections", needs=("tls",),
    ),
    Option(
        _BROKER, "broker", "URL", "embedded", readers.broker,
        "amqp://user:password@host:port/vhost or amqps://...; user, password and vhost are percent-encoded. Repeat the option "
        "for several hosts of a cluster. embedded starts a broker in memory, to try Owsla out.",
        repeatable=True, secret=True, setting="brokers",
        reload="new connections",
    ),
    Option(
        _BROKER, "broker-password-file", "FILE", None, readers.path,
        "File whose only line is the password for the broker, read at each login; it replaces the password in every --broker.",
        reload="yes", needs=("broker",),
    ),
    Option(
        _BROKER, "broker-ca", "FILE", "system", readers.either("system", None, readers.path),
        "PEM file with the authorities to trust for amqps://; system is the trust store of the operating system.",
        reload="new connections", needs=("broker",),
    ),
    Option(
        _BROKER, "broker-cert", "FILE", None, readers.path,
        "PEM file with Owsla's certificate for amqps://, followed by intermediate certificates. Needs --broker-key. Where "
        "--broker has no user, Owsla logs in with it (SASL EXTERNAL).",
        reload="new connections", needs=("broker",),
    ),
    Option(
        _BROKER, "broker-key", "FILE", None, readers.path,
        "PEM file with the private key of --broker-cert, not encrypted.",
        reload="new connections", needs=("broker",),
    ),
    Option(
        _BROKER, "broker-management", "URL", "off", readers.either("off", None, readers.management),
        "http://host:port or https://host:port of RabbitMQ's management plugin (default ports: 15672, 15671): warn of policies "
        "that break a promise. User and password are those of --broker, unless the URL has others.",
        secret=True,
        reload="yes", needs=("broker",),
    ),
    Option(
        _BROKER, "heartbeat", "TIME", "30s", readers.heartbeat,
        "AMQP heartbeat, 1s to 1h. A broker that has stopped answering is noticed within one and a half times this interval.",
        reload="rolling restart",
    ),
    Option(
        _BROKER, "embedded-port", "PORT", "5672", readers.number(0, 65535, "port number"),
        "Port of the embedded broker, on 127.0.0.1 only (::1 where there is no IPv4); 0 is any free port.",
    ),
    Option(
        _BROKER, "embedded-memory", "SIZE", "512MiB", readers.size(readers.MIB, 1024 * readers.GIB),
        "Size of the messages in the embedded broker at which it blocks publishers.",
        reload="yes",
    ),
    Option(
        _MESSAGES, "from-device", "QUEUE", "from_device", readers.queue_name, "Queue for lines from devices.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "publish-exchange", "NAME", "off", readers.either("off", None, readers.exchange_name),
        "Existing exchange to publish lines to, in place of the queue --from-device.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "routing-key", "TEMPLATE", "{connection_id}", readers.routing_key,
        "With --publish-exchange: routing key of lines, with the placeholders {connection_id}, {device_id} (the connection id "
        "if the device has no id), {node} and {shard:N}, a hash of the device id from 0 to N-1.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "to-device", "QUEUE", "to_device", readers.queue_name,
        f"Queue of messages to devices; undeliverable messages go to QUEUE{UNDELIVERABLE_SUFFIX}.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "from-device-argument", "NAME=VALUE", None, readers.queue_argument,
        "Argument for the declaration of the from-device queue, such as x-queue-type=quorum; a number, true, false or text.",
        repeatable=True, setting="from_device_arguments",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "to-device-argument", "NAME=VALUE", None, readers.queue_argument, "The same for the to-device queue.",
        repeatable=True, setting="to_device_arguments",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "undeliverable-argument", "NAME=VALUE", None, readers.queue_argument,
        f"The same for the queue QUEUE{UNDELIVERABLE_SUFFIX}.",
        repeatable=True, setting="undeliverable_arguments",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "node-queue-argument", "NAME=VALUE", None, readers.queue_argument,
        "The same for the queue of each node.",
        repeatable=True, setting="node_queue_arguments",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "seq-header", "NAME", "from_device_seq", readers.header_name,
        "Header with the number of a line in its connection, from 0.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "seq-type", "WORD", "int64", readers.choice("int64", "int32"),
        "Type of that header: int64 is the field type l of AMQP; int32 is I, for client libraries that cannot read l in "
        "a table. A number above 2147483647 is always l.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "delivery-mode", "1|2", "2", readers.number(1, 2, "delivery mode"),
        "2: the broker writes lines to disk; 1: lines may be lost when the broker restarts.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "consumers", "COUNT", "8", readers.number(1, 64), "Consumers of the to-device queue, 1 to 64.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "prefetch", "COUNT", "500", readers.number(1, 65535),
        "Unacknowledged messages per consumer, 1 to 65535.",
        reload="rolling restart",
    ),
    Option(
        _MESSAGES, "window", "COUNT", "10000", readers.number(1, LARGEST_COUNT),
        "Maximum number of lines of a door that are published and unconfirmed; at the limit, reading from its devices pauses.",
        reload="yes",
    ),
    Option(
        _MESSAGES, "window-bytes", "SIZE", "16MiB", readers.size(readers.KIB, 64 * readers.GIB), "The same limit in bytes.",
        reload="yes",
    ),
    Option(
        _MESSAGES, "undeliverable-limit", "COUNT", "100000", readers.number(1, 1_000_000_000),
        "Maximum length of the undeliverable queue, in messages.",
        reload="rolling restart",
    ),
    Option(
        _LINES, "framing", "FRAMING", "lines", read_framing,
        "Form of messages on the connection: lines; length:N[:little][:inclusive], a length of N bytes (1, 2, 4 or 8) before "
        "each; netstring; octet-counting (RFC 6587); fixed:N, all of N bytes; between:START:END, bytes in hexadecimal digits.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _LINES, "max-line", "SIZE", "16384", readers.size(1, _LONGEST_LINE),
        "Maximum length of a line in bytes, without its delimiter, in both directions; for longer lines from a device "
        "see --on-long.",
        door=True,
        reload="yes", needs=("framing",),
    ),
    Option(
        _LINES, "on-long", "WORD", "close", readers.choice("close", "skip"),
        "When a device sends a line longer than --max-line: close its connection, or skip the line, which is then not "
        "published and not numbered.",
        door=True,
        reload="yes",
    ),
    Option(
        _LINES, "delimiter", "TEXT", r"\n", readers.delimiter,
        r"Delimiter at the end of a line: 1 to 16 bytes, with the escapes \n, \r, \t, \0, \\ and \xHH. With \n, a \r before it "
        r"is removed, and lines to devices end with \r\n; any other delimiter is used unchanged in both directions.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _LINES, "device-ack", "TEXT", "off", readers.either("off", None, readers.acknowledgement),
        "Line that acknowledges lines to the device, as in 'ACK {seq}': the broker has confirmed all lines up to number {seq}, "
        "which counts from 0.",
        door=True,
        reload="new connections", needs=("delimiter", "framing"),
    ),
    Option(
        _LINES, "max-rate", "NUMBER", "off", readers.either("off", None, readers.rate("lines")),
        "Lines per second from one connection; reading from faster connections is slowed down.",
        door=True,
        reload="yes",
    ),
    Option(
        _LINES, "linger", "TIME", "2ms", readers.duration(zero=True, longest=1.0),
        "Above some 3,000 lines per second, a process waits about this long at most to read and publish lines together, which "
        "saves CPU time here and in the broker; 0: never.",
        reload="yes",
    ),
    Option(
        _LINES, "batch", "NUMBER", "off", readers.either("off", 1, readers.number(1, MOST_IN_BATCH, "number of lines")),
        "Maximum number of lines in a message: lines with the same routing key are published together, as MessagePack. "
        "Back ends have to read batches.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _LINES, "batch-delay", "TIME", "5ms", readers.duration(zero=True, longest=10.0),
        "With --batch: time that a line waits for others at most; 0: only lines that are read together share a message.",
        door=True,
        reload="yes",
    ),
    Option(
        _LINES, "dialect", "NAME", "lines", readers.either("lines", None, readers.dialect),
        "Protocol of devices: lines publishes every line; login and turnstile come with Owsla; others are named by their "
        "plugin name, or as package.module:Name.",
        door=True,
        reload="rolling restart",
    ),
    Option(
        _LINES, "login-checker", "KIND:WHERE", "off", readers.login_checker,
        "Credentials for the login dialect: file:PATH, with a line id:token per device, or another credentials checker of "
        "Twisted.",
        secret=True,
        door=True,
        reload="new connections", needs=("dialect",),
    ),
    Option(
        _LINES, "login-timeout", "TIME", "10s", readers.duration(zero=False),
        "Time limit for the login of a device with the login dialect.",
        door=True,
        reload="new connections", needs=("dialect",),
    ),
    Option(
        _CONNECTIONS, "max-connections", "COUNT", "auto", readers.either("auto", None, readers.number(1, LARGEST_COUNT)),
        "Maximum number of connected devices; further connections wait to be accepted. auto is as many as the limit on open "
        "files allows.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "max-handshakes", "COUNT", "512", readers.number(1, LARGEST_COUNT),
        "Concurrent TLS handshakes. Connections that have sent nothing do not count: four times as many are allowed, at most "
        "half of --max-connections; then the oldest is closed.",
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "max-per-address", "COUNT", "off", readers.either("off", None, readers.number(1, LARGEST_COUNT)),
        "Connections from one IPv4 address, or one IPv6 network (/64); further connections are closed at once. Devices behind "
        "one NAT share an address.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "max-connect-rate", "NUMBER", "off", readers.either("off", None, readers.rate("connections")),
        "New connections per second from one IPv4 address, or one IPv6 network (/64); further connections are closed at once. "
        "Devices behind one NAT share an address.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "max-flaps", "COUNT", "off", readers.either("off", None, readers.number(1, LARGEST_COUNT)),
        "Connections of one identified device within a minute; beyond that, its new connections are closed for a minute.",
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "deny", "FILE", "off", readers.either("off", None, readers.path),
        "File with a line for each address, certificate or device that is refused, and disconnected: address NETWORK, serial "
        "HEX or device ID, and until TIME if the line has an end.",
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "handshake-timeout", "TIME", "15s", readers.duration(zero=False),
        "Time limit for the TLS handshake.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "idle-timeout", "TIME", "30m", readers.either("off", 0.0, readers.duration(zero=True)),
        "Time after which a connection without lines in either direction is closed; 0 or off: never.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "on-duplicate", "WORD", "keep", readers.choice("keep", "replace"),
        "When an identified device connects a second time, to any node: keep both connections, or replace the first.",
        reload="new connections",
    ),
    Option(
        _CONNECTIONS, "write-buffer", "SIZE", "64KiB", readers.size(1, readers.GIB),
        "Maximum size of the data that waits for a slow device; beyond that, the device is disconnected.",
        door=True,
        reload="yes",
    ),
    Option(
        _CONNECTIONS, "write-timeout", "TIME", "30s", readers.duration(zero=False),
        "Time that lines wait for a device that does not read; then the device is disconnected.",
        reload="yes",
    ),
    Option(
        _ORDER, "gap-timeout", "TIME", "2s", readers.duration(zero=True),
        "Time to wait for a missing to_device_seq before it is skipped.",
        reload="yes",
    ),
    Option(
        _ORDER, "reorder-limit", "COUNT", "64", readers.number(1, 65535),
        "Maximum number of messages per device that wait for a missing one.",
        reload="yes",
    ),
    Option(
        _ORDER, "device-timeout", "TIME", "1s", readers.duration(zero=False, longest=600.0),
        "Time to wait for an answer of the nodes which of them has the device of a message; then the message is undeliverable.",
        reload="yes",
    ),
    Option(
        _ORDER, "fanout-rate", "NUMBER", "1000", readers.rate("devices"),
        "Devices per second and node to which messages for many devices (owsla_to) are written.",
        reload="yes",
    ),
    Option(
        _ORDER, "node-grace", "TIME", "10s", readers.duration(zero=True),
        "Time without the broker after which a node counts as dead and messages for its devices become undeliverable.",
        reload="rolling restart",
    ),
    Option(
        _STOP, "drain-timeout", "TIME", "30s", readers.duration(zero=True),
        "After SIGTERM: time limit for finishing all work in progress.",
        reload="yes",
    ),
    Option(
        _STOP, "drain-spread", "TIME", "auto", readers.either("auto", None, readers.duration(zero=True)),
        "After SIGTERM: time over which disconnecting the devices is spread. auto: 50ms per device, 10s at most.",
        reload="yes",
    ),
    Option(
        _WATCH, "events", "HANDLER", "console", readers.event_handler,
        "Handler of events, such as devices that connect: console (the log), json:FILE, json:- (standard output), "
        "database:URL (sqlite:///PATH or postgresql://...), amqp (presence, to the queue connection_events).",
        repeatable=True, secret=True,
    ),
    Option(
        _WATCH, "log-format", "WORD", "text", readers.choice("text", "json"),
        "Format of the log: text, or json, an object a line. twistd's --syslog and --logger have formats of their own.",
    ),
    Option(
        _WATCH, "trace-lines", "SHARE", "off", readers.either("off", 0.0, readers.share),
        "Share of the lines that get a trace context (header traceparent), such as 0.01; a random sample.",
        reload="yes",
    ),
    Option(
        _WATCH, "http", "[ADDRESS:]PORT", "off", readers.either("off", None, readers.http_address),
        "Serve metrics (/metrics), health (/healthz, /readyz) and the supervision tree (/tree) over HTTP. The default address "
        "is 127.0.0.1; all is every interface.",
    ),
    Option(
        _WATCH, "http-token-file", "FILE", "off", readers.either("off", None, readers.path),
        "File whose only line is a token of at least 16 characters: --http serves the API, which the page uses, to those who "
        "send it (Authorization: Bearer).",
        reload="yes", needs=("http",),
    ),
    Option(
        _WATCH, "http-read-token-file", "FILE", "off", readers.either("off", None, readers.path),
        "The same for clients that may read, and neither act nor trace devices.",
        reload="yes", needs=("http",),
    ),
    Option(
        _WATCH, "control", "PATH", None, readers.either("off", "off", readers.path),
        "Unix socket of the API and the page, for the user of this process only (mode 0600); off: none. Commands such as owsla "
        "devices use it. The default one is left out, with a warning, if it cannot be had.",
        shown="owsla.sock",
    ),
)  # fmt: skip

BY_NAME: Final = {option.name: option for option in OPTIONS}
BY_VARIABLE: Final = {option.variable: option for option in OPTIONS}
_NODE_QUEUE = "set by Owsla: a node returns to its queue after an outage, and is its only consumer"
_CONSUMED = "a consumed message stays in a stream; use another queue type"
OWN_ARGUMENTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "from-device-argument": ({}, ""),
    "to-device-argument": ({}, _CONSUMED),
    "undeliverable-argument": (
        {"x-max-length": "set by --undeliverable-limit"},
        "a stream cannot have the limit of --undeliverable-limit; use another queue type",
    ),
    "node-queue-argument": ({"x-expires": _NODE_QUEUE, "x-single-active-consumer": _NODE_QUEUE}, _CONSUMED),
}
"""Per option with queue arguments: arguments that users cannot set, with the reason; and the reason why the queue cannot be a
stream, if it cannot."""
