"""Interface of a framing, as a connection uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from ._unfinished import Unfinished


class Framing(ABC):
    """Division of the bytes of a connection into payloads, and of payloads to the device into frames."""

    __slots__ = ("check_beyond", "delimiter", "max_body", "max_line", "unfit", "unfit_reason")

    def __init__(
        self,
        max_line: int,
        max_body: int | None = None,
        *,
        delimiter: bytes = b"",
        unfit: Callable[[bytes], object] | None = None,
        unfit_reason: str = "delimiter-in-body",
        check_beyond: int = 0,
    ) -> None:
        """`max_body` is the longest payload that the framing can express, if it has a limit."""
        self.max_line = max_line
        """Maximum length of a payload in bytes, from the device and to it."""
        self.max_body = max_line if max_body is None else min(max_line, max_body)
        """Maximum length of a payload to the device in bytes."""
        self.unfit = unfit
        """Function that returns a true value for a payload that the framing cannot carry; `None` if it carries all that are not
        too long. An attribute instead of a method, since messages on the hot path are checked with it.
        """
        self.unfit_reason = unfit_reason
        """Reason for which a payload that is `unfit` is undeliverable."""
        self.delimiter = delimiter
        """Delimiter of lines; empty in other framings."""
        self.check_beyond = check_beyond
        """Bytes of an incomplete frame beyond which `unfinished` must be asked about it."""

    @abstractmethod
    def split(self, data: bytes, limit: int = -1) -> tuple[list[bytes], bytes]:
        """Return the payloads of the complete frames at the start of `data`, at most `limit` of them, and the rest.

        The rest begins with an incomplete or malformed frame, or with anything at the limit. Lengths are not checked.
        """

    @abstractmethod
    def unfinished(self, rest: bytes) -> Unfinished | None:
        """Return what collects, or skips, the incomplete frame at the start of `rest`; `None` if `rest` is just kept.

        `rest` was returned by `split`. Raise `MalformedFrame` if the frame is malformed.
        """

    @abstractmethod
    def encode(self, payloads: Sequence[bytes]) -> bytes:
        """Return the frames of payloads. `split` finds these in it, too, if they were payloads from the device."""

    def complete(self, rest: bytes) -> bool:
        """Return whether `rest` begins with a complete frame."""
        return bool(self.split(rest, 1)[0])

    def fault(self, body: bytes) -> str | None:
        """Return the reason for which a message with this body is undeliverable in this framing; `None` if there is none."""
        if len(body) > self.max_body:
            return "too-long"
        if self.unfit is not None and self.unfit(body):
            return self.unfit_reason
        return None
