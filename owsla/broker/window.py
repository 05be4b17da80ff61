"""The confirm window: published, unconfirmed lines of devices, in order. Pure.

Theory of operation. RabbitMQ numbers the publishes of a channel 1, 2, 3, ... and answers each with basic.ack or basic.nack for
this delivery tag, individually or cumulatively, mostly in order (https://www.rabbitmq.com/docs/confirms#publisher-confirms).
The window keeps each line as the frames that publish it, so republishing is writing the same bytes again.

States of a line: *published* (in `_entries` or `_aside`, under a tag), *refused* (in `_refused`, without a tag), and gone once
it is confirmed or given up. Transitions:

    add                       -> published
    defer                     -> refused (its connection has refused lines, and order must be kept)
    confirm   published       -> gone
    refuse    published       -> refused
    put_back  just confirmed  -> refused (it was returned: the broker acknowledges unroutable messages too)
    retry     refused         -> published under a new tag, together with all later published lines of the connection
    restart   all             -> published, with tags from 1 on (a new channel)
    give_up   any             -> gone

Invariants:
- `_entries[i]` has the tag `_first + i`. A line that was answered out of order leaves `None`; one that was republished leaves
  `_REPEATED`, because its first tag is still unanswered. The first entry is never `None`.
- After `retry` and `restart` the lines of a connection are published in the order of their numbers. A line may be published
  twice; back ends drop the second copy by its number.
- `messages` and `size` count published and refused lines, without placeholders.
- `entered` is `messages` plus the lines that have left: `confirmed_lines` and `given_up_lines`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, repeat, takewhile
from typing import Any, Final, NamedTuple

from .batch import Batch


class Entry(NamedTuple):
    """A published message in the window: a line, or a batch of lines."""

    source: Any
    """Connection of the line, or route of the batch: any hashable object. Messages of a source keep their order."""
    seq: int
    """Number of the line on its connection, or of the batch on its route."""
    packed: bytes
    """Frames that publish the message."""
    batch: Batch | None = None
    """Lines of a batch; `None` for a message of one line without a batch."""

    @property
    def connections(self) -> Iterable[Any]:
        """The connections of the lines, each once."""
        return (self.source,) if self.batch is None else dict.fromkeys(self.batch.sources)

    @property
    def first_line(self) -> tuple[bytes, int]:
        """Connection id and number of the first line, which identify the message."""
        if self.batch is None:
            return self.source.connection_id, self.seq
        return self.batch.sources[0].connection_id, self.batch.seqs[0]


_entry: Final = partial(tuple.__new__, Entry)
"""Make an `Entry` of a tuple of its fields, in a fifth of the time of `Entry(*fields)`, which is a call of Python code."""

_REPEATED: Final = Entry(None, -1, b"")
"""Placeholder for a line that was republished under a later delivery tag; its first tag is still unanswered."""


class UnknownTag(ValueError):
    """A confirm for a delivery tag that was never published, or is confirmed already."""


class Window:
    """Unconfirmed lines, with limits on their number and bytes.

    The limits are advice to the caller (`full`) and not enforced: a line that has been read from its device must be kept.
    Memory is proportional to the unconfirmed lines, however many later lines are confirmed.
    """

    __slots__ = (
        "_aside",
        "_entries",
        "_first",
        "_max_entries",
        "_refused",
        "confirmed_lines",
        "confirmed_messages",
        "given_up_lines",
        "max_bytes",
        "max_messages",
        "messages",
        "refused_lines",
        "size",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        """The limits count published and refused lines; `max_bytes` counts whole frames, with headers."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.messages = 0
        """Number of unconfirmed lines, including refused ones."""
        self.size = 0
        """Bytes of their frames."""
        # Entry i has the delivery tag _first + i; None: answered before an earlier one.
        self._entries: deque[Entry | None] = deque()
        self._first = 1
        # While one tag stays unanswered, confirmed entries behind it would pile up as None. Above a length of twice the limit,
        # the unanswered ones among the first entries move to this dictionary, by tag, ascending.
        self._aside: dict[int, Entry] = {}
        self._max_entries = 2 * max_messages
        self._refused: list[Entry] = []
        self.refused_lines = 0
        """Number of refused lines that wait for `retry`."""
        self.confirmed_lines = 0
        """Number of lines that were confirmed so far."""
        self.confirmed_messages = 0
        """Number of confirmed messages: fewer than lines where these travel in batches."""
        self.given_up_lines = 0
        """Number of lines that were given up so far."""

    def count(self, entries: list[Entry]) -> int:
        """Return the number of lines in some entries."""
        return len(entries)

    def lines(self, entries: list[Entry]) -> Iterable[tuple[Any, int]]:
        """Return the connection and the number of each line of some entries."""
        return [(entry.source, entry.seq) for entry in entries]

    def configure(self, max_messages: int, max_bytes: int) -> None:
        """Change the limits. Lines beyond them stay, and the window is full until enough of them are confirmed."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._max_entries = 2 * max_messages
        if len(self._entries) > self._max_entries:
            self._set_aside()

    @property
    def full(self) -> bool:
        """True if a limit is reached."""
        return self.messages >= self.max_messages or self.size >= self.max_bytes

    @property
    def roomy(self) -> bool:
        """True if at least an eighth is free, so that reading from devices may resume: with less, each confirm would resume and
        pause it."""
        return self.messages <= self.max_messages * 7 // 8 and self.size <= self.max_bytes * 7 // 8

    @property
    def entered(self) -> int:
        """Number of lines that have entered the window so far."""
        return self.confirmed_lines + self.given_up_lines + self.messages

    @property
    def answered(self) -> int:
        """Number of lines that were confirmed, refused or given up so far. Refused ones may stay for hours; so they do not hold
        up the shares of other connections.
        """
        return self.confirmed_lines + self.given_up_lines + self.refused_lines

    @property
    def spare(self) -> int:
        """Number of lines that a disconnected source may still add during an outage: an eighth of the room below twice the
        limits.

        With a share of the remaining room, one source cannot use all of it, and some is left for the next one.
        """
        messages = 2 * self.max_messages - self.messages
        if messages <= 0 or self.size >= 2 * self.max_bytes:
            return 0
        room = (2 * self.max_bytes - self.size) * self.max_messages // self.max_bytes
        return max(1, min(messages, room) // 8)

    @property
    def refused(self) -> bool:
        """True if refused lines wait for `retry`."""
        return bool(self._refused)

    def add(self, source: Any, seq: int, packed: bytes) -> bool:
        """Add a line that was published with the next delivery tag. Return whether a limit is reached (`full`)."""
        self._entries.append(_entry((source, seq, packed, None)))
        self.messages = messages = self.messages + 1
        self.size = size = self.size + len(packed)
        return messages >= self.max_messages or size >= self.max_bytes

    def add_lines(self, source: Any, seq: int, packed: Sequence[bytes]) -> None:
        """Add lines of one connection that were published with the next delivery tags. `seq` is the number of the first one."""
        self._entries.extend(map(_entry, zip(repeat(source), count(seq), packed, repeat(None), strict=False)))
        self.messages += len(packed)
        self.size += sum(map(len, packed))

    def defer(self, source: Any, seq: int, packed: bytes) -> None:
        """Add a line that is published at the next `retry`, behind refused lines of its connection."""
        self._refused.append(Entry(source, seq, packed))
        self.refused_lines += 1
        self.messages += 1
        self.size += len(packed)

    def confirm(self, tag: int, multiple: bool) -> list[Entry]:
        """Confirm a tag, or all up to it. Return the confirmed lines in order. Raise `UnknownTag` for a tag that is not
        pending."""
        confirmed = self._take(tag, multiple)
        lines = self.count(confirmed)
        self.messages -= lines
        self.confirmed_lines += lines
        self.confirmed_messages += len(confirmed)
        for entry in confirmed:
            self.size -= len(entry[2])
        return confirmed

    def refuse(self, tag: int, multiple: bool) -> list[Entry]:
        """Refuse a tag, or all up to it. Return the refused lines; they stay in the window for `retry`."""
        refused = self._take(tag, multiple)
        self._refused += refused
        self.refused_lines += self.count(refused)
        return refused

    def put_back(self, entries: list[Entry]) -> None:
        """Refuse lines that were just confirmed, because they had been returned as unroutable."""
        lines = self.count(entries)
        self.messages += lines
        self.refused_lines += lines
        self.confirmed_lines -= lines
        self.confirmed_messages -= len(entries)
        self.size += sum(len(entry.packed) for entry in entries)
        self._refused += entries

    def _take(self, tag: int, multiple: bool) -> list[Entry]:
        """Take the lines of a tag, or of all tags up to it, out of the published ones. Leave the counters to the caller."""
        entries = self._entries
        index = tag - self._first
        if multiple and tag == 0:  # all tags so far (AMQP 0-9-1, basic.ack)
            index = len(entries) - 1
        taken: list[Entry] = []
        if self._aside and index < len(entries) and (multiple or index < 0):
            taken = self._take_aside(self._first + index, multiple)
            if index < 0:
                return taken
        if index >= len(entries) or index < 0:
            if multiple and index == -1:
                return []  # all of these tags were confirmed individually before
            raise UnknownTag(f"delivery tag {tag} is outside of the {len(entries)} tags from {self._first} on")
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
            if len(entries) > self._max_entries:
                self._set_aside()
        return taken

    def _drop_answered(self) -> None:
        """Remove answered entries from the front."""
        entries = self._entries
        while entries and entries[0] is None:
            entries.popleft()
            self._first += 1

    def _set_aside(self) -> None:
        """Shorten the entries to `max_messages`; keep unanswered ones before that in `_aside`."""
        entries = self._entries
        while len(entries) > self.max_messages:
            entry = entries.popleft()
            if entry is not None:
                self._aside[self._first] = entry
            self._first += 1
        self._drop_answered()

    def _take_aside(self, tag: int, multiple: bool) -> list[Entry]:
        """Take a tag, or all up to it, from `_aside`."""
        aside = self._aside
        if multiple:
            tags = list(takewhile(tag.__ge__, aside))
            # As in `_take`, the tag just before the oldest unanswered one is valid: those up to it were confirmed individually.
            if not tags and tag != next(iter(aside)) - 1:
                raise UnknownTag(f"delivery tag {tag}, and all before it, were confirmed before")
        elif tag in aside:
            tags = [tag]
        else:
            raise UnknownTag(f"delivery tag {tag} was confirmed before")
        return [entry for entry in map(aside.pop, tags) if entry is not _REPEATED]

    def give_up(self, unpublishable: Callable[[bytes], bool]) -> list[Entry]:
        """Remove and return the lines that can never be published, in order. Their tags may still be answered."""
        given_up = [entry for entry in self._refused if unpublishable(entry.packed)]
        self._refused = [entry for entry in self._refused if not unpublishable(entry.packed)]
        self.refused_lines = self.count(self._refused)
        given_up += self._withdraw(lambda entry: unpublishable(entry.packed))
        lines = self.count(given_up)
        self.messages -= lines
        self.given_up_lines += lines
        self.size -= sum(len(entry.packed) for entry in given_up)
        return given_up

    def retry(self) -> list[bytes]:
        """Return the frames to republish: for each connection with refused lines, all unconfirmed ones from the first refused
        on.

        Published lines of these connections are republished too, behind the refused ones, so that the order on the queue is
        that of the numbers. Confirmed lines are not repeated.
        """
        sources = {entry.source for entry in self._refused}
        republished = self._refused
        self._refused = []
        self.refused_lines = 0
        republished += self._withdraw(lambda entry: entry.source in sources)
        republished.sort(key=_seq)
        self._entries.extend(republished)
        return [entry.packed for entry in republished]

    def _withdraw(self, chosen: Callable[[Entry], bool]) -> list[Entry]:
        """Put placeholders in the place of the chosen unanswered lines. Return these in the order of their tags."""
        withdrawn: list[Entry] = []

        def replace(entry: Entry) -> Entry:
            if entry is _REPEATED or not chosen(entry):
                return entry
            withdrawn.append(entry)
            return _REPEATED

        self._aside = {tag: replace(entry) for tag, entry in self._aside.items()}
        # Assignments to the entries of the present deque would take quadratic time: it is a list of blocks.
        self._entries = deque(None if entry is None else replace(entry) for entry in self._entries)
        return withdrawn

    def restart(self, refit: Callable[[bytes], bytes] | None = None) -> list[bytes]:
        """Return the frames to publish first on a new channel, whose tags start at 1.

        `refit` is applied to each line's frames: the new connection may have a smaller frame_max.
        """
        republished = self._in_order()
        if refit is not None:
            before = sum(len(entry.packed) for entry in republished)
            republished = [entry._replace(packed=refit(entry.packed)) for entry in republished]
            self.size += sum(len(entry.packed) for entry in republished) - before
        self._renumber(republished)
        return [entry.packed for entry in republished]

    def _in_order(self) -> list[Entry]:
        """Return all entries, in the order in which they are published on a new channel."""
        entries = self._refused + list(self._unanswered())
        if self._refused:
            entries.sort(key=_seq)  # stable: the lines of each connection are in the order of their numbers
        return entries

    def _renumber(self, entries: list[Entry]) -> None:
        """Give entries the tags from 1 on, as published on a new channel. They are all that the window has."""
        self._refused = []
        self.refused_lines = 0
        self._entries = deque(entries)
        self._aside.clear()
        self._first = 1

    def sources(self) -> Iterator[Any]:
        """Yield the connection of each unconfirmed line."""
        for entry in self._refused:
            yield entry.source
        for entry in self._unanswered():
            yield entry.source

    def _unanswered(self) -> Iterator[Entry]:
        """Yield the unanswered lines in the order of their tags."""
        for entry in chain(self._aside.values(), self._entries):
            if entry is not None and entry is not _REPEATED:
                yield entry

    def __len__(self) -> int:
        return self.messages


def _seq(entry: Entry) -> int:
    return entry.seq
