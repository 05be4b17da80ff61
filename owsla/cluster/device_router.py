"""The router of messages that name a device: connects `Locations` with the devices of this node, and with the other nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from twisted.logger import Logger

from ..broker.courier import FENCE, FENCED
from ..broker.headers import HAS, HERE, WHO_HAS
from ..broker.own_queue import NodeNotice
from ..device.claims import Claim
from ..interfaces import Clock, DelayedCall
from ..letter import DeliverySource, Letter, unknown_reason
from ..routing import Handover, Recipient, node_of
from .device_notices import is_device_id, pack_claims, read_claims, read_ids
from .locations import ExchangeState, Locations

AGAIN: Final = 1.0
"""Seconds after which the locations are looked at again after an internal error."""


class DeviceConnection(Recipient, Protocol):
    """Connection of a device."""

    connection_id: bytes


class IdentifiedDevices(Protocol):
    """Devices of this node, by device id."""

    def find(self, device_id: str) -> DeviceConnection | None:
        """Return the newest open connection of a device, or `None`."""

    def claim_of(self, device_id: str) -> Claim | None:
        """Return the claim of that connection, or `None`."""

    def heard(self, claims: Iterable[Claim]) -> None:
        """Process claims that another node has announced."""


class NodeCourier(Protocol):
    """Courier, for messages to devices of other nodes."""

    def record(self, letter: Letter, reason: str) -> None:
        """Publish a message to the undeliverable queue."""

    def forward_by_name(self, letter: Letter, node: bytes) -> None:
        """Publish a message to the queue of the node that has its device."""

    def return_to_asker(self, letter: Letter) -> None:
        """Publish a forwarded message to the queue of the node that has asked for its device (`letter.hop`)."""

    def fence(self, node: bytes, token: str) -> None:
        """Publish a fence to the queue of a node, behind the forwards."""

    def fenced(self, node: bytes, token: str) -> None:
        """Publish a fence back to the queue of its node, behind the messages that were returned."""

    def answer(self, queue: bytes, correlation_id: bytes | None, claims: bytes) -> None:
        """Answer the question of a back end."""


class Broadcast(Protocol):
    """Role that publishes to all nodes."""

    @property
    def state(self) -> ExchangeState:
        """State of the role: notices go while it is `up`."""

    def watch(self, changed: Callable[[ExchangeState], None]) -> None:
        """Call `changed` with the new state after each change of it."""

    def ask(self, device_ids: Sequence[str]) -> bool:
        """Ask all nodes which of them has these devices. Return whether the question has gone."""

    def answer(self, queue: str, correlation_id: bytes | None, claims: bytes) -> bool:
        """Answer the question of a node, on its queue. Return whether the answer has gone."""


class DeviceRouter:
    """Routes messages to devices, and answers the questions of other nodes and of back ends.

    Notices come from the own queue, with the header `owsla_notice`:

        who-has      a question. Anybody may ask. Nobody but the nodes that have the device answers.
        has, here    claims of other nodes
        fence TOKEN  a fence of the node whose queue is `reply_to`; it goes back as `fenced TOKEN`
    """

    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        *,
        node: Callable[[], bytes],
        to_device: str,
        devices: IdentifiedDevices,
        handover: Handover,
        courier: NodeCourier,
        broadcast: Broadcast,
        device_timeout: float,
    ) -> None:
        """`node()` returns the name of this node. `device_timeout` is in seconds."""
        self._clock = clock
        self._node = node
        self._devices = devices
        self._handover = handover
        self._courier = courier
        self._broadcast = broadcast
        self._queue_of_node = re.compile(re.escape(to_device) + r"\.([0-9a-f]{8})").fullmatch
        self._wake_call: DelayedCall | None = None
        self.locations: Final = Locations(clock.seconds, self, node=node, device_timeout=device_timeout)
        """Locations of devices, for metrics."""
        self.locations.exchange_is(broadcast.state)
        broadcast.watch(self.locations.exchange_is)

    def configure(self, device_timeout: float) -> None:
        """Change the time-out, also for messages that wait."""
        self.locations.configure(device_timeout)

    # -- messages --------------------------------------------------------------------------------------------------------

    def route(self, letter: Letter) -> None:
        """Deliver a message to a device, forward it, let it wait, or record it."""
        device_id = letter.to_device_id
        if not device_id:
            self._courier.record(letter, "bad-device-id")
        elif letter.seq is not None:
            self._courier.record(letter, "bad-seq")  # numbers belong to a connection
        elif self._devices.find(device_id) is not None or self._may_be_elsewhere(letter, device_id):
            self.locations.route(letter)

    def _may_be_elsewhere(self, letter: Letter, device_id: str) -> bool:
        """Record a message that no other node can deliver either. Return whether one can."""
        returned = letter.hop is not None and letter.hop.returned_by is not None
        if not returned:
            self._handover.prepare(letter, None)
        # The id of one that was returned, too: a back end can send anything, and nodes do not answer a question with a bad id.
        if letter.fault is None and not letter.handed_over and is_device_id(device_id):
            return True
        self._courier.record(letter, letter.fault or unknown_reason(letter))
        return False

    def returned(self, letter: Letter, node: bytes) -> None:
        """Take back a message whose forward, or return, found no queue of a node."""
        # If another node has asked, it is gone. Then this one asks, and nothing else of the device can come back to it.
        self.locations.returned(letter, node)

    def forget(self, source: DeliverySource) -> None:
        """Forget the messages that wait of a consumer that has ended: RabbitMQ delivers them again."""
        self.locations.forget(source)

    # -- notices ---------------------------------------------------------------------------------------------------------

    def notice(self, notice: NodeNotice, *, trusted: bool) -> bool:
        """Process a notice. `trusted`: a node has published it. Return `False` if it is not one of these kinds."""
        if notice.text == WHO_HAS:
            self._asked(notice, trusted)
            return True
        if not trusted:
            return False
        if notice.text in (HAS, HERE):
            self._heard(notice)
            return True
        kind, _, token = notice.text.partition(" ")
        if kind == FENCE:
            asker = self._node_of_queue(notice.reply_to)
            if asker is not None:
                self._courier.fenced(asker, token)
        elif kind == FENCED:
            self.locations.fenced(token)
        return kind in (FENCE, FENCED)

    def _asked(self, notice: NodeNotice, trusted: bool) -> None:
        """Answer a question, if this node has any of the devices."""
        if notice.reply_to is None:
            return
        asker = self._node_of_queue(notice.reply_to) if trusted else None
        ids = read_ids(notice.device_id, notice.body) or ()
        if asker == self._node():
            if ids:
                self.locations.question_is_back(ids[0])
            return
        claims = [claim for claim in map(self._devices.claim_of, ids) if claim is not None]
        if not claims:
            return
        if asker is None:
            self._courier.answer(notice.reply_to, notice.correlation_id, pack_claims(claims))
        else:
            self._broadcast.answer(notice.reply_to.decode(), notice.correlation_id, pack_claims(claims))

    def _heard(self, notice: NodeNotice) -> None:
        """Learn from the claims of a node."""
        claims = read_claims(notice.body)
        if not claims:
            return
        if notice.text == HERE:
            self._devices.heard(claims)
        for claim in claims:
            self.locations.learn(claim.device_id, node_of(claim.connection_id.encode()), claim.since)

    def _node_of_queue(self, queue: bytes | None) -> bytes | None:
        """Return the node whose own queue this is, or `None`."""
        match = None if queue is None else self._queue_of_node(queue.decode("utf-8", "surrogateescape"))
        return None if match is None else match.group(1).encode()

    # -- effects of `Locations` ------------------------------------------------------------------------------------------

    def is_here(self, device_id: str) -> bool:
        return self._devices.find(device_id) is not None

    def hand_over(self, letter: Letter) -> bool:
        assert letter.to_device_id is not None
        connection = self._devices.find(letter.to_device_id)
        if connection is None:
            return False
        letter.connection_id = connection.connection_id
        self._handover.prepare(letter, connection)
        self._handover.deliver(letter, connection)
        return True

    def forward(self, letter: Letter, node: bytes) -> None:
        self._courier.forward_by_name(letter, node)

    def give_back(self, letter: Letter) -> None:
        self._courier.return_to_asker(letter)

    def give_up(self, letter: Letter) -> None:
        expired = self._handover.expired(letter)
        self._courier.record(letter, "expired" if expired else unknown_reason(letter))

    def ask(self, device_ids: list[str]) -> bool:
        return self._broadcast.ask(device_ids)

    def fence(self, node: bytes, token: str) -> None:
        self._courier.fence(node, token)

    def wake_at(self, time: float) -> None:
        if self._wake_call is not None and self._wake_call.active():
            self._wake_call.cancel()
        self._wake_call = self._clock.callLater(max(0.0, time - self._clock.seconds()), self._wake)

    def _wake(self) -> None:
        self._wake_call = None
        try:
            self.locations.tick()
        except Exception:
            self._log.failure("Looking for devices failed; trying again")
            self.wake_at(self._clock.seconds() + AGAIN)
