"""The command `owsla tail --offset`: show the messages of a stream, from a position on. They stay in the stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Unpack

from ..amqp.wire import Timestamp
from ..broker import queues
from ..broker.client import BrokerClient
from ..broker.queue_state import inspect_queue
from ..runtime.end_of_turn import EndOfTurn
from ._running import Session
from ._stream_offset import OFFSET, Offset, message_offset
from ._tail import LOOK, SCRATCH, ArrivingLines, Format, Formatter, Shown


class StreamFormatter(Formatter):
    """Formatter of messages of a stream, which keeps the position behind the last one."""

    def __init__(self, form: Format, seq_header: str, warn: Callable[[str], None], offset: Offset) -> None:
        """Begin at `offset`."""
        super().__init__(form, seq_header, warn)
        self.position = offset
        """Position of the next message."""

    def lines(self, header: bytes, body: bytes, redelivered: bool) -> list[bytes]:
        offset = message_offset(header)
        if offset is not None:
            self.position = offset + 1
        return super().lines(header, body, redelivered)


class ReadStream(ArrivingLines):
    """The `Role` of `owsla tail --offset`. After a lost connection it goes on behind the last message that arrived.

    If none had arrived, `next` and `last` would be a later place by then. It goes on with the messages that came since it
    began, by the clock of this process, to the second.

    An acknowledgement takes nothing from a stream; with the prefetch it limits what has arrived and is not written yet.
    """

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        form: Format,
        seq_header: str,
        offset: Offset,
        now: Callable[[], float] = time.time,
        **what: Unpack[Shown],
    ) -> None:
        """Begin at `offset`. `now` returns the time in seconds since the epoch."""
        self._now = now
        self._stream = StreamFormatter(form, seq_header, session.log, offset)
        super().__init__(reactor, turn, session, formatter=self._stream, **what)

    async def up(self, client: BrokerClient) -> None:
        if await inspect_queue(client, LOOK, self._queue) is None:
            self._session.finish(1, f"there is no stream {self._queue}")
            return
        if await queues.is_stream(client, SCRATCH, self._queue) is False:
            self._session.finish(1, f"{self._queue} is not a stream: --offset is for streams only")
            return
        self._session.log_when_ready(f"reading the stream {self._queue}")
        position = self._stream.position
        if position in ("next", "last"):
            self._stream.position = Timestamp(self._now())
        await self.show(client, {OFFSET: position})
