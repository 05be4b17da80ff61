"""Locations of devices: messages to a device find the node that it is connected to. Pure.

Theory of operation
===================

A message can name its device instead of a connection. If the device is connected to this node, the message is handed over at
once. Otherwise this node, the *asker*, asks all nodes for the device, forwards the message to the node that answers first, and
remembers that node. Nothing is registered anywhere, so an answer may be wrong by the time it is used. That does no harm: the
node that gets a forward looks for the device by its device id again, and *returns* the message if the device is not there.

**Searches.** A device has a *search* while something has to be known before its messages can go on. They wait in the search,
unacknowledged: first those that were returned, then the newer ones, each in order. A search waits for an answer, for fences, or
for both:

    (none) ──message, location not known──────────▶ asking
    (none) ──message returned, or location changed──▶ fencing, and asking if the location is not known
    asking ──answer, or the device connects here──▶ not asking
    asking ──time-out, or too many messages wait──▶ not asking; its messages are recorded as undeliverable
    fencing ──all fences back, or time-out──▶ not fencing
    neither ──▶ (none): the messages go on in order; where the location is not known again, a new search begins

**Fences.** Messages for a device keep their order while it moves. Messages that were forwarded to its former node may come
back, and must go before newer ones. A *fence* is a notice that goes behind the forwards into the queue of that node, and comes
back behind what it returned. So when the fence is back, everything that comes back has come. A fence is needed for

- a node that has returned a message, and
- another node than the one to forward to, if a message was forwarded there within `RECENT`.

One fence to a node serves all devices that need one within `QUESTION_INTERVAL`.

The node that gets forwards helps: when it has returned a message of a device, it also returns those of the same asker that
follow, though the device may have connected meanwhile. It delivers again when it gets a message that was returned before more
often than those: the asker sends it first, after its fence.

**Questions.** Those of one turn go together: at most `MOST` device ids in a message, and a message every `QUESTION_INTERVAL`.
A question waits for the one before to arrive, which may take a while; the time-out counts from the first question for a device.
Each is asked again every `REPEAT` until the time-out. While the exchange cannot be used for some time (`away`, `blocked`), the
clock of the time-out stands still, and all is asked again afterwards. While the broker does not permit it (`refused`), the
time-out passes.

**A slow broker.** A broker that is busy, or whose queues have no leader, passes on neither questions nor answers, though
nothing is known to be wrong. But a question comes back to its node when it goes to all others. So the clock of the time-out
also stands still while a question is not back within `SLOW`. This process may be late, too, and answers wait in its socket: no
search times out within `CATCH_UP` after a `tick` that was late, or after a question that came back late.

**Limits.** Messages that wait are part of the prefetch of their consumer, which limits them. Past a share of it (`SHARE`), the
oldest search of this consumer gives up early, but not before it had the time for an answer (`HURRY`): a burst of messages for
many devices is no reason to call them unknown. Answers come through the own queue. So past half of the prefetch of that one
the oldest search gives up at once. A message is returned `MOST_RETURNS` times at most.

Invariants:

- A message is in one place: in one search, or given to one of the outputs, which happens once for each time that it came in.
  Messages of a source that has ended are dropped, since the broker delivers them again.
- A search has messages or outstanding fences; one that asks has messages.
- While a device has a search, nothing is forwarded or handed over for it, except what other nodes forward to this one.
- A device is in `_remembered` or has a search, never both. The search keeps the location meanwhile.
- `wake_at` was called for the earliest thing that is due.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count
from typing import Final, Literal, Protocol, TypeAlias

from ..device.held_messages import HeldMessages
from ..device.ordering import PausableClock
from ..letter import DeliverySource, Hop, Letter
from .device_notices import MOST

REMEMBERED: Final = 50_000
"""Number of devices whose location is remembered, the most recently used: 20 MB."""

QUESTION_INTERVAL: Final = 0.01
"""Seconds between two questions of this node: each is a message to every node. Also between two fences to one node."""

REPEAT: Final = 1.0
"""Seconds after which a device is asked for again, since a question or an answer may be lost."""

SLOW: Final = 0.2
"""Seconds within which a question comes back to its node, unless the broker or this process is late."""

CATCH_UP: Final = 0.5
"""Seconds after such a delay within which no search times out."""

SHARE: Final = 4
"""Divisor of the prefetch of a consumer: as much of it may wait. Messages that wait for a missing number (a half of it) and
those for slow devices (a quarter) need it, too."""

OWN_SHARE: Final = 8
"""The same for the own queue, which also brings messages for many devices (a sixteenth), answers and fences."""

HURRY: Final = 0.1
"""Seconds that a search has for an answer, also if too many messages wait. Answers take some milliseconds."""

HURRY_UNASKED: Final = 10.0
"""The same while the question could not go, or is not back: the roles of a node come back within 5 seconds of each other after
a restart of the broker."""

LONGEST: Final = 600.0
"""Seconds after which a search gives up although the clock of the time-out stands still. RabbitMQ closes a channel that leaves
a message unacknowledged for 30 minutes."""

RECENT: Final = 5.0
"""Seconds within which a message that was forwarded may still come back."""

FENCE_TIMEOUT: Final = 1.0
"""Seconds after which a fence counts as lost. Its node may be dead."""

MOST_RETURNS: Final = 3
"""Number of returns after which a message is recorded as undeliverable."""

TURNED_AWAY: Final = 10_000
"""Number of devices for which it is remembered that a message was returned: 3 MB."""

ExchangeState: TypeAlias = Literal["up", "away", "blocked", "refused"]
"""State of the role that asks questions: see `broker.broadcast`."""


class Outputs(Protocol):
    """Effects of the decisions about messages to devices."""

    def is_here(self, device_id: str) -> bool:
        """Return whether the device is connected to this node."""

    def hand_over(self, letter: Letter) -> bool:
        """Give a message to a connection of its device on this node. Return `False` if there is none."""

    def forward(self, letter: Letter, node: bytes) -> None:
        """Publish a message to the queue of the node that has its device."""

    def give_back(self, letter: Letter) -> None:
        """Publish a forwarded message to the queue of the node that has asked for its device (`letter.hop.asker`)."""

    def give_up(self, letter: Letter) -> None:
        """Record a message as undeliverable: nobody has its device, or it has expired."""

    def ask(self, device_ids: list[str]) -> bool:
        """Ask all nodes which of them has these devices. Return whether the question could go."""

    def fence(self, node: bytes, token: str) -> None:
        """Publish a fence to the queue of a node, behind the forwards. `Locations.fenced` is called when it is back."""

    def wake_at(self, time: float) -> None:
        """Call `Locations.tick` at this time, instead of an earlier request."""


class _Location:
    """Node of a device, and the last forward for it."""

    __slots__ = ("forwarded_at", "forwarded_to", "node", "since")

    def __init__(self, node: bytes, since: int) -> None:
        self.node = node
        self.since = since
        self.forwarded_to: bytes | None = None
        """Node that the last message was forwarded to, or `None` if all that comes back of it has come."""
        self.forwarded_at = -math.inf


class _Search:
    """Messages of a device that wait, and what they wait for. Compared by identity."""

    __slots__ = ("asked", "asking", "began", "began_by_clock", "device_id", "fences", "location", "newer", "returned")

    def __init__(self, device_id: str, location: _Location | None, now: float) -> None:
        self.device_id = device_id
        self.location = location
        self.returned: deque[Letter] = deque()
        """Messages that were forwarded and returned. They are older than the others."""
        self.newer: deque[Letter] = deque()
        self.fences: dict[bytes, _Fence] = {}
        """Outstanding fences, by node."""
        self.asking = False
        self.asked: float | None = None
        """Time at which the last question has gone."""
        self.began = now
        """Time at which the search, or the asking, began."""
        self.began_by_clock = 0.0
        """Time at which the asking began, or the first question has gone, by the clock of the time-out."""


class _Fence:
    """A fence to one node, for all searches that need one at that time."""

    __slots__ = ("node", "searches", "until")

    def __init__(self, node: bytes) -> None:
        self.node = node
        self.searches: list[_Search] = []
        self.until = math.inf


class Locations:
    """Way of the messages to devices: to a connection of this node, to the node that has the device, or on record."""

    def __init__(
        self,
        seconds: Callable[[], float],
        outputs: Outputs,
        *,
        node: Callable[[], bytes],
        device_timeout: float,
        remembered: int = REMEMBERED,
    ) -> None:
        """`seconds()` is a monotonic clock, and `node()` returns the name of this node. At most `remembered` locations are
        remembered.
        """
        self._seconds = seconds
        self._outputs = outputs
        self._node = node
        self.device_timeout = device_timeout
        """Seconds to wait for an answer."""
        self._most = remembered
        self._clock = PausableClock(seconds)
        self._clock.pause()
        self._state: ExchangeState = "away"
        self._remembered: OrderedDict[str, _Location] = OrderedDict()  # the least recently used first
        self._searches: dict[str, _Search] = {}
        self._held: HeldMessages[_Search] = HeldMessages()
        self._unasked: OrderedDict[_Search, None] = OrderedDict()  # asking, and no question has gone; the oldest first
        self._asked: OrderedDict[_Search, None] = OrderedDict()  # asking, and a question has gone; the first asked for first
        self._questions: OrderedDict[_Search, None] = OrderedDict()  # to be asked with the next questions
        self._repeats: deque[tuple[float, list[_Search]]] = deque()  # asked for; and when to ask again
        self._question_allowed_at = 0.0
        self._not_back: OrderedDict[str, float] = OrderedDict()  # when questions have gone, by their first device
        self._time_out_allowed_at = 0.0
        self._fences_due: dict[bytes, _Fence] = {}  # to be sent, by node
        self._fences_allowed_at = 0.0
        self._fences: OrderedDict[str, _Fence] = OrderedDict()  # sent, by token
        self._tokens = map(str, count())
        self._crowded: dict[DeliverySource, float] = {}  # sources with too many messages; and when to look again
        self._turned_away: OrderedDict[tuple[bytes, str], tuple[int, float]] = OrderedDict()
        # by asker and device: the greatest number of returns among the messages that were returned, and until when it counts
        self._waking = math.inf
        self.questions = 0
        """Number of device ids that were asked for."""
        self.answered = 0
        """Number of searches that an answer has ended."""
        self.unanswered = 0
        """Number of searches without an answer."""
        self.returned_messages = 0
        """Number of messages that another node has returned to this one."""

    # -- readings --------------------------------------------------------------------------------------------------------

    @property
    def remembered(self) -> int:
        """Number of devices whose location is remembered."""
        return len(self._remembered)

    @property
    def waiting(self) -> int:
        """Number of messages that wait for an answer or a fence."""
        return sum(len(search.returned) + len(search.newer) for search in self._searches.values())

    # -- messages --------------------------------------------------------------------------------------------------------

    def route(self, letter: Letter) -> None:
        """Route a message to a device (`letter.to_device_id`)."""
        hop = letter.hop
        if hop is None:
            self._send(letter)
        elif not letter.source.own:
            letter.hop = None  # of a message that somebody has moved to another queue
            self._send(letter)
        elif hop.returned_by is not None:
            self.returned(letter, hop.returned_by)
        elif hop.asker == self._node():
            self._send(letter)
        else:
            self._arrived(letter, hop)

    def _send(self, letter: Letter) -> None:
        """Hand a message over, forward it, or let it wait."""
        device_id = letter.to_device_id
        assert device_id is not None
        search = self._searches.get(device_id)
        if search is None:
            location = self._remembered.get(device_id)
            if location is None:
                if self._outputs.hand_over(letter):
                    return
            else:
                now = self._seconds()
                recent = location.forwarded_to if now < location.forwarded_at + RECENT else None
                here = self._outputs.is_here(device_id)
                if recent is None or recent == (None if here else location.node):
                    if not here:
                        self._remembered.move_to_end(device_id)
                        location.forwarded_to, location.forwarded_at = location.node, now
                        self._outputs.forward(letter, location.node)
                        return
                    del self._remembered[device_id]
                    if self._outputs.hand_over(letter):
                        return
            search = self._begin(device_id)
        search.newer.append(letter)
        self._wait(search, letter)

    def returned(self, letter: Letter, by: bytes) -> None:
        """Take back a message that a node has returned, or whose forward found no queue of that node."""
        device_id, hop = letter.to_device_id, letter.hop
        assert device_id is not None
        self.returned_messages += 1
        # Another node than this one has asked if the message was in the queue of a dead node: no other can be on its way here.
        fence = hop is None or hop.asker == self._node()
        returns = 1 if hop is None else hop.returns + 1
        letter.hop = Hop(self._node(), returns, None)
        search = self._searches.get(device_id) or self._begin(device_id)
        location = search.location
        if location is not None and location.node == by:
            self._fence_former(search, location, by)
            search.location = None
        if fence:
            self._fence(search, by)
        if returns < MOST_RETURNS:
            search.returned.append(letter)
            self._wait(search, letter)
        else:
            self._outputs.give_up(letter)
            self._advance(search)
            self._wake()

    def _arrived(self, letter: Letter, hop: Hop) -> None:
        """Hand over a message that another node has forwarded, or give it back."""
        device_id = letter.to_device_id
        assert device_id is not None
        now, key = self._seconds(), (hop.asker, device_id)
        returns, until = self._turned_away.get(key, (-1, 0.0))
        if hop.returns > returns or now >= until:
            if self._outputs.hand_over(letter):
                self._turned_away.pop(key, None)
                return
            returns = hop.returns
        if returns < MOST_RETURNS - 1:  # otherwise this was its last return, and the asker cannot send it again
            self._turned_away[key] = returns, now + RECENT
            self._turned_away.move_to_end(key)
            if len(self._turned_away) > TURNED_AWAY:
                self._turned_away.popitem(last=False)
        self._outputs.give_back(letter)

    def forget(self, source: DeliverySource) -> None:
        """Drop the waiting messages of a consumer that ended, since the broker delivers them again."""
        for search in self._held.holders(source):
            for letters in (search.returned, search.newer):
                kept = [letter for letter in letters if letter.source is not source]
                for _ in range(len(letters) - len(kept)):
                    self._held.remove(source, search)
                letters.clear()
                letters.extend(kept)
            self._end_if_idle(search)
        self._crowded.pop(source, None)

    # -- notices ---------------------------------------------------------------------------------------------------------

    def learn(self, device_id: str, node: bytes, since: int) -> None:
        """Note that a node has, or had, a connection of a device, that was identified at the time `since` (`Claim.since`).

        Only devices that are asked for, or remembered, are of interest: others would displace these.
        """
        search = self._searches.get(device_id)
        location = self._remembered.get(device_id) if search is None else search.location
        if node == self._node():
            if search is not None:
                self._advance(search)  # the device may have connected to this node meanwhile
                self._wake()
        elif location is not None:
            if (since, node) > (location.since, location.node):
                location.node, location.since = node, since
        elif search is not None:
            search.location = _Location(node, since)
            self.answered += search.asking
            self._advance(search)
            self._wake()

    def question_is_back(self, device_id: str) -> None:
        """Note that a question of this node has come back to it. `device_id` is the first device in it."""
        asked = self._not_back.get(device_id)
        if asked is None:
            return
        while self._not_back.popitem(last=False)[0] != device_id:
            pass  # questions come back in order: that one was dropped
        now = self._seconds()
        if now >= asked + SLOW:
            self._time_out_allowed_at = now + CATCH_UP
        self._set_clock(now)
        for source in list(self._crowded):
            self._enforce(source)  # their patience depends on the way of the question
        self._wake()

    def fenced(self, token: str) -> None:
        """Note that a fence is back."""
        fence = self._fences.pop(token, None)
        if fence is not None:
            self._pass(fence)
            self._wake()

    def exchange_is(self, state: ExchangeState) -> None:
        """Note whether questions can be asked."""
        self._state = state
        if state != "up":
            self._not_back.clear()
        self._set_clock(self._seconds())
        if state == "up":
            self._questions.update(self._asked)
        for source in list(self._crowded):
            self._enforce(source)
        self._wake()

    def configure(self, device_timeout: float) -> None:
        """Change the time-out, also for searches that have begun."""
        self.device_timeout = device_timeout
        self._wake()

    # -- searches --------------------------------------------------------------------------------------------------------

    def _begin(self, device_id: str) -> _Search:
        search = _Search(device_id, self._remembered.pop(device_id, None), self._seconds())
        self._searches[device_id] = search
        return search

    def _wait(self, search: _Search, letter: Letter) -> None:
        """Count a message that a search has taken, and look what the search needs."""
        self._held.add(letter.source, search)
        if not search.asking:
            self._advance(search)
        self._enforce(letter.source)
        self._wake()

    def _advance(self, search: _Search) -> None:
        """Ask if it is not known where the device is; send the messages on if it is, and no fence is outstanding."""
        location = search.location
        here = self._outputs.is_here(search.device_id)
        if location is not None:
            self._fence_former(search, location, None if here else location.node)
        elif not here and (search.returned or search.newer):
            self._ask(search)
            return
        self._stop_asking(search)
        if not search.fences:
            self._end(search)
            for letter in self._take(search):
                self._send(letter)

    def _end(self, search: _Search) -> None:
        del self._searches[search.device_id]
        if search.location is not None:
            self._remembered[search.device_id] = search.location
            if len(self._remembered) > self._most:
                self._remembered.popitem(last=False)

    def _end_if_idle(self, search: _Search) -> None:
        """End a search that has no messages any more. Outstanding fences keep it: newer messages have to wait for them."""
        if not search.returned and not search.newer:
            self._stop_asking(search)
            if not search.fences:
                self._end(search)

    def _take(self, search: _Search) -> list[Letter]:
        """Remove and return the messages of a search, in order."""
        letters = [*search.returned, *search.newer]
        search.returned.clear()
        search.newer.clear()
        for letter in letters:
            self._held.remove(letter.source, search)
        return [letter for letter in letters if letter.source.open]

    def _give_up(self, search: _Search) -> None:
        """End the asking without an answer. The messages are recorded, unless the device is connected to this node now."""
        if self._outputs.is_here(search.device_id):
            self._advance(search)
            return
        self.unanswered += 1
        self._stop_asking(search)
        for letter in self._take(search):
            self._outputs.give_up(letter)
        self._end_if_idle(search)

    def _enforce(self, source: DeliverySource) -> None:
        """Let the oldest searches of a source give up while it has too many waiting messages."""
        now = self._seconds()
        share = max(1, source.prefetch // (OWN_SHARE if source.own else SHARE))
        while (waiting := self._held.count(source)) > share:
            oldest = self._held.first(source)
            patience = self._patient_until(oldest)
            if patience > now and not (source.own and waiting > max(1, source.prefetch // 2)):
                self._crowded[source] = patience
                return
            oldest.fences.clear()
            if oldest.asking:
                self._give_up(oldest)
            else:
                self._advance(oldest)
        self._crowded.pop(source, None)

    def _patient_until(self, search: _Search) -> float:
        """Return the time until which a search goes on although too many messages wait."""
        if not search.asking or self._state == "refused":
            return search.began + HURRY
        if search.asked is None or self._state != "up" or search.asked >= self._slow_at() - SLOW:
            return search.began + HURRY_UNASKED
        return search.asked + HURRY

    # -- questions -------------------------------------------------------------------------------------------------------

    def _ask(self, search: _Search) -> None:
        if not search.asking:
            search.asking = True
            search.asked = None
            search.began, search.began_by_clock = self._seconds(), self._clock()
            self._unasked[search] = None
            self._questions[search] = None

    def _stop_asking(self, search: _Search) -> None:
        if search.asking:
            search.asking = False
            for searches in (self._unasked, self._asked, self._questions):
                searches.pop(search, None)

    def _ask_next(self, now: float) -> None:
        """Publish the next question, if there is one and it is allowed."""
        if self._state != "up" or not self._questions or now < self._question_allowed_at:
            return
        self._question_allowed_at = now + QUESTION_INTERVAL
        searches = [search for search, _ in zip(self._questions, range(MOST), strict=False)]
        if not self._outputs.ask([search.device_id for search in searches]):
            return
        self.questions += len(searches)
        self._not_back.setdefault(searches[0].device_id, now)
        for search in searches:
            del self._questions[search]
            if search.asked is None:
                del self._unasked[search]
                self._asked[search] = None
                search.began_by_clock = self._clock()
            search.asked = now
        self._repeats.append((now + REPEAT, searches))
        for source in list(self._crowded):
            self._enforce(source)  # their patience depends on the time of the question

    def _repeat(self, now: float) -> None:
        """Ask again for the devices whose last question is old enough."""
        while self._repeats and self._repeats[0][0] <= now:
            due, searches = self._repeats.popleft()
            for search in searches:
                if search.asking and search.asked is not None and search.asked + REPEAT <= due:
                    if self._outputs.is_here(search.device_id):
                        self._advance(search)
                    else:
                        self._questions[search] = None

    def _set_clock(self, now: float) -> None:
        """Let the clock of the time-out run, unless no answer can come now."""
        if self._state == "refused" or (self._state == "up" and now < self._slow_at()):
            self._clock.resume()
        else:
            self._clock.pause()

    def _slow_at(self) -> float:
        """Return the time from which the broker counts as slow."""
        return next(iter(self._not_back.values())) + SLOW if self._not_back else math.inf

    def _time_out(self, now: float) -> None:
        """Give up the searches whose time-out has passed."""
        self._set_clock(now)
        if now < self._time_out_allowed_at:
            return
        for searches in (self._unasked, self._asked):
            while searches:
                first = next(iter(searches))
                if self._ends_at(first, now) > now + 1e-6:
                    break
                self._give_up(first)
                if first.asking:  # not reached: `_give_up` ends the asking in each case
                    raise RuntimeError("a search goes on after its time-out")

    def _ends_at(self, search: _Search, now: float) -> float:
        """Return the time at which a search ends without an answer, as far as it is known now."""
        longest = search.began + LONGEST
        if self._clock.paused or (search.asked is None and self._state != "refused"):
            return longest
        return min(longest, now + search.began_by_clock + self.device_timeout - self._clock())

    # -- fences ----------------------------------------------------------------------------------------------------------

    def _fence_former(self, search: _Search, location: _Location, target: bytes | None) -> None:
        """Fence the node that messages were forwarded to, if it is not `target`."""
        former = location.forwarded_to
        if former is not None and former != target:
            location.forwarded_to = None
            if self._seconds() < location.forwarded_at + RECENT:
                self._fence(search, former)

    def _fence(self, search: _Search, node: bytes) -> None:
        if node in search.fences:
            return
        fence = self._fences_due.get(node)
        if fence is None:
            fence = self._fences_due[node] = _Fence(node)
        fence.searches.append(search)
        search.fences[node] = fence

    def _send_fences(self, now: float) -> None:
        if not self._fences_due or now < self._fences_allowed_at:
            return
        self._fences_allowed_at = now + QUESTION_INTERVAL
        due, self._fences_due = self._fences_due, {}
        for fence in due.values():
            token = next(self._tokens)
            fence.until = now + FENCE_TIMEOUT
            self._fences[token] = fence
            self._outputs.fence(fence.node, token)

    def _pass(self, fence: _Fence) -> None:
        """Let the searches go on that wait for a fence."""
        for search in fence.searches:
            if search.fences.get(fence.node) is fence:
                del search.fences[fence.node]
                if not search.fences and not search.asking:
                    self._advance(search)

    def _pass_lost(self, now: float) -> None:
        """Let the searches go on whose fence is lost."""
        while self._fences:
            token = next(iter(self._fences))
            if self._fences[token].until > now:
                return
            self._pass(self._fences.pop(token))

    # -- time ------------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due. Called at the time of the last `Outputs.wake_at`; other calls do no harm."""
        now = self._seconds()
        if now >= self._waking + SLOW:
            self._time_out_allowed_at = now + CATCH_UP
        self._waking = math.inf
        self._pass_lost(now)
        self._send_fences(now)
        self._time_out(now)
        self._repeat(now)
        for source in [source for source, due in self._crowded.items() if due <= now]:
            self._enforce(source)
        self._ask_next(now)
        self._wake()

    def _wake(self) -> None:
        """Request a `tick` for the earliest thing that is due."""
        now = self._seconds()
        due = math.inf
        if self._fences_due:
            due = max(now, self._fences_allowed_at)
        if self._questions and self._state == "up":
            due = min(due, max(now, self._question_allowed_at))
        if self._fences:
            due = min(due, next(iter(self._fences.values())).until)
        if self._repeats:
            due = min(due, self._repeats[0][0])
        for searches in (self._unasked, self._asked):
            if searches:
                due = min(due, max(self._ends_at(next(iter(searches)), now), self._time_out_allowed_at))
        if self._asked and not self._clock.paused:
            due = min(due, self._slow_at())
        if self._crowded:
            due = min(due, min(self._crowded.values()))
        due = max(now, due)
        if due < self._waking:
            self._waking = due
            self._outputs.wake_at(due)
