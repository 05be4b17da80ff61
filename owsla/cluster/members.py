"""The members of a cluster as its registrar knows them, and the decision that one is dead. Pure.

Theory of operation
===================

Each node publishes a notice to the register, a queue that only one node at a time consumes: the registrar. It holds the notices
unacknowledged, so that the broker delivers them to the next registrar should it die. It inspects the queue of each node that
a notice names.

    here ──▶ watched ──no consumer for the grace──▶ clean-up ──▶ removed     (node-lost is announced)
    gone ──▶ watched ──no consumer────────────────▶ clean-up ──▶ removed     (node-lost is announced)
                     └─never here, and no queue────────────────▶ removed     (it never joined)
    left ──▶ watched ──no queue────────────────────────────────▶ removed
                     └─no consumer────────────────▶ clean-up ──▶ removed     (nothing is announced: it stopped in order)

Invariants:

- A member has at least one notice that is not acknowledged, and each notice is acknowledged at most once.
- Only an answer of the broker counts. The time of an absence is counted between two answers, and never as more than a little
over the interval of inspection: while the broker, this process or the whole machine stood still, no node could come back.
- A node is announced as lost at most once for each time that it dies.

A node renews its notice every `RENEW_INTERVAL` seconds. So a notice that the broker has dropped (a policy with a message-ttl or
a max-length, a delivery limit) is replaced soon, no notice is held long enough for a consumer time-out, and a goodbye that a
node did not publish itself is revoked by the next notice of that node. Nodes that are gone renew nothing: the registrar
publishes their notices again itself, also those that it knows only from the last registrar (`known_nodes`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from .notices import GONE, HERE, KEPT, LEFT, RENEWED, Notice

RENEW_INTERVAL: Final = 20.0
"""Seconds after which a node publishes its notice again."""

KEEP_INTERVAL: Final = 45.0
"""Seconds after which the registrar replaces a notice that it holds and that its node does not renew. RabbitMQ closes channels
that hold a message for too long (consumer_timeout: 30 minutes; operators set less)."""

HURRIED_INTERVAL: Final = 0.1
"""Seconds between two inspections of nodes that have left or are reported as gone."""

HURRY_DURATION: Final = 5.0
"""Seconds for which such nodes are inspected more often. The sockets of a killed process close within milliseconds, on a busy
machine later."""

LOST_REMEMBERED: Final = 1000
"""Number of lost nodes that are remembered, in case they come back."""


class QueueCondition(enum.Enum):
    """The result of inspecting the queue of a node."""

    CONSUMED = enum.auto()
    """The queue has a consumer: the node is alive."""
    IDLE = enum.auto()
    """The queue exists and has no consumer."""
    MISSING = enum.auto()
    """There is no such queue."""
    UNKNOWN = enum.auto()
    """The broker did not answer."""


class Decision(enum.Enum):
    """The action to take about a node."""

    WAIT = enum.auto()
    REMOVE = enum.auto()
    """Nothing: the node is no longer a member, and nothing is announced of it."""
    CLEAN_UP = enum.auto()
    """Record the messages in the queue of the dead node, and delete the queue."""


class _Member:
    """A node in the register."""

    __slots__ = ("absent", "cleaning", "held", "inspected", "not_before", "unaware")

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, float]] = {}  # by state: the delivery tag, and since when
        self.absent = 0.0  # seconds for which its queue had no consumer
        self.inspected: float | None = None  # when its queue was last inspected and had no consumer
        self.not_before = 0.0  # the last clean-up failed: the time of the next one
        self.unaware = False  # it was announced as lost, came back, and does not know yet
        self.cleaning: dict[str, tuple[int, float]] | None = None  # during a clean-up: the notices to acknowledge afterwards

    def has_left(self) -> bool:
        return LEFT in self.held or (HERE not in self.held and LEFT in (self.cleaning or {}))


class Members:
    """The nodes that the registrar watches. The caller acknowledges the delivery tags that the methods return."""

    def __init__(self, me: Callable[[], str], grace: float, interval: float, not_before: float = 0.0) -> None:
        """`me()` returns the name of the registrar. A node is dead after `grace` seconds without a consumer, and not before
        the time `not_before`. `interval` is the time between two inspections, in seconds.
        """
        self._me = me
        self._grace = grace
        self._interval = interval
        self._not_before = not_before
        self._members: dict[str, _Member] = {}
        self._lost: dict[str, None] = {}
        self._recalled: set[str] = set()

    def begin(self, not_before: float) -> None:
        """Forget all members, since the broker delivers the notices again. No node is dead before the time `not_before`."""
        self._members.clear()
        self._recalled.clear()
        self._not_before = not_before

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, node: str) -> bool:
        return node in self._members

    def states(self) -> dict[str, str]:
        """Return the members, and whether each is `HERE` or has `LEFT`."""
        return {node: LEFT if member.has_left() else HERE for node, member in self._members.items()}

    def interval(self, now: float) -> float:
        """Return the seconds until the next inspection."""
        for member in self._members.values():
            if any(state != HERE and now - since < HURRY_DURATION for state, (_, since) in member.held.items()):
                return min(HURRIED_INTERVAL, self._interval)
        return self._interval

    # -- notices ---------------------------------------------------------------------------------------------------------

    def has_vanished(self, notice: Notice) -> bool:
        """Return whether the broker has dropped the notice that this one renews."""
        return notice.origin == RENEWED and notice.node not in self._members and notice.node not in self._lost

    def recall(self, node: str) -> None:
        """Expect a `KEPT` notice of a node whose notice the broker has dropped, and whose queue exists."""
        self._recalled.add(node)

    def heard(self, tag: int, notice: Notice, now: float, redelivered: bool = False) -> list[int]:
        """Hold a notice. Return the tags to acknowledge: usually the one of an older copy of it.

        Of `HERE` and `LEFT` the last one counts: a node that has left publishes nothing more. A redelivered notice is not
        news: what followed from it may not be complete, and is done again.
        """
        node, state, kept = notice.node, notice.state, notice.origin == KEPT
        member = self._members.get(node)
        if member is None:
            if node in self._lost and not redelivered and (kept or state != HERE) and node not in self._recalled:
                return [tag]  # that was handled
            member = self._members[node] = _Member()
        self._recalled.discard(node)
        held = member.held
        if kept:
            if member.cleaning is not None:
                held = member.cleaning
            if held and state not in held:
                return [tag]  # it was revoked meanwhile
        elif state == HERE and node in self._lost and not redelivered:
            del self._lost[node]
            member.unaware = True
        replaced = {HERE: (HERE, LEFT), LEFT: (HERE, LEFT), GONE: (GONE,)}[state]
        done = [held.pop(other)[0] for other in replaced if other in held]
        held[state] = tag, now
        return done

    def take_stale(self, now: float) -> list[Notice]:
        """Return the notices to publish again, since they have been held for long and their nodes do not renew them."""
        stale = []
        for node, member in self._members.items():
            for held in (member.held, member.cleaning or {}):
                for state, (tag, since) in held.items():
                    if now - since >= KEEP_INTERVAL:
                        held[state] = tag, now
                        stale.append(Notice(node, state, KEPT))
        return stale

    def take_returned(self) -> list[str]:
        """Return the nodes that came back after they were announced as lost; each once."""
        nodes = [node for node, member in self._members.items() if member.unaware and member.cleaning is None]
        for node in nodes:
            self._members[node].unaware = False
        return nodes

    # -- inspections -----------------------------------------------------------------------------------------------------

    def to_inspect(self) -> list[str]:
        """Return the nodes to inspect. This node is alive, and needs no inspection before it leaves."""
        me = self._me()
        return [
            node
            for node, member in self._members.items()
            if member.cleaning is None and (node != me or LEFT in member.held or GONE in member.held)
        ]

    def inspected(self, node: str, condition: QueueCondition, now: float) -> tuple[Decision, list[int]]:
        """Decide after an inspection. Return the decision and the tags to acknowledge."""
        member = self._members.get(node)
        if member is None or member.cleaning is not None or condition is QueueCondition.UNKNOWN:
            return Decision.WAIT, []
        if condition is QueueCondition.CONSUMED:
            member.absent = 0.0
            member.inspected = None
            return Decision.WAIT, self._check_gone(member, now)
        if condition is QueueCondition.MISSING and (LEFT in member.held or (GONE in member.held and HERE not in member.held)):
            return Decision.REMOVE, self._remove(node)
        if member.inspected is not None:
            member.absent += min(now - member.inspected, 2 * self._interval)
        member.inspected = now
        known = LEFT in member.held or GONE in member.held
        if now >= member.not_before and (known or (member.absent >= self._grace and now >= self._not_before)):
            return Decision.CLEAN_UP, []
        return Decision.WAIT, []

    def _check_gone(self, member: _Member, now: float) -> list[int]:
        """Believe the broker rather than a `GONE` notice, if the queue still has a consumer after a while."""
        gone = member.held.get(GONE)
        return self._not_gone(member) if gone is not None and now - gone[1] >= HURRY_DURATION else []

    def _remove(self, node: str) -> list[int]:
        return [tag for tag, _ in self._members.pop(node).held.values()]

    # -- clean-ups -------------------------------------------------------------------------------------------------------

    def must_announce(self, node: str) -> bool:
        """Return whether the loss of a node in clean-up has to be announced."""
        return LEFT not in (self._members[node].cleaning or {}) and node not in self._lost

    def cleanup_begun(self, node: str) -> None:
        """Note that the clean-up of a node begins."""
        member = self._members[node]
        member.cleaning, member.held = member.held, {}

    def announced(self, node: str) -> None:
        """Note that a node was announced as lost."""
        if len(self._lost) >= LOST_REMEMBERED:
            del self._lost[next(iter(self._lost))]
        self._lost[node] = None

    def cleanup_stopped(self, node: str, not_before: float = 0.0) -> list[int]:
        """Watch a node again whose queue was not deleted. Return the tags to acknowledge.

        The node came back; or, with `not_before`, the broker refused something, and the next clean-up waits for that time.
        """
        member = self._members[node]
        before, member.cleaning = member.cleaning or {}, None
        member.absent = 0.0
        member.inspected = None
        member.not_before = not_before
        replaced = {HERE, LEFT} if HERE in member.held or LEFT in member.held else set()
        replaced |= set(member.held)
        tags = [before.pop(state)[0] for state in (HERE, LEFT, GONE) if state in before and state in replaced]
        member.held = before | member.held
        if not not_before:
            tags += self._not_gone(member)
        return tags

    def _not_gone(self, member: _Member) -> list[int]:
        """Drop a `GONE` notice that proved wrong, and return its tag. The only notice of a node becomes a `HERE` notice."""
        gone = member.held.pop(GONE, None)
        if gone is None:
            return []
        if not member.held:
            member.held[HERE] = gone
            return []
        return [gone[0]]

    def cleaned_up(self, node: str) -> list[int]:
        """Remove a node whose queue is deleted and whose loss is announced, unless it came back. Return tags to acknowledge."""
        member = self._members[node]
        tags = [tag for tag, _ in (member.cleaning or {}).values()]
        if member.held:
            member.cleaning = None
            member.absent = 0.0
            member.inspected = None
        else:
            del self._members[node]
        return tags
