"""The event handler `database`: events as rows of a table, in SQLite or PostgreSQL.

    owsla_events          time, node, number, event, warning, connection_id, device_id, text, fields
    owsla_schema_version  version: one row per migration

Everything here runs in the writer's thread. Node and number identify an event. So a batch that is written again, because the
result of its commit was lost with the connection, creates no second row.
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

from ..log import utc
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
"""Migrations from each version of the schema to the next, from an empty database on. Existing ones are never changed."""

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
"""The same migrations for PostgreSQL."""

MIGRATION_LOCK: Final = 0x6F77736C61
"""Key of the advisory lock of PostgreSQL for migrations: "owsla" in ASCII."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process that writes to the same SQLite file; the default of SQLite in Python."""

CONNECT_TIMEOUT: Final = 10
"""Seconds to connect to PostgreSQL, and to notice a dead connection (tcp_user_timeout)."""

Row = tuple[Any, ...]

_COLUMNS: Final = "time, node, number, event, warning, connection_id, device_id, text, fields"


class NewerSchema(Exception):
    """The schema of the database is that of a later version of Owsla."""


class DatabaseConnection(Protocol):
    """The interface of a connection to a database."""

    def migrate(self) -> None:
        """Migrate the schema to the last version in one transaction, while no other node does."""

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert all rows or none. Existing rows are left unchanged."""

    def close(self) -> None: ...


class Database(Protocol):
    """The interface of a database."""

    troubles: tuple[type[Exception], ...]
    """Exceptions for temporary faults: unreachable, no space."""
    unfit: tuple[type[Exception], ...]
    """Exceptions for a row that it can never store."""

    def connect(self) -> DatabaseConnection: ...

    def row(self, record: Record) -> Row: ...


class DatabaseWriter:
    """Writer that inserts each batch in a transaction. It connects at the first batch."""

    def __init__(self, database: Database, where: str) -> None:
        """`where` is the name of the database in log lines, without a password."""
        self._database = database
        self._where = where
        self._connection: DatabaseConnection | None = None

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
            # Insert the rows one by one, so that an unfit row neither blocks the others nor is retried forever.
            return sum(not self._fits(connection, row) for row in rows)

    def _fits(self, connection: DatabaseConnection, row: Row) -> bool:
        try:
            connection.insert([row])
        except self._database.unfit:
            return False
        return True

    def reopen(self) -> None:
        """Do nothing: a database has no file to reopen."""

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._database.troubles:
                pass  # the connection is closed in any case


def migrate(version: int, migrations: Sequence[Sequence[str]], execute: Callable[[str], Any]) -> None:
    """Execute the migrations after `version`. Raise `NewerSchema` if the schema has a later version."""
    if version > len(migrations):
        raise NewerSchema(f"its schema has version {version}, and this version of Owsla supports {len(migrations)}")
    for number, statements in enumerate(migrations[version:], version + 1):
        for statement in statements:
            execute(statement)
        execute(f"INSERT INTO owsla_schema_version (version, made_at) VALUES ({number}, CURRENT_TIMESTAMP)")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_UNFIT_TEXT = re.compile("[\0\ud800-\udfff]")


def _clean(text: str) -> str:
    """Replace characters that databases refuse in text: NUL and unpaired surrogates. Names in certificates may contain them."""
    return _UNFIT_TEXT.sub("\ufffd", text)


def _fields(record: Record) -> str:
    fields = {name: _clean(value) if isinstance(value, str) else value for name, value in record.event.fields().items()}
    return json.dumps(fields, ensure_ascii=False)


def _text_of(record: Record, name: str) -> str | None:
    value = record.event.fields().get(name)
    return None if value is None else _clean(str(value))


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _after_time(record: Record) -> Row:
    """Return the columns of a row after the time, whose type depends on the database."""
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
    """SQLite database in a file."""

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
    """Connection to a SQLite file, with explicit transactions."""

    _INSERT: Final = (
        f"INSERT INTO owsla_events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node, number) DO NOTHING"
    )

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]]) -> None:
        self._migrations = migrations
        try:
            # SQLite creates files with mode 0644. Its other files (-wal, -shm) inherit the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        except OSError:
            pass  # sqlite3.connect reports the reason
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            # With a write-ahead log, readers and the writer do not wait for each other, and a commit needs no fsync
            # (https://www.sqlite.org/wal.html). A power failure may lose the last second; the rest stays intact.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            # SQLite opens the file at its first use, which is here. Nothing else would close it.
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
    """PostgreSQL server, accessed with psycopg."""

    def __init__(self, url: str, migrations: Sequence[Sequence[str]] = POSTGRESQL_MIGRATIONS) -> None:
        """`url`: a connection URI of libpq. Its password never appears in messages."""
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
    """Connection to PostgreSQL."""

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
            # Check first: a role that may only insert is not allowed to execute CREATE ... IF NOT EXISTS.
            if execute("SELECT to_regclass('owsla_schema_version')").fetchone()[0] is None:
                execute("CREATE TABLE owsla_schema_version (version INTEGER PRIMARY KEY, made_at TIMESTAMPTZ NOT NULL)")
            (version,) = execute("SELECT COALESCE(MAX(version), 0) FROM owsla_schema_version").fetchone()
            migrate(version, self._migrations, execute)

    def insert(self, rows: Sequence[Row]) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(self._INSERT, rows)

    def close(self) -> None:
        self._connection.close()
