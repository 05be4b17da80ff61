"""Large frames that have not arrived completely: collected, or discarded since they are too long."""

from __future__ import annotations

from typing import Final, Protocol

LONG_FRAME: Final = 32768
"""Bytes of an unfinished frame past which it is collected in a buffer that grows in place. Joining and splitting it again with
each read would cost the square of its length."""


class MalformedFrame(ValueError):
    """A malformed frame. The text says what is wrong with it."""


class Unfinished(Protocol):
    """A frame whose end has not arrived."""

    skipping: bool
    """True if the frame is too long. None of its bytes are kept: they are discarded as they arrive, up to the end of it."""

    @property
    def size(self) -> int:
        """Number of bytes that are kept."""

    def feed(self, data: bytes, max_line: int) -> bytes | None:
        """Add bytes. Return `None` while the end of the frame has not arrived.

        At its end, return all bytes from the start of the frame on; if it is skipped, the bytes after it. Set `skipping` when
        the frame turns out to be longer than `max_line`. Raise `MalformedFrame` if it is malformed.
        """


class KnownSize:
    """An unfinished frame whose header says how long it is."""

    __slots__ = ("_held", "_missing", "_payload", "_trailer", "skipping")

    def __init__(self, held: bytes, size: int, payload: int, max_line: int, trailer: bytes = b"") -> None:
        """`held` are the first of the `size` bytes of the frame, and `payload` of these are its payload. It ends with
        `trailer`.
        """
        self.skipping = payload > max_line
        self._held = bytearray() if self.skipping else bytearray(held)
        self._missing = size - len(held)
        self._payload = payload
        self._trailer = trailer

    @property
    def size(self) -> int:
        return len(self._held)

    def feed(self, data: bytes, max_line: int) -> bytes | None:
        if not self.skipping and self._payload > max_line:  # the limit was lowered
            self.skipping = True
            self._held = bytearray()
        missing = self._missing
        self._missing = missing - len(data)
        if not self.skipping:
            self._held += data
            return bytes(self._held) if self._missing <= 0 else None
        if self._missing > 0:
            return None
        # The trailer is a single byte, or there is none.
        if self._trailer and data[missing - 1 : missing] != self._trailer:
            raise MalformedFrame(f"{self._payload} bytes are not followed by {self._trailer!r}")
        return data[missing:]


class UntilTerminator:
    """An unfinished frame that ends with a terminator, such as a delimiter."""

    __slots__ = ("_held", "_slack", "_terminator", "skipping")

    def __init__(self, held: bytes, terminator: bytes, slack: int, max_line: int) -> None:
        """`held` are the first bytes of the frame, without its terminator. A frame that is not too long has `slack` bytes more
        than `max_line` at most: its start, and an incomplete terminator.
        """
        self.skipping = False
        self._held = bytearray(held)
        self._terminator = terminator
        self._slack = slack
        self._check(max_line)

    @property
    def size(self) -> int:
        return 0 if self.skipping else len(self._held)

    def feed(self, data: bytes, max_line: int) -> bytes | None:
        held, terminator = self._held, self._terminator
        start = max(0, len(held) - len(terminator) + 1)
        held += data
        place = held.find(terminator, start)
        if place < 0:
            self._check(max_line)
            return None
        return bytes(held[place + len(terminator) :]) if self.skipping else bytes(held)

    def _check(self, max_line: int) -> None:
        if self.skipping or len(self._held) > max_line + self._slack:
            self.skipping = True
            # The end of what was skipped may be the beginning of the terminator.
            del self._held[: max(0, len(self._held) - len(self._terminator) + 1)]
