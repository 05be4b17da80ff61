"""Messages that go to other queues: records of what is undeliverable, forwards to other nodes, delivery reports.

They have a connection, a channel and confirms of their own, apart from the devices' lines. The message they are about is
acknowledged when the broker has confirmed them; until then it is the broker's, and comes again if we die.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Final

from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..events import BrokerWarning, Event, Undeliverable, UndeliverableLost
from ..interfaces import Clock, DelayedCall
from ..letter import Letter
from ..log import escaped
from . import message_properties
from . import queues as topology
from .client import BaseHandler, BrokerError, BrokerProtocol, as_failure
from .direct_reply import DirectReplies, is_direct
from .packing import APP_ID
from .refusals import RefusalHistory
from .retry_delay import RetryDelay

PARCELS: Final = 1
SCRATCH: Final = 2

MESSAGE_FAULTS: Final = frozenset({311, 406, 501, 502, 503, 505})
"""Reply codes with which a broker closes a channel, or a whole connection, over a message itself: its size, its properties, its
encoding. Others are about permissions, queues, or the broker: the message has to wait.
"""

INTERNAL_ERROR: Final = 541
"""The reply code with which RabbitMQ closes a connection when it crashes over a message, or for reasons of its own."""

CRASHES: Final = 3
"""How often the broker may crash over a message that is sent alone before its properties are taken for the reason."""

LONGEST_ID: Final = 100
"""Characters of a connection id in an event. One of ours has 36; a back end may send anything."""

FORWARD_AGAIN: Final = 0.5
"""Seconds after which a forward is tried again whose node was not there."""

ABSENCES_REMEMBERED: Final = 1000
"""How many nodes that are not there are remembered: an id that somebody made up names one, too."""

REPORTS_WAITING: Final = 10_000
"""How many delivery reports may be on their way. Nothing waits for them, so nothing else bounds them while the broker is
blocked; what comes on top is dropped."""


class Parcel:
    """Something on its way to a queue."""

    __slots__ = ("alone", "body", "crashes", "letter", "properties", "queue", "reason", "returned")

    def __init__(self, queue: str, properties: bytes, body: bytes, letter: Letter | None, reason: str | None) -> None:
        self.queue = queue
        self.properties = properties
        self.body = body
        self.letter = letter
        """What is acknowledged when this has arrived; `None` for a report, which nothing waits for."""
        self.reason = reason
        """Why it is undeliverable; `None` for what is not a record."""
        self.alone = False
        """Whether its own properties were left out, since the broker closed the channel for them."""
        self.crashes = 0
        """How often the broker crashed while this one alone was on its way."""
        self.returned = False


class Absences:
    """The nodes that are not there, and since when. Pure.

    A node whose connection broke comes back to its queue, and a queue can be gone for a moment while a broker restarts. So a
    node counts as gone when its queue was not there for a while; then at once, until it is seen again.
    """

    __slots__ = ("_grace", "_since")

    def __init__(self, grace: float) -> None:
        """`grace` in seconds."""
        self._grace = grace
        self._since: dict[str, float] = {}

    def gone(self, queue: str, now: float) -> bool:
        """Its queue is not there now: whether it has been away for too long."""
        if len(self._since) >= ABSENCES_REMEMBERED and queue not in self._since:
            del self._since[next(iter(self._since))]
        return now - self._since.setdefault(queue, now) >= self._grace

    def dead(self, queue: str, now: float) -> None:
        """It is known to be dead: it need not be away for as long again."""
        self.gone(queue, now)
        self._since[queue] = now - self._grace

    def present(self, queue: str) -> None:
        """Its queue is there."""
        if self._since:
            self._since.pop(queue, None)


class CourierRole(BaseHandler):
    """Publishes parcels, each confirmed, and acknowledges what they are about."""

    name = "courier"

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        undeliverable: topology.Queue,
        to_device: str,
        node: Callable[[], bytes],
        device: Callable[[bytes], str | None],
        node_grace: float,
        held_limit: int,
    ) -> None:
        """`node()` is this node's name; `device` returns the device id of a connection that is open here, or `None`.
        `node_grace`: seconds for which a node whose queue is not there may still come back; at most `held_limit` messages are
        held for such nodes meanwhile.
        """
        self._clock = clock
        self._emit = emit
        self._undeliverable = undeliverable
        self._to_device = to_device
        self._is_ours = re.compile(re.escape(to_device.encode()) + rb"(\.([0-9a-f]{8}|nodes|undeliverable))?").fullmatch
        self._node = node
        self._device = device
        self._absences = Absences(node_grace)
        self._held_limit = held_limit
        self._held: deque[Parcel] = deque()
        self._hold_call: DelayedCall | None = None
        self._client: BrokerProtocol | None = None
        self._sent: dict[int, Parcel] = {}  # by delivery tag, ascending
        # Of those sent that a message waits for, the ones that were not returned: by queue and tag.
        self._returnable: dict[str, dict[int, Parcel]] = {}
        self._next_tag = 1
        self._reports = 0  # how many of those that are sent, or wait, are reports
        self._waiting: deque[Parcel] = deque()
        # How many of the first that wait may be what the broker closed the channel for. They are sent one at a time.
        self._suspects = 0
        self._retry_call: DelayedCall | None = None
        self._retry_wait = RetryDelay(first=0.2, most=10.0)
        self._refusals = RefusalHistory()
        self._direct_replies = DirectReplies()
        self.recorded: dict[str, int] = {}
        """How many messages were undeliverable so far, by reason."""
        self.reports_dropped = 0
        """How many delivery reports had nowhere to go, or were too many."""

    # -- what is asked of it ---------------------------------------------------------------------------------------------

    def record(self, letter: Letter, reason: str) -> None:
        if letter.handed_over:
            # It was delivered again, and is settled as what it was: on record, too, it would contradict its own report.
            letter.source.done(letter.tag)
            self.report(letter, "delivered")
            return
        self._note(letter, reason)
        self._send(self._record(letter, reason))
        if letter.reply_to is not None:
            self.report(letter, reason)

    def _note(self, letter: Letter, reason: str) -> None:
        self.recorded[reason] = self.recorded.get(reason, 0) + 1
        if letter.connection_id is not None:
            letter.device_id = self._device(letter.connection_id)
        self._emit(Undeliverable(reason, _text(letter.connection_id), letter.device_id))

    def forward(self, letter: Letter, node: bytes) -> None:
        queue = f"{self._to_device}.{node.decode()}"
        try:
            properties = self._forwarded(letter)
        except WireError:
            self.record(letter, letter.fault or "bad-connection-id")
            return
        self._send(Parcel(queue, properties, letter.body, letter, None))

    def _forwarded(self, letter: Letter) -> bytes:
        """Return the properties of a forward; the time that its message may still wait is what is left of it now."""
        extra: dict[str, str | bool] = {}
        if letter.identity is not None:
            extra[message_properties.REDELIVERED_HEADER] = True
        if letter.deadline is not None:
            extra[message_properties.EXPIRATION_HEADER] = str(max(0, round((letter.deadline - self._clock.seconds()) * 1000)))
        return message_properties.relayed(letter.header[12:], extra)

    def report(self, letter: Letter, outcome: str) -> None:
        if letter.reply_to is None or self._is_ours(letter.reply_to):
            return
        queue = letter.reply_to.decode("utf-8", "surrogateescape")
        usable = not is_direct(queue) or self._direct_replies.allowed(queue, self._clock.seconds())
        if self._reports >= REPORTS_WAITING or not usable:
            self.reports_dropped += 1
            return
        properties = message_properties.report(letter.connection_id, letter.correlation_id, outcome, APP_ID)
        self._reports += 1
        self._send(Parcel(queue, properties, b"", None, None))

    def lost(self, queue: str) -> None:
        """The node of this queue is dead: what is to be forwarded to it need not wait for it."""
        self._absences.dead(queue, self._clock.seconds())

    @property
    def unconfirmed(self) -> int:
        """Parcels that have not arrived yet."""
        return len(self._sent) + len(self._waiting) + len(self._held)

    def _record(self, letter: Letter, reason: str) -> Parcel:
        extra = {"owsla_reason": reason, "owsla_node": self._node().decode()}
        if len(letter.header) == wire.BARE_HEADER:
            extra[message_properties.NOTE_HEADER] = "its properties are too large: they are left out"
        try:
            properties = message_properties.relayed(letter.header[12:], extra)
        except WireError:
            properties = message_properties.minimal(letter.connection_id, extra)
        return Parcel(self._undeliverable.name, properties, letter.body, letter, reason)

    # -- sending ---------------------------------------------------------------------------------------------------------

    def _send(self, parcel: Parcel) -> None:
        if self._client is None or self._waiting or self._suspects:
            self._waiting.append(parcel)
        else:
            self._write(self._client, parcel)

    def _write(self, client: BrokerProtocol, parcel: Parcel) -> None:
        if len(parcel.properties) > client.frame_max - wire.FRAME_OVERHEAD - 12:
            # A content header has to fit into one frame of those that the broker takes. It sends larger ones.
            parcel.properties = message_properties.reduced(parcel.properties)
        parcel.returned = False
        self._sent[self._next_tag] = parcel
        if parcel.letter is not None:
            self._returnable.setdefault(parcel.queue, {})[self._next_tag] = parcel
        self._next_tag += 1
        client.write(
            wire.frame(
                wire.FRAME_METHOD,
                PARCELS,
                encode_method("basic.publish", routing_key=parcel.queue.encode("utf-8", "surrogateescape"), mandatory=True),
            )
            + wire.content_frames(
                PARCELS, wire.header_payload(len(parcel.body), parcel.properties), parcel.body, client.frame_max
            )
        )

    def _continue(self) -> None:
        """Send what waits: all of it, or one at a time after the broker closed the channel over one we do not know."""
        client = self._client
        if client is None or self._retry_call is not None:
            return
        while self._waiting and not (self._suspects and self._sent):
            parcel = self._waiting.popleft()
            letter = parcel.letter
            if letter is None or letter.source.open or letter.settled:
                self._write(client, parcel)
            else:
                # Its consumer is gone; the message comes again to another, which brings it here again.
                self._suspects = max(0, self._suspects - 1)
        if not self._sent and not self._waiting:
            self._suspects = 0

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerProtocol) -> None:
        await topology.declare(client, SCRATCH, self._undeliverable, self._warn)
        channel = await client.open_channel(PARCELS, self)
        await channel.confirm_select()
        self._next_tag = 1
        self._refusals.channel_opened()
        self._client = client
        self._continue()

    def _warn(self, text: str) -> None:
        self._emit(BrokerWarning(text))

    def down(self) -> None:
        self._client = None
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        self._retry_call = None
        self._take_back()

    def _take_back(self) -> None:
        """What was sent and not confirmed goes to the front of what waits, in order."""
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._returnable.clear()

    def blocked(self, reason: str) -> None:
        """Nothing to do: what is sent waits in the socket, and is confirmed late."""

    def unblocked(self) -> None: ...

    def closed(self, reason: Failure) -> None:
        client = self._client
        if client is None:
            return
        error = reason.value or BrokerError(0, "the channel was closed", scope="channel")
        code = error.code if isinstance(error, BrokerError) else 0
        if code == INTERNAL_ERROR and self._drop_direct_replies():
            pass  # one of those was it
        elif code in MESSAGE_FAULTS or code == INTERNAL_ERROR:
            self._suspect(code, str(error))
        self._take_back()
        if not client.closed:
            client.abort(error)

    def _suspect(self, code: int, why: str) -> None:
        """The broker did not like one of those sent. Which one shows when they are sent again one at a time."""
        if self._suspects and len(self._sent) == 1:
            (culprit,) = self._sent.values()
            if culprit.letter is None or (culprit.alone and code != INTERNAL_ERROR):
                self._take(0, True)
                self._give_up(culprit, why)
            elif code != INTERNAL_ERROR:
                self._strip(culprit)
            else:
                # It may be the broker's own trouble: let the others go first, and never give this one up for it.
                culprit.crashes += 1
                if culprit.crashes >= CRASHES and not culprit.alone:
                    self._strip(culprit)
                self._sent.clear()
                self._waiting.append(culprit)
        self._suspects = len(self._sent) + len(self._waiting)

    def _drop_direct_replies(self) -> bool:
        """Drop the reports for direct reply-to; nothing waits for them. Whether one of them was on its way."""
        sent = [tag for tag, parcel in self._sent.items() if is_direct(parcel.queue)]
        if not sent:
            return False
        self._direct_replies.failed(self._clock.seconds())
        dropped = [self._sent.pop(tag) for tag in sent]
        waiting, self._waiting = self._waiting, deque()
        for parcel in waiting:
            (dropped if is_direct(parcel.queue) else self._waiting).append(parcel)
        self._reports -= len(dropped)
        self.reports_dropped += len(dropped)
        self._suspects = min(self._suspects, len(self._sent) + len(self._waiting))
        return True

    def _strip(self, parcel: Parcel) -> None:
        """Its properties cannot be sent: make it a record with the least that one needs."""
        letter = parcel.letter
        if letter is None:
            return  # a report has none but ours
        if parcel.reason is None:  # a forward; from here on it is a record
            parcel.reason = letter.fault or "refused"
            self._note(letter, parcel.reason)
        extra = {"owsla_reason": parcel.reason, "owsla_node": self._node().decode()}
        parcel.properties = message_properties.minimal(letter.connection_id, extra)
        parcel.queue = self._undeliverable.name
        parcel.alone = True

    # -- confirms --------------------------------------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        for parcel in self._take(tag, multiple):
            if parcel.letter is None:
                continue
            if parcel.returned:
                self._undelivered(parcel, parcel.letter)
            else:
                self._retry_wait.reset()
                self._refusals.accepted(parcel.queue)
                if parcel.reason is None:
                    self._absences.present(parcel.queue)
                parcel.letter.source.done(parcel.letter.tag)
        self._continue()

    def refused(self, tag: int, multiple: bool) -> None:
        for parcel in self._take(tag, multiple):
            forward = parcel.reason is None
            if parcel.letter is not None and (forward or not self._refusals.is_believed(parcel.queue)):
                self._refusals.refused(parcel.queue)
                # A node's own queue has no bound of ours, but an operator's policy may have given it one.
                self._again_later(parcel)
            else:
                self._give_up(parcel, f"{parcel.queue} is full")
        self._continue()

    def _take(self, tag: int, multiple: bool) -> list[Parcel]:
        if not multiple:
            tags = [tag] if tag in self._sent else []
        else:
            tags = list(takewhile(tag.__ge__, self._sent) if tag else self._sent)
        taken: list[Parcel] = []
        for tag in tags:
            parcel = self._sent.pop(tag)
            taken.append(parcel)
            if parcel.letter is None:
                self._reports -= 1
            elif not parcel.returned:
                self._no_longer_returnable(parcel.queue, tag)
        self._suspects = max(0, self._suspects - len(taken))
        return taken

    def _no_longer_returnable(self, queue: str, tag: int) -> None:
        parcels = self._returnable[queue]
        del parcels[tag]
        if not parcels:
            del self._returnable[queue]

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        parcels = self._returnable.get(routing_key)
        if parcels is None:
            # Nothing else goes to that queue, so it is a report, no matter which one. RabbitMQ returns also those that it has
            # delivered by direct reply-to.
            self.reports_dropped += not is_direct(routing_key)
            return
        # A return carries no tag. It is the oldest that is just like it; the properties come back as they were sent.
        properties = header[12:]
        alike = (tag for tag, parcel in parcels.items() if parcel.properties == properties and parcel.body == body)
        tag = next(alike, next(iter(parcels)))
        parcels[tag].returned = True
        self._no_longer_returnable(routing_key, tag)

    def _undelivered(self, parcel: Parcel, letter: Letter) -> None:
        """It was returned: there is no such queue."""
        if parcel.reason is not None:
            self._again_later(parcel)
        elif self._absences.gone(parcel.queue, self._clock.seconds()):
            self.record(letter, letter.fault or "unknown-connection")
        else:
            self._hold(parcel)

    def _hold(self, parcel: Parcel) -> None:
        """The node that it is for is away, maybe not for good: keep it for a moment, and try again."""
        self._held.append(parcel)
        if self._hold_call is None:
            self._hold_call = self._clock.callLater(FORWARD_AGAIN, self._forward_again)
        if len(self._held) > self._held_limit:
            letter = self._held.popleft().letter
            if letter is not None:
                self.record(letter, letter.fault or "unknown-connection")

    def _forward_again(self) -> None:
        self._hold_call = None
        try:
            for _ in range(len(self._held)):
                parcel = self._held.popleft()
                if parcel.letter is None or parcel.letter.source.open:
                    if parcel.letter is not None:
                        parcel.properties = self._forwarded(parcel.letter)
                    self._send(parcel)
        except Exception as error:
            if self._client is not None:
                self._client.abort(error)

    def _again_later(self, parcel: Parcel) -> None:
        self._waiting.append(parcel)
        if self._retry_call is None:
            self._retry_call = self._clock.callLater(self._retry_wait.next(), self._retry)

    def _retry(self) -> None:
        if self._client is not None:
            self._client.run(self._declare_and_continue())

    async def _declare_and_continue(self) -> None:
        client = self._client
        if client is None:
            return
        if self._refusals.needs_new_channel():
            client.abort(BrokerError(0, "a queue takes no more, or not on this channel: trying another", scope="channel"))
            return
        try:
            await topology.declare(client, SCRATCH, self._undeliverable, self._warn)
        except (BrokerError, Closed) as error:
            if client is self._client:
                client.abort(as_failure(error).value or error)
            return
        if client is self._client:
            self._retry_call = None
            self._continue()

    def _give_up(self, parcel: Parcel, why: str) -> None:
        if parcel.letter is None:
            self.reports_dropped += 1
            return
        letter = parcel.letter
        self._emit(UndeliverableLost(parcel.reason or "refused", _text(letter.connection_id), letter.device_id, why))
        letter.source.done(letter.tag)


def _text(connection_id: bytes | None) -> str | None:
    # A back end's text: a header may be as large as a frame.
    return None if connection_id is None else escaped(connection_id.decode("ascii", "backslashreplace"), LONGEST_ID)
