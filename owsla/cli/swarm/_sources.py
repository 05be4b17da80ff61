"""The addresses that a swarm connects from: one has some 28,000 ports towards one gateway, and no more."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

MOST: Final = 65536
"""Addresses: far more than ports are good for, and soon listed."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read(text: str) -> list[str]:
    """Addresses from `ADDRESS`, `FIRST-LAST`, or a network such as 127.1.0.0/24, or several with commas. `ValueError`."""
    found: list[str] = []
    for part in text.split(","):
        found += _part(part.strip())
        if len(found) > MOST:
            raise ValueError(f"{text!r} is more than {MOST} addresses")
    if len({":" in address for address in found}) > 1:
        raise ValueError(f"{text!r} is both IPv4 and IPv6")
    return found


def _part(text: str) -> list[str]:
    first, dash, last = text.partition("-")
    try:
        if "/" in text:
            network = ipaddress.ip_network(text, strict=False)
            if network.num_addresses > MOST + 2:
                raise ValueError(f"{text!r} is more than {MOST} addresses")
            return [str(address) for address in network.hosts()]
        low: Address = ipaddress.ip_address(first)
        high: Address = ipaddress.ip_address(last) if dash else low
    except ValueError as error:
        if "more than" in str(error):
            raise
        raise ValueError(f"{text!r} is no address, FIRST-LAST, or network") from None
    if low.version != high.version or int(high) < int(low):
        raise ValueError(f"{text!r}: {high} does not come after {low}")
    if int(high) - int(low) >= MOST:
        raise ValueError(f"{text!r} is more than {MOST} addresses")
    return [str(low + step) for step in range(int(high) - int(low) + 1)]


def ports(text: str) -> int:
    """How many local ports the system gives out, from its `ip_local_port_range`: two numbers, both included."""
    low, high = text.split()
    return int(high) - int(low) + 1


def enough(connections: int, sources: Sequence[str], each: int) -> bool:
    """Whether there are ports for so many connections to one place."""
    return connections <= max(1, len(sources)) * each
