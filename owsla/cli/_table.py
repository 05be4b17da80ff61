"""Tables that fit the terminal: columns chosen by importance, long values cut in the middle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ._text import padded, shortened, width

Row: TypeAlias = Mapping[str, Any]
"""Object of the API that a line of a table shows."""

GAP: Final = 2
"""Spaces between two columns."""

NOTHING: Final = "-"
"""Text of a column for a value that is not there."""


@dataclass(frozen=True, slots=True)
class Column:
    """Column of a table."""

    heading: str
    cell: Callable[[Row], str]
    """Text of a row: printable."""
    rank: int
    """Importance, 0 the highest: the columns of the greatest rank are left out first."""
    least: int = 0
    """Width down to which long values are cut; 0 for values that are never cut."""
    right: bool = False
    """Whether the column is aligned to the right, as numbers are."""


class Table:
    """Layout of a table: the columns that fit, and their widths.

    It is made from the first rows, and used for all: the rows of the other pages of a long list come later.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Row], columns_of_terminal: int | None) -> None:
        """Choose columns for a terminal of some width, or all of them for `None`: the output of a pipe keeps its columns."""
        self._limit = columns_of_terminal
        cells = [[column.cell(row) for row in rows] for column in columns]
        chosen = list(zip(columns, cells, strict=True))
        if self._limit is not None:
            # Without logins and client certificates no device has an id, for example.
            chosen = [(column, texts) for column, texts in chosen if any(one != NOTHING for one in texts)] or chosen[:1]
        natural = {column: max(map(width, (column.heading, *texts))) for column, texts in chosen}
        self._columns = [column for column, _ in chosen]
        self._widths = natural if self._limit is None else self._fit(natural, self._limit)

    def _fit(self, natural: Mapping[Column, int], limit: int) -> dict[Column, int]:
        """Return the widths. Leave columns out until the others fit with their least widths; share the rest among them."""
        while True:
            widths = {one: min(natural[one], max(one.least, width(one.heading))) if one.least else natural[one]
                      for one in self._columns}  # fmt: skip
            spare = limit - sum(widths.values()) - GAP * (len(widths) - 1)
            if spare >= 0 or len(widths) == 1:
                break
            last = max(self._columns, key=lambda one: one.rank)
            self._columns.remove(last)
        while spare > 0:
            cut = [one for one in self._columns if widths[one] < natural[one]]
            if not cut:
                break
            widths[min(cut, key=lambda one: (widths[one], one.rank))] += 1
            spare -= 1
        return widths

    @property
    def heading(self) -> str:
        """The line above the rows."""
        return self._join([column.heading for column in self._columns])

    def line(self, row: Row) -> str:
        """Return the line of a row."""
        return self._join([column.cell(row) for column in self._columns])

    def _join(self, texts: Sequence[str]) -> str:
        parts = []
        for column, text in zip(self._columns, texts, strict=True):
            columns = self._widths[column]
            parts.append(padded(text if self._limit is None else shortened(text, columns), columns, right=column.right))
        line = (" " * GAP).join(parts).rstrip()
        return line if self._limit is None else shortened(line, self._limit)


def lines(columns: Sequence[Column], rows: Sequence[Row], columns_of_terminal: int | None) -> Iterator[str]:
    """Yield the heading of a table, and a line for each row."""
    table = Table(columns, rows, columns_of_terminal)
    yield table.heading
    yield from map(table.line, rows)


def terminal() -> os.terminal_size | None:
    """Return the size of the terminal to which standard output goes, or `None` if it goes elsewhere.

    `COLUMNS` and `LINES` in the environment override it, as for other programs.
    """
    try:
        if not sys.stdout.isatty():
            return None
        found = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return None
    columns, rows = (_set(name) for name in ("COLUMNS", "LINES"))
    # A serial console has no size: 0 columns of 0 lines.
    return os.terminal_size((columns or found.columns or 80, rows or found.lines or 24))


def _set(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
