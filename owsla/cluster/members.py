"""Who is there: what the registrar knows of the nodes, and when it takes one for dead. Pure.

Each node puts a notice into the register, a queue that one node at a time consumes: the registrar. That holds the notices
unacknowledged, so that they go to the next one should it die itself, and looks at the queues of the nodes that they name.

    here ──▶ watched ──no consumer for the grace──▶ burying ──▶ struck     (node-lost is told)
    gone ──▶ watched ──no consumer────────────────▶ burying ──▶ struck     (node-lost is told)
                     └─never here, and no queue───────────────▶ struck     (it never joined)
    left ──▶ watched ──no queue───────────────────────────────▶ struck
                     └─no consumer────────────────▶ burying ──▶ struck     (nothing is told: it said goodbye)

A node renews its notice every `RENEW` seconds. So a notice that the broker has dropped (a policy with a message-ttl or a
max-length, a delivery limit) is back soon, none is held long enough for a consumer time-out, and a goodbye that a node did not
say itself is taken back by the node's next notice. The registrar keeps the notices of nodes that are gone, and renew them no
more.

Only an answer of the broker's counts. Time passes for an absence between two answers, and never more than a bit over the
interval at which they are asked for: while the broker, this process or the whole machine stood still, nobody could come back.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

HERE: Final = "here"
LEFT: Final = "left"
GONE: Final = "gone"

RENEW: Final = 20.0
"""Seconds after which a node puts its notice into the register again."""

KEEP: Final = 45.0
"""Seconds after which the registrar replaces a notice that it holds and that nobody renews: RabbitMQ closes channels that hold
one for too long (consumer_timeout: 30 minutes; operators set less)."""

FIRST: Final = "first"
RENEWED: Final = "renewed"
KEPT: Final = "kept"

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
    origin: str = FIRST
    """`first`, `renewed` (by its node, which said so before) or `kept` (by the registrar, for a node that may be gone)."""

    def pack(self) -> bytes:
        """The message's body."""
        return json.dumps(self._asdict()).encode()

    @staticmethod
    def read(body: bytes) -> Notice | None:
        """The inverse of `pack`; `None` for what no node has written."""
        try:
            values = json.loads(body)
            node, state, origin = values["node"], values["state"], values["origin"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(node, str) or not _NODE.fullmatch(node) or state not in (HERE, LEFT, GONE):
            return None
        return Notice(node, state, origin) if origin in (FIRST, RENEWED, KEPT) else None


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

    __slots__ = ("absent", "buried", "held", "looked", "not_before", "told")

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, float]] = {}  # by state: the delivery tag, and since when
        self.absent = 0.0  # seconds for which it has not been there
        self.looked: float | None = None  # when it was last seen not to be there
        self.not_before = 0.0  # when it may be buried again: the last attempt failed
        self.told = False  # whether it was said to be lost, and does not know yet
        self.buried: dict[str, tuple[int, float]] | None = None  # while it is being buried: the notices that are done with then


class Members:
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

    def vanished(self, notice: Notice) -> bool:
        """Whether the notice that this one renews is not in the register any more: the broker has dropped it."""
        return notice.origin == RENEWED and notice.node not in self._entries and notice.node not in self._lost

    def heard(self, tag: int, notice: Notice, now: float, redelivered: bool = False) -> list[int]:
        """A notice was delivered. The tags that are done with: that of an older copy of it, usually.

        One that was delivered before is no news: what it led to may not have come to its end, and is to be done again.

        Between `here` and `left` the last one counts: a node that has left says no more.
        """
        node, state, kept = notice.node, notice.state, notice.origin == KEPT
        entry = self._entries.get(node)
        if entry is None:
            if node in self._lost and not redelivered and (kept or state != HERE):
                return [tag]  # it is dealt with
            entry = self._entries[node] = _Entry()
        held = entry.held
        if kept:
            if entry.buried is not None:
                held = entry.buried
            if held and state not in held:
                return [tag]  # it was taken back meanwhile
        elif state == HERE and node in self._lost and not redelivered:
            del self._lost[node]
            entry.told = True
        replaced = {HERE: (HERE, LEFT), LEFT: (HERE, LEFT), GONE: (GONE,)}[state]
        done = [held.pop(other)[0] for other in replaced if other in held]
        held[state] = tag, now
        return done

    def stale(self, now: float) -> list[Notice]:
        """The notices to put into the register again, since they have been held for long and their nodes do not renew them."""
        stale = []
        for node, entry in self._entries.items():
            for held in (entry.held, entry.buried or {}):
                for state, (tag, since) in held.items():
                    if now - since >= KEEP:
                        held[state] = tag, now
                        stale.append(Notice(node, state, KEPT))
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
        if sight is Sight.MISSING and (LEFT in entry.held or (GONE in entry.held and HERE not in entry.held)):
            return Verdict.STRIKE, self._strike(node)
        if entry.looked is not None:
            entry.absent += min(now - entry.looked, 2 * self._interval)
        entry.looked = now
        known = LEFT in entry.held or GONE in entry.held
        if now >= entry.not_before and (known or (entry.absent >= self._grace and now >= self._not_before)):
            return Verdict.BURY, []
        return Verdict.WAIT, []

    def _doubt(self, entry: _Entry, now: float) -> list[int]:
        """It is said to be gone, and somebody consumes its queue all the same: after a while, believe the broker."""
        gone = entry.held.get(GONE)
        return self._not_gone(entry) if gone is not None and now - gone[1] >= HURRY_FOR else []

    def _strike(self, node: str) -> list[int]:
        return [tag for tag, _ in self._entries.pop(node).held.values()]

    # -- burials ---------------------------------------------------------------------------------------------------------

    def loud(self, node: str) -> bool:
        """Whether everybody is still to be told that the node that is being buried is lost."""
        return LEFT not in (self._entries[node].buried or {}) and node not in self._lost

    def burying(self, node: str) -> None:
        """Its burial begins."""
        entry = self._entries[node]
        entry.buried, entry.held = entry.held, {}

    def announced(self, node: str) -> None:
        """Everybody is told that it is lost."""
        if len(self._lost) >= LOST_REMEMBERED:
            del self._lost[next(iter(self._lost))]
        self._lost[node] = None

    def spared(self, node: str, not_before: float = 0.0) -> list[int]:
        """Its queue was not deleted, since it came back, or the broker would not have it: then not to be tried before a certain
        time. It is watched as before.
        """
        entry = self._entries[node]
        before, entry.buried = entry.buried or {}, None
        entry.absent = 0.0
        entry.looked = None
        entry.not_before = not_before
        replaced = {HERE, LEFT} if HERE in entry.held or LEFT in entry.held else set()
        tags = [before.pop(state)[0] for state in (HERE, LEFT, GONE) if state in before and state in replaced | set(entry.held)]
        entry.held = before | entry.held
        if not not_before:
            tags += self._not_gone(entry)
        return tags

    def _not_gone(self, entry: _Entry) -> list[int]:
        """Its process is not dead. The tag of the notice that says so, unless that is the only notice of the node."""
        gone = entry.held.pop(GONE, None)
        if gone is None:
            return []
        if not entry.held:
            entry.held[HERE] = gone
            return []
        return [gone[0]]

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
