"""The file of `--deny`: addresses, certificates and devices that may not connect. Pure.

    # One entry a line. Space around words, blank lines and comments are ignored.
    address 192.0.2.7
    address 2001:db8:1:2::/64           # the network of a subscriber
    serial  01:AB                       # of the certificate of a device
    device  meter-4711
    device  "meter 4711 \\"blue\\""      # in quotes: an id with a space, a quote or a backslash, or that begins with # or '
    address 198.51.100.0/24 until 2026-12-31T00:00:00Z

Each line denies on its own: of two lines for the same thing the one with the later end counts. From its end on, a line is void
(by the wall clock, which may be wrong after the start of a machine: the time is compared anew at each look).
"""

from __future__ import annotations

import io
import re
import socket
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from owsla.errors import ConfigError
from owsla.runtime.files import ReadFile

KINDS: Final = ("address", "serial", "device")
"""First words of lines."""

LONGEST_DEVICE_ID: Final = 255
"""Bytes of a device id. No connection has a longer one."""

BATCH: Final = 100
"""Lines that are read at a stretch: some tenths of a millisecond."""

REST: Final = 0.0001
"""Seconds of sleep after that many lines. A reload reads the file in a thread, and the reactor waits up to 5 ms for the lock of
the interpreter at each system call, unless this thread gives it up before. With a list of 100,000 lines a turn of the reactor
with 40 system calls took 230 ms, and takes 5 to 15 ms with this. It makes the start with such a list 0.2 s longer."""

Networks: TypeAlias = Mapping[int, Mapping[int, float]]
"""Ends of networks by the length of their prefix, and by the prefix as a number: a look takes a few dictionaries."""

_BOM: Final = b"\xef\xbb\xbf"
_MAPPED: Final = bytes(10) + b"\xff\xff"  # prefix of IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2)
_WORD: Final = re.compile(r'\s*(?:(#.*)|"((?:[^"\\]|\\["\\])*)"(?=\s|$)|([^\s"\']\S*))')
_ESCAPED: Final = re.compile(r'\\(["\\])')
_SERIAL: Final = re.compile(r"-?(?:0[xX])?(?:[0-9A-Fa-f]+|[0-9A-Fa-f]{1,2}(?::[0-9A-Fa-f]{2})+)")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class DenyList:
    """Devices, certificates and addresses that may not connect, each with its end in seconds since the epoch, or infinity."""

    devices: Mapping[str, float] = field(default_factory=dict)
    serials: Mapping[int, float] = field(default_factory=dict)
    """Serial numbers of certificates."""
    ipv4: Networks = field(default_factory=dict)
    ipv6: Networks = field(default_factory=dict)
    ends: tuple[float, ...] = ()
    """Ends of all entries that have one, in order."""

    def __bool__(self) -> bool:
        """Return whether there are entries, those that are void included."""
        return bool(self.devices or self.serials or self.ipv4 or self.ipv6)

    @property
    def entries(self) -> int:
        """Number of entries, those that are void included."""
        return len(self.devices) + len(self.serials) + self.addresses

    @property
    def addresses(self) -> int:
        """Number of addresses and networks."""
        return sum(map(len, self.ipv4.values())) + sum(map(len, self.ipv6.values()))

    def in_force(self, now: float) -> int:
        """Return the number of entries that are not void. `now` is in seconds since the epoch."""
        return self.entries - bisect_right(self.ends, now)

    def denies_device(self, device_id: str, now: float) -> bool:
        """Return whether a device id is denied."""
        return self.devices.get(device_id, now) > now

    def denies_serial(self, serial: int, now: float) -> bool:
        """Return whether certificates with a serial number are denied."""
        return self.serials.get(serial, now) > now

    def denies_address(self, host: str, now: float) -> bool:
        """Return whether an IP address is denied. Others, such as the path of a unix socket, never are."""
        if not self.ipv4 and not self.ipv6:
            return False
        networks, bits = self.ipv4, 32
        try:
            if ":" not in host:
                packed = socket.inet_pton(socket.AF_INET, host)
            else:
                packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
                if packed.startswith(_MAPPED):
                    packed = packed[12:]
                else:
                    networks, bits = self.ipv6, 128
        except OSError:
            return False
        number = int.from_bytes(packed)
        return any(ends.get(number >> bits - length, now) > now for length, ends in networks.items())


def read_deny_list(path: Path, read: ReadFile) -> DenyList:
    """Return the deny list in a file. Raise `ConfigError` with the path and the number of a wrong line."""
    try:
        return parse_deny_list(read(path))
    except _WrongLine as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_deny_list(content: bytes) -> DenyList:
    """Return the deny list in the content of a file. Raise `ConfigError` with the number of a wrong line."""
    devices: dict[str, float] = {}
    serials: dict[int, float] = {}
    ipv4: dict[int, dict[int, float]] = {}
    ipv6: dict[int, dict[int, float]] = {}
    for number, line in enumerate(io.StringIO(_text(content), newline="\n"), 1):
        if number % BATCH == 0:
            time.sleep(REST)
        try:
            words = _words(line)
            if not words:
                continue
            kind, value, end = _entry(words)
            if kind == "address":
                version, length, prefix = _network(value)
                _deny((ipv4 if version == 4 else ipv6).setdefault(length, {}), prefix, end)
            elif kind == "serial":
                _deny(serials, _serial(value), end)
            else:
                _deny(devices, _device(value), end)
        except _Fault as fault:
            raise _WrongLine(f"line {number}: {fault}") from None
    tables: Sequence[Mapping[Any, float]] = (devices, serials, *ipv4.values(), *ipv6.values())
    ends = tuple(sorted(end for table in tables for end in table.values() if isfinite(end)))
    return DenyList(devices, serials, ipv4, ipv6, ends)


class _Fault(Exception):
    """A fault of a line."""


class _WrongLine(ConfigError):
    """A fault of a file, with the number of its line."""


def _deny(table: dict[Any, float], key: object, end: float) -> None:
    table[key] = max(table.get(key, end), end)


def _text(content: bytes) -> str:
    content = content.removeprefix(_BOM)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise _WrongLine(f"line {number}: this is not text in UTF-8") from None
    if "\0" in text:
        raise _WrongLine(f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}: this is not a text file")
    return text


def _words(line: str) -> list[str]:
    """Return the words of a line, without quotes and comment."""
    if '"' not in line and "'" not in line and "#" not in line:
        return line.split()
    words = []
    position = 0
    line = line.rstrip()
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None:
            raise _Fault('an id in quotes is in double quotes, with \\" for a quote in it, and \\\\ for a backslash')
        position = match.end()
        comment, quoted, word = match.groups()
        if comment is not None:
            break
        words.append(word if quoted is None else _ESCAPED.sub(r"\1", quoted))
    return words


def _entry(words: list[str]) -> tuple[str, str, float]:
    """Return the kind, the value and the end of an entry."""
    kind = words[0]
    if kind not in KINDS:
        raise _Fault(f"{_shown(kind)} is none of {', '.join(KINDS)}")
    if len(words) == 1 or (len(words) == 3 and words[1] == "until"):
        raise _Fault(f"after {kind} its value is missing")
    if len(words) == 2:
        return kind, words[1], inf
    if words[2] != "until":
        hint = "; put an id with spaces into double quotes" if kind == "device" else ""
        raise _Fault(f"after the value there may be an end, as in until 2026-12-31T00:00:00Z, but not {_shown(words[2])}{hint}")
    if len(words) != 4:
        raise _Fault("after until there must be one time, as in 2026-12-31T00:00:00Z")
    return kind, words[1], _end(words[3])


def _end(text: str) -> float:
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        pass
    raise _Fault(f"{_shown(text)} is not a time with its offset from UTC (RFC 3339), as in 2026-12-31T00:00:00Z")


def _device(text: str) -> str:
    if not text or not text.isprintable() or len(text.encode()) > LONGEST_DEVICE_ID:
        raise _Fault(f"a device id is 1 to {LONGEST_DEVICE_ID} bytes of printable text")
    return text


def _serial(text: str) -> int:
    if not _SERIAL.fullmatch(text):
        raise _Fault(f"{_shown(text)} is not a serial number in hexadecimal, as in 01AB or 01:AB")
    return int(text.replace(":", ""), 16)


def _network(text: str) -> tuple[int, int, int]:
    """Return the IP version, the length of the prefix, and the prefix as a number."""
    address, slash, given = text.partition("/")
    version, bits = (6, 128) if ":" in address else (4, 32)
    try:
        packed = socket.inet_pton(socket.AF_INET6 if version == 6 else socket.AF_INET, address)
    except (OSError, ValueError):
        raise _Fault(f"{_shown(text)} is not an IP address or network, as in 192.0.2.7 or 192.0.2.0/24") from None
    length = bits
    if slash:
        length = int(given) if re.fullmatch("0|[1-9][0-9]{0,2}", given) else -1
        if not 0 <= length <= bits:
            raise _Fault(f"{_shown(text)}: the length of the prefix must be a number from 0 to {bits}")
    prefix, rest = divmod(int.from_bytes(packed), 1 << bits - length)
    if rest:
        _refuse_host_bits(text, version, packed, length)
    if version == 6 and length >= 96 and packed.startswith(_MAPPED):
        return 4, length - 96, prefix & (1 << length - 96) - 1
    return version, length, prefix


def _refuse_host_bits(text: str, version: int, packed: bytes, length: int) -> NoReturn:
    bits = 8 * len(packed)
    network = int.from_bytes(packed) >> bits - length << bits - length
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    shown = socket.inet_ntop(family, network.to_bytes(len(packed)))
    raise _Fault(f"{_shown(text)} is an address in a network; the network is {shown}/{length}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
