"""Tables that fit the terminal."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._table import Column, Row, lines
from owsla.cli._text import width, word


def column(name: str, rank: int, least: int = 0, *, right: bool = False) -> Column:
    return Column(name.upper(), lambda row: word(row.get(name)), rank, least, right)


COLUMNS = [column("device", 0, 8), column("state", 1), column("lines", 2, right=True), column("peer", 3, 9)]
ROWS: list[Row] = [
    {"device": "a-device-with-a-long-name", "state": "slow", "lines": 7, "peer": "192.0.2.7:40001"},
    {"device": "日本", "state": None, "lines": 12000, "peer": "[2001:db8::1]:7"},
]


class TableTests(SynchronousTestCase):
    def test_unlimited(self) -> None:
        """Without a terminal every column is as wide as its longest value, and no value is cut."""
        self.assertEqual(
            list(lines(COLUMNS, ROWS, None)),
            [
                "DEVICE                     STATE  LINES  PEER",
                "a-device-with-a-long-name  slow       7  192.0.2.7:40001",
                "日本                       -      12000  [2001:db8::1]:7",
            ],
        )

    def test_long_values_are_cut_first(self) -> None:
        """On a narrower terminal long values lose their middle, the longest first."""
        shown = list(lines(COLUMNS, ROWS, 50))
        self.assertEqual(shown[1], "a-device-…long-name  slow       7  192.0.2.7:40001")

    def test_columns_are_left_out(self) -> None:
        """Where the least widths do not fit, the least important columns are left out; the first one never."""
        self.assertEqual(next(lines(COLUMNS, ROWS, 30)), "DEVICE            STATE  LINES")
        self.assertEqual(next(lines(COLUMNS, ROWS, 12)), "DEVICE")
        self.assertEqual(list(lines(COLUMNS, ROWS, 5))[1], "a-…me")

    def test_every_width(self) -> None:
        """No line is wider than the terminal."""
        for columns in range(1, 80):
            self.assertLessEqual(max(map(width, lines(COLUMNS, ROWS, columns))), columns)

    def test_empty_columns(self) -> None:
        """A terminal does not get a column in which there is nothing; a pipe gets the same columns always."""
        rows: list[Row] = [{"device": "d", "lines": 1}]
        self.assertEqual(list(lines(COLUMNS, rows, 80)), ["DEVICE  LINES", "d           1"])
        self.assertEqual(next(lines(COLUMNS, rows, None)), "DEVICE  STATE  LINES  PEER")
        self.assertEqual(list(lines(COLUMNS, [{}], 80)), ["DEVICE", "-"])
