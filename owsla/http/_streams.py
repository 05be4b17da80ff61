"""Answers without end: server-sent events (HTML standard, 9.2), or lines of JSON.

Theory of operation
-------------------

A `Feed` has the messages of a stream. It is asked for them every `interval` seconds, and at once if it has more. It is not
asked while the client does not read: then the source skips what it does not keep, and counts what was lost. So at most the
buffer of the transport (64 KiB) and one answer of the feed wait for a client. One that reads nothing for `STALLED` seconds is
disconnected.

    opening ──first answer──▶ running ──the client does not read──▶ paused
                                ▲──────────it has read all───────────┘
    any of them ──the client goes, or the feed ends──▶ closed

The first answer of the feed comes before the status line, so that its failure is an ordinary error. The feed is closed once, in
whichever way the stream ends.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import implementer

from ..interfaces import Clock, DelayedCall
from ._connections import LimitedConnection
from ._errors import HttpError

HEARTBEAT: Final = 15.0
"""Seconds without a message after which a comment is sent. Proxies close connections that are silent for 30 or 60 s."""

RECONNECT: Final = 2000
"""Milliseconds after which a browser connects again (`retry`)."""

STALLED: Final = 25.0
"""Seconds without reading after which a client is disconnected: before a node ends a trace that nobody asks for."""

EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a stream."""

    event: str
    """Name of the event."""
    data: str
    """JSON text without line ends."""
    id: str | None = None
    """Id that a browser sends when it connects again (`Last-Event-ID`)."""


class Feed(Protocol):
    """Source of the messages of a stream."""

    @property
    def interval(self) -> float:
        """Seconds from one question for messages to the next."""

    @property
    def end(self) -> str | None:
        """Reason for which the stream ends after the messages so far; `None` while it goes on."""

    def poll(self) -> Deferred[Sequence[Message]]:
        """Return the messages since the last call."""

    @property
    def more(self) -> bool:
        """True if more messages are there already."""

    def close(self) -> None:
        """Note that the stream has ended. It is called once."""


def _event_bytes(message: Message) -> bytes:
    """Return a message as a server-sent event."""
    head = f"id: {message.id}\n" if message.id is not None else ""
    return f"{head}event: {message.event}\ndata: {message.data}\n\n".encode()


def _line_bytes(message: Message) -> bytes:
    """Return a message as a line of JSON."""
    return f"{message.data}\n".encode()


@implementer(IPushProducer)
class Stream:
    """An answer without end to one request."""

    _log = Logger(namespace="owsla.http")

    def __init__(
        self,
        clock: Clock,
        request: Request,
        feed: Feed,
        admitted: Callable[[], bool],
        *,
        lines: bool,
        closed: Callable[[Stream], object],
    ) -> None:
        """`admitted` returns whether the client may still read the stream. `lines` is true for lines of JSON instead of
        server-sent events. `closed(stream)` is called at the end."""
        self._clock = clock
        self._request = request
        self._feed = feed
        self._admitted = admitted
        self._lines = lines
        self._closed = closed
        self._over = False
        self._paused = False
        self._due = False
        """True if the feed is to be asked once the client reads again."""
        self._pending: deque[Message] = deque()
        self._written_at = 0.0
        self._call: DelayedCall | None = None
        """Next question to the feed; while the client does not read, the disconnect."""
        request.notifyFinish().addBoth(lambda _: self._end())

    def open(self) -> Deferred[None]:
        """Ask the feed for its first messages, and begin the answer. The Deferred fails if the feed does."""
        opened: Deferred[Sequence[Message]] = self._feed.poll()
        return opened.addCallbacks(self._begin, self._refused)

    def _refused(self, failure: Failure) -> Failure:
        self._end()
        return failure

    def _begin(self, messages: Sequence[Message]) -> None:
        if self._over:
            return
        request = self._request
        channel: Any = request.channel
        if isinstance(channel.transport, LimitedConnection):
            channel.transport.stream()
        request.setHeader(b"content-type", (NDJSON if self._lines else EVENT_STREAM).encode())
        request.setHeader(b"x-accel-buffering", b"no")  # nginx would collect the messages
        request.registerProducer(self, True)
        self._write(b"\n" if self._lines else f"retry: {RECONNECT}\n\n".encode())
        self._send(messages)

    # -- messages ----------------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        self._call = None
        if not self._admitted():
            self.finish("the token has been replaced")
            return
        if self._clock.seconds() - self._written_at >= HEARTBEAT:
            self._write(b"\n" if self._lines else b":\n\n")
        polled: Deferred[Sequence[Message]] = maybeDeferred(self._feed.poll)
        polled.addCallbacks(self._send, self._failed)

    def _failed(self, failure: Failure) -> None:
        if not self._over:
            self._log.failure("A stream over HTTP ended", failure)
            self.finish("an internal error, which the log describes")

    def _send(self, messages: Sequence[Message]) -> None:
        if not self._over:
            self._due = True
            self._pending.extend(messages)
            self._flush()

    def _flush(self) -> None:
        """Write what the connection takes. Then ask the feed again."""
        encode = _line_bytes if self._lines else _event_bytes
        while self._pending and not self._paused:
            self._write(encode(self._pending.popleft()))
        if self._paused or not self._due:
            return
        self._due = False
        if self._feed.end is not None:
            self.finish(self._feed.end)
        else:
            self._call = self._clock.callLater(0.0 if self._feed.more else self._feed.interval, self._poll)

    def _write(self, data: bytes) -> None:
        self._written_at = self._clock.seconds()
        self._request.write(data)

    # -- the end -----------------------------------------------------------------------------------------------------------

    def finish(self, reason: str) -> None:
        """End the stream with a message that says why."""
        if self._over:
            return
        request = self._request
        self._end()
        if request.startedWriting and not self._paused:
            message = Message("end", json.dumps({"kind": "end", "text": reason}))
            request.write(_line_bytes(message) if self._lines else _event_bytes(message))
            request.unregisterProducer()
            channel: Any = request.channel
            if isinstance(channel.transport, LimitedConnection):
                channel.transport.end_stream()  # before `finish`, which may begin the answer to the next request
            request.finish()
        else:
            self._abort()

    def _disconnect(self) -> None:
        self._call = None
        self._end()
        self._abort()

    def _abort(self) -> None:
        channel: Any = self._request.channel
        if channel is not None:
            channel.transport.abortConnection()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._pending.clear()
        self._feed.close()
        self._closed(self)

    # -- IPushProducer: the connection is the consumer ---------------------------------------------------------------------

    def pauseProducing(self) -> None:
        if self._over or self._paused:
            return
        self._paused = True
        if self._call is not None:
            self._call.cancel()
            self._due = True
        self._call = self._clock.callLater(STALLED, self._disconnect)

    def resumeProducing(self) -> None:
        if self._over or not self._paused:
            return
        self._paused = False
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._flush()

    def stopProducing(self) -> None:
        self._end()


class Streams:
    """The streams at one address."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._open: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self, request: Request, feed: Feed, admitted: Callable[[], bool] = lambda: True, *, lines: bool = False
    ) -> Deferred[None]:
        """Answer a request with a stream, while the client is `admitted()`.

        The Deferred fails if the feed does; `HttpError` if there are too many streams.
        """
        if request.channel is None:  # the client has gone while its name was looked up: nothing would end the stream
            feed.close()
            return succeed(None)
        if len(self._open) >= self._limit:
            feed.close()
            text = f"There are {self._limit} streams open; close one of them first."
            raise HttpError(503, text, headers={"retry-after": "5"})
        stream = Stream(self._clock, request, feed, admitted, lines=lines, closed=self._open.discard)
        self._open.add(stream)
        return stream.open()

    def close(self, reason: str) -> None:
        """End all streams."""
        for stream in list(self._open):
            stream.finish(reason)
