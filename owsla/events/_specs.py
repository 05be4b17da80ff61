"""Event handlers as `--events` names them: parsing, and creation of their services."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError
from ..log import LineStream
from ._console import Console
from ._database import Database, DatabaseWriter, PostgreSQL, SQLite
from ._json import JSONStreamWriter, JSONWriter
from ._mailbox import Mailbox
from ._manager import EventManager, Handler
from ._outbox import Outbox, Writer
from ._service import HandlerService

HandlerKind: TypeAlias = Literal["console", "json", "database", "amqp"]

STDOUT: Final = "-"
"""Name of standard output in place of a file."""


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler of `--events`. Neither `str()` nor `repr()` shows a password."""

    kind: HandlerKind
    where: str = ""
    """File, or database without its password, for people."""
    path: Path | None = None
    """File of `json` or SQLite; `None` for `json:-`, which is standard output."""
    url: str | None = field(default=None, repr=False)
    """URL of PostgreSQL."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}" if self.where else self.kind


def handler_spec(text: str) -> HandlerSpec:
    """Read `console`, `json:FILE`, `json:-`, `database:URL` or `amqp`. Raise `ConfigError`, without a URL in its text, for
    anything else.
    """
    kind, colon, target = text.partition(":")
    if kind in ("console", "amqp"):
        if colon:
            raise ConfigError(f"{kind} takes no value after a colon")
        return HandlerSpec("console" if kind == "console" else "amqp")
    if kind == "json":
        if not target or "\0" in target:
            raise ConfigError("json needs a file: json:FILE; json:- is standard output")
        if target == STDOUT:
            return HandlerSpec("json", STDOUT)
        _check_file(target)
        return HandlerSpec("json", target, Path(target))
    if kind == "database":
        if not target or "\0" in target:
            raise ConfigError("database needs a file or a URL: database:FILE, database:postgresql://user@host/name")
        return _database_spec(target)
    if kind in ("postgresql", "postgres", "sqlite"):
        raise ConfigError(f"a database is written database:{kind}:...")
    shown = repr(kind) if len(kind) < 40 and kind.replace("-", "").isalnum() else "this"
    raise ConfigError(f"{shown} is not an event handler (console, json:FILE, json:-, database:URL, amqp)")


_LIKE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:?//|//.*@|postgres|[^/]*:.*@", re.IGNORECASE)


def _check_file(name: str) -> None:
    """Raise `ConfigError` for a file name that looks like a mistyped URL: it may contain a password, and file names are
    logged."""
    if _LIKE_URL.match(name):
        raise ConfigError("this looks like a mistyped URL; to use a file of that name, write it with a folder, as in ./NAME")


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(sqlite):", re.IGNORECASE)


def _database_spec(target: str) -> HandlerSpec:
    match = _SCHEME.match(target)
    if match is None:
        _check_file(target)
        return HandlerSpec("database", target, Path(target))
    scheme = (match[1] or match[2]).lower()
    if scheme == "sqlite":
        name = target[match.end() :]
        if name.startswith("//"):
            host, slash, rest = name[2:].partition("/")
            if host:
                raise ConfigError("SQLite has no host: sqlite:///path/to/events.db is /path/to/events.db")
            name = slash + rest
        name = unquote(name)
        if not name.strip("/") or "\0" in name:
            raise ConfigError("SQLite needs a file: database:sqlite:///path/to/events.db")
        return HandlerSpec("database", name, Path(name))
    if scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"{scheme} is not a supported database (a file name, sqlite:///..., postgresql://...)")
    try:
        conninfo = importlib.import_module("psycopg.conninfo")
    except ImportError:
        raise ConfigError("PostgreSQL needs psycopg: pip install 'owsla[postgresql]'") from None
    try:
        values: dict[str, Any] = conninfo.conninfo_to_dict(target)
        urlsplit(target)
    except Exception:
        # The text of the exception may quote the part of the URL that contains the password.
        raise ConfigError(
            "the URL of PostgreSQL cannot be read; its form is postgresql://user:password@host:port/database"
        ) from None
    host = values.get("host", "the local server")
    where = f"{host}:{values['port']}" if "port" in values else host
    return HandlerSpec("database", f"{where}/{values.get('dbname', values.get('user', ''))}", None, target)


@dataclass(frozen=True, slots=True)
class HandlerChild:
    """A handler as a child of a supervisor: `ChildSpec(child.id, child.start)`."""

    id: str
    start: Callable[[], HandlerService]
    """Function that creates the service, called for each start."""


def check_handlers(specs: Sequence[HandlerSpec]) -> None:
    """Raise `ConfigError` if a handler is given twice: two handlers would write to the same file."""
    seen: set[str] = set()
    for spec in specs:
        if str(spec) in seen:
            raise ConfigError(f"{spec} is given twice")
        seen.add(str(spec))


def handlers_from(
    specs: Sequence[HandlerSpec],
    reactor: Any,
    manager: EventManager,
    *,
    presence: Handler | None = None,
    stdout: LineStream | None = None,
) -> list[HandlerChild]:
    """Return the handlers of `--events`, in this order. `presence` handles `amqp`. `stdout` is standard output, which
    a daemon does not have.

    Raise `ConfigError` if a handler needs standard output and there is none.
    """
    check_handlers(specs)
    if stdout is None and any((spec.kind, spec.where) == ("json", STDOUT) for spec in specs):
        raise ConfigError("--events json:-: only with twistd -n; a daemon has no standard output")
    children = []
    used: dict[str, int] = {}
    for spec in specs:
        used[spec.kind] = used.get(spec.kind, 0) + 1
        name = spec.kind if used[spec.kind] == 1 else f"{spec.kind}-{used[spec.kind]}"
        children.append(HandlerChild(name, partial(_service, spec, name, reactor, manager, presence, stdout)))
    return children


def _service(
    spec: HandlerSpec,
    name: str,
    reactor: Any,
    manager: EventManager,
    presence: Handler | None,
    stdout: LineStream | None,
) -> HandlerService:
    stats = manager.stats(name)
    handler: Handler
    if spec.kind == "console":
        handler = Mailbox(reactor, manager, Console(reactor, lambda: manager.node), stats)
    elif spec.kind == "amqp":
        if presence is None:
            raise ValueError("amqp needs a presence handler")
        handler = presence  # it has its own queue
    else:
        handler = Outbox(reactor, manager, _writer(spec, stdout), stats, in_reactor=reactor.callFromThread)
    return HandlerService(manager, handler, name)


def _writer(spec: HandlerSpec, stdout: LineStream | None) -> Writer:
    if spec.kind == "json" and spec.where == STDOUT:
        assert stdout is not None
        return JSONStreamWriter(stdout)
    if spec.kind == "json":
        assert spec.path is not None
        return JSONWriter(spec.path)
    database: Database
    if spec.url is not None:
        database = PostgreSQL(spec.url)
    else:
        assert spec.path is not None
        database = SQLite(spec.path)
    return DatabaseWriter(database, spec.where)
