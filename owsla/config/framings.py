"""Values of `--framing`: how the bytes of a connection are divided into payloads. `device.framing` does that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from owsla.errors import ConfigError

FramingKind: TypeAlias = Literal["lines", "length", "netstring", "octet-counting", "fixed", "between"]

WIDTHS: Final = (1, 2, 4, 8)
"""Sizes in bytes that the field of `length:N` may have."""

LONGEST_BOUNDARY: Final = 16
"""Maximum length in bytes of the start and of the end of `between`. The same as that of `--delimiter`."""

LARGEST_SEQ: Final = 2**63 - 1
"""Largest number of a line, for the length of acknowledgements."""

_NUMBER = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+", re.ASCII)
_KINDS = "lines, length:N, netstring, octet-counting, fixed:N or between:START:END"


@dataclass(frozen=True, slots=True)
class FramingSpec:
    """A framing as an option names it. Each kind has the fields that it needs; the others have their defaults."""

    kind: FramingKind = "lines"
    size: int = 0
    """`length`: bytes of the length field. `fixed`: bytes of each payload."""
    little: bool = False
    """`length`: the least significant byte comes first."""
    inclusive: bool = False
    """`length`: the number counts the bytes of the length field too."""
    start: bytes = b""
    """`between`: bytes before each payload."""
    end: bytes = b""
    """`between`: bytes after each payload."""

    @property
    def longest(self) -> int | None:
        """Maximum length of a payload that the framing can express, in bytes; `None` without a maximum."""
        if self.kind == "fixed":
            return self.size
        if self.kind == "length":
            return (1 << 8 * self.size) - 1 - self.size * self.inclusive
        return None

    def __str__(self) -> str:
        """Return the text that `read_framing` reads."""
        if self.kind == "length":
            return f"length:{self.size}{':little' * self.little}{':inclusive' * self.inclusive}"
        if self.kind == "fixed":
            return f"fixed:{self.size}"
        if self.kind == "between":
            return f"between:{self.start.hex()}:{self.end.hex()}"
        return self.kind


LINES: Final = FramingSpec()
"""Lines that end with `--delimiter`: the default."""


def read_framing(text: str) -> FramingSpec:
    """Read a framing, such as `length:2`. Raise `ConfigError` if there is none of that name, or a parameter is wrong."""
    kind, *parameters = text.split(":")
    match kind:
        case "lines" | "netstring" | "octet-counting":
            if parameters:
                raise ConfigError(f"{text!r}: {kind} has no parameters")
            return FramingSpec(kind)
        case "length":
            return _length(text, parameters)
        case "fixed":
            if len(parameters) != 1 or not _NUMBER.fullmatch(parameters[0]):
                raise ConfigError(f"{text!r} is not fixed:N, with the number of bytes of each payload, as in fixed:32")
            return FramingSpec("fixed", size=int(parameters[0]))
        case "between":
            return _between(text, parameters)
    raise ConfigError(f"{text!r} is not one of {_KINDS}")


def _length(text: str, parameters: list[str]) -> FramingSpec:
    size, *words = parameters or [""]
    if size not in map(str, WIDTHS):
        raise ConfigError(f"{text!r}: the length field has 1, 2, 4 or 8 bytes, as in length:2")
    for number, word in enumerate(words):
        if word not in ("little", "inclusive"):
            raise ConfigError(f"{text!r}: after length:{size} there can be :little and :inclusive, not {word!r}")
        if word in words[:number]:
            raise ConfigError(f"{text!r}: {word} is given twice")
    return FramingSpec("length", size=int(size), little="little" in words, inclusive="inclusive" in words)


def _between(text: str, parameters: list[str]) -> FramingSpec:
    if len(parameters) != 2 or not all(map(_HEX.fullmatch, parameters)):
        raise ConfigError(f"{text!r} is not between:START:END in hexadecimal, as in between:02:03")
    start, end = map(bytes.fromhex, parameters)
    if max(len(start), len(end)) > LONGEST_BOUNDARY:
        raise ConfigError(f"{text!r}: start and end have at most {LONGEST_BOUNDARY} bytes each")
    if start != end and (end in start or any(end.startswith(start[place:]) for place in range(len(start)))):
        # In such a stream, the end of a payload could begin within its start.
        raise ConfigError(f"{text!r}: the end must not begin within the start, or must be the same")
    return FramingSpec("between", start=start, end=end)


def framing_fault(framing: FramingSpec, max_line: int) -> str:
    """Return why payloads of this framing cannot be at most `max_line` bytes long; empty if they can."""
    if framing.kind == "fixed" and framing.size > max_line:
        return f"each payload of {framing} is longer than max-line ({max_line} bytes)"
    return ""


def acknowledgement_fault(template: str, framing: FramingSpec, delimiter: bytes) -> str:
    """Return why lines made from `template` (`--device-ack`) cannot be sent in this framing; empty if they can.

    `delimiter` is that of lines; other framings ignore it.
    """
    if framing.kind == "lines":
        return _delimiter_fault(template, delimiter)
    if framing.kind == "fixed":
        return f"acknowledgements have no fixed length, as {framing} needs"
    if framing.kind == "between":
        return _boundary_fault(template, framing)
    longest = len(template.replace("{seq}", str(LARGEST_SEQ), 1).encode())
    if framing.longest is not None and longest > framing.longest:
        return f"the template with a number is up to {longest} bytes long, more than the {framing.longest} of {framing}"
    return ""


def _delimiter_fault(template: str, delimiter: bytes) -> str:
    """Return why `delimiter` could split a line made from `template`; empty if it could not."""
    if delimiter == b"\n":
        return "the template contains the end of a line" if "\n" in template or "\r" in template else ""
    if any(byte in b"0123456789" for byte in delimiter):
        return "a delimiter with digits cannot be distinguished from {seq}"
    line = template.replace("{seq}", "0").encode()
    # Searched with the delimiter appended: the end of the line and the start of the delimiter may form a delimiter too.
    return "" if (line + delimiter).index(delimiter) == len(line) else "the template contains the delimiter"


def _boundary_fault(template: str, framing: FramingSpec) -> str:
    """Return why a payload made from `template` could contain the start or the end of `between`; empty if it could not."""
    for name, boundary in (("start", framing.start), ("end", framing.end)):
        if any(byte in b"0123456789" for byte in boundary):
            return f"the {name} of {framing} has digits, which cannot be distinguished from {{seq}}"
    payload = template.replace("{seq}", "0").encode()
    if framing.start in payload:
        return f"the template contains the start of {framing}"
    return "" if (payload + framing.end).index(framing.end) == len(payload) else f"the template contains the end of {framing}"
