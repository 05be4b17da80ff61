"""Claims: which of the connections of a device is the newest, when several nodes have one. Pure.

Theory of operation
===================

With `--on-duplicate replace` a device has one connection in the whole cluster. Nodes keep no common table. A node that
identifies a device announces its *claim*: the connection, and how new it is. Each node that hears a claim compares it with its
own connection of the device (`settle`):

- *Theirs is newer*: the node closes its connection, and announces nothing.
- *Mine is newer*: the node announces its own claim again, so that the other one closes.

**How new.** Clocks of hosts may differ by hours, so a claim has two values:

- `age`: the time since the device was identified, by the monotonic clock of the node, when the claim was announced. A claim
takes time to arrive, which makes the other connection older than it says, never younger. So if the stated age exceeds that of
mine *now*, mine is newer for certain, whatever the clocks say.
- `since`: the time at which the device was identified, by a hybrid clock: milliseconds since the epoch, or one more than the
greatest value that was heard for this device. It decides if the ages do not, with ties by connection id. This order is the same
on all nodes.

If mine is newer for certain and its `since` says otherwise, it is raised above the other. So the order by `since` becomes that
of the truth, also for a third node.

**One stays.** A node closes a connection only for a claim that is greater by (`since`, connection id), and the `since` of a
connection only grows. So a connection that was closed for another one is less than that one, for good. Follow these from any
connection that was closed: the order is strict, so the chain is no circle, and it ends at a connection that was not closed by
a claim. Hence never all connections of a device are closed by claims, whatever is lost, late, repeated or out of order.

**It is the newest.** For a connection to be closed by an older one, the claim of the older one must state an age no greater
than that of the newer one on arrival: the two were identified within the time that the claim took to arrive. Among such
connections, which are milliseconds apart unless a node was cut off, `since` decides.

**It ends.** A claim is announced once for an identification, once when a node returns after an absence, and as an answer to a
claim that is older. Every answer is greater than the claim it answers, by (`since`, connection id), and every claim that is
heard makes a node either close its connection or answer. Take connections that no new ones join. Their number is finite; a
raise puts a connection above an older one for good, since an older one is never certain to be newer; so there are finitely many
raises. After these the answers climb a finite order, and the greatest connection is answered by nobody: whoever hears it
closes. A claim of a connection that is gone is answered once, and nobody is left to answer that. Between two nodes with one
connection each, an identification costs at most four claims: of the newer one, of the older one with the faster clock, of the
newer one again, raised; and a claim that was on its way.

What is heard is not trusted blindly: claims come from the users of nodes only (`broker.own_queue`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

BATCH: Final = 500
"""Claims in one message: some 80 KB."""

BATCHES: Final = 4
"""Messages in a tenth of a second. A node identifies fewer devices than these hold."""

AHEAD: Final = 10_000
"""Number of device ids for which a time is remembered that is in the future here: 2 MB."""


class Claim(NamedTuple):
    """A connection of a device, and how new it is."""

    device_id: str
    connection_id: str
    since: int
    """Time at which the device was identified, by the hybrid clock, in milliseconds since the epoch."""
    age: int
    """Milliseconds since then, by the monotonic clock of its node, when the claim was made."""
    door: str

    @property
    def rank(self) -> tuple[int, str]:
        """Position in the order of the connections of a device: the greatest is the newest."""
        return self.since, self.connection_id


def settle(mine: Claim, theirs: Claim) -> int | None:
    """Compare my connection of a device, as it is now, with the claim of another one.

    Return `None` if theirs is newer. Otherwise return the `since` that mine must have, at least its present one; and mine must
    be announced again.
    """
    if theirs.age > mine.age:
        return max(mine.since, theirs.since + 1)
    return None if theirs.rank > mine.rank else mine.since


class HybridClock:
    """Clock for `since`: the wall clock, unless a greater time was heard of the device.

    A time that is not ahead of the wall clock of this node needs no memory.
    """

    __slots__ = ("_ahead",)

    def __init__(self) -> None:
        self._ahead: dict[str, int] = {}

    def heard(self, claim: Claim, now: float) -> None:
        """Note the claim of another node. `now` is in seconds since the epoch."""
        if claim.since < now * 1000:
            return
        since = max(claim.since, self._ahead.pop(claim.device_id, 0))
        self._ahead[claim.device_id] = since
        if len(self._ahead) > AHEAD:
            del self._ahead[next(iter(self._ahead))]

    def since(self, device_id: str, now: float, previous: int) -> int:
        """Return the time of a new connection of a device. `previous` is that of its previous one on this node, or 0."""
        return max(int(now * 1000), previous + 1, self._ahead.get(device_id, 0) + 1)


class DueClaims:
    """Device ids whose claims are to be announced, in messages of `BATCH`, and at most `BATCHES` of these at a time."""

    __slots__ = ("_again", "_now")

    def __init__(self) -> None:
        self._now: dict[str, None] = {}
        self._again: list[str] = []

    def __len__(self) -> int:
        """Return the number of device ids; one may count twice."""
        return len(self._now) + len(self._again)

    def add(self, device_id: str) -> None:
        """Announce the claim of a device with the next ones. It is announced once, however often it is added before that."""
        self._now[device_id] = None

    def announce_all(self, device_ids: Iterable[str]) -> None:
        """Announce the claims of all these devices again. They do not delay those that `add` adds."""
        self._again = list(device_ids)

    def clear(self) -> None:
        """Announce nothing of it."""
        self._now.clear()
        self._again.clear()

    def take(self) -> list[list[str]]:
        """Return the device ids of the next messages."""
        room = BATCH * BATCHES
        due = dict.fromkeys(islice(self._now, room))
        if len(due) == len(self._now):
            self._now = {}
        else:
            for device_id in due:
                del self._now[device_id]
        while self._again and len(due) < room:
            due[self._again.pop()] = None
        ids = list(due)
        return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
