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
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import count
from typing import Any, Final, Protocol

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..broker import headers as delivery
from ..broker import queues as topology
from ..broker.acks import AckTracker
from ..broker.client import BaseHandler, BrokerClient, BrokerError, as_failure
from ..broker.packing import APP_ID
from ..broker.queue_state import inspect_queue
from ..broker.refusals import RefusalHistory
from ..broker.retry_delay import RetryDelay
from ..events import BrokerWarning, Event, NodeLost
from ..interfaces import Clock, DelayedCall
from .cleanup import Cleanup, Recorder
from .members import FIRST, GONE, HERE, LEFT, RENEW, RENEWED, Members, Notice, Sight, Verdict

REGISTER: Final = 1
"""The channel that publishes notices, and consumes them."""
SCRATCH: Final = 2
"""The channel for declarations."""
LOOK: Final = 3
"""The channel on which queues are looked at."""
CLEANUP: Final = 4
"""The first of the channels for clean-ups: each has two."""

CLEANUPS: Final = 50
"""Clean-ups at a time, at most; fewer where the broker's `channel_max` allows fewer channels."""

RETRY: Final = 10.0
"""Seconds after which a clean-up that the broker refused is tried again."""

LOOKS: Final = 5
"""How often a node is looked at within its grace."""

LEAST_INTERVAL: Final = 0.2
MOST_INTERVAL: Final = 2.0
"""Seconds between two looks at a node."""

HANDOVER: Final = 1.0
"""Seconds within which a new registrar has the notices that the last one held."""

REGROUP: Final = 7.0
"""Seconds after a reconnect in which no node is dead: all have lost their connections, and back off for up to 5."""

NOT_IMPLEMENTED: Final = 540
"""RabbitMQ has no conditional deletion of a quorum queue; asking for one ends the connection."""


def register_queue(to_device: str, arguments: Mapping[str, Any]) -> topology.Queue:
    """The register of nodes: `<to-device>.nodes`. It is replicated where the nodes' own queues are (`arguments` are theirs)."""
    kind = {name: value for name, value in arguments.items() if name.startswith(("x-queue-type", "x-quorum-"))}
    return topology.Queue(f"{to_device}.nodes", {"x-single-active-consumer": True, **kind}, own=True)


class Announcer(Protocol):
    """Presence, as far as it is about nodes."""

    def node_lost(self, node: str) -> None:
        """Tell back ends that a node is lost."""

    def has_announced(self, node: str) -> bool:
        """Whether the broker has that."""


class _Word:
    """Something to be published."""

    __slots__ = ("arrived", "body", "key", "properties", "queue", "returned")

    def __init__(
        self, key: str, queue: str, properties: Mapping[str, Any], body: bytes, arrived: Callable[[], None] | None = None
    ) -> None:
        self.key = key
        """Of two with the same one, only the newer is still of interest."""
        self.queue = queue
        self.properties = properties
        self.body = body
        self.arrived = arrived
        self.returned = False


class Registrar(BaseHandler):
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
        users: Collection[str],
        courier: Recorder,
        presence: Announcer | None,
        joined: Callable[[], None],
    ) -> None:
        """`node()` is this node's name; `node_grace` in seconds. `users` are the names that nodes log in with: others' notices
        are not believed. `joined` is called when this node has joined the others.
        """
        self._clock = clock
        self._emit = emit
        self._node = node
        self._to_device = to_device
        self._register = register
        self._courier = courier
        self._presence = presence
        self._users = users
        self._on_joined = joined
        self.joined = False
        """Whether the broker has confirmed this node's notice once, and so takes publishes. Where the register cannot be used
        that cannot be known, and is not waited for.
        """
        self._members = Members(
            lambda: node().decode(), node_grace, min(MOST_INTERVAL, max(LEAST_INTERVAL, node_grace / LOOKS))
        )
        self._here = False  # this node's own queue is consumed
        self._left = False
        self._client: BrokerClient | None = None
        self._ready = False  # the channel takes notices
        self._was_up = False
        self._waiting: dict[str, _Word] = {}
        self._sent: dict[int, _Word] = {}
        self._next_tag = 1
        self._acks = AckTracker()
        self._round_call: DelayedCall | None = None
        self._looking = False
        self._renew_call: DelayedCall | None = None
        self._dead: deque[str] = deque()
        self._cleanups: dict[int, Cleanup] = {}  # by their first channel
        self._telling: list[str] = []
        self._active_since: float | None = None  # when the register's first notice came to this node
        self._vanished = False  # the operator knows that the register loses notices
        self._retry_call: DelayedCall | None = None
        self._retry_wait = RetryDelay(first=0.2, most=30.0)
        self._refusals = RefusalHistory()
        self._warned: str | None = None
        self._troubled = False  # something was refused since a message was confirmed last
        self._plain = False  # the nodes' queues are quorum queues

    # -- what others ask of it -------------------------------------------------------------------------------------------

    def here(self) -> None:
        """This node's own queue is consumed: say so."""
        if not self._left:
            self._here = True
            self._say_here()

    def _say_here(self, origin: str = FIRST) -> None:
        """Put this node's notice into the register, now and from time to time."""
        if self._renew_call is not None and self._renew_call.active():
            self._renew_call.cancel()
        self._renew_call = None
        if self._here and self._ready:
            key = self._key(HERE, self._me)
            if origin == FIRST or not any(word.key == key for word in self._sent.values()):  # the broker may be blocked
                self._notice(Notice(self._me, HERE, origin))
            self._renew_call = self._clock.callLater(RENEW, self._say_here, RENEWED)

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

    def gone(self, node: str, served: bool) -> None:
        """A node's process is dead: it need not be waited for. Known for certain, by the parent of that process. `served`: it
        had its port open, so that back ends may know of connections.

        The registrar is told, whoever that is, so that it is one node only that buries. What cannot be told yet is kept.
        """
        self._notice(Notice(node, GONE if served else LEFT))

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Send a notice to this node's own queue; `arrived` is called when the broker has it."""
        self._say(_Word("probe", queue, _to_a_node(text), b"", arrived))

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
        return self._ready and self._me in self._members

    @property
    def alone(self) -> bool:
        """Whether this node is the registrar, and has nobody else on the roll."""
        return self.listed and len(self._members) == 1

    @property
    def _me(self) -> str:
        return self._node().decode()

    # -- publishing ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _key(state: str, node: str) -> str:
        return f"{state} {node}"

    def _notice(self, notice: Notice) -> None:
        key = self._key(notice.state, notice.node)
        self._say(_Word(key, self._register.name, {"content_type": "application/json"}, notice.pack()))

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
            # RabbitMQ takes no other user's name than that of the login: so a notice shows who has written it.
            properties = wire.encode_properties(
                {**word.properties, "user_id": client.username, "delivery_mode": 2, "app_id": APP_ID}
            )
            client.write(
                wire.frame(
                    wire.FRAME_METHOD,
                    REGISTER,
                    encode_method("basic.publish", routing_key=word.queue.encode(), mandatory=True),
                )
                + wire.content_frames(REGISTER, wire.header_payload(len(word.body), properties), word.body, client.frame_max)
            )
        self._waiting.clear()

    def confirmed(self, tag: int, multiple: bool) -> None:
        missing = False
        for word in self._take(tag, multiple):
            if not word.returned:
                self._refusals.accepted(word.queue)
                if not self._waiting:  # nothing that is refused
                    self._retry_wait.reset()
                    if self._troubled:
                        self._troubled = False
                        self._warned = None
                if word.arrived is not None:
                    word.arrived()
                if word.key == self._key(HERE, self._me):
                    self._join()
            elif word.queue == self._register.name:
                missing = True
                self._waiting.setdefault(word.key, word)
        if missing:
            self._begin_again(f"the queue {self._register.name} is gone; declaring it again")

    def refused(self, tag: int, multiple: bool) -> None:
        for word in self._take(tag, multiple):
            self._put_back(word)
            self._refusals.refused(word.queue)
        self._troubled = True
        self._warn("a queue of the nodes refuses a message; trying again")
        self._join()
        if self._retry_call is None:
            self._retry_call = self._clock.callLater(self._retry_wait.next(), self._go_on)

    def _join(self) -> None:
        if not self.joined:
            self.joined = True
            self._on_joined()

    def _go_on(self) -> None:
        self._retry_call = None
        if self._refusals.needs_new_channel():
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

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        await self._set_up(client)

    async def _set_up(self, client: BrokerClient) -> None:
        """Declare and consume the register. What the broker refuses is tried again: devices do not wait for that."""
        self._members.begin(self._clock.seconds() + REGROUP if self._was_up else 0.0)
        self._acks = AckTracker()
        self._next_tag = 1
        self._refusals.channel_opened()
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
            self._say_here()
            self._publish()

    def down(self) -> None:
        self._client = None
        self._forget()

    def _forget(self) -> None:
        """The channel is gone, and the notices with it. What was said of others, and to oneself, is kept."""
        self._ready = False
        for call in (self._round_call, self._retry_call, self._renew_call):
            if call is not None and call.active():
                call.cancel()
        self._round_call = self._retry_call = self._renew_call = None
        self._looking = False
        for cleanup in self._cleanups.values():
            cleanup.abandon()
        self._cleanups.clear()
        self._acks = AckTracker()
        self._active_since = None
        self._dead.clear()
        self._telling.clear()
        self._members.begin(0.0)
        sent, self._sent = list(self._sent.values()), {}
        for word in sent:
            self._put_back(word)

    def _put_back(self, word: _Word) -> None:
        """Publish a message again later, unless it says that this node is here and that is not so any more."""
        if self._here or word.key != self._key(HERE, self._me):
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
        self._troubled = True
        self._warn(why)
        self._join()
        self._forget()
        self._retry_call = self._clock.callLater(self._retry_wait.next(), self._reset)

    def _reset(self) -> None:
        self._retry_call = None
        client = self._client
        if client is not None:
            client.run(self._set_up_again(client))

    async def _set_up_again(self, client: BrokerClient) -> None:
        for number in [number for number in client.channels if number == REGISTER or number >= CLEANUP]:
            await client.end_channel(number)
        await self._set_up(client)

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))

    # -- the registrar ---------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        notice = Notice.read(body)
        user = _user(header)
        if notice is None or user not in self._users:
            what = "is none of a node's" if notice is None else f"was written by {user or 'nobody'}, and not by a node"
            self._warn(f"a message on {self._register.name} {what}; it is dropped")
            self._done([tag])
            return
        now = self._clock.seconds()
        self._active_since = now if self._active_since is None else self._active_since
        # What another registrar held comes first, and after a restart of the broker not always as delivered before.
        fresh = not redelivered and now - self._active_since > HANDOVER
        if fresh and self._members.vanished(notice) and not self._vanished:
            self._vanished = True
            self._warn(
                f"notices vanish from {self._register.name}, and are renewed: make sure that no policy with a message-ttl or a "
                "max-length applies to it"
            )
        self._done(self._members.heard(tag, notice, now, redelivered))
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
        if self._round_call is None and not self._looking and self._ready and len(self._members):
            self._round_call = self._clock.callLater(self._members.interval(self._clock.seconds()), self._round)

    def _round(self) -> None:
        self._round_call = None
        client = self._client
        if client is not None:
            self._looking = True
            client.run(self._look_round(client, self._acks))

    async def _look_round(self, client: BrokerClient, life: AckTracker) -> None:
        """Look at everybody once. `life` is that of the channel: what is found out after its end is of no use."""
        for node in self._members.due():
            sight = await self._look(client, node)
            if life is not self._acks or client is not self._client:
                return
            verdict, tags = self._members.saw(node, sight, self._clock.seconds())
            self._done(tags)
            if verdict is Verdict.BURY:
                self._dead.append(node)
                self._members.burying(node)
        self._tell()
        for notice in self._members.stale(self._clock.seconds()):
            self._notice(notice)
        for node in self._members.surprised():
            self._say(_Word(f"{delivery.LOST_NOTICE} {node}", self._queue(node), _to_a_node(delivery.LOST_NOTICE), b""))
        self._looking = False
        self._schedule()
        self._clean_up(client, life)

    def _queue(self, node: str) -> str:
        return f"{self._to_device}.{node}"

    async def _look(self, client: BrokerClient, node: str) -> Sight:
        try:
            found = await inspect_queue(client, LOOK, self._queue(node))
        except BrokerError as error:
            self._warn(f"the queue {self._queue(node)} cannot be looked at: {error}")
            return Sight.UNKNOWN
        if found is None:
            return Sight.MISSING
        return Sight.CONSUMED if found.consumers else Sight.IDLE

    # -- clean-ups -------------------------------------------------------------------------------------------------------

    def _clean_up(self, client: BrokerClient, life: AckTracker) -> None:
        most = max(1, min(CLEANUPS, (client.channel_max - CLEANUP + 1) // 2))
        while self._dead and len(self._cleanups) < most:
            node = self._dead.popleft()
            channel = next(number for number in count(CLEANUP, 2) if number not in self._cleanups)
            self._cleanups[channel] = Cleanup(
                client,
                channel,
                self._queue(node),
                self._clock,
                self._courier,
                partial(self._announce, node),
                self._warn,
            )
            client.run(self._clean_up_after(client, life, node, channel))

    async def _clean_up_after(self, client: BrokerClient, life: AckTracker, node: str, channel: int) -> None:
        """Empty and delete the queue of a node that is gone. `life` as for `_look_round`."""
        queue = self._queue(node)
        cleanup = self._cleanups[channel]
        refused: BrokerError | None = None
        gone = False
        try:
            gone = await cleanup.run(plain=self._plain)
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if isinstance(reason, BrokerError) and reason.code == NOT_IMPLEMENTED:
                self._plain = True
            if life is not self._acks or client is not self._client:
                return
            if not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            refused = reason
        if life is self._acks and client is self._client:
            await cleanup.end()
        if life is not self._acks or client is not self._client:
            return
        del self._cleanups[channel]
        if gone:
            self._courier.lost(queue)
            self._telling.append(node)
            self._tell()
        elif refused is not None:
            self._warn(f"the queue {queue} of a node that is gone cannot be emptied: {refused}; trying again")
            self._done(self._members.spared(node, self._clock.seconds() + RETRY))
        else:
            self._done(self._members.spared(node))
        self._schedule()
        self._clean_up(client, life)

    def _announce(self, node: str, messages: int) -> None:
        """Tell everybody that a node is lost, unless it said goodbye."""
        if self._members.loud(node):
            self._members.announced(node)
            self._emit(NodeLost(node, messages))
            if self._presence is not None:
                self._presence.node_lost(node)

    def _tell(self) -> None:
        """Strike those who are buried, and of whom back ends were told."""
        for node in list(self._telling):
            if self._presence is None or self._presence.has_announced(node):
                self._telling.remove(node)
                self._done(self._members.buried(node))


def _to_a_node(text: str) -> dict[str, Any]:
    """Return the properties of what nodes tell each other on their own queues."""
    return {"headers": {delivery.NOTICE: text}}


def _user(header: bytes) -> str | None:
    """Return the broker's word for who has published a message."""
    try:
        user = wire.decode_properties(header, 12).get("user_id")
    except WireError:
        return None
    return user if isinstance(user, str) else None
