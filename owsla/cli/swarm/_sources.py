"""Source addresses of connections. One address has about 28,000 ports for connections to one gateway."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

MOST: Final = 65536
"""Maximum number of addresses: their ports are far more than the connections that one machine can hold."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def read(text: str) -> list[str]:
    """Return the addresses in `ADDRESS`, `FIRST-LAST`, a network such as 127.1.0.0/24, or several of these with commas.

    Raise `ValueError` with the reason.
    """
    found: list[str] = []
    for part in text.split(","):
        found += _part(part.strip())
        if len(found) > MOST:
            raise ValueError(f"{text!r} is more than {MOST} addresses")
    if len({":" in address for address in found}) > 1:
        raise ValueError(f"{text!r} contains both IPv4 and IPv6 addresses")
    return found


def _part(text: str) -> list[str]:
    first, dash, last = text.partition("-")
    try:
        if "/" in text:
            network = ipaddress.ip_network(text, strict=False)
            if network.num_addresses > MOST + 2:
                raise ValueError(f"{text!r} is more than {MOST} addresses")
            return [str(address) for address in network.hosts()]
        low: IPAddress = ipaddress.ip_address(first)
        high: IPAddress = ipaddress.ip_address(last) if dash else low
    except ValueError as error:
        if "more than" in str(error):
            raise
        raise ValueError(f"{text!r} is not an address, FIRST-LAST, or a network") from None
    if low.version != high.version or int(high) < int(low):
        raise ValueError(f"{text!r}: {high} does not come after {low}")
    if int(high) - int(low) >= MOST:
        raise ValueError(f"{text!r} is more than {MOST} addresses")
    return [str(low + step) for step in range(int(high) - int(low) + 1)]


def ports(text: str) -> int:
    """Return the number of local ports, from the two numbers of `ip_local_port_range`, which are both included."""
    low, high = text.split()
    return int(high) - int(low) + 1


def enough(connections: int, sources: Sequence[str], each: int) -> bool:
    """Return whether there are ports for that many connections to one gateway; `each` is the number of ports of an address."""
    return connections <= max(1, len(sources)) * each
