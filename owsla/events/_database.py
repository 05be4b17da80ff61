"""Events as rows of a table, in SQLite or PostgreSQL.

    owsla_events          time, node, number, event, warning, connection_id, device_id, text, fields
    owsla_schema_version  version: one row for each migration that was made

Everything here runs in a thread of its own. An event is identified by its node and number: a batch that is written again since
nobody knows whether it was committed before makes no second row.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from ._json import utc
from ._outbox import Record, Trouble

SQLITE_MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE owsla_events (
            time TEXT NOT NULL,
            node TEXT NOT NULL,
            number INTEGER NOT NULL,
            event TEXT NOT NULL,
            warning INTEGER NOT NULL,
            connection_id TEXT,
            device_id TEXT,
            text TEXT NOT NULL,
            fields TEXT NOT NULL,
            PRIMARY KEY (node, number)
        )""",
        "CREATE INDEX owsla_events_time ON owsla_events (time)",
        "CREATE INDEX owsla_events_connection ON owsla_events (connection_id) WHERE connection_id IS NOT NULL",
        "CREATE INDEX owsla_events_device ON owsla_events (device_id, time) WHERE device_id IS NOT NULL",
    ),
)
"""What leads from each version of the schema to the next, beginning with an empty database. Only ever added to."""

POSTGRESQL_MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE owsla_events (
            time TIMESTAMPTZ NOT NULL,
            node TEXT NOT NULL,
            number BIGINT NOT NULL,
            event TEXT NOT NULL,
            warning BOOLEAN NOT NULL,
            connection_id TEXT,
            device_id TEXT,
            text TEXT NOT NULL,
            fields JSONB NOT NULL,
            PRIMARY KEY (node, number)
        )""",
        "CREATE INDEX owsla_events_time ON owsla_events (time)",
        "CREATE INDEX owsla_events_connection ON owsla_events (connection_id) WHERE connection_id IS NOT NULL",
        "CREATE INDEX owsla_events_device ON owsla_events (device_id, time) WHERE device_id IS NOT NULL",
    ),
)
"""The same for PostgreSQL."""

MIGRATION_LOCK: Final = 0x6F77736C61
"""The key of PostgreSQL's advisory lock under which one node at a time looks after the schema: "owsla" in ASCII."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process that writes to the same SQLite file; its own default."""

CONNECT_TIMEOUT: Final = 10
"""Seconds for a connection to PostgreSQL. On one that is there already a cable cut is noticed in as many (tcp_user_timeout)."""

Row = tuple[Any, ...]

_COLUMNS: Final = "time, node, number, event, warning, connection_id, device_id, text, fields"


class NewerSchema(Exception):
    """The database was made by a later version of Owsla."""


class Connection(Protocol):
    """One connection to a database: what differs between the two."""

    def migrate(self) -> None:
        """Bring the schema to the last version, all of it or nothing, while no other node does."""

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert all or none. A row that is there already is left as it is."""

    def close(self) -> None: ...


class Database(Protocol):
    """A kind of database, and where it is."""

    troubles: tuple[type[Exception], ...]
    """What it raises when it cannot be reached, or has no room: to be tried again."""
    unfit: tuple[type[Exception], ...]
    """What it raises for a row that it will never take."""

    def connect(self) -> Connection: ...

    def row(self, record: Record) -> Row: ...


class DatabaseWriter:
    """Inserts events, a batch a transaction; connects when there is something to insert."""

    def __init__(self, database: Database, where: str) -> None:
        """`where` is how the database is called in a log: without a password."""
        self._database = database
        self._where = where
        self._connection: Connection | None = None

    def write(self, batch: Sequence[Record]) -> int:
        database = self._database
        try:
            return self._write(batch)
        except NewerSchema as error:
            self.close()
            raise Trouble(f"{self._where}: {error}") from None
        except database.troubles as error:
            self.close()
            raise Trouble(f"{self._where}: {_one_line(error)}") from None

    def _write(self, batch: Sequence[Record]) -> int:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._database.connect()
            connection.migrate()
        rows = [self._database.row(record) for record in batch]
        try:
            connection.insert(rows)
            return 0
        except self._database.unfit:
            # One of them. It must not keep the others out, nor come back for ever.
            return sum(not self._fits(connection, row) for row in rows)

    def _fits(self, connection: Connection, row: Row) -> bool:
        try:
            connection.insert([row])
        except self._database.unfit:
            return False
        return True

    def reopen(self) -> None:
        """Nothing to do: a database is not moved away under its clients."""

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._database.troubles:
                pass  # it is closed either way


def migrate(version: int, migrations: Sequence[Sequence[str]], execute: Callable[[str], Any]) -> None:
    """Make the migrations that are missing after `version`. `NewerSchema`, where there are more than we know."""
    if version > len(migrations):
        raise NewerSchema(f"its schema is version {version}, and this Owsla knows {len(migrations)}")
    for number, statements in enumerate(migrations[version:], version + 1):
        for statement in statements:
            execute(statement)
        execute(f"INSERT INTO owsla_schema_version (version, made_at) VALUES ({number}, CURRENT_TIMESTAMP)")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_UNFIT_TEXT = re.compile("[\0\ud800-\udfff]")


def _clean(text: str) -> str:
    """Without what no database takes as text: NUL, and halves of surrogate pairs. A certificate's name may have them."""
    return _UNFIT_TEXT.sub("\ufffd", text)


def _fields(record: Record) -> str:
    fields = {name: _clean(value) if isinstance(value, str) else value for name, value in record.event.fields().items()}
    return json.dumps(fields, ensure_ascii=False)


def _text_of(record: Record, name: str) -> str | None:
    value = record.event.fields().get(name)
    return None if value is None else _clean(str(value))


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _after_time(record: Record) -> Row:
    """A row but for its first column, the time, which each database has a form of its own for."""
    event = record.event
    return (
        record.node,
        record.number,
        event.name,
        event.warning,
        _text_of(record, "connection_id"),
        _text_of(record, "device_id"),
        _clean(str(event)),
        _fields(record),
    )


class SQLite:
    """A file."""

    troubles: tuple[type[Exception], ...] = (sqlite3.Error,)
    unfit: tuple[type[Exception], ...] = (sqlite3.IntegrityError, sqlite3.DataError)

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]] = SQLITE_MIGRATIONS) -> None:
        self._path = path
        self._migrations = migrations

    def connect(self) -> SQLiteConnection:
        return SQLiteConnection(self._path, self._migrations)

    def row(self, record: Record) -> Row:
        return (utc(record.time), *_after_time(record))


class SQLiteConnection:
    """An open file. Transactions are begun and ended here, by hand."""

    _INSERT: Final = (
        f"INSERT INTO owsla_events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node, number) DO NOTHING"
    )

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]]) -> None:
        self._migrations = migrations
        try:
            # SQLite's own mode is 0644. Its other files (-wal, -shm) get that of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        except OSError:
            pass  # SQLite says why
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            # With a write-ahead log readers and a writer do not wait for each other, and a commit is no fsync:
            # https://www.sqlite.org/wal.html. A power cut may take the last second; it leaves the rest whole.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            # The file is opened by its first use, which is this. Nobody else could close it.
            self._connection.close()
            raise

    def migrate(self) -> None:
        def change() -> None:
            execute = self._connection.execute
            execute("CREATE TABLE IF NOT EXISTS owsla_schema_version (version INTEGER PRIMARY KEY, made_at TEXT NOT NULL)")
            (version,) = execute("SELECT COALESCE(MAX(version), 0) FROM owsla_schema_version").fetchone()
            migrate(version, self._migrations, execute)

        self._in_transaction(change)

    def insert(self, rows: Sequence[Row]) -> None:
        self._in_transaction(lambda: self._connection.executemany(self._INSERT, rows))

    def _in_transaction(self, change: Callable[[], object]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            change()
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._connection.close()


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


class PostgreSQL:
    """A server, by psycopg."""

    def __init__(self, url: str, migrations: Sequence[Sequence[str]] = POSTGRESQL_MIGRATIONS) -> None:
        """A URL as libpq understands it; a password in it is never in a message of ours."""
        self._psycopg: Any = importlib.import_module("psycopg")
        self._url = url
        self._migrations = migrations
        self.troubles: tuple[type[Exception], ...] = (self._psycopg.Error,)
        self.unfit: tuple[type[Exception], ...] = (self._psycopg.DataError, self._psycopg.IntegrityError)

    def connect(self) -> PostgreSQLConnection:
        connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT,
            tcp_user_timeout=CONNECT_TIMEOUT * 1000,
            keepalives_idle=30,
            fallback_application_name="owsla",
        )
        return PostgreSQLConnection(connection, self._migrations)

    def row(self, record: Record) -> Row:
        return (datetime.fromtimestamp(record.time, UTC), *_after_time(record))


class PostgreSQLConnection:
    """A connection to a server."""

    _INSERT: Final = (
        f"INSERT INTO owsla_events ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb) "
        "ON CONFLICT (node, number) DO NOTHING"
    )

    def __init__(self, connection: Any, migrations: Sequence[Sequence[str]]) -> None:
        self._connection = connection
        self._migrations = migrations

    def migrate(self) -> None:
        execute = self._connection.execute
        with self._connection.transaction():
            execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            # Asking first, since a role that may only insert may not even say CREATE … IF NOT EXISTS.
            if execute("SELECT to_regclass('owsla_schema_version')").fetchone()[0] is None:
                execute("CREATE TABLE owsla_schema_version (version INTEGER PRIMARY KEY, made_at TIMESTAMPTZ NOT NULL)")
            (version,) = execute("SELECT COALESCE(MAX(version), 0) FROM owsla_schema_version").fetchone()
            migrate(version, self._migrations, execute)

    def insert(self, rows: Sequence[Row]) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(self._INSERT, rows)

    def close(self) -> None:
        self._connection.close()
