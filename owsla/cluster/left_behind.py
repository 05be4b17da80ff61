"""Messages from the queues of dead nodes: those to devices find their way, all others are recorded as undeliverable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..broker.courier import FENCE
from ..broker.own_queue import NodeNotice
from ..letter import DeliverySource, Letter, unknown_reason


class Courier(Protocol):
    """Courier, as far as it serves messages of dead nodes."""

    def record(self, letter: Letter, reason: str) -> None:
        """Record a message as undeliverable, and acknowledge it."""

    def return_to_asker(self, letter: Letter) -> None:
        """Publish a forwarded message to the queue of the node that has asked for its device, and acknowledge it."""

    def lost(self, queue: str) -> None:
        """Note that the node of this queue is dead."""


class ByName(Protocol):
    """Router of messages to devices."""

    def route(self, letter: Letter) -> None:
        """Route a message to a device."""

    def forget(self, source: DeliverySource) -> None:
        """Forget the messages of a source that has ended."""

    def notice(self, notice: NodeNotice, *, trusted: bool) -> bool:
        """Process a notice."""


class LeftBehind:
    """Receiver of what is in the queues of dead nodes."""

    def __init__(self, courier: Courier, by_name: ByName, *, node: Callable[[], bytes]) -> None:
        """`node()` returns the name of this node."""
        self._courier = courier
        self._by_name = by_name
        self._node = node

    def message(self, letter: Letter, node: bytes) -> None:
        """Route a message to a device, or record a message. It is from the queue of `node`, and acknowledged in the end.

        A message that was forwarded there goes back to the node that asked for the device, as if the dead node had returned it:
        so the messages of a device keep their order. If the dead node itself has asked, this one asks instead.
        """
        if letter.connection_id is not None or letter.to_device_id is None:
            self._courier.record(letter, unknown_reason(letter))
            return
        hop = letter.hop
        if hop is not None and hop.returned_by is None:
            letter.hop = replace(hop, returned_by=node)
            if hop.asker not in (node, self._node()):
                self._courier.return_to_asker(letter)
                return
        self._by_name.route(letter)

    def notice(self, notice: NodeNotice) -> None:
        """Process a notice. Only fences matter: they go back behind the messages."""
        if notice.text.startswith(f"{FENCE} "):
            self._by_name.notice(notice, trusted=True)

    def forget(self, source: DeliverySource) -> None:
        """Forget messages that are not settled: their channel is closed, and they are in the queue again."""
        self._by_name.forget(source)

    def lost(self, queue: str) -> None:
        """Note that the node of this queue is dead, and its queue deleted."""
        self._courier.lost(queue)
