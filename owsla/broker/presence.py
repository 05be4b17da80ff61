"""Presence for back ends, on the queue `connection_events`: `--events amqp`.

This is a role for a connection to the broker of its own, rather than a client of the courier's: a node under a stampede has
thousands of announcements to make, and what the courier brings must not wait behind them; its queue is first in, first out, and
has no place for a state that a newer one replaces; and a queue of presence that cannot be used (no permission, say) is an
inconvenience, which must not close the channel that undeliverable messages are recorded on. It costs a connection a node.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.defer import ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..events._manager import Fail
from ..events._types import BrokerWarning, DeviceConnected, DeviceDisconnected, DeviceIdentified, Event
from ..interfaces import Clock, DelayedCall
from . import queues as topology
from .announcements import Announcement, Presence, UnknownTag
from .client import BaseHandler, BrokerError, BrokerProtocol, as_failure
from .packing import APP_ID
from .queue_state import QueueState, inspect_queue
from .refusals import RefusalHistory
from .retry_delay import RetryDelay

QUEUE: Final = "connection_events"

PRESENCE: Final = 1
SCRATCH: Final = 2
LOOKING: Final = 3

LOOK: Final = 30.0
"""Seconds between two looks at the queue's length, if something was announced meanwhile. A thousand devices a second that come
and go are 60,000 messages until then."""

LONG: Final = 100_000
"""Messages in the queue past which announcements are held: some 60 MB on the broker's disk. A queue that nobody consumes would
grow until the disk alarm stops all devices. There is no `x-max-length` against that, since back ends declare the queue without
arguments; and what `drop-head` drops may be the last that was said of a connection."""

SHORT: Final = LONG // 2
"""Messages in the queue below which they are announced again."""


class PresenceRole(BaseHandler):
    """Announces who connects and disconnects. An event handler on one side, a `Role` of a `BrokerConnection` on the other.

    It outlives its restarts as a handler: then it compares what it knows with what is connected, and announces all again.
    """

    name = "presence"
    wants = (DeviceConnected, DeviceDisconnected, DeviceIdentified)
    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        node: Callable[[], str],
        live: Callable[[], Iterable[DeviceConnected]],
        queue: str = QUEUE,
        now: Callable[[], float] = time.time,
        presence: Presence | None = None,
    ) -> None:
        """`node()` is this node's name. `live()` are the connections that are open now, as they would have been told of.
        `now()` is since the epoch.
        """
        self._clock = clock
        self._emit = emit
        self._node = node
        self._live = live
        self._queue = topology.Queue(queue)
        self._now = now
        self._presence = presence or Presence()
        self._method = wire.frame(
            wire.FRAME_METHOD, PRESENCE, encode_method("basic.publish", routing_key=queue.encode(), mandatory=True)
        )
        self._client: BrokerProtocol | None = None
        self._ready = False  # the channel takes announcements
        self._refusals = RefusalHistory()
        self._pump_call: DelayedCall | None = None
        self._retry_call: DelayedCall | None = None
        self._look_call: DelayedCall | None = None
        self._unlooked = False  # something was announced since the last look
        self._retry_wait = RetryDelay(first=0.2, most=30.0)
        self._warned: str | None = None
        self._was_up = False
        self._missed = False
        self._fail: Fail | None = None

    @property
    def unconfirmed(self) -> int:
        """Announcements that have not arrived yet: what a stop waits for, within its bound."""
        return self._presence.unconfirmed

    @property
    def held(self) -> bool:
        """Whether announcements wait until the queue is shorter."""
        return self._presence.held

    @property
    def forgotten(self) -> int:
        """Connections that came and went in an outage, and that were too many to be kept."""
        return self._presence.forgotten

    # -- as an event handler ---------------------------------------------------------------------------------------------

    def start(self, fail: Fail) -> None:
        self._fail = fail
        if self._missed:
            self._missed = False
            self._presence.missed(self._live(), self._now())
            self._soon()

    def stop(self) -> None:
        """From here on events are missed. What is pending is still announced, as long as there is a connection."""
        self._missed = True
        self._fail = None

    def handle(self, event: Event, node: str, when: float) -> None:
        if isinstance(event, DeviceConnected):
            self._presence.connected(event, when)
        elif isinstance(event, DeviceDisconnected):
            self._presence.disconnected(event, when)
        elif isinstance(event, DeviceIdentified):
            self._presence.identified(event)
        else:
            return
        self._soon()

    def node_lost(self, node: str) -> None:
        """Announce that another node is gone: whoever empties its queue says so, too."""
        self._presence.node_lost(node, self._now())
        self._soon()

    def told(self, node: str) -> bool:
        """Whether the broker has all that is to be announced of this node."""
        return not self._presence.pending(node)

    def resync(self) -> None:
        """Announce all connections again: others may have said meanwhile that this node is lost."""
        self._presence.resync()
        self._soon()

    # -- publishing ------------------------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Publish at the end of this turn: a stampede is one look at what is pending."""
        if self._ready and self._pump_call is None and self._retry_call is None:
            self._pump_call = self._clock.callLater(0, self._pump)

    def _pump(self) -> None:
        self._pump_call = None
        try:
            client = self._client
            while self._ready and client is not None:
                announcement = self._presence.next()
                if announcement is None:
                    return
                client.write(self._packed(announcement, client.frame_max))
                self._unlooked = True
        except Exception:
            self._broken(Failure())

    def _packed(self, announcement: Announcement, frame_max: int) -> bytes:
        body = json.dumps(announcement.body(self._node())).encode()
        headers = {
            name: _sendable(value) if isinstance(value, str) else value
            for name, value in announcement.headers().items()
        }
        properties = {
            "content_type": "application/json",
            "headers": headers,
            "delivery_mode": 2,
            "timestamp": int(announcement.time),
            "app_id": APP_ID,
        }
        if announcement.change == "node-lost":
            properties["message_id"] = announcement.key  # it may be told more than once, by several
        header = wire.header_payload(len(body), wire.encode_properties(properties))
        return self._method + wire.content_frames(PRESENCE, header, body, frame_max)

    def _broken(self, failure: Failure) -> None:
        """A defect of ours: begin again with a new channel, and say so."""
        if self._client is not None:
            self._client.abort(ConnectionDone("announcing presence failed"))  # not by a fault of the connection's
        if self._fail is not None:
            self._fail(failure)
        else:
            self._log.failure("Announcing presence failed", failure)

    # -- as a role -------------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerProtocol) -> None:
        self._client = client
        await self._set_up(client)

    async def _set_up(self, client: BrokerProtocol) -> None:
        """Declare the queue and open the channel. What the broker refuses is tried again: devices do not wait for presence."""
        try:
            if self._was_up and await inspect_queue(client, LOOKING, self._queue.name) is None:
                self._presence.resync()  # it is gone with all that was in it
            await topology.declare(client, SCRATCH, self._queue, self._warn)
            channel = await client.open_channel(PRESENCE, self)
            self._refusals.channel_opened()
            await channel.confirm_select()
            found = await inspect_queue(client, LOOKING, self._queue.name)
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if client is not self._client or not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            self._warn(f"presence cannot be announced on {self._queue.name}: {reason}; trying again")
            self._again_later(self._reset)
            return
        if client is self._client:
            self._ready = self._was_up = True
            self._measured(found)
            self._presence.begin()
            self._soon()
            if self._look_call is None:
                self._look_call = self._clock.callLater(LOOK, self._look)

    def _look(self) -> None:
        """Look at the queue's length now and then."""
        self._look_call = self._clock.callLater(LOOK, self._look)
        client = self._client
        if client is not None and self._ready and (self._unlooked or self._presence.held):
            self._unlooked = False
            client.run(self._look_at(client))

    async def _look_at(self, client: BrokerProtocol) -> None:
        try:
            found = await inspect_queue(client, LOOKING, self._queue.name)
        except (BrokerError, Closed):
            return  # publishing runs into the same trouble, and says so
        if client is self._client and self._ready:
            self._measured(found)
            self._soon()

    def _measured(self, found: QueueState | None) -> None:
        """Hold announcements while the queue is too long."""
        messages = 0 if found is None else found.messages
        held = self._presence.held
        if found is not None and messages >= LONG and not held:
            self._presence.hold(True)
            consumers = f"{found.consumers} consumers" if found.consumers else "no consumer"
            self._emit(
                BrokerWarning(
                    f"the queue {self._queue.name} has {messages} messages and {consumers}: devices that connect are announced "
                    f"when it has less than {SHORT}; consume it, or leave out --events amqp"
                )
            )
        elif messages < SHORT and held:
            self._presence.hold(False)
            self._log.info("The queue {queue} is short again: devices are announced", queue=self._queue.name)

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))

    def down(self) -> None:
        self._client = None
        self._ready = False
        for call in (self._pump_call, self._retry_call, self._look_call):
            if call is not None and call.active():
                call.cancel()
        self._pump_call = self._retry_call = self._look_call = None
        self._presence.lost()

    def blocked(self, reason: str) -> None:
        """Nothing to do: at most a window of announcements waits in the socket, and is confirmed late."""

    def unblocked(self) -> None: ...

    # -- the channel -----------------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        try:
            kept = self._presence.confirmed(tag, multiple)
        except UnknownTag as error:
            raise WireError(str(error)) from None
        if kept:
            self._refusals.accepted(self._queue.name)
            self._retry_wait.reset()
            self._warned = None
            self._soon()
        elif self._retry_call is None:
            self._ready = False
            self._warn(f"the queue {self._queue.name} is gone; declaring it again")
            self._again_later(self._reset)

    def refused(self, tag: int, multiple: bool) -> None:
        try:
            self._presence.refused(tag, multiple)
        except UnknownTag as error:
            raise WireError(str(error)) from None
        self._warn(f"the queue {self._queue.name} refuses presence; trying again")
        self._refusals.refused(self._queue.name)
        if self._retry_call is None:
            self._again_later(self._go_on)

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        # A return carries no tag; but of each connection at most one is in flight.
        headers = wire.decode_properties(header, 12).get("headers", {})
        key = headers.get("connection_id", headers.get("node"))
        if not isinstance(key, str):
            raise WireError("a returned message is none of ours")
        self._presence.returned(key)

    def closed(self, reason: Failure) -> None:
        client = self._client
        if client is None or client.closed or not self._ready:
            return
        self._ready = False
        self._presence.lost()
        self._warn(f"presence cannot be announced on {self._queue.name}: {reason.value}; trying again")
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        self._retry_call = None
        self._again_later(self._reset)

    def _again_later(self, retry: Callable[[], Any]) -> None:
        self._retry_call = self._clock.callLater(self._retry_wait.next(), retry)

    def _go_on(self) -> None:
        self._retry_call = None
        if self._refusals.needs_new_channel():
            self._reset()
        else:
            self._soon()

    def _reset(self) -> None:
        """Begin again with a new channel on the same connection."""
        self._retry_call = None
        self._ready = False
        client = self._client
        if client is not None:
            self._presence.lost()
            ensureDeferred(self._set_up_again(client)).addErrback(self._broken)

    async def _set_up_again(self, client: BrokerProtocol) -> None:
        try:
            await client.end_channel(PRESENCE)
            await self._set_up(client)
        except (BrokerError, Closed) as error:
            if client is self._client and not client.closed:
                client.abort(as_failure(error).value or error)


def _sendable(text: str) -> str:
    """Without halves of surrogate pairs, which have no UTF-8. A certificate's name may have them."""
    return text.encode("utf-8", "replace").decode()
