"""The registrar role: the nodes of a cluster know of each other, and one of them cleans up after dead nodes.

Theory of operation
===================

Nodes do not talk to each other. Each publishes a notice to the register, the queue `<to-device>.nodes`, and consumes that
queue. RabbitMQ makes one of the consumers the only active one, and another one when that ends. So one node, the registrar,
holds the notices of all nodes, and the broker tells it which nodes are alive: the queue of a node has a consumer as long as the
node lives.

The registrar lists the nodes to all nodes from time to time. So the next registrar knows them, too, if the broker has dropped
notices meanwhile.

The work is divided among

    Registrar   the channel on which the register is used (here)
    Announcer   what this node publishes: its own notice, and messages to nodes
    Register    the notices that were delivered, and rounds of inspection of the nodes
    Members     the decisions (pure)
    KnownNodes  the nodes that the register has had, in case that it loses their notices (pure)
    Cleanups    one Cleanup for each dead node: its queue is emptied, then deleted

States of the channel, and what moves between them:

    DISCONNECTED ──connected──▶ SETTING_UP ──set up──▶ ACTIVE
                                  ▲  │                 │   │
                                  │  └────trouble──▶ WAITING ◀──trouble
                                  ├──────retry due─────┘   │
                                  └──────new channel───────┘        (each state) ──disconnected──▶ DISCONNECTED

Trouble is a refusal of the broker: the register cannot be declared or consumed, was deleted, or its channel was closed. It
never ends the connection, and devices do not wait for it.

Invariants:

- The announcer publishes, and the register acknowledges and decides, in `ACTIVE` only.
- Each `SETTING_UP` is a `_Session` of its own. A set-up that was overtaken by trouble, or by another one, changes nothing.
- A transition that is not in the table is an error, and changes nothing.

This role has a connection of its own. When that ends, another node has to become the registrar that can do the work, and the
work is done on this connection. The connection of the consumers never publishes, so that an alarm of the broker does not stop
it; and the courier closes its connection over a message that the broker does not accept, which is no reason to change the
registrar.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..broker import queues as topology
from ..broker.client import BaseHandler, BrokerClient, BrokerError, as_failure
from ..events import BrokerWarning, Event
from ..interfaces import Clock
from .announcer import Announcer, NodeLists
from .cleanup import Receiver
from .cleanups import FIRST_CHANNEL as FIRST_CLEANUP_CHANNEL
from .cleanups import NodeAnnouncer
from .register import REGISTER_CHANNEL, ClusterSettings, Register

DECLARE_CHANNEL: Final = 2

REGROUP: Final = 7.0
"""Seconds after a reconnect in which no node counts as dead: all have lost their connections, and back off for up to 5
seconds."""


class RegistrarState(enum.Enum):
    """States of the channel of the register."""

    DISCONNECTED = enum.auto()
    """There is no connection to the broker."""
    SETTING_UP = enum.auto()
    """The register is being declared, and its channel opened."""
    ACTIVE = enum.auto()
    """The channel publishes notices, and consumes the register."""
    WAITING = enum.auto()
    """The broker refused something. New channels are opened after a delay."""


class Input(enum.Enum):
    """Inputs of the state machine."""

    CONNECTED = enum.auto()
    SET_UP = enum.auto()
    """The broker has confirmed all of the set-up."""
    TROUBLE = enum.auto()
    """The broker refused something, and the connection goes on."""
    RETRY_DUE = enum.auto()
    NEW_CHANNEL = enum.auto()
    """A queue refuses messages on this channel, and may accept them on another."""
    DISCONNECTED = enum.auto()


TRANSITIONS: Final[Mapping[tuple[RegistrarState, Input], RegistrarState]] = {
    (RegistrarState.DISCONNECTED, Input.CONNECTED): RegistrarState.SETTING_UP,
    (RegistrarState.SETTING_UP, Input.SET_UP): RegistrarState.ACTIVE,
    (RegistrarState.SETTING_UP, Input.TROUBLE): RegistrarState.WAITING,
    (RegistrarState.ACTIVE, Input.TROUBLE): RegistrarState.WAITING,
    (RegistrarState.ACTIVE, Input.NEW_CHANNEL): RegistrarState.SETTING_UP,
    (RegistrarState.WAITING, Input.RETRY_DUE): RegistrarState.SETTING_UP,
    **{(state, Input.DISCONNECTED): RegistrarState.DISCONNECTED for state in RegistrarState},
}
"""All transitions. An input that is missing for a state is an error."""


class _Session:
    """An attempt to set the channel up, compared by identity."""

    __slots__ = ("client",)

    def __init__(self, client: BrokerClient) -> None:
        self.client = client


class Registrar(BaseHandler):
    """The role, and the handler of the channel on which notices are published and consumed."""

    name = "roster"

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        settings: ClusterSettings,
        *,
        node: Callable[[], bytes],
        left_behind: Receiver,
        presence: NodeAnnouncer | None,
        joined: Callable[[], None],
        lists: NodeLists,
    ) -> None:
        """`node()` returns the name of this node. `joined` is called when this node has joined the others. `lists` passes lists
        of the nodes on.
        """
        self._clock = clock
        self._emit = emit
        self._queue: topology.Queue = settings.register
        self._node = node
        self._on_joined = joined
        self.joined = False
        """Whether the broker has confirmed the notice of this node once, and so accepts messages. It is also true where the
        register cannot be used: then this cannot be known, and devices do not wait for it.
        """
        self._announcer = Announcer(
            clock, REGISTER_CHANNEL, node=lambda: self._me, register=self._queue.name, owner=self, lists=lists
        )
        self._register = Register(
            clock,
            emit,
            settings,
            node=lambda: self._me,
            announcer=self._announcer,
            left_behind=left_behind,
            presence=presence,
            warn=self._warn,
        )
        self._state = RegistrarState.DISCONNECTED
        self._session: _Session | None = None
        self._was_up = False
        self._warned: str | None = None
        self._troubled = False  # the broker refused something since it last accepted a message

    @property
    def _me(self) -> str:
        return self._node().decode()

    # -- requests --------------------------------------------------------------------------------------------------------

    def here(self) -> None:
        """Announce that this node consumes its own queue."""
        self._announcer.here()

    def away(self) -> None:
        """Note that this node does not consume its own queue now."""
        self._announcer.away()

    def leave(self) -> None:
        """Announce that this node stops in order. Back ends were told of the end of its connections."""
        self._announcer.leave()

    def moved(self, node: str) -> None:
        """Announce that this node has left its name `node` for another one."""
        self._announcer.renamed(node)

    def gone(self, node: str, served: bool) -> None:
        """Announce that the process of another node is dead, which its parent process knows for certain.

        `served`: its port was open, so that back ends may know of connections. The registrar alone cleans up, so a node that
        is not the registrar announces this, too. The notice is kept until it can be published.
        """
        self._announcer.gone(node, served)

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        """Publish a message to the own queue of this node. `arrived` is called when the broker has confirmed it."""
        self._announcer.publish_to_node("probe", queue, text, arrived)

    def learn(self, nodes: bytes) -> None:
        """Remember the nodes of the register, as the registrar lists them."""
        self._register.learn(nodes)

    @property
    def unconfirmed(self) -> int:
        """Number of goodbyes of this node that have not arrived: 0 or 1.

        A stop waits for it, but not for the broker: without a goodbye, the other nodes will notice that this one is gone.
        """
        return int(self._announcer.goodbye_unconfirmed)

    @property
    def listed(self) -> bool:
        """True while this node is the registrar and lists itself as a member."""
        return self._state is RegistrarState.ACTIVE and self._me in self._register.members

    @property
    def alone(self) -> bool:
        """True while this node is the registrar and lists no other member."""
        return self.listed and len(self._register.members) == 1

    # -- the state machine -----------------------------------------------------------------------------------------------

    def _move(self, event: Input) -> None:
        state = TRANSITIONS.get((self._state, event))
        if state is None:
            raise ValueError(f"the registrar has no input {event.name} in state {self._state.name}")
        self._state = state

    async def up(self, client: BrokerClient) -> None:
        self._move(Input.CONNECTED)
        self._session = _Session(client)
        await self._set_up(self._session)

    def down(self) -> None:
        self._move(Input.DISCONNECTED)
        self._end_session()

    def _end_session(self) -> None:
        """Give up the channel, and with it the notices. Messages that were not confirmed are published on the next one."""
        self._session = None
        self._announcer.end()
        self._register.end()

    async def _set_up(self, session: _Session) -> None:
        """Declare and consume the register."""
        client = session.client
        self._register.prepare(client, self._clock.seconds() + REGROUP if self._was_up else 0.0)
        try:
            await topology.declare(client, DECLARE_CHANNEL, self._queue, self._warn)
            channel = await self._announcer.open(client, self)
            await channel.basic_consume(queue=self._queue.name, consumer_tag="owsla-roster")
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            if session is self._session:
                self._begin_again(session, self._unusable(reason))
            return
        if session is self._session:
            self._move(Input.SET_UP)
            self._was_up = True
            self._register.begin()
            self._announcer.begin(client)

    def _unusable(self, reason: object) -> str:
        return f"the register of nodes, {self._queue.name}, cannot be used: {reason}; trying again"

    def _begin_again(self, session: _Session, why: str) -> None:
        """Give up the channel, and set up new ones on the same connection after a delay."""
        self._move(Input.TROUBLE)
        self._troubled = True
        self._warn(why)
        self._join()
        self._end_session()
        self._session = _Session(session.client)
        self._announcer.publisher.retry.schedule(new_channel=True)

    def new_channel(self) -> None:
        """Set up new channels now: a retry is due."""
        session = self._session
        if session is None:
            return
        self._move(Input.RETRY_DUE if self._state is RegistrarState.WAITING else Input.NEW_CHANNEL)
        self._end_session()
        self._session = _Session(session.client)
        session.client.run(self._set_up_again(self._session))

    async def _set_up_again(self, session: _Session) -> None:
        client = session.client
        for number in [one for one in client.channels if one == REGISTER_CHANNEL or one >= FIRST_CLEANUP_CHANNEL]:
            await client.end_channel(number)
        if session is self._session:
            await self._set_up(session)

    # -- the channel -----------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._register.deliver(tag, redelivered, header, body)

    def confirmed(self, tag: int, multiple: bool) -> None:
        self._announcer.publisher.confirmed(tag, multiple)

    def refused(self, tag: int, multiple: bool) -> None:
        self._announcer.publisher.refused(tag, multiple)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        self._announcer.publisher.returned(reason, routing_key, header, body)

    def closed(self, reason: Failure) -> None:
        self._announcer.publisher.closed(reason)

    def cancelled(self, consumer_tag: str) -> None:
        self.register_missing()

    def blocked(self, reason: str) -> None:
        """Do nothing: answers come late, and a missing answer proves nothing."""

    def unblocked(self) -> None: ...

    # -- the announcer reports -------------------------------------------------------------------------------------------

    def announced(self) -> None:
        self._join()
        self._register.confirmed()

    def message_refused(self) -> None:
        self._troubled = True
        self._warn("a queue of the nodes refuses a message; trying again")
        self._join()

    def message_accepted(self) -> None:
        if self._troubled:
            self._troubled = False
            self._warned = None

    def register_missing(self) -> None:
        if self._session is not None and self._state in (RegistrarState.SETTING_UP, RegistrarState.ACTIVE):
            self._register.deleted()
            self._begin_again(self._session, f"the queue {self._queue.name} is gone; declaring it again")

    def channel_closed(self, reason: BaseException) -> None:
        session = self._session
        if session is not None and not session.client.closed and self._state is RegistrarState.ACTIVE:
            if session.client.learn_user(reason):
                self.new_channel()  # the notices that were refused are published again, with the right name
            else:
                self._begin_again(session, self._unusable(reason))

    def _join(self) -> None:
        if not self.joined:
            self.joined = True
            self._on_joined()

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))
