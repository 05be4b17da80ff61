"""Readers of option values for argparse: each returns the value, or raises `ArgumentTypeError` with the reason."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Final

YEAR: Final = 365 * 24 * 3600
"""Seconds in a year."""

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
"""Units of a time, in seconds."""


def whole_number(low: int, high: int = 10**18 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        # Not int() alone, which accepts "1_0", " 1" and digits of other scripts.
        if not (text.isascii() and text.isdigit() and len(text) < 19 and low <= int(text) <= high):
            raise ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return read


def number(low: float) -> Callable[[str], float]:
    """Return a reader of numbers from `low` to a billion."""

    def read(text: str) -> float:
        value = _float(text)
        if not low <= value <= 1e9:
            raise ArgumentTypeError(f"{text!r} is not a number from {low:g} on")
        return value

    return read


def seconds(text: str) -> float:
    """Read a time above 0, up to a year, in seconds or with a unit, as the options of the gateway: 20, 500ms, 30s, 5m, 1h."""
    digits = text.rstrip("mhs")
    value = _float(digits) * _UNITS.get(text[len(digits) :], math.nan)
    if not 0 < value <= YEAR:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, or a time such as 30s (more than 0, a year at most)")
    return value


def port(text: str) -> int:
    """Read a TCP port."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _float(text: str) -> float:
    """Return the number in a text, or NaN, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan
