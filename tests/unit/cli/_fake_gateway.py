"""A control interface that answers as a test says, on a unix socket or on a port of 127.0.0.1."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Reply = tuple[int, Any]
"""Status and JSON body; bytes are sent as they are, and an iterator of bytes is a stream."""

Route = Callable[[str, Mapping[str, str]], Reply]
"""A function that answers a request: it gets the rest of the path, unquoted, and the last value of each parameter."""


class _Quiet(socketserver.ThreadingMixIn):
    """A server whose clients may go while they are answered."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[misc]


class _TCPServer(_Quiet, socketserver.TCPServer): ...


class _UnixServer(_Quiet, socketserver.UnixStreamServer): ...


class FakeGateway:
    """Answers requests whose method and path begin with one of `routes`, the longest first. Everything else is 404."""

    def __init__(self, path: str | None = None, routes: Mapping[str, Route] | None = None) -> None:
        """Listen at the path of a unix socket, or without one on a free port."""
        self.routes: dict[str, Route] = dict(routes or {})
        self.version: str | None = "1"
        """Header with the version of the interface."""
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        """Method and path, and headers, of each request."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                fake.answer(self)

            do_GET = do_POST = do_DELETE = _answer

            def address_string(self) -> str:
                return ""

            def log_message(self, format: str, *args: Any) -> None: ...

        if path is None:
            self._server: socketserver.BaseServer = _TCPServer(("127.0.0.1", 0), Handler)
            self.port: int = self._server.socket.getsockname()[1]
        else:
            self._server = _UnixServer(path, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        parts = urlsplit(handler.path)
        name = f"{handler.command} {parts.path}"
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.requests.append((f"{handler.command} {handler.path}", dict(handler.headers.items())))
        found = max((one for one in self.routes if name.startswith(one)), key=len, default="")
        status, body = self.routes[found](unquote(name[len(found) :]), query) if found else (404, {"error": "no such page"})
        handler.send_response(status)
        if self.version is not None:
            handler.send_header("Owsla-Api-Version", self.version)
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
        if isinstance(body, bytes):
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        else:
            handler.end_headers()
            for part in body:
                handler.wfile.write(part)
                handler.wfile.flush()

    def close(self) -> None:
        """Stop, and wait for the requests that are being answered."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sent(data: Any, kind: str | None = None, id: str | None = None) -> bytes:
    """Return a server-sent event."""
    lines = [f"event: {kind}"] if kind is not None else []
    lines += [f"id: {id}"] if id is not None else []
    return "\n".join([*lines, f"data: {json.dumps(data)}", "", ""]).encode()


def connection(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a connection as the control interface describes it."""
    return {
        "connection_id": f"0123456789abcdef-{number:04}"[:8] + f"-89ab-8cde-8f01-23456789{number:04}",
        "device_id": f"door-{number}",
        "node": "01234567",
        "worker": None,
        "peer": f"192.0.2.7:{40000 + number}",
        "door": "main",
        "tls": "TLSv1.3",
        "since": 1_790_000_000_000,
        "lines_in": 1204,
        "lines_out": 0,
        "bytes_in": 93_100,
        "bytes_out": 0,
        "last_in": None,
        "last_out": None,
        "paused": [],
        "slow_since": None,
        "waiting": 0,
        "waiting_bytes": 0,
        "held": 0,
        "closing": None,
        **changes,
    }


def event(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return an event as the control interface describes it."""
    return {
        "time": 1_790_000_000_000 + number,
        "node": "01234567",
        "worker": None,
        "event": "device-disconnected",
        "warning": False,
        "text": f"device door-{number} has gone",
        "fields": {"device_id": f"door-{number}"},
        **changes,
    }
