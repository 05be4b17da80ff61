"""Pages of sorted rows: the order, the cursor between two pages, and the selection of a page in bounded memory. Pure."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ._types import JSON, Args, BadArgument

SORTS: Final[Mapping[str, type]] = {
    "since": int,
    "device_id": str,
    "connection_id": str,
    "peer": str,
    "lines_in": int,
    "lines_out": int,
    "bytes_in": int,
    "bytes_out": int,
    "last_in": int,
    "last_out": int,
    "waiting": int,
    "held": int,
}
"""Columns that rows may be sorted by, with the types of their values."""

LIMIT: Final = 100
"""Rows of a page, if the question does not say."""

MAX_LIMIT: Final = 1000
"""Maximum number of rows of a page."""

Key: TypeAlias = tuple[Any, str]
"""Place of a row in the order: its value, and its connection id, which makes it unique."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Order:
    """Order of rows by one column, and by connection id among equal values."""

    column: str
    descending: bool

    def key(self, row: JSON) -> Key:
        """Return the place of a row."""
        value = row[self.column]
        return (self.unknown if value is None else value, row["connection_id"])

    def shown(self, value: Any) -> Any:
        """Return the value of a row that has this value in its place."""
        return None if value == self.unknown else value

    @property
    def unknown(self) -> Any:
        """Value that stands for an unknown one: less than all others."""
        return SORTS[self.column]() if SORTS[self.column] is str else -1

    def precedes(self, one: Key, other: Key) -> bool:
        """Return whether a place comes before another one."""
        return one > other if self.descending else one < other

    def cursor(self, key: Key) -> str:
        """Return the cursor of the page that follows a place."""
        return urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")

    def read_cursor(self, cursor: str) -> Key:
        """Return the place of a cursor. Raise `BadArgument` if it is none of this order."""
        try:
            value, connection_id = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        except (ValueError, TypeError, RecursionError):
            value = connection_id = None
        if type(value) is not SORTS[self.column] or not isinstance(connection_id, str):
            raise BadArgument(f"`after` is not a cursor of a list sorted by {self.column}")
        return value, connection_id


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the sorted rows that a question asks for."""

    order: Order
    limit: int
    after: Key | None
    """Place before the first row, or `None` for the first page."""


def read_page(args: Args, default: str = "since") -> Page:
    """Return the page that arguments ask for (`sort`, `limit`, `after`). Raise `BadArgument` if there is no such page."""
    sort = args.get("sort") or default
    column = str(sort).removeprefix("-")
    if column not in SORTS:
        raise BadArgument(f"`sort` is one of {', '.join(SORTS)}, with - before it for the reverse")
    order = Order(column, str(sort).startswith("-"))
    after = args.get("after")
    return Page(order, read_limit(args, LIMIT, MAX_LIMIT), None if not after else order.read_cursor(str(after)))


def read_limit(args: Args, default: int, greatest: int) -> int:
    """Return the argument `limit`. Raise `BadArgument` unless it is a number from 1 to `greatest`."""
    limit = args.get("limit")
    if limit is None:
        return default
    if not isinstance(limit, int) or not 1 <= limit <= greatest:
        raise BadArgument(f"`limit` is a number from 1 to {greatest}")
    return limit


class Selection(Generic[Item]):
    """The first items of an order, out of any number that are offered one by one.

    It keeps up to twice as many items as are wanted, and sorts them when there are more. So an offer costs little: most do not
    come before the last of those that are kept.
    """

    __slots__ = ("_bound", "_descending", "_items", "_limit", "more")

    def __init__(self, limit: int, descending: bool) -> None:
        """`limit` is the number of items that are wanted."""
        self._limit = limit
        self._descending = descending
        self._items: list[tuple[Any, Item]] = []
        self._bound: Any = None  # place of the last item that is wanted, once there are enough
        self.more = False
        """True if more items were offered than are wanted."""

    def offer(self, key: Any, item: Item) -> None:
        """Offer an item with its place. Places are unique."""
        bound = self._bound
        if bound is not None and (key < bound if self._descending else key > bound):
            self.more = True
            return
        self._items.append((key, item))
        if len(self._items) >= 2 * self._limit + 64:
            self._prune()

    def take(self) -> list[tuple[Any, Item]]:
        """Return the first items, in order, with their places."""
        self._prune()
        return self._items

    def _prune(self) -> None:
        self._items.sort(key=_place, reverse=self._descending)
        if len(self._items) > self._limit:
            self.more = True
            del self._items[self._limit :]
        if len(self._items) == self._limit:
            self._bound = self._items[-1][0]


def _place(item: tuple[Any, Any]) -> Any:
    return item[0]
