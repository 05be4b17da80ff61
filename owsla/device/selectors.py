"""Selectors of messages for many devices: the header `owsla_to`. Pure.

    all             every connection
    door:NAME       the connections of a door
    prefix:TEXT     the connections whose device id begins with TEXT
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selector:
    """Condition on connections. One without a door and a prefix selects all of them."""

    door: str | None = None
    prefix: str | None = None

    def selects(self, device_id: str | None, door: str) -> bool:
        """Return whether a connection is selected, by the id of its device and the name of its door."""
        if self.door is not None:
            return door == self.door
        return self.prefix is None or (device_id is not None and device_id.startswith(self.prefix))


def read_selector(text: str) -> Selector | None:
    """Read a selector. Return `None` if the text is not one."""
    if text == "all":
        return Selector()
    kind, _, value = text.partition(":")
    if not value:
        return None
    if kind == "door":
        return Selector(door=value)
    if kind == "prefix":
        return Selector(prefix=value)
    return None
