"""Output buffer of a connection: bytes are collected, and written once per reactor turn.

Writing to a socket costs about as much for a hundred messages as for one. The confirms of all channels are sent with the same
write, so that one basic.ack covers what arrived in one read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from owsla.runtime.end_of_turn import EndOfTurn

from .channel_output import ChannelOutput

WRITE_AT: Final = 65536
"""Buffered bytes that are written before the turn ends: the buffer of a Twisted transport before it pauses its producer."""


class ConnectionWriter:
    """Buffer for the bytes and the confirms of a connection. `write` passes them to the transport."""

    __slots__ = ("_chunks", "_confirming", "_scheduled", "_size", "_turn", "_write")

    def __init__(self, turn: EndOfTurn, write: Callable[[bytes], None]) -> None:
        self._turn = turn
        self._write = write
        self._chunks: list[bytes] = []
        self._size = 0
        self._confirming: list[ChannelOutput] = []
        self._scheduled = False

    def write(self, data: bytes) -> None:
        """Buffer bytes until the end of the turn, or until there are many."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= WRITE_AT:
            self.flush()
        else:
            self._schedule()

    def confirm_later(self, output: ChannelOutput) -> None:
        """Send the confirms of a channel with the next write."""
        self._confirming.append(output)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._turn.call_last(self.flush)

    def flush(self) -> None:
        """Write the buffered bytes now."""
        if self._confirming:
            confirming, self._confirming = self._confirming, []
            # A channel is noted once per publish; its confirms are sent once.
            for output in dict.fromkeys(confirming):
                if not output.closing:
                    output.send_confirms()
        self._scheduled = False
        if not self._chunks:
            return
        data = b"".join(self._chunks)
        self.clear()
        self._write(data)

    def clear(self) -> None:
        """Discard the buffered bytes."""
        self._chunks.clear()
        self._size = 0
