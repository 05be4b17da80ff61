"""The command `owsla tail --offset`: show the messages of a stream, from a position on. They stay in the stream."""

from __future__ import annotations

from typing import Any

from ..broker import queues
from ..broker.client import BrokerClient
from ..broker.queue_state import inspect_queue
from ..runtime.end_of_turn import EndOfTurn
from ._output import Output
from ._running import Session
from ._stream_offset import OFFSET, Offset, message_offset
from ._tail import LOOK, SCRATCH, Format, Formatter, TakeHandler


class StreamFormatter(Formatter):
    """Formatter of messages of a stream, which keeps the position behind the last one."""

    position: Offset = "next"

    def lines(self, header: bytes, body: bytes, redelivered: bool) -> list[bytes]:
        offset = message_offset(header)
        if offset is not None:
            self.position = offset + 1
        return super().lines(header, body, redelivered)


class ReadStream:
    """The `Role` of `owsla tail --offset`. After a lost connection it goes on behind the last message that arrived.

    An acknowledgement takes nothing from a stream; with the prefetch it limits what has arrived and is not written yet.
    """

    name = "tail"

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        queue: str,
        form: Format,
        seq_header: str,
        count: int | None,
        offset: Offset,
    ) -> None:
        """End after `count` lines and the rest of their batch, or never if it is `None`."""
        self._turn = turn
        self._session = session
        self._queue = queue
        self._formatter = StreamFormatter(form, seq_header, session.log)
        self._formatter.position = offset
        self._count = count
        self._output = Output(reactor, lambda why: session.finish(1 if why else 0, why))

    async def up(self, client: BrokerClient) -> None:
        if await inspect_queue(client, LOOK, self._queue) is None:
            self._session.finish(1, f"there is no stream {self._queue}")
            return
        if await queues.is_stream(client, SCRATCH, self._queue) is False:
            self._session.finish(1, f"{self._queue} is not a stream: --offset is for streams only")
            return
        self._session.log_when_ready(f"reading the stream {self._queue}")
        handler = TakeHandler(self._turn, self._output, client, self._formatter, self._shown)
        await handler.start(self._queue, self._count, {OFFSET: self._formatter.position})

    def _shown(self, count: int) -> None:
        if self._count is not None:
            self._count -= count
            if self._count <= 0:
                self._session.finish(0)

    def down(self) -> None: ...

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...
