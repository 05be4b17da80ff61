"""A client of the API of a gateway, over its control socket or over TCP."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThread

from .waiting import PATIENCE, current_reactor, within


class Reply(NamedTuple):
    """An answer of the API."""

    status: int
    body: Any
    headers: Mapping[str, str]


def connect_unix(path: Path) -> socket.socket:
    """Return a blocking connection to a unix socket. It waits for a place in a full accept queue."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a Python timeout the socket is non-blocking: where the queue is full, connect() fails at once, with EAGAIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(PATIENCE), 0))
        sock.connect(str(path))
        sock.settimeout(PATIENCE)
    except BaseException:
        sock.close()
        raise
    return sock


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = connect_unix(self._path)


class ApiClient:
    """Client of the API at one address: the path of a control socket, or a port with a token."""

    def __init__(self, where: Path | int, token: str | None = None) -> None:
        self._where = where
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def _connection(self) -> http.client.HTTPConnection:
        if isinstance(self._where, Path):
            return _UnixConnection(self._where)
        return http.client.HTTPConnection("127.0.0.1", self._where, timeout=PATIENCE)

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        with closing(self._connection()) as connection:
            connection.request(method, f"/api/v1{path}", headers={**self._headers, **headers})
            answer = connection.getresponse()
            content = answer.read()
            body = json.loads(content) if answer.headers.get_content_type() == "application/json" and content else content
            return Reply(answer.status, body, {name.lower(): value for name, value in answer.headers.items()})

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """Send a request, while the reactor runs. An underscore in the name of a header stands for a hyphen."""
        current_reactor()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply: Reply = await within(deferToThread(self._ask, method, path, named), 2 * PATIENCE)
        return reply

    async def get(self, path: str) -> Any:
        """Return the body of a successful answer."""
        reply = await self.ask(path)
        assert reply.status == 200, reply
        return reply.body

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[ApiStream]:
        """Open a stream. The request is sent at once."""
        with closing(self._connection()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", f"/api/v1{path}", headers={"Accept": "text/event-stream", **self._headers, **named})
            yield ApiStream(connection)


class ApiStream:
    """A stream of server-sent events."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._answer: http.client.HTTPResponse | None = None

    def _open(self) -> http.client.HTTPResponse:
        if self._answer is None:
            self._answer = self._connection.getresponse()
            assert self._answer.status == 200, self._answer.read()
        return self._answer

    async def opened(self) -> None:
        """Wait until the stream has begun."""
        await within(deferToThread(self._open), 2 * PATIENCE)

    def _next(self) -> tuple[str, Any]:
        answer = self._open()
        kind = ""
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                return kind, json.loads(value)
        return "closed", None

    async def next(self) -> tuple[str, Any]:
        """Return the kind and the data of the next message; `closed` at the end of the stream."""
        message: tuple[str, Any] = await within(deferToThread(self._next), 2 * PATIENCE)
        return message

    async def find(self, kind: str) -> Any:
        """Return the data of the next message of this kind."""
        while True:
            found, data = await self.next()
            if found == kind:
                return data
            assert found != "closed", f"the stream has ended without {kind}"
