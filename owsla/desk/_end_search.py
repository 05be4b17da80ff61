"""The search for ends of connections and for refusals: the question `ends`, and a part of `device`.

People know a connection id, a device id or an address, or what is in a certificate. An event is found by each of them that it
has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Final

from twisted.internet.defer import Deferred

from ..events import Event
from ._ends import Ends
from ._lookup import read_address
from ._paging import read_limit
from ._refusals import Remembered, host_of
from ._ring import unpack
from ._slices import Slices, chunks
from ._types import JSON, Args, BadArgument, NamedAnswers, named

LIMIT: Final = 100
"""Number of events in an answer, if the question does not say."""

MAX_LIMIT: Final = 1000

_TEXTS: Final = ("connection_id", "device_id", "claimed_id", "by", "address", "serial", "subject", "peer")
"""Fields that an event is found by."""


class EndQuery:
    """The events that somebody looks for."""

    __slots__ = ("_exact", "_folded", "_host", "_needles", "_text")

    def __init__(self, text: str, *, exact: bool) -> None:
        """Look for `text` in the fields that events are found by: as a part of one, in any case; with `exact` as the whole of
        an id, an address with a port or without one, a serial number, or a name in the subject of a certificate.
        """
        self._text = text
        self._exact = exact
        self._folded = text.casefold()
        self._host = _address(text) if exact else ""
        texts = {text, self._host} if exact else {self._folded}
        # Bytes have an upper and a lower case for ASCII only. Of other texts all events are unpacked.
        whole = exact or text.isascii()
        self._needles = tuple(each.encode("utf-8", "surrogatepass").lower() if whole else b"" for each in texts)

    def may_be_in(self, packed: bytes) -> bool:
        """Return `False` for most events that do not match, which saves unpacking them."""
        folded = packed.lower()
        return any(needle in folded for needle in self._needles)

    def matches(self, event: Event) -> bool:
        """Return whether an event matches."""
        if not self._text:
            return not self._exact
        if self._exact:
            return any(self._is(name, value) for name, value in _texts_of(event))
        return any(self._folded in value.casefold() for _, value in _texts_of(event))

    def _is(self, name: str, value: str) -> bool:
        if name == "peer":
            return value == self._text or host_of(value) == self._host
        if name == "address":
            return value in (self._text, self._host)
        if name == "serial":
            return value.casefold() == self._folded
        if name == "subject":
            return any(part.partition("=")[2] == self._text for part in value.replace("+", ",").split(","))
        return value == self._text


def _address(text: str) -> str:
    """Return an IP address in its usual form; any other text as it is."""
    address = read_address(text)
    return text if address is None or address.port is not None else address.host


def _texts_of(event: Event) -> Iterator[tuple[str, str]]:
    """Yield the fields that an event is found by, each with its name."""
    for name in _TEXTS:
        value = getattr(event, name, None)
        if isinstance(value, str):
            yield name, value
    for peer in getattr(event, "peers", ()):
        yield "peer", peer


class EndSearch:
    """Answers questions about the ends of connections of one process. A search of all of them takes some 30 ms, in slices."""

    def __init__(self, ends: Ends, slices: Slices, refused: Callable[[], Iterable[Remembered]] = tuple) -> None:
        """`refused` yields connections that were refused for their address, which are no events of their own."""
        self._ends = ends
        self._slices = slices
        self._refused = refused

    def answer(self, args: Args) -> Deferred[JSON]:
        """Return `ends`: the events that have `query` as a part, at most `limit`, newest first. Raise `BadArgument`."""
        query, limit = read_ends(args)
        return self._find(EndQuery(query, exact=False), limit).addCallback(lambda ends: {"ends": ends})

    def of(self, id: str, limit: int) -> Deferred[list[JSON]]:
        """Return the events of a connection id, device id, address, serial number, or name in a certificate: at most `limit`,
        newest first.
        """
        return self._find(EndQuery(id, exact=True), limit)

    def _find(self, query: EndQuery, limit: int) -> Deferred[list[JSON]]:
        ends: list[JSON] = []
        return self._slices.run(self._search(query, limit, ends)).addCallback(lambda _: ends)

    def _search(self, query: EndQuery, limit: int, ends: list[JSON]) -> Iterator[None]:
        """Add the newest matches of all memories to `ends`, newest first."""
        found: list[Remembered] = []
        for some in chunks(self._refused()):
            found += [each for each in some if query.matches(each.past.event)]
            yield
        for memory in self._ends.memories():
            enough = len(found) + limit
            for chunk in chunks(memory):
                for packed, count, first in chunk:
                    if query.may_be_in(packed) and query.matches((past := unpack(packed)).event):
                        found.append(Remembered(past, count, first))
                yield
                if len(found) >= enough:
                    break
        found.sort(key=lambda each: each.past.when, reverse=True)
        for some in chunks(found[:limit]):
            ends += [each.json() for each in some]
            yield


def read_ends(args: Args) -> tuple[str, int]:
    """Return the arguments `query` and `limit` of a question. Raise `BadArgument`."""
    query = args.get("query") or ""
    if not isinstance(query, str):
        raise BadArgument("`query` is text")
    return query, read_limit(args, LIMIT, MAX_LIMIT)


def merge_ends(answers: NamedAnswers, args: Args) -> JSON:
    """Merge the ends of several processes, newest first. `worker` becomes the name of the worker."""
    _, limit = read_ends(args)
    return {"ends": heapq.nlargest(limit, named("ends", answers), key=itemgetter("time"))}
