"""Events in a table: schema, rows and troubles, with SQLite, which needs no server."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.events import BrokerWarning, DatabaseWriter, Record, SQLite, Trouble, UnknownEvent
from owsla.events._database import SQLITE_MIGRATIONS

from .doubles import NODE, NOW, connected, free_path, nodes_that_end, who_is_connected


def records(*texts: str) -> list[Record]:
    return [Record(NODE, number, NOW, BrokerWarning(text)) for number, text in enumerate(texts, 1)]


class SQLiteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = free_path(self)
        self.writer = self.make()

    def make(self, migrations: Sequence[Sequence[str]] = SQLITE_MIGRATIONS, path: Path | None = None) -> DatabaseWriter:
        writer = DatabaseWriter(SQLite(path or self.path, migrations), "the database")
        self.addCleanup(writer.close)
        return writer

    def query(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(statement).fetchall()

    def texts(self) -> list[str]:
        return [json.loads(fields)["text"] for (fields,) in self.query("SELECT fields FROM owsla_events ORDER BY number")]

    def test_closed_to_others(self) -> None:
        """The files are for their owner and group, as the JSON lines are; one that is there keeps its mode."""
        self.writer.write(records("one"))
        for suffix in ("", "-wal", "-shm"):
            self.assertEqual(stat.S_IMODE(Path(f"{self.path}{suffix}").stat().st_mode) & 0o027, 0, suffix)
        self.writer.close()
        self.path.chmod(0o600)
        self.make().write(records("two"))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_a_row(self) -> None:
        """A row has what one looks for in columns, all fields as JSON, and the line for people."""
        event = connected("a", "sensor 7")
        self.assertEqual(self.writer.write([Record(NODE, 7, NOW, event)]), 0)
        self.assertEqual(
            self.query(
                "SELECT time, node, number, event, warning, connection_id, device_id, text, fields ->> '$.peer' "
                "FROM owsla_events"
            ),
            [
                (
                    "1970-01-01T00:16:40.250000Z",
                    "0123abcd",
                    7,
                    "device-connected",
                    0,
                    "a",
                    "sensor 7",
                    str(event),
                    "192.0.2.1:1234",
                )
            ],
        )

    def test_several_nodes(self) -> None:
        """Events of several nodes may have the same numbers; one that is not known here is written as it was sent."""
        new = UnknownEvent("new-thing", True, "New\0", {"connection_id": 5, "device_id": "\ud800", "what": ["a", {"b": None}]})
        self.writer.write([Record(node, 1, NOW, event) for node, event in (("a", BrokerWarning("x")), ("b", new))])
        rows = self.query("SELECT node, number, event, warning, text, connection_id, device_id FROM owsla_events ORDER BY node")
        self.assertEqual(rows[0][:5], ("a", 1, "broker-warning", 1, "Broker: x"))
        self.assertEqual(rows[1], ("b", 1, "new-thing", 1, "New\ufffd", "5", "\ufffd"))

    def test_written_again(self) -> None:
        """A batch that comes again makes no second rows."""
        self.writer.write(records("a", "b"))
        self.writer.write(records("a", "b", "c"))
        self.assertEqual(self.texts(), ["a", "b", "c"])

    def test_strange_text(self) -> None:
        """NUL and halves of surrogate pairs, which databases refuse, are replaced."""
        self.writer.write([Record(NODE, 1, 0.0, connected("a", "x\0\ud800\u00e9"))])
        self.assertEqual(self.query("SELECT device_id FROM owsla_events"), [("x\ufffd\ufffd\u00e9",)])

    def test_who_is_connected(self) -> None:
        """The documented query knows nodes that stopped, were killed, or are dead; and one that was only cut off is not."""
        self.writer.write(nodes_that_end())
        rows = self.query(who_is_connected())
        self.assertEqual([row[0] for row in rows], ["3+", "5+", "7+", "8+", "9+", "A+"])
        self.assertEqual([row[1] for row in rows], ["d3", None, "d7", None, None, None])
        self.assertEqual((rows[1][2], rows[1][4]), ("again", "192.0.2.1:1234"))

    def test_the_version(self) -> None:
        """The schema's version is on record, and an existing schema is left as it is."""
        self.writer.write(records("a"))
        self.make().write(records("a", "b"))
        self.assertEqual(self.query("SELECT version FROM owsla_schema_version"), [(1,)])
        self.assertEqual(self.texts(), ["a", "b"])

    def test_a_migration(self) -> None:
        """A database of an earlier version is brought to the present one, with what is in it."""
        self.writer.write(records("a"))
        later = (*SQLITE_MIGRATIONS, ("ALTER TABLE owsla_events ADD COLUMN more TEXT", "CREATE INDEX m ON owsla_events (more)"))
        self.make(later).write(records("a", "b"))
        self.assertEqual(self.query("SELECT version FROM owsla_schema_version ORDER BY version"), [(1,), (2,)])
        self.assertEqual(self.query("SELECT number, more FROM owsla_events ORDER BY number"), [(1, None), (2, None)])

    def test_a_migration_that_fails(self) -> None:
        """It leaves nothing behind, not even its first half."""
        self.writer.write(records("a"))
        bad = (*SQLITE_MIGRATIONS, ("CREATE TABLE half (x)", "CREATE NONSENSE"))
        with self.assertRaises(Trouble):
            self.make(bad).write(records("a", "b"))
        self.assertEqual(self.query("SELECT name FROM sqlite_master WHERE name = 'half'"), [])
        self.assertEqual(self.query("SELECT version FROM owsla_schema_version"), [(1,)])

    def test_a_later_version(self) -> None:
        """A database that a later Owsla has made is not written to."""
        self.make((*SQLITE_MIGRATIONS, ("CREATE TABLE more (x)",))).write(records("a"))
        with self.assertRaises(Trouble) as caught:
            self.writer.write(records("a", "b"))
        self.assertIn("has version 2, and this version of Owsla supports 1", str(caught.exception))
        self.assertEqual(self.texts(), ["a"])

    def test_a_missing_folder(self) -> None:
        """It is trouble, and over when the folder is there."""
        writer = self.make(path=self.path / "events.db")
        with self.assertRaises(Trouble) as caught:
            writer.write(records("a"))
        self.assertEqual(str(caught.exception), "the database: unable to open database file")
        self.path.mkdir()
        self.assertEqual(writer.write(records("a")), 0)

    def test_no_database(self) -> None:
        """A file that is something else is trouble, and stays as it is; it is not kept open."""
        opened: list[sqlite3.Connection] = []
        connect = sqlite3.connect

        def connect_and_note(*args: Any, **more: Any) -> sqlite3.Connection:
            opened.append(connect(*args, **more))
            return opened[-1]

        self.patch(sqlite3, "connect", connect_and_note)
        self.path.write_text("something else, for long enough that nobody takes it for the head of a database " * 20)
        before = self.path.read_bytes()
        with self.assertRaises(Trouble):
            self.writer.write(records("a"))
        self.assertEqual(self.path.read_bytes(), before)
        (connection,) = opened
        self.assertRaises(sqlite3.ProgrammingError, connection.execute, "SELECT 1")

    def test_lost_tables(self) -> None:
        """Tables that somebody has dropped are trouble, not a defect; the next attempt begins anew, and makes them."""
        self.writer.write(records("a"))
        self.query("DROP TABLE owsla_events")
        self.query("DROP TABLE owsla_schema_version")
        with self.assertRaises(Trouble):
            self.writer.write(records("a", "b"))
        self.assertEqual(self.writer.write(records("a", "b")), 0)
        self.assertEqual(self.texts(), ["a", "b"])

    def test_unfit(self) -> None:
        """One event that the database will never take keeps no others out."""
        self.writer.write(records("a"))
        self.query("CREATE TRIGGER no BEFORE INSERT ON owsla_events WHEN NEW.text LIKE '%bad%' "
                   "BEGIN SELECT RAISE(ABORT, 'no'); END")  # fmt: skip
        self.assertEqual(self.writer.write(records("a", "b", "bad", "c")), 1)
        self.assertEqual(self.texts(), ["a", "b", "c"])
