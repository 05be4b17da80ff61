"""The pages: read-only, made for each request, for GET and HEAD only."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NOT_MODIFIED
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from ._sources import Source
from ._state import State
from ._static import CONTENT_SECURITY_POLICY, StaticFile, StaticFiles
from ._summary import summary, title

IDLE: Final = 60.0
"""Seconds after which an idle connection is closed."""

CHECKS: Final = frozenset({b"/healthz", b"/readyz"})
"""Pages that accept any Host header: an orchestrator must not restart a gateway because of one."""

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"

Answer = tuple[int, str, str | bytes]
"""Status, media type and body of an answer."""

PageFunction = Callable[[Request], Deferred[Answer]]
"""A function that generates a page."""


class Pages(Resource):
    """Resource that selects a page by its path."""

    isLeaf = True
    _log = Logger(namespace="owsla.http")

    def __init__(self, pages: Mapping[bytes, PageFunction], names: Collection[str] | None = None) -> None:
        """`names`: accepted host names (`is_accepted_host`); `None` accepts all."""
        super().__init__()
        self._pages = pages
        self._names = names

    def render(self, request: Request) -> int:
        page = self._pages.get(request.path, _not_found)
        if self._names is not None and request.path not in CHECKS:
            hosts = request.requestHeaders.getRawHeaders(b"host", [])
            if not all(is_accepted_host(host, self._names) for host in hosts):
                page = _misdirected
        if request.method not in (b"GET", b"HEAD"):
            page = _method_not_allowed
        answer: Deferred[Answer] = maybeDeferred(page, request)
        answer.addErrback(self._failed, request)
        answer.addCallback(self._write, request)
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: Request) -> Answer:
        self._log.failure("Generating {page} failed", failure, page=request.path.decode("ascii", "replace"))
        return 500, _TEXT, "This page could not be generated; the log has the reason.\n"

    def _write(self, answer: Answer, request: Request) -> None:
        if request.channel is None:
            return  # the client has disconnected
        status, media_type, text = answer
        body = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        request.setResponseCode(status)
        for name, value in (
            ("content-type", media_type),
            ("content-security-policy", CONTENT_SECURITY_POLICY),
            ("x-content-type-options", "nosniff"),
            ("server", "owsla"),
        ):
            request.setHeader(name.encode(), value.encode())
        if status != NOT_MODIFIED:
            request.setHeader(b"content-length", str(len(body)).encode())
        if not request.responseHeaders.hasHeader(b"cache-control"):
            request.setHeader(b"cache-control", b"no-store")
        request.write(body)
        request.finish()


def _not_found(_: Request) -> Deferred[Answer]:
    return succeed((404, _TEXT, "Not found. The pages are /, /metrics, /healthz, /readyz and /tree.\n"))


def _method_not_allowed(request: Request) -> Deferred[Answer]:
    request.setHeader(b"allow", b"GET, HEAD")
    return succeed((405, _TEXT, "Method not allowed: the pages are read-only.\n"))


def _misdirected(_: Request) -> Deferred[Answer]:
    return succeed((421, _TEXT, "Misdirected request: Host must be an IP address, localhost or the name of this machine.\n"))


def is_accepted_host(host: bytes, names: Collection[str]) -> bool:
    """Return whether a Host header is an IP address, localhost, or one of `names`. Pure.

    Any other name is refused because of DNS rebinding: the owner of a web page can resolve its name to 127.0.0.1, and so let
    the browser of a visitor read these pages.
    """
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
    except (UnicodeDecodeError, ValueError):
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name in (own.lower() for own in names):
        return True
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class BodilessRequest(Request):
    """A request that is refused at its headers if it has a body. Twisted would write the body to disk without limit."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length == 0:
            return
        self._refused = True
        self.requestHeaders.removeHeader(b"expect")  # no "100 Continue"
        transport: Any = self.channel.transport
        transport.write(b"HTTP/1.1 413 Content Too Large\r\nserver: owsla\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.channel.loseConnection()

    def handleContentChunk(self, data: bytes) -> None:
        """Discard data that arrives before the connection is closed."""

    def process(self) -> None:
        if not self._refused:
            super().process()


class QuietSite(Site):
    """A site without an access log. Prometheus makes a request every few seconds."""

    noisy = False
    displayTracebacks = False
    requestFactory = BodilessRequest

    def log(self, request: Any) -> None: ...


class _Collected(Collector):
    """Adapter that passes collected metrics to an encoder."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def site(source: Source, reactor: Any, names: Collection[str] | None = None) -> QuietSite:
    """Return the site with all pages. `names`: see `Pages`."""
    files = StaticFiles()

    def index(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(lambda state: (200, _HTML, files.index(title(state), summary(state))))

    def metrics(request: Request) -> Deferred[Answer]:
        encode, media_type = _encoder(request)
        return source.metrics().addCallback(lambda families: (200, media_type, encode(_Collected(families))))

    def healthz(_: Request) -> Deferred[Answer]:
        return succeed((200, _TEXT, "ok\n"))

    def readyz(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(
            lambda state: (200 if state.ready else 503, _JSON, json.dumps(_readiness(state)) + "\n")
        )

    def tree(_: Request) -> Deferred[Answer]:
        return source.state().addCallback(lambda state: (200, _JSON, json.dumps(state.tree, indent=2) + "\n"))

    pages: dict[bytes, PageFunction] = {
        b"/": index,
        b"/metrics": metrics,
        b"/healthz": healthz,
        b"/readyz": readyz,
        b"/tree": tree,
        **{path: _static_page(file) for path, file in files.items()},
    }
    return QuietSite(Pages(pages, names), timeout=IDLE, reactor=reactor)


def _static_page(file: StaticFile) -> PageFunction:
    def page(request: Request) -> Deferred[Answer]:
        # A browser keeps the file, and asks at each use whether it has changed: after an update no part of it is an old one.
        request.setHeader(b"cache-control", b"no-cache")
        request.setHeader(b"etag", file.etag)
        if file.etag in (request.getHeader(b"if-none-match") or b""):
            return succeed((NOT_MODIFIED, file.media_type, b""))
        return succeed((200, file.media_type, file.body))

    return page


def _encoder(request: Request) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(request.getHeader("accept") or "")
    except Exception:
        # prometheus-client raises for a malformed Accept header, such as `version=` without a number. Use the default format.
        return choose_encoder("")


def _readiness(state: State) -> dict[str, Any]:
    """Return the body of /readyz."""
    body: dict[str, Any] = {"ready": state.ready, "checks": state.checks}
    if state.workers is not None:
        body["workers"] = [
            {
                "name": worker.name,
                "state": worker.process,
                "ready": worker.says is not None and worker.says.ready,
                "checks": None if worker.says is None else worker.says.checks,
            }
            for worker in state.workers
        ]
    return body
