"""Routing keys of lines: a template that is filled once for each connection. Pure.

    lines.{shard:8}      lines.0 … lines.7, by a hash of the device
    {device_id}          the device id if the device proved one, or else its connection id
    {connection_id}      the UUID of the connection
    {node}               the first 8 hex digits of that UUID: the node that holds the connection

A shard is the CRC-32 (that of zlib, PNG and Ethernet) of the device id as UTF-8, or of the connection id if there is none,
modulo the number of shards. The hash is part of the contract: back ends compute it, too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final

from .errors import ConfigError

LONGEST_KEY: Final = 255
"""Bytes of a routing key at most: AMQP 0-9-1 encodes it as a short string."""

MOST_SHARDS: Final = 65536
"""Shards at most. That is far more queues than a broker holds well, so a larger number is a typing error."""

CONNECTION_ID: Final = 36
"""Bytes of a connection id: a UUID in its canonical text form."""

NODE: Final = 8
"""Bytes of a connection id that name its node."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_SHARDS = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)

_Part = Callable[[bytes, bytes], bytes]
"""Function from the connection id and the device id, or the connection id once more if there is none, to a part of the key."""


class KeyTooLong(ValueError):
    """Routing key longer than AMQP allows, because of a long device id."""


class RoutingKey:
    """Template of routing keys."""

    __slots__ = ("_fixed", "_parts", "text")

    def __init__(self, text: str) -> None:
        """Raise `ConfigError` for a template that cannot be used."""
        self.text = text
        parts: list[bytes | _Part] = []
        size = position = 0
        for match in _PLACEHOLDER.finditer(text):
            literal = _literal(text[position : match.start()])
            part, longest = _placeholder(match[1])
            parts += [literal, part]
            size += len(literal) + longest
            position = match.end()
        literal = _literal(text[position:])
        parts.append(literal)
        size += len(literal)
        if size > LONGEST_KEY:
            raise ConfigError(f"the routing key would be {size} bytes long, and AMQP allows {LONGEST_KEY}")
        self._parts = [part for part in parts if part]
        self._fixed: bytes | None = literal if len(parts) == 1 else None

    @property
    def fixed(self) -> bool:
        """Return whether all connections have the same key."""
        return self._fixed is not None

    def fill(self, connection_id: bytes, device_id: str | None) -> bytes:
        """Return the key for the lines of a connection. Raise `KeyTooLong` if the device id makes it too long."""
        if self._fixed is not None:
            return self._fixed
        device = connection_id if device_id is None else device_id.encode()
        key = b"".join([part if isinstance(part, bytes) else part(connection_id, device) for part in self._parts])
        if len(key) > LONGEST_KEY:
            raise KeyTooLong(f"the routing key would be {len(key)} bytes long, and AMQP allows {LONGEST_KEY}")
        return key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RoutingKey) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"RoutingKey({self.text!r})"


def shard(device: bytes, shards: int) -> int:
    """Return the shard of a device, counted from 0. `device` is its device id, or else its connection id."""
    return zlib.crc32(device) % shards


def _literal(text: str) -> bytes:
    if "{" in text or "}" in text:
        raise ConfigError("a brace belongs to a placeholder, such as {device_id}")
    try:
        return text.encode()
    except UnicodeError:
        raise ConfigError(f"{text!r} is not UTF-8") from None


def _placeholder(name: str) -> tuple[_Part, int]:
    """Return the function for a placeholder, and its longest result in bytes. For `{device_id}` that of a connection id counts.
    """
    word, colon, argument = name.partition(":")
    if word == "shard" and colon:
        if not _SHARDS.fullmatch(argument) or int(argument) > MOST_SHARDS:
            raise ConfigError(f"{{{name}}}: {argument!r} is not a number of shards (1 to {MOST_SHARDS})")
        shards = int(argument)
        return (lambda connection_id, device: b"%d" % shard(device, shards)), len(str(shards - 1))
    if name == "connection_id":
        return (lambda connection_id, device: connection_id), CONNECTION_ID
    if name == "device_id":
        return (lambda connection_id, device: device), CONNECTION_ID
    if name == "node":
        return (lambda connection_id, device: connection_id[:NODE]), NODE
    raise ConfigError(f"{{{name}}} is none of {{connection_id}}, {{device_id}}, {{node}} and {{shard:N}}, such as {{shard:8}}")
