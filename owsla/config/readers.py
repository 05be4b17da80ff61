"""Readers of option values: each turns text into a value, or raises `ConfigError`.

The message of the error continues the text "--option: ".
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.cred.checkers import ICredentialsChecker

from owsla.config.addresses import BrokerAddress, ManagementAddress
from owsla.config.settings import ProxySender, QueueArgument
from owsla.dialects import Dialect, find_dialect
from owsla.dialects.login import ConfiguredChecker, make_login_checker
from owsla.errors import ConfigError
from owsla.events import HandlerSpec, handler_spec
from owsla.routing_key import RoutingKey
from owsla.runtime.cpus import MOST_WORKERS, Cpus, usable_cpus
from owsla.runtime.sockets import loopback

UNDELIVERABLE_SUFFIX: Final = ".undeliverable"
"""Added to the name of the to-device queue: the queue of undeliverable messages."""

_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)?", re.ASCII | re.IGNORECASE)
_OCTAL = re.compile(r"[0-7]{1,4}", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_LONGEST = 30 * 24 * 3600.0  # seconds; a longer time is most likely a mistake in the unit
LARGEST_COUNT: Final = 10_000_000

Reader = Callable[[str], object]
"""A function that reads the text of an option. It raises `ConfigError`."""


def number(low: int, high: int, what: str = "number") -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            raise ConfigError(f"{text!r} is not a {what} ({low} to {high})")
        return int(text)

    return read


def size(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of sizes from `low` to `high`, in bytes."""

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
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} byte" + "s" * (size != 1)


def duration(*, zero: bool, longest: float = _LONGEST) -> Callable[[str], float]:
    """Return a reader of times in seconds. `zero`: 0 is allowed."""

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


def workers(text: str) -> int | Cpus:
    """Read a number of worker processes; auto stands for the CPUs that this process may use."""
    return usable_cpus() if text == "auto" else number(1, MOST_WORKERS)(text)


def heartbeat(text: str) -> int:
    """Read a heartbeat interval in seconds. AMQP's connection.tune has whole seconds."""
    seconds = duration(zero=True)(text)
    if seconds != int(seconds) or not 1 <= seconds <= 3600:
        raise ConfigError(f"{text!r} is not a whole number of seconds (1 to 3600)")
    return int(seconds)


def rate(what: str) -> Callable[[str], float]:
    """Return a reader of rates, of `what` per second."""

    def read(text: str) -> float:
        if not _DECIMAL.fullmatch(text) or float(text) == 0:
            raise ConfigError(f"{text!r} is not a number of {what} a second (more than 0)")
        return float(text)

    return read


def share(text: str) -> float:
    """Read a share of a whole, from 0 to 1."""
    if not _DECIMAL.fullmatch(text) or float(text) > 1:
        percent = text.removesuffix("%").rstrip()
        meant = _DECIMAL.fullmatch(percent) and percent != text and float(percent) <= 100
        hint = f"; did you mean {float(percent) / 100:.10g}?" if meant else ""
        raise ConfigError(f"{text!r} is not a share (0 to 1){hint}")
    return float(text)


def choice(*words: str) -> Callable[[str], str]:
    """Return a reader of one of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ConfigError(f"{text!r} is not {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read


def either(word: str, value: object, reader: Reader) -> Reader:
    """Return a reader of `word`, which stands for `value`, or else of what `reader` reads.

    The word is the default as the help shows it. So the command line can undo a setting of a file.
    """
    return lambda text: value if text == word else reader(text)


def interface(text: str) -> str:
    """Read an IP address of this machine."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address of this machine, nor 'all'") from None


def port(text: str) -> int | Path:
    """Read a port number, or `unix:PATH`."""
    if text.startswith("unix:"):
        return path(text.removeprefix("unix:"))
    return number(0, 65535, "port number")(text)


def file_mode(text: str) -> int:
    """Read permissions of a file, in octal digits."""
    if not _OCTAL.fullmatch(text):
        raise ConfigError(f"{text!r} is not the permissions of a file in octal digits, as in 0660")
    return int(text, 8)


def yes_or_no(text: str) -> bool:
    """Read yes or no."""
    return choice("yes", "no")(text) == "yes"


def proxy_identity(text: str) -> bool:
    """Read cn or off."""
    return choice("off", "cn")(text) == "cn"


def proxy_sender(text: str) -> ProxySender:
    """Read a network, or the word unix."""
    if text == "unix":
        return "unix"
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a network, as in 10.0.0.0/8: {error}") from None


def http_address(text: str) -> tuple[str, int]:
    """Read `[ADDRESS:]PORT`. Without an address it is that of `loopback`; `all` is returned as an empty address."""
    address, colon, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise ConfigError(f"{text!r}: an IPv6 address is written in brackets, as in [::1]:9100")
    port_number = number(0, 65535, "port number")(port)
    if not colon:
        return loopback(), port_number
    return ("" if address == "all" else interface(address)), port_number


def path(text: str) -> Path:
    """Read a file name."""
    if not text or "\0" in text:
        raise ConfigError(f"{text!r} is not a file name")
    return Path(text)


def _short_string(text: str, what: str, limit: int) -> str:
    try:
        encoded = text.encode()
    except UnicodeError:
        raise ConfigError(f"{text!r} is not UTF-8") from None
    if not 1 <= len(encoded) <= limit:
        raise ConfigError(f"{what} is 1 to {limit} bytes of UTF-8, not {len(encoded)}")
    return text


def queue_name(text: str) -> str:
    """Read the name of a queue that Owsla declares."""
    # An AMQP short string is at most 255 bytes (AMQP 0-9-1, 4.2.5.3); names of other queues are this one and a suffix.
    _short_string(text, "a queue's name", 255 - len(UNDELIVERABLE_SUFFIX))
    if text.startswith("amq."):
        raise ConfigError(f"{text!r}: names that begin with amq. are reserved for the broker")
    return text


def header_name(text: str) -> str:
    """Read the name of the header with a line's number."""
    if text in ("connection_id", "device_id"):
        raise ConfigError(f"{text!r} is the name of another header")
    return _short_string(text, "a header's name", 255)


def exchange_name(text: str) -> str:
    """Read the name of an exchange."""
    return _short_string(text, "an exchange's name", 255)


_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)


def queue_argument(text: str) -> QueueArgument:
    """Read an argument of queue.declare, `NAME=VALUE`. A value in double quotes is text."""
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


def delimiter(text: str) -> bytes:
    """Read the delimiter of lines, with escapes."""
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


def acknowledgement(text: str) -> str:
    """Read the template of the line that acknowledges lines of a device."""
    try:
        text.encode()
    except UnicodeError:
        raise ConfigError(f"{text!r} is not UTF-8") from None
    if "{seq}" not in text:
        raise ConfigError(f"{text!r} has no {{seq}} in it, as in 'ACK {{seq}}'")
    return text


def routing_key(text: str) -> RoutingKey:
    """Read a template of routing keys."""
    return RoutingKey(text)


def event_handler(text: str) -> HandlerSpec:
    """Read an event handler."""
    return handler_spec(text)


def dialect(text: str) -> type[Dialect]:
    """Read the name of a dialect, and import it."""
    return find_dialect(text)


def login_checker(text: str, folder: Path | None = None) -> ICredentialsChecker | None:
    """Read a credentials checker, whose file is relative to `folder`; "off" is none."""
    if text == "off":
        return None
    checker: Any = ConfiguredChecker(text, make_login_checker(text, folder))
    return checker  # type: ignore[no-any-return]


def broker(text: str) -> BrokerAddress | None:
    """Read the URL of a broker; `None` stands for the embedded broker."""
    return None if text == "embedded" else BrokerAddress.parse(text)


def management(text: str) -> ManagementAddress:
    """Read the URL of the management API of the broker."""
    return ManagementAddress.parse(text)
