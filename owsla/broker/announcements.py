"""Who is connected, as back ends are told: what is announced when, and what is announced again. Pure.

    connected ──▶ pending ──next──▶ in flight ──confirmed──▶ done
                   ▲  ▲                 │
       disconnected┘  └──refused, lost──┘

There is at most one pending state for a connection, and one in flight: a newer one takes an older one's place, and waits for
what is on its way. So `connected` precedes `disconnected`, and what is kept is bounded by the number of connections; except for
those that came and went while nobody could be told, of which the last so many are kept.

While the queue is too long (`hold`) only what is *owed* is announced: the end of a connection, or a node, whose beginning back
ends were told of. Everything else stays pending. So the queue grows by no more than the connections that are in it, nothing is
lost, and a stop need not wait for a back end that does not come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from ..events._json import utc
from ..events._types import DeviceConnected, DeviceDisconnected, DeviceIdentified

Change: TypeAlias = Literal["connected", "disconnected", "node-lost"]

WINDOW: Final = 500
"""Announcements that are unconfirmed at most. RabbitMQ confirms persistent messages in batches of some hundreds."""

UNSEEN_LIMIT: Final = 100_000
"""Connections that came and went unannounced and are kept: some 100 MB, in an outage in which devices come and go."""


class Announcement:
    """One message of presence."""

    __slots__ = ("change", "coalesced", "connected", "ended", "first", "key", "resync", "returned", "since", "time")

    def __init__(self, key: str, change: Change, time: float, since: float) -> None:
        self.key = key
        """The connection's id; a node's name, of one that is lost."""
        self.change: Change = change
        self.time = time
        """When it happened, in seconds since the epoch."""
        self.since = since
        """When the connection was made."""
        self.connected: DeviceConnected | None = None
        self.ended: DeviceDisconnected | None = None
        self.resync = False
        """Whether this repeats what was announced before, or may have been."""
        self.coalesced = False
        """Whether the back end never heard that it connected."""
        self.first = False
        """Whether this is the first announcement of the connection."""
        self.returned = False

    def headers(self) -> dict[str, Any]:
        """The message's headers, as the contract says."""
        headers: dict[str, Any] = {"event": self.change, "node": self.node}
        if self.change == "node-lost":
            return headers
        headers["connection_id"] = self.key
        device_id = self._device_id
        if device_id is not None:
            headers["device_id"] = device_id
        if self.resync:
            headers["resync"] = True
        return headers

    def body(self, node: str) -> dict[str, Any]:
        """The message's body, to be written as JSON. `node` is who says so."""
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
        if self.change == "connected":
            body["resync"] = self.resync
        else:
            body["connected_at"] = utc(self.since)
            body["coalesced"] = self.coalesced
            body["reason"] = "unknown" if ended is None else ended.reason
            body["lines_in"] = None if ended is None else ended.lines_in
            body["lines_out"] = None if ended is None else ended.lines_out
            body["seconds"] = round(self.time - self.since if ended is None else ended.seconds, 3)
        return body

    @property
    def node(self) -> str:
        """The node that it is about. A connection keeps its node's name in its id, should the node take another."""
        return self.key[:8]

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
        """Whether it was announced; at least, whether it may have been."""


class UnknownTag(ValueError):
    """The broker confirmed what was not published."""


class Presence:
    """What is to be announced of one node's connections.

    A channel's life is between `begin` and `lost`; in it, `next` is what to publish next, under the tags 1, 2, 3 …
    """

    def __init__(self, window: int = WINDOW, unseen_limit: int = UNSEEN_LIMIT) -> None:
        self._window = window
        self._unseen_limit = unseen_limit
        self._live: dict[str, _Live] = {}
        self._pending: dict[str, Announcement] = {}
        self._behind: dict[str, Announcement] = {}  # what waits for the one in flight of the same key
        self._sent: dict[int, Announcement] = {}
        self._busy: dict[str, Announcement] = {}
        self._unseen: dict[str, None] = {}  # of the pending ones: came and went unannounced, the oldest first
        self._owed: dict[str, None] = {}  # of the pending ones: the end of what was announced, or may have been
        self._next_tag = 1
        self._open = False
        self._gap = False
        self.held = False
        """Whether only what is owed is announced."""
        self.forgotten = 0
        """Connections that came and went while nobody could be told, and of which nobody will be, unless it was in vain that an
        announcement of one seemed lost."""
        self.resyncs = 0
        """How often all connections were announced again."""

    # -- what happens ----------------------------------------------------------------------------------------------------

    def connected(self, event: DeviceConnected, time: float) -> None:
        """A device connected."""
        key = event.connection_id
        self._live[key] = _Live(event, time)
        announcement = Announcement(key, "connected", time, time)
        announcement.connected = event
        announcement.first = True
        self._offer(announcement)

    def identified(self, event: DeviceIdentified) -> None:
        """A device said who it is after it connected: announce it with that, and again if it was announced without."""
        key = event.connection_id
        live = self._live.get(key)
        if live is None or live.event.device_id == event.device_id:
            return
        live.event = replace(live.event, device_id=event.device_id)
        pending = self._pending.get(key) or self._behind.get(key)
        if pending is not None:
            pending.connected = live.event
        else:
            self._offer(self._repetition(key, live))

    def disconnected(self, event: DeviceDisconnected, time: float) -> None:
        """A device's connection is gone. One that was never announced here is announced all the same."""
        live = self._live.pop(event.connection_id, None)
        announcement = Announcement(event.connection_id, "disconnected", time, time - event.seconds)
        announcement.ended = event
        self._gone(announcement, live)

    def node_lost(self, node: str, time: float) -> None:
        """Another node is gone, and its connections with it."""
        self._offer(Announcement(node, "node-lost", time, time))

    def pending(self, key: str) -> bool:
        """Whether something is to be announced of this connection, or node, that has not arrived."""
        return key in self._pending or key in self._busy

    def missed(self, live: Iterable[DeviceConnected], time: float) -> None:
        """Nobody was told of events for a while. `live` are the connections that are open now: announce what that changes,
        and all of them again.
        """
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
            if key in self._pending or key in self._busy:
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
        if key in self._busy:
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
        """There is a channel, with its confirms on. After a gap all connections are announced again."""
        self._next_tag = 1
        self._open = True
        if self._gap:
            self._gap = False
            self.resync()

    def next(self) -> Announcement | None:
        """What is to be published now, as the channel's next message; `None` for nothing, or nothing more for now."""
        if not self._open or len(self._sent) >= self._window:
            return None
        key = next(iter(self._owed if self.held else self._pending), None)
        if key is None:
            return None
        announcement = self._pending.pop(key)
        self._unseen.pop(key, None)
        self._owed.pop(key, None)
        announcement.returned = False
        self._sent[self._next_tag] = self._busy[key] = announcement
        self._next_tag += 1
        live = self._live.get(key)
        if live is not None:
            live.known = True
        return announcement

    def hold(self, held: bool) -> None:
        """Announce only what is owed from now on, or everything again."""
        self.held = held
        if not held and self._gap and self._open:
            self._gap = False
            self.resync()

    def returned(self, key: str) -> None:
        """The broker had nowhere to put the announcement of this key that is in flight."""
        announcement = self._busy.get(key)
        if announcement is not None:
            announcement.returned = True

    def confirmed(self, tag: int, multiple: bool) -> bool:
        """The broker has these. Whether it has: `False` if one of them was returned, and the queue is gone.

        `UnknownTag`; nothing changes then.
        """
        kept = True
        for announcement in self._take(tag, multiple):
            if announcement.returned:
                kept = False
                self._gap = True
                self._back(announcement)
            else:
                self._advance(announcement.key)
        return kept

    def refused(self, tag: int, multiple: bool) -> None:
        """The broker does not take these: they are pending again. `UnknownTag`; nothing changes then."""
        for announcement in self._take(tag, multiple):
            self._back(announcement)

    def lost(self) -> None:
        """The channel is gone. What was in flight may have arrived, or not: it is pending again."""
        self._open = False
        sent, self._sent = list(self._sent.values()), {}
        self._busy.clear()
        for announcement in sent:
            self._gap = True
            newer = self._behind.pop(announcement.key, None)
            if newer is None:
                if announcement.change == "connected":
                    announcement.resync = True
                announcement.first = False
            self._offer(newer or announcement)

    def _take(self, tag: int, multiple: bool) -> list[Announcement]:
        if multiple:
            tags = [sent for sent in self._sent if not tag or sent <= tag]
        else:
            tags = [tag]
        if tag >= self._next_tag or (not multiple and tag not in self._sent):
            raise UnknownTag(f"delivery tag {tag} is none of those in flight")
        taken = [self._sent.pop(tag) for tag in tags]
        for announcement in taken:
            del self._busy[announcement.key]
        return taken

    def _advance(self, key: str) -> None:
        """What was in flight has arrived: it is the turn of what waits behind it."""
        newer = self._behind.pop(key, None)
        if newer is not None:
            self._offer(newer)

    def _back(self, announcement: Announcement) -> None:
        """It has certainly not arrived."""
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

    # -- how much there is -----------------------------------------------------------------------------------------------

    @property
    def unconfirmed(self) -> int:
        """Announcements that have not arrived, without those that are held."""
        return len(self._owed if self.held else self._pending) + len(self._behind) + len(self._sent)

    @property
    def in_flight(self) -> int:
        """Those of them that are published."""
        return len(self._sent)

    @property
    def live(self) -> int:
        """Open connections."""
        return len(self._live)
