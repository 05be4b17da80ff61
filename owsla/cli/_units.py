"""Times and sizes in the units that people read."""

from __future__ import annotations

import time
from typing import Final

_SIZES: Final = ("kB", "MB", "GB", "TB", "PB")


def duration(seconds: float) -> str:
    """Return a duration in at most two units, as in `1h02m`."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def milliseconds(value: float | None) -> str:
    """Return a short duration, given in milliseconds: `0.8ms`, `12ms`, `1.3s`; `-` for `None`."""
    if value is None:
        return "-"
    if value < 999.5:
        return f"{value:.1f}ms" if value < 9.95 else f"{value:.0f}ms"
    return f"{value / 1000:.1f}s"


def size(octets: float) -> str:
    """Return a size in bytes with three digits or fewer: `980B`, `1.2kB`, `34MB`. A kB has 1,000 bytes."""
    if octets < 999.5:
        return f"{octets:.0f}B"
    for unit in _SIZES:
        octets /= 1000
        if octets < 999.5 or unit == _SIZES[-1]:
            return f"{octets:.1f}{unit}" if octets < 9.95 else f"{octets:.0f}{unit}"
    raise AssertionError("the last unit takes all")


def rate(value: float) -> str:
    """Return a number of things a second, with a decimal where it is small: `0.3`, `42`, `1,204`."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 message`, `1,204 messages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def day_and_time(milliseconds: float) -> str:
    """Return a time in milliseconds since the epoch as local time: `2026-11-29T14:03:05`."""
    return _local(milliseconds, "%Y-%m-%dT%H:%M:%S")


def time_of_day(milliseconds: float) -> str:
    """Return the local time of day with milliseconds: `14:03:05.125`."""
    return f"{_local(milliseconds, '%H:%M:%S')}.{int(milliseconds) % 1000:03}"


def _local(milliseconds: float, shape: str) -> str:
    try:
        return time.strftime(shape, time.localtime(milliseconds / 1000))
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
