"""Exchanges and their bindings: decide the destinations of a routing key. No I/O, no queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from .errors import AMQPError, type_name

ROUTE_CACHE_SIZE: Final = 4096
"""Number of routing keys whose destinations an exchange caches. With a key per device the cache would grow without bound:
at this size it is cleared."""

EXCHANGE_TYPES: Final = ("direct", "fanout", "headers", "topic")

MATCH_MODES: Final = ("all", "any", "all-with-x", "any-with-x")
"""Values of x-match: whether all headers of a binding have to match or any, and whether headers that begin with x- count.
RabbitMQ 3.10 accepts these four."""


class Routable(Protocol):
    """Interface of a message that an exchange routes."""

    def headers(self) -> dict[str, Any]:
        """Decode the headers."""


class Destination:
    """Destination of a binding: a queue, or another exchange."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def topic_matches(pattern: str, key: str) -> bool:
    """Return whether a topic pattern matches a routing key: `*` is one word, `#` any number of words, including none."""
    words = key.split(".") if key else []
    # The positions in `words` that the pattern can have reached so far. A set of them keeps the work at words times parts,
    # where backtracking over several `#` would be exponential and a client could stop the broker with one binding.
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
    """Return whether a binding of a headers exchange matches: types and values have to be equal; void matches any value."""
    # `type` as well as `==`: in Python True equals 1, and 1 equals 1.0, but in AMQP they differ.
    match = arguments.get("x-match", "all")
    with_x = match.endswith("-with-x")
    found = [
        name in headers and (value is None or (type(value) is type(headers[name]) and value == headers[name]))
        for name, value in arguments.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    ]
    return all(found) if match.startswith("all") else any(found)


def check_match(arguments: Mapping[str, Any]) -> None:
    """Raise 406 for an x-match that RabbitMQ refuses in a binding to a headers exchange."""
    match = arguments.get("x-match", "all")
    if not isinstance(match, str):
        raise AMQPError(406, f"Invalid x-match field type {type_name(match)} (value {match}); expected longstr")
    if match not in MATCH_MODES:
        raise AMQPError(406, f'Invalid x-match field value <<"{match}">>; expected all, any, all-with-x, or any-with-x')


Bindings = dict[str, dict[Destination, dict[str, dict[str, Any]]]]
"""Arguments of each binding, by routing key, destination, and `repr` of the arguments (two bindings may differ only in
them)."""


class ServerExchange(Destination):
    """Exchange with its bindings."""

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
        """Add a binding, unless it exists."""
        if self.kind == "headers":
            check_match(arguments)
        # RabbitMQ ignores a second identical binding. Arguments are compared by their text, since dictionaries are not
        # hashable.
        self.bindings.setdefault(key, {}).setdefault(destination, {})[repr(arguments)] = arguments
        self._routes.clear()

    def unbind(self, destination: Destination, key: str, arguments: dict[str, Any]) -> bool:
        """Remove a binding and return whether it existed."""
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

    def unbind_all(self, destination: Destination) -> bool:
        """Remove all bindings to a deleted destination and return whether there were any."""
        keys = [key for key, destinations in self.bindings.items() if destination in destinations]
        for key in keys:
            del self.bindings[key][destination]
            if not self.bindings[key]:
                del self.bindings[key]
        self._routes.clear()
        return bool(keys)

    def route(self, key: str, message: Routable) -> tuple[Destination, ...]:
        """Return the destinations of a message with this routing key, each once."""
        if self.kind == "headers":
            return tuple(dict.fromkeys(self._match_headers(message.headers())))
        found = self._routes.get(key)
        if found is None:
            found = tuple(dict.fromkeys(self._match(key)))
            # Matching costs a pass over all bindings of a topic exchange; devices repeat their routing keys.
            if len(self._routes) >= ROUTE_CACHE_SIZE:
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
