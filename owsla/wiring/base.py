"""Foundation of a node: what nearly every part of it is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .. import http
from ..broker import queues
from ..config.settings import Settings
from ..desk import Ends, RecentEvents
from ..device.connections import Connection
from ..events import BrokerWarning, Event, EventManager
from ..routing import ConnectionIds, Registry
from ..runtime.end_of_turn import EndOfTurn
from ..runtime.recent_texts import RecentTexts
from ..workers import Inherited
from .configuration import Configuration, CurrentConfiguration
from .shutdown import StopDeadline


@dataclass(frozen=True, slots=True)
class Base:
    """Foundation of a node."""

    reactor: Any
    current: CurrentConfiguration
    inherited: Inherited | None
    """What a worker has from its parent; `None` in a process of its own."""
    end_of_turn: EndOfTurn
    ids: ConnectionIds
    registry: Registry[Connection]
    events: EventManager
    event_counts: http.EventCounts
    recent_events: RecentEvents
    ends: Ends
    deadline: StopDeadline
    warnings: RecentTexts
    """Warnings about the broker within the last minute. While something is refused, each attempt has the same warnings."""

    @property
    def settings(self) -> Settings:
        """Settings in force now."""
        return self.current.settings

    def node(self) -> bytes:
        """Return the present name of this node."""
        return self.ids.node

    def node_name(self) -> str:
        """Return the present name of this node, as text."""
        return self.ids.node.decode()

    def node_queue(self, node: bytes) -> queues.Queue:
        """Return the queue of a node."""
        return queues.node_queue(self.settings.to_device, node, dict(self.settings.node_queue_arguments))

    def emit(self, event: Event) -> None:
        """Tell the event handlers; of a warning that is repeated, once a minute."""
        if isinstance(event, BrokerWarning) and self.warnings.repeats(event.text):
            return
        self.events.emit(event)


def make_base(reactor: Any, configuration: Configuration, inherited: Inherited | None) -> Base:
    """Name a new node, and make its event manager."""
    ids = ConnectionIds()
    events = EventManager(lambda: ids.node.decode())
    counts = http.EventCounts()
    events.add(counts)
    recent = RecentEvents(os.urandom(4).hex())
    events.add(recent)
    ends = Ends()
    events.add(ends)
    return Base(
        reactor=reactor,
        current=CurrentConfiguration(configuration),
        inherited=inherited,
        end_of_turn=EndOfTurn(reactor),
        ids=ids,
        registry=Registry(),
        events=events,
        event_counts=counts,
        recent_events=recent,
        ends=ends,
        deadline=StopDeadline(reactor, configuration.settings.drain_timeout),
        warnings=RecentTexts(reactor, 60.0),
    )
