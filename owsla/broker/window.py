"""The confirm window: the device lines that are published and not yet confirmed, in order. Pure.

RabbitMQ numbers the publishes of a channel 1, 2, 3 … and confirms them by that delivery tag, alone or cumulatively, mostly in
order (https://www.rabbitmq.com/docs/confirms#publisher-confirms). What is in the window here is kept as the bytes that publish
it, so that publishing it again is writing it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from typing import Any, Final, NamedTuple


class Entry(NamedTuple):
    """A line in the window."""

    source: Any
    """The connection it came from; anything hashable."""
    seq: int
    """Its number on that connection."""
    packed: bytes
    """The frames that publish it."""


_REPEATED: Final = Entry(None, -1, b"")
"""Stands where a line was that is published again under a later tag, until the broker has answered for this one, too."""


class UnknownTag(ValueError):
    """The broker confirmed a delivery tag that was never published, or one that it confirmed before."""


class Window:
    """Unconfirmed lines, at most so many and so many bytes.

    The bounds are advice to the caller (`full`), not enforced here: lines that were read already have to go somewhere.
    Memory is bounded with the unconfirmed lines, however many are confirmed behind one that is not.
    """

    __slots__ = ("_aside", "_entries", "_first", "_refused", "_stretch", "max_bytes", "max_messages", "messages", "size")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        """Both bounds count what is published and unconfirmed; `max_bytes` counts frames, headers and all."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.messages = 0
        """How many lines are unconfirmed, those that the broker refused among them."""
        self.size = 0
        """Their bytes."""
        # Entry i has the delivery tag _first + i; None where the broker has answered ahead of an earlier one.
        self._entries: deque[Entry | None] = deque()
        self._first = 1
        # One that is not answered for long would make those behind it a longer and longer stretch of None. So past a length
        # the first of them are moved here, by tag, ascending: only those that are not answered.
        self._aside: dict[int, Entry] = {}
        self._stretch = 2 * max_messages
        self._refused: list[Entry] = []

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return self.messages >= self.max_messages or self.size >= self.max_bytes

    @property
    def roomy(self) -> bool:
        """Whether enough is free again to let devices speak: an eighth, lest each confirm opens and closes it."""
        return self.messages <= self.max_messages * 7 // 8 and self.size <= self.max_bytes * 7 // 8

    @property
    def spare(self) -> int:
        """How many lines of a source that has left are still kept: an eighth of the free room, where twice the bounds are room.

        So one source cannot take all of it, and there is some for the next one.
        """
        messages = 2 * self.max_messages - self.messages
        if messages <= 0 or self.size >= 2 * self.max_bytes:
            return 0
        room = (2 * self.max_bytes - self.size) * self.max_messages // self.max_bytes
        return max(1, min(messages, room) // 8)

    @property
    def refused(self) -> bool:
        """Whether lines were refused and wait for `retry`."""
        return bool(self._refused)

    def add(self, source: Any, seq: int, packed: bytes) -> None:
        """Note a line as published; it has the next delivery tag."""
        self._entries.append(Entry(source, seq, packed))
        self.messages += 1
        self.size += len(packed)

    def defer(self, source: Any, seq: int, packed: bytes) -> None:
        """Note a line that is to be published with the next `retry`, behind refused lines of its connection."""
        self._refused.append(Entry(source, seq, packed))
        self.messages += 1
        self.size += len(packed)

    def confirm(self, tag: int, multiple: bool) -> list[Entry]:
        """The broker has taken this tag, or all up to it: what that confirms, in order. `UnknownTag` where there is none."""
        confirmed = self._take(tag, multiple)
        self.messages -= len(confirmed)
        for entry in confirmed:
            self.size -= len(entry[2])
        return confirmed

    def refuse(self, tag: int, multiple: bool) -> list[Entry]:
        """The broker refused this tag, or all up to it: they stay in the window and wait for `retry`."""
        refused = self._take(tag, multiple)
        self._refused += refused
        return refused

    def put_back(self, entries: list[Entry]) -> None:
        """Of what was just confirmed these are not safe after all (they were returned): refuse them."""
        self.messages += len(entries)
        self.size += sum(len(entry.packed) for entry in entries)
        self._refused += entries

    def _take(self, tag: int, multiple: bool) -> list[Entry]:
        entries = self._entries
        index = tag - self._first
        if multiple and tag == 0:
            index = len(entries) - 1
        taken: list[Entry] = []
        if self._aside and index < len(entries) and (multiple or index < 0):
            taken = self._take_aside(self._first + index, multiple)
            if index < 0:
                return taken
        if index >= len(entries) or index < 0:
            if multiple and index == -1:
                return []  # all of them were confirmed one by one before
            raise UnknownTag(f"delivery tag {tag} is not one of the {len(entries)} from {self._first} on")
        if multiple or index == 0:
            self._first += index + 1
            for _ in range(index + 1):
                entry = entries.popleft()
                if entry is not None and entry is not _REPEATED:
                    taken.append(entry)
            self._drop_answered()
        else:
            entry = entries[index]
            if entry is None:
                raise UnknownTag(f"delivery tag {tag} was confirmed before")
            entries[index] = None
            if entry is not _REPEATED:
                taken.append(entry)
            if len(entries) > self._stretch:
                self._set_aside()
        return taken

    def _drop_answered(self) -> None:
        """The first entry is always one that is not answered."""
        entries = self._entries
        while entries and entries[0] is None:
            entries.popleft()
            self._first += 1

    def _set_aside(self) -> None:
        """Keep a length of the last ones, and of those before them what is not answered."""
        entries = self._entries
        while len(entries) > self.max_messages:
            entry = entries.popleft()
            if entry is not None:
                self._aside[self._first] = entry
            self._first += 1
        self._drop_answered()

    def _take_aside(self, tag: int, multiple: bool) -> list[Entry]:
        """Of those set aside this one, or all up to it."""
        aside = self._aside
        if multiple:
            tags = list(takewhile(tag.__ge__, aside))
            if not tags and tag != next(iter(aside)) - 1:
                raise UnknownTag(f"delivery tag {tag}, and all before it, were confirmed before")
        elif tag in aside:
            tags = [tag]
        else:
            raise UnknownTag(f"delivery tag {tag} was confirmed before")
        return [entry for entry in map(aside.pop, tags) if entry is not _REPEATED]

    def give_up(self, hopeless: Callable[[bytes], bool]) -> list[Entry]:
        """Take out the lines that can never be published, in order. Their tags may still be answered."""
        given_up = [entry for entry in self._refused if hopeless(entry.packed)]
        self._refused = [entry for entry in self._refused if not hopeless(entry.packed)]
        for tag, entry in self._aside.items():
            if entry is not _REPEATED and hopeless(entry.packed):
                given_up.append(entry)
                self._aside[tag] = _REPEATED
        for index, waiting in enumerate(self._entries):
            if waiting is not None and waiting is not _REPEATED and hopeless(waiting.packed):
                given_up.append(waiting)
                self._entries[index] = _REPEATED
        self.messages -= len(given_up)
        self.size -= sum(len(entry.packed) for entry in given_up)
        return given_up

    def retry(self) -> list[bytes]:
        """Go back to the first refused line of every connection that has one, and repeat from there: what to publish again.

        Lines of those connections that are on their way already are among them, behind the refused ones: their order on the
        queue is that of their numbers, and the back end drops what it sees twice. What was confirmed is not repeated.
        """
        sources = {entry.source for entry in self._refused}
        again = self._refused
        self._refused = []
        for tag, entry in self._aside.items():
            if entry.source in sources:  # _REPEATED has none
                again.append(entry)
                self._aside[tag] = _REPEATED
        for index, waiting in enumerate(self._entries):
            if waiting is not None and waiting is not _REPEATED and waiting.source in sources:
                again.append(waiting)
                self._entries[index] = _REPEATED
        again.sort(key=_seq)
        self._entries.extend(again)
        return [entry.packed for entry in again]

    def restart(self, refit: Callable[[bytes], bytes] | None = None) -> list[bytes]:
        """A new channel counts from 1 again: what to publish on it before anything new.

        `refit` is applied to each, where the broker wants other frames than the last one.
        """
        again = self._refused + list(self._unanswered())
        if self._refused:
            again.sort(key=_seq)  # stable, so each connection's lines come in the order of their numbers
            self._refused = []
        if refit is not None:
            again = [entry._replace(packed=refit(entry.packed)) for entry in again]
            self.size = sum(len(entry.packed) for entry in again)
        self._entries = deque(again)
        self._aside.clear()
        self._first = 1
        return [entry.packed for entry in again]

    def sources(self) -> Iterator[Any]:
        """Where each unconfirmed line came from."""
        for entry in self._refused:
            yield entry.source
        for entry in self._unanswered():
            yield entry.source

    def _unanswered(self) -> Iterator[Entry]:
        """The lines that the broker has yet to answer, in the order of their tags."""
        for entry in chain(self._aside.values(), self._entries):
            if entry is not None and entry is not _REPEATED:
                yield entry

    def __len__(self) -> int:
        return self.messages


def _seq(entry: Entry) -> int:
    return entry.seq
