"""W3C trace context: the headers `traceparent` and `tracestate` of messages. Pure.

    00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
    version, trace id, parent id, flags

https://www.w3.org/TR/trace-context/ describes them for HTTP. OpenTelemetry and others use the same two headers, as text, in
messages of AMQP 0-9-1.

Owsla does not record spans. It passes on the trace context of a message to a device, and begins traces for a sample of lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from .letter import Trace

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_LENGTH: Final = 55
"""Length of a traceparent of version 00. In a later version more may follow, after a dash."""

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-)([0-9a-f]{2})(-?)")
_SAMPLED: Final = 1

_MEMBERS: Final = 32
"""Limit of the members of a tracestate."""
_LONGEST_MEMBER: Final = 513
"""Length of the longest member: key and value of 256 characters each."""
_LONGEST_LIST: Final = _MEMBERS * (_LONGEST_MEMBER + 2)

LONGEST_TRACESTATE: Final = 512
"""Length up to which a tracestate must be passed on. A longer one is shortened, since reports may be many."""
_DROPPED_FIRST: Final = 128
"""Length above which members are the first to be dropped from a tracestate that is too long."""

_MEMBER = re.compile(r"([0-9a-z][0-9a-z_\-*/@]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")

_NO_TRACE: Final = "0" * 32
_NO_PARENT: Final = "0" * 16
_ID_BYTES: Final = 16 + 8
_BLOCK: Final = 128
"""Number of traces for which random bytes are read at once: a system call costs more than the rest."""


def read(traceparent: object, tracestate: object = None) -> Trace | None:
    """Return the trace context in the values of the two headers, or `None` if the traceparent is missing or invalid.

    A traceparent of a later version becomes one of version 00, as the specification says. An invalid tracestate is left out.
    """
    text = _text(traceparent, _LENGTH + 1)
    match = None if text is None else _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, ids, flags, more = match.groups()
    if version != "00":
        flags = f"{int(flags, 16) & _SAMPLED:02x}"  # other flags may have another meaning
    elif more:
        return None
    return Trace(f"00{ids}{flags}", _read_tracestate(tracestate))


def headers(trace: Trace | None) -> dict[str, str]:
    """Return the headers of a message in a trace; none without a trace."""
    if trace is None:
        return {}
    both = {TRACEPARENT: trace.traceparent, TRACESTATE: trace.tracestate}
    return {name: value for name, value in both.items() if value is not None}


def _read_tracestate(value: object) -> str | None:
    text = _text(value, _LONGEST_LIST + 1)
    if not text or len(text) > _LONGEST_LIST:
        return None
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    if not members or len(members) > _MEMBERS or len(keys) != len(members):
        return None
    return _shortened(members)


def _shortened(members: list[str]) -> str | None:
    """Join the members of a tracestate. Drop members beyond the length limit: long ones first, then those at the end."""
    size = sum(map(len, members)) + len(members) - 1
    for least in (_DROPPED_FIRST + 1, 0):
        for at in range(len(members) - 1, -1, -1):
            if size > LONGEST_TRACESTATE and len(members[at]) >= least:
                size -= len(members.pop(at)) + 1
    return ",".join(members) or None


def _text(value: object, longest: int) -> str | None:
    """Return the beginning of a header value as text: clients send strings or byte arrays. `None` for other values."""
    if isinstance(value, bytes):
        return value[:longest].decode("latin-1")
    return value[:longest] if isinstance(value, str) else None


class NewTraces:
    """Maker of new traces: random ids, and the flag "sampled"."""

    __slots__ = ("_at", "_digits", "_random_bytes")

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._digits = ""
        self._at = 0

    def make(self) -> str:
        """Return the traceparent of a new trace."""
        while True:
            at = self._at
            if at == len(self._digits):
                self._digits = self._random_bytes(_BLOCK * _ID_BYTES).hex()
                at = 0
            self._at = at + 2 * _ID_BYTES
            trace_id, parent_id = self._digits[at : at + 32], self._digits[at + 32 : at + 48]
            if trace_id != _NO_TRACE and parent_id != _NO_PARENT:  # ids of zeros are invalid
                return f"00-{trace_id}-{parent_id}-01"
