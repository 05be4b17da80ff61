"""Who is there: what the registrar knows of the nodes, and when it takes one for dead. Pure.

Each node puts a notice into the register, a queue that one node at a time consumes: the registrar. That holds the notices
unacknowledged, so that they go to the next one should it die itself, and looks at the queues of the nodes that they name.

    here ──▶ watched ──no consumer for the grace──▶ burying ──▶ struck     (node-lost is told)
    gone ──▶ watched ──no consumer────────────────▶ burying ──▶ struck     (node-lost is told)
    left ──▶ watched ──its queue is not there─────────────────▶ struck
                     └─no consumer for the grace──▶ burying ──▶ struck     (nothing is told: it said goodbye)

Only an answer of the broker's counts. Time passes for an absence between two answers, and never more than a bit over the
interval at which they are asked for: while the broker, this process or the whole machine stood still, nobody could come back.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

LOST: Final = "lost"
"""What the registrar tells a node that came back after it was said to be lost."""

HERE: Final = "here"
LEFT: Final = "left"
GONE: Final = "gone"

RENEW: Final = 600.0
"""Seconds after which a notice that is held is replaced: RabbitMQ closes channels that hold one for 30 minutes."""

HURRY: Final = 0.1
"""Seconds between two looks at nodes that are said to be gone, or to have left."""

HURRY_FOR: Final = 5.0
"""Seconds for which there is hurry. The sockets of a killed process close within milliseconds, on a busy machine later."""

LOST_REMEMBERED: Final = 1000
"""How many of the nodes that were lost are remembered, should they come back."""

_NODE = re.compile(r"[0-9a-f]{8}")


class Notice(NamedTuple):
    """One message of the register."""

    node: str
    state: str
    """`here`, `left` (it stopped in order) or `gone` (its process is dead)."""

    def pack(self) -> bytes:
        """The message's body."""
        return json.dumps({"node": self.node, "state": self.state}).encode()

    @staticmethod
    def read(body: bytes) -> Notice | None:
        """The inverse of `pack`; `None` for what no node has written."""
        try:
            values = json.loads(body)
            node, state = values["node"], values["state"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(node, str) or not _NODE.fullmatch(node) or state not in (HERE, LEFT, GONE):
            return None
        return Notice(node, state)


class Sight(enum.Enum):
    """What a look at a node's queue showed."""

    CONSUMED = enum.auto()
    """Somebody consumes it: the node is there."""
    IDLE = enum.auto()
    """It is there, and nobody consumes it."""
    MISSING = enum.auto()
    """There is no such queue."""
    UNKNOWN = enum.auto()
    """The broker did not say."""


class Verdict(enum.Enum):
    """What is to be done about a node."""

    WAIT = enum.auto()
    STRIKE = enum.auto()
    """It is not there any more, and nobody needs to hear of it."""
    BURY = enum.auto()
    """It is dead: what is in its queue is to be recorded, and the queue deleted."""


class _Entry:
    """A node on the roll."""

    __slots__ = ("absent", "buried", "held", "looked", "told")

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, float]] = {}  # by state: the delivery tag, and since when
        self.absent = 0.0  # seconds for which it has not been there
        self.looked: float | None = None  # when it was last seen not to be there
        self.told = False  # whether it was said to be lost, and does not know yet
        self.buried: dict[str, tuple[int, float]] | None = None  # while it is being buried: the notices that are done with then


class Roll:
    """The nodes that the registrar watches. Acknowledge the tags that its methods return."""

    def __init__(self, me: Callable[[], str], grace: float, interval: float, not_before: float = 0.0) -> None:
        """`me()` is the registrar's own name. A node is dead after `grace` seconds without a consumer, and not before a certain
        time, on the clock of the times that are given; `interval` is the time between two looks at it.
        """
        self._me = me
        self._grace = grace
        self._interval = interval
        self._not_before = not_before
        self._entries: dict[str, _Entry] = {}
        self._lost: dict[str, None] = {}

    def begin(self, not_before: float) -> None:
        """Begin again with an empty roll: the notices went back. Nobody is dead before that time."""
        self._entries.clear()
        self._not_before = not_before

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, node: str) -> bool:
        return node in self._entries

    def interval(self, now: float) -> float:
        """Seconds until the nodes are to be looked at again."""
        for entry in self._entries.values():
            if any(state != HERE and now - since < HURRY_FOR for state, (_, since) in entry.held.items()):
                return min(HURRY, self._interval)
        return self._interval

    # -- notices ---------------------------------------------------------------------------------------------------------

    def heard(self, tag: int, notice: Notice, now: float) -> list[int]:
        """A notice was delivered. The tags that are done with: that of an older copy of it, usually."""
        entry = self._entries.get(notice.node)
        if entry is None:
            if notice.state != HERE and notice.node in self._lost:
                return [tag]  # it is dealt with
            entry = self._entries[notice.node] = _Entry()
        if notice.state == HERE and notice.node in self._lost:
            del self._lost[notice.node]
            entry.told = True
        older = entry.held.get(notice.state)
        entry.held[notice.state] = tag, now
        return [older[0]] if older is not None else []

    def stale(self, now: float) -> list[Notice]:
        """The notices to put into the register anew, since they have been held for long."""
        stale = []
        for node, entry in self._entries.items():
            for state, (tag, since) in entry.held.items():
                if now - since >= RENEW:
                    entry.held[state] = tag, now
                    stale.append(Notice(node, state))
        return stale

    def surprised(self) -> list[str]:
        """The nodes that came back after everybody was told that they are lost; each once."""
        nodes = [node for node, entry in self._entries.items() if entry.told and entry.buried is None]
        for node in nodes:
            self._entries[node].told = False
        return nodes

    # -- looks -----------------------------------------------------------------------------------------------------------

    def due(self) -> list[str]:
        """The nodes to look at. This one is there, and needs no look before it leaves."""
        me = self._me()
        return [
            node
            for node, entry in self._entries.items()
            if entry.buried is None and (node != me or LEFT in entry.held or GONE in entry.held)
        ]

    def saw(self, node: str, sight: Sight, now: float) -> tuple[Verdict, list[int]]:
        """A look at a node's queue was answered. What to do about it, and the tags that are done with."""
        entry = self._entries.get(node)
        if entry is None or entry.buried is not None or sight is Sight.UNKNOWN:
            return Verdict.WAIT, []
        if sight is Sight.CONSUMED:
            entry.absent = 0.0
            entry.looked = None
            return Verdict.WAIT, self._doubt(entry, now)
        if sight is Sight.MISSING and LEFT in entry.held:
            return Verdict.STRIKE, self._strike(node)
        if entry.looked is not None:
            entry.absent += min(now - entry.looked, 2 * self._interval)
        entry.looked = now
        if GONE in entry.held or (entry.absent >= self._grace and now >= self._not_before):
            return Verdict.BURY, []
        return Verdict.WAIT, []

    def _doubt(self, entry: _Entry, now: float) -> list[int]:
        """It is said to be gone, and somebody consumes its queue all the same: after a while, believe the broker."""
        gone = entry.held.get(GONE)
        if gone is None or now - gone[1] < HURRY_FOR:
            return []
        del entry.held[GONE]
        if not entry.held:
            entry.held[HERE] = gone[0], now  # the only notice of it that there is
            return []
        return [gone[0]]

    def _strike(self, node: str) -> list[int]:
        return [tag for tag, _ in self._entries.pop(node).held.values()]

    # -- burials ---------------------------------------------------------------------------------------------------------

    def loud(self, node: str) -> bool:
        """Whether everybody is to be told that the node that is being buried is lost."""
        return LEFT not in (self._entries[node].buried or {})

    def burying(self, node: str) -> None:
        """Its burial begins."""
        entry = self._entries[node]
        entry.buried, entry.held = entry.held, {}
        if self.loud(node):
            if len(self._lost) >= LOST_REMEMBERED:
                del self._lost[next(iter(self._lost))]
            self._lost[node] = None

    def spared(self, node: str) -> list[int]:
        """It came back before its queue was deleted, and was not said to be lost: it is watched as before."""
        entry = self._entries[node]
        before, entry.buried = entry.buried or {}, None
        entry.absent = 0.0
        entry.looked = None
        entry.told = False
        self._lost.pop(node, None)
        gone = before.pop(GONE, None)
        if gone is not None and not before and not entry.held:
            before[HERE] = gone  # the only notice of it that there is
            gone = None
        tags = [tag for state, (tag, _) in before.items() if state in entry.held]
        entry.held = before | entry.held
        return tags if gone is None else [*tags, gone[0]]

    def buried(self, node: str) -> list[int]:
        """Its queue is gone, and everybody was told: the notices of it are done with. It may have come back meanwhile."""
        entry = self._entries[node]
        tags = [tag for tag, _ in (entry.buried or {}).values()]
        if entry.held:
            entry.buried = None
            entry.absent = 0.0
            entry.looked = None
        else:
            del self._entries[node]
        return tags
