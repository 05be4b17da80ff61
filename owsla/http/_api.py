"""The API: questions about devices, and actions on them, as JSON over HTTP (docs/api.md).

Routes are in `Api.routes`. The OpenAPI file (`openapi.json`) describes them, and a test compares both.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure
from twisted.web.server import Request

from .. import __version__
from ..desk import JSON, SORTS, STATES, BadArgument, Desk, TooManyTraces, UnknownQuestion
from ..interfaces import Clock
from ._access import Access, Caller
from ._connections import LimitedConnection
from ._errors import HttpError
from ._feeds import EventsFeed, SamplesFeed, TraceFeed, to_text
from ._history import History
from ._routes import VERSION, Flag, Integer, Name, Parameter, Route, Routes, Text, Word
from ._sources import Source
from ._state import State
from ._state_document import state_document
from ._streams import EVENT_STREAM, NDJSON, Feed, Streams

DESCRIPTION: Final = Path(__file__).with_name("openapi.json")
"""The OpenAPI file."""

JSON_TYPE: Final = "application/json"

LONGEST_TRACE: Final = 24 * 60
"""Minutes."""

_QUERY: Final = Parameter("query", Text(), "")
_LIMIT: Final = Parameter("limit", Integer(1, 1000), 100)


@dataclass(frozen=True, slots=True)
class Actions:
    """Actions on the gateway as a whole. `by` names the operator."""

    reload: Callable[[str], Deferred[tuple[bool, str]]]
    """Reload the configuration. The Deferred fires with the success, and with the changes or the fault as a sentence."""
    drain: Callable[[str], bool]
    """Begin the orderly stop. Return `False` if it has begun already."""


@dataclass(frozen=True, slots=True)
class ApiParts:
    """Parts of a gateway that the API uses."""

    desk: Desk
    source: Source
    actions: Actions
    history: History
    now: Callable[[], float] = time.time
    """Time in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of the API: JSON text, or only the media type of a stream."""

    text: str
    status: int = 200
    media_type: str = JSON_TYPE


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the API."""

    request: Request
    caller: Caller
    values: Mapping[str, Any]
    """Values of the path and of the parameters."""

    def accepts(self, media_type: str) -> bool:
        """Return whether the client asks for this media type."""
        headers = self.request.requestHeaders.getRawHeaders("accept", [])
        return any(each.partition(";")[0].strip().lower() == media_type for header in headers for each in header.split(","))


Reply = Answered | None
"""Reply of a handler; `None`: it answers the request itself."""

Handler = Callable[[Call], Deferred[Reply]]


class Api:
    """The API at one address."""

    def __init__(self, clock: Clock, parts: ApiParts, access: Access, streams: Streams) -> None:
        self._clock = clock
        self._parts = parts
        self._access = access
        self._streams = streams

    @cached_property
    def routes(self) -> Routes[Handler]:
        """All routes."""
        ask = self._ask
        devices = (
            _QUERY,
            Parameter("door", Text()),
            Parameter("state", Word(tuple(STATES))),
            Parameter("sort", Word((*SORTS, *(f"-{sort}" for sort in SORTS))), "since"),
            _LIMIT,
            Parameter("after", Text()),
        )
        events = (
            Parameter("after", Text()),
            _LIMIT,
            Parameter("kind", Name(), repeatable=True),
            _QUERY,
            Parameter("warnings", Flag(), False),
        )
        trace = (Parameter("minutes", Integer(1, LONGEST_TRACE), 5), Parameter("bodies", Flag(), False))
        return Routes([
            Route("GET", "", self._version),
            Route("GET", "/openapi.json", self._description),
            Route("GET", "/state", self._state),
            Route("GET", "/devices", ask("devices"), devices),
            Route("GET", "/devices/{id}", self._device),
            Route("DELETE", "/devices/{id}", self._close, (Parameter("all", Flag(), False),), acts=True),
            Route("GET", "/top", ask("top"), (Parameter("limit", Integer(1, 100), 10),)),
            Route("GET", "/ends", ask("ends"), (_QUERY, _LIMIT)),
            Route("GET", "/events", self._events, events),
            Route("GET", "/trace/{id}", self._trace, trace, acts=True),
            Route("GET", "/live", self._live),
            Route("GET", "/history", self._history, (Parameter("span", Word(("5m", "1h")), "5m"),)),
            Route("POST", "/reload", self._reload, acts=True),
            Route("POST", "/drain", self._drain, acts=True),
        ])  # fmt: skip

    def handle(self, request: Request) -> Deferred[Reply]:
        """Handle a request. The Deferred fails with `HttpError`."""
        return maybeDeferred(self._handle, request).addErrback(_unknown)

    def _handle(self, request: Request) -> Deferred[Reply]:
        caller = self._access.caller(request)
        found = self.routes.find(request.method.decode("ascii", "replace"), request.path, request.uri.partition(b"?")[2])
        if found.route.acts and not caller.may_act:
            raise HttpError(403, "This token may only read; the one of --http-token-file may do this.")
        return found.route.handler(Call(request, caller, found.values))

    # -- questions ---------------------------------------------------------------------------------------------------------

    def _ask(self, what: str) -> Handler:
        """Return a handler that asks the desk with the parameters as they are."""
        return lambda call: self._parts.desk.ask(what, call.values).addCallback(_ok)

    def _version(self, call: Call) -> Deferred[Reply]:
        def version(state: Any) -> Reply:
            workers = None if state.workers is None else [worker.name for worker in state.workers]
            return _ok({
                "version": __version__,
                "api": VERSION,
                "node": state.node or None,
                "workers": workers,
                "read_only": not call.caller.may_act,
            })  # fmt: skip

        return self._parts.source.state().addCallback(version)

    def _description(self, call: Call) -> Deferred[Reply]:
        return succeed(Answered(DESCRIPTION.read_text()))

    def _state(self, call: Call) -> Deferred[Reply]:
        asked = self._parts.desk.ask("traces")

        def described(state: State) -> Deferred[Reply]:
            document = state_document(state, self._parts.now())
            return asked.addCallback(lambda traces: _ok({**document, "traces": traces["traces"]}))

        return self._parts.source.state().addCallback(described)

    def _device(self, call: Call) -> Deferred[Reply]:
        return self._parts.desk.ask("device", call.values).addCallback(_known)

    def _events(self, call: Call) -> Deferred[Reply]:
        args = {**call.values, "kinds": call.values["kind"]}
        del args["kind"]
        if not call.accepts(EVENT_STREAM):
            return self._parts.desk.ask("events", args).addCallback(_ok)
        del args["limit"]
        last = call.request.getHeader("last-event-id")
        return self._stream(call, EventsFeed(self._parts.desk, {**args, "after": last or args["after"]}))

    def _live(self, call: Call) -> Deferred[Reply]:
        return self._stream(call, SamplesFeed(self._parts.history))

    def _history(self, call: Call) -> Deferred[Reply]:
        text = self._parts.history.span(call.values["span"], self._clock.seconds(), self._parts.now())
        return succeed(Answered(text))

    def _stream(self, call: Call, feed: Feed, *, lines: bool = False) -> Deferred[Reply]:
        if call.request.method == b"HEAD":
            return succeed(Answered("", media_type=NDJSON if lines else EVENT_STREAM))
        return self._streams.open(call.request, feed, call.caller.admitted, lines=lines).addCallback(lambda _: None)

    # -- actions -----------------------------------------------------------------------------------------------------------

    def _trace(self, call: Call) -> Deferred[Reply]:
        def start(by: str) -> Deferred[Reply]:
            args = {
                "id": secrets.token_hex(8),
                "target": call.values["id"],
                "until": round(self._parts.now() * 1000) + call.values["minutes"] * 60_000,
                "bodies": call.values["bodies"],
                "by": by,
            }
            feed = TraceFeed(self._parts.desk, args)
            return self._stream(call, feed, lines=call.accepts(NDJSON))

        return call.caller.name().addCallback(start)

    def _close(self, call: Call) -> Deferred[Reply]:
        def close(by: str) -> Deferred[JSON]:
            return self._parts.desk.ask("close", {**call.values, "by": by})

        return call.caller.name().addCallback(close).addCallback(_closed)

    def _reload(self, call: Call) -> Deferred[Reply]:
        channel: Any = call.request.channel
        if isinstance(channel.transport, LimitedConnection):
            channel.transport.extend()

        def reloaded(result: tuple[bool, str]) -> Reply:
            success, text = result
            return _ok({"text": text}) if success else Answered(to_text({"error": text}), 409)

        return call.caller.name().addCallback(self._parts.actions.reload).addCallback(reloaded)

    def _drain(self, call: Call) -> Deferred[Reply]:
        def drained(begun: bool) -> Reply:
            text = "The gateway stops in order." if begun else "The gateway stops already."
            return Answered(to_text({"text": text}), 202)

        return call.caller.name().addCallback(self._parts.actions.drain).addCallback(drained)


def _ok(answer: JSON) -> Reply:
    return Answered(to_text(answer))


def _known(answer: JSON) -> Reply:
    if not (answer["connections"] or answer["ends"] or answer["findings"]):
        raise HttpError(404, "No connection has this id or address, and none had it lately.", missing=answer["missing"])
    return _ok(answer)


def _closed(answer: JSON) -> Reply:
    if answer["closed"]:
        return _ok({"closed": answer["closed"], "missing": answer["missing"]})
    matches = answer["matches"]
    if not matches:
        raise HttpError(404, "No connection has this id or address.", missing=answer["missing"])
    if all(match["closing"] is not None for match in matches):
        text = "It is being closed already."
    else:
        text = f"{answer['total']} connections match: name one of them by its connection id, or close all of them with all=1."
    raise HttpError(409, text, matches=matches, missing=answer["missing"])


def _unknown(failure: Failure) -> Failure:
    """Turn failures of the desk that a client can cause into errors."""
    text = failure.getErrorMessage().rstrip(".") + "."
    if failure.check(UnknownQuestion):
        raise HttpError(503, "This gateway cannot answer that at the moment.")
    if failure.check(BadArgument):
        raise HttpError(400, text)
    if failure.check(TooManyTraces):
        raise HttpError(503, text, headers={"retry-after": "5"})
    return failure
