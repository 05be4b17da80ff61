"""The nodes among themselves: who is there, and what becomes of what a dead one leaves behind.

There is no protocol between nodes. Each puts a notice that it is here into the register, the queue `<to-device>.nodes`, and
consumes it; RabbitMQ makes one of them the only active consumer, and the next one when that goes. So one node, the registrar,
holds everybody's notices, and the broker tells it who is alive: a node's own queue has a consumer as long as the node does.
What is decided of that is in `roll`; here is what connects it to the broker.

This is a role for a connection of its own. When the registrar's connection ends, the register must go to another one that can
do the work, and this connection is what the work is done on; the consumers' own never publishes, so that an alarm of the
broker's does not stop it; and the courier closes its connection over a message that the broker does not like, which is no
reason to change the registrar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..boundaries import Clock, DelayedCall, Letter
from ..events import BrokerWarning, Event, NodeLost
from . import delivery, topology
from .acks import AckTracker
from .backoff import Backoff
from .consumer import letter
from .doubts import Doubts
from .looking import Found, look
from .packing import APP_ID
from .protocol import BaseHandler, BrokerError, BrokerProtocol, Getter, as_failure
from .roll import GONE, HERE, LEFT, LOST, Notice, Roll, Sight, Verdict

REGISTER: Final = 1
"""The channel that publishes notices, and consumes them."""
SCRATCH: Final = 2
"""The channel for declarations."""
LOOK: Final = 3
"""The channel on which queues are looked at."""
BURIAL: Final = 4
"""The channel that empties a dead node's queue."""
GRAVE: Final = 5
"""The channel on which that queue is looked at."""

LOOKS: Final = 5
"""How often a node is looked at within its grace."""

LEAVING: Final = 5.0
"""Seconds for which a consumer of ours that has left may still be counted among those of a queue."""

LEAST_INTERVAL: Final = 0.2
MOST_INTERVAL: Final = 2.0
"""Seconds between two looks at a node."""

REGROUP: Final = 7.0
"""Seconds after a reconnect in which no node is dead: all have lost their connections, and back off for up to 5."""

AT_ONCE: Final = 200
"""Messages of a dead node's queue that are in memory at once."""

LOCKED: Final = 405
"""RabbitMQ has no basic.get for a quorum queue with a single active consumer."""
NOT_IMPLEMENTED: Final = 540
"""Nor a conditional deletion of a quorum queue; that ends the connection."""


def register_queue(to_device: str, arguments: Mapping[str, Any]) -> topology.Queue:
    """The register of nodes: `<to-device>.nodes`. It is replicated where the nodes' own queues are (`arguments` are theirs)."""
    kind = {name: value for name, value in arguments.items() if name.startswith(("x-queue-type", "x-quorum-"))}
    return topology.Queue(f"{to_device}.nodes", {"x-single-active-consumer": True, **kind})


class Recorder(Protocol):
    """The courier, as a burial sees it."""

    def record(self, letter: Letter, reason: str) -> None:
        """Bring it to the undeliverable queue, and say that it is done."""

    def lost(self, queue: str) -> None:
        """The node of this queue is dead."""


class Announcer(Protocol):
    """Presence, as far as it is about nodes."""

    def node_lost(self, node: str) -> None:
        """Tell back ends that a node is lost."""

    def told(self, node: str) -> bool:
        """Whether the broker has that."""


class _Word:
    """Something to be published."""

    __slots__ = ("arrived", "body", "key", "properties", "queue", "returned")

    def __init__(
        self, key: str, queue: str, properties: bytes, body: bytes, arrived: Callable[[], None] | None = None
    ) -> None:
        self.key = key
        """Of two with the same one, only the newer is still of interest."""
        self.queue = queue
        self.properties = properties
        self.body = body
        self.arrived = arrived
        self.returned = False


class Roster(BaseHandler):
    """This node's notice to the others; and the registrar's work, when that falls to it."""

    name = "roster"

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        node: Callable[[], bytes],
        to_device: str,
        register: topology.Queue,
        node_grace: float,
        courier: Recorder,
        presence: Announcer | None,
        now: Callable[[], float],
    ) -> None:
        """`node()` is this node's name; `node_grace` in seconds; `now()` is in seconds since the epoch."""
        self._clock = clock
        self._emit = emit
        self._node = node
        self._to_device = to_device
        self._register = register
        self._courier = courier
        self._presence = presence
        self._now = now
        self._roll = Roll(
            lambda: node().decode(), node_grace, min(MOST_INTERVAL, max(LEAST_INTERVAL, node_grace / LOOKS))
        )
        self._here = False  # this node's own queue is consumed
        self._left = False
        self._client: BrokerProtocol | None = None
        self._ready = False  # the channel takes notices
        self._was_up = False
        self._waiting: dict[str, _Word] = {}
        self._sent: dict[int, _Word] = {}
        self._next_tag = 1
        self._acks = AckTracker()
        self._round_call: DelayedCall | None = None
        self._looking = False
        self._graves: deque[str] = deque()
        self._burying = False
        self._burial: Burial | None = None
        self._telling: list[str] = []
        self._retry_call: DelayedCall | None = None
        self._retry_wait = Backoff(first=0.2, most=30.0)
        self._doubts = Doubts()
        self._warned: str | None = None
        self._plain = False  # the nodes' queues are quorum queues

    # -- what others ask of it -------------------------------------------------------------------------------------------

    def here(self) -> None:
        """This node's own queue is consumed: say so."""
        if not self._left:
            self._here = True
            self._notice(Notice(self._me, HERE))

    def away(self) -> None:
        """This node's own queue is not consumed. The register has its notice; another one, from a node that was said to be lost
        and is not back with all of itself, would have it said again.
        """
        self._here = False
        self._waiting.pop(self._key(HERE, self._me), None)

    def leave(self) -> None:
        """This node stops in order, and every back end was told of its connections: there is nothing to tell of it."""
        self._waiting.pop(self._key(HERE, self._me), None)
        self._here = False
        self._left = True
        self._notice(Notice(self._me, LEFT))

    def moved(self, node: str) -> None:
        """This node had that name before. Its connections are said to be closed one by one."""
        self._here = False
        self._waiting.pop(self._key(HERE, node), None)
        self._notice(Notice(node, LEFT))

    def gone(self, node: str) -> None:
        """A node's process is dead: it need not be waited for. Known for certain, by the parent of that process.

        The registrar is told, whoever that is, so that it is one node only that buries. What cannot be told yet is kept.
        """
        self._notice(Notice(node, GONE))

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Send a notice to this node's own queue; `arrived` is called when the broker has it."""
        self._say(_Word("probe", queue, _notice_properties(text), b"", arrived))

    @property
    def unconfirmed(self) -> int:
        """Whether this node's goodbye has not arrived: what a stop waits for. Not for the broker: without it, the others will
        miss this node.
        """
        if not self._left or not self._ready:
            return 0
        left = self._key(LEFT, self._me)
        return int(left in self._waiting or any(word.key == left for word in self._sent.values()))

    @property
    def listed(self) -> bool:
        """Whether this node is the registrar, and has itself on the roll."""
        return self._ready and self._me in self._roll

    @property
    def alone(self) -> bool:
        """Whether this node is the registrar, and has nobody else on the roll."""
        return self.listed and len(self._roll) == 1

    @property
    def _me(self) -> str:
        return self._node().decode()

    # -- publishing ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _key(state: str, node: str) -> str:
        return f"{state} {node}"

    def _notice(self, notice: Notice) -> None:
        self._say(_Word(self._key(notice.state, notice.node), self._register.name, _PERSISTENT, notice.pack()))

    def _say(self, word: _Word) -> None:
        self._waiting.pop(word.key, None)
        self._waiting[word.key] = word
        self._publish()

    def _publish(self) -> None:
        client = self._client
        if client is None or not self._ready or self._retry_call is not None:
            return
        for word in self._waiting.values():
            word.returned = False
            self._sent[self._next_tag] = word
            self._next_tag += 1
            client.write(
                wire.frame(
                    wire.FRAME_METHOD,
                    REGISTER,
                    encode_method("basic.publish", routing_key=word.queue.encode(), mandatory=True),
                )
                + wire.content_frames(
                    REGISTER, wire.header_payload(len(word.body), word.properties), word.body, client.frame_max
                )
            )
        self._waiting.clear()

    def confirmed(self, tag: int, multiple: bool) -> None:
        missing = False
        for word in self._take(tag, multiple):
            if not word.returned:
                self._doubts.taken(word.queue)
                if not self._waiting:  # nothing that is refused
                    self._retry_wait.reset()
                    self._warned = None
                if word.arrived is not None:
                    word.arrived()
            elif word.queue == self._register.name:
                missing = True
                self._waiting.setdefault(word.key, word)
        if missing:
            self._begin_again(f"the queue {self._register.name} is gone; declaring it again")

    def refused(self, tag: int, multiple: bool) -> None:
        for word in self._take(tag, multiple):
            self._waiting.setdefault(word.key, word)
            self._doubts.refused(word.queue)
        self._warn("a queue of the nodes refuses a message; trying again")
        if self._retry_call is None:
            self._retry_call = self._clock.callLater(self._retry_wait.next(), self._go_on)

    def _go_on(self) -> None:
        self._retry_call = None
        if self._doubts.again():
            self._forget()
            self._reset()
        elif self._client is not None:
            self._client.run(self._publish_again())

    async def _publish_again(self) -> None:
        self._publish()

    def _take(self, tag: int, multiple: bool) -> list[_Word]:
        if tag >= self._next_tag:
            raise WireError(f"delivery tag {tag} is none of those in flight")
        tags = [sent for sent in self._sent if not tag or sent <= tag] if multiple else [tag] if tag in self._sent else []
        return [self._sent.pop(tag) for tag in tags]

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        # A return carries no tag. Those for one queue are all returned, or none of them is.
        for word in self._sent.values():
            if word.queue == routing_key:
                word.returned = True

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerProtocol) -> None:
        self._client = client
        await self._set_up(client)

    async def _set_up(self, client: BrokerProtocol) -> None:
        """Declare and consume the register. What the broker refuses is tried again: devices do not wait for that."""
        self._roll.begin(self._clock.seconds() + REGROUP if self._was_up else 0.0)
        self._acks = AckTracker()
        self._next_tag = 1
        self._doubts.began()
        try:
            await topology.declare(client, SCRATCH, self._register, self._warn)
            channel = await client.open_channel(REGISTER, self)
            await channel.confirm_select()
            await channel.basic_consume(queue=self._register.name, consumer_tag="owsla-roster")
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if client is not self._client or not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            self._begin_again(f"the register of nodes, {self._register.name}, cannot be used: {reason}; trying again")
            return
        if client is self._client:
            self._ready = self._was_up = True
            if self._here:
                self._notice(Notice(self._me, HERE))
            self._publish()

    def down(self) -> None:
        self._client = None
        self._forget()

    def _forget(self) -> None:
        """The channel is gone, and the notices with it. What was said of others, and to oneself, is kept."""
        self._ready = False
        for call in (self._round_call, self._retry_call):
            if call is not None and call.active():
                call.cancel()
        self._round_call = self._retry_call = None
        self._looking = self._burying = False
        if self._burial is not None:
            self._burial.open = False
            self._burial = None
        self._acks = AckTracker()
        self._graves.clear()
        self._telling.clear()
        self._roll.begin(0.0)
        sent, self._sent = list(self._sent.values()), {}
        for word in sent:
            self._waiting.setdefault(word.key, word)

    def blocked(self, reason: str) -> None:
        """Nothing to do: what is asked is answered late, and no answer proves nothing."""

    def unblocked(self) -> None: ...

    def closed(self, reason: Failure) -> None:
        if self._client is not None and not self._client.closed and self._ready:
            self._begin_again(f"the register of nodes, {self._register.name}, cannot be used: {reason.value}; trying again")

    def cancelled(self, consumer_tag: str) -> None:
        self._begin_again(f"the queue {self._register.name} is gone; declaring it again")

    def _begin_again(self, why: str) -> None:
        """Try once more with new channels, on the same connection."""
        self._warn(why)
        self._forget()
        self._retry_call = self._clock.callLater(self._retry_wait.next(), self._reset)

    def _reset(self) -> None:
        self._retry_call = None
        client = self._client
        if client is not None:
            client.run(self._set_up_again(client))

    async def _set_up_again(self, client: BrokerProtocol) -> None:
        for number in (REGISTER, BURIAL):
            await client.end_channel(number)
        await self._set_up(client)

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))

    # -- the registrar ---------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        notice = Notice.read(body)
        if notice is None:
            self._warn(f"a message on {self._register.name} is none of a node's; it is dropped")
            self._done([tag])
            return
        self._done(self._roll.heard(tag, notice, self._clock.seconds()))
        if notice.state != HERE and self._round_call is not None and self._round_call.active():
            self._round_call.cancel()
            self._round_call = None
        self._schedule()

    def _done(self, tags: list[int]) -> None:
        for tag in tags:
            self._acks.done(tag)
        if self._client is None or not tags:
            return
        top, alone = self._acks.take()
        if top:
            self._client.ack(REGISTER, top, True)
        for tag in alone:
            self._client.ack(REGISTER, tag, False)

    def _schedule(self) -> None:
        if self._round_call is None and not self._looking and self._ready and len(self._roll):
            self._round_call = self._clock.callLater(self._roll.interval(self._clock.seconds()), self._round)

    def _round(self) -> None:
        self._round_call = None
        client = self._client
        if client is not None:
            self._looking = True
            client.run(self._look_round(client, self._acks))

    async def _look_round(self, client: BrokerProtocol, life: AckTracker) -> None:
        """Look at everybody once. `life` is that of the channel: what is found out after its end is of no use."""
        for node in self._roll.due():
            sight = await self._look(client, node)
            if life is not self._acks or client is not self._client:
                return
            verdict, tags = self._roll.saw(node, sight, self._clock.seconds())
            self._done(tags)
            if verdict is Verdict.BURY:
                self._graves.append(node)
                self._roll.burying(node)
        self._tell()
        for notice in self._roll.stale(self._clock.seconds()):
            self._notice(notice)
        for node in self._roll.surprised():
            self._say(_Word(f"{LOST} {node}", self._queue(node), _notice_properties(LOST), b""))
        self._looking = False
        self._schedule()
        self._dig(client, life)

    def _queue(self, node: str) -> str:
        return f"{self._to_device}.{node}"

    async def _look(self, client: BrokerProtocol, node: str) -> Sight:
        try:
            found = await look(client, LOOK, self._queue(node))
        except BrokerError as error:
            self._warn(f"the queue {self._queue(node)} cannot be looked at: {error}")
            return Sight.UNKNOWN
        if found is None:
            return Sight.MISSING
        return Sight.CONSUMED if found.consumers else Sight.IDLE

    # -- burials ---------------------------------------------------------------------------------------------------------

    def _dig(self, client: BrokerProtocol, life: AckTracker) -> None:
        if self._graves and not self._burying:
            self._burying = True
            client.run(self._bury(client, life))

    async def _bury(self, client: BrokerProtocol, life: AckTracker) -> None:
        """Empty the queues of dead nodes and delete them, one after another."""
        while self._graves:
            node = self._graves.popleft()
            queue = self._queue(node)
            burial = self._burial = Burial(client, queue, self._clock, self._courier, self._now)
            try:
                came_back = not await burial.run(plain=self._plain)
                refused = None
            except (BrokerError, Closed) as error:
                reason = as_failure(error).value
                if isinstance(reason, BrokerError) and reason.code == NOT_IMPLEMENTED:
                    self._plain = True
                if not isinstance(reason, BrokerError) or reason.scope != "channel":
                    raise
                came_back, refused = True, reason
            if life is not self._acks or client is not self._client:
                return
            if refused is not None:
                self._warn(f"the queue {queue} of a dead node cannot be emptied: {refused}; trying again")
            if came_back:
                self._done(self._roll.spared(node))
                continue
            self._courier.lost(queue)
            if self._roll.loud(node):
                self._emit(NodeLost(node, burial.messages))
                if self._presence is not None:
                    self._presence.node_lost(node)
            self._telling.append(node)
            self._tell()
        self._burying = False
        self._schedule()

    def _tell(self) -> None:
        """Strike those who are buried, and of whom back ends were told."""
        for node in list(self._telling):
            if self._presence is None or self._presence.told(node):
                self._telling.remove(node)
                self._done(self._roll.buried(node))


class Burial(Getter):
    """Takes what is in a dead node's queue, has it put on record, and deletes the queue."""

    open = True
    prefetch = AT_ONCE
    own = True

    def __init__(
        self,
        client: BrokerProtocol,
        queue: str,
        clock: Clock,
        courier: Recorder,
        now: Callable[[], float],
    ) -> None:
        """`now()` is in seconds since the epoch."""
        self._client = client
        self._queue = queue
        self._clock = clock
        self._courier = courier
        self._now = now
        self._asked = 0
        self._held = 0
        self._empty = False
        self._settled: Deferred[None] | None = None
        self._end: Failure | None = None
        self.messages = 0
        """How many were put on record."""

    async def run(self, *, plain: bool) -> bool:
        """Whether the queue is gone; if not, the node is back. `plain`: it is a quorum queue, which has no conditions.

        Raises `BrokerError` where the broker will not have it, and `Closed` when the connection ends.
        """
        while True:
            found = await look(self._client, GRAVE, self._queue)
            if found is None:
                return True
            if found.consumers:
                return False
            try:
                await self._take_all()
            except BrokerError as error:
                if error.code == topology.NOT_FOUND:
                    return True
                if error.code != LOCKED:
                    raise
                plain = True
                if not await self._consume_all():
                    return False
            found = await self._without_us()
            if found is None:
                return True
            if found.consumers:
                return False
            if not found.messages and await self._delete(plain):
                return True

    async def _channel(self) -> Any:
        await self._client.end_channel(BURIAL)
        self._end = None
        self.open = True
        return await self._client.open_channel(BURIAL, self)

    async def _take_all(self) -> None:
        """Ask for messages until there are none: as a consumer of a queue that has a single active one we would be in the way
        of a node that comes back.
        """
        await self._channel()
        self._empty = False
        while not self._empty:
            self._asked = AT_ONCE
            for _ in range(AT_ONCE):
                self._client.get(BURIAL, self._queue)
            await self._all_settled()

    async def _consume_all(self) -> bool:
        """The same by consuming, where there is no other way. Whether nobody else came."""
        channel = await self._channel()
        await channel.basic_qos(prefetch_count=AT_ONCE)
        await channel.basic_consume(queue=self._queue, consumer_tag="owsla-burial")
        while True:
            await self._all_settled()
            found = await look(self._client, GRAVE, self._queue)
            if found is None or found.consumers > 1:
                break
            if not found.messages and not self._held:
                break
            await self._wait()
        self.open = False
        await self._client.end_channel(BURIAL)
        return found is None or found.consumers < 2

    async def _without_us(self) -> Found | None:
        """What is in the queue, and who, once our own consumer has left it: of a quorum queue a busy broker says so late, and
        to take ourselves for the node would leave it unburied.
        """
        patience = self._clock.seconds() + LEAVING
        while True:
            found = await look(self._client, GRAVE, self._queue)
            if found is None or not found.consumers or self._clock.seconds() >= patience:
                return found
            await self._wait()

    async def _wait(self) -> None:
        waiting: Deferred[None] = Deferred()
        self._clock.callLater(LEAST_INTERVAL, waiting.callback, None)
        await waiting

    async def _delete(self, plain: bool) -> bool:
        """Whether it is deleted; if not, something came into it, or somebody."""
        channel = await self._channel()
        try:
            await channel.queue_delete(queue=self._queue, if_unused=not plain, if_empty=not plain)
        except Closed as closed:
            error = as_failure(closed).value
            if not isinstance(error, BrokerError) or error.scope != "channel":
                raise
            if error.code != topology.PRECONDITION_FAILED:
                raise error from None
            return False
        return True

    # -- messages --------------------------------------------------------------------------------------------------------

    def got(self, tag: int, header: bytes, body: bytes) -> None:
        self._asked -= 1
        self.deliver(tag, False, header, body)

    def got_nothing(self) -> None:
        self._asked -= 1
        self._empty = True
        self._check()

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._held += 1
        try:
            connection_id, seq, _ = delivery.read(header)
            address = delivery.details(header)
        except WireError:
            one = Letter(self, tag, header, body, None, None)
        else:
            if address.notice is not None:
                self.done(tag)  # the node's own, to itself
                return
            one = letter(self, tag, header, body, connection_id, seq, address, self._now)
        self.messages += 1
        self._courier.record(one, "unknown-connection")

    def done(self, tag: int) -> None:
        self._held -= 1
        if self.open:
            self._client.ack(BURIAL, tag, False)
        self._check()

    def closed(self, reason: Failure) -> None:
        self.open = False
        self._end = reason
        self._check()

    def _check(self) -> None:
        waiting = self._settled
        if waiting is not None and (self._end is not None or not (self._asked or self._held)):
            self._settled = None
            waiting.callback(None)

    async def _all_settled(self) -> None:
        if self._end is None and (self._asked or self._held):
            self._settled = Deferred()
            await self._settled
        if self._end is not None:
            self._asked = self._held = 0
            reason = self._end.value
            raise reason if isinstance(reason, BrokerError) else Closed(reason)


_PERSISTENT: Final = wire.encode_properties({"delivery_mode": 2, "content_type": "application/json", "app_id": APP_ID})


def _notice_properties(text: str) -> bytes:
    return wire.encode_properties({"headers": {delivery.NOTICE: text}, "delivery_mode": 2, "app_id": APP_ID})
