"""Presence announcements: which connections back ends are told of, when, and when again. Pure.

Theory of operation
===================

    connected ──▶ pending ──next──▶ in flight ──confirmed──▶ done
                   ▲  ▲                 │
       disconnected┘  └─refused, returned, lost┘

For each connection at most one announcement is pending and one is in flight. A newer announcement replaces the pending one, and
waits behind the one in flight. So `connected` precedes `disconnected`, and memory is bounded by the number of connections. The
exception are connections that came and went while nothing could be announced: the last `UNSEEN_LIMIT` of them are kept.

- A *gap* is a time in which back ends may have missed a change: an announcement was replaced without a channel, was dropped,
was returned, or was in flight when the channel ended. After a gap all open connections are announced again (`resync`).
- While the queue is too long (`hold`) only *owed* announcements are published: the end of a connection or a node whose
beginning back ends were told of. All others stay pending. So the queue grows by no more than the connections that are in it,
nothing is lost, and a stop need not wait for a back end that does not consume.
- While the node does not consume its own queue (`away`), no `connected` is published. Other nodes may have deleted that queue,
and a back end sends to a device as soon as it reads that the device is connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from ..events import DeviceConnected, DeviceDisconnected, DeviceIdentified, utc

Change: TypeAlias = Literal["connected", "disconnected", "node-lost"]

WINDOW: Final = 500
"""Limit of unconfirmed announcements. RabbitMQ confirms persistent messages in batches of some hundreds."""

UNSEEN_LIMIT: Final = 100_000
"""Limit of connections that came and went unannounced: some 100 MB, in an outage in which devices come and go."""


class Announcement:
    """A message on the queue of presence."""

    __slots__ = ("change", "coalesced", "connected", "ended", "first", "key", "resync", "since", "time")

    def __init__(self, key: str, change: Change, time: float, since: float) -> None:
        self.key = key
        """The connection id, or the name of a node that is lost."""
        self.change: Change = change
        self.time = time
        """Time of the change, in seconds since the epoch."""
        self.since = since
        """Time at which the connection was made, in seconds since the epoch."""
        self.connected: DeviceConnected | None = None
        self.ended: DeviceDisconnected | None = None
        self.resync = False
        """Whether the same may have been announced before."""
        self.coalesced = False
        """Whether back ends were never told that the connection was made."""
        self.first = False
        """Whether this is the first announcement of the connection."""

    def headers(self, *, with_door: bool = False) -> dict[str, Any]:
        """Return the headers of the message, as `docs/contract.md` specifies them. `with_door`: there are several doors."""
        headers: dict[str, Any] = {"event": self.change, "node": self.node}
        if self.change == "node-lost":
            return headers
        headers["connection_id"] = self.key
        device_id = self._device_id
        if device_id is not None:
            headers["device_id"] = device_id
        if with_door:
            headers["door"] = self._door
        if self.resync:
            headers["resync"] = True
        if self.ended is not None and self.ended.traceparent is not None:
            headers["traceparent"] = self.ended.traceparent
        return headers

    def body(self, node: str, *, with_door: bool = False) -> dict[str, Any]:
        """Return the body of the message, to be written as JSON.

        `node` is the node that announces it. `with_door`: there are several doors.
        """
        if self.change == "node-lost":
            return {"event": self.change, "node": self.key, "time": utc(self.time), "reported_by": node}
        connected, ended = self.connected, self.ended
        body: dict[str, Any] = {
            "event": self.change,
            "connection_id": self.key,
            "device_id": self._device_id,
            "node": self.node,
            "time": utc(self.time),
            "peer": connected.peer if connected is not None else None if ended is None else ended.peer,
            "tls": None if connected is None else connected.tls,
        }
        if with_door:
            body["door"] = self._door
        if self.change == "connected":
            body["since"] = None if connected is None else connected.since
            body["resync"] = self.resync
        else:
            body["connected_at"] = utc(self.since)
            body["coalesced"] = self.coalesced
            body["reason"] = "unknown" if ended is None else ended.reason
            body["lines_in"] = None if ended is None else ended.lines_in
            body["lines_out"] = None if ended is None else ended.lines_out
            body["traceparent"] = None if ended is None else ended.traceparent
            body["seconds"] = round(self.time - self.since if ended is None else ended.seconds, 3)
        return body

    @property
    def node(self) -> str:
        """Name of the node that it is about. A connection id keeps it when the node takes another name."""
        return self.key[:8]

    @property
    def _door(self) -> str | None:
        event = self.connected or self.ended
        return None if event is None else event.door

    @property
    def _device_id(self) -> str | None:
        if self.ended is not None and self.ended.device_id is not None:
            return self.ended.device_id
        return None if self.connected is None else self.connected.device_id


class _Live:
    """An open connection."""

    __slots__ = ("event", "known", "since")

    def __init__(self, event: DeviceConnected, since: float) -> None:
        self.event = event
        self.since = since
        self.known = False
        """Whether it may have been announced."""


class AnnouncementQueue:
    """The announcements of one node: pending, in flight, and held.

    There is a channel between `begin` and `lost`. Meanwhile `next` returns the announcement to publish, and `confirmed`,
    `returned` or `refused` takes the answer of the broker.
    """

    def __init__(self, window: int = WINDOW, unseen_limit: int = UNSEEN_LIMIT) -> None:
        self._window = window
        self._unseen_limit = unseen_limit
        self._live: dict[str, _Live] = {}
        self._pending: dict[str, Announcement] = {}
        self._behind: dict[str, Announcement] = {}  # each waits for the one in flight of the same key
        self._in_flight: dict[str, Announcement] = {}  # in the order in which they were published
        self._unseen: dict[str, None] = {}  # pending: connections that came and went unannounced, oldest first
        self._owed: dict[str, None] = {}  # pending: the end of a connection or node that may have been announced
        self._open = False
        self._gap = False
        self.held = False
        """Whether only owed announcements are published."""
        self.away = False
        """Whether no `connected` is published."""
        self.forgotten = 0
        """Number of short-lived connections dropped from the backlog: back ends never hear of them."""
        self.resyncs = 0
        """Number of times that all connections were announced again."""

    # -- changes ---------------------------------------------------------------------------------------------------------

    def connected(self, event: DeviceConnected, time: float) -> None:
        """Add a connection that was made."""
        key = event.connection_id
        self._live[key] = _Live(event, time)
        announcement = Announcement(key, "connected", time, time)
        announcement.connected = event
        announcement.first = True
        self._offer(announcement)

    def identified(self, event: DeviceIdentified) -> None:
        """Add the device id of a connection. Announce the connection again if it was announced without one."""
        key = event.connection_id
        live = self._live.get(key)
        if live is None or live.event.device_id == event.device_id:
            return
        live.event = replace(live.event, device_id=event.device_id, since=event.since)
        pending = self._pending.get(key) or self._behind.get(key)
        if pending is not None:
            pending.connected = live.event
        else:
            self._offer(self._repetition(key, live))

    def disconnected(self, event: DeviceDisconnected, time: float) -> None:
        """Add the end of a connection, also of one that was never announced here."""
        live = self._live.pop(event.connection_id, None)
        announcement = Announcement(event.connection_id, "disconnected", time, time - event.seconds)
        announcement.ended = event
        self._gone(announcement, live)

    def node_lost(self, node: str, time: float) -> None:
        """Add the loss of another node, and of its connections with it."""
        self._offer(Announcement(node, "node-lost", time, time))

    def pending(self, key: str) -> bool:
        """Return whether an announcement of this connection, or node, has not arrived yet."""
        return key in self._pending or key in self._in_flight

    def missed(self, live: Iterable[DeviceConnected], time: float) -> None:
        """Compare with the open connections, after events were missed. Announce the differences, and all open ones again."""
        now = {event.connection_id: event for event in live}
        for key in [key for key in self._live if key not in now]:
            gone = self._live.pop(key)
            self._gone(Announcement(key, "disconnected", time, gone.since), gone)
        for key, event in now.items():
            if key in self._live:
                self._live[key].event = event
            else:
                self.connected(event, time)
        self.resync()

    def resync(self) -> None:
        """Announce all open connections again, now or when there is a channel."""
        self.resyncs += 1
        for key, live in self._live.items():
            if key in self._pending or key in self._in_flight:
                continue  # it is about to be announced
            self._pending[key] = self._repetition(key, live)

    def _repetition(self, key: str, live: _Live) -> Announcement:
        announcement = Announcement(key, "connected", live.since, live.since)
        announcement.connected = live.event
        announcement.resync = True
        return announcement

    def _gone(self, announcement: Announcement, live: _Live | None) -> None:
        if live is not None:
            announcement.connected = live.event
            announcement.since = live.since
            announcement.coalesced = not live.known
        self._offer(announcement)

    def _offer(self, announcement: Announcement) -> None:
        key = announcement.key
        if key in self._in_flight:
            self._behind[key] = announcement
            return
        replaced = self._pending.pop(key, None)
        self._unseen.pop(key, None)
        self._owed.pop(key, None)
        if replaced is not None and not self._open:
            self._gap = True
        self._pending[key] = announcement
        if announcement.change != "connected" and not announcement.coalesced:
            self._owed[key] = None
        if announcement.coalesced:
            self._unseen[key] = None
            if len(self._unseen) > self._unseen_limit:
                oldest = next(iter(self._unseen))
                del self._unseen[oldest]
                del self._pending[oldest]
                self.forgotten += 1
                self._gap = True

    # -- the channel -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin with a new channel. After a gap all connections are announced again."""
        self._open = True
        if self._gap:
            self._gap = False
            self.resync()

    def next(self) -> Announcement | None:
        """Return the announcement to publish next, or `None` if there is none, or no room in the window."""
        if not self._open or len(self._in_flight) >= self._window:
            return None
        key = next((key for keys in self._publishable() for key in keys), None)
        if key is None:
            return None
        announcement = self._pending.pop(key)
        self._unseen.pop(key, None)
        self._owed.pop(key, None)
        self._in_flight[key] = announcement
        live = self._live.get(key)
        if live is not None:
            live.known = True
        return announcement

    def hold(self, held: bool) -> None:
        """Publish only owed announcements from now on, or all of them again."""
        self.held = held
        if not held and self._gap and self._open:
            self._gap = False
            self.resync()

    def confirmed(self, announcement: Announcement) -> None:
        """Take one out of flight that has arrived: the one that waits behind it is next."""
        del self._in_flight[announcement.key]
        self._advance(announcement.key)

    def returned(self, announcement: Announcement) -> None:
        """Make one pending again that had no queue: all that was in the queue is gone with it."""
        self._gap = True
        self.refused(announcement)

    def refused(self, announcement: Announcement) -> None:
        """Make one pending again that the queue refused."""
        del self._in_flight[announcement.key]
        self._back(announcement)

    def lost(self) -> None:
        """Make all in flight pending again, at the end of the channel: each may have arrived or not."""
        self._open = False
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        for announcement in in_flight:
            self._gap = True
            newer = self._behind.pop(announcement.key, None)
            if newer is None:
                if announcement.change == "connected":
                    announcement.resync = True
                announcement.first = False
            self._offer(newer or announcement)

    def _advance(self, key: str) -> None:
        newer = self._behind.pop(key, None)
        if newer is not None:
            self._offer(newer)

    def _back(self, announcement: Announcement) -> None:
        """Make one pending again that has certainly not arrived."""
        key = announcement.key
        newer = self._behind.pop(key, None)
        live = self._live.get(key)
        if announcement.first and live is not None:
            live.known = False
        if newer is None:
            newer = announcement
        elif newer.change == "connected":
            newer.first, newer.resync = announcement.first, announcement.resync
        else:
            newer.coalesced = newer.coalesced or announcement.first
        self._offer(newer)

    # -- sizes ----------------------------------------------------------------------------------------------------------

    @property
    def unconfirmed(self) -> int:
        """Number of announcements that have not arrived, without those that are held."""
        return sum(map(len, self._publishable())) + len(self._behind) + len(self._in_flight)

    def _publishable(self) -> tuple[Mapping[str, object], ...]:
        """Return the pending announcements that may be published now."""
        if self.held:
            return (self._owed,)
        return (self._owed, self._unseen) if self.away else (self._pending,)

    @property
    def in_flight(self) -> int:
        """Number of announcements that are published and unconfirmed."""
        return len(self._in_flight)

    @property
    def live(self) -> int:
        """Number of open connections."""
        return len(self._live)
