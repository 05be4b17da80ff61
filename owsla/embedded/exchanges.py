"""Exchanges: which destinations a routing key leads to. Nothing here knows a connection, and nothing here is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from .errors import AMQPError, type_name

ROUTES_KEPT: Final = 4096
"""Routing keys whose destinations an exchange remembers. A key a device makes the memory large; past this it begins anew."""

TYPES: Final = ("direct", "fanout", "headers", "topic")

MATCHES: Final = ("all", "any", "all-with-x", "any-with-x")
"""Values of x-match: whether all headers of a binding have to match or any, and whether those that begin with x- count."""


class Routable(Protocol):
    """A message as far as exchanges look at it."""

    def headers(self) -> dict[str, Any]:
        """Its headers, decoded."""


class Destination:
    """What a binding leads to: a queue, or another exchange."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic binding's pattern takes a routing key: `*` is one word, `#` any number of them, none included."""
    words = key.split(".") if key else []
    # The positions of `words` that the pattern so far can have reached: linear where backtracking would be exponential.
    reached = {0}
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
        if not reached:
            return False
    return len(words) in reached


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Whether a headers exchange's binding takes a message: type and value have to be equal; no value takes any."""
    match = arguments.get("x-match", "all")
    with_x = match.endswith("-with-x")
    found = [
        name in headers and (value is None or (type(value) is type(headers[name]) and value == headers[name]))
        for name, value in arguments.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    ]
    return all(found) if match.startswith("all") else any(found)


def check_match(arguments: Mapping[str, Any]) -> None:
    """406 for a binding to a headers exchange whose x-match RabbitMQ would refuse."""
    match = arguments.get("x-match", "all")
    if not isinstance(match, str):
        raise AMQPError(406, f"Invalid x-match field type {type_name(match)} (value {match}); expected longstr")
    if match not in MATCHES:
        raise AMQPError(406, f'Invalid x-match field value <<"{match}">>; expected all, any, all-with-x, or any-with-x')


Bindings = dict[str, dict[Destination, dict[str, dict[str, Any]]]]


class Exchange(Destination):
    """An exchange and its bindings: key, to destination, to the arguments of each binding, by their text."""

    __slots__ = ("_routes", "arguments", "auto_delete", "bindings", "durable", "internal", "kind")

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        self.kind = kind
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = arguments or {}
        self.bindings: Bindings = {}
        self._routes: dict[str, tuple[Destination, ...]] = {}

    def bind(self, destination: Destination, key: str, arguments: dict[str, Any]) -> None:
        """Add a binding; one that is there already stays as it is."""
        if self.kind == "headers":
            check_match(arguments)
        self.bindings.setdefault(key, {}).setdefault(destination, {})[repr(arguments)] = arguments
        self._routes.clear()

    def unbind(self, destination: Destination, key: str, arguments: dict[str, Any]) -> bool:
        """Remove a binding. Returns whether there was one."""
        destinations = self.bindings.get(key, {})
        same = destinations.get(destination, {})
        if same.pop(repr(arguments), None) is None:
            return False
        if not same:
            del destinations[destination]
        if not destinations:
            del self.bindings[key]
        self._routes.clear()
        return True

    def forget(self, destination: Destination) -> bool:
        """Remove every binding to a destination that is going. Returns whether there was one."""
        keys = [key for key, destinations in self.bindings.items() if destination in destinations]
        for key in keys:
            del self.bindings[key][destination]
            if not self.bindings[key]:
                del self.bindings[key]
        self._routes.clear()
        return bool(keys)

    def route(self, key: str, message: Routable) -> tuple[Destination, ...]:
        """The destinations of a message with this routing key, each once."""
        if self.kind == "headers":
            return tuple(dict.fromkeys(self._match_headers(message.headers())))
        found = self._routes.get(key)
        if found is None:
            found = tuple(dict.fromkeys(self._match(key)))
            if len(self._routes) >= ROUTES_KEPT:
                self._routes.clear()
            self._routes[key] = found
        return found

    def _match(self, key: str) -> list[Destination]:
        if self.kind == "direct":
            return list(self.bindings.get(key, ()))
        return [
            destination
            for pattern, destinations in self.bindings.items()
            if self.kind == "fanout" or topic_matches(pattern, key)
            for destination in destinations
        ]

    def _match_headers(self, headers: Mapping[str, Any]) -> list[Destination]:
        return [
            destination
            for destinations in self.bindings.values()
            for destination, same in destinations.items()
            if any(headers_match(arguments, headers) for arguments in same.values())
        ]
