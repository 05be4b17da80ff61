"""The notices of nodes: messages on the register of a cluster. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

HERE: Final = "here"
"""State of a node that consumes its own queue."""
LEFT: Final = "left"
"""State of a node that stopped in order: there is nothing to announce of it."""
GONE: Final = "gone"
"""State of a node whose process is dead, as its parent process knows for certain."""

FIRST: Final = "first"
RENEWED: Final = "renewed"
KEPT: Final = "kept"

LARGEST_LIST: Final = 1_000_000
"""Limit of the bytes of a list that is decoded: more than 50,000 nodes."""

_NODE = re.compile(r"[0-9a-f]{8}")


class Notice(NamedTuple):
    """A message in the register queue."""

    node: str
    state: str
    """`HERE`, `LEFT` or `GONE`."""
    origin: str = FIRST
    """`FIRST`, `RENEWED` (published again by its node) or `KEPT` (published again by the registrar, for a node that may be
    gone)."""

    def pack(self) -> bytes:
        """Return the body of the message."""
        return json.dumps(self._asdict()).encode()

    @staticmethod
    def read(body: bytes) -> Notice | None:
        """Decode the body of a message, or return `None` if no node has written it."""
        try:
            values = json.loads(body)
            node, state, origin = values["node"], values["state"], values["origin"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(node, str) or not _NODE.fullmatch(node) or state not in (HERE, LEFT, GONE):
            return None
        return Notice(node, state, origin) if origin in (FIRST, RENEWED, KEPT) else None


def pack_list(nodes: Mapping[str, str]) -> bytes:
    """Return the body of a list of nodes: their states by their names."""
    return json.dumps(nodes, separators=(",", ":")).encode()


def read_list(body: bytes) -> dict[str, str]:
    """Decode the body of a list of nodes, without entries that no node writes."""
    try:
        values = json.loads(body) if len(body) <= LARGEST_LIST else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {node: state for node, state in values.items() if _NODE.fullmatch(node) and state in (HERE, LEFT)}
