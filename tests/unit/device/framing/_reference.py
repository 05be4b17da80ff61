"""Framings written as plainly as their definitions, to compare with."""

from __future__ import annotations

import re
from itertools import pairwise

from owsla.config.framings import read_framing
from owsla.device.framing import Framing, make_framing

FRAMINGS = (
    "lines",
    "length:1",
    "length:2",
    "length:4",
    "length:8",
    "length:2:little",
    "length:4:inclusive",
    "length:8:little:inclusive",
    "netstring",
    "octet-counting",
    "fixed:3",
    "between:02:03",
    "between:0b:1c0d",
    "between:7e:7e",
    "between:7e7e:7e7e",
)
"""One of each kind, and of each parameter."""

WITH_LENGTH = tuple(name for name in FRAMINGS if name.startswith(("length", "netstring", "octet-counting")))
"""Those that carry a length, so that any byte may be in a payload."""


def framing(name: str, max_line: int = 16384, delimiter: bytes = b"\n") -> Framing:
    """Return the framing that an option names."""
    return make_framing(read_framing(name), delimiter, max_line)


def frame(name: str, payload: bytes) -> bytes:
    """Return the frame of a payload, by the definition of the framing."""
    kind, *parameters = name.split(":")
    if kind == "lines":
        return payload + b"\r\n"
    if kind == "length":
        size = int(parameters[0])
        number = len(payload) + (size if "inclusive" in parameters else 0)
        return number.to_bytes(size, "little" if "little" in parameters else "big") + payload
    if kind == "netstring":
        return str(len(payload)).encode() + b":" + payload + b","
    if kind == "octet-counting":
        return str(len(payload)).encode() + b" " + payload
    if kind == "between":
        return bytes.fromhex(parameters[0]) + payload + bytes.fromhex(parameters[1])
    assert kind == "fixed"
    return payload


def stream(name: str, payloads: list[bytes]) -> bytes:
    """Return the frames of payloads, one after the other."""
    return b"".join(frame(name, payload) for payload in payloads)


def payloads(name: str, count: int = 6) -> list[bytes]:
    """Return payloads of different lengths that the framing can carry, of lengths from 0 where it has several."""
    if name.startswith("fixed:"):
        size = int(name.partition(":")[2])
        return [bytes([65 + number]) * size for number in range(count)]
    return [bytes(65 + (number + place) % 26 for place in range(number * (number + 1) // 2)) for number in range(count)]


def parse(name: str, data: bytes) -> tuple[list[bytes], bytes]:
    """Return the payloads at the start of bytes, and the rest from the first frame that is incomplete or malformed."""
    found = []
    while (places := _frame_in(name, data)) is not None:
        start, stop, end = places
        found.append(data[start:stop])
        data = data[end:]
    return found, data


def _frame_in(name: str, data: bytes) -> tuple[int, int, int] | None:
    """Return where the payload of the first frame begins and ends, and where its frame ends; `None` without a frame."""
    kind, *parameters = name.split(":")
    if kind == "lines":
        end = data.find(b"\n")
        return None if end < 0 else (0, end - (data[:end][-1:] == b"\r"), end + 1)
    if kind == "length":
        size = int(parameters[0])
        number = int.from_bytes(data[:size], "little" if "little" in parameters else "big")
        stop = number + (0 if "inclusive" in parameters else size)
        return None if len(data) < size or not size <= stop <= len(data) else (size, stop, stop)
    if kind in ("netstring", "octet-counting"):
        header = re.match(b"(0|[1-9][0-9]*)" + (b":" if kind == "netstring" else b" "), data)
        if header is None or len(header[1]) > 19:
            return None
        stop = header.end() + int(header[1])
        if kind == "netstring":
            return (header.end(), stop, stop + 1) if data[stop : stop + 1] == b"," else None
        return (header.end(), stop, stop) if stop <= len(data) else None
    if kind == "fixed":
        size = int(parameters[0])
        return None if len(data) < size else (0, size, size)
    begin, finish = (bytes.fromhex(each) for each in parameters)
    stop = data.find(finish, len(begin))
    if not data.startswith(begin) or stop < 0 or (begin != finish and begin in data[len(begin) : stop]):
        return None
    return len(begin), stop, stop + len(finish)


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into pieces of a size."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at places. No piece is empty."""
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    return [data[start:end] for start, end in pairwise(places)]
