"""Client of the control interface of a running gateway: HTTP over its unix socket, or over TCP with a token.

Each request has a connection of its own. A stream is read line by line, as server-sent events.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import socket
import ssl
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from ..runtime.sockets import loopback

JSON: TypeAlias = Any
"""A parsed JSON document."""

VERSION: Final = "1"
"""Version of the control interface that these commands use."""

VERSION_HEADER: Final = "Owsla-Api-Version"

TIMEOUT: Final = 10.0
"""Seconds for an answer. A gateway needs milliseconds, or two seconds if one of its workers does not respond."""

SILENCE: Final = 60.0
"""Seconds without a byte after which a stream is taken for dead. The gateway sends a comment at least every 15 seconds."""

AGAIN: Final = 0.02
"""Seconds until the next attempt to connect where the accept queue of the gateway is full."""

LARGEST: Final = 1 << 26
"""Maximum size of an answer in bytes. A page of 1,000 devices has 0.6 MB."""

_CLOCK_ERROR: Final = 2.0
"""Seconds by which the clock of a gateway may differ before ages are corrected: its Date has whole seconds."""

_ADDRESS_AND_PORT: Final = re.compile(r"(?:(?P<address>\[[0-9A-Fa-f:.%]+\]|[^\s:/@?#\[\]]+):)?(?P<port>[0-9]{1,5})", re.ASCII)


class ControlError(Exception):
    """A request that failed. The text says why in one sentence, and where."""


class Unreachable(ControlError):
    """No gateway answers there, or the connection to it was lost."""


class Refusal(ControlError):
    """The gateway answered with an error."""

    def __init__(self, text: str, status: int, answer: JSON) -> None:
        super().__init__(text)
        self.status = status
        self.answer = answer
        """The whole answer, or `None` if it is not JSON."""


@dataclass(frozen=True, slots=True)
class ControlResponse:
    """An HTTP answer."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """A server-sent event."""

    kind: str
    id: str | None
    """Position in the stream, from which it can go on."""
    data: JSON


Dial: TypeAlias = Callable[[float], http.client.HTTPConnection]
"""A function that makes a connection with a timeout in seconds. It connects at the first request."""


class Control:
    """The control interface of a gateway."""

    def __init__(
        self, where: str, dial: Dial, *, base: str = "", token_file: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`where` names the address in messages; `base` goes before each path; `clock` returns seconds since the epoch."""
        self.where = where
        self._dial = dial
        self._base = base
        self._token_file = token_file
        self._clock = clock
        self._ahead = 0.0

    def now(self) -> float:
        """Return the time in milliseconds since the epoch, by the clock of the gateway as its last answer showed it."""
        return (self._clock() + self._ahead) * 1000

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> JSON:
        """Return the answer to a GET request. Raise `ControlError`."""
        return self._json(self.request("GET", _target(path, query)))

    def post(self, path: str, *, timeout: float = TIMEOUT) -> JSON:
        """Return the answer to a POST request. Raise `ControlError`."""
        return self._json(self.request("POST", path, timeout=timeout))

    def delete(self, path: str, query: Mapping[str, Any] | None = None) -> JSON:
        """Return the answer to a DELETE request. Raise `ControlError`."""
        return self._json(self.request("DELETE", _target(path, query)))

    def stream(self, path: str, query: Mapping[str, Any] | None = None, *, after: str | None = None) -> Iterator[Sent]:
        """Yield server-sent events until the gateway ends the stream. Raise `ControlError`.

        `after` is the id of the last event that is known. Comments yield nothing.
        """
        headers = {"Accept": "text/event-stream", **({} if after is None else {"Last-Event-ID": after})}
        with self._connected(SILENCE) as connection:
            response = self._send(connection, "GET", _target(path, query), headers)
            if response.status != http.client.OK:
                self._json(ControlResponse(response.status, response.headers, response.read(LARGEST)))
            self._check_version(response.status, response.headers)
            yield from _sent(iter(lambda: response.readline(LARGEST), b""))

    def request(self, method: str, target: str, *, timeout: float = TIMEOUT) -> ControlResponse:
        """Return any answer, also one of another program. Raise `Unreachable`."""
        deadline = time.monotonic() + timeout
        with self._connected(timeout) as connection:
            response = self._send(connection, method, target, {"Accept": "application/json"})
            body = bytearray()
            while part := response.read1(1 << 16):
                body += part
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > LARGEST:
                    raise Unreachable(f"{self.where}: the answer is longer than {LARGEST >> 20} MB: is that a gateway?")
            return ControlResponse(response.status, response.headers, bytes(body))

    def process(self) -> int | None:
        """Return the process id of the gateway at a unix socket, or `None` if it is not to be had. Raise `Unreachable`."""
        with self._connected(TIMEOUT) as connection:
            connection.connect()
            if connection.sock.family != socket.AF_UNIX:
                return None
            credentials = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", credentials)[0]) or None  # 0: of another container

    # -- one request -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _connected(self, timeout: float) -> Iterator[http.client.HTTPConnection]:
        """Provide a connection, and close it. Raise `Unreachable` for all that can go wrong with it."""
        connection = self._dial(timeout)
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.where}: {_reason(error, timeout)}") from None
        finally:
            connection.close()

    def _send(
        self, connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        token = {} if self._token_file is None else {"Authorization": f"Bearer {read_token(self._token_file)}"}
        connection.request(method, self._base + target, headers={**headers, **token})
        response = connection.getresponse()
        self._ahead = _ahead(response.getheader("Date"), self._clock())
        return response

    def _json(self, answer: ControlResponse) -> JSON:
        self._check_version(answer.status, answer.headers)
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ControlError(f"{self.where}: the answer is not a JSON object (status {answer.status})")
        if answer.status >= http.client.BAD_REQUEST:
            error = str(document.get("error", f"the gateway answers {answer.status}"))
            if answer.status == http.client.UNAUTHORIZED:
                error += "; use --token-file" if self._token_file is None else f"; the token is from {self._token_file}"
            raise Refusal(f"{self.where}: {error}", answer.status, document)
        return document

    def _check_version(self, status: int, headers: Message) -> None:
        """Raise `ControlError` unless this is an answer of the control interface, in the version of these commands."""
        version = headers.get(VERSION_HEADER)
        if version is None:
            raise ControlError(
                f"{self.where}: no control interface (status {status}): another program answers there, or a gateway without "
                "--http-token-file, or an older one"
            )
        if version != VERSION:
            raise ControlError(
                f"{self.where}: the gateway has version {version} of the control interface, and this command has version "
                f"{VERSION}: use the `owsla` of the release that the gateway runs"
            )


# -- Addresses -------------------------------------------------------------------------------------------------------------


def at_socket(path: str) -> Control:
    """Return the control interface at a unix socket."""
    return Control(path, lambda timeout: _UnixConnection(path, timeout))


def at_url(url: str, token_file: Path | None = None) -> Control:
    """Return the control interface at the URL of `base_url`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return Control(
            url,
            lambda timeout: http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=context),
            base=parts.path,
            token_file=token_file,
        )
    return Control(
        url,
        lambda timeout: http.client.HTTPConnection(host, parts.port, timeout=timeout),
        base=parts.path,
        token_file=token_file,
    )


def base_url(text: str) -> str:
    """Return the URL of a gateway, from a URL or from `[ADDRESS:]PORT` as in its own `--http`. Raise `ValueError`.

    An address that stands for all addresses of a machine is replaced by that of `loopback`.
    """
    if "://" in text:
        parts = urlsplit(text)
        try:
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable() or " " in text:
            raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:9100")
        return text.rstrip("/").removesuffix("/tree")
    match = _ADDRESS_AND_PORT.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{text!r} is neither a URL nor [ADDRESS:]PORT")
    address = match["address"]
    if address in (None, "", "all", "0.0.0.0", "[::]"):
        address = loopback()
        if ":" in address:
            address = f"[{address}]"
    return f"http://{address}:{match['port']}"


def part(text: str) -> str:
    """Return a text as one part of a path."""
    return quote(os.fsencode(text), safe="")


def read_token(file: Path) -> str:
    """Return the token in a file. Raise `ControlError`."""
    try:
        token = file.read_bytes().strip().decode("ascii")
    except OSError as error:
        raise ControlError(f"--token-file: {file}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ControlError(f"--token-file: {file}: a token is one line of ASCII, without spaces")
    return token


class _UnixConnection(http.client.HTTPConnection):
    """HTTP connection over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        """Connect. Raise `_NotConnected`."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self._timeout)
        try:
            _connect(sock, self._path, time.monotonic() + self._timeout)
        except OSError as error:
            sock.close()
            raise _NotConnected(error.errno, _why_not(self._path, error)) from None
        self.sock = sock


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    """Connect a socket with a timeout. Wait for a place where the accept queue is full: the kernel refuses that at once."""
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(AGAIN)
        else:
            return


class _NotConnected(OSError):
    """A unix socket that does not connect, with a reason for a person."""


def _why_not(path: str, error: OSError) -> str:
    """Return the reason why a unix socket does not connect, with a hint."""
    try:
        found = os.stat(path)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR):
            return "no such socket: is a gateway running, and is this its --control? (OWSLA_CONTROL)"
        return (error.strerror or str(error)).lower()
    if not stat.S_ISSOCK(found.st_mode):
        return f"is a {'folder' if stat.S_ISDIR(found.st_mode) else 'file'}, and not the socket of a gateway"
    match error.errno:
        case errno.ECONNREFUSED:
            return "no gateway listens there any longer: the socket is left over"
        case errno.EACCES | errno.EPERM:
            return f"permission denied: the socket is for {_owner(found.st_uid)}"
        case errno.EAGAIN:
            return "the gateway accepts no connection: it is stopped, or hangs"
        case errno.EPROTOTYPE:
            return "is a socket of another kind, and not that of a gateway"
    return (error.strerror or str(error)).lower()


def _owner(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user with uid {uid}"


# -- Answers ---------------------------------------------------------------------------------------------------------------


def _target(path: str, query: Mapping[str, Any] | None) -> str:
    """Return a path with the parameters that have a value; true is 1, and a list is a parameter for each item."""
    if query is None:
        return path
    given = {name: 1 if value is True else value for name, value in query.items() if value not in (None, False, "")}
    return f"{path}?{urlencode(given, doseq=True, errors='surrogateescape')}" if given else path


def _ahead(date: str | None, now: float) -> float:
    """Return the seconds by which the clock of a gateway is ahead of this one, or 0 if they agree."""
    if date is None:
        return 0.0
    try:
        ahead = parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return ahead if abs(ahead) > _CLOCK_ERROR else 0.0


def _sent(lines: Iterator[bytes]) -> Iterator[Sent]:
    """Parse server-sent events. One that is not JSON is skipped, as is one that is cut off by the end."""
    kind, data = "message", bytearray()
    last: str | None = None
    for raw in lines:
        line = raw.rstrip(b"\r\n")
        if not line:
            if data:
                try:
                    yield Sent(kind, last, json.loads(data))
                except (ValueError, RecursionError):
                    pass
            kind, data = "message", bytearray()
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data += value
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
        elif name == b"id":
            last = value.decode("utf-8", "replace")


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s: the gateway is stopped, or hangs"
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "the program there does not speak HTTP"
    if isinstance(error, _NotConnected):
        return str(error.strerror)
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
