"""Exchanges: which destinations a routing key leads to. Nothing here knows a connection, and nothing here is queued."""

from __future__ import annotations

from typing import Any, Final

ROUTES_KEPT: Final = 4096
"""Routing keys whose destinations an exchange remembers. A key a device makes the memory large; past this it begins anew."""

TYPES: Final = ("direct", "fanout", "topic")


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


class Exchange(Destination):
    """An exchange and its bindings: key, to destination, to the arguments of each binding (they tell equal ones apart)."""

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
        self.bindings: dict[str, dict[Destination, set[str]]] = {}
        self._routes: dict[str, tuple[Destination, ...]] = {}

    def bind(self, destination: Destination, key: str, arguments: str) -> None:
        """Add a binding; one that is there already stays as it is."""
        self.bindings.setdefault(key, {}).setdefault(destination, set()).add(arguments)
        self._routes.clear()

    def unbind(self, destination: Destination, key: str, arguments: str) -> bool:
        """Remove a binding. Returns whether there was one."""
        destinations = self.bindings.get(key, {})
        tokens = destinations.get(destination, set())
        if arguments not in tokens:
            return False
        tokens.remove(arguments)
        if not tokens:
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

    def route(self, key: str) -> tuple[Destination, ...]:
        """The destinations of a routing key, each once."""
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
